"""Clocks, the order of steps by them, the start at little noise, the step sizes, and the first tick of an adaptive flow."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

import ebmppl as eb
from ebmppl import score
from ebmppl.score import VE, VP, CosineVP, DiscreteVP, GenericSDE, KarrasVE, LinearSDE, PreservingSDE, SubVP
from ebmppl.score.clock import Clock
from ebmppl.score.ode import TIME, Field, attempt, factor, solve
from ebmppl.score.velocity import Flow, velocity

F64 = torch.float64
PRESERVING: dict[str, Callable[[], PreservingSDE]] = {
    "vp": lambda: VP(),
    "subvp": lambda: SubVP(),
    "cosine": lambda: CosineVP(),
    "discrete": lambda: DiscreteVP(score.linear_betas(50, 0.1, 10.0)),
}
VARIANCE = 0.7  # of the data


def gaussian(sde: LinearSDE) -> Callable[[Tensor, Tensor], Tensor]:
    def of(x: Tensor, t: Tensor) -> Tensor:
        mean, std = sde.marginal(t)
        return -x / (mean.square() * VARIANCE + std.square()).unsqueeze(1)

    return of


def variance(sde: LinearSDE, t: float) -> float:
    mean, std = sde.marginal(torch.tensor(t, dtype=F64))
    return float(mean**2 * VARIANCE + std**2)


@pytest.mark.parametrize("name", PRESERVING)
def test_a_clock_shows_the_time_and_its_rate(name: str) -> None:
    """Between the corners of the piecewise rate of DDPM the rate is the inverse of the readings' own, by autograd."""
    sde = PRESERVING[name]()
    clock = Clock(sde)
    t = (torch.linspace(1e-5, 0.99, 41, dtype=F64) * sde.t_max).requires_grad_()
    u = clock.of(t)
    (slope,) = torch.autograd.grad(u.sum(), t)
    shown = clock.at(u.detach())
    torch.testing.assert_close(shown.time, t.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(shown.rate * slope, torch.ones_like(slope), rtol=1e-8, atol=0)
    assert clock.at(u.detach(), torch.float32).time.dtype == torch.float32
    assert clock.span(0.1, 0.2) == -clock.span(0.2, 0.1) > 0
    passed = clock.passing(t.detach()[20:], clock.of(t.detach()[10:31]) - u.detach()[20:])
    torch.testing.assert_close(passed, (t[20:] - t[10:31]).abs().detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("sde", [VE(), KarrasVE(), GenericSDE(lambda x, t: -x, lambda t: t, 1.0)])
def test_the_clock_of_another_sde_is_the_time(sde: score.SDE) -> None:
    t = torch.tensor([1e-5, 0.3], dtype=F64)
    shown = Clock(sde).at(Clock(sde).of(t))
    assert torch.equal(shown.time, t)
    assert torch.equal(shown.rate, torch.ones(2, dtype=F64))


@torch.no_grad()
@pytest.mark.parametrize("name", ["vp", "subvp", "cosine"])
def test_steps_by_the_clock_are_of_order_five(name: str) -> None:
    """On Gaussian data, from noise over signal of 0.2 to 1: the point and the integral of its divergence."""
    sde = PRESERVING[name]()
    clock, flow = Clock(sde), Flow(gaussian(sde), sde, torch.Size((1,)), None)
    first, last = sde.time_of(torch.tensor([0.2, 1.0], dtype=F64)).tolist()
    grown, errors, counts = variance(sde, last) / variance(sde, first), [], (16, 32)
    for n in counts:
        y, u = torch.tensor([[1.0, 0.0]], dtype=F64), clock.of(torch.tensor([first], dtype=F64))
        h = torch.tensor([clock.span(first, last) / n], dtype=F64)
        slope = flow.with_divergence(y, u)
        for _ in range(n):
            tried = attempt(flow.with_divergence, y, u, h, slope, steering=flow.velocity)
            y, slope, u = tried.end, tried.velocity, u + h
        errors.append((y - torch.tensor([[math.sqrt(grown), 0.5 * math.log(grown)]], dtype=F64)).abs())
    assert float((errors[1] / errors[0]).log2().add(5).abs().max()) < 0.2, errors


def constant_noise(sde: LinearSDE, t_min: float) -> tuple[Callable[[Tensor, Tensor], Tensor], Tensor]:
    """A score -1 / std, and where its flow carries 0: x / a grows by the growth of std / a."""
    low, high = (torch.tensor(t, dtype=F64) for t in (t_min, sde.t_max))
    end = sde.marginal(high)[0] * (sde.ratio(high) - sde.ratio(low))
    return lambda x, t: (-1 / sde.marginal(t)[1]).unsqueeze(1).expand_as(x), end


def test_the_start_at_little_noise_is_met() -> None:
    """There the slope in t is near infinite: by the clock the end is right to ten tolerances, by the time it is not."""
    sde, tol = VP(), 1e-5
    predicted, end = constant_noise(sde, 1e-5)

    def ended(clock: Clock) -> float:
        def field(x: Tensor, u: Tensor) -> Tensor:
            t, rate = clock.at(u)
            return velocity(sde, x, t, predicted(x, t)) * rate.unsqueeze(1)

        fields: Callable[[Tensor], tuple[Field, Field]] = lambda rows: (field, field)
        return float(solve(fields, torch.zeros(1, 1, dtype=F64), 1e-5, 1.0, tol, tol, clock=clock).end)

    assert abs(ended(Clock(sde)) - float(end)) < 10 * tol
    start = torch.zeros(1, 1, dtype=F64)
    found = eb.log_likelihood(lambda x, t: predicted(x, t) + 0 * x, sde, start, tol, tol)
    assert float((found.end - end).abs()) < 10 * tol
    back = eb.transport(eb.AdaptiveFlow(predicted, sde, (1,), rtol=tol, atol=tol, t_min=1e-5), end.view(1, 1))
    assert float(back.abs()) < 10 * tol / float(
        sde.marginal(torch.tensor(1.0))[0]
    )  # deviations grow by 1 / a backwards


@pytest.mark.parametrize("t_min", [1e-5, 1e-3])
@pytest.mark.parametrize("tol", [1e-3, 1e-4])
def test_a_velocity_that_begins_near_0_makes_no_long_first_step(tol: float, t_min: float) -> None:
    """KarrasVE's is about t: by its size alone the first step went past the data's width, 100 tolerances wrong."""
    sde, start = KarrasVE(80.0), torch.linspace(-2, 2, 40, dtype=F64).view(-1, 1)
    low, high = (variance(sde, t) ** 0.5 for t in (t_min, 80.0))
    end = Normal(torch.zeros((), dtype=F64), high)
    found = eb.log_likelihood(
        gaussian(sde), sde, start, tol, tol, t_min, log_prior=lambda x: end.log_prob(x).squeeze(1)
    )
    exact = Normal(torch.zeros((), dtype=F64), low).log_prob(start).squeeze(1)
    assert float((found.value - exact).abs().max()) < 10 * tol
    encoded = eb.transport(
        eb.AdaptiveFlow(gaussian(sde), sde, (1,), rtol=tol, atol=tol, t_min=t_min, forward=True), start
    )
    torch.testing.assert_close(encoded, start * high / low, rtol=10 * tol, atol=10 * tol)


def test_step_sizes_after_error_ratios() -> None:
    ratio = torch.tensor([0.5, 0.5, 4.0, 4.0, 0.0, 1e9, math.nan, math.inf], dtype=F64)
    before = torch.tensor([0.5, 0.05, 0.5, 0.05, 0.5, 0.5, 0.5, 0.5], dtype=F64)
    found = factor(ratio, before).tolist()
    assert found[0] == pytest.approx(0.9 * 0.5**-0.13)
    assert found[1] == pytest.approx(0.9 * 0.5**-0.17 * 0.05**0.04)  # errors grow: more careful
    assert found[2] == found[3] == pytest.approx(0.9 * 4**-0.2)
    assert found[4:] == [5.0, 0.2, 0.2, 0.2]


def test_the_first_tick_takes_a_step_from_the_score_seen_at_the_start() -> None:
    sde, asked = VP(), []

    def of(x: Tensor, t: Tensor) -> Tensor:
        asked.append(len(x))
        return gaussian(sde)(x, t)

    kernel = eb.AdaptiveFlow(of, sde, (2,))
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    state = kernel.init(x)
    assert asked == [5, 1]  # the second looks whether rows are alone
    state, info = kernel.tick(state, kernel.init_tuning(x), {"normal": torch.zeros(5, 2)})
    assert bool((state.time < 1).all())
    assert info.n_steps.tolist() == [7] * 5
    assert TIME.span(0.0, 1.0) == 1.0


class Quadratic(VP):
    """A subclass with rates of its own, which keeps the closed form of VP's times."""

    def beta(self, t: Tensor) -> Tensor:
        return 0.1 + 30 * t.square()

    def log_mean(self, t: Tensor) -> Tensor:
        return -0.5 * (0.1 * t + 10 * t**3)


def one(self: object, t: Tensor) -> Tensor:
    return torch.ones_like(t)


@pytest.mark.parametrize(
    ("parent", "own", "message"),
    [
        (VP, {"beta": one}, r"log_mean defined beside beta in Mine, .* \(log_mean = _LinearBeta.log_mean where"),
        (SubVP, {"log_mean": one}, "beta defined beside log_mean in Mine"),
        (CosineVP, {"beta": one}, "got CosineVP's"),
        (VP, {"diffusion": one}, "marginal or log_mean defined beside diffusion in Mine"),
        (VE, {"diffusion": one}, "beside diffusion in Mine, .* got VE's"),
        (KarrasVE, {"drift_coefficient": one}, "beside drift_coefficient in Mine"),
        (SubVP, {"drift": lambda self, x, t: -x.sin()}, "beside drift in Mine"),
    ],
)
def test_a_subclass_with_half_of_another_diffusion_is_refused(parent: type, own: dict, message: str) -> None:
    """Its steps would be of the one, its marginals of the other; whether it says so itself or by a mix-in."""
    with pytest.raises(ValueError, match=message):
        type("Mine", (parent,), own)
    with pytest.raises(ValueError, match=message):
        type("Mine", (type("Mixin", (), own), parent), {})


def test_a_subclass_with_all_of_it_or_none_is_not() -> None:
    type("Mine", (VP,), {"beta": VP.beta, "log_mean": VP.log_mean})
    type("Mine", (VP,), {"diffusion": one, "drift_coefficient": one, "marginal": VP.marginal})
    type("Mine", (LinearSDE,), {"diffusion": one, "drift_coefficient": one})
    type("Mine", (PreservingSDE,), {"beta": one})
    type("Further", (Quadratic,), {"__doc__": "Nothing else."})


def test_a_subclass_with_means_of_its_own_is_inverted_as_they_are() -> None:
    sde, t = Quadratic(), torch.linspace(0.01, 1, 20, dtype=F64)
    torch.testing.assert_close(sde.time_of(sde.ratio(t)), t, rtol=1e-9, atol=0.0)
    clock = Clock(sde)
    torch.testing.assert_close(clock.at(clock.of(t)).time, t, rtol=1e-9, atol=0.0)
    x, start = torch.tensor([[0.3, -0.2]], dtype=F64), 1e-3
    end, exact = (Normal(torch.zeros((), dtype=F64), math.sqrt(variance(sde, at))) for at in (1.0, start))
    found = eb.log_likelihood(gaussian(sde), sde, x, 1e-8, 1e-8, start, log_prior=lambda z: end.log_prob(z).sum(1))
    # steps of at most 1e-8 (1 + |value|) each, some hundred of them
    torch.testing.assert_close(found.value, exact.log_prob(x).sum(1), rtol=0.0, atol=1e-5)
