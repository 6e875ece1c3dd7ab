"""Data in the plane that models of it are shown on, each of about unit size, from a generator."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor

NOISE = 0.1  # around curves, so that all have densities


def _normal(n: int, generator: Generator) -> Tensor:
    return torch.randn(n, 2, generator=generator)


def moons(n: int, generator: Generator) -> Tensor:
    """Two half circles that interlock."""
    angle = math.pi * torch.rand(n, generator=generator)
    upper = torch.rand(n, generator=generator) < 0.5
    x = torch.where(upper, angle.cos(), 1 - angle.cos()) - 0.5
    y = torch.where(upper, angle.sin(), 0.5 - angle.sin()) - 0.25
    return 1.5 * torch.stack([x, y], 1) + NOISE * _normal(n, generator)


def rings(n: int, generator: Generator) -> Tensor:
    """Two circles around 0."""
    angle = 2 * math.pi * torch.rand(n, generator=generator)
    radius = torch.where(torch.rand(n, generator=generator) < 0.4, 0.8, 1.8)
    return radius.unsqueeze(1) * torch.stack([angle.cos(), angle.sin()], 1) + NOISE * _normal(n, generator)


def spirals(n: int, generator: Generator) -> Tensor:
    """Two arms."""
    turn = 3 * math.pi * torch.rand(n, generator=generator).sqrt()
    arm = torch.where(torch.rand(n, generator=generator) < 0.5, 1.0, -1.0)
    points = 0.22 * (turn * arm).unsqueeze(1) * torch.stack([turn.cos(), turn.sin()], 1)
    return points + NOISE * _normal(n, generator)


def checkerboard(n: int, generator: Generator) -> Tensor:
    """The dark squares of a board of four by four, softened."""
    column = torch.randint(4, (n,), generator=generator)
    row = 2 * torch.randint(2, (n,), generator=generator) + column % 2
    corner = torch.stack([column, row], 1) - 2
    return corner + torch.rand(n, 2, generator=generator) + 0.5 * NOISE * _normal(n, generator)


def eight_gaussians(n: int, generator: Generator) -> Tensor:
    """On a circle."""
    angle = torch.randint(8, (n,), generator=generator) * (math.pi / 4)
    return 2 * torch.stack([angle.cos(), angle.sin()], 1) + 0.25 * _normal(n, generator)


SETS: dict[str, Callable[[int, Generator], Tensor]] = {
    "moons": moons,
    "rings": rings,
    "spirals": spirals,
    "checkerboard": checkerboard,
    "eight Gaussians": eight_gaussians,
}
