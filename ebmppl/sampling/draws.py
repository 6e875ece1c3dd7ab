"""Finished draws and their statistics, row by row of each chain."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Counts(NamedTuple):
    """By chain ``(chains,)``: transitions that finished, and how many of them diverged (thinned ones too)."""

    finished: Tensor
    diverging: Tensor


class Draws:
    """Buffers ``(capacity, chains, ...)`` that grow as chains finish draws, each chain at its own pace.

    Args:
        chains: number of chains.
        thinning: keep every so many-th transition.
        columns: coordinates of the flattened position to keep; None for all. An empty tensor keeps statistics only.
    """

    def __init__(self, chains: int, thinning: int = 1, columns: Tensor | None = None) -> None:
        self.chains, self.thinning, self.columns = chains, thinning, columns
        self._reserved = 0
        self.buffers: dict[str, Tensor] = {}  # "position" and the fields of the kernel's info

    def counts(self, device: torch.device) -> Counts:
        """Nothing finished yet."""
        zero = torch.zeros(self.chains, dtype=torch.int64, device=device)
        return Counts(zero, zero.clone())

    def extend(self, counts: Counts, log: list[tuple[Tensor, Any]]) -> Counts:
        """Take in the ticks of ``log``, pairs of position ``(chains, *event)`` and info, and count their draws.

        What was written beyond the counts (by a call that was interrupted) is written again.
        """
        done = torch.stack([info.done for _, info in log])  # (ticks, chains)
        nth = counts.finished + done.cumsum(0)  # transitions finished up to and with this tick
        diverging = (torch.stack([info.diverging for _, info in log]) & done).sum(0)
        if bool(done.all()) and bool((nth == nth[:, :1]).all()):
            self._extend_in_step(int(counts.finished[0]), log)
        else:
            keep = done if self.thinning == 1 else done & (nth % self.thinning == 0)
            at = keep.flatten().nonzero().squeeze(1)
            to = (nth.flatten().index_select(0, at) // self.thinning - 1) * self.chains + at % self.chains
            for name, values in self._columns(log):
                rows = torch.stack(values).flatten(0, 1).index_select(0, at)
                most = int(to.max()) // self.chains + 1 if len(to) else 0
                self._buffer(name, values[0], most).flatten(0, 1).index_copy_(0, to, rows)
        return Counts(nth[-1], counts.diverging + diverging)

    def _extend_in_step(self, finished: int, log: list[tuple[Tensor, Any]]) -> None:
        """All chains finished a draw in every tick: whole slices are copied."""
        kept = [entry for t, entry in enumerate(log, finished + 1) if t % self.thinning == 0]
        first = finished // self.thinning
        if kept:
            for name, values in self._columns(kept):
                buffer = self._buffer(name, values[0], first + len(kept))
                torch.stack(values, out=buffer[first : first + len(kept)])

    def _columns(self, log: list[tuple[Tensor, Any]]) -> Iterator[tuple[str, list[Tensor]]]:
        """By field, its values ``(chains, ...)`` at each tick."""
        positions = [x.reshape(self.chains, -1) for x, _ in log]
        if self.columns is not None:
            positions = [x.index_select(1, self.columns) for x in positions]
        yield "position", positions
        for name in type(log[0][1])._fields:
            if name != "done":
                yield name, [getattr(info, name) for _, info in log]

    def _buffer(self, name: str, like: Tensor, draws: int) -> Tensor:
        """The buffer of a field, with room for so many draws of every chain."""
        buffer = self.buffers.get(name)
        old = 0 if buffer is None else len(buffer)
        if buffer is None or old < draws:
            grown = like.new_zeros((max(draws, self._reserved, old * 3 // 2), *like.shape))
            if buffer is not None:
                grown[:old] = buffer
            buffer = self.buffers[name] = grown
        return buffer

    def reserve(self, draws: int) -> None:
        """Room for so many draws of every chain, so that growing need not copy."""
        self._reserved = draws

    def select(self, start: int, stop: int) -> dict[str, Tensor]:
        """Draws ``start`` to ``stop`` of every chain, each ``(chains, draws, ...)``."""
        return {name: buffer[start:stop].transpose(0, 1) for name, buffer in self.buffers.items()}
