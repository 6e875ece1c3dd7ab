"""Functions of tensors compiled for one form, kept in the process, and tried against themselves before they are trusted."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ebmppl.energies.fingerprint import fingerprint, same
from ebmppl.energies.function import same_energy
from ebmppl.energies.reads import Read, unchanged
from ebmppl.errors import one_line
from ebmppl.kernels.gradients import TRACING
from ebmppl.sampling.engines import Engine, Refused, compile_traced, get, layouts, put
from ebmppl.sampling.program import make_graph
from ebmppl.sampling.replay import NotReplayable, Repeat
from ebmppl.sampling.scopes import threads

_KEPT = 8  # functions, with the tensors that they hold
_COMPARED = 16  # rows
Function = Callable[..., Tensor]


class Compiling(NamedTuple):
    """A function of rows that don't depend on one another, and what it is compiled for.

    Attributes:
        fn: from tensors to one tensor ``(rows, ...)``.
        inputs: as it will be given, no two of them the same tensor, contiguous.
        axes: of the rows, in each of them.
        name: of the function, among those of the same objects.
    """

    fn: Function
    inputs: Sequence[Tensor]
    axes: Sequence[int]
    name: str


class CompiledFunction(NamedTuple):
    """What a function was compiled to.

    Attributes:
        fingerprint: of what it is made of.
        reads: numbers that it holds.
        constants: the tensors that it holds.
        engine: takes inputs and constants.
        work: numbers that it makes.
        repeat: the same on memory at hand, where that is possible.
    """

    fingerprint: tuple[Any, ...]
    reads: list[Read]
    constants: list[Tensor]
    engine: Engine
    work: int
    repeat: Repeat | None

    def call(self, *inputs: Tensor) -> Tensor:
        """What the function gives."""
        run = self.repeat
        (output,) = self.engine.run([*inputs, *self.constants]) if run is None else run(inputs)
        return output


_known: OrderedDict[Hashable, CompiledFunction] = OrderedDict()


def compiled_functions(wanted: Sequence[Compiling], of: Sequence[object]) -> list[CompiledFunction]:
    """Compile functions without gradients, or find them compiled.

    The tensors that they hold are inputs of the compiled ones, so that changes in place are seen. What was compiled is compared
    with the function itself in every call, in some of the rows, and made anew where it differs or is of other objects.

    Args:
        wanted: the functions.
        of: objects that they are made of, see ``fingerprint``.

    Raises:
        Refused: with the reason why one can't be compiled.
    """
    now, found = fingerprint(list(of)), []
    with torch.no_grad(), TRACING:
        for one in wanted:
            key = (one.name, *map(same, of), layouts(one.inputs), torch.get_num_threads())
            known, right = get(_known, key), _right(one)
            if known is None or known.fingerprint != now or not unchanged(known.reads) or not right(known):
                known = _compile(one, now)
                if not right(known):
                    raise Refused("the compiled function differs from the eager one, or rows depend on one another")
                put(_known, key, _KEPT, known)
            found.append(known)
    return found


def _right(one: Compiling) -> Callable[[CompiledFunction], bool]:
    """Whether what was compiled gives what the function gives, in rows from all over the batch."""
    rows = one.inputs[0].shape[one.axes[0]]
    at = torch.arange(0, rows, max(1, rows // _COMPARED), device=one.inputs[0].device)
    eager = one.fn(*(t.index_select(axis, at) for t, axis in zip(one.inputs, one.axes, strict=True)))
    return lambda known: same_energy(known.call(*one.inputs).index_select(0, at), eager, of_batches=True)


def _compile(one: Compiling, now: tuple[Any, ...]) -> CompiledFunction:
    try:
        traced = make_graph(lambda *tensors: [one.fn(*tensors)], one.inputs, lambda: ())
    except Exception as error:  # the user's code may raise anything
        raise Refused(one_line(error)) from error
    engine = compile_traced(traced, [*one.inputs, *traced.constants], layouts(one.inputs), threads(traced.work))
    repeat = None
    with suppress(NotReplayable):
        repeat = Repeat(engine.run, one.inputs, traced.constants)
    return CompiledFunction(now, traced.reads, traced.constants, engine, traced.work, repeat)
