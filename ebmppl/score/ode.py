"""Dormand and Prince's Runge-Kutta pair of orders 5 and 4, with a step size for every row of a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Field = Callable[[Tensor, Tensor], Tensor]  # points (rows, n) and times (rows,) -> velocities (rows, n)

_TIMES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0)
_STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
)
_LAST = (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84)
_FOURTH = (5179 / 57600, 0.0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40)
_ERROR = tuple(a - b for a, b in zip((*_LAST, 0.0), _FOURTH, strict=True))
_SAFETY, _LEAST, _MOST = 0.9, 0.2, 5.0
_STEERS = 0  # the stage whose slope is in no result: _LAST[1] and _ERROR[1] are 0
CALLS = 6  # of the field for a step


class Attempt(NamedTuple):
    """Of one step of every row."""

    end: Tensor  # (rows, n), of order 5
    velocity: Tensor  # (rows, n), at the end
    error: Tensor  # (rows, n), an estimate for order 4


def attempt(
    field: Field, x: Tensor, t: Tensor, h: Tensor, velocity: Tensor, *, steering: Field | None = None
) -> Attempt:
    """One step h ``(rows,)`` from points ``(rows, n)`` at times ``(rows,)``, where the velocity is known.

    The second slope has weight 0 in the end and in the error: it only steers the later ones. So ``steering``, called for it in
    place of the field, need not know the velocity of numbers that no velocity depends on, such as integrals along the way.

    References:
        Dormand and Prince 1980, "A family of embedded Runge-Kutta formulae".
    """
    column = h.unsqueeze(1)
    slopes = [velocity]
    for stage, (share, weights) in enumerate(zip(_TIMES, _STAGES, strict=True)):
        ask = steering if steering is not None and stage == _STEERS else field
        slopes.append(ask(x + column * _sum(weights, slopes), t + share * h))
    end = x + column * _sum(_LAST, slopes)
    slopes.append(field(end, t + h))
    return Attempt(end, slopes[-1], column * _sum(_ERROR, slopes))


def error_ratio(tried: Attempt, x: Tensor, rtol: float, atol: float) -> Tensor:
    """The root mean square of error over tolerance ``(rows,)``; a step of at most 1 is taken. NaN where it isn't finite."""
    scale = atol + rtol * torch.maximum(x.abs(), tried.end.abs())
    return (tried.error / scale).square().mean(1).sqrt()


def factor(ratio: Tensor) -> Tensor:
    """By what the step size changes after an error ratio, between 1/5 and 5; 1/5 where it isn't finite."""
    return (_SAFETY * ratio.clamp_min(1e-10).pow(-0.2)).clamp(_LEAST, _MOST).nan_to_num(_LEAST)


def first_step(x: Tensor, velocity: Tensor, span: float, rtol: float, atol: float) -> Tensor:
    """A careful first step size ``(rows,)`` > 0: a hundredth of the time in which x changes by its size (Hairer et al. 1993)."""
    scale = atol + rtol * x.abs()
    size, speed = ((v / scale).square().mean(1).sqrt() for v in (x, velocity))
    return (0.01 * size / speed).nan_to_num(0.0, posinf=1e-3 * span).clamp(1e-6 * span, 0.1 * span)


def _sum(weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    total = weights[0] * slopes[0]
    for weight, slope in zip(weights[1:], slopes[1:], strict=False):
        if weight:
            total = torch.add(total, slope, alpha=weight)
    return total
