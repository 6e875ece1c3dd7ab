"""Smooth activations with their derivatives, which are themselves cheap to differentiate."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

_ROOT_2PI = math.sqrt(2 * math.pi)


def _silu(h: Tensor, order: int) -> tuple[Tensor, ...]:
    s = torch.sigmoid(h)  # f = h s, f1 = s + f (1 - s), f2 = (1 - s) (2 f1 - f), f3 = (1 - s) (f + 3 (f2 - f1))
    a = h * s
    slope = _rest(a, s).add_(s)
    found: tuple[Tensor, ...] = (a, slope)
    if order > 1:
        bend = _rest(torch.lerp(a, slope, 2), s)
        found += (bend,)
        if order > 2:
            found += (_rest(torch.add(a, torch.sub(bend, slope), alpha=3), s),)
    return found


def _rest(a: Tensor, s: Tensor) -> Tensor:
    """A (1 - s): a number of Python's beside a tensor, as in 1 - s, would take three times as long."""
    return torch.addcmul(a, a, s, value=-1)


def _softplus(h: Tensor, order: int) -> tuple[Tensor, ...]:
    s = torch.sigmoid(h)
    t = s * (1 - s)
    return (F.softplus(h), s, t, t * (1 - 2 * s))[: order + 1]


def _tanh(h: Tensor, order: int) -> tuple[Tensor, ...]:
    a = torch.tanh(h)
    d = 1 - a * a
    e = -2 * a * d
    return (a, d, e, -2 * (d * d + a * e))[: order + 1]


def _gelu(h: Tensor, order: int) -> tuple[Tensor, ...]:
    below = torch.special.ndtr(h)
    density = torch.exp(-0.5 * h * h) / _ROOT_2PI
    square = h * h
    found = (h * below, below + h * density, density * (2 - square), density * h * (square - 4))
    return found[: order + 1]


class Activation(NamedTuple):
    """A smooth function of one number.

    Attributes:
        function: elementwise.
        derivatives: of h and an order up to 3, the function and so many derivatives.
    """

    function: Callable[[Tensor], Tensor]
    derivatives: Callable[[Tensor, int], tuple[Tensor, ...]]


ACTIVATIONS = {
    "silu": Activation(F.silu, _silu),
    "softplus": Activation(F.softplus, _softplus),
    "tanh": Activation(torch.tanh, _tanh),
    "gelu": Activation(F.gelu, _gelu),
}


def smooth(name: str) -> Activation:
    """One of ``ACTIVATIONS``.

    Raises:
        ValueError: for another one; those that are not smooth, as ReLU, have no second derivatives to match scores with.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"expected a smooth activation, one of {sorted(ACTIVATIONS)}, got {name!r}")
    return ACTIVATIONS[name]


def with_derivatives(name: str, h: Tensor, order: int) -> tuple[Tensor, ...]:
    """The activation at h and its first one or two derivatives, differentiable in h by closed forms."""
    found: tuple[Tensor, ...] = _Derivatives.apply(h, name, order)
    return found


class _Derivatives(torch.autograd.Function):
    """Three to seven operations for what autograd does with some thirty."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, name: str, order: int) -> tuple[Tensor, ...]:
        *found, last = ACTIVATIONS[name].derivatives(h, order + 1)
        ctx.save_for_backward(h, *found[1:], last)
        ctx.name, ctx.order = name, order
        ctx.set_materialize_grads(False)
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None, None]:
        h, *slopes = ctx.saved_tensors
        if torch.is_grad_enabled():  # derivatives of this in turn
            slopes = list(ACTIVATIONS[ctx.name].derivatives(h, ctx.order + 1)[1:])
        total: Tensor | None = None
        for grad, slope in zip(grads, slopes, strict=True):
            if grad is not None:
                total = grad * slope if total is None else torch.addcmul(total, grad, slope)
        return total, None, None
