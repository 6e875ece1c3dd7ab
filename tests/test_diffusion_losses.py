"""Losses of score models against closed forms: of Gaussian data, of the laws of t, of DDPM's own formula."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import SVI
from torch import Tensor, nn

import ebmppl as eb
from ebmppl.errors import NonFiniteLoss
from ebmppl.kernels.solvers import ancestral
from ebmppl.losses import (
    DiffusionScoreMatching,
    Loss,
    NoiseConditionalScoreMatching,
    SlicedDiffusionScoreMatching,
)
from ebmppl.score import (
    EDM,
    VE,
    VP,
    CosineVP,
    DataPrediction,
    DiscreteTimes,
    DiscreteVP,
    EDMWeighting,
    EnergyGradient,
    GenericSDE,
    KarrasVE,
    LikelihoodWeighting,
    LinearSDE,
    NoiseLevels,
    NoisePrediction,
    Parameterisation,
    ScorePrediction,
    SubVP,
    TimeMLP,
    UniformTimes,
    VelocityPrediction,
    Weighting,
    geometric_sigmas,
    linear_betas,
)

F64 = torch.float64
# Monte Carlo errors apart: with some 300 numbers tested, 6e-5 each by the normal law, a false alarm in 50 fresh seeds
MOST = 4.0
ROWS = 20_000
VARIANCES = torch.tensor([0.3, 1.5], dtype=F64)  # of the data N(0, diag)
KINDS: list[type[Parameterisation]] = [
    ScorePrediction, NoisePrediction, DataPrediction, VelocityPrediction, EDM, EnergyGradient,
]  # fmt: skip
SDES: dict[str, Callable[[], LinearSDE]] = {
    "ve": lambda: VE(0.02, 20.0),
    "vp": lambda: VP(0.1, 10.0),
    "subvp": lambda: SubVP(0.1, 10.0),
    "cosine": lambda: CosineVP(),
    "karras": lambda: KarrasVE(20.0),
}
WEIGHTINGS: dict[str, Callable[[], Weighting]] = {
    "uniform": UniformTimes,
    "likelihood": LikelihoodWeighting,
    "likelihood, uniform t": lambda: LikelihoodWeighting(importance=False),
    "edm": EDMWeighting,
    "levels": lambda: NoiseLevels(geometric_sigmas(6, 0.1, 2.0)),
}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def data(rows: int = ROWS, seed: int = 0) -> Tensor:
    return VARIANCES.sqrt() * normal(rows, 2, seed=seed)


class Gaussian(nn.Module):
    """The network that makes a parameterisation the score of N(0, diag(v)) diffused, v a parameter."""

    def __init__(self, sde: LinearSDE, kind: type[Parameterisation], variances: Tensor = VARIANCES) -> None:
        super().__init__()
        self.sde, self.kind = sde, kind
        self.variances = nn.Parameter(variances.clone())
        self.plain = kind(lambda x, t: x, sde)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        if self.kind is EDM:  # called with c_in y and c_noise
            t = self.sde.time_of((4 * t).exp())
            mean, std = (v.unsqueeze(1) for v in self.sde.marginal(t))
            x = x * mean * ((std / mean).square() + 0.25).sqrt()
        mean, std = (v.unsqueeze(1) for v in self.sde.marginal(t))
        total = mean.square() * self.variances + std.square()
        if self.kind is EnergyGradient:
            return 0.5 * (x.square() / total).sum(1)
        # targets are linear in data and noise, so that of their means given x_t is the best output
        return self.plain.target(mean * self.variances * x / total, std * x / total, t)


def exact(sde: LinearSDE, weighting: Weighting, variances: Tensor, *, sliced: bool = False) -> Tensor:
    """The expected loss of Gaussian(variances), by quadrature over t (or a sum over levels) of its closed form."""
    model = ScorePrediction(Gaussian(sde, ScorePrediction), sde)
    if isinstance(weighting, NoiseLevels):
        u = (torch.arange(len(weighting.sigmas), dtype=F64) + 0.5) / len(weighting.sigmas)
    else:  # the midpoint rule in u: the same law of t as the loss
        u = (torch.arange(4_000, dtype=F64) + 0.5) / 4_000
    t = weighting.times(model, u, 1e-5)
    mean, std = (v.unsqueeze(1) for v in sde.marginal(t))
    total, truly = (mean.square() * v + std.square() for v in (variances, VARIANCES))
    if sliced:  # std^2 (trace of the score's change + half its square)
        each = std.square() * (-1 / total + 0.5 * truly / total.square())
    else:  # E (std x_t / total - noise)^2 / 2
        each = 0.5 * (std.square() * truly / total.square() - 2 * std.square() / total + 1)
    return (weighting.weight(model, t, 1e-5) * each.sum(1)).mean()


def test_the_network_of_the_tests_is_the_exact_score() -> None:
    for kind in KINDS:
        sde = VP()
        x, t = normal(8, 2), torch.linspace(0.05, 1, 8, dtype=F64)
        mean, std = (v.unsqueeze(1) for v in sde.marginal(t))
        wanted = -x / (mean.square() * VARIANCES + std.square())
        torch.testing.assert_close(kind(Gaussian(sde, kind), sde)(x, t), wanted, rtol=1e-8, atol=1e-10)


def z_scores(loss: Loss, model: Parameterisation, wanted: Tensor, repeats: int = 40) -> Tensor:
    """Of the value and the gradient in the variances, over steps with fresh data."""
    draws = []
    bound = loss(model)
    for i in range(repeats):
        value = bound(data(500, seed=100 + i))
        (gradient,) = torch.autograd.grad(value, [model.network.variances])  # type: ignore[union-attr]
        draws.append(torch.cat([value.detach().view(1), gradient]))
    found = torch.stack(draws)
    return (found.mean(0) - wanted) / (found.std(0) / math.sqrt(repeats))


def with_gradient(of: Callable[[Tensor], Tensor], variances: Tensor) -> Tensor:
    v = variances.clone().requires_grad_()
    value = of(v)
    return torch.cat([value.detach().view(1), torch.autograd.grad(value, v)[0]])


OTHERS = torch.tensor([0.6, 0.9], dtype=F64)  # not the data's


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weighting", ["uniform", "likelihood", "edm"])
def test_values_and_gradients_of_every_parameterisation(kind: type[Parameterisation], weighting: str) -> None:
    sde = VP(0.1, 10.0)
    model = kind(Gaussian(sde, kind, OTHERS), sde)
    wanted = with_gradient(partial(exact, sde, WEIGHTINGS[weighting]()), OTHERS)
    z = z_scores(DiffusionScoreMatching(weighting, seed=1), model, wanted)
    assert float(z.abs().max()) < MOST


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_values_and_gradients_of_every_sde(name: str, weighting: str) -> None:
    sde = SDES[name]()
    model = NoisePrediction(Gaussian(sde, NoisePrediction, OTHERS), sde)
    made = WEIGHTINGS[weighting]()
    wanted = with_gradient(partial(exact, sde, made), OTHERS)
    z = z_scores(DiffusionScoreMatching(made, seed=2, low_discrepancy=name == "vp"), model, wanted)
    assert float(z.abs().max()) < MOST


@pytest.mark.parametrize("kind", [NoisePrediction, EnergyGradient])
@pytest.mark.parametrize("weighting", ["uniform", "levels"])
def test_slices_and_denoising_differ_by_a_constant(kind: type[Parameterisation], weighting: str) -> None:
    sde = KarrasVE(5.0)
    made = WEIGHTINGS[weighting]()
    model = kind(Gaussian(sde, kind, OTHERS), sde)
    wanted = with_gradient(partial(exact, sde, made, sliced=True), OTHERS)
    z = z_scores(SlicedDiffusionScoreMatching(made, num_slices=2, seed=3), model, wanted)
    assert float(z.abs().max()) < MOST
    u = torch.full((1,), 0.5, dtype=F64)
    w = made.weight(model, made.times(model, u, 1e-5), 1e-5)
    assert float(exact(sde, made, OTHERS) - wanted[0]) == pytest.approx(float(w), abs=1e-12)  # w d / 2


def test_the_exact_score_is_the_minimiser() -> None:
    """The gradient at the data's own variances is zero, for every kind of loss, and at others it is not."""
    sde = SubVP(0.1, 10.0)
    for weighting in ("uniform", "likelihood", "edm"):
        made = WEIGHTINGS[weighting]()
        assert float(with_gradient(partial(exact, sde, made), VARIANCES)[1:].abs().max()) < 1e-10
        model = NoisePrediction(Gaussian(sde, NoisePrediction), sde)
        z = z_scores(DiffusionScoreMatching(weighting, seed=4), model, torch.zeros(3, dtype=F64))
        assert float(z[1:].abs().max()) < MOST
        other = NoisePrediction(Gaussian(sde, NoisePrediction, OTHERS), sde)
        z = z_scores(DiffusionScoreMatching(weighting, seed=4), other, torch.zeros(3, dtype=F64))
        assert float(z[1:].abs().min()) > 5


# The likelihood weighting


@pytest.mark.parametrize("importance", [True, False])
@pytest.mark.parametrize("name", SDES)
def test_weight_and_density_of_times_make_the_likelihood_weighting(name: str, importance: bool) -> None:
    """Weight times du/dt is g^2 / sigma^2, by differences of the inverse law."""
    sde = SDES[name]()
    model = NoisePrediction(lambda x, t: x, sde)
    u = torch.linspace(0.01, 0.99, 50, dtype=F64)
    made, step = LikelihoodWeighting(importance=importance), 1e-6
    t = made.times(model, u, 1e-5)
    slope = (made.times(model, u + step, 1e-5) - made.times(model, u - step, 1e-5)) / (2 * step)
    rate = (sde.diffusion(t) / sde.marginal(t)[1]).square()
    torch.testing.assert_close(slope * rate, made.weight(model, t, 1e-5), rtol=1e-5, atol=0)


def test_importance_sampling_keeps_the_mean_and_has_less_variance() -> None:
    sde = VP()
    model = NoisePrediction(Gaussian(sde, NoisePrediction, OTHERS), sde)
    x = data(ROWS)
    found = {}
    for importance in (True, False):
        bound = DiffusionScoreMatching(LikelihoodWeighting(importance=importance), t_min=1e-3, seed=5)(model)
        with torch.no_grad():
            values = torch.stack([bound(part) for part in x.split(200)])
        found[importance] = values.mean(), values.var()
    error = math.sqrt(float(found[True][1] + found[False][1]) / (ROWS / 200))
    assert abs(float(found[True][0] - found[False][0])) < MOST * error
    assert float(found[False][1] / found[True][1]) > 3  # F(99, 99) is above 2 with a probability of 3e-4


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL of N(0, diag(p)) to N(0, diag(q)), nats."""
    return 0.5 * (p / q - 1 - (p / q).log()).sum()


@pytest.mark.parametrize("name", SDES)
def test_the_likelihood_weighting_is_in_nats(name: str) -> None:
    """For the exact score of another diffused density q, (loss - least loss) is KL(p, q) at t_min less that at T.

    So KL(p, q) <= loss - least loss + KL(p_T, prior): Song, Durkan, Murray and Ermon 2021, theorems 1 and 2.
    """
    sde, made = SDES[name](), LikelihoodWeighting()
    gap = exact(sde, made, OTHERS) - exact(sde, made, VARIANCES)
    mean, std = sde.marginal(torch.tensor([1e-5, sde.t_max], dtype=F64))
    least, most = (
        divergence(*(a * a * v + s * s for v in (VARIANCES, OTHERS))) for a, s in zip(mean, std, strict=True)
    )
    assert float(gap) == pytest.approx(float(least - most), rel=1e-5)  # of the quadrature
    model = NoisePrediction(Gaussian(sde, NoisePrediction, OTHERS), sde)
    best = NoisePrediction(Gaussian(sde, NoisePrediction), sde)
    losses = [DiffusionScoreMatching("likelihood", seed=6)(m) for m in (model, best)]
    with torch.no_grad():  # the same times and noise
        pairs = torch.stack([losses[0](part) - losses[1](part) for part in data(ROWS, seed=7).split(400)])
    z = (pairs.mean() - gap) / (pairs.std() / math.sqrt(len(pairs)))
    assert abs(float(z)) < MOST


# Ties to published losses


def test_ddpms_loss_is_the_same_at_its_grid() -> None:
    n = 100
    betas = linear_betas(n)
    sde = DiscreteVP(betas)
    network = TimeMLP((2,), (16,)).double()
    model, x = NoisePrediction(network, sde), data(300)
    bound = DiffusionScoreMatching(DiscreteTimes.of(sde), seed=8)(model)
    seen: list[tuple[Tensor, Tensor]] = []
    handle = network.register_forward_hook(lambda _, given, out: seen.append(given))
    value = bound(x)
    handle.remove()
    (points, t) = seen[0]
    steps = (t * n).round().long()
    assert (int(steps.min()), int(steps.max())) == (1, n) or len(steps.unique()) > 0.9 * n
    kept = (1 - betas).cumprod(0)[steps - 1].unsqueeze(1)  # Ho, Jain and Abbeel 2020, equations 4 and 14
    noise = (points - kept.sqrt() * x) / (1 - kept).sqrt()
    assert float((noise.mean(0) * math.sqrt(300)).abs().max()) < MOST
    wanted = (
        0.5 * (network(kept.sqrt() * x + (1 - kept).sqrt() * noise, steps.double() / n) - noise).square().sum(1).mean()
    )
    assert value.item() == pytest.approx(wanted.item(), rel=1e-10)


def test_ncsns_loss_is_its_formula() -> None:
    sigmas = geometric_sigmas(10, 0.05, 5.0)
    network = TimeMLP((2,), (16,), log_time=True).double()
    bound = NoiseConditionalScoreMatching(sigmas, seed=9)(ScorePrediction(network, KarrasVE(5.0)))
    seen: list[tuple[Tensor, Tensor]] = []
    handle = network.register_forward_hook(lambda _, given, out: seen.append(given))
    x = data(200)
    value = bound(x)
    handle.remove()
    points, sigma = seen[0]
    torch.testing.assert_close(sigma.unique(), sigmas.flip(0))
    sigma = sigma.unsqueeze(1)  # Song and Ermon 2019, equations 5 and 6
    distance = (network(points, sigma.squeeze(1)) + (points - x) / sigma.square()).square().sum(1)
    assert value.item() == pytest.approx((0.5 * sigma.squeeze(1).square() * distance).mean().item(), rel=1e-10)


def test_the_terms_of_slices_are_their_formula() -> None:
    """At the points and times that the network was asked for; the change to the error of so many slices."""
    network, rows, slices = TimeMLP((2,), (16,)).double(), 40, 400
    model = ScorePrediction(network, VP())
    bound = SlicedDiffusionScoreMatching(num_slices=slices, seed=3)(model)
    seen: list[tuple[Tensor, Tensor]] = []
    handle = network.register_forward_hook(lambda _, given, out: seen.append(given))
    bound(data(rows))
    handle.remove()
    points, t = (v.detach() for v in seen[0])
    variance = model.sde.marginal(t)[1].square()
    square = (0.5 * variance * network(points, t).square().sum(1)).mean()
    assert bound.values["square"].item() == pytest.approx(square.item(), rel=1e-10)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda x, at: network(x.unsqueeze(0), at.unsqueeze(0))[0]))(points, t)
    symmetric = 0.5 * (jacobian + jacobian.mT)  # v'Jv of normal v has the mean tr J and the variance 2 |J + J'|^2 / 4
    change = (variance * jacobian.diagonal(dim1=1, dim2=2).sum(1)).mean()
    error = (2 * (variance.square() * symmetric.square().sum((1, 2))).sum() / slices).sqrt() / rows
    assert abs(bound.values["change"].item() - change.item()) < MOST * error.item()


def test_edms_loss_is_its_formula() -> None:
    """Karras et al. 2022, table 1 and equation 2: the mean of lambda |D(x + n, sigma) - x|^2 over log-normal sigma, halved."""
    network = TimeMLP((2,), (16,)).double()
    model = EDM(network, KarrasVE(80.0), data_std=0.8)
    weighting = EDMWeighting()
    x, noise = data(50), normal(50, 2, seed=1)
    t = weighting.times(model, torch.linspace(0, 0.999, 50, dtype=F64), 1e-3)
    root = (t.square() + 0.8**2).sqrt()
    points = x + t.unsqueeze(1) * noise
    inner = network(points / root.unsqueeze(1), t.log() / 4)
    denoised = 0.8**2 / root.square().unsqueeze(1) * points + (t * 0.8 / root).unsqueeze(1) * inner
    wanted = (t.square() + 0.8**2) / (t * 0.8).square() * (denoised - x).square().sum(1)
    found = weighting.weight(model, t, 1e-3) * model.weight(t) * (
        model.output(points, t) - model.target(x, noise, t)
    ).square().sum(1)  # fmt: skip
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
    log = weighting.times(model, torch.rand(ROWS, dtype=F64, generator=torch.Generator().manual_seed(2)), 1e-3).log()
    assert abs(float(log.mean() + 1.2)) < MOST * 1.2 / math.sqrt(ROWS)
    assert abs(float(log.std() - 1.2)) < MOST * 1.2 / math.sqrt(2 * ROWS)


def test_edms_law_is_cut_where_times_end() -> None:
    """Log r is normal between its ends, and has no part of those beyond."""
    sde, made, step = VP(0.1, 10.0), EDMWeighting(mean=0.5, std=1.5), 1e-6
    model = NoisePrediction(lambda x, t: x, sde)
    law = torch.distributions.Normal(torch.tensor(0.5, dtype=F64), 1.5)
    least, most = law.cdf(sde.ratio(torch.tensor([0.1, 1.0], dtype=F64)).log())
    assert 0.05 < float(least) < float(most) < 0.95

    def log_ratio(u: Tensor) -> Tensor:
        return sde.ratio(made.times(model, u, 0.1)).log()

    u = torch.linspace(0.01, 0.99, 50, dtype=F64)
    slope = (log_ratio(u + step) - log_ratio(u - step)) / (2 * step)
    torch.testing.assert_close(slope * law.log_prob(log_ratio(u)).exp(), (most - least).expand(50), rtol=1e-5, atol=0)


# Times, seeds, labels


def test_low_discrepancy_times_are_even_and_lower_the_variance() -> None:
    seen: list[Tensor] = []
    model = NoisePrediction(
        lambda x, t: seen.append(t) or 10 * t.unsqueeze(1).expand_as(x), VP()
    )  # errors are of t, mostly
    x = data(50)
    spread = {}
    for even in (True, False):
        bound = DiffusionScoreMatching(t_min=1e-3, low_discrepancy=even, seed=10)(model)
        spread[even] = torch.stack([bound(x) for _ in range(100)]).var()
        gaps = seen[-1].sort().values.diff()
        assert (float(gaps.max() - gaps.min()) < 1e-12) is even
    assert float(spread[True] / spread[False]) < 0.2


class Labelled(nn.Module):
    """Answers with the label, and notes what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=F64))
        self.seen: list[Tensor | None] = []

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        self.seen.append(labels)
        return self.scale * x


@pytest.mark.parametrize("kind", [k for k in KINDS if k is not EnergyGradient])
def test_labels_reach_the_network_and_are_dropped_at_their_rate(kind: type[Parameterisation]) -> None:
    network = Labelled()
    bound = DiffusionScoreMatching(label_dropout=0.2, seed=11)(kind(network, VP()))
    labels = torch.arange(5000) % 10
    bound({"x": data(5000), "label": labels})
    (seen,) = network.seen
    assert seen is not None
    dropped = seen == -1
    assert torch.equal(seen[~dropped], labels[~dropped])
    assert abs(int(dropped.sum()) - 1000) < MOST * math.sqrt(5000 * 0.2 * 0.8)
    bound.eval()
    bound({"x": data(5000), "label": labels})
    assert torch.equal(network.seen[1], labels)  # type: ignore[arg-type]
    bound(data(5000))
    assert network.seen[2] is None


def test_fit_and_svi_take_labels_and_averaged_weights_evaluate() -> None:
    """Of two classes at -1 and 1 a conditional network learns both means."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(512) % 2
    x = (2.0 * labels - 1).unsqueeze(1) + 0.1 * torch.randn(512, 1, generator=generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = EDM(TimeMLP((1,), (32,), num_classes=2), KarrasVE(5.0), data_std=1.0)
    loss = DiffusionScoreMatching("edm", label_dropout=0.2, seed=0)
    batch = {"x": x, "label": labels}
    run = eb.fit(
        loss, model, batch, steps=200, batch_size=128, ema=0.98, validation=batch, validate_every=200, seed=0,
        optimizer=partial(torch.optim.Adam, lr=1e-2), progress=False,
    )  # fmt: skip
    records = run.run()
    assert records[-1].validation is not None
    at, t = torch.zeros(1, 1), torch.ones(1)  # half way between the classes
    with torch.no_grad():
        ends = {}
        for name in ("last", "average"):
            with run.ema.applied() if name == "average" else torch.no_grad():  # type: ignore[union-attr]
                ends[name] = [model(at, t, torch.tensor([k])).item() for k in (0, 1, -1)]  # Tweedie: t^2 score + x
                assert model(at, t).item() == ends[name][2]
    for low, high, either in ends.values():
        assert low < -0.6  # the means are -0.99 and 0.99, reached in so few steps by a part
        assert high > 0.6
        assert abs(either) < 0.3
    assert ends["average"] != ends["last"]
    pyro.clear_param_store()
    svi = SVI(model, lambda *_: None, pyro.optim.Adam({"lr": 1e-3}), loss=loss)
    before = model.network.last.weight.detach().clone()
    assert math.isfinite(svi.step(batch))
    assert not torch.equal(model.network.last.weight, before)
    pyro.clear_param_store()


def test_seeds_make_losses_and_no_seed_makes_others() -> None:
    sde = VP()
    model = NoisePrediction(Gaussian(sde, NoisePrediction), sde)
    x = data(50)
    found = [
        [bound(x).item() for _ in range(2)] for bound in (DiffusionScoreMatching(seed=s)(model) for s in (0, 0, 1))
    ]
    assert found[0] == found[1]
    assert found[0][0] != found[0][1]
    assert found[0][0] != found[2][0]
    assert DiffusionScoreMatching()(model)(x).item() != DiffusionScoreMatching()(model)(x).item()


def test_events_of_any_shape() -> None:
    for event in ((), (3,), (1, 2, 2)):
        bound = DiffusionScoreMatching(seed=0)(NoisePrediction(TimeMLP(event, (8,)).double(), VP()))
        assert bound(normal(6, *event)).shape == ()


def test_a_loss_that_is_not_finite_is_told() -> None:
    model = NoisePrediction(lambda x, t: torch.where(t.unsqueeze(1) > 0.5, math.nan, x), VP())
    with pytest.raises(NonFiniteLoss, match="at step 0: distance is nan"):
        DiffusionScoreMatching(seed=0)(model)(data(50))


def made_by(network: Any = None, sde: Any = None) -> Parameterisation:
    return NoisePrediction(network or (lambda x, t: x), sde or VP())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DiffusionScoreMatching("snr"), "a Weighting, or one of 'uniform', 'likelihood', 'edm', got 'snr'"),
        (lambda: DiffusionScoreMatching(label_dropout=1.0), r"label_dropout in \[0, 1\), got 1.0"),
        (lambda: DiffusionScoreMatching(t_min=0.0)(made_by()), r"t_min in \(0, 1\), got 0.0"),
        (lambda: DiffusionScoreMatching(t_min=1.0)(made_by()), r"t_min in \(0, 1\), got 1.0"),
        (lambda: DiffusionScoreMatching()(TimeMLP((2,))), "a Parameterisation, .* got TimeMLP"),
        (lambda: NoiseConditionalScoreMatching(torch.tensor([1.0, 2.0])), "positive, decreasing sigmas"),
        (lambda: NoiseConditionalScoreMatching(torch.tensor([1e3, 1.0]))(made_by(sde=VE())), "expected ratios in"),
        (lambda: SlicedDiffusionScoreMatching(num_slices=0), "num_slices"),
        (lambda: DiscreteTimes(torch.tensor([0.1, 0.5, 0.3])), "positive, decreasing times"),
        (lambda: DiffusionScoreMatching(DiscreteTimes(torch.tensor([0.5, 2.0])))(made_by()), "times in"),
        (lambda: EDMWeighting(std=0.0), "std > 0, got 0.0"),
        (lambda: DiffusionScoreMatching(EDMWeighting(30.0))(made_by()), "noise over signal is about"),
        (lambda: DiscreteVP(torch.tensor([0.5, 1.0])), r"betas in \(0, 1\)"),
        (
            lambda: DiffusionScoreMatching("likelihood")(made_by(sde=GenericSDE(lambda x, t: x, lambda t: t, 1.0))),
            "a linear SDE .* got GenericSDE: take importance=False",
        ),
        (lambda: DiffusionScoreMatching()(made_by())({"y": data(5)}), "data by 'x', and perhaps 'label', got"),
        (lambda: DiffusionScoreMatching()(made_by())(torch.ones(5, 2, dtype=torch.int64)), "floating point data"),
        (lambda: DiffusionScoreMatching()(made_by(TimeMLP((3,))))(data(5)), r"data of shape \(rows, 3\)"),
        (lambda: DiffusionScoreMatching()(made_by())({"x": data(5), "label": torch.ones(5)}), "labels as whole numbers"),
        (
            lambda: DiffusionScoreMatching()(made_by())({"x": data(5), "label": torch.ones(4, dtype=torch.int64)}),
            r"labels of shape \(5,\), got \(4,\)",
        ),
        (
            lambda: DiffusionScoreMatching()(made_by())({"x": data(2), "label": torch.tensor([0, -2])}),
            "labels from 0, or -1 for none, got -2",
        ),
        (
            lambda: DiffusionScoreMatching()(made_by(TimeMLP((2,)).double()))(
                {"x": data(2), "label": torch.tensor([0, 1])}
            ),
            "no labels for a network without num_classes",
        ),
        (lambda: DiffusionScoreMatching()(made_by())(data(5) / 0), "finite data"),
        (
            lambda: DiffusionScoreMatching(label_dropout=0.1)(made_by())(data(5)),
            r"data with 'label' where label_dropout is set, got \['x'\]",
        ),
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_ancestral_steps_of_ddpms_rates_are_ddpms() -> None:
    """Ho, Jain and Abbeel 2020, equations 7 and 11, with the posterior's variance."""
    n = 50
    betas = linear_betas(n)
    abar = (1 - betas).cumprod(0)
    at = (torch.arange(n, 0, -1, dtype=F64) / n).tolist()
    rows = ancestral(DiscreteVP(betas), at)
    assert len(rows) == n - 1
    for row, i in zip(rows, range(n - 1, 0, -1), strict=True):  # from i + 1 to i, counted from 0
        assert row["point"] == pytest.approx(float((1 - betas[i]).rsqrt()), rel=1e-9)
        assert row["score"] == pytest.approx(float(betas[i] * (1 - betas[i]).rsqrt()), rel=1e-9)
        wanted = (betas[i] * (1 - abar[i - 1]) / (1 - abar[i])).sqrt()
        assert row["noise"] == pytest.approx(float(wanted), rel=1e-9)
