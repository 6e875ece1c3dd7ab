"""NamedTuples of kernels made of others: their fields are known only when the inner kernels are."""

from __future__ import annotations

import copyreg
from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any


@cache
def record(name: str, fields: tuple[str, ...]) -> Callable[..., Any]:
    """A NamedTuple type, whose values pickle although it is found nowhere by its name."""
    kind: Any = namedtuple(name, fields)  # type: ignore[misc]
    copyreg.pickle(kind, lambda values: (_again, (name, fields, tuple(values))))
    return kind


def _again(name: str, fields: tuple[str, ...], values: tuple[Any, ...]) -> Any:
    return record(name, fields)(*values)


def joined(name: str, parts: Sequence[Any], own: Mapping[str, Any] | None = None) -> Any:
    """The fields of several NamedTuples in one, behind others of its own."""
    values = dict(own or {})
    for i, inner in enumerate(parts):
        values |= {f"block{i}_{field}": value for field, value in inner._asdict().items()}
    return record(name, tuple(values))(*values.values())


def part(values: Any, i: int, kind: Any) -> Any:
    """One of the NamedTuples that were ``joined``, of this kind."""
    return kind(*(getattr(values, f"block{i}_{name}") for name in kind._fields))


def with_part(values: Any, i: int, new: Any) -> Any:
    """Another in its place."""
    return values._replace(**{f"block{i}_{name}": value for name, value in new._asdict().items()})
