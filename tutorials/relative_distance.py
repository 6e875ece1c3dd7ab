"""Which of two samplers is farther from data: squared MMDs by all pairs, with their standard errors."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Distance(NamedTuple):
    """An unbiased squared MMD, or a difference of two, with its standard error."""

    value: float
    error: float


def sums(rows: Tensor, others: Tensor, bandwidth: float) -> Tensor:
    """Of the kernel from each row to all others ``(rows,)``."""
    parts = (torch.cdist(some, others / bandwidth) for some in (rows / bandwidth).split(1000))
    return torch.cat([torch.exp(-0.5 * apart.square()).sum(1) for apart in parts])


def to_data(x: Tensor, y: Tensor, bandwidth: float) -> Tensor:
    """For each i the mean over j != i of k(x_i, x_j) - k(x_i, y_j) - k(y_i, x_j)."""
    own = torch.exp(-0.5 * ((x - y) / bandwidth).square().sum(1))  # k(x_i, y_i)
    return (sums(x, x, bandwidth) - 1 - sums(x, y, bandwidth) - sums(y, x, bandwidth) + 2 * own) / (len(x) - 1)


def over_pairs(rows: Tensor) -> Distance:
    """A mean over pairs i != j and its standard error, from the means over j for each i (Hoeffding 1948)."""
    return Distance(float(rows.mean()), 2 * float(rows.std()) / math.sqrt(len(rows)))


def squared_mmd(x: Tensor, y: Tensor, bandwidth: float) -> Distance:
    """Of two samples of one size."""
    x, y = (part.flatten(1).double() for part in (x, y))
    return over_pairs(to_data(x, y, bandwidth) + (sums(y, y, bandwidth) - 1) / (len(y) - 1))


def farther(x: Tensor, z: Tensor, y: Tensor, bandwidth: float) -> tuple[Distance, float]:
    """By how much the squared MMD of x to y is over that of z to y, and the p-value of x being no farther.

    Rows of x and z that began at the same noise are pairs, and both distances share y: the standard error knows both
    (Bounliphone et al. 2016, "A test of relative similarity for model selection in generative models"). Where all three are
    of one law it is too large by a factor of sqrt(2), so that alarms are rarer.
    """
    x, z, y = (part.flatten(1).double() for part in (x, z, y))
    found = over_pairs(to_data(x, y, bandwidth) - to_data(z, y, bandwidth))
    return found, 0.5 * math.erfc(found.value / found.error / math.sqrt(2))
