"""A driver in C++ that calls a compiled tick's kernels in turn, so that ticks run without Python."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ebmppl.sampling.cpp_unit import CppKernel, pointers, torch_library

_SHIMS = {  # what takes tensors and an ``out``: kind of step, and its name in torch's C interface
    torch.mm: (1, "aoti_torch_cpu_mm_out"),
    torch.bmm: (1, "aoti_torch_cpu_bmm_out"),
    torch.addmm: (2, "aoti_torch_cpu_addmm_out"),
    torch.baddbmm: (2, "aoti_torch_cpu_baddbmm_out"),
}


class NotNative(ValueError):
    """A call that the driver can't make."""


class Call:
    """A function of C that takes an array of addresses and answers 0.

    Args:
        call: it.
    """

    def __init__(self, call: Any) -> None:
        self.call = call

    def __call__(self, *tensors: Tensor) -> None:
        """Call it with the memory of tensors."""
        _require(self.call(pointers([tensor.data_ptr() for tensor in tensors])))


class _Step(ctypes.Structure):
    _fields_ = (
        ("kind", ctypes.c_int64),
        ("function", ctypes.c_void_p),
        ("args", ctypes.c_void_p),
        ("beta", ctypes.c_double),
        ("alpha", ctypes.c_double),
    )


class Calls(ctypes.Structure):
    """Steps of a tick, on the two sets of memory that take turns."""

    _fields_ = (("now", ctypes.c_void_p), ("then", ctypes.c_void_p), ("steps", ctypes.c_int64))


class Driver:
    """Calls of kernels and matrix products on memory at hand, made by one call of C.

    Args:
        sets: calls ``(here, there)`` that take turns.

    Raises:
        NotNative: where one of them has to be called from Python.
    """

    def __init__(self, sets: Sequence[Sequence[partial[object]]]) -> None:
        kernels = [call.func for call in sets[0] if isinstance(call.func, CppKernel)]
        library = kernels[0].unit.library if kernels else None
        if library is None or len({len(calls) for calls in sets}) > 1:
            raise NotNative("no unit of its kernels")
        self._kept: list[object] = [sets, library]  # the memory that steps point to
        self._handles: list[int] = []
        weakref.finalize(self, _delete, self._handles)
        self._run = library.run
        self._run.argtypes, self._run.restype = [ctypes.c_void_p, ctypes.c_int64], ctypes.c_int64
        count = len(sets[0])
        here, there = [(_Step * count)(*(self._step(call) for call in calls)) for calls in sets]
        self._kept += [here, there]
        one, other = ctypes.addressof(here), ctypes.addressof(there)
        self.calls = Calls(one, other, count), Calls(other, one, count)
        self.run_team = library.run_team

    def __call__(self, first: int, times: int) -> None:
        """So many turns, the first with set number ``first``."""
        _require(self._run(ctypes.byref(self.calls[first]), times))

    def _step(self, call: partial[object]) -> _Step:
        function, tensors, options = call.func, list(call.args), dict(call.keywords)
        if not all(isinstance(tensor, Tensor) for tensor in tensors):
            raise NotNative("an argument that is not a tensor")
        if isinstance(function, (CppKernel, Call)):
            args = self._keep([tensor.data_ptr() for tensor in tensors])
            return _Step(0, ctypes.cast(function.call, ctypes.c_void_p).value, args, 0.0, 0.0)
        kind, name = _shim(function)
        out, beta, alpha = options.pop("out", None), options.pop("beta", 1), options.pop("alpha", 1)
        if out is None or options or len(tensors) != kind + 1:
            raise NotNative(f"other arguments of {name}")
        handles = _handles([out, *tensors])
        self._handles.extend(handles)
        pointer = ctypes.cast(getattr(torch_library(), name), ctypes.c_void_p).value
        return _Step(kind, pointer, self._keep(handles), float(beta), float(alpha))

    def _keep(self, addresses: Sequence[int]) -> int:
        made = pointers(addresses)
        self._kept.append(made)
        return ctypes.addressof(made)


class Team:
    """Drivers of parts of the chains, of the same calls on memory of their own, ticked by several threads.

    The threads end before a call returns; without a pool none waits for another one before all ticks are made.

    Args:
        drivers: of the parts.
        pool: what is called after each tick of all parts, if anything.
    """

    def __init__(self, drivers: Sequence[Driver], pool: Driver | None) -> None:
        self._drivers, self._pool = drivers, pool
        self._parts = [(Calls * len(drivers))(*(driver.calls[turn] for driver in drivers)) for turn in (0, 1)]
        self._run = drivers[0].run_team
        self._run.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64]
        self._run.restype = ctypes.c_int64

    def __call__(self, first: int, pool: int | None, times: int, threads: int, count: int | None = None) -> None:
        """So many ticks.

        Args:
            first: number of the set of memory that the parts' first tick reads.
            pool: that of the pool's; None for ticks without it.
            times: how many.
            threads: that share the parts.
            count: of the parts, the first ones; all when None.
        """
        calls = None if pool is None or self._pool is None else ctypes.byref(self._pool.calls[pool])
        _require(self._run(self._parts[first], len(self._drivers) if count is None else count, calls, times, threads))


def _require(failed: int) -> None:
    if failed:
        raise RuntimeError(f"operation {failed} of a compiled tick failed")


def _handles(tensors: list[Tensor]) -> list[int]:
    """What torch's C interface knows tensors by; to be deleted by it."""
    address = ctypes.pythonapi.PyCapsule_GetPointer
    address.argtypes, address.restype = [ctypes.py_object, ctypes.c_char_p], ctypes.c_void_p
    made = torch._C._aoti.unsafe_alloc_void_ptrs_from_tensors(tensors)
    return [address(handle, None) for handle in made]


def _delete(handles: list[int]) -> None:
    for handle in handles:
        torch_library().aoti_torch_delete_tensor_object(ctypes.c_void_p(handle))


def _shim(function: object) -> tuple[int, str]:
    for known, found in _SHIMS.items():
        if function is known and hasattr(torch_library(), found[1]):
            return found
    raise NotNative(f"{function} is not in torch's C interface")
