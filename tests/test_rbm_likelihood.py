"""Exact likelihoods of RBMs that are trained on digits: the order of the losses, and a peer."""

from __future__ import annotations

from statistics import mean

import pytest

from tests.benchmarks.rbm_likelihood import PEER, RATE, column, likelihoods, over

T_4 = 2.132  # of a one-sided test of 5 paired differences at the level of 0.05


@pytest.mark.long
def test_cd_1_is_below_cd_10_and_pcd_and_scikit_learn_below_all() -> None:
    """Test digits, one rate, equal epochs, over 5 seeds; scikit-learn at its best rate (see the benchmark)."""
    seeds = range(5)
    test = {name: column(likelihoods(name, RATE, seeds), "test") for name in ("CD-1", "CD-10", "PCD")}
    test[PEER] = column(likelihoods(PEER, 0.2, seeds), "test")
    for name, values in test.items():
        print(name, f"{mean(values):.3f}", "over CD-1 {:+.3f} +- {:.3f}".format(*over(values, test["CD-1"])), values)
    for better in ("CD-10", "PCD"):
        gain, error = over(test[better], test["CD-1"])
        assert gain > T_4 * error
    gain, error = over(test["CD-1"], test[PEER])
    assert gain > T_4 * error
