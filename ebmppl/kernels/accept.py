"""Metropolis acceptance and selection by chain, written once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

DIVERGENCE = 1000.0  # nats of energy error, as in Stan and Pyro


class Acceptance(NamedTuple):
    """The decision of every chain, each field ``(chains,)``."""

    accept: Tensor
    rate: Tensor  # min(1, exp(-error)); 0 where the error is not finite
    diverging: Tensor  # error over 1000 nats, or not finite


def metropolis(error: Tensor, uniform: Tensor) -> Acceptance:
    """Accept a proposal with probability min(1, exp(-error)) (Metropolis et al. 1953).

    Args:
        error: energy of the proposal minus energy of the start, in nats. NaN or +inf rejects; so does -inf, which
            only a proposal of energy -inf (not a density) can give.
        uniform: uniform numbers in [0, 1).
    """
    finite = torch.isfinite(error)
    rate = torch.exp(-error.clamp_min(0.0))
    rate = torch.where(finite, rate, 0.0)
    return Acceptance(uniform < rate, rate, ~(error <= DIVERGENCE) | ~finite)


def select(mask: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Rows of ``a`` where ``mask`` ``(chains,)`` is True, else rows of ``b``; NaN in the other does not leak.

    On a CPU a broadcast ``where`` runs one number at a time; for large rows, picking whole rows is twice as fast.
    """
    if a.dim() == 1:
        return torch.where(mask, a, b)
    if a.is_cpu and a.numel() > 1 << 15 and not torch.compiler.is_compiling():
        rows = torch.arange(len(mask), device=mask.device)
        return torch.cat([a, b]).index_select(0, torch.where(mask, rows, rows + len(mask)))
    return torch.where(mask.unsqueeze(-1) if a.dim() == 2 else mask.view(-1, *[1] * (a.dim() - 1)), a, b)
