"""Graphs of interacting sites: lattices or any edges, with a colouring so that sites of one colour don't interact."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from ebmppl.energies.structure import Lattice


class Graph:
    """Sites and the pairs among them that interact.

    Attributes:
        shape: of the sites: a lattice's, or ``(sites,)``.
        edges: ``(edges, 2)`` int64, flat sites i, j of each pair. A lattice's are sorted by axis, then by the first site.
        periodic: of a lattice, whether each axis closes; None for another graph.

    Args:
        edges: pairs of flat sites.
        shape: of the sites.

    Raises:
        ValueError: for a site that isn't there, a pair of one site with itself, or a pair given twice.
    """

    def __init__(self, edges: Tensor | Sequence[tuple[int, int]], shape: Sequence[int]) -> None:
        self.shape = torch.Size(shape)
        self.periodic: tuple[bool, ...] | None = None
        given = torch.as_tensor(edges)
        if given.numel() and (given.is_floating_point() or given.shape[-1:] != (2,)):
            raise ValueError(f"expected edges as pairs of integers (edges, 2), got {given.dtype} {tuple(given.shape)}")
        self.edges = _checked(given.to(torch.int64).reshape(-1, 2), self.num_sites)

    @cached_property
    def colours(self) -> Tensor:
        """``(sites,)`` int64 in 0, 1, ...: no edge joins two sites of one colour."""
        closed = self.periodic
        if closed is not None and all(n % 2 == 0 or not close for n, close in zip(self.shape, closed, strict=True)):
            axes = torch.meshgrid(*(torch.arange(n) for n in self.shape), indexing="ij")
            return torch.stack(axes).sum(0).flatten() % 2
        return _greedy(self.edges, self.num_sites)

    @classmethod
    def lattice(cls, shape: Sequence[int], periodic: bool | Sequence[bool] = True) -> Graph:  # noqa: FBT001, FBT002
        """Nearest neighbours on a lattice of any number of axes.

        Args:
            shape: sites along each axis.
            periodic: whether the axes close (or each of them).

        Raises:
            ValueError: for a periodic axis of fewer than 3 sites, whose bonds would be double or of a site with itself.
        """
        if isinstance(shape, int) or not shape or not all(isinstance(n, int) and n > 0 for n in shape):
            raise ValueError(f"expected sites along each axis, integers > 0 such as (8, 8), got {shape!r}")
        shape = tuple(shape)
        closed = (periodic,) * len(shape) if isinstance(periodic, bool) else tuple(periodic)
        if len(closed) != len(shape):
            raise ValueError(f"expected periodic as one bool or {len(shape)}, got {closed}")
        sites = torch.arange(torch.Size(shape).numel()).reshape(shape)
        pairs = []
        for axis, (length, close) in enumerate(zip(shape, closed, strict=True)):
            if close and length < 3:
                raise ValueError(
                    f"expected at least 3 sites along a periodic axis, got {length}: periodic=False has no double bonds"
                )
            there = sites.roll(-1, axis) if close else sites.narrow(axis, 1, length - 1)
            here = sites if close else sites.narrow(axis, 0, length - 1)
            pairs.append(torch.stack([here.flatten(), there.flatten()], 1))
        graph = cls(torch.cat(pairs), shape)
        graph.periodic = closed
        return graph

    @classmethod
    def of_matrix(cls, matrix: Tensor) -> Graph:
        """The pairs at which a symmetric matrix ``(sites, sites)`` is not zero.

        Raises:
            ValueError: where only one of the two entries of a pair, or one on the diagonal, is not zero.
        """
        there = matrix.detach().cpu() != 0
        wrong = ((there != there.mT) | torch.diag(there.diagonal())).nonzero()
        if len(wrong):
            raise ValueError(
                f"expected a symmetric matrix with a zero diagonal, got another at {tuple(wrong[0].tolist())}"
            )
        return cls(matrix.detach().cpu().triu(1).nonzero(), (len(matrix),))

    @property
    def num_sites(self) -> int:
        """How many sites."""
        return self.shape.numel()

    @property
    def as_lattice(self) -> Lattice | None:
        """Its shape and borders, where it is one."""
        return None if self.periodic is None else Lattice(tuple(self.shape), self.periodic)

    def classes(self) -> list[Tensor]:
        """The sites of each colour."""
        return [(self.colours == c).nonzero().squeeze(1) for c in range(int(self.colours.max()) + 1)]

    def neighbours(self) -> tuple[Tensor, Tensor]:
        """By site its neighbours and the edges to them, each ``(sites, most)``.

        Where a site has fewer, the neighbour is site 0 and the edge is number ``edges``, one beyond the last.
        """
        ends = torch.cat([self.edges, self.edges.flip(1)])
        number = torch.arange(len(self.edges)).repeat(2)
        order = ends[:, 0].argsort(stable=True)
        here, there, number = ends[order, 0], ends[order, 1], number[order]
        degree = torch.bincount(here, minlength=self.num_sites)
        most = int(degree.max()) if len(degree) else 0
        rank = torch.arange(len(here)) - (degree.cumsum(0) - degree)[here]
        sites = torch.zeros(self.num_sites, max(most, 1), dtype=torch.int64)
        edges = torch.full_like(sites, len(self.edges))
        sites[here, rank], edges[here, rank] = there, number
        return sites, edges


def _checked(edges: Tensor, sites: int) -> Tensor:
    outside = ((edges < 0) | (edges >= sites)).any(1).nonzero()
    if len(outside):
        raise ValueError(f"expected edges between sites 0 to {sites - 1}, got {tuple(edges[outside[0, 0]].tolist())}")
    loops = (edges[:, 0] == edges[:, 1]).nonzero()
    if len(loops):
        raise ValueError(f"expected edges between two sites, got one of site {int(edges[loops[0, 0], 0])} with itself")
    key = edges.min(1).values * sites + edges.max(1).values
    found, count = key.unique(return_counts=True)
    if len(found) < len(key):
        twice = int(found[count > 1][0])
        raise ValueError(f"expected every edge once, got {divmod(twice, sites)} more than once")
    return edges


def _greedy(edges: Tensor, sites: int) -> Tensor:
    """A colour for every site, those with most neighbours first (Welsh and Powell 1967); two where they do."""
    near: list[list[int]] = [[] for _ in range(sites)]
    for i, j in edges.tolist():
        near[i].append(j)
        near[j].append(i)
    two = _two_colours(near)
    if two is not None:
        return torch.tensor(two)
    colours = [-1] * sites
    for site in sorted(range(sites), key=lambda s: -len(near[s])):
        taken = {colours[other] for other in near[site]}
        colours[site] = next(c for c in itertools.count() if c not in taken)
    return torch.tensor(colours)


def _two_colours(near: list[list[int]]) -> list[int] | None:
    """The two sides of a bipartite graph."""
    colours = [-1] * len(near)
    for root in range(len(near)):
        if colours[root] >= 0:
            continue
        colours[root], waiting = 0, [root]
        while waiting:
            site = waiting.pop()
            for other in near[site]:
                if colours[other] < 0:
                    colours[other] = 1 - colours[site]
                    waiting.append(other)
                elif colours[other] == colours[site]:
                    return None
    return colours
