"""Free energies of restricted Boltzmann machines as training takes them: one node of autograd, one product for its gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ebmppl.energies.precision import as_given
from ebmppl.models.rbm_views import log1p_exp

if TYPE_CHECKING:
    from ebmppl.models.rbm import RBM

_FACTORS = 64  # of a product of numbers from 1/2 to 1: 2^-64 is a normal number, in float32 and bfloat16
_HALF_FACTORS = 8  # in float16, whose least normal number is 2^-14


class Trained(NamedTuple):
    """Free energies of a batch."""

    mean: Tensor  # a function of the parameters
    energies: Tensor  # (rows,), numbers


def free_energies(rbm: RBM, batches: Sequence[tuple[Tensor, Tensor]]) -> list[Trained]:
    """F of batches of visible units ``(rows, V)`` and their hidden logits, as a function of the parameters alone.

    One product of each for the gradient in W, no other; where that is differentiated in turn, autograd goes through the
    plain formula, as of a model whose terms are not known.
    """
    if rbm.linear is None:
        return [Trained(energies.mean(), energies.detach()) for energies in (rbm.free_energy(v) for v, _ in batches)]
    pairs = [part for v, logits in batches for part in (rbm.features(v), logits.detach().to(rbm.W.dtype))]
    found = MeanFreeEnergies.apply(rbm.weights, rbm.b.flatten() if rbm.linear else None, rbm.c, *pairs)
    trained = list(map(Trained, found[: len(batches)], found[len(batches) :]))
    if rbm.linear:
        return trained
    visible = [rbm.visible_energy(v) for v, _ in batches]
    return [Trained(e.mean() + mean, e.detach() + rest) for e, (mean, rest) in zip(visible, trained, strict=True)]


class MeanFreeEnergies(torch.autograd.Function):
    """-b'x - sum_k log(1 + exp(logits_k)) of batches x ``(rows, features)`` and logits c + x'W: means, and all ``(rows,)``.

    Means have gradients in x, W, b and c. One batch after the other, as its numbers then are in cache; without b the first
    term is left out.
    """

    @staticmethod
    def forward(ctx: Any, W: Tensor, b: Tensor | None, c: Tensor, *pairs: Tensor) -> tuple[Tensor, ...]:
        """The means, then the rows'."""
        found, probabilities = [], []
        for x, logits in zip(pairs[::2], pairs[1::2], strict=True):
            p = torch.sigmoid(logits)
            most = torch.sub(1, p)
            torch.maximum(p, most, out=most)  # log(1 + e^x) = max(x, 0) - log(sigmoid(abs(x))), to rounding of the sum
            value = log_of_product(most).sub_(torch.relu(logits).sum(1))
            with as_given(x):
                found.append(value if b is None else value.addmv_(x, b, alpha=-1))
            probabilities.append(p)
        ctx.save_for_backward(W, b, c, *pairs[::2], *probabilities)
        ctx.mark_non_differentiable(*found)
        return *(value.mean() for value in found), *found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Minus the rows' mean of x'p, x and p, p the hidden units' probabilities; minus pW' and b only where x needs it."""
        W, b, c, *saved = ctx.saved_tensors
        n = len(saved) // 2
        with as_given(W):
            if torch.is_grad_enabled():
                return _again(W, b, c, saved[:n], grads[:n])
            return _closed(W, b, saved[:n], saved[n:], grads, ctx.needs_input_grad[3::2])


def _closed(
    W: Tensor,
    b: Tensor | None,
    xs: Sequence[Tensor],
    ps: Sequence[Tensor],
    grads: Sequence[Tensor],
    wants_x: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Of batches x and their hidden units' probabilities p."""
    in_W, in_b, in_c = torch.empty_like(W), None if b is None else torch.empty_like(b), torch.empty_like(W[0])
    rest: list[Tensor | None] = []
    for i, (x, p, grad) in enumerate(zip(xs, ps, grads, strict=False)):
        by, kept = -grad.item() / len(x), min(i, 1)  # what is in memory before the first is not looked at
        in_W = in_W.addmm_(x.mT, p, beta=kept, alpha=by)
        ones = p.new_ones(len(x))
        in_c = in_c.addmv_(p.mT, ones, beta=kept, alpha=by)
        in_b = None if in_b is None else in_b.addmv_(x.mT, ones, beta=kept, alpha=by)
        in_x = (p @ W.mT).mul_(by) if wants_x[i] else None
        rest += [in_x if in_x is None or b is None else in_x.add_(b, alpha=by), None]
    return in_W, in_b, in_c, *rest


def _again(
    W: Tensor, b: Tensor | None, c: Tensor, x: Sequence[Tensor], grads: Sequence[Tensor]
) -> tuple[Tensor | None, ...]:
    """The same gradients through the plain formula, to be differentiated in turn."""
    means = [-(log1p_exp(torch.addmm(c, rows, W)).sum(1) + (0 if b is None else rows @ b)).mean() for rows in x]
    inputs = [W, b, c, *(part for rows in x for part in (rows, None))]
    wanted = [t for t in inputs if t is not None and t.requires_grad]
    found = iter(torch.autograd.grad(means, wanted, grads, create_graph=True, materialize_grads=True))
    return tuple(None if t is None or not t.requires_grad else next(found) for t in inputs)


def log_of_product(x: Tensor) -> Tensor:
    """Sums ``(rows,)`` of the logs of numbers from 1/2 to 1 ``(rows, n)``, by products of 64: a log takes as long as ten."""
    factors = _HALF_FACTORS if x.dtype is torch.float16 else _FACTORS
    whole = x.shape[1] - x.shape[1] % factors
    rest = x[:, whole:].prod(1).log_()
    return rest.add_(x[:, :whole].unflatten(1, (-1, factors)).prod(2).log_().sum(1)) if whole else rest
