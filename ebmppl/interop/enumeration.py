"""The one function of Pyro 1.9 that keeps enumerated models and HMMs from being vectorised, replaced while they are called."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro.distributions import hmm
from pyro.ops.einsum import torch_log
from torch import Tensor


class _SafeLog(torch.autograd.Function):
    """log with a finite gradient at 0, as Pyro's, in the form that ``torch.func.vmap`` can batch."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.log()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad / x.clamp(min=torch.finfo(x.dtype).tiny)


@contextmanager
def vmappable_enumeration() -> Iterator[None]:
    """Let Pyro's parallel enumeration run under ``torch.func.vmap`` and ``make_fx``."""
    original = torch_log.safe_log
    torch_log.safe_log = hmm.safe_log = _SafeLog.apply
    try:
        yield
    finally:
        torch_log.safe_log = hmm.safe_log = original
