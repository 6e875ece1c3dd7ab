"""Inductor without what it imports and ticks never look at: a third of the time that its import takes."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from importlib.util import find_spec
from types import ModuleType
from typing import Any
from unittest.mock import patch

from ebmppl.kernels.tracer import import_tracer


def import_inductor() -> None:
    """Import Inductor (and with it Dynamo), where that has not been done; what is left out comes when it is looked at."""
    if "torch._inductor.compile_fx" in sys.modules:
        return
    # who needs it will import it as it is, or tell why it can't be
    with warnings.catch_warnings(), suppress(Exception), _late_module("networkx"):
        warnings.simplefilter("ignore")  # of torch about itself, which would be errors where warnings are
        import_tracer()
        with _late_templates():
            importlib.import_module("torch._inductor.compile_fx")


class _LateModule(ModuleType):
    """A module that is imported when something that it gives is looked at."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)  # what Python's import asks for
        if sys.modules.get(self.__name__) is self:
            return _Late(lambda: getattr(self, name))  # a type in the signature of a function
        return getattr(importlib.import_module(self.__name__), name)


@contextmanager
def _late_module(name: str) -> Iterator[None]:
    """Imports of a module within it are put off; where it is not installed, or there, nothing changes."""
    spec = None if name in sys.modules else find_spec(name)
    if spec is None:
        yield
        return
    sys.modules[name] = late = _LateModule(name)
    late.__spec__ = spec
    try:
        yield
    finally:
        if sys.modules.get(name) is late:
            del sys.modules[name]


class _Late:
    """Something that is made when it is first looked at."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    @cached_property
    def _made(self) -> Any:
        return self._make()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._made, name)


@contextmanager
def _late_templates() -> Iterator[None]:
    """Inductor compiles its templates of GPU kernels when it is imported: a seventh of that time."""
    from torch._inductor.codegen.common import KernelTemplate

    compile_now = getattr(KernelTemplate, "_template_from_string", None)
    if not callable(compile_now) or find_spec("jinja2") is None:
        yield
        return
    late = staticmethod(lambda source: _Late(partial(compile_now, source)))
    with patch.object(KernelTemplate, "_template_from_string", late):
        yield
