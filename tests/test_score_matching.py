"""Score matching against closed forms, one another, and the true parameters of exponential families."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import pytest
import torch
from pyro.infer import SVI
from torch import Tensor, nn
from torch.distributions import constraints

import ebmppl as eb
from ebmppl.energies import Energy, MLPEnergy, Quadratic, as_energy
from ebmppl.errors import NonFiniteLoss, SamplingWarning
from ebmppl.losses import (
    DenoisingScoreMatching,
    ExplicitScoreMatching,
    Loss,
    ScoreMatching,
    ScoreNetwork,
    SlicedScoreMatching,
)

F64 = torch.float64
# Monte Carlo errors apart: with some 40 numbers tested, 6e-5 each by the normal law, a false alarm in 400 fresh seeds
MOST = 4.0


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=F64, generator=gen(seed))


class Reference(NamedTuple):
    """E(x) = (x-m)' P (x-m) / 2 and what the losses of its data are."""

    P: Tensor
    m: Tensor
    x: Tensor
    values: dict[str, Any]

    @property
    def energy(self) -> Bowl:
        return Bowl(self.P, self.m)


class Bowl(Energy):
    """With m and P as parameters."""

    def __init__(self, P: Tensor, m: Tensor) -> None:
        super().__init__((len(m),))
        self.P, self.m = nn.Parameter(P.clone()), nn.Parameter(m.clone())

    def forward(self, x: Tensor) -> Tensor:
        d = x - self.m
        return 0.5 * ((d @ self.P) * d).sum(-1)


@pytest.fixture
def reference(shared_data: Path) -> Reference:
    values = json.loads((shared_data / "exact" / "losses.json").read_text())
    P, m, x = (torch.tensor(values[name], dtype=F64) for name in ("P", "m", "data"))
    return Reference(P, m, x, values)


def score_matching_of(P: Tensor, m: Tensor, x: Tensor) -> Tensor:
    """Closed form of s = -(P + P')/2 (x - m)."""
    half = (P + P.mT) / 2
    return 0.5 * ((x - m) @ half).square().sum(-1).mean() - half.trace()


def denoising_of(P: Tensor, m: Tensor, x: Tensor, sigma: float) -> Tensor:
    """Expectation over the noise of |s(x + sigma e) + e / sigma|^2 / 2."""
    half = (P + P.mT) / 2
    rest = torch.eye(len(m), dtype=F64) / sigma - sigma * half
    return 0.5 * ((x - m) @ half).square().sum(-1).mean() + 0.5 * rest.square().sum()


def gradients(value: Tensor, energy: nn.Module) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, list(energy.parameters()))])


def monte_carlo(loss: Loss, energy: Energy, x: Tensor, repeats: int) -> tuple[Tensor, Tensor]:
    """Mean of (value, gradient) over steps, and its standard error."""
    bound = loss(energy)
    draws = []
    for _ in range(repeats):
        value = bound(x)
        draws.append(torch.cat([value.detach().view(1), gradients(value, energy)]))
    found = torch.stack(draws)
    return found.mean(0), found.std(0) / math.sqrt(repeats)


@pytest.mark.data
def test_exact_score_matching_is_the_reference(reference: Reference) -> None:
    energy = reference.energy
    value = ScoreMatching()(energy)(reference.x)
    assert value.item() == pytest.approx(reference.values["hyvarinen"], abs=1e-8)
    closed = reference.energy
    wanted = gradients(score_matching_of(closed.P, closed.m, reference.x), closed)
    torch.testing.assert_close(gradients(value, energy), wanted, rtol=0, atol=1e-8)


NOISY: dict[str, Callable[[], Loss]] = {
    "probes": lambda: ScoreMatching(probes=2, seed=1),
    "sliced": lambda: SlicedScoreMatching(2, reduced_variance=False, seed=2),
    "sliced, reduced variance": lambda: SlicedScoreMatching(1, seed=3),
    "0.1": lambda: DenoisingScoreMatching(0.1, seed=4),
    "0.5": lambda: DenoisingScoreMatching(0.5, seed=5),
    "1.0": lambda: DenoisingScoreMatching(1.0, seed=6),
}


@pytest.mark.data
@pytest.mark.parametrize("name", NOISY)
def test_averages_over_noise_are_the_reference(name: str, reference: Reference) -> None:
    values = reference.values
    found, error = monte_carlo(NOISY[name](), reference.energy, reference.x, 300)
    closed = reference.energy
    form = (
        denoising_of(closed.P, closed.m, reference.x, float(name))
        if name in values["dsm"]
        else score_matching_of(closed.P, closed.m, reference.x)
    )
    assert form.item() == pytest.approx(values["dsm"].get(name, values["sliced"]), abs=1e-8)
    wanted = torch.cat([form.detach().view(1), gradients(form, closed)])
    assert bool(((found - wanted).abs() <= MOST * error + 1e-12).all()), (found - wanted) / error
    # and the test would see a loss a tenth off
    assert bool(((1.1 * found - wanted).abs() > MOST * error).any())


def test_variance_reduction_reduces_variance() -> None:
    energy, x = Bowl(torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=F64)), torch.ones(3, dtype=F64)), normal(20, 3)
    errors = [
        monte_carlo(SlicedScoreMatching(reduced_variance=reduced, seed=7), energy, x, 100)[1][0]
        for reduced in (True, False)
    ]
    assert errors[0] < 0.8 * errors[1]  # the closed form's ratio here is 0.5


def test_explicit_score_matching_differs_by_a_constant_of_the_data() -> None:
    """E|s - grad log p|^2 / 2 - score matching = E|grad log p|^2 / 2 (Hyvarinen 2005, theorem 1)."""
    x = normal(200000, 2)  # standard normal, so its score is -x
    differences = []
    for P in (torch.diag(torch.tensor([1.5, 0.5], dtype=F64)), torch.tensor([[0.8, 0.2], [0.2, 1.1]], dtype=F64)):
        energy = Bowl(P, torch.zeros(2, dtype=F64))
        explicit = ExplicitScoreMatching(lambda x: -x)(energy)(x)
        wanted = 0.5 * (x @ (torch.eye(2, dtype=F64) - P)).square().sum(-1).mean()
        assert explicit.item() == pytest.approx(wanted.item(), abs=1e-10)
        differences.append((explicit - ScoreMatching()(energy)(x)).item())
    # E x's = -tr P holds up to 4 errors of the mean of x'Px, of variance 2 |P|^2
    error = math.sqrt(2 * 3.0 / len(x))
    assert differences[0] == pytest.approx(0.5 * x.square().sum(-1).mean().item(), abs=MOST * error)
    assert differences[1] == pytest.approx(differences[0], abs=2 * MOST * error)


def test_score_matching_of_a_gaussian_is_the_inverse_sample_covariance() -> None:
    x = normal(50, 3, seed=3) @ normal(3, 3, seed=4) + normal(3, seed=5)
    A, b = nn.Parameter(torch.eye(3, dtype=F64)), nn.Parameter(torch.zeros(3, dtype=F64))
    bound = ScoreMatching()(Quadratic(A, b))
    optim = torch.optim.LBFGS(
        [A, b], lr=1, max_iter=500, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optim.zero_grad()
        value = bound(x)
        value.backward()
        return value

    optim.step(closure)
    mean = x.mean(0)
    covariance = (x - mean).mT @ (x - mean) / len(x)
    torch.testing.assert_close((A + A.mT).detach(), torch.linalg.inv(covariance), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(b.detach(), torch.linalg.solve(covariance, mean), rtol=1e-6, atol=1e-8)


def test_denoising_becomes_score_matching_as_sigma_goes_to_zero() -> None:
    """With noise on a symmetric grid of unit variance in place of random numbers gradients differ by order sigma^2."""
    energy = MLPEnergy(2, (8, 8), "tanh", generator=gen(), dtype=F64)
    x = normal(30, 2, seed=1)
    wanted = gradients(ScoreMatching()(energy)(x), but_offset(energy))
    line = torch.special.ndtri((torch.arange(20, dtype=F64) + 0.5) / 20)
    grid = torch.cartesian_prod(line, line) / line.square().mean().sqrt()
    apart = []
    for sigma in (0.2, 0.1, 0.05):
        bound: Any = DenoisingScoreMatching(sigma)(energy)
        bound.normals = lambda y: grid.repeat(len(x), 1)
        apart.append((gradients(bound(x.repeat_interleave(len(grid), 0)), but_offset(energy)) - wanted).norm().item())
    # halving sigma divides by 4, up to terms of order sigma^4: within a tenth
    assert apart[0] / apart[1] == pytest.approx(4, rel=0.1)
    assert apart[1] / apart[2] == pytest.approx(4, rel=0.1)
    assert apart[2] < 0.01 * wanted.norm().item()


def but_offset(energy: MLPEnergy) -> nn.Module:
    """Its parameters without the last bias, which scores don't see."""
    return nn.ParameterList(list(energy.parameters())[:-1])


@pytest.mark.parametrize("loss", [ScoreMatching(), SlicedScoreMatching(4, seed=8)], ids=["exact", "sliced"])
def test_errors_shrink_with_the_root_of_the_number_of_points(loss: Loss) -> None:
    """Of an exponential family, E = theta . (x^2 / 2, x^4 / 4) at theta = (-1, 1), whose estimate solves linear equations."""
    true = torch.tensor([-1.0, 1.0], dtype=F64)
    grid = torch.linspace(-4, 4, 4001, dtype=F64)
    weights = torch.exp(-(true[0] * grid**2 / 2 + true[1] * grid**4 / 4))
    cumulative = weights.cumsum(0) / weights.sum()
    sizes, errors = (200, 3200), []
    for n in sizes:
        squares = []
        for repeat in range(30):
            u = torch.rand(n, 1, dtype=F64, generator=gen(1000 * repeat + n))
            x = grid[
                torch.searchsorted(cumulative, u).clamp(max=4000)
            ]  # the grid's step of 0.002 is far below the errors
            squares.append((estimate(loss, x) - true).square())
        errors.append(torch.stack(squares).mean(0).sqrt())
    ratio = errors[0] / errors[1]
    # sqrt(16) = 4; a root mean square of 30 has relative error 1/sqrt(60), their ratio 0.18: 4 of these
    assert bool((ratio > 4 * (1 - 0.5)).all()), ratio
    assert bool((ratio < 4 * (1 + 1.2)).all()), ratio
    assert bool((errors[1] < 0.15).all()), errors


def estimate(loss: Loss, x: Tensor) -> Tensor:
    """The minimum of a loss that is quadratic in theta, by its gradients at three points and the same random numbers."""
    theta = nn.Parameter(torch.zeros(2, dtype=F64))
    bound = loss(as_energy(Quartic(theta), (1,))).eval()

    def gradient(at: Tensor) -> Tensor:
        with torch.no_grad():
            theta.copy_(at)
        (found,) = torch.autograd.grad(bound(x), theta)
        return found

    zero = gradient(torch.zeros(2, dtype=F64))
    hessian = torch.stack([gradient(row) - zero for row in torch.eye(2, dtype=F64)], 1)
    return torch.linalg.solve(hessian, -zero)


class Quartic(nn.Module):
    def __init__(self, theta: nn.Parameter) -> None:
        super().__init__()
        self.theta = theta

    def forward(self, x: Tensor) -> Tensor:
        return (self.theta[0] * x**2 / 2 + self.theta[1] * x**4 / 4).sum(-1)


def test_a_score_network_and_the_energy_it_belongs_to_agree() -> None:
    P, m, x = torch.tensor([[1.5, 0.3], [0.3, 0.7]], dtype=F64), normal(2), normal(12, 2, seed=1)
    energy = Bowl(P, m)
    network = ScoreNetwork(lambda x: -(x - m) @ P, (2,))
    losses = [
        lambda f=f: f() for f in (ScoreMatching, *(NOISY[n] for n in NOISY), lambda: ExplicitScoreMatching(torch.neg))
    ]
    for make in losses:
        assert make()(network)(x).item() == pytest.approx(make()(energy)(x).item(), abs=1e-10)


def test_closed_forms_and_autograd_agree() -> None:
    energy = MLPEnergy(3, (8, 6), confine=0.4, generator=gen(), dtype=F64)
    plain, x = as_energy(energy.forward, (3,)), normal(9, 3)
    for make in (*NOISY.values(), ScoreMatching):
        one, other = make()(energy)(x), make()(plain)(x)
        assert one.item() == pytest.approx(other.item(), abs=1e-10)
        some = but_offset(energy)
        torch.testing.assert_close(gradients(one, some), gradients(other, some), rtol=1e-9, atol=1e-10)


def test_a_constrained_energy_is_matched_in_its_unconstrained_space() -> None:
    """Of a Gamma(a, 1), z = log x: score a - e^z, whose derivative is -e^z."""
    a = torch.tensor(2.5, dtype=F64)
    energy = as_energy(lambda x: x - (a - 1) * torch.log(x), (), constraints.positive)
    x = torch.tensor([0.3, 1.2, 4.0], dtype=F64)
    wanted = (0.5 * (a - x).square() - x).mean()
    assert ScoreMatching()(energy)(x).item() == pytest.approx(wanted.item(), abs=1e-12)
    explicit = ExplicitScoreMatching(lambda x: torch.zeros_like(x))(energy)(x)  # in the data's own coordinates
    assert explicit.item() == pytest.approx((0.5 * ((a - 1) / x - 1).square()).mean().item(), abs=1e-12)


def test_named_sites() -> None:
    energy = as_energy(lambda s: 0.5 * s["a"] ** 2 + 0.5 * 3 * s["b"].square().sum(-1), {"a": (), "b": (2,)})
    x = {"a": normal(7), "b": normal(7, 2, seed=1)}
    wanted = 0.5 * (x["a"].square() + 9 * x["b"].square().sum(-1)).mean() - 7
    assert ScoreMatching()(energy)(x).item() == pytest.approx(wanted.item(), abs=1e-12)


def test_images() -> None:
    x = normal(5, 1, 2, 3)
    energy = as_energy(lambda x: 0.5 * x.square().sum((-3, -2, -1)), (1, 2, 3))
    assert ScoreMatching()(energy)(x).item() == pytest.approx(0.5 * x.square().sum().item() / 5 - 6, abs=1e-12)


def test_numbers_are_a_function_of_seed_and_step() -> None:
    energy, x = Bowl(torch.eye(2, dtype=F64), torch.zeros(2, dtype=F64)), normal(9, 2)

    def found(seed: int, steps: int = 3) -> list[float]:
        bound = DenoisingScoreMatching(0.5, seed=seed)(energy)
        return [bound(x).item() for _ in range(steps)]

    assert found(1) == found(1)
    assert len({*found(1), *found(2), *found(3)}) == 9
    assert DenoisingScoreMatching(0.5)(energy)(x).item() != DenoisingScoreMatching(0.5)(energy)(x).item()


def test_svi_trains() -> None:
    pyro.clear_param_store()
    x = 0.5 * normal(500, 2) + 1.0
    theta = nn.Parameter(torch.zeros(2, dtype=F64))
    energy = as_energy(Shifted(theta), (2,))
    svi = SVI(energy, lambda x: None, pyro.optim.Adam({"lr": 0.05}), loss=DenoisingScoreMatching(0.1, seed=0))
    for _ in range(200):
        svi.step(x)
    first = svi.evaluate_loss(x)
    assert svi.evaluate_loss(x) == first
    # the minimum of |theta - x - noise / (4 sigma)|^2 ... is the mean, up to noise e / (4 sigma) over 500 points
    torch.testing.assert_close(theta.detach(), x.mean(0), rtol=0, atol=0.25)
    assert theta.detach().norm() > 1


class Shifted(nn.Module):
    def __init__(self, theta: nn.Parameter) -> None:
        super().__init__()
        self.theta = theta

    def forward(self, x: Tensor) -> Tensor:
        return 2 * (x - self.theta).square().sum(-1)


@pytest.mark.parametrize("name", NOISY)
def test_compiled_modules_have_second_derivatives(dynamo: None, name: str) -> None:
    """AOTAutograd gives none, so they run uncompiled where these are needed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1), nn.Flatten(0)).double()
    compiled = torch.compile(module, backend="aot_eager")
    x = normal(6, 2)
    plain, value = NOISY[name]()(as_energy(module, (2,)))(x), NOISY[name]()(as_energy(compiled, (2,)))(x)
    assert value.item() == plain.item()
    some = nn.ParameterList(list(module.parameters())[:-1])
    assert torch.equal(gradients(value, some), gradients(plain, some))


# Bad input


def smooth() -> Energy:
    return as_energy(lambda x: 0.5 * x.square().sum(-1), (2,))


def svi_of(energy: Energy) -> SVI:
    return SVI(energy, lambda x: None, pyro.optim.Adam({}), ScoreMatching())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ScoreMatching("exakt"), "expected trace 'exact' or 'probes', got exakt"),  # type: ignore[arg-type]
        (lambda: ScoreMatching("exact", probes=3), "no probes for the exact trace"),
        (lambda: ScoreMatching(probes=0), "whole probes >= 1, got 0"),
        (lambda: SlicedScoreMatching(0), "whole num_slices >= 1, got 0"),
        (lambda: DenoisingScoreMatching(0.0), "a finite sigma > 0, got 0.0"),
        (lambda: DenoisingScoreMatching("a"), "a finite sigma > 0, got 'a'"),  # type: ignore[arg-type]
        (lambda: DenoisingScoreMatching(math.nan), "a finite sigma > 0, got nan"),
        (lambda: ExplicitScoreMatching(3), "score as a callable, got int"),  # type: ignore[arg-type]
        (lambda: ScoreMatching()(eb.models.Ising((3, 3))), "expected a continuous energy for ScoreMatching"),
        (lambda: ScoreMatching()(nn.Linear(2, 2)), "expected an Energy or a ScoreNetwork, got Linear; wrap"),
        (lambda: ScoreMatching()(3), "expected an Energy, got int"),
        (
            lambda: ExplicitScoreMatching(torch.neg)(as_energy(lambda x: x.sum(-1), (3,), constraints.simplex)),
            "coordinates that don't depend on one another",
        ),
        (lambda: ExplicitScoreMatching(lambda x: x[:, :1])(smooth())(torch.ones(3, 2)), r"shape \(3, 2\), got \(3, 1\)"),
        (lambda: ScoreNetwork(3, (2,)), "expected a callable score, got int"),  # type: ignore[arg-type]
        (lambda: ScoreMatching()(ScoreNetwork(lambda x: x[:, 0], (2,)))(torch.ones(3, 2)), r"scores of shape \(3, 2\)"),
        (lambda: ScoreMatching()(smooth())(torch.ones(3, 3)), r"expected data of shape \(rows, 2\).*got \(3, 3\)"),
        (lambda: ScoreMatching()(smooth())(torch.ones(0, 2)), "at least one row"),
        (lambda: ScoreMatching()(smooth())(torch.ones(3, 2).long()), "expected floating point data, got x of torch.int64"),
        (lambda: ScoreMatching()(smooth())(torch.tensor([[0.0, 1.0], [math.nan, 0.0]])), r"nan at row 1, coordinate \(0,\)"),
        (
            lambda: ScoreMatching()(ScoreNetwork(torch.neg, (2,)))(torch.tensor([[0.0, math.inf]])),
            r"inf at row 0, coordinate \(1,\)",
        ),
        (
            lambda: ScoreMatching()(as_energy(torch.exp, (), constraints.positive))(torch.tensor([1.0, -1.0])),
            r"in GreaterThan\(lower_bound=0.0\), got -1.0 at row 1",
        ),
        (lambda: svi_of(smooth()).step(torch.ones(3, 2)), "something to train"),
    ],
)  # fmt: skip
def test_bad_input(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("loss", [ScoreMatching(), ScoreMatching("probes", seed=0), SlicedScoreMatching(seed=0)])
def test_an_energy_without_second_derivatives_is_told_of_once(loss: Loss) -> None:
    torch.manual_seed(0)
    bound = loss(as_energy(nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1), nn.Flatten(0)), (2,)))
    with pytest.warns(SamplingWarning, match="networks of ReLUs have no second derivatives"):
        bound(torch.ones(3, 2))
    bound(torch.ones(3, 2))


@pytest.mark.parametrize("loss", [ScoreMatching(), SlicedScoreMatching(seed=0), DenoisingScoreMatching(0.3, seed=0)])
def test_inference_mode_gives_the_same_values(loss: Loss) -> None:
    bound, x = loss(MLPEnergy(2, (8,), generator=gen())), torch.randn(5, 2, generator=gen(1))
    bound.eval()
    with torch.inference_mode():
        values = bound(x).item(), bound(x.clone()).item()
    assert values == (bound(x).item(),) * 2


@pytest.mark.parametrize("loss", [ScoreMatching(), SlicedScoreMatching(seed=0), DenoisingScoreMatching(0.3, seed=0)])
def test_closed_forms_stay_at_their_dtype_under_autocast(loss: Loss) -> None:
    energy, x = MLPEnergy(2, (8,), generator=gen()), torch.randn(5, 2, generator=gen(1))
    bound, found = loss(energy).eval(), []
    for on in (False, True):
        energy.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=on):
            value = bound(x)
            value.backward()
        found.append(torch.cat([value.detach()[None], *(p.grad.flatten() for p in but_offset(energy).parameters())]))
    assert torch.equal(*found)


def test_a_bound_loss_without_parameters_evaluates() -> None:
    assert ScoreMatching()(smooth())(torch.ones(3, 2)).item() == pytest.approx(-1.0)
    assert svi_of(smooth()).evaluate_loss(torch.ones(3, 2)) == pytest.approx(-1.0)


def test_a_loss_that_is_not_finite_is_never_replaced() -> None:
    energy = as_energy(lambda x: torch.log(x).sum(-1), (2,))
    with pytest.raises(NonFiniteLoss, match="not finite at step 0"):
        ScoreMatching()(energy)(torch.zeros(3, 2))
