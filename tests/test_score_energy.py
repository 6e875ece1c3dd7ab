"""A score as an energy for Langevin, and a conservative score's energy at one time for kernels that accept by Metropolis."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import MCMC as PyroMCMC
from scipy import stats
from torch import Tensor, nn

import ebmppl as eb
from ebmppl.energies import EnergyAt, Gaussian, ScoreEnergy
from ebmppl.errors import EnergyError, SamplingWarning
from ebmppl.sampling.chains import Chains
from ebmppl.score import VP, ClassConditional, ClassifierGuidance, EnergyGradient, LikelihoodGuidance, Replacement
from tests.score_targets import MIXTURE, PARAMETERS, DiffusedMixture, sdes

F64 = torch.float64
FALSE_ALARM = 1e-3  # of all statistical tests of this file together; seeds are fixed
LIMIT = float(stats.norm.isf(FALSE_ALARM / 2 / 40))  # of at most 40 z-scores
P = torch.tensor([[2.0, 0.6], [0.6, 1.0]], dtype=F64)
SCORE = lambda x, t: -x
ETA = 1.2  # large, so that the stationary law is far from the density


pytestmark = pytest.mark.usefixtures("one_thread_of_float64")


def linear(x: Tensor, t: Tensor) -> Tensor:
    """The score of N(0, P^-1) at time 0.5, and far from it elsewhere."""
    return -(x @ P) * (2 * t).unsqueeze(1)


def learned() -> ScoreEnergy:
    return ScoreEnergy(linear, (2,), t=0.5)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def moved(kernel: eb.kernels.Kernel, x: Tensor, ticks: int = 1) -> Tensor:
    run = Chains(kernel, x, 3)
    run.advance(ticks)
    return run.position()


def z_of_covariance(x: Tensor, covariance: Tensor) -> float:
    """The largest z-score of the second moments of points with mean 0."""
    products = x.unsqueeze(2) * x.unsqueeze(1)
    return float(((products.mean(0) - covariance) / (products.std(0) / math.sqrt(len(x)))).abs().max())


@pytest.mark.parametrize("ticks", [1, 5])
def test_langevin_of_a_score_keeps_its_own_stationary_law(ticks: int) -> None:
    """Covariance P^-1 (I - eta P / 4)^-1: chains that begin there stay there; those that begin at P^-1 leave it."""
    law = torch.linalg.inv(P) @ torch.linalg.inv(torch.eye(2) - ETA * P / 4)
    for start, stays in ((law, True), (torch.linalg.inv(P), False)):
        x = normal(20_000, 2, seed=ticks) @ torch.linalg.cholesky(start).mT
        assert (z_of_covariance(moved(eb.Langevin(learned(), ETA), x, ticks), start) < LIMIT) == stays


def run(kernel: eb.kernels.Kernel, draws: int = 30, **options: Any) -> eb.MCMC:
    mcmc = eb.MCMC(kernel, draws, 10, num_chains=6, seed=1, disable_progbar=True, **options)
    mcmc.run()
    return mcmc


def test_the_draws_are_those_of_the_energy() -> None:
    """The energy's values are used for nothing but statistics, where they are not known."""
    of_score, of_energy = (run(eb.Langevin(e, ETA)) for e in (learned(), Gaussian(torch.zeros(2), torch.linalg.inv(P))))
    torch.testing.assert_close(of_score.get_samples()["x"], of_energy.get_samples()["x"], rtol=1e-10, atol=1e-10)
    found = of_score.stats()
    assert all(bool(found[name].isnan().all()) for name in ("energy", "lp", "energy_error"))
    assert not bool(found["diverging"].any())
    assert bool((found["acceptance_rate"] == 1).all())
    assert set(of_score.to_arviz()["posterior"].dims) >= {"chain", "draw"}


def test_of_the_posterior_of_a_score_and_a_likelihood() -> None:
    """Sums and tempering of a score are such energies, too."""
    likelihood = Gaussian(torch.ones(2), torch.eye(2))
    whole = 0.5 * learned() + likelihood
    assert not whole.has_values
    exact = 0.5 * Gaussian(torch.zeros(2), torch.linalg.inv(P)) + likelihood
    found, wanted = (run(eb.Langevin(e, 0.3)).get_samples()["x"] for e in (whole, exact))
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


MASK = torch.tensor([True, False])


@pytest.mark.parametrize(
    ("score", "event", "message"),
    [
        (
            Replacement(SCORE, VP(), (2,), MASK, torch.zeros(2)),
            (2, 2),
            r"a mask of the points' shape \(2, 2\), got \(2,\)",
        ),
        (LikelihoodGuidance(SCORE, lambda x, t: x.sum(1).round()), (2,), "a log-likelihood .* that changes in steps"),
        (ClassifierGuidance(SCORE, SCORE, 9), (2,), r"labels in 0 ... 1, got \[9\]"),
    ],
)
def test_a_conditional_score_looks_at_what_it_is_given(score: nn.Module, event: tuple[int, ...], message: str) -> None:
    """As under the kernels of scores, instead of broadcasting or leaving the guidance out."""
    with pytest.raises(ValueError, match=message):
        run(eb.Langevin(ScoreEnergy(score, event, t=0.1), 0.1))


def test_a_score_given_something_by_row_is_no_energy() -> None:
    given = ClassConditional(lambda x, t, y: y.unsqueeze(1) - x, torch.arange(6.0))
    with pytest.raises(ValueError, match="given the same for all points, got one given 6 rows"):
        ScoreEnergy(given, (2,), t=0.1)


def test_under_pyros_mcmc() -> None:
    pyro.set_rng_seed(0)
    start = {"x": torch.zeros(4000, 2)}
    theirs = PyroMCMC(
        eb.Langevin(learned(), ETA), num_samples=1, warmup_steps=30, initial_params=start, disable_progbar=True
    )
    theirs.run()
    law = torch.linalg.inv(P) @ torch.linalg.inv(torch.eye(2) - ETA * P / 4)  # but for (1 - eta P / 2)^60
    assert z_of_covariance(theirs.get_samples()["x"][0], law) < LIMIT


@pytest.mark.long
def test_compiled_draws_equal_eager_ones() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled = run(eb.Langevin(learned(), ETA), backend="inductor").get_samples()["x"]
    torch.testing.assert_close(compiled, run(eb.Langevin(learned(), ETA)).get_samples()["x"], rtol=1e-9, atol=1e-9)


def test_a_network_that_changed_is_noticed() -> None:
    net = nn.Linear(2, 2, bias=False)
    nn.init.eye_(net.weight)
    mcmc = run(eb.Langevin(ScoreEnergy(lambda x: -net(x), (2,)), 0.1), 5)
    mcmc.run(num_samples=2)  # nothing is
    with torch.no_grad():
        net.weight.mul_(2.0)
    with pytest.warns(SamplingWarning, match="the energy is another one"):
        mcmc.run(num_samples=2)


def test_a_score_that_breaks_down_is_counted_and_not_followed() -> None:
    def broken(x: Tensor) -> Tensor:
        return torch.where((x[:, :1] > 1.5), math.nan, -x)

    mcmc = run(eb.Langevin(ScoreEnergy(broken, (2,)), 0.5), 200, initial_params=torch.zeros(6, 2))
    x, bad = mcmc.get_samples(group_by_chain=True)["x"], mcmc.stats()["diverging"]
    assert bool(bad.any())
    assert bool((x[..., 0] <= 1.5).all())
    stays = (x[:, 1:] == x[:, :-1]).all(2)
    assert torch.equal(stays, bad[:, 1:])


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda x, t: x[:, :1], r"a score of shape \(6, 2\) .* got \(6, 1\)"),
        (lambda x, t: x - x.mean(0), "mixes the rows of a batch"),
        (lambda x, t: x + torch.randn_like(x), "without random numbers inside"),
        (lambda x, t: x.float(), r"a gradient of shape \(6, 2\), torch.float64 .* got .*torch.float32"),
        (
            lambda x, t: torch.where(x[:, :1] > 1.9, math.nan, -x),
            r"a finite gradient .* 1 of 6 that are not; chains: 5",
        ),
        (lambda x: x, r"the energy failed at points of shape \(6, 2\).*TypeError"),
        (lambda x, t: x * VP().marginal(t + 0.7)[1].unsqueeze(1), r"times in \[0, 1\], got 1.2"),
    ],
)
def test_a_score_that_breaks_the_contract(score: Callable[..., Tensor], message: str) -> None:
    with pytest.raises(EnergyError, match=message):
        run(eb.Langevin(ScoreEnergy(score, (2,), t=0.5), 0.1), initial_params=torch.linspace(1, 2, 12).view(6, 2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: eb.MALA(learned()), r"values are known for MALA, got a score's .*\(energies.EnergyAt\)"),
        (lambda: eb.HMC(0.5 * learned()), "values are known for HMC, got a score's"),
        (lambda: eb.NUTS(learned() + Gaussian(torch.zeros(2), P)), "values are known for NUTS, got a score's"),
        (lambda: eb.ParallelTempering(eb.Langevin(learned(), 0.1)), "values are known for ParallelTempering, got"),
        (lambda: eb.Blocks(learned(), {"x": eb.HMC}), "values are known for Blocks, got"),
        (lambda: learned()(torch.zeros(3, 2)), "got a score, of which the gradient alone is known"),
        (lambda: ScoreEnergy("s", (2,)), "a callable score, got str"),  # type: ignore[arg-type]
        (lambda: ScoreEnergy(learned(), (2,)), "a callable score, got ScoreEnergy"),
        (lambda: ScoreEnergy(linear, (2,), math.inf), "a finite time t, got inf"),
        (lambda: EnergyAt(3, (2,), 0.1), "a model with energies .* got int"),
        (lambda: EnergyAt(linear, (2,), "now"), "a finite time t, got 'now'"),  # type: ignore[arg-type]
        (lambda: EnergyAt(linear, (2,), 0.1)(torch.zeros(3, 2)), r"energies of shape \(3,\), got \(3, 2\)"),
    ],
)
def test_bad_input(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# The energy of a conservative score.

SDE = sdes(PARAMETERS)["vp"]
TIME = 0.15


class MixtureEnergy(nn.Module):
    """Minus the log density of a diffused mixture, with a constant of its own for each time."""

    def __init__(self) -> None:
        super().__init__()
        self.mixture = DiffusedMixture(SDE, *MIXTURE)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return 7.0 * t - self.mixture.log_prob(x, t)


MODEL = EnergyGradient(MixtureEnergy(), SDE)


def at(t: float = TIME) -> EnergyAt:
    return EnergyAt(MODEL, (2,), t)


def diffused(n: int) -> Tensor:
    torch.manual_seed(5)
    x = DiffusedMixture(SDE, *MIXTURE).data().sample((n,))
    return SDE.perturb(x, torch.full((n,), TIME), torch.randn(n, 2))


def test_the_energy_at_a_time_is_the_densitys() -> None:
    x, t = normal(4, 5, 2), torch.full((20,), TIME)
    value, grad = at().value_and_grad(x)
    torch.testing.assert_close(value, 7 * TIME - MODEL.network.mixture.log_prob(x.view(20, 2), t).view(4, 5))
    torch.testing.assert_close(grad, -MODEL(x.view(20, 2), t).view(4, 5, 2))
    assert at().has_values
    assert eb.energies.EnergyAt(MODEL.energy, (2,), TIME)(x[0]).equal(value[0])  # the callable itself


def functions(x: Tensor) -> Tensor:
    return torch.stack([x[:, 0], x[:, 1], x[:, 0] ** 2, x[:, 0] * x[:, 1], x[:, 1] ** 2, (x[:, 0] > 0.3).double()], 1)


def worst_change(kernel: eb.kernels.Kernel, x: Tensor) -> float:
    """The largest z-score of the changes of six means, of chains that begin at exact draws."""
    change = functions(moved(kernel, x)) - functions(x)
    return float((change.mean(0) / (change.std(0) / math.sqrt(len(x)))).abs().max())


EXACT: dict[str, Callable[[Any], eb.kernels.Kernel]] = {
    "mala": lambda e: eb.MALA(e, step_size=0.5),
    "hmc": lambda e: eb.HMC(e, step_size=0.6, num_steps=3),
}


@pytest.mark.parametrize("name", EXACT)
def test_metropolis_steps_leave_the_density_of_that_time(name: str) -> None:
    assert worst_change(EXACT[name](at()), diffused(20_000)) < LIMIT


def test_steps_without_metropolis_or_at_another_time_do_not() -> None:
    x = diffused(20_000)
    assert worst_change(eb.Langevin(at(), 0.5), x) > LIMIT
    assert worst_change(eb.MALA(at(0.3), step_size=0.5), x) > LIMIT
