"""From ``FILE.py:NAME`` to an energy: the user's file, the object in it, and what kind of object it is."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pyro
from pyro.poutine.messenger import Messenger
from torch import nn

from ebmppl.cli.errors import UserError
from ebmppl.cli.kernels import listed
from ebmppl.cli.models import is_call
from ebmppl.cli.parsing import parse_shape, parse_support
from ebmppl.diagnostics.statistics import absolute_magnetisation, magnetisation
from ebmppl.energies import Energy, as_energy
from ebmppl.interop import from_pyro
from ebmppl.interop.derived import Statistic


def split_spec(spec: str) -> tuple[Path | None, str]:
    """The file and the name of ``FILE.py:NAME``; the name is empty where there is none. A call is a name without a file.

    Raises:
        UserError: when there is no such Python file.
    """
    if is_call(spec):
        return None, spec
    head, colon, name = spec.rpartition(":")
    path = Path(head) if colon and head and not Path(spec).is_file() else Path(spec)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise UserError(f"expected a Python file as in model.py:energy, got {str(path)!r}, which {what}")
    if path.suffix != ".py":
        raise UserError(f"expected a Python file (.py), got {str(path)!r}")
    return path.resolve(), name if path == Path(head) else ""


@contextmanager
def folder_on_path(file: Path | None) -> Iterator[None]:
    """The file's own folder first on ``sys.path``, as ``python FILE`` has it."""
    if file is None:
        yield
        return
    folder = str(file.parent)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def import_file(file: Path) -> ModuleType:
    """Import a file by its path, under a name that clashes with no installed module.

    Raises:
        UserError: when the file ends the program. Whatever else it raises passes through.
    """
    name = f"_ebmppl_file_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise UserError(f"expected a Python file, got {str(file)!r}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look here
    try:
        spec.loader.exec_module(module)
    except SystemExit:
        raise UserError(
            f"{file.name} ends the program when it is imported; put its script part under if __name__ == '__main__'"
        ) from None
    return module


def find(module: ModuleType, name: str) -> Any:
    """The object of a name in the user's module.

    Raises:
        UserError: when there is none; the message lists what there is, close matches first.
    """
    file = Path(str(module.__file__)).name
    if name and hasattr(module, name):
        return getattr(module, name)
    here = {key: value for key, value in vars(module).items() if _is_candidate(key, value, module)}
    names = listed(name, list(here))
    has = f"it has {names}" if here else "it has no energies, functions or models"
    raise UserError(
        f"expected a name in {file}, as in {file}:{next(iter(here), 'energy')}, got none; {has}"
        if not name
        else f"{file} has no {name!r}; {has}"
    )


def _is_candidate(name: str, value: object, module: ModuleType) -> bool:
    if name.startswith("_") or inspect.isclass(value) or not callable(value):
        return False
    return not inspect.isroutine(value) or value.__module__ == module.__name__  # no imported functions


def find_statistics(names: Sequence[str], module: ModuleType | None) -> dict[str, Statistic]:
    """Statistics by name: functions in the user's module, or those of ``ebmppl.diagnostics.statistics``.

    Raises:
        UserError: for a name that neither has.
    """
    known: dict[str, Statistic] = {f.__name__: f for f in (magnetisation, absolute_magnetisation)}
    own = {} if module is None else {k: v for k, v in vars(module).items() if _is_candidate(k, v, module)}
    for name in names:
        if name not in known and name not in own:
            raise UserError(f"expected --statistic as one of {listed(name, [*known, *own])}, got {name!r}")
    return {name: own.get(name) or known[name] for name in names}


def to_energy(found: object, name: str, event_shape: str | None, support: Sequence[str], *, is_pyro: bool) -> Energy:
    """An energy from what the user's file calls by a name: an energy, a Pyro model or a plain callable.

    Args:
        found: the object.
        name: its name, for messages.
        event_shape: ``--event-shape``, which makes a callable an energy.
        support: what ``--support`` says, any number of times.
        is_pyro: take it for a Pyro model without looking.

    Raises:
        UserError: for an object of another kind, or options that don't go with its kind.
    """
    if inspect.isclass(found):
        raise UserError(f"expected an energy, a function or a Pyro model, got the class {name!r}; make an object of it")
    if event_shape is not None:
        if isinstance(found, Energy) or is_pyro:
            kind = f"{name!r} is an energy and" if isinstance(found, Energy) else "a Pyro model (--pyro)"
            raise UserError(f"--event-shape is for plain functions: {kind} knows its own")
        if not callable(found):
            raise _wrong_kind(found, name)
        return as_energy(found, parse_shape(event_shape), parse_support(support))
    if support:
        raise UserError("--support goes with --event-shape, for plain functions; energies and models know their own")
    if isinstance(found, Energy):
        if is_pyro:
            raise UserError(f"--pyro is for Pyro models, and {name!r} is an energy")
        return found
    if not callable(found):
        raise _wrong_kind(found, name)
    return from_pyro(_require_model(found, name, is_pyro=is_pyro))


def _wrong_kind(found: object, name: str) -> UserError:
    return UserError(f"expected {name!r} as an energy, a function or a Pyro model, got {type(found).__name__}")


def _require_model(found: Callable[..., Any], name: str, *, is_pyro: bool) -> Callable[..., Any]:
    needs = ", ".join(_required(found))
    shape = f"for a plain function say --event-shape, e.g. --event-shape 2 where {name}({needs or 'x'}) takes points of 2 numbers"
    bind = f"a Pyro model gets its arguments in the file: posterior = functools.partial({name}, {needs})"
    if needs:
        raise UserError(f"{name!r} takes {needs}: " + (bind if is_pyro else f"{shape}; {bind}"))
    if not is_pyro and not has_sites(found):
        raise UserError(f"{name!r} has no pyro.sample: {shape}")
    return found


def _required(function: Callable[..., Any]) -> list[str]:
    """Names of the arguments without a default; of ``forward`` for a module."""
    try:
        parameters: Mapping[str, inspect.Parameter] = inspect.signature(
            function.forward if isinstance(function, nn.Module) else function
        ).parameters
    except ValueError:  # built-in functions may have no signature
        return ["x"]
    return [
        name
        for name, p in parameters.items()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]


class _SiteReachedError(Exception):
    pass


class _StopAtSite(Messenger):
    def _pyro_sample(self, msg: Any) -> None:
        raise _SiteReachedError


def has_sites(function: Callable[[], Any]) -> bool:
    """Whether a call reaches a ``pyro.sample``; it is left there, before anything is drawn."""
    try:
        with pyro.poutine.block(), _StopAtSite():
            function()
    except _SiteReachedError:
        return True
    return False
