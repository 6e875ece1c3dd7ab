"""Maximum likelihood against enumeration, closed forms and reference values."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.distributions import constraints

from ebmppl.energies import Energy, Quadratic, as_energy
from ebmppl.kernels import MALA, NUTS, Gibbs
from ebmppl.losses import MLE
from ebmppl.models import Ising
from ebmppl.partition import Exact
from tests.discrete import exact_draws, states_of
from tests.exact_gradients import (
    DISCRETE,
    F64,
    FALSE_ALARM,
    data_of,
    enumerated,
    flat,
    gradients,
    p_value,
    random,
    rbm,
    references,
)


class Gamma(Energy):
    """E = a x - (s - 1) log x over positive numbers, with log Z = log Gamma(s) - s log a."""

    def __init__(self, shape: float, rate: float) -> None:
        super().__init__((1,), constraints.positive)
        self.shape, self.rate = (nn.Parameter(torch.tensor(v, dtype=F64)) for v in (shape, rate))

    def forward(self, x: Tensor) -> Tensor:
        return (self.rate * x - (self.shape - 1) * x.log()).sum(-1)

    @property
    def log_z(self) -> Tensor:
        return torch.lgamma(self.shape) - self.shape * self.rate.log()


def quadratic() -> Quadratic:
    A = random(3, 3, seed=1)
    return Quadratic(nn.Parameter(0.5 * A @ A.T + torch.eye(3, dtype=F64)), nn.Parameter(random(3, seed=2)))


def closed_form(energy: Energy, x: Tensor) -> Tensor:
    energy.zero_grad()
    assert energy.log_z is not None
    (energy(x).mean() + energy.log_z).backward()
    found = flat(energy)
    energy.zero_grad()
    return found


@pytest.mark.parametrize("name", DISCRETE)
def test_exact_value_and_gradient_are_those_of_enumeration(name: str) -> None:
    energy = DISCRETE[name]()
    x = data_of(energy)
    value, gradient = enumerated(energy, x)
    found = MLE(Exact())(energy)(x)
    found.backward()
    assert found.item() == pytest.approx(value.item(), abs=1e-10)
    torch.testing.assert_close(flat(energy), gradient, rtol=0, atol=1e-10)


def test_a_closed_form_is_used_without_being_asked_for() -> None:
    energy, x = quadratic(), random(9, 3, seed=3)
    value = MLE()(energy)(x)
    normal = torch.distributions.MultivariateNormal(
        torch.linalg.solve(energy.A + energy.A.T, energy.b), precision_matrix=energy.A + energy.A.T
    )
    assert value.item() == pytest.approx(-normal.log_prob(x).mean().item(), abs=1e-12)


@pytest.mark.data
def test_value_and_gradients_of_the_reference(shared_data: Path) -> None:
    known = json.loads((shared_data / "exact" / "losses.json").read_text())
    P, m, x = (torch.tensor(known[name], dtype=F64) for name in ("P", "m", "data"))
    P.requires_grad_()
    m.requires_grad_()
    made = P / 2, P @ m, m @ P @ m / 2
    energy = Quadratic(*(nn.Parameter(t.detach().clone()) for t in made))
    value = MLE()(energy)(x)
    value.backward()
    assert value.item() == pytest.approx(known["nll"], abs=1e-8)
    of = torch.autograd.grad(made, (m, P), [energy.A.grad, energy.b.grad, energy.constant.grad])
    torch.testing.assert_close(of[0], torch.tensor(known["nll_grad_m"], dtype=F64), rtol=0, atol=1e-8)
    torch.testing.assert_close((of[1] + of[1].T) / 2, torch.tensor(known["nll_grad_P"], dtype=F64), rtol=0, atol=1e-8)


@pytest.mark.data
def test_gradients_of_the_reference_boltzmann_machines(shared_data: Path) -> None:
    known = references(shared_data)
    known.pop("dbm 0")  # its data lack hidden units
    for kind, (energy, x, wanted) in known.items():
        value = MLE(Exact())(energy)(x)
        value.backward()
        for name, gradient in wanted.items():
            torch.testing.assert_close(getattr(energy, name).grad, gradient, rtol=0, atol=1e-8, msg=kind)
    assert len(known) == 6


@pytest.mark.parametrize("name", DISCRETE)
def test_gradients_by_chains_are_the_exact_ones(name: str) -> None:
    energy = DISCRETE[name]()
    x = data_of(energy)
    bound = MLE(kernel=Gibbs, num_chains=100, warmup=15, draws=5, seed=1)(energy)
    assert p_value(gradients(bound, x, 25), enumerated(energy, x)[1]) > FALSE_ALARM


def test_too_short_a_warm_up_shows() -> None:
    energy = rbm()
    x = data_of(energy)
    bound = MLE(kernel=Gibbs, num_chains=400, warmup=0, draws=1, seed=1)(energy)
    assert p_value(gradients(bound, x, 25), enumerated(energy, x)[1]) < FALSE_ALARM


@pytest.mark.parametrize(("kernel", "draws"), [(MALA, 10), pytest.param(NUTS, 4, marks=pytest.mark.long)])
def test_chains_of_a_constrained_energy_give_its_gradient(kernel: type, draws: int) -> None:
    energy = Gamma(2.5, 1.5)
    x = random(10, 1, seed=4).exp()
    bound = MLE(kernel=kernel, num_chains=50, warmup=40, draws=draws, seed=2)(energy)
    assert p_value(gradients(bound, x, 8), closed_form(energy, x)) > FALSE_ALARM
    told = bound.diagnostics()
    assert 0.3 < told["acceptance"] <= 1
    assert 0 < told["gap_error"] < 1


def proposal() -> torch.distributions.Distribution:
    return torch.distributions.Normal(torch.zeros(3, dtype=F64), 1.5 * torch.ones(3, dtype=F64))


def programme() -> None:
    pyro.sample("x", dist.Normal(torch.zeros(3, dtype=F64), 1.5 * torch.ones(3, dtype=F64)).to_event(1))


def test_weighted_gradients_and_the_partition_function_are_unbiased() -> None:
    energy, x = quadratic(), random(9, 3, seed=3)
    bound = MLE(num_samples=4000, seed=3)(energy, proposal())
    # the bias of 1/ESS is a tenth of the standard error of the mean of 40
    assert p_value(gradients(bound, x, 40), closed_form(energy, x)) > FALSE_ALARM
    exact = MLE()(energy)(x)
    ratios = torch.tensor([math.exp(bound(x).item() - exact.item()) for _ in range(100)], dtype=F64)
    assert p_value(ratios[:, None], torch.ones(1, dtype=F64)) > FALSE_ALARM
    assert p_value(ratios[:, None], torch.tensor([1.05], dtype=F64)) < FALSE_ALARM
    told = bound.diagnostics()
    assert 400 < told["ess"] < 4000
    assert told["log_z_error"] == pytest.approx(ratios.std().item(), rel=0.4)


def test_a_pyro_program_is_a_proposal_as_its_distribution_is() -> None:
    energy, x = quadratic(), random(9, 3, seed=3)
    by_program = MLE(num_samples=50, seed=3)(energy, programme)
    torch.testing.assert_close(by_program(x), MLE(num_samples=50, seed=3)(energy, proposal())(x))


@pytest.mark.parametrize("rows", [400, 6400])
def test_estimates_scatter_about_the_truth_by_the_fisher_information(rows: int) -> None:
    """So the error shrinks as n^(-1/2): n (t - t0)' F (t - t0) is chi-square at each n."""
    truth = Ising((2, 2), random(4, seed=9, scale=0.3), 0.1, periodic=False)
    _, information = _fisher(truth)
    statistic, sets = 0.0, 20
    for seed in range(sets):
        x = exact_draws(truth, rows, seed).to(F64)
        fitted = Ising((2, 2), torch.zeros(4, dtype=F64), 0.0, periodic=False)
        bound = MLE(Exact())(fitted)
        optim = torch.optim.LBFGS(bound.parameters(), max_iter=60, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

        def closure(bound: MLE = bound, optim: torch.optim.Optimizer = optim, x: Tensor = x) -> Tensor:
            optim.zero_grad()
            value = bound(x)
            value.backward()
            return value

        optim.step(closure)
        off = torch.cat(
            [(a - b).detach().flatten() for a, b in zip(fitted.parameters(), truth.parameters(), strict=True)]
        )
        statistic += float(rows * off @ information @ off)
    p = stats.chi2.cdf(statistic, sets * len(information))
    assert FALSE_ALARM / 2 < p < 1 - FALSE_ALARM / 2


def _fisher(energy: Energy) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the energy's gradients in its parameters, under the model."""
    states = states_of(energy).to(F64)
    rows = []
    for state in states:
        energy.zero_grad()
        energy(state[None]).sum().backward()
        rows.append(flat(energy))
    energy.zero_grad()
    p, g = torch.softmax(-energy(states).detach(), 0), torch.stack(rows)
    mean = p @ g
    return mean, (p[:, None] * g).T @ g - torch.outer(mean, mean)


def test_bad_input() -> None:
    real = as_energy(lambda x: 0.5 * (x**2).sum(-1), (2,))
    with pytest.raises(ValueError, match="expected an energy with log_z, got FunctionEnergy"):
        MLE()(real)
    with pytest.raises(ValueError, match="expected at most one of log_z, kernel, num_samples, got log_z and kernel"):
        MLE(Exact(), kernel=Gibbs)
    with pytest.raises(ValueError, match=r"log_z with a method log_z\(energy\)"):
        MLE(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected the proposal"):
        MLE(num_samples=3)(real)
    with pytest.raises(ValueError, match="expected noise over points of shape"):
        MLE(num_samples=3)(real, proposal())
    with pytest.raises(ValueError, match="expected a discrete energy"):
        MLE(Exact())(real)(torch.zeros(1, 2))
    with pytest.raises(ValueError, match="finite discrete support"):
        MLE(kernel=Gibbs)(real)
    with pytest.raises(ValueError, match="draws >= 1"):
        MLE(kernel=MALA, draws=0)
    with pytest.raises(ValueError, match=r"expected data of site 'x' in .*, got -1.0 at row 1, coordinate \(0,\)"):
        MLE()(Gamma(2.0, 1.0))(torch.tensor([[1.0], [-1.0]], dtype=F64))
