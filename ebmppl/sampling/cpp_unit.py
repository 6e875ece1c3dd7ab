"""The C++ of compiled ticks' kernels, in as few pieces as is quick."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ebmppl.sampling.fast_math import FAST_MATH, in_line
from ebmppl.sampling.ticks_in_c import DRIVER, TEAM
from ebmppl.sampling.vectors import in_small, suits, vectors

Bind = Callable[[], Callable[..., object]]

TORCHS = "#include <torch/csrc/inductor/cpp_prefix.h>\n"
_INCLUDE = re.compile(r"#include <torch/csrc/inductor/cpp_prefix\.h>")
_SIGNATURE = re.compile(r'extern "C"\s+void\s+kernel\(')
_POINTER = re.compile(r"(const )?\w+\*")

_KERNEL = """
namespace {name}_ {{{body}}}
extern "C" int {name}(void** p) {{
    try {{ {name}_::kernel({args}); return 0; }}
    catch (...) {{ return 1; }}  // of an index out of bounds
}}
"""
_WORTH = 0.7  # of the narrow vectors' steps, with all that is left over: wide ones pay below it
_PIECE = 25_000  # letters: a quarter of a second of the compiler


def lanes_for(inputs: Iterable[Tensor]) -> int:
    """Numbers of 32 bits in a vector that suit these tensors on this processor: 8, 16 or, where it has neither, 0.

    What is left over of a row of 10 or 25 numbers is computed one by one, which costs more than the wider vectors bring.
    """
    capability = torch.backends.cpu.get_cpu_capability()
    if capability != "AVX512":
        return 8 if capability == "AVX2" else 0
    rows = [(x.numel() // n, n) for x in inputs if x.dtype.is_floating_point and (n := x.shape[-1] if x.dim() else 0)]
    narrow, wide = (sum(many * (n // lanes + n % lanes) for many, n in rows) for lanes in (8, 16))
    return 16 if wide < _WORTH * narrow else 8


class Unit:
    """The kernels of graphs that are compiled together.

    Where it is read in no time, their C++ is compiled in pieces, each as soon as it is there, beside what writes the next.

    Args:
        build: compiles and loads C++.
        ahead: begins to compile what ``build`` will be asked for.

    Attributes:
        lanes: numbers in a vector, see ``lanes_for``; None until it is known.
    """

    def __init__(self, build: Callable[[str], ctypes.CDLL], ahead: Callable[[str], None]) -> None:
        self._build, self._ahead = build, ahead
        self.lanes: int | None = None
        self.kernels: list[CppKernel] = []
        self.library: ctypes.CDLL | None = None
        self._by_source: dict[tuple[tuple[str, ...], str], CppKernel] = {}
        self._pieces: list[str] = []  # their kernels
        self._rest = ""  # kernels of no piece yet

    def add(self, types: Sequence[str], source: str, bind: Bind) -> Callable[..., object]:
        """One more kernel.

        Args:
            types: of its arguments.
            source: of a function ``kernel``.
            bind: compiles it alone; the answer itself when the source is not what one unit can hold.
        """
        kernel = self.foresee(types, source)
        if kernel is None:
            return bind()
        kernel.bind = bind
        return kernel

    def foresee(self, types: Sequence[str], source: str) -> CppKernel | None:
        """Begin with a kernel that will be added; None when the source is not what one unit can hold."""
        known = self._by_source.get((tuple(types), source))
        if known is not None:
            return known
        body, prefixes = _INCLUDE.subn("", source)
        body, heads = _SIGNATURE.subn("static void kernel(", body)
        if (prefixes, heads) != (1, 1) or "#include" in body or not all(map(_POINTER.fullmatch, types)):
            return None
        args = ", ".join(f"static_cast<{form}>(p[{i}])" for i, form in enumerate(types))
        name = f"kernel{len(self.kernels)}"
        kernel = CppKernel(self, name, _KERNEL.format(name=name, body=in_line(body), args=args))
        self._by_source[tuple(types), source] = kernel
        self.kernels.append(kernel)
        self._rest += kernel.text
        if len(self._rest) >= _PIECE and self._suits():
            self._pieces.append(self._rest)
            self._ahead(self._small(self._rest))
            self._rest = ""
        return kernel

    def sources(self) -> Iterator[str]:
        """C++ of the driver and of what is in no piece: what is read in no time where that will do, then with torch's headers."""
        if self._suits():
            yield self._small(self._rest) + DRIVER + TEAM
        yield TORCHS + FAST_MATH + self._rest + DRIVER + TEAM

    def compile(self) -> None:
        """Make the kernels that were added ready: each alone where that fails."""
        self.kernels = [kernel for kernel in self.kernels if kernel.bind is not None]
        if not self.kernels:
            return
        try:
            libraries = self._built()
            for kernel in self.kernels:
                kernel.call = next(getattr(found, kernel.name) for found in libraries if hasattr(found, kernel.name))
            self.library = libraries[-1]
        except Exception:  # the compiler's errors are of many kinds; without one, the kernels' own say so
            self.library = None
            for kernel in self.kernels:
                assert kernel.bind is not None
                alone: Any = kernel.bind()
                kernel.alone = alone.result() if hasattr(alone, "result") else alone

    def _built(self) -> list[ctypes.CDLL]:
        """That with the driver is the last one."""
        try:
            pieces = [self._loaded(self._small(piece)) for piece in self._pieces]
        except Exception:  # another compiler than GCC
            pieces, self._rest = [], "".join(self._pieces) + self._rest
        return [*pieces, self._first_built()]

    def _first_built(self) -> ctypes.CDLL:
        *preferred, last = self.sources()
        for source in preferred:
            with suppress(Exception):
                return self._loaded(source)
        return self._build(last)

    def _loaded(self, source: str) -> ctypes.CDLL:
        library = self._build(source)
        assert self.lanes  # of what is small
        names = vectors(self.lanes)[1]
        found = [ctypes.cast(getattr(torch_library(), name), ctypes.c_void_p).value or 0 for name in names]
        library.give_functions(pointers(found))
        return library

    def _suits(self) -> bool:
        return bool(self.lanes) and suits(self._rest)

    def _small(self, kernels: str) -> str:
        assert self.lanes  # or it doesn't suit
        return vectors(self.lanes)[0] + in_small(FAST_MATH + kernels)


class CppKernel:
    """A kernel of Inductor's in a unit, called with tensors."""

    call: Any
    alone: Callable[..., object] | None = None
    bind: Bind | None = None  # once it is asked for

    def __init__(self, unit: Unit, name: str, text: str) -> None:
        self.unit, self.name, self.text = unit, name, text

    def __call__(self, *tensors: Tensor) -> None:
        """Compute, in place of what the kernel writes to."""
        if self.alone is not None:
            self.alone(*tensors)
        elif self.call(pointers([tensor.data_ptr() for tensor in tensors])):
            raise RuntimeError(f"{self.name} of a compiled tick failed")


def pointers(addresses: Sequence[int]) -> ctypes.Array[ctypes.c_void_p]:
    """An array of C."""
    return (ctypes.c_void_p * len(addresses))(*addresses)


@cache
def torch_library() -> ctypes.CDLL:
    """Where torch's C interface is found: symbols of an extension's dependencies are seen through it."""
    return ctypes.CDLL(torch._C.__file__)
