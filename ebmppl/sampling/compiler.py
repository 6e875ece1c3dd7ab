"""Inductor: a graph of ``make_fx`` becomes a function of a flat list of tensors. ``inductor_shortcuts.py`` knows it, too."""

from __future__ import annotations

import ast
import ctypes
import getpass
import logging
import os
import re
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from functools import partial, reduce
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, fx
from torch.distributions import Distribution

from ebmppl.errors import one_line
from ebmppl.sampling.cpp_unit import TORCHS, Unit, lanes_for
from ebmppl.sampling.gcc import build
from ebmppl.sampling.inductor_shortcuts import fake_mode, quicker
from ebmppl.sampling.scopes import without_collections

logger = logging.getLogger(__name__)

_BEFORE_HEADERS = 3  # graphs
_LINES = 400  # of a kernel, about; a piece of C++ is compiled beside the writing of the next one
_patching = threading.Lock()  # what is replaced in Inductor is the process's own
_compiled = 0  # graphs in this process
_compiling = threading.local()  # its ``unit`` is what kernels are put in, and ``options`` how it is compiled
_ahead: dict[tuple[int, str], Future[Path]] = {}  # by process and source: a fork has no threads of its parent's
_NO_NAME = r'[\\/:*?"<>|]'
Flat = Callable[[list[Tensor]], Sequence[Tensor]]


class CompileError(RuntimeError):
    """A graph could not be compiled; the message is one line that says why."""


def compile_graph(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Flat:
    """Compile a graph for inputs of these shapes, strides, dtypes and devices, at the present number of threads.

    Below Dynamo: no guards, no second compile. Inductor's inner compile is private to torch; where it is not what it
    was, ``torch.compile`` of the same graph does.

    Args:
        graph: operators of ATen alone, without constants of its own; its output is a list.
        inputs: of its placeholders. What it writes into (in place) are inputs.

    Returns:
        a function that may clear the list it is given.

    Raises:
        CompileError: when there is no compiler or it fails.
    """
    with warnings.catch_warnings(), without_collections(), one_unit():
        warnings.simplefilter("ignore")  # of the compiler about itself
        try:
            return _inner_compile(graph, inputs)
        except (ImportError, AttributeError, TypeError) as error:
            logger.info(
                "torch.compile instead of Inductor's inner compile, which is another one here: %s", one_line(error)
            )
            return _by_dynamo(graph, inputs)
        except Exception as error:  # compilers fail in many ways
            raise CompileError(one_line(error)) from error


@contextmanager
def one_unit() -> Iterator[None]:
    """Put the C++ of all graphs that this thread compiles within in one unit: most of its cost is to read its headers.

    Functions of these graphs can be called only after it.

    Raises:
        CompileError: when that unit fails, and so do its kernels alone.
    """
    if getattr(_compiling, "unit", None) is not None:
        yield  # it is an outer one's
        return
    _compiling.unit = unit = Unit(_build, load_ahead)
    try:
        yield
    finally:
        _compiling.unit = None
    if not unit.kernels:
        return
    from torch._inductor import config

    with warnings.catch_warnings(), config.patch(_compiling.options):
        warnings.simplefilter("ignore")
        try:
            unit.compile()
        except Exception as error:
            raise CompileError(one_line(error)) from error


def _inner_compile(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Flat:
    from torch._guards import TracingContext, tracing
    from torch._inductor import config
    from torch._inductor.compile_fx import compile_fx_inner

    fake = fake_mode(graph)
    fakes = [fake.from_tensor(tensor, static_shapes=True) for tensor in inputs]
    unit = _compiling.unit
    if unit.lanes is None:
        unit.lanes = lanes_for(inputs)
    _compiling.options = _options(unit.lanes)
    with (
        config.patch(_compiling.options),
        tracing(TracingContext(fake)),
        torch.no_grad(),
        _patching,
        quicker(unit.lanes),
        _into_unit(),
    ):
        compiled = compile_fx_inner(graph, fakes, is_inference=True)
    return getattr(compiled, "current_callable", None) or compiled


@contextmanager
def _into_unit() -> Iterator[None]:
    """All C++ kernels that a wrapper asks for in the thread's unit."""
    from torch._inductor.async_compile import AsyncCompile

    unit, here = _compiling.unit, threading.get_ident()
    alone: Any = getattr(AsyncCompile, "cpp_pybinding", None)

    def cpp_pybinding(*args: Any, **options: Any) -> Any:
        bind = partial(alone, *args, **options)
        expected = len(args) == 3 and not options and threading.get_ident() == here
        return unit.add(args[1], args[2], bind) if expected else bind()

    with (
        _foreseen(unit),
        patch.object(AsyncCompile, "cpp_pybinding", cpp_pybinding) if callable(alone) else nullcontext(),
    ):
        yield


@contextmanager
def _foreseen(unit: Unit) -> Iterator[None]:
    """A unit sees kernels when they are written, each of not too many lines, not only when all are."""
    from torch._inductor.codegen.cpp import CppScheduling
    from torch._inductor.codegen.wrapper import PythonWrapperCodegen

    define, is_full, here = PythonWrapperCodegen.define_kernel, CppScheduling.ready_to_flush, threading.get_ident()

    def define_kernel(self: Any, name: str, body: str, *args: Any, **options: Any) -> None:
        define(self, name, body, *args, **options)
        call = body.strip().removeprefix("async_compile.cpp_pybinding")
        with suppress(ValueError, SyntaxError):  # another call; what isn't foreseen is seen later
            if threading.get_ident() == here and call != body.strip():
                unit.foresee(*ast.literal_eval(call))

    def ready_to_flush(self: Any) -> bool:
        return is_full(self) or len(self.kernel_group.loops_code._lines) > _LINES

    with (
        patch.object(PythonWrapperCodegen, "define_kernel", define_kernel),
        patch.object(CppScheduling, "ready_to_flush", ready_to_flush),
    ):
        yield


def load(source: str) -> ctypes.CDLL:
    """Compile and load C++ of no graph, or find it in Inductor's disk cache.

    Raises:
        CompileError: when there is no compiler or it fails.
    """
    try:
        from torch._inductor import config

        with config.patch(_options(0)), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _build(source)
    except Exception as error:
        raise CompileError(one_line(error)) from error


def load_ahead(source: str) -> None:
    """Begin to compile what ``load`` will be asked for."""
    key = os.getpid(), source
    if key in _ahead:
        return
    pool = ThreadPoolExecutor(1, "g++")
    _ahead[key] = pool.submit(_built_by_gcc, source)
    pool.shutdown(wait=False)


def _build(source: str) -> ctypes.CDLL:
    """Compile and load C++, or find it on disk."""
    if TORCHS not in source:
        ahead = _ahead.pop((os.getpid(), source), None)
        with suppress(Exception):  # no GCC, no folder, no name of the user: as Inductor does it
            return ctypes.CDLL(str(_built_by_gcc(source) if ahead is None else ahead.result()))
    return _built_by_inductor(source)


def _built_by_gcc(source: str) -> Path:
    """Beside what Inductor keeps on disk, by the compiler that it would take; Inductor need not be there yet."""
    config = sys.modules.get("torch._inductor.config")
    asked = os.environ.get("CXX", "g++") if config is None else config.cpp.cxx
    known = [asked] if isinstance(asked, str) else [name for name in asked if name is not None]
    default = Path(tempfile.gettempdir(), f"torchinductor_{re.sub(_NO_NAME, '_', getpass.getuser())}")
    return build(source, known[0], Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR", default), "ebmppl"))


def _built_by_inductor(source: str) -> ctypes.CDLL:
    from torch._inductor.codecache import CppPythonBindingsCodeCache

    class Cache(CppPythonBindingsCodeCache):
        cache: dict[str, Any] = {}

        @classmethod
        def _load_library_inner(cls, path: str, key: str) -> Any:
            return ctypes.CDLL(path)

    library: ctypes.CDLL = Cache.load(source)
    return library


def _options(lanes: int) -> dict[str, object]:
    options: dict[str, object] = {
        # the engine gives the same shapes in every call
        "size_asserts": False,
        "alignment_asserts": False,
        "scalar_asserts": False,
        # a third of the time to compile, and nothing of the tick's
        "pattern_matcher": False,
        "graph_partition": False,
        "cpp.enable_tiling_heuristics": False,
        "cpp.enable_loop_tail_vec": False,
        "aot_inductor.enable_line_tables": False,  # for debuggers: a quarter of the C++ compiler's time
        "cpp.min_chunk_size": 4096,  # numbers of a loop that are worth a thread
    }
    options |= _headers()
    options = {name: value for name, value in options.items() if _is_there(name)}
    if lanes:
        options["cpp.simdlen"] = 32 * lanes  # named, so that what is found on disk is not another processor's
        options["cpp.vec_isa_ok"] = True  # torch has looked; Inductor would compile a program to find out, 3 s
    return options


def _is_there(option: str) -> bool:
    """Whether this release of torch has it."""
    from torch._inductor import config

    try:
        reduce(getattr, option.split("."), config)
    except AttributeError:
        return False
    return True


def _headers() -> dict[str, object]:
    """Whether C++ headers are compiled first: that takes as long as it saves three graphs, so not for the first three."""
    global _compiled
    from torch._inductor import codecache, config

    option = "cpp_cache_precompile_headers"
    folder, ignored = getattr(codecache, "_HEADER_DIR", None), getattr(config, "_cache_config_ignore_prefix", None)
    if folder is None or ignored is None:
        return {}
    if option not in ignored:
        ignored.append(option)  # what is compiled is the same: let the disk cache know it again
    there = _compiled >= _BEFORE_HEADERS or any(Path(folder).glob("*.gch"))
    _compiled += 1
    return {option: there}


def _by_dynamo(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Flat:
    validates = Distribution._validate_args
    try:
        compiled = torch.compile(graph, fullgraph=True, dynamic=False)
        Distribution.set_default_validate_args(validates)  # Dynamo turns it off for good, in the whole process
        with torch.no_grad():
            compiled(*(tensor.clone() for tensor in inputs))  # it compiles at the first call
    except Exception as error:
        raise CompileError(one_line(error)) from error

    def run(tensors: list[Tensor]) -> Sequence[Tensor]:
        with torch.no_grad():
            return compiled(*tensors)

    return run
