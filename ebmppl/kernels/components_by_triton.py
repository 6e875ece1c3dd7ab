"""Connected components of many graphs at once on a GPU, by Triton: two kernels, however deep the trees."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ebmppl.kernels.components import identity

_BLOCK = 256


def by_trees(joined: Tensor, i: Tensor, j: Tensor, sites: int) -> Tensor:
    """``components`` of many graphs: trees of sites hook to one another at their roots, the larger to the smaller.

    Jaiganesh and Burtscher 2018, "A high-performance connected components implementation for GPUs", with the smaller of
    two parents kept in one step (Playne and Hawick 2018, "A new algorithm for parallel connected-component labelling on
    GPUs"): where the site was no root any more, the parent that it had and the one that it got are joined next.

    Args:
        joined: which edges are there, ``(graphs, edges)`` bool, contiguous.
        i: one end of each, ``(edges,)``.
        j: the other end.
        sites: of each graph.

    Returns:
        labels ``(graphs * sites,)`` in all graphs together.
    """
    parent = identity(len(joined) * sites, joined.device)
    if joined.numel():
        given = joined.view(torch.int8), i, j, sites, len(i), joined.numel()
        _hook[(triton.cdiv(joined.numel(), _BLOCK),)](parent, *given, BLOCK=_BLOCK)
        _flatten[(triton.cdiv(parent.numel(), _BLOCK),)](parent, parent.numel(), BLOCK=_BLOCK)
    return parent


@triton.jit
def _hook(parent, joined, i, j, sites, edges, total, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    number = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = number < total
    edge = number % edges
    start = (number // edges) * sites
    left = inside & (tl.load(joined + number, mask=inside, other=0) != 0)
    a = start + tl.load(i + edge, mask=left, other=0)
    b = start + tl.load(j + edge, mask=left, other=0)
    while tl.max(left.to(tl.int32), axis=0) > 0:
        # up to the grandparents, which become parents; a link that this overwrites is made by who made it
        above_a = tl.load(parent + a, mask=left, other=0, volatile=True)
        above_b = tl.load(parent + b, mask=left, other=0, volatile=True)
        top_a = tl.load(parent + above_a, mask=left, other=0, volatile=True)
        top_b = tl.load(parent + above_b, mask=left, other=0, volatile=True)
        tl.store(parent + a, top_a, mask=left & (top_a != above_a))
        tl.store(parent + b, top_b, mask=left & (top_b != above_b))
        moved = left & ((top_a != a) | (top_b != b))
        low = tl.minimum(a, b)
        high = tl.maximum(a, b)
        hooks = left & (top_a == a) & (top_b == b) & (low != high)
        before = tl.atomic_min(parent + high, low.to(parent.dtype.element_ty), mask=hooks)
        a = tl.where(moved, top_a, low).to(tl.int64)
        b = tl.where(moved, top_b, before).to(tl.int64)
        left = moved | (hooks & (before != high))


@triton.jit
def _flatten(parent, total, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    site = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = site < total
    above = tl.load(parent + site, mask=inside, other=0)
    left = inside
    while tl.max(left.to(tl.int32), axis=0) > 0:
        top = tl.load(parent + above, mask=left, other=0, volatile=True)
        left = left & (top != above)
        above = tl.where(left, top, above)
        tl.store(parent + site, above, mask=left)  # others, that come by here, go on from there
