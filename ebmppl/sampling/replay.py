"""A compiled tick as a list of calls on memory at hand, as a CUDA graph is: nothing is allocated, checked or looked up.

Inductor's Python wrapper around its kernels makes some 60 tensors a tick, which for few chains costs more than the kernels.
It is straight code: what it would do is read from its source, once for each of two sets of buffers that take turns.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from threading import Lock
from types import CodeType, FunctionType
from typing import Any, NamedTuple, cast

from torch import Tensor

from ebmppl.sampling import operators_in_c
from ebmppl.sampling.native import Driver, NotNative

_ALLOCATE = "empty_strided_cpu"
_MAKE = (_ALLOCATE, "reinterpret_tensor")
_CALL = ("cpp_fused", "extern_kernels.")
_OURS = re.compile(r"torch\.ops\.ebmppl\.(\w+)\.default")  # operators of this library
_SKIP = ("assert_size_stride", "args.clear")


class NotReplayable(ValueError):
    """The wrapper holds something else than calls of kernels."""


class _Recorded(NamedTuple):
    calls: list[partial[Any]]
    outputs: list[Tensor]
    allocated: list[Tensor]


class Replay:
    """A compiled function called again and again, its outputs taking the place of some of its inputs.

    Args:
        compiled: what ``compile_graph`` made.
        inputs: of the first call, in memory of their own; what the calls write in place among them.
        feedback: by output, the number of the input that it is in the next call.
        before: what is called before each call of the function, by its inputs.

    Raises:
        NotReplayable: where it has to be called as it is.
    """

    def __init__(
        self,
        compiled: Callable[..., Any],
        inputs: Sequence[Tensor],
        feedback: Sequence[int],
        before: Callable[[list[Tensor]], list[partial[Any]]] = lambda inputs: [],
    ) -> None:
        here = list(inputs)
        first = _record(compiled, here, {})
        there = _fed(here, first.outputs, feedback)
        onward = _record(compiled, there, {})
        here = _fed(there, onward.outputs, feedback)
        back = _record(compiled, here, _reuse(first))
        same = all(a.data_ptr() == b.data_ptr() for a, b in zip(back.outputs, first.outputs, strict=True))
        if not same or any(_inside(output, there) for output in onward.outputs):
            raise NotReplayable("an output is not in memory of its own")
        for i in feedback:
            here[i].copy_(inputs[i])
        self._inputs, self._turn = (here, there), 0
        self._calls = before(here) + back.calls, before(there) + onward.calls
        self.driver: Driver | None = None
        with suppress(NotNative, AttributeError):
            self.driver = Driver(self._calls)

    @property
    def inputs(self) -> list[Tensor]:
        """What the next call reads; values may be copied into it."""
        return self._inputs[self._turn]

    @property
    def turn(self) -> int:
        """Which set of buffers is next."""
        return self._turn

    def moved(self, times: int) -> None:
        """So many calls were made by others."""
        self._turn = (self._turn + times) % 2

    def __call__(self, times: int) -> None:
        """So many calls."""
        if self.driver is not None:
            self.driver(self._turn, times)
        else:
            for i in range(times):
                for call in self._calls[(self._turn + i) % 2]:
                    call()
        self.moved(times)


class Repeat:
    """A compiled function on memory at hand that inputs are copied to and outputs from: one call of C.

    Args:
        compiled: what ``compile_graph`` made.
        inputs: which are copied at each call; memory of the same form is made for them.
        constants: which are read where they are.

    Raises:
        NotReplayable: where it has to be called as it is.
    """

    def __init__(self, compiled: Callable[..., Any], inputs: Sequence[Tensor], constants: Sequence[Tensor]) -> None:
        self._inputs, self._lock = [t.clone() for t in inputs], Lock()
        recorded = _record(compiled, [*self._inputs, *constants], {})
        self._outputs = recorded.outputs
        try:
            self._driver = Driver([recorded.calls, recorded.calls])
        except (NotNative, AttributeError) as error:
            raise NotReplayable(str(error)) from error

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """What the function gives, in memory of its own."""
        with self._lock:
            for own, given in zip(self._inputs, inputs, strict=True):
                own.copy_(given)
            self._driver(0, 1)
            return [output.clone() for output in self._outputs]


def _fed(inputs: Sequence[Tensor], outputs: Sequence[Tensor], feedback: Sequence[int]) -> list[Tensor]:
    new = list(inputs)
    for i, output in zip(feedback, outputs, strict=True):
        new[i] = output
    return new


def _reuse(recorded: _Recorded) -> dict[int, Tensor]:
    """By number of the allocation, the memory that holds outputs."""
    held = {output.untyped_storage().data_ptr() for output in recorded.outputs}
    return {i: memory for i, memory in enumerate(recorded.allocated) if memory.untyped_storage().data_ptr() in held}


def _inside(tensor: Tensor, others: Sequence[Tensor]) -> bool:
    return any(tensor.untyped_storage().data_ptr() == other.untyped_storage().data_ptr() for other in others)


def _record(compiled: Callable[..., Any], inputs: Sequence[Tensor], memory: Mapping[int, Tensor]) -> _Recorded:
    """What a call with these inputs would do, with some allocations answered from ``memory``. Nothing is computed."""
    try:
        return _recorded(compiled, inputs, memory)
    except NotReplayable:
        raise
    except Exception as error:  # it reads what another project writes
        raise NotReplayable(f"{type(error).__name__}: {error}") from error


def _recorded(compiled: Callable[..., Any], inputs: Sequence[Tensor], memory: Mapping[int, Tensor]) -> _Recorded:
    steps, results = _steps(compiled)
    names = dict(cast(FunctionType, _function(compiled)).__globals__)
    allocated: list[Tensor] = []
    calls: list[partial[Any]] = []

    def allocate(*form: Any) -> Tensor:
        tensor = memory.get(len(allocated))
        allocated.append(names["_allocate"](*form) if tensor is None else tensor)
        return allocated[-1]

    names.update(args=list(inputs), _allocate=names.get(_ALLOCATE), **{_ALLOCATE: allocate})

    def operator(name: str, *args: Any) -> Tensor:
        made, call = operators_in_c.call(name, allocate, args)
        calls.append(call)
        return made

    names["_operator"] = operator
    names["_record"] = lambda function, *args, **kwargs: calls.append(partial(function, *args, **kwargs))
    exec(steps, names)
    return _Recorded(calls, list(eval(results, names)), allocated)


@lru_cache(maxsize=64)
def _steps(compiled: Callable[..., Any]) -> tuple[CodeType, CodeType]:
    """Code that makes the wrapper's memory and records its calls, and code for its outputs."""
    wrapper = _function(compiled)
    if not isinstance(wrapper, FunctionType):
        raise NotReplayable("not the wrapper that Inductor writes for a CPU")
    try:
        source = textwrap.dedent(inspect.getsource(wrapper))
    except OSError as error:
        raise NotReplayable("its source is not at hand") from error
    (function,) = ast.parse(source).body
    assert isinstance(function, ast.FunctionDef)
    *body, end = function.body
    if not isinstance(end, ast.Return) or end.value is None:
        raise NotReplayable("it does not end with its outputs")
    steps = [step for statement in body if (step := _what_to_do(statement)) is not None]
    module = ast.fix_missing_locations(ast.Module(steps, []))
    return compile(module, "<replay>", "exec"), compile(ast.Expression(end.value), "<replay>", "eval")


def _function(compiled: Callable[..., Any]) -> object:
    return getattr(compiled, "__func__", compiled)


def _what_to_do(statement: ast.stmt) -> ast.stmt | None:
    """The statement itself where it only makes names and memory, a record of the call where it calls a kernel."""
    if isinstance(statement, ast.Delete):
        return None  # the calls to come need all memory
    if isinstance(statement, ast.Assign):
        of_ours = _OURS.fullmatch(_name(statement.value)) if isinstance(statement.value, ast.Call) else None
        if of_ours is not None and isinstance(statement.value, ast.Call):
            call = statement.value
            given = [ast.Constant(of_ours[1]), *call.args]
            return ast.Assign(statement.targets, ast.Call(ast.Name("_operator", ast.Load()), given, []))
        made = not isinstance(statement.value, ast.Call) or _name(statement.value).startswith(_MAKE)
        if made and isinstance(statement.value, (ast.Name, ast.Call)):
            return statement
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        call = statement.value
        if _name(call).startswith(_SKIP):
            return None
        if _name(call).startswith(_CALL):
            record = ast.Call(ast.Name("_record", ast.Load()), [call.func, *call.args], call.keywords)
            return ast.Expr(record)
    raise NotReplayable(f"line {ast.unparse(statement)[:100]!r}")


def _name(call: ast.Call) -> str:
    return ast.unparse(call.func)
