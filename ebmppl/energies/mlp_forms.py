r"""Derivatives of a fully connected network in its input, and derivatives of these in its parameters, written by hand.

Layers are z = W a + b, a = f(z); the last one is w'a. With :math:`\lambda = dE/da` of each layer, from above by
:math:`\lambda_{l-1} = W_l^\top (\lambda_l f'(z_l))`, and z' the change of z along v,

.. math:: \nabla E = \lambda_0, \qquad v^\top \nabla^2 E\, v = \sum_l \lambda_l \cdot f''(z_l) z_l'^2

so that n directions cost n + 2 products with each W and not 2 n + 1. A fraction of the operations that autograd does
for a second derivative. Where a derivative of these derivatives is asked for, autograd goes through the plain formulas.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn.functional import linear

from ebmppl.energies.activations import ACTIVATIONS, with_derivatives
from ebmppl.energies.matching import Matching
from ebmppl.energies.precision import as_given

Params = Sequence[Tensor]  # W, b of every hidden layer, then w ``(1, H)``

# inside a node of autograd nobody looks who wants gradients: past that, a small operation takes a sixth less
_below_autograd = getattr(torch._C, "_AutoDispatchBelowAutograd", nullcontext)

_NARROW = 32  # inputs of a layer up to which products with their axis in front are the faster ones


class _Layer(NamedTuple):
    weight: Tensor
    below: Tensor  # a of the layer below
    along: Tensor | None  # its change along v, here and below ``(n, rows, H)``, or ``(rows, H)`` for one direction
    change: Tensor | None  # of z along v
    derivatives: list[Tensor]  # f', f'', f''' of z
    onto: Tensor  # dE/dz
    bent: Tensor  # dE/da f''(z)
    third: Tensor | None  # dE/da f'''(z)
    curved: Tensor | None  # dE/da f''(z) times the change


def _hidden(params: Params) -> list[tuple[Tensor, Tensor]]:
    return list(zip(params[:-1:2], params[1::2], strict=True))


def _plain(x: Tensor, v: Tensor | None, name: str, params: Params) -> tuple[Tensor, Tensor]:
    """The gradient ``(rows, D)`` and v'(d2E/dx2)v ``(n, rows)`` by operations that autograd knows."""
    a, along, found = x, v, []
    for weight, bias in _hidden(params):
        a, slope, bend = with_derivatives(name, torch.addmm(bias, a, weight.mT), 2)
        change = None if along is None else linear(along, weight)
        found.append((weight, slope, bend, change))
        along = None if change is None else slope * change
    pulled, twice = params[-1], x.new_zeros(0 if v is None else len(v), len(x))
    for weight, slope, bend, change in reversed(found):
        if change is not None:
            twice = twice + (pulled * bend * change.square()).sum(-1)
        pulled = (pulled * slope) @ weight
    return pulled, twice


def _forward(x: Tensor, v: Tensor | None, name: str, params: Params) -> tuple[Tensor, list[_Layer]]:
    """The network's gradient in x ``(rows, D)``, and all that derivatives of derivatives are made of.

    Directions v are ``(n, rows, D)``, or ``(rows, D)`` for one.
    """
    derivatives = ACTIVATIONS[name].derivatives
    a, along, met, hidden = x, v, [], _hidden(params)
    for i, (weight, bias) in enumerate(hidden):
        above, *found = derivatives(linear(a, weight, bias), 2 if v is None else 3)
        change = None if along is None else linear(along, weight)
        met.append((weight, a, along, change, found))
        a, along = above, None if change is None or i + 1 == len(hidden) else change * found[0]
    pulled, layers = params[-1], []
    for weight, below, below_along, change, found in reversed(met):
        onto, bent = pulled * found[0], pulled * found[1]
        curved, third = (None, None) if change is None else (change * bent, pulled * found[2])
        layers.append(_Layer(weight, below, below_along, change, found, onto, bent, third, curved))
        pulled = onto.mm(weight) if weight.shape[1] > _NARROW else weight.t().mm(onto.t()).t()
    return pulled, layers[::-1]


def _backward(
    layers: list[_Layer], up: Tensor, share: Tensor | None, *, in_x: bool
) -> tuple[Tensor | None, list[Tensor]]:
    """Derivatives in x and in the parameters.

    Args:
        layers: by ``_forward``.
        up: derivatives in the gradient ``(rows, D)``.
        share: in v'(d2E/dx2)v, ``(n, rows, 1)``, ``(rows, 1)`` for one direction, or one number for all; None without v.
        in_x: whether that in x is wanted.
    """
    values, weights, twice = [], [], None if share is None else share + share
    for weight, _, _, change, (slope, bend, *_), onto, bent, third, _ in layers:
        weights.append(_product(onto, up))
        above = linear(up, weight)
        value, up = above * bent, above * slope
        if change is not None and third is not None:
            square = _summed((change * change).mul_(cast(Tensor, share)))
            value.addcmul_(square, third)
            up.addcmul_(square, bend)
        values.append(value)
    grads, down, along = [up.sum(0, keepdim=True)], None, None
    for i in range(len(layers) - 1, -1, -1):
        weight, below, below_along, change, (slope, bend, *_), _, _, _, curved = layers[i]
        value, in_weight = values[i], weights[i]
        if down is not None:
            value.addcmul_(down, slope)
        if change is not None and curved is not None and below_along is not None:
            if along is not None:
                value.addcmul_(_summed(along * change), bend)
            ends = curved * cast(Tensor, twice)
            along = ends if along is None else ends.addcmul_(along, slope)
            _add_product(in_weight, along, below_along)
            along = along.matmul(weight) if i else None
        _add_product(in_weight, value, below)
        grads += [value.sum(0), in_weight]
        down = value.mm(weight) if i or in_x else None
    return down, grads[::-1]


def _product(a: Tensor, b: Tensor) -> Tensor:
    """A'b of ``(rows, H)`` and ``(rows, D)``."""
    return a.t().mm(b) if b.shape[1] > _NARROW else b.t().mm(a).t()


def _add_product(to: Tensor, a: Tensor, b: Tensor) -> None:
    """Add A'b to such a product, in the same form; both may have n in front, over which it sums."""
    if a.dim() > 2:
        a, b = a.flatten(0, -2), b.flatten(0, -2)
    if b.shape[1] > _NARROW:
        to.addmm_(a.t(), b)
    else:
        to.t().addmm_(b.t(), a)


def _summed(a: Tensor) -> Tensor:
    """Over the directions."""
    return a if a.dim() == 2 else a.sum(0)


def _again(ctx: Any, outputs: Sequence[Tensor], grads: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    """Gradients in (x, *params) through the plain formulas, to be differentiated in turn."""
    tensors = ctx.saved_tensors
    wanted = [t for t in tensors if t.requires_grad]
    some, given = zip(*((y, g) for y, g in zip(outputs, grads, strict=True) if y.requires_grad), strict=True)
    found = iter(torch.autograd.grad(some, wanted, given, create_graph=True, materialize_grads=True))
    return [next(found) if t.requires_grad else None for t in tensors]


class _Derivatives(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, v: Tensor | None, name: str, *params: Tensor) -> tuple[Tensor, Tensor]:
        with as_given(x):
            grad, layers = _forward(x, v if v is None or len(v) > 1 else v[0], name, params)
        twice = x.new_zeros(0 if v is None else len(v), len(x))
        for layer in layers:
            if layer.curved is not None and layer.change is not None:
                twice += (layer.curved * layer.change).sum(-1)
        ctx.save_for_backward(x, *params)
        ctx.name, ctx.v, ctx.layers = name, v, layers
        return grad, twice

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, *params = ctx.saved_tensors
        if torch.is_grad_enabled():
            again, *rest = _again(ctx, _plain(x, ctx.v, ctx.name, params), grads)
            return again, None, None, *rest
        share = None if ctx.v is None else grads[1][0] if len(grads[1]) == 1 else grads[1]
        share = None if share is None else share.unsqueeze(-1)
        with as_given(x):
            in_x, in_params = _backward(ctx.layers, grads[0], share, in_x=ctx.needs_input_grad[0])
        return in_x, None, None, *in_params


class _Matched(torch.autograd.Function):
    """A loss in one node: each one more costs as much as some operations on a batch."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, what: Matching, confine: Tensor, name: str, *params: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        ctx.save_for_backward(x, *params)
        ctx.set_materialize_grads(False)
        ctx.name, ctx.confine, ctx.what = name, confine, what
        v = ctx.v = what.directions
        with as_given(x), _below_autograd():
            grad, ctx.layers = _forward(x, v, name, params)
            square, ctx.apart = what.apart(torch.addcmul(grad, confine, x), v)
            if v is None:
                return square, None
            flat = v.reshape(-1)
            change = torch.mul(confine, flat.dot(flat))
            for layer in ctx.layers:
                if layer.curved is not None and layer.change is not None:
                    change += layer.curved.view(-1).dot(layer.change.view(-1))
            return square, change.div_(-what.number)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        x, *params = ctx.saved_tensors
        what: Matching = ctx.what
        some = 1 if what.v is None else 2  # terms; what nobody asked for comes as None
        by, in_change = (x.new_zeros(()) if grad is None and i < some else grad for i, grad in enumerate(grads))
        if torch.is_grad_enabled():
            grad, twice = _plain(x, what.v, ctx.name, params)
            found = what.square(torch.addcmul(grad, ctx.confine, x)), -(twice.mean() if len(twice) else twice.sum())
            again, *rest = _again(ctx, found, (by, in_change))
            return again, None, None, None, *rest
        with as_given(x), _below_autograd():
            up = what.pulled(ctx.apart, by, ctx.v)
            share = None if ctx.v is None else in_change / -what.number
            in_x, in_params = _backward(ctx.layers, up, share, in_x=ctx.needs_input_grad[0])
            in_x = None if in_x is None else torch.addcmul(in_x, ctx.confine, up)
        return in_x, None, None, None, *in_params


def derivatives(x: Tensor, v: Tensor | None, name: str, params: Params) -> tuple[Tensor, Tensor]:
    """The gradient in x ``(rows, D)``, and v'(d2E/dx2)v ``(n, rows)`` along directions v ``(n, rows, D)``; differentiable."""
    if v is not None and v.requires_grad:
        return _plain(x, v, name, params)
    found: tuple[Tensor, Tensor] = _Derivatives.apply(x, v, name, *params)
    return found


def matched(x: Tensor, what: Matching, confine: Tensor, name: str, params: Params) -> tuple[Tensor, Tensor | None]:
    """The terms of ``Matching`` of the network and ``confine`` times half the square of x ``(rows, D)``; differentiable."""
    found: tuple[Tensor, Tensor | None] = _Matched.apply(x, what, confine, name, *params)
    return found
