"""Contrastive divergence and its persistent form against exact gradients, and what their chains hold."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ebmppl.energies import Energy, Quadratic, as_energy
from ebmppl.errors import NonFiniteLoss
from ebmppl.kernels import HMC, MALA, Gibbs, GibbsWithGradients, Langevin, ParallelTempering
from ebmppl.losses import CD, MLE, PCD
from ebmppl.losses.contrastive import BoundPCD
from ebmppl.losses.gap import EnergyGap
from ebmppl.models import BoltzmannMachine
from ebmppl.sampling.initial import FromData
from tests.exact_gradients import (
    DISCRETE,
    F64,
    FALSE_ALARM,
    data_of,
    enumerated,
    flat,
    gradients,
    hidden_draws,
    p_value,
    random,
    rbm,
    references,
)

small_steps = partial(Langevin, step_size=0.1)


def tempered(energy: Energy) -> ParallelTempering:
    return ParallelTempering(Gibbs(energy), 3)


def quadratic() -> Quadratic:
    A = random(3, 3, seed=1)
    return Quadratic(nn.Parameter(0.5 * A @ A.T + torch.eye(3, dtype=F64)), nn.Parameter(random(3, seed=2)))


def pcd(loss: PCD, energy: Energy) -> BoundPCD:
    bound = loss(energy)
    assert isinstance(bound, BoundPCD)
    return bound


# Gradients.


@pytest.mark.parametrize("name", DISCRETE)
def test_cd_of_many_draws_has_the_exact_gradient(name: str) -> None:
    energy = DISCRETE[name]()
    x = data_of(energy)
    bound = CD(25, kernel=Gibbs, seed=1)(energy)
    rows = torch.cat([x] * 10)
    assert p_value(gradients(bound, rows, 25), enumerated(energy, x)[1]) > FALSE_ALARM


def test_cd_1_is_biased() -> None:
    energy = rbm()
    x = data_of(energy)
    found = gradients(CD(1, kernel=Gibbs, seed=1)(energy), x.repeat(10, 1), 100)
    assert p_value(found, enumerated(energy, x)[1]) < 1e-9


@pytest.mark.parametrize("name", DISCRETE)
def test_pcd_has_the_exact_gradient(name: str) -> None:
    energy = DISCRETE[name]()
    x = data_of(energy)
    # 12 draws between two gradients leave next to no correlation
    bound = PCD(12, kernel=Gibbs, num_chains=150, warmup=15, seed=1)(energy)
    assert p_value(gradients(bound, x, 25), enumerated(energy, x)[1]) > FALSE_ALARM


@pytest.mark.parametrize("kernel", [GibbsWithGradients, tempered])
def test_pcd_by_other_kernels(kernel: Callable[[Energy], GibbsWithGradients]) -> None:
    energy = rbm()
    x = data_of(energy)
    bound = PCD(6, kernel=kernel, num_chains=150, buffer=600, warmup=30, reinit=0.0, seed=1)(energy)
    assert p_value(gradients(bound, x, 25), enumerated(energy, x)[1]) > FALSE_ALARM


@pytest.mark.parametrize("kernel", [partial(MALA, step_size=0.5), partial(HMC, step_size=0.4, num_steps=4)])
def test_pcd_of_a_continuous_energy(kernel: Callable[[Energy], MALA]) -> None:
    energy, x = quadratic(), random(9, 3, seed=3)
    (energy(x).mean() + energy.log_z).backward()
    exact = flat(energy)
    bound = PCD(12, kernel=kernel, num_chains=150, warmup=30, seed=1)(energy)
    assert p_value(gradients(bound, x, 25), exact) > FALSE_ALARM
    assert 0.3 < bound.diagnostics()["acceptance"] < 1


# Draws after which a sweep's slowest mode is below 2e-4: of eigenvalues 0.19, 0.62, 0.71, 0.86, 0.15, 0.17 (dbm); the
# Gaussian one is moved by HMC
DRAWS = {
    "rbm 0": 8,
    "rbm 1": 20,
    "ising_glass 0": 25,
    "ising_glass 1": 60,
    "potts 0": 8,
    "gbrbm 0": 20,
    "dbm 0": 8,
}


QUICK = ("rbm 0", "potts 0")  # the others take seconds


@pytest.mark.data
@pytest.mark.parametrize(
    "kind", [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.long) for kind in DRAWS]
)
@pytest.mark.parametrize("method", ["cd", "pcd"])
def test_chains_against_the_reference_gradients(shared_data: Path, kind: str, method: str) -> None:
    known = references(shared_data)[kind]
    energy = known.energy
    guide = hidden_draws(energy, 2) if isinstance(energy, BoltzmannMachine) else None
    rows = known.data.repeat(240 // len(known.data), 1)
    kernel, k = partial(HMC, step_size=0.7, num_steps=3) if kind == "gbrbm 0" else Gibbs, DRAWS[kind]
    loss = {
        "cd": CD(k, kernel=kernel, seed=1),
        "pcd": PCD(k, kernel=kernel, num_chains=240, warmup=k, seed=1),
    }[method]
    bound = loss(energy.joint if kind.startswith("rbm") else energy, guide)  # type: ignore[operator]
    found = gradients(bound, rows if guide is None else {"v": rows}, 25)  # type: ignore[arg-type]
    assert known.error(found) > FALSE_ALARM
    assert known.error(1.25 * found) < FALSE_ALARM  # a factor of the loss


# Hidden units.


def test_the_joint_at_the_mean_of_hidden_units_has_the_gradient_of_the_free_energy() -> None:
    model = rbm()
    free, both = CD(kernel=Gibbs)(model), CD(kernel=Gibbs)(model.joint)
    assert isinstance(free, EnergyGap)
    assert isinstance(both, EnergyGap)
    v, w = data_of(model), data_of(model, seed=9)
    h = torch.randint(2, (len(v), 3)).to(F64)
    sum(free.gap(v, w).values()).backward()
    wanted = flat(model)
    model.zero_grad()
    sum(both.gap(torch.cat([v, h], 1), torch.cat([w, h], 1)).values()).backward()
    torch.testing.assert_close(flat(model), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("hidden", ["mean", "sample"])
def test_the_joint_has_the_exact_gradient_and_the_mean_less_variance(hidden: str) -> None:
    model = rbm()
    x = data_of(model)
    bound = CD(25, kernel=Gibbs, seed=1, hidden=hidden)(model.joint)  # type: ignore[arg-type]
    found = gradients(bound, x.repeat(10, 1), 40)
    assert p_value(found, enumerated(model, x)[1]) > FALSE_ALARM
    by_site = CD(25, kernel=Gibbs, seed=1, hidden=hidden)(model.joint)  # type: ignore[arg-type]
    assert by_site({"v": x}).item() == CD(25, kernel=Gibbs, seed=1, hidden=hidden)(model.joint)(x).item()  # type: ignore[arg-type]


def test_a_guide_gives_hidden_sites() -> None:
    energy = as_energy(lambda s: 0.5 * (s["a"] - s["b"]) ** 2 + 0.5 * s["b"] ** 2, {"a": (), "b": ()}, batched=True)
    x = random(5, seed=1)
    bound = CD(kernel=small_steps, seed=1)(energy, lambda data: {"b": data["a"] / 2})
    whole = CD(kernel=small_steps, seed=1)(energy)({"a": x, "b": x / 2})
    assert bound({"a": x}).item() == whole.item()
    with pytest.raises(ValueError, match=r"a guide that gives the sites \['b'\], got \['c'\]"):
        CD(kernel=small_steps)(energy, lambda data: {"c": data["a"]})({"a": x})
    with pytest.raises(ValueError, match=r"a guide that gives the sites \['b'\], got NoneType"):
        CD(kernel=small_steps)(energy)({"a": x})


# Chains.


@pytest.mark.parametrize("kernel", [small_steps, partial(MALA, step_size=0.3), Gibbs, tempered])
def test_steps_of_some_draws_are_one_run(kernel: Callable[[Energy], Langevin]) -> None:
    energy: Energy = rbm() if kernel in (Gibbs, tempered) else quadratic()
    x = data_of(energy) if kernel in (Gibbs, tempered) else random(4, 3, seed=1)
    short, long = (pcd(PCD(k, kernel=kernel, num_chains=6, seed=1), energy) for k in (2, 6))
    for _ in range(3):
        short(x)
    long(x)
    assert int(short.chains.ticks) == int(long.chains.ticks) == 6
    for a, b in zip(short.held, long.held, strict=True):
        torch.testing.assert_close(a, b)


def test_replicas_of_tempering_go_on() -> None:
    bound = pcd(PCD(3, kernel=tempered, num_chains=6, seed=1), rbm())
    bound(data_of(rbm()))
    _, replicas, turn, *_ = bound.held
    assert not torch.equal(replicas[:, 0], replicas[:, 2])
    assert torch.equal(turn, torch.ones_like(turn))  # after three ticks


def test_chains_follow_parameters_that_change() -> None:
    energy = as_energy(Shift(), (1,))
    bound = pcd(PCD(30, kernel=partial(MALA, step_size=0.5), num_chains=200, seed=1), energy)
    x = torch.zeros(1, 1, dtype=F64)
    for centre in (0.0, 8.0):
        with torch.no_grad():
            energy.fn.centre.fill_(centre)  # type: ignore[union-attr]
        bound(x)
        assert abs(bound.points.mean().item() - centre) < 0.5


class Shift(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.centre = nn.Parameter(torch.zeros((), dtype=F64))

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * ((x - self.centre) ** 2).sum(-1)


def test_ages_and_recent_energies() -> None:
    bound = pcd(PCD(kernel=Gibbs, num_chains=5, buffer=9, recent=3, seed=1), rbm())
    x = data_of(rbm())
    for steps in range(1, 6):
        bound(x)
        assert int(bound.age.sum()) == 5 * steps
    told = bound.diagnostics()
    assert told["energies"].shape == (3, 9)
    assert torch.isfinite(told["energies"]).sum(1).tolist() == [5, 5, 5]
    last = torch.isfinite(told["energies"][-1])
    torch.testing.assert_close(told["energies"][-1][last], bound.energy(bound.points[last]).detach())
    assert torch.equal(told["age"], bound.age)
    values = bound.energy(x).detach(), told["energies"][-1][last]
    assert told["gap"] == pytest.approx(float(values[0].mean() - values[1].mean()))
    assert told["gap_error"] == pytest.approx(float((values[0].var() / 12 + values[1].var() / 5).sqrt()))


def test_chains_begin_again_at_the_rate_asked_for() -> None:
    start = FromData(torch.ones(1, 4, dtype=torch.int8))
    bound = pcd(PCD(kernel=Gibbs, num_chains=500, start=start, reinit=0.3, seed=1), rbm())
    for _ in range(4):
        bound(data_of(rbm()))
    young = int((bound.age == 1).sum())
    assert abs(young - 150) < 4 * (500 * 0.3 * 0.7) ** 0.5
    assert int(bound.age.max()) == 4


def test_warm_up_adapts_the_kernel_and_the_tuning_is_state() -> None:
    make = partial(PCD, kernel=partial(MALA, step_size=1e-3), num_chains=20, warmup=40, seed=1)
    bound = pcd(make(), quadratic())
    x = random(9, 3, seed=3)
    bound(x)
    assert float(bound.state_dict()["chains.tuning_step_size"]) > 0.05
    other = pcd(make(), quadratic())
    other.load_state_dict(bound.state_dict())
    assert bound(x).item() == other(x).item()
    assert torch.equal(bound.points, other.points)


def test_traced_gradients_are_resumed_too() -> None:
    """From 1000 ticks on the gradient is traced; a fresh loss that goes on from there does the same."""
    make = partial(PCD, 400, kernel=small_steps, num_chains=4, seed=1)
    bound, x = pcd(make(), as_energy(Shift(), (1,))), torch.zeros(2, 1, dtype=F64)
    for _ in range(3):
        bound(x)
    other = pcd(make(), as_energy(Shift(), (1,)))
    other.load_state_dict(bound.state_dict())
    assert bound(x).item() == other(x).item()
    assert torch.equal(bound.points, other.points)


# What goes wrong.


@pytest.mark.parametrize("loss", [CD(2, kernel=small_steps, seed=1), PCD(2, kernel=small_steps, num_chains=4, seed=1)])
def test_a_loss_that_is_not_finite_keeps_the_state(loss: CD | PCD) -> None:
    energy, x = as_energy(Shift(), (1,)), torch.zeros(2, 1, dtype=F64)
    bound = loss(energy)
    bound(x)
    with torch.no_grad():
        energy.fn.centre.fill_(torch.nan)  # type: ignore[union-attr]
    before = {name: value.clone() for name, value in bound.state_dict().items()}
    with pytest.raises(NonFiniteLoss, match="not finite at step 1: data is nan, model is nan") as raised:
        bound(x)
    for state in (bound.state_dict(), raised.value.state):
        assert state.keys() == before.keys()
        for name, value in state.items():
            torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)
    with torch.no_grad():
        energy.fn.centre.fill_(0.0)  # type: ignore[union-attr]
    assert torch.isfinite(bound(x))
    assert torch.equal(raised.value.state["step"], torch.tensor(1))  # a copy


def test_chains_of_another_shape_are_refused() -> None:
    state = PCD(kernel=Gibbs, num_chains=5)(rbm()).state_dict()
    with pytest.raises(
        ValueError, match=r"expected saved chains points of shape \(6, 4\), as this loss has, got \(5, 4\)"
    ):
        PCD(kernel=Gibbs, num_chains=6)(rbm()).load_state_dict(state)


def test_bad_input() -> None:
    real = as_energy(lambda x: 0.5 * (x**2).sum(-1), (2,))
    with pytest.raises(ValueError, match="finite discrete support"):
        CD(kernel=Gibbs)(real)
    with pytest.raises(ValueError, match="factory of kernels"):
        CD(kernel=Gibbs(rbm()))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one of Gibbs of another energy"):
        CD(kernel=lambda e: Gibbs(rbm()))(rbm())
    with pytest.raises(ValueError, match="one of int"):
        CD(kernel=lambda e: 3)(rbm())  # type: ignore[arg-type,return-value]
    with pytest.raises(ValueError, match="reinit in"):
        PCD(kernel=Gibbs, reinit=1.0)
    with pytest.raises(ValueError, match="buffer >= 100, got 3"):
        PCD(kernel=Gibbs, buffer=3)
    for points in (torch.zeros(100, 4), {"x": torch.zeros(100, 4)}):
        for make in (PCD, MLE):
            with pytest.raises(
                ValueError, match=r"start as a way to draw points, .*FromData\(points\), got a (Tensor|dict)"
            ):
                make(kernel=Gibbs, start=points)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="hidden 'mean' or 'sample'"):
        CD(kernel=Gibbs, hidden="guess")  # type: ignore[arg-type]
    bound = CD(kernel=Gibbs)(rbm())
    with pytest.raises(ValueError, match=r"got 2.0 at row 1, coordinate \(3,\)"):
        bound(torch.tensor([[0.0, 0, 0, 0], [0, 0, 0, 2]]))
    with pytest.raises(ValueError, match=r"nan at row 0, coordinate \(2,\)"):
        bound(torch.tensor([[0.0, 0, torch.nan, 0]]))
    with pytest.raises(ValueError, match=r"expected data of shape \(rows, 4\)"):
        bound(torch.zeros(2, 3))


@pytest.mark.parametrize("loss", [CD(kernel=Gibbs), PCD(kernel=Gibbs, num_chains=2)])
def test_an_rbms_layers_of_a_wrong_width_are_told(loss: CD | PCD) -> None:
    """Where v alone is given it is v that is asked for, in losses and in the energies themselves."""
    model = rbm()
    for x in (torch.zeros(2, 5), {"v": torch.zeros(2, 5)}):
        with pytest.raises(ValueError, match=r"expected data of shape \(rows, 4\), at least one row, got \(2, 5\)"):
            loss(model.joint)(x)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"expected site 'h' of shape \(\*, 3\), got \(2, 4\)"):
        loss(model.joint)({"v": torch.zeros(2, 4), "h": torch.zeros(2, 4)})
    with pytest.raises(ValueError, match=r"shape \(rows, 7\), at least one row, got list"):
        loss(model.joint)([0.0])  # type: ignore[arg-type]
    asked = {7: model.joint, 4: lambda v: model.joint_energy(v, v[:, :3]), 3: model.hidden_energy}
    for width, energy in asked.items():
        with pytest.raises(ValueError, match=rf"expected points of shape \(\*, {width}\), got \(2, 5\)"):
            energy(torch.zeros(2, 5, dtype=F64))
    with pytest.raises(ValueError, match=r"expected points of shape \(\*, 3\), got \(2, 4\)"):
        model.joint_energy(torch.zeros(2, 4, dtype=F64), torch.zeros(2, 4, dtype=F64))
