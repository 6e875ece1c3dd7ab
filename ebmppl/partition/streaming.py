"""Sums over very many log-weights, a chunk at a time: log-sum-exp with its gradient, and averages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ebmppl.errors import EnergyError

Part = Callable[[int], Tensor]
NO_MASS = "expected a finite energy at one point at least, got infinity at all of them"


def log_sum(part: Part, chunks: int, inputs: Sequence[Tensor] = (), outside: Sequence[Tensor] | None = None) -> Tensor:
    r"""The log of a sum of chunks, :math:`\log \sum_c e^{part(c)}`, in bounded memory also backwards.

    Backwards every chunk is computed once more: the gradient is that of the chunks, weighted by their shares.

    Args:
        part: a chunk's own log-sum, a scalar.
        chunks: how many.
        inputs: leaf tensors that the chunks' graphs end in.
        outside: tensors in whose place the inputs stand (copies), for the graph outside; the inputs themselves when None.
    """
    given = list(inputs if outside is None else outside)
    return _LogSum.apply(part, chunks, list(inputs), *given)


class _LogSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Part, chunks: int, inputs: list[Tensor], *outside: Tensor) -> Tensor:
        total = part(0)
        for c in range(1, chunks):
            total = torch.logaddexp(total, part(c))
        ctx.part, ctx.chunks, ctx.inputs, ctx.total = part, chunks, inputs, total.detach()
        return total.detach().clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        sums: list[Tensor | None] = [None] * len(ctx.inputs)
        for c in range(ctx.chunks):
            with torch.enable_grad():
                value = ctx.part(c)
            if not value.requires_grad:
                continue
            share = torch.exp(value.detach() - ctx.total) * grad
            # what chunks share, such as a function of the parameters made outside, is kept
            grads = torch.autograd.grad(value, ctx.inputs, share, retain_graph=True, allow_unused=True)
            sums = [_add(s, g) for s, g in zip(sums, grads, strict=True)]
        return (None, None, None, *sums)


def _add(total: Tensor | None, more: Tensor | None) -> Tensor | None:
    return total if more is None else more if total is None else total + more


def leaves(value: Tensor) -> list[Tensor]:
    """The tensors that require a gradient and that a value was computed from."""
    found: dict[int, Tensor] = {}
    seen, waiting = set(), [value.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None:
            found[id(variable)] = variable
        waiting += [following for following, _ in node.next_functions]
    return list(found.values())


def average(
    log_weights: Part, chunks: int, accumulate: Callable[[int, Tensor], tuple[Tensor, ...]]
) -> tuple[Tensor, ...]:
    """Averages under weights: of every chunk the weighted sums are asked for once, and put on one scale.

    Args:
        log_weights: of a chunk, ``(rows,)``.
        chunks: how many.
        accumulate: weighted sums of a chunk for weights ``(rows,)``.

    Raises:
        EnergyError: where every weight is 0.
    """
    most, mass, sums = None, None, None
    for c in range(chunks):
        logs = log_weights(c)
        top = logs.max() if most is None else torch.maximum(most, logs.max())
        if torch.isneginf(top):
            continue
        weights = torch.exp(logs - top)
        new = accumulate(c, weights)
        if most is None or mass is None or sums is None:
            mass, sums = weights.sum(), new
        else:
            scale = torch.exp(most - top)
            mass = mass * scale + weights.sum()
            sums = tuple(s * scale + n for s, n in zip(sums, new, strict=True))
        most = top
    if mass is None or sums is None:
        raise EnergyError(NO_MASS)
    return tuple(s / mass for s in sums)
