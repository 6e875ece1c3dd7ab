"""Pseudo-likelihood and ratio matching against enumeration: values, gradients, and estimates that land on the truth."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor
from torch.distributions import constraints

import ebmppl as eb
from ebmppl.energies import Energy, Gaussian, spin
from ebmppl.energies.discrete import indexed, levels_of
from ebmppl.losses import NCE, DenoisingScoreMatching, PseudoLikelihood, RatioMatching, neighbours
from ebmppl.models import BernoulliRBM, Ising, Potts, SoftmaxRBM
from tests.discrete import exact_draws, law, states_of
from tests.discrete_registry import DISCRETE, normal
from tests.exact_gradients import require_root_rate

F64 = torch.float64
ROUNDING = 1e-10  # float64, of sums over up to some hundred states
LOSSES = {"pseudo-likelihood": PseudoLikelihood, "ratio matching": RatioMatching}


def f64(value: object) -> Tensor:
    return torch.as_tensor(value, dtype=F64)


def ragged(s: dict[str, Tensor]) -> Tensor:
    """Sites of three, two and two levels."""
    a, b = s["a"].to(F64), s["b"].to(F64)
    return 0.3 * a.square() - 0.4 * a * b[:, 0] + 0.7 * b.prod(-1) - 0.2 * b.sum(-1)


MORE: dict[str, Callable[[], Energy]] = {
    "ragged sites": lambda: eb.as_energy(
        ragged, {"a": (), "b": (2,)}, {"a": constraints.integer_interval(-1, 1), "b": spin}
    ),
    "one-hot vectors": lambda: eb.as_energy(
        lambda x: -(x * normal(3, 4, seed=1)).sum((1, 2)) - (x[:, 0] * x[:, 1]).sum(-1), (3, 4), constraints.one_hot
    ),
    "both layers of an rbm": lambda: _rbm().joint,
    "softmax rbm of two": lambda: SoftmaxRBM(
        3, 2, 2, W=normal(3, 2, 2, seed=14), b=normal(3, 2, seed=15), c=normal(2, seed=16)
    ),
}
ALL = {**DISCRETE, **MORE}


def _rbm() -> BernoulliRBM:
    return BernoulliRBM(4, 3, W=normal(4, 3, seed=1), b=normal(4, seed=2), c=normal(3, seed=3))


def given(energy: Energy, x: Tensor) -> Tensor:
    """Of points x of ``states_of``: p(x_i at every level | others) ``(rows, coordinates, levels)``, with the present first."""
    target = indexed(energy)
    levels = levels_of(target)
    flat, columns = x.reshape(len(x), -1), []
    for i, (row, count) in enumerate(zip(levels.table.tolist(), levels.counts.tolist(), strict=True)):
        options = []
        for value in row[:count]:
            moved = flat.clone()
            moved[:, i] = value
            options.append(-target(moved.reshape(x.shape)))
        p = torch.softmax(torch.stack(options, -1), -1)
        at = (flat[:, i, None] == torch.tensor(row[:count])).long().argmax(-1, keepdim=True)
        columns.append(p.gather(-1, at).squeeze(-1))
    return torch.stack(columns, 1)  # of the present level


def by_hand(loss: str, energy: Energy, x: Tensor) -> Tensor:
    """From the definitions, by row."""
    p = given(energy, x)
    if loss == "pseudo-likelihood":
        return -p.log().sum(1)
    u = p / (1 - p)  # p(x) / p(x with the coordinate flipped)
    return (1 / (1 + u)).square().sum(1)


def binary(energy: Energy) -> bool:
    levels = levels_of(indexed(energy))
    return levels.most == 2 and not levels.ragged


def as_data(energy: Energy, x: Tensor) -> Tensor:
    """States as the energy's own points, float64: a callable would be asked for integers in float32."""
    target, x = indexed(energy), x.to(F64)
    return x if target is energy else energy.pack(target.constrain(x))


def cases() -> Iterator[Any]:
    for name, make in ALL.items():
        for loss in LOSSES:
            if loss == "pseudo-likelihood" or binary(make()):
                yield pytest.param(name, loss, id=f"{loss}, {name}")


CASES = list(cases())


def own_parameters(energy: Energy) -> list[Tensor]:
    return [p for p in energy.parameters() if p.requires_grad]


@pytest.mark.parametrize(("name", "loss"), CASES)
def test_values_and_gradients_by_hand(name: str, loss: str) -> None:
    energy = ALL[name]()
    x = exact_draws(energy, 30, 1)
    bound = LOSSES[loss]()(energy)
    found, wanted = bound(as_data(energy, x)), by_hand(loss, energy, x.to(F64)).mean()
    torch.testing.assert_close(found, wanted, rtol=0, atol=ROUNDING)
    parameters = own_parameters(energy)
    if parameters:
        both = (torch.autograd.grad(value, parameters, allow_unused=True) for value in (found, wanted))
        for a, b in zip(*both, strict=True):
            assert (a is None) == (b is None) or not bool((a if b is None else b).any())
            if a is not None and b is not None:
                torch.testing.assert_close(a, b, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize(("name", "loss"), CASES)
def test_without_structure_by_energies_it_is_the_same(name: str, loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    energy = ALL[name]()
    plain = eb.as_energy(
        lambda x: energy(energy.pack(x)) if isinstance(x, dict) else energy(x),
        dict(energy.sites) if energy.packed else energy.event_shape,
        energy.support,
    )
    x = as_data(energy, exact_draws(energy, 20, 2))
    bound = LOSSES[loss]()(plain)
    assert bound.neighbours.target.conditionals() is None
    wanted = LOSSES[loss]()(energy)(x)
    parameters = own_parameters(energy)
    expected = torch.autograd.grad(wanted, parameters, allow_unused=True, retain_graph=True) if parameters else ()
    for chunk in (neighbours.CHUNK, 1):  # then every coordinate is a chunk, computed again backwards
        monkeypatch.setattr(neighbours, "CHUNK", chunk)
        found = bound(x)
        torch.testing.assert_close(found, wanted, rtol=0, atol=ROUNDING)
        if not parameters:
            continue
        for a, b in zip(torch.autograd.grad(found, parameters, allow_unused=True), expected, strict=True):
            if a is not None and b is not None:
                torch.testing.assert_close(a, b, rtol=0, atol=ROUNDING)


@pytest.mark.data
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("chunk", [neighbours.CHUNK, 300], ids=["whole", "chunks"])
def test_the_reference_rbms(shared_data: Path, which: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "CHUNK", chunk)
    models = json.loads((shared_data / "exact" / "boltzmann.json").read_text())["models"]
    m = [m for m in models if m["kind"] == "rbm"][which]
    rbm = BernoulliRBM(m["nv"], m["nh"], W=f64(m["W"]), b=f64(m["b"]), c=f64(m["c"]))
    bound, x = PseudoLikelihood()(rbm), f64(m["data"])
    wanted = f64(m["data_pseudo_log_likelihood"])
    torch.testing.assert_close(-bound.of_rows(x), wanted, rtol=0, atol=ROUNDING)
    torch.testing.assert_close(bound(x.to(torch.int8)), -wanted.mean(), rtol=0, atol=ROUNDING)


# Estimators


@pytest.mark.parametrize(("name", "loss"), CASES)
def test_the_expected_gradient_is_zero_at_the_truth_alone(name: str, loss: str) -> None:
    energy = ALL[name]()
    parameters = own_parameters(energy)
    if not parameters:
        pytest.skip("nothing to learn")
    weights, bound, x = law(energy), LOSSES[loss]()(energy), states_of(energy)
    rows = bound.data(as_data(energy, x))

    def gradient() -> float:
        """The largest derivative of the expected loss, exact."""
        if loss == "pseudo-likelihood":
            value = weights @ bound.of_rows(rows)
        else:
            value = weights @ torch.stack(
                [torch.sigmoid(r).square().sum(1) for r in bound.neighbours.log_ratios(rows)]
            ).sum(0)
        found = torch.autograd.grad(value, parameters, allow_unused=True)
        return max(float(g.abs().max()) for g in found if g is not None)

    assert gradient() < ROUNDING
    with torch.no_grad():
        for p in parameters:
            p.add_(0.3 * torch.arange(1, p.numel() + 1).reshape(p.shape) / p.numel())
    assert gradient() > 1e-3


TRUTHS: dict[str, Callable[[], Energy]] = {
    "ising": lambda: Ising((2, 3), f64(0.35), normal(2, 3, seed=4, scale=0.3), periodic=False),
    "potts": lambda: Potts((2, 2), 3, f64(0.5), f64([0.3, 0.0, -0.2]), periodic=False),
}


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("ising", "pseudo-likelihood"),
        pytest.param("ising", "ratio matching", marks=pytest.mark.long),
        pytest.param("potts", "pseudo-likelihood", marks=pytest.mark.long),
    ],
)
def test_errors_shrink_as_the_root_of_the_data(name: str, loss: str) -> None:
    errors = {}
    for n in (250, 4000):
        found = []
        for seed in range(16):
            energy = TRUTHS[name]()
            before = torch.cat([p.detach().flatten().clone() for p in energy.parameters()])
            x, bound = exact_draws(energy, n, 100 * n + seed), LOSSES[loss]()(energy)
            optim = torch.optim.LBFGS(bound.parameters(), max_iter=12, line_search_fn="strong_wolfe")

            def closure() -> Tensor:
                optim.zero_grad()
                value = bound(x)
                value.backward()
                return value

            optim.step(closure)
            found.append(torch.cat([p.detach().flatten() for p in energy.parameters()]) - before)
        errors[n] = torch.stack(found)
    require_root_rate(errors)


# Subsets of coordinates


@pytest.mark.parametrize("name", ["ising, lattice", "ragged sites", "both layers of an rbm", "potts, three states"])
def test_a_subset_is_unbiased(name: str) -> None:
    name = name if name in ALL else next(n for n in ALL if n.startswith("potts"))
    energy = ALL[name]()
    x = as_data(energy, exact_draws(energy, 5, 3))
    whole = PseudoLikelihood()(energy)(x).item()
    bound = PseudoLikelihood(2, seed=1)(energy)
    found, chosen = [], []
    for _ in range(300):
        chosen.append(tuple(bound.which().tolist()))
        found.append(bound(x).detach())
    assert len(set(chosen)) > 1
    assert all(len(set(pair)) == 2 for pair in chosen)
    z = (torch.stack(found).mean() - whole) / (torch.stack(found).std() / math.sqrt(len(found)))
    assert abs(float(z)) < 4  # a false alarm in 16000
    present = given(energy, bound.neighbours.target.unpack(bound.data(x))["x"] if not energy.packed else x).log()
    wanted = -present[:, list(chosen[-1])].sum(1).mean() * bound.size / 2
    torch.testing.assert_close(found[-1], wanted.detach(), rtol=0, atol=ROUNDING)


def test_all_coordinates_are_no_subset() -> None:
    energy = TRUTHS["ising"]()
    assert PseudoLikelihood(6)(energy).which() is None
    assert RatioMatching(2, seed=0)(energy).which().shape == (2,)


# What doesn't fit

GAUSSIAN = Gaussian(torch.zeros(2), torch.eye(2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PseudoLikelihood()(GAUSSIAN), "expected a discrete energy for PseudoLikelihood, got one over Real"),
        (lambda: RatioMatching()(GAUSSIAN), "expected a discrete energy for RatioMatching"),
        (lambda: DenoisingScoreMatching(0.1)(Ising((3,))), "expected a continuous energy for DenoisingScoreMatching"),
        (lambda: RatioMatching()(Potts((3,))), "coordinates of two levels for RatioMatching.*PseudoLikelihood"),
        (lambda: RatioMatching()(MORE["ragged sites"]()), "coordinates of two levels"),
        (lambda: PseudoLikelihood(0), "whole num_coordinates >= 1"),
        (lambda: RatioMatching(1.5), "whole num_coordinates >= 1"),  # type: ignore[arg-type]
        (lambda: PseudoLikelihood(4)(Ising((3,))), "at most 3 coordinates, got num_coordinates = 4"),
        (lambda: PseudoLikelihood()(lambda x: x), "expected an Energy"),
        (lambda: PseudoLikelihood()(Ising((3,)))(torch.zeros(2, 3)), r"in \{-1, 1\}, got 0"),
        (lambda: PseudoLikelihood()(Ising((3,)))(torch.ones(2, 4)), r"shape \(rows, 3\)"),
        (lambda: PseudoLikelihood()(Ising((3,)))(torch.ones(0, 3)), "at least one row"),
        (lambda: PseudoLikelihood()(Ising((3,)))(torch.full((2, 3), math.nan)), "row 0"),
    ],
)
def test_bad_input(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_levels_without_a_list_are_refused() -> None:
    counts = eb.as_energy(lambda x: x.sum(-1), (2,), constraints.nonnegative_integer)
    with pytest.raises(ValueError, match="expected a finite discrete support"):
        PseudoLikelihood()(counts)
    assert NCE()(counts, torch.distributions.Poisson(torch.ones(2)))(torch.ones(3, 2)).isfinite()


def test_svi_learns_a_coupling() -> None:
    pyro.clear_param_store()
    energy = Ising((3, 4), coupling=0.0, dtype=F64)
    x = exact_draws(Ising((3, 4), coupling=0.25, dtype=F64), 2000, 1)
    svi = pyro.infer.SVI(energy, lambda *args: None, pyro.optim.Adam({"lr": 0.05}), loss=PseudoLikelihood(5, seed=0))
    first = svi.evaluate_loss(x)
    for _ in range(60):
        svi.step(x)
    assert svi.evaluate_loss(x) < first
    # 24 bonds x 2000 rows: an error of some 0.005, and of the subsets' noise as much
    assert abs(energy.coupling.item() - 0.25) < 0.04
    pyro.clear_param_store()


def test_an_empty_block_of_a_subset_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    energy = TRUTHS["ising"]()
    conditionals = energy.conditionals()
    asked: list[int] = []
    original = type(conditionals).logits

    def logits(self: Any, block: int, x: Tensor) -> Tensor:
        asked.append(block)
        return original(self, block, x)

    monkeypatch.setattr(type(conditionals), "logits", logits)
    bound = PseudoLikelihood(1, seed=0)(energy)
    bound(exact_draws(energy, 4, 1))
    assert len(asked) == 1
