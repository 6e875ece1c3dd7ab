"""Laws of every energy in the registry, and truths of the analytic ones: draws, moments, log Z."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from ebmppl.energies import (
    AnalyticEnergy,
    DoubleWell,
    Energy,
    Funnel,
    Gaussian,
    GaussianMixture,
    Quadratic,
    Rosenbrock,
    StudentT,
    Sum,
    Unconstrained,
    as_energy,
    check_energy,
    unconstrained,
)
from ebmppl.energies.base import flatten_batch
from tests.registry import ANALYTIC, ENERGIES

CPU, F64, F32 = torch.device("cpu"), torch.float64, torch.float32
# Rounding of sums of some ten terms of size 1 to 100; in float32 exponentials of the funnel and the mixtures amplify it.
ROUNDING = {F64: {"rtol": 1e-11, "atol": 1e-11}, F32: {"rtol": 2e-4, "atol": 2e-4}}

every_energy = pytest.mark.parametrize("name", ENERGIES)
both_dtypes = pytest.mark.parametrize("real", [F32, F64], ids=["float32", "float64"])


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Small tensors: a second thread costs more than it brings (DESIGN 4), and rounding should not depend on it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def gen(seed: int, device: torch.device = CPU) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def f64(*rows: object) -> Tensor:
    return torch.tensor(rows, dtype=F64)


def make(name: str, dtype: torch.dtype = F64, device: torch.device = CPU) -> Energy:
    """The energy in the coordinates in which gradient kernels see it."""
    return unconstrained(ENERGIES[name](dtype, device))


def points(
    energy: Energy, *batch: int, dtype: torch.dtype = F64, device: torch.device = CPU, seed: int = 0, scale: float = 1.0
) -> Tensor:
    x = scale * torch.randn((*batch, *energy.event_shape), dtype=F64, generator=gen(seed))
    return x.to(dtype=dtype, device=device)


# Laws of every energy


@both_dtypes
@every_energy
def test_value_and_grad_is_the_energy_and_its_autograd_gradient(
    name: str, real: torch.dtype, device: torch.device
) -> None:
    energy = make(name, real, device)
    x = points(energy, 7, dtype=real, device=device)
    before = x.clone()
    value, grad = energy.value_and_grad(x)
    leaf = x.clone().requires_grad_()
    direct = energy(leaf)
    (wanted,) = torch.autograd.grad(direct.sum(), leaf)
    torch.testing.assert_close(value, direct.detach(), **ROUNDING[real])
    torch.testing.assert_close(grad, wanted, **ROUNDING[real])
    assert not value.requires_grad
    assert not grad.requires_grad
    assert torch.equal(x, before)
    assert not x.requires_grad


@every_energy
def test_value_and_grad_does_not_care_about_the_grad_mode(name: str) -> None:
    energy = make(name)
    x = points(energy, 3)
    wanted = energy.value_and_grad(x)
    with torch.no_grad():
        without = energy.value_and_grad(x)
    of_leaf = energy.value_and_grad(x.clone().requires_grad_())
    for found in (without, of_leaf):
        for a, b in zip(found, wanted, strict=True):
            assert torch.equal(a, b)
            assert not a.requires_grad


@every_energy
def test_gradients_of_first_and_second_order_against_finite_differences(name: str) -> None:
    """Score matching differentiates the gradient once more."""
    energy = make(name)
    x = points(energy, 2, scale=0.7).requires_grad_()
    # central differences with step 1e-6 in float64: error about 1e-10 / 1e-6 of values up to 100, and gradcheck's atol 1e-5
    assert torch.autograd.gradcheck(energy, x)
    assert torch.autograd.gradgradcheck(energy, x)


@both_dtypes
@every_energy
def test_any_batch_axes(name: str, real: torch.dtype, device: torch.device) -> None:
    energy = make(name, real, device)
    x = points(energy, 2, 3, dtype=real, device=device)
    value, grad = energy.value_and_grad(x)
    for batch in ((2, 3), (6,), (1, 6, 1), (3, 1, 2)):
        y = x.reshape(*batch, *energy.event_shape)
        for found in (energy(y), energy.value_and_grad(y)[0]):
            assert found.shape == batch
            torch.testing.assert_close(found.reshape(2, 3).detach(), value, **ROUNDING[real])
        assert energy.value_and_grad(y)[1].shape == y.shape
        torch.testing.assert_close(energy.value_and_grad(y)[1].reshape(x.shape), grad, **ROUNDING[real])
    for i in range(2):
        for j in range(3):
            one = energy.value_and_grad(x[i, j])
            assert one[0].shape == energy(x[i, j]).shape == ()
            torch.testing.assert_close(one[0], value[i, j], **ROUNDING[real])
            torch.testing.assert_close(one[1], grad[i, j], **ROUNDING[real])


@every_energy
def test_no_points_have_no_energies(name: str) -> None:
    energy = make(name)
    assert energy(points(energy, 0)).shape == (0,)
    value, grad = energy.value_and_grad(points(energy, 2, 0))
    assert value.shape == (2, 0)
    assert grad.shape == (2, 0, *energy.event_shape)


@every_energy
def test_a_single_point_may_be_the_first_that_an_energy_sees(name: str) -> None:
    wanted = make(name)
    x = points(wanted, 4)
    for first in (x[0], x[:1], x[:0]):
        energy = make(name)
        energy(first)
        torch.testing.assert_close(energy(x), wanted(x), **ROUNDING[F64])


@every_energy
def test_memory_layout_does_not_matter(name: str) -> None:
    energy = make(name)
    x = points(energy, 4, 3)
    wanted = energy.value_and_grad(x.transpose(0, 1).contiguous())
    found = energy.value_and_grad(x.transpose(0, 1))
    expanded = energy.value_and_grad(x[:1, :1].expand(2, 3, *energy.event_shape))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, **ROUNDING[F64])
    torch.testing.assert_close(expanded[0], wanted[0][:1, :1].expand(2, 3), **ROUNDING[F64])


@every_energy
def test_rows_are_independent(name: str) -> None:
    energy = make(name)
    x = points(energy, 4)
    jacobian = torch.autograd.functional.jacobian(energy, x).reshape(4, 4, -1)  # (row of the energy, row of x, event)
    assert torch.count_nonzero(jacobian[~torch.eye(4, dtype=torch.bool)]) == 0
    moved = x.clone()
    moved[1:] = 3 * points(energy, 3, seed=1)
    moved[2] = math.nan  # an impossible point beside it changes nothing
    for a, b in zip(energy.value_and_grad(moved), energy.value_and_grad(x), strict=True):
        torch.testing.assert_close(a[0], b[0], **ROUNDING[F64])
    assert bool(energy(moved)[2].isnan())


@both_dtypes
@every_energy
def test_dtype_and_device_are_kept(name: str, real: torch.dtype, device: torch.device) -> None:
    energy = make(name, real, device)
    x = points(energy, 5, dtype=real, device=device)
    for found in (energy(x), *energy.value_and_grad(x)):
        assert found.dtype == real
        assert found.device == x.device


@every_energy
def test_single_precision_is_double_precision_rounded(name: str) -> None:
    single, double = make(name, F32), make(name, F64)
    x = points(single, 9, dtype=F32)
    for a, b in zip(single.value_and_grad(x), double.value_and_grad(x.double()), strict=True):
        torch.testing.assert_close(a.double(), b, **ROUNDING[F32])


@both_dtypes
@every_energy
def test_the_same_points_have_the_same_energy_bit_for_bit(name: str, real: torch.dtype) -> None:
    energy, twin = make(name, real), make(name, real)
    x = points(energy, 6, dtype=real)
    first = energy.value_and_grad(x)
    energy(points(energy, 6, dtype=real, seed=1))  # no memory of other points
    for a, b, c in zip(first, energy.value_and_grad(x), twin.value_and_grad(x), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


@both_dtypes
@every_energy
def test_check_energy_passes(name: str, real: torch.dtype, device: torch.device) -> None:
    energy = make(name, real, device)
    for chains in (1, 2, 64):
        check_energy(energy, points(energy, chains, dtype=real, device=device))
    check_energy(energy, points(energy, 1, dtype=real, device=device).expand(8, *energy.event_shape))


@every_energy
def test_potential_fn_is_the_unconstrained_energy_by_site(name: str) -> None:
    energy = ENERGIES[name](F64, CPU)
    target = unconstrained(energy)
    potential = energy.potential_fn
    x = points(target, 3)
    assert potential(target.unpack(x)).shape == (3,)
    for row, value, grad in zip(x, *target.value_and_grad(x), strict=True):
        z = {site: v.clone().requires_grad_() for site, v in target.unpack(row).items()}
        assert {site: v.shape for site, v in z.items()} == target.sites
        found = potential(z)
        assert found.shape == ()
        torch.testing.assert_close(found.detach(), value, **ROUNDING[F64])
        grads = dict(zip(z, torch.autograd.grad(found, list(z.values())), strict=True))
        torch.testing.assert_close(target.pack(grads), grad, **ROUNDING[F64])


PICKLABLE = [*ANALYTIC, "network", "tempered", "mixture", "sum", "path", "clamped", "nested"]  # the others hold lambdas


@pytest.mark.parametrize("name", PICKLABLE)
def test_energies_and_their_potentials_travel_to_another_process(name: str) -> None:
    energy = ENERGIES[name](F64, CPU)
    x = points(energy, 3)
    energy(x)
    twin, potential = pickle.loads(pickle.dumps((energy, energy.potential_fn)))
    assert torch.equal(twin(x), energy(x))
    assert torch.equal(potential(energy.unpack(x)), energy(x))
    assert repr(twin) == repr(energy)


def _gamma(x: Tensor) -> Tensor:
    return x - 2 * torch.log(x)


def test_a_constrained_energy_travels_with_its_bijection() -> None:
    energy = Unconstrained(as_energy(_gamma, (), torch.distributions.constraints.positive))
    x = points(energy, 3)
    twin = pickle.loads(pickle.dumps(energy))
    assert torch.equal(twin(x), energy(x))
    assert torch.equal(twin.constrain(x)["x"], x.exp())


@every_energy
def test_pack_and_unpack_are_inverse(name: str) -> None:
    energy = make(name)
    for batch in ((), (4,), (2, 3)):
        x = points(energy, *batch)
        values = energy.unpack(x)
        assert {site: v.shape for site, v in values.items()} == {
            s: (*batch, *shape) for s, shape in energy.sites.items()
        }
        assert torch.equal(energy.pack(values), x)
        shuffled = dict(reversed(values.items()))  # a user's dict may come in any order
        assert torch.equal(energy.pack(shuffled), x)
    assert sum(shape.numel() for shape in energy.sites.values()) == energy.event_shape.numel()


@every_energy
def test_copies_are_equal_and_independent(name: str) -> None:
    energy = make(name)
    x = points(energy, 5)
    value = energy(x).detach()
    twin = copy.deepcopy(energy)
    assert type(unconstrained(twin)) is type(twin)  # a copied support is still real, so nothing wraps it again
    assert repr(twin) == repr(energy)
    assert torch.equal(twin(x).detach(), value)
    with torch.no_grad():
        for t in (*twin.parameters(), *twin.buffers()):
            if t.is_floating_point():
                t.mul_(1.5)
    assert torch.equal(energy(x).detach(), value)


@every_energy
def test_state_dict_round_trip(name: str) -> None:
    energy, other = make(name), make(name)
    x = points(energy, 5)
    value = energy(x).detach()
    state = {k: v.clone() for k, v in energy.state_dict().items()}
    with torch.no_grad():
        tensors = [t for t in (*other.parameters(), *other.buffers()) if t.is_floating_point()]
        for t in tensors:
            t.mul_(1.5)
    if tensors:
        assert not torch.allclose(other(x).detach(), value)
    other.load_state_dict(state)
    assert torch.equal(other(x).detach(), value)


@every_energy
def test_repr_tells_name_and_shape(name: str) -> None:
    energy = ENERGIES[name](F64, CPU)
    shape = {n: tuple(s) for n, s in energy.sites.items()} if energy.packed else tuple(energy.event_shape)
    first_lines = " ".join(repr(energy).split())[:250]
    assert first_lines.startswith(type(energy).__name__)
    assert f"event_shape={shape}" in first_lines
    assert "support" not in first_lines or "support=Real" not in first_lines


@every_energy
def test_the_gradient_traces_below_python(name: str) -> None:
    """As the engine does it: one graph for the run's shape (DESIGN 3.3), right at points that it was not traced at."""
    energy = make(name)
    x, y = points(energy, 4), points(energy, 4, seed=1)
    energy(x)
    graph = make_fx(lambda x: energy.value_and_grad(x))(x)
    for a, b in zip(graph(y), energy.value_and_grad(y), strict=True):
        torch.testing.assert_close(a, b, **ROUNDING[F64])


def test_flatten_batch_keeps_rows() -> None:
    x = torch.arange(24.0).view(2, 3, 4)
    rows, batch = flatten_batch(x, torch.Size([4]))
    assert rows.shape == (6, 4)
    assert batch == (2, 3)
    assert torch.equal(rows.view(x.shape), x)


# Exact draws. Alarms: one of all z-scores of this file is over its limit once in 1,000 re-seedings (Bonferroni).

DRAWS = 60_000
EXTRA: dict[str, Callable[[], AnalyticEnergy]] = {  # with heavier tails, more axes, unequal weights
    "student-t, df 3": lambda: StudentT(3.0, f64(1.0, -1.0), f64([1.0, 0.4], [0.4, 2.0])),
    "student-t, df 1.5": lambda: StudentT(1.5, f64(0.5), f64([2.0])),
    "student-t, df 0.5": lambda: StudentT(0.5, f64(0.0, 1.0, 2.0), torch.eye(3, dtype=F64)),
    "funnel, scale 3": lambda: Funnel(5, scale=3.0),
    "double well, high": lambda: DoubleWell(3, height=5.0, well=1.5),
    "double well, flat": lambda: DoubleWell(1, height=0.01, well=0.5),
    "rosenbrock, 6-d": lambda: Rosenbrock(6),
    "mixture, one component each": lambda: GaussianMixture(
        f64([0.0], [5.0]), torch.stack([f64([0.01]), f64([4.0])]), [1.0, 9.0]
    ),
}
DRAWN: dict[str, Callable[[], AnalyticEnergy]] = {
    **{name: (lambda name=name: ANALYTIC[name](F64, CPU)) for name in ANALYTIC},
    **EXTRA,
}


def moments_exist(energy: AnalyticEnergy) -> bool:
    """Fourth moments, so that a z-score of a second moment has a limit law; and not dominated by a few draws."""
    if isinstance(energy, StudentT):
        return energy.df > 4
    return not (isinstance(energy, Funnel) and energy.scale > 1)


def limit(checks: int, alarm: float = 3e-4) -> float:
    """|z| that the largest of so many normal scores passes with probability at most ``alarm``."""
    return float(stats.norm.isf(alarm / (2 * checks)))


def scores(samples: Tensor, wanted: Tensor) -> Tensor:
    """z-scores of the mean of samples ``(n, ...)``."""
    n = len(samples)
    return ((samples.mean(0) - wanted) / (samples.std(0) / math.sqrt(n)).clamp_min(1e-300)).flatten()


WITH_MOMENTS = [name for name, energy in DRAWN.items() if moments_exist(energy())]
_DIMENSIONS = {name: energy().event_shape.numel() for name, energy in DRAWN.items()}
MOMENT_LIMIT = limit(sum(d + d * (d + 1) // 2 for d in (_DIMENSIONS[n] for n in WITH_MOMENTS)))


@pytest.mark.parametrize("name", WITH_MOMENTS)
def test_exact_draws_have_the_stated_mean_and_covariance(name: str) -> None:
    energy = DRAWN[name]()
    d = _DIMENSIONS[name]
    x = energy.sample(DRAWS, gen(1))
    assert x.shape == (DRAWS, d)
    assert energy.mean.shape == (d,)
    assert energy.covariance.shape == (d, d)
    centred = x - energy.mean
    i, j = torch.triu_indices(d, d)
    z = torch.cat([scores(x, energy.mean), scores(centred[:, i] * centred[:, j], energy.covariance[i, j])])
    assert float(z.abs().max()) < MOMENT_LIMIT


STEIN_LIMIT = limit(sum(d * (d + 1) for d in _DIMENSIONS.values()))


@pytest.mark.parametrize("name", DRAWN)
def test_draws_and_energy_belong_together(name: str) -> None:
    """E[f grad E] = E[grad f] for f = 1 and f = tanh(x_j), whether or not the density has moments (Stein's identity)."""
    energy = DRAWN[name]()
    x = energy.sample(DRAWS, gen(2)).double()
    grad = energy.value_and_grad(x)[1]
    scale = x.abs().median(0).values
    f = torch.tanh(x / scale)
    d_f = torch.diag_embed((1 - f.square()) / scale)  # (n, j, i)
    z = torch.cat([scores(grad, torch.zeros(())), scores(f.unsqueeze(2) * grad.unsqueeze(1) - d_f, torch.zeros(()))])
    assert float(z[z.isfinite()].abs().max()) < STEIN_LIMIT
    assert bool(z.isfinite().all())


@pytest.mark.parametrize("name", ["gaussian", "student-t", "double well", "rosenbrock", "mixture of gaussians"])
def test_the_identity_notices_a_temperature_a_tenth_off(name: str) -> None:
    energy = DRAWN[name]()
    x = energy.sample(DRAWS, gen(2))
    f = torch.tanh(x / x.abs().median(0).values)
    d_f = (1 - f.square()) / x.abs().median(0).values
    z = scores(1.1 * f * energy.value_and_grad(x)[1] - d_f, torch.zeros(()))
    assert float(z.abs().max()) > STEIN_LIMIT


@pytest.mark.parametrize("df", [0.5, 1.5, 3.0, 30.0])
def test_student_radius_follows_the_f_law(df: float) -> None:
    scale = f64([1.0, 0.4, 0.0], [0.4, 2.0, -0.3], [0.0, -0.3, 0.5])
    energy = StudentT(df, f64(1.0, 0.0, -1.0), scale)
    delta = energy.sample(20_000, gen(3)) - energy.loc
    radius = ((delta @ energy.precision) * delta).sum(-1) / 3
    assert stats.kstest(radius.numpy(), stats.f(3, df).cdf).pvalue > 1e-4 / 4  # alarm 1e-4 for the four


def test_moments_that_do_not_exist_are_not_numbers() -> None:
    for df, mean, variance in (
        (0.5, math.nan, math.inf),
        (1.0, math.nan, math.inf),
        (2.0, 1.0, math.inf),
        (4.0, 1.0, 2.0),
    ):
        energy = StudentT(df, f64(1.0), f64([1.0]))
        assert float(energy.mean) == pytest.approx(mean, nan_ok=True)
        assert float(energy.covariance) == variance


def test_funnel_draws_are_normal_given_their_scale() -> None:
    x = Funnel(5, scale=3.0).sample(DRAWS, gen(4))
    z = torch.cat([x[:, :1] / 3, x[:, 1:] * torch.exp(-x[:, :1] / 2)], 1)
    i, j = torch.triu_indices(5, 5)
    found = torch.cat([scores(z, torch.zeros(())), scores(z[:, i] * z[:, j], (i == j).double())])
    assert float(found.abs().max()) < limit(20, 1e-4)


@pytest.mark.parametrize("name", DRAWN)
def test_draws_repeat_with_their_generator_and_leave_the_global_one_alone(name: str) -> None:
    energy = DRAWN[name]()
    state = torch.get_rng_state()
    first, second, other = (energy.sample(10, gen(seed)) for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("name", ANALYTIC)
def test_single_precision_knows_the_same_moments_and_log_z(name: str) -> None:
    single, double = ANALYTIC[name](F32, CPU), ANALYTIC[name](F64, CPU)
    for quantity in ("mean", "covariance", "log_z"):
        torch.testing.assert_close(getattr(single, quantity).double(), getattr(double, quantity), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(single.sample(5, gen(1)).shape, double.sample(5, gen(1)).shape)
    assert double.log_z.shape == ()


# log Z


def line(end: float, n: int) -> Tensor:
    return torch.linspace(-end, end, n, dtype=F64)


def _straight(z: Tensor) -> tuple[Tensor, Tensor]:
    return z, torch.zeros(len(z), dtype=F64)


def _sinh(z: Tensor) -> tuple[Tensor, Tensor]:
    return torch.sinh(z), torch.cosh(z).log().sum(-1)


def _along_funnel(z: Tensor) -> tuple[Tensor, Tensor]:
    return torch.cat([z[:, :1], torch.exp(z[:, :1] / 2) * z[:, 1:]], 1), z[:, 0] / 2


def _along_banana(z: Tensor) -> tuple[Tensor, Tensor]:
    return torch.stack([z[:, 0], z[:, 1] + z[:, 0] ** 2], 1), torch.zeros(len(z), dtype=F64)


Coordinates = Callable[[Tensor], tuple[Tensor, Tensor]]  # z -> x and log |dx/dz|
QUADRATURE: dict[str, tuple[Callable[[], Energy], float, Coordinates]] = {
    "quadratic, 1-d": (lambda: ANALYTIC["quadratic, 1-d"](F64, CPU), 12, _straight),
    "quadratic, 2-d": (lambda: Quadratic(f64([1.0, 0.9], [-0.3, 0.8]), f64(0.5, -1.0), -2.0), 12, _straight),
    "gaussian, 1-d": (lambda: Gaussian(f64(3.0), f64([0.04])), 12, _straight),
    "gaussian, 2-d": (lambda: Gaussian(f64(1.0, -2.0), f64([2.0, 0.6], [0.6, 1.0])), 16, _straight),
    "gaussian, diagonal": (lambda: Gaussian(f64(1.0, -2.0), f64(2.0, 0.5)), 16, _straight),
    "mixture of gaussians": (lambda: ANALYTIC["mixture of gaussians"](F64, CPU), 12, _straight),
    "student-t, 1-d": (lambda: StudentT(1.0, f64(0.5), f64([2.0])), 40, _sinh),
    "student-t, 2-d": (lambda: StudentT(6.0, f64(1.0, -1.0), f64([2.0, 0.6], [0.6, 1.0])), 14, _sinh),
    "double well, 1-d": (lambda: DoubleWell(1, height=5.0, well=1.5), 4, _straight),
    "double well, 1-d, flat": (lambda: DoubleWell(1, height=0.01, well=0.5), 12, _straight),
    "double well, 2-d": (lambda: ANALYTIC["double well"](F64, CPU), 5, _straight),
    "funnel, 2-d": (lambda: Funnel(2, scale=3.0), 30, _along_funnel),
    "rosenbrock": (lambda: ANALYTIC["rosenbrock"](F64, CPU), 14, _along_banana),
    "rosenbrock, long": (lambda: Rosenbrock(2), 45, _along_banana),
}


@pytest.mark.parametrize("name", QUADRATURE)
def test_log_z_against_quadrature(name: str) -> None:
    build, end, coordinates = QUADRATURE[name]
    energy = build()
    d = energy.event_shape.numel()
    grid = line(end, 20_001 if d == 1 else 1_201)
    x, log_jacobian = coordinates(torch.cartesian_prod(*[grid] * d).reshape(-1, d))
    log_mass = torch.logsumexp(log_jacobian - energy(x), 0) + d * math.log(float(grid[1] - grid[0]))
    # the trapezoid rule on smooth functions that vanish at the ends converges faster than any power of the step
    assert float(log_mass) == pytest.approx(float(energy.log_z), abs=1e-8)


HIGH: dict[str, tuple[Callable[[], AnalyticEnergy], Tensor, float]] = {  # energy, centre and variance of q
    "quadratic, 5-d": (lambda: Quadratic(torch.eye(5, dtype=F64) + 0.3, torch.arange(5).double(), 1.0), f64(0.0), 0.3),
    "gaussian": (lambda: ANALYTIC["gaussian"](F64, CPU), f64(1.0, -2.0, 0.5), 0.25),
    "mixture, 3-d": (
        lambda: GaussianMixture(f64([1.0, 0.0, 0.0], [-1.0, 1.0, 0.0]), torch.eye(3, dtype=F64), [0.2, 0.8]),
        f64(-0.5, 0.5, 0.0),
        0.5,
    ),
    "student-t, 4-d": (
        lambda: StudentT(1.0, f64(0.0, 0.0, 1.0, 0.0), torch.eye(4).double()),
        f64(0.0, 0.0, 1.0, 0.0),
        0.4,
    ),
    "double well, 5-d": (lambda: DoubleWell(5, height=1.0), f64(*[0.9] * 5), 0.1),
    "funnel, 4-d": (lambda: Funnel(4, scale=2.0), f64(0.0, 0.0, 0.0, 0.0), 0.3),
    "rosenbrock, 4-d": (lambda: Rosenbrock(4, a=0.5, b=1.0), f64(0.8, 0.8, 0.8, 0.8), 0.1),
}


@pytest.mark.parametrize("name", HIGH)
def test_log_z_against_the_identity_of_narrow_densities(name: str) -> None:
    """1 / Z = E_p[q / exp(-E)] for any density q; where q is narrower than p the weights are bounded."""
    build, centre, variance = HIGH[name]
    energy = build()
    d = energy.event_shape.numel()
    centre = energy.mean if len(centre) == 1 else centre
    x = energy.sample(200_000, gen(7))
    log_q = -0.5 * (x - centre).square().sum(-1) / variance - 0.5 * d * math.log(2 * math.pi * variance)
    weight = torch.exp(log_q + energy(x) + energy.log_z)  # of mean 1
    error = float(weight.std()) / math.sqrt(len(x))
    assert error < 0.03  # so that the check says something
    assert abs(float(weight.mean()) - 1) < limit(len(HIGH), 1e-4) * error


def spd(d: int, seed: int, floor: float = 0.05) -> Tensor:
    root = torch.randn(d, d, generator=gen(seed), dtype=F64)
    return root @ root.T + floor * torch.eye(d, dtype=F64)


spd_matrices = st.builds(spd, st.integers(1, 6), st.integers(0, 2**31), st.sampled_from([1e-3, 0.05, 10.0]))
quickly = settings(max_examples=40, deadline=None, derandomize=True, database=None)


@quickly
@given(spd_matrices, st.integers(0, 2**31))
def test_quadratic_is_the_gaussian_integral(a: Tensor, seed: int) -> None:
    d = len(a)
    b, skew = torch.randn(d, generator=gen(seed), dtype=F64), torch.randn(d, d, generator=gen(seed + 1), dtype=F64)
    energy = Quadratic(a + skew - skew.T, b)  # only the symmetric part enters the energy
    inverse = torch.linalg.inv(a)
    wanted = d / 2 * math.log(math.pi) - torch.logdet(a) / 2 + b @ inverse @ b / 4
    # inverting loses digits of b'A^-1 b in proportion to the condition number, here below 1e6
    assert float(energy.log_z) == pytest.approx(float(wanted), rel=1e-8, abs=1e-9)
    torch.testing.assert_close(energy.mean, inverse @ b / 2, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(energy.covariance, inverse / 2, rtol=1e-8, atol=1e-9)
    x = torch.randn(4, d, generator=gen(seed + 2), dtype=F64)
    torch.testing.assert_close(energy(x), torch.einsum("ni,ij,nj->n", x, a, x) - x @ b, **ROUNDING[F64])
    torch.testing.assert_close(energy.value_and_grad(x)[1], 2 * x @ a - b, **ROUNDING[F64])


@quickly
@given(spd_matrices, st.integers(0, 2**31), st.floats(0.01, 100.0))
def test_sums_of_quadratic_energies_integrate_in_closed_form(a: Tensor, seed: int, beta: float) -> None:
    """Product of Gaussians: log Z of the sum from the sum's own minimum and curvature, found without the library."""
    d, g = len(a), gen(seed)
    b, mean, x = (torch.randn(n, d, generator=g, dtype=F64) for n in (1, 1, 4))
    terms = [Quadratic(a, b[0], 0.7), Gaussian(mean[0], spd(d, seed + 1)), beta * Gaussian(b[0], a)]
    total = terms[0] + terms[1] + terms[2]
    torch.testing.assert_close(total(x), sum(term(x) for term in terms), **ROUNDING[F64])
    zero = torch.zeros(d, dtype=F64)
    hessian = torch.autograd.functional.hessian(lambda v: sum(term(v) for term in terms), zero)
    value, grad = total.value_and_grad(zero)
    step = torch.linalg.solve(hessian, grad)
    wanted = d / 2 * math.log(2 * math.pi) - torch.logdet(hessian) / 2 + grad @ step / 2 - value
    assert float(total.log_z) == pytest.approx(float(wanted), rel=1e-8, abs=1e-8)  # condition numbers up to 1e6
    assert isinstance(terms[0] + terms[1], Quadratic)


def test_derivatives_of_log_z_are_moments() -> None:
    """d log Z / db = E[x], d log Z / dA = -E[xx'], d log Z / dc = -1: learning by maximum likelihood rests on them."""
    a, b = spd(3, 0).requires_grad_(), torch.randn(3, generator=gen(1), dtype=F64).requires_grad_()
    c = f64(0.3)[0].requires_grad_()
    energy = Quadratic(nn.Parameter(a.detach()), nn.Parameter(b.detach()), nn.Parameter(c.detach()))
    assert [n for n, _ in energy.named_parameters()] == ["A", "b", "constant"]
    energy.log_z.backward()
    mean, covariance = energy.mean.detach(), energy.covariance.detach()
    torch.testing.assert_close(energy.b.grad, mean, **ROUNDING[F64])
    torch.testing.assert_close(energy.A.grad, -(covariance + torch.outer(mean, mean)), **ROUNDING[F64])
    assert float(energy.constant.grad) == -1.0
    assert torch.autograd.gradcheck(lambda *t: Quadratic(*t).log_z, (a, b, c))


def test_gradients_reach_the_parameters_of_an_energy() -> None:
    energy = ENERGIES["network"](F64, CPU)
    energy(points(energy, 4)).sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in energy.parameters())
    quadratic = Quadratic(nn.Parameter(torch.eye(2)), nn.Parameter(torch.zeros(2)))
    total = Sum([quadratic, quadratic])
    total(torch.ones(3, 2)).sum().backward()
    torch.testing.assert_close(quadratic.A.grad, torch.full((2, 2), 6.0))  # 3 points, twice
    assert total.log_z.requires_grad


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Quadratic(torch.eye(2)[0], torch.zeros(2)), r"A of shape \(2, 2\), got \(2,\)"),
        (lambda: Quadratic(torch.eye(2), torch.zeros(3)), r"b of shape \(2,\), got \(3,\)"),
        (lambda: Quadratic(-torch.eye(2), torch.zeros(2)), "A to be positive definite, got smallest eigenvalue -1"),
        (lambda: Quadratic(torch.full((1, 1), math.nan), torch.zeros(1)), "A to be positive definite, got .* nan"),
        (lambda: Gaussian(torch.zeros(2, 2), torch.eye(2)), r"mean of shape \(dimension,\), got \(2, 2\)"),
        (lambda: Gaussian(torch.zeros(2), torch.ones(3)), r"covariance of shape \(2,\), got \(3,\)"),
        (lambda: Gaussian(torch.zeros(2), torch.eye(3)), r"covariance of shape \(2, 2\), got \(3, 3\)"),
        (lambda: Gaussian(torch.zeros(2), torch.tensor([1.0, 0.0])), "covariance to be positive definite"),
        (lambda: Gaussian(torch.zeros(2), torch.tensor([[1.0, 0.5], [0.0, 1.0]])), "symmetric covariance"),
        (lambda: StudentT(0, torch.zeros(2), torch.eye(2)), "degrees of freedom > 0, got 0"),
        (lambda: StudentT(math.inf, torch.zeros(2), torch.eye(2)), "degrees of freedom > 0, got inf"),
        (lambda: StudentT(3, torch.zeros(2), torch.tensor([[1.0, 0.5], [0.0, 1.0]])), "symmetric scale"),
        (
            lambda: GaussianMixture(torch.zeros(2), torch.eye(2)),
            r"means of shape \(components, dimension\), got \(2,\)",
        ),
        (
            lambda: GaussianMixture(torch.zeros(3, 2), torch.ones(3, 2)),
            r"covariances of shape \(3, 2, 2\), got \(3, 2\)",
        ),
        (lambda: GaussianMixture(torch.zeros(2, 2), torch.eye(2), [1.0]), r"2 positive weights, got \[1.0\]"),
        (lambda: GaussianMixture(torch.zeros(2, 2), torch.eye(2), [1.0, 0.0]), "2 positive weights"),
        (lambda: GaussianMixture(torch.zeros(2, 2), torch.eye(2), [1.0, math.inf]), "2 positive weights"),
        (lambda: GaussianMixture(torch.zeros(1, 2), torch.tensor([[1.0, 0.5], [0.0, 1.0]])), "symmetric covariances"),
        (lambda: DoubleWell(0), "dimension > 0, got 0"),
        (lambda: DoubleWell(1, height=-1.0), "height > 0, got -1"),
        (lambda: DoubleWell(1, well=math.nan), "well > 0, got nan"),
        (lambda: DoubleWell(1, height=math.inf), "height > 0, got inf"),
        (lambda: Funnel(1), "dimension > 0, got 0"),
        (lambda: Funnel(3, scale=0.0), "scale > 0, got 0"),
        (lambda: Rosenbrock(3), "even dimension, got 3"),
        (lambda: Rosenbrock(2, b=0.0), "b > 0, got 0"),
    ],
)
def test_bad_analytic_energies_are_refused(build: Callable[[], Energy], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
