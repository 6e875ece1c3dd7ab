"""The reverse SDE by adaptive steps: the law of the noise after rejections, tolerances, moments, failures, the doors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import ebmppl as eb
from ebmppl.errors import SamplingWarning
from ebmppl.sampling.chains import Chains
from ebmppl.score import VP, GenericSDE, LinearSDE
from tests.score_targets import MIXTURE, PARAMETERS, DiffusedMixture, mixture_z_scores, normal, sdes, z_limit

F64 = torch.float64
SDES = sdes(PARAMETERS)
FALSE_ALARM = 1e-3  # of all statistical tests of this file together; seeds are fixed
LIMIT = z_limit(FALSE_ALARM, 4)


pytestmark = pytest.mark.usefixtures("one_thread_of_float64")


class Forgetful(eb.AdaptiveReverseSDE):
    """Draws noise anew after a rejection, as the paper does."""

    def tick(self, state: Any, tuning: Any, noise: Any) -> Any:
        state, info = super().tick(state, tuning, noise)
        return state._replace(length=torch.zeros_like(state.length), depth=torch.zeros_like(state.depth)), info


def test_noise_after_a_rejection_keeps_its_law() -> None:
    """No drift and no score, g = 1 + 4 t: a step's error is its noise times the change of g, so large noise is rejected.

    Averages of g make 5e-5 of the variance, where the standard error of the right one is 3e-2 of it; the wrong one misses 20 of
    these.
    """
    sde = GenericSDE(lambda x, t: torch.zeros_like(x), lambda t: 1 + 4 * t, prior_std=1.0)
    variance = sum(c * (1 - 0.01**k) for c, k in ((1, 1), (4, 2), (16 / 3, 3)))
    found = []
    for kind in (eb.AdaptiveReverseSDE, Forgetful):
        kernel = kind(lambda x, t: torch.zeros_like(x), sde, (), atol=0.006, rtol=1e-9, t_min=0.01)
        run = Chains(kernel, torch.zeros(2000), 3)
        run.advance(1)
        found.append(run.position() / math.sqrt(variance))
    right, wrong = ((float(z.square().mean()) - 1) / math.sqrt(2 / 2000) for z in found)
    assert abs(right) < LIMIT
    assert stats.kstest(found[0].numpy(), "norm").pvalue > FALSE_ALARM / 10
    assert wrong < -10


def test_a_shorter_step_takes_its_part_by_a_brownian_bridge() -> None:
    """Of w over L a part s has N(s w / L, s (L - s) / L): sums over both parts, as draws are, would not show another one."""
    kernel = eb.AdaptiveReverseSDE(lambda x, t: -x, VP(), ())
    w, z, length, size = torch.tensor([1.5, 0.0]), torch.tensor([0.0, 2.0]), 0.5, 0.15
    state = kernel.init(torch.zeros(2))
    known = {"increment": w.unsqueeze(1), "length": torch.full((2,), length), "step_size": torch.full((2,), size)}
    state = state._replace(**known)
    found = kernel._brownian(state, torch.ones(2), z.unsqueeze(1))
    torch.testing.assert_close(found.length, torch.full((2,), size))
    wanted = size / length * w + math.sqrt(size * (length - size) / length) * z
    torch.testing.assert_close(found.increment.squeeze(1), wanted)
    torch.testing.assert_close(state.ahead[:, 0, 0], w - wanted)  # the rest comes next
    torch.testing.assert_close(state.lengths[:, 0], torch.full((2,), length - size))


def local_error(sde: LinearSDE, h: float) -> float:
    """Of the variance after one step from the exact law of data N(0, 0.7) amid the way, exactly.

    A step is linear in the point and in its noise, so chains that have one of them alone show its coefficients.
    """
    begun = float(sde.time_of(torch.tensor([1.5]))[0])

    def variance(t: Tensor) -> Tensor:
        mean, std = sde.marginal(t)
        return mean.square() * 0.7 + std.square()

    kernel = eb.AdaptiveReverseSDE(lambda x, t: -x / variance(t), sde, (), rtol=1e6, atol=1e6)
    start, z = torch.tensor([float(variance(torch.tensor(begun)).sqrt()), 0.0]), torch.tensor([0.0, 1.0])
    state = kernel.init(start)._replace(time=torch.full((2,), begun), step_size=torch.full((2,), h))
    state, _ = kernel.tick(state, kernel.init_tuning(start), {"normal": z, "start": z})
    torch.testing.assert_close(state.time, torch.full((2,), begun - h))
    return abs(float(state.point.square().sum() - variance(torch.tensor(begun - h))))


@pytest.mark.parametrize("sde", SDES)
def test_steps_have_the_weak_order_2(sde: str) -> None:
    """So that the variance's error of one step falls with its size to the power 3."""
    errors = [local_error(SDES[sde], h) for h in (4e-3, 2e-3)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(3, abs=0.2), errors


def test_the_tolerance_is_relative_to_the_larger_of_this_step_and_the_one_before() -> None:
    """Score t and g = 1 without a drift: from 1 at time 0.9 a step of 0.1 leads to x' = 1.09 and differs by 0.005 from x''."""
    sde = GenericSDE(lambda x, t: torch.zeros_like(x), torch.ones_like, prior_std=1.0)
    kernel = eb.AdaptiveReverseSDE(lambda x, t: t, sde, (), rtol=1e-3, atol=1e-9)
    x, before = torch.ones(4), torch.tensor([10.0, -10.0, 0.5, 0.0])
    now = {"time": torch.full((4,), 0.9), "step_size": torch.full((4,), 0.1)}
    state = kernel.init(x)._replace(before=before.unsqueeze(1), **now)
    noise = dict.fromkeys(("normal", "start"), torch.zeros(4))
    after, _ = kernel.tick(state, kernel.init_tuning(x), noise)
    error = 0.005 / (1e-3 * torch.maximum(torch.tensor(1.09), before.abs()))
    taken = torch.tensor([True, True, False, False])  # as the errors are 0.5 and 4.6
    torch.testing.assert_close(after.time, torch.where(taken, 0.8, 0.9))
    factor = 0.9 * error.pow(-0.9)
    torch.testing.assert_close(after.step_size, 0.1 * torch.where(taken, factor, factor.clamp(0.1, 0.5)))
    torch.testing.assert_close(after.point.squeeze(1), torch.where(taken, 1.085, 1.0))
    torch.testing.assert_close(after.before.squeeze(1), torch.where(taken, 1.09, before))


class Weaker(nn.Module):
    """Four fifths of a score."""

    def __init__(self, score: nn.Module) -> None:
        super().__init__()
        self.score = score

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return 0.8 * self.score(x, t)


@pytest.mark.parametrize("sde", ["vp", *(pytest.param(name, marks=pytest.mark.long) for name in ("ve", "subvp"))])
def test_moments_of_a_mixture(sde: str, device: torch.device) -> None:
    score = DiffusedMixture(SDES[sde], *MIXTURE).to(device)
    right, wrong = (
        eb.generate(eb.AdaptiveReverseSDE(s, SDES[sde], (2,), denoise=True), 2000, seed=1).cpu()
        for s in (score, Weaker(score))
    )
    assert float(mixture_z_scores(right).abs().max()) < LIMIT
    assert float(mixture_z_scores(wrong).abs().max()) > LIMIT


def calls(kernel: eb.AdaptiveReverseSDE, n: int) -> Tensor:
    """Network calls of each draw of n chains."""
    run, made = Chains(kernel, normal(n, 2), 1), torch.zeros(n, dtype=torch.int64)

    def observe(info: Any) -> None:
        made.copy_(torch.where(info.done & (made == 0), info.n_steps, made))

    run.advance(1, observe=observe)
    return made


def test_a_tighter_tolerance_takes_more_calls_and_each_chain_its_own() -> None:
    score = DiffusedMixture(VP(), *MIXTURE)
    few, many = (calls(eb.AdaptiveReverseSDE(score, VP(), (2,), rtol=r, atol=r), 50) for r in (0.05, 0.01))
    assert bool((many > 1.5 * few.double().mean()).all())
    assert len(many.unique()) > 10


def broken_at(lowest: float, highest: float) -> Callable[[Tensor, Tensor], Tensor]:
    """NaN in these times, at points with a positive first coordinate."""
    return lambda x, t: torch.where(((t > lowest) & (t < highest) & (x[:, 0] > 0)).unsqueeze(1), math.nan, -x)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_score_that_is_nan_ends_the_draw_and_keeps_the_state(dtype: torch.dtype, device: torch.device) -> None:
    kernel = eb.AdaptiveReverseSDE(broken_at(0.0, 0.5), VP(), (2,))
    x = normal(50, 2).to(device, dtype)
    with pytest.warns(
        SamplingWarning, match=r"draws failed: .* not finite at t (=|from) 0\.5.*: rows \d.*left as they were"
    ):
        found = eb.transport(kernel, x, seed=0)
    assert bool(found.isfinite().all())
    assert (found.dtype, found.device.type) == (dtype, device.type)


def test_a_tolerance_that_cannot_be_met_is_told() -> None:
    kernel = eb.AdaptiveReverseSDE(lambda x, t: -x * torch.sin(1e6 * x) * 100, VP(), (2,), rtol=1e-12, atol=1e-12)
    with pytest.warns(
        SamplingWarning, match="4 of 4 draws failed: .* tolerance could not be met at t .*: rows 0, 1, 2, 3"
    ):
        found = eb.transport(kernel, normal(4, 2), seed=0)
    assert bool(found.isfinite().all())
    mcmc = eb.MCMC(kernel, 2, 0, num_chains=3, seed=0, disable_progbar=True)
    mcmc.run()
    assert bool(mcmc.stats()["diverging"].all())
    assert bool((mcmc.stats()["failed_at"] > 0.9).all())


def test_states_are_not_changed_in_place() -> None:
    """A tick writes into what lies behind the noise that is known, and nowhere else: so it can be made again."""
    kernel = eb.AdaptiveReverseSDE(DiffusedMixture(VP(), *MIXTURE), VP(), (2,))
    state, tuning = kernel.init(normal(200, 2)), kernel.init_tuning(normal(200, 2))
    for k in range(120):
        noise = {"normal": normal(200, 2, seed=k), "start": normal(200, 2, seed=-k - 1)}
        first, _ = kernel.tick(state, tuning, noise)
        kept = [leaf.clone() for leaf in first]
        second, _ = kernel.tick(state, tuning, noise)
        known = torch.arange(first.lengths.shape[1]) < first.depth.unsqueeze(1)
        for name, a, b in zip(first._fields, kept, second, strict=True):
            if name in kernel.scratch:
                a, b = a[known], b[known]
            assert torch.equal(a, b), name
        state = second
    assert int(state.depth.max()) >= 1


@pytest.mark.long
def test_compiled_draws_equal_eager_ones() -> None:
    kernel = eb.AdaptiveReverseSDE(lambda x, t: -x, VP(), (2,), rtol=0.05, atol=0.05, denoise=True)
    found, wanted = (
        eb.MCMC(kernel, 5, 0, num_chains=20, seed=0, disable_progbar=True, backend=b) for b in ("inductor", "eager")
    )
    for mcmc in (found, wanted):
        mcmc.run()
    torch.testing.assert_close(found.get_samples()["x"], wanted.get_samples()["x"], rtol=1e-6, atol=1e-6)
    assert torch.equal(found.stats()["n_steps"], wanted.stats()["n_steps"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rtol": 0}, "rtol > 0, got 0"),
        ({"atol": -1.0}, "atol > 0, got -1"),
        ({"t_min": 0.0}, r"t_min in \(0, 1\), got 0.0"),
        ({"t_min": 1.0}, r"t_min in \(0, 1\), got 1.0"),
        ({"sde": "vp"}, "an SDE, got str"),
        (
            {"sde": GenericSDE(VP().drift, VP().diffusion, 1.0), "denoise": True},
            "a linear SDE to denoise, got GenericSDE",
        ),
    ],
)
def test_bad_input(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        eb.AdaptiveReverseSDE(lambda x, t: -x, **{"sde": VP(), "event_shape": (2,), **options})
