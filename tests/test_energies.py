"""Laws of every energy, closed forms, the algebra, and what a plain callable may and may not be."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributions import Beta, Dirichlet, HalfCauchy, Uniform, constraints

import ebmppl as eb
from ebmppl.energies import (
    Clamped,
    DoubleWell,
    Energy,
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
from ebmppl.errors import EnergyError
from ebmppl.losses import PseudoLikelihood
from ebmppl.models import Ising
from ebmppl.partition import Exact
from tests.registry import ANALYTIC, ENERGIES

CPU = torch.device("cpu")
DOUBLE = torch.float64


def points(energy: Energy, *batch: int, dtype: torch.dtype = DOUBLE, seed: int = 0) -> Tensor:
    return torch.randn(*batch, *energy.event_shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# Laws


@pytest.mark.parametrize("name", ENERGIES)
def test_gradient_is_that_of_the_energy(name: str) -> None:
    energy = unconstrained(ENERGIES[name](DOUBLE, CPU))
    x = points(energy, 7)
    value, grad = energy.value_and_grad(x)
    other_value, other_grad = Energy.value_and_grad(energy, x)
    assert torch.allclose(value, other_value, rtol=1e-12, atol=1e-12)  # rounding of float64
    assert torch.allclose(grad, other_grad, rtol=1e-10, atol=1e-10)
    assert not value.requires_grad
    assert not grad.requires_grad
    x.requires_grad_()
    assert torch.autograd.gradcheck(energy, x, atol=1e-5)  # against finite differences, whose error is about 1e-8


@pytest.mark.parametrize("name", ENERGIES)
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_batches_rows_and_dtypes(name: str, dtype: torch.dtype) -> None:
    energy = unconstrained(ENERGIES[name](dtype, CPU))
    x = points(energy, 2, 3, dtype=dtype)
    value = energy(x)
    assert value.shape == (2, 3)
    assert value.dtype == dtype
    tight = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-10, "atol": 1e-10}  # rounding
    assert torch.allclose(value.flatten(), energy(x.flatten(0, 1)), **tight)
    assert torch.allclose(energy(x[1, 2]), value[1, 2], **tight)
    grad = energy.value_and_grad(x)[1]
    assert grad.shape == x.shape
    assert grad.dtype == dtype
    check_energy(energy, x.flatten(0, 1))


@pytest.mark.parametrize("name", ENERGIES)
def test_potential_fn_is_the_unconstrained_energy_by_site(name: str) -> None:
    energy = ENERGIES[name](DOUBLE, CPU)
    target = unconstrained(energy)
    x = points(target, 4)
    for row, value in zip(x, target(x).detach(), strict=True):
        z = {site: v.clone().requires_grad_() for site, v in target.unpack(row).items()}
        potential = energy.potential_fn(z)
        assert potential.shape == ()
        assert float(potential.detach()) == pytest.approx(float(value), rel=1e-12)
        assert all(g is not None for g in torch.autograd.grad(potential, list(z.values())))
    assert torch.equal(target.pack(target.unpack(x)), x)


@pytest.mark.parametrize("name", ENERGIES)
def test_copies_give_the_same_energy(name: str) -> None:
    energy = unconstrained(ENERGIES[name](DOUBLE, CPU))
    x = points(energy, 5)
    twin = copy.deepcopy(energy)
    twin.load_state_dict(energy.state_dict())
    assert torch.equal(energy(x), twin(x))
    assert type(energy).__name__ in repr(energy)


@pytest.mark.parametrize("name", ANALYTIC)
def test_exact_draws_have_the_stated_moments(name: str) -> None:
    energy, n = ANALYTIC[name](DOUBLE, CPU), 40_000
    x = energy.sample(n, torch.Generator().manual_seed(1)).double()
    centred = x - energy.mean
    products = centred.unsqueeze(-1) * centred.unsqueeze(-2)
    grad = energy.value_and_grad(x)[1]
    z = [
        centred.mean(0) / (x.std(0) / math.sqrt(n)),
        ((products.mean(0) - energy.covariance) / (products.std(0) / math.sqrt(n))).flatten(),
        grad.mean(0) / (grad.std(0) / math.sqrt(n)),  # E[grad E] = 0 under exp(-E)
    ]
    # at most 15 scores each in 8 tests: 4.5 is passed once in 1,000 suites
    assert float(torch.cat(z).abs().max()) < 4.5


@pytest.mark.parametrize("name", ANALYTIC)
def test_log_z_by_importance_weights(name: str) -> None:
    """1 / Z = E_p[q / exp(-E)] for any density q inside the support of p; q narrow keeps the variance small."""
    energy, n = ANALYTIC[name](DOUBLE, CPU), 200_000
    x = energy.sample(n, torch.Generator().manual_seed(2)).double()
    d = x.shape[1]
    centre = energy.sample(1, torch.Generator().manual_seed(3)).double()[0] if name != "funnel" else energy.mean
    q = Gaussian(centre, 0.15 * torch.eye(d, dtype=DOUBLE))
    weight = torch.exp(-q(x) - q.log_z + energy(x))
    log_z, error = -weight.mean().log(), weight.std() / weight.mean() / math.sqrt(n)
    assert float(error) < 0.05  # the check says something
    assert abs(float(log_z - energy.log_z)) < 4 * float(error)


def test_log_z_by_quadrature() -> None:
    grid = torch.linspace(-12, 12, 4001, dtype=DOUBLE)
    step = float(grid[1] - grid[0])
    line = ANALYTIC["quadratic, 1-d"](DOUBLE, CPU)
    # the trapezoid rule on a smooth density that vanishes at the ends is exact to rounding
    assert float(line.log_z) == pytest.approx(float(torch.exp(-line(grid.unsqueeze(1))).sum().mul(step).log()))
    plane = torch.cartesian_prod(grid[::4], grid[::4])
    for name in ("mixture of gaussians", "double well"):
        energy = ANALYTIC[name](DOUBLE, CPU)
        found = torch.exp(-energy(plane)).sum().mul((4 * step) ** 2).log()
        assert float(found) == pytest.approx(float(energy.log_z), abs=1e-6)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(1, 6), st.integers(0, 10_000))
def test_quadratic_is_the_gaussian_integral(d: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    root = torch.randn(d, d, generator=g, dtype=DOUBLE)
    a, b = root @ root.T + 0.1 * torch.eye(d, dtype=DOUBLE), torch.randn(d, generator=g, dtype=DOUBLE)
    skew = torch.randn(d, d, generator=g, dtype=DOUBLE)
    energy = Quadratic(a + skew - skew.T, b)  # only the symmetric part enters
    wanted = d / 2 * math.log(math.pi) - torch.logdet(a) / 2 + b @ torch.linalg.solve(a, b) / 4
    assert float(energy.log_z) == pytest.approx(float(wanted), rel=1e-9)
    x = torch.randn(5, d, generator=g, dtype=DOUBLE)
    assert torch.allclose(energy(x), torch.einsum("ni,ij,nj->n", x, a, x) - x @ b)
    other = Gaussian(b, a)
    total = energy + other
    assert isinstance(total, Quadratic)
    assert torch.allclose(total(x), energy(x) + other(x))
    e0 = total(total.mean)  # at the mean: log Z = -E0 + d/2 log 2 pi + 1/2 log |Sigma|
    assert float(total.log_z) == pytest.approx(
        float(-e0 + d / 2 * math.log(2 * math.pi) + torch.logdet(total.covariance) / 2), rel=1e-7
    )


def test_double_well_moments_in_float32_too() -> None:
    energy = DoubleWell(3)
    x = points(energy, 5, dtype=torch.float32)
    assert energy.value_and_grad(x)[0].dtype == torch.float32
    assert float(energy.covariance[0, 0]) < 1.0  # inside the wells at +-1


class Bent(Gaussian):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x.pow(4).sum(-1)


class Pulled(Ising):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x.flatten(-2).sum(-1).square()


def test_closed_forms_of_a_class_are_not_those_of_another_forward() -> None:
    bent, x = Bent(torch.zeros(2, dtype=DOUBLE), torch.eye(2, dtype=DOUBLE)), torch.ones(3, 2, dtype=DOUBLE)
    assert bent.value_and_grad(x)[1].tolist() == [[5.0, 5.0]] * 3
    assert bent.log_z is None
    assert not isinstance(bent + bent, Quadratic)
    pulled = Pulled((2, 2), coupling=torch.tensor(0.3, dtype=DOUBLE), periodic=False)
    assert pulled.conditionals() is pulled.pairs() is pulled.pairwise() is pulled.bonds() is None
    states = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=DOUBLE)] * 4).view(-1, 2, 2)
    torch.testing.assert_close(Exact().log_z(pulled), torch.logsumexp(-pulled(states), 0))
    x = states[3:9]
    ratios = [torch.logsumexp(-torch.stack([pulled(x), pulled(x * flip)]), 0) + pulled(x) for flip in FLIPS]
    torch.testing.assert_close(PseudoLikelihood()(pulled)(x), torch.stack(ratios).sum(0).mean())


FLIPS = 1 - 2 * torch.eye(4, dtype=DOUBLE).view(4, 2, 2)


# The algebra


def test_sums_flatten_and_stay_trainable() -> None:
    net = nn.Linear(2, 1)
    a = as_energy(lambda x: x.square().sum(-1), (2,))
    b = as_energy(nn.Sequential(net, nn.Flatten(0)), (2,))
    total = sum([a, b, a + b])
    assert isinstance(total, Sum)
    assert len(total.terms) == 4
    assert len(list(total.parameters())) == 2
    x = points(a, 3, dtype=torch.float32)
    assert torch.allclose(total(x), 2 * a(x) + 2 * b(x))
    assert total.log_z is None


def test_trainable_quadratics_keep_their_parameters() -> None:
    a = nn.Parameter(torch.eye(2, dtype=DOUBLE))
    total = Quadratic(a, torch.zeros(2, dtype=DOUBLE)) + Quadratic(
        torch.eye(2, dtype=DOUBLE), torch.ones(2, dtype=DOUBLE)
    )
    assert isinstance(total, Sum)
    total.log_z.backward()
    assert a.grad is not None


def test_tempering_by_numbers_tensors_and_rows() -> None:
    energy = ENERGIES["gaussian"](DOUBLE, CPU)
    x = points(energy, 4)
    hot = 0.5 * energy
    assert torch.allclose(hot(x), 0.5 * energy(x))
    assert float(hot.log_z) == pytest.approx(float(energy.log_z) + 1.5 * math.log(2))  # Z(beta) = Z beta^(-d/2)
    hot.beta.fill_(2.0)  # in place: seen
    assert torch.allclose(hot(x), 2 * energy(x))
    rows = Tempered(energy, torch.tensor([0.0, 0.5, 1.0, 2.0], dtype=DOUBLE))
    assert torch.allclose(rows(x), torch.tensor([0.0, 0.5, 1.0, 2.0]) * energy(x))
    assert torch.allclose(rows.value_and_grad(x)[1][3], 2 * energy.value_and_grad(x)[1][3])
    for bad in (-1.0, math.nan):
        with pytest.raises(ValueError, match="expected an inverse temperature beta >= 0, got"):
            Tempered(energy, bad)


def test_mixture_and_its_log_z() -> None:
    a, b = ENERGIES["gaussian"](DOUBLE, CPU), ENERGIES["quadratic"](DOUBLE, CPU)
    x = points(a, 4)
    mixture = Mixture([a, b], [1.0, 3.0])
    assert torch.allclose(mixture(x), -torch.log(torch.exp(-a(x)) + 3 * torch.exp(-b(x))))
    assert float(mixture.log_z) == pytest.approx(float(torch.log(a.log_z.exp() + 3 * b.log_z.exp())))
    for bad in ([1.0], [1.0, -1.0], [1.0, 0.0]):
        with pytest.raises(ValueError, match="expected 2 positive weights, got"):
            Mixture([a, b], bad)


def test_clamped_is_the_conditional() -> None:
    joint = ENERGIES["gaussian"](DOUBLE, CPU)
    mask = torch.tensor([False, True, False])
    given_ = Clamped(joint, mask, torch.tensor([0.0, 1.5, 0.0], dtype=DOUBLE))
    mean, cov = joint.mean, joint.covariance
    gain = cov[[0, 2]][:, [1]] / cov[1, 1]
    conditional = Gaussian(
        mean[[0, 2]] + gain[:, 0] * (1.5 - mean[1]), cov[[0, 2]][:, [0, 2]] - gain @ cov[[1]][:, [0, 2]]
    )
    x = points(given_, 5)
    difference = given_(x) - conditional(x)
    assert torch.allclose(difference, difference[0].expand(5))  # equal up to a constant
    given_.values[1] = 3.0
    assert not torch.allclose(given_(x) - conditional(x), difference)
    for bad, match in ((torch.tensor([True, False]), "bool mask of shape"), (torch.ones(3, dtype=bool), "not all")):
        with pytest.raises(ValueError, match=match):
            Clamped(joint, bad, torch.zeros(3))


def test_clamped_sites_disappear() -> None:
    energy = ENERGIES["named sites"](DOUBLE, CPU)
    given_ = Clamped(energy, ["rate"], {"rate": torch.tensor(2.0, dtype=DOUBLE)})
    assert list(given_.sites) == ["share", "mean"]
    x = given_.pack({"share": torch.full((2, 3), 1 / 3, dtype=DOUBLE), "mean": torch.zeros(2, 2, 2, dtype=DOUBLE)})
    assert torch.allclose(given_(x), torch.tensor(2 - math.log(2) + 3 * math.log(3), dtype=DOUBLE))
    unconstrained(given_).value_and_grad(points(unconstrained(given_), 2))
    with pytest.raises(ValueError, match="expected the names of sites to clamp"):
        Clamped(energy, ["tau"], {"tau": torch.tensor(1.0)})


def test_path_ends_and_an_infinite_end() -> None:
    a = ENERGIES["gaussian"](DOUBLE, CPU)
    wall = as_energy(lambda x: torch.where(x[:, 0] > 0, x.square().sum(-1), torch.inf), (3,))
    x = points(a, 6)
    assert torch.allclose(GeometricPath(a, wall, 0.0)(x), a(x))  # 0 * inf is switched off
    assert torch.equal(GeometricPath(a, wall).at(1.0)(x), wall(x))
    assert float(GeometricPath(a, ENERGIES["quadratic"](DOUBLE, CPU), 0.0).log_z) == pytest.approx(float(a.log_z))
    with pytest.raises(ValueError, match=r"expected beta in \[0, 1\]"):
        GeometricPath(a, wall, 1.5)


def test_energies_of_different_spaces_do_not_add() -> None:
    a, fn = ENERGIES["gaussian"](DOUBLE, CPU), lambda x: x.square().sum(-1)
    with pytest.raises(ValueError, match="same sites"):
        _ = a + as_energy(fn, (2,))
    with pytest.raises(ValueError, match="same support at site 'x'"):
        _ = a + as_energy(fn, (3,), constraints.positive)
    first, second = (as_energy(fn, (3,), constraints.interval(0.0, 1.0)) for _ in range(2))
    assert isinstance(first + second, Sum)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Quadratic(-torch.eye(2), torch.zeros(2)), "A to be positive definite, got smallest eigenvalue -1"),
        (lambda: Quadratic(torch.eye(2), torch.zeros(3)), r"b of shape \(2,\), got \(3,\)"),
        (lambda: Gaussian(torch.zeros(2), torch.tensor([[1.0, 2.0], [2.0, 1.0]])), "positive definite"),
        (lambda: Gaussian(torch.zeros(2), torch.tensor([[1.0, 0.5], [0.0, 1.0]])), "symmetric"),
        (lambda: GaussianMixture(torch.zeros(2), torch.eye(2)), r"means of shape \(components, dimension\)"),
        (lambda: StudentT(0.0, torch.zeros(2), torch.eye(2)), "degrees of freedom > 0, got 0"),
        (lambda: DoubleWell(0), "dimension > 0, got 0"),
        (lambda: eb.energies.Rosenbrock(3), "even dimension, got 3"),
    ],
)
def test_bad_analytic_energies(make: object, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()


# The unconstrained view

GRID = torch.linspace(-30, 30, 60_001, dtype=DOUBLE)


@pytest.mark.parametrize(
    ("law", "support"),
    [
        (HalfCauchy(torch.tensor(1.0, dtype=DOUBLE)), constraints.positive),
        (Beta(torch.tensor(2.0, dtype=DOUBLE), torch.tensor(3.0, dtype=DOUBLE)), constraints.unit_interval),
        (Uniform(torch.tensor(-1.0, dtype=DOUBLE), torch.tensor(3.0, dtype=DOUBLE)), constraints.interval(-1.0, 3.0)),
    ],
)
def test_the_log_jacobian_keeps_the_mass(law: object, support: object) -> None:
    energy = unconstrained(as_energy(lambda x: -law.log_prob(x), (), support))
    mass = torch.trapezoid(torch.exp(-energy(GRID)), GRID)
    assert float(mass) == pytest.approx(1.0, abs=1e-6)  # tails beyond 30 have less


def test_the_simplex_keeps_its_mass_and_its_points() -> None:
    law = Dirichlet(torch.tensor([2.0, 3.0, 1.5], dtype=DOUBLE))
    energy = Unconstrained(as_energy(lambda x: -law.log_prob(x), (3,), constraints.simplex))
    assert energy.event_shape == (2,)
    grid = torch.linspace(-25, 25, 1001, dtype=DOUBLE)
    plane = torch.cartesian_prod(grid, grid)
    assert float(torch.exp(-energy(plane)).sum() * (grid[1] - grid[0]) ** 2) == pytest.approx(1.0, abs=1e-6)
    x = energy.constrain(plane[::5000])["x"]
    assert torch.allclose(x.sum(-1), torch.ones(len(x), dtype=DOUBLE))
    inside = points(energy, 9)
    assert torch.allclose(energy.unconstrain(energy.constrain(inside)), inside)
    assert set(energy.transforms) == {"x"}


@pytest.mark.parametrize("support", [constraints.greater_than(2.0), constraints.corr_cholesky])
def test_the_log_jacobian_is_the_determinant(support: object) -> None:
    shape = (3, 3) if support.event_dim else ()
    energy = Unconstrained(as_energy(lambda x: torch.zeros(len(x), dtype=x.dtype), shape, support, batched=True))
    z = points(energy, 1)[0]
    jacobian = torch.func.jacrev(lambda u: energy.constrain(u)["x"])(z)
    jacobian = jacobian.reshape(-1, z.numel() or 1)
    if support is constraints.corr_cholesky:  # 3 free numbers below the diagonal
        rows, columns = torch.tril_indices(3, 3, -1)
        jacobian = jacobian.view(3, 3, -1)[rows, columns]
    assert float(-energy(z)) == pytest.approx(float(torch.linalg.slogdet(jacobian)[1]), abs=1e-10)


@pytest.mark.parametrize(
    "support", [constraints.boolean, constraints.nonnegative_integer, constraints.integer_interval(0, 3)]
)
def test_discrete_supports_are_refused_by_gradient_kernels(support: object) -> None:
    energy = as_energy(lambda s: s["k"].sum(-1), {"k": (2,)}, {"k": support})
    with pytest.raises(ValueError, match="expected a continuous support for site 'k', got the discrete"):
        eb.HMC(energy)


# Plain callables


def test_batch_or_one_point_is_found_out_and_told() -> None:
    for fn, shape, batched in (
        (lambda x: x.square().sum(-1), (3,), True),
        (lambda x: x.square().sum(), (3,), False),
        (lambda x: x[0] ** 2 + x[1], (2,), False),  # with 2 rows, x[0] would have the batch's length
        (lambda x: x @ torch.ones(3, 3) @ x, (3,), False),
        (lambda x: x**2, (), True),
        (lambda x: x.flatten(1).sum(1), (1, 4, 4), True),
        (lambda x: x.sum(), (2, 3), False),
    ):
        energy = as_energy(fn, shape)
        assert "unknown until called" in repr(energy)
        for n in (1, 2, 3, 5):
            x = points(energy, n, dtype=torch.float32, seed=n)
            wanted = fn(x) if batched else torch.stack([fn(row) for row in x])
            assert torch.allclose(energy(x), wanted)
        assert f"batched={batched}" in repr(energy)


def test_named_sites_get_one_dict() -> None:
    energy = as_energy(lambda s: s["a"] ** 2 + s["b"].sum(-1), {"a": (), "b": (2,)}, {"b": constraints.positive})
    one = as_energy(lambda s: s["a"] ** 2 + s["b"].sum(), {"a": (), "b": (2,)}, {"b": constraints.positive})
    x = points(energy, 6)
    assert torch.allclose(energy(x), one(x))
    with pytest.raises(ValueError, match=r"support names unknown sites \['c'\]; the sites are \['a', 'b'\]"):
        as_energy(lambda s: s["a"], {"a": (), "b": ()}, {"c": constraints.positive})
    with pytest.raises(ValueError, match=r"unknown: \['c'\], missing: \['b'\]"):
        energy.pack({"a": torch.zeros(2), "c": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"expected site 'b' of shape \(\*, 2\), got \(2, 3\)"):
        energy.pack({"a": torch.zeros(2), "b": torch.zeros(2, 3)})
    with pytest.raises(ValueError, match="same leading axes"):
        energy.pack({"a": torch.zeros(3), "b": torch.zeros(4, 2)})


def _two_rows_of_random(x: Tensor) -> Tensor:
    return x.square().sum(-1) + torch.rand(())


@pytest.mark.parametrize(
    ("fn", "match"),
    [
        (lambda x: x.square().sum(-1, keepdim=True), r"expected energy of shape \(64,\), got \(64, 1\)"),
        (lambda x: x.square(), r"expected energy of shape \(64,\), got \(64, 3\)"),
        (lambda x: 1.0, r"expected energy of shape \(64,\), got float"),
        (lambda x: (x - x.mean(0)).square().sum(-1), "mixes the rows of a batch"),
        (lambda x: torch.softmax(x.sum(-1), 0), "mixes the rows of a batch"),
        (lambda x: x.detach().square().sum(-1), "expected an energy that is differentiable"),
        (lambda x: torch.as_tensor(x.detach().numpy() ** 2).sum(-1), "expected an energy that is differentiable"),
        (lambda x: x.square().sum(-1).double(), "expected energy of dtype torch.float32 .*, got torch.float64"),
        (lambda x: x.square().sum(-1) / 0 * 0, r"finite energy at the initial points, got 64 of 64 .*chains: 0, 1, 2"),
        (_two_rows_of_random, "without random numbers inside|mixes the rows"),
        (lambda x: x @ torch.ones(5, 1), "the energy failed on a batch of shape"),
    ],
)
def test_bad_callables_are_named_at_run(fn: object, match: str) -> None:
    mcmc = eb.MCMC(eb.HMC(as_energy(fn, (3,))), 10, 10, num_chains=64, seed=0, disable_progbar=True)
    with torch.random.fork_rng(devices=[]), pytest.raises(EnergyError, match=match):
        mcmc.run()


def test_wrong_device_is_named() -> None:
    captured = torch.ones(3, device="meta")  # stands for a tensor on another device
    with pytest.raises(EnergyError, match="float32 on cpu"):
        check_energy(as_energy(lambda x: (x * captured).sum(-1), (3,)), torch.zeros(4, 3))


def test_chains_that_start_outside_are_named() -> None:
    energy = as_energy(lambda x: torch.where(x[:, 0] > 0, x.square().sum(-1), torch.inf), (2,))
    start = torch.ones(8, 2)
    start[[2, 5]] = -1
    mcmc = eb.MCMC(eb.HMC(energy), 5, 5, start, 8, seed=0, disable_progbar=True)
    with pytest.raises(EnergyError, match=r"got 2 of 8 that are not \(the first is inf\); chains: 2, 5"):
        mcmc.run()


@pytest.mark.parametrize(
    ("shape", "match"),
    [
        ((0,), "positive sizes"),
        ({}, "at least one site"),
        (3, "as a sequence such as"),
        ({"a": (-1,)}, "negative|positive"),
    ],
)
def test_bad_shapes(shape: object, match: str) -> None:
    with pytest.raises((ValueError, RuntimeError), match=match):
        as_energy(lambda x: x, shape)


def test_not_callable_and_not_an_energy() -> None:
    with pytest.raises(ValueError, match="expected a callable energy, got int"):
        as_energy(3, (2,))
    with pytest.raises(ValueError, match="wrap a callable with as_energy"):
        eb.HMC(lambda x: x)
    with pytest.raises(ValueError, match=r"expected points of shape \(\*, 3\), got \(5, 2\)"):
        as_energy(lambda x: x.sum(-1), (3,))(torch.zeros(5, 2))
