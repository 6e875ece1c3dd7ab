"""Exact likelihoods of RBMs that are trained on digits, next to each other and beside a peer's."""

from __future__ import annotations

from functools import cache
from statistics import mean, stdev

import pytest

from tests.benchmarks.rbm_likelihood import LOSSES, PEER, RATE, column, likelihoods, over

T_4 = 2.132  # of a one-sided test of 5 paired differences at the level of 0.05
RATES = {**dict.fromkeys(LOSSES, RATE), PEER: 0.1}  # the peer's is the best of the benchmark's grid by validation data


@cache
def on_test_digits(name: str) -> tuple[float, ...]:
    """Likelihoods in nats of 5 seeds, as tuples so that tests share them."""
    found = tuple(column(likelihoods(name, RATES[name], range(5), hold=False), "test"))
    print(f"{name}: {mean(found):.3f} +- {stdev(found):.3f} nats", found, flush=True)
    return found


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in LOSSES if name != "CD-1"])
def test_the_bias_of_one_step_costs_likelihood(name: str) -> None:
    """At equal rates, epochs and batches CD-1 stays below."""
    gain, error = over(on_test_digits(name), on_test_digits("CD-1"))
    print(f"{name} over CD-1: {gain:+.3f} +- {error:.3f}", flush=True)
    assert gain > T_4 * error


@pytest.mark.long
@pytest.mark.parametrize("name", LOSSES)
def test_likelihoods_of_test_digits_are_above_scikit_learn(name: str) -> None:
    """Equal epochs and batches, 5 seeds: ours at one rate that falls, the peer at the best of its own."""
    gain, error = over(on_test_digits(name), on_test_digits(PEER))
    print(f"{name} over {PEER}: {gain:+.3f} +- {error:.3f}", flush=True)
    assert gain > T_4 * error
