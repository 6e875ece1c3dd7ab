"""Checks of arguments, which say what was wanted and what came."""

from __future__ import annotations

import math
import operator
import secrets
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def require(condition: bool, wanted: str, got: object) -> None:  # noqa: FBT001
    """Raise ``ValueError`` with what was wanted and what came."""
    if not condition:
        raise ValueError(f"expected {wanted}, got {got}")


def real(value: Any) -> float:
    """A real number of Python, NumPy or a tensor of one element; NaN, which is in no range, for anything else, bools too."""
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
        value = value.item()
    number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    return float(value) if number else math.nan


def positive(name: str, value: Any, *, zero: bool = False) -> float:
    """A finite number > 0 (or 0, where that is one); raise ``ValueError`` for anything else."""
    number = real(value)
    good = 0 < number < math.inf or (zero and number == 0)
    require(good, f"a finite {name} {'>=' if zero else '>'} 0", repr(value))
    return number


def whole(name: str, value: Any, least: int) -> int:
    """A count as an int of Python's (NumPy's are taken); raise ``ValueError`` for anything else."""
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    truth = isinstance(value, bool) or (isinstance(value, Tensor) and value.dtype == torch.bool)
    require(number >= least and not truth, f"a whole {name} >= {least}", repr(value))
    return number


def seed_number(value: Any) -> int:
    """A seed: a whole number from 0 to 2^63 - 1, as a state dict holds it; raise ``ValueError`` for anything else."""
    number = whole("seed", value, 0)
    require(number < 1 << 63, "a seed < 2^63", number)
    return number


def seed_of(value: int | None) -> int:
    """A given seed, as ``seed_number`` takes it, or one from the operating system when None."""
    return secrets.randbits(31) if value is None else seed_number(value)


def fraction(name: str, value: Any) -> float:
    """A number in (0, 1); raise ``ValueError`` for anything else."""
    number = positive(name, value)
    require(number < 1, f"{name} in (0, 1)", value)
    return number


def flag(name: str, value: bool) -> bool:  # noqa: FBT001
    """True or False; raise ``ValueError`` for anything else."""
    require(isinstance(value, bool), f"{name} as True or False", repr(value))
    return value


def form(value: object) -> object:
    """What a message shows of a tensor, or of something in its place."""
    return (value.dtype, tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__


def size(what: str, value: Sequence[int], least: int = 1) -> torch.Size:
    """A shape of sizes of at least so much; raise ``ValueError`` for anything else."""
    require(not isinstance(value, int), f"{what} as a sequence such as ({value},)", value)
    try:
        shape = torch.Size(value)
    except TypeError as error:
        raise ValueError(f"expected {what} as a sequence of integers, got {value!r}") from error
    wanted = "positive sizes" if least == 1 else f"sizes >= {least}"
    require(all(n >= least for n in shape), f"{wanted} in {what}", tuple(shape))
    return shape
