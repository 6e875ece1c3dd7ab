"""Estimators on exponential families and Student-t experts: they land on the truth, at the rate n^(-1/2).

Those of noise contrasts are in ``test_nce``, of pseudo-likelihood and ratio matching in ``test_pseudo_likelihood``, the
exact likelihood of an Ising model in ``test_likelihood``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ebmppl.energies import Energy
from ebmppl.kernels import Gibbs
from ebmppl.losses import CD, MLE, PCD, BoundLoss, DenoisingScoreMatching, ScoreMatching, SlicedScoreMatching
from tests.exact_gradients import F64, FALSE_ALARM, flat, p_value, require_root_rate
from tests.test_likelihood import _fisher
from tests.test_nce import (
    ALPHA,
    BIAS,
    HEAVY,
    TRUTH,
    WIDE,
    Quadratic,
    experts,
    experts_data,
    f64,
    fit,
    gaussian,
    gaussian_data,
    ising,
    ising_data,
)

SIZES, SETS = (2000, 16000), 16
BLUR = 0.5  # sigma of denoising


# What denoising lands on: the density of data and noise


def blurred_gaussian() -> Quadratic:
    """Covariances add up."""
    covariance = torch.linalg.inv(TRUTH["P"]) + BLUR**2 * torch.eye(2, dtype=F64)
    return Quadratic(TRUTH["m"], torch.linalg.inv(covariance).contiguous())


class BlurredExperts(Energy):
    """Student-t experts of filters at right angles and noise: outputs stay independent, each convolved by quadrature."""

    def __init__(self, scale: Tensor, bias: Tensor, alpha: Tensor) -> None:
        super().__init__((2,))
        self.scale, self.bias, self.alpha = (nn.Parameter(value.clone()) for value in (scale, bias, alpha))
        nodes, weights = np.polynomial.hermite_e.hermegauss(16)  # poles at 2.4 i and beyond: exact to 1e-8
        self.nodes, self.log_weights = f64(nodes), f64(weights).log()

    def forward(self, x: Tensor) -> Tensor:
        outputs = self.scale * (x @ TURN.mT) + self.bias
        blurred = outputs.unsqueeze(-1) + BLUR * self.scale.unsqueeze(-1) * self.nodes
        log_experts = -self.alpha.unsqueeze(-1) * torch.log1p(0.5 * blurred.square())
        return -torch.logsumexp(log_experts + self.log_weights, -1).sum(-1)


TURN, SCALE = f64([[0.8, 0.6], [-0.6, 0.8]]), f64([1.2, 0.8])


def blurred_experts() -> Energy:
    return BlurredExperts(SCALE, BIAS, ALPHA)


def orthogonal_data(n: int, seed: int) -> Tensor:
    """Outputs as of ``experts_data``."""
    outputs = experts_data(n, seed) @ experts().filters.detach().mT
    return (outputs / SCALE) @ TURN


# Estimates


def minimum(bound: BoundLoss, x: Tensor) -> None:
    fit(bound, x, steps=40)


def newton(bound: BoundLoss, x: Tensor) -> None:
    """Steps of chains by the truth's Fisher information: whole ones, then 1/2, 1/3, ..., a mean over the chains' noise."""
    information = _fisher(ising())[1]
    parameters = list(bound.parameters())
    for step in range(12):
        bound.zero_grad()
        bound(x).backward()
        move = torch.linalg.solve(information, flat(bound.energy)) / max(1, step - 2)
        with torch.no_grad():
            for parameter, part in zip(parameters, move.split([p.numel() for p in parameters]), strict=True):
                parameter.sub_(part.view_as(parameter))


class Case(NamedTuple):
    loss: Callable[[int, int], Any]  # of rows and seed
    energy: Callable[[], Energy]
    data: Callable[[int, int], Tensor]
    guide: Any = None
    estimate: Callable[[BoundLoss, Tensor], None] = minimum


def weighted(n: int, seed: int) -> MLE:
    return MLE(num_samples=n, seed=seed)


def sliced(n: int, seed: int) -> SlicedScoreMatching:
    return SlicedScoreMatching(2, seed=seed)


def denoising(n: int, seed: int) -> DenoisingScoreMatching:
    return DenoisingScoreMatching(BLUR, seed=seed)


def persistent(n: int, seed: int) -> PCD:
    return PCD(2, kernel=Gibbs, num_chains=n, warmup=20, seed=seed)


CASES = {
    "likelihood, student-t": Case(lambda n, seed: MLE(), experts, experts_data),
    "weights, gaussian": Case(weighted, gaussian, gaussian_data, WIDE),
    "weights, student-t": Case(weighted, experts, experts_data, HEAVY),
    "score, gaussian": Case(lambda n, seed: ScoreMatching(), gaussian, gaussian_data),
    "score, student-t": Case(lambda n, seed: ScoreMatching(), experts, experts_data),
    "sliced, gaussian": Case(sliced, gaussian, gaussian_data),
    "sliced, student-t": Case(sliced, experts, experts_data),
    "denoising, gaussian": Case(denoising, blurred_gaussian, gaussian_data),
    "denoising, student-t": Case(denoising, blurred_experts, orthogonal_data),
    "cd, ising": Case(lambda n, seed: CD(10, kernel=Gibbs, seed=seed), ising, ising_data, None, newton),
    "pcd, ising": Case(persistent, ising, ising_data, None, newton),
}
QUICK = ("denoising, gaussian",)  # the others take up to half a minute
every_case = pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.long) for n in CASES]
)


def values(energy: Energy) -> Tensor:
    return torch.cat([p.detach().flatten() for p in energy.parameters()])


def errors_of(name: str, n: int, spoil: Callable[[BoundLoss], None] | None = None) -> Tensor:
    """Estimates from a start beside the truth, minus the truth, ``(SETS, parameters)``."""
    case, found = CASES[name], []
    for seed in range(SETS):
        energy = case.energy()
        with torch.no_grad():
            for parameter in energy.parameters():
                parameter.add_(0.1)
        bound = case.loss(n, seed)(energy, case.guide)
        if spoil is not None:
            spoil(bound)
        case.estimate(bound, case.data(n, 1000 * n + seed))
        found.append(values(energy) - values(case.energy()))
    return torch.stack(found)


@every_case
def test_errors_shrink_as_the_root_of_the_data_about_the_truth(name: str) -> None:
    require_root_rate({n: errors_of(name, n) for n in SIZES})


def spoil(bound: BoundLoss) -> None:
    """A factor of the loss's first term; of denoising, whose only term it is, of its noise."""
    terms = bound.terms
    if hasattr(bound, "sigma"):
        bound.sigma = 1.5 * bound.sigma  # type: ignore[assignment]
        return

    def wrong(x: Tensor) -> dict[str, Tensor]:
        found = terms(x)
        first = next(iter(found))
        return found | {first: 2 * found[first]}

    bound.terms = wrong  # type: ignore[method-assign]


@every_case
def test_a_loss_with_a_wrong_factor_lands_elsewhere(name: str) -> None:
    off = errors_of(name, SIZES[0], spoil)
    assert p_value(off, torch.zeros_like(off[0])) < FALSE_ALARM
