"""Random numbers for ticks: a function of (seed, name, tick, block of 64 chains), and never the global generator."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ebmppl.kernels.base import NoiseSpec
from ebmppl.kernels.pooling import BLOCK
from ebmppl.sampling.hashed import Hashed

STREAMS = {"ticks": 0, "initial": 1, "step_size": 2}
_MOST_TICKS = 32  # of one draw
_MOST_AT_HAND = 128  # ticks of a compiled run
_CALL = 1 << 12  # numbers that make a call of the generator worth while on a CPU
_MOST_NUMBERS = 1 << 14  # of one call on a CPU; they stay in cache
_HELD = 1 << 17  # numbers that a compiled run has at hand on a CPU; a level-2 cache holds them
_FEW_BLOCKS = 8  # for which Python's integers are faster than an array
_WORTH_THREADS = 1 << 15  # numbers of one call that several threads share
_ON_DEVICE = 1 << 17  # numbers of one call on a device, where a call costs more than they
_DRAW: dict[str, Callable[..., Tensor]] = {
    "normal": Tensor.normal_,
    "uniform": Tensor.uniform_,
    "bits": lambda place, generator: place.random_(-(1 << 31), 1 << 31, generator=generator),
}


class _Drawn(NamedTuple):
    chunk: int  # which ticks: chunk * ticks ... (chunk + 1) * ticks - 1
    rows: tuple[Tensor, ...]  # (chains, *shape) for each tick, or one for all


class NoiseSource:
    """The noise of every tick of a run, drawn some ticks at a time, when it is asked for.

    A generator is seeded anew for every block of 64 chains and every few ticks. So the numbers of a chain change
    neither with the number of blocks nor with where a run was stopped and continued nor with what was asked for
    before, and numbers that nobody looks at are not drawn. How many ticks are drawn at once depends on the spec and
    the kind of device alone. On a CPU normal and uniform numbers need no generator: they are hashes, see ``hashed.py``.

    Args:
        specs: what one tick of one chain needs.
        chains: number of chains.
        seed: of the run.
        dtype: of the numbers; bits are int32.
        device: of the numbers.
        stream: independent streams of one seed: "ticks", "initial" or "step_size".

    Attributes:
        hashed: by name, the numbers that are hashes.
        rows: by name, how many rows one draw has.
        ticks: by name, for how many ticks it is: the same, or as many as a row is held for.
        held_rows: by name, how many rows ``fill`` gives: those of one draw or several.
        held: by name, for how many ticks these are.
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
        unknown = {spec.kind for spec in specs.values()} - _DRAW.keys()
        if unknown:
            raise ValueError(f"expected noise of kind {', '.join(map(repr, _DRAW))}, got {sorted(unknown)}")
        self.specs, self.chains, self.dtype, self.device = dict(specs), chains, dtype, device
        self._generator = torch.Generator(device)
        sequence = np.random.SeedSequence([seed, STREAMS[stream]])
        starts, long_starts = (sequence.generate_state(len(specs), t).tolist() for t in (np.uint32, np.uint64))
        self._starts: dict[str, int] = dict(zip(specs, starts, strict=True))
        self.hashed: dict[str, Hashed] = {}
        self.rows: dict[str, int] = {}
        for (name, spec), start in zip(self.specs.items(), long_starts, strict=True):
            self.rows[name] = 1 if spec.held > 1 else _at_once(spec, device)
            if is_hashed(spec, device):
                self.hashed[name] = hashed = Hashed(spec.kind, _size(spec), chains, start, dtype)
                self.rows[name] = hashed.at_once
        self.ticks = {name: max(self.rows[name], spec.held) for name, spec in self.specs.items()}
        self.blocks = -(-chains // BLOCK)
        draws = {name: self._draws(name) for name in self.specs}  # of one ``fill``
        self.held = {name: draws[name] * ticks for name, ticks in self.ticks.items()}
        self.held_rows = {name: draws[name] * rows for name, rows in self.rows.items()}
        self._drawn: dict[str, _Drawn] = {}

    def row(self, tick: int) -> Mapping[str, Tensor]:
        """Noise ``(chains, *shape)`` by name for a tick. Ticks one after another share draws."""
        return _Row(self, tick)

    def numbers(self, name: str, tick: int) -> Tensor:
        """One of the row's values."""
        chunk, row = divmod(tick, self.ticks[name])
        drawn = self._drawn.get(name)
        if drawn is None or drawn.chunk != chunk:
            drawn = self._drawn[name] = _Drawn(chunk, self.chunk(name, chunk).unbind(0))
        return drawn.rows[row if len(drawn.rows) > 1 else 0]

    def fill(self, name: str, number: int, out: Tensor | None = None, threads: int | None = None) -> Tensor:
        """Numbers of the ticks ``number * held`` and after, ``held_rows`` of several draws, in ``out`` if given.

        Args:
            name: of the numbers.
            number: of the call.
            out: where they go.
            threads: that share the work where it is worth it; torch's setting when None.
        """
        out = self._room(name, self.held_rows[name]) if out is None else out
        if name in self.hashed:
            return out.copy_(self._hashes(name, number * len(out), len(out)))
        parts = out.split(self.rows[name])
        self._fill(name, number * len(parts), parts, torch.get_num_threads() if threads is None else threads)
        return out

    def _hashes(self, name: str, first: int, ticks: int) -> Tensor:
        return self.hashed[name].draw(first, ticks).view(ticks, self.chains, *self.specs[name].shape)

    def _room(self, name: str, rows: int) -> Tensor:
        """For so many rows."""
        spec = self.specs[name]
        dtype = torch.int32 if spec.kind == "bits" else self.dtype
        return torch.empty((rows, self.chains, *spec.shape), dtype=dtype, device=self.device)

    def _draws(self, name: str) -> int:
        """How many draws a compiled run has at hand: it stops to fetch the next ones."""
        numbers = self.rows[name] * self.chains * _size(self.specs[name])
        several = self.device.type == "cpu" and self.specs[name].held == 1
        return max(1, min(_MOST_AT_HAND // self.rows[name], _HELD // numbers)) if several else 1

    def chunk(self, name: str, chunk: int) -> Tensor:
        """What is drawn, ``(rows, chains, *shape)``, for the ticks ``chunk * ticks`` and after."""
        if name in self.hashed:
            return self._hashes(name, chunk * self.rows[name], self.rows[name])
        whole = self._room(name, self.rows[name])
        self._fill(name, chunk, [whole], torch.get_num_threads())
        return whole

    def _fill(self, name: str, first: int, chunks: Sequence[Tensor], threads: int) -> None:
        """Draw chunks number ``first`` and after."""
        places = [self._places(rows) for rows in chunks]
        every = [place for own in places for place in own]
        seeds = block_seeds(self._starts[name], first, self.blocks, len(chunks))
        draw = _DRAW[self.specs[name].kind]
        worth = every[0].is_cpu and sum(rows.numel() for rows in chunks) >= _WORTH_THREADS
        several = min(threads, len(every)) if worth else 1

        def share(number: int) -> None:
            generator = self._generator if several == 1 else torch.Generator(self.device)
            for place, seed in zip(every[number::several], seeds[number::several], strict=True):
                draw(place, generator=generator.manual_seed(seed))

        if several == 1:
            share(0)
        else:  # torch lets go of Python's lock while it draws
            list(_helpers(os.getpid()).map(share, range(several)))
        for rows, own in zip(chunks, places, strict=True):
            if len(own) > 1 and len(rows) > 1:
                torch.cat(own, 1, out=rows)

    def _places(self, whole: Tensor) -> list[Tensor]:
        """For each block's numbers of a chunk: memory that is contiguous, the chunk's own where that is."""
        if self.blocks == 1:
            return [whole]
        if len(whole) == 1:
            return list(whole[0].split(BLOCK))
        return [torch.empty_like(part, memory_format=torch.contiguous_format) for part in whole.split(BLOCK, 1)]


class _Row(Mapping[str, Tensor]):
    """The noise of one tick, drawn at the first look."""

    def __init__(self, source: NoiseSource, tick: int) -> None:
        self.source, self.tick = source, tick
        self._seen: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._seen:
            self._seen[name] = self.source.numbers(name, self.tick)
        return self._seen[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.source.specs)

    def __len__(self) -> int:
        return len(self.source.specs)


@cache
def _helpers(process: int) -> ThreadPoolExecutor:  # a fork has no threads of its parent's
    return ThreadPoolExecutor(thread_name_prefix="ebmppl-noise")


def _size(spec: NoiseSpec) -> int:
    return max(1, torch.Size(spec.shape).numel())


def is_hashed(spec: NoiseSpec, device: torch.device) -> bool:
    """Whether these numbers are hashes, which C++ draws in compiled runs."""
    return device.type == "cpu" and spec.kind != "bits" and spec.held == 1 and 0 not in spec.shape


def _at_once(spec: NoiseSpec, device: torch.device) -> int:
    """Ticks of one draw."""
    row = BLOCK * _size(spec)
    most = _ON_DEVICE if device.type != "cpu" else _MOST_NUMBERS if row < _CALL else row
    return max(1, min(_MOST_TICKS, most // row))


def block_seeds(start: int, chunk: int, blocks: int, chunks: int = 1) -> list[int]:
    """Seeds of 32 bits (a CPU's Mersenne twister takes no more) for every block at a chunk of ticks, or at several.

    Blocks are the golden section of 2^32 apart and chunks one, so that no two of up to 4096 blocks and 2^18 chunks
    meet (three-distance theorem); then MurmurHash3's finalizer, a bijection, scatters them.
    """
    if blocks * chunks <= _FEW_BLOCKS:
        places = [(chunk + c, block) for c in range(chunks) for block in range(blocks)]
        return [_scattered(start + c + block * 0x9E3779B1) for c, block in places]
    of_chunks = np.arange(chunk, chunk + chunks, dtype=np.uint64)[:, None]
    seeds: list[int] = _scattered(start + of_chunks + np.arange(blocks, dtype=np.uint64) * 0x9E3779B1).ravel().tolist()
    return seeds


def _scattered(x: Any) -> Any:
    """Of an integer of Python's or an array."""
    x = x & 0xFFFFFFFF
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = ((x ^ (x >> shift)) * factor) & 0xFFFFFFFF
    return x ^ (x >> 16)
