"""Compiled ticks of many chains in parts that stay in a core's cache, on several threads."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from ebmppl.kernels.base import Kernel
from ebmppl.kernels.hamiltonian import HamiltonianKernel
from ebmppl.sampling.compiled_ticks import Compiled, Job, Share, program_at_hand
from ebmppl.sampling.native import Driver, Team
from ebmppl.sampling.noise_at_hand import NoiseAtHand
from ebmppl.sampling.places import Places, in_order, pack
from ebmppl.sampling.pool import Pool, Unsuited, copy_all
from ebmppl.sampling.program import Carried, first_log
from ebmppl.sampling.replay import Replay
from ebmppl.sampling.scopes import threads

LEAST_CHAINS = 64  # that are worth parts
_PART = 32  # most chains of one
_LARGE = 1 << 24  # numbers of a state whose own memory counts more
_SMALL = 1 << 17  # numbers that a tick of all chains makes; under it a second thread costs more than it brings


def compiled_ticks(job: Job, *, capture: bool, **options: Any) -> Compiled | Parts:
    """The compiled ticks of a run, in parts where that suits it; arguments as of ``Compiled``."""
    rows = isinstance(job.kernel, HamiltonianKernel)  # whose states are known to be one row for each chain
    size = part_size(job.state, job.noise.chains) if rows and not capture else None
    if size is not None:
        with suppress(Unsuited):
            return Parts(job, size=size, **options)
    return Compiled(job, capture=capture, **options)


def part_size(state: Any, chains: int) -> int | None:
    """How many chains a part has, all parts as many; None where the kernel's state is not one row for each chain."""
    rows = all(leaf.dim() > 0 and len(leaf) == chains for leaf in state)
    small = sum(leaf.numel() for leaf in state) <= _LARGE
    if state[0].device.type != "cpu" or chains < LEAST_CHAINS or not rows or not small:
        return None
    size = max(n for n in range(1, _PART + 1) if chains % n == 0)
    return size if 2 * size >= _PART else None


class Parts:
    """The ticks of one run, compiled for a part of its chains; same arguments and methods as ``Compiled``.

    Chains don't see one another, so that each part makes all ticks of a call on its own. Only in warm-up do the parts
    meet after every tick, for the adaptation: that is the pool, compiled by itself.

    Raises:
        Refused: with the reason why ticks have to run eagerly.
        Unsuited: where the calls of a tick can't be made without Python.
    """

    def __init__(
        self,
        job: Job,
        *,
        size: int,
        ticks: int,
        least_nodes: int = 0,
        record: bool = True,
    ) -> None:
        self.noise, self._at_hand = job.noise, NoiseAtHand(job.noise)
        self.program = program_at_hand(job, self._at_hand)
        self.first = self.program.first(job.state, job.tuning, job.averaging)
        self._home, self._tuning, self._adaptation = self.first.state, self.first.tuning, job.adaptation
        own = self._own_steps(self.first.averaging)
        self._used = type(own)(*(a if a is b else a.clone() for a, b in zip(own, self._tuning, strict=True)))
        self.chunks = self._at_hand.chunks
        self.log, info = first_log(self.program, self.first, self.chunks, ticks, record=record)
        if not all(value.dim() and len(value) == job.noise.chains for value in info):
            raise Unsuited
        pool = None
        if record and job.averaging is not None and job.adaptation is not None:
            of_run = self._tuning, self._used, self.first.averaging, self.log, info
            pool = Pool(job.kernel.identity(), job.adaptation, *of_run)
        self._beside: Callable[[], None] = (lambda: None) if pool is None else pool.compile
        self._size = size
        self.places: Places | None = None  # of the chains that tick, where they are not all
        self._which = torch.arange(job.noise.chains).split(
            size
        )  # chains of each part, read by what draws their numbers
        self.parts: list[Compiled] = []
        for begin in range(0, job.noise.chains, size):
            self.parts.append(self._part(job.kernel, begin, begin + size, ticks, least_nodes))
        self.engine, self.traced = self.parts[0].engine, self.parts[0].traced
        work = self.traced.work * len(self.parts)
        self.threads = min(len(self.parts), threads() if work >= _SMALL else 1)
        self._adapting, self._pool = False, None
        if pool is not None:
            pool.prepare()
            self._pool = pool if pool.calls is not None else None
        drivers = [_driver(part.calls) for part in self.parts]
        self._team = Team(drivers, None if self._pool is None else _driver(self._pool.calls))

    def _part(self, kernel: Kernel, begin: int, end: int, ticks: int, least_nodes: int) -> Compiled:
        chunks = [chunk[:, begin:end] for chunk in self.chunks]
        known = (self.parts[0].engine, self.parts[0].traced) if self.parts else None
        pairs = zip(self._used, self._tuning, strict=True)
        tuning = type(self._used)(*(own if own is common else own[begin:end] for own, common in pairs))
        share = Share(
            self._at_hand, self._which[len(self.parts)], chunks, self.log.part(begin, end), tuning, known, self._beside
        )
        state = type(self._home)(*(leaf[begin:end] for leaf in self._home))
        job = Job(kernel, None, self.noise, state, tuning, None)
        return Compiled(job, ticks=ticks, capture=False, least_nodes=least_nodes, share=share)

    def _own_steps(self, averaging: Any | None) -> Any:
        """What ticks take of the tuning in warm-up."""
        if averaging is None or self._adaptation is None:
            return self._tuning
        return self._adaptation.own_steps(averaging, self._tuning)

    @property
    def holds(self) -> bool:
        """Whether the energy has the tensors, modes and attributes that were traced."""
        return self.parts[0].holds

    @property
    def carried(self) -> Carried:
        """State, tuning and averaging; memory that the next ``run`` changes."""
        averaging = self.first.averaging if self._pool is None else self._pool.averaging
        return self.first._replace(state=self._home, averaging=averaging)

    def load(self, state: Any, tuning: Any, averaging: Any | None, *, adapting: bool) -> None:
        """Go on from here; what is this object's own already is left alone."""
        if any(own is not new for own, new in zip(self._home, state, strict=True)):
            copy_all(self._home, state)
            self._spread()
        copy_all(self._tuning, tuning)
        mine = self.carried.averaging
        if mine is not None and averaging is not None:
            copy_all(mine, averaging)
        self._adapting = adapting
        copy_all(self._used, self._own_steps(mine) if adapting else self._tuning)

    # Which chains tick.

    def narrow(self, active: Tensor | None) -> None:
        """Let only the ``active`` chains tick (all when None): in fewer parts where they fit in some, else where they are."""
        if active is None:
            self.arrange(None)
            return
        now = in_order(active) if self.places is None else self.places
        packed, used = pack(active, self._size), now.used & active[now.chains]
        if len(packed.chains) < len(now.chains) or int(used.sum()) < int(active.sum()):
            self.arrange(packed)
        else:
            self.places = now._replace(used=used)

    def arrange(self, places: Places | None) -> None:
        """Let only these chains tick, in these places; all in order when None."""
        if places is self.places:
            return
        self.places = places
        chains = torch.arange(self.noise.chains) if places is None else places.chains
        self._at_hand.arrange(None if places is None else chains)
        for which, of_part in zip(self._which, chains.split(self._size), strict=False):
            which.copy_(of_part)
        self._spread()

    def _spread(self) -> None:
        """The state to where it ticks."""
        for i, leaf in enumerate(self._home):
            values = leaf if self.places is None else leaf.index_select(0, self.places.chains)
            for part, own in zip(self.parts, values.split(self._size), strict=False):
                part.leaves[i].copy_(own)

    def _gather(self) -> None:
        """And back."""
        for i, leaf in enumerate(self._home):
            values = [part.leaves[i] for part in self.parts[: self._count]]
            if self.places is None:
                torch.cat(values, out=leaf)
            else:
                chains, used = self.places
                leaf.index_copy_(0, chains[used], torch.cat(values)[used])

    @property
    def width(self) -> int:
        """Chains of which ticks are computed."""
        return self.noise.chains if self.places is None else len(self.places.chains)

    @property
    def _count(self) -> int:
        """Parts that tick."""
        return self.width // self._size

    # Running.

    def run(self, tick: int, ticks: int) -> dict[str, Tensor]:
        """So many ticks, the first of the run's number ``tick``; what they gave by name, ``(ticks, chains, ...)``."""
        made = 0
        with torch.no_grad():
            while made < ticks:
                n = self._at_hand.have(tick + made, ticks - made, self.threads)
                for part in self.parts[: self._count]:
                    part.begin(tick + made, made)
                self._advance(n, made)
                made += n
            self._gather()
        return self.log.read(ticks)

    def _advance(self, ticks: int, made: int) -> None:
        pool = self._pool if self._adapting else None
        calls = [_replay(part.calls) for part in self.parts]
        if pool is not None:
            pool.begin(made)
            calls.append(_replay(pool.calls))
        self._team(calls[0].turn, None if pool is None else calls[-1].turn, ticks, self.threads, self._count)
        for call in calls:
            call.moved(ticks)
        for part in self.parts:
            part.look()


def _replay(calls: object) -> Replay:
    if not isinstance(calls, Replay):
        raise Unsuited
    return calls


def _driver(calls: object) -> Driver:
    driver = _replay(calls).driver
    if driver is None:
        raise Unsuited
    return driver
