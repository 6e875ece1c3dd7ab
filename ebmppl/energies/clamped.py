"""Conditioning: an energy with some of its coordinates held at given values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from ebmppl.energies.base import ONE_SITE, Energy, like, require_energy
from ebmppl.energies.combined import FreeConditionals
from ebmppl.energies.discrete import Conditionals, levels_of, one_hot
from ebmppl.energies.structure import Pairwise, Split, split
from ebmppl.energies.supports import describe, elementwise, levels


class Clamped(Energy):
    """Conditioning: some coordinates are held at given values, the energy is one of the others.

    Args:
        energy: the energy. Over one tensor with an elementwise support the free coordinates become one
            vector ``(free,)``; over named sites the clamped sites disappear.
        mask: bool tensor of the event shape, True where clamped; for named sites the names to clamp.
        values: tensor that broadcasts to the event shape (its free entries are not used); for named
            sites a dict with the value of each clamped site. With one more leading axis, one value for every row of
            the batch. Kept as buffers, so they may change in place.

    Raises:
        ValueError: for a mask of another shape, nothing or everything clamped, unknown sites, or a value outside a
            discrete support.
    """

    def __init__(
        self,
        energy: Energy,
        mask: Tensor | Sequence[str],
        values: Tensor | Mapping[str, Tensor],
    ) -> None:
        require_energy(energy)
        flat_mask, full = _clamped_sites(energy, mask, values) if energy.packed else _clamped(energy, mask, values)
        if bool(flat_mask.all()) or not bool(flat_mask.any()):
            raise ValueError(f"expected some but not all coordinates clamped, got {int(flat_mask.sum())}")
        _require_inside(energy, flat_mask, full)
        support = energy.support
        if energy.packed:
            free_sites = {n: s for n, s in energy.sites.items() if n not in set(mask)}
            if isinstance(support, dict):
                support = {n: c for n, c in support.items() if n in free_sites}
            super().__init__(free_sites, support)
        else:
            super().__init__((int((~flat_mask).sum()),), _elementwise(energy.site_support(ONE_SITE)))
        self.energy = energy
        self.register_buffer("values", full)
        self.register_buffer("free", (~flat_mask).nonzero().squeeze(1))
        self._splits: list[tuple[Tensor, Split, Tensor]] = []  # of the last edges, and all levels there

    values: Tensor
    free: Tensor

    def fill(self, x: Tensor) -> Tensor:
        """Whole points ``(*batch, *event of the energy)`` from free coordinates ``(*batch, *event)``."""
        batch = torch.broadcast_shapes(x.shape[:-1], self.values.shape[:-1])
        x = x.expand(*batch, -1)
        # of its own memory: Inductor (torch 2.13) writes into what was only expanded
        held = self.values.to(x.dtype).expand(*batch, -1).contiguous()
        whole = held.index_copy(-1, self.free, x)
        return whole.reshape(*batch, *self.energy.event_shape)

    def forward(self, x: Tensor) -> Tensor:
        """Energies ``(*batch)`` in nats of the whole points."""
        return self.energy(self.fill(x))

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The energy's value, and its gradient at the free coordinates."""
        value, grad = self.energy.value_and_grad(self.fill(x))
        return value, grad.reshape(*value.shape, self.values.shape[-1]).index_select(-1, self.free)

    def conditionals(self) -> Conditionals | None:
        """Those of the energy for its free coordinates, the others held."""
        inside = self.energy.conditionals()
        return None if inside is None else FreeConditionals(inside, self.free, lambda x: self.fill(x).flatten(1))

    def pairwise(self) -> Pairwise | None:
        """The energy's tables of free coordinates and their pairs, for one set of values."""
        form = self.energy.pairwise() if self.values.dim() == 1 else None
        if form is None:
            return None
        if not self._splits or self._splits[0][0] is not form.edges:
            table = levels_of(self.energy).table.to(form.edges.device)
            self._splits = [(form.edges, split(form.edges, self.free, len(table)), table)]
        _, among, table = self._splits[0]
        level = (self.values.unsqueeze(-1) > table).sum(-1)  # values increase
        return form.held(among, level.clamp_max(table.shape[1] - 1))

    def relaxed(self) -> Energy | None:
        """The energy's extension, the clamped coordinates held at their one-hot vectors."""
        inside = self.energy.relaxed()
        return None if inside is None else _ClampedOneHot(self, inside)


class _ClampedOneHot(Energy):
    """Over one-hot vectors ``(free, levels)`` of the free coordinates, or real vectors in their place."""

    def __init__(self, clamped: Clamped, inside: Energy) -> None:
        super().__init__((len(clamped.free), inside.event_shape[-1]), constraints.one_hot)
        self.clamped, self.inside = clamped, inside

    def fill(self, x: Tensor) -> Tensor:
        """Whole points of the extension."""
        held = one_hot(self.clamped.values, x.shape[-1], x.dtype)
        batch = torch.broadcast_shapes(x.shape[:-2], held.shape[:-2])
        held = held.expand(*batch, *held.shape[-2:]).contiguous()  # as in ``Clamped.fill``
        whole = held.index_copy(-2, self.clamped.free, x.expand(*batch, *x.shape[-2:]))
        return whole.reshape(*batch, *self.inside.event_shape)

    def forward(self, x: Tensor) -> Tensor:
        """Energies ``(*batch)`` in nats."""
        return self.inside(self.fill(x))

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The extension's value, and its gradient at the free coordinates."""
        value, grad = self.inside.value_and_grad(self.fill(x))
        return value, grad.reshape(*value.shape, -1, x.shape[-1]).index_select(-2, self.clamped.free)


def _clamped(energy: Energy, mask: object, values: object) -> tuple[Tensor, Tensor]:
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != energy.event_shape:
        got = f"{tuple(mask.shape)} {mask.dtype}" if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"expected a bool mask of shape {tuple(energy.event_shape)}, got {got}")
    return mask.flatten(), _flat(_value(energy, ONE_SITE, values), energy.event_shape).clone()


def _require_inside(energy: Energy, mask: Tensor, full: Tensor) -> None:
    """Raise ``ValueError`` that names the first held value outside a discrete support."""
    masks, values = (energy.unpack(x) for x in (mask, full))
    for name, value in values.items():
        support = energy.site_support(name)
        if levels(support) is None:
            continue
        wrong = (masks[name] & ~elementwise(support).check(value)).nonzero()
        if len(wrong):
            at = tuple(wrong[0].tolist())
            raise ValueError(
                f"expected values of site {name!r} in {describe(support)}, got {value[at].item():g} (to hold, at {at})"
            )


def _flat(value: Tensor, shape: torch.Size) -> Tensor:
    return value.reshape(*value.shape[: value.dim() - len(shape)], shape.numel())


def _elementwise(support: Constraint) -> Constraint:
    base = support
    while isinstance(base, constraints.independent):
        base = base.base_constraint
    if base.event_dim:
        raise ValueError(f"expected an elementwise support to clamp coordinates, got {support}")
    return base


def _clamped_sites(energy: Energy, mask: object, values: object) -> tuple[Tensor, Tensor]:
    names = set(mask) if isinstance(mask, (list, tuple, set)) else None
    if names is None or not isinstance(values, Mapping) or set(values) != names or not names <= set(energy.sites):
        raise ValueError(
            f"expected the names of sites to clamp, among {sorted(energy.sites)}, and a dict of their values; "
            f"got {mask} and {sorted(values) if isinstance(values, Mapping) else type(values).__name__}"
        )
    given = {n: _value(energy, n, values[n]) for n in energy.sites if n in names}
    zero = next(iter(given.values()), torch.zeros(())).new_zeros(())  # beside the values, wherever those are
    held = {n: given.get(n, zero.expand(s)) for n, s in energy.sites.items()}
    rows = torch.broadcast_shapes(*(value.shape[: value.dim() - len(energy.sites[n])] for n, value in held.items()))
    full = energy.pack({n: value.expand((*rows, *energy.sites[n])) for n, value in held.items()})
    flags = {n: zero.new_full(tuple(s), float(n in names)) for n, s in energy.sites.items()}
    return energy.pack(flags) > 0, full


def _value(energy: Energy, name: str, value: object) -> Tensor:
    """A value that is broadcast to its site; numbers at the dtype of the energy's tensors."""
    shape, as_these = energy.sites[name], like(energy)
    try:
        value = value if isinstance(value, Tensor) else as_these.new_tensor(value)
        rows = value.shape[:1] if value.dim() == len(shape) + 1 else ()
        return value.expand((*rows, *shape))
    except (TypeError, ValueError, RuntimeError) as error:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"expected a value of site {name!r} that broadcasts to {tuple(shape)}, got {got}") from error
