"""Exact likelihoods of RBMs that are trained on digits, beside a peer's."""

from __future__ import annotations

from statistics import mean

import pytest

from tests.benchmarks.rbm_likelihood import LOSSES, PEER, RATE, column, likelihoods, over

T_4 = 2.132  # of a one-sided test of 5 paired differences at the level of 0.05
PEER_RATE = 0.2  # the best of the benchmark's grid by validation data


@pytest.mark.long
@pytest.mark.parametrize("name", LOSSES)
def test_likelihoods_of_test_digits_are_above_scikit_learn(name: str) -> None:
    """Equal epochs and batches, 5 seeds: ours at one rate that falls, the peer at the best of its own."""
    seeds = range(5)
    ours, theirs = (column(likelihoods(who, rate, seeds), "test") for who, rate in ((name, RATE), (PEER, PEER_RATE)))
    gain, error = over(ours, theirs)
    print(f"{name} {mean(ours):.3f}, {PEER} {mean(theirs):.3f}, {gain:+.3f} +- {error:.3f}", ours, theirs)
    assert gain > T_4 * error


@pytest.mark.long
def test_the_bias_of_one_step_costs_likelihood() -> None:
    """In batches of 100 at a rate of 0.2 that falls, 300 epochs: 0.08 +- 0.04 nats when this was written, minutes long."""
    one, ten = (column(likelihoods(who, 0.2, range(5), hold=False, batch=100), "test") for who in ("CD-1", "CD-10"))
    gain, error = over(ten, one)
    print(f"CD-1 {mean(one):.3f}, CD-10 {mean(ten):.3f}, {gain:+.3f} +- {error:.3f}", one, ten)
    assert gain > T_4 * error
