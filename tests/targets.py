"""Targets with exact draws, and the functions by which a kernel is seen to leave them as they are."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import constraints

import ebmppl as eb
from ebmppl.energies import Energy, Funnel, Gaussian, GaussianMixture, Rosenbrock, StudentT, unconstrained


def f64(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def gen(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Target(NamedTuple):
    energy: Energy
    sample: Callable[[int, torch.Generator], Tensor]  # exact draws of the unconstrained density, (n, *event)


class Walls(Energy):
    """A standard normal in the plane, cut off where x0 > 0.5 (energy inf) and where x1 < -1 (energy NaN)."""

    def forward(self, x: Tensor) -> Tensor:
        energy = 0.5 * x.square().sum(-1)
        energy = torch.where(x[..., 0] > 0.5, math.inf, energy)
        return torch.where(x[..., 1] < -1.0, math.nan, energy)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        x = torch.randn(8 * n, 2, dtype=torch.float64, generator=generator)
        return x[(x[:, 0] <= 0.5) & (x[:, 1] >= -1)][:n]


def gamma() -> Target:
    """Gamma(3, 1) over one number, seen from the unconstrained space."""
    energy = eb.as_energy(lambda x: x - 2 * torch.log(x), (), constraints.positive)
    return Target(energy, lambda n, g: torch._standard_gamma(torch.full((n,), 3.0).double(), generator=g).log())


def targets() -> dict[str, Target]:
    covariance = f64([1.0, 0.6, -0.3], [0.6, 1.5, 0.2], [-0.3, 0.2, 0.7])
    mixture = GaussianMixture(
        f64([1.2, 0.0], [-1.2, 1.0]),
        torch.stack([f64([1.0, 0.3], [0.3, 0.5]), f64([0.4, 0.0], [0.0, 0.8])]),
        [0.3, 0.7],
    )
    analytic = {
        "gaussian": Gaussian(f64(0.5, -1.0, 0.0), covariance),
        "mixture": mixture,
        "rosenbrock": Rosenbrock(2, a=0.5, b=1.0, location=0.5),
        "student": StudentT(5.0, f64(1.0, 0.0, -1.0), covariance),
        "funnel": Funnel(3, scale=1.0),
        "walls": Walls((2,)),
    }
    return {**{name: Target(e, e.sample) for name, e in analytic.items()}, "gamma": gamma()}


TARGETS = targets()


class Functions:
    """What must not move: coordinates and their products, raw and bounded by tanh, signs, and the deciles of the energy.

    Centres, scales and deciles come from exact draws of their own, so that they are fixed functions for the draws tested.
    """

    def __init__(self, target: Target) -> None:
        self.energy = unconstrained(target.energy)
        x = target.sample(20_000, gen(99))
        flat = x.reshape(len(x), -1)
        self.centre = flat.median(0).values
        self.scale = (flat - self.centre).abs().median(0).values
        self.deciles = torch.quantile(self.energy(x).detach(), torch.arange(0.1, 0.95, 0.1, dtype=torch.float64))

    def __call__(self, x: Tensor) -> Tensor:
        """Columns ``(n, functions)`` of points ``(n, *event)``."""
        y = (x.reshape(len(x), -1) - self.centre) / self.scale
        i, j = torch.triu_indices(y.shape[1], y.shape[1])
        b = torch.tanh(y / 2)
        with torch.no_grad():
            below = self.energy(x).unsqueeze(1) <= self.deciles
        return torch.cat([y, y[:, i] * y[:, j], b, b[:, i] * b[:, j], (y > 0).double(), below.double()], 1)


FUNCTIONS = {name: Functions(target) for name, target in TARGETS.items()}
