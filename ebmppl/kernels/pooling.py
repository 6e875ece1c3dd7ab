"""Sums over all chains that don't depend on where blocks of chains run."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 64  # chains of one noise generator and of one pooled partial sum


def pooled_sum(values: Tensor) -> Tensor:
    """Sum over the chains, block by block in a fixed order, so that where a block runs changes nothing."""
    chains = len(values)
    if chains <= BLOCK:
        return values.sum(0)
    short = -chains % BLOCK
    if short:
        values = torch.cat([values, values.new_zeros(short, *values.shape[1:])])
    return values.view(-1, BLOCK, *values.shape[1:]).sum(1).sum(0)
