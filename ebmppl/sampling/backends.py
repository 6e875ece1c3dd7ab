"""Compiled ticks: engines kept in the process by what was traced, and tried against the eager tick before they are trusted."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ebmppl.kernels.adaptation import Adaptation
from ebmppl.kernels.base import Kernel
from ebmppl.kernels.gradients import form
from ebmppl.sampling.capture import Captured
from ebmppl.sampling.compiler import CompileError, Flat, compile_graph
from ebmppl.sampling.noise import NoiseSource
from ebmppl.sampling.program import Carried, Log, Program, Traced, flatten, unflatten
from ebmppl.sampling.replay import NotReplayable, Replay
from ebmppl.sampling.scopes import threads, using_threads

MOST_NODES = 3000  # of a graph that is compiled: seconds to minutes of the compiler
_KEPT = 32  # engines in the process
_TRIED = 3  # ticks that are compared with eager ones
_LARGE = 1 << 22  # numbers of a state from which its own memory counts more than calls do


class Refused(Exception):
    """Ticks can't be compiled; the message says why.

    Args:
        reason: in one line.
        worth_a_warning: also where nobody asked for compiled ticks.
    """

    def __init__(self, reason: str, *, worth_a_warning: bool = True) -> None:
        super().__init__(reason)
        self.worth_a_warning = worth_a_warning


class Engine(NamedTuple):
    """A compiled tick, without the tensors of a run."""

    run: Flat
    threads: int
    nodes: int


class _Known(NamedTuple):
    """What one callable's tick was compiled to."""

    form: tuple[Any, ...]
    traced: Traced
    engine: Engine


_engines: OrderedDict[Hashable, Engine] = OrderedDict()  # by traced code and shapes
_known: OrderedDict[Hashable, _Known] = OrderedDict()  # by callable, settings and shapes: nothing is even traced


class Compiled:
    """The ticks of one run, compiled.

    Args:
        kernel: the kernel.
        adaptation: what warm-up adapts.
        noise: of the run's ticks.
        state: of the chains; copied.
        tuning: copied.
        averaging: of the adaptation, where the run has one; copied.
        ticks: most ticks of one ``run``.
        capture: record the calls in CUDA graphs.
        least_nodes: of a graph that is worth it.

    Raises:
        Refused: with the reason why ticks have to run eagerly.
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
        ticks: int,
        capture: bool,
        least_nodes: int = 0,
    ) -> None:
        self._least_nodes = least_nodes
        self.noise, self.program = noise, Program(kernel, adaptation, noise.ticks)
        self.form = self.program.first(state, tuning, averaging)
        self.chunks = [noise.chunk(name, 0) for name in noise.specs]
        self._chunk = dict.fromkeys(noise.specs, 0)
        with torch.no_grad():
            after, info = self.program.tick(_copy(self.form), self.chunks)
        self.log = Log(kernel.position(after.state), info, ticks)
        self.engine, self.traced = self._engine()
        self._known_form = form(kernel.target)
        self.leaves = leaves = flatten(self.form)
        self._rest = [*self.chunks, *self.log.buffers, *self.traced.constants]
        self._calls: Replay | Captured | None = None
        if capture:
            self._calls = Captured(self.engine.run, [*leaves, *self._rest], self.traced.changed)
        elif state[0].device.type == "cpu" and sum(leaf.numel() for leaf in leaves) <= _LARGE:
            with suppress(NotReplayable):  # every call then makes its tensors anew
                self._calls = Replay(self.engine.run, [*leaves, *self._rest], self.traced.changed)
        if self._calls is not None:
            self.leaves = self._calls.inputs[: len(leaves)]

    @property
    def holds(self) -> bool:
        """Whether the energy has the tensors, modes and attributes that were traced."""
        return self._known_form == form(self.program.kernel.target)

    # Finding the engine.

    def _engine(self) -> tuple[Engine, Traced]:
        kernel, energy = self.program.kernel, self.program.kernel.target
        inputs = [*flatten(self.form), *self.chunks, *self.log.buffers]
        shapes = tuple((t.shape, t.dtype, t.device) for t in inputs)
        key = (kernel.identity(), shapes, tuple(self.noise.ticks.items()), threads())
        known = _get(_known, key)
        if known is not None and known.form == form(energy) and self._wrong(known.engine, known.traced) is None:
            self._require_worth(known.engine.nodes)
            return known.engine, known.traced
        x = kernel.position(self.form.state)
        kernel.prepare(x, values=True, many=True)
        reason = kernel.untraced(x)
        if reason is not None:
            # a warning told it when it happened
            raise Refused(f"the gradient is not traced: {reason}", worth_a_warning=False)
        try:
            traced = self.program.trace(_copy(self.form), self.chunks, self.log)
        except Exception as error:  # the kernel's or the energy's own code may raise anything
            raise Refused(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}") from error
        self._require_worth(traced.nodes)
        engine = _compile(traced, [*inputs, *traced.constants], shapes)
        wrong = self._wrong(engine, traced)
        if wrong is not None:
            raise Refused(f"the compiled tick differs from the eager one in {wrong}")
        _put(_known, key, _Known(form(energy), traced._replace(graph=None), engine))
        return engine, traced

    def _require_worth(self, nodes: int) -> None:
        if nodes < self._least_nodes:
            raise Refused(f"a graph of {nodes} nodes, too small to be worth compiling", worth_a_warning=False)

    def _wrong(self, engine: Engine, traced: Traced) -> str | None:
        """Names of what differs from eager ticks; None where compiled ones can be trusted."""
        bad: set[str] = set()
        times = torch.zeros(len(self.form.state[0]), device=self.form.state[0].device)
        with torch.no_grad(), using_threads(engine.threads):
            carried = _copy(self.form)
            for _ in range(_TRIED):
                leaves = flatten(_copy(carried))
                logs = [buffer.clone() for buffer in self.log.buffers]
                outputs = engine.run([*leaves, *self.chunks, *logs, *traced.constants])
                for i, output in zip(traced.changed, outputs, strict=True):
                    leaves[i] = output
                row = carried.rows[0]
                carried, info = self.program.tick(carried, self.chunks)
                wanted = self.log.pack(self.program.kernel.position(carried.state), info)
                found = [buffer.index_select(0, row).squeeze(0) for buffer in logs]
                names, chains = _different(self.program, carried, leaves, wanted, found)
                times += chains
                bad |= names
        # rounding turns a decision of some chain now and then, but hardly one of the same chain again
        return ", ".join(sorted(bad)) if bool((times > 1).any()) else None

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

    def run(self, tick: int, ticks: int) -> dict[str, Tensor]:
        """So many ticks, the first of the run's number ``tick``; what they gave by name, ``(ticks, chains, ...)``."""
        made = 0
        with torch.no_grad():
            while made < ticks:
                n = self._draw(tick + made, ticks - made)
                rows = self.leaves[-len(self.form.rows) :]
                rows[0].fill_(made)
                for size, i in self.program.row_of.items():
                    rows[i].fill_((tick + made) % size)
                self._advance(n)
                made += n
        return self.log.read(ticks)

    @property
    def carried(self) -> Carried:
        """State, tuning and averaging; memory that the next ``run`` changes."""
        return unflatten(self.form, self.leaves)

    def _draw(self, tick: int, most: int) -> int:
        """Have the noise of a tick at hand; for how many ticks it then is."""
        for (name, size), buffer in zip(self.noise.ticks.items(), self.chunks, strict=True):
            chunk, row = divmod(tick, size)
            if self._chunk[name] != chunk:
                self.noise.chunk(name, chunk, out=buffer)
                self._chunk[name] = chunk
            most = min(most, size - row)
        return most

    def _advance(self, ticks: int) -> None:
        if self._calls is not None:
            self._calls(ticks)
            self.leaves = self._calls.inputs[: len(self.leaves)]
            return
        for _ in range(ticks):
            outputs = self.engine.run([*self.leaves, *self._rest])
            for i, output in zip(self.traced.changed, outputs, strict=True):
                self.leaves[i] = output


def _compile(traced: Traced, inputs: Sequence[Tensor], shapes: Hashable) -> Engine:
    graph = traced.graph
    assert graph is not None  # just traced
    if traced.nodes > MOST_NODES:
        raise Refused(f"the graph of a tick has {traced.nodes} nodes, more than {MOST_NODES}")
    use = threads(traced.work)
    constants = tuple((t.shape, t.stride(), t.dtype) for t in traced.constants)
    key = (graph.code, shapes, constants, use)
    engine = _get(_engines, key)
    if engine is None:
        try:
            with using_threads(use):
                engine = Engine(compile_graph(graph, inputs), use, traced.nodes)
        except CompileError as error:
            raise Refused(f"the compiler failed: {error}") from error
        _put(_engines, key, engine)
    return engine


def _different(
    program: Program, carried: Carried, leaves: Sequence[Tensor], wanted: Sequence[Tensor], found: Sequence[Tensor]
) -> tuple[set[str], Tensor]:
    """Names of the fields that differ between an eager and a compiled tick, and in which chains."""
    state = carried.state
    names = [*state._fields, *(f"tuning {name}" for name in carried.tuning._fields)]
    names += [f"averaging {name}" for name in getattr(carried.averaging, "_fields", ())]
    eager = flatten(carried)
    names += ["row"] * (len(eager) - len(names))
    pairs = [(n, a, b, 0) for n, a, b in zip(names, eager, leaves, strict=True)]
    pairs += [(f"log {i}", a, b, int(i > 0)) for i, (a, b) in enumerate(zip(wanted, found, strict=True))]
    by_chain = [t for t in state if t.dim() == 1 and t.is_floating_point()]  # energies, and differences of such
    chains = torch.zeros(len(state[0]), dtype=torch.bool, device=state[0].device)
    bad = set()
    for name, a, b, axis in pairs:
        if a.shape != b.shape or a.dtype != b.dtype or not b.is_contiguous():
            return {f"the form of {name}"}, ~torch.zeros_like(chains)
        own = a.dim() > 1 and axis == 0 and name not in program.kernel.scratch  # positions, gradients, momenta
        wrong = ~_close(b, a, [a] if own else [a, *by_chain])
        if not bool(wrong.any()):
            continue
        bad.add(name)
        of_chains = a.dim() > axis and a.shape[axis] == len(chains)
        chains |= wrong.movedim(axis, 0).reshape(len(chains), -1).any(1) if of_chains else wrong.any()
    return bad, chains


def _close(found: Tensor, wanted: Tensor, scales: Sequence[Tensor]) -> Tensor:
    """Equal up to rounding, at the scale of numbers of which they may be differences."""
    if not wanted.is_floating_point():
        return found == wanted
    scale = max([1.0, *(float(t[t.isfinite()].abs().max()) for t in scales if t.isfinite().any())])
    return torch.isclose(found, wanted, rtol=0.0, atol=scale * torch.finfo(wanted.dtype).eps ** 0.6, equal_nan=True)


def _copy(carried: Carried) -> Carried:
    return unflatten(carried, [leaf.clone() for leaf in flatten(carried)])


def _get(store: OrderedDict[Hashable, Any], key: Hashable) -> Any:
    if key in store:
        store.move_to_end(key)
    return store.get(key)


def _put(store: OrderedDict[Hashable, Any], key: Hashable, value: object) -> None:
    store[key] = value
    while len(store) > _KEPT:
        store.popitem(last=False)
