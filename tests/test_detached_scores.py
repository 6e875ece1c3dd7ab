"""Losses with a derivative of the score: one that x doesn't reach by the graph is an error, never a silent 0."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ebmppl.energies import Energy, as_energy
from ebmppl.errors import SamplingWarning
from ebmppl.kernels import HMC, MALA, Langevin, ParallelTempering
from ebmppl.losses import (
    CD,
    MLE,
    PCD,
    DenoisingScoreMatching,
    ExplicitScoreMatching,
    Loss,
    ScoreMatching,
    ScoreNetwork,
    SlicedDiffusionScoreMatching,
    SlicedScoreMatching,
)
from ebmppl.score import VP, EnergyGradient, NoisePrediction, TimeMLP

SLICED: dict[str, Callable[[], Loss]] = {
    "exact": ScoreMatching,
    "probes": lambda: ScoreMatching(probes=2, seed=0),
    "slices": lambda: SlicedScoreMatching(2, seed=0),
    "slices, squared along": lambda: SlicedScoreMatching(reduced_variance=False, seed=0),
}


class Detached(nn.Module):
    """A smooth network that is never differentiated in x; its last layer may begin at 0."""

    def __init__(self, outputs: int, *, zero: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first, self.last = nn.Linear(2, 16), nn.Linear(16, outputs, bias=not zero)
        if zero:
            nn.init.zeros_(self.last.weight)

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        return self.last(torch.tanh(self.first(x.detach())))


class Stepwise(torch.autograd.Function):
    """The sine, with a backward pass that says 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.sin()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return torch.zeros_like(grad)


def points(rows: int = 20) -> Tensor:
    return torch.randn(rows, 2, generator=torch.Generator().manual_seed(1))


def energy_of(inner: nn.Module) -> Energy:
    return as_energy(lambda x: inner(x).squeeze(-1), (2,))


def by_a_detached_slope(x: Tensor) -> Tensor:
    """Its gradient is sin x, right; the gradient's derivative is 0, wrong."""
    return (x * x.detach().sin()).sum(-1)


SCORES: dict[str, Callable[[], Any]] = {
    "a detached network": lambda: ScoreNetwork(Detached(2), (2,)),
    "a network without a graph": lambda: ScoreNetwork(lambda x: x.detach().sin(), (2,)),
    "a derivative that says 0": lambda: ScoreNetwork(Stepwise.apply, (2,)),
    "an energy by a detached slope": lambda: as_energy(by_a_detached_slope, (2,)),
}


@pytest.mark.parametrize("loss", SLICED)
@pytest.mark.parametrize("score", SCORES)
def test_a_score_whose_derivative_is_cut_off_is_refused_at_the_first_call(loss: str, score: str) -> None:
    with pytest.raises(ValueError, match="a score that is differentiable in x, got one that .* detached"):
        SLICED[loss]()(SCORES[score]())(points())
    with torch.no_grad(), pytest.raises(ValueError, match="a score that is differentiable in x"):
        SLICED[loss]()(SCORES[score]())(points())


@pytest.mark.parametrize("loss", SLICED)
def test_an_energy_that_is_cut_off_is_refused(loss: str) -> None:
    with pytest.raises(ValueError, match="expected an energy that is differentiable in x, got one that .* detached"):
        SLICED[loss]()(energy_of(Detached(1)))(points())


ALL: dict[str, Callable[[], Loss]] = SLICED | {
    "denoising": lambda: DenoisingScoreMatching(0.1, seed=0),
    "explicit": lambda: ExplicitScoreMatching(lambda x: -x),
}


class Scaled(Energy):
    """A function times a trained factor."""

    def __init__(self, fn: Callable[[Tensor], Tensor]) -> None:
        super().__init__((2,))
        self.fn, self.factor = fn, nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * self.fn(x).sum(-1)


@pytest.mark.parametrize("loss", ALL)
@pytest.mark.parametrize("step", [lambda x: (4 * x).round().square(), torch.floor, torch.sign])
@pytest.mark.parametrize("rows", [1, 20])
def test_an_energy_that_changes_in_steps_is_refused(loss: str, step: Callable[[Tensor], Tensor], rows: int) -> None:
    """Autograd gives it a gradient, which is 0 everywhere."""
    for graph in (True, False):
        with (
            torch.set_grad_enabled(graph),
            pytest.raises(ValueError, match="expected an energy that is differentiable in x, got one that .* steps"),
        ):
            ALL[loss]()(Scaled(step))(points(rows))


@pytest.mark.parametrize("loss", ALL)
def test_steps_are_seen_once_a_constant_energy_has_moved(loss: str) -> None:
    energy = Scaled(torch.floor)
    nn.init.zeros_(energy.factor)
    bound = ALL[loss]()(energy)
    bound(points())
    nn.init.ones_(energy.factor)
    with pytest.raises(ValueError, match="expected an energy that is differentiable in x"):
        bound(points())


def test_data_at_minima_are_no_steps() -> None:
    """All gradients are 0 there, and energies differ."""
    wells = Scaled(lambda x: x.square() * (x - 1).square() * (x + 1))
    x = torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    assert not bool(wells.value_and_grad(x)[1].any())
    for loss in ALL.values():
        loss()(wells)(x)


def test_over_noise_levels_too() -> None:
    for model in (NoisePrediction(Detached(2), VP()), EnergyGradient(lambda x, t: by_a_detached_slope(x), VP())):
        with pytest.raises(ValueError, match="a score that is differentiable in x, got one that .* detached"):
            SlicedDiffusionScoreMatching(seed=0)(model)(points())


def test_it_is_seen_once_a_network_that_begins_at_zero_has_moved() -> None:
    """A score of 0 has the derivative 0; the next step tells."""
    inner = Detached(2, zero=True)
    for bound in (
        SlicedScoreMatching(seed=0)(ScoreNetwork(inner, (2,))),  # type: ignore[arg-type]
        SlicedDiffusionScoreMatching(seed=0)(NoisePrediction(inner, VP())),  # type: ignore[arg-type]
    ):
        nn.init.zeros_(inner.last.weight)
        bound(points())
        nn.init.normal_(inner.last.weight, generator=torch.Generator().manual_seed(2))
        with pytest.raises(ValueError, match="a score that is differentiable in x"):
            bound(points())


CONSTANT: dict[str, Callable[[], Any]] = {
    "a score": lambda: ScoreNetwork(lambda x: torch.ones_like(x), (2,)),
    "a trained score": lambda: ScoreNetwork(Shift(), (2,)),
    "a line": lambda: as_energy(lambda x: x.sum(-1), (2,)),
}


class Shift(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.tensor([1.0, -2.0]))

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        return self.shift.expand_as(x)


@pytest.mark.parametrize("loss", SLICED)
@pytest.mark.parametrize("score", CONSTANT)
def test_a_score_that_is_constant_has_the_derivative_0(loss: str, score: str) -> None:
    """It is told once that such a score is only made smaller."""
    bound = SLICED[loss]()(CONSTANT[score]())
    with pytest.warns(SamplingWarning, match="the score is the same around every point"):
        value = bound(points())
    assert float(bound.values["trace" if "trace" in bound.values else "change"]) == 0
    assert value.item() > 0
    bound(points())  # warns no more


def test_constant_scores_over_noise_levels_and_flat_energies() -> None:
    bound = SlicedDiffusionScoreMatching(seed=0)(NoisePrediction(Shift(), VP()))
    with pytest.warns(SamplingWarning, match="the score is the same around every point"):
        bound(points())
    bound(points())
    flat = as_energy(lambda x: torch.zeros_like(x[:, 0]), (2,))
    for loss in SLICED.values():
        assert float(loss()(flat)(points())) == 0


def test_what_is_random_is_not_taken_for_detached() -> None:
    """A constant score that drops out changes from call to call, not from point to point."""

    class Dropped(Shift):
        def forward(self, x: Tensor, *_: Any) -> Tensor:
            return nn.functional.dropout(self.shift.expand_as(x), 0.5, self.training)

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.manual_seed(0)
        warnings.simplefilter("ignore", SamplingWarning)
        SlicedScoreMatching(seed=0)(ScoreNetwork(Dropped(), (2,)))(points())  # type: ignore[arg-type]


def test_later_steps_call_the_score_as_often_as_before() -> None:
    calls: list[int] = []
    inner = TimeMLP((2,), (8,))
    inner.register_forward_hook(lambda *_: calls.append(1))
    network = ScoreNetwork(lambda x: inner(x, x.new_zeros(len(x))), (2,))
    for bound in (
        SlicedScoreMatching(seed=0)(network),  # type: ignore[arg-type]
        SlicedDiffusionScoreMatching(seed=0)(NoisePrediction(inner, VP())),  # type: ignore[arg-type]
    ):
        calls.clear()
        for _ in range(3):
            bound(points())
        assert len(calls) == 3  # the first one, whose derivative isn't 0, asks no more either


# Chains that gradients lead, inside a loss

MOVED: dict[str, Callable[[Any], Loss]] = {
    "cd": lambda kernel: CD(2, kernel=kernel, seed=0),
    "pcd": lambda kernel: PCD(2, kernel=kernel, num_chains=4, warmup=1, seed=0),
    "a run": lambda kernel: MLE(kernel=kernel, num_chains=4, warmup=1, draws=1, seed=0),
}
LED: dict[str, Any] = {
    "langevin": partial(Langevin, step_size=0.1),
    "hmc": partial(HMC, step_size=0.1, num_steps=2),
    "tempered": lambda energy: ParallelTempering(MALA(energy, step_size=0.1), 2),
}


@pytest.mark.parametrize("loss", MOVED)
@pytest.mark.parametrize("kernel", LED)
def test_chains_are_not_led_by_no_gradient(loss: str, kernel: str) -> None:
    """Without a look at it they would walk at random, or fail in torch's words."""
    make = MOVED[loss](LED[kernel])
    with pytest.raises(ValueError, match="expected an energy that is differentiable in x, got one that .* steps"):
        make(Scaled(torch.floor))(points())
    with pytest.raises(ValueError, match="expected an energy that is differentiable in its points"):
        make(Scaled(lambda x: x.detach().square()))(points())


@pytest.mark.parametrize("loss", MOVED)
def test_chains_of_energies_that_are_flat_or_known_by_gradients_of_their_own_move(loss: str) -> None:
    class Own(Scaled):
        """Its value is computed without a graph, its gradient is told."""

        def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self(x).detach(), self.factor.detach() * 2 * x

    make = MOVED[loss](LED["langevin"])
    make(Own(lambda x: x.detach().square()))(points())
    box = Scaled(lambda x: torch.where(x.abs() < 9, 0 * x, torch.inf))
    for rows in (points(), points(1)):
        make(box)(rows)
    flat = Scaled(torch.floor)
    nn.init.zeros_(flat.factor)
    bound = make(flat)
    bound(points())
    nn.init.ones_(flat.factor)
    with pytest.raises(ValueError, match="expected an energy that is differentiable in x"):
        bound(points())


def test_later_steps_of_chains_call_the_energy_as_often_as_before() -> None:
    calls: list[int] = []

    def counted(x: Tensor) -> Tensor:
        calls.append(1)
        return x.square()

    bound = CD(3, kernel=LED["langevin"], seed=0)(Scaled(counted))
    found = []
    for _ in range(3):
        calls.clear()
        bound(points())
        found.append(len(calls))
    assert found[1] == found[2] == 5  # of the gap, of three gradients, of the last step's value
