"""Scopes in which ticks run: at a number of threads, with modules in evaluation mode, whole blocks; and compiling."""

from __future__ import annotations

import gc
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ebmppl.errors import SamplingError

if TYPE_CHECKING:
    from ebmppl.sampling.chains import Chains

PASSES = 32  # of an eager tick over the positions
_SMALL = 1 << 20  # numbers that a tick makes; under it a second thread costs more than it brings
_outside: list[int] = []  # the user's setting while ticks run at another one; the setting is the process's own, too


def threads(work: int | None = None) -> int:
    """How many threads for a tick that makes so many numbers: one for small ones; the user's setting when None."""
    setting = _outside[0] if _outside else torch.get_num_threads()
    return setting if work is None or work >= _SMALL else 1


@contextmanager
def using_threads(use: int) -> Iterator[None]:
    """Compute with so many intra-op threads; the user's setting returns."""
    before = torch.get_num_threads()
    _outside.append(before)
    try:
        if use != before:
            torch.set_num_threads(use)
        yield
    finally:
        _outside.pop()
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


@contextmanager
def evaluating(target: nn.Module) -> Iterator[None]:
    """Modules in evaluation mode, so that dropout and batch normalisation make no chain depend on chance or neighbours."""
    training = [module for module in target.modules() if module.training]
    try:
        _set_training(training, to=False)
        yield
    finally:
        _set_training(training, to=True)


def _set_training(modules: list[nn.Module], *, to: bool) -> None:
    for module in modules:
        own = vars(module)
        if "training" in own:  # past ``nn.Module.__setattr__``, which takes ten times as long
            own["training"] = to
        else:
            module.training = to


def ticking(method: Callable[..., None]) -> Callable[..., None]:
    """Run a method of ``Chains`` without gradients of parameters, at its threads, and ``evaluating``."""

    @wraps(method)
    def run(self: Any, *args: Any, **kwargs: Any) -> None:
        with torch.no_grad(), using_threads(self.threads), evaluating(self.kernel.target):
            method(self, *args, **kwargs)

    return run


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C waits until the ticks under way are made: buffers that are half written are no state."""
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is not None
    if not ours:  # Python never interrupts other threads, and handlers that are not Python's can't be put back
        yield
        return
    pressed: list[Any] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: pressed.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if pressed and callable(before):
            before(*pressed[0])
        elif pressed and before is signal.SIG_DFL:
            signal.raise_signal(signal.SIGINT)


@contextmanager
def unbroken(chains: Chains) -> Iterator[None]:
    """Ctrl-C waits until the block is made; whatever else stops it leaves the chains ``broken``."""
    with uninterrupted():
        try:
            yield
        except BaseException:
            chains.broken = True
            raise


def require_unbroken(chains: Chains) -> None:
    """Raise ``SamplingError`` for chains that were stopped within a block."""
    if chains.broken:
        raise SamplingError(
            "an exception stopped the chains within a block of ticks, and their state is no point of the run: "
            "the draws so far can be read, but no more be added; begin again with run(), or from a saved run"
        )


@contextmanager
def without_collections() -> Iterator[None]:
    """Imports and the compiler make objects by the million, few of them garbage."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
