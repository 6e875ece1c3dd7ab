"""Exact likelihoods of RBMs that are trained on digits, beside a peer's."""

from __future__ import annotations

from functools import cache, partial
from statistics import mean

import pytest
import torch

from ebmppl.models import BernoulliRBM
from tests.benchmarks.rbm_likelihood import LOSSES, PEER, RATE, column, likelihoods, over
from tests.benchmarks.rbm_order import Setting, learned
from tests.benchmarks.side_by_side import SideBySide

T_4 = 2.132  # of a one-sided test of 5 paired differences at the level of 0.05
PEER_RATE = 0.2  # the best of the benchmark's grid by validation data
# by validation digits of splits 0 to 4
BEST = {"CD-1": Setting(1000, 0.4), "CD-10": Setting(300, 0.8), "PCD": Setting(300, 0.8)}
FRESH = range(5, 15)  # other splits
T_9 = 1.833  # of 10 differences


@pytest.mark.long
@pytest.mark.parametrize("name", LOSSES)
def test_likelihoods_of_test_digits_are_above_scikit_learn(name: str) -> None:
    """Equal epochs and batches, 5 seeds: ours at one rate that falls, the peer at the best of its own."""
    seeds = range(5)
    ours, theirs = (column(likelihoods(who, rate, seeds), "test") for who, rate in ((name, RATE), (PEER, PEER_RATE)))
    gain, error = over(ours, theirs)
    print(f"{name} {mean(ours):.3f}, {PEER} {mean(theirs):.3f}, {gain:+.3f} +- {error:.3f}", ours, theirs)
    assert gain > T_4 * error


def test_machines_side_by_side_are_those_machines() -> None:
    """Energies, log-odds of both layers and gradients of three machines, and a machine alone learns what it learns as itself."""
    generator = torch.Generator().manual_seed(0)
    machines = []
    for _ in range(3):
        W, b, c = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((5, 4), (5,), (4,)))
        machines.append(BernoulliRBM(5, 4, W=W, b=b, c=c))
    model = SideBySide(machines)
    v, h = (torch.randint(2, (7, 3 * n), generator=generator).double() for n in (5, 4))
    pairs = list(zip(machines, v.split(5, 1), h.split(4, 1), strict=True))
    close = partial(torch.testing.assert_close, rtol=1e-12, atol=1e-12)
    close(model(v), torch.stack([machine(of) for machine, of, _ in pairs]).sum(0))
    close(model.joint(torch.cat([v, h], 1)), sum(m.joint(torch.cat([a, b], 1)) for m, a, b in pairs))
    close(model.hidden_logits(v), torch.cat([machine.hidden_logits(of) for machine, of, _ in pairs], 1))
    close(model.visible_logits(h), torch.cat([machine.visible_logits(of) for machine, _, of in pairs], 1))
    (found,) = model.trained_energies((v, model.hidden_logits(v)))
    found.mean.backward()
    sum(machine(of).mean() for machine, of, _ in pairs).backward()
    for name in ("W", "b", "c"):
        close(getattr(model, name).grad, torch.stack([getattr(machine, name).grad for machine in machines]))
        close(getattr(model.machine(1), name), getattr(machines[1], name))


@pytest.mark.parametrize("name", LOSSES)
def test_a_machine_side_by_side_with_none_learns_as_itself(name: str) -> None:
    """The same random numbers."""
    x = torch.randint(2, (60, 5), generator=torch.Generator().manual_seed(0)).float()
    start = BernoulliRBM(5, 4, generator=torch.Generator().manual_seed(1))
    model, alone = SideBySide([start]), SideBySide([start]).machine(0)
    for rbm in (model, alone):
        bound = LOSSES[name](0)(rbm.joint)
        optimizer = torch.optim.SGD(bound.parameters(), 0.5)
        for rows in x.split(20):
            optimizer.zero_grad()
            bound(rows).backward()
            optimizer.step()
    assert float((alone.W - start.W).detach().abs().max()) > 1e-3
    for of, other in zip(model.machine(0).parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(of, other, rtol=1e-4, atol=1e-6)


of_fresh = cache(lambda name: learned(name, BEST[name], FRESH)["test"])


@pytest.mark.long
@pytest.mark.parametrize("name", ["CD-10", "PCD"])
def test_the_bias_of_one_step_costs_likelihood(name: str) -> None:
    """Of test digits, each loss at the settings that validation digits of other splits chose: minutes long."""
    one, other = of_fresh("CD-1"), of_fresh(name)
    gain, error = over(other, one)
    print(f"{name} over CD-1 {gain:+.3f} +- {error:.3f}", one, other)
    assert gain > T_9 * error
