"""The generalised U-turn criterion without recursion: checkpoints of a growing sub-tree, and which of them to compare.

A sub-tree of 2^k leaves is built leaf by leaf. The leaf n that completes sub-trees of sizes 2, 4, ... is compared with
their first leaves, which even leaves left in O(k) checkpoints (Phan, Pradhan and Jankowiak 2019, "Composable effects for
flexible and accelerated probabilistic programming in NumPyro", algorithm 2). Besides the criterion over each whole
sub-tree (Betancourt 2017, appendix A.4.2), the two across its joint are checked as in Stan since 2.21: left half and first
leaf of the right, last leaf of the left half and right half. The first of the two is known as soon as the right half
begins, and is checked there: the sub-tree is lost anyway, and its other leaves need no gradient.

With first momentum a, last momentum z and sum rho of all between, both included, there is no U-turn while a.rho > 0 and
z.rho > 0. If S is the sum of the sub-tree's momenta up to z and b the part of it before a, then rho = S - b, and

    a.rho = (a, a.b) . (S, -1)        z.rho = (-b, 1) . (z, z.S)

so checkpoints keep the left factors, and a new leaf needs one product with all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ebmppl.kernels import operators
from ebmppl.kernels.accept import DIVERGENCE, in_trace


class Tables(NamedTuple):
    """Constants of a run: look-ups by number of the leaf in its sub-tree, and sums of scalar products."""

    level: Tensor  # (leaves, 2) where the leaf's two rows are kept; odd leaves are kept in the last level, never read
    ignore: Tensor  # (leaves, 2 * levels) False at levels to compare with, as first leaf and as last of a left half
    compare: Tensor  # (leaves, 2 * levels) int64: these levels, and in place of the others one of these
    nothing: Tensor  # (leaves,) True where there is no level to compare with
    sums: Tensor  # (36, 8) from scalar products of six vectors to the sums of ``Products``
    rows: Tensor  # (chains, 2) first row of each chain and side among all checkpoints
    one: Tensor  # (chains, 1)
    # scalars: an operation with a number of Python's takes twice as long
    zero: Tensor
    half: Tensor
    unlikely: Tensor  # log weight under which a leaf counts as divergent
    no_step: Tensor  # int64
    one_step: Tensor  # int64
    deepest: Tensor  # int64 depth

    @classmethod
    def build(cls, max_tree_depth: int, like: Tensor) -> Tables:
        """For sub-trees of up to 2^(max_tree_depth - 1) leaves and positions like ``(chains, dimension)``."""
        levels, leaves = _levels(max_tree_depth), 1 << (max_tree_depth - 1)
        level = torch.full((leaves, 2), levels - 1)
        ignore = torch.ones(leaves, levels, 2, dtype=torch.bool)
        for n in range(leaves):
            top = (n >> 1).bit_count()
            if n % 2 == 0:
                level[n] = top
                if n:
                    ignore[n, top - 1, 0] = False  # left half and the first leaf of the right one, n
                continue
            completed = ((n + 1) & -(n + 1)).bit_length() - 1  # trailing ones of n: sub-trees that n completes
            ignore[n, top - completed + 1 : top + 1, 0] = False
            ignore[n, top - completed + 2 : top + 1, 1] = False
        ignore = ignore.flatten(1)
        first = ignore.int().argmin(1, keepdim=True)
        compare = torch.where(ignore, first, torch.arange(2 * levels))
        rows = torch.arange(0, 2 * len(like) * levels, levels).view(-1, 2)
        one = torch.ones(len(like), 1, dtype=like.dtype)
        numbers = torch.tensor([0.0, 0.5, -DIVERGENCE], dtype=like.dtype).unbind()
        counts = torch.tensor([0, 1, max_tree_depth]).unbind()
        constants = (level, ignore, compare, ignore.all(1), _sums().to(like.dtype), rows, one, *numbers, *counts)
        return cls(*(constant.to(like.device) for constant in constants))


def _levels(max_tree_depth: int) -> int:
    return max(max_tree_depth - 1, 1) + 1


def empty_checkpoints(like: Tensor, max_tree_depth: int) -> Tensor:
    """No leaf yet: ``(chains, 2, levels, 2 * (dimension + 1))``, left factors of a.rho and of z.rho."""
    return like.new_zeros(len(like), 2, _levels(max_tree_depth), 2 * (like.shape[1] + 1))


class Products(NamedTuple):
    """What the momenta of a new leaf, the leaf before it, the joint and the far end, and the sums of sub-tree and tree, give."""

    straight: Tensor  # (chains,) the whole tree with the sub-tree so far, from far end to leaf, does not turn
    across: Tensor  # (chains,) nor does the sub-tree with the leaf of the tree at their joint
    leaf_rest: Tensor  # (chains, 1) leaf . sum before it
    before_rest: Tensor  # (chains, 1) leaf before . sum before that one
    leaf_sum: Tensor  # (chains, 1) leaf . sum of the sub-tree
    kinetic: Tensor  # (chains,) of the leaf
    before_square: Tensor  # (chains,) squared norm of the leaf before


_NUMBERS = (
    1 << 17
)  # of each vector that are multiplied at a time on a CPU: in cache, and no copy of all of large states
LEAF, BEFORE, JOINT, FAR, SUB, TREE = range(6)


def _sums() -> Tensor:
    """Columns: far end, leaf against the whole; leaf, joint against sub-tree and joint; the scalars of ``Products``."""
    columns = [
        [(FAR, SUB, 1.0), (FAR, TREE, 1.0)],
        [(LEAF, SUB, 1.0), (LEAF, TREE, 1.0)],
        [(LEAF, SUB, 1.0), (LEAF, JOINT, 1.0)],
        [(JOINT, SUB, 1.0), (JOINT, JOINT, 1.0)],
        [(LEAF, SUB, 1.0), (LEAF, LEAF, -1.0)],
        [(BEFORE, SUB, 1.0), (BEFORE, LEAF, -1.0), (BEFORE, BEFORE, -1.0)],
        [(LEAF, SUB, 1.0)],
        [(LEAF, LEAF, 0.5)],
    ]
    matrix = torch.zeros(6, 6, len(columns), dtype=torch.float64)
    for column, terms in enumerate(columns):
        for i, j, weight in terms:
            matrix[i, j, column] += weight
    return matrix.flatten(0, 1)


def products(
    leaf: Tensor, before: Tensor, joint: Tensor, far: Tensor, sub: Tensor, tree: Tensor, tables: Tables
) -> Products:
    """From momenta ``(chains, dimension)`` of leaf, leaf before, joint and far end, and the sums of sub-tree and tree."""
    if in_trace():
        return _products_in_one_pass(leaf, before, joint, far, sub, tree)
    whole = (leaf, before, joint, far, sub, tree)
    rows = max(1, _NUMBERS // leaf.shape[1]) if leaf.is_cpu else len(leaf)
    dots = torch.cat([_dots(some) for some in zip(*(v.split(rows) for v in whole), strict=True)])
    ends, leaf_rest, before_rest, leaf_sum, kinetic = (dots @ tables.sums).split([4, 1, 1, 1, 1], 1)
    straight, across = (ends.unflatten(1, (2, 2)).amin(2) > 0).unbind(1)
    # not from the sums, where a leaf that is NaN leaks into all: it gives the kinetic energy at the tree's beginning
    before_square = dots.select(1, 6 * BEFORE + BEFORE)
    return Products(straight, across, leaf_rest, before_rest, leaf_sum, kinetic.squeeze(1), before_square)


def _dots(vectors: Sequence[Tensor]) -> Tensor:
    """Of all pairs of six, ``(chains, 36)``."""
    joined = torch.cat(list(vectors), 1).view(len(vectors[0]), 6, -1)
    return torch.bmm(joined, joined.mT).flatten(1)


def _products_in_one_pass(
    leaf: Tensor, before: Tensor, joint: Tensor, far: Tensor, sub: Tensor, tree: Tensor
) -> Products:
    """The same, term by term: a compiler makes one loop of it."""

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(1, keepdim=True)

    whole, across, rest = sub + tree, sub + joint, sub - leaf
    return Products(
        straight=((dot(far, whole) > 0) & (dot(leaf, whole) > 0)).squeeze(1),
        across=((dot(leaf, across) > 0) & (dot(joint, across) > 0)).squeeze(1),
        leaf_rest=dot(leaf, rest),
        before_rest=dot(before, rest - before),
        leaf_sum=dot(leaf, sub),
        kinetic=0.5 * dot(leaf, leaf).squeeze(1),
        before_square=dot(before, before).squeeze(1),
    )


def keep(
    points: Tensor, tables: Tables, leaf_number: Tensor, leaf: Tensor, before: Tensor, rest: Tensor, p: Products
) -> Tensor:
    """Checkpoints with the newest leaf: momenta ``(chains, dimension)`` of it and the one before; minus the sum before it.

    The row it is written to, in place, is one that would have been overwritten before it is read again.
    """
    row = tables.level.index_select(0, leaf_number) + tables.rows
    one, flat = tables.one, points.view(-1, points.shape[3])
    factors = torch.cat([leaf, p.leaf_rest, before, p.before_rest, rest, one, rest + before, one], 1)
    if in_trace():  # a compiler works long on indices of flattened axes
        flat.index_put_((row,), factors.view(len(row), 2, -1))
    else:
        flat.index_copy_(0, row.view(-1), factors.view(-1, points.shape[3]))
    return points


def straight(points: Tensor, tables: Tables, leaf_number: Tensor, leaf: Tensor, total: Tensor, p: Products) -> Tensor:
    """Whether no sub-tree that the newest leaf completes (nor a half with its neighbour) makes a U-turn, ``(chains,)``."""
    if in_trace() and not points.is_cpu:
        return _straight_where_asked(points, tables, leaf_number, leaf, total, p)
    return operators.straight(points, tables.ignore, leaf_number, leaf, total, p.leaf_sum)


def _straight_where_asked(
    points: Tensor, tables: Tables, leaf_number: Tensor, leaf: Tensor, total: Tensor, p: Products
) -> Tensor:
    """The same, from the rows to compare with alone: what is repeated in place of the others is in the cache."""
    points = points.view(len(points), 2, 2 * points.shape[2], -1)
    chain = torch.arange(len(points), device=points.device).unsqueeze(1)
    row = tables.compare.index_select(0, leaf_number)
    a, z = (points.select(1, side)[chain, row] for side in (0, 1))  # (chains, 2 * levels, dimension + 1)
    first = (a[..., :-1] * total.unsqueeze(1)).sum(2) - a[..., -1]
    last = (z[..., :-1] * leaf.unsqueeze(1)).sum(2) + z[..., -1] * p.leaf_sum
    return ((first > 0) & (last > 0)).all(1) | tables.nothing.index_select(0, leaf_number)
