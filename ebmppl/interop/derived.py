"""Variables computed from draws: statistics of points, some draws at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ebmppl.energies.base import ONE_SITE, Energy, require_names

Statistic = Callable[[Any], Tensor]
Statistics = Mapping[str, Statistic]
_NUMBERS = 1 << 22  # of the points that a statistic is called with at once


def derived(
    samples: Mapping[str, Tensor], statistics: Statistics, taken: Iterable[str] | None = None
) -> dict[str, Tensor]:
    """Statistics ``(chains, draws, ...)`` by name, of draws ``(chains, draws, *site)`` by site.

    Args:
        samples: by site.
        statistics: functions of a batch of points ``(batch, *site)`` that give ``(batch,)`` or ``(batch, ...)``. Of
            several sites, or of one not called "x", they get a dict. An ``Energy`` is one.
        taken: names that statistics can't have; those of the sites when None.

    Raises:
        ValueError: for a name that a site or ArviZ has, or a result of another batch size.
    """
    require_names(statistics)
    known = set(samples if taken is None else taken)
    twice = sorted(set(statistics) & known)
    if twice:
        raise ValueError(f"expected names of statistics other than {sorted(known)}, got {twice}")
    return {name: _of_draws(name, statistic, samples) for name, statistic in statistics.items()}


@torch.no_grad()
def _of_draws(name: str, statistic: Statistic, samples: Mapping[str, Tensor]) -> Tensor:
    chains, draws = next(iter(samples.values())).shape[:2]
    numbers = sum(value[:, :1].numel() for value in samples.values())
    step = max(1, _NUMBERS // max(numbers, 1))
    parts = []
    for start in range(0, draws, step):
        points = {site: value[:, start : start + step].flatten(0, 1) for site, value in samples.items()}
        batch = len(next(iter(points.values())))
        found = torch.as_tensor(statistic(_argument(statistic, points)))
        if found.dim() == 0 or len(found) != batch:
            raise ValueError(
                f"expected statistic {name!r} of shape ({batch},) or ({batch}, ...) for {batch} points, "
                f"got {tuple(found.shape)}"
            )
        parts.append(found.unflatten(0, (chains, batch // chains)))
    return torch.cat(parts, 1)


def _argument(statistic: Statistic, points: dict[str, Tensor]) -> Any:
    if isinstance(statistic, Energy):
        return statistic.pack(points)
    return points[ONE_SITE] if set(points) == {ONE_SITE} else points
