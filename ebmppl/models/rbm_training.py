"""Free energies of restricted Boltzmann machines as training takes them: one node of autograd, one product for its gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from ebmppl.models.rbm import RBM


def free_energies(rbm: RBM, batches: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """F ``(rows,)`` of pairs of visible units ``(rows, V)`` and hidden logits, as functions of the parameters alone.

    One product of each for the gradient in W, no other; there is no second derivative.
    """
    pairs = (part for v, logits in batches for part in (rbm.features(v), logits.detach()))
    if rbm.linear:
        return list(FreeEnergies.apply(rbm.weights, rbm.b.flatten(), rbm.c, *pairs))
    hidden = FreeEnergies.apply(rbm.weights, None, rbm.c, *pairs)
    return [rbm.visible_energy(v) + part for (v, _), part in zip(batches, hidden, strict=True)]


class FreeEnergies(torch.autograd.Function):
    """-b'x - sum_k log(1 + exp(logits_k)) ``(rows,)`` of pairs x and logits c + x'W, with gradients in x, W, b and c.

    One pair after the other, as its numbers then are in cache; without b the first term is left out.
    """

    @staticmethod
    def forward(ctx: Any, W: Tensor, b: Tensor | None, c: Tensor, *pairs: Tensor) -> tuple[Tensor, ...]:
        """The values; each x ``(rows, features)``."""
        found, probabilities = [], []
        for x, logits in zip(pairs[::2], pairs[1::2], strict=True):
            p = torch.sigmoid(logits)
            most = torch.sub(1, p)
            torch.maximum(p, most, out=most)  # log(1 + e^x) = max(x, 0) - log(sigmoid(abs(x))), to rounding of the sum
            value = log_of_product(most).sub_(logits.clamp(min=0).sum(1))
            found.append(value if b is None else value.sub_(x.mv(b)))
            probabilities.append(p)
        ctx.save_for_backward(W, b, *pairs[::2], *probabilities)
        return tuple(found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Minus x'p, x and p, p the hidden units' probabilities; minus pW' and b only where features depend on parameters."""
        W, b, *saved = ctx.saved_tensors
        n = len(grads)
        in_W, in_b, in_c = torch.empty_like(W), None if b is None else torch.zeros_like(b), torch.zeros_like(W[0])
        rest: list[Tensor | None] = []
        for i, (x, p, grad) in enumerate(zip(saved[:n], saved[n:], grads, strict=True)):
            by = -grad
            share = p * by.unsqueeze(1)
            in_W = x.mT @ share if i == 0 else in_W.addmm_(x.mT, share)
            in_c = in_c.add_(share.sum(0))
            in_b = None if in_b is None else in_b.addmv_(x.mT, by)
            in_x = share @ W.mT if ctx.needs_input_grad[3 + 2 * i] else None
            rest += [in_x if in_x is None or b is None else in_x.addr_(by, b), None]
        return in_W, in_b, in_c, *rest


def log_of_product(x: Tensor) -> Tensor:
    """Sums ``(rows,)`` of the logs of numbers from 1/2 to 1 ``(rows, n)``, by products of 64 of them; x is written over.

    A log takes as long as eight multiplications or more.
    """
    n = x.shape[1]
    for _ in range(int(math.log2(-math.log2(torch.finfo(x.dtype).tiny)))):  # 2^-64 is a normal number, in float32
        half = n // 2
        x[:, :half].mul_(x[:, n - half : n])
        n -= half
    return x[:, :n].log().sum(1)
