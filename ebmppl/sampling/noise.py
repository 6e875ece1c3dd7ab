"""Random numbers for ticks: one generator per block of 64 chains, row t for tick t, and never the global generator."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ebmppl.kernels.adaptation import BLOCK
from ebmppl.kernels.base import NoiseSpec

STREAMS = {"ticks": 0, "initial": 1, "step_size": 2}
_NUMBERS_PER_BLOCK = 1 << 16  # of one generator at a time; its memory stays in cache
_MAX_TICKS = 64


def fresh_seed() -> int:
    """A seed from the operating system."""
    return secrets.randbits(31)


def generators(seed: int, stream: str, chains: int, device: torch.device) -> list[torch.Generator]:
    """One generator for each block of 64 chains, seeded by (seed, stream, block) alone.

    The CPU's Mersenne twister takes 32 bits of seed, so block seeds step by an odd constant: blocks of one stream
    never share a seed.
    """
    start = int(np.random.SeedSequence([seed, STREAMS[stream]]).generate_state(1, np.uint32)[0])
    seeds = ((start + block * 0x9E3779B1) % 2**32 for block in range(-(-chains // BLOCK)))
    return [torch.Generator(device).manual_seed(s) for s in seeds]


class _Rows(NamedTuple):
    block: int  # index of this block of ticks
    before: list[Tensor]  # the generators' states before it was drawn
    rows: list[dict[str, Tensor]]  # one dict of (chains, *shape) for each tick


class NoiseSource:
    """The noise of every tick of a run, drawn some ticks at a time.

    How many ticks are drawn at once depends on the kernel's needs alone, so the numbers of a chain change neither
    with the number of blocks nor with where a run was stopped and continued.

    Args:
        specs: what one tick of one chain needs.
        chains: number of chains.
        seed: of the run.
        dtype: of the numbers.
        device: of the numbers.
        stream: independent streams of one seed: "ticks", "initial" or "step_size".
    """

    def __init__(
        self,
        specs: Mapping[str, NoiseSpec],
        chains: int,
        seed: int,
        dtype: torch.dtype,
        device: torch.device,
        stream: str = "ticks",
    ) -> None:
        unknown = {spec.kind for spec in specs.values()} - {"normal", "uniform"}
        if unknown:
            raise ValueError(f"expected noise of kind 'normal' or 'uniform', got {sorted(unknown)}")
        self.specs, self.chains, self.dtype, self.device = dict(specs), chains, dtype, device
        self._generators = generators(seed, stream, chains, device)
        numbers = sum(torch.Size(spec.shape).numel() for spec in self.specs.values())
        self.ticks = max(1, min(_MAX_TICKS, _NUMBERS_PER_BLOCK // max(1, BLOCK * numbers)))
        self._now = _Rows(-1, [], [])

    def row(self, tick: int) -> dict[str, Tensor]:
        """Noise ``(chains, *shape)`` by name for a tick; ticks come in order."""
        block, row = divmod(tick, self.ticks)
        if block != self._now.block:
            self._draw(block)
        return self._now.rows[row]

    def _draw(self, block: int) -> None:
        before = [g.get_state() for g in self._generators]
        try:
            split = {name: self._numbers(spec).unbind(0) for name, spec in self.specs.items()}
            rows = [{name: numbers[t] for name, numbers in split.items()} for t in range(self.ticks)]
            self._now = _Rows(block, before, rows)
        except BaseException:
            # an interrupt must not leave generators ahead of the rows, or of one another
            for g, state in zip(self._generators, before, strict=True):
                g.set_state(state)
            raise

    def _numbers(self, spec: NoiseSpec) -> Tensor:
        parts = []
        for block, generator in enumerate(self._generators):
            size = min(BLOCK, self.chains - block * BLOCK)
            part = torch.empty((self.ticks, size, *spec.shape), dtype=self.dtype, device=self.device)
            draw = part.normal_ if spec.kind == "normal" else part.uniform_
            parts.append(draw(generator=generator))
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def state(self, tick: int) -> list[Tensor]:
        """The generators' states before the block of a tick, to continue from there."""
        drawn = tick // self.ticks == self._now.block
        return self._now.before if drawn else [g.get_state() for g in self._generators]

    def restore(self, states: list[Tensor]) -> None:
        """Continue from ``state(tick)``: the next call of ``row`` is for that tick."""
        for generator, state in zip(self._generators, states, strict=True):
            generator.set_state(state)
        self._now = _Rows(-1, [], [])
