"""What a compiled tick makes of operations of torch: Inductor's decompositions, but for a few."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ebmppl.kernels.tracer import REAL_ZEROS

_COLUMNS, _LARGE = 16, 1 << 16  # from where on, seen on an EPYC: 256 x 256 by 256 x 2 takes 43 us instead of 102

aten = torch.ops.aten


@cache
def decompositions() -> dict[Any, Callable[..., Any]]:
    """By operation."""
    from torch._inductor.decomposition import select_decomp_table

    own: dict[Any, Callable[..., Any]] = {
        **REAL_ZEROS,
        aten.softplus.default: softplus,
        aten.softplus_backward.default: softplus_backward,
        aten.sigmoid.default: sigmoid,
        aten.silu.default: silu,
        aten.silu_backward.default: silu_backward,
        aten.mm.default: mm,
    }
    return {**select_decomp_table(), **own}


def softplus(x: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """Log(1 + exp(beta x)) / beta, x itself above the threshold, with a logarithm of numbers from 1 to 2 only.

    That takes half the time, see ``fast_math.py``, and the exponential is the gradient's, too.
    """
    z = _scaled(x, beta)
    value = z.clamp_min(0.0) + torch.exp(-z.abs()).log1p()
    value = value if beta == 1 else value / beta
    return value if _rounded_off(x, threshold) else torch.where(z > threshold, x, value)


def softplus_backward(grad: Tensor, x: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """The gradient of ``softplus`` times ``grad``."""
    z = _scaled(x, beta)
    small = torch.exp(-z.abs())
    rate = torch.where(z < 0, small, 1.0) / (small + 1.0)
    return grad * rate if _rounded_off(x, threshold) else torch.where(z > threshold, grad, grad * rate)


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x)), by an exponential that ``fast_math.py`` knows: Inductor's own calls the library's."""
    value = 1.0 / (torch.exp(-_at_least_float32(x)) + 1.0)
    return value.to(x.dtype) if x.is_floating_point() else value


def silu(x: Tensor) -> Tensor:
    """X sigmoid(x), with a sigmoid that is the gradient's, too."""
    wide = _at_least_float32(x)
    return (wide * sigmoid(wide)).to(x.dtype)


def silu_backward(grad: Tensor, x: Tensor) -> Tensor:
    """The gradient of ``silu`` times ``grad``."""
    wide = _at_least_float32(x)
    share = sigmoid(wide)
    return (grad * (share * (wide * (1.0 - share) + 1.0))).to(grad.dtype)


def mm(a: Tensor, b: Tensor) -> Tensor:
    """A product. A second factor of few columns is laid out column by column: for rows the library's kernels are slow then."""
    few = 1 < b.shape[1] < _COLUMNS and b.stride(1) == 1 and a.numel() >= _LARGE
    if few and a.device.type == "cpu" and a.dtype == torch.float32:
        return torch.mm(a, b.t().contiguous().t())
    return NotImplemented  # as it is


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _scaled(x: Tensor, beta: float) -> Tensor:
    return x if beta == 1 else x * beta


def _rounded_off(x: Tensor, threshold: float) -> bool:
    """Whether the formulas give beyond the threshold what is to be given there."""
    return x.dtype == torch.float32 and threshold >= 17  # 1 + exp(-17) is 1
