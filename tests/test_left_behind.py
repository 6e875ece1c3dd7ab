"""Warm-up with chains that the common step size would leave behind."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import ebmppl as eb
from ebmppl.kernels import Kernel
from ebmppl.kernels.dual_averaging import dual_averaging, dual_averaging_update, limited
from ebmppl.sampling.chains import Chains
from ebmppl.sampling.draws import finished
from tests.targets import f64, gen


def quartic(x: Tensor) -> Tensor:
    """Stable steps shrink as 1 / |x|: those of a chain at 20 are a thirtieth of the others'."""
    return 0.25 * (x**4).sum(-1)


HMC = partial(eb.HMC, num_steps=4)


@pytest.mark.parametrize(
    ("kernel", "backend"),
    [(eb.MALA, "eager"), (HMC, "eager"), (HMC, "inductor"), (partial(eb.NUTS, max_tree_depth=6), "eager")],
    ids=["mala", "hmc", "hmc in compiled parts", "nuts"],
)
def test_a_chain_in_a_quartic_tail_comes_in(kernel: Callable[[eb.Energy], Kernel], backend: str) -> None:
    """With one step size for all 64 chains it keeps its first point, or lets the step of all fall to a quarter."""
    start = torch.randn(64, 2, generator=gen(1))
    start[0] = torch.tensor([20.0, -20.0])
    energy = eb.as_energy(quartic, (2,))
    mcmc = eb.MCMC(kernel(energy), 10, 200, start, 64, seed=1, backend=backend, disable_progbar=True)
    mcmc.run()
    assert mcmc.backend == backend
    # P(|x| > 4) < exp(-64)
    assert float(mcmc.get_samples()["x"].abs().max()) < 4
    variance = 2 * math.gamma(3 / 4) / math.gamma(1 / 4)
    # about 64 x 145 draws, two fifths of them effective, in the only window for the metric: 2 per cent; one draw in a
    # hundred at 20 would add 4
    assert mcmc.now.tuning.inverse_mass.tolist() == pytest.approx([variance] * 2, rel=0.15)


@pytest.mark.parametrize("power", [1.0, 0.5])
def test_limits_of_steps(power: float) -> None:
    """Halved by the third hopeless draw in a row, trebled by others, and back: in leapfrog steps, which are step ** power."""
    step = f64(0.3)[0]
    limit, told = f64(math.inf), []
    for rate in (0.0, 0.9, 0.0, 0.0, 0.0, 0.0, 0.5, 0.6, 0.7):
        used = torch.minimum(step, limit)
        whole = bool(used == step)
        limit, says = limited(limit, f64(rate), used, torch.tensor([True]), power)
        told.append(((float(used / step)) ** power, float(says)))
        assert float(says) == (rate if whole else 0.0)
    # 6/2, times 3, then 6/2, 3/2, 3/4, 3/8, times 3
    assert [own for own, _ in told] == pytest.approx([1, 1, 1, 1, 1, 0.75, 0.375, 1, 1], rel=1e-12)
    assert [says for _, says in told] == [0.0, 0.9, 0.0, 0.0, 0.0, 0.0, 0.0, 0.6, 0.7]
    same, _ = limited(limit, f64(0.0), step.view(1), torch.tensor([False]), power)
    assert torch.equal(same, limit)  # no draw, no change


def test_a_chain_that_finishes_at_every_tick_counts_for_two() -> None:
    """Three chains of rate 1 that finish once in a round, and one of rate 0 that finishes again and again."""
    da, step = dual_averaging(f64(0.3)[0], 4), f64(0.3)[0]
    rate, last = f64(1.0, 1.0, 1.0, 0.0), torch.tensor([False, False, False, True])
    for _ in range(9):
        da, step = dual_averaging_update(da, step, rate, last, 0.6)
    assert float(da.updates) == 0
    da, step = dual_averaging_update(da, step, rate, torch.ones(4, dtype=torch.bool), 0.6)
    assert float(da.updates) == 1
    assert float(da.error) == pytest.approx(
        0.0, abs=1e-15
    )  # the mean rate 3/5 is the target; of draws it would be 3/13


class OneDiverges(eb.HMC):
    """Chain 0 diverges at every tick, whatever its step; the draws of the others take eight."""

    def tick(self, state: Any, tuning: Any, noise: Any) -> Any:
        new, info = super().tick(state, tuning, noise)
        first = torch.arange(len(info.done)) == 0
        return new, info._replace(done=info.done | first, diverging=info.diverging | first)


def test_a_chain_that_diverges_at_every_tick_does_not_take_the_others_windows() -> None:
    """It would finish 8 of every 15 draws; as it counts for two shares at most, the others keep 6 of 7 draws."""
    kernel = OneDiverges(eb.energies.Gaussian(torch.zeros(2), torch.eye(2)), num_steps=8, jitter=0.0)
    mcmc = eb.MCMC(kernel, 1, 200, None, 8, seed=0, disable_progbar=True)
    mcmc.run()
    assert mcmc.now.tick > 200 * 8 * 6 / 7  # 853 were it counted whole


def test_points_that_diverging_chains_only_repeat_are_not_the_metrics() -> None:
    x = torch.arange(6.0).reshape(3, 2, 1)
    done = torch.tensor([[True, True], [True, False], [True, True]])
    diverging = torch.tensor([[True, False], [True, True], [False, True]])
    rate = torch.tensor([[1e-3, 1e-3], [0.0, 0.0], [0.3, 0.5]])  # the last one diverges in another block of its sites
    drawn, counts = finished({"position": x, "done": done, "diverging": diverging, "acceptance_rate": rate})
    assert drawn.squeeze(1).tolist() == [4.0, 1.0, 5.0]  # chain by chain
    assert counts.tolist() == [1, 2]


def test_a_window_without_draws_leaves_the_metric_as_it_was() -> None:
    given = torch.tensor([4.0, 9.0])
    kernel = eb.HMC(eb.energies.Gaussian(torch.zeros(2), torch.eye(2)), inverse_mass_matrix=given)
    chains = Chains(kernel, torch.zeros(4, 2), seed=0)
    chains.begin_adaptation()
    chains.end_window(metric=True)
    assert torch.equal(chains.now.tuning.inverse_mass, given)
