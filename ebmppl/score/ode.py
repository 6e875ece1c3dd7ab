"""Dormand and Prince's Runge-Kutta pair of orders 5 and 4, with a step size for every row of a batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ebmppl.score.clock import Clock

Field = Callable[
    [Tensor, Tensor], Tensor
]  # points (rows, n) and readings (rows,) of a clock -> velocities (rows, n) by it

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
_NOW, _BEFORE = 0.17, 0.04  # powers of the error ratios of this step and of the last one that was taken
CALM = 1e-4  # the ratio that a first step is preceded by, and the least that one counts for
_STEERS = 0  # the stage whose slope is in no result: _LAST[1] and _ERROR[1] are 0
CALLS = 6  # of the field for a step
TIME = Clock()  # the time itself
_LEAST_STEP = {torch.float64: 1e-9, torch.float32: 1e-5}  # of the time, under which a tolerance can't be met


class Attempt(NamedTuple):
    """Of one step of every row."""

    end: Tensor  # (rows, n), of order 5
    velocity: Tensor  # (rows, n), at the end
    error: Tensor  # (rows, n), an estimate for order 4


def attempt(
    field: Field, x: Tensor, t: Tensor, h: Tensor, velocity: Tensor, *, steering: Field | None = None
) -> Attempt:
    """One step h ``(rows,)`` from points ``(rows, n)`` at times ``(rows,)``, where the velocity is known.

    Times and steps may be of a finer dtype than points.

    The second slope has weight 0 in the end and in the error: it only steers the later ones. So ``steering``, called for it in
    place of the field, need not know the velocity of numbers that no velocity depends on, such as integrals along the way.

    References:
        Dormand and Prince 1980, "A family of embedded Runge-Kutta formulae".
    """
    column = h.unsqueeze(1).to(x.dtype)
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


def factor(ratio: Tensor, before: Tensor) -> Tensor:
    """By what the step size changes after an error ratio, between 1/5 and 5; 1/5 where it isn't finite.

    After a step that was taken 0.9 ratio^-0.17 before^0.04, where ``before`` is the ratio of the one taken before it: with a
    share of the change (a "PI" controller) fewer steps are tried in vain. After one that was not, 0.9 ratio^-0.2.

    References:
        Hairer and Wanner 1996, "Solving ordinary differential equations II", section IV.2.
    """
    ratio = ratio.clamp_min(1e-10)
    taken = ratio.pow(-_NOW) * before.clamp_min(CALM).pow(_BEFORE)
    change = torch.where(ratio <= 1, taken, ratio.pow(-0.2))
    return (_SAFETY * change).clamp(_LEAST, _MOST).nan_to_num(_LEAST)


def first_step(
    x: Tensor, velocity: Tensor, t: Tensor, clock: Clock, span: float, least: float, rtol: float, atol: float
) -> Tensor:
    """A careful first step size ``(rows,)`` > 0: a hundredth of what x takes to change by its size (Hairer et al. 1993).

    Args:
        x: points ``(rows, n)``.
        velocity: there, by the clock.
        t: times ``(rows,)``.
        clock: by which that hundredth is taken.
        span: readings to the last time, negative where that is earlier; a first step is at most a tenth of it.
        least: step size, > 0.
        rtol: relative tolerance, > 0.
        atol: absolute tolerance, > 0.
    """
    scale = atol + rtol * x.abs()
    size, speed = ((v / scale).square().mean(1).sqrt() for v in (x, velocity))
    part = (0.01 * size / speed).nan_to_num(0.0, posinf=1e-3 * abs(span)).clamp(1e-6 * abs(span), 0.1 * abs(span))
    return clock.passing(t, part if span > 0 else -part).clamp_min(least)


def second_look(
    field: Field, x: Tensor, velocity: Tensor, t: Tensor, h: Tensor, least: float, rtol: float, atol: float
) -> Tensor:
    """First step sizes ``(rows,)`` of at most h, as the change of the velocity allows them (Hairer et al. 1993); one call.

    Where times are no readings of a clock the velocity may begin near 0, as ``KarrasVE``'s does, which says nothing of what
    follows: ``first_step`` is too long then, and its error sometimes far beyond the estimate.
    """
    scale = atol + rtol * x.abs()
    later = field(x + h.unsqueeze(1).to(x.dtype) * velocity, t + h)
    speed, change = ((v / scale).square().mean(1).sqrt() for v in (velocity, later - velocity))
    most = (0.01 / torch.maximum(speed, change / h)).pow(0.2).nan_to_num(math.inf, posinf=math.inf)
    return torch.minimum(h, most.to(h.dtype)).clamp_min(least)


def _sum(weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    total = weights[0] * slopes[0]
    for weight, slope in zip(weights[1:], slopes[1:], strict=False):
        if weight:
            total = torch.add(total, slope, alpha=weight)
    return total


class Solution(NamedTuple):
    """Of every row."""

    end: Tensor  # (rows, n)
    failed_at: Tensor  # (rows,), a time, or 0 where it arrived
    unmet: Tensor  # (rows,) bool, whether it failed though the field was finite
    rows: int  # that the field was asked for in all


def solve(
    fields: Callable[[Tensor], tuple[Field, Field]],
    y: Tensor,
    first: float,
    last: float,
    rtol: float,
    atol: float,
    fewest: float = 1.0,
    clock: Clock = TIME,
) -> Solution:
    """From points ``(rows, n)`` at the time ``first`` to the time ``last``, every row by steps of its own.

    Args:
        fields: from numbers of rows to their field and its steering, see ``attempt``.
        y: the points.
        first: the first time.
        last: the last one, later.
        rtol: relative tolerance of a step, > 0.
        atol: absolute tolerance, > 0.
        fewest: the share of rows under way, in [0, 1], from which on those that have ended are left out.
        clock: whose readings fields are given, and slopes are by; step sizes are of the time.
    """
    least = _LEAST_STEP.get(y.dtype, 1e-3) * (last - first)
    ends, failed_at, unmet = y.clone(), y.new_zeros(len(y)), torch.zeros(len(y), dtype=torch.bool, device=y.device)
    active = torch.arange(len(y), device=y.device)
    live = torch.ones_like(active, dtype=torch.bool)
    t, before = y.new_full((len(y),), first), y.new_full((len(y),), CALM)
    (flow, steering), u = fields(active), clock.of(t)
    velocity = flow(y, u)
    rows, careful = len(y), 1e-6 * (last - first)
    h = first_step(y, velocity, t, clock, clock.span(first, last), careful, rtol, atol)
    if clock.is_time:
        h, rows = second_look(flow, y, velocity, u, h, careful, rtol, atol), 2 * rows
    while len(active):
        left = last - t
        final = h >= left
        size = torch.minimum(h, left)
        after = torch.where(final, last, t + size)
        end = clock.of(after)
        tried = attempt(flow, y, u, end - u, velocity, steering=steering)
        rows += CALLS * len(active)
        ratio = error_ratio(tried, y, rtol, atol)
        taken, h = ratio <= 1, size * factor(ratio, before)
        column = taken.unsqueeze(1)
        y, velocity = torch.where(column, tried.end, y), torch.where(column, tried.velocity, velocity)
        failed = ~taken & (h < least)
        t, u, before = (torch.where(taken, *v) for v in ((after, t), (end, u), (ratio, before)))
        over_now = ((taken & final) | failed) & live
        if not bool(over_now.any()):
            continue
        ends[active[over_now]] = y[over_now]
        failed &= live
        failed_at[active[failed]], unmet[active[failed]] = t[failed], torch.isfinite(tried.error[failed]).all(1)
        live = live & ~over_now
        if int(live.sum()) <= fewest * len(y):
            fewest = 1.0
            active, y, velocity, t, u, h, before = (v[live] for v in (active, y, velocity, t, u, h, before))
            live = live[live]
            flow, steering = fields(active)
    return Solution(ends, failed_at, unmet, rows)
