"""Metropolis acceptance and selection by chain, written once."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

DIVERGENCE = 1000.0  # nats of energy error, as in Stan and Pyro
_LARGE = 1 << 14  # numbers from which copying rows beats a broadcast ``where`` on a CPU

State = TypeVar("State", bound=tuple[Tensor, ...])


class Acceptance(NamedTuple):
    """The decision of every chain, each field ``(chains,)``."""

    accept: Tensor
    rate: Tensor  # min(1, exp(-error)); 0 where the error is not finite
    diverging: Tensor  # error over 1000 nats, or not finite


def not_finite(x: Tensor) -> Tensor:
    """Where numbers are NaN or infinite: ``0 x`` is 0 or NaN, in two operations where ``~isfinite`` takes five.

    ``x - x`` would do as well, were it not that GPUs round ``a b - a b`` once: what is left of a product is no zero.
    """
    return (x * 0) != 0


def but_not(a: Tensor, b: Tensor) -> Tensor:
    """``a & ~b`` of masks in one operation."""
    return a > b


def some(mask: Tensor) -> bool:
    """Whether any chain is True, where asking costs nothing (eager on a CPU); elsewhere, and in a trace, True.

    For leaving out work that would change nothing: the numbers are the same either way.
    """
    return not _on_host(mask) or bool(mask.any())


def metropolis(error: Tensor, uniform: Tensor) -> Acceptance:
    """Accept a proposal with probability min(1, exp(-error)) (Metropolis et al. 1953).

    Args:
        error: energy of the proposal minus energy of the start, in nats. NaN or +inf rejects; so does -inf, which
            only a proposal of energy -inf (not a density) can give.
        uniform: uniform numbers in [0, 1).
    """
    error = error + error * 0  # NaN where it is not finite
    rate = error.clamp_min(0.0).neg_().exp_().nan_to_num_(0.0)
    return Acceptance(uniform < rate, rate, ~(error <= DIVERGENCE))


def choose(mask: Tensor, a: State, b: State) -> State:
    """``select`` in every field of two states of one kind."""
    if _on_host(mask) and bool(mask.all()):
        return a
    rows = Rows(mask)
    return type(a)(*(new if new is old else rows.select(new, old) for new, old in zip(a, b, strict=True)))


def select(mask: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Rows of ``a`` where ``mask`` ``(chains,)`` is True, else rows of ``b``; NaN in the other does not leak."""
    return Rows(mask).select(a, b)


class Rows:
    """``select`` by one mask ``(chains,)`` for several pairs of tensors.

    On a CPU a broadcast ``where`` runs one number at a time; large rows are copied, those that are fewer.
    """

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask
        self._column: Tensor | None = None  # (chains, 1)
        self._fewer: Tensor | None = None  # rows of the fewer kind
        self._few = False  # whether these are the True ones

    def select(self, a: Tensor, b: Tensor) -> Tensor:
        """Rows of ``a`` where the mask is True, else rows of ``b``."""
        dims = a.dim()
        if dims == 1:
            return torch.where(self.mask, a, b)
        if a.numel() >= _LARGE and _on_host(self.mask):
            return self._copy(a, b)
        if dims > 2:
            return torch.where(self.mask.view(-1, *[1] * (dims - 1)), a, b)
        if self._column is None:
            self._column = self.mask.unsqueeze(1)
        return torch.where(self._column, a, b)

    def _copy(self, a: Tensor, b: Tensor) -> Tensor:
        if self._fewer is None:
            chosen = self.mask.nonzero().squeeze(1)
            self._few = 2 * len(chosen) <= len(self.mask)
            self._fewer = chosen if self._few else self.mask.logical_not().nonzero().squeeze(1)
        to, source = (b, a) if self._few else (a, b)
        return to.index_copy(0, self._fewer, source.index_select(0, self._fewer))


def in_trace() -> bool:
    """Whether operations are recorded for a compiler, which fuses what eager code does better in one large call."""
    return torch.compiler.is_compiling() or is_in_torch_dispatch_mode()


def _on_host(mask: Tensor) -> bool:
    """Whether looking at a value costs nothing: eager on a CPU, not on a device and not in a trace."""
    return mask.is_cpu and not in_trace()
