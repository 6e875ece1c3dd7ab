"""What is said of draws and likelihoods of a score model that could not be carried to their end."""

from __future__ import annotations

import torch
from torch import Tensor

NOT_FINITE = "the score (or energy) was not finite"
UNMET = "the step size fell under its limit, as the tolerance could not be met"
_SHOWN = 10  # rows


def failures(failed_at: Tensor, unmet: Tensor | None, what: str, time: str = "t") -> str | None:
    """How many failed, why, when and which ones; None where none did.

    Args:
        failed_at: times ``(rows,)``, 0 where all went well.
        unmet: where a tolerance was the cause ``(rows,)``, not the score; None where there is no tolerance.
        what: the rows are.
        time: the name of the times.

    Example:
        >>> failures(torch.tensor([0.0, 0.5, 0.2]), None, "draws")
        '2 of 3 draws failed: the score (or energy) was not finite at t from 0.5 to 0.2 (2: rows 1, 2)'
    """
    failed = failed_at != 0
    if not bool(failed.any()):
        return None
    by_tolerance = torch.zeros_like(failed) if unmet is None else unmet
    causes = ((NOT_FINITE, failed & ~by_tolerance), (UNMET, failed & by_tolerance))
    told = [f"{cause} at {_where(failed_at, rows, time)}" for cause, rows in causes if bool(rows.any())]
    return f"{int(failed.sum())} of {len(failed)} {what} failed: {'; '.join(told)}"


def _where(failed_at: Tensor, rows: Tensor, time: str) -> str:
    which, times = rows.nonzero().squeeze(1).tolist(), failed_at[rows]
    shown = ", ".join(map(str, which[:_SHOWN])) + (", ..." if len(which) > _SHOWN else "")
    return (
        f"{time} {spread(float(times.max()), float(times.min()))} ({len(which)}: row{'s' * (len(which) > 1)} {shown})"
    )


def spread(most: float, least: float) -> str:
    """Of times, as they are reached: one of them, or from the greatest to the least."""
    first, last = f"{most:.6g}", f"{least:.6g}"
    return f"= {first}" if first == last else f"from {first} to {last}"
