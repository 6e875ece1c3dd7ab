"""Sums, tempering, mixtures, bridges and conditioning: every combination is what it says, and refuses what it can't be."""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate
from torch import Tensor, nn
from torch.distributions import constraints

import ebmppl as eb
from ebmppl.energies import (
    Clamped,
    DoubleWell,
    Energy,
    Funnel,
    Gaussian,
    GaussianMixture,
    GeometricPath,
    Mixture,
    Quadratic,
    StudentT,
    Sum,
    Tempered,
    Unconstrained,
    as_energy,
    check_energy,
    unconstrained,
)
from tests.registry import ENERGIES

CPU, F64 = torch.device("cpu"), torch.float64
CLOSE = {"rtol": 1e-11, "atol": 1e-11}  # rounding of a few sums of numbers up to 100 in float64


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def f64(*rows: object) -> Tensor:
    return torch.tensor(rows, dtype=F64)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def make(name: str) -> Energy:
    return unconstrained(ENERGIES[name](F64, CPU))


def points(energy: Energy, *batch: int, seed: int = 0) -> Tensor:
    return normal(*batch, *energy.event_shape, seed=seed)


def same_function(a: Energy, b: Callable[[Tensor], Tensor], x: Tensor, **tolerance: float) -> None:
    """Equal values, and the gradient of ``a`` is autograd's of ``b``."""
    leaf = x.clone().requires_grad_()
    wanted = b(leaf)
    (slope,) = torch.autograd.grad(wanted.sum(), leaf)
    value, grad = a.value_and_grad(x)
    torch.testing.assert_close(a(x).detach(), wanted.detach(), **(tolerance or CLOSE))
    torch.testing.assert_close(value, wanted.detach(), **(tolerance or CLOSE))
    torch.testing.assert_close(grad, slope, **(tolerance or CLOSE))


def gaussian(seed: int = 0, d: int = 3) -> Gaussian:
    root = normal(d, d, seed=seed)
    return Gaussian(normal(d, seed=seed + 1), root @ root.T + torch.eye(d, dtype=F64))


def quadratic(seed: int = 5, d: int = 3) -> Quadratic:
    root = normal(d, d, seed=seed)
    return Quadratic(root @ root.T + torch.eye(d, dtype=F64), normal(d, seed=seed + 1), 0.25)


def well() -> DoubleWell:
    return DoubleWell(3, height=0.5)


# The operators, over every energy of the registry


@pytest.mark.parametrize("name", ENERGIES)
def test_operators_on_every_energy(name: str) -> None:
    energy = make(name)
    x = points(energy, 5)
    beta = torch.tensor(0.3, dtype=F64)
    same_function(energy + energy, lambda v: 2 * energy(v), x)
    same_function(beta * energy, lambda v: 0.3 * energy(v), x)
    same_function(energy * beta + 2 * energy, lambda v: 2.3 * energy(v), x)
    same_function(GeometricPath(energy, 3 * energy, 0.25), lambda v: 1.5 * energy(v), x)
    same_function(Mixture([energy, energy], f64(0.5, 1.5)), lambda v: energy(v) - math.log(2), x)
    same_function(0.0 * energy, lambda v: 0.0 * energy(v), x)
    for made in (energy + energy, 0.3 * energy, GeometricPath(energy, energy, 0.5), Mixture([energy, energy])):
        assert made.sites == energy.sites
        assert made.packed == energy.packed
        assert made.event_shape == energy.event_shape
        check_energy(made, x)


# Sums


def test_sums_flatten_and_keep_their_order() -> None:
    a, b, c, d = well(), StudentT(3.0, f64(0, 0, 0), torch.eye(3, dtype=F64)), gaussian(), well()
    for total in (a + b + c + d, (a + b) + (c + d), a + (b + (c + d)), sum([a, b, c, d]), Sum([a, Sum([b, c]), d])):
        assert isinstance(total, Sum)
        assert [id(term) for term in total.terms] == [id(term) for term in (a, b, c, d)]
        same_function(total, lambda v: a(v) + b(v) + c(v) + d(v), points(a, 4))
    assert sum([a]) is a
    assert repr(a + b).startswith("Sum(\n  event_shape=(3,)")


def test_a_tempered_sum_is_not_flattened_away() -> None:
    a, b = well(), gaussian()
    total = 2.0 * (a + b) + a
    assert [type(term).__name__ for term in total.terms] == ["Tempered", "DoubleWell"]
    same_function(total, lambda v: 3 * a(v) + 2 * b(v), points(a, 4))


def test_sums_of_quadratic_energies_are_quadratic() -> None:
    a, b = gaussian(), quadratic()
    x = points(a, 6)
    for total in (a + b, b + a, sum([a, b, a])):
        assert isinstance(total, Quadratic)
    same_function(a + b, lambda v: a(v) + b(v), x)
    # the product of experts N(m1, S1) N(m2, S2) has precision P1 + P2 and the precision-weighted mean
    precision = torch.linalg.inv(a.covariance) + torch.linalg.inv(b.covariance)
    mean = torch.linalg.solve(
        precision,
        torch.linalg.solve(a.covariance, a.mean) + torch.linalg.solve(b.covariance, b.mean),
    )
    torch.testing.assert_close((a + b).mean, mean, rtol=1e-9, atol=1e-9)  # condition numbers of about 100
    torch.testing.assert_close((a + b).covariance, torch.linalg.inv(precision), rtol=1e-9, atol=1e-9)


def test_log_z_of_a_sum_is_known_where_all_terms_are_quadratic() -> None:
    a, b = gaussian(), quadratic()
    known = [a + b, 0.5 * a + b, 2.0 * (a + 0.5 * b), GeometricPath(a, b, 0.3) + a, Sum([a]), 1.0 * Sum([a, b])]
    for energy in known:
        x0 = torch.zeros(3, dtype=F64)
        hessian = torch.autograd.functional.hessian(lambda v: energy(v), x0)
        value, grad = energy.value_and_grad(x0)
        wanted = 1.5 * math.log(2 * math.pi) - torch.logdet(hessian) / 2 + grad @ torch.linalg.solve(hessian, grad) / 2
        assert float(energy.log_z) == pytest.approx(float(wanted - value), rel=1e-10)
    for unknown in (a + well(), 2.0 * well(), GeometricPath(a, well(), 0.5), 0.0 * a, Sum([a, 0.0 * b])):
        assert unknown.log_z is None


def test_a_beta_inside_a_sum_may_change_in_place() -> None:
    a, b = gaussian(), quadratic()
    hot = 0.5 * a
    x = points(a, 4)
    for total in (hot + b, b + hot, sum([hot, b]), GeometricPath(b, hot, 0.5) + b):
        hot.beta.fill_(0.5)
        before = total(x)
        log_z = float(total.log_z)
        hot.beta.fill_(2.0)
        share = 0.75 if isinstance(total, Sum) and isinstance(total.terms[0], GeometricPath) else 1.5
        torch.testing.assert_close(total(x), before + share * a(x), **CLOSE)
        assert float(total.log_z) != log_z


def test_parameters_of_sums_are_trainable() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1), nn.Flatten(0)).double()
    trained = Quadratic(nn.Parameter(torch.eye(3, dtype=F64)), nn.Parameter(torch.zeros(3, dtype=F64)))
    total = as_energy(net, (3,)) + trained + gaussian() + nn.Parameter(f64(1.0)[0]) * well()
    names = [name for name, _ in total.named_parameters()]
    assert len(names) == 4 + 2 + 1
    total(normal(5, 3)).sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in total.parameters())
    before = total(torch.ones(1, 3, dtype=F64))
    torch.optim.SGD(total.parameters(), 0.1).step()
    assert not torch.equal(total(torch.ones(1, 3, dtype=F64)), before)
    twin = copy.deepcopy(total)
    twin.load_state_dict(total.state_dict())
    torch.testing.assert_close(twin(normal(5, 3)), total(normal(5, 3)))


def test_a_sum_with_trainable_quadratics_stays_a_sum_with_a_differentiable_log_z() -> None:
    trained = Quadratic(nn.Parameter(torch.eye(3, dtype=F64)), torch.zeros(3, dtype=F64))
    total = trained + gaussian()
    assert isinstance(total, Sum)
    total.log_z.backward()
    merged = Sum([trained, gaussian()]).as_quadratic()
    wanted = -(merged.covariance + torch.outer(merged.mean, merged.mean)).detach()  # d log Z / dA = -E[xx']
    torch.testing.assert_close(trained.A.grad, wanted, **CLOSE)


@pytest.mark.parametrize("wrong", [3, "a", None, 2.0, torch.ones(3), lambda x: x, nn.Identity()])
def test_only_energies_add(wrong: object) -> None:
    for operation in (lambda: well() + wrong, lambda: wrong + well()):
        with pytest.raises(TypeError):
            operation()
    with pytest.raises(ValueError, match="expected an Energy, got"):
        Sum([well(), wrong])
    with pytest.raises(ValueError, match="expected an Energy, got"):
        Mixture([wrong])
    with pytest.raises(ValueError, match="expected an Energy, got"):
        GeometricPath(well(), wrong)
    with pytest.raises(ValueError, match="expected an Energy, got"):
        Tempered(wrong, 1.0)
    with pytest.raises(ValueError, match="expected an Energy, got"):
        Clamped(wrong, torch.tensor([True]), 0.0)


@pytest.mark.parametrize("operation", [operator.neg, lambda e: e - e, lambda e: e / 2, lambda e: e**2, lambda e: e * e])
def test_other_operators_are_not_there(operation: Callable[[Energy], object]) -> None:
    with pytest.raises(TypeError):
        operation(well())


def test_nothing_is_no_sum() -> None:
    for build in (lambda: Sum([]), lambda: Mixture([])):
        with pytest.raises(ValueError, match="expected at least one energy, got none"):
            build()


# Energies over different spaces


def over(shape: object, support: object = constraints.real) -> Energy:
    return as_energy(lambda x: x.sum(-1), shape, support)


TWO = {"a": (), "b": (2,)}
DIFFERENT: dict[str, tuple[Energy, Energy, str]] = {
    "shape": (over((3,)), over((2,)), r"same sites, got .*\[3\].* and .*\[2\]"),
    "rank": (over((1,)), over(()), "same sites"),
    "names": (over({"a": ()}), over({"b": ()}), "same sites, got .*'a'.* and .*'b'"),
    "order of sites": (over(TWO), over({"b": (2,), "a": ()}), "same sites"),
    "tensor and a site x": (over((3,)), over({"x": (3,)}), "same sites"),
    "support": (
        over((3,)),
        over((3,), constraints.positive),
        r"same support at site 'x', got Real\(\) and GreaterThan",
    ),
    "bounds": (over((3,), constraints.interval(0, 1)), over((3,), constraints.interval(0, 2)), "same support"),
    "bound tensors": (
        over((3,), constraints.greater_than(torch.tensor(0.10001))),
        over((3,), constraints.greater_than(torch.tensor(0.10002))),
        "same support",
    ),
    "long bound tensors": (  # whose repr leaves out what differs
        over((2000,), constraints.greater_than(torch.zeros(2000))),
        over((2000,), constraints.greater_than((torch.arange(2000) == 1000).float())),
        "same support",
    ),
    "support of a site": (
        over(TWO, {"b": constraints.positive}),
        over(TWO, {"a": constraints.positive}),
        r"same support at site 'a'",
    ),
    "independent": (over((3,)), over((3,), constraints.real_vector), "same support"),
    "inner bounds": (
        over((3,), constraints.independent(constraints.interval(0, 1), 1)),
        over((3,), constraints.independent(constraints.interval(0, 2), 1)),
        "same support",
    ),
    "half open": (
        over((3,), constraints.interval(0, 1)),
        over((3,), constraints.half_open_interval(0, 1)),
        "same support",
    ),
}


@pytest.mark.parametrize("name", DIFFERENT)
@pytest.mark.parametrize(
    "combine", [lambda a, b: a + b, lambda a, b: Mixture([a, b]), GeometricPath, lambda a, b: sum([b, b, a])]
)
def test_energies_over_different_spaces_are_refused(name: str, combine: Callable[..., Energy]) -> None:
    first, second, message = DIFFERENT[name]
    with pytest.raises(ValueError, match=message if combine is GeometricPath else "same s"):
        combine(first, second)


EQUAL: dict[str, tuple[object, object]] = {
    "interval": (constraints.interval(0, 1), constraints.interval(0, 1)),
    "interval of floats": (constraints.interval(0, 1), constraints.unit_interval),
    "bound tensors": (constraints.greater_than(torch.zeros(3)), constraints.greater_than(torch.zeros(3))),
    "copied real": (constraints.real, copy.deepcopy(constraints.real)),
    "independent": (
        constraints.independent(constraints.interval(0, 1), 1),
        constraints.independent(constraints.interval(0, 1), 1),
    ),
    "dict and default": ({"x": constraints.real}, constraints.real),
    "dict and constraint": ({"x": constraints.positive}, constraints.positive),
}


@pytest.mark.parametrize("name", EQUAL)
def test_equal_spaces_are_recognised(name: str) -> None:
    first, second = EQUAL[name]
    total = over((3,), first) + over((3,), second)
    x = torch.full((4, 3), 0.25, dtype=F64)
    torch.testing.assert_close(total(x), torch.full((4,), 1.5, dtype=F64))
    assert unconstrained(total).event_shape == (3,)


def test_copies_of_an_energy_combine_with_it() -> None:
    for energy in (gaussian(), over((3,), constraints.simplex), over(TWO, {"a": constraints.interval(0, 1)})):
        assert (energy + copy.deepcopy(energy)).event_shape == energy.event_shape


# Tempering


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(st.floats(0.0, 1e3), st.sampled_from(["gaussian", "double well", "mixture of gaussians", "named sites"]))
def test_beta_is_exact_in_double_precision(beta: float, name: str) -> None:
    energy = make(name)
    if not any(t.is_floating_point() for t in energy.buffers()):
        beta = torch.tensor(beta, dtype=F64)  # no tensor says that it is meant in double precision
    x = points(energy, 3)
    torch.testing.assert_close((beta * energy)(x), beta * energy(x), rtol=1e-15, atol=0)
    assert (energy * beta)(x).dtype == F64


def test_numbers_of_any_kind_temper() -> None:
    energy = gaussian()
    x = points(energy, 4)
    for beta in (
        2,
        2.0,
        np.float64(2),
        np.float32(2),
        torch.tensor(2),
        torch.tensor(2.0),
        torch.tensor(2.0, dtype=F64),
        f64(2),
    ):
        for hot in (beta * energy, energy * beta):
            assert isinstance(hot, Tempered)
            torch.testing.assert_close(hot(x), 2 * energy(x), **CLOSE)
            assert hot(x).dtype == F64


def test_tempering_keeps_single_precision() -> None:
    energy = ENERGIES["gaussian"](torch.float32, CPU)
    x = normal(4, 3).float()
    for hot in (0.5 * energy, torch.tensor(0.5, dtype=F64) * energy, GeometricPath(energy, energy, 0.5)):
        assert hot(x).dtype == torch.float32
        assert hot.value_and_grad(x)[1].dtype == torch.float32
    assert (0.5 * energy).beta.dtype == torch.float32


def test_one_beta_per_row() -> None:
    energy = gaussian()
    beta = f64(0.0, 0.5, 1.0, 2.0)
    hot = Tempered(energy, beta)
    x = points(energy, 4)
    same_function(hot, lambda v: beta * energy(v), x)
    same_function(hot, lambda v: beta * energy(v), points(energy, 3, 4))  # the last batch axis
    path = GeometricPath(energy, well(), f64(0.0, 0.5, 0.25, 1.0))
    weights = f64(0.0, 0.5, 0.25, 1.0)
    same_function(path, lambda v: (1 - weights) * energy(v) + weights * well()(v), x)
    assert hot.log_z is None
    matrix = as_energy(lambda v: v.square().sum((-2, -1)), (2, 2))
    same_function(Tempered(matrix, beta), lambda v: beta * matrix(v), points(matrix, 4))


def test_chains_may_run_at_a_beta_of_their_own() -> None:
    """The check at the start of a run must not take them for chains that depend on one another."""
    beta = torch.tensor([0.1, 0.5, 1.0, 2.0])
    energy = Tempered(ENERGIES["gaussian"](torch.float32, CPU), beta)
    mcmc = eb.MCMC(eb.HMC(energy, num_steps=2), 5, 5, num_chains=4, seed=0, disable_progbar=True)
    mcmc.run()
    assert mcmc.get_samples()["x"].shape == (20, 3)


def test_beta_changed_in_place_is_seen() -> None:
    energy = gaussian()
    x = points(energy, 4)
    beta = f64(0.5)[0]
    hot, path = Tempered(energy, beta), GeometricPath(energy, well(), beta)
    beta.fill_(0.25)  # the caller's tensor is the buffer
    torch.testing.assert_close(hot(x), 0.25 * energy(x), **CLOSE)
    torch.testing.assert_close(hot.value_and_grad(x)[1], 0.25 * energy.value_and_grad(x)[1], **CLOSE)
    torch.testing.assert_close(path(x), 0.75 * energy(x) + 0.25 * well()(x), **CLOSE)
    assert float(hot.log_z) == pytest.approx(float(energy.log_z) + 1.5 * math.log(4), rel=1e-12)
    number = 0.5 * energy
    number.beta.mul_(4)
    torch.testing.assert_close(number(x), 2 * energy(x), **CLOSE)
    assert "beta" in number.state_dict()


def test_a_parameter_beta_is_trained() -> None:
    energy = gaussian()
    x = points(energy, 4)
    beta = nn.Parameter(f64(0.5)[0])
    hot = beta * energy
    assert dict(hot.named_parameters()) == {"beta": beta}
    hot(x).sum().backward()
    torch.testing.assert_close(beta.grad, energy(x).sum(), **CLOSE)
    assert not hot.value_and_grad(x)[0].requires_grad


@pytest.mark.parametrize(
    "bad", [-1.0, -0.125, math.nan, math.inf, torch.tensor(-0.5), f64(1.0, -1.0), f64(1.0, math.nan)]
)
def test_impossible_betas_are_refused(bad: float | Tensor) -> None:
    shown = str(bad.tolist() if isinstance(bad, Tensor) else bad)[:5].replace("[", r"\[")
    for build in (lambda: bad * well(), lambda: Tempered(well(), bad), lambda: GeometricPath(well(), well(), bad)):
        with pytest.raises(ValueError, match=rf"expected an inverse temperature beta >= 0, got {shown}"):
            build()


def test_beta_zero_is_flat_even_where_the_energy_is_infinite() -> None:
    wall = as_energy(lambda x: torch.where(x[:, 0] > 0, 1 / x[:, 0], torch.inf), (3,))
    x = points(wall, 8)
    x[0, 0] = 0
    for flat in (0.0 * wall, Tempered(wall, torch.zeros(8)), Unconstrained(0.0 * wall)):
        value, grad = flat.value_and_grad(x)
        assert torch.equal(value, torch.zeros(8, dtype=F64))
        assert torch.equal(grad, torch.zeros(8, 3, dtype=F64))


# Mixtures


def test_a_mixture_is_minus_logsumexp() -> None:
    parts = [gaussian(), quadratic(), well()]
    weights = f64(0.2, 1.5, 3.0)
    x = points(parts[0], 6)
    mixture = Mixture(parts, weights)
    same_function(mixture, lambda v: -torch.logsumexp(weights.log() - torch.stack([e(v) for e in parts], -1), -1), x)
    same_function(Mixture(parts), lambda v: -torch.log(sum(torch.exp(-e(v)) for e in parts)), x)
    assert float(mixture.log_z) == pytest.approx(
        math.log(sum(float(w) * math.exp(float(e.log_z)) for w, e in zip(weights, parts, strict=True))), rel=1e-12
    )
    assert Mixture([gaussian(), 2.0 * well()]).log_z is None


def test_a_mixture_of_normalised_gaussians_is_a_gaussian_mixture() -> None:
    means, covariance = f64([1.0, 0.0], [-1.0, 2.0]), f64([1.0, 0.3], [0.3, 0.5])
    parts = [Gaussian(m, covariance) for m in means]
    weights = f64(0.3, 0.7)
    other = GaussianMixture(means, covariance, weights)
    mixture = Mixture(parts, weights * torch.exp(-torch.stack([p.log_z for p in parts])))
    same_function(mixture, other, normal(9, 2))
    assert float(mixture.log_z) == pytest.approx(0.0, abs=1e-12)
    within = torch.linalg.inv(torch.linalg.inv(covariance))
    delta = means - (0.3 * means[0] + 0.7 * means[1])
    wanted = within + 0.3 * torch.outer(delta[0], delta[0]) + 0.7 * torch.outer(delta[1], delta[1])
    torch.testing.assert_close(other.covariance, wanted, **CLOSE)  # law of total variance


def test_a_mixture_far_from_all_its_parts_neither_overflows_nor_forgets() -> None:
    a, b = Gaussian(f64(0.0), f64([1.0])), Gaussian(f64(100.0), f64([1.0]))
    value, grad = Mixture([a, b]).value_and_grad(f64([-100.0], [200.0], [50.0]))
    torch.testing.assert_close(value, f64(5000.0, 5000.0, 1250.0 - math.log(2)), **CLOSE)
    torch.testing.assert_close(grad, f64([-100.0], [100.0], [0.0]), **CLOSE)


def test_a_part_that_is_impossible_at_a_point_has_no_share_there() -> None:
    wall = as_energy(lambda x: torch.where(x[:, 0] > 0, x.square().sum(-1), torch.inf), (3,))
    x = points(wall, 6)
    value, grad = Mixture([gaussian(), wall]).value_and_grad(x)
    outside = x[:, 0] <= 0
    assert bool(outside.any())
    torch.testing.assert_close(value[outside], gaussian()(x)[outside], **CLOSE)
    torch.testing.assert_close(grad[outside], gaussian().value_and_grad(x)[1][outside], **CLOSE)
    nowhere = as_energy(lambda x: x.sum(-1) + torch.inf, (3,))
    assert bool(Mixture([nowhere, nowhere])(x).isposinf().all())


@pytest.mark.parametrize(
    "bad", [[1.0], [1.0, 2.0, 3.0], [1.0, -1.0], [1.0, 0.0], [1.0, math.nan], [1.0, math.inf], [[1.0, 1.0]], []]
)
def test_impossible_weights_are_refused(bad: list) -> None:
    with pytest.raises(ValueError, match=r"expected 2 positive weights, got \["):
        Mixture([well(), well()], bad)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_weights_take_the_dtype_of_the_energies(dtype: torch.dtype) -> None:
    part = ENERGIES["gaussian"](dtype, CPU)
    mixture = Mixture([part, part], [0.1, 0.3])
    assert mixture.log_weights.dtype == dtype
    x = normal(3, 3).to(dtype)
    assert mixture(x).dtype == dtype
    torch.testing.assert_close(mixture(x), part(x) - math.log(0.4), rtol=4 * torch.finfo(dtype).eps, atol=0)
    # so that a run without initial points begins at the right dtype
    eb.MCMC(eb.HMC(mixture, num_steps=1), 2, 2, num_chains=2, seed=0, disable_progbar=True).run()


# Bridges


def test_a_path_has_its_ends_and_everything_between() -> None:
    a, b = gaussian(), well()
    path = GeometricPath(a, b, 0.25)
    x = points(a, 5)
    same_function(path, lambda v: 0.75 * a(v) + 0.25 * b(v), x)
    assert torch.equal(path.at(0.0)(x), a(x))
    assert torch.equal(path.at(1.0)(x), b(x))
    assert torch.equal(GeometricPath(a, b)(x), b(x))
    assert path.at(0.5).start is a
    assert path.at(0.5).end is b
    torch.testing.assert_close(path(x), GeometricPath(b, a, 0.75)(x), **CLOSE)


def test_log_z_along_a_path_of_gaussians_is_right_at_its_ends_and_its_slope_between() -> None:
    a, b = gaussian(), quadratic()
    path, start = GeometricPath(a, b), a.as_quadratic()
    assert float(path.at(0.0).log_z) == pytest.approx(float(a.log_z), rel=1e-12)
    assert float(path.at(1.0).log_z) == pytest.approx(float(b.log_z), rel=1e-12)

    def slope(beta: float) -> float:
        """d log Z / d beta = E[E_0 - E_1], with the moments of the Gaussian at beta."""
        q = path.at(torch.tensor(beta, dtype=F64)).as_quadratic()
        d_a, d_b, d_c = (getattr(start, n) - getattr(b, n) for n in ("A", "b", "constant"))
        return float((d_a * (q.covariance + torch.outer(q.mean, q.mean))).sum() - d_b @ q.mean + d_c)

    # thermodynamic integration by adaptive quadrature, whose own error estimate is below 1e-9
    assert integrate.quad(slope, 0, 1)[0] == pytest.approx(float(b.log_z - a.log_z), abs=1e-8)


@pytest.mark.parametrize("wrap", [lambda e: e, Unconstrained, lambda e: e + 0.5 * e])
def test_beta_zero_switches_an_impossible_end_off(wrap: Callable[[Energy], Energy]) -> None:
    base = as_energy(lambda x: x.square().sum(-1), (3,), constraints.positive)
    wall = as_energy(
        lambda x: torch.where(x[:, 0] < 1, (x[:, 0] - 1).reciprocal(), torch.inf), (3,), constraints.positive
    )
    log_x = points(base, 6)
    log_x[0, 0] = 0.0  # where the end's energy and its slope are infinite
    x = log_x if wrap is Unconstrained else log_x.exp()
    for found, wanted in zip(
        wrap(GeometricPath(base, wall, 0.0)).value_and_grad(x), wrap(base).value_and_grad(x), strict=True
    ):
        torch.testing.assert_close(found, wanted, **CLOSE)
    assert not bool(GeometricPath(base, wall, 0.1)(x.exp()).isfinite().all())
    started = GeometricPath(wall, base, 1.0).value_and_grad(x)  # and an impossible start at the end
    assert bool(started[1].isfinite().all())


@pytest.mark.parametrize("bad", [1.5, f64(0.5, 1.0001)])
def test_a_path_ends_at_one(bad: float | Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected beta in \[0, 1\], got"):
        GeometricPath(well(), well(), bad)
    with pytest.raises(ValueError, match=r"expected beta in \[0, 1\], got"):
        GeometricPath(well(), well()).at(bad)


# Conditioning


@pytest.mark.parametrize("clamped", [[1], [0, 2], [0], [2]])
def test_conditioning_a_gaussian(clamped: list[int]) -> None:
    joint = gaussian()
    values = f64(0.5, 1.5, -0.7)
    mask = torch.zeros(3, dtype=torch.bool)
    mask[clamped] = True
    energy = Clamped(joint, mask, values)
    assert energy.event_shape == (3 - len(clamped),)
    free = (~mask).nonzero().squeeze(1)
    mean, cov = joint.mean, joint.covariance
    gain = cov[free][:, clamped] @ torch.linalg.inv(cov[clamped][:, clamped])
    conditional = Gaussian(
        mean[free] + gain @ (values - mean)[clamped], cov[free][:, free] - gain @ cov[clamped][:, free]
    )
    x = points(energy, 7)
    constant = (energy(x[:1]) - conditional(x[:1])).item()
    same_function(energy, lambda v: conditional(v) + constant, x, rtol=1e-10, atol=1e-10)  # inverts matrices
    whole = energy.fill(x)
    assert torch.equal(whole[:, free], x)
    assert torch.equal(whole[:, clamped], values[clamped].expand(7, -1))
    assert energy(x.expand(2, 7, -1)).shape == (2, 7)


def test_clamping_some_pixels_of_an_image() -> None:
    joint = as_energy(lambda x: (x[:, 1:] - x[:, :-1]).square().sum((1, 2)) + x[:, :, 0].square().sum(1), (3, 2))
    mask = torch.tensor([[True, False], [False, False], [False, True]])
    energy = Clamped(joint, mask, torch.arange(6.0, dtype=F64).view(3, 2))
    assert energy.event_shape == (4,)
    x = points(energy, 5)

    def wanted(v: Tensor) -> Tensor:
        ones = torch.ones(len(v), dtype=F64)
        return joint(torch.stack([0 * ones, *v.unbind(1), 5 * ones], 1).view(-1, 3, 2))

    same_function(energy, wanted, x)


def test_clamped_values_may_change_in_place() -> None:
    joint, x = gaussian(), normal(4, 2)
    given_values = f64(0.0, 0.5, 0.0)
    energy = Clamped(joint, torch.tensor([False, True, False]), given_values)
    energy.values[1] = -2.0
    whole = torch.stack([x[:, 0], torch.full((4,), -2.0, dtype=F64), x[:, 1]], 1)
    torch.testing.assert_close(energy(x), joint(whole), **CLOSE)
    assert torch.equal(given_values, f64(0.0, 0.5, 0.0))  # the caller's tensor is not ours
    other = Clamped(joint, torch.tensor([False, True, False]), torch.zeros(3, dtype=F64))
    other.load_state_dict(energy.state_dict())
    torch.testing.assert_close(other(x), energy(x), **CLOSE)


def test_numbers_are_clamped_in_the_energys_own_precision() -> None:
    mask = torch.tensor([True, False, False])
    x = normal(4, 2)
    wanted = gaussian()(torch.cat([torch.full((4, 1), 0.1, dtype=F64), x], 1))
    for values in (0.1, [0.1, 0.0, 0.0], f64(0.1)[0], f64(0.1, math.nan, math.inf)):  # free entries are not used
        torch.testing.assert_close(Clamped(gaussian(), mask, values)(x), wanted, rtol=1e-15, atol=0)


SITES = {"mu": (), "theta": (3,), "rate": (2,)}


def joint_of_sites(s: dict[str, Tensor]) -> Tensor:
    prior = s["mu"].square() + s["rate"].sum(-1) - s["rate"].log().sum(-1)
    return prior + (s["rate"].sum(-1, keepdim=True) * (s["theta"] - s["mu"].unsqueeze(-1)).square()).sum(-1)


@pytest.mark.parametrize("names", [["mu"], ("theta",), {"mu", "rate"}, ["rate", "theta"]])
def test_clamped_sites_disappear(names: object) -> None:
    joint = as_energy(joint_of_sites, SITES, {"rate": constraints.positive})
    values = {"mu": f64(0.3)[0], "theta": f64(1.0, -1.0, 0.5), "rate": f64(0.5, 2.0)}
    energy = Clamped(joint, names, {n: values[n] for n in names})
    assert list(energy.sites) == [n for n in SITES if n not in names]
    z = points(unconstrained(energy), 5)
    x = unconstrained(energy).constrain(z)
    wanted = joint(joint.pack({n: x[n] if n in x else values[n].expand(5, *SITES[n]) for n in SITES}))
    torch.testing.assert_close(energy(energy.pack(x)), wanted, **CLOSE)
    jacobian = sum(z_.sum(-1) for n, z_ in unconstrained(energy).unpack(z).items() if n == "rate")
    torch.testing.assert_close(unconstrained(energy)(z), wanted - jacobian, **CLOSE)
    same_function(energy, energy, energy.pack(x))
    check_energy(unconstrained(energy), z)


def test_clamped_sites_take_plain_numbers() -> None:
    joint = as_energy(joint_of_sites, SITES, {"rate": constraints.positive})
    energy = Clamped(joint, ["mu", "theta"], {"mu": 1, "theta": 0.5})
    x = energy.pack({"rate": torch.ones(2, 2)})
    torch.testing.assert_close(energy(x), torch.full((2,), 1 + 2 + 2 * 0.75))


def test_clamping_twice_is_clamping_once() -> None:
    joint, x = gaussian(), normal(4, 1)
    once = Clamped(joint, torch.tensor([True, False, True]), f64(0.1, 0.0, 0.7))
    twice = Clamped(
        Clamped(joint, torch.tensor([True, False, False]), f64(0.1, 0.0, 0.0)),
        torch.tensor([False, True]),
        f64(0.0, 0.7),
    )
    same_function(twice, once, x)


@pytest.mark.parametrize("support", [constraints.positive, constraints.interval(0, 2), constraints.real_vector])
def test_supports_of_free_coordinates_are_kept(support: object) -> None:
    joint = as_energy(lambda x: x.square().sum(-1), (3,), support)
    energy = Clamped(joint, torch.tensor([True, False, False]), 0.5)
    z = torch.zeros(2, 2)
    x = unconstrained(energy).constrain(z)["x"]
    assert bool(energy.site_support("x").check(x).all())
    assert unconstrained(energy).event_shape == (2,)


ALL, SOME = torch.ones(3, dtype=torch.bool), torch.tensor([True, False, False])
BAD_CLAMPS: dict[str, tuple[Callable[[], object], str]] = {
    "shape": (lambda: Clamped(well(), SOME[:2], 0.0), r"bool mask of shape \(3,\), got \(2,\) torch.bool"),
    "rank": (lambda: Clamped(well(), SOME[None], 0.0), r"bool mask of shape \(3,\), got \(1, 3\) torch.bool"),
    "dtype": (lambda: Clamped(well(), SOME.int(), 0.0), r"bool mask of shape \(3,\), got \(3,\) torch.int32"),
    "list": (lambda: Clamped(well(), [True, False, False], 0.0), r"bool mask of shape \(3,\), got list"),
    "everything": (lambda: Clamped(well(), ALL, 0.0), "some but not all coordinates clamped, got 3"),
    "nothing": (lambda: Clamped(well(), ~ALL, 0.0), "some but not all coordinates clamped, got 0"),
    "values": (lambda: Clamped(well(), SOME, torch.zeros(2)), r"site 'x' that broadcasts to \(3,\), got \(2,\)"),
    "values of a dict": (lambda: Clamped(well(), SOME, {"x": 1.0}), r"site 'x' that broadcasts to \(3,\), got dict"),
    "simplex": (
        lambda: Clamped(over((3,), constraints.simplex), SOME, 0.0),
        r"elementwise support to clamp coordinates, got Simplex",
    ),
    "unknown site": (lambda: Clamped(over(TWO), ["c"], {"c": 0.0}), r"among \['a', 'b'\].*got \['c'\] and \['c'\]"),
    "one name": (lambda: Clamped(over(TWO), "a", {"a": 0.0}), "names of sites to clamp.*got a and"),
    "a mask": (lambda: Clamped(over(TWO), SOME, {"a": 0.0}), "names of sites to clamp"),
    "no dict": (lambda: Clamped(over(TWO), ["a"], 0.0), r"got \['a'\] and float"),
    "missing value": (lambda: Clamped(over(TWO), ["a"], {}), r"got \['a'\] and \[\]"),
    "value too many": (lambda: Clamped(over(TWO), ["a"], {"a": 0.0, "b": 0.0}), r"and \['a', 'b'\]"),
    "value's shape": (
        lambda: Clamped(over(TWO), ["b"], {"b": torch.zeros(3)}),
        r"site 'b' that broadcasts to \(2,\), got \(3,\)",
    ),
    "value's type": (lambda: Clamped(over(TWO), ["b"], {"b": "much"}), r"site 'b' that broadcasts to \(2,\), got str"),
    "all sites": (lambda: Clamped(over(TWO), ["a", "b"], {"a": 0.0, "b": 0.0}), "some but not all .* got 3"),
    "no sites": (lambda: Clamped(over(TWO), [], {}), "some but not all .* got 0"),
    "scalar event": (lambda: Clamped(over(()), torch.tensor(True), 0.0), "some but not all .* got 1"),
}


@pytest.mark.parametrize("name", BAD_CLAMPS)
def test_bad_masks_and_values_are_refused(name: str) -> None:
    build, message = BAD_CLAMPS[name]
    with pytest.raises(ValueError, match=message):
        build()


# Everything together


def test_deeply_nested_combinations() -> None:
    a, b, c = gaussian(), well(), quadratic()
    inner = Mixture([a + b, 0.5 * c], [0.3, 0.7])
    path = GeometricPath(inner, 2.0 * (b + c), 0.4)
    energy = Clamped(0.9 * path + b, torch.tensor([False, True, False]), f64(0.0, 0.2, 0.0))

    def wanted(x: Tensor) -> Tensor:
        v = torch.stack([x[:, 0], torch.full((len(x),), 0.2, dtype=F64), x[:, 1]], 1)
        mixed = -torch.log(0.3 * torch.exp(-a(v) - b(v)) + 0.7 * torch.exp(-0.5 * c(v)))
        return 0.9 * (0.6 * mixed + 0.4 * 2 * (b(v) + c(v))) + b(v)

    x = points(energy, 6)
    same_function(energy, wanted, x)
    check_energy(energy, x)
    torch.testing.assert_close(copy.deepcopy(energy)(x), energy(x), **CLOSE)


def test_the_kernels_run_on_combinations_of_constrained_energies() -> None:
    gamma = as_energy(lambda s: s["r"] - 2 * s["r"].log(), {"r": ()}, {"r": constraints.positive})
    other = as_energy(lambda s: 2 * s["r"], {"r": ()}, {"r": constraints.positive})
    energy = 0.5 * (gamma + other) + Mixture([gamma, other])
    mcmc = eb.MCMC(eb.HMC(energy, num_steps=3), 10, 10, num_chains=4, seed=0, disable_progbar=True)
    mcmc.run()
    assert float(mcmc.get_samples()["r"].min()) > 0


def test_energies_of_a_ladder_order_as_their_betas() -> None:
    """More of the same energy binds tighter: variances fall with beta (exact for Gaussians)."""
    variances = [float((beta * gaussian()).as_quadratic().covariance[0, 0]) for beta in (0.1, 0.5, 1.0, 2.0)]
    assert all(hot > cold for hot, cold in pairwise(variances))
    torch.testing.assert_close(0.1 * variances[0], variances[2], rtol=1e-12, atol=0)


def test_mixed_log_z_of_double_and_single_precision_parts() -> None:
    mixture = Mixture([Gaussian(torch.zeros(3), torch.eye(3)), Funnel(3)])  # the funnel's log Z is double precision
    wanted = math.log(2) + 1.5 * math.log(2 * math.pi) + math.log((1 + 3) / 2)
    assert float(mixture.log_z) == pytest.approx(wanted, rel=1e-6)  # float32
