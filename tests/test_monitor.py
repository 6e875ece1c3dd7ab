"""The mixing monitor: its numbers against ArviZ, stuck chains found and healthy ones left alone, and what actions do."""

from __future__ import annotations

import math
import warnings
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy.signal import lfilter
from scipy.stats import chi2
from torch import Tensor

import ebmppl as eb
from ebmppl.energies import MLPEnergy
from ebmppl.errors import EnergyError, NonFiniteLoss, SamplingWarning
from ebmppl.interop.arviz import import_arviz
from ebmppl.training import Fit, Health, Monitor, RaiseK, Reinitialise, RollBack, Warn
from ebmppl.training.mixing import effective, judged, r_hat


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


BITS = (torch.rand((40, 6), generator=generator(1)) < 0.3).float()
REALS = torch.randn((40, 2), generator=generator(2))
STILL = partial(torch.optim.SGD, lr=1e-12)


def rbm() -> eb.models.BernoulliRBM:
    return eb.models.BernoulliRBM(6, 3, W=torch.randn((6, 3), generator=generator(3)))


def quiet(loss: Any, energy: Any, data: Tensor, monitor: Monitor, **settings: Any) -> Fit:
    defaults: dict[str, Any] = {"progress": False, "seed": 0, "batch_size": 40, "optimizer": STILL}
    return eb.fit(loss, energy, data, monitor=monitor, **(defaults | settings))


def pcd(**settings: Any) -> eb.losses.PCD:
    return eb.losses.PCD(**{"kernel": eb.Gibbs, "num_chains": 50, "seed": 5} | settings)


def langevin(step_size: float, **settings: Any) -> eb.losses.PCD:
    return pcd(kernel=partial(eb.Langevin, step_size=step_size), **settings)


def mlp() -> MLPEnergy:
    return MLPEnergy(2, (8,), confine=1.0, generator=generator(4))


def ferromagnet(coupling: float = 2.0) -> eb.models.Ising:
    return eb.models.Ising(coupling=coupling * (torch.ones(8, 8) - torch.eye(8)))


def checks(run: Fit) -> list[Health]:
    return [record.health for record in run if record.health is not None]


def names(health: Health) -> set[str]:
    return {problem.name for problem in health.problems}


# Its numbers.


@pytest.mark.parametrize(("chains", "draws", "r"), [(4, 100, 0.0), (20, 51, 0.7), (50, 100, 0.95), (2, 30, -0.4)])
def test_numbers_are_those_of_arviz(chains: int, draws: int, r: float) -> None:
    az = import_arviz()
    noise = np.random.default_rng(0).normal(size=(chains, draws + 50))
    x = lfilter([1.0], [1.0, -r], noise, axis=1)[:, 50:]
    for values in (x, x + 3 * np.arange(chains)[:, None]):
        assert r_hat(values) == pytest.approx(float(az.rhat(values, method="split")), rel=1e-9)
        assert effective(values) == pytest.approx(float(az.ess(values, method="mean")), rel=1e-6)


def test_chains_that_moved_at_different_steps() -> None:
    table = np.random.default_rng(0).normal(size=(100, 9)) + 50 * np.linspace(0, 1, 100)[:, None]
    full = judged(table)
    assert full is not None
    np.testing.assert_allclose(full, (table - table.mean(1, keepdims=True)).T)
    holes = np.where(np.random.default_rng(1).random((100, 9)) < 0.5, np.inf, table)
    holes[:, 0] = np.inf
    some = judged(holes)
    assert some is not None
    assert np.isfinite(some).all()
    assert 40 < some.shape[1] < 60
    assert judged(table[:19]) is None
    assert judged(np.ones((50, 4))) is None
    assert judged(np.full((50, 4), np.inf)) is None
    assert judged(np.zeros((0, 4))) is None


def test_chains_that_stand_still_have_an_infinite_r_hat() -> None:
    assert r_hat(np.repeat([[0.0], [1.0]], 30, axis=1)) == math.inf


# What it finds.


def test_langevin_chains_with_tiny_steps_are_stuck() -> None:
    run = quiet(langevin(1e-9, num_chains=10), mlp(), REALS, Monitor([], every=40), steps=40)
    (health,) = checks(run)
    assert health.r_hat > 10
    assert names(health) == {"r_hat", "ess"}
    assert "more draws a step (k)" in str(health)
    assert health.acceptance == 1.0
    assert health.age == 40.0


def test_a_frozen_ferromagnet_is_stuck() -> None:
    monitor = Monitor([], every=30, statistics={"m": lambda x: x.double().mean(-1)})
    found = checks(quiet(pcd(recent=30), ferromagnet(), ferromagnet_data(), monitor, steps=90))
    assert all(health.frozen == 1.0 for health in found[1:])
    assert "frozen" in names(found[-1])
    assert found[-1].r_hat > 10  # by the magnetisation; the energies are all the same
    found = checks(quiet(pcd(recent=30), ferromagnet(), ferromagnet_data(), Monitor([], every=30), steps=90))
    assert math.isnan(found[-1].r_hat)
    assert names(found[-1]) == {"frozen"}
    found = checks(quiet(pcd(), ferromagnet(0.05), ferromagnet_data(), monitor, steps=90))
    assert found[-1].frozen == 0.0


def ferromagnet_data() -> Tensor:
    return torch.ones((40, 8), dtype=torch.int8) * torch.tensor([1, -1], dtype=torch.int8).repeat(20)[:, None]


def test_healthy_chains_raise_no_alarm() -> None:
    # tau is 1 to 3 steps here, n up to 100: the limit of 1.2 is as good as never passed, see ``Monitor``
    for loss, energy, data in [(pcd(reinit=0.05), rbm(), BITS), (langevin(0.5), mlp(), REALS)]:
        found = checks(quiet(loss, energy, data, Monitor([], every=20, gap=None), steps=160))
        assert [names(health) for health in found] == [set()] * 8
        assert max(health.r_hat for health in found[4:]) < 1.1


def test_the_stated_false_alarm() -> None:
    for chains in (20, 50, 1000):
        degrees = 2 * chains - 1
        assert chi2.sf((1.2**2 - 1) / 0.2 * degrees, degrees) < 1e-4


def test_alarms_of_stationary_chains_at_the_stated_autocorrelation() -> None:
    # AR(1) of tau = (1 + r) / (1 - r) = 10 = n / 10, 20 chains: fewer than one in 10,000
    r, n = 9 / 11, 100
    noise = np.random.default_rng(0).normal(size=(2000, 20, n + 100))
    x = lfilter([1.0], [1.0, -r], noise, axis=-1)[..., 100:]
    found = [judged(chains.T) for chains in x]
    assert max(r_hat(chains) for chains in found if chains is not None) < 1.2


def test_a_replay_buffer_is_judged_by_the_chains_that_moved() -> None:
    run = quiet(langevin(0.5, num_chains=25, buffer=50), mlp(), REALS, Monitor([], gap=None), steps=100)
    health = checks(run)[-1]
    assert health.good
    assert health.r_hat < 1.15
    assert health.age == 50.0  # half of them moved at each step


def test_chains_of_a_large_replay_buffer_are_judged() -> None:
    """Each moves at one step in ten: 20 moves of it take 200 steps."""
    settings: dict[str, Any] = {"num_chains": 20, "buffer": 200}
    found = checks(quiet(langevin(1e-9, **settings), mlp(), REALS, Monitor([], every=90), steps=270))
    assert [health.known for health in found] == [False, False, True]
    assert not any(health.good for health in found)
    assert "r_hat" in names(found[-1])
    # the mean of the 20 that moved, which is taken off, has a twentieth of the variance between chains
    assert found[-1].r_hat == pytest.approx(math.sqrt(1 + 20), rel=0.25)
    assert "not known" in str(found[0])
    healthy = Monitor([], every=270, gap=None)
    assert checks(quiet(langevin(0.5, **settings), mlp(), REALS, healthy, steps=270))[0].good


def test_a_state_is_not_kept_as_good_before_mixing_is_known() -> None:
    run = quiet(langevin(0.5), mlp(), REALS, Monitor([], every=10, gap=None), steps=30)
    assert [(record.health.known, run.candidate is not None) for record in run if record.health] == [
        (False, False),
        (True, True),
        (True, True),
    ]
    run = quiet(langevin(0.5), mlp(), REALS, Monitor([], every=10, r_hat=None, ess=None, gap=None), steps=10)
    assert checks(run)[0].good  # nobody asks


def test_a_loss_that_keeps_too_few_steps_is_refused() -> None:
    for settings, least in [
        ({"recent": 19}, 20),
        ({"num_chains": 20, "buffer": 200, "recent": 100}, 250),
        ({"num_chains": 64, "buffer": 10_000}, 3907),  # too many numbers to be kept unasked
    ]:
        with pytest.raises(ValueError, match=rf"expected recent >= {least} for a monitor .*r_hat=None, ess=None"):
            quiet(langevin(0.5, **settings), mlp(), REALS, Monitor(), steps=5)
    quiet(langevin(0.5, recent=19), mlp(), REALS, Monitor(r_hat=None, ess=None), steps=5)
    quiet(langevin(0.5, recent=20), mlp(), REALS, Monitor(), steps=5)


def test_an_energy_gap_is_found() -> None:
    far = REALS + 30
    (health,) = checks(quiet(langevin(0.5), mlp(), far, Monitor([], every=30), steps=30))
    assert health.gap_ratio > 3
    assert "gap" in names(health)
    assert "ran to places without data" in str(health)
    # samples whose energies are far above those of data
    start = torch.full((50, 2), 9.0) + torch.randn((50, 2), generator=generator(5))
    loss = langevin(1e-9, start=_At(start))
    (health,) = checks(quiet(loss, mlp(), REALS, Monitor([], every=25, r_hat=None, ess=None), steps=25))
    assert names(health) == {"gap"}
    assert health.gap_ratio < -3
    assert "don't follow the model" in str(health)


class _At:
    def __init__(self, points: Tensor) -> None:
        self.points = points

    def sampler(self, target: Any, chains: int, seed: int) -> Any:
        return lambda attempt: self.points.clone()


def test_acceptance_and_age() -> None:
    rejecting = pcd(kernel=partial(eb.MALA, step_size=400.0))
    (health,) = checks(quiet(rejecting, mlp(), REALS, Monitor([], every=30, age=20.0), steps=30))
    assert {"acceptance", "age"} <= names(health)
    assert "acceptance rate is" in str(health)
    assert "30 steps old" in str(health)
    (health,) = checks(quiet(eb.losses.CD(kernel=eb.Gibbs, seed=0), rbm(), BITS, Monitor([], every=30), steps=30))
    assert health.good  # nothing to read but the gap and the acceptance
    assert math.isnan(health.r_hat)
    assert math.isfinite(health.gap_error)
    (health,) = checks(quiet(eb.losses.ScoreMatching(), mlp(), REALS, Monitor([], every=30), steps=30))
    assert health.good
    assert math.isnan(health.gap)


# What is done.


def test_warn_says_what_to_try() -> None:
    with pytest.warns(SamplingWarning, match=r"step 30: R-hat of the chains is .* try more draws"):
        quiet(langevin(1e-9), mlp(), REALS, Monitor(every=30), steps=30).run()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quiet(langevin(0.5), mlp(), REALS, Monitor([Warn()], every=30, gap=None), steps=30).run()


def test_k_is_raised_up_to_its_end() -> None:
    run = quiet(langevin(1e-9, recent=25), mlp(), REALS, Monitor([RaiseK(3.0, most=7)], every=10), steps=120)
    found = checks(run)
    assert [h.done for h in found if h.done] == [("k is 3 now, was 1",), ("k is 7 now, was 3",)]
    assert run.bound.k == 7
    # chains first show for 25 steps what the action did
    first, second = (h.step for h in found if h.done)
    assert [h.step for h in found if first <= h.step <= second] == [first, first + 30]


def test_a_monitor_that_is_used_again_knows_nothing_of_the_last_run() -> None:
    monitor = Monitor([RaiseK()], every=25)
    for _ in range(2):
        run = quiet(langevin(1e-9, recent=25), mlp(), REALS, monitor, steps=25)
        assert monitor.last is None
        assert checks(run)[-1].done == ("k is 2 now, was 1",)


def test_chains_begin_again() -> None:
    run = quiet(langevin(1e-9, recent=30), mlp(), REALS, Monitor([Reinitialise()], every=30), steps=30)
    before = run.bound.points.clone()
    run.run()
    assert run.monitor is not None
    assert run.monitor.last is not None
    assert run.monitor.last.done == ("the chains began again",)
    assert bool((run.bound.points - before).abs().min(0).values.max() > 1e-3)
    assert run.bound.age.tolist() == [0] * 50
    assert run.bound.diagnostics()["energies"].isinf().all()
    other = run.bound.points.clone()
    run.bound.begin_again(31)
    assert not torch.equal(run.bound.points, other)


def test_roll_back_restores_the_last_good_state_with_a_smaller_learning_rate() -> None:
    energy = rbm()
    adam = partial(torch.optim.Adam, lr=0.01)
    monitor = Monitor([RollBack(0.1)], every=10, r_hat=None, ess=None, gap=None, acceptance=None, frozen=None, age=25.0)
    run = quiet(pcd(), energy, BITS, monitor, steps=400, optimizer=adam, ema=0.9)
    states: dict[int, dict[str, Any]] = {}
    rolled = None
    for record in run:
        if record.health is not None and record.health.done:
            rolled = record.health
            break
        states[run.step] = run.snapshot()
    assert rolled is not None
    assert rolled.step == 30  # chains of 20 steps are not yet too old, those of 30 are
    assert rolled.done == ("back to the state after 20 steps, with a learning rate of 0.001",)
    found, expected = run.snapshot(), states[20]
    assert run.step == 30
    for state, wanted in ((found["bound"], expected["bound"]), (found["ema"]["average"], expected["ema"]["average"])):
        assert all(torch.equal(value, wanted[key]) for key, value in state.items())
    assert found["ema"]["updates"] == expected["ema"]["updates"] == 20
    for key, slots in found["optimizer"]["state"].items():
        assert all(torch.equal(value, expected["optimizer"]["state"][key][name]) for name, value in slots.items())
    rates = [group["lr"] for group in found["optimizer"]["param_groups"]]
    assert rates == pytest.approx([0.001])
    assert (
        RollBack(0.1)(run, rolled) == "back to the state after 20 steps, with a learning rate of 0.0001"
    )  # that one again
    assert run.roll_back() == 20  # the kept state is the scaled one
    assert run.optimizer.param_groups[0]["lr"] == pytest.approx(0.0001)


def test_actions_come_in_turn_and_may_be_ones_own() -> None:
    seen = []

    def own(run: Fit, health: Health) -> str:
        seen.append((run.step, names(health)))
        return "told"

    run = quiet(langevin(1e-9), mlp(), REALS, Monitor([own, RaiseK()], every=30, ess=None), steps=30)
    assert checks(run)[0].done == ("told", "k is 2 now, was 1")
    assert seen == [(30, {"r_hat"})]


def test_actions_that_do_not_fit_are_refused() -> None:
    """Before the first step, where the loss has nothing for them."""
    with pytest.raises(ValueError, match="a loss with begin_again for Reinitialise, such as PCD, got BoundCD"):
        quiet(eb.losses.CD(kernel=eb.Gibbs), rbm(), BITS, Monitor([Warn(), Reinitialise()]), steps=5)
    with pytest.raises(ValueError, match="a loss with k for RaiseK, such as PCD, got BoundPseudoLikelihood"):
        quiet(eb.losses.PseudoLikelihood(), rbm(), BITS, Monitor([RaiseK()]), steps=5)
    for wrong, told in [
        (lambda: Monitor(["warn"]), "actions as functions"),
        (lambda: Monitor([RollBack]), "such as RollBack"),
        (lambda: Monitor(r_hat=0.9), "r_hat >= 1"),
        (lambda: Monitor(every=0), "every >= 1"),
        (lambda: RaiseK(1.0), "factor > 1"),
        (lambda: RollBack(0.0), "learning_rate > 0"),
    ]:
        with pytest.raises(ValueError, match=told):
            wrong()
    run = quiet(pcd(), rbm(), BITS, Monitor(statistics={"m": lambda x: x.sum()}), steps=5)
    with pytest.raises(ValueError, match=r"m of shape \(50,\), got \(\)"):
        run.run()


def test_chains_that_cannot_begin_again_are_a_loss_that_is_not_finite() -> None:
    """After a step that broke the weights: they are back, which is no business of an action alone."""
    energy, flagged = mlp(), Monitor([Reinitialise()], every=1, acceptance=1e9)
    before = [p.detach().clone() for p in energy.parameters()]
    run = quiet(langevin(0.01), energy, REALS, flagged, steps=9, optimizer=partial(torch.optim.SGD, lr=1e30))
    with pytest.raises(
        NonFiniteLoss, match="no chains after 1 steps: .*back as they were after 0 of 1 steps"
    ) as raised:
        run.run()
    assert isinstance(raised.value.__cause__, EnergyError)
    assert all(torch.equal(a, b) for a, b in zip(before, energy.parameters(), strict=True))
