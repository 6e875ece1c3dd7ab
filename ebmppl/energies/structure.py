"""What an energy of pairs tells of itself: a table of log-weights for every site and every edge."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Lattice(NamedTuple):
    """That edges are those of nearest neighbours, sorted by axis and then by the first site."""

    shape: tuple[int, ...]
    periodic: tuple[bool, ...]  # by axis


class Pairwise(NamedTuple):
    r"""The form :math:`-E(x) = \sum_i u_i(x_i) + \sum_{(i,j)} p_{ij}(x_i, x_j)` over coordinates of equally many levels.

    Points are numbers of levels 0, ..., levels - 1 here, in increasing order of the values. The tables are differentiable
    in the energy's parameters.

    Attributes:
        unary: ``(coordinates, levels)`` in nats.
        edges: ``(edges, 2)`` int64, flat coordinates i, j; a pair may come more than once.
        pairs: ``(edges, levels, levels)`` in nats, indexed by the levels of i, then j.
        shape: of the sites, a lattice's or ``(coordinates,)``: where an order of the sites is looked for.
        lattice: whose edges they are, where there is one.
    """

    unary: Tensor
    edges: Tensor
    pairs: Tensor
    shape: torch.Size
    lattice: Lattice | None = None

    def double(self) -> Pairwise:
        """The same in float64."""
        return self._replace(unary=self.unary.double(), pairs=self.pairs.double())

    def tempered(self, beta: Tensor) -> Pairwise:
        """Beta times the energy."""
        return self._replace(unary=beta * self.unary, pairs=beta * self.pairs)

    def plus(self, other: Pairwise) -> Pairwise:
        """The sum with another energy of the same coordinates."""
        unary = self.unary + other.unary
        if torch.equal(self.edges, other.edges):
            return self._replace(unary=unary, pairs=self.pairs + other.pairs)
        edges, pairs = torch.cat([self.edges, other.edges]), torch.cat([self.pairs, other.pairs])
        return Pairwise(unary, edges, pairs, self.shape)

    def held(self, free: Tensor, level: Tensor) -> Pairwise:
        """The same energy of some coordinates, the others held.

        Args:
            free: numbers of the free ones, ``(free,)``, in increasing order.
            level: of every coordinate ``(coordinates,)``; of the free ones any.
        """
        number = torch.full_like(level, -1)
        number[free] = torch.arange(len(free), device=free.device)
        i, j = self.edges.unbind(1)
        here, there = number[i] >= 0, number[j] >= 0
        unary = self.unary[free]
        left, right = here & ~there, ~here & there
        unary = unary.index_add(0, number[i[left]], self.pairs[left, :, level[j[left]]])
        unary = unary.index_add(0, number[j[right]], self.pairs[right, level[i[right]], :])
        neither, both = ~here & ~there, here & there
        rest = self.pairs[neither, level[i[neither]], level[j[neither]]].sum()
        alone = torch.arange(len(level), device=level.device)[number < 0]
        rest = rest + self.unary[alone, level[alone]].sum()
        first = torch.zeros_like(unary[:, :1])
        first[0] = 1.0  # a constant is in the first coordinate's table, whatever its level
        return Pairwise(unary + rest * first, number[self.edges[both]], self.pairs[both], torch.Size([len(free)]))
