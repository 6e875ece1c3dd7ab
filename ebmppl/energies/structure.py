"""What an energy of pairs tells of itself: a table of log-weights for every site and every edge."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Pairwise(NamedTuple):
    r"""The form :math:`-E(x) = \sum_i u_i(x_i) + \sum_{(i,j)} p_{ij}(x_i, x_j)` over coordinates of equally many levels.

    Points are numbers of levels 0, ..., levels - 1 here, in increasing order of the values. The tables are differentiable
    in the energy's parameters.

    Attributes:
        unary: ``(coordinates, levels)`` in nats.
        edges: ``(edges, 2)`` int64, flat coordinates i, j; a pair may come more than once.
        pairs: ``(edges, levels, levels)`` in nats, indexed by the levels of i, then j.
        shape: of the sites, a lattice's or ``(coordinates,)``: where an order of the sites is looked for.
    """

    unary: Tensor
    edges: Tensor
    pairs: Tensor
    shape: torch.Size

    def double(self) -> Pairwise:
        """The same in float64."""
        return self._replace(unary=self.unary.double(), pairs=self.pairs.double())

    def tempered(self, beta: Tensor) -> Pairwise:
        """Beta times the energy."""
        return self._replace(unary=beta * self.unary, pairs=beta * self.pairs)

    def plus(self, other: Pairwise) -> Pairwise:
        """The sum with another energy of the same coordinates."""
        edges, pairs = torch.cat([self.edges, other.edges]), torch.cat([self.pairs, other.pairs])
        return Pairwise(self.unary + other.unary, edges, pairs, self.shape)
