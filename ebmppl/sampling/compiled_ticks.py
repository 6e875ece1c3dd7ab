"""Compiled ticks of a run, tried against the eager tick before they are trusted."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ebmppl.energies.fingerprint import fingerprint
from ebmppl.energies.reads import unchanged
from ebmppl.errors import first_line, one_line
from ebmppl.kernels.adaptation import Adaptation
from ebmppl.kernels.base import Kernel
from ebmppl.kernels.gradients import TRACING, Traces
from ebmppl.sampling.capture import Captured
from ebmppl.sampling.engines import Engine, Refused, compile_traced, get, layouts, put, together
from ebmppl.sampling.noise import NoiseSource
from ebmppl.sampling.noise_at_hand import EVER, NoiseAtHand
from ebmppl.sampling.places import Places, in_order
from ebmppl.sampling.program import Carried, Log, Program, Traced, copy, first_log, flatten, unflatten
from ebmppl.sampling.replay import NotReplayable, Replay
from ebmppl.sampling.scopes import threads, using_threads
from ebmppl.sampling.trial import wrong_fields

_KEPT = 8  # callables with what they hold
_LARGE = 1 << 22  # numbers of a state from which its own memory counts more than calls do


class _Known(NamedTuple):
    """What one callable's tick was compiled to."""

    fingerprint: tuple[Any, ...]
    traced: Traced
    engine: Engine
    traces: Traces  # of the gradient alone: to search step sizes by


class Job(NamedTuple):
    """What is to be ticked, and where it begins."""

    kernel: Kernel
    adaptation: Adaptation | None  # what warm-up adapts
    noise: NoiseSource  # of the run's ticks
    state: Any  # of the chains
    tuning: Any
    averaging: Any | None  # of the adaptation, where the run has one


class Share(NamedTuple):
    """What a part of the chains has in common with the others."""

    at_hand: NoiseAtHand
    which: Tensor  # (chains,) numbers of the part's chains; may change
    chunks: list[Tensor]  # of the noise: views of the part's chains
    log: Log
    tuning: Any
    engine: tuple[Engine, Traced] | None  # once there is one
    beside: Callable[[], None]  # compiles what belongs to the same unit of C++


_known: OrderedDict[Hashable, _Known] = OrderedDict()  # by callable, settings and shapes: nothing is even traced


class Compiled:
    """The ticks of one run, compiled.

    Args:
        job: what is to be ticked; copied where ticks change it.
        ticks: most ticks of one ``run``.
        capture: record the calls in CUDA graphs.
        least_nodes: of a graph that is worth it.
        record: keep what ticks gave.
        share: where these chains are a part of a run's, which tick on one thread: see ``parts.py``.

    Raises:
        Refused: with the reason why ticks have to run eagerly.
    """

    def __init__(
        self,
        job: Job,
        *,
        ticks: int,
        capture: bool,
        least_nodes: int = 0,
        record: bool = True,
        share: Share | None = None,
    ) -> None:
        self._least_nodes, self._share = least_nodes, share
        self.places: Places | None = None  # of the chains that tick, where they are not all
        self._at_hand = NoiseAtHand(job.noise) if share is None else share.at_hand
        self.program = program_at_hand(job, self._at_hand)
        self.first = self.program.first(job.state, job.tuning, job.averaging)
        if share is None:
            self.chunks = self._at_hand.chunks
            self.log, _ = first_log(self.program, self.first, self.chunks, ticks, record=record)
        else:
            self.chunks, self.log, self.first = share.chunks, share.log, self.first._replace(tuning=share.tuning)
        with TRACING:
            self.engine, self.traced = self._engine() if share is None or share.engine is None else share.engine
        self._fingerprint = fingerprint(job.kernel.target)
        self.leaves = leaves = flatten(self.first)
        self._rest = [*self.chunks, *self.log.buffers, *self.traced.constants]
        self.calls: Replay | Captured | None = None  # instead of the engine
        if capture:
            try:
                self.calls = Captured(self.engine.run, [*leaves, *self._rest], self.traced.changed)
            except RuntimeError as error:  # something in it waits for the host
                raise Refused(f"no CUDA graph of it: {first_line(error)}") from error
        elif job.state[0].device.type == "cpu" and sum(leaf.numel() for leaf in leaves) <= _LARGE:
            with torch.no_grad(), using_threads(self.engine.threads):
                self.calls = self._replay()
        self.look()

    @property
    def threads(self) -> int:
        """That ticks run on."""
        return self.engine.threads

    @property
    def holds(self) -> bool:
        """Whether the energy has the tensors, modes and attributes that were traced, and what the kernel found of it."""
        kernel = self.program.kernel
        same = self._fingerprint == fingerprint(kernel.target) and unchanged(self.traced.reads)
        return same and kernel.holds()

    # Finding the engine.

    def _engine(self) -> tuple[Engine, Traced]:
        kernel, energy = self.program.kernel, self.program.kernel.target
        x = kernel.position(self.first.state)
        kernel.prepare(x, values=True, many=False)  # what this kernel has traced is tried against the energy itself
        inputs = [*flatten(self.first), *self.chunks, *self.log.buffers]
        shapes = layouts(inputs)
        key = (kernel.identity(), shapes, tuple(self._at_hand.held.items()), threads())
        known = get(_known, key)
        now = fingerprint(energy)
        holds = known is not None and known.fingerprint == now and unchanged(known.traced.reads)
        if holds and self._wrong(known.engine, known.traced) is None:
            self._require_worth(known.engine.nodes)
            kernel.adopt(known.traces)
            return known.engine, known.traced
        kernel.prepare(x, values=True, many=True)
        reason = kernel.untraced(x)
        if reason is not None:
            # a warning told it when it happened
            raise Refused(reason, worth_a_warning=False)
        try:
            # what a kernel makes once, in its first tick, is no part of the graph
            first_log(self.program, self.first, self.chunks, 1, record=False)
            traced = self.program.trace(copy(self.first), self.chunks, self.log)
        except Exception as error:  # the kernel's or the energy's own code may raise anything
            raise Refused(one_line(error)) from error
        self._require_worth(traced.nodes)
        use = threads(traced.work) if self._share is None else 1
        with together():
            engine = compile_traced(traced, [*inputs, *traced.constants], shapes, use)
            if self._share is not None:
                self._share.beside()
        wrong = self._wrong(engine, traced)
        if wrong is not None:
            raise Refused(f"the compiled tick differs from the eager one in {wrong}")
        put(_known, key, _KEPT, _Known(now, traced._replace(graph=None), engine, kernel.traces()))
        return engine, traced

    def _require_worth(self, nodes: int) -> None:
        if nodes < self._least_nodes:
            raise Refused(f"a graph of {nodes} nodes, too small to be worth compiling", worth_a_warning=False)

    def _wrong(self, engine: Engine, traced: Traced) -> str | None:
        """Names of what differs from eager ticks; None where compiled ones can be trusted."""
        with torch.no_grad(), using_threads(engine.threads):
            try:
                return wrong_fields(self.program, engine.run, traced, self.first, self.chunks, self.log)
            except RuntimeError as error:
                raise Refused(f"the compiled tick failed: {error}") from error

    def _replay(self) -> Replay | None:
        """The engine's calls on memory at hand, where they can be read and do what the engine does."""
        leaves = flatten(
            copy(self.first) if self._share is None else copy(self.first)._replace(tuning=self.first.tuning)
        )
        try:
            calls = Replay(self.engine.run, [*leaves, *self._rest], self.traced.changed, self._before_tick)
        except NotReplayable:
            return None  # every call then makes its tensors anew
        wanted = flatten(copy(self.first))
        for _ in range(2):  # one with each set of buffers
            calls(1)
            self.traced.advance(self.engine.run, wanted, self._rest)
            found = calls.inputs[: len(wanted)]
            if not all(
                torch.allclose(a, b, rtol=0, atol=0, equal_nan=True) for a, b in zip(found, wanted, strict=True)
            ):
                return None
            for own, other in zip(self.program.rows(found), self.program.rows(wanted), strict=True):
                own.zero_()
                other.zero_()
        for own, first in zip(calls.inputs, flatten(self.first), strict=False):
            own.copy_(first)
        return calls

    # Running.

    def load(self, state: Any, tuning: Any, averaging: Any | None, *, adapting: bool) -> None:
        """Go on from here; what is this object's own already is left alone."""
        mine = self.carried
        given = mine._replace(state=state, tuning=tuning)
        if averaging is not None:
            given = given._replace(averaging=averaging)
        for own, new in zip(flatten(mine), flatten(given), strict=True):
            if own is not new:
                own.copy_(new)
        mine.adapting.fill_(adapting)

    def narrow(self, active: Tensor | None) -> None:
        """Let only the ``active`` chains tick (all when None): the others stay where they are."""
        self.places = None if active is None else in_order(active)

    @property
    def width(self) -> int:
        """Chains of which ticks are computed."""
        return len(self.first.state[0])

    def run(self, tick: int, ticks: int) -> dict[str, Tensor]:
        """So many ticks, the first of the run's number ``tick``; what they gave by name, ``(ticks, chains, ...)``."""
        if self.places is None:
            return self._run(tick, ticks)
        still = self.places.used.logical_not().nonzero().squeeze(1)
        before = [leaf.index_select(0, still) for leaf in self.leaves[: len(self.first.state)]]
        log = self._run(tick, ticks)
        for leaf, rows in zip(self.leaves, before, strict=False):
            leaf.index_copy_(0, still, rows)
        return log

    def _run(self, tick: int, ticks: int) -> dict[str, Tensor]:
        made = 0
        with torch.no_grad():
            while made < ticks:
                n = self._at_hand.have(tick + made, ticks - made)
                self.begin(tick + made, made)
                self._advance(n)
                made += n
        return self.log.read(ticks)

    def begin(self, tick: int, made: int) -> None:
        """Let the next tick be a run's number ``tick``, and its row of the log ``made``."""
        rows = self.program.rows(self.leaves)
        rows[0].fill_(made)
        for size, i in self.program.row_of.items():
            rows[i].fill_(tick % size)

    @property
    def carried(self) -> Carried:
        """State, tuning and averaging; memory that the next ``run`` changes."""
        return unflatten(self.first, self.leaves)

    def look(self) -> None:
        """See where the last calls left their results."""
        if self.calls is not None:
            self.leaves = self.calls.inputs[: len(self.leaves)]

    def _advance(self, ticks: int) -> None:
        if self.calls is not None:
            self.calls(ticks)
            self.look()
            return
        for _ in range(ticks):
            for call in self._before_tick(self.leaves):
                call()
            self.traced.advance(self.engine.run, self.leaves, self._rest)

    def _before_tick(self, leaves: list[Tensor]) -> list[partial[Any]]:
        """Calls that draw noise, before the tick that is given these leaves."""
        leaves = leaves[: len(self.leaves)]
        state = unflatten(self.first, leaves).state
        which = None if self._share is None else self._share.which
        return self._at_hand.before_tick(self.chunks, self.program.number(leaves), state, which)


def program_at_hand(job: Job, at_hand: NoiseAtHand) -> Program:
    """The tick with noise at hand."""
    return Program(job.kernel, job.adaptation, at_hand.rows, counted=EVER in at_hand.held.values())
