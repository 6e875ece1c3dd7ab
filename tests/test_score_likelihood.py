"""Likelihoods by the probability flow against exact values; probes and their errors; failures."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from scipy import stats
from torch import Tensor

import ebmppl as eb
from ebmppl.errors import SamplingWarning
from ebmppl.sampling import compiled_function
from ebmppl.sampling.compiled_function import Compiling
from ebmppl.score import VP, GenericSDE, LinearSDE, SubVP, TimeMLP, likelihood
from ebmppl.score.ode import Field, attempt, solve
from tests.score_targets import MIXTURE, PARAMETERS, DiffusedMixture, sdes

F64 = torch.float64
SDES = sdes(PARAMETERS)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def at_end(mixture: DiffusedMixture, sde: LinearSDE) -> Callable[[Tensor], Tensor]:
    return lambda x: mixture.log_prob(x, torch.full_like(x[:, 0], sde.t_max))


@pytest.mark.data
@pytest.mark.parametrize("name", SDES)
def test_exact_values_with_both_priors(shared_data: Path, name: str) -> None:
    exact = json.loads((shared_data / "exact" / "sde_gmm.json").read_text())
    wanted, sde = exact["sde"][name]["probability_flow"], SDES[name]
    x, mixture = torch.tensor(exact["points"], dtype=F64), DiffusedMixture(sde, *MIXTURE)
    found = eb.log_likelihood(mixture, sde, x, 1e-9, 1e-9)
    tensor = lambda key: torch.tensor(wanted[key], dtype=F64)
    torch.testing.assert_close(found.value, tensor("log_likelihood_normal_prior"), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.end, tensor("x_T"), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.divergence, tensor("divergence_integral"), rtol=1e-6, atol=1e-6)
    assert not bool(found.std_error.any())
    known = eb.log_likelihood(mixture, sde, x, log_prior=at_end(mixture, sde))
    torch.testing.assert_close(known.value, tensor("log_p_eps"), rtol=0, atol=1e-3)  # nats, at the default tolerance


def sixteen(sde: LinearSDE) -> DiffusedMixture:
    means = normal(2, 16, seed=1)
    factor = 0.3 * normal(2, 16, 16, seed=2)
    return DiffusedMixture(sde, [0.3, 0.7], means, factor @ factor.mT + 0.2 * torch.eye(16, dtype=F64))


@pytest.mark.parametrize("name", SDES)
def test_sixteen_dimensions_with_the_exact_end(name: str, device: torch.device) -> None:
    sde = SDES[name]
    mixture = sixteen(sde).to(device)
    x = normal(6, 16, seed=3).to(device)
    found = eb.log_likelihood(mixture, sde, x, log_prior=at_end(mixture, sde))
    wanted = mixture.log_prob(x, torch.full((6,), 1e-5, dtype=F64, device=device))
    torch.testing.assert_close(found.value, wanted, rtol=0, atol=1e-3)


def test_the_probes_interval_covers() -> None:
    """Student's 99 % intervals of 20 probes cover in 60 points: fewer than 54 of them would have a chance of 1e-5.

    Those of 50 % cover half of them, as wider ones would not: more have a chance of 1e-5.
    """
    sde = VP()
    mixture = sixteen(sde)
    x = normal(60, 16, seed=3)
    exact = eb.log_likelihood(mixture, sde, x, 1e-4, 1e-4)
    found = eb.log_likelihood(mixture, sde, x, 1e-4, 1e-4, probes=20, seed=1)
    t = (found.value - exact.value) / found.std_error
    assert stats.binom.cdf(53, 60, 0.99) < 1e-5
    assert int((t.abs() < stats.t.isf(0.005, 19)).sum()) >= 54
    half, most = stats.t.isf(0.25, 19), stats.binom.isf(1e-5, 60, 0.5)
    assert int((t.abs() < half).sum()) <= most
    assert int((t.abs() < half * math.sqrt(20)).sum()) > most  # a deviation in the place of an error would be seen
    assert float(found.std_error.min()) > 0.001
    assert int((t.abs() < 0.1 * stats.t.isf(0.005, 19)).sum()) < 54  # an error ten times too small would be seen
    assert bool(eb.log_likelihood(mixture, sde, x[:2], probes=1).std_error.isnan().all())


def test_each_point_has_its_own_steps() -> None:
    """A point's value does not depend on those beside it, and one that has arrived costs nothing more."""
    sde = SDES["subvp"]
    mixture = DiffusedMixture(sde, *MIXTURE)
    x = torch.cat([normal(3, 2), 40 * normal(1, 2, seed=5)])
    together = eb.log_likelihood(mixture, sde, x)
    alone = [eb.log_likelihood(mixture, sde, row.unsqueeze(0)) for row in x]
    torch.testing.assert_close(together.value, torch.cat([found.value for found in alone]), rtol=1e-9, atol=1e-9)
    assert together.rows == sum(found.rows for found in alone)


@pytest.mark.parametrize("event", [(), (3,), (1, 2, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_any_event_and_dtype(event: tuple[int, ...], dtype: torch.dtype) -> None:
    x = normal(4, *event).to(dtype)
    for probes in (None, 3):
        found = eb.log_likelihood(lambda x, t: -x, SubVP(), x, probes=probes)
        assert found.value.dtype == dtype
        assert found.value.shape == (4,)
        assert found.end.shape == x.shape
    vp = eb.log_likelihood(lambda x, t: -x, VP(), x)  # of N(0, I)
    wanted = -0.5 * x.reshape(4, -1).square().sum(1) - 0.5 * x[0].numel() * math.log(2 * math.pi)
    torch.testing.assert_close(vp.value, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("probes", [None, 2])
def test_a_step_asks_for_five_divergences(probes: int | None) -> None:
    """The second of its six slopes steers alone; with all six or with that of another, values would not stay the same."""
    calls = {"tracked": 0, "all": 0}

    def score(x: Tensor, t: Tensor) -> Tensor:
        calls["tracked"] += x.requires_grad
        calls["all"] += 1
        return -x / (0.5 + t.unsqueeze(1))

    found = eb.log_likelihood(score, VP(), normal(1, 2), 1e-6, 1e-6, probes=probes)
    steps = (found.rows - 1) // 6
    assert steps > 5
    assert calls == {"tracked": 2 + 5 * steps, "all": 4 + 6 * steps}  # three of them look at the score
    t = torch.linspace(1e-5, 1, 200_001, dtype=F64)  # the divergence of a linear flow is that of its coefficient
    slope = -0.5 * VP().beta(t) * (1 - 1 / (0.5 + t))
    torch.testing.assert_close(found.divergence, 2 * torch.trapezoid(slope, t)[None], rtol=0, atol=1e-5)


@pytest.mark.parametrize("probes", [None, 3])
def test_the_drifts_own_divergence(probes: int | None) -> None:
    """In closed form of a linear SDE, by autograd of another; and alone where a score is the same everywhere."""
    sde, x = VP(), normal(3, 2)
    other = GenericSDE(sde.drift, sde.diffusion, 1.0)
    mixture = DiffusedMixture(sde, *MIXTURE)
    known, found = (eb.log_likelihood(mixture, s, x, 1e-8, 1e-8, probes=probes).value for s in (sde, other))
    torch.testing.assert_close(found, known, rtol=0, atol=1e-7)
    flat = eb.log_likelihood(lambda x, t: torch.ones_like(x), sde, x, probes=probes)
    wanted = 2 * (sde.log_mean(torch.tensor(1.0, dtype=F64)) - sde.log_mean(torch.tensor(1e-5, dtype=F64)))
    torch.testing.assert_close(flat.divergence, wanted.expand(3), rtol=0, atol=1e-4)  # nats, at the default tolerance


def test_compiled_values_are_the_eager_ones() -> None:
    """In float64 at a tolerance of 1e-8, whose errors are a thousandth of what is allowed here; other parameters are seen."""
    torch.manual_seed(0)
    network, sde, x = TimeMLP((2,), (8,)).double(), VP(), torch.cat([normal(5, 2), 30 * normal(1, 2)])
    value = lambda backend: eb.log_likelihood(network, sde, x, 1e-8, 1e-8, probes=2, backend=backend)
    before = value("eager")
    compiled = value("inductor")
    torch.testing.assert_close(compiled.value, before.value, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(compiled.std_error, before.std_error, rtol=1e-6, atol=1e-6)
    assert (
        before.rows < compiled.rows < 1.5 * before.rows
    )  # points that have ended are kept for a while: steps are compiled
    (known,) = {
        id(v.engine) for k, v in compiled_function._known.items() if k[0].startswith("divergence torch.Size([2]) 2")
    }
    with torch.no_grad():
        network.last.weight.mul_(2.0)
    torch.testing.assert_close(value("inductor").value, value("eager").value, rtol=1e-6, atol=1e-6)
    network.load_state_dict({k: 0.5 * v for k, v in network.state_dict().items()}, assign=True)
    torch.testing.assert_close(value("inductor").value, value("eager").value, rtol=1e-6, atol=1e-6)
    assert float((value("eager").value - before.value).abs().min()) > 1e-3
    assert known in {id(v.engine) for v in compiled_function._known.values()}  # compiled once


def test_calls_of_a_compiled_function_share_no_memory() -> None:
    """Results of one call stay as they are in the next one, in other threads, too; what is held is read where it is."""
    weight, points = normal(3, 3, seed=5), [normal(50, 3, seed=i) for i in range(4)]

    def fn(x: Tensor) -> Tensor:
        for _ in range(20):
            x = torch.tanh(x @ weight)
        return x

    (made,) = compiled_function.compiled_functions([Compiling(fn, [points[0]], [0], "tanh")], [fn])
    assert made.repeat is not None
    assert made.work == 2 * 20 * 150  # products and hyperbolic tangents
    wanted = [fn(x) for x in points]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: made.call(points[i % 4]), range(200)))
    for i, one in enumerate(found):
        torch.testing.assert_close(one, wanted[i % 4], rtol=1e-9, atol=1e-12)
    weight.mul_(0.5)
    torch.testing.assert_close(made.call(points[0].t().contiguous().t()), fn(points[0]), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-9, atol=1e-12)


@pytest.mark.long
def test_a_compiled_function_that_differs_in_a_row_is_made_anew() -> None:
    """The rows that are compared lie all over the batch: what was held at another time is found where it shows in a part."""
    held, x = {"late": 1.0}, torch.linspace(0, 1, 64, dtype=F64).unsqueeze(1)
    fn = lambda x: torch.where(x > 0.9, x * held["late"], x)
    of = [object()]  # nothing tells of the change
    for late in (1.0, 2.0):
        held["late"] = late
        (made,) = compiled_function.compiled_functions([Compiling(fn, [x], [0], "late")], of)
        torch.testing.assert_close(made.call(x), fn(x), rtol=0, atol=0)


def test_what_cannot_be_compiled_runs_eagerly() -> None:
    def score(x: Tensor, t: Tensor) -> Tensor:
        return -x if float(x.detach().sum()) < 1e9 else x

    x = normal(3, 2)
    with pytest.warns(SamplingWarning, match="the flow runs eagerly, slower: .*"):
        found = eb.log_likelihood(score, VP(), x, backend="inductor")
    torch.testing.assert_close(found.value, eb.log_likelihood(score, VP(), x).value, rtol=0, atol=1e-12)


def test_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of at most 6 numbers, so 3 points: the last one takes points of the one before again."""
    mixture, x = DiffusedMixture(VP(), *MIXTURE), normal(7, 2)
    values = lambda: eb.log_likelihood(mixture, VP(), x, probes=2)
    whole = values()
    monkeypatch.setattr(likelihood, "_NUMBERS", 6)
    parts = values()
    for name in ("value", "std_error", "end", "divergence"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=1e-9, atol=1e-9)
    assert parts.rows > whole.rows


def test_rows_that_have_ended_change_nothing_beside_others() -> None:
    """x' = c x for rows of different c, one of which ends in NaN half way: with the ended kept in the batch, and without."""
    rates, seen = torch.tensor([0.0, 1.0, -30.0, 5.0, 5.0], dtype=F64), []

    def fields(rows: Tensor) -> tuple[Field, Field]:
        def field(y: Tensor, t: Tensor) -> Tensor:
            seen.append(len(y))
            broken = (rows == 4) & (t > 0.5)
            return torch.where(broken, math.nan, rates[rows] * t).unsqueeze(1) * y

        return field, field

    start = torch.ones(5, 1, dtype=F64)
    kept = solve(fields, start, 0.1, 1.0, 1e-8, 1e-8, fewest=0.4)
    assert set(seen) == {5, 2, 1}  # two of five are 0.4 of them; after that each one that ends is left out
    alone = solve(fields, start, 0.1, 1.0, 1e-8, 1e-8)
    torch.testing.assert_close(kept.end, alone.end, rtol=0, atol=0)
    torch.testing.assert_close(kept.failed_at, alone.failed_at, rtol=0, atol=0)
    torch.testing.assert_close(kept.end[:4, 0], (rates[:4] * 0.495).exp(), rtol=1e-6, atol=1e-8)
    assert (kept.failed_at > 0).tolist() == [False, False, False, False, True]
    assert kept.rows > alone.rows


def test_bits_per_dimension() -> None:
    """A uniform density on [0, 1) has 8 bits for each of 256 levels."""
    value, zero = torch.zeros(2), torch.zeros(2)
    flat = eb.score.LogLikelihood(value, zero, torch.zeros(2, 5), zero, zero, 0, zero > 0)
    torch.testing.assert_close(flat.bits_per_dimension(1 / 256), torch.full((2,), 8.0))


def test_failures_are_told() -> None:
    def score(x: Tensor, t: Tensor) -> Tensor:
        return torch.where(((t > 0.5) & (x[:, 0] > 0)).unsqueeze(1), math.nan, -x)

    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=F64)
    with pytest.warns(SamplingWarning, match=r"1 of 2 likelihoods failed: .* not finite at t = 0\.5.*: row 0\)"):
        found = eb.log_likelihood(score, VP(), x)
    assert found.value.isnan().tolist() == found.std_error.isnan().tolist() == [True, False]
    assert float(found.failed_at[0]) == pytest.approx(0.5, abs=1e-6)
    assert bool(found.end.isfinite().all())


def test_modes_of_modules_are_kept() -> None:
    network = eb.score.TimeMLP((2,), (8,)).double().train()
    eb.log_likelihood(network, VP(), normal(3, 2), 1e-2, 1e-2)
    assert network.training
    assert all(p.grad is None for p in network.parameters())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: eb.log_likelihood("s", VP(), normal(2, 2)), "a score .* got str"),
        (lambda: eb.log_likelihood(lambda x, t: x, 3, normal(2, 2)), "an SDE, got int"),
        (
            lambda: eb.log_likelihood(lambda x, t: -x, VP(), normal(2, 2), log_prior=lambda x: x),
            r"log prior densities of shape \(2,\), got .*\(2, 2\)",
        ),
        (lambda: eb.log_likelihood(lambda x, t: x, VP(), normal(2, 2), rtol=0.0), "a finite rtol > 0, got 0.0"),
        (lambda: eb.log_likelihood(lambda x, t: x, VP(), normal(2, 2), t_min=0.0), r"t_min in \(0, 1\), got 0.0"),
        (lambda: eb.log_likelihood(lambda x, t: x, VP(), normal(2, 2), probes=0), "a whole probes >= 1, got 0"),
        (lambda: eb.log_likelihood(lambda x, t: x, VP(), normal(2, 2), backend="cuda"), "'inductor', got 'cuda'"),
        (
            lambda: eb.log_likelihood(lambda x, t: x, VP(), normal(2, 2), probes=1.5),
            "a whole probes >= 1, got 1.5",
        ),
        (
            lambda: eb.log_likelihood(lambda x, t: -x.detach(), VP(), normal(2, 2)),
            "a score that is differentiable in x, got one that changes in steps, or detached",
        ),
        (lambda: eb.log_likelihood(lambda x, t: x[:, :1], VP(), normal(2, 2)), r"of shape \(2, 2\) .* got \(2, 1\)"),
        (lambda: eb.log_likelihood(lambda x, t: x, VP(), torch.ones(2, 2).long()), "floating point points"),
        (lambda: eb.log_likelihood(lambda x, t: -x, VP(), torch.ones(2, 0)), r"floating point points .* got \(2, 0\)"),
    ],
)
def test_bad_input(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_order_of_dormand_and_princes_pair() -> None:
    """x' = x cos t from 1 is exp(sin t): the end is of order 5 (slope within 0.2), the estimated error of a step of order h^5."""
    field = lambda x, t: x * t.cos().unsqueeze(1)
    exact = math.exp(math.sin(3.0))
    errors, estimates, counts = [], [], (16, 32, 64)
    for n in counts:
        x, h = torch.ones(1, 1, dtype=F64), torch.full((1,), 3.0 / n, dtype=F64)
        for i in range(n):
            t = h * i
            tried = attempt(field, x, t, h, field(x, t))
            x = tried.end
            if i == 0:
                estimates.append(float(tried.error.abs().sum()))
        errors.append(abs(float(x) - exact))
    slope = lambda values: math.log(values[0] / values[-1]) / math.log(counts[-1] / counts[0])
    assert abs(slope(errors) - 5.0) < 0.2
    assert abs(slope(estimates) - 5.0) < 0.2
