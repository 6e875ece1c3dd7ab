"""Energies of finitely many states: their levels, and what their structure tells a kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.distributions import constraints

from ebmppl.energies.base import ONE_SITE, Energy, dtype_and_device
from ebmppl.energies.supports import categories, describe, elementwise, is_discrete, levels, storage


class Conditionals(Protocol):
    """Blocks of coordinates that are independent given all the others, with their conditional distributions.

    What a model knows of itself and ``Gibbs`` draws from. Points are flat, ``(rows, coordinates)``, at any dtype.
    """

    @property
    def blocks(self) -> Sequence[Tensor]:
        """Flat indices (int64) of each block's coordinates; together every coordinate once."""

    def logits(self, block: int, x: Tensor) -> Tensor:
        """Of a block's coordinates given all others: for two levels the log-odds of the upper one ``(rows, size)``,
        else log-probabilities up to a constant ``(rows, size, levels)``; at the energy's dtype.
        """  # noqa: D205


class Pairs(Protocol):
    """Spins that interact in pairs, -sum J x x - sum h x, by blocks of sites that don't interact among themselves.

    What ``Gibbs`` draws from faster than from ``Conditionals``. Each answer is at the energy's dtype, or int64.
    """

    @property
    def blocks(self) -> Sequence[Tensor]:
        """Flat indices (int64) of each block's sites; together every site once."""

    def neighbours(self, block: int) -> Tensor:
        """Flat indices ``(size, degree)`` of the sites that a block's sites interact with; of missing ones any."""

    def couplings(self, block: int) -> Tensor:
        """J to them ``(size, degree)``, 0 to missing ones; or ``()`` where none is missing and all are one number, up to
        their signs.
        """  # noqa: D205

    def signs(self, block: int) -> Tensor | None:
        """By which such one J is multiplied, +1 or -1, ``(size, degree)``, at any time the same; None: all are +1."""

    def fields(self, block: int) -> Tensor:
        """H of the block's sites, ``(size,)``; or ``()`` where all are one number."""


class Layers(Protocol):
    """A visible layer, which the energy is of, and hidden bits that are summed out; each layer is independent given the other.

    What ``Gibbs`` alternates between: h from ``hidden_logits(v)``, then v from the visible layer given h. All are pure
    functions of tensors: v ``(rows, visible)`` and h ``(rows, hidden)`` at any dtype, answers at the energy's dtype. An
    energy with real visible units has ``RealLayers``.
    """

    @property
    def num_hidden(self) -> int:
        """How many hidden bits."""

    def hidden_logits(self, v: Tensor) -> Tensor:
        """Log-odds ``(rows, hidden)`` of h = 1 given v."""

    def visible_logits(self, h: Tensor) -> Tensor:
        """Of the visible units given h: the log-odds of the upper of two levels ``(rows, visible)``, or log-probabilities
        up to a constant ``(rows, visible, levels)``.
        """  # noqa: D205

    def free_energy(self, v: Tensor, hidden_logits: Tensor | None = None) -> Tensor:
        """The energy ``(rows,)`` in nats of v; ``hidden_logits(v)`` spares its product where it is at hand."""


@runtime_checkable
class BothLayers(Protocol):
    """``Conditionals`` of an energy of both layers, whose points are the visible units and then the hidden bits."""

    layers: Layers

    @property
    def blocks(self) -> Sequence[Tensor]:
        """Flat indices (int64) of the hidden bits, and of the visible units."""

    def logits(self, block: int, x: Tensor) -> Tensor:
        """See ``Conditionals``."""


class RealLayers(Protocol):
    """``Layers`` whose visible units are normal given the hidden bits: v = visible_mean(h) + visible_scale * noise."""

    @property
    def num_hidden(self) -> int:
        """How many hidden bits."""

    def hidden_logits(self, v: Tensor) -> Tensor:
        """Log-odds ``(rows, hidden)`` of h = 1 given v."""

    def visible_mean(self, h: Tensor) -> Tensor:
        """Means ``(rows, visible)`` of v given h."""

    @property
    def visible_scale(self) -> Tensor:
        """Standard deviations of v given h, ``(visible,)`` or ``(rows, visible)``."""

    def free_energy(self, v: Tensor, hidden_logits: Tensor | None = None) -> Tensor:
        """The energy ``(rows,)`` in nats of v; ``hidden_logits(v)`` spares its product where it is at hand."""


class Levels(NamedTuple):
    """The values of every coordinate of a discrete energy.

    Attributes:
        table: ``(coordinates, most levels)`` int64; where a coordinate has fewer its last value repeats.
        counts: ``(coordinates,)`` int64, how many each has.
        dtype: integers that hold them all.
    """

    table: Tensor
    counts: Tensor
    dtype: torch.dtype

    def to(self, device: torch.device) -> Levels:
        """On a device."""
        return self._replace(table=self.table.to(device), counts=self.counts.to(device))

    @property
    def most(self) -> int:
        """The largest number of levels."""
        return self.table.shape[1]

    @property
    def ragged(self) -> bool:
        """Whether coordinates differ in their number of levels."""
        return bool((self.counts != self.most).any())

    @property
    def states(self) -> int:
        """How many points there are."""
        product = 1
        for n in self.counts.tolist():
            product *= n
        return product


def discrete(energy: Energy) -> bool:
    """Whether all coordinates are discrete."""
    return all(is_discrete(energy.site_support(name)) for name in energy.sites)


def levels_of(energy: Energy, sites: Sequence[str] | None = None) -> Levels:
    """The levels of every coordinate, in the order of packed points.

    Args:
        energy: a discrete energy.
        sites: only of these, in this order.

    Raises:
        ValueError: for a site that is continuous or has no finite list of values.
    """
    lists: list[Sequence[int]] = []
    for name in energy.sites if sites is None else sites:
        shape, support = energy.sites[name], energy.site_support(name)
        values = levels(support)
        if values is None:
            hint = "; mixed energies take Blocks" if not is_discrete(support) and len(energy.sites) > 1 else ""
            raise ValueError(f"expected a finite discrete support of site {name!r}, got {describe(support)}{hint}")
        lists += [values] * shape.numel()
    most = max(map(len, lists))
    table = torch.tensor([[*values, *[values[-1]] * (most - len(values))] for values in map(list, lists)])
    dtype = storage([int(table.min()), int(table.max())])
    return Levels(table, torch.tensor([len(values) for values in lists]), dtype)


def indexed(energy: Energy) -> Energy:
    """The energy itself, or where its one site holds one-hot vectors ``Indexed(energy)``."""
    hot = not energy.packed and isinstance(elementwise(energy.support), type(constraints.one_hot))  # type: ignore[arg-type]
    return Indexed(energy) if hot else energy


class Indexed(Energy):
    """An energy of one-hot vectors ``(*event, levels)`` seen as one of integers ``(*event)``.

    Args:
        energy: with support ``constraints.one_hot``.
    """

    def __init__(self, energy: Energy) -> None:
        *shape, number = energy.event_shape
        super().__init__(shape, categories(number))
        self.energy = energy

    def forward(self, x: Tensor) -> Tensor:
        """Energies ``(*batch)`` in nats of integers ``(*batch, *event)``."""
        return self.energy(one_hot(x, self.energy.event_shape[-1], dtype_and_device(self)[0]))

    def relaxed(self) -> Energy:
        """The energy of one-hot vectors, at any real vectors in their place."""
        return self.energy

    def identity(self) -> tuple[Any, ...]:
        """That of the energy inside."""
        return (type(self), self.energy.identity())

    def constrain(self, x: Tensor) -> dict[str, Tensor]:
        """One-hot vectors ``(*batch, *event, levels)``, at the dtype of the points."""
        return {ONE_SITE: one_hot(x, self.energy.event_shape[-1], x.dtype)}

    def unconstrain(self, values: Any) -> Tensor:
        """Integers from one-hot vectors."""
        return values[ONE_SITE].argmax(-1)


def one_hot(x: Tensor, number: int, dtype: torch.dtype) -> Tensor:
    """Integers ``(...)`` in 0 ... number - 1 as one-hot vectors ``(..., number)``."""
    return (x.unsqueeze(-1) == torch.arange(number, device=x.device)).to(dtype)
