"""Kernels that follow a score: orders of convergence, published steps, moments of mixtures, modes, failures, the doors."""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import MCMC as PyroMCMC
from torch import Tensor, nn

import ebmppl as eb
from ebmppl.errors import EnergyError, SamplingWarning
from ebmppl.kernels.score import SteppedKernel
from ebmppl.sampling.advance import advance_together
from ebmppl.sampling.chains import Chains
from ebmppl.score import (
    VE,
    VP,
    EnergyGradient,
    GenericSDE,
    KarrasVE,
    LinearSDE,
    SubVP,
    UNet,
    geometric_sigmas,
    karras_times,
    log_snr_times,
    uniform_times,
)
from tests.score_targets import MIXTURE, PARAMETERS, DiffusedMixture, mixture_z_scores, normal, sdes, z_limit

F64 = torch.float64
SDES = sdes(PARAMETERS)
FALSE_ALARM = 1e-3  # of all statistical tests of this file together; seeds are fixed


pytestmark = pytest.mark.usefixtures("one_thread_of_float64")


def gaussian_score(sde: LinearSDE, variance: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Of data N(0, variance I)."""

    def score(x: Tensor, t: Tensor) -> Tensor:
        mean, std = sde.marginal(t)
        return -x / (mean.square() * variance + std.square()).view(-1, *[1] * (x.dim() - 1))

    return score


def generic(sde: LinearSDE) -> GenericSDE:
    return GenericSDE(sde.drift, sde.diffusion, sde.prior_std)


# Orders of convergence, on Gaussian data, where everything is known.

VARIANCE = 0.7
# Where noise over signal is 0.8, amid the change from noise to data: nearer to the data leading terms of errors cancel.
ENDS = {sde: float(sde.time_of(torch.tensor([0.8], dtype=F64))) for sde in SDES.values()}


def spread(sde: LinearSDE, t: float) -> float:
    mean, std = sde.marginal(torch.tensor(t))
    return math.sqrt(float(mean) ** 2 * VARIANCE + float(std) ** 2)


def slope(errors: list[float]) -> float:
    return math.log2(errors[-2] / errors[-1])


def flow_error(sde: LinearSDE, method: str, n: int, *, forward: bool, own: bool) -> float:
    kernel = eb.ProbabilityFlow(
        gaussian_score(sde, VARIANCE),
        generic(sde) if own else sde,
        (),
        n,
        method,
        t_min=ENDS[sde],
        times=uniform_times if own else log_snr_times,
        forward=forward,
    )
    found = float(eb.transport(kernel, torch.ones(1)))
    shrunk = spread(sde, ENDS[sde]) / spread(sde, 1.0)
    return abs(found - (1 / shrunk if forward else shrunk))


FLOWS = {"euler": 1, "heun": 2, "dpm_solver_2m": 2, "dpm_solver_3m": 3}


@pytest.mark.parametrize("forward", [False, True])
@pytest.mark.parametrize("sde", SDES)
@pytest.mark.parametrize("method", FLOWS)
def test_the_order_of_probability_flow(method: str, sde: str, forward: bool) -> None:
    errors = [flow_error(SDES[sde], method, n, forward=forward, own=False) for n in (100, 200)]
    assert slope(errors) == pytest.approx(FLOWS[method], abs=0.2), errors


@pytest.mark.parametrize("sde", ["ve", "vp"])
@pytest.mark.parametrize("method", ["euler", "heun"])
def test_the_order_of_probability_flow_of_a_users_sde(method: str, sde: str) -> None:
    errors = [flow_error(SDES[sde], method, n, forward=False, own=True) for n in (200, 400)]
    assert slope(errors) == pytest.approx(FLOWS[method], abs=0.2), errors


def last_variance(kernel: SteppedKernel, start_std: float | None = None) -> float:
    """Of a draw, exactly: with a linear score a draw is linear in its start and in every step's noise, so chains that get
    one of these each, and nothing else, show its coefficients. It starts with that deviation, or the prior's."""
    ticks = kernel.ticks_per_draw
    start = torch.zeros(ticks + 1)
    start[0] = start_std or kernel.target.prior_std
    state, tuning = kernel.init(start), kernel.init_tuning(start)
    for k in range(ticks):
        noise = torch.zeros(ticks + 1)
        noise[k + 1] = 1.0
        state, info = kernel.tick(state, tuning, {"normal": noise, "start": torch.zeros(ticks + 1)})
    assert bool(info.done.all())
    return float(kernel.position(state).square().sum())


def variance_error(sde: LinearSDE, method: str, n: int, *, own: bool) -> float:
    score, target = gaussian_score(sde, VARIANCE), generic(sde) if own else sde
    kernel = eb.ReverseSDE(score, target, (), n, method, t_min=ENDS[sde], last_noise=True)
    # the prior's variance differs from that of p_T, and so do they at the end
    excess = (sde.prior_std**2 - spread(sde, 1.0) ** 2) * gain(sde) ** 2
    return last_variance(kernel) - spread(sde, ENDS[sde]) ** 2 - excess


def gain(sde: LinearSDE) -> float:
    """By what the exact reverse SDE multiplies a deviation from T to the end."""
    t = torch.linspace(ENDS[sde], 1.0, 20_001)
    mean, std = sde.marginal(t)
    rate = sde.diffusion(t).square() / (mean.square() * VARIANCE + std.square()) + sde.drift_coefficient(t)
    weights = torch.ones(20_001)
    weights[1:-1:2], weights[2:-1:2] = 4.0, 2.0  # Simpson
    return math.exp(-float((weights * rate).sum()) * float(t[1] - t[0]) / 3)


SOLVERS = {"euler_maruyama": 1, "ancestral": 1, "heun": 2}


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("sde", SDES)
@pytest.mark.parametrize("method", SOLVERS)
def test_the_weak_order_of_the_reverse_sde(method: str, sde: str, own: bool) -> None:
    if own and method == "ancestral":
        pytest.skip("needs the marginals")
    errors = [abs(variance_error(SDES[sde], method, n, own=own)) for n in (200, 400)]
    assert slope(errors) == pytest.approx(SOLVERS[method], abs=0.2), errors


def corrected_variance(sde: LinearSDE, n: int, snr: float) -> float:
    """By predictor and corrector with two steps each, from the exact law at T."""
    score = gaussian_score(sde, VARIANCE)
    kernel = eb.ReverseSDE(
        score, sde, (), n, "predictor_corrector", t_min=ENDS[sde], last_noise=True, snr=snr, corrector_steps=2
    )
    return last_variance(kernel, spread(sde, 1.0))


@pytest.mark.parametrize("sde", SDES)
def test_the_weak_order_of_predictor_and_corrector(sde: str) -> None:
    """1 where the corrector's steps shrink as the predictor's do, and 1 to the corrector's own law where they stay.

    Of a variance V a Langevin step x - e x / V + sqrt(2 e) z has the law of variance V / (1 - e / (2 V)), to which many small
    predictor steps come, however exact they are; that is away from V by O(e) = O(snr^2).
    """
    model = SDES[sde]
    exact, std = spread(model, ENDS[model]) ** 2, float(model.marginal(torch.tensor(ENDS[model]))[1])
    shrinking = [abs(corrected_variance(model, n, 4 / math.sqrt(n)) - exact) for n in (100, 200)]
    assert slope(shrinking) == pytest.approx(1, abs=0.2), shrinking
    own = exact / (1 - (0.8 * std) ** 2 / exact)  # so large an snr that of the start, and of the way, nothing is left
    assert own - exact > 0.3 * exact
    staying = [abs(corrected_variance(model, n, 0.8) - own) for n in (100, 200)]
    assert slope(staying) == pytest.approx(1, abs=0.2), staying


def test_a_solver_of_lower_order_would_be_seen() -> None:
    errors = [flow_error(SDES["vp"], "euler", n, forward=False, own=False) for n in (100, 200)]
    assert abs(slope(errors) - 2) > 0.2


@pytest.mark.parametrize("sde", SDES)
@pytest.mark.parametrize("method", ["dpm_solver_2m", "dpm_solver_3m"])
def test_multistep_solvers_are_best_in_even_steps_of_log_snr(method: str, sde: str) -> None:
    """Distances to the flow's own ends at 10 calls, on the mixture; the grid taken is the better one."""
    model = SDES[sde]
    score, x = DiffusedMixture(model, *MIXTURE), model.prior_std * normal(100, 2)
    exact = eb.transport(eb.AdaptiveFlow(score, model, (2,), rtol=1e-7, atol=1e-8), x)
    ends = [
        eb.transport(eb.ProbabilityFlow(score, model, (2,), 10, method, times=times), x)
        for times in (None, log_snr_times, karras_times)
    ]
    assert torch.equal(ends[0], ends[1])
    own, karras = (float((end - exact).square().mean().sqrt()) for end in ends[1:])
    assert own < karras


# Published steps, written down again.


class Recorded:
    """The noise of a kernel's ticks, in order."""

    def __init__(self, ticks: int, shape: tuple[int, ...]) -> None:
        self.rows = normal(ticks, *shape, seed=5)

    def draw(self, kernel: SteppedKernel, x: Tensor) -> Tensor:
        state, tuning = kernel.init(x), kernel.init_tuning(x)
        for row in self.rows[: kernel.ticks_per_draw].to(x.device):
            state, info = kernel.tick(state, tuning, {"normal": row, "start": row})
        assert bool(info.done.all())
        return kernel.position(state)


def equal(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found.cpu(), wanted.cpu(), rtol=1e-9, atol=1e-9)


def test_ancestral_steps_are_ddpm() -> None:
    """With DDPM's own products of 1 - beta as the marginals, 50 steps by Ho et al. 2020, algorithm 2."""
    betas = eb.score.linear_betas(50)
    kept = torch.cat([torch.ones(1), (1 - betas).cumprod(0)])

    class Discrete(VP):
        def marginal(self, t: Tensor) -> tuple[Tensor, Tensor]:
            squared = kept[(t * 50).round().long()]
            return squared.sqrt(), (1 - squared).sqrt()

    sde = Discrete()
    score = gaussian_score(sde, 0.5)
    noise = Recorded(49, (6, 2))
    x = normal(6, 2)
    kernel = eb.ReverseSDE(score, sde, (2,), 49, "ancestral", t_min=1 / 50)
    found = noise.draw(kernel, x)
    for k in range(50, 1, -1):
        t = torch.full((6,), k / 50)
        beta, std = betas[k - 1], (1 - kept[k]).sqrt()
        epsilon = -std * score(x, t)
        x = (x - beta / std * epsilon) / (1 - beta).sqrt()
        if k > 2:
            x = x + (beta * (1 - kept[k - 1]) / (1 - kept[k])).sqrt() * noise.rows[50 - k]
    equal(found, x)


@pytest.mark.parametrize("sde", SDES)
def test_euler_maruyama_is_song_and_others(sde: str, device: torch.device) -> None:
    """Our steps on the device, the paper's on the CPU."""
    model = SDES[sde]
    score, noise, x = DiffusedMixture(model, *MIXTURE), Recorded(20, (6, 2)), normal(6, 2)
    found = noise.draw(eb.ReverseSDE(deepcopy(score).to(device), model, (2,), 20, t_min=1e-3), x.to(device))
    times = torch.linspace(1, 1e-3, 21)
    for i in range(20):
        t, h = times[i].expand(6), times[i] - times[i + 1]
        g = model.diffusion(t).unsqueeze(1)
        mean = x - (model.drift(x, t) - g.square() * score(x, t)) * h
        x = mean + g * h.sqrt() * noise.rows[i]
    equal(found, mean)


@pytest.mark.parametrize("sde", SDES)
def test_dpm_solver_is_lu_and_others(sde: str, device: torch.device) -> None:
    """2M by algorithm 2 of the paper; the second of three points' weights by solving for polynomials."""
    model = SDES[sde]
    score, x0 = DiffusedMixture(model, *MIXTURE), model.prior_std * normal(6, 2)
    kernel = eb.ProbabilityFlow(deepcopy(score).to(device), model, (2,), 12, "dpm_solver_2m", times=log_snr_times)
    found = eb.transport(kernel, x0.to(device))
    x, before = x0, None
    times = log_snr_times(model, 12, 1e-3)
    for s, t in zip(times[:-1], times[1:], strict=True):
        (a0, std0), (a1, std1) = model.marginal(s), model.marginal(t)
        h = (a1 / std1).log() - (a0 / std0).log()
        data = (x + std0.square() * score(x, s.expand(6))) / a0
        used = data
        if before is not None:
            r = before[1] / h
            used = (1 + 1 / (2 * r)) * data - 1 / (2 * r) * before[0]
        x = std1 / std0 * x - a1 * torch.expm1(-h) * used
        before = data, h
    equal(found, x)


def test_three_points_integrate_parabolas_exactly() -> None:
    from ebmppl.kernels.solvers import _parabola_weights

    h, b, c = 0.7, -0.8, -1.9
    weights = torch.tensor(_parabola_weights(h, b, c))
    nodes = torch.tensor([0.0, b, c])
    for power in range(3):
        u = torch.linspace(0, 1, 20_001)
        values = h * torch.exp(-(1 - u) * h) * u**power
        assert float((weights * nodes**power).sum()) == pytest.approx(float(torch.trapezoid(values, u)), rel=1e-7)


def test_consistent_steps_keep_the_levels_noise() -> None:
    """From data 0 with its exact score -x / sigma^2, x is N(0, sigma_i^2) at every level, and 0 in the end."""
    sigmas = geometric_sigmas(8, 0.1, 4.0)
    score = lambda x, sigma: -x / sigma.square()
    for levels in range(2, 9):
        kernel = eb.AnnealedLangevin(score, sigmas[:levels], (), 1, 0.6, consistent=True, denoise=False)
        mean_part = (1 - 0.6) * float(sigmas[levels - 1])  # after the last step, which adds no noise
        assert math.sqrt(last_variance(kernel)) == pytest.approx(mean_part, rel=1e-9)


# Moments of a mixture from its exact score.

N = 4000
KERNELS: dict[str, Callable[[Any, LinearSDE], SteppedKernel]] = {
    "euler_maruyama": lambda s, sde: eb.ReverseSDE(s, sde, (2,), 300),
    "euler_maruyama, denoised": lambda s, sde: eb.ReverseSDE(s, sde, (2,), 300, last_noise=True, denoise=True),
    "heun": lambda s, sde: eb.ReverseSDE(s, sde, (2,), 100, "heun"),
    "ancestral": lambda s, sde: eb.ReverseSDE(s, sde, (2,), 600, "ancestral", times=log_snr_times),
    "predictor_corrector": lambda s, sde: eb.ReverseSDE(s, sde, (2,), 300, "predictor_corrector", times=log_snr_times),
    "ddim": lambda s, sde: eb.ProbabilityFlow(s, sde, (2,), 200, "euler"),
    "flow, heun": lambda s, sde: eb.ProbabilityFlow(s, sde, (2,), 30, "heun"),
    "dpm_solver_2m": lambda s, sde: eb.ProbabilityFlow(s, sde, (2,), 40, "dpm_solver_2m"),
    "dpm_solver_3m": lambda s, sde: eb.ProbabilityFlow(s, sde, (2,), 30, "dpm_solver_3m"),
    "adaptive": lambda s, sde: eb.AdaptiveFlow(s, sde, (2,)),
}


LIMIT = z_limit(FALSE_ALARM, len(KERNELS) * len(SDES) + 20 // 6)


# each kernel with one SDE; all pairs where time allows
PAIRS = [
    pytest.param(kernel, sde, marks=() if (i + j) % 3 == 0 else pytest.mark.long)
    for i, kernel in enumerate(KERNELS)
    for j, sde in enumerate(SDES)
]


@pytest.mark.parametrize(("kernel", "sde"), PAIRS)
def test_a_mixtures_moments(kernel: str, sde: str, device: torch.device) -> None:
    """The steps' own bias is under the standard errors at these numbers of steps; see the next test."""
    with torch.random.fork_rng():
        made = KERNELS[kernel](DiffusedMixture(SDES[sde], *MIXTURE).to(device), SDES[sde])
        x = eb.generate(made, N, seed=3)
        assert x.device.type == device.type
        assert float(mixture_z_scores(x.cpu()).abs().max()) < LIMIT


@pytest.mark.parametrize(("kernel", "sde"), [p for p in PAIRS if p.values[0] in ("ancestral", "predictor_corrector")])
def test_the_bias_of_these_steps_is_under_the_standard_errors(kernel: str, sde: str) -> None:
    """Of a Gaussian of the mixture's least variance, exactly: the two with the largest bias.

    The standard error of a mean square of ``N`` draws is sqrt(2 / N) of it. Even steps in t, 300 and 150, had up to 3.5 of it.
    """
    made = KERNELS[kernel](gaussian_score(SDES[sde], 0.1), SDES[sde])
    assert abs(last_variance(made) / 0.1 - 1) < math.sqrt(2 / N)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_score_a_fifth_too_small_is_noticed(kernel: str) -> None:
    exact = DiffusedMixture(SDES["vp"], *MIXTURE)
    with torch.random.fork_rng():
        made = KERNELS[kernel](lambda x, t: 0.8 * exact(x, t), SDES["vp"])
        assert float(mixture_z_scores(eb.generate(made, 4000, seed=3)).abs().max()) > LIMIT


@pytest.mark.data
@pytest.mark.parametrize("sde", SDES)
def test_the_adaptive_flow_reaches_the_exact_ends(shared_data: Path, sde: str) -> None:
    exact = json.loads((shared_data / "exact" / "sde_gmm.json").read_text())
    x = torch.tensor(exact["points"])
    wanted = torch.tensor(exact["sde"][sde]["probability_flow"]["x_T"])
    score = DiffusedMixture(SDES[sde], *MIXTURE)
    options: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-10, "t_min": 1e-5}
    found = eb.transport(eb.AdaptiveFlow(score, SDES[sde], (2,), forward=True, **options), x)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7)
    back = eb.transport(eb.AdaptiveFlow(score, SDES[sde], (2,), **options), found)
    torch.testing.assert_close(back, x, rtol=1e-5, atol=1e-6)


def test_a_chain_that_has_arrived_costs_nothing_more() -> None:
    """Rows that the score is asked for are those that each chain needs alone, and draws are the same."""
    rows = 0
    mixture = DiffusedMixture(SDES["vp"], *MIXTURE)

    def score(x: Tensor, t: Tensor) -> Tensor:
        nonlocal rows
        rows += len(x)
        return mixture(x, t)

    kernel = eb.AdaptiveFlow(score, SDES["vp"], (2,), rtol=1e-3)
    x = torch.cat([normal(5, 2), 30 * normal(1, 2, seed=4)])
    looks = len(x) + 1  # at the beginning
    together = eb.transport(kernel, x, seed=0)
    needed, rows = rows - looks, 0
    alone = torch.cat([eb.transport(kernel, point.unsqueeze(0), seed=0) for point in x])
    assert needed == rows - 2 * len(x)
    torch.testing.assert_close(together, alone)


def test_a_tighter_tolerance_is_met_with_more_steps() -> None:
    sde, x = SDES["vp"], torch.ones(3)
    gain = spread(sde, ENDS[sde]) / spread(sde, 1.0)
    errors, ticks = [], []
    for rtol in (1e-4, 1e-7, 1e-10):
        kernel = eb.AdaptiveFlow(gaussian_score(sde, VARIANCE), sde, (), rtol=rtol, atol=1e-12, t_min=ENDS[sde])
        run = Chains(kernel, x, 0)
        run.advance(1)
        errors.append(float((run.position() - gain).abs().max()))
        ticks.append(run.now.tick)
    assert all(error < 10 * rtol for error, rtol in zip(errors, (1e-4, 1e-7, 1e-10), strict=True)), errors
    assert ticks[0] < ticks[1] < ticks[2]


# Far-apart modes.


def far_apart(x: Tensor, sigma: Tensor) -> Tensor:
    """0.8 N(-8, 1) + 0.2 N(8, 1) with noise sigma."""
    variance = (1 + sigma.square()).unsqueeze(1)
    log_odds = math.log(0.2 / 0.8) + 16 * x / variance
    return (16 * torch.sigmoid(log_odds) - 8 - x) / variance


def share_at_the_right(x: Tensor) -> float:
    """In standard errors from 0.2."""
    return (float((x > 0).double().mean()) - 0.2) / math.sqrt(0.16 / len(x))


@pytest.mark.parametrize(("steps_per_level", "step_size", "consistent"), [(3, 0.01, False), (1, 0.9, True)])
def test_annealed_langevin_ends_with_the_mean_of_the_data(
    steps_per_level: int,
    step_size: float,
    consistent: bool,
) -> None:
    """Tweedie: x + sigma_L^2 s(x, sigma_L) of what it is without."""
    x, sigmas = normal(50, 1), [2.0, 1.0, 0.5]
    without, denoised = (
        eb.transport(
            eb.AnnealedLangevin(
                far_apart, sigmas, (1,), steps_per_level, step_size, consistent=consistent, denoise=denoise
            ),
            x,
            seed=0,
        )
        for denoise in (False, True)
    )
    wanted = without + 0.25 * far_apart(without, torch.full((50,), 0.5, dtype=x.dtype))
    torch.testing.assert_close(denoised, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", [eb.AnnealedLangevin, eb.AnnealedMALA])
def test_default_steps_go_with_the_levels(kind: type) -> None:
    """Data and levels in other units give the same draws in those; at NCSN's levels the step is NCSN's."""

    def draws(unit: float) -> Tensor:
        def energy(x: Tensor, sigma: Tensor) -> Tensor:
            return 0.5 * x.square().sum(1) / (unit**2 + sigma**2)

        model = eb.score.EnergyGradient(energy, eb.score.KarrasVE(10 * unit))
        kernel = kind(model, geometric_sigmas(5, 0.1 * unit, 5.0 * unit), (2,), 5)
        start = torch.ones(50, 2, dtype=torch.float64)
        return eb.transport(kernel, unit * start, seed=0) / unit

    torch.testing.assert_close(draws(30.0), draws(1.0), rtol=1e-9, atol=1e-9)
    model = eb.score.EnergyGradient(lambda x, t: x.square().sum(1), eb.score.KarrasVE(1.0))
    assert kind(model, geometric_sigmas(10, 0.01, 1.0), (2,)).step_size == pytest.approx(2e-5)


def test_annealed_langevin_weighs_far_modes_right_where_langevin_does_not() -> None:
    """Consistent steps at 400 levels; plain Langevin begins in the middle, as annealed does, and never crosses again.

    So many draws see the bias of 0.013 in the weight that consistent steps of 0.2 have at these levels (of 0.02: 0.016 the other
    way); that of 0.05 they don't.
    """
    sigmas = geometric_sigmas(400, 0.05, 50.0)
    annealed, coarse = (
        eb.generate(
            eb.AnnealedLangevin(far_apart, sigmas, (1,), 1, eta, consistent=True), 40_000, seed=0, batch_size=40_000
        )
        for eta in (0.05, 0.2)
    )
    stepped = eb.generate(eb.AnnealedLangevin(far_apart, sigmas[::4], (1,), 20, 0.0005), 2000, seed=1)
    reverse = eb.generate(
        eb.ReverseSDE(lambda x, t: far_apart(x, VE(0.05, 50.0).marginal(t)[1]), VE(0.05, 50.0), (1,), 400), 2000, seed=2
    )
    energy = eb.as_energy(
        lambda x: (
            -torch.logaddexp(-0.5 * (x[:, 0] + 8) ** 2 + math.log(0.8), -0.5 * (x[:, 0] - 8) ** 2 + math.log(0.2))
        ),
        (1,),
    )
    run = Chains(eb.Langevin(energy, 0.1), 3 * normal(2000, 1, seed=3), 3)
    run.advance(300)
    assert abs(share_at_the_right(annealed)) < LIMIT
    assert abs(share_at_the_right(coarse)) > LIMIT
    assert abs(share_at_the_right(stepped)) < LIMIT
    assert abs(share_at_the_right(reverse)) < LIMIT
    assert abs(share_at_the_right(run.position())) > 20
    for x in (annealed[:2000], reverse):  # within a mode, but for the steps' own bias
        left = x[x < 0] + 8
        assert abs(float(left.mean())) < LIMIT / math.sqrt(len(left))


# The doors: generate, MCMC, Pyro; shapes, types, seeds.


class Small(nn.Module):
    """A network that stands in for one."""

    def __init__(self, dtype: torch.dtype = F64) -> None:
        super().__init__()
        self.net = eb.score.TimeMLP((1, 3, 2), (8,)).to(dtype)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return 0.1 * self.net(x, t) - x


class Potential(nn.Module):
    """An energy of such a network, ``(x, t) -> (chains,)``."""

    def __init__(self, network: Small) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return (0.5 * x.square() + 0.1 * self.network(x, t).tanh()).flatten(1).sum(1)


def conservative(network: Small) -> EnergyGradient:
    return EnergyGradient(Potential(network), KarrasVE(3.0))


MADE: dict[str, Callable[[Any], eb.kernels.Kernel]] = {
    "reverse": lambda s: eb.ReverseSDE(s, VP(), (1, 3, 2), 4),
    "reverse, last noise": lambda s: eb.ReverseSDE(s, VP(), (1, 3, 2), 4, last_noise=True),
    "reverse, heun": lambda s: eb.ReverseSDE(s, VE(0.1, 3.0), (1, 3, 2), 4, "heun"),
    "corrector": lambda s: eb.ReverseSDE(s, SubVP(), (1, 3, 2), 4, "predictor_corrector", denoise=True),
    "user's": lambda s: eb.ReverseSDE(s, generic(VP()), (1, 3, 2), 4),
    "flow": lambda s: eb.ProbabilityFlow(s, VP(), (1, 3, 2), 4, "dpm_solver_3m"),
    "adaptive": lambda s: eb.AdaptiveFlow(s, VP(), (1, 3, 2)),
    "adaptive reverse": lambda s: eb.AdaptiveReverseSDE(s, VP(), (1, 3, 2), rtol=0.1, atol=0.1, denoise=True),
    "annealed": lambda s: eb.AnnealedLangevin(s, [2.0, 1.0], (1, 3, 2), 2, 0.01),
    "annealed mala": lambda s: eb.AnnealedMALA(conservative(s), [2.0, 1.0], (1, 3, 2), 2, 0.1),
    "energy gradient": lambda s: eb.ReverseSDE(conservative(s), KarrasVE(3.0), (1, 3, 2), 4),
}


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("name", MADE)
def test_draws_have_shape_dtype_device_and_a_seed(name: str, dtype: torch.dtype, device: torch.device) -> None:
    kernel = MADE[name](Small(dtype).to(device))
    x = eb.generate(kernel, 7, seed=1, batch_size=3)
    assert x.shape == (7, 1, 3, 2)
    assert (x.dtype, x.device.type) == (dtype, device.type)
    assert torch.equal(x, eb.generate(kernel, 7, seed=1, batch_size=3))
    assert len(x.reshape(7, -1).unique(dim=0)) == 7  # the draws of one chain differ
    assert not torch.equal(x, eb.generate(kernel, 7, seed=2, batch_size=3))


@pytest.mark.parametrize("name", MADE)
def test_chains_do_not_see_one_another(name: str, device: torch.device) -> None:
    kernel, starts = MADE[name](Small().to(device)), normal(70, 1, 3, 2).to(device)
    many, few = (Chains(kernel, x, 3) for x in (starts, starts[:64]))
    for run in (many, few):
        run.advance(2)
    # a batch of another size multiplies matrices in another order
    torch.testing.assert_close(many.position()[:64], few.position(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", MADE)
def test_a_chains_draws_are_independent(name: str, device: torch.device) -> None:
    """Correlation of 2,000 chains' first and second draws, which is N(0, 1 / 2,000) where they are."""
    run = Chains(MADE[name](Small().to(device)), normal(2000, 1, 3, 2).to(device), 4)
    run.advance(1)
    first = run.position().clone()
    run.advance(1)
    a, b = ((x - x.mean(0)) / x.std(0) for x in (first, run.position()))
    assert float((a * b).mean(0).abs().max()) < math.sqrt(2 * math.log(2 * 6 * len(MADE) / FALSE_ALARM) / 2000)


@pytest.mark.parametrize("name", MADE)
def test_under_our_mcmc_and_pyros(name: str, device: torch.device) -> None:
    network = Small().to(device)
    mcmc = eb.MCMC(MADE[name](network), 3, 0, num_chains=5, seed=0, disable_progbar=True)
    mcmc.run()
    x = mcmc.get_samples(group_by_chain=True)["x"]
    assert x.shape == (5, 3, 1, 3, 2)
    assert x.device.type == device.type
    assert bool(x.isfinite().all())
    assert len(x.reshape(15, -1).unique(dim=0)) == 15
    assert not bool(mcmc.stats()["diverging"].any())
    assert "posterior" in str(mcmc.to_arviz())
    with torch.random.fork_rng():
        pyro.set_rng_seed(0)
        theirs = PyroMCMC(MADE[name](network), num_samples=4, warmup_steps=1, disable_progbar=True)
        theirs.run()
        assert theirs.get_samples()["x"].shape == (4, 1, 3, 2)


@pytest.mark.parametrize("name", ["reverse", "reverse, heun", "adaptive", "adaptive reverse"])
def test_a_continued_run_equals_an_uninterrupted_one(name: str, tmp_path: Path, device: torch.device) -> None:
    network = Small().to(device)

    def run(n: int) -> eb.MCMC:
        mcmc = eb.MCMC(MADE[name](network), n, 0, num_chains=5, seed=0, thinning=2, disable_progbar=True)
        mcmc.run()
        return mcmc

    first, whole = run(2), run(5)
    first.save(tmp_path / "run")
    again = eb.MCMC.load(tmp_path / "run", MADE[name](network))
    again.run(num_samples=3)
    assert torch.equal(again.get_samples()["x"], whole.get_samples()["x"])
    per_draw = whole.kernel.ticks_per_draw
    assert not whole.kernel.in_step or whole.now.tick == 10 * per_draw  # no tick too many


class Mixing(nn.Module):
    """A score of a network, and some of the batch's mean."""

    def __init__(self, network: nn.Module, much: float) -> None:
        super().__init__()
        self.network, self.much = network, much

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.network(x, t) + self.much * x.mean(0)


def test_rows_of_a_u_net_are_not_mixed_by_rounding(device: torch.device) -> None:
    """Of float32, as a GPU's convolutions make them of TF32, and others for another size of batch."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = UNet((1, 16, 16), 16, 1).float().to(device)
    for much in (0.0, 0.5):
        kernel = eb.ReverseSDE(Mixing(network, much), VP(), (1, 16, 16), 2)
        with pytest.raises(ValueError, match="mixes the rows") if much else nullcontext():
            assert eb.generate(kernel, 64, seed=0).device.type == device.type


@pytest.mark.long
@pytest.mark.parametrize("name", MADE)
def test_compiled_draws_equal_eager_ones(name: str, device: torch.device) -> None:
    kernel = MADE[name](Small().to(device))
    backend = "inductor" if device.type == "cpu" else "cudagraph"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = eb.generate(kernel, 10, seed=1, batch_size=5, backend=backend)
    torch.testing.assert_close(found, eb.generate(kernel, 10, seed=1, batch_size=5), rtol=1e-8, atol=1e-8)


@pytest.mark.long
def test_an_adaptive_flow_of_single_precision_compiles() -> None:
    """Its errors are rounding where the score is smooth, and so are the sizes of its next steps."""
    score = DiffusedMixture(VP(), *MIXTURE).float()
    draws = [
        eb.generate(eb.AdaptiveFlow(score, VP(), (2,)), 64, seed=0, backend=backend)
        for backend in ("eager", "inductor")
    ]
    assert draws[0].dtype == torch.float32
    torch.testing.assert_close(draws[1], draws[0], rtol=0, atol=1e-3)  # ten times the tolerance of a step


def test_a_users_sde_takes_the_steps_of_ours() -> None:
    score, x = DiffusedMixture(VP(), *MIXTURE), normal(6, 2)
    for method in ("euler_maruyama", "heun"):
        noise = Recorded(20, (6, 2))
        ours, theirs = (eb.ReverseSDE(score, sde, (2,), 10, method) for sde in (VP(), generic(VP())))
        equal(noise.draw(theirs, x), noise.draw(ours, x))


def variance_of_draws(kernel: SteppedKernel, data: float, start: float) -> float:
    """Of the draws from N(0, data) under ``KarrasVE``, whose steps are linear, from N(0, start): exact."""
    steps, variance = kernel._steps, start
    for t, point, by_score, noise in zip(steps.time, steps.point, steps.score, steps.noise, strict=True):
        slope = float(point - by_score / (data + t**2))
        variance = slope**2 * variance + float(noise) ** 2
    return variance


@pytest.mark.parametrize("method", ["euler_maruyama", "ancestral"])
def test_noise_levels_for_times_are_stepped_through_as_such(method: str) -> None:
    """Of 100 even steps the last alone is at the data's scale: variances were 16 times and a ninth of the data's."""
    data, sde = 0.3**2, KarrasVE(80.0)
    score = lambda x, t: -x / (data + t**2).unsqueeze(1)
    found = {
        name: variance_of_draws(eb.ReverseSDE(score, sde, (1,), 100, method, **options), data, 80.0**2) / data
        for name, options in {"ours": {}, "even": {"times": eb.score.uniform_times}}.items()
    }
    assert abs(found["ours"] - 1) < 0.15 < 0.8 < abs(found["even"] - 1)


def test_a_users_sde_may_count_the_times_that_it_is_given() -> None:
    counted = eb.score.GenericSDE(lambda x, t: -x, lambda t: t.new_full((len(t),), 1.4), 1.0, 3.0)
    plain = eb.score.GenericSDE(lambda x, t: -x, lambda t: 1.4, 1.0, 3.0)
    for make in (eb.ReverseSDE, eb.ProbabilityFlow):
        ends = [eb.generate(make(SCORE, sde, (2,), 5, method="heun"), 4, seed=0) for sde in (counted, plain)]
        assert torch.equal(*ends)


def test_a_mean_is_no_energy() -> None:
    with pytest.raises(EnergyError, match="got a score model"):
        MADE["flow"](Small()).target(normal(1, 1, 3, 2))
    with pytest.raises(ValueError, match=r"a kernel that gives independent draws, got Langevin"):
        eb.generate(eb.Langevin(eb.energies.DoubleWell(2), 0.1), 5)


# Failures are counted and told.


class Broken(nn.Module):
    """NaN in these times, at points with a positive first coordinate."""

    limits: Tensor

    def __init__(self, lowest: float, highest: float) -> None:
        super().__init__()
        self.register_buffer("limits", torch.tensor([lowest, highest]))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        bad = (t > self.limits[0]) & (t < self.limits[1]) & (x[:, 0] > 0)
        return torch.where(bad.unsqueeze(1), math.nan, -x)


@pytest.mark.parametrize(
    "make",
    [
        lambda score: eb.ReverseSDE(score, VP(), (2,), 7),
        lambda score: eb.ReverseSDE(score, VP(), (2,), 7, last_noise=True),
        lambda score: eb.ReverseSDE(score, generic(VP()), (2,), 7, "heun"),
        lambda score: eb.ProbabilityFlow(score, VP(), (2,), 7, "dpm_solver_3m"),
        lambda score: eb.ProbabilityFlow(score, VP(), (2,), 7, "euler", forward=True),
    ],
)
def test_ticks_without_infos_give_the_same_states(make: Callable[[Any], SteppedKernel], device: torch.device) -> None:
    """Bit for bit, over the ends of draws, one of which fails in some chains."""
    kernel = make(Broken(0.3, 0.6).to(device))
    many, one = (Chains(kernel, normal(20, 2).to(device), 1, record=False) for _ in range(2))
    rates: list[Tensor] = []
    many.now = advance_together(kernel, many.noise, many.now, 17, rates)
    wanted = [one._tick(adapt=False).acceptance_rate for _ in range(17)]
    torch.testing.assert_close(tuple(many.now.state), tuple(one.now.state), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(rates, wanted, rtol=0, atol=0)
    assert 0 < int((many.now.state.failure != 0).sum()) < 20


@pytest.mark.parametrize(
    "make", [lambda s: eb.ReverseSDE(s, VP(), (2,), 10), lambda s: eb.ProbabilityFlow(s, VP(), (2,), 10)]
)
def test_a_score_that_is_nan_is_told_with_time_and_chains(
    make: Callable[[Any], SteppedKernel], device: torch.device
) -> None:
    kernel = make(Broken(0.3, 0.6).to(device))
    with pytest.warns(SamplingWarning, match=r"draws failed: .* not finite at t (=|from) 0\.[345].*: rows \d"):
        x = eb.generate(kernel, 50, seed=0)
    bad = x.isnan().any(1)
    assert 5 < int(bad.sum()) < 45
    mcmc = eb.MCMC(kernel, 6, 0, num_chains=50, seed=0, disable_progbar=True)
    mcmc.run()
    draws, failed = mcmc.get_samples(group_by_chain=True)["x"], mcmc.stats()["diverging"]
    assert torch.equal(draws.isnan().any(2), failed)
    assert bool(((mcmc.stats()["failed_at"] > 0.3) == failed).all())
    told = next(flag for flag in mcmc.summary().flags if flag.startswith("failed draws"))
    assert re.match(
        rf"failed draws: {int(failed.sum())}, .* of 50 chains .*; the score .* not finite at t .* (=|from) 0\.[345]",
        told,
    )
    assert bool((failed[:, 0] & ~failed[:, 1]).any())  # a chain's next draw begins anew


@pytest.mark.parametrize("method", ["euler_maruyama", "heun"])
@pytest.mark.parametrize(("lowest", "highest", "told"), [(0.5, 0.65, "0\\.6004"), (0.0, 0.15, "0\\.1009")])
def test_a_drift_that_is_nan_is_told_of_its_own_step(
    method: str, lowest: float, highest: float, told: str, device: torch.device
) -> None:
    """Of the last step, too, after which no score is asked for."""
    score, drift = Broken(2.0, 3.0).to(device), Broken(lowest, highest).to(device)
    kernel = eb.ReverseSDE(score, GenericSDE(drift, torch.ones_like, 1.0), (2,), 10, method)
    with pytest.warns(SamplingWarning, match=rf"draws failed: .* not finite at t (=|from) {told}"):
        x = eb.generate(kernel, 50, seed=0)
    assert 0 < int(x.isnan().any(1).sum()) < 50
    mcmc = eb.MCMC(kernel, 2, 0, num_chains=50, seed=0, disable_progbar=True)
    mcmc.run()
    draws = mcmc.get_samples(group_by_chain=True)["x"]
    assert torch.equal(draws.isnan().any(2), mcmc.stats()["diverging"])


def test_adaptive_steps_that_cannot_go_on_keep_the_state(device: torch.device) -> None:
    kernel = eb.AdaptiveFlow(Broken(0.0, 0.5).to(device), VP(), (2,))
    with pytest.warns(SamplingWarning, match=r"draws failed: .* not finite at t (=|from) 0\.5"):
        x = eb.generate(kernel, 50, seed=0)
    assert bool(x.isfinite().all())


def test_a_tolerance_under_rounding_is_told(device: torch.device) -> None:
    kernel = eb.AdaptiveFlow(lambda x, t: -x * torch.sin(1e6 * x) * 100, VP(), (2,), rtol=1e-14, atol=1e-14)
    x = normal(4, 2).to(device)
    with pytest.warns(
        SamplingWarning, match="4 of 4 draws failed: .* tolerance could not be met at t .*: rows 0, 1, 2, 3"
    ):
        found = eb.transport(kernel, x)
    assert bool(found.isfinite().all())


# Bad input.

SCORE = lambda x, t: -x


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda x, t: x - x.mean(0), "the score mixes the rows of a batch"),
        (lambda x, t: -x[:1].expand_as(x), "the score mixes the rows of a batch"),
        (lambda x, t: -x[-1:].expand_as(x), "the score mixes the rows of a batch"),
        (lambda x, t: x.neg_(), "a score that leaves its points and times as they are, got one that writes over them"),
        (lambda x, t: -x * t.mul_(0.999).view(-1, 1), "points and times as they are, got one that writes over them"),
        (lambda x, t: torch.randn_like(x), "the same score for the same points, got another at a second call"),
        (
            lambda x, t: -t * x,
            r"a score \(x, t\), got one that fails at points .*\(5, 2\).* times .*\(5,\).*: The size of",
        ),
        (nn.Sequential(), r"a score \(x, t\), got one that fails at points .*: .* takes 2 positional arguments but 3"),
    ],
)
@pytest.mark.parametrize(
    "use",
    [
        lambda s: eb.generate(eb.ReverseSDE(s, VP(), (2,), 5), 5, seed=0),
        lambda s: eb.generate(eb.AdaptiveFlow(s, VP(), (2,)), 5, seed=0),
        lambda s: eb.log_likelihood(s, VP(), normal(5, 2)),
    ],
)
def test_scores_that_are_no_function_of_one_point(use: Callable[[Any], object], score: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        use(score)


@pytest.mark.parametrize(
    "use",
    [
        lambda s: eb.generate(eb.AdaptiveFlow(s, VP(), (2,)), 2, seed=0),
        lambda s: eb.generate(eb.AdaptiveReverseSDE(s, VP(), (1, 2)), 2, seed=0),
        lambda s: eb.log_likelihood(s, VP(), torch.zeros(2, 2)),
        lambda s: eb.ScoreDistribution(s, VP(), (2,)).log_prob(torch.zeros(2, 2)),
    ],
)
def test_times_are_not_taken_for_coordinates(use: Callable[[Any], object]) -> None:
    """As many rows as coordinates: shapes fit, and likelihoods and draws were those of other times in silence."""
    with pytest.raises(ValueError, match="a score with a time for each row, .* got one that mixes rows"):
        use(lambda x, t: -x / (1 + t))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: eb.ReverseSDE(SCORE, VP(), (2,), 0), "a whole num_steps >= 1, got 0"),
        (lambda: eb.ReverseSDE(SCORE, VP(), (2,), 5, "rk45"), "a method of 'euler_maruyama', .* got 'rk45'"),
        (lambda: eb.ReverseSDE(SCORE, VP(), (2,), 5, t_min=0.0), r"t_min in \(0, 1\), got 0.0"),
        (lambda: eb.ReverseSDE(SCORE, VP(), (2,), 5, t_min=1.5), r"t_min in \(0, 1\), got 1.5"),
        (lambda: eb.ReverseSDE(SCORE, VP(), (2,), 5, snr=-1), "snr > 0, got -1"),
        (lambda: eb.ReverseSDE("s", VP(), (2,), 5), r"a score \(x, t\) -> tensor, got str"),
        (lambda: eb.ReverseSDE(SCORE, "vp", (2,), 5), "an SDE, got str"),
        (lambda: eb.ReverseSDE(SCORE, generic(VP()), (2,), 5, "ancestral"), "a linear SDE .* got GenericSDE"),
        (lambda: eb.ReverseSDE(SCORE, VP(), (2,), 2, times=lambda *_: torch.ones(3)), "decreasing times, got"),
        (
            lambda: eb.ReverseSDE(SCORE, VP(), (2,), 2, times=lambda *_: torch.tensor([2.0, 1, 0.5])),
            r"times in \[0, 1\], got 2",
        ),
        (lambda: eb.ProbabilityFlow(SCORE, VP(), (2,), 0), "a whole num_steps >= 1, got 0"),
        (lambda: eb.ProbabilityFlow(SCORE, generic(VP()), (2,), 5), 'the method "euler" or "heun", got GenericSDE'),
        (lambda: eb.ProbabilityFlow(SCORE, VP(), (2,), 5, forward=True, denoise=True), "denoise=False where forward"),
        (lambda: eb.AdaptiveFlow(SCORE, VP(), (2,), rtol=0), "rtol > 0, got 0"),
        (lambda: eb.AdaptiveFlow(SCORE, VP(), (2,), t_min=1.0), r"t_min in \(0, 1\), got 1.0"),
        (lambda: eb.AnnealedLangevin(SCORE, [1.0, 2.0], (2,)), r"positive, decreasing sigmas, got \[1.0, 2.0\]"),
        (lambda: eb.AnnealedLangevin(SCORE, [1.0, 0.0], (2,)), "positive, decreasing sigmas"),
        (lambda: eb.AnnealedLangevin(SCORE, "ab", (2,)), "sigmas as a tensor or a sequence of numbers, got 'ab'"),
        (lambda: eb.AnnealedLangevin(SCORE, [1.0], (2,), 0), "a whole steps_per_level >= 1, got 0"),
        (
            lambda: eb.AnnealedLangevin(SCORE, [1.0, 0.1], (2,), 1, 0.5, consistent=True),
            r"step_size in \[0.9, 1\], got 0.5",
        ),
        (lambda: eb.AnnealedLangevin(SCORE, [1.0, 0.1], (2,), 2, 0.95, consistent=True), "one step per level"),
        (
            lambda: eb.AnnealedLangevin(SCORE, [1.0, 0.1], (2,), 1, consistent=True),
            "a step_size where consistent, got None",
        ),
        (lambda: eb.generate(MADE["flow"](Small()), 0), "a whole n >= 1, got 0"),
        (
            lambda: eb.generate(MADE["flow"](lambda x, t: x[..., :1]), 5),
            r"output of shape \(5, 1, 3, 2\) .* got \(5, 1, 3, 1\)",
        ),
        (lambda: eb.generate(MADE["flow"](lambda x, t: x.float()), 5), "a score torch.float64 .* got torch.float32"),
        (lambda: eb.generate(MADE["flow"](lambda x, t: x - x.mean(0)), 5), "the score mixes the rows"),
        (lambda: eb.transport(MADE["flow"](Small()), normal(1, 3, 2)), r"expected points of shape \(chains, 1, 3, 2\)"),
    ],
)
def test_bad_input(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
