"""The metric that warm-up begins with: a guess by the chains' gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import ebmppl as eb
from ebmppl.kernels import HMC, NUTS
from ebmppl.kernels.adaptation import secant_variances
from ebmppl.sampling.chains import Chains

VARIANCES = torch.logspace(-2, 2, 20, dtype=torch.float64)


def stiff(x: Tensor) -> Tensor:
    return 0.5 * (x.square() / VARIANCES.to(x)).sum(-1)


def points(chains: int, dimension: int = 20) -> Tensor:
    uniform = torch.rand(chains, dimension, dtype=torch.float64, generator=torch.Generator().manual_seed(chains))
    return 4 * uniform - 2


@pytest.mark.parametrize("chains", [2, 4, 64, 150])
def test_exact_for_independent_gaussians_but_for_the_shrinkage(chains: int) -> None:
    x = points(chains)
    found = secant_variances(x, x / VARIANCES).log()
    log = VARIANCES.log()
    wanted = log.mean() + chains / (chains + 5) * (log - log.mean())
    # differences of a pair that is close cancel up to five digits of float64's sixteen
    assert torch.allclose(found, wanted, rtol=0, atol=1e-10)


def test_one_chain_far_out_is_one_among_many() -> None:
    """Two pairs of 64 know a gradient that is 1e30 times too large; a mean of their logarithms would move by two."""
    x = points(64)
    grad = x / VARIANCES
    clean = secant_variances(x, grad)
    grad[5] *= 1e30
    assert torch.allclose(secant_variances(x, grad), clean, rtol=1e-10)


def test_pairs_that_disagree_are_not_trusted() -> None:
    """Ratios of a coordinate as far apart as coordinates are from one another: half the way, in logarithms."""
    x, gaussian = points(2000, 2), points(2000, 2)
    steep = torch.exp(2 * torch.randn(2000, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    grad = torch.stack([gaussian[:, 0] * steep, x[:, 1]], 1)  # which have nothing to do with the first coordinate
    first, second = secant_variances(x, grad).log()
    ratios = ((x - x.roll(1, 0)) / (grad - grad.roll(1, 0)))[:, 0].abs().log()
    apart = float(ratios.median()) / 2  # both from their mean; the second one's variance is one
    within = (1.4826 * float((ratios - ratios.median()).abs().median())) ** 2
    wanted = apart + 2 * apart**2 / (2 * apart**2 + within) * 2000 / 2005 * apart
    assert within > apart**2
    assert float(first) == pytest.approx(wanted, abs=1e-9)
    assert float(second) == pytest.approx(apart - 2000 / 2005 * apart, abs=1e-9)


def test_coordinates_without_curvature_get_the_others_scale() -> None:
    x = points(64, 3)
    grad = torch.stack([x[:, 0] / 4, torch.ones(64).double(), x[:, 2] / 4], 1)  # the second one is linear
    x[:, 2] = 1.0  # and all chains agree on the third
    assert torch.allclose(secant_variances(x, grad), torch.full((3,), 4.0).double(), rtol=1e-10)
    alike = torch.ones(64, 3).double()
    assert torch.equal(secant_variances(alike, alike), alike[0])
    grad[7, 0] = torch.nan
    assert torch.allclose(secant_variances(x, grad), torch.full((3,), 4.0).double(), rtol=1e-10)


def begun(kernel: NUTS | HMC, x: Tensor) -> Tensor:
    chains = Chains(kernel, x, 0)
    chains.begin_adaptation()
    metric: Tensor = chains.now.tuning.inverse_mass
    assert torch.allclose(chains.now.tuning.factor.square(), metric)
    return metric


def test_what_begins_with_it() -> None:
    """Not what has a metric that was given or stays, nor one chain alone."""
    energy, x = eb.as_energy(stiff, (20,), batched=True), points(64)
    guess = secant_variances(x, x / VARIANCES)
    unit = torch.ones(20).double()
    assert torch.allclose(begun(NUTS(energy), x), guess)
    assert torch.allclose(begun(HMC(energy, num_steps=4), x), guess)
    assert torch.equal(begun(NUTS(energy, inverse_mass_matrix=unit), x), unit)
    assert torch.equal(begun(NUTS(energy, adapt_mass_matrix=False), x), unit)
    assert torch.equal(begun(NUTS(energy), x[:1]), unit)
    dense = Chains(NUTS(energy, full_mass=True), x, 0)
    dense.begin_adaptation()
    assert torch.allclose(dense.now.tuning.inverse_mass, guess.diag())


def test_a_stiff_target_warms_up_in_short_trees() -> None:
    """With the identity at first, the first 35 of 100 draws alone take trees of about a hundred steps."""

    def ticks(metric: Tensor | None) -> int:
        kernel = NUTS(eb.as_energy(stiff, (20,), batched=True), inverse_mass_matrix=metric)
        mcmc = eb.MCMC(kernel, 1, 100, points(64), num_chains=64, seed=2, disable_progbar=True)
        mcmc.run()
        return mcmc.now.tick

    assert 3 * ticks(None) < ticks(torch.ones(20).double())
