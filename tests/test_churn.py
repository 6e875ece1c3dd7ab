"""EDM's stochastic sampler: the published steps, the order of the law, moments of a mixture, bad input."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor

import ebmppl as eb
from ebmppl.score import VE, VP, LinearSDE
from ebmppl.score.schedules import karras_times
from tests.score_targets import MIXTURE, PARAMETERS, DiffusedMixture, mixture_z_scores, normal, sdes, z_limit

F64 = torch.float64
SDES = sdes(PARAMETERS)
FALSE_ALARM = 1e-3


pytestmark = pytest.mark.usefixtures("one_thread_of_float64")


def published(
    sde: LinearSDE, score: Callable[[Tensor, Tensor], Tensor], x: Tensor, noise: Tensor, n: int, s: dict[str, float]
) -> Tensor:
    """Karras et al. 2022, algorithm 2, in y = x / a with levels r = std / a, as it is printed; no last step to 0."""
    levels = sde.ratio(karras_times(sde, n, 1e-3))

    def denoised(y: Tensor, r: Tensor) -> Tensor:
        t = sde.time_of(r.expand(len(y)))
        mean, std = sde.marginal(t.unsqueeze(1))
        return y + std.square() / mean * score(mean * y, t)

    y = x / sde.marginal(torch.tensor(1.0))[0]
    for i, (r, end) in enumerate(zip(levels[:-1], levels[1:], strict=True)):
        gamma = min(s["churn"] / n, math.sqrt(2) - 1) if s["least"] <= r <= s["most"] else 0.0
        higher = r + gamma * r
        if gamma:  # the kernel draws it with the second half of the step before
            y = y + (higher**2 - r**2).sqrt() * s["noise"] * noise[2 * i - 1]
        slope = (y - denoised(y, higher)) / higher
        ahead = y + (end - higher) * slope
        y = y + (end - higher) * 0.5 * (slope + (ahead - denoised(ahead, end)) / end)
    return y * sde.marginal(torch.tensor(1e-3))[0]


@pytest.mark.parametrize(("sde", "churn"), [("ve", 4.0), ("vp", 4.0), ("vp", 400.0), ("subvp", 4.0)])
def test_steps_are_those_of_karras_and_others(sde: str, churn: float, device: torch.device) -> None:
    """The kernel's on the device, the paper's on the CPU."""
    model, n = SDES[sde], 8
    score, noise, x = DiffusedMixture(model, *MIXTURE), normal(2 * n, 6, 2, seed=5), model.prior_std * normal(6, 2)
    highest = float(model.ratio(torch.tensor(1.0)))
    s = {"churn": churn, "least": 0.05, "most": highest / 1.5, "noise": 1.007}
    kernel = eb.ProbabilityFlow(
        deepcopy(score).to(device),
        model,
        (2,),
        n,
        "heun",
        churn=churn,
        churn_range=(0.05, highest / 1.5),
        churn_noise=1.007,
    )
    state, tuning = kernel.init(x.to(device)), kernel.init_tuning(x.to(device))
    for row in noise.to(device):
        state, info = kernel.tick(state, tuning, {"normal": row, "start": row})
    assert bool(info.done.all())
    found, wanted = kernel.position(state).cpu(), published(model, score, x, noise, n, s)
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-7)


def variance_error(sde: LinearSDE, n: int, noise: float) -> float:
    """Of a draw of data N(0, 0.7) at t_min, exactly: chains get the start or one tick's noise each, as a linear score allows."""

    def variance(t: Tensor) -> Tensor:
        mean, std = sde.marginal(t)
        return mean.square() * 0.7 + std.square()

    t_min = float(sde.time_of(torch.tensor([0.4]))[0])
    kernel = eb.ProbabilityFlow(
        lambda x, t: -x / variance(t), sde, (), n, "heun", t_min=t_min, churn=3.0, churn_noise=noise
    )
    start = torch.zeros(2 * n + 1)
    start[0] = float(variance(torch.tensor(1.0)).sqrt())  # the law at T, not the prior
    state, tuning = kernel.init(start), kernel.init_tuning(start)
    for k in range(2 * n):
        z = torch.zeros(2 * n + 1)
        z[k + 1] = 1.0
        state, _ = kernel.tick(state, tuning, {"normal": z, "start": z})
    return abs(float(kernel.position(state).square().sum() - variance(torch.tensor(t_min))))


@pytest.mark.parametrize("sde", SDES)
def test_churn_keeps_the_weak_order_2(sde: str) -> None:
    errors = [variance_error(SDES[sde], n, 1.0) for n in (100, 200)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.2), errors
    assert variance_error(SDES[sde], 200, 1.1) > 100 * errors[1]  # too much noise would be seen


def test_moments_of_a_mixture(device: torch.device) -> None:
    """80 steps, of which the bias is far under the standard errors of 2,000 draws; two tenths of the noise missing are seen."""
    sde = SDES["vp"]
    score = DiffusedMixture(sde, *MIXTURE).to(device)
    right, wrong = (
        eb.generate(eb.ProbabilityFlow(score, sde, (2,), 80, "heun", churn=40.0, churn_noise=noise), 2000, seed=1).cpu()
        for noise in (1.0, 0.8)
    )
    limit = z_limit(FALSE_ALARM, 1)
    assert float(mixture_z_scores(right).abs().max()) < limit
    assert float(mixture_z_scores(wrong).abs().max()) > limit


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"churn": -1.0}, "churn >= 0, got -1"),
        ({"churn": math.nan}, "churn >= 0, got nan"),
        ({"churn": 1.0, "method": "euler"}, 'the method "heun" with a linear SDE, backward, for churn, got euler'),
        ({"churn": 1.0, "forward": True}, "backward, for churn"),
        ({"churn": 1.0, "churn_range": (2.0, 1.0)}, r"0 <= S_tmin < S_tmax, got \(2.0, 1.0\)"),
        ({"churn": 1.0, "churn_noise": 0.0}, "churn_noise > 0, got 0"),
    ],
)
def test_bad_input(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        eb.ProbabilityFlow(lambda x, t: -x, VP(), (2,), 5, **{"method": "heun", **options})


@pytest.mark.long
def test_compiled_draws_equal_eager_ones(device: torch.device) -> None:
    sde, backend = VE(0.1, 3.0), "inductor" if device.type == "cpu" else "cudagraph"
    score = DiffusedMixture(sde, *MIXTURE).to(device)
    kernel = eb.ProbabilityFlow(score, sde, (2,), 5, "heun", churn=3.0)
    found, wanted = (eb.generate(kernel, 10, seed=1, batch_size=5, backend=b) for b in (backend, "eager"))
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-8)
