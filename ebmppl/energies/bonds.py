"""What an energy of pairs tells kernels that move clusters: which coordinates like to be equal, and how much."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor


class Lattice(NamedTuple):
    """That edges are those of nearest neighbours, sorted by axis and then by the first site."""

    shape: tuple[int, ...]
    periodic: tuple[bool, ...]  # by axis


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
