"""Energies of one point whose code looks at values: a loop in vmap's place, and gradients that finite differences bear out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ebmppl.energies.base import Energy
from ebmppl.energies.randomness import RANDOM, Draws
from ebmppl.errors import EnergyError

POINTS = 12  # where a gradient is tried
_STEPS = (25.0, 5.0, 1.0, 0.2)  # in cube roots of the rounding, where a central difference is most exact
_MOST_DIRECTIONS = 8


def one_by_one(function: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    """``torch.func.vmap`` as a loop."""
    return lambda rows: tree_map(lambda *values: torch.stack(values), *(function(row) for row in rows))


def require_whole_gradient(energy: Energy, x: Tensor) -> None:
    """Refuse a gradient that misses a part: a value that became a Python number (``float(z)``) has none, and nobody says so.

    Differences at four steps decide, at every point along every site. Where central ones of three steps in turn give one slope,
    and no step to any side gives the gradient's, the gradient is wrong. Beside a jump, which a branch may have, and where
    rounding decides, slopes of different steps differ, and nothing is said.

    Args:
        energy: the energy.
        x: points ``(batch, *event)``; those where values are not finite decide nothing.

    Raises:
        EnergyError: with a site that the gradient misses a part of; for an energy with random numbers inside.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Converting a tensor with requires_grad=True to a scalar")
        x, (value, grad) = _widest(energy, x)
    with Draws() as random, torch.no_grad():
        energy(x)
    if random.drawn:
        raise EnergyError(RANDOM)
    unit = torch.finfo(value.dtype).eps
    for names, direction in _directions(energy, x):
        along = (grad * direction).flatten(1).sum(1)
        right, slopes = torch.zeros_like(along, dtype=torch.bool), []
        for step in _STEPS:
            h = step * unit ** (1 / 3)
            with torch.no_grad():
                up, down = (energy(x + sign * h * direction) for sign in (1, -1))
            rounding = 10 * unit * (1 + value.abs()) / h
            # at a kink the gradient is that of one side
            for slope in ((up - value) / h, (value - down) / h, (up - down) / (2 * h)):
                right |= (slope - along).abs() <= 1e-3 * torch.maximum(slope.abs(), along.abs()) + rounding
            slopes.append(torch.where(up == down, torch.nan, slope))  # where a gradient is lost, there is a change
            if bool(right.all()):
                break
        for three in zip(slopes, slopes[1:], slopes[2:], strict=False):
            found = torch.stack(three)
            one = (found.amax(0) - found.amin(0) <= 0.1 * (found[1] - along).abs()) & found.isfinite().all(0)
            for row in (one & ~right).nonzero().squeeze(1).tolist():
                raise EnergyError(
                    f"expected a gradient of all that the energy is made of, got {along[row].item():.3g} along {names} "
                    f"where finite differences give {found[1][row].item():.3g}: code may look at values to branch, but "
                    "what it computes with Python numbers (float(), .item()), NumPy or detach() has no gradient"
                )


def scattered(rows: int, event_shape: torch.Size) -> Tensor:
    """The same points ``(rows, *event)`` in every call: every number of an event is once in each of so many parts of (-2, 2)."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand(2, rows, *event_shape, generator=generator, device="cpu")
    return (drawn[0].argsort(0) + drawn[1]) * (4 / rows) - 2


def _widest(energy: Energy, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The points, in float64 where the energy takes such, with values and gradients."""
    try:
        wide = x.double()
        return wide, energy.value_and_grad(wide)
    except (RuntimeError, TypeError):  # its data or the device have another
        return x, energy.value_and_grad(x)


def _directions(energy: Energy, x: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Along a site, or some of many, by 1 or -1 in every number: names, and a direction ``(*event)`` of length 1."""
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, x.shape[1:], generator=generator, device="cpu").mul(2).sub(1).to(x)
    names = list(energy.sites)
    for first in range(min(len(names), _MOST_DIRECTIONS)):
        chosen = names[first::_MOST_DIRECTIONS]
        mask = energy.pack({name: torch.full_like(v, float(name in chosen)) for name, v in energy.unpack(x[0]).items()})
        yield ", ".join(map(repr, chosen)), signs * mask / mask.sum().sqrt()
