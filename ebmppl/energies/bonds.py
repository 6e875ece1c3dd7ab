"""What an energy of pairs tells kernels that move clusters: which coordinates like to be equal, and how much."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from ebmppl.energies.structure import Lattice, Pairwise

if TYPE_CHECKING:
    from ebmppl.energies.base import Energy


class Bonds(Protocol):
    r"""An energy :math:`E(x) = -\sum_{e=(i,j)} K_e [x_i = x_j] - \sum_i h_i(x_i) + c` over coordinates of the same levels.

    What a model knows of itself and ``SwendsenWang`` and ``Wolff`` sample from.
    """

    @property
    def edges(self) -> Tensor:
        """Flat coordinates i, j of each edge, ``(edges, 2)`` int64."""

    @property
    def lattice(self) -> Lattice | None:
        """The lattice whose edges they are, where there is one: its neighbours need no look-up."""

    def strengths(self) -> Tensor:
        """K in nats at the present parameters, ``(edges,)`` or ``(rows, edges)``; negative where unequal is preferred."""

    def fields(self) -> Tensor:
        """H in nats of every coordinate and level, ``(coordinates, levels)`` or ``(rows, coordinates, levels)``."""


def bonds_of(energy: Energy) -> Bonds | None:
    """The bonds of an energy that knows its tables of pairs; None where these are more than a strength and fields.

    Tables of two levels always are of this kind; of more levels they must be 0 where levels differ and one number where
    they are equal.
    """
    form = energy.pairwise()
    if form is None:
        return None
    levels = form.unary.shape[1]
    pairs = form.pairs.detach()
    same = torch.eye(levels, dtype=pairs.dtype, device=pairs.device)
    if levels != 2 and not torch.equal(pairs, pairs[:, :1, :1] * same):
        return None
    return PairBonds(energy, form)


class PairBonds:
    """Bonds by the tables of pairs of an energy, at its present parameters. Edges that come more than once are joined.

    Args:
        energy: which has ``pairwise()``.
        form: these tables now.
    """

    def __init__(self, energy: Energy, form: Pairwise) -> None:
        self.energy, self.edges, self.lattice = energy, form.edges, form.lattice
        self._joined: Tensor | None = None  # number of the edge that each table's belongs to
        ends = form.edges.sort(1).values
        unique, joined = ends.unique(dim=0, return_inverse=True)
        if len(unique) < len(ends):
            self.edges, self.lattice, self._joined = unique, None, joined

    def strengths(self) -> Tensor:
        """See ``Bonds``."""
        pairs = self._form().pairs
        if pairs.shape[-1] == 2:
            k = (pairs[:, 0, 0] + pairs[:, 1, 1] - pairs[:, 0, 1] - pairs[:, 1, 0]) / 2
        else:
            k = pairs[:, 0, 0]
        return k if self._joined is None else k.new_zeros(len(self.edges)).index_add(0, self._joined, k)

    def fields(self) -> Tensor:
        """See ``Bonds``; of two levels, what the tables of pairs say of each coordinate alone is in the upper one."""
        form = self._form()
        if form.pairs.shape[-1] != 2:
            return form.unary
        (a, b), (c, d) = form.pairs.permute(1, 2, 0)
        upper = form.unary[:, 1].index_add(0, form.edges[:, 0], (c - a + d - b) / 2)
        return torch.stack([form.unary[:, 0], upper.index_add(0, form.edges[:, 1], (b - a + d - c) / 2)], -1)

    def _form(self) -> Pairwise:
        form = self.energy.pairwise()
        assert form is not None  # as when this was made
        return form


class ScaledBonds:
    """Bonds of an energy times a number, or one for every row.

    Args:
        inside: of the energy.
        scaled: multiplies a value ``(rows, ...)``, or without rows, of so many axes beside them.
    """

    def __init__(self, inside: Bonds, scaled: Callable[[Tensor, int], Tensor]) -> None:
        self.inside, self.scaled = inside, scaled

    @property
    def edges(self) -> Tensor:
        """Those of the energy."""
        return self.inside.edges

    @property
    def lattice(self) -> Lattice | None:
        """That of the energy."""
        return self.inside.lattice

    def strengths(self) -> Tensor:
        """Of the energy, scaled."""
        return self.scaled(self.inside.strengths(), 1)

    def fields(self) -> Tensor:
        """Of the energy, scaled."""
        return self.scaled(self.inside.fields(), 2)
