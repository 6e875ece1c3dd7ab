"""Tests of two-sample distances: values by hand, the level of the test, and its power."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from ebmppl.diagnostics.distances import two_sample_test


def normals(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_values_by_hand() -> None:
    x, y = torch.tensor([0.0, 1.0]), torch.tensor([3.0, 3.0])
    found = two_sample_test(x, y, "energy", permutations=1)
    assert found.distance == pytest.approx(2 * 2.5 - 0.5 - 0.0, rel=1e-12)

    def k(d: float) -> float:
        return math.exp(-(d**2) / 8)

    wanted = (2 + 2 * k(1)) / 4 + 1 - 2 * (k(3) + k(2)) / 2
    assert two_sample_test(x, y, bandwidth=2.0, permutations=1).distance == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("distance", ["mmd", "energy"])
def test_p_values_of_one_distribution_are_uniform(distance: Any) -> None:
    runs = 200  # sizes differ, which a test that forgets the weights gets wrong
    p = torch.tensor([
        two_sample_test(normals(12, 2, seed=i), normals(20, 2, seed=1000 + i), distance, permutations=99, seed=i).p_value
        for i in range(runs)
    ])  # fmt: skip
    for level in (0.1, 0.5):  # binomial, within 4 standard errors
        assert abs(float((p <= level).double().mean()) - level) < 4 * math.sqrt(level * (1 - level) / runs)


@pytest.mark.parametrize("distance", ["mmd", "energy"])
def test_other_means_and_other_widths_are_found(distance: Any) -> None:
    x = normals(100, 2, seed=0)
    assert two_sample_test(x, normals(100, 2, seed=1) + 0.7, distance).p_value <= 0.002
    assert two_sample_test(x, normals(100, 2, seed=1) * 2, distance).p_value <= 0.002


def test_bad_input() -> None:
    x = torch.zeros(3, 2)
    for y, wanted in ((torch.zeros(3, 1), "one event shape"), (x[:1], "two rows"), (x / 0, "finite")):
        with pytest.raises(ValueError, match=wanted):
            two_sample_test(x, y)
    with pytest.raises(ValueError, match="distance 'mmd' or 'energy'"):
        two_sample_test(x, x, "chi")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="bandwidth"):
        two_sample_test(x, x, bandwidth=0.0)


@pytest.mark.parametrize("seed", [-1, 1.5, True, 1 << 63])
def test_seeds_are_those_of_runs(seed: Any) -> None:
    x = normals(5, 2, seed=0)
    with pytest.raises(ValueError, match="expected a (whole )?seed"):
        two_sample_test(x, x, seed=seed)
