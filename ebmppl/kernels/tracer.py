"""Torch's tracer, imported where it is first needed; where that fails, the first failure is told ever after."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

_failure: list[str] = []  # the first: what was imported halfway fails the next time for another reason


def import_tracer() -> None:
    """Import Inductor's package, and with it Dynamo, as ``make_fx`` would.

    Raises:
        ImportError: with the first reason in this process, such as a ``TORCHINDUCTOR_CACHE_DIR`` that can't be made.
    """
    if not _failure:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # torch's of itself, which may be errors here
                importlib.import_module("torch._inductor")
            return
        except Exception as error:  # it makes folders and registers much
            _failure.append(f"{type(error).__name__}: {error}")
    raise ImportError(f"torch._inductor can't be imported: {_failure[0]}")


@contextmanager
def tracing_through() -> Iterator[None]:
    """What the user has compiled is traced through to what it was made of; torch would refuse it."""
    import_tracer()
    from torch._dynamo import config

    option = "error_on_nested_fx_trace"
    with config.patch({option: False}) if hasattr(config, option) else nullcontext():
        yield


def _zeros(size: Sequence[int], **form: Any) -> Tensor:
    return torch.zeros(size, **form)


# Forward derivatives begin with zeros that have no memory, which traced operations would read: the process died of it.
REAL_ZEROS = {torch.ops.aten._efficientzerotensor.default: _zeros}
