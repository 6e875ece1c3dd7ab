"""Finished draws and their statistics, row by row of each chain."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ebmppl.kernels.dual_averaging import HOPELESS
from ebmppl.sampling.places import Places


class Counts(NamedTuple):
    """By chain ``(chains,)``: transitions that finished, and how many of them diverged (thinned ones too)."""

    finished: Tensor
    diverging: Tensor


class Now(NamedTuple):
    """Everything that a tick changes. Replaced as a whole, so that an interrupt finds it whole."""

    tick: int
    state: Any
    tuning: Any
    adaptation: Any
    counts: Counts | None
    log: tuple[Any, Tensor, Any] | None  # ticks that wait for their harvest: (older, position, info)
    own: Tensor | None = None  # (chains,) ticks that each chain has made, where some have left out the last ones
    begun: int = 0  # tick at which counting began
    computed: int = 0  # ticks of all chains together, with those of chains that nobody looked at


Ticks = Sequence[Tensor] | Tensor  # values ``(chains, ...)`` of some ticks, one by one or stacked


class Draws:
    """Buffers ``(capacity, chains, ...)`` that grow as chains finish draws, each chain at its own pace.

    Args:
        chains: number of chains.
        thinning: keep every so many-th transition.
        columns: coordinates of the flattened position to keep; None for all. An empty tensor keeps statistics only.
        fields: names of what to keep, "position" among them; None for all.
    """

    def __init__(
        self, chains: int, thinning: int = 1, columns: Tensor | None = None, fields: Sequence[str] | None = None
    ) -> None:
        self.chains, self.thinning, self.columns, self.fields = chains, thinning, columns, fields
        self._reserved = 0
        self.buffers: dict[str, Tensor] = {}  # "position" and the fields of the kernel's info

    def counts(self, device: torch.device) -> Counts:
        """Nothing finished yet."""
        zero = torch.zeros(self.chains, dtype=torch.int64, device=device)
        return Counts(zero, zero.clone())

    def extend(self, counts: Counts, log: Mapping[str, Ticks], places: Places | None = None) -> Counts:
        """Take in some ticks, "position" ``(chains, *event)`` and the fields of an info, and count their draws.

        What was written beyond the counts (by a call that was interrupted) is written again.

        Args:
            counts: until now.
            log: of the ticks.
            places: where chains are in it, where they are not in order.
        """
        if places is not None:
            return self._extend_some(counts, log, places)
        done = stacked(log["done"])  # (ticks, chains)
        nth = counts.finished + done.cumsum(0, dtype=torch.int32)  # transitions finished up to and with this tick
        diverging = (stacked(log["diverging"]) & done).sum(0)
        if bool(done.all()) and bool((nth == nth[:, :1]).all()):
            self._extend_in_step(int(counts.finished[0]), log)
        else:
            at = self._kept(done, nth).flatten().nonzero().squeeze(1)
            self._scatter(log, at, nth.flatten().index_select(0, at), at % self.chains)
        return Counts(nth[-1], counts.diverging + diverging)

    def _extend_some(self, counts: Counts, log: Mapping[str, Ticks], places: Places) -> Counts:
        chains, used = places
        done = stacked(log["done"])[:, : len(chains)] & used
        nth = counts.finished[chains] + done.cumsum(0, dtype=torch.int32)
        diverging = (stacked(log["diverging"])[:, : len(chains)] & done).sum(0)
        tick, place = self._kept(done, nth).nonzero(as_tuple=True)
        self._scatter(log, tick * self.chains + place, nth[tick, place], chains[place])
        return Counts(
            counts.finished.index_copy(0, chains[used], nth[-1][used]),
            counts.diverging.index_add(0, chains[used], diverging[used]),
        )

    def _kept(self, done: Tensor, nth: Tensor) -> Tensor:
        return done if self.thinning == 1 else done & (nth % self.thinning == 0)

    def _scatter(self, log: Mapping[str, Ticks], at: Tensor, nth: Tensor, chain: Tensor) -> None:
        """Copy what is ``at`` these places of a log: of that chain its ``nth`` transition."""
        to = (nth // self.thinning - 1) * self.chains + chain
        most = int(to.max()) // self.chains + 1 if len(to) else 0
        for name, values in self._columns(log):
            rows = stacked(values).flatten(0, 1).index_select(0, at)
            self._buffer(name, values[0], most).flatten(0, 1).index_copy_(0, to, rows)

    def _extend_in_step(self, finished: int, log: Mapping[str, Ticks]) -> None:
        """All chains finished a draw in every tick: whole slices are copied."""
        skipped = (-finished - 1) % self.thinning  # ticks until the next draw that is kept
        first, kept = finished // self.thinning, len(range(skipped, len(log["done"]), self.thinning))
        if kept:
            for name, values in self._columns(log):
                buffer = self._buffer(name, values[0], first + kept)
                to = buffer[first : first + kept]
                if isinstance(values, Tensor):
                    to.copy_(values[skipped :: self.thinning])
                else:
                    torch.stack(list(values[skipped :: self.thinning]), out=to)

    def _columns(self, log: Mapping[str, Ticks]) -> Iterator[tuple[str, Ticks]]:
        """By field, its values ``(chains, ...)`` at each tick."""
        wanted = log.keys() - {"position", "done"}
        if self.fields is not None:
            wanted = wanted & set(self.fields)
        yield from ((name, log[name]) for name in log if name in wanted)
        if self.fields is not None and "position" not in self.fields:
            return
        x, columns = log["position"], self.columns
        if isinstance(x, Tensor):
            x = x.reshape(len(x), self.chains, -1)
            yield "position", x if columns is None else x.index_select(2, columns)
        else:
            rows = [point.reshape(self.chains, -1) for point in x]
            yield "position", rows if columns is None else [row.index_select(1, columns) for row in rows]

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

    def cut(self, counts: Counts, kept: int) -> Counts:
        """Let go of what chains drew beyond the draws that were kept; of thinned-out transitions, divergences count on."""
        diverging, more = self.buffers.get("diverging"), int(counts.finished.max()) // self.thinning
        past = counts.diverging
        if diverging is not None and more > kept:
            row = torch.arange(kept, more, device=past.device).unsqueeze(1)
            past = past - (diverging[kept:more] & (row < counts.finished // self.thinning)).sum(0)
        return Counts(counts.finished.clamp_max(kept * self.thinning), past)

    def reserve(self, draws: int) -> None:
        """Room for so many draws of every chain, so that growing need not copy."""
        self._reserved = draws

    def select(self, start: int, stop: int) -> dict[str, Tensor]:
        """Draws ``start`` to ``stop`` of every chain, each ``(chains, draws, ...)``."""
        return {name: buffer[start:stop].transpose(0, 1) for name, buffer in self.buffers.items()}


def stacked(values: Ticks) -> Tensor:
    """``(ticks, chains, ...)``."""
    return values if isinstance(values, Tensor) else torch.stack(list(values))


def finished(log: Mapping[str, Ticks]) -> tuple[Tensor, Tensor]:
    """The points ``(draws, dimension)`` of some ticks, chain by chain, and how many each chain drew ``(chains,)``.

    Not those that diverging chains only repeat.
    """
    hopeless = stacked(log["diverging"]) & (stacked(log["acceptance_rate"]) < HOPELESS)
    good, x = stacked(log["done"]) & ~hopeless, stacked(log["position"])
    chain, tick = good.mT.nonzero(as_tuple=True)
    points = x.reshape(x.shape[0] * x.shape[1], -1)
    return points.index_select(0, tick * x.shape[1] + chain), good.sum(0)


def unlink(node: tuple[Any, Tensor, Any] | None) -> dict[str, Ticks]:
    """What eager ticks left, a list of (older, position, info) linked from the newest on, by field."""
    positions, infos = [], []
    while node is not None:
        node, position, info = node
        positions.append(position)
        infos.append(info)
    fields = zip(*infos[::-1], strict=True)
    return {"position": positions[::-1], **dict(zip(type(infos[0])._fields, fields, strict=True))}
