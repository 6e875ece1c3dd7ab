"""Checks of arguments, which say what was wanted and what came."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
from torch import Tensor


def whole(name: str, value: Any, least: int) -> int:
    """A count as an int of Python's (NumPy's are taken); raise ``ValueError`` for anything else."""
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    require(number >= least and not isinstance(value, bool), f"a whole {name} >= {least}", repr(value))
    return number


def positive(name: str, value: Any) -> float:
    """A finite number > 0; raise ``ValueError`` for anything else."""
    number = float(value) if isinstance(value, (int, float, np.number, Tensor)) else math.nan
    require(0 < number < math.inf, f"a finite {name} > 0", repr(value))
    return number


def require(condition: bool, wanted: str, got: object) -> None:  # noqa: FBT001
    """Raise ``ValueError`` with what was wanted and what came."""
    if not condition:
        raise ValueError(f"expected {wanted}, got {got}")
