"""Engines: what was traced, compiled, and kept in the process by its code, shapes and settings."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor

from ebmppl.sampling.compiler import CompileError, Flat, compile_graph, one_unit
from ebmppl.sampling.operators_in_c import get_ready
from ebmppl.sampling.program import Traced
from ebmppl.sampling.scopes import using_threads

MOST_NODES = 3000  # of a graph that is compiled: seconds to minutes of the compiler
_KEPT = 32  # engines


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


_engines: OrderedDict[Hashable, Engine] = OrderedDict()  # by traced code and shapes
_under_way: list[list[tuple[OrderedDict[Hashable, Any], Hashable]]] = []  # by ``together``, what was put in it


def layouts(tensors: Sequence[Tensor]) -> Hashable:
    """Of tensors, what code is compiled for."""
    return tuple((t.shape, t.stride(), t.dtype, t.device) for t in tensors)


@contextmanager
def together() -> Iterator[None]:
    """What is compiled within can be called after it; where that fails or is interrupted, nothing put within is kept.

    Raises:
        Refused: where the compiler fails.
    """
    added: list[tuple[OrderedDict[Hashable, Any], Hashable]] = []
    _under_way.append(added)
    try:
        with one_unit():
            yield
    except BaseException as error:  # Ctrl-C, too: an engine without its C++ would stop every later run of the energy
        for store, key in added:
            store.pop(key, None)
        if isinstance(error, CompileError):
            raise Refused(f"the compiler failed: {error}") from error
        raise
    finally:
        _under_way.pop()


def compile_traced(traced: Traced, inputs: Sequence[Tensor], shapes: Hashable, use: int) -> Engine:
    """The engine of a graph at so many threads, from the process's own store if it is there."""
    graph = traced.graph
    assert graph is not None  # just traced
    if traced.nodes > MOST_NODES:
        raise Refused(f"the graph of a tick has {traced.nodes} nodes, more than {MOST_NODES}")
    key = (graph.code, shapes, layouts(traced.constants), use)
    engine = get(_engines, key)
    if engine is None:
        get_ready(graph)
        with using_threads(use), together():
            engine = Engine(compile_graph(graph, inputs), use, traced.nodes)
        put(_engines, key, _KEPT, engine)
    return engine


def get(store: OrderedDict[Hashable, Any], key: Hashable) -> Any:
    """What a store of the last used holds; None where it is not there."""
    if key in store:
        store.move_to_end(key)
    return store.get(key)


def put(store: OrderedDict[Hashable, Any], key: Hashable, most: int, value: object) -> None:
    """Keep it, and the last used ``most`` in all."""
    store[key] = value
    for added in _under_way:
        added.append((store, key))
    while len(store) > most:
        store.popitem(last=False)
