"""At what dtype a score model is followed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ebmppl.arguments import require

_HALF = "run a network of half precision under torch.autocast, or let it cast what it is given"


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """That of points: float32 for a network of half precision, whose steps and sums would be lost in the points' own rounding."""
    return torch.promote_types(dtype, torch.float32)


def require_state(x: Tensor) -> None:
    """Raise ``ValueError`` for points of half precision."""
    require(x.dtype in (torch.float32, torch.float64), "float32 or float64 states", f"{x.dtype} ({_HALF})")


@contextmanager
def of_its_dtype(x: Tensor) -> Iterator[None]:
    """Say so, where a score's first call fails for points of another dtype than its parameters."""
    try:
        yield
    except RuntimeError as error:
        if not any(word in str(error) for word in ("same dtype", "scalar type", "Input type")):
            raise
        hint = f" ({_HALF})" if "Half" in str(error) or "BFloat16" in str(error) else ""
        wanted = "expected points of the dtype of the score's parameters"
        raise ValueError(f"{wanted}, got {x.dtype}{hint}: {error}") from error
