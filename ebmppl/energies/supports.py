"""Discrete supports: spins, bits and categories, and the levels that their coordinates take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint


class _Spin(Constraint):
    """The two values -1 and +1."""

    is_discrete = True

    def check(self, value: Tensor) -> Tensor:
        """By value, whether it is a spin."""
        return (value == -1) | (value == 1)


spin = _Spin()


def categories(number: int) -> Constraint:
    """The values 0, 1, ..., number - 1.

    Raises:
        ValueError: for fewer than two, or no whole number.
    """
    if not isinstance(number, int) or number < 2:
        raise ValueError(f"expected at least 2 categories, got {number!r}")
    return constraints.integer_interval(0, number - 1)


def elementwise(support: Constraint) -> Constraint:
    """The constraint of one number, where there is one for each."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def is_discrete(support: Constraint) -> bool:
    """Whether a constraint lets countably many values pass."""
    try:
        return bool(support.is_discrete)
    except NotImplementedError:  # ``dependent``
        return False


def levels(support: Constraint) -> Sequence[int] | None:
    """The values that a coordinate takes, in increasing order; None where there is no finite list.

    One-hot vectors are no list of coordinates' values: see ``indexed``.
    """
    support = elementwise(support)
    if isinstance(support, _Spin):
        return (-1, 1)
    if type(support) is type(constraints.boolean):
        return (0, 1)
    if isinstance(support, constraints.integer_interval):
        return range(int(support.lower_bound), int(support.upper_bound) + 1)
    return None


def storage(values: Sequence[int]) -> torch.dtype:
    """The smallest signed integers that hold some values."""
    least, most = min(values), max(values)
    fitting = (
        d for d in (torch.int8, torch.int16, torch.int32) if torch.iinfo(d).min <= least <= most <= torch.iinfo(d).max
    )
    return next(fitting, torch.int64)


def require_inside(name: str, x: Tensor, support: Constraint) -> None:
    """Raise ``ValueError`` that names the first value ``(rows, *site)`` outside a discrete support."""
    inside: Any = support.check(x)
    if bool(inside.all()):
        return
    at = tuple((~inside).nonzero()[0].tolist())
    where = f"chain {at[0]}" + (f", coordinate {at[1:]}" if len(at) > 1 else "")
    got = x[at].tolist()
    raise ValueError(f"expected values of site {name!r} in {describe(support)}, got {got} ({where})")


def describe(support: Constraint) -> str:
    """A support in a few characters."""
    values = levels(support)
    if values is None:
        return str(support)
    return f"{{{', '.join(map(str, values))}}}" if len(values) < 5 else f"{{{values[0]}, ..., {values[-1]}}}"
