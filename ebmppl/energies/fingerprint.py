"""What code takes for granted of an energy and of what it reaches: tensors by identity, plain Python values by value."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
_EXACTLY = frozenset(_PLAIN) - {float, complex}  # types whose values tell all that their equality does
_BOXES = (dict, OrderedDict, set)  # of which every module has twenty: asked for first, because that is quick
_MOST = 5000  # values of one fingerprint
_LIBRARIES = ("torch", "pyro", "numpy", "math", "builtins", "functools", "typing", "scipy", "ebmppl")
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
    lists, tuples, sets and dicts, and objects of the user's own classes. What changes in place inside an array of
    NumPy's or behind a property is not seen.
    """
    found: list[Any] = []
    _walk(value, found, {})
    return tuple(found[:_MOST])


def _walk(value: Any, found: list[Any], seen: dict[int, object]) -> None:
    """Add what a value is made of to ``found``; in ``seen`` it is kept, so that no other object takes the place of one."""
    kind = type(value)
    if kind in _EXACTLY:
        found.append((kind, value))
    elif isinstance(value, _PLAIN):
        found.append((kind, repr(value)))  # 0.0 is not -0.0, and NaN is itself
    elif isinstance(value, Tensor):
        found.append((id(value), value.data_ptr() if value.layout == torch.strided else 0, value.dtype))
    elif id(value) in seen:
        found.append("seen")
    elif isinstance(value, (ModuleType, type, BuiltinFunctionType)):
        found.append(id(value))
    else:
        seen[id(value)] = value
        for name, part in _parts(value):
            found.append(name)
            _walk(part, found, seen)
            if len(found) >= _MOST:
                break


def _parts(value: Any) -> Iterator[tuple[Any, Any]]:
    """By name, what a value is made of."""
    kind = type(value)
    if isinstance(value, Mapping):
        yield from ((repr(key), part) for key, part in value.items())
    elif isinstance(value, (list, tuple, set, frozenset)):
        yield from ((i, part) for i, part in enumerate(value))
    elif isinstance(value, FunctionType):
        yield from _of_function(value)
    elif isinstance(value, MethodType):
        yield from (("self", value.__self__), ("function", value.__func__))
    elif isinstance(value, partial):
        yield from (("function", value.func), ("args", value.args), ("keywords", value.keywords))
    elif isinstance(value, nn.Module):
        yield from _of_module(value)
    elif hasattr(value, "__dict__") and not kind.__module__.startswith(_LIBRARIES):
        yield from vars(value).items()
    else:
        yield kind.__name__, id(value)


def _of_function(function: Callable[..., Any]) -> Iterator[tuple[Any, Any]]:
    code = function.__code__
    yield "code", id(code)
    if (function.__module__ or "").startswith(_LIBRARIES):
        return
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # not bound yet
            yield name, None
    yield "defaults", (function.__defaults__, function.__kwdefaults__)
    for name in code.co_names:
        if name in function.__globals__:
            yield name, function.__globals__[name]


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
    if forward is None:  # scripted
        yield "training", module.training
    yield from ((name, child) for name, child in module._modules.items() if child is not None)
