"""Moments of a window's draws by chain, and the variance that chains which are still on their way have no part in."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import ebmppl as eb
from ebmppl.errors import SamplingWarning
from ebmppl.kernels.adaptation import AdaptationState, factorise
from ebmppl.kernels.welford import Welford, estimate, regularised, welford_update
from ebmppl.sampling.draws import finished
from tests.targets import f64, gen

MIXING = f64(1.0, 0.5, 0.0, 0.5, 1.0, -0.3, 0.2, 0.0, 2.0).view(3, 3)


def drawn(chains: int, ticks: int, *, offset: float = 0.0) -> tuple[Tensor, Tensor]:
    """Points ``(ticks, chains, 3)`` and who finished a draw in which tick."""
    x = offset + torch.randn(ticks, chains, 3, generator=gen(9), dtype=torch.float64) @ MIXING
    return x, torch.rand(ticks, chains, generator=gen(10)) < 0.4


def taken_in(x: Tensor, done: Tensor, *, full: bool, start: Tensor | None = None) -> Welford:
    """Some ticks at a time."""
    state = Welford.empty(x[0].mean(0) if start is None else start, x.shape[1], full=full)
    none = torch.zeros_like(done)
    for ticks in torch.arange(len(x)).split(7):
        log = {"position": x, "done": done, "diverging": none, "acceptance_rate": done.double()}
        state = welford_update(state, *finished({name: values[ticks] for name, values in log.items()}))
    return state


def moments(draws: Tensor, *, full: bool) -> Tensor:
    return torch.cov(draws.T) if full else draws.var(0)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("chains", [1, 5, 64, 150])
def test_the_moments_of_all_draws_where_chains_agree(chains: int, full: bool) -> None:
    x, done = drawn(chains, 60)
    state = taken_in(x, done, full=full)
    assert state.total.tolist() == done.sum(0).tolist()
    draws = x[done]
    # float64 sums of up to 4,000 terms of size 1
    assert torch.allclose(state.emptied().origin, draws.mean(0), rtol=0, atol=1e-12)
    assert torch.allclose(estimate(state), moments(draws, full=full), rtol=0, atol=1e-12)
    # it doesn't matter where it began to look
    far = taken_in(x, done, full=full, start=f64(100.0, -100.0, 5.0))
    assert torch.allclose(estimate(far), moments(draws, full=full), rtol=0, atol=1e-9)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("chains", [1, 64])
def test_in_float32_far_from_zero(chains: int, full: bool) -> None:
    """Offset a million, spread one: the textbook sum of squares would lose everything."""
    x, done = drawn(chains, 2000 // chains + 20, offset=1e6)
    single = x.float()
    found = estimate(taken_in(single, done, full=full))
    draws = single[done].double()
    # differences from the origin are exact (numbers of one binade); float32 sums of 2,000 terms of size 1
    assert torch.allclose(found.double(), moments(draws, full=full), rtol=1e-4, atol=1e-4)
    naive = (single[done].square().sum(0) - single[done].sum(0).square() / len(draws)) / (len(draws) - 1)
    assert float((naive.double() - draws.var(0)).abs().max()) > 1  # the test would see it


@pytest.mark.parametrize("full", [False, True])
def test_regularised_is_stans(full: bool) -> None:
    """Shrinks towards 1e-3 with the weight of five draws (stan/mcmc/var_adaptation.hpp)."""
    x, done = drawn(5, 60)
    state, n = taken_in(x, done, full=full), int(done.sum())
    unit = torch.eye(3).double() if full else torch.ones(3).double()
    wanted = n / (n + 5) * moments(x[done], full=full) + 1e-3 * 5 / (n + 5) * unit
    assert torch.allclose(regularised(state), wanted, rtol=1e-12)
    factor = factorise(regularised(state))
    product = factor @ factor.T if full else factor.square()
    assert torch.allclose(product, regularised(state), rtol=1e-12)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("chains", [4, 9, 64])
def test_chains_on_their_way_have_no_part_in_the_variances_where_they_are(chains: int, full: bool) -> None:
    """One in four comes in along the first coordinate, and one of all has drawn nothing."""
    x, done = drawn(chains, 60)
    done[:, 1] = False
    late = torch.arange(chains) % 4 == 0 if chains != 4 else torch.arange(4) == 3
    x[..., 0] -= torch.where(late, torch.linspace(120.0, 40.0, 60).unsqueeze(1), 0.0)
    wanted = moments(x[done], full=full)
    if not full:  # a matrix is everyone's: other variances do not fit its correlations
        kept = x[done & ~late][:, 0].var()
        assert 50 * float(kept) < float(wanted[0])
        wanted[0] = kept
    # float64 sums of 1,500 terms, squares up to 15,000
    assert torch.allclose(estimate(taken_in(x, done, full=full)), wanted, rtol=1e-11)


def test_squares_beyond_float32_are_left_out_too() -> None:
    x = torch.randn(8, 20, 2, generator=gen(6))
    x[0] += 1e20
    state = Welford.empty(x[1].mean(0), 8, full=False)
    found = estimate(welford_update(state, x.flatten(0, 1), torch.full((8,), 20)))
    # 140 draws: 4 standard errors
    assert torch.allclose(found, torch.ones(2), rtol=0, atol=4 * (2 / 140) ** 0.5)


def test_a_dense_metric_that_float32_cannot_factorise_is_told_and_not_taken() -> None:
    """One chain is 10^5 deviations away in all coordinates; warm-up ended with an error of linear algebra."""
    x = torch.randn(64, 30, 30, generator=gen(7))
    x[0] += 1e5
    state = Welford.empty(x.mean((0, 1)), 64, full=True)
    state = welford_update(state, x.flatten(0, 1), torch.full((64,), 30))
    kernel = eb.NUTS(eb.energies.Gaussian(torch.zeros(30), torch.eye(30)), full_mass=True)
    adaptation, before = kernel.adaptation(), kernel.init_tuning(x[:, 0])
    assert adaptation is not None
    with pytest.warns(SamplingWarning, match="no Cholesky factor in float32") as told:
        own, after = adaptation.end_window(AdaptationState(None, state), before, metric=True)
    assert len(told) == 1
    assert torch.equal(after.inverse_mass, before.inverse_mass)
    assert torch.equal(after.factor, before.factor)
    assert float(own.draws.metrics) == 0
    assert float(own.draws.total.sum()) == 0


def test_nothing_is_taken_from_a_normal_variance() -> None:
    """Even of one draw of each chain: squares of 200,000 normals stay under 45, a hundred times their median, 0.455."""
    x = torch.randn(200_000, 1, generator=gen(3), dtype=torch.float64)
    ones = torch.ones(len(x), dtype=torch.int64)
    state = welford_update(Welford.empty(f64(0.0), len(x), full=False), x, ones)
    assert torch.allclose(estimate(state), x.var(0), rtol=1e-12)


def test_chains_that_never_move_are_nobodys_measure() -> None:
    """Most of them at one place, where their mean square is zero: then all others count."""
    x = torch.cat([torch.zeros(5, 1), torch.tensor([[-2.0], [2.0]])]).double()
    state = welford_update(Welford.empty(f64(0.0), 7, full=False), x, torch.ones(7, dtype=torch.int64))
    assert torch.allclose(estimate(state), x.var(0))


def well(x: Tensor) -> Tensor:
    """A narrow well of the first coordinate at the end of a gentle slope; nine normals beside it."""
    slope = torch.nn.functional.softplus(5 * x[:, 0]) + 0.3 * torch.nn.functional.softplus(-x[:, 0])
    return slope - 15 * torch.exp(-50 * x[:, 0].square()) + 0.5 * x[:, 1:].square().sum(-1)


def test_a_few_late_chains_do_not_shorten_all_steps() -> None:
    """With their draws the window after the first metric would take more ticks than all others together."""

    def ticks(late: int) -> int:
        start = torch.randn(64, 10, generator=gen(4))
        start[:, 0] *= 0.1
        start[:late, 0] = -5.0
        kernel = eb.NUTS(eb.as_energy(well, (10,), batched=True))
        mcmc = eb.MCMC(kernel, 1, 80, start, num_chains=64, seed=2, disable_progbar=True)
        mcmc.run()
        return mcmc.now.tick

    assert ticks(3) < 2 * ticks(0)
