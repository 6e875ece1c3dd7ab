"""``from_pyro`` against the model's log joint by hand and against Pyro's own potential, chain by chain."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.mcmc.util import initialize_model
from pyro.infer.reparam import LocScaleReparam
from pyro.nn import PyroModule, PyroSample
from pyro.ops.einsum import torch_log
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor, nn
from torch.distributions import biject_to, constraints

import ebmppl as eb
from ebmppl.errors import EnergyError, SamplingWarning
from ebmppl.kernels.gradients import Gradient

TOLERANCE = 1e-10  # of max(1, |wanted|) in float64: a few hundred terms, each rounded at 1e-16, and factors of matrices
Y8 = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0], dtype=torch.float64)
SIGMA8 = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0], dtype=torch.float64)
SERIES = torch.tensor([0.3, 1.1, -0.4, 2.2, 1.9, 2.4, -0.2, 0.1, 1.4, 2.0], dtype=torch.float64)


@pytest.fixture(autouse=True)
def _float64_and_an_empty_param_store() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()
    torch.set_default_dtype(before)


# Models


class Case(NamedTuple):
    """A model with its data, made when a test runs."""

    model: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = {}

    def energy(self) -> eb.Energy:
        return eb.from_pyro(self.model, *self.args, **self.kwargs)


def eight_schools(y: Tensor, sigma: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", 8):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * z)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def nested_plates(y: Tensor) -> None:
    scale = pyro.sample("scale", dist.Exponential(1.0))
    with pyro.plate("group", 3, dim=-2):
        mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
        with pyro.plate("member", 4, dim=-1):
            effect = pyro.sample("effect", dist.StudentT(4.0, mean, scale))
            pyro.sample("y", dist.Normal(effect, 1.0), obs=y)


def plates_side_by_side(y: Tensor) -> None:
    rows, columns = pyro.plate("rows", 3, dim=-2), pyro.plate("columns", 4, dim=-1)
    with rows:
        a = pyro.sample("a", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with columns:
        b = pyro.sample("b", dist.Gamma(2.0, 1.5))
    with rows, columns:
        pyro.sample("y", dist.Normal(a.sum(-1) * b, 1.0), obs=y)


def supports() -> None:
    pyro.sample("interval", dist.Uniform(-1.0, 3.0))
    pyro.sample("unit", dist.Beta(2.0, 3.0))
    pyro.sample("positive", dist.HalfNormal(torch.ones(3)).to_event(1))
    pyro.sample("above", dist.Pareto(1.5, 3.0))
    pyro.sample("simplex", dist.Dirichlet(torch.tensor([[0.7, 2.0, 3.0], [1.0, 1.0, 4.0]])).to_event(1))
    pyro.sample("ordered", dist.TransformedDistribution(dist.Normal(torch.zeros(3), 1.0).to_event(1), [_ordered()]))
    pyro.sample("log_normal", dist.LogNormal(0.3, 0.7))


def _ordered() -> Any:
    return dist.transforms.OrderedTransform()


def correlated(y: Tensor) -> None:
    factor = pyro.sample("factor", dist.LKJCholesky(3, 2.0))
    scale = pyro.sample("scale", dist.HalfNormal(torch.ones(3)).to_event(1))
    latent = pyro.sample("latent", dist.MultivariateNormal(torch.zeros(3), scale_tril=scale[:, None] * factor))
    pyro.sample("y", dist.Normal(latent, 0.5).to_event(1), obs=y)


def with_params(y: Tensor) -> None:
    scale = pyro.param("scale", torch.tensor(2.0), constraint=constraints.positive)
    loc = pyro.param("loc", torch.tensor(0.5))
    mu = pyro.sample("mu", dist.Normal(loc, scale))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, scale), obs=y)


def with_options(y: Tensor, *, prior: float, robust: bool = False) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, prior))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Cauchy(mu, 1.0) if robust else dist.Normal(mu, 1.0), obs=y)


class Regression(PyroModule):
    """A Bayesian linear layer behind one with plain parameters."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.features = PyroModule[nn.Linear](2, 3)
        self.linear = PyroModule[nn.Linear](3, 1)
        self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 3]).to_event(2))
        self.linear.bias = PyroSample(dist.Normal(0.0, 4.0).expand([1]).to_event(1))
        self.noise = PyroSample(dist.HalfCauchy(1.0))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        mean = self.linear(torch.tanh(self.features(x))).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, self.noise), obs=y)
        return mean


def gaussian_process(x: Tensor, y: Tensor) -> None:
    length = pyro.sample("length", dist.InverseGamma(3.0, 3.0))
    height = pyro.sample("height", dist.HalfNormal(2.0))
    noise = pyro.sample("noise", dist.HalfNormal(1.0))
    kernel = height**2 * torch.exp(-0.5 * ((x[:, None] - x) / length) ** 2) + (noise + 1e-3) * torch.eye(len(x))
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(x)), covariance_matrix=kernel), obs=y)


def autoregression(y: Tensor) -> None:
    phi = pyro.sample("phi", dist.Uniform(-1.0, 1.0))
    noise = pyro.sample("noise", dist.HalfNormal(1.0))
    state = pyro.sample("state_0", dist.Normal(0.0, 1.0))
    for t in range(1, len(y)):
        state = pyro.sample(f"state_{t}", dist.Normal(phi * state, noise))
        pyro.sample(f"y_{t}", dist.Normal(state, 0.5), obs=y[t])


def masked_and_scaled(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with poutine.scale(scale=0.3):
        noise = pyro.sample("noise", dist.HalfNormal(2.0))
    with pyro.plate("data", 8), poutine.scale(scale=2.5), poutine.mask(mask=torch.arange(8) % 3 != 0):
        pyro.sample("y", dist.Normal(mu, noise), obs=y)
    pyro.sample("z", dist.Normal(mu, 1.0).expand([8]).mask(y > 0).to_event(1), obs=y)
    pyro.factor("prior", -(mu**4))


def partly_observed(y: Tensor, seen: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y, obs_mask=seen)


def centred(y: Tensor, sigma: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", 8):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def mixture(y: Tensor) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    means = pyro.sample("means", dist.Normal(torch.zeros(3), 3.0).to_event(1))
    with pyro.plate("data", len(y)):
        kind = pyro.sample("kind", dist.Categorical(weights))
        pyro.sample("y", dist.Normal(means[kind], 1.0), obs=y)


def two_switches(y: Tensor) -> None:
    p = pyro.sample("p", dist.Beta(2.0, 2.0))
    outer = pyro.sample("outer", dist.Bernoulli(p))
    with pyro.plate("data", len(y)):
        inner = pyro.sample("inner", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])))
        pyro.sample("y", dist.Normal(2.0 * outer + inner, 1.0), obs=y)


def latent_after_a_switch() -> None:
    switch = pyro.sample("switch", dist.Bernoulli(0.3))
    level = pyro.sample("level", dist.Normal(2.0 * switch, 1.0))
    pyro.sample("y", dist.Normal(level, 1.0), obs=torch.tensor(1.0))


def hidden_markov(y: Tensor) -> None:
    transition = pyro.sample("transition", dist.Dirichlet(torch.ones(2, 2)).to_event(1))
    means = pyro.sample("means", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    state: Any = 0
    for t in pyro.markov(range(len(y))):
        state = pyro.sample(f"state_{t}", dist.Categorical(transition[state]))
        pyro.sample(f"y_{t}", dist.Normal(means[state], 1.0), obs=y[t])


_X = torch.linspace(0.0, 3.0, 6, dtype=torch.float64)
CONTINUOUS: dict[str, Callable[[], Case]] = {
    "eight schools": lambda: Case(eight_schools, (Y8, SIGMA8)),
    "nested plates": lambda: Case(nested_plates, (torch.linspace(-1, 2, 12).reshape(3, 4),)),
    "plates side by side": lambda: Case(plates_side_by_side, (torch.linspace(-1, 2, 12).reshape(3, 4),)),
    "supports": lambda: Case(supports),
    "LKJ and MultivariateNormal": lambda: Case(correlated, (Y8[:3] / 10,)),
    "params": lambda: Case(with_params, (Y8,)),
    "kwargs": lambda: Case(with_options, (Y8,), {"prior": 3.0, "robust": True}),
    "PyroModule": lambda: Case(Regression(), (torch.linspace(-1, 1, 10).reshape(5, 2), Y8[:5])),
    "Gaussian process": lambda: Case(gaussian_process, (_X, _X.sin())),
    "autoregression": lambda: Case(autoregression, (SERIES,)),
    "masked and scaled": lambda: Case(masked_and_scaled, (Y8 / 10,)),
    "partly observed": lambda: Case(partly_observed, (Y8, Y8 > 0)),
    "pyro.condition": lambda: Case(pyro.condition(eight_schools, data={"mu": torch.tensor(4.0)}), (Y8, SIGMA8)),
    "reparameterised": lambda: Case(
        poutine.reparam(centred, config={"theta": LocScaleReparam(0.3)}),  # type: ignore[arg-type]
        (Y8, SIGMA8),
    ),
}
DISCRETE: dict[str, Callable[[], Case]] = {
    "mixture": lambda: Case(mixture, (Y8[:4] / 10,)),  # 3^4 assignments
    "two switches": lambda: Case(two_switches, (Y8[:3] / 10,)),  # 2 * 3^3
    "continuous after discrete": lambda: Case(latent_after_a_switch),
    "hidden Markov, 4 steps": lambda: Case(hidden_markov, (SERIES[:4],)),  # 2^4
}
ALL = CONTINUOUS | DISCRETE


# References


def points(energy: eb.Energy, count: int, radius: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.empty(count, *energy.event_shape).uniform_(-radius, radius, generator=generator)


def by_hand(case: Case, z: Mapping[str, Tensor]) -> Tensor:
    """Minus the log joint of one unconstrained point, by conditioning alone; discrete sites summed value by value."""
    with torch.random.fork_rng(), pyro.validation_enabled(False):
        nodes = _latents(case.model, case)
        values, jacobian = {}, torch.zeros(())
        for name, point in z.items():
            transform = biject_to(nodes[name]["fn"].support)
            values[name] = transform(point)
            jacobian = jacobian + transform.log_abs_det_jacobian(point, values[name]).sum()
        tables = {
            name: node["fn"].enumerate_support(expand=False).flatten()[_assignments(node)]
            for name, node in nodes.items()
            if node["fn"].support.is_discrete
        }
        terms = []
        for rows in itertools.product(*(range(len(table)) for table in tables.values())):
            chosen = {name: table[row] for (name, table), row in zip(tables.items(), rows, strict=True)}
            chosen = {name: value.reshape(nodes[name]["value"].shape) for name, value in chosen.items()}
            conditioned = poutine.condition(case.model, data={**values, **chosen})
            terms.append(poutine.trace(conditioned).get_trace(*case.args, **case.kwargs).log_prob_sum())
    return -torch.logsumexp(torch.stack(terms), 0) - jacobian


def _latents(model: Callable[..., Any], case: Case) -> dict[str, dict[str, Any]]:
    trace = poutine.trace(model).get_trace(*case.args, **case.kwargs)
    return {name: node for name, node in trace.iter_stochastic_nodes() if not isinstance(node["fn"], _Subsample)}


@lru_cache
def _table(values: int, places: int) -> Tensor:
    return torch.cartesian_prod(*[torch.arange(values)] * places).reshape(-1, places)


def _assignments(node: dict[str, Any]) -> Tensor:
    """Every assignment of the values of a discrete site to its places, ``(assignments, places)``."""
    return _table(len(node["fn"].enumerate_support(expand=False)), node["value"].numel())


def of_pyro(case: Case) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """The potential that Pyro's own HMC would use."""
    with torch.random.fork_rng():
        return initialize_model(case.model, case.args, case.kwargs)[1]


def chain_by_chain(
    potential: Callable[[Mapping[str, Tensor]], Tensor], energy: eb.Energy, x: Tensor
) -> tuple[Tensor, Tensor]:
    """Values and gradients of a potential of one chain at packed points."""
    x = x.clone().requires_grad_()
    with pyro.validation_enabled(False):
        values = torch.stack([potential(energy.unpack(row)) for row in x])
    (grads,) = torch.autograd.grad(values.sum(), x)
    return values.detach(), grads


def assert_same(found: Tensor, wanted: Tensor, tolerance: float = TOLERANCE) -> None:
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    found, wanted = found.detach(), wanted.detach()
    error = (found - wanted).abs() / wanted.abs().clamp(min=1.0)
    assert float(error.max()) < tolerance  # false for NaN


# Values and gradients


@pytest.mark.parametrize("name", ALL)
def test_equals_the_log_joint_by_hand(name: str) -> None:
    case = ALL[name]()
    energy = case.energy()
    x = points(energy, 4)
    values, grads = chain_by_chain(lambda z: by_hand(case, z), energy, x)
    assert_same(energy(x), values)
    for found, wanted in zip(energy.value_and_grad(x), (values, grads), strict=True):
        assert_same(found, wanted)


# without the model where Pyro gives `level` one value for every state of the switch before it: that is another model
@pytest.mark.parametrize("name", [n for n in ALL if n != "continuous after discrete"])
def test_equals_the_potential_of_pyro(name: str) -> None:
    case = ALL[name]()
    energy = case.energy()
    x = points(energy, 4)
    values, grads = chain_by_chain(of_pyro(case), energy, x)
    assert_same(energy(x), values)
    for found, wanted in zip(energy.value_and_grad(x), (values, grads), strict=True):
        assert_same(found, wanted)


def test_hidden_markov_model_of_ten_steps_equals_the_sum_over_its_paths() -> None:
    energy = eb.from_pyro(hidden_markov, SERIES)
    paths = _table(2, len(SERIES))  # 2^10

    def potential(z: Mapping[str, Tensor]) -> Tensor:
        to_simplex = biject_to(constraints.simplex)
        rows, means = to_simplex(z["transition"]), z["means"]
        log_p = rows[0, paths[:, 0]].log() + rows[paths[:, :-1], paths[:, 1:]].log().sum(-1)
        log_p = log_p + dist.Normal(means[paths], 1.0).log_prob(SERIES).sum(-1)
        prior = dist.Normal(0.0, 3.0).log_prob(means).sum()  # a flat Dirichlet of two has density 1
        return -torch.logsumexp(log_p, 0) - prior - to_simplex.log_abs_det_jacobian(z["transition"], rows).sum()

    x = points(energy, 4)
    for found, wanted in zip(energy.value_and_grad(x), chain_by_chain(potential, energy, x), strict=True):
        assert_same(found, wanted)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # of vmap, at Pyro's clamp_
def test_hidden_markov_model_as_a_distribution() -> None:
    def model(y: Tensor) -> None:
        means = pyro.sample("means", dist.Normal(torch.zeros(2), 3.0).to_event(1))
        stay = pyro.sample("stay", dist.Beta(2.0, 2.0))
        transition = torch.stack([torch.stack([stay, 1 - stay]), torch.stack([1 - stay, stay])])
        hmm = dist.DiscreteHMM(torch.zeros(2), transition.log(), dist.Normal(means, 1.0), duration=len(y))
        pyro.sample("y", hmm, obs=y)

    case = Case(model, (SERIES,))
    energy = case.energy()
    x = points(energy, 4)
    values, grads = chain_by_chain(of_pyro(case), energy, x)
    assert_same(energy(x), values)
    for found, wanted in zip(energy.value_and_grad(x), (values, grads), strict=True):
        assert_same(found, wanted)


def test_improper_prior_adds_only_its_jacobian() -> None:
    def model() -> None:
        pyro.sample("x", dist.ImproperUniform(constraints.positive, (), (3,)))

    energy = eb.from_pyro(model)
    x = points(energy, 4)
    assert_same(energy(x), -x.sum(-1))


@pytest.mark.parametrize("name", ALL)
def test_traced_equals_untraced(name: str) -> None:
    """No warning comes (warnings are errors here), so what runs is traced; and other points take the same path."""
    energy = ALL[name]().energy()
    gradient = Gradient(energy)
    gradient.prepare(points(energy, 6))
    other = points(energy, 6, radius=1.0)
    for traced, plain in zip(gradient(other), energy.value_and_grad(other), strict=True):
        assert_same(traced, plain, tolerance=1e-12)  # the same operations in the same order


def test_rows_do_not_depend_on_their_neighbours_nor_on_how_the_batch_is_shaped() -> None:
    energy = CONTINUOUS["eight schools"]().energy()
    x = points(energy, 6)
    grid = x.reshape(2, 3, -1)
    values, grads = energy.value_and_grad(x)
    assert_same(energy(grid), values.reshape(2, 3))
    for found, wanted in zip(energy.value_and_grad(grid), (values, grads), strict=True):
        assert_same(found, wanted.reshape(found.shape))
    alone = [energy.value_and_grad(row.unsqueeze(0)) for row in x]
    assert_same(torch.cat([v for v, _ in alone]), values)
    assert_same(torch.cat([g for _, g in alone]), grads)


def test_a_loop_over_a_plate_works_and_says_that_it_runs_untraced() -> None:
    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        for i in pyro.plate("data", 3):  # Pyro reads every index by .item(), which stops the tracer but not vmap
            pyro.sample(f"y_{i}", dist.Normal(pyro.sample(f"x_{i}", dist.Normal(mu, 1.0)), 1.0), obs=y[i])

    case = Case(model, (Y8,))
    energy = case.energy()
    x = points(energy, 4)
    gradient = Gradient(energy)
    with pytest.warns(SamplingWarning, match=r"of PyroEnergy runs untraced, slower: code looks at values"):
        gradient.prepare(x)
    for value, wanted in zip(gradient(x), chain_by_chain(of_pyro(case), energy, x), strict=True):
        assert_same(value, wanted)


@pytest.mark.parametrize("name", ["eight schools", "supports", "mixture", "PyroModule", "Gaussian process"])
def test_a_bad_point_has_no_finite_energy_and_leaves_its_neighbours_alone(name: str) -> None:
    energy = ALL[name]().energy()
    x = points(energy, 4)
    wanted, wanted_grad = energy.value_and_grad(x)
    x[1] = torch.nan
    good = torch.tensor([0, 2, 3])
    values, grads = energy.value_and_grad(x)
    for found in (energy(x), values):
        assert not bool(found[1].isfinite())
        assert_same(found[good], wanted[good])
    assert_same(grads[good], wanted_grad[good])


def test_a_gaussian_process_is_sampled_although_its_matrix_has_no_factor_at_some_points() -> None:
    energy = CONTINUOUS["Gaussian process"]().energy()
    mcmc = eb.MCMC(eb.HMC(energy, num_steps=8), 50, 50, num_chains=16, seed=0, disable_progbar=True)
    mcmc.run()
    assert bool(torch.stack([v.isfinite().all() for v in mcmc.get_samples().values()]).all())


# Parameters and dtypes


def test_params_are_read_at_their_present_value() -> None:
    case = CONTINUOUS["params"]()
    energy = case.energy()
    gradient, x = Gradient(energy), points(energy, 4)
    gradient.prepare(x)
    before, _ = gradient(x)
    with torch.no_grad():
        pyro.get_param_store()["scale"].unconstrained().add_(0.5)  # what an optimiser does
    values, grads = chain_by_chain(of_pyro(case), energy, x)
    assert float((values - before).abs().min()) > 0.1
    assert_same(energy(x), values)
    for found, wanted in zip(gradient(x), (values, grads), strict=True):
        assert_same(found, wanted)


def test_a_param_that_is_replaced_is_seen() -> None:
    case = CONTINUOUS["params"]()
    energy = case.energy()
    gradient, x = Gradient(energy), points(energy, 4)
    gradient.prepare(x)
    pyro.get_param_store()["scale"] = torch.tensor(7.0)  # as ParamStoreDict.load() does
    gradient.prepare(x)  # as every run does at its start
    values, grads = chain_by_chain(of_pyro(case), energy, x)
    assert_same(energy(x), values)
    for found, wanted in zip(gradient(x), (values, grads), strict=True):
        assert_same(found, wanted)


def test_value_and_grad_are_detached_from_the_params() -> None:
    energy = CONTINUOUS["params"]().energy()
    x = points(energy, 4)
    assert not any(v.requires_grad for v in energy.value_and_grad(x))
    energy(x).sum().backward()  # the energy itself trains them
    assert all(p.grad is not None and bool(p.grad.isfinite()) for _, p in pyro.get_param_store().named_parameters())


@pytest.mark.parametrize(
    ("default", "data", "wanted"),
    [
        (torch.float32, torch.float32, torch.float32),
        (torch.float32, torch.float64, torch.float64),
        (torch.float64, torch.float64, torch.float64),
    ],
)
def test_dtype_is_the_widest_of_priors_and_data(default: torch.dtype, data: torch.dtype, wanted: torch.dtype) -> None:
    torch.set_default_dtype(default)
    case = Case(eight_schools, (Y8.to(data), SIGMA8.to(data)))
    energy = case.energy()
    mcmc = eb.MCMC(eb.HMC(energy, num_steps=3), 3, 3, num_chains=2, seed=0, disable_progbar=True)
    mcmc.run()
    assert {v.dtype for v in mcmc.get_samples().values()} == {wanted}
    x = points(energy, 4).to(wanted)
    values, grads = chain_by_chain(of_pyro(case), energy, x)
    tolerance = 1e-5 if wanted == torch.float32 else TOLERANCE  # 30 terms at a rounding of 6e-8
    for found, value in zip(energy.value_and_grad(x), (values, grads), strict=True):
        assert_same(found, value, tolerance)


# Draws


@pytest.mark.parametrize("name", ["supports", "LKJ and MultivariateNormal", "nested plates", "PyroModule", "mixture"])
def test_samples_lie_in_the_supports_and_have_the_shapes_of_the_sites(name: str) -> None:
    case = ALL[name]()
    with torch.random.fork_rng():
        sites = {n: s for n, s in _latents(case.model, case).items() if not s["fn"].support.is_discrete}
    mcmc = eb.MCMC(eb.HMC(case.energy(), step_size=0.1, num_steps=3), 5, 5, num_chains=3, seed=0, disable_progbar=True)
    mcmc.run()
    samples = mcmc.get_samples(group_by_chain=True)
    assert set(samples) == set(sites)
    for site, value in samples.items():
        assert value.shape == (3, 5, *sites[site]["value"].shape)
        assert bool(sites[site]["fn"].support.check(value).all())
    assert all(mcmc.get_samples()[site].shape == (15, *node["value"].shape) for site, node in sites.items())


# What stays as it was


def test_the_global_generator_is_untouched() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    for name in ("eight schools", "mixture", "supports"):
        energy = ALL[name]().energy()
        x = points(energy, 4)
        energy(x)
        energy.value_and_grad(x)
        energy.constrain(x)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("validate", [True, False])
def test_handlers_from_outside_change_nothing_and_see_nothing(validate: bool) -> None:
    case = CONTINUOUS["params"]()
    energy = case.energy()
    x = points(energy, 4)
    wanted, safe_log = energy.value_and_grad(x), torch_log.safe_log
    with (
        pyro.validation_enabled(validate),
        poutine.trace() as tracer,
        poutine.scale(scale=3.0),
        poutine.condition(data={"mu": torch.tensor(9.0)}),
    ):
        inner = case.energy()
        for found, value in zip(inner.value_and_grad(x), wanted, strict=True):
            assert_same(found, value)
        assert_same(inner(x), wanted[0])
        assert pyro.settings.get("validate_distributions_pyro") is validate
        assert pyro.settings.get("validate_distributions_torch") is validate
        assert pyro.settings.get("validate_poutine") is validate
        assert pyro.settings.get("validate_infer") is validate
    assert inner.sites == energy.sites
    assert not tracer.trace.nodes
    assert torch_log.safe_log is safe_log


@pytest.mark.xfail(strict=True, reason="Pyro gives the model's plates the axes beside the open one")
def test_an_open_plate_outside_changes_nothing() -> None:
    case = CONTINUOUS["params"]()
    energy = case.energy()
    x = points(energy, 4)
    wanted = energy(x)
    with pyro.plate("outer", 5):
        assert_same(energy(x), wanted)
        assert_same(case.energy()(x), wanted)


def test_an_error_inside_the_model_leaves_no_setting_behind() -> None:
    broken = False

    def model() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        if broken:
            raise RuntimeError("broken")
        pyro.factor("f", -(x**2))

    energy = eb.from_pyro(model)
    broken = True
    safe_log, state = torch_log.safe_log, torch.get_rng_state()
    settings = pyro.settings.get()
    for call in (energy, energy.value_and_grad, lambda _: eb.from_pyro(model)):
        with pytest.raises(RuntimeError, match="broken"):
            call(torch.zeros(3, 1))
    assert pyro.settings.get() == settings
    assert torch_log.safe_log is safe_log
    assert torch.equal(torch.get_rng_state(), state)


# Models that can't be batched, and wrong ones


def _random() -> None:
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.factor("f", x * torch.randn(()))


def test_random_numbers_are_an_error_of_the_run() -> None:
    mcmc = eb.MCMC(eb.HMC(eb.from_pyro(_random)), 2, 2, num_chains=3, seed=0, disable_progbar=True)
    with pytest.raises(EnergyError, match="must be a function"):
        mcmc.run()


def _no_latents() -> None:
    pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.tensor(0.0))


def _only_discrete() -> None:
    pyro.sample("k", dist.Bernoulli(0.5))


def _poisson() -> None:
    rate = pyro.sample("rate", dist.Gamma(1.0, 1.0))
    pyro.sample("count", dist.Poisson(rate))


def _subsampled() -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 8, subsample_size=4) as rows:
        pyro.sample("y", dist.Normal(mu, 1.0), obs=Y8[rows])


def _reserved() -> None:
    pyro.sample("chain", dist.Normal(0.0, 1.0))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (_no_latents, "continuous latent sites, got none"),
        (_only_discrete, r"continuous latent sites, got \['k'\]"),
        (_poisson, "site 'count' with Poisson"),
        (_subsampled, "plate 'data' with 4 of 8 rows"),
        (_reserved, r"site names other than .* got \['chain'\]"),
        (torch.zeros(3), r"a Pyro model \(a callable\), got Tensor"),
    ],
)
def test_wrong_models_are_refused_at_construction(model: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        eb.from_pyro(model)


def test_a_support_that_depends_on_another_site_is_refused() -> None:
    def model() -> None:
        upper = pyro.sample("upper", dist.Uniform(0.0, 1.0))
        pyro.sample("x", dist.Uniform(0.0, upper))

    with pytest.raises(ValueError, match="site 'x' with Uniform"):
        eb.from_pyro(model)


def test_a_support_without_a_bijection_is_refused() -> None:
    def model() -> None:
        pyro.sample("precision", dist.Wishart(torch.tensor(5.0), torch.eye(3)))

    with pytest.raises(ValueError, match="got site 'precision' with Wishart, whose support .* has none"):
        eb.from_pyro(model)


def branching() -> None:
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    if float(x) > 0:
        pyro.sample("extra", dist.Normal(x, 1.0))


def growing() -> None:
    n = int(torch.randint(1, 40, ()))
    pyro.sample("x", dist.Normal(torch.zeros(n), 1.0).to_event(1))


@pytest.mark.parametrize(("model", "site"), [(branching, "extra"), (growing, "x")])
def test_a_model_whose_structure_changes_from_call_to_call_is_refused(model: Callable[[], None], site: str) -> None:
    torch.manual_seed(1)  # four calls: both branches are met, and two sizes
    with pytest.raises(ValueError, match=f"the same sites in every call, got at site '{site}'"):
        eb.from_pyro(model)


def test_errors_of_the_model_itself_come_through() -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        eb.from_pyro(eight_schools, Y8)


def test_a_whole_plate_may_name_its_subsample_size() -> None:
    def model() -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 8, subsample_size=8) as rows:
            pyro.sample("y", dist.Normal(mu, 1.0), obs=Y8[rows])

    case = Case(model)
    energy = case.energy()
    x = points(energy, 4)
    assert_same(energy(x), chain_by_chain(lambda z: by_hand(case, z), energy, x)[0])


# Distributions that torch.func.vmap can't take as they are


def _multinomial() -> None:
    p = pyro.sample("p", dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0])))
    with pyro.plate("rows", 2):
        pyro.sample("counts", dist.Multinomial(10, p), obs=torch.tensor([[5.0, 5.0, 0.0], [0.0, 1.0, 9.0]]))


def _ordinal() -> None:
    cuts = dist.TransformedDistribution(
        dist.Normal(torch.zeros(3), 1.0).to_event(1), dist.transforms.OrderedTransform()
    )
    c = pyro.sample("c", cuts)
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", 8):
        pyro.sample("y", dist.OrderedLogistic(b * torch.linspace(-1, 1, 8), c), obs=torch.arange(8) % 4)


def _in_place() -> None:
    x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    mean = torch.zeros(2)
    mean[0] = x[0] * x[1]
    pyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=torch.ones(2))


def _potentials(energy: eb.Energy, x: Tensor, model: Callable[[], None]) -> list[Tensor]:
    """Pyro's own, one point at a time."""
    potential = initialize_model(model, initial_params={})[1]
    return [potential(energy.unpack(row)) for row in x]


@pytest.mark.parametrize("model", [_multinomial, _ordinal])
def test_distributions_that_vmap_refuses_are_vectorised(model: Callable[[], None]) -> None:
    """No warning comes, and values are those of Pyro's own potential."""
    energy = eb.from_pyro(model)
    x = torch.randn(5, energy.event_shape.numel(), generator=torch.Generator().manual_seed(0))
    wanted = torch.stack(_potentials(energy, x, model))
    assert torch.allclose(energy(x), wanted, rtol=1e-5)  # float32, sums of some ten terms
    mcmc = eb.MCMC(eb.NUTS(energy), 30, 30, num_chains=3, seed=0, disable_progbar=True)
    mcmc.run()


def test_a_model_that_vmap_refuses_runs_chain_by_chain_and_says_so() -> None:
    with pytest.warns(SamplingWarning, match="the model runs chain by chain, slower, .*inplace arithmetic"):
        energy = eb.from_pyro(_in_place)
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(energy(x), torch.stack(_potentials(energy, x, _in_place)), rtol=1e-5)
    value, grad = energy.value_and_grad(x)
    a, b = x.unbind(1)  # E = (a^2 + b^2 + (1 - ab)^2 + 1) / 2 + 2 log 2 pi
    assert torch.allclose(value, 0.5 * (a**2 + b**2 + (1 - a * b) ** 2 + 1) + 2 * math.log(2 * math.pi), rtol=1e-5)
    assert torch.allclose(grad, torch.stack([a - (1 - a * b) * b, b - (1 - a * b) * a], 1), rtol=1e-4, atol=1e-5)
    mcmc = eb.MCMC(eb.NUTS(energy), 30, 30, num_chains=3, seed=0, disable_progbar=True)
    mcmc.run()


def _sequential() -> None:
    pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("k", dist.Bernoulli(0.3), infer={"enumerate": "sequential"})


def _chosen_rows() -> None:
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", 20, subsample=torch.randperm(20)[:5]):
        pyro.sample("y", dist.Normal(x, 1.0), obs=torch.ones(5))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (_sequential, r"in parallel, got sequential enumeration at \['k'\]"),
        (_chosen_rows, "subsampling, got plate 'rows'"),
    ],
)
def test_refusals_name_their_reason(model: Callable[[], None], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        eb.from_pyro(model)


def test_centred_eight_schools_warns() -> None:
    """A funnel: chains diverge, and their energies wander slowly."""
    y = torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12])
    sigma = torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18])
    mcmc = eb.MCMC(eb.NUTS(eb.from_pyro(centred, y, sigma)), 250, 250, None, 64, seed=0, disable_progbar=True)
    mcmc.run()
    flags = mcmc.summary().flags
    assert any(flag.startswith("divergences: ") for flag in flags), flags
    assert any(flag.startswith("E-BFMI: under 0.3") for flag in flags), flags
