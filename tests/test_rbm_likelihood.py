"""Exact likelihoods of RBMs that are trained on digits, beside a peer's."""

from __future__ import annotations

from statistics import mean

import pytest

from tests.benchmarks.rbm_likelihood import LONG, LONG_RATE, LOSSES, PEER, RATE, column, likelihoods, over

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
@pytest.mark.parametrize("name", ["CD-10", "PCD"])
def test_the_bias_of_one_step_costs_likelihood(name: str) -> None:
    """Of training and test digits alike, after 1000 epochs in batches of 100: minutes long."""
    one, other = (likelihoods(who, LONG_RATE, range(5), **LONG) for who in ("CD-1", name))
    for part in ("train", "test"):
        gain, error = over(column(other, part), column(one, part))
        print(f"{part}: {name} over CD-1 {gain:+.3f} +- {error:.3f}", column(one, part), column(other, part))
        assert gain > T_4 * error
