"""Gradients and slopes of a fully connected network, and their derivatives in its parameters, written by hand.

A third of the operations that autograd does for a second derivative. Layers are z = W a + b, a = act(z); the last one
is w'a. Where a derivative of these derivatives is asked for, autograd goes through the plain formulas.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ebmppl.energies.activations import ACTIVATIONS, with_derivatives

Params = Sequence[Tensor]  # W, b of every hidden layer, then w


def gradient(x: Tensor, name: str, params: Params) -> Tensor:
    """Of the network's value in x, ``(rows, D)``."""
    found: Tensor = _Gradient.apply(x, name, *params)
    return found


def slopes(x: Tensor, v: Tensor, name: str, params: Params) -> tuple[Tensor, Tensor]:
    """First and second derivatives ``(n, rows)`` along directions v ``(n, rows, D)``."""
    if v.requires_grad:
        return _plain_slopes(x, v, name, params)
    found: tuple[Tensor, Tensor] = _Slopes.apply(x, v, name, *params)
    return found


def _hidden(params: Params) -> list[tuple[Tensor, Tensor]]:
    return list(zip(params[:-1:2], params[1::2], strict=True))


def _plain_gradient(x: Tensor, name: str, params: Params) -> Tensor:
    a, found = x, []
    for weight, bias in _hidden(params):
        a, slope = with_derivatives(name, torch.addmm(bias, a, weight.mT), 1)
        found.append((weight, slope))
    pulled = params[-1].expand_as(a)
    for weight, slope in reversed(found):
        pulled = (pulled * slope) @ weight
    return pulled


def _plain_slopes(x: Tensor, v: Tensor, name: str, params: Params) -> tuple[Tensor, Tensor]:
    (a, a1), a2 = (x, v), torch.zeros_like(v)
    for weight, bias in _hidden(params):
        h, h1, h2 = torch.addmm(bias, a, weight.mT), a1 @ weight.mT, a2 @ weight.mT
        a, slope, bend = with_derivatives(name, h, 2)
        a1, a2 = slope * h1, bend * h1.square() + slope * h2
    return a1 @ params[-1], a2 @ params[-1]


def _again(function: Any, ctx: Any, grads: tuple[Tensor, ...], *tensors: Tensor) -> list[Tensor | None]:
    """Gradients in (x, *params) through the plain formulas, to be differentiated in turn."""
    x, *params = ctx.saved_tensors
    wanted = [t for t in (x, *params) if t.requires_grad]
    found = iter(torch.autograd.grad(function(x, *tensors, ctx.name, params), wanted, grads, create_graph=True))
    return [next(found) if t.requires_grad else None for t in (x, *params)]


class _Gradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, name: str, *params: Tensor) -> Tensor:
        derivatives = ACTIVATIONS[name].derivatives
        a, layers = x, []
        for weight, bias in _hidden(params):
            below = a
            a, slope, bend = derivatives(torch.addmm(bias, a, weight.mT), 2)
            layers.append((weight, below, slope, bend))
        pulled, kept = params[-1], []
        for weight, below, slope, bend in reversed(layers):
            onto = pulled * slope
            kept.append((weight, below, slope, pulled * bend, onto))
            pulled = onto @ weight
        ctx.save_for_backward(x, *params)
        ctx.name, ctx.kept = name, kept[::-1]
        return pulled

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            in_x, *in_params = _again(_plain_gradient, ctx, grads)
            return in_x, None, *in_params
        up, kept = grads[0], ctx.kept
        ups, bends = [], []
        for weight, _, slope, bend, _ in kept:
            ups.append(up)
            crossed = up @ weight.mT
            bends.append(crossed * bend)
            up = crossed * slope
        found: list[Tensor] = [up.sum(0)]
        down: Tensor | None = None
        for (weight, below, slope, _, onto), up, bend in reversed(list(zip(kept, ups, bends, strict=True))):
            z = bend if down is None else torch.addcmul(bend, down, slope)
            found += [z.sum(0), torch.addmm(onto.mT @ up, z.mT, below)]
            down = z @ weight if weight is not kept[0][0] or ctx.needs_input_grad[0] else None
        return down, None, *found[::-1]


class _Slopes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, v: Tensor, name: str, *params: Tensor) -> tuple[Tensor, Tensor]:
        n, hidden = len(v), _hidden(params)
        kept: list[tuple[Any, ...]] = []
        z, z1, z2 = torch.addmm(params[1], x, params[0].mT), v @ params[0].mT, None
        for i, (weight, _) in enumerate(hidden):
            a, slope, bend, third = ACTIVATIONS[name].derivatives(z, 3)
            carried = z.new_empty((2 * n + 1, *z.shape))
            bent = bend * z1
            carried[0] = a
            torch.mul(z1, slope, out=carried[1 : n + 1])
            torch.mul(z1, bent, out=carried[n + 1 :])
            if z2 is not None:
                carried[n + 1 :].addcmul_(z2, slope)
            kept.append((weight, slope, bend, third, bent, z1, z2, carried))
            if i + 1 < len(hidden):
                onward, bias = hidden[i + 1]
                moved = carried @ onward.mT
                z, z1, z2 = moved[0] + bias, moved[1 : n + 1], moved[n + 1 :]
        ends = carried[1:] @ params[-1]
        ctx.save_for_backward(x, *params)
        ctx.name, ctx.v, ctx.kept = name, v, kept
        return ends[:n], ends[n:]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        v = ctx.v
        if torch.is_grad_enabled():
            in_x, *in_params = _again(_plain_slopes, ctx, grads, v)
            return in_x, None, None, *in_params
        x, *params = ctx.saved_tensors
        n, ends = len(v), torch.cat(grads)
        carried = ctx.kept[-1][-1]
        found: list[Tensor] = [carried[1:].flatten(0, 1).mT @ ends.flatten()]
        down = ends.unsqueeze(-1) * params[-1]
        value: Tensor | None = None
        for i in range(len(ctx.kept) - 1, -1, -1):
            weight, slope, bend, third, bent, z1, z2, _ = ctx.kept[i]
            g1, g2 = down[:n], down[n:]
            twice = third * z1
            twice *= z1
            if z2 is not None:
                twice.addcmul_(z2, bend)
            z = torch.addcmul(g1 * bent, g2, twice).sum(0)
            if value is not None:
                z.addcmul_(value, slope)
            out = z.new_empty((2 * n + 1, *z.shape)) if i else z.new_empty((n + 1, *z.shape))
            out[0] = z
            torch.mul(g1, slope, out=out[1 : n + 1])
            out[1 : n + 1].addcmul_(g2, bent, value=2)
            found.append(z.sum(0))
            if i:
                torch.mul(g2, slope, out=out[n + 1 :])
                flat = out.flatten(0, 1)
                found.append(flat.mT @ ctx.kept[i - 1][-1].flatten(0, 1))
                back = out @ weight
                value, down = back[0], back[1:]
            else:
                along = out[1:].flatten(0, 1).mT @ v.flatten(0, 1)
                found.append(along.addmm_(z.mT, x))
        return (z @ params[0] if ctx.needs_input_grad[0] else None), None, None, *found[::-1]
