"""The tick of a run as one flat function of tensors: noise by row, the kernel's tick, dual averaging, and a log."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from ebmppl.energies.reads import Read, Reading, read
from ebmppl.kernels.adaptation import Adaptation
from ebmppl.kernels.base import Kernel
from ebmppl.kernels.tracer import import_tracer, tracing_through
from ebmppl.sampling.compiler import Flat
from ebmppl.sampling.decompositions import decompositions
from ebmppl.sampling.noise_at_hand import EVER


class Carried(NamedTuple):
    """What a tick hands to the next one."""

    state: Any
    tuning: Any
    averaging: Any | None  # of the adaptation
    adapting: Tensor  # () bool: whether the tuning moves
    rows: tuple[Tensor, ...]  # (1,) int64 each: the row of the log that is next, then those of the noise


class Log:
    """Rows of what ticks gave: positions, and the fields of the kernel's info, those of one form in one tensor.

    Args:
        position: of the chains, ``(chains, *event)``.
        info: of a tick, fields ``(chains, ...)``.
        ticks: how many rows.
        keep: False for no buffers at all.
    """

    def __init__(self, position: Tensor, info: Any, ticks: int, *, keep: bool = True) -> None:
        self.ticks, self.fields = ticks, type(info)._fields
        self.buffers: list[Tensor] = []
        self.groups: list[list[int]] = []
        if not keep:
            return
        forms = list(dict.fromkeys((value.dtype, value.shape) for value in info))
        self.groups = [[i for i, v in enumerate(info) if (v.dtype, v.shape) == form] for form in forms]
        self.buffers = [position.new_zeros(ticks, *position.shape)]
        for (dtype, shape), group in zip(forms, self.groups, strict=True):
            self.buffers.append(torch.zeros(ticks, len(group), *shape, dtype=dtype, device=position.device))

    def pack(self, position: Tensor, info: Any) -> list[Tensor]:
        """One row of every buffer."""
        if not self.buffers:
            return []
        return [position, *(torch.stack([info[i] for i in group]) for group in self.groups)]

    def part(self, begin: int, end: int) -> Log:
        """The rows of some chains only: views."""
        part = Log.__new__(Log)
        part.ticks, part.fields, part.groups = self.ticks, self.fields, self.groups
        part.buffers = [
            buffer[:, begin:end] if i == 0 else buffer[:, :, begin:end] for i, buffer in enumerate(self.buffers)
        ]
        return part

    def info(self, row: Tensor, form: Any, buffers: Sequence[Tensor]) -> Any:
        """The info, of that ``form``, of which ``pack`` made a row ``(1,)`` of all buffers but the first."""
        values: list[Tensor | None] = [None] * len(self.fields)
        for buffer, group in zip(buffers, self.groups, strict=True):
            for i, value in zip(group, buffer.index_select(0, row).squeeze(0).unbind(0), strict=True):
                values[i] = value
        return form(*values)

    def read(self, ticks: int) -> dict[str, Tensor]:
        """The first rows by name, ``(ticks, chains, ...)``: views of what the next ticks overwrite."""
        if not self.buffers:
            return {}
        found = {"position": self.buffers[0][:ticks]}
        for buffer, group in zip(self.buffers[1:], self.groups, strict=True):
            found.update((self.fields[i], buffer[:ticks, k]) for k, i in enumerate(group))
        return found


class Program:
    """The flat function of one kernel's tick, with the shapes of one run.

    Its inputs are the leaves of ``Carried``, chunks of noise ``(ticks, chains, *shape)`` by name, and logs
    ``(ticks, ...)`` that it writes a row of, see ``Log``.

    Args:
        kernel: the kernel, its gradient traced.
        adaptation: what warm-up adapts.
        ticks: by name of the noise, how many rows a chunk holds.
        counted: whether to count all ticks of the run, too.
    """

    def __init__(
        self, kernel: Kernel, adaptation: Adaptation | None, ticks: Mapping[str, int], *, counted: bool = False
    ) -> None:
        self.kernel, self.adaptation, self.ticks, self.counted = kernel, adaptation, dict(ticks), counted
        several = sorted({n for n in [*ticks.values(), *[EVER] * counted] if n > 1})
        self.row_of = {n: i + 1 for i, n in enumerate(several)}  # in Carried.rows, by ticks of the chunk
        self.changed: list[int] = []  # leaves of Carried that a tick changes, other than in place; known once traced

    def first(self, state: Any, tuning: Any, averaging: Any | None) -> Carried:
        """What the first tick is given, in memory of its own, contiguous."""
        device = state[0].device
        rows = tuple(torch.zeros(1, dtype=torch.int64, device=device) for _ in range(1 + len(self.row_of)))
        adapting = torch.tensor(averaging is not None, device=device)
        return Carried(_own(state), _own(tuning), None if averaging is None else _own(averaging), adapting, rows)

    def tick(self, carried: Carried, chunks: Sequence[Tensor]) -> tuple[Carried, Any]:
        """One tick: what the next one is given, and the kernel's info."""
        state, tuning, averaging, adapting, rows = carried
        noise = {name: self._row(n, chunk, rows) for (name, n), chunk in zip(self.ticks.items(), chunks, strict=True)}
        if averaging is None or self.adaptation is None:
            state, info = self.kernel.tick(state, tuning, noise)
        else:
            own = _where(adapting, self.adaptation.own_steps(averaging, tuning), tuning)
            state, info = self.kernel.tick(state, own, noise)
            averaging, adapted = self.adaptation.update(averaging, tuning, info)
            tuning = _where(adapting, adapted, tuning)
        rows = tuple(row + 1 for row in rows)
        return Carried(state, tuning, averaging, adapting, rows), info

    def _row(self, ticks: int, chunk: Tensor, rows: Sequence[Tensor]) -> Tensor:
        return chunk.index_select(0, rows[self.row_of[ticks]]).squeeze(0) if ticks > 1 else chunk.squeeze(0)

    def rows(self, leaves: Sequence[Tensor]) -> Sequence[Tensor]:
        """The rows among leaves; a tick adds one to each."""
        return leaves[-1 - len(self.row_of) :]

    def number(self, leaves: Sequence[Tensor]) -> Tensor | None:
        """Of the tick among all of the run, where they are counted."""
        return self.rows(leaves)[self.row_of[EVER]] if self.counted else None

    def wrapped(self, rows: Sequence[Tensor], ticks: int) -> tuple[Tensor, ...]:
        """Rows that are there, of a log of so many ticks and of the noise."""
        return tuple(row % size for row, size in zip(rows, [ticks, *self.row_of], strict=True))

    def trace(self, carried: Carried, chunks: Sequence[Tensor], log: Log) -> Traced:
        """The graph of a tick with its constants as inputs."""
        leaves = flatten(carried)
        scratch = [name in self.kernel.scratch for name in type(carried.state)._fields]

        def run(*tensors: Tensor) -> list[Tensor]:
            given = list(tensors[: len(leaves)])
            rest = tensors[len(leaves) :]
            after, info = self.tick(unflatten(carried, given), rest[: len(chunks)])
            row = log.pack(self.kernel.position(after.state), info)
            for buffer, value in zip(rest[len(chunks) :], row, strict=True):
                buffer.index_copy_(0, given[-len(carried.rows)], value.unsqueeze(0))
            new = flatten(after)
            written = scratch + [False] * (len(new) - len(scratch))
            self.changed = [i for i, (a, b) in enumerate(zip(new, given, strict=True)) if a is not b and not written[i]]
            return [new[i] for i in self.changed]

        return make_graph(run, [*leaves, *chunks, *log.buffers], lambda: self.changed)


class Traced(NamedTuple):
    """A tick's graph."""

    graph: fx.GraphModule | None  # None once it is compiled
    constants: list[Tensor]  # its last inputs
    changed: list[int]  # which leaves of ``Carried`` are its outputs
    nodes: int
    work: int  # numbers that it makes
    reads: list[Read]  # numbers that it holds

    def advance(self, run: Flat, leaves: list[Tensor], rest: Sequence[Tensor]) -> None:
        """One compiled tick; its outputs take the place of leaves of ``Carried``."""
        for i, output in zip(self.changed, run([*leaves, *rest]), strict=True):
            leaves[i] = output


def make_graph(
    run: Callable[..., list[Tensor]], inputs: Sequence[Tensor], changed: Callable[[], Sequence[int]]
) -> Traced:
    """Trace a function of tensors, which may write into them.

    Args:
        run: the function.
        inputs: of it.
        changed: known once it ran: of which inputs its outputs take the place.
    """
    import_tracer()
    from torch._guards import TracingContext, tracing
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    reading = Reading()

    def watched(*tensors: Tensor) -> list[Tensor]:
        with reading:
            return run(*tensors)

    pure = torch.func.functionalize(watched, remove="mutations")
    one = FakeTensorMode(allow_fallback_kernels=True, shape_env=ShapeEnv())  # or each value gets one
    with torch.no_grad(), tracing(TracingContext(one)), tracing_through():
        graph = make_fx(pure, decompositions())(*inputs)
    _leave_out_factors_of_one(graph)
    held = _lift(graph)
    device = inputs[0].device
    # numbers beside chains on a GPU; what of them was elsewhere doesn't change any more when the user's does
    constants = [value if value.dim() else value.to(device) for value in held]
    moved = [read(value) for value, there in zip(held, constants, strict=True) if there is not value]
    nodes = sum(node.op == "call_function" for node in graph.graph.nodes)
    return Traced(graph, constants, list(changed()), nodes, _work(graph), reading.reads() + moved)


def flatten(carried: Carried) -> list[Tensor]:
    """The leaves, the state's first and the rows last."""
    averaging = () if carried.averaging is None else carried.averaging
    return [*carried.state, *carried.tuning, *averaging, carried.adapting, *carried.rows]


def unflatten(like: Carried, leaves: Sequence[Tensor]) -> Carried:
    """The inverse of ``flatten``."""
    rest = iter(leaves)

    def take(form: Any) -> Any:
        return None if form is None else type(form)(*(next(rest) for _ in form))

    state, tuning, averaging, adapting = take(like.state), take(like.tuning), take(like.averaging), next(rest)
    return Carried(state, tuning, averaging, adapting, tuple(rest))


def copy(carried: Carried) -> Carried:
    """The same in other memory."""
    return unflatten(carried, [leaf.clone() for leaf in flatten(carried)])


def _where(condition: Tensor, new: Any, old: Any) -> Any:
    return type(old)(*(b if a is b else torch.where(condition, a, b) for a, b in zip(new, old, strict=True)))


def first_log(
    program: Program, first: Carried, chunks: Sequence[Tensor], ticks: int, *, record: bool
) -> tuple[Log, Any]:
    """A log for so many ticks, and the info of an eager one."""
    with torch.no_grad():
        after, info = program.tick(copy(first), chunks)
    return Log(program.kernel.position(after.state), info, ticks, keep=record), info


def _own(values: Any) -> Any:
    return type(values)(*(value.detach().clone(memory_format=torch.contiguous_format) for value in values))


def _leave_out_factors_of_one(graph: fx.GraphModule) -> None:
    """X * 1.0 is x, NaN included; softplus has such factors, which hide from the compiler that two exponentials are one."""
    for node in graph.graph.nodes:
        if node.target is not torch.ops.aten.mul.Tensor or node.args[1] != 1.0 or isinstance(node.args[1], fx.Node):
            continue
        before = node.args[0]
        form = before.meta.get("tensor_meta")  # none of a tensor that the graph holds
        if form is not None and form.dtype == node.meta["tensor_meta"].dtype:
            node.replace_all_uses_with(before)
            graph.graph.erase_node(node)


def _work(graph: fx.GraphModule) -> int:
    made = 0
    for node in graph.graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload) and not node.target.is_view:
            form = node.meta.get("tensor_meta")
            made += form.shape.numel() if hasattr(form, "shape") else 0
    return made


def _lift(graph: fx.GraphModule) -> list[Tensor]:
    """Make the tensors that a graph holds its inputs, each once, and return them."""
    nodes = graph.graph
    last = [node for node in nodes.nodes if node.op == "placeholder"][-1]
    places: dict[int, fx.Node] = {}
    constants: list[Tensor] = []
    for node in list(nodes.nodes):
        if node.op != "get_attr":
            continue
        value = getattr(graph, str(node.target))
        place = places.get(id(value))
        if place is None:
            with nodes.inserting_after(last):
                place = last = nodes.placeholder(f"constant{len(constants)}")
            places[id(value)] = place
            constants.append(value.detach())
        node.replace_all_uses_with(place)
        nodes.erase_node(node)
    nodes.eliminate_dead_code()
    graph.recompile()
    return constants
