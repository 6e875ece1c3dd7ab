"""What a person looks at of kernels that follow a score, by chain."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class ScoreInfo(NamedTuple):
    """Of a kernel that takes given steps."""

    done: Tensor
    acceptance_rate: Tensor  # 1, or 0 once a score was not finite
    diverging: Tensor  # whether a score of this draw was not finite
    time: Tensor  # at which the score was taken
    failed_at: Tensor  # the first time at which that was so; 0 where all went well
    n_steps: Tensor  # network calls of this draw so far


class AdaptiveInfo(NamedTuple):
    """Of a kernel with a tolerance."""

    done: Tensor
    acceptance_rate: Tensor  # 1, or 0 where the draw failed
    diverging: Tensor  # whether this draw failed: a score was not finite, or the tolerance could not be met
    time: Tensor  # at which the score was taken
    failed_at: Tensor  # the time at which that was so; 0 where all went well
    tolerance_unmet: Tensor  # bool: the score was finite, and the step size fell under its limit
    n_steps: Tensor  # network calls of this draw so far
