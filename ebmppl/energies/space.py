"""Whether energies are over one and the same space."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions.constraints import Constraint

from ebmppl.energies.base import Energy, require_energy


def shared_space(energies: Sequence[Energy]) -> tuple[dict[str, torch.Size] | torch.Size, Constraint | dict]:
    """Event shape and support that all energies share."""
    if not energies:
        raise ValueError("expected at least one energy, got none")
    for energy in energies:
        require_energy(energy)
    first = energies[0]
    for other in energies[1:]:
        # in the same order, too: that of the packed coordinates
        if list(other.sites.items()) != list(first.sites.items()) or other.packed != first.packed:
            raise ValueError(f"expected energies over the same sites, got {first.sites} and {other.sites}")
        for name in first.sites:
            mine, theirs = first.site_support(name), other.site_support(name)
            if not _same(mine, theirs):
                raise ValueError(f"expected the same support at site {name!r}, got {mine} and {theirs}")
    return (first.sites if first.packed else first.event_shape), first.support


def _same(a: object, b: object) -> bool:
    """Equality of constraints by what they hold, because those such as interval(0, 1) compare by identity."""
    if isinstance(a, Constraint):
        return type(a) is type(b) and _same(vars(a), vars(b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(value, b[name]) for name, value in a.items())
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return torch.equal(torch.as_tensor(a, dtype=torch.float64), torch.as_tensor(b, dtype=torch.float64))
    return a == b
