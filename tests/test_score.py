"""SDEs against exact values and their own moment equations; schedules and their limits; parameterisations; networks."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

import ebmppl as eb
from ebmppl import score
from ebmppl.score import (
    EDM,
    VE,
    VP,
    CosineVP,
    DataPrediction,
    DiscreteVP,
    EnergyGradient,
    GenericSDE,
    KarrasVE,
    LinearSDE,
    NoisePrediction,
    Parameterisation,
    ScorePrediction,
    SubVP,
    TimeMLP,
    UNet,
    VelocityPrediction,
)
from tests.score_targets import MIXTURE, DiffusedMixture, sdes

F64 = torch.float64
SDES: dict[str, Callable[[], LinearSDE]] = {
    "ve": lambda: VE(0.02, 20.0),
    "vp": lambda: VP(0.1, 10.0),
    "subvp": lambda: SubVP(0.1, 10.0),
    "cosine": lambda: CosineVP(),
    "karras": lambda: KarrasVE(20.0),
    "discrete": lambda: DiscreteVP(score.linear_betas(50, 0.1, 10.0)),
}


def f64(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=F64)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def close(found: Tensor, wanted: Any, rtol: float = 1e-6) -> None:
    torch.testing.assert_close(found, torch.as_tensor(wanted, dtype=F64), rtol=rtol, atol=1e-12)


# SDEs


@pytest.mark.data
@pytest.mark.parametrize("name", ["ve", "vp", "subvp"])
def test_marginals_coefficients_and_diffused_mixtures_equal_exact_values(shared_data: Path, name: str) -> None:
    exact = json.loads((shared_data / "exact" / "sde_gmm.json").read_text())
    sde = sdes(exact["parameters"])[name]
    x = f64(*exact["points"])
    mixture = DiffusedMixture(sde, exact["weights"], exact["means"], exact["covariances"])
    for row in exact["sde"][name]["table"]:
        t = f64(row["t"])[0]
        mean, std = sde.marginal(t)
        close(mean, row["mean_coefficient"])
        close(std, row["std"])
        close(sde.drift_coefficient(t), row["drift_coefficient"])
        close(sde.drift(x, t), row["drift_coefficient"] * x)
        close(sde.diffusion(t), row["diffusion"])
        times = t.expand(len(x))
        close(mixture.log_prob(x, times), row["log_p"])
        close(mixture(x, times), row["score"])
        points = x.clone().requires_grad_()
        found = mixture(points, times)
        parts = [torch.autograd.grad(found[:, i].sum(), points, retain_graph=True)[0][:, i] for i in range(2)]
        close(parts[0] + parts[1], row["score_divergence"])


@pytest.mark.parametrize("name", SDES)
def test_marginals_obey_the_moment_equations(name: str) -> None:
    """a' = f a and (std^2)' = 2 f std^2 + g^2, by automatic differentiation."""
    sde = SDES[name]()
    t = torch.linspace(0.01, 0.999 * sde.t_max, 50, dtype=F64).requires_grad_()
    mean, std = sde.marginal(t)
    variance = std.square()
    if not mean.requires_grad:  # a constant
        mean = mean + 0 * t
    mean_rate, variance_rate = (torch.autograd.grad(v.sum(), t, retain_graph=True)[0] for v in (mean, variance))
    f, g = sde.drift_coefficient(t), sde.diffusion(t)
    close(mean_rate, f * mean, 1e-10)
    close(variance_rate, 2 * f * variance + g.square(), 1e-10)


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("event", [(), (3,), (1, 4, 4)])
def test_any_event_shape_and_time_by_point(name: str, event: tuple[int, ...]) -> None:
    sde = SDES[name]()
    x, noise, t = normal(5, *event), normal(5, *event, seed=1), torch.linspace(0.1, 0.9, 5, dtype=F64)
    drift, points = sde.drift(x, t), sde.perturb(x, t, noise)
    assert drift.shape == points.shape == x.shape
    mean, std = sde.marginal(t)
    for i in range(5):
        close(drift[i], sde.drift_coefficient(t[i]) * x[i])
        close(points[i], mean[i] * x[i] + std[i] * noise[i])
    assert x.float().dtype == sde.perturb(x.float(), t.float(), noise.float()).dtype


@pytest.mark.parametrize("name", SDES)
def test_priors_have_log_densities(name: str) -> None:
    sde = SDES[name]()
    x = 3 * normal(4, 2, 3)
    prior = sde.prior((2, 3), like=x)
    wanted = -0.5 * (x / sde.prior_std).square().sum((1, 2)) - 6 * math.log(sde.prior_std * math.sqrt(2 * math.pi))
    close(prior.log_prob(x), wanted, 1e-12)
    assert prior.sample((7,)).shape == (7, 2, 3)
    # p_T is near to it: the data's part is small beside the noise
    mean, std = sde.marginal(f64(sde.t_max)[0])
    assert float(std) == pytest.approx(sde.prior_std, rel=0.01)
    assert float(mean / std) < 0.1


@pytest.mark.parametrize("name", SDES)
def test_time_of_inverts_noise_over_signal(name: str) -> None:
    sde = SDES[name]()
    t = torch.linspace(0.001, sde.t_max, 30, dtype=F64)
    close(sde.time_of(sde.ratio(t)), t, 1e-10)
    with pytest.raises(ValueError, match="expected ratios in"):
        sde.time_of(2 * sde.ratio(t[-1:]))


def test_a_users_own_sde() -> None:
    sde = GenericSDE(lambda x, t: -torch.sin(x), lambda t: 1 + t, prior_std=2.0, t_max=3.0)
    x, t = normal(3, 2), f64(0.5, 1.0, 3.0)
    close(sde.drift(x, t), -torch.sin(x))
    close(sde.diffusion(t), 1 + t)
    assert float(sde.prior((2,), like=x).stddev[0]) == 2.0
    with pytest.raises(ValueError, match="known marginals, got GenericSDE"):
        sde.marginal(t)
    known = GenericSDE(lambda x, t: 0 * x, lambda t: 1 + 0 * t, 1.0, marginal=lambda t: (torch.ones_like(t), t.sqrt()))
    assert float(known.marginal(f64(0.25))[1]) == 0.5


@pytest.mark.parametrize(
    ("drift", "diffusion", "marginal", "message"),
    [
        (lambda x, t: x[:, :1], torch.ones_like, None, r"a drift of shape \(3, 2\), got .*\(3, 1\)"),
        (lambda x, t: x, lambda t: t.new_ones(2), None, r"a diffusion of shape \(3,\), got .*\(2,\)"),
        (
            lambda x, t: x,
            torch.ones_like,
            lambda t: t,
            "a marginal of two, mean coefficient and standard deviation, got",
        ),
        (lambda x, t: x, torch.ones_like, lambda t: (t, t[:1]), r"a standard deviation of shape \(3,\), got .*\(1,\)"),
    ],
)
def test_a_users_sde_of_other_shapes(drift: Any, diffusion: Any, marginal: Any, message: str) -> None:
    sde, x, t = GenericSDE(drift, diffusion, 1.0, marginal=marginal), normal(3, 2), f64(0.1, 0.5, 1.0)
    with pytest.raises(ValueError, match=message):
        (sde.drift(x, t), sde.diffusion(t), sde.marginal(t))


def test_a_users_diffusion_may_be_a_number() -> None:
    for number in (1.4, f64(1.4).squeeze()):
        close(GenericSDE(lambda x, t: x, lambda t, g=number: g, 1.0).diffusion(f64(0.1, 0.5)), f64(1.4, 1.4))


@pytest.mark.parametrize("t", [-0.01, 1.2, math.nan])
@pytest.mark.parametrize("name", ["ve", "vp", "subvp", "cosine", "karras", "discrete", "own"])
def test_times_outside_are_refused(name: str, t: float) -> None:
    own = GenericSDE(lambda x, t: -x, torch.ones_like, 1.0, marginal=lambda t: (t, t))
    sde, t = own if name == "own" else SDES[name](), t * 20 if name == "karras" else t
    by_time = [sde.marginal, sde.diffusion, lambda at: sde.drift(normal(2, 3), at)]
    more = [sde.drift_coefficient, sde.ratio] if isinstance(sde, LinearSDE) else []
    for call in (*by_time, *more, lambda at: sde.perturb(normal(2, 3), at, normal(2, 3))):
        call(f64(0.5, 0.7))
        with pytest.raises(ValueError, match=rf"expected times in \[0, .*\], got {t:g}"):
            call(f64(0.5, t))


def test_times_are_not_looked_at_where_that_costs(dynamo: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in a trace, which it would break, nor on a device, whose queue it would wait for."""
    sde, x, t = VP(), normal(2, 3), f64(0.5, 0.7)

    def calls(x: Tensor, t: Tensor) -> Tensor:
        return sde.drift(x, t) * sde.diffusion(t).unsqueeze(-1) + NoisePrediction(lambda x, t: x, sde)(x, t)

    close(make_fx(calls)(x, t)(x, t), calls(x, t))
    close(torch.func.vmap(lambda x, t: calls(x[None], t[None])[0])(x, t), calls(x, t))
    close(torch.compile(calls, fullgraph=True, backend="eager")(x, t), calls(x, t))
    monkeypatch.setattr(torch.Tensor, "__float__", lambda self: pytest.fail("a tensor was read"))
    calls(x.to("meta"), t.to("meta"))


@pytest.mark.parametrize(
    "kind", [ScorePrediction, NoisePrediction, DataPrediction, VelocityPrediction, EDM, EnergyGradient]
)
def test_models_refuse_times_outside(kind: type[Parameterisation]) -> None:
    """Those too that don't ask for the marginal."""
    network = (lambda x, t: x.sum(1)) if kind is EnergyGradient else (lambda x, t: x)
    for t in (1.2, 0.0, -0.1, math.nan):
        with pytest.raises(ValueError, match=rf"expected times in \(0, 1\], got {t:g}"):
            kind(network, VP())(normal(2, 2), f64(0.5, t))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VE(1.0, 0.5), r"0 < sigma_min < sigma_max, got \(1.0, 0.5\)"),
        (lambda: VP(0.0, 1.0), r"0 < beta_min <= beta_max, got \(0.0, 1.0\)"),
        (lambda: SubVP(2.0, 1.0), r"0 < beta_min <= beta_max, got \(2.0, 1.0\)"),
        (lambda: CosineVP(t_max=1.0), r"t_max in \(0, 1\), got 1.0"),
        (lambda: GenericSDE(1, lambda t: t, 1.0), "a callable drift, got int"),
        (lambda: GenericSDE(lambda x, t: x, lambda t: t, 0.0), "prior_std > 0, got 0.0"),
        (lambda: VP().marginal(0.5), "times as a floating point tensor, got float"),
    ],
)
def test_wrong_sdes_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# Schedules


def test_geometric_sigmas_are_ve_at_even_times() -> None:
    t = torch.linspace(1, 0, 12, dtype=F64)
    close(score.geometric_sigmas(12, 0.02, 20.0), VE(0.02, 20.0).marginal(t)[1], 1e-12)


@pytest.mark.parametrize("n", [1000, 4000])
def test_linear_betas_tend_to_vp(n: int) -> None:
    """DDPM's product over t N steps tends to a(t)^2 with an error in its log of about t max(beta)^2 / N."""
    kept = (1 - score.linear_betas(n)).cumprod(0)
    steps = torch.arange(1, n + 1, dtype=F64)
    mean, _ = VP().marginal(steps / n)
    error = (kept.log() - 2 * mean.log()).abs()
    assert float(error.max()) < 200 / n  # the integral of beta^2 / 2 is 67, and half a step's beta is 20
    assert float(error.max()) > 20 / n  # not the limit itself


def test_ddpms_own_betas() -> None:
    betas = score.linear_betas(1000)
    assert (float(betas[0]), float(betas[-1])) == pytest.approx((1e-4, 0.02))


def test_cosine_betas_follow_their_sde() -> None:
    n, sde = 1000, CosineVP()
    kept = (1 - score.cosine_betas(n)).cumprod(0)
    steps = torch.arange(1, 991, dtype=F64)
    close(kept[:990], sde.marginal(steps / n)[0].square(), 1e-9)
    assert float(score.cosine_betas(n)[-1]) == 0.999


def test_karras_sigmas() -> None:
    found = score.karras_sigmas(18, 0.002, 80.0)
    i = torch.arange(18, dtype=F64)
    wanted = (80.0 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80.0 ** (1 / 7))) ** 7
    close(found, wanted, 1e-10)


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("times", [score.uniform_times, score.log_snr_times, score.karras_times])
def test_grids_go_down_from_the_end_to_t_min(name: str, times: Callable[..., Tensor]) -> None:
    sde = SDES[name]()
    grid = times(sde, 10, 1e-3)
    assert grid.shape == (11,)
    assert grid.dtype == F64
    assert (float(grid[0]), float(grid[-1])) == (sde.t_max, 1e-3)
    assert bool((grid[1:] < grid[:-1]).all())
    if times is score.log_snr_times:
        log = sde.ratio(grid).log()
        close(log.diff(), log.diff().mean().expand(10), 1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: score.geometric_sigmas(1, 0.1, 1.0), "a whole num_levels >= 2, got 1"),
        (lambda: score.geometric_sigmas(5, 1.0, 0.1), "0 < sigma_min < sigma_max"),
        (lambda: score.karras_sigmas(5, 0.1, 1.0, rho=0.0), "rho > 0, got 0.0"),
        (lambda: score.linear_betas(10), "beta_max < num_steps"),
        (lambda: score.cosine_betas(10, most=1.0), r"most in \(0, 1\), got 1.0"),
        (lambda: score.uniform_times(VP(), 0, 1e-3), "a whole num_steps >= 1, got 0"),
        (lambda: score.uniform_times(VP(), 5, 0.0), r"t_min in \(0, 1\), got 0.0"),
        (lambda: score.uniform_times(VP(), 5, 1.0), r"t_min in \(0, 1\), got 1.0"),
        (lambda: score.karras_times(GenericSDE(lambda x, t: x, lambda t: t, 1.0), 5, 1e-3), "a linear SDE, got Gen"),
    ],
)
def test_wrong_schedules_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# Parameterisations: a network that answers as the best one does makes the exact score.


class Best(nn.Module):
    """For data N(0, 0.5^2 I): what each parameterisation's best output is, the mean of its target given x_t."""

    def __init__(self, sde: LinearSDE) -> None:
        super().__init__()
        self.sde = sde

    def means(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Of x_0 and of the noise given x."""
        mean, std = (v.unsqueeze(1) for v in self.sde.marginal(t))
        variance = 0.25 * mean.square() + std.square()
        return 0.25 * mean * x / variance, std * x / variance


KINDS: list[type[Parameterisation]] = [ScorePrediction, NoisePrediction, DataPrediction, VelocityPrediction, EDM]


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_target_gives_the_exact_score(kind: type[Parameterisation], name: str) -> None:
    """Targets are linear in data and noise, so the target of their means given x_t is the best output."""
    sde = SDES[name]()
    best = Best(sde)
    x, t = normal(20, 3), torch.linspace(0.01, sde.t_max, 20, dtype=F64)
    model = kind(lambda x, t: torch.zeros_like(x), sde)
    wanted_output = model.target(*best.means(x, t), t)
    model = kind(lambda *_: wanted_output, sde)
    mean, std = (v.unsqueeze(1) for v in sde.marginal(t))
    close(model(x, t), -x / (0.25 * mean.square() + std.square()), 1e-9)


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("kind", KINDS)
def test_weights_make_all_losses_the_same(kind: type[Parameterisation], name: str) -> None:
    sde = SDES[name]()
    data, noise, t = normal(20, 3), normal(20, 3, seed=1), torch.linspace(0.01, sde.t_max, 20, dtype=F64)
    x = sde.perturb(data, t, noise)
    model = kind(lambda x, t: torch.tanh(x) + t.unsqueeze(1), sde)
    loss = model.weight(t) * (model.output(x, t) - model.target(data, noise, t)).square().sum(1)
    std = sde.marginal(t)[1]
    wanted = (std.unsqueeze(1) * model(x, t) + noise).square().sum(1)
    close(loss, wanted, 1e-8)


def test_edms_preconditioning_has_unit_variance() -> None:
    sde = VP()
    data, noise = 0.7 * normal(200_000, 1), normal(200_000, 1, seed=1)
    t = torch.tensor(0.3, dtype=F64)
    seen: list[Tensor] = []
    model = EDM(lambda x, t: seen.append(x) or x, sde, data_std=0.7)
    model.output(sde.perturb(data, t, noise), t)
    # a variance from 200,000 normal numbers has a relative standard error of 0.0032; five of them
    assert float(seen[0].var()) == pytest.approx(1, abs=0.016)
    assert float(model.target(data, noise, t).var()) == pytest.approx(1, abs=0.016)


def test_the_gradient_of_an_energy_is_a_score_and_trains() -> None:
    sde = VP()
    network = TimeMLP((2, 2), (16,), out_shape=()).double()
    model = EnergyGradient(network, sde)
    x, t = normal(6, 2, 2), torch.linspace(0.1, 0.9, 6, dtype=F64)
    step = 1e-6 * normal(6, 2, 2, seed=2)
    with torch.no_grad():
        found = model(x, t)
        change = model.energy(x + step, t) - model.energy(x - step, t)
    close(-(found * 2 * step).sum((1, 2)), change, 1e-4)
    loss = (model.weight(t) * (model(x, t) - model.target(x, normal(6, 2, 2), t)).square().sum((1, 2))).mean()
    loss.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in network.layers.parameters())
    with pytest.raises(ValueError, match=r"energies of shape \(6,\), got \(6, 1\)"):
        EnergyGradient(lambda x, t: x[:, 0, :1], sde)(x, t)


@torch.no_grad()
def by_no_grad(x: Tensor, t: Tensor) -> Tensor:
    return x.square().sum(1)


@pytest.mark.parametrize(
    "energy",
    [
        by_no_grad,
        lambda x, t: x.detach().square().sum(1) * nn.Parameter(f64(2.0)),
        lambda x, t: (x > 0.5).double().sum(1),
    ],
    ids=["no_grad", "detached", "steps"],
)
@pytest.mark.parametrize("track", [True, False])
def test_an_energy_without_a_gradient_is_no_score_of_zero(energy: Callable[..., Tensor], track: bool) -> None:
    model, x, t = EnergyGradient(energy, VP()), normal(3, 2), f64(0.1, 0.5, 0.9)
    with torch.set_grad_enabled(track), pytest.raises(ValueError, match="an energy that is differentiable in x"):
        model(x, t)
    with pytest.raises(ValueError, match="an energy that is differentiable in x"):
        eb.generate(eb.AnnealedMALA(EnergyGradient(energy, KarrasVE(5.0)), [5.0, 1.0], (2,)), 30, seed=0)


def test_energies_that_are_differentiated_anyway() -> None:
    """Within ``no_grad``, with frozen parameters, and one that does not depend on x; not within ``inference_mode``."""
    x, t, network = normal(3, 2), f64(0.1, 0.5, 0.9), nn.Linear(2, 1).double().requires_grad_(False)
    model = EnergyGradient(lambda x, t: network(x).square().sum(1), VP())
    wanted = -2 * network(x) * network.weight
    with torch.no_grad():
        close(model(x, t), wanted)
    close(EnergyGradient(lambda x, t: t, VP())(x, t), torch.zeros(3, 2))
    close(EnergyGradient(lambda x, t: t * nn.Parameter(f64(2.0)), VP())(x, t), torch.zeros(3, 2))
    with torch.inference_mode(), pytest.raises(ValueError, match=r"torch.no_grad\(\) around a gradient, got"):
        model(x, t)


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_networks_are_refused(kind: type[Parameterisation]) -> None:
    with pytest.raises(ValueError, match="a network .* got int"):
        kind(3, VP())
    with pytest.raises(ValueError, match="an SDE, got str"):
        kind(lambda x, t: x, "vp")
    with pytest.raises(ValueError, match=r"network output of shape \(4, 2\) .* got \(4, 1\)"):
        kind(lambda x, t: x[:, :1], VP())(normal(4, 2), f64(0.1, 0.2, 0.3, 0.4))


# Networks


@pytest.mark.parametrize("event", [(), (3,), (1, 2, 2)])
def test_the_perceptron_takes_any_event_and_tells_times_apart(event: tuple[int, ...]) -> None:
    network = TimeMLP(event, (16, 16)).double()
    x = normal(1, *event).expand(4, *event)
    found = network(x, f64(0.1, 0.2, 0.2, 0.9))
    assert found.shape == (4, *event)
    assert torch.equal(found[1], found[2])
    assert not torch.allclose(found[0], found[1], rtol=1e-3)
    assert torch.equal(network.features.times.frequencies, TimeMLP(event, (8,)).features.times.frequencies)  # fixed


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 4, 12)])
@pytest.mark.parametrize("depth", [0, 2])
def test_the_u_net_keeps_shapes_and_rows_apart(shape: tuple[int, ...], depth: int) -> None:
    network = UNet(shape, width=8, depth=depth).double()
    x, t = normal(3, *shape), f64(0.1, 0.5, 0.9)
    found = network(x, t)
    assert found.shape == x.shape
    close(network(x[1:2], t[1:2]), found[1:2], 1e-8)
    found.square().sum().backward()
    # a convolution before a group norm of one channel each has no gradient; all others have
    assert all(p.grad is not None for p in network.parameters())


def test_a_u_net_of_patches_is_one_of_smaller_images_with_more_channels() -> None:
    pixels, t = normal(3, 2, 4, 8), f64(0.1, 0.5, 0.9)
    patched, plain = (UNet(s, 8, 1, patch=p).double() for s, p in (((2, 4, 8), 2), ((8, 2, 4), 1)))
    patched.load_state_dict(plain.state_dict())
    as_channels = pixels.view(3, 2, 2, 2, 4, 2).permute(0, 1, 3, 5, 2, 4).reshape(3, 8, 2, 4)
    found = patched(pixels, t).view(3, 2, 2, 2, 4, 2).permute(0, 1, 3, 5, 2, 4).reshape(3, 8, 2, 4)
    close(found, plain(as_channels, t), 1e-12)


def test_fine_features_tell_pixels_apart_that_differ_by_less_than_their_range() -> None:
    x, t = normal(3, 2, 4, 4), f64(0.1, 0.5, 0.9)
    network = UNet((2, 4, 4), 8, 1, fine=(0, 7)).double()
    with torch.no_grad():
        network.first.weight.zero_()
        network.first.weight[:, 6:, 1, 1] = normal(8, 4)  # sin and cos of both channels: the last four are cosines
    found = network(x, t)
    assert found.shape == x.shape
    close(network(x + 2, t), found, 1e-8)  # whole periods of 2^n pi, n >= 0
    assert float((network(x + 1 / 128, t) - found).detach().abs().max()) > 1e-3  # half a period at n = 7
    close(network(-x, t), found, 1e-10)  # cosines


X, T, LABELS = torch.zeros(3, 2), torch.full((3,), 0.5), torch.tensor([0, 1, -1])


@pytest.mark.parametrize(
    ("x", "t", "labels", "message"),
    [
        (torch.zeros(3, 1), T, LABELS, r"points of shape \(batch, 2\), got \(torch.float32, \(3, 1\)\)"),
        (X, T[:2], LABELS, r"times of shape \(3,\) or \(\), got .* \(2,\)"),
        (X, T.long(), LABELS, "times as a floating point tensor, got .*int64"),
        (X, T, LABELS - 1, "labels from 0 to 2, or -1 for none, got -2"),
        (X, T, LABELS + 2, "labels from 0 to 2, or -1 for none, got 3"),
        (X, T, LABELS[:2], "a label for each time, got"),
        (X, T, LABELS + 0.5, "labels as a tensor of whole numbers, got .*float32"),
    ],
)
def test_networks_look_at_what_they_are_given(x: Tensor, t: Tensor, labels: Tensor, message: str) -> None:
    network = TimeMLP((2,), (4,), num_classes=3)
    assert network(X, T, LABELS).shape == (3, 2)
    with pytest.raises(ValueError, match=message):
        network(x, t, labels)


def test_a_time_for_each_point() -> None:
    with pytest.raises(ValueError, match=r"a time \(or number\) for each point, \(3,\) or \(\), got \(2,\)"):
        VP().drift(X, T[:2])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TimeMLP((2,), ()), "hidden layers, got none"),
        (lambda: TimeMLP((2,), num_features=3), "an even number of features, got 3"),
        (lambda: UNet((8, 8)), r"an image shape .* got \(8, 8\)"),
        (lambda: UNet((1, 6, 8)), r"multiples of 4, got \(6, 8\)"),
        (lambda: UNet((1, 8, 8), patch=4), r"multiples of 16, got \(8, 8\)"),
        (lambda: UNet((1, 8, 8), patch=0), "patch >= 1, got 0"),
    ],
)
def test_wrong_network_sizes_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_the_mixture_of_the_tests_is_its_own_at_time_zero() -> None:
    mixture = DiffusedMixture(VP(), *MIXTURE)
    x = normal(5, 2)
    close(mixture.log_prob(x, torch.zeros(5, dtype=F64)), mixture.data().log_prob(x), 1e-10)


def test_ddpms_rates_as_an_sde() -> None:
    n = 40
    betas = score.linear_betas(n, 0.1, 10.0)
    sde = DiscreteVP(betas)
    steps = torch.arange(1, n + 1, dtype=F64)
    mean, std = sde.marginal(steps / n)
    close(mean.square(), (1 - betas).cumprod(0), 1e-12)
    close(mean.square() + std.square(), torch.ones(n, dtype=F64), 1e-12)
    close(sde.beta(steps / n), -n * torch.log1p(-betas), 1e-12)
    single = sde.marginal((steps / n).float())[0]  # times in float32 are steps all the same
    torch.testing.assert_close(single, mean.float(), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "make", [lambda: TimeMLP((1, 4, 4), (16,), num_classes=3), lambda: UNet((1, 4, 4), 8, 1, num_classes=3)]
)
def test_networks_take_labels(make: Callable[[], nn.Module]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = make()
    x, t = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(0)).expand(5, 1, 4, 4), torch.full((5,), 0.3)
    found = network(x, t, torch.tensor([0, 1, 2, -1, 0]))
    torch.testing.assert_close(found[0], found[4])  # rows of a batch round differently on several threads
    apart = (found[:4].unsqueeze(0) - found[:4].unsqueeze(1)).abs().flatten(2).amax(2)
    assert bool((apart + torch.eye(4) > 1e-4).all())
    torch.testing.assert_close(network(x[:1], t[:1]), found[3:4])  # no label
    with pytest.raises(ValueError, match="labels from 0 to 2, or -1 for none, got 3"):
        network(x[:1], t[:1], torch.tensor([3]))
