"""Which chains tick where: those that still need draws, in as few parts as hold them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Places(NamedTuple):
    """The places of some parts, one after another."""

    chains: Tensor  # (places,) numbers of the chains there
    used: Tensor  # (places,) bool; where False, a chain that is elsewhere, too, or needs no tick: not to be looked at


def pack(active: Tensor, size: int) -> Places:
    """Places for the ``active`` chains in parts of so many.

    A chain keeps its place within a part, as sums may be rounded otherwise in another one: then draws are the same
    whoever ticks beside it.

    Args:
        active: bool, by chain.
        size: chains of a part.
    """
    chains = active.nonzero().squeeze(1)
    column, order = (chains % size).sort(stable=True)
    each = torch.bincount(column, minlength=size)
    part = torch.arange(len(chains)) - (each.cumsum(0) - each)[column]
    place = part * size + column
    found = torch.arange(size).repeat(int(each.max()))
    used = torch.isin(torch.arange(len(found)), place)
    return Places(found.index_copy(0, place, chains[order]), used)


def in_order(active: Tensor) -> Places:
    """All chains in order, of which some tick."""
    return Places(torch.arange(len(active), device=active.device), active)
