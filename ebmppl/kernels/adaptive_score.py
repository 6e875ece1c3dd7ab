"""What the kernels that follow a score with a step size for each chain share."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class AdaptiveTuning(NamedTuple):
    """Nothing adapts across draws; the first and last times."""

    first: Tensor
    last: Tensor


class AdaptiveInfo(NamedTuple):
    """What a person looks at, by chain."""

    done: Tensor
    acceptance_rate: Tensor  # 1, or 0 where the draw failed
    diverging: Tensor  # whether this draw failed: a score was not finite, or the tolerance could not be met
    time: Tensor  # at which the score was taken
    failed_at: Tensor  # the time at which that was so; 0 where all went well
    tolerance_unmet: Tensor  # bool: the score was finite, and the step size fell under its limit
    n_steps: Tensor  # network calls of this draw so far


def least_step(dtype: torch.dtype) -> float:
    """The smallest step size, of the time between the ends; under it a tolerance can't be met."""
    return 1e-9 if dtype == torch.float64 else 1e-5
