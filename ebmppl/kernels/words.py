"""Random words of 32 bits by counters, inside a tick, and draws by them whose probabilities are exact to 2^-32.

A word is a hash of where it is used and of two random keys of the chain's tick. So a tick stays a pure function, chains
don't depend on one another, nothing is carried along, and a compiler fuses the numbers into what uses them: a fifth of
what a Mersenne twister takes, and no memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from ebmppl.kernels.base import NoiseSpec

KEYS = NoiseSpec("bits", (2,))  # of one tick of one chain
_GOLDEN = -1640531527  # 2^32 times the golden section, less 2^32
_FACTORS = (2146121005, -2073254261)
_TENSORS = {n: torch.tensor(n, dtype=torch.int32) for n in (15, 16, (1 << 16) - 1, (1 << 17) - 1, *_FACTORS)}
LEAST = -(1 << 31)  # of all words
_ALMOST_1 = 1.0 - 2.0**-20


def labels(number: int, first: int = 0, device: torch.device | None = None) -> Tensor:
    """Scattered words ``(number,)`` that stand for places first, first + 1, ...: hashes of them, no two the same."""
    place = torch.arange(first + 1, first + number + 1, dtype=torch.int64, device=device) * _GOLDEN
    return _scattered(place.to(torch.int32))


def words(label: Tensor, keys: Tensor, other: Tensor) -> Tensor:
    """Uniform words, int32 of any sign, for labels and two keys that broadcast."""
    return _scattered(label + keys).add_(other)


def _scattered(x: Tensor) -> Tensor:
    """A bijection of 32 bits, by Wellons 2018, "Prospecting for hash functions" (its lowbias32); x is written over."""
    # tensors for constants, except in a trace: a number of Python's beside a tensor takes some microseconds more
    number: Callable[[int], Any] = _TENSORS.__getitem__ if x.is_cpu and _get_current_dispatch_mode() is None else int
    for shift, factor in ((16, _FACTORS[0]), (15, _FACTORS[1]), (16, 1)):
        mask = number((1 << (32 - shift)) - 1)
        x = x.bitwise_xor_((x >> number(shift)).bitwise_and_(mask))  # new memory would cost the most
        x = x if factor == 1 else x.mul_(number(factor))
    return x


def upper_by_word(log_odds: Tensor, word: Tensor) -> Tensor:
    """Whether each of two levels is the upper one.

    The less probable level has the probability q = 1 / (1 + exp(abs(log_odds))) with the relative rounding of the
    dtype, floored to a multiple of 2^-32 and never less than 2^-32: no level is ever impossible.
    """
    most = 2.0**31 - (128 if log_odds.dtype == torch.float32 else 1)  # the last one below 2^31
    least = log_odds.abs().neg_().sigmoid_().mul_(2.0**32).clamp_(1.0, most)
    below = least.copysign_(-log_odds).to(torch.int32).add_(LEAST)  # which wraps
    return word < below


def bits_by_word(log_odds: Tensor, word: Tensor) -> Tensor:
    """Bits 0 or 1, at the dtype of their log-odds: drawn as by ``upper_by_word`` (not by the same words), in fewer passes.

    The less probable bit, of probability q, is drawn by words w in [-q 2^32, 0) if it is 1, in [0, q 2^32) if it is 0: where
    1 / w is beyond -+1 / (q 2^32) = -+(1 + exp(abs(log_odds))) / 2^32. Floats tell 1 / w apart as finely as q.
    """
    beyond = log_odds.abs().exp_().add_(1.0).mul_(2.0**-32).clamp_(max=_ALMOST_1).copysign_(log_odds)
    return word.to(log_odds.dtype).reciprocal_().le_(beyond)


def thresholds(log_odds: Tensor) -> Tensor:
    """Below which words the upper level is drawn, int32: its probability rounded to a multiple of 2^-32, never 0 or 1."""
    p = torch.sigmoid(log_odds.double())
    return ((p * 2.0**32).round().clamp(1.0, 2.0**32 - 1) + LEAST).to(torch.int32)


def uniform_of(word: Tensor, dtype: torch.dtype) -> Tensor:
    """Uniform numbers in [0, 1) of 24 bits, in float64 of 32, in half precision of as many as there are."""
    if dtype == torch.float64:
        return word.to(dtype).sub_(LEAST).mul_(2.0**-32)
    bits = 1 - round(math.log2(torch.finfo(dtype).eps))
    return (word >> (32 - bits)).bitwise_and_((1 << bits) - 1).to(dtype).mul_(2.0**-bits)


def uniforms(label: Tensor, keys: Tensor, dtype: torch.dtype) -> Tensor:
    """Uniform numbers in [0, 1) for labels and two keys that broadcast."""
    key, other = keys.split(1, -1)
    return uniform_of(words(label, key, other), dtype)


def normals(label: Tensor, keys: Tensor, dtype: torch.dtype) -> Tensor:
    """Standard normal numbers for labels and two keys that broadcast: the inverse distribution function at uniform words.

    Uniform numbers are the middles of 2^24 equal parts of (0, 1), in float64 of 2^32, so that no number is beyond 5.4, or
    6.3, where 6e-8, or 2e-10, of the probability lies. In half precision these would be infinite: they are of float32, rounded.
    """
    key, other = keys.split(1, -1)
    word, bits = words(label, key, other), 32
    if dtype != torch.float64:
        word, bits = word >> 8, 24
    scale = 2.0 ** (1 - bits)
    wide = torch.float64 if bits == 32 else torch.float32
    return word.to(wide).mul_(scale).add_(scale / 2).erfinv_().mul_(math.sqrt(2.0)).to(dtype)
