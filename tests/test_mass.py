"""Mass matrices that are dense within groups of sites, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import ebmppl as eb
from ebmppl.energies import Energy
from ebmppl.kernels import HMC, MALA, NUTS, Kernel

SITES = {"a": (2,), "b": (), "c": (3,)}
KERNELS: dict[str, Callable[..., Kernel]] = {"NUTS": NUTS, "HMC": partial(HMC, num_steps=8), "MALA": MALA}


def covariance() -> Tensor:
    """Of a, b, c packed in this order: everything is correlated with everything."""
    root = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return root @ root.T / 6 + 0.3 * torch.eye(6, dtype=torch.float64)


def gaussian() -> Energy:
    precision = torch.linalg.inv(covariance())

    def fn(sites: dict[str, Tensor]) -> Tensor:
        x = torch.cat([sites["a"], sites["b"].unsqueeze(-1), sites["c"]], -1)
        return 0.5 * ((x @ precision) * x).sum(-1)

    return eb.as_energy(fn, SITES, batched=True)


def adapted(kernel: Kernel) -> eb.MCMC:
    start = torch.zeros(64, 6, dtype=torch.float64)
    mcmc = eb.MCMC(kernel, 100, 300, start, num_chains=64, seed=1, disable_progbar=True)
    mcmc.run()
    return mcmc


@pytest.mark.parametrize("name", KERNELS)
def test_groups_are_dense_and_the_rest_is_diagonal(name: str) -> None:
    groups = [("c", "b")]  # of any order; a has no group
    mcmc = adapted(KERNELS[name](gaussian(), full_mass=groups))
    found, wanted = mcmc.now.tuning.inverse_mass, covariance()
    inside = torch.zeros(6, 6, dtype=torch.bool)
    inside[2:, 2:] = True
    inside.fill_diagonal_(True)
    assert bool((found[~inside] == 0).all())
    # 64 x 100 draws or more in the last window, of which MALA's 2,000 effective ones are sure; 6 standard errors
    scale = torch.outer(wanted.diagonal(), wanted.diagonal()).sqrt()
    assert float(((found - wanted) / scale)[inside].abs().max()) < 6 * math.sqrt(2 / 2000)
    assert float((found - wanted)[2:, 2:].fill_diagonal_(0).abs().max()) < float(wanted[2:, 2:].abs().max())
    factor = mcmc.now.tuning.factor
    assert torch.allclose(factor @ factor.T, found)


def test_one_group_of_all_sites_is_a_full_mass_matrix() -> None:
    one, full = (adapted(NUTS(gaussian(), full_mass=kind)) for kind in ([("a", "b", "c")], True))
    assert torch.equal(one.now.tuning.inverse_mass, full.now.tuning.inverse_mass)


def test_groups_of_single_numbers_are_a_diagonal_one() -> None:
    """Of scalar sites; the same draws but for rounding."""
    energy = partial(eb.as_energy, lambda s: 0.5 * (s["u"] ** 2 + 4 * s["v"] ** 2), {"u": (), "v": ()}, batched=True)
    start = torch.zeros(8, 2, dtype=torch.float64)
    found = []
    for kind in ([("u",), ("v",)], False):
        mcmc = eb.MCMC(NUTS(energy(), full_mass=kind), 20, 30, start, num_chains=8, seed=1, disable_progbar=True)
        mcmc.run()
        found.append(mcmc.get_samples()["u"])
    assert torch.allclose(*found, atol=1e-8)


def test_the_moments_are_right() -> None:
    """One-step exactness of dense metrics is a kernel law; here the whole run's variances, 64 chains, 6 standard errors."""
    draws = adapted(NUTS(gaussian(), full_mass=[("a",), ("b", "c")])).get_samples()
    x = torch.cat([draws["a"], draws["b"].unsqueeze(-1), draws["c"]], -1)
    wanted = covariance().diagonal()
    assert float((x.var(0) / wanted - 1).abs().max()) < 6 * math.sqrt(2 / 3000)


BAD: list[tuple[Any, str]] = [
    ([("a", "z")], r"full_mass names unknown sites \['z'\]; the sites are \['a', 'b', 'c'\]"),
    ([("a",), ("a", "b")], "every site in one group of full_mass"),
    (["a", "b"], "a list of tuples of site names, got"),
    ("a", "a list of tuples of site names, got 'a'"),
]


@pytest.mark.parametrize(("groups", "match"), BAD)
@pytest.mark.parametrize("name", KERNELS)
def test_bad_groups_are_refused(name: str, groups: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        KERNELS[name](gaussian(), full_mass=groups)


@pytest.mark.parametrize("name", KERNELS)
def test_a_full_mass_matrix_too_large_for_memory_is_refused_with_its_size(name: str) -> None:
    """Four times 10^6 x 10^6 numbers of 4 bytes are 14,901 GiB."""
    energy = eb.as_energy(lambda x: 0.5 * (x**2).sum(-1), (1_000_000,), batched=True)
    with pytest.raises(ValueError, match=r"fits in the memory of .* GiB.*got 1000000 x 1000000, 14901.2 GiB"):
        KERNELS[name](energy, full_mass=True)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("full", [True, False])
def test_a_given_inverse_mass_matrix_is_the_one_that_is_used(name: str, full: bool) -> None:
    """With the target's own covariance and no adaptation the leapfrog sees a standard normal: the same path, mapped."""
    given = covariance() if full else covariance().diagonal()
    root = torch.linalg.cholesky(covariance()) if full else torch.diag(given.sqrt())
    precision = torch.linalg.inv(covariance()) if full else torch.diag(1 / given)
    stretched = eb.as_energy(lambda x: 0.5 * ((x @ precision) * x).sum(-1), (6,), batched=True)
    round_one = eb.as_energy(lambda x: 0.5 * x.square().sum(-1), (6,), batched=True)
    options = {"step_size": 0.3, "adapt_step_size": False, "adapt_mass_matrix": False, "full_mass": full}
    start = torch.ones(8, 6, dtype=torch.float64)
    draws = []
    for energy, x, mass in [(stretched, start @ root.T, given), (round_one, start, None)]:
        kernel = KERNELS[name](energy, inverse_mass_matrix=mass, **options)
        mcmc = eb.MCMC(kernel, 20, 0, x, num_chains=8, seed=1, disable_progbar=True)
        mcmc.run()
        draws.append(mcmc.get_samples()["x"])
    assert torch.allclose(draws[0], draws[1] @ root.T, rtol=1e-9, atol=1e-9)  # rounding of 20 draws


@pytest.mark.parametrize(
    ("given", "full", "message"),
    [
        (torch.ones(5), False, r"expected inverse_mass_matrix as a tensor of shape \(6,\).*got \(5,\)"),
        (torch.ones(6), True, r"of shape \(6, 6\).*got \(6,\)"),
        (torch.eye(6), False, r"of shape \(6,\).*got \(6, 6\)"),
        ([1.0] * 6, False, r"of shape \(6,\).*got list"),
        (torch.tensor([1.0, 1, 1, 1, 1, 0]), False, "positive definite"),
        (torch.tensor([1.0, 1, 1, 1, 1, math.nan]), False, "positive definite"),
        (-torch.eye(6), True, "positive definite"),
        (torch.eye(6) + torch.ones(6, 6).triu(1), True, "positive definite"),
    ],
)
@pytest.mark.parametrize("name", KERNELS)
def test_a_bad_inverse_mass_matrix_is_refused(name: str, given: Any, full: bool, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KERNELS[name](gaussian(), full_mass=full, inverse_mass_matrix=given)


def test_groups_that_make_too_large_a_matrix_are_refused() -> None:
    huge = eb.as_energy(lambda s: s["a"].square().sum(-1) + s["b"].square().sum(-1), {"a": (2_000_000,), "b": (2,)})
    with pytest.raises(ValueError, match=r"fits in the memory of .* GiB; .* got 2000002 x 2000002, [\d.]+ GiB"):
        NUTS(huge, full_mass=[("b",)])
