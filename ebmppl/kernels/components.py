"""Connected components of many graphs at once, labelled by their smallest sites."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_LARGEST = torch.iinfo(torch.int32).max


def components(i: Tensor, j: Tensor, sites: int) -> Tensor:
    """Of every site the smallest site that edges connect it with.

    Contraction by minima (a parallel form of Boruvka's idea; Liu and Tarjan 2019, "Simple concurrent labeling
    algorithms for connected components"): every site that is the larger end of an edge hooks to its smallest
    neighbour, pointers jump until they reach roots, edges move to the roots, those inside a tree are dropped.

    It ends: while edges are left, two rounds at least halve the number n of sites at edges. Let M be the sites smaller
    than all their neighbours; after the first round only they are roots. If a site s of M is smaller than all its new
    neighbours, too, then each old neighbour v has the root s (its root is at most v's smallest neighbour, so at most
    s, and is no smaller one). So different such s have different v outside of M: there are at most as many of
    them as sites in M and as sites outside of M, at most n / 2. So there are at most 2 log2(sites) + 1 rounds (5 or
    6 for lattices at their critical point), of at most log2(sites) + 1 jumps each.

    Args:
        i: one end of each edge, ``(edges,)`` integers in 0 ... sites - 1.
        j: the other end.
        sites: how many.

    Returns:
        labels ``(sites,)``, int32 where they fit.
    """
    return contract(identity(sites, i.device), i, j)


def in_rounds(joined: Tensor, i: Tensor, j: Tensor, sites: int) -> Tensor:
    """``components`` of many graphs by as many rounds and jumps as its proof allows: no value is looked at.

    Edges that are not there, and those inside a tree, have twice the same end: they hook a root to itself. After 2 k
    rounds at most sites / 2^k sites of a graph are at other edges, so that trees are no deeper than that after the next
    hooks, and none is left once that is less than 2.

    Args:
        joined: which edges are there, ``(graphs, edges)`` bool.
        i: one end of each, ``(edges,)``.
        j: the other end.
        sites: of each graph.

    Returns:
        labels ``(graphs * sites,)`` in all graphs together.
    """
    parent = identity(len(joined) * sites, joined.device)
    start = torch.arange(len(joined), dtype=parent.dtype, device=joined.device).unsqueeze(1) * sites
    a = start + i.to(parent.dtype)
    b = torch.where(joined, start + j.to(parent.dtype), a).view(-1)
    a = a.view(-1)
    left = sites
    while left > 1:
        for _ in range(2):
            parent.scatter_reduce_(0, torch.maximum(a, b).long(), torch.minimum(a, b), "amin")
            for _ in range((left - 1).bit_length()):  # each halves the depth
                parent = parent.index_select(0, parent)
            a, b = parent.index_select(0, a), parent.index_select(0, b)
        left //= 2
    return parent


def identity(sites: int, device: torch.device) -> Tensor:
    """Every site its own root."""
    return torch.arange(sites, dtype=torch.int32 if sites <= _LARGEST else torch.int64, device=device)


def contract(parent: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """The rounds of ``components``, from trees ``(sites,)`` on whose roots all edges lie; parents are smaller sites."""
    while len(i):
        low, high = torch.minimum(i, j).to(parent.dtype), torch.maximum(i, j).long()
        parent = parent.scatter_reduce(0, high, low, "amin")
        while True:  # only these sites' parents are new
            above = parent.index_select(0, high)
            higher = parent.index_select(0, above)
            if torch.equal(above, higher):
                break
            parent.scatter_(0, high, higher)
        i, j = parent.index_select(0, i), parent.index_select(0, j)
        apart = (i != j).nonzero().squeeze(1)
        i, j = i.index_select(0, apart), j.index_select(0, apart)
    return flattened(parent)


def flattened(parent: Tensor) -> Tensor:
    """Every site's root, by jumping: a path of n parents takes at most log2(n) + 1 jumps."""
    while True:
        higher = parent.index_select(0, parent)
        if torch.equal(parent, higher):
            return parent
        parent = higher


def lattice_components(open_: Sequence[Tensor]) -> Tensor:
    """``components`` of lattices whose first round goes by slices.

    Args:
        open_: by axis, ``(lattices, *shape)`` bool: whether each site is connected with the next along the axis (of
            the last one the first is next).

    Returns:
        labels ``(lattices * sites,)`` in all lattices together.
    """
    shape = open_[0].shape
    own = identity(shape.numel(), open_[0].device).view(shape)
    parent = own
    for axis, connected in enumerate(open_, 1):
        # all bits set, so larger than any site, where not connected
        closed = (connected.to(own.dtype) - 1).bitwise_and_(torch.iinfo(own.dtype).max)
        parent = torch.minimum(parent, own.roll(-1, axis).bitwise_or_(closed))
        parent = torch.minimum(parent, closed.bitwise_or_(own).roll(1, axis))
    root = flattened(parent.reshape(-1)).view(shape)
    here, there = [], []
    for axis, connected in enumerate(open_, 1):
        beyond = root.roll(-1, axis)
        apart = ((root != beyond) & connected).view(-1).nonzero().squeeze(1)
        here.append(root.view(-1).index_select(0, apart))
        there.append(beyond.view(-1).index_select(0, apart))
    return contract(root.view(-1), torch.cat(here), torch.cat(there))
