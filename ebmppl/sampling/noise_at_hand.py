"""The noise of the ticks to come, where a compiled run reads it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor

from ebmppl.sampling.noise import NoiseSource

EVER = 1 << 62  # ticks: of numbers that are drawn as they are needed


class NoiseAtHand:
    """The numbers of the ticks to come, in memory that a compiled run reads.

    Args:
        noise: of the run.

    Attributes:
        chunks: memory ``(rows, chains, *shape)`` by name.
        rows: how many each has.
        held: for how many ticks each is; ``EVER`` where numbers are drawn before each tick, see ``before_tick``.
    """

    def __init__(self, noise: NoiseSource) -> None:
        self._noise = noise
        now = {name for name, hashed in noise.hashed.items() if hashed.native()}
        self.rows = {name: 1 if name in now else rows for name, rows in noise.held_rows.items()}
        self.held = {name: EVER if name in now else ticks for name, ticks in noise.held.items()}
        self.chunks = [noise.chunk(name, 0)[:1].clone() if name in now else noise.fill(name, 0) for name in noise.specs]
        self._number = dict.fromkeys(noise.specs, 0)
        self._which: Tensor | None = None

    def arrange(self, which: Tensor | None) -> None:
        """Have the numbers of these chains in the places ``0, 1, ...`` from now on; all chains' in order when None."""
        self._which = which
        self._number = {name: 0 if held == EVER else -1 for name, held in self.held.items()}

    def have(self, tick: int, most: int, threads: int | None = None) -> int:
        """Have those of a tick; for how many ticks, at most ``most``, they then are there."""
        for (name, size), buffer in zip(self.held.items(), self.chunks, strict=True):
            number, row = divmod(tick, size)
            if self._number[name] != number:
                self._noise.fill(name, number, buffer, threads)
                if self._which is not None:
                    buffer[:, : len(self._which)] = buffer.index_select(1, self._which)
                self._number[name] = number
            most = min(most, size - row)
        return most

    def before_tick(
        self, chunks: Sequence[Tensor], tick: Tensor | None, state: Any, which: Tensor | None = None
    ) -> list[partial[Any]]:
        """Calls that draw what a tick needs.

        Args:
            chunks: memory of the chains in question.
            tick: its number, read when a call is made.
            state: of these chains, read then, too.
            which: their numbers, read then, too; all in order when None.
        """
        calls = []
        for (name, spec), chunk in zip(self._noise.specs.items(), chunks, strict=True):
            if self.held[name] != EVER:
                continue
            assert tick is not None  # the program counts ticks where one is held for ever
            counter = None if spec.where_zero is None else getattr(state, spec.where_zero)
            calls.append(self._noise.hashed[name].before_tick(chunk[0], tick, which, counter))
        return calls
