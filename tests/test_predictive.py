"""What Pyro models say of posterior draws, model by model, whether they are run for all draws at once or one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import config_enumerate
from torch import Tensor

from ebmppl.interop import pyro_predictive as predictive
from ebmppl.interop.pyro_sites import PyroModel, inspect_sites, log_prob, sample_nodes
from ebmppl.interop.vmappable_noise import VmappableNoise

N = 6
X = torch.linspace(-1, 1, 3 * 20).reshape(20, 3)
Y = torch.linspace(-2, 2, 20)


def matrix_without_plates() -> None:
    w = pyro.sample("w", dist.Normal(0, 1).expand([3]).to_event(1))
    pyro.sample("y", dist.Normal(X @ w, 1.0), obs=Y)


def vector_beside_a_plate() -> None:
    w = pyro.sample("w", dist.Normal(0, 1).expand([3]).to_event(1))
    with pyro.plate("n", 20):
        pyro.sample("y", dist.StudentT(4.0, X @ w, 1.0), obs=Y)


def scalars_and_a_plate() -> None:
    a, s = pyro.sample("a", dist.Normal(0, 1)), pyro.sample("s", dist.HalfCauchy(1.0))
    with pyro.plate("n", 20):
        mean = pyro.deterministic("mean", a + X[:, 0])
        pyro.sample("y", dist.StudentT(4.0, mean, s), obs=Y)


def scalar_without_a_plate() -> None:
    m = pyro.sample("m", dist.Normal(0, 1))
    pyro.sample("y", dist.Normal(m, 1.0), obs=Y)


def multivariate() -> None:
    m = pyro.sample("m", dist.Normal(0, 1))
    pyro.sample("y", dist.MultivariateNormal(m * torch.ones(20), torch.eye(20)), obs=Y)


def indexed() -> None:
    with pyro.plate("group", 4):
        a = pyro.sample("a", dist.Normal(0, 1))
    with pyro.plate("n", 20):
        pyro.sample("y", dist.Gamma(a.exp()[torch.arange(20) % 4], 1.0), obs=Y.abs() + 0.1)


def nested_plates() -> None:
    with pyro.plate("column", 5, dim=-1):
        mu = pyro.sample("mu", dist.Normal(0, 1))
        with pyro.plate("row", 4, dim=-2):
            pyro.sample("y", dist.StudentT(5.0, mu, 1.0), obs=Y.view(4, 5))


def counts() -> None:
    m = pyro.sample("m", dist.Normal(0, 1))
    with pyro.plate("n", 20):
        pyro.sample("y", dist.Binomial(10, logits=m * X[:, 0]), obs=(Y.abs() * 3).round())


def autoregressive() -> None:
    phi, before = pyro.sample("phi", dist.Normal(0, 0.3)), torch.tensor(0.0)
    for t in range(4):
        before = pyro.sample(f"y_{t}", dist.Normal(phi * before, 1.0), obs=Y[t])


def branching() -> None:
    m = pyro.sample("m", dist.Normal(0, 1))
    with pyro.plate("n", 20):
        pyro.sample("y", dist.Normal(2 * m if m > 0 else m, 1.0), obs=Y)


MODELS = [
    matrix_without_plates,
    vector_beside_a_plate,
    scalars_and_a_plate,
    scalar_without_a_plate,
    multivariate,
    indexed,
    nested_plates,
    counts,
    autoregressive,
    branching,
]


def _prepared(model: Callable[[], None], rows: int = N) -> tuple[PyroModel, dict[str, Tensor]]:
    torch.manual_seed(0)
    traces = [sample_nodes(pyro.poutine.trace(model).get_trace()) for _ in range(rows)]
    latents = [{name: n["value"] for name, n in nodes.items() if not n["is_observed"]} for nodes in traces]
    draws = {name: torch.stack([values[name] for values in latents]) for name in latents[0]}
    return PyroModel(model, (), {}, {name: value[0] for name, value in draws.items()}), draws


@pytest.mark.parametrize("function", MODELS, ids=lambda f: f.__name__)
def test_the_log_likelihood_is_that_of_each_draw(function: Callable[[], None]) -> None:
    model, draws = _prepared(function)
    sites = inspect_sites(model, 0)
    groups = predictive.pointwise(model, sites, draws, 0, log_likelihood=True)
    assert sites.observed
    for i in range(N):
        nodes = model.trace({name: value[i] for name, value in draws.items()}).nodes
        for name in sites.observed:  # float32 sums of a few terms
            torch.testing.assert_close(groups["log_likelihood"][name][i], log_prob(nodes[name]), rtol=1e-5, atol=1e-5)
        for name in sites.deterministic:
            torch.testing.assert_close(groups["posterior"][name][i], nodes[name]["value"])


@pytest.mark.parametrize("function", MODELS, ids=lambda f: f.__name__)
def test_predictive_draws_have_the_shapes_of_the_data(function: Callable[[], None]) -> None:
    model, draws = _prepared(function)
    sites = inspect_sites(model, 0)
    groups = predictive.posterior_predictive(model, sites, draws, 0)
    groups |= predictive.prior_predictive(model, sites, 7, 0)
    for name, data in sites.observed_data.items():
        assert groups["posterior_predictive"][name].shape == (N, *data.shape)
        assert groups["prior_predictive"][name].shape == (7, *data.shape)
        assert len(groups["posterior_predictive"][name].unique()) > 1
    for name, value in model.point.items():
        assert groups["prior"][name].shape == (7, *value.shape)
        assert len(groups["prior"][name].reshape(7, -1).unique(dim=0)) == 7  # every draw is another one


@pytest.mark.parametrize(
    "function",
    [scalars_and_a_plate, scalar_without_a_plate, indexed, nested_plates, counts, multivariate],
    ids=lambda f: f.__name__,
)
def test_predictive_draws_have_the_moments_of_their_distribution(function: Callable[[], None]) -> None:
    # 4000 replicates at one point; 20 means and z at 4.5: a false alarm in 1e-4 of seeds
    model, draws = _prepared(function, 2)
    sites, rows = inspect_sites(model, 0), 4000
    same = {name: value[:1].expand(rows, *value.shape[1:]) for name, value in draws.items()}
    got = predictive.posterior_predictive(model, sites, same, 1)["posterior_predictive"]["y"]
    node = model.trace({name: value[0] for name, value in draws.items()}).nodes["y"]
    mean, sd = node["fn"].mean.expand(got.shape[1:]), node["fn"].variance.expand(got.shape[1:]).sqrt()
    z = (got.mean(0) - mean) / sd * rows**0.5
    assert z.abs().max() < 4.5
    assert (z.std() < 2.0) or function is multivariate


def test_how_a_model_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    slow: list[str] = []
    original = predictive._one_by_one
    monkeypatch.setattr(predictive, "_one_by_one", lambda *args: slow.append("") or original(*args))
    for function in MODELS:
        model, draws = _prepared(function)
        predictive.posterior_predictive(model, inspect_sites(model, 0), draws, 0)
        # torch can't vmap binomials, nor control flow on values; all others are run for all draws at once
        assert bool(slow) == (function in (counts, branching)), function.__name__
        slow.clear()


@pytest.mark.parametrize(
    ("in_place", "wanted"),
    [
        (lambda x: x.normal_(1.0, 2.0), torch.distributions.Normal(1.0, 2.0)),
        (lambda x: x.uniform_(-1.0, 3.0), torch.distributions.Uniform(-1.0, 3.0)),
        (lambda x: x.exponential_(2.0), torch.distributions.Exponential(2.0)),
        (lambda x: x.cauchy_(1.0, 2.0), torch.distributions.Cauchy(1.0, 2.0)),
    ],
    ids=["normal", "uniform", "exponential", "cauchy"],
)
def test_in_place_noise_keeps_its_distribution_under_vmap(in_place: Callable[[Tensor], Tensor], wanted: Any) -> None:
    torch.manual_seed(0)
    n = 20000
    with VmappableNoise():
        draws = torch.func.vmap(lambda _: in_place(torch.empty(())), randomness="different")(torch.zeros(n))
    shares = wanted.cdf(draws).sort().values
    # Kolmogorov and Smirnov: a distance of 1.95 / sqrt(n) has a false-alarm rate of 1e-3
    assert (shares - torch.arange(n) / n).abs().max() < 1.95 / n**0.5


def test_in_place_noise_that_goes_on_with_the_old_tensor_is_nan() -> None:
    def careless(_: Tensor) -> Tensor:
        x = torch.empty(())
        x.normal_()
        return x

    with VmappableNoise():
        assert torch.func.vmap(careless, randomness="different")(torch.zeros(3)).isnan().all()


def test_memory_is_bounded_by_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    model, draws = _prepared(scalars_and_a_plate, 10)
    sites = inspect_sites(model, 0)
    whole = predictive.pointwise(model, sites, draws, 0, log_likelihood=True)
    sizes: list[int] = []
    monkeypatch.setattr(predictive, "_NUMBERS", 3 * sites.numbers)
    original = PyroModel.trace
    monkeypatch.setattr(PyroModel, "trace", lambda self, values, **kw: sizes.append(1) or original(self, values, **kw))
    parts = predictive.pointwise(model, sites, draws, 0, log_likelihood=True)
    assert len(sizes) == 4  # 10 draws, 3 at a time
    torch.testing.assert_close(parts, whole)


def test_data_wider_than_their_distribution_are_replicated_whole() -> None:
    model, draws = _prepared(scalar_without_a_plate)
    sites = inspect_sites(model, 0)
    replicates = predictive.posterior_predictive(model, sites, draws, 0)["posterior_predictive"]["y"]
    assert all(len(row.unique()) == 20 for row in replicates)  # not one number 20 times


def test_masks_and_scales_count_as_in_the_energy() -> None:
    def weighted() -> None:
        m = pyro.sample("m", dist.Normal(0, 1))
        with pyro.plate("n", 20), pyro.poutine.scale(scale=2.0), pyro.poutine.mask(mask=torch.arange(20) < 5):
            pyro.sample("y", dist.Normal(m, 1.0), obs=Y)

    model, draws = _prepared(weighted)
    terms = predictive.pointwise(model, inspect_sites(model, 0), draws, 0, log_likelihood=True)["log_likelihood"]["y"]
    wanted = 2 * torch.distributions.Normal(draws["m"][:, None], 1.0).log_prob(Y) * (torch.arange(20) < 5)
    torch.testing.assert_close(terms, wanted)


def test_data_with_holes() -> None:
    def holes() -> None:
        m = pyro.sample("m", dist.Normal(0, 1))
        with pyro.plate("n", 20):
            pyro.sample("y", dist.Normal(m, 1.0), obs=Y, obs_mask=torch.arange(20) < 15)

    model, draws = _prepared(holes)
    sites = inspect_sites(model, 0)
    assert (sites.observed, sites.deterministic) == (["y_observed"], ["y"])
    groups = predictive.pointwise(model, sites, draws, 0, log_likelihood=True)
    filled = groups["posterior"]["y"]
    assert torch.equal(filled[:, :15], Y[:15].expand(N, 15))
    assert torch.equal(filled[:, 15:], draws["y_unobserved"][:, 15:])
    assert not groups["log_likelihood"]["y_observed"][:, 15:].any()


def test_factors_are_no_data_and_stop_the_prior() -> None:
    def factored() -> None:
        m = pyro.sample("m", dist.Normal(0, 1))
        pyro.factor("barrier", -(m**4))
        pyro.sample("y", dist.Normal(m, 1.0), obs=Y)

    model, _ = _prepared(factored)
    sites = inspect_sites(model, 0)
    assert (sites.observed, sites.factors) == (["y"], ["barrier"])
    assert sites.why_no_prior == "the factors barrier are no part of draws from the prior"


def test_discrete_latents_are_drawn_anew() -> None:
    @config_enumerate
    def mixture() -> None:
        with pyro.plate("component", 2):
            mu = pyro.sample("mu", dist.Normal(0, 3))
        with pyro.plate("n", 20):
            z = pyro.sample("z", dist.Bernoulli(0.25))
            pyro.sample("y", dist.Normal(mu[z.long()], 0.01), obs=Y)

    model, draws = _prepared(mixture)
    draws = {"mu": torch.tensor([-1.0, 1.0]).expand(500, 2)}
    model = model._replace(point={"mu": draws["mu"][0]})
    sites = inspect_sites(model, 0)
    assert sites.discrete == ["z"]
    replicates = predictive.posterior_predictive(model, sites, draws, 0)["posterior_predictive"]["y"]
    share = (replicates > 0).float().mean()  # of 10000 independent draws: 4 standard errors are 0.017
    assert abs(float(share) - 0.25) < 0.018
    assert predictive.prior_predictive(model, sites, 9, 0)["prior"]["z"].shape == (9, 20)


def test_an_outer_handler_of_the_user_sees_nothing() -> None:
    model, draws = _prepared(scalars_and_a_plate)
    with pyro.poutine.trace() as outer:
        sites = inspect_sites(model, 0)
        predictive.posterior_predictive(model, sites, draws, 0)
    assert not outer.get_trace().nodes
