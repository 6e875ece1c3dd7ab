"""What a monitor may do where something is wrong: functions of the run and its health that say what they did."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ebmppl.arguments import positive, require, whole
from ebmppl.errors import SamplingWarning

if TYPE_CHECKING:
    from ebmppl.training.health import Health
    from ebmppl.training.run import Run

Action = Callable[["Run", "Health"], str]


class Warn:
    """Say what is wrong, as a ``SamplingWarning``; nothing else changes, and each check says it again."""

    def __call__(self, run: Run, health: Health) -> str:
        """Warn."""
        warnings.warn(str(health), SamplingWarning, stacklevel=2)
        return ""


@dataclass(frozen=True)
class RaiseK:
    """More draws of the chains for each step.

    Args:
        factor: > 1; at least one draw more.
        most: where it ends.
    """

    factor: float = 2.0
    most: int = 100

    def __post_init__(self) -> None:
        require(self.factor > 1, "factor > 1", self.factor)
        whole("most", self.most, 1)

    def require_fit(self, bound: Any) -> None:
        """Raise ``ValueError`` for a loss without k."""
        _of(bound, "k", "RaiseK")

    def __call__(self, run: Run, health: Health) -> str:
        """Raise ``bound.k``."""
        k = _of(run.bound, "k", "RaiseK")
        raised = min(self.most, max(k + 1, round(k * self.factor)))
        if raised <= k:
            return ""
        run.bound.k = raised
        return f"k is {raised} now, was {k}"


class Reinitialise:
    """All persistent chains begin again."""

    def require_fit(self, bound: Any) -> None:
        """Raise ``ValueError`` for a loss without persistent chains."""
        _of(bound, "begin_again", "Reinitialise")

    def __call__(self, run: Run, health: Health) -> str:
        """Begin them again at other points each time."""
        _of(run.bound, "begin_again", "Reinitialise")(run.step)
        return "the chains began again"


@dataclass(frozen=True)
class RollBack:
    """Weights, optimiser, schedule, averaged weights and chains as at the last check that found nothing wrong.

    The count of steps and the order of data go on, so a run always ends.

    Args:
        learning_rate: factor of the learning rates from then on, > 0.
    """

    learning_rate: float = 0.5

    def __post_init__(self) -> None:
        positive("learning_rate", self.learning_rate)

    def __call__(self, run: Run, health: Health) -> str:
        """Go back."""
        kept = run.roll_back()
        run.scale_learning_rate(self.learning_rate)
        run.keep(kept)  # so that the next time it is smaller yet
        rate = float(run.optimizer.param_groups[0]["lr"])
        return f"back to the state after {kept} steps, with a learning rate of {rate:.3g}"


def _of(bound: Any, name: str, action: str) -> Any:
    found = getattr(bound, name, None)
    require(found is not None, f"a loss with {name} for {action}, such as PCD", type(bound).__name__)
    return found
