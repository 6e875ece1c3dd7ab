"""What Swendsen-Wang and Wolff share: bonds between equal neighbours, the clusters they make, and the gauge."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ebmppl.arguments import require
from ebmppl.energies.base import Energy
from ebmppl.energies.structure import Lattice
from ebmppl.kernels.accept import in_trace
from ebmppl.kernels.base import NoiseSpec
from ebmppl.kernels.components import components, lattice_components
from ebmppl.kernels.discrete import DiscreteKernel
from ebmppl.kernels.operators import bonded

_IN_CACHE = 1 << 16  # sites that one call of the labelling takes on a CPU


class ClusterState(NamedTuple):
    """Points; a tick needs nothing else."""

    position: Tensor  # (chains, coordinates)


class Clusters(NamedTuple):
    """Of all chains.

    Attributes:
        level: ``(chains, sites)``, the number of each site's level, from 0; where there is a gauge, after it.
        label: ``(chains * sites,)``: of each site its cluster's smallest site, counted through all chains.
    """

    level: Tensor
    label: Tensor


class ClusterKernel(DiscreteKernel):
    """Abstract kernel that moves clusters of an energy of pairs.

    Negative strengths of two levels are taken where flipping some sites (a gauge) makes all of them positive.

    Raises:
        ValueError: for an energy that knows no bonds, or negative strengths without a gauge.
    """

    operators: ClassVar[tuple[str, ...]] = ("bonded", "summed", "labelled")

    def __init__(self, energy: Energy) -> None:
        super().__init__(energy)
        bonds = self.target.bonds()
        told = "an energy of pairs that like to be equal (Ising, Potts, a Boltzmann machine, sums and parts of such)"
        require(bonds is not None, told, f"{type(self.target).__name__}; Gibbs takes any discrete energy")
        assert bonds is not None
        self._bonds = bonds
        table = self._levels.table
        require(bool((table == table[0]).all()), "the same levels of all coordinates", "different ones")
        self._values = [int(value) for value in table[0].tolist()]
        self._gauge: Tensor | None = None
        self._negative: Tensor | None = None
        self._without_fields = True
        self._ends = self._bonds.edges[:, 0].contiguous(), self._bonds.edges[:, 1].contiguous()
        self._look()

    @property
    def num_levels(self) -> int:
        """Of every coordinate."""
        return len(self._values)

    def init(self, x: Tensor) -> ClusterState:
        """State at points ``(chains, *event)``."""
        return ClusterState(self.flat(x))

    def move(self, device: torch.device) -> None:
        """The levels, the ends of edges and the gauge."""
        super().move(device)
        self._ends = self._ends[0].to(device), self._ends[1].to(device)
        self._gauge = None if self._gauge is None else self._gauge.to(device)

    def prepare(self, x: Tensor, *, values: bool, many: bool) -> None:
        """Look again at the signs, and whether there are fields: parameters change in training.

        Raises:
            ValueError: for negative strengths without a gauge.
        """
        super().prepare(x, values=values, many=many)
        self._look()

    def holds(self) -> bool:
        """Whether the same strengths are negative, and there are fields or none, as before."""
        same = self._negative is not None and torch.equal(self._negatives(), self._negative)
        return same and self._without_fields == self._lacks_fields()

    def kind(self) -> tuple[Any, ...]:
        """Also which sites are flipped, and whether there are fields: a trace keeps it."""
        gauge = None if self._gauge is None else tuple(self._gauge.tolist())
        return (*super().kind(), self._without_fields, gauge)

    def bond_noise(self) -> NoiseSpec:
        """A uniform for every edge."""
        return NoiseSpec("uniform", (len(self._bonds.edges),))

    def _look(self) -> None:
        """Here, not in a tick, which then has no number to read."""
        self._without_fields = self._lacks_fields()
        self._find_gauge()

    def _lacks_fields(self) -> bool:
        fields = self._bonds.fields().detach()
        return bool((fields == fields[..., :1]).all())

    def _negatives(self) -> Tensor:
        """Which edges' strengths are negative, of some row, ``(edges,)`` on the host."""
        return (torch.atleast_2d(self._bonds.strengths().detach()) < 0).any(0).cpu()

    def _find_gauge(self) -> None:
        negative = self._negatives()
        if self._negative is not None and torch.equal(negative, self._negative):
            return
        gauge = None
        if bool(negative.any()):
            strengths = torch.atleast_2d(self._bonds.strengths().detach()).cpu()
            first = int(negative.nonzero()[0])
            edge, worst = tuple(self._bonds.edges[first].tolist()), float(strengths[:, first].min())
            require(
                self.num_levels == 2, f"strengths >= 0 with {self.num_levels} levels", f"{worst:.6g} at edge {edge}"
            )
            gauge = balanced(self._bonds.edges.cpu(), strengths.sum(0).sign(), self.num_coordinates)
            gauge = gauge.to(self._ends[0].device)
        self._gauge, self._negative = gauge, negative

    def clusters(self, x: Tensor, uniform: Tensor) -> Clusters:
        """Bonds between equal neighbours, each with probability 1 - exp(-K), and the clusters that they connect.

        Args:
            x: points ``(chains, coordinates)``.
            uniform: numbers in [0, 1), ``(chains, edges)``.
        """
        level = self._level(x)
        closing = torch.expm1(-self._bonds.strengths().detach().abs()).neg_()
        closing = closing.to(uniform.dtype)
        if in_trace() or not x.is_cpu:
            # equal ones are what counts, so that points will do
            flipped = x if self._gauge is None else torch.where(self._gauge, sum(self._values) - x, x)
            return Clusters(level, bonded(flipped, uniform, closing, *self._ends))
        wanted = uniform < closing
        lattice = self._bonds.lattice
        most = max(1, _IN_CACHE // self.num_coordinates)
        labels = []
        for first in range(0, len(x), most):
            rows = slice(first, first + most)
            if lattice is None:
                label = self._of_edges(level[rows], wanted[rows])
            else:
                label = lattice_components(_equal_and(level[rows], wanted[rows], lattice))
            offset = first * self.num_coordinates
            labels.append(label if offset == 0 else label.to(_counting(x)) + offset)
        return Clusters(level, labels[0] if len(labels) == 1 else torch.cat([n.to(_counting(x)) for n in labels]))

    def _level(self, x: Tensor) -> Tensor:
        if self.num_levels == 2:
            upper = x == self._values[1]
            return upper if self._gauge is None else upper ^ self._gauge
        return x - self._values[0]

    def values_of(self, level: Tensor, x: Tensor) -> Tensor:
        """Points at the dtype of others, from levels after the gauge."""
        if self.num_levels == 2:
            upper = level if self._gauge is None else level ^ self._gauge
            low, high = self._values
            return upper.to(x.dtype).mul_(high - low).add_(low)
        return level.to(x.dtype) + self._values[0]

    def fields(self) -> Tensor | None:
        """``(coordinates, levels)`` or ``(chains, coordinates, levels)`` of the levels after the gauge; None without any."""
        if self._without_fields:
            return None
        fields = self._bonds.fields().detach()
        if self._gauge is None:
            return fields
        return torch.where(self._gauge.unsqueeze(-1), fields.flip(-1), fields)

    def _of_edges(self, level: Tensor, wanted: Tensor) -> Tensor:
        i, j = self._ends
        joined = wanted & (level.index_select(1, i) == level.index_select(1, j))
        row, edge = joined.nonzero().unbind(1)
        start = row * self.num_coordinates
        return components(start + i.index_select(0, edge), start + j.index_select(0, edge), level.numel())


def _equal_and(level: Tensor, wanted: Tensor, lattice: Lattice) -> list[Tensor]:
    """By axis, whether the bond from each site ``(rows, *shape)`` to the next one is closed."""
    level = level.view(len(level), *lattice.shape)
    joined, start = [], 0
    for axis, (length, periodic) in enumerate(zip(lattice.shape, lattice.periodic, strict=True), 1):
        inside = list(level.shape)
        inside[axis] = length if periodic else length - 1
        end = start + torch.Size(inside[1:]).numel()
        here = wanted[:, start:end].view(inside)
        if not periodic:
            one = list(inside)
            one[axis] = 1
            here = torch.cat([here, here.new_zeros(one)], axis)
        joined.append(here & (level == level.roll(-1, axis)))
        start = end
    return joined


def _counting(x: Tensor) -> torch.dtype:
    return torch.int32 if x.numel() <= torch.iinfo(torch.int32).max else torch.int64


def balanced(edges: Tensor, signs: Tensor, sites: int) -> Tensor:
    """The sites whose flips make all edges positive, ``(sites,)`` bool.

    Harary 1953, "On the notion of balance of a signed graph".

    Args:
        edges: ``(edges, 2)``.
        signs: of their couplings, ``(edges,)``; edges of sign 0 don't count.
        sites: how many.

    Raises:
        ValueError: that names an edge which closes a loop with an odd number of negative edges.
    """
    near: list[list[tuple[int, bool]]] = [[] for _ in range(sites)]
    for (i, j), sign in zip(edges.tolist(), signs.tolist(), strict=True):
        if sign:
            near[i].append((j, sign < 0))
            near[j].append((i, sign < 0))
    flipped: list[bool | None] = [None] * sites
    for root in range(sites):
        if flipped[root] is None:
            flipped[root], waiting = False, [root]
            while waiting:
                site = waiting.pop()
                for other, negative in near[site]:
                    wanted = bool(flipped[site]) ^ negative
                    if flipped[other] is None:
                        flipped[other] = wanted
                        waiting.append(other)
                    elif flipped[other] != wanted:
                        raise ValueError(
                            "expected couplings >= 0, or ones that flips of some sites make so, got a frustrated loop "
                            f"through edge {(min(site, other), max(site, other))}: an odd number of its couplings is negative"
                        )
    return torch.tensor([bool(f) for f in flipped])
