"""Stan's warm-up schedule: a fast start, windows that double, a fast end."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from ebmppl.errors import SamplingError
from ebmppl.sampling.draws import Counts

ENOUGH = 10  # draws of each chain that tell whether a window of warm-up is lost
FEW = 5  # that tell whether a whole short warm-up is lost
_FEWEST_TICKS = 4  # least between two looks, where chains finish at their own pace


class Window(NamedTuple):
    """A stretch of warm-up, in draws per chain."""

    length: int
    metric: bool  # its draws set the mass matrix at its end


def stan_windows(warmup_steps: int, chains: int = 1) -> list[Window]:
    """75 draws for the step size, windows of 25, 50, 100 ... draws for the metric, 50 for the step size.

    Under 150 draws the first part takes 15 per cent and the last one 10, as in Stan, but at least 25 draws or half of
    all: dual averaging begins it at ten times the step size, and needs about so many updates. Under 20 only the step
    size adapts (Stan reference manual, "Automatic parameter tuning").

    Chains that pool their draws know enough for a first metric sooner, and until then trajectories are at their longest:
    the first two lengths are divided by the square root of the number of chains, down to 20 and 15, which dual
    averaging needs to forget its first leaps.

    Example:
        >>> [w.length for w in stan_windows(500)]
        [75, 25, 50, 100, 200, 50]
        >>> [w.length for w in stan_windows(500, chains=64)]
        [20, 15, 30, 60, 325, 50]
    """
    if warmup_steps < 20:
        return [Window(warmup_steps, metric=False)] if warmup_steps else []
    share = math.sqrt(chains)
    start, base, end = max(20, math.ceil(75 / share)), max(15, math.ceil(25 / share)), 50
    if start + base + end > warmup_steps:
        start, end = int(0.15 * warmup_steps), max(int(0.1 * warmup_steps), min(25, warmup_steps // 2))
        base = warmup_steps - start - end
    windows = [Window(start, metric=False)]
    left = warmup_steps - start - end
    while left:
        length = base if left >= 3 * base else left  # a next window of twice the size must still fit
        windows.append(Window(length, metric=True))
        left -= length
        base *= 2
    return [*windows, Window(end, metric=False)]


def ticks_to_next_look(left: int, drawn: int, ticks: int, chains: int, synchronous: bool) -> int:  # noqa: FBT001
    """Ticks until one looks again whether a window ended; 0 when it has.

    Args:
        left: draws of all chains that it still takes.
        drawn: draws in the window so far.
        ticks: and in how many ticks.
        chains: how many.
        synchronous: whether every tick draws.
    """
    if left <= 0:
        return 0
    least = left // chains  # no chain finishes more than one draw in a tick
    if synchronous:
        return max(1, least)
    # less than the pace so far tells, so that a window ends only some ticks late
    return max(_FEWEST_TICKS, least, 3 * left * ticks // (4 * max(1, drawn)))


class Looks:
    """When one looks whether a window ended, whatever the blocks in which ticks are made.

    Args:
        tick: of the run, at which the window begins.
        chains: how many.
        synchronous: whether every tick draws.
        most: ticks between two looks.
    """

    def __init__(self, tick: int, chains: int, synchronous: bool, most: int) -> None:  # noqa: FBT001
        self._begun = self._next = tick
        self._chains, self._synchronous, self._most = chains, synchronous, most

    def until_next(self, tick: int, wanted: int, drawn: Callable[[], int]) -> int:
        """Ticks until then; 0 when the window has its ``wanted`` draws of all chains."""
        if tick == self._next:
            now = drawn()
            ticks = ticks_to_next_look(wanted - now, now, tick - self._begun, self._chains, self._synchronous)
            self._next += min(ticks, self._most)
        return self._next - tick


def require_some_good(begun: Counts, now: Counts, enough: int, tuning: Any) -> None:
    """Raise ``SamplingError`` in a warm-up that can't learn anything: all transitions of all chains since then diverged.

    Kernels without a step size have nothing to learn, and among hard walls every sweep may meet one.
    """
    step = getattr(tuning, "step_size", None)
    finished = int((now.finished - begun.finished).sum())
    diverged = int((now.diverging - begun.diverging).sum())
    if step is None or diverged < finished or finished < enough * len(now.finished):
        return
    raise SamplingError(
        f"all {finished} transitions of {len(now.finished)} chains diverged in warm-up at a step size of "
        f"{float(step):.3g}: begin where the energy is smooth (initial_params), bring the parameters to a scale of "
        "about one, or give a smaller step_size"
    )
