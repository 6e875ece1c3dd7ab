"""Draws of the exact score of a Gaussian mixture against the mixture, by permutation tests of MMD and energy distance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import ebmppl as eb
from ebmppl.diagnostics.distances import two_sample_test
from ebmppl.kernels import Kernel
from ebmppl.score import VP
from tests.score_targets import MIXTURE, DiffusedMixture

F64 = torch.float64
SDE = VP(0.1, 10.0)
MAKE: dict[str, Callable[[Any], Kernel]] = {
    "euler_maruyama": lambda s: eb.ReverseSDE(s, SDE, (2,), 500),
    "heun": lambda s: eb.ReverseSDE(s, SDE, (2,), 100, "heun"),
    "ancestral": lambda s: eb.ReverseSDE(s, SDE, (2,), 500, "ancestral"),
    "predictor_corrector": lambda s: eb.ReverseSDE(s, SDE, (2,), 250, "predictor_corrector"),
    "flow, euler": lambda s: eb.ProbabilityFlow(s, SDE, (2,), 200, "euler"),
    "flow, heun": lambda s: eb.ProbabilityFlow(s, SDE, (2,), 40, "heun"),
    "flow, dpm_solver_2m": lambda s: eb.ProbabilityFlow(s, SDE, (2,), 40, "dpm_solver_2m"),
    "flow, dpm_solver_3m": lambda s: eb.ProbabilityFlow(s, SDE, (2,), 40, "dpm_solver_3m"),
    "flow, adaptive": lambda s: eb.AdaptiveFlow(s, SDE, (2,)),
    "adaptive": lambda s: eb.AdaptiveReverseSDE(s, SDE, (2,)),
}
# p-values of at least 1 / (permutations + 1): the least one is an alarm, once in 500 of the four short tests and in 25 of all
# twenty long ones, by chance; seeds are fixed
SHORT, LONG = 1999, 499


pytestmark = pytest.mark.usefixtures("one_thread_of_float64")


def exact_draws(n: int, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return DiffusedMixture(SDE, *MIXTURE).data().sample((n,))


def least_p(x: Tensor, y: Tensor, permutations: int) -> float:
    """The smaller p-value of both tests."""
    return min(two_sample_test(x, y, d, permutations=permutations, seed=1).p_value for d in ("mmd", "energy"))


def weaker(score: Any, by: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, t: by * score(x, t)


@pytest.mark.long
@pytest.mark.parametrize("name", MAKE)
def test_ten_thousand_draws_are_the_mixtures(name: str) -> None:
    score = DiffusedMixture(SDE, *MIXTURE)
    assert least_p(eb.generate(MAKE[name](score), 10_000, seed=5), exact_draws(10_000), LONG) > 1 / (LONG + 1)


@pytest.mark.parametrize("name", ["ancestral", "flow, dpm_solver_2m"])
def test_draws_are_the_mixtures(name: str) -> None:
    score = DiffusedMixture(SDE, *MIXTURE)
    assert least_p(eb.generate(MAKE[name](score), 500, seed=5), exact_draws(500), SHORT) > 1 / (SHORT + 1)


def test_a_wrong_sampler_is_noticed() -> None:
    """A score a third too small."""
    wrong = weaker(DiffusedMixture(SDE, *MIXTURE), 0.67)
    x = eb.generate(MAKE["flow, dpm_solver_2m"](wrong), 500, seed=5)
    for distance in ("mmd", "energy"):
        found = two_sample_test(x, exact_draws(500), distance, permutations=SHORT, seed=1)
        assert found.p_value == 1 / (SHORT + 1)


@pytest.mark.long
def test_ten_thousand_draws_tell_a_score_a_fifth_too_small() -> None:
    """A tenth is at the edge: the MMD then has p = 0.01."""
    wrong = weaker(DiffusedMixture(SDE, *MIXTURE), 0.8)
    x = eb.generate(MAKE["ancestral"](wrong), 10_000, seed=5)
    for distance in ("mmd", "energy"):
        found = two_sample_test(x, exact_draws(10_000), distance, permutations=LONG, seed=1)
        assert found.p_value == 1 / (LONG + 1)


def mmd(x: Tensor, y: Tensor) -> float:
    return two_sample_test(x, y, bandwidth=1.0, permutations=1).distance


@pytest.mark.parametrize("n", [1000, pytest.param(6000, marks=pytest.mark.long)])
def test_twenty_calls_of_dpm_solver_against_five_hundred_of_euler_maruyama(n: int) -> None:
    """No worse than by the noise of an MMD of two exact samples: by its largest value among five pairs of them."""
    score, exact = DiffusedMixture(SDE, *MIXTURE), exact_draws(n)
    solver = eb.ProbabilityFlow(score, SDE, (2,), 20, "dpm_solver_2m")
    assert solver.ticks_per_draw == 20
    fast = mmd(eb.generate(solver, n, seed=5), exact)
    slow = mmd(eb.generate(MAKE["euler_maruyama"](score), n, seed=6), exact)
    noise = max(mmd(exact_draws(n, 2 * i + 1), exact_draws(n, 2 * i + 2)) for i in range(5))
    assert fast <= slow + noise
    coarse = mmd(eb.generate(eb.ReverseSDE(score, SDE, (2,), 5), n, seed=7), exact)
    assert coarse > slow + noise  # five steps of Euler-Maruyama would be seen
