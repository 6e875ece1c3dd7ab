"""Annealed Langevin with Metropolis steps: MALA's own steps, the law at each level, acceptance, failures, bad input."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import ebmppl as eb
from ebmppl.errors import SamplingWarning
from ebmppl.sampling.chains import Chains
from ebmppl.score import EnergyGradient, KarrasVE
from tests.score_targets import MIXTURE, DiffusedMixture, normal

FALSE_ALARM = 1e-3  # of all statistical tests of this file together; seeds are fixed
LIMIT = float(stats.norm.isf(FALSE_ALARM / 2 / 18))  # six means at three levels
SIGMAS = [2.0, 1.0, 0.5]
SDE = KarrasVE(SIGMAS[0])
STEP = 0.7  # of the least level, where the smallest variance is 0.35

pytestmark = pytest.mark.usefixtures("one_thread_of_float64")


class MixtureEnergy(nn.Module):
    """Minus the log density of a mixture with noise, and a constant of its own for each level."""

    def __init__(self) -> None:
        super().__init__()
        self.mixture = DiffusedMixture(SDE, *MIXTURE)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return 7.0 * sigma - self.mixture.log_prob(x, sigma)


MODEL = EnergyGradient(MixtureEnergy(), SDE)


def kernel(score: Any = MODEL, sigmas: list[float] | None = None, **settings: Any) -> eb.AnnealedMALA:
    settings = {"steps_per_level": 20, "step_size": STEP, "denoise": False} | settings
    return eb.AnnealedMALA(score, sigmas or SIGMAS, (2,), **settings)


def exact(sigma: float, n: int) -> Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return DiffusedMixture(SDE, *MIXTURE).data().sample((n,)) + sigma * torch.randn(n, 2)


def functions(x: Tensor) -> Tensor:
    return torch.stack([x[:, 0], x[:, 1], x[:, 0] ** 2, x[:, 0] * x[:, 1], x[:, 1] ** 2, (x[:, 0] > 0.5).double()], 1)


def worst_z(found: Tensor, sigma: float) -> float:
    """Of six means, against ten times as many exact draws."""
    f, g = functions(found), functions(exact(sigma, 10 * len(found)))
    return float(((f.mean(0) - g.mean(0)) / (f.var(0) / len(f) + g.var(0) / len(g)).sqrt()).abs().max())


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_the_law_is_exact_at_each_level(levels: int, device: torch.device) -> None:
    """Where the same steps without Metropolis are not.

    Chains begin with the largest level's noise alone; after twenty steps at each level nothing of that is left to be seen.
    """
    sigmas = SIGMAS[:levels]
    eta = STEP * (sigmas[-1] / SIGMAS[-1]) ** 2  # as in the run of all levels
    model = deepcopy(MODEL).to(device)
    adjusted = eb.generate(kernel(model, sigmas, step_size=eta), 4000, seed=1)
    unadjusted = eb.generate(eb.AnnealedLangevin(model, sigmas, (2,), 20, eta, denoise=False), 4000, seed=1)
    assert worst_z(adjusted.cpu(), sigmas[-1]) < LIMIT
    assert worst_z(unadjusted.cpu(), sigmas[-1]) > 2 * LIMIT


def test_its_steps_are_those_of_mala() -> None:
    """On the same random numbers, at both of two levels; the Tweedie mean is that of the last point."""
    x, z, u = normal(6, 2), normal(2, 5, 6, 2, seed=1), torch.rand(2, 5, 6)
    ours = kernel(sigmas=[1.0, 0.5], steps_per_level=5)
    state, tuning = ours.init(x), ours.init_tuning(x)
    rates = []
    for i, sigma in enumerate((1.0, 0.5)):
        theirs = eb.MALA(eb.energies.EnergyAt(MODEL, (2,), sigma), STEP * (sigma / 0.5) ** 2)
        other, own = theirs.init(x), theirs.init_tuning(x)
        state, info = ours.tick(state, tuning, {"normal": z[i, 0], "accept": u[i, 0], "start": x})
        assert torch.equal(state.point, x)
        for k in range(5):
            noise = {"normal": z[i, k], "accept": u[i, k], "start": normal(6, 2, seed=9)}
            state, info = ours.tick(state, tuning, noise)
            other, told = theirs.tick(other, own, noise)
            rates.append(told.acceptance_rate)
            assert bool((info.time == sigma).all())
            if not bool(info.done.all()):
                torch.testing.assert_close(state.point, other.position)
        x = other.position
    assert bool(info.done.all())
    torch.testing.assert_close(ours.position(state), x)
    torch.testing.assert_close(state.point, SIGMAS[1] * normal(6, 2, seed=9))  # the next draw's start
    by_level = torch.stack(rates).view(2, 5, 6).mean(1)
    torch.testing.assert_close(info.acceptance_rate, by_level.mean(0))
    torch.testing.assert_close(info.least_acceptance_rate, by_level.amin(0))
    assert 0.2 < float(by_level.mean()) < 0.9
    assert bool((info.n_steps == 12).all())
    assert not bool(info.diverging.any())


def test_the_last_step_denoises() -> None:
    plain, denoised = (eb.generate(kernel(denoise=how), 20, seed=2) for how in (False, True))
    sigma = torch.full((20,), SIGMAS[-1])
    torch.testing.assert_close(denoised, plain + SIGMAS[-1] ** 2 * MODEL(plain, sigma))


def test_acceptance_is_counted() -> None:
    """Too large a step is seen in the statistics of a run; nothing is left over from one draw to the next."""
    found = {}
    for eta in (0.01, STEP, 20.0):
        mcmc = eb.MCMC(kernel(steps_per_level=5, step_size=eta), 4, 0, num_chains=50, seed=0, disable_progbar=True)
        mcmc.run()
        found[eta] = mcmc.stats()
        assert bool((found[eta]["n_steps"] == 18).all())
    rates = {eta: float(of["acceptance_rate"].mean()) for eta, of in found.items()}
    assert rates[0.01] > 0.98
    assert 0.3 < rates[STEP] < 0.95
    assert rates[20.0] < 0.05
    for of in found.values():
        assert bool((of["least_acceptance_rate"] <= of["acceptance_rate"] + 1e-12).all())
        assert bool((of["acceptance_rate"] <= 1).all())


def broken(lowest: float, highest: float) -> EnergyGradient:
    """NaN in these levels, at points with a positive first coordinate."""

    def energy(x: Tensor, sigma: Tensor) -> Tensor:
        bad = (sigma > lowest) & (sigma < highest) & (x[:, 0] > 0)
        return 0.5 * x.square().sum(1) / (1 + sigma.square()) * torch.where(bad, math.nan, 1.0)

    return EnergyGradient(energy, SDE)


def test_what_is_not_finite_is_rejected_and_told() -> None:
    """At the middle level: chains that stand there stay, and go on at the next level; others do not go there."""
    with pytest.warns(
        SamplingWarning, match=r"draws failed: the score \(or energy\) was not finite at noise level = 1 .*: rows \d"
    ):
        x = eb.generate(kernel(broken(0.9, 1.1)), 200, seed=0)
    assert bool(x.isfinite().all())
    run = Chains(kernel(broken(0.9, 1.1), [1.0]), torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), 0)
    run.advance(1)
    assert torch.equal(run.position()[0], torch.tensor([1.0, 0.0]))
    assert float(run.position()[1, 0]) < 0
    assert run.now.state.failure.tolist()[0] == 1.0
    with pytest.warns(
        SamplingWarning, match=r"at noise level = 0\.5"
    ):  # and with a denoising step that asks for its gradient
        x = eb.generate(kernel(broken(0.1, 0.6), denoise=True), 200, seed=0)
    assert 5 < int(x.isnan().any(1).sum()) < 195


def squares(x: Tensor, sigma: Tensor) -> Tensor:
    return x.square()


class Summed:
    """One energy for all chains, whose gradient is right."""

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return -x

    def energy(self, x: Tensor, sigma: Tensor) -> Tensor:
        return 0.5 * x.square().sum()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: kernel(lambda x, sigma: -x), "a score with an energy, as score.EnergyGradient, got function"),
        (lambda: kernel(sigmas=[1.0, 1.0]), "positive, decreasing sigmas"),
        (lambda: kernel(steps_per_level=0), "a whole steps_per_level >= 1, got 0"),
        (lambda: kernel(step_size=0.0), "a finite step_size > 0, got 0.0"),
        (
            lambda: eb.generate(kernel(EnergyGradient(squares, SDE)), 5),
            r"energies of shape \(5,\), got \(5, 2\)",
        ),
        (lambda: eb.generate(kernel(Summed()), 5), r"energies of shape \(5,\), got .*\(\)"),
    ],
)
def test_bad_input(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
