"""What an energy of pairs tells of itself: a table of log-weights for every site and every edge."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Lattice(NamedTuple):
    """That edges are those of nearest neighbours, sorted by axis and then by the first site."""

    shape: tuple[int, ...]
    periodic: tuple[bool, ...]  # by axis


class Split(NamedTuple):
    """What is left of edges when some coordinates are held: it takes a look at values, which ticks may not, so it is kept."""

    free: Tensor  # numbers of the coordinates that are
    held: Tensor  # of the others
    number: Tensor  # of every coordinate among the free ones
    left: Tensor  # numbers of the edges whose first end alone is free
    right: Tensor  # whose second end alone is
    neither: Tensor
    both: Tensor


def split(edges: Tensor, free: Tensor, coordinates: int) -> Split:
    """Of so many coordinates these are free, ``(free,)`` in increasing order."""
    number = torch.full((coordinates,), -1, device=edges.device)
    number[free] = torch.arange(len(free), device=edges.device)
    here, there = (number[end] >= 0 for end in edges.unbind(1))
    parts = (number < 0, here & ~there, ~here & there, ~here & ~there, here & there)
    held, *of_edges = (part.nonzero().squeeze(1) for part in parts)
    return Split(free, held, number, *of_edges)


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

    def held(self, among: Split, level: Tensor) -> Pairwise:
        """The same energy of some coordinates, the others held.

        Args:
            among: which are, see ``split``.
            level: of every coordinate ``(coordinates,)``; of the free ones any.
        """
        free, alone, number, left, right, neither, both = among
        i, j = self.edges.unbind(1)
        unary = self.unary[free]
        unary = unary.index_add(0, number[i[left]], self.pairs[left, :, level[j[left]]])
        unary = unary.index_add(0, number[j[right]], self.pairs[right, level[i[right]], :])
        rest = self.pairs[neither, level[i[neither]], level[j[neither]]].sum()
        rest = rest + self.unary[alone, level[alone]].sum()
        # a constant is in the first coordinate's table, whatever its level
        unary = torch.cat([unary[:1] + rest, unary[1:]])
        return Pairwise(unary, number[self.edges[both]], self.pairs[both], torch.Size([len(free)]))
