"""Warm-up of a step size alone, for kernels without a metric."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from ebmppl.kernels.accept import some
from ebmppl.kernels.adaptation import Adaptation, AdaptationState
from ebmppl.kernels.dual_averaging import DualAveraging, dual_averaging, dual_averaging_update


class NoDraws(NamedTuple):
    """Nothing is learned from the draws."""


class StepSizeAdaptation(Adaptation):
    """Dual averaging of ``tuning.step_size`` towards an acceptance rate, pooled over the chains (an ``Adaptation``).

    It runs through all of warm-up: windows are for a metric.

    Args:
        target: acceptance rate to reach, in (0, 1).
        most: largest step size, for kernels in which larger ones make no difference.
    """

    def __init__(self, target: float, most: float) -> None:
        self.target, self.most = target, most

    def init(self, tuning: Any, state: Any) -> AdaptationState:
        """Nothing seen yet."""
        return AdaptationState(dual_averaging(tuning.step_size, len(state.energy)), NoDraws())

    def update(self, averaging: DualAveraging, tuning: Any, info: Any) -> tuple[DualAveraging, Any]:
        """Dual averaging."""
        if not some(info.done):
            return averaging, tuning
        averaging, step_size = dual_averaging_update(
            averaging, tuning.step_size, info.acceptance_rate, info.done, self.target
        )
        return averaging, tuning._replace(step_size=step_size.clamp_max(self.most))

    def observe(self, draws: NoDraws, x: Tensor, counts: Tensor) -> NoDraws:
        """Nothing."""
        return draws

    def begin(
        self, own: AdaptationState, tuning: Any, state: Any, normal: Callable[[], Tensor]
    ) -> tuple[AdaptationState, Any]:
        """As it was."""
        return own, tuning

    def end_window(self, own: AdaptationState, tuning: Any, *, metric: bool) -> tuple[AdaptationState, Any]:
        """As it was."""
        return own, tuning

    def finish(self, own: AdaptationState, tuning: Any) -> Any:
        """The averaged step size, where there is an average."""
        da = own.averaging
        if not int(da.updates):
            return tuning
        return tuning._replace(step_size=da.log_average.exp().clamp_max(self.most))
