"""The generalised U-turn criterion without recursion: checkpoints of a growing sub-tree and which of them to compare.

A sub-tree of 2^k leaves is built leaf by leaf. The leaf n that completes sub-trees of sizes 2, 4, ... is compared with
their first leaves, which even leaves left in O(k) checkpoints (Phan, Pradhan and Jankowiak 2019, "Composable effects for
flexible and accelerated probabilistic programming in NumPyro", algorithm 2). Besides the criterion over each whole
sub-tree (Betancourt 2017, appendix A.4.2), the two across its joint are checked as in Stan since 2.21: left half and first
leaf of the right, last leaf of the left half and right half. The first of the two is known as soon as the right half
begins, and is checked there: the sub-tree is lost anyway, and its other leaves need no gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Checkpoints(NamedTuple):
    """What even leaves leave behind, by chain and level; one level more than needed takes what odd leaves would write."""

    momenta: Tensor  # (chains, levels, 3 * dimension): of the leaf, of the leaf before it, and the sum before it
    dots: Tensor  # (chains, levels, 2): leaf . sum before it; leaf before . sum before that one

    @classmethod
    def empty(cls, like: Tensor, max_tree_depth: int) -> Checkpoints:
        """No leaf yet, for positions like ``(chains, dimension)``."""
        levels = _levels(max_tree_depth)
        return cls(like.new_zeros(len(like), levels, 3 * like.shape[1]), like.new_zeros(len(like), levels, 2))


class Tables(NamedTuple):
    """By number of the leaf in its sub-tree."""

    level: Tensor  # (leaves,) where it is kept; the last level for odd leaves
    compare: Tensor  # (leaves, 2 * levels) with which levels to compare it: as first leaf, as last leaf of a left half

    @classmethod
    def build(cls, max_tree_depth: int, device: torch.device) -> Tables:
        """Tables for sub-trees of up to 2^(max_tree_depth - 1) leaves."""
        levels = _levels(max_tree_depth)
        leaves = 1 << (max_tree_depth - 1)
        level = torch.full((leaves,), levels - 1)
        compare = torch.zeros(leaves, levels, 2, dtype=torch.bool)
        for n in range(leaves):
            top = (n >> 1).bit_count()
            if n % 2 == 0:
                level[n] = top
                if n:
                    compare[n, top - 1, 0] = True  # left half and the first leaf of the right one, n
                continue
            completed = ((n + 1) & -(n + 1)).bit_length() - 1  # trailing ones of n: sub-trees that n completes
            compare[n, top - completed + 1 : top + 1, 0] = True
            compare[n, top - completed + 2 : top + 1, 1] = True
        return cls(level.to(device), compare.flatten(1).to(device))


def _levels(max_tree_depth: int) -> int:
    return max(max_tree_depth - 1, 1) + 1


class Products(NamedTuple):
    """Scalar products ``(chains, ...)`` that a new leaf's criteria are made of."""

    straight: Tensor  # (chains,) the whole tree with the sub-tree so far, from far end to leaf, does not turn
    across: Tensor  # (chains,) nor does the sub-tree with the leaf of the tree at their joint
    keep: Tensor  # (chains, 2) the ``dots`` of the leaf's checkpoint
    leaf_sum: Tensor  # (chains, 1) leaf . sum of the sub-tree


# Rows: leaf.whole, far.whole, leaf.(sub+joint), joint.(sub+joint), leaf.before_sum, before.(...), leaf.sub as sums of the
# scalar products of (leaf, before, joint, far, sub, tree): pairs of indices with their signs.
_SUMS = (
    ((0, 4, 1), (0, 5, 1)),
    ((3, 4, 1), (3, 5, 1)),
    ((0, 4, 1), (0, 2, 1)),
    ((2, 4, 1), (2, 2, 1)),
    ((0, 4, 1), (0, 0, -1)),
    ((1, 4, 1), (1, 0, -1), (1, 1, -1)),
    ((0, 4, 1),),
)


def combinations(like: Tensor) -> Tensor:
    """The matrix ``(36, 7)`` from scalar products of six vectors to the seven sums of ``products``."""
    matrix = torch.zeros(6, 6, len(_SUMS), dtype=like.dtype, device=like.device)
    for column, terms in enumerate(_SUMS):
        for i, j, sign in terms:
            matrix[i, j, column] += sign
    return matrix.flatten(0, 1)


def products(vectors: Tensor, combine: Tensor) -> Products:
    """From ``vectors`` ``(chains, 6, dimension)``: momenta of leaf, leaf before, joint, far end; sums of sub-tree and tree."""
    dots = torch.bmm(vectors, vectors.mT).flatten(1) @ combine
    ends = dots[:, :4].view(-1, 2, 2).amin(2) > 0
    straight, across = ends.unbind(1)
    return Products(straight, across, dots[:, 4:6], dots[:, 6:])


def keep(points: Checkpoints, level: Tensor, vectors: Tensor, dots: Tensor) -> Checkpoints:
    """Write the newest leaf's ``vectors`` ``(chains, 3 * dimension)`` and ``dots`` ``(chains, 2)`` at its level ``(chains,)``."""
    chains, levels = points.dots.shape[:2]
    row = torch.arange(0, chains * levels, levels, device=level.device) + level
    return Checkpoints(
        points.momenta.view(chains * levels, -1).index_copy(0, row, vectors).view(points.momenta.shape),
        points.dots.view(chains * levels, 2).index_copy(0, row, dots).view(points.dots.shape),
    )


def turning(points: Checkpoints, compare: Tensor, leaf: Tensor, total: Tensor, leaf_sum: Tensor) -> Tensor:
    """Whether a sub-tree that the newest leaf completes (or a half with its neighbour) makes a U-turn, ``(chains,)``.

    With first momentum a, last momentum z and sum rho over what lies between them, both included, there is none
    while a.rho > 0 and z.rho > 0.
    """
    (chains, levels), dimension = points.dots.shape[:2], leaf.shape[1]
    pair = torch.cat([total, leaf], 1).view(chains, 2, dimension)
    product = torch.bmm(points.momenta.view(chains, levels * 3, dimension), pair.mT).view(chains, levels, 3, 2)
    of_total, of_leaf = product.unbind(3)
    first = of_total[..., :2] - points.dots  # a.rho for a = the checkpoint, and a = the leaf before it
    last = leaf_sum.unsqueeze(2) - of_leaf[..., 2:]  # z.rho, likewise
    last = torch.cat([last, last + of_leaf[..., 1:2]], 2)
    straight = torch.minimum(first, last).view(chains, -1) > 0
    return torch.logical_not(straight).logical_and_(compare).any(1)
