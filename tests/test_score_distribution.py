"""A score model as a Pyro distribution: densities, gradients, draws, and as a prior under NUTS, against closed forms."""

from __future__ import annotations

import gc
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC as PyroMCMC
from pyro.infer import NUTS as PyroNUTS
from scipy import stats
from torch import Tensor, nn

import ebmppl as eb
from ebmppl.interop import score_distribution
from ebmppl.kernels.gradients import Gradient
from ebmppl.score import VP, NoisePrediction, TimeMLP
from tests.score_targets import MIXTURE, DiffusedMixture

F64 = torch.float64
SDE = VP(0.1, 10.0)
T_MIN = 1e-3
CPU = torch.device("cpu")
LIMIT = float(stats.norm.isf(1e-6 / 2 / 40))  # of at most 40 z-scores, a false alarm in a million


@pytest.fixture(autouse=True)
def _one_thread_and_a_seed() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        yield
    torch.set_num_threads(threads)


def at_end(mixture: Any) -> Callable[[Tensor], Tensor]:
    return lambda x: mixture.log_prob(x, x.new_ones(len(x)))


def prior(mixture: DiffusedMixture, event: tuple[int, ...] = (2,), **options: Any) -> eb.ScoreDistribution:
    return eb.ScoreDistribution(
        mixture, SDE, event, t_min=T_MIN, log_prior=at_end(mixture), like=mixture.weights, **options
    )


def test_the_density_and_its_gradient_are_the_mixtures(device: torch.device) -> None:
    mixture = DiffusedMixture(SDE, *MIXTURE).to(device)
    x = torch.randn(3, 4, 2, dtype=F64).to(device).requires_grad_()
    rows, t = x.reshape(12, 2), torch.full((12,), T_MIN, dtype=F64, device=device)
    found = prior(mixture, rtol=1e-5, atol=1e-5).log_prob(x)
    torch.testing.assert_close(found, mixture.log_prob(rows, t).reshape(3, 4), rtol=0, atol=1e-3)
    (grad,) = torch.autograd.grad(found.sum(), x, create_graph=True)
    torch.testing.assert_close(grad, mixture(rows, t).reshape(x.shape), rtol=1e-12, atol=1e-12)
    (twice,) = torch.autograd.grad(grad.sum(), x)
    (wanted,) = torch.autograd.grad(mixture(rows, t).sum(), x)
    torch.testing.assert_close(twice, wanted, rtol=1e-12, atol=1e-12)


class Counted(nn.Module):
    """The score of N(0, I), which VP leaves as it is; counts its calls and rows."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.rows = 0, 0

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls, self.rows = self.calls + 1, self.rows + len(x)
        return -x


def test_a_gradient_is_one_call_and_nothing_goes_through_the_flow(device: torch.device) -> None:
    score = Counted()
    x = torch.randn(5, 3).to(device).requires_grad_()
    found = eb.ScoreDistribution(score, VP(), (3,)).log_prob(x)
    solved = score.calls
    assert solved > 12
    found.sum().backward()
    assert score.calls == solved + 1
    assert x.grad is not None
    torch.testing.assert_close(x.grad, -x.detach())
    network = NoisePrediction(TimeMLP((3,), (8,)), VP()).to(device)
    eb.ScoreDistribution(network, VP(), (3,), rtol=1e-2, atol=1e-2).log_prob(x.detach()).sum()
    assert all(p.grad is None for p in network.parameters())
    assert network.training


@pytest.mark.parametrize("event", [(), (3,), (1, 2, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_shapes_and_dtypes(event: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    like = torch.zeros((), dtype=dtype, device=device)
    made = eb.ScoreDistribution(lambda x, t: -x, VP(), event, (4,), like=like)
    assert (made.batch_shape, made.event_shape) == ((4,), torch.Size(event))
    x = made.sample((5,))
    assert x.shape == (5, 4, *event)
    assert (x.dtype, x.device.type) == (dtype, device.type)
    wanted = dist.Normal(0.0, 1.0).expand(event).to_event(len(event)).log_prob(x.cpu())
    torch.testing.assert_close(made.log_prob(x).cpu(), wanted.to(dtype), rtol=1e-4, atol=1e-4)
    wide = made.expand((2, 4))
    assert repr(wide) == f"ScoreDistribution(VP, event_shape={event}, batch_shape=(2, 4), t_min=0.001)"
    assert wide.sample().shape == (2, 4, *event)
    assert wide.log_prob(x[0]).shape == (2, 4)
    assert made.sample((0,)).shape == (0, 4, *event)
    with pyro.plate("rows", 2, dim=-2), pyro.plate("columns", 4, dim=-1):
        assert pyro.sample("x", made).shape == (2, 4, *event)
    with pytest.raises(ValueError, match="within the support"):
        made.log_prob(x * math.nan)


def test_draws_take_the_networks_dtype_device_and_torchs_seed(device: torch.device) -> None:
    network = NoisePrediction(TimeMLP((2,), (8,)), VP()).to(device, F64)
    made = eb.ScoreDistribution(network, VP(), (2,), rtol=1e-2, atol=1e-2)
    torch.manual_seed(5)
    x = made.sample((3,))
    assert (x.dtype, x.device.type) == (F64, device.type)
    torch.manual_seed(5)
    assert torch.equal(made.sample((3,)), x)
    assert not torch.equal(made.sample((3,)), x)


def test_draws_are_the_mixtures(device: torch.device) -> None:
    wanted = DiffusedMixture(SDE, *MIXTURE).data()
    x = prior(DiffusedMixture(SDE, *MIXTURE).to(device)).sample((1000,)).cpu()
    z = (x.mean(0) - wanted.mean) / (x.var(0) / len(x)).sqrt()
    assert float(z.abs().max()) < LIMIT
    share = float(stats.norm.sf((0.5 - 2.0) / math.sqrt(0.4)) * 0.4 + stats.norm.sf((0.5 + 1.0) / 0.5) * 0.6)
    right = float((x[:, 0] > 0.5).double().mean())
    assert abs(right - share) < LIMIT * math.sqrt(share * (1 - share) / len(x))


def test_probes_are_the_same_for_every_point(device: torch.device) -> None:
    mixture = DiffusedMixture(SDE, *MIXTURE).to(device)
    made, x = prior(mixture, probes=2), torch.randn(4, 2, dtype=F64).to(device)
    torch.testing.assert_close(made.log_prob(x)[2:3], made.log_prob(x[2:3]), rtol=1e-9, atol=1e-9)
    assert not torch.allclose(made.log_prob(x), prior(mixture, probes=2, seed=1).log_prob(x), atol=1e-3)


# As a prior. A mixture at one number keeps the flow cheap.

WEIGHT, PLACE, WIDTH, Y, NOISE = 0.7, 1.5, 0.5, 0.4, 1.0


class TwoModes:
    """0.7 N(-1.5, 0.25) + 0.3 N(1.5, 0.25), diffused; times ``by``."""

    def __init__(self, by: float = 1.0) -> None:
        self.by = by

    def parts(self, t: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = SDE.marginal(t)
        return PLACE * mean.unsqueeze(1), (mean.square() * WIDTH**2 + std.square()).unsqueeze(1)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        place, variance = self.parts(t)
        odds = math.log((1 - WEIGHT) / WEIGHT) + 2 * place * x / variance
        return self.by * (place * (2 * torch.sigmoid(odds) - 1) - x) / variance

    def log_prob(self, x: Tensor, t: Tensor) -> Tensor:
        place, variance = (v.squeeze(1) for v in self.parts(t))
        left, right = (-0.5 * (x.squeeze(1) + side * place).square() / variance for side in (1, -1))
        both = torch.logaddexp(left + math.log(WEIGHT), right + math.log(1 - WEIGHT))
        return both - 0.5 * (2 * math.pi * variance).log()


def posterior() -> tuple[Tensor, Tensor, float]:
    """Weights and means of the two modes given y ~ N(x, 1), and their variance."""
    places, variance = torch.tensor([-PLACE, PLACE], dtype=F64), WIDTH**2
    total = variance + NOISE**2
    log = torch.tensor([WEIGHT, 1 - WEIGHT], dtype=F64).log() - 0.5 * (Y - places).square() / total
    return log.softmax(0), places + variance / total * (Y - places), variance * NOISE**2 / total


def program(score: Any, device: torch.device = CPU, **options: Any) -> Callable[[], None]:
    end, like = at_end(score), torch.zeros((), dtype=F64, device=device)

    def model() -> None:
        # made in every call, as models often do
        made = eb.ScoreDistribution(score, SDE, (1,), t_min=T_MIN, log_prior=end, like=like, **options)
        x = pyro.sample("x", made)
        pyro.sample("y", dist.Normal(x.squeeze(-1), NOISE), obs=torch.tensor(Y, dtype=F64, device=device))

    return model


def z_scores(x: Tensor) -> Tensor:
    """Of independent draws' mean, square and share at the right."""
    weights, means, variance = posterior()
    right = sum(
        float(w) * stats.norm.sf(0.0, float(m), math.sqrt(variance)) for w, m in zip(weights, means, strict=True)
    )
    wanted = torch.stack([(weights * means).sum(), (weights * (means**2 + variance)).sum(), torch.tensor(right)])
    found = torch.stack([x, x.square(), (x > 0).double()])
    return (found.mean(1) - wanted) / (found.var(1) / len(x)).sqrt()


def exact_draws(n: int) -> Tensor:
    weights, means, variance = posterior()
    return means[torch.multinomial(weights, n, replacement=True)] + math.sqrt(variance) * torch.randn(n, dtype=F64)


def after_nuts(score: Any, device: torch.device, chains: int = 800, draws: int = 3) -> Tensor:
    """Chains begin at exact draws of the posterior, and stay there if NUTS samples it."""
    energy = eb.from_pyro(program(score, device, rtol=1e-3, atol=1e-3))
    start = {"x": exact_draws(chains).unsqueeze(1).to(device)}
    run = eb.MCMC(eb.NUTS(energy, step_size=0.9), draws, 0, start, chains, seed=1, disable_progbar=True)
    run.run()
    x = run.get_samples(group_by_chain=True)["x"]
    assert x.device.type == device.type
    return x[:, -1, 0].cpu()


def test_the_posteriors_energy_is_the_closed_form(device: torch.device) -> None:
    score = TwoModes()
    energy = eb.from_pyro(program(score, device))
    x = torch.linspace(-2.0, 2.0, 5, dtype=F64, device=device).unsqueeze(1)
    t = torch.full((5,), T_MIN, dtype=F64, device=device)
    wanted = -score.log_prob(x, t) - dist.Normal(x.squeeze(1), NOISE).log_prob(x.new_tensor(Y))
    slope = -score(x, t) + (x - Y) / NOISE**2
    value, grad = energy.value_and_grad(x)
    torch.testing.assert_close(value, wanted, rtol=0, atol=1e-3)  # nats; the tolerance's error is under 2e-4
    torch.testing.assert_close(grad, slope, rtol=1e-10, atol=1e-10)
    gradient = Gradient(energy)
    gradient.prepare(x)
    assert gradient.untraced(x) is None  # a trace holds the call, not the steps of one solution
    torch.testing.assert_close(gradient(2 * x)[0], energy(2 * x))
    one = {"x": x[1].clone().requires_grad_()}
    potential = energy._potential_fn(one)  # Pyro's own
    torch.testing.assert_close(potential, wanted[1], rtol=0, atol=1e-3)
    torch.testing.assert_close(torch.autograd.grad(potential, one["x"])[0], slope[1])


def test_our_nuts_keeps_the_posterior(device: torch.device) -> None:
    assert float(z_scores(after_nuts(TwoModes(), device)).abs().max()) < LIMIT


def test_a_prior_of_another_score_moves_the_chains(device: torch.device) -> None:
    assert float(z_scores(after_nuts(TwoModes(by=1.6), device)).abs().max()) > LIMIT


@pytest.mark.long
def test_pyros_nuts_finds_the_posterior(monkeypatch: pytest.MonkeyPatch) -> None:
    """Modes so near that its one chain goes from one to the other often."""
    monkeypatch.setattr(sys.modules[__name__], "PLACE", 0.8)
    pyro.set_rng_seed(0)
    run = PyroMCMC(PyroNUTS(program(TwoModes(), rtol=1e-3, atol=1e-3)), 600, 100, disable_progbar=True)
    run.run()
    x = run.get_samples()["x"][:, 0]
    ess = float(run.diagnostics()["x"]["n_eff"].min())
    assert ess > 50
    assert float(z_scores(x).abs().max()) * math.sqrt(ess / len(x)) < LIMIT


def test_pyros_nuts_runs(device: torch.device) -> None:
    run = PyroMCMC(PyroNUTS(program(TwoModes(), device, rtol=1e-2, atol=1e-2)), 3, 2, disable_progbar=True)
    run.run()
    x = run.get_samples()["x"]
    assert (x.shape, x.device.type) == ((3, 1), device.type)


@pytest.mark.long
def test_a_compiled_run_equals_an_eager_one(compiled: None) -> None:
    draws = []
    for backend in ("eager", "inductor"):
        energy = eb.from_pyro(program(TwoModes(), rtol=1e-3, atol=1e-3))
        run = eb.MCMC(eb.NUTS(energy), 20, 20, num_chains=8, seed=0, backend=backend, disable_progbar=True)
        run.run()
        assert run.backend == backend
        draws.append(run.get_samples()["x"])
    torch.testing.assert_close(*draws)


def test_a_trace_does_not_outlive_its_distribution() -> None:
    made = eb.ScoreDistribution(lambda x, t: -x, VP(), (2,))
    key = made._flow.key
    again = eb.ScoreDistribution(made._flow.score, made._flow.sde, (2,))
    assert again._flow is made._flow
    del made, again
    gc.collect()
    with pytest.raises(RuntimeError, match="a ScoreDistribution that is still there"):
        score_distribution._Flow.at(key)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: eb.ScoreDistribution("s", VP(), (2,)), "a score .* got str"),
        (lambda: eb.ScoreDistribution(Counted(), 3, (2,)), "an SDE, got int"),
        (lambda: eb.ScoreDistribution(Counted(), VP(), (2,), t_min=1.0), r"t_min in \(0, 1\), got 1.0"),
        (lambda: eb.ScoreDistribution(Counted(), VP(), (2,), rtol=0.0), "rtol"),
        (lambda: eb.ScoreDistribution(Counted(), VP(), (2,), probes=0), "probes"),
        (lambda: eb.ScoreDistribution(Counted(), VP(), (2,), log_prior=2), "a callable log_prior, got int"),
        (lambda: eb.ScoreDistribution(lambda x, t: x[:, :1], VP(), (2,)).log_prob(torch.zeros(3, 2)), r"got \(3, 1\)"),
    ],
)
def test_bad_input(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
