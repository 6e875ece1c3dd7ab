"""Finished draws and their statistics, row by row of each chain."""

from __future__ import annotations

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
        keep = done if self.thinning == 1 else done & (nth % self.thinning == 0)
        tick, chain = keep.nonzero(as_tuple=True)
        slot = nth[tick, chain] // self.thinning - 1
        for name, values in self._columns(log).items():
            self._write(name, values, (slot, chain), (tick, chain))
        diverging = torch.stack([info.diverging for _, info in log]) & done
        return Counts(nth[-1], counts.diverging + diverging.sum(0))

    def _columns(self, log: list[tuple[Tensor, Any]]) -> dict[str, Tensor]:
        positions = [x.reshape(self.chains, -1) for x, _ in log]
        if self.columns is not None:
            positions = [x.index_select(1, self.columns) for x in positions]
        fields = {
            name: torch.stack(values)
            for name, values in zip(type(log[0][1])._fields, zip(*(info for _, info in log), strict=True), strict=True)
            if name != "done"
        }
        return {"position": torch.stack(positions), **fields}

    def _write(self, name: str, values: Tensor, to: tuple[Tensor, Tensor], at: tuple[Tensor, Tensor]) -> None:
        buffer = self.buffers.get(name)
        if buffer is None:
            buffer = values.new_zeros((0, *values.shape[1:]))
        needed = int(to[0].max()) + 1 if len(to[0]) else 0
        if needed > len(buffer):
            grown = values.new_zeros((max(needed, len(buffer) * 3 // 2), *values.shape[1:]))
            grown[: len(buffer)] = buffer
            buffer = grown
        buffer[to] = values[at]
        self.buffers[name] = buffer

    def reserve(self, draws: int) -> None:
        """Room for so many draws of every chain, so that growing need not copy."""
        for name, buffer in self.buffers.items():
            if len(buffer) < draws:
                grown = buffer.new_zeros((draws, *buffer.shape[1:]))
                grown[: len(buffer)] = buffer
                self.buffers[name] = grown

    def select(self, start: int, stop: int) -> dict[str, Tensor]:
        """Draws ``start`` to ``stop`` of every chain, each ``(chains, draws, ...)``."""
        return {name: buffer[start:stop].transpose(0, 1) for name, buffer in self.buffers.items()}
