"""A Pyro model end to end: simulation-based calibration and Geweke's joint test, with NUTS on ``from_pyro``."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import Tensor

import ebmppl as eb
from ebmppl.sampling.chains import Chains

FALSE_ALARM = 1e-3  # of each test of this file, shared among its statistics (Bonferroni); seeds are fixed


def hierarchical(y: Tensor | None = None) -> Tensor:
    """Location and scale with a group effect: real and positive sites, a plate, a loop-free hierarchy."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    tau = pyro.sample("tau", dist.LogNormal(-0.5, 0.5))
    with pyro.plate("group", 4):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        return pyro.sample("y", dist.Normal(theta, 0.7), obs=y)


def counts(y: Tensor | None = None) -> Tensor:
    """Shares on a simplex and an interval-valued thinning rate behind counts."""
    shares = pyro.sample("shares", dist.Dirichlet(torch.tensor([2.0, 1.0, 3.0])))
    rate = pyro.sample("rate", dist.Beta(2.0, 2.0))
    with pyro.plate("cell", 3):
        return pyro.sample("y", dist.Poisson(20 * rate * shares), obs=y)


MODELS: dict[str, Callable[..., Tensor]] = {"hierarchical": hierarchical, "counts": counts}


def _simulate(model: Callable[..., Tensor], n: int) -> tuple[dict[str, Tensor], Tensor]:
    traces = [pyro.poutine.trace(model).get_trace() for _ in range(n)]
    names = [name for name in traces[0].stochastic_nodes if name not in ("y", "group", "cell")]
    return (
        {name: torch.stack([t.nodes[name]["value"] for t in traces]) for name in names},
        torch.stack([t.nodes["y"]["value"] for t in traces]),
    )


def _statistics(values: dict[str, Tensor]) -> Tensor:
    """Columns to rank or to compare: every coordinate of every site, ``(draws, columns)``."""
    return torch.cat([v.reshape(len(v), -1) for v in values.values()], 1)


@pytest.mark.long  # 60 runs, each with a trace of its own
@pytest.mark.parametrize("name", MODELS)
def test_simulation_based_calibration(name: str) -> None:
    """Ranks of the truth among posterior draws are uniform (Talts et al. 2018, algorithm 1)."""
    model, datasets, draws = MODELS[name], 60, 15
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        truth, data = _simulate(model, datasets)
    truths, ranks = _statistics(truth), []
    for i in range(datasets):
        # chains far enough apart in draws to be nearly independent: one draw of each of 15 chains, well after warm-up
        kernel = eb.NUTS(eb.from_pyro(model, data[i]))
        mcmc = eb.MCMC(kernel, 1, 60, num_chains=draws, thinning=10, seed=100 + i, disable_progbar=True)
        mcmc.run()
        ranks.append((_statistics(mcmc.get_samples()) < truths[i]).sum(0))
    table = torch.stack(ranks)  # (datasets, columns), ranks 0 ... draws
    columns = table.shape[1]
    for column in range(columns):
        observed = torch.bincount(table[:, column], minlength=draws + 1).view(4, -1).sum(1)
        p = stats.chisquare(observed.numpy()).pvalue  # 4 bins of 15 expected: the chi-square approximation holds
        assert p > FALSE_ALARM / columns, f"column {column}: ranks {observed.tolist()}"


def _gibbs_of_joint(model: Callable[..., Tensor], steps: int, kernel_of: Callable[[Any], Any]) -> Tensor:
    """Geweke's successive-conditional chain: parameters given data by one NUTS draw, data given parameters."""
    truth, data = _simulate(model, 1)
    y = data[0].clone()
    energy = eb.from_pyro(model, y)
    kernel = kernel_of(energy)
    z = torch.cat([energy._maps[n](v[0]).reshape(-1) for n, v in truth.items()]).unsqueeze(0)
    chains = Chains(kernel, z, seed=17)
    kept = []
    for _ in range(steps):
        chains.advance(1)
        values = energy.constrain(chains.position())
        kept.append(_statistics(values)[0])
        conditioned = pyro.poutine.condition(model, {n: v[0] for n, v in values.items()})
        y.copy_(conditioned())  # the energy's own data, in place
        chains.move(chains.position())
    return torch.stack(kept)


def _geweke_z(model: Callable[..., Tensor], kernel_of: Callable[[Any], Any], steps: int) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(23)
        joint = _gibbs_of_joint(model, steps, kernel_of)
        prior = _statistics(_simulate(model, 4000)[0])
    z = []
    for f in (lambda x: x, lambda x: x**2):
        a, b = f(joint), f(prior)
        batches = a[: len(a) // 40 * 40].view(40, -1, a.shape[1]).mean(1)  # batch means: the chain is autocorrelated
        error = (batches.var(0) / 40 + b.var(0) / len(b)).sqrt()
        z.append((a.mean(0) - b.mean(0)) / error)
    return torch.cat(z)


@pytest.mark.parametrize("name", MODELS)
def test_geweke_joint_distribution(name: str) -> None:
    """Parameters of the successive-conditional chain have their prior's moments (Geweke 2004)."""
    z = _geweke_z(MODELS[name], lambda e: eb.NUTS(e, 0.3, False, False), 1000)
    # 40 batch means: Student-t with about 39 degrees of freedom
    assert float(z.abs().max()) < stats.t.isf(FALSE_ALARM / 2 / len(z), 39)


@pytest.mark.long
def test_geweke_catches_a_wrong_kernel() -> None:
    """NUTS that forgets the log-Jacobian of one site must fail: the test has power."""

    def wrong(energy: Any) -> Any:
        tilted = energy + eb.as_energy(lambda z: z["tau"], dict(energy.sites))
        return eb.NUTS(tilted, 0.3, False, False)

    z = _geweke_z(hierarchical, wrong, 1000)
    assert float(z.abs().max()) > stats.t.isf(FALSE_ALARM / 2 / len(z), 39) + 1
    assert math.isfinite(float(z.abs().max()))
