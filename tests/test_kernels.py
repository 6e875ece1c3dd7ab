"""Kernels and their parts against independent implementations and closed forms."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from pyro.infer.mcmc.adaptation import WarmupAdapter
from scipy import stats
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

import ebmppl as eb
from ebmppl.energies import Energy, Gaussian
from ebmppl.errors import SamplingError
from ebmppl.kernels import HMC, MALA, NUTS, Kernel, Langevin
from ebmppl.kernels.accept import metropolis, not_finite, select
from ebmppl.kernels.adaptation import Tuning, factorise, find_step_size
from ebmppl.kernels.dual_averaging import dual_averaging, dual_averaging_update
from ebmppl.kernels.integrators import Phase, kinetic, leapfrog
from ebmppl.kernels.pooling import BLOCK, pooled_sum
from ebmppl.sampling.chains import Chains
from ebmppl.sampling.noise import NoiseSource
from ebmppl.sampling.schedule import stan_windows
from tests.targets import TARGETS, f64, gen

CPU = torch.device("cpu")
FALSE_ALARM = 1e-4  # of each statistical test, shared among its statistics (Bonferroni); seeds are fixed


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Small tensors: a second thread costs more than it brings (DESIGN 4)."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def normal_limit(tests: int) -> float:
    """|z| of a normal statistic that is passed with probability FALSE_ALARM / tests."""
    return float(stats.norm.isf(FALSE_ALARM / tests / 2))


# The leapfrog integrator.

DIAGONAL = f64(0.5, 2.0, 1.3)
DENSE = f64([1.0, 0.4, 0.1], [0.4, 2.0, -0.5], [0.1, -0.5, 0.8])
METRICS = {"diagonal": DIAGONAL, "dense": DENSE}


def quartic(x: Tensor) -> tuple[Tensor, Tensor]:
    """An energy without symmetry, whose gradient autograd can differentiate again."""
    energy = 0.25 * x.pow(4).sum(-1) + 0.5 * x.prod(-1) + 0.3 * x[..., 0]
    others = torch.stack([x[..., 1] * x[..., 2], x[..., 0] * x[..., 2], x[..., 0] * x[..., 1]], -1)
    return energy, x.pow(3) + 0.5 * others + f64(0.3, 0.0, 0.0)


def phase(x: Tensor, momentum: Tensor) -> Phase:
    return Phase(x, momentum, *quartic(x))


@pytest.mark.parametrize("inverse_mass", METRICS.values(), ids=METRICS)
def test_leapfrog_is_the_textbooks(inverse_mass: Tensor) -> None:
    """Against Neal 2011, equations 2.28 to 2.30, with an explicit mass matrix and one point at a time."""
    factor, size = factorise(inverse_mass), f64(0.1, 0.2, -0.3, 0.05)
    x, p = torch.randn(4, 3, generator=gen(0), dtype=torch.float64), torch.randn(4, 3, generator=gen(1)).double()
    end = leapfrog(quartic, phase(x, p), size, factor)
    dense = inverse_mass if inverse_mass.dim() == 2 else torch.diag(inverse_mass)
    root = factor if factor.dim() == 2 else torch.diag(factor)
    for c in range(4):
        r = torch.linalg.solve(root.T, p[c])  # p = F' r
        r = r - size[c] / 2 * quartic(x[c])[1]
        q = x[c] + size[c] * dense @ r
        r = r - size[c] / 2 * quartic(q)[1]
        # rounding of three-term sums of numbers of size 1 to 10
        assert torch.allclose(end.position[c], q, rtol=0, atol=1e-13)
        assert torch.allclose(end.momentum[c], root.T @ r, rtol=0, atol=1e-13)
        assert float(kinetic(end.momentum)[c]) == pytest.approx(float(0.5 * r @ dense @ r), abs=1e-13)


@pytest.mark.parametrize("inverse_mass", METRICS.values(), ids=METRICS)
def test_leapfrog_reverses(inverse_mass: Tensor) -> None:
    factor, size = factorise(inverse_mass), torch.full((20,), 0.1).double()
    x, p = (torch.randn(20, 3, generator=gen(s), dtype=torch.float64) for s in (2, 3))
    start = at = phase(x, p)
    for _ in range(20):
        at = leapfrog(quartic, at, size, factor)
    assert float((at.position - x).abs().min()) > 1e-4  # it went somewhere
    forward = at
    for _ in range(20):
        at = leapfrog(quartic, at, -size, factor)
    flipped = forward._replace(momentum=-forward.momentum)
    for _ in range(20):
        flipped = leapfrog(quartic, flipped, size, factor)
    # 20 steps of rounding 1e-16 each, grown by the flow: the promise of DESIGN 6.3
    for field in Phase._fields:
        assert torch.allclose(getattr(at, field), getattr(start, field), rtol=0, atol=1e-12), field
    assert torch.allclose(flipped.position, x, rtol=0, atol=1e-12)
    assert torch.allclose(flipped.momentum, -p, rtol=0, atol=1e-12)


@pytest.mark.parametrize("inverse_mass", METRICS.values(), ids=METRICS)
def test_leapfrog_preserves_volume_and_the_symplectic_form(inverse_mass: Tensor) -> None:
    factor = factorise(inverse_mass)
    root = factor if factor.dim() == 2 else torch.diag(factor)

    def flow(z: Tensor) -> Tensor:
        """Position and momentum r (not whitened) after three steps."""
        q, r = z[:3].unsqueeze(0), z[3:]
        at = phase(q, (root.T @ r).unsqueeze(0))
        for _ in range(3):
            at = leapfrog(quartic, at, f64(0.2), factor)
        return torch.cat([at.position[0], torch.linalg.solve(root.T, at.momentum[0])])

    form = torch.zeros(6, 6).double()
    form[:3, 3:], form[3:, :3] = torch.eye(3), -torch.eye(3)
    for seed in range(5):
        jacobian = torch.autograd.functional.jacobian(flow, torch.randn(6, generator=gen(seed), dtype=torch.float64))
        # products of 6 x 6 matrices with entries of size 1 to 10: rounding is under 1e-13
        assert float(torch.linalg.det(jacobian)) == pytest.approx(1.0, abs=1e-12)
        assert torch.allclose(jacobian.T @ form @ jacobian, form, rtol=0, atol=1e-12)


def test_leapfrog_is_of_second_order() -> None:
    """Over a fixed time the energy error falls by four when the step halves; a dropped half kick makes it two."""
    x, p = (torch.randn(50, 3, generator=gen(s), dtype=torch.float64) for s in (4, 5))

    def error(steps: int) -> float:
        at = start = phase(x, p)
        for _ in range(steps):
            at = leapfrog(quartic, at, torch.full((50,), 1.0 / steps).double(), DIAGONAL.sqrt())
        return float((at.energy + kinetic(at.momentum) - start.energy - kinetic(start.momentum)).abs().mean())

    # the next term of the expansion is 1 / steps^2 smaller: under 1 per cent at 128 steps
    assert error(128) / error(256) == pytest.approx(4.0, rel=0.01)


# Acceptance.


def test_metropolis() -> None:
    inf, nan = math.inf, math.nan
    error = f64(-1.0, 0.0, 0.5, 1000.0, 1000.1, inf, -inf, nan)
    decision = metropolis(error, torch.zeros(8).double())
    assert decision.rate.tolist() == [1.0, 1.0, math.exp(-0.5), math.exp(-1000), math.exp(-1000.1), 0.0, 0.0, 0.0]
    assert decision.diverging.tolist() == [False, False, False, False, True, True, True, True]
    # a rate of 0 is never accepted, not even by the smallest uniform number, 0
    assert decision.accept.tolist() == [True, True, True, False, False, False, False, False]
    assert metropolis(f64(0.5, 0.5), f64(0.60, 0.61)).accept.tolist() == [True, False]  # exp(-0.5) = 0.6065
    assert metropolis(f64(0.0), f64(1 - 2**-53)).accept.tolist() == [True]


class Contracted(fx.Interpreter):
    """Rounds a product and a sum once, as GPUs do: products of numbers in float32 are exact in float64."""

    def run_node(self, n: fx.Node) -> Any:
        sign = {torch.ops.aten.add.Tensor: 1, torch.ops.aten.sub.Tensor: -1}.get(n.target)  # type: ignore[arg-type]
        products = [isinstance(arg, fx.Node) and arg.target is torch.ops.aten.mul.Tensor for arg in n.args]
        if sign is None or not any(products):
            return super().run_node(n)
        i = products.index(True)
        a, b = (self.env[f].double() if isinstance(f, fx.Node) else f for f in n.args[i].args)  # type: ignore[union-attr]
        other = self.env[n.args[1 - i]].double()  # type: ignore[index]
        return (a * b + sign * other if i == 0 else other + sign * (a * b)).float()


def test_decisions_are_the_same_where_products_and_sums_are_rounded_once() -> None:
    """A tempered energy is a product; what is left of it less itself told Swendsen-Wang on a GPU that it diverged."""
    a, b = torch.rand(2, 1000, generator=gen(5)).unbind(0)
    uniform = torch.rand(1000, generator=gen(6))

    def decide(a: Tensor, b: Tensor) -> list[Tensor]:
        return [not_finite(a * b), *metropolis(a * b, uniform)]

    wanted = decide(a, b)
    graph = make_fx(decide)(a, b)
    assert not any(wanted[0])
    assert all(
        torch.equal(x, y)
        for x, y in zip(Contracted(graph, garbage_collect_values=False).run(a, b), wanted, strict=True)
    )
    assert not_finite(torch.tensor([math.nan, math.inf, -math.inf, 3e38, -0.0])).tolist() == [True] * 3 + [False] * 2


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 2, 3), (4, 20_000)])
def test_select_picks_rows_and_leaks_no_nan(shape: tuple[int, ...]) -> None:
    a, b = torch.full(shape, 1.0), torch.full(shape, math.nan)
    mask = torch.tensor([True, False, True, False])
    found = select(mask, a, b)
    assert (
        found.isnan().flatten(1 if len(shape) > 1 else 0).tolist()
        == (b.isnan() & ~mask.view(-1, *[1] * (len(shape) - 1))).flatten(1 if len(shape) > 1 else 0).tolist()
    )
    assert torch.equal(found[mask], a[mask])


# Kernels against plain ones, chain by chain on the same random numbers.


class Setting(NamedTuple):
    target: str
    inverse_mass: Tensor
    step: float


SETTINGS = {
    "gaussian, dense": Setting("gaussian", DENSE, 0.5),
    "student, diagonal": Setting("student", DIAGONAL, 0.9),
    "mixture, dense": Setting("mixture", DENSE[:2, :2], 0.8),
    "walls, diagonal": Setting("walls", DIAGONAL[:2], 0.4),
    "rosenbrock, dense": Setting("rosenbrock", DENSE[:2, :2], 0.3),
}


class Recorded:
    """The draws of a kernel at fixed tuning, by chain, and the noise that they were made of."""

    def __init__(self, kernel: Kernel, setting: Setting, step_size: float, *, chains: int = 5, draws: int = 20) -> None:
        self.x = TARGETS[setting.target].sample(chains, gen(0))
        noise = NoiseSource(kernel.noise(), chains, 12, torch.float64, CPU)
        tuning = Tuning(f64(step_size)[0], setting.inverse_mass, factorise(setting.inverse_mass))
        self.rows: list[dict[str, Tensor]] = []
        self.found: list[list[dict[str, Tensor]]] = [[] for _ in range(chains)]
        state = kernel.init(self.x)
        while min(map(len, self.found)) < draws:
            self.rows.append(noise.row(len(self.rows)))
            state, info = kernel.tick(state, tuning, self.rows[-1])
            for c in range(chains):
                if info.done[c]:
                    values = {"q": kernel.position(state)[c], **{n: v[c] for n, v in info._asdict().items()}}
                    self.found[c].append(values)
        self.found = [draws_of_chain[:draws] for draws_of_chain in self.found]


def evaluate(energy: Energy, q: Tensor) -> tuple[float, Tensor]:
    value, grad = energy.value_and_grad(q.unsqueeze(0))
    return float(value[0]), grad[0]


def dense(inverse_mass: Tensor) -> Tensor:
    return inverse_mass if inverse_mass.dim() == 2 else torch.diag(inverse_mass)


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_mala_equals_the_plain_one(setting: Setting) -> None:
    """Roberts and Tweedie 1996: a normal proposal and the ratio of proposal densities, no momentum anywhere."""
    energy = TARGETS[setting.target].energy
    eta, full = setting.step, setting.inverse_mass.dim() == 2
    run = Recorded(MALA(energy, eta, full_mass=full), setting, eta)
    covariance = eta * dense(setting.inverse_mass)
    root = torch.linalg.cholesky(covariance)
    accepted = 0
    for c, found in enumerate(run.found):
        q = run.x[c]
        for tick, draw in enumerate(found):
            e, g = evaluate(energy, q)
            there = q - covariance @ g / 2 + root @ run.rows[tick]["normal"][c]
            e2, g2 = evaluate(energy, there)
            out = torch.linalg.solve_triangular(root, (there - q + covariance @ g / 2).unsqueeze(1), upper=False)
            back = torch.linalg.solve_triangular(root, (q - there + covariance @ g2 / 2).unsqueeze(1), upper=False)
            log_ratio = e - e2 + 0.5 * float(out.square().sum() - back.square().sum())
            if math.isfinite(log_ratio) and float(run.rows[tick]["accept"][c]) < math.exp(min(0.0, log_ratio)):
                q, accepted = there, accepted + 1
            # draw for draw: rounding of 20 accepted moves (gradients magnify it in energies), far under any other decision
            assert torch.allclose(draw["q"], q, rtol=0, atol=1e-10)
            if math.isfinite(log_ratio):
                assert float(draw["energy_error"]) == pytest.approx(-log_ratio, abs=1e-7)
                assert float(draw["acceptance_rate"]) == pytest.approx(math.exp(min(0.0, log_ratio)), abs=1e-7)
    assert 0.2 < accepted / 100 < 0.99  # both decisions were met


@pytest.mark.parametrize("jitter", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_hmc_equals_the_plain_one(setting: Setting, jitter: float) -> None:
    """Neal 2011, figure 2: one chain, a mass matrix, whole trajectories; noise of the ticks at which it is used."""
    energy, longest = TARGETS[setting.target].energy, 6
    inverse_mass = dense(setting.inverse_mass)
    mass_root = torch.linalg.inv(torch.linalg.cholesky(inverse_mass)).T  # r = mass_root p has covariance M
    kernel = HMC(energy, setting.step, num_steps=longest, jitter=jitter, full_mass=setting.inverse_mass.dim() == 2)
    run = Recorded(kernel, setting, setting.step)
    moved = 0
    for c, found in enumerate(run.found):
        q, tick = run.x[c], 0
        for draw in found:
            r = mass_root @ run.rows[tick]["momentum"][c]
            steps = max(1, math.ceil((1 - jitter * float(run.rows[tick]["length"][c])) * longest))
            e, g = evaluate(energy, q)
            h = e + 0.5 * float(r @ inverse_mass @ r)
            there, taken = q, 0
            for _ in range(steps):
                r = r - setting.step / 2 * g
                there = there + setting.step * inverse_mass @ r
                e, g = evaluate(energy, there)
                r = r - setting.step / 2 * g
                taken += 1
                error = e + 0.5 * float(r @ inverse_mass @ r) - h
                if not math.isfinite(error):
                    break
            tick += taken
            if math.isfinite(error) and float(run.rows[tick - 1]["accept"][c]) < math.exp(min(0.0, -error)):
                q, moved = there, moved + 1
            # rounding that 120 steps magnify (steps near the stability limit), far under any other decision
            assert torch.allclose(draw["q"], q, rtol=0, atol=1e-7)
            assert int(draw["n_steps"]) == taken
            assert bool(draw["diverging"]) == (not math.isfinite(error) or error > 1000)
            assert float(draw["lp"]) == pytest.approx(-evaluate(energy, q)[0], abs=1e-7)
            if math.isfinite(error):
                # by gradients and momenta of up to 10
                assert float(draw["energy_error"]) == pytest.approx(error, rel=1e-9, abs=1e-6)
    assert 0.2 < moved / 100 < 0.999


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_mala_is_hmc_of_one_step(setting: Setting) -> None:
    """With step size eta = epsilon^2 on the same numbers, bit for bit (0.5^2 has an exact root)."""
    target, full = TARGETS[setting.target], setting.inverse_mass.dim() == 2
    mala = MALA(target.energy, 0.25, full_mass=full)
    hmc = HMC(target.energy, 0.5, num_steps=1, full_mass=full)
    x, factor = target.sample(30, gen(1)), factorise(setting.inverse_mass)
    a, b = mala.init(x), hmc.init(x)
    for t in range(20):
        normal = torch.randn(x.shape, generator=gen(t), dtype=torch.float64)
        accept, length = torch.rand(2, 30, generator=gen(100 + t), dtype=torch.float64)
        noise = {"normal": normal, "momentum": normal, "accept": accept, "length": length}
        a, info_a = mala.tick(a, Tuning(f64(0.25)[0], setting.inverse_mass, factor), noise)
        b, info_b = hmc.tick(b, Tuning(f64(0.5)[0], setting.inverse_mass, factor), noise)
        assert torch.equal(a.position, b.position)
        assert torch.equal(info_a.acceptance_rate, info_b.acceptance_rate)
        assert bool(info_b.done.all())


# Trajectory lengths.


def lengths(kernel: HMC, target: str = "gaussian") -> Tensor:
    mcmc = eb.MCMC(kernel, 40, 0, TARGETS[target].sample(300, gen(2)), 300, seed=5, disable_progbar=True)
    mcmc.run()
    return mcmc.stats()["n_steps"].flatten()


@pytest.mark.parametrize(
    ("jitter", "shares"),
    [
        (1.0, [1 / 8] * 8),
        (0.5, [0, 0, 0, 0, 1 / 4, 1 / 4, 1 / 4, 1 / 4]),  # (1 - u / 2) 8 is uniform on (4, 8]
        (0.8, [0, 0.4 / 6.4] + [1 / 6.4] * 6),  # uniform on (1.6, 8]
        (0.0, [0] * 7 + [1]),
    ],
)
def test_trajectory_lengths(jitter: float, shares: list[float]) -> None:
    for kernel in (
        HMC(TARGETS["gaussian"].energy, 0.4, num_steps=8, jitter=jitter),
        HMC(TARGETS["gaussian"].energy, 0.4, 8 * 0.4 - 0.1, jitter=jitter),  # rounded up to 8 steps
    ):
        counts = torch.bincount(lengths(kernel), minlength=9)[1:]
        expected = torch.tensor(shares) * counts.sum()
        assert bool((counts[expected == 0] == 0).all())
        met = expected > 0
        if int(met.sum()) > 1:
            # 12,000 independent lengths: chi-square
            assert stats.chisquare(counts[met].numpy(), expected[met].double().numpy()).pvalue > FALSE_ALARM / 6


def test_trajectory_length_is_bounded() -> None:
    assert int(lengths(HMC(TARGETS["gaussian"].energy, 1e-3, max_num_steps=5)).max()) == 5
    assert lengths(HMC(TARGETS["gaussian"].energy, 1.0, 0.1, jitter=0.0)).unique().tolist() == [1]


# Unadjusted Langevin has a law of its own.


def langevin_covariance(precision: Tensor, mean: Tensor, eta: float, chains: int) -> tuple[Tensor, Tensor]:
    """Sample covariance of independent chains after 200 steps, and the standard errors if ``covariance`` is true."""
    kernel = Langevin(Gaussian(mean, torch.linalg.inv(precision)), eta)
    x = mean + torch.randn(chains, len(mean), generator=gen(3), dtype=torch.float64)
    run = Chains(kernel, x, seed=6)
    run.advance(200)
    return torch.cov(run.position().T), run.position().mean(0)


def covariance_z(found: Tensor, true: Tensor, n: int) -> Tensor:
    """z-scores of the entries of a sample covariance of n normal vectors: variance (S_ii S_jj + S_ij^2) / (n - 1)."""
    error = ((torch.outer(true.diagonal(), true.diagonal()) + true.square()) / (n - 1)).sqrt()
    z = (found - true) / error
    return z[*torch.triu_indices(len(true), len(true))]


def test_langevin_has_its_own_stationary_covariance() -> None:
    precision, mean = f64([2.0, 0.5, 0.0], [0.5, 1.0, -0.3], [0.0, -0.3, 0.7]), f64(1.0, -2.0, 0.0)
    eta, n = 0.6, 20_000
    covariance, average = langevin_covariance(precision, mean, eta, n)
    inverse = torch.linalg.inv(precision)
    own = inverse @ torch.linalg.inv(torch.eye(3).double() - eta / 4 * precision)
    # the slowest direction forgets its start by (1 - 0.3 * 0.58)^200 < 1e-16
    assert float(covariance_z(covariance, own, n).abs().max()) < normal_limit(9)
    assert float(((average - mean) / (own.diagonal() / n).sqrt()).abs().max()) < normal_limit(9)
    # the bias is seen by far: at these numbers the largest entry is some 50 standard errors off the target's
    assert float(covariance_z(covariance, inverse, n).abs().max()) > 20


@pytest.mark.data
def test_langevin_agrees_with_the_reference_covariances(shared_data: Path) -> None:
    reference = json.loads((shared_data / "exact" / "losses.json").read_text())
    precision, mean = f64(*reference["P"]), f64(*reference["m"])
    for eps, wanted in reference["ula"].items():
        eta, n = 2 * float(eps), 20_000  # x - eps grad E + sqrt(2 eps) noise
        own = torch.linalg.inv(precision) @ torch.linalg.inv(torch.eye(3).double() - eta / 4 * precision)
        assert torch.allclose(own, f64(*wanted), rtol=1e-10, atol=0)  # the same closed form, printed in full
        covariance, _ = langevin_covariance(precision, mean, eta, n)
        # 0.7 is the smallest eigenvalue: (1 - 0.05 * 0.6)^200 = 0.002 of the start is left, squared 5e-6: no matter
        assert float(covariance_z(covariance, f64(*wanted), n).abs().max()) < normal_limit(12)


# Dual averaging.


def test_dual_averaging_equals_the_scalar_recursion() -> None:
    """Hoffman and Gelman 2014, algorithm 5, written down again for one chain and a given sequence of rates."""
    rates = torch.rand(200, generator=gen(7), dtype=torch.float64)
    delta, gamma, t0, kappa = 0.7, 0.05, 10, 0.75
    mu, h_bar, log_eps_bar = math.log(10 * 0.3), 0.0, 0.0
    da, step = dual_averaging(f64(0.3)[0], 1), f64(0.3)[0]
    for m, rate in enumerate(rates.tolist(), start=1):
        h_bar = (1 - 1 / (m + t0)) * h_bar + 1 / (m + t0) * (delta - rate)
        log_eps = mu - math.sqrt(m) / gamma * h_bar
        log_eps_bar = m**-kappa * log_eps + (1 - m**-kappa) * log_eps_bar
        da, step = dual_averaging_update(da, step, f64(rate), torch.tensor([True]), delta)
        assert float(step) == pytest.approx(math.exp(log_eps), rel=1e-12)  # the same operations in another order
        assert float(da.log_average) == pytest.approx(log_eps_bar, rel=1e-12, abs=1e-12)
        assert float(da.updates) == m


def test_dual_averaging_of_many_chains_is_that_of_their_mean() -> None:
    """One update for as many finished draws as there are chains, whoever finished them; none without."""
    rates = torch.rand(50, 8, generator=gen(8), dtype=torch.float64)
    whole, one = dual_averaging(f64(0.3)[0], 8), dual_averaging(f64(0.3)[0], 1)
    step_whole = step_one = f64(0.3)[0]
    for row in rates:
        halves = torch.arange(8) % 2 == 0
        for done in (halves, torch.zeros(8, dtype=torch.bool), ~halves):  # in two ticks, with an idle one between
            whole, step_whole = dual_averaging_update(whole, step_whole, row, done, 0.8)
        one, step_one = dual_averaging_update(one, step_one, row.mean().view(1), torch.tensor([True]), 0.8)
        assert float(step_whole) == pytest.approx(float(step_one), rel=1e-12)
    assert float(whole.updates) == 50
    assert float(whole.log_average) == pytest.approx(float(one.log_average), rel=1e-12)


ADAPTIVE: dict[str, tuple[Callable[[Energy], Kernel], float]] = {
    "mala": (MALA, 0.574),
    "hmc": (lambda e: HMC(e, num_steps=3), 0.8),
    "hmc, no jitter": (lambda e: HMC(e, num_steps=3, jitter=0.0), 0.8),
    "hmc, another target": (lambda e: HMC(e, num_steps=3, target_accept_prob=0.65), 0.65),
    "nuts": (lambda e: NUTS(e, max_tree_depth=3), 0.8),
}


def mean_rate(chains: Chains, draws: int, *, adapt: bool) -> float:
    seen: list[Tensor] = []
    chains.advance(draws, adapt=adapt, observe=lambda i: seen.append(i.acceptance_rate[i.done]))
    return float(torch.cat(seen).mean())


@pytest.mark.parametrize("name", ADAPTIVE)
def test_step_size_reaches_the_target_acceptance(name: str) -> None:
    """Frozen after a long window, on draws of their own; the spread of independent runs gives the error."""
    factory, wanted = ADAPTIVE[name]
    target, runs = TARGETS["gaussian"], 8
    rates, left, explored = [], [], []
    for seed in range(runs):
        chains = Chains(factory(target.energy), target.sample(64, gen(seed)), seed)
        chains.begin_adaptation()
        explored.append(mean_rate(chains, 300, adapt=True))
        left.append(abs(float(chains.now.adaptation.averaging.error)))
        chains.end_adaptation()
        rates.append(mean_rate(chains, 100, adapt=False))
    rate = f64(*rates)
    # after t updates the recursion still lacks H-bar = gamma (mu - log step) / sqrt(t) of its target
    error = float(stats.t.isf(FALSE_ALARM / 2, runs - 1)) * float(rate.std()) / math.sqrt(runs)
    assert max(left) < 0.02
    assert error < 0.05  # it can fail
    # The mean rate over the iterates reaches the target; their average step is accepted more often, because the rate
    # is concave in log step and the iterates swing (gain 1 / (0.05 sqrt t), Hoffman and Gelman's): by 0.08 where the
    # rate falls off steepest.
    assert wanted - error - max(left) < float(rate.mean()) < wanted + error + max(left) + 0.08
    assert float(f64(*explored).mean()) == pytest.approx(wanted, abs=0.02)  # H-bar is its average with weights near 1


# The mass matrix (its moments: test_welford.py).


@pytest.mark.parametrize("shape", [(), (3,), (3, 3)])
def test_pooled_sums_are_taken_block_by_block(shape: tuple[int, ...]) -> None:
    values = torch.randn(300, *shape, generator=gen(11)) * 1e3
    for chains in (1, 63, 64, 65, 128, 130, 300):
        # a block alone, wherever it runs (a short one filled up with zeros), and then the blocks together: bit for bit
        short = values.new_zeros(-chains % BLOCK if chains > BLOCK else 0, *shape)
        total = torch.stack([pooled_sum(b) for b in torch.cat([values[:chains], short]).split(BLOCK)]).sum(0)
        assert torch.equal(pooled_sum(values[:chains]), total), chains
        # rounding of 300 float32 terms of size 1000
        assert torch.allclose(total, values[:chains].double().sum(0).float(), rtol=0, atol=0.1)


# The warm-up schedule.


@pytest.mark.parametrize(
    ("steps", "lengths"),
    [
        (1000, [75, 25, 50, 100, 200, 500, 50]),  # Stan reference manual, default
        (500, [75, 25, 50, 100, 200, 50]),
        (150, [75, 25, 50]),
        (149, [22, 102, 25]),
        (100, [15, 60, 25]),
        (20, [3, 7, 10]),
        (19, [19]),
        (1, [1]),
        (0, []),
    ],
)
def test_stan_windows(steps: int, lengths: list[int]) -> None:
    windows = stan_windows(steps)
    assert [window.length for window in windows] == lengths
    if steps >= 20:
        assert [window.metric for window in windows] == [False, *[True] * (len(lengths) - 2), False]
    else:
        assert not any(window.metric for window in windows)


def test_many_chains_have_a_first_metric_sooner() -> None:
    lengths = {chains: [window.length for window in stan_windows(500, chains)] for chains in (1, 4, 64, 4096)}
    assert lengths[1] == [75, 25, 50, 100, 200, 50]
    assert lengths[4] == [38, 15, 30, 60, 307, 50]
    assert lengths[64] == lengths[4096] == [20, 15, 30, 60, 325, 50]


@pytest.mark.parametrize("chains", [1, 6, 64])
def test_windows_sum_up_for_every_warm_up(chains: int) -> None:
    for steps in range(2001):
        windows = stan_windows(steps, chains)
        assert sum(window.length for window in windows) == steps
        assert all(window.length > 0 for window in windows)


def test_windows_are_pyros_but_for_short_warm_ups() -> None:
    """From 20 to 149 draws Pyro and Stan leave the last window a tenth of them."""
    for steps in (*range(1, 20), *range(150, 2001)):
        adapter = WarmupAdapter()
        adapter._warmup_steps = steps
        theirs = [window.end - window.start + 1 for window in adapter._build_adaptation_schedule()]
        assert [window.length for window in stan_windows(steps)] == theirs, steps


# The search of a first step size.


def search(kernel: Kernel, x: Tensor, seed: int = 0) -> float:
    chains = Chains(kernel, x, seed)
    chains.begin_adaptation()
    return float(chains.now.tuning.step_size)


@pytest.mark.parametrize("start", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("factory", [HMC, MALA, NUTS])
def test_the_search_ends_where_acceptance_crosses(factory: Callable[..., Kernel], start: float) -> None:
    """Wherever it begins, one leapfrog step of twice the size, or of half, is on the other side of 0.8."""
    target = TARGETS["gaussian"]
    x = target.sample(4000, gen(12))
    kernel = factory(target.energy, start, adapt_mass_matrix=False)
    step = search(kernel, x)
    leap = step**0.5 if factory is MALA else step

    def rate(size: float) -> float:
        energy, grad = target.energy.value_and_grad(x)
        at = Phase(x, torch.randn(x.shape, generator=gen(13), dtype=torch.float64), energy, grad)
        end = leapfrog(target.energy.value_and_grad, at, torch.full((4000,), size).double(), torch.ones(3).double())
        error = end.energy + kinetic(end.momentum) - energy - kinetic(at.momentum)
        return float(torch.exp(-error.clamp_min(0)).mean())

    # 4,000 rates in [0, 1]: a standard error of under 0.008, and doubling changes the rate by far more
    assert rate(leap / 2) > 0.8 - 0.03
    assert rate(leap * 2) < 0.8 + 0.03


class Flat(Energy):
    """No density at all."""

    def forward(self, x: Tensor) -> Tensor:
        return (0 * x).sum(-1)


class Cliff(Energy):
    """Finite at one point only."""

    def __init__(self, at: Tensor) -> None:
        super().__init__(at.shape)
        self.at = at

    def forward(self, x: Tensor) -> Tensor:
        return torch.where((x == self.at.to(x)).all(-1), 0.0, math.inf).to(x) + (0 * x).sum(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("factory", [HMC, MALA, NUTS])
def test_a_flat_energy_has_no_step_size(factory: Callable[..., Kernel], dtype: torch.dtype) -> None:
    with pytest.raises(SamplingError, match="ran away to infinity.*flat"):
        search(factory(Flat((2,))), torch.randn(4, 2, generator=gen(14)).to(dtype))


@pytest.mark.parametrize("at", [0.0, 1.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("factory", [HMC, MALA, NUTS])
def test_a_cliff_has_no_step_size(factory: Callable[..., Kernel], dtype: torch.dtype, at: float) -> None:
    """A step so small that the point does not move keeps the energy, but is no step."""
    point = torch.tensor([at, at])
    with pytest.raises(SamplingError, match="ran away to zero"):
        search(factory(Cliff(point)), point.expand(4, 2).to(dtype))


def test_the_search_leaves_the_ticks_noise_alone() -> None:
    """Searching takes numbers of a stream of its own, so that fixed tuning gives the same draws with or without it."""
    target = TARGETS["gaussian"]
    x = target.sample(4, gen(15))
    a, b = (Chains(MALA(target.energy, 0.3), x, 0) for _ in range(2))
    a.begin_adaptation()
    assert all(torch.equal(a.noise.row(0)[name], row) for name, row in b.noise.row(0).items())


def test_find_step_size_is_stans_for_one_chain() -> None:
    """Stan's init_stepsize: the first decision fixes the direction, the first crossing ends it."""
    target = TARGETS["gaussian"]
    x = target.sample(1, gen(16))
    energy, grad = target.energy.value_and_grad(x)
    normals = [torch.randn(1, 3, generator=gen(100 + i), dtype=torch.float64) for i in range(60)]

    def rate(size: float, p: Tensor) -> float:
        e, g = energy[0], grad[0]
        r = p[0] - size / 2 * g
        q = x[0] + size * r
        e2, g2 = evaluate(target.energy, q)
        r = r - size / 2 * g2
        change = float(e + 0.5 * p[0] @ p[0] - e2 - 0.5 * r @ r)
        return math.exp(min(0.0, change)) if math.isfinite(change) else 0.0

    for start in (1e-3, 50.0):
        step, rest = start, iter(normals)
        direction = 1 if rate(step, next(rest)) > 0.8 else -1
        while True:
            step *= 2.0**direction
            if (rate(step, next(rest)) > 0.8) != (direction == 1):
                break
        source = iter(normals)
        state = MALA(target.energy).init(x)
        tuning = Tuning(f64(start)[0], torch.ones(3).double(), torch.ones(3).double())
        found = find_step_size(target.energy.value_and_grad, state, tuning, lambda source=source: next(source), 1.0)
        assert float(found) == pytest.approx(step, rel=1e-12)


# Whole runs, warm-up included.

SAMPLERS: dict[str, Callable[[Energy], Kernel]] = {
    "mala": MALA,
    "mala, dense": lambda e: MALA(e, full_mass=True),
    # walls reject whatever the step size, which falls: trajectories are bounded
    "hmc": lambda e: HMC(e, max_num_steps=32),
    "hmc, dense, no jitter": lambda e: HMC(e, trajectory_length=1.7, jitter=0.0, full_mass=True, max_num_steps=32),
    "nuts": NUTS,
}


def moments(target: str, x: Tensor) -> Tensor:
    """Columns ``(..., functions)``: coordinates and products, bounded where the tails are heavy."""
    if target == "funnel":
        x = torch.cat([x[..., :1], torch.tanh(x[..., 1:])], -1)
    i, j = torch.triu_indices(x.shape[-1], x.shape[-1])
    return torch.cat([x, x[..., i] * x[..., j]], -1)


@pytest.mark.parametrize("target", ["gaussian", "mixture", "funnel", "walls"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_whole_runs_have_the_right_moments(sampler: str, target: str) -> None:
    """Chains are independent once tuning is frozen, so the spread of their means gives the error, whatever the mixing."""
    case, n = TARGETS[target], 96
    start = -torch.rand(n, 2, generator=gen(17), dtype=torch.float64) if target == "walls" else None
    kernel = SAMPLERS[sampler](case.energy)
    mcmc = eb.MCMC(kernel, 120, 180, start, n, seed=18, disable_progbar=True)
    mcmc.run()
    means = moments(target, mcmc.get_samples(group_by_chain=True)["x"]).mean(1)  # (chains, functions)
    exact = moments(target, case.sample(400_000, gen(19)))
    error = (means.var(0) / n + exact.var(0) / len(exact)).sqrt()
    t = (means.mean(0) - exact.mean(0)) / error
    # a mean of 96 independent chain means is Student's with about 95 degrees of freedom
    assert float(t.abs().max()) < stats.t.isf(FALSE_ALARM / 2 / len(t), n - 1)
    # and the error is small enough to see a quarter of a standard deviation (MALA mixes slowly in the funnel)
    assert float((means.std(0) / math.sqrt(n) / exact.std(0)).max()) < 0.06


def test_whole_runs_would_show_a_wrong_target() -> None:
    """Variances a tenth too small: about 9 standard errors, where 96 chains had 4.7 and passed or failed by the seed."""
    case, n = TARGETS["gaussian"], 384
    mcmc = eb.MCMC(HMC(1.1 * case.energy), 120, 400, num_chains=n, seed=18, disable_progbar=True)
    mcmc.run()
    means = moments("gaussian", mcmc.get_samples(group_by_chain=True)["x"]).mean(1)
    exact = moments("gaussian", case.sample(400_000, gen(19)))
    t = (means.mean(0) - exact.mean(0)) / (means.var(0) / n + exact.var(0) / len(exact)).sqrt()
    assert float(t.abs().max()) > stats.t.isf(FALSE_ALARM / 2 / len(t), n - 1)


@pytest.mark.parametrize("full", [False, True])
def test_the_adapted_metric_is_the_targets_covariance(full: bool) -> None:
    target = TARGETS["gaussian"]
    mcmc = eb.MCMC(HMC(target.energy, full_mass=full), 1, 300, num_chains=64, seed=20, disable_progbar=True)
    mcmc.run()
    covariance = target.energy.covariance
    found, wanted = mcmc.now.tuning.inverse_mass, covariance if full else covariance.diagonal()
    # the last window holds 64 x 100 or more draws; HMC's are about independent, so 2,000 effective ones are sure:
    # the standard error of a variance is then sqrt(2 / 2000) of it
    scale = torch.outer(covariance.diagonal(), covariance.diagonal()).sqrt() if full else wanted
    assert float(((found - wanted) / scale).abs().max()) < normal_limit(6) * math.sqrt(2 / 2000)
    assert torch.allclose(
        mcmc.now.tuning.factor @ mcmc.now.tuning.factor.T if full else mcmc.now.tuning.factor.square(), found
    )


def test_settings_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    kernel: Any = HMC(TARGETS["gaussian"].energy, 0.3, num_steps=7)
    assert kernel.settings()["num_steps"] == 7
    assert "step_size=0.3" in repr(kernel)
    assert capsys.readouterr().out == ""


def test_a_tick_of_its_own_is_taken_where_only_the_end_counts_too() -> None:
    """Langevin has a shorter way for several ticks, which a kernel made from it can't mean."""

    class Still(Langevin):
        def tick(self, state: Any, tuning: Any, noise: Any) -> Any:
            return state, super().tick(state, tuning, noise)[1]

    energy, x = Gaussian(torch.zeros(2), torch.ones(2)), torch.ones(4, 2)
    for kernel, still in ((Still(energy, step_size=0.5), True), (Langevin(energy, step_size=0.5), False)):
        chains = Chains(kernel, x, 0)
        chains.advance(3)
        assert torch.equal(chains.position(), x) == still
