"""Conditional scores: against the exact ones of Gaussian data, per-chain conditions, in-painting, bad input."""

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
from ebmppl.score import (
    VE,
    VP,
    ClassConditional,
    ClassifierFreeGuidance,
    ClassifierGuidance,
    Denoiser,
    InPainting,
    LikelihoodGuidance,
    LinearGuidance,
    LinearSDE,
    NoisePrediction,
    Replacement,
    SubVP,
)
from ebmppl.score.conditions import choosing_rows, num_conditions
from tests.score_targets import normal

F64 = torch.float64
SDES: dict[str, LinearSDE] = {"ve": VE(0.02, 20.0), "vp": VP(0.1, 10.0), "subvp": SubVP(0.1, 10.0)}
FALSE_ALARM = 1e-3  # of all statistical tests of this file together; seeds are fixed
TESTS = 60
LIMIT = float(stats.norm.isf(FALSE_ALARM / 2 / TESTS))


pytestmark = pytest.mark.usefixtures("one_thread_of_float64")


class GaussianData(nn.Module):
    """The score of data N(mean, covariance) with noise, and what is exact given linear measurements."""

    mean: Tensor
    covariance: Tensor

    def __init__(self, sde: LinearSDE, mean: Tensor, covariance: Tensor) -> None:
        super().__init__()
        self.sde = sde
        self.register_buffer("mean", mean)
        self.register_buffer("covariance", covariance)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        a, std = (v.view(-1, 1) for v in self.sde.marginal(t))
        flat = x.reshape(len(x), -1)
        total = a.unsqueeze(2).square() * self.covariance + std.unsqueeze(2).square() * torch.eye(len(self.mean)).to(x)
        return -torch.linalg.solve(total, (flat - a * self.mean).unsqueeze(2)).view_as(x)

    def given(self, matrix: Tensor, y: Tensor, noise_std: float) -> GaussianData:
        """Of data given y = matrix x0 + noise."""
        matrix, y = matrix.to(self.mean), y.to(self.mean)
        cross = self.covariance @ matrix.mT
        gain = torch.linalg.solve(matrix @ cross + noise_std**2 * torch.eye(len(matrix)).to(matrix), cross.mT).mT
        covariance = self.covariance - gain @ cross.mT
        return GaussianData(self.sde, self.mean + gain @ (y - matrix @ self.mean), covariance)


MEAN = torch.tensor([0.5, -1.0, 0.3], dtype=F64)
CORRELATED = torch.tensor([[1.0, 0.8, 0.2], [0.8, 1.5, -0.3], [0.2, -0.3, 0.6]], dtype=F64)
SPHERE = 0.49 * torch.eye(3, dtype=F64)
MATRIX = torch.tensor([[1.0, 0.5, -0.2], [0.3, -1.0, 2.0]], dtype=F64)
Y = torch.tensor([0.7, -1.4], dtype=F64)
X, T = normal(8, 3, seed=1).to(F64), torch.linspace(0.05, 1, 8, dtype=F64)


def equal(found: Tensor, wanted: Tensor, rtol: float = 1e-9) -> None:
    torch.testing.assert_close(found.cpu(), wanted.cpu(), rtol=rtol, atol=rtol)


def points(device: torch.device, dimension: int = 3) -> tuple[Tensor, Tensor]:
    """Eight points and their times."""
    return X[:, :dimension].to(device), T.to(device)


# Linear inverse problems: the exact score of Gaussian data given y.


@pytest.mark.parametrize("sde", SDES)
@pytest.mark.parametrize(("method", "covariance"), [("pigdm", SPHERE), ("tmpd", SPHERE), ("tmpd", CORRELATED)])
@pytest.mark.parametrize("noise_std", [0.0, 0.3])
def test_the_score_given_measurements_is_exact(
    sde: str, method: str, covariance: Tensor, noise_std: float, device: torch.device
) -> None:
    data = GaussianData(SDES[sde], MEAN, covariance)
    wanted = data.given(MATRIX, Y, noise_std)(X, T)
    given = LinearGuidance(data.to(device), SDES[sde], MATRIX, Y, noise_std, method, data_std=0.7)
    equal(given(*points(device)), wanted, 1e-8)


@torch.no_grad()
def test_approximations_are_told_from_the_exact_score() -> None:
    """For correlated data all but the true moments are off, by more than a hundredth; so is a wrong standard deviation."""
    sde = SDES["vp"]
    data = GaussianData(sde, MEAN, CORRELATED)
    exact = data.given(MATRIX, Y, 0.3)(X, T)
    for method in ("pigdm", "dps", "annealed"):
        found = LinearGuidance(data, sde, MATRIX, Y, 0.3, method)(X, T)
        assert float((found - exact).norm() / exact.norm()) > 0.01
    sphere = GaussianData(sde, MEAN, SPHERE)
    wrong = LinearGuidance(sphere, sde, MATRIX, Y, 0.3, data_std=1.0)(X, T)
    assert float((wrong - sphere.given(MATRIX, Y, 0.3)(X, T)).norm() / wrong.norm()) > 0.02


@pytest.mark.parametrize("sde", SDES)
def test_dps_is_the_gradient_at_the_denoised_point(sde: str, device: torch.device) -> None:
    """Eq. 16 of Chung et al. by autograd of everything, and as a log-likelihood of a denoiser; exact as t goes to 0."""
    model, data = SDES[sde], GaussianData(SDES[sde], MEAN, CORRELATED).to(device)
    denoise, (x, t) = Denoiser(data, model), points(device)

    def likelihood(x: Tensor, t: Tensor) -> Tensor:
        return -0.5 * ((Y.to(x) - denoise(x, t) @ MATRIX.mT.to(x)) / 0.3).square().sum(1)

    at = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(likelihood(at, t).sum(), at)
    dps = LinearGuidance(data, model, MATRIX, Y, 0.3, "dps", scale=0.7)
    equal(dps(x, t), data(x, t) + 0.7 * gradient)
    equal(LikelihoodGuidance(data, likelihood, 0.7).to(device)(x, t), dps(x, t))
    if sde != "ve":  # whose data has noise at t = 0
        near = torch.full_like(t, 1e-7)
        exact = data.given(MATRIX, Y, 0.3)(x, near)
        equal(LinearGuidance(data, model, MATRIX, Y, 0.3, "dps")(x, near), exact, 1e-4)


@pytest.mark.parametrize("sde", SDES)
def test_the_annealed_likelihood_is_exact_for_flat_data(sde: str, device: torch.device) -> None:
    """Of variance 1e7, beside which noise over signal is at most 4e2."""
    data = GaussianData(SDES[sde], MEAN, 1e7 * torch.eye(3)).to(device)
    exact = data.given(MATRIX, Y, 0.3)(*points(device))
    equal(LinearGuidance(data, SDES[sde], MATRIX, Y, 0.3, "annealed")(*points(device)), exact, 2e-4)


@pytest.mark.parametrize("method", ["pigdm", "dps", "annealed"])
def test_in_painting_is_the_matrix_that_picks(method: str, device: torch.device) -> None:
    sde, (x, t) = SDES["vp"], points(device)
    data = GaussianData(sde, MEAN, CORRELATED).to(device)
    mask, values = torch.tensor([[True], [False], [True]]), torch.tensor([[1.0], [math.nan], [-2.0]])
    found = InPainting(data, sde, (3, 1), mask, values, 0.2, method, data_std=1.3)(x.unsqueeze(2), t)
    picks = torch.eye(3)[[0, 2]]
    wanted = LinearGuidance(data, sde, picks, torch.tensor([1.0, -2.0]), 0.2, method, data_std=1.3)(x, t)
    equal(found, wanted.unsqueeze(2))


def test_gradients_of_conditional_scores(device: torch.device) -> None:
    """``log_likelihood`` differentiates scores: its value is that of the posterior, whose score this is."""
    sde, x = SDES["vp"], X.to(device)
    data = GaussianData(sde, MEAN, CORRELATED).to(device)
    exact = data.given(MATRIX, Y, 0.5)
    wanted = eb.log_likelihood(exact, sde, x, t_min=1e-3, rtol=1e-7, atol=1e-7)
    found = eb.log_likelihood(
        LinearGuidance(data, sde, MATRIX, Y, 0.5, "tmpd"), sde, x, t_min=1e-3, rtol=1e-7, atol=1e-7
    )
    equal(found.value, wanted.value, 1e-5)


def moments_fit(x: Tensor, data: GaussianData) -> None:
    """Means and products of draws ``(n, 3)`` against a Gaussian's, each by its standard error."""
    root = torch.linalg.cholesky(data.covariance)
    z = torch.linalg.solve_triangular(root, (x - data.mean).mT, upper=False).mT
    n, pairs = len(x), torch.triu(torch.ones(3, 3), 1).bool()
    scores = torch.cat([z.mean(0), (z.square().mean(0) - 1) / math.sqrt(2), (z.mT @ z / n)[pairs]]) * math.sqrt(n)
    assert float(scores.abs().max()) < LIMIT, scores


@pytest.mark.parametrize(
    "make",
    [
        lambda s, sde: eb.ReverseSDE(s, sde, (3,), 150, "ancestral", t_min=1e-4),
        lambda s, sde: eb.ProbabilityFlow(s, sde, (3,), 30, t_min=1e-4),
    ],
)
def test_draws_given_measurements_have_the_posteriors_moments(
    make: Callable[..., eb.kernels.Kernel], device: torch.device
) -> None:
    sde = SDES["vp"]
    data = GaussianData(sde, MEAN, CORRELATED)
    exact = data.given(MATRIX, Y, 0.5)
    guided = LinearGuidance(data.to(device), sde, MATRIX, Y, 0.5, "tmpd")
    x = eb.generate(make(guided, sde), 2000, seed=1)
    assert x.device.type == device.type
    moments_fit(x.cpu(), exact)


# In-painting by replacement.


@pytest.mark.parametrize("sde", SDES)
def test_replacement_is_exact_where_the_known_tells_nothing(sde: str, device: torch.device) -> None:
    model, mask = SDES[sde], torch.tensor([True, False, False])
    apart = CORRELATED.clone()
    apart[0, 1:] = apart[1:, 0] = 0.0
    data = GaussianData(model, MEAN, apart).to(device)
    given = data.given(torch.eye(3)[:1], torch.tensor([2.0]), 0.0)
    found = Replacement(data, model, (3,), mask, torch.tensor([2.0, 0.0, 0.0]))
    equal(found(*points(device)), given(*points(device)))


def test_resampling_mends_what_replacement_leaves_out(device: torch.device) -> None:
    """Of correlated numbers the exact mean of draws (a linear score: without noise) comes nearer to that given the first."""
    sde, mask = VP(), torch.tensor([True, False, False])
    data = GaussianData(sde, MEAN, CORRELATED)
    exact = data.given(torch.eye(3)[:1], torch.tensor([2.0]), 0.0).mean
    score = Replacement(data.to(device), sde, (3,), mask, torch.tensor([2.0, math.nan, math.nan]))

    def error(**options: int) -> float:
        kernel = eb.ReverseSDE(score, sde, (3,), 60, "ancestral", denoise=True, **options)
        none = torch.zeros(1, 3, device=device)
        state, tuning = kernel.init(none), kernel.init_tuning(none)
        for _ in range(kernel.ticks_per_draw):
            state, _ = kernel.tick(state, tuning, {"normal": none, "start": none})
        x = kernel.position(state)[0].cpu()
        equal(x[0], torch.tensor(2.0))
        return float((x - exact).norm())

    plain, some, many, jumps = error(), error(resample=8), error(resample=32), error(resample=8, jump=6)
    assert plain > 0.4
    assert some < 0.3 * plain
    assert many < 0.4 * some
    assert jumps < 0.5 * plain


@pytest.mark.parametrize("sde", SDES)
@pytest.mark.parametrize("jump", [1, 3])
def test_resampling_keeps_the_law(sde: str, jump: int, device: torch.device) -> None:
    """Steps down and back of a score that is right: the law at the end is that without them, exactly (linear steps)."""
    model = SDES[sde]
    t_min = float(model.time_of(torch.tensor([0.3]))[0])

    def score(x: Tensor, t: Tensor) -> Tensor:
        mean, std = model.marginal(t)
        return -x / (0.6 * mean.square() + std.square())

    mean, std = model.marginal(torch.tensor([1.0, t_min]))
    start, end = 0.6 * mean.square() + std.square()
    errors = []
    for n in (120, 240):
        kernel = eb.ReverseSDE(
            score,
            model,
            (),
            n,
            "ancestral",
            t_min=t_min,
            last_noise=True,
            resample=3,
            jump=jump,
            times=eb.score.log_snr_times,
        )
        x = torch.zeros(kernel.ticks_per_draw + 1, device=device)
        x[0] = start.sqrt()
        state, tuning = kernel.init(x), kernel.init_tuning(x)
        for k in range(kernel.ticks_per_draw):
            z = torch.zeros_like(x)
            z[k + 1] = 1.0
            state, _ = kernel.tick(state, tuning, {"normal": z, "start": z})
        errors.append(abs(float(kernel.position(state).square().sum() - end)))
    assert errors[1] < 0.02 * float(end)
    assert math.log2(errors[0] / errors[1]) == pytest.approx(1, abs=0.2)  # of weak order 1, as without


# Labels, classifiers, weights.

CENTRES = torch.tensor([[2.0, 0.0], [-2.0, 1.0], [0.0, -2.0]], dtype=F64)


class OfClass(nn.Module):
    """The score of N(centre of the label, 0.1 I) with noise; label 3 is all of them, with equal weights."""

    centres: Tensor

    def __init__(self, sde: LinearSDE) -> None:
        super().__init__()
        self.sde = sde
        self.register_buffer("centres", CENTRES)

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        parts = [self.one(x, t, centre) for centre in self.centres.to(x)]
        scores = torch.stack([s for s, _ in parts], 1)
        shares = torch.stack([log for _, log in parts], 1).softmax(1).unsqueeze(2)
        own = scores.gather(1, label.clamp_max(2).view(-1, 1, 1).expand(-1, 1, 2)).squeeze(1)
        return torch.where((label == 3).unsqueeze(1), (shares * scores).sum(1), own)

    def one(self, x: Tensor, t: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
        """Of one class, and its log density."""
        mean, std = (v.unsqueeze(1) for v in self.sde.marginal(t))
        variance = 0.1 * mean.square() + std.square()
        away = x - mean * centre
        return -away / variance, -0.5 * away.square().sum(1) / variance.squeeze(1)


class Noise(OfClass):
    """The noise that the score tells."""

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return -self.sde.marginal(t)[1].unsqueeze(1) * super().forward(x, t, label)


def logits(sde: LinearSDE) -> Callable[[Tensor, Tensor], Tensor]:
    """Of the exact classifier of noisy points."""

    def classifier(x: Tensor, t: Tensor) -> Tensor:
        mean, std = (v.unsqueeze(1) for v in sde.marginal(t))
        away = x.unsqueeze(1) - mean.unsqueeze(2) * CENTRES.to(x)
        return -0.5 * away.square().sum(2) / (0.1 * mean.square() + std.square())

    return classifier


LABELS = torch.arange(8) % 3


def test_classifier_guidance_is_bayes_rule(device: torch.device) -> None:
    sde, (x, t) = SDES["vp"], points(device, 2)
    network = OfClass(sde).to(device)
    free, wanted = ClassConditional(network, 3), ClassConditional(network, LABELS)(x, t)
    equal(ClassifierGuidance(free, logits(sde), LABELS)(x, t), wanted)
    equal(ClassifierGuidance(free, logits(sde), 1)(x, t), ClassConditional(network, 1)(x, t))
    scale = torch.linspace(0, 3, 8)
    by_scale = free(x, t) + scale.to(x).unsqueeze(1) * (wanted - free(x, t))
    equal(ClassifierGuidance(free, logits(sde), LABELS, scale)(x, t), by_scale)


def test_classifier_free_guidance_weighs_two_scores(device: torch.device) -> None:
    sde, (x, t) = SDES["vp"], points(device, 2)
    network = OfClass(sde).to(device)
    free, given = ClassConditional(network, 3), ClassConditional(network, LABELS)
    equal(ClassifierFreeGuidance(given, free, 0.0)(x, t), given(x, t))
    equal(ClassifierFreeGuidance(given, free, -1.0)(x, t), free(x, t))
    equal(ClassifierFreeGuidance(given, free, 1.5)(x, t), 2.5 * given(x, t) - 1.5 * free(x, t))
    weights = torch.linspace(0, 2, 8)
    by_weight = given(x, t) + weights.to(x).unsqueeze(1) * (given(x, t) - free(x, t))
    equal(ClassifierFreeGuidance(given, free, weights)(x, t), by_weight)


# Conditions by chain: draw i is of condition i, whatever the batches are.


def of_data(mean: Tensor, x: Tensor, c: Tensor) -> Tensor:
    """Log p(c | x) of data N(0, I) that c is measured of with variance 0.01."""
    return -0.5 * (c - mean.unsqueeze(1) * x).square().sum(1) / (1.01 - mean.square())


MANY = torch.arange(23) * 7 % 3
CONDITIONED: dict[str, Callable[[LinearSDE], Any]] = {
    "labels": lambda sde: ClassConditional(OfClass(sde), MANY),
    "labels of a noise network": lambda sde: NoisePrediction(ClassConditional(Noise(sde), MANY), sde),
    "classifier": lambda sde: ClassifierGuidance(ClassConditional(OfClass(sde), 3), logits(sde), MANY, torch.ones(23)),
    "classifier-free": lambda sde: ClassifierFreeGuidance(
        ClassConditional(OfClass(sde), MANY), ClassConditional(OfClass(sde), 3), torch.full((23,), 0.1)
    ),
    "measured": lambda sde: LinearGuidance(
        ClassConditional(OfClass(sde), 3), sde, torch.eye(2), CENTRES[MANY], 0.1, data_std=0.3
    ),
    "in-painted": lambda sde: InPainting(
        ClassConditional(OfClass(sde), 3), sde, (2,), torch.ones(2).bool(), CENTRES[MANY], 0.1, data_std=0.3
    ),
    "replaced": lambda sde: Replacement(
        ClassConditional(OfClass(sde), 3), sde, (2,), torch.ones(23, 2).bool(), CENTRES[MANY]
    ),
    "likelihood": lambda sde: LikelihoodGuidance(
        lambda x, t: -x, lambda x, t, c: of_data(sde.marginal(t)[0], x, c), 1.0, CENTRES[MANY]
    ),
}
WHICH = [
    lambda s, sde: eb.ReverseSDE(s, sde, (2,), 30, "ancestral", denoise=True),
    lambda s, sde: eb.AdaptiveFlow(s, sde, (2,), rtol=1e-2, atol=1e-2),
]


def nearest(x: Tensor) -> Tensor:
    return torch.cdist(x.cpu(), CENTRES).argmin(-1)


@pytest.mark.parametrize(
    ("name", "batch_size"), [*((name, 7) for name in CONDITIONED), ("labels", None), ("labels", 1), ("replaced", None)]
)
def test_each_draw_is_of_its_own_condition(name: str, batch_size: int | None, device: torch.device) -> None:
    sde = VP()
    score = CONDITIONED[name](sde).to(device)
    make = WHICH[list(CONDITIONED).index(name) % 2]
    x = eb.generate(make(score, sde), 23, seed=0, batch_size=batch_size)
    assert x.device.type == device.type
    assert torch.equal(nearest(x), MANY)
    assert num_conditions(score) == 23  # and they are there again


@pytest.mark.parametrize("name", CONDITIONED)
def test_chains_keep_their_conditions(name: str, device: torch.device) -> None:
    sde = VP()
    mcmc = eb.MCMC(WHICH[0](CONDITIONED[name](sde).to(device), sde), 3, 0, num_chains=23, seed=0, disable_progbar=True)
    mcmc.run()
    assert torch.equal(nearest(mcmc.get_samples(group_by_chain=True)["x"]), MANY.unsqueeze(1).expand(23, 3))


def test_likelihoods_by_label(device: torch.device) -> None:
    """Points arrive at different times; those that are left keep their labels."""
    sde, x = VP(), (CENTRES[MANY] + 0.3 * normal(23, 2)).to(device)
    network = OfClass(sde).to(device)
    found = eb.log_likelihood(ClassConditional(network, MANY), sde, x, t_min=1e-3).value
    alone = torch.cat(
        [
            eb.log_likelihood(ClassConditional(network, int(k)), sde, p[None], t_min=1e-3).value
            for k, p in zip(MANY, x, strict=True)
        ]
    )
    equal(found, alone, 1e-7)


def test_other_numbers_of_chains_are_refused() -> None:
    sde = VP()
    kernel = WHICH[0](CONDITIONED["labels"](sde), sde)
    with pytest.raises(ValueError, match="n = 23, a draw for each row that the score is given, got 22"):
        eb.generate(kernel, 22)
    with pytest.raises(ValueError, match="expected 23 chains or points, one for each label given, got 5"):
        eb.transport(kernel, normal(5, 2))
    with pytest.raises(ValueError, match="expected 23 chains or points"):
        eb.MCMC(kernel, 2, 0, num_chains=4, disable_progbar=True).run()
    hidden = CONDITIONED["labels"](sde)
    with pytest.raises(ValueError, match="must be a module, or made of such"):
        eb.generate(WHICH[0](lambda x, t: hidden(x, t), sde), 23)
    two = ClassConditional(OfClass(sde), MANY[:5])
    with pytest.raises(ValueError, match=r"as many rows of everything that is given by row, got \[5, 23\]"):
        num_conditions(nn.ModuleList([hidden, two]))


def test_rows_are_chosen_and_come_back(device: torch.device) -> None:
    score = ClassConditional(lambda x, t, y: y.unsqueeze(1).to(x), torch.arange(5)).to(device)
    x = torch.zeros(5, 1, device=device)
    with choosing_rows(score, 2) as choose:
        choose(torch.tensor([3, 6]))
        assert score(x[:2], x[:2, 0]).flatten().tolist() == [3, 1]
    assert score(x, x[:, 0]).flatten().tolist() == [0, 1, 2, 3, 4]


def test_draws_at_a_networks_dtype(device: torch.device) -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones((), dtype=torch.float32))

        def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
            return self.weight * OfClass(VP())(x, t, label)

    network = Network().to(device)
    for score in (
        ClassConditional(network, MANY),
        LinearGuidance(ClassConditional(network, 3), VP(), torch.eye(2), CENTRES[MANY], 0.1, data_std=0.3),
        Replacement(ClassConditional(network, 3), VP(), (2,), torch.tensor([True, False]), CENTRES[MANY]),
    ):
        x = eb.generate(WHICH[0](score, VP()), 23, seed=0)
        assert (x.dtype, x.device.type) == (torch.float32, device.type)


@pytest.mark.long
@pytest.mark.parametrize("name", CONDITIONED)
def test_compiled_draws_equal_eager_ones(name: str, device: torch.device) -> None:
    sde, backend = VP(), "inductor" if device.type == "cpu" else "cudagraph"
    kernel = WHICH[0](CONDITIONED[name](sde).to(device), sde)
    found, wanted = (eb.generate(kernel, 23, seed=1, batch_size=8, backend=b) for b in (backend, "eager"))
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-8)


def test_the_true_moments_in_a_run_of_chains(device: torch.device) -> None:
    """Rows of measurements by chain, with the method that takes a gradient for each."""
    sde = VP()
    data = GaussianData(sde, MEAN, CORRELATED).to(device)
    score = LinearGuidance(data, sde, MATRIX, Y + normal(6, 2), 0.3, "tmpd")
    run = Chains(eb.ReverseSDE(score, sde, (3,), 20), normal(6, 3).to(device), 0)
    run.advance(1)
    assert bool(run.position().isfinite().all())


# Bad input.

SCORE = lambda x, t: -x
DETACHED = lambda x, t: -x.detach()
MASK = torch.tensor([True, False])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ClassConditional("s", 1), "a network .* got str"),
        (lambda: ClassConditional(SCORE, 1.5), "a label as an integer or a tensor, got 1.5"),
        (lambda: ClassConditional(SCORE, LABELS[:0]), "at least one label where there is one for each chain, got none"),
        (lambda: InPainting(SCORE, VP(), (2,), MASK.expand(0, 2), torch.ones(2)), "at least one mask"),
        (lambda: LinearGuidance(SCORE, VP(), MATRIX[:0], Y[:0], 0.1), r"a matrix \(measurements, dimension\), got"),
        (lambda: LinearGuidance(SCORE, VP(), MATRIX, Y * math.nan, 0.1), "finite measurements"),
        (lambda: ClassifierGuidance("s", SCORE, 1), r"a score \(x, t\) -> tensor, got str"),
        (lambda: ClassifierGuidance(SCORE, "c", 1), "a classifier .* got str"),
        (lambda: ClassifierGuidance(SCORE, SCORE, torch.ones(3)), "labels as int64, .* got torch.float"),
        (lambda: ClassifierGuidance(SCORE, SCORE, 1, -1.0), r"a finite scale >= 0, got -1.0"),
        (lambda: ClassifierGuidance(SCORE, SCORE, 1, math.nan), "a finite scale >= 0, got nan"),
        (lambda: ClassifierGuidance(SCORE, SCORE, 1, torch.ones(2, 2)), r"scale as a number, or one for each chain"),
        (lambda: ClassifierFreeGuidance(SCORE, None), "an unconditional score .* got NoneType"),
        (lambda: ClassifierFreeGuidance(SCORE, SCORE, -2.0), "a finite weight >= -1, got -2.0"),
        (
            lambda: ClassifierFreeGuidance(SCORE, SCORE, torch.tensor([1.0, math.inf])),
            r"weight >= -1, got \[1.0, inf\]",
        ),
        (lambda: LikelihoodGuidance(SCORE, 3), "a log-likelihood .* got int"),
        (lambda: LinearGuidance(SCORE, "vp", MATRIX, Y, 0.1), "a linear SDE, got str"),
        (lambda: LinearGuidance(SCORE, VP(), MATRIX, Y, 0.1, "exact"), "a method of 'pigdm', .* got 'exact'"),
        (lambda: LinearGuidance(SCORE, VP(), MATRIX, Y, -0.1), "a finite noise_std >= 0, got -0.1"),
        (lambda: LinearGuidance(SCORE, VP(), MATRIX, Y, 0.0, "dps"), "a finite noise_std > 0, got 0.0"),
        (lambda: LinearGuidance(SCORE, VP(), MATRIX, torch.ones(3), 0.1), r"measurements \(2,\) or \(chains, 2\), got"),
        (lambda: LinearGuidance(SCORE, VP(), MATRIX[0], Y, 0.1), r"a matrix \(measurements, dimension\), got"),
        (lambda: LinearGuidance(SCORE, VP(), torch.ones(2, 3), Y, 0.0), "independent rows of the matrix"),
        (lambda: LinearGuidance(SCORE, VP(), MATRIX, Y, 0.1, data_std=0.0), "a finite data_std > 0, got 0.0"),
        (lambda: InPainting(SCORE, VP(), (2,), MASK, torch.ones(3)), r"values of shape \(2,\) or \(chains, 2\), got"),
        (lambda: InPainting(SCORE, VP(), (2,), MASK[:1], torch.ones(2)), r"mask of shape \(2,\) or \(chains, 2\), got"),
        (lambda: InPainting(SCORE, VP(), (2,), MASK.int(), torch.ones(2)), "mask as a tensor of bools, got"),
        (
            lambda: InPainting(SCORE, VP(), (2,), MASK, torch.ones(2), method="tmpd"),
            'a method of "pigdm", .* for a mask',
        ),
        (
            lambda: InPainting(SCORE, VP(), (2,), MASK, torch.tensor([math.nan, 0])),
            "finite values where the mask is True",
        ),
        (
            lambda: Replacement(SCORE, VP(), (2,), MASK.expand(3, 2), torch.ones(4, 2)),
            r"as many values as masks, got \(4, 3\)",
        ),
        (lambda: Replacement(SCORE, VP(), (2,), MASK, torch.ones(2).int()), "values as a tensor of floating point"),
        (lambda: eb.ReverseSDE(SCORE, VP(), (2,), 5, resample=2), 'the method "ancestral" to resample'),
        (lambda: eb.ReverseSDE(SCORE, VP(), (2,), 5, "ancestral", resample=0), "a whole resample >= 1, got 0"),
        (lambda: eb.ReverseSDE(SCORE, VP(), (2,), 5, "ancestral", jump=0), "a whole jump >= 1, got 0"),
    ],
)
def test_bad_input(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_detached_score_that_no_gradient_goes_through_is_taken(device: torch.device) -> None:
    """By the method that forgets the data, and one that is the same everywhere by all."""
    for score, method in ((DETACHED, "annealed"), (lambda x, t: torch.ones_like(x), "pigdm")):
        guided = InPainting(score, VP(), (2,), MASK, torch.ones(2), 0.1, method).to(device)
        assert bool(eb.generate(eb.ReverseSDE(guided, VP(), (2,), 5), 4).isfinite().all())


def test_a_log_likelihood_that_is_not_finite_is_told(device: torch.device) -> None:
    """Though its gradient is: log x has the derivative 1 / x where x < 0, too."""
    score = LikelihoodGuidance(SCORE, lambda x, t: x.log().sum(1)).to(device)
    with pytest.warns(SamplingWarning, match=r"draws failed: .* not finite at t .*: rows \d"):
        assert bool(eb.generate(eb.ReverseSDE(score, VP(), (2,), 5), 20, seed=0).isnan().any())


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (
            LikelihoodGuidance(SCORE, lambda x, t: x.detach().sum(1)),
            "differentiable in x, got one that has no gradient",
        ),
        (LikelihoodGuidance(SCORE, lambda x, t: (x > 0).to(x).sum(1)), "differentiable in x, got one that has no grad"),
        (
            LikelihoodGuidance(SCORE, lambda x, t: x.round().sum(1)),
            "differentiable in x, got one that changes in steps",
        ),
        (LikelihoodGuidance(SCORE, lambda x, t: x.sum()), r"log-likelihoods of shape \(4,\), got \(\)"),
        (LikelihoodGuidance(SCORE, lambda x, t: 1.0), r"log-likelihoods of shape \(4,\), got float"),
        (ClassifierGuidance(SCORE, SCORE, 5), r"labels in 0 ... 1, got \[5\]"),
        (ClassifierGuidance(SCORE, lambda x, t: x.sum(1), 0), r"logits of shape \(4, classes\), got \(4,\)"),
        (ClassConditional(lambda x, t, y: x[:, :1], 1), r"output of shape \(4, 2\) .* got \(4, 1\)"),
        (Replacement(SCORE, VP(), (3,), torch.ones(3).bool(), torch.ones(3)), r"points' shape \(2,\), got \(3,\)"),
        (InPainting(SCORE, VP(), (3,), torch.ones(3).bool(), torch.ones(3)), r"points' shape \(2,\), got \(3,\)"),
        (LinearGuidance(SCORE, VP(), MATRIX, Y, 0.1), r"a matrix \(measurements, 2\), got \(2, 3\)"),
        (
            LinearGuidance(DETACHED, VP(), MATRIX[:, :2], Y, 0.1),
            "a score that is differentiable in x, got one .* detached",
        ),
        (InPainting(DETACHED, VP(), (2,), MASK, torch.ones(2), 0.1, "dps"), "a score that is differentiable in x, got"),
    ],
)
def test_bad_input_that_is_seen_at_the_start(score: Any, message: str, device: torch.device) -> None:
    with pytest.raises(ValueError, match=message):
        eb.generate(eb.ReverseSDE(score.to(device), VP(), (2,), 5), 4)


@pytest.mark.parametrize(
    ("make", "points", "message"),
    [
        (
            lambda s: Replacement(s, VP(), (2,), torch.tensor([True, False]), torch.zeros(2)),
            (3, 2, 2),
            r"a mask of the points' shape \(2, 2\), got \(2,\)",
        ),
        (
            lambda s: LikelihoodGuidance(s, lambda x, t: x.sum(1).round()),
            (3, 2),
            "a log-likelihood .*gradient",
        ),
    ],
)
def test_likelihoods_look_at_what_is_given(make: Callable[[Any], Any], points: tuple[int, ...], message: str) -> None:
    """As kernels do."""
    with pytest.raises(ValueError, match=message):
        eb.log_likelihood(make(lambda x, t: -x), VP(), torch.ones(points))
