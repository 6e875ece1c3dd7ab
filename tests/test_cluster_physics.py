"""Cluster kernels and Gibbs on the two-dimensional Ising model: Kaufman's energy and specific heat, Yang's magnetisation, and how
fast they forget at the critical point."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import arviz as az
import numpy as np
import pytest
import torch
from torch import Tensor

import ebmppl as eb
from ebmppl.models import Ising
from ebmppl.sampling.chains import Chains
from tests.ising_exact import CRITICAL_BETA, kaufman, yang_magnetisation

ERRORS = 4.0  # Monte Carlo errors of 64 chains: a false alarm of 2e-4 for each number, by Student's t
CHAINS = 64


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _start(length: int, chains: int) -> Tensor:
    return torch.ones(chains, length, length, dtype=torch.int8)


def _energies(kernel: eb.kernels.Kernel, length: int, burn_in: int, draws: int) -> Tensor:
    """Of independent chains, ``(chains, draws)``, as pure numbers: beta times the energy."""
    chains, infos = Chains(kernel, _start(length, CHAINS), seed=length), list[Tensor]()
    chains.advance(burn_in)
    chains.advance(draws, observe=lambda info: infos.append(info.energy))
    return torch.stack(infos, 1).double()


def _mean(of_chains: Tensor) -> tuple[float, float]:
    return float(of_chains.mean()), float(of_chains.std() / len(of_chains) ** 0.5)


def _jackknife(x: Tensor, statistic: Callable[[Tensor], Tensor]) -> tuple[float, float]:
    """A statistic of all chains, and its standard error from leaving out each of them."""
    n = len(x)
    without = torch.stack([statistic(torch.cat([x[:i], x[i + 1 :]])) for i in range(n)])
    return float(statistic(x)), float(((without - without.mean()).square().sum() * (n - 1) / n).sqrt())


def _off(kernel: eb.kernels.Kernel, length: int, beta: float, burn_in: int, draws: int) -> tuple[float, float]:
    """Energy and specific heat per spin minus Kaufman's, in Monte Carlo errors."""
    energy = _energies(kernel, length, burn_in, draws)
    exact, spins = kaufman(length, beta), length**2
    mean, error = _mean(energy.mean(1) / (beta * spins))
    heat, heat_error = _jackknife(energy, lambda e: (e - e.mean()).square().mean() / spins)
    return (mean - exact.energy) / error, (heat - exact.specific_heat) / heat_error


LENGTHS_AND_TEMPERATURES = [
    pytest.param(length, relative, marks=() if (length, relative) == (8, 1.0) else pytest.mark.long)
    for length in (8, 16, 32)
    for relative in (0.9, 1.0, 1.1)
]


@pytest.mark.parametrize(("length", "relative"), LENGTHS_AND_TEMPERATURES)
@pytest.mark.parametrize("kernel", [eb.SwendsenWang, eb.Wolff, eb.Gibbs])
def test_energy_and_specific_heat_are_kaufmans(kernel: Any, length: int, relative: float) -> None:
    """From all spins up, after over 20 times to forget: 100 transitions, 1000 where single clusters are small.

    Gibbs takes about 13 sweeps at L = 8, and by L^2.17 60 and 270 at L = 16 and 32.
    """
    beta = relative * CRITICAL_BETA
    burn_in, draws = (1000, 2000) if kernel is eb.Wolff and length > 8 else (100, 400)
    if kernel is eb.Gibbs:
        burn_in, draws = {8: (300, 1000), 16: (1300, 4000), 32: (5500, 16000)}[length]
    off = _off(kernel(beta * Ising((length, length), 1.0)), length, beta, burn_in, draws)
    assert max(map(abs, off)) < ERRORS


@pytest.mark.parametrize(("kernel", "burn_in", "draws"), [(eb.SwendsenWang, 100, 400), (eb.Gibbs, 300, 1000)])
def test_half_a_percent_of_temperature_is_noticed(kernel: Any, burn_in: int, draws: int) -> None:
    """The power of the test above."""
    energy, _ = _off(kernel(Ising((8, 8), 1.005 * CRITICAL_BETA)), 8, CRITICAL_BETA, burn_in, draws)
    assert abs(energy) > ERRORS


@pytest.mark.parametrize("beta", [0.5, pytest.param(0.47, marks=pytest.mark.long)])
@pytest.mark.parametrize("kernel", [eb.SwendsenWang, eb.Wolff])
def test_magnetisation_below_the_critical_temperature_is_yangs(kernel: Any, beta: float) -> None:
    """A finite lattice's differs by about exp(-L / xi), and xi is at most 4.4 at these temperatures: below 1e-6."""
    length = 32 if beta == 0.5 else 64
    chains, means = Chains(kernel(Ising((length, length), beta)), _start(length, CHAINS), seed=1), list[Tensor]()
    chains.advance(20)
    for _ in range(60 if length == 32 else 200):
        chains.advance(1)
        means.append(chains.position().flatten(1).float().mean(1).abs())
    mean, error = _mean(torch.stack(means, 1).double().mean(1))
    assert abs(mean - yang_magnetisation(beta)) < ERRORS * error
    assert error < 2e-3


def _times(kernel: eb.kernels.Kernel, start: Tensor, draws: int) -> tuple[float, float, float]:
    """Draws over effective draws (1 + 2 sum of autocorrelations) of the energy and of |M|; sweeps per draw."""
    chains, energy, magnetisation, size = Chains(kernel, start, seed=2), list[Tensor](), list[Tensor](), list[Tensor]()

    def observe(info: Any) -> None:
        energy.append(info.energy)
        size.append(getattr(info, "cluster_size", torch.full((len(start),), start[0].numel())).double())

    for _ in range(draws):
        chains.advance(1, observe=observe)
        magnetisation.append(chains.position().flatten(1).float().mean(1).abs())
    series = (np.asarray(torch.stack(part, 1).double()) for part in (energy, magnetisation))
    e, m = (draws * len(start) / float(az.ess(s)) for s in series)
    return e, m, float(torch.stack(size).mean()) / start[0].numel()


@pytest.mark.long
def test_clusters_forget_twenty_times_faster_than_gibbs_at_the_critical_point() -> None:
    """Per sweep at L = 64. All chains begin from draws of Swendsen-Wang's.

    Gibbs' chains are short for its time to forget, which then looks shorter than it is.
    """
    model, length = Ising((64, 64), CRITICAL_BETA), 64
    chains = Chains(eb.SwendsenWang(model), _start(length, 16), seed=3)
    chains.advance(200)
    start = chains.position()
    gibbs = _times(eb.Gibbs(model), start, 6000)
    for kernel in (eb.SwendsenWang(model), eb.Wolff(model)):
        energy, magnetisation, sweeps = _times(kernel, start, 2000)
        print(
            f"{kernel!r}: energy {energy * sweeps:.1f} against {gibbs[0]:.0f} sweeps, ratio {gibbs[0] / energy / sweeps:.0f}"
        )
        print(
            f"  |M| {magnetisation * sweeps:.1f}, {gibbs[1]:.0f}, ratio {gibbs[1] / magnetisation / sweeps:.0f}; {sweeps:.3f}"
        )
        assert gibbs[0] > 20 * energy * sweeps
        assert gibbs[1] > 20 * magnetisation * sweeps
