"""Errors and warnings: a wrong argument is a ``ValueError``, what ends a run a ``SamplingError``; and how they are told."""

from __future__ import annotations

import traceback
from typing import Any

LOOKS_AT_VALUES = "code looks at values (if, float() or .item() of a tensor)"


def first_line(error: BaseException) -> str:
    """What an error says, without what follows on further lines."""
    return str(error).strip().partition("\n")[0]


def looks_at_values(error: BaseException) -> bool:
    """Whether ``torch.func.vmap`` or a tracer met code whose way depends on numbers in tensors."""
    told = str(error)
    return "value out of a tracing tensor" in told or "vmap: It looks like you're" in told


def one_line(error: BaseException) -> str:
    """An error's kind, and the first line of what it says, of at most 300 characters; torch's of values in plain words."""
    if looks_at_values(error):
        return f"{LOOKS_AT_VALUES}, which a trace can't follow{_advice(error)}"
    return f"{type(error).__name__}: {first_line(error)[:300]}"


def _advice(error: BaseException) -> str:
    """What to do where it is not the user's own code that looks."""
    cause: BaseException | None = error
    while cause is not None:
        for frame, _ in traceback.walk_tb(cause.__traceback__):
            of_distributions = frame.f_globals.get("__name__", "").startswith("torch.distributions.")
            if of_distributions and "_validate_args" in frame.f_code.co_names:
                return "; it is torch.distributions that validates: give them validate_args=False"
        cause = cause.__cause__
    return ""


class EnergyError(ValueError):
    """An energy does not keep its contract: shape, dtype, device, finiteness, gradient or row independence."""


class SamplingError(RuntimeError):
    """A run can't go on; the message says where and what to try."""


class SamplingWarning(UserWarning):
    """A run went on or was cut short, and its result should be read with care."""


class NonFiniteLoss(SamplingError):
    """A loss is NaN or infinite.

    Args:
        message: says which term, at which step.
        step: number of the step, from 0.
        terms: every term's value.
        state: ``state_dict`` of the bound loss before the step.
    """

    def __init__(self, message: str, step: int, terms: dict[str, float], state: dict[str, Any]) -> None:
        super().__init__(message)
        self.step, self.terms, self.state = step, terms, state
