"""What code takes for granted of an energy and of what it reaches: tensors by identity, plain Python values by value."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from types import BuiltinFunctionType, CodeType, FunctionType, MemberDescriptorType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
_EXACTLY = frozenset(_PLAIN) - {float, complex}  # types whose values tell all that their equality does
_BOXES = (dict, OrderedDict, set)  # of which every module has twenty: asked for first, because that is quick
_MOST = 5000  # values of one fingerprint
_LIBRARIES = frozenset(("torch", "pyro", "numpy", "math", "builtins", "functools", "typing", "scipy", "ebmppl"))
_CALLED = ("forward", "__call__", "value_and_grad")  # of objects, by us
# attributes of our own energies and scores that hold a user's objects
_OURS = ("fn", "model", "args", "kwargs", "score", "network", "likelihood")


class Same:
    """A key that equals another one when both hold one and the same object, whatever it says of equality and hashing."""

    __slots__ = ("of",)

    def __init__(self, of: object) -> None:
        self.of = of

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.of is other.of

    def __hash__(self) -> int:
        return id(self.of)


def same(value: object) -> Any:
    """A hashable key: plain values by value, methods by what they are bound to, all else by identity."""
    if isinstance(value, _PLAIN):
        return (type(value), repr(value))
    if isinstance(value, MethodType):
        return (Same(value.__self__), value.__func__)
    return Same(value)


def fingerprint(value: object) -> tuple[Any, ...]:
    """Of an energy, a kernel's setting or a callable; two that are equal mean the same code over the same tensors.

    Looked into are modules (tensors, modes, attributes), functions (closures, defaults and the globals they name),
    lists, tuples, sets and dicts, and objects of the user's own classes; of these classes, and of the user's modules, what
    that code names. What changes in place inside an array of NumPy's or an object of a library's, or behind a property,
    is not seen.
    """
    walk = _Walk()
    walk.into(value)
    walk.what_code_names()
    return (*walk.found[:_MOST], _Kept(walk.kept))


class _Kept:
    """Objects that no others may take the places of while a fingerprint holds their addresses; equal to any."""

    __slots__ = ("objects",)

    def __init__(self, objects: list[object]) -> None:
        self.objects = objects

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Kept)

    def __hash__(self) -> int:
        return 0


class _Walk:
    """What a value is made of, as far as it was looked into."""

    def __init__(self) -> None:
        self.found: list[Any] = []
        self.kept: list[object] = []  # of which the address is in ``found``
        self._seen: dict[int, object] = {}  # kept, so that no other object takes the place of one
        self._names = dict.fromkeys(_CALLED)  # which code asks objects for
        self._holders: dict[int, type | ModuleType] = {}  # the user's classes and modules

    def into(self, value: Any) -> None:
        """Add what a value is made of."""
        kind, found = type(value), self.found
        if kind in _EXACTLY:
            found.append((kind, value))
        elif isinstance(value, _PLAIN):
            found.append((kind, repr(value)))  # 0.0 is not -0.0, and NaN is itself
        elif isinstance(value, Tensor):
            strided = value.layout == torch.strided
            place = (value.data_ptr(), value.stride()) if strided else None
            found.append((self._address(value), place, value.shape, value.dtype))
        elif id(value) in self._seen:
            found.append("seen")
        elif isinstance(value, (ModuleType, type, BuiltinFunctionType)):
            found.append(self._address(value))
            self._hold(value)
        else:
            self._seen[id(value)] = value
            self._hold(kind)
            for name, part in self._parts(value):
                found.append(name)
                self.into(part)
                if len(found) >= _MOST:
                    break

    def what_code_names(self) -> None:
        """Add the attributes of the user's classes and modules that code so far asks for, and so on."""
        done: set[tuple[int, str]] = set()
        while len(self.found) < _MOST:
            named = [
                (at, name, vars(holder)[name])
                for at, holder in self._holders.items()
                for name in self._names
                if name in vars(holder) and (at, name) not in done
            ]
            if not named:
                return
            for at, name, value in named:
                done.add((at, name))
                self.found.append(name)
                self.into(_written(value))

    def _address(self, value: object) -> int:
        self.kept.append(value)
        return id(value)

    def _hold(self, value: object) -> None:
        """Note a class, with those that it is derived from, or a module."""
        if isinstance(value, type):
            self._holders |= {id(kind): kind for kind in value.__mro__ if not _is_of_library(kind.__module__)}
        elif isinstance(value, ModuleType) and not _is_of_library(value.__name__):
            self._holders[id(value)] = value

    def _parts(self, value: Any) -> Iterator[tuple[Any, Any]]:
        """By name, what a value is made of."""
        kind = type(value)
        if isinstance(value, Mapping):
            yield from ((repr(key), part) for key, part in value.items())
        elif isinstance(value, (list, tuple, set, frozenset)):
            yield from ((i, part) for i, part in enumerate(value))
        elif isinstance(value, FunctionType):
            yield from self._of_function(value)
        elif isinstance(value, MethodType):
            yield from (("self", value.__self__), ("function", value.__func__))
        elif isinstance(value, partial):
            yield from (("function", value.func), ("args", value.args), ("keywords", value.keywords))
        elif isinstance(value, nn.Module):
            yield from _of_module(value)
        elif not _is_of_library(kind.__module__) and (fields := [*_fields(value)]):
            yield from fields
        else:
            yield kind.__name__, self._address(value)

    def _of_function(self, function: Callable[..., Any]) -> Iterator[tuple[Any, Any]]:
        code = function.__code__
        yield "code", self._address(code)
        if _is_of_library(function.__module__):
            return
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            try:
                yield name, cell.cell_contents
            except ValueError:  # not bound yet
                yield name, None
        yield "defaults", (function.__defaults__, function.__kwdefaults__)
        for name in _named(code):
            self._names[name] = None
            if name in function.__globals__:
                yield name, function.__globals__[name]


def _is_of_library(module: object) -> bool:
    return isinstance(module, str) and module.partition(".")[0] in _LIBRARIES


def _named(code: CodeType) -> Iterator[str]:
    """What code asks globals and objects for, with that of functions and generators inside it."""
    yield from code.co_names
    for part in code.co_consts:
        if isinstance(part, CodeType):
            yield from _named(part)


def _fields(value: object) -> Iterator[tuple[str, Any]]:
    """Of an object, and its class."""
    kinds = type(value).__mro__
    if hasattr(value, "__dict__"):
        yield from (("class", kinds[0]), *vars(value).items())
    for kind in kinds:
        for name, member in vars(kind).items():
            if isinstance(member, MemberDescriptorType) and hasattr(value, name):
                yield name, getattr(value, name)


def _written(value: Any) -> Any:
    """What was written in a class, of what Python made of it."""
    if isinstance(value, (staticmethod, classmethod)):
        return value.__func__
    if isinstance(value, property):
        return value.fget
    return value.func if isinstance(value, cached_property) else value


def _of_module(module: nn.Module) -> Iterator[tuple[Any, Any]]:
    ours = type(module).__module__.startswith("ebmppl")
    tensors = {**module._parameters, **module._buffers}
    kept = tensors if not ours else {n: t for n, t in tensors.items() if n not in module._non_persistent_buffers_set}
    yield "tensors", kept  # our own leave out what only says which dtype and device
    for name, value in vars(module).items():
        plain = type(value) not in _BOXES and isinstance(value, _PLAIN)
        if plain or (name in _OURS if ours else name[0] != "_"):
            yield name, value
    forward = getattr(type(module), "forward", None)
    yield "forward", forward
    for name in ("_forward_hooks", "_forward_pre_hooks"):
        if hooks := vars(module).get(name):
            yield name, hooks
    if forward is None:  # scripted
        yield "training", module.training
    yield from ((name, child) for name, child in module._modules.items() if child is not None)
