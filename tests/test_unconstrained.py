"""Constrained energies seen from unconstrained space: no mass is lost, points come back, what has no bijection is refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import biject_to
from torch.distributions.constraints import Constraint

import ebmppl as eb
from ebmppl.energies import Clamped, Energy, Gaussian, Unconstrained, as_energy, check_energy, unconstrained
from ebmppl.losses import CD, ScoreMatching

F64 = torch.float64


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def f64(*values: object) -> Tensor:
    return torch.tensor(values, dtype=F64)


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=F64)


def points(energy: Energy, *batch: int, seed: int = 0) -> Tensor:
    return torch.randn((*batch, *energy.event_shape), dtype=F64, generator=torch.Generator().manual_seed(seed))


def flat(x: Tensor) -> Tensor:
    """Zero energy of any event, yet a function of the points."""
    return (0 * x).reshape(len(x), -1).sum(-1)


def view(support: Constraint, shape: tuple[int, ...]) -> Unconstrained:
    """The coordinates alone: the energy is minus the log-Jacobian."""
    return Unconstrained(as_energy(flat, shape, support, batched=True))


# Mass is preserved: in one dimension by quadrature, for laws from the library of distributions

LAWS: dict[str, tuple[dist.TorchDistribution, Constraint]] = {
    "positive": (dist.Gamma(scalar(2.5), scalar(1.5)), constraints.positive),
    "positive, heavy": (dist.HalfCauchy(scalar(1.0)), constraints.positive),
    "positive, singular at 0": (dist.Gamma(scalar(0.5), scalar(1.0)), constraints.positive),
    "nonnegative": (dist.Exponential(scalar(2.0)), constraints.nonnegative),
    "greater than": (dist.Pareto(scalar(2.0), scalar(3.0)), constraints.greater_than(2.0)),
    "greater than or equal": (dist.Pareto(scalar(0.5), scalar(2.0)), constraints.greater_than_eq(0.5)),
    "less than": (
        dist.TransformedDistribution(
            dist.Exponential(scalar(1.0)), [dist.transforms.AffineTransform(scalar(3.0), scalar(-1.0))]
        ),
        constraints.less_than(3.0),
    ),
    "unit interval": (dist.Beta(scalar(2.0), scalar(3.0)), constraints.unit_interval),
    "unit interval, singular": (dist.Beta(scalar(0.5), scalar(0.7)), constraints.unit_interval),
    "interval": (dist.Uniform(scalar(-1.0), scalar(3.0)), constraints.interval(-1.0, 3.0)),
    "interval of tensors": (dist.Uniform(scalar(-1.0), scalar(3.0)), constraints.interval(scalar(-1.0), scalar(3.0))),
    "half open interval": (dist.Uniform(scalar(0.0), scalar(5.0)), constraints.half_open_interval(0.0, 5.0)),
    "softplus positive": (dist.Gamma(scalar(2.5), scalar(1.5)), constraints.softplus_positive),
    "real": (dist.Normal(scalar(1.0), scalar(2.0)), constraints.real),
}
# tails: the slowest, exp(-z / 2) of the singular Gamma and Beta, leaves exp(-40) beyond 80
LINE = torch.linspace(-80, 80, 160_001, dtype=F64)


@pytest.mark.parametrize("name", LAWS)
def test_no_mass_is_lost_or_won(name: str) -> None:
    law, support = LAWS[name]
    energy = Unconstrained(as_energy(lambda x: -law.log_prob(x), (), support, batched=True))
    mass = float(torch.trapezoid(torch.exp(-energy(LINE)), LINE))
    # the trapezoid rule is exact for smooth functions that vanish at both ends; a pole at the upper end of an interval
    # is rounded off where 1 - x < 1e-16, and a square root's pole has 1e-8 of the mass there
    assert mass == pytest.approx(1.0, abs=1e-7 if "singular" in name else 1e-9)


@pytest.mark.parametrize("name", ["positive", "unit interval", "interval", "real", "less than"])
def test_expectations_are_preserved(name: str) -> None:
    law, support = LAWS[name]
    energy = Unconstrained(as_energy(lambda x: -law.log_prob(x), (), support, batched=True))
    z = LINE[60_000:100_001]  # from -20 to 20
    density = torch.exp(-energy(z))
    x = energy.constrain(z)["x"]
    mean = law.mean if name != "less than" else scalar(2.0)
    assert float(torch.trapezoid(density * x, z)) == pytest.approx(float(mean), rel=1e-6)  # tails beyond 20


def test_log_z_is_that_of_the_constrained_energy() -> None:
    gaussian = Gaussian(f64(0.0, 1.0), torch.eye(2, dtype=F64))
    assert Unconstrained(gaussian).log_z == gaussian.log_z
    assert view(constraints.positive, (2,)).log_z is None


PLANE = torch.cartesian_prod(*[torch.linspace(-30, 30, 1201, dtype=F64)] * 2)
CELL = (60 / 1200) ** 2
PLANES: dict[
    str, tuple[Callable[[Tensor], Tensor], tuple[int, ...], Constraint, float]
] = {  # energy, shape, support, Z
    "simplex, Dirichlet": (
        lambda x: -((f64(2.0, 3.0, 1.5) - 1) * x.log()).sum(-1),
        (3,),
        constraints.simplex,
        math.gamma(2.0) * math.gamma(3.0) * math.gamma(1.5) / math.gamma(6.5),
    ),
    "simplex, flat": (flat, (3,), constraints.simplex, 0.5),  # the area of the triangle x1 + x2 < 1
    "ordered": (lambda x: x.square().sum(-1) / 2, (2,), constraints.ordered_vector, math.pi),  # half of 2 pi
    "positive ordered": (lambda x: x.sum(-1), (2,), constraints.positive_ordered_vector, 0.5),
    "positive vector": (lambda x: x.sum(-1), (2,), constraints.independent(constraints.positive, 1), 1.0),
    "interval vector": (flat, (2,), constraints.interval(f64(0.0, -1.0), f64(2.0, 2.0)), 6.0),
    "real vector": (lambda x: x.square().sum(-1) / 2, (2,), constraints.real_vector, 2 * math.pi),
}


@pytest.mark.parametrize("name", PLANES)
def test_two_dimensional_supports_keep_their_mass(name: str) -> None:
    fn, shape, support, z = PLANES[name]
    energy = Unconstrained(as_energy(fn, shape, support, batched=True))
    assert energy.event_shape == (2,)
    mass = float(torch.exp(-energy(PLANE)).nan_to_num(nan=0.0).sum() * CELL)
    # a double exponential (exp of exp of z) needs a finer grid than 0.05 for more digits than these
    assert mass == pytest.approx(z, rel=1e-6)


def test_moments_on_the_simplex_are_those_of_the_dirichlet() -> None:
    law = dist.Dirichlet(f64(2.0, 3.0, 1.5))
    energy = Unconstrained(as_energy(lambda x: -((law.concentration - 1) * x.log()).sum(-1), (3,), constraints.simplex))
    weight = torch.exp(-energy(PLANE)).nan_to_num(nan=0.0)
    x = energy.constrain(PLANE)["x"]
    torch.testing.assert_close((weight[:, None] * x).sum(0) / weight.sum(), law.mean, rtol=1e-7, atol=0)
    second = (weight[:, None] * x.square()).sum(0) / weight.sum()
    torch.testing.assert_close(second - law.mean.square(), law.variance, rtol=1e-6, atol=0)


def test_a_correlation_has_its_lkj_mass() -> None:
    """Of a 2 x 2 Cholesky factor the free number is the correlation, uniform over an interval of length 2."""
    energy = view(constraints.corr_cholesky, (2, 2))
    assert energy.event_shape == (1,)
    assert float(torch.trapezoid(torch.exp(-energy(LINE[:, None])), LINE)) == pytest.approx(2.0, rel=1e-9)


# The log-Jacobian is the determinant of the Jacobian in free coordinates of the support


def lower(d: int, diagonal: int) -> Tensor:
    rows, columns = torch.tril_indices(d, d, diagonal)
    return rows * d + columns


EVERY = slice(None)
JACOBIANS: dict[str, tuple[Constraint, tuple[int, ...], object]] = {  # support, shape, which entries are free
    "positive": (constraints.positive, (3,), EVERY),
    "positive, scalar": (constraints.positive, (), EVERY),
    "positive, matrix": (constraints.positive, (2, 3), EVERY),
    "positive, independent": (constraints.independent(constraints.positive, 1), (3,), EVERY),
    "positive, independent rows": (constraints.independent(constraints.positive, 1), (2, 3), EVERY),
    "nonnegative": (constraints.nonnegative, (3,), EVERY),
    "greater than": (constraints.greater_than(2.0), (3,), EVERY),
    "greater than, each": (constraints.greater_than(f64(0.0, 1.0, -1.0)), (3,), EVERY),
    "greater than or equal": (constraints.greater_than_eq(-2.0), (3,), EVERY),
    "less than": (constraints.less_than(1.0), (3,), EVERY),
    "unit interval": (constraints.unit_interval, (3,), EVERY),
    "interval": (constraints.interval(-2.0, 7.0), (3,), EVERY),
    "interval, each": (constraints.interval(f64(0.0, 1.0, -1.0), f64(1.0, 3.0, 5.0)), (3,), EVERY),
    "interval, each column": (constraints.interval(f64(0.0, 1.0, -1.0), f64(1.0, 3.0, 5.0)), (2, 3), EVERY),
    "half open interval": (constraints.half_open_interval(0.0, 3.0), (3,), EVERY),
    "simplex": (constraints.simplex, (4,), slice(0, 3)),
    "simplex of two": (constraints.simplex, (2,), slice(0, 1)),
    "ordered": (constraints.ordered_vector, (4,), EVERY),
    "positive ordered": (constraints.positive_ordered_vector, (4,), EVERY),
    "softplus positive": (constraints.softplus_positive, (3,), EVERY),
    "corr cholesky": (constraints.corr_cholesky, (4, 4), lower(4, -1)),
    "corr cholesky of two": (constraints.corr_cholesky, (2, 2), lower(2, -1)),
    "corr matrix": (constraints.corr_matrix, (3, 3), lower(3, -1)),
    "real": (constraints.real, (3,), EVERY),
    "cat": (constraints.cat([constraints.positive, constraints.unit_interval], -1, [1, 2]), (3,), EVERY),
}


@pytest.mark.parametrize("name", JACOBIANS)
def test_the_log_jacobian_is_the_determinant(name: str) -> None:
    support, shape, free = JACOBIANS[name]
    energy = view(support, shape)
    z = points(energy, 5)
    log_jacobian = -energy(z)
    assert log_jacobian.shape == (5,)
    for row, found in zip(z, log_jacobian, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda u: energy.constrain(u)["x"].reshape(-1)[free], row)
        square = jacobian.reshape(jacobian.shape[0], -1)
        assert square.shape[0] == square.shape[1]
        # two ways to the same number in float64, of size 1 to 10
        assert float(found) == pytest.approx(float(torch.linalg.slogdet(square)[1]), rel=1e-9, abs=1e-10)


@pytest.mark.parametrize("name", JACOBIANS)
def test_the_gradient_passes_through_the_bijection(name: str) -> None:
    support, shape, _ = JACOBIANS[name]
    energy = Unconstrained(as_energy(lambda x: x.square().reshape(len(x), -1).sum(-1), shape, support, batched=True))
    z = points(energy, 3)
    leaf = z.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(energy(leaf).sum(), leaf)
    value, grad = energy.value_and_grad(z)
    torch.testing.assert_close(value, energy(z), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grad, wanted, rtol=1e-10, atol=1e-10)
    assert torch.autograd.gradcheck(energy, leaf)  # against finite differences, gradcheck's own tolerances
    check_energy(energy, z)


@pytest.mark.parametrize("batch", [(), (1,), (2,), (2, 3)])
@pytest.mark.parametrize("name", JACOBIANS)
def test_points_come_back(name: str, batch: tuple[int, ...]) -> None:
    support, shape, _ = JACOBIANS[name]
    energy = view(support, shape)
    z = points(energy, *batch)
    values = energy.constrain(z)
    assert values["x"].shape == (*batch, *shape)
    inside = support.check(values["x"])
    assert bool(inside.all())
    back = energy.unconstrain(values)
    assert back.shape == z.shape
    # the inverse of a stick-breaking or tanh map loses a few digits of float64
    torch.testing.assert_close(back, z, rtol=1e-8, atol=1e-8)
    assert energy(z).shape == batch


@pytest.mark.parametrize("name", JACOBIANS)
def test_transforms_are_pyros_from_the_support_outwards(name: str) -> None:
    support, shape, _ = JACOBIANS[name]
    energy = view(support, shape)
    z = points(energy, 2)
    x = energy.constrain(z)["x"]
    if name == "real":
        assert energy.transforms == {}
        return
    torch.testing.assert_close(energy.transforms["x"](x), z, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(biject_to(support)(z), x)


# Several sites

SITES: dict[str, tuple[int, ...]] = {"rate": (2,), "share": (3,), "mean": (2, 2), "tau": (), "factor": (3, 3)}
SUPPORTS: dict[str, Constraint] = {
    "rate": constraints.positive,
    "share": constraints.simplex,
    "tau": constraints.interval(-1.0, 2.0),
    "factor": constraints.corr_cholesky,
}


def mixed(s: dict[str, Tensor]) -> Tensor:
    quadratic = s["mean"].square().sum((-2, -1)) + s["tau"] * s["mean"][..., 0, 0]
    return quadratic + s["rate"].sum(-1) - (s["share"].log() * s["rate"][..., :1]).sum(-1) + s["factor"][..., 2, 0]


def test_sites_of_different_supports_are_mapped_one_by_one() -> None:
    energy = as_energy(mixed, SITES, SUPPORTS)
    target = Unconstrained(energy)
    assert target.sites == {"rate": (2,), "share": (2,), "mean": (2, 2), "tau": (), "factor": (3,)}
    assert target.event_shape == (2 + 2 + 4 + 1 + 3,)
    assert set(target.transforms) == set(SUPPORTS)
    z = points(target, 4)
    by_site = target.unpack(z)
    values = target.constrain(z)
    log_jacobian = torch.zeros(4, dtype=F64)
    for name, shape in SITES.items():
        assert values[name].shape == (4, *shape)
        if name in SUPPORTS:
            alone = view(SUPPORTS[name], shape)
            torch.testing.assert_close(values[name], alone.constrain(by_site[name])["x"])
            log_jacobian = log_jacobian - alone(by_site[name])
        else:
            assert torch.equal(values[name], by_site[name])
    torch.testing.assert_close(target(z), mixed(values) - log_jacobian, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(target.unconstrain(values), z, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(energy.potential_fn(by_site), target(z))
    check_energy(target, z)


def test_a_run_gives_values_in_the_support() -> None:
    energy = as_energy(mixed, SITES, SUPPORTS)
    mcmc = eb.MCMC(eb.HMC(energy, num_steps=2), 10, 10, num_chains=3, seed=0, disable_progbar=True)
    mcmc.run()
    samples = mcmc.get_samples()
    for name, support in SUPPORTS.items():
        assert samples[name].shape == (30, *SITES[name])
        assert bool(support.check(samples[name]).all())
    assert samples["mean"].shape == (30, 2, 2)


def test_real_energies_are_left_alone() -> None:
    gaussian = Gaussian(f64(0.0, 1.0), torch.eye(2, dtype=F64))
    for energy in (
        gaussian,
        as_energy(flat, (3,), constraints.real_vector),
        as_energy(flat, (2, 3), constraints.independent(constraints.real, 2)),
        as_energy(mixed, {"a": (), "b": (2,)}, {"b": constraints.real_vector}),
    ):
        assert unconstrained(energy) is energy
        assert eb.HMC(energy).target is energy
    wrapped = Unconstrained(gaussian)
    z = points(gaussian, 4)
    for a, b in zip(wrapped.value_and_grad(z), gaussian.value_and_grad(z), strict=True):
        torch.testing.assert_close(a, b)


def test_unconstraining_twice_changes_nothing() -> None:
    once = Unconstrained(as_energy(mixed, SITES, SUPPORTS))
    assert unconstrained(once) is once
    z = points(once, 3)
    torch.testing.assert_close(Unconstrained(once)(z), once(z))


def test_one_number_outside_is_not_made_to_fit() -> None:
    """What comes back from values outside of the support is not a number or infinite, and never accepted."""
    energy = view(constraints.positive, (2,))
    z = energy.unconstrain({"x": f64([1.0, -1.0], [0.0, 1.0])})
    assert not bool(z.isfinite().all(-1).any())
    assert not bool(energy(z).isfinite().any())


EDGES: list[tuple[Constraint, Tensor]] = [
    (constraints.unit_interval, f64(0.5, 0.0, 1.0)),
    (constraints.interval(-1.0, 2.0), f64(0.5, -1.0, 2.0)),
    (constraints.half_open_interval(0.0, 1.0), f64(0.5, 0.0)),
    (constraints.nonnegative, f64(0.5, 0.0)),
    (constraints.simplex, f64([0.2, 0.3, 0.5], [0.5, 0.5, 0.0], [0.0, 0.5, 0.5])),
]


@pytest.mark.parametrize(("support", "x"), EDGES, ids=lambda e: "" if isinstance(e, Tensor) else type(e).__name__)
def test_edges_of_a_support_are_not_taken_inside(support: Constraint, x: Tensor) -> None:
    shape = tuple(x.shape[1:])
    z = view(support, shape).unconstrain({"x": x})
    assert z.reshape(len(x), -1).isfinite().all(1).tolist() == [True, *[False] * (len(x) - 1)]
    energy = as_energy(lambda x: x.reshape(len(x), -1).square().sum(1), shape, support, batched=True)
    for loss in (CD(kernel=partial(eb.Langevin, step_size=0.1)), ScoreMatching()):
        assert bool(torch.isfinite(loss(energy)(x[:1])))
        with pytest.raises(ValueError, match=r"unconstrained x \(infinite at the edge of a support\) = -?inf at row 1"):
            loss(energy)(x)


def test_values_of_unknown_or_missing_sites_are_refused() -> None:
    target = Unconstrained(as_energy(mixed, SITES, SUPPORTS))
    values = target.constrain(points(target, 2))
    with pytest.raises(ValueError, match=r"unknown: \['sigma'\], missing: \[\]"):
        target.unconstrain({**values, "sigma": torch.zeros(2)})
    del values["tau"]
    with pytest.raises(ValueError, match=r"unknown: \[\], missing: \['tau'\]"):
        target.unconstrain(values)


def test_a_clamped_simplex_site_leaves_the_others_bijection() -> None:
    energy = Clamped(as_energy(mixed, SITES, SUPPORTS), ["share", "factor"], {"share": 1 / 3, "factor": torch.eye(3)})
    assert Unconstrained(energy).sites == {"rate": (2,), "mean": (2, 2), "tau": ()}


# What has no bijection is refused at construction, by name

DISCRETE = [
    constraints.boolean,
    constraints.nonnegative_integer,
    constraints.positive_integer,
    constraints.integer_interval(0, 3),
    constraints.one_hot,
    constraints.multinomial(3),
    constraints.independent(constraints.boolean, 1),
]


@pytest.mark.parametrize("support", DISCRETE, ids=str)
@pytest.mark.parametrize("build", [Unconstrained, eb.HMC, eb.NUTS, partial(eb.Langevin, step_size=0.1)])
def test_discrete_supports_are_refused_with_their_site(support: Constraint, build: Callable[[Energy], object]) -> None:
    with pytest.raises(ValueError, match=r"expected a continuous support for site 'spin', got the discrete \w+"):
        build(as_energy(mixed, {"mean": (2,), "spin": (3,)}, {"spin": support}))
    with pytest.raises(ValueError, match="expected a continuous support for site 'x', got the discrete"):
        build(as_energy(flat, (3,), support))


NOWHERE: dict[str, tuple[Constraint, tuple[int, ...], str]] = {
    "lower cholesky": (
        constraints.lower_cholesky,
        (3, 3),
        r"no bijection with a log-Jacobian for its support LowerChol",
    ),
    "positive definite": (constraints.positive_definite, (3, 3), "no bijection with a log-Jacobian"),
    "symmetric": (constraints.symmetric, (3, 3), "no bijection with a log-Jacobian"),
    "square": (constraints.square, (3, 3), "no bijection with a log-Jacobian"),
    "lower triangular": (constraints.lower_triangular, (3, 3), "no bijection with a log-Jacobian"),
    "unit lower cholesky": (constraints.unit_lower_cholesky, (3, 3), "no bijection with a log-Jacobian"),
    "sphere": (constraints.sphere, (3,), r"no bijection with a log-Jacobian for its support Sphere and shape \(3,\)"),
    "dependent": (constraints.dependent, (3,), r"expected a definite support for site 'x', got Dependent\(\)"),
    "simplex of a number": (constraints.simplex, (), r"at least 1 axes for its support Simplex\(\), got shape \(\)"),
    "simplex of one": (constraints.simplex, (1,), r"positive sizes in the shape of site 'x', got \(0,\)"),
    "ordered number": (constraints.ordered_vector, (), "at least 1 axes"),
    "factor of a vector": (
        constraints.corr_cholesky,
        (3,),
        r"at least 2 axes for its support CorrCholesky\(\), got .*\(3,\)",
    ),
    "oblong factor": (constraints.corr_cholesky, (2, 3), r"(?i)square|shape"),
    "independent of a number": (constraints.independent(constraints.positive, 1), (), "at least 1 axes"),
    "bounds of another length": (
        constraints.interval(torch.zeros(3), torch.ones(3)),
        (2,),
        r"no bijection .* and shape \(2,\)",
    ),
    "bounds of more axes": (constraints.interval(torch.zeros(3), torch.ones(3)), (), r"\(3,\) for Interval.*got \(\)"),
    "stack along the batch": (constraints.stack([constraints.positive, constraints.real]), (2,), "no bijection.*Stack"),
    "stack along the event": (
        constraints.stack([constraints.positive, constraints.real], -1),
        (2,),
        "its log-Jacobian has",
    ),
    "cat of another length": (
        constraints.cat([constraints.positive, constraints.real], -1, [1, 2]),
        (2,),
        r"no bijection.*\(2,\)",
    ),
}


@pytest.mark.parametrize("name", NOWHERE)
def test_supports_without_a_bijection_for_their_shape_are_refused(name: str) -> None:
    support, shape, message = NOWHERE[name]
    with pytest.raises(ValueError, match=message):
        Unconstrained(as_energy(flat, shape, support))
    named = as_energy(mixed, {"a": (), "site": shape}, {"site": support})
    with pytest.raises(ValueError, match="'site'"):
        Unconstrained(named)


@pytest.mark.parametrize("name", ["lower cholesky", "sphere", "dependent"])
def test_gradient_kernels_refuse_them_at_construction(name: str) -> None:
    support, shape, message = NOWHERE[name]
    with pytest.raises(ValueError, match=message):
        eb.NUTS(as_energy(flat, shape, support))


@pytest.mark.parametrize("real", [torch.float32, F64])
def test_far_out_points_have_finite_or_infinite_energies_but_are_never_clamped(real: torch.dtype) -> None:
    """exp, sigmoid and stick-breaking saturate: the log-Jacobian must still fall off there, or chains drift away."""
    for support, shape in (
        (constraints.positive, (2,)),
        (constraints.unit_interval, (2,)),
        (constraints.simplex, (3,)),
    ):
        energy = view(support, shape)
        reach = torch.arange(0, 60, 4, dtype=real)
        z = torch.stack([-reach, torch.zeros_like(reach)], -1)
        fall = -energy(z)
        assert fall.dtype == real
        slope = fall.diff()[3:] / 4
        # towards z = -inf x is about exp(z), whose log-Jacobian has the slope 1
        torch.testing.assert_close(slope, -torch.ones_like(slope), rtol=1e-3, atol=1e-3)
