"""Compiled ticks of many chains in parts that stay in a core's cache, on several threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ebmppl.energies.fingerprint import fingerprint
from ebmppl.energies.function import same_energy
from ebmppl.kernels.adaptation import Adaptation
from ebmppl.kernels.base import Kernel
from ebmppl.kernels.gradients import TRACING
from ebmppl.kernels.hamiltonian import HamiltonianKernel
from ebmppl.sampling.backends import Compiled, Share
from ebmppl.sampling.engines import Engine, Refused, compile_traced
from ebmppl.sampling.native import Driver, Team
from ebmppl.sampling.noise import AtHand, NoiseSource
from ebmppl.sampling.program import Carried, Log, Program, first_log, make_graph
from ebmppl.sampling.replay import NotReplayable, Replay
from ebmppl.sampling.scopes import threads, using_threads

LEAST_CHAINS = 64  # that are worth parts
_PART = 32  # most chains of one
_LARGE = 1 << 24  # numbers of a state whose own memory counts more
_SMALL = 1 << 17  # numbers that a tick of all chains makes; under it a second thread costs more than it brings


class Unsuited(Exception):
    """The chains have to tick as a whole."""


def compiled_ticks(kernel: Kernel, *run: Any, capture: bool, **options: Any) -> Compiled | Parts:
    """The compiled ticks of a run, in parts where that suits it; arguments as of ``Compiled``."""
    noise, state = run[1:3]
    rows = isinstance(kernel, HamiltonianKernel)  # whose states are known to be
    size = part_size(state, noise.chains) if rows and not capture else None
    if size is not None:
        try:
            return Parts(kernel, *run, size=size, **options)
        except Unsuited:
            pass
    return Compiled(kernel, *run, capture=capture, **options)


def part_size(state: Any, chains: int) -> int | None:
    """How many chains a part has, all parts as many; None where the kernel's state is not one row for each chain."""
    rows = all(leaf.dim() > 0 and len(leaf) == chains for leaf in state)
    small = sum(leaf.numel() for leaf in state) <= _LARGE
    if state[0].device.type != "cpu" or chains < LEAST_CHAINS or not rows or not small:
        return None
    size = max(n for n in range(1, _PART + 1) if chains % n == 0)
    return size if 2 * size >= _PART else None


class Pool:
    """What the adaptation does with the infos of all chains after a tick, compiled.

    Args:
        adaptation: the kernel's.
        tuning: which it writes into.
        used: what ticks take of it, see ``Adaptation.own_steps``; it writes into these, too.
        averaging: where it begins; copied.
        log: which the infos are in.
        info: of a tick.

    Raises:
        Refused: where it is not what the adaptation does.
        Unsuited: where its calls can't be made without Python.
    """

    def __init__(self, adaptation: Adaptation, tuning: Any, used: Any, averaging: Any, log: Log, info: Any) -> None:
        self._adaptation, self._tuning, self._used, self._form = adaptation, tuning, used, type(averaging)
        self._log, self._info, self._first = log, info, averaging
        self._made: tuple[Engine, list[Tensor], list[int]] | None = None
        self._idle = False
        self.calls: Replay | None = None

    def compile(self) -> None:
        """Find its engine, unless nothing adapts but the row."""
        if self._made is not None or self._idle:
            return
        tuning, averaging, info = self._tuning, self._first, self._info
        given = [*(leaf.clone() for leaf in averaging), torch.zeros(1, dtype=torch.int64)]
        own = [leaf for leaf, common in zip(self._used, tuning, strict=True) if leaf is not common]
        inputs, changed = [*given, *tuning, *own, *self._log.buffers[1:]], list[int]()

        def run(*tensors: Tensor) -> list[Tensor]:
            row, rest = tensors[len(given) - 1], tensors[len(given) :]
            before, of_kernel = self._form(*tensors[: len(given) - 1]), type(tuning)(*rest[: len(tuning)])
            logged = self._log.info(row, type(info), rest[len(tuning) + len(own) :])
            after, adapted = self._adaptation.update(before, of_kernel, logged)
            steps = [a for a, b in zip(self._adaptation.own_steps(after, adapted), adapted, strict=True) if a is not b]
            for old, new in zip([*of_kernel, *rest[len(tuning) :][: len(own)]], [*adapted, *steps], strict=True):
                if new is not old:
                    old.copy_(new)
            outputs = [*after, row + 1]
            changed[:] = [i for i, (a, b) in enumerate(zip(outputs, tensors, strict=False)) if a is not b]
            return [outputs[i] for i in changed]

        with TRACING:
            # tracing computes, and what it writes into are the run's own
            traced = make_graph(run, [tensor.clone() for tensor in inputs], lambda: changed)
            self._idle = len(changed) == 1
            if not self._idle:
                shapes = tuple((t.shape, t.stride(), t.dtype, t.device) for t in inputs)
                inputs += traced.constants
                self._made = compile_traced(traced, inputs, shapes, 1), inputs, changed

    def prepare(self) -> None:
        """Have its calls at hand, tried, if there are any."""
        self.compile()
        if self._made is None:
            return
        engine, inputs, changed = self._made
        with torch.no_grad(), using_threads(1):
            try:
                self.calls = Replay(engine.run, inputs, changed)
            except NotReplayable:
                raise Unsuited from None
            self._try(self.calls)

    @property
    def averaging(self) -> Any:
        """Of the adaptation; memory that the next ticks change."""
        assert self.calls is not None  # or there is no pool
        return self._form(*self.calls.inputs[: len(self._first)])

    def begin(self, made: int) -> None:
        """Let the next tick's row of the log be ``made``."""
        assert self.calls is not None
        self.calls.inputs[len(self._first)].fill_(made)

    def _try(self, calls: Replay) -> None:
        """Compare with what the adaptation itself does: with a tick's infos, and where every chain has finished a draw."""
        tuning = [value.clone() for value in self._tuning]
        for done in (self._info.done, torch.ones_like(self._info.done)):
            info = self._info._replace(done=done)
            for buffer, group in zip(self._log.buffers[1:], self._log.groups, strict=True):
                buffer[0] = torch.stack([info[i] for i in group])
            wanted = self._adaptation.update(self._first, type(self._tuning)(*tuning), info)
            _copy(self.averaging, self._first)
            self.begin(0)
            calls(1)
            found = [*self.averaging, *self._tuning, *self._used]
            pairs = zip(found, [*wanted[0], *wanted[1], *self._adaptation.own_steps(*wanted)], strict=True)
            if not all(same_energy(found, value) for found, value in pairs):
                raise Refused("the compiled adaptation differs from the eager one")
            _copy(self._tuning, tuning)
        _copy(self.averaging, self._first)


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
        kernel: Kernel,
        adaptation: Adaptation | None,
        noise: NoiseSource,
        state: Any,
        tuning: Any,
        averaging: Any | None,
        *,
        size: int,
        ticks: int,
        least_nodes: int = 0,
        record: bool = True,
    ) -> None:
        self.noise, self.program = noise, Program(kernel, adaptation, noise.held_rows)
        self.first = self.program.first(state, tuning, averaging)
        self._home, self._tuning, self._adaptation = self.first.state, self.first.tuning, adaptation
        own = self._own_steps(self.first.averaging)
        self._used = type(own)(*(a if a is b else a.clone() for a, b in zip(own, self._tuning, strict=True)))
        self._at_hand = AtHand(noise)
        self.chunks = self._at_hand.chunks
        self.log, info = first_log(self.program, self.first, self.chunks, ticks, record=record)
        if not all(value.dim() and len(value) == noise.chains for value in info):
            raise Unsuited
        pool = None
        if record and averaging is not None and adaptation is not None:
            pool = Pool(adaptation, self._tuning, self._used, self.first.averaging, self.log, info)
        self._beside: Callable[[], None] = (lambda: None) if pool is None else pool.compile
        self.parts: list[Compiled] = []
        for begin in range(0, noise.chains, size):
            self.parts.append(self._part(kernel, begin, begin + size, ticks, least_nodes))
        self.engine, self.traced = self.parts[0].engine, self.parts[0].traced
        work = self.traced.work * len(self.parts)
        self.threads = min(len(self.parts), threads() if work >= _SMALL else 1)
        self._fingerprint = fingerprint(kernel.target)
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
        share = Share(chunks, self.log.part(begin, end), tuning, known, self._beside)
        state = type(self._home)(*(leaf[begin:end] for leaf in self._home))
        options: dict[str, Any] = {"ticks": ticks, "capture": False, "least_nodes": least_nodes}
        return Compiled(kernel, None, self.noise, state, tuning, None, share=share, **options)

    def _own_steps(self, averaging: Any | None) -> Any:
        """What ticks take of the tuning in warm-up."""
        if averaging is None or self._adaptation is None:
            return self._tuning
        return self._adaptation.own_steps(averaging, self._tuning)

    @property
    def holds(self) -> bool:
        """Whether the energy has the tensors, modes and attributes that were traced."""
        return self._fingerprint == fingerprint(self.program.kernel.target)

    @property
    def carried(self) -> Carried:
        """State, tuning and averaging; memory that the next ``run`` changes."""
        averaging = self.first.averaging if self._pool is None else self._pool.averaging
        return self.first._replace(state=self._home, averaging=averaging)

    def load(self, state: Any, tuning: Any, averaging: Any | None, *, adapting: bool) -> None:
        """Go on from here; what is this object's own already is left alone."""
        for i, (own, new) in enumerate(zip(self._home, state, strict=True)):
            if own is not new:
                own.copy_(new)
                for part, values in zip(self.parts, own.split(len(self.parts[0].leaves[i])), strict=True):
                    part.leaves[i].copy_(values)
        _copy(self._tuning, tuning)
        mine = self.carried.averaging
        if mine is not None and averaging is not None:
            _copy(mine, averaging)
        self._adapting = adapting
        _copy(self._used, self._own_steps(mine) if adapting else self._tuning)

    def run(self, tick: int, ticks: int) -> dict[str, Tensor]:
        """So many ticks, the first of the run's number ``tick``; what they gave by name, ``(ticks, chains, ...)``."""
        made = 0
        with torch.no_grad():
            while made < ticks:
                n = self._at_hand.have(tick + made, ticks - made, self.threads)
                for part in self.parts:
                    part.begin(tick + made, made)
                self._advance(n, made)
                made += n
            for i, leaf in enumerate(self._home):
                torch.cat([part.leaves[i] for part in self.parts], out=leaf)
        return self.log.read(ticks)

    def _advance(self, ticks: int, made: int) -> None:
        pool = self._pool if self._adapting else None
        calls = [_replay(part.calls) for part in self.parts]
        if pool is not None:
            pool.begin(made)
            calls.append(_replay(pool.calls))
        self._team(calls[0].turn, None if pool is None else calls[-1].turn, ticks, self.threads)
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


def _copy(mine: Sequence[Tensor], given: Sequence[Tensor]) -> None:
    for own, new in zip(mine, given, strict=True):
        if own is not new:
            own.copy_(new)
