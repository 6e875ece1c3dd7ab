"""What keeps Pyro models from being vectorised in Pyro 1.9 and torch, replaced while they are called."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro.distributions import OrderedLogistic, hmm
from pyro.ops.einsum import torch_log
from torch import Tensor
from torch.distributions import Multinomial
from torch.distributions.utils import broadcast_all


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


def _multinomial_log_prob(self: Multinomial, value: Tensor) -> Tensor:
    """torch's, with ``where`` for an assignment under a mask."""
    logits, value = broadcast_all(self.logits, value)
    impossible = (value == 0) & (logits == -torch.inf)
    powers = (torch.where(impossible, torch.zeros_like(logits), logits) * value).sum(-1)
    return torch.lgamma(value.sum(-1) + 1) - torch.lgamma(value + 1).sum(-1) + powers


def _ordered_logistic(self: Any, predictor: Tensor, cutpoints: Tensor, **options: Any) -> None:
    """Pyro's, with ``cat`` for assignments to slices."""
    q = torch.sigmoid(cutpoints - predictor.unsqueeze(-1))
    self.predictor, self.cutpoints = predictor.expand(q.shape[:-1]), cutpoints.expand(q.shape)
    p = torch.cat([q[..., :1], q[..., 1:] - q[..., :-1], 1 - q[..., -1:]], -1)
    super(OrderedLogistic, self).__init__(p, **options)


@contextmanager
def vmappable() -> Iterator[None]:
    """Let parallel enumeration and all distributions run under ``torch.func.vmap`` and ``make_fx``."""
    replaced = [
        (torch_log, "safe_log", _SafeLog.apply),
        (hmm, "safe_log", _SafeLog.apply),
        (Multinomial, "log_prob", _multinomial_log_prob),
        (OrderedLogistic, "__init__", _ordered_logistic),
    ]
    originals = [getattr(owner, name) for owner, name, _ in replaced]
    for owner, name, ours in replaced:
        setattr(owner, name, ours)
    try:
        yield
    finally:
        for (owner, name, _), original in zip(replaced, originals, strict=True):
            setattr(owner, name, original)
