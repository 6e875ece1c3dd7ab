"""Why a draw or a likelihood failed is told: a score that was not finite, or a tolerance that could not be met."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor

import ebmppl as eb
from ebmppl.errors import SamplingWarning
from ebmppl.sampling.chains import Chains
from ebmppl.score import VP
from ebmppl.score.failures import failures

F64 = torch.float64
# by their first number, which keeps its sign: NaN, good, without a tolerance that can be met
X = torch.tensor([[1.0, 0.3], [0.0, 0.5], [-1.0, 0.2], [1.0, 0.1]], dtype=F64)
NOT_FINITE = r"the score \(or energy\) was not finite"
UNMET = "the step size fell under its limit, as the tolerance could not be met"
BEGINNING = r"0\.(02|01999|6|5999)\d*"  # of the times in which it is so


def broken(x: Tensor, t: Tensor) -> Tensor:
    """That of N(0, I), but in 0.02 < t < 0.6 NaN where the first number is > 0, and with 1e12 kinks where it is < 0."""
    within, first = (t > 0.02) & (t < 0.6), x[:, 0]
    second = torch.where(within & (first < 0), 1e12 * torch.sin(1e12 * x[:, 1]), -x[:, 1])
    return torch.stack([-first, torch.where(within & (first > 0), math.nan, second)], 1)


def require_told(caught: pytest.WarningsRecorder, what: str, then: str) -> None:
    """Once, where the caller is, of both causes."""
    (told,) = caught
    assert told.filename == __file__
    assert re.fullmatch(
        rf"3 of 4 {what} failed: {NOT_FINITE} at t (= |from ){BEGINNING}( to {BEGINNING})? \(2: rows 0, 3\); "
        rf"{UNMET} at t = {BEGINNING} \(1: row 2\)\. {then}",
        str(told.message),
    ), told.message


@pytest.mark.parametrize("forward", [True, False])
def test_draws_of_a_flow(*, forward: bool) -> None:
    with pytest.warns(SamplingWarning) as caught:
        ends = eb.transport(eb.AdaptiveFlow(broken, VP(), (2,), forward=forward), X, seed=0)
    require_told(caught, "draws", "They are left as they were then")
    assert bool(ends.isfinite().all())
    assert torch.equal(ends[:, 0].sign(), X[:, 0].sign())


def test_likelihoods() -> None:
    with pytest.warns(SamplingWarning) as caught:
        found = eb.log_likelihood(broken, VP(), X)
    require_told(caught, "likelihoods", "They are NaN, and their ends where the flow was then")
    assert (found.failed_at != 0).tolist() == [True, False, True, True]
    assert found.tolerance_unmet.tolist() == [False, False, True, False]
    assert found.value.isfinite().tolist() == [False, True, False, False]
    assert bool(found.end.isfinite().all())


KERNELS: dict[str, Any] = {"flow": eb.AdaptiveFlow, "noisy": eb.AdaptiveReverseSDE}


@pytest.mark.parametrize("name", KERNELS)
def test_draws_of_kernels_with_a_tolerance(name: str) -> None:
    """Where the draw ends, the point, which is kept, tells which cause it was."""
    kernel = KERNELS[name](broken, VP(), (2,))
    start = torch.randn(40, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    chains = Chains(kernel, start, 1)
    chains.advance(1)
    state = chains.now.state
    assert bool((state.failure != 0).all())
    assert torch.equal(state.tolerance_unmet, state.position[:, 0] < 0)
    assert 5 < int(state.tolerance_unmet.sum()) < 35
    mcmc = eb.MCMC(kernel, 4, 0, initial_params=start[:4], num_chains=4, seed=1, disable_progbar=True)
    mcmc.run()
    unmet = mcmc.stats()["tolerance_unmet"]
    assert torch.equal(unmet, mcmc.get_samples(group_by_chain=True)["x"][..., 0] < 0)
    told = [flag for flag in mcmc.summary().flags if flag.startswith("failed draws")]
    assert len(told) == 2
    assert re.match(rf"failed draws: {int((~unmet).sum())}, .* of 4 chains .*; {NOT_FINITE} at t .* 0\.[56]", told[0])
    assert re.match(rf"failed draws: {int(unmet.sum())}, .* of 4 chains .*; {UNMET} at t .* 0\.[56]", told[1])


def test_a_first_velocity_that_is_nan() -> None:
    with pytest.warns(SamplingWarning, match=rf"1 of 2 draws failed: {NOT_FINITE} at t = 1 \(1: row 0\)"):
        eb.transport(
            eb.AdaptiveFlow(lambda x, t: torch.where(x > 1, math.nan, -x), VP(), (1,)), torch.tensor([[2.0], [0.5]])
        )


def test_steps_and_levels_have_no_tolerance() -> None:
    score = lambda x, t: torch.where(x > 5, math.nan, 0 * x)
    sigmas = torch.tensor([2.0, 1.0])
    for kernel, when in (
        (eb.ReverseSDE(score, VP(), (1,), 4), "t = 1"),
        (eb.ProbabilityFlow(score, VP(), (1,), 4), "t = 1"),
        (eb.AnnealedLangevin(score, sigmas, (1,), 2, 1e-6), "noise level = 2"),
    ):
        with pytest.warns(SamplingWarning, match=rf"1 of 2 draws failed: {NOT_FINITE} at {when} \(1: row 1\)\. They"):
            eb.transport(kernel, torch.tensor([[-9.0], [9.0]]), seed=0)


def test_many_rows_are_counted_and_the_first_are_named() -> None:
    assert failures(torch.zeros(3), None, "draws") is None
    told = failures(torch.full((20,), 0.25), None, "draws")
    assert told == (
        "20 of 20 draws failed: the score (or energy) was not finite at t = 0.25 (20: rows 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ...)"
    )
