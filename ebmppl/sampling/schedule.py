"""Stan's warm-up schedule: a fast start, windows that double, a fast end."""

from __future__ import annotations

from typing import NamedTuple


class Window(NamedTuple):
    """A stretch of warm-up, in draws per chain."""

    length: int
    metric: bool  # its draws set the mass matrix at its end


def stan_windows(warmup_steps: int) -> list[Window]:
    """75 draws for the step size, windows of 25, 50, 100 ... draws for the metric, 50 for the step size.

    Under 150 draws the first part takes 15 per cent and the last one 10, as in Stan, but at least 25 draws or half of
    all: dual averaging begins it at ten times the step size, and needs about so many updates. Under 20 only the step
    size adapts (Stan reference manual, "Automatic parameter tuning").

    Example:
        >>> [w.length for w in stan_windows(500)]
        [75, 25, 50, 100, 200, 50]
    """
    if warmup_steps < 20:
        return [Window(warmup_steps, metric=False)] if warmup_steps else []
    start, base, end = 75, 25, 50
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
