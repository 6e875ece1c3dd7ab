"""What an energy of pairs tells kernels that move clusters: which coordinates like to be equal, and how much."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from ebmppl.energies.algebra import Tempered


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


class TemperedBonds:
    """Bonds of an energy at an inverse temperature, which may change in place."""

    def __init__(self, inside: Bonds, tempered: Tempered) -> None:
        self.inside, self.tempered = inside, tempered

    @property
    def edges(self) -> Tensor:
        """Those of the energy."""
        return self.inside.edges

    @property
    def lattice(self) -> Lattice | None:
        """That of the energy."""
        return self.inside.lattice

    def strengths(self) -> Tensor:
        """Beta K."""
        return self._scaled(self.inside.strengths(), 1)

    def fields(self) -> Tensor:
        """Beta h."""
        return self._scaled(self.inside.fields(), 2)

    def _scaled(self, value: Tensor, axes: int) -> Tensor:
        """A value, which has so many axes without rows, times beta."""
        beta = self.tempered.beta.to(value.dtype)
        return value * (beta.reshape(*beta.shape, *[1] * axes) if beta.dim() else beta)
