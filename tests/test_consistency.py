"""Estimators on exponential families and Student-t experts: they land on the truth, at the rate n^(-1/2).

As ``test_nce`` tests noise contrasts, here denoising, likelihood and persistent chains.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from ebmppl.energies import Energy
from ebmppl.kernels import Gibbs
from ebmppl.losses import MLE, PCD, BoundLoss, DenoisingScoreMatching
from tests.exact_gradients import F64, FALSE_ALARM, flat, p_value
from tests.test_likelihood import _fisher
from tests.test_nce import (
    TRUTH,
    Quadratic,
    experts,
    experts_data,
    fit,
    gaussian,
    gaussian_data,
    ising,
    ising_data,
)

SIZES, SETS = (2000, 16000), 12
BLUR = 0.5  # sigma of denoising


def blurred() -> Quadratic:
    """What denoising of Gaussian data lands on: its covariance and sigma^2."""
    covariance = torch.linalg.inv(TRUTH["P"]) + BLUR**2 * torch.eye(2, dtype=F64)
    return Quadratic(TRUTH["m"], torch.linalg.inv(covariance).contiguous())


def newton(bound: BoundLoss, x: Tensor, steps: int = 12) -> None:
    """Steps of chains at the truth's Fisher information, 1/t of the t-th: gradients' means, as many as steps."""
    information = _fisher(ising())[1]
    parameters = list(bound.parameters())
    for step in range(steps):
        bound.zero_grad()
        bound(x).backward()
        move = torch.linalg.solve(information, flat(bound.energy)) / (step + 1)
        with torch.no_grad():
            for parameter, part in zip(parameters, move.split([p.numel() for p in parameters]), strict=True):
                parameter.sub_(part.view_as(parameter))


Case = tuple[Callable[..., Any], Callable[[], Energy], Callable[[int, int], Tensor], Any, Callable[..., None]]
minimum = partial(fit, steps=20)
CASES: dict[str, Case] = {
    "denoising, gaussian": (
        lambda n, seed: DenoisingScoreMatching(BLUR, seed=seed),
        blurred,
        gaussian_data,
        None,
        minimum,
    ),
    "likelihood, student-t": (lambda n, seed: MLE(), experts, experts_data, None, minimum),
    "pcd, ising": (
        lambda n, seed: PCD(2, kernel=Gibbs, num_chains=n, warmup=20, seed=seed),
        ising,
        ising_data,
        None,
        newton,
    ),
}
QUICK = ("denoising, gaussian",)


def errors_of(name: str, n: int, truth: Callable[[], Energy]) -> Tensor:
    """Estimate minus truth ``(SETS, parameters)``."""
    loss, energy, data, guide, estimate = CASES[name]
    wanted = torch.cat([p.detach().flatten() for p in truth().parameters()])
    found = []
    for seed in range(SETS):
        bound = loss(n, seed)(energy(), guide)
        estimate(bound, data(n, 1000 * n + seed))
        found.append(torch.cat([p.detach().flatten() for p in bound.energy.parameters()]) - wanted)
    return torch.stack(found)


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.long) for n in CASES])
def test_errors_shrink_as_the_root_of_the_data_about_the_truth(name: str) -> None:
    few, many = (errors_of(name, n, CASES[name][1]) for n in SIZES)
    slopes = (many.square().mean(0) / few.square().mean(0)).log() / 2 / math.log(SIZES[1] / SIZES[0])
    # a root mean square of 12 is known to 20 %, a parameter's slope to 0.14, the mean of at least five to about 0.08
    assert -0.8 < float(slopes.mean()) < -0.25
    assert p_value(many, torch.zeros_like(many[0])) > FALSE_ALARM  # a bias of order 1/n is far below its error


def test_denoising_does_not_land_on_the_density_of_the_data() -> None:
    off = errors_of("denoising, gaussian", SIZES[1], gaussian)
    assert p_value(off, torch.zeros_like(off[0])) < FALSE_ALARM
