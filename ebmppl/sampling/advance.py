"""Eager ticks of which only the last draw counts: of chains at their own pace, and of chains in step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ebmppl.kernels.base import Kernel
from ebmppl.sampling.draws import Now
from ebmppl.sampling.noise import NoiseSource
from ebmppl.score.conditions import chosen_rows


class _Rows(Mapping[str, Tensor]):
    """Some chains' row of the noise, drawn where asked for."""

    def __init__(self, whole: Mapping[str, Tensor], rows: Tensor) -> None:
        self._whole, self._rows = whole, rows

    def __getitem__(self, name: str) -> Tensor:
        return self._whole[name].index_select(0, self._rows)

    def __iter__(self) -> Iterator[str]:
        return iter(self._whole)

    def __len__(self) -> int:
        return len(self._whole)


def advance_apart(kernel: Kernel, noise: NoiseSource, now: Now, n: int) -> Now:
    """Exactly n draws of every chain by eager ticks of those that still need some.

    A chain's draws are those that it makes beside all others, as its row of the noise is the same.
    """
    state, whole, tick = now.state, now.state, now.tick
    rows = torch.arange(noise.chains, device=noise.device)
    left = torch.full_like(rows, n)
    while len(rows):
        row = noise.row(tick)
        if len(rows) == noise.chains:
            state, info = kernel.tick(state, now.tuning, row)
        else:
            with chosen_rows(kernel.target.fn, rows):
                state, info = kernel.tick(state, now.tuning, _Rows(row, rows))
        tick, left = tick + 1, left - info.done.long()
        on = left > 0
        if not bool(on.all()):
            place, ended = rows[~on], tree_map(lambda part, on=on: part[~on], state)
            whole = tree_map(lambda all_, part, place=place: all_.index_copy(0, place, part), whole, ended)
            state, rows, left = tree_map(lambda part, on=on: part[on], state), rows[on], left[on]
    return now._replace(state=whole, tick=tick)


def advance_together(kernel: Kernel, noise: NoiseSource, now: Now, ticks: int, rates: list[Tensor] | None) -> Now:
    """So many eager ticks of chains in step; ``rates`` gets the acceptance rates ``(chains,)`` of each."""
    rows = [noise.row(tick) for tick in range(now.tick, now.tick + ticks)]
    state, found = kernel.ticks(now.state, now.tuning, rows)
    if rates is not None:
        rates += found
    return now._replace(tick=now.tick + ticks, state=state, log=None)
