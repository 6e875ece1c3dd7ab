"""Products with transposed Jacobians that ticks can be traced through."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Pull = Callable[[Tensor], Tensor]


def pullback(fn: Callable[[Tensor], tuple[Tensor, Tensor]], x: Tensor) -> tuple[Tensor, Tensor, Pull | None]:
    """A function's values, the other tensor that it gives, and v -> (d values / dx)' v, None where the values don't depend on x.

    Under ``no_grad`` as well; where gradients are asked for outside, what comes is differentiable once more. Inside a trace
    (a transform of functorch's) it is ``torch.func.vjp``, which can't tell that nothing depends on x, and gives zeros.
    """
    track = torch.is_grad_enabled()
    if torch._C._functorch.is_functorch_wrapped_tensor(x):
        values, back, rest = torch.func.vjp(fn, x, has_aux=True)  # type: ignore[misc]
        return values, rest, lambda v: back(v)[0]
    with torch.enable_grad():
        x = x if x.requires_grad else x.detach().requires_grad_()
        values, rest = fn(x)
    if not isinstance(values, Tensor) or not values.requires_grad:
        return values, rest, None

    def pull(v: Tensor) -> Tensor:
        (found,) = torch.autograd.grad(values, x, v, create_graph=track, retain_graph=True, materialize_grads=True)
        return found

    return (values if track else values.detach()), rest, pull


def value_and_grad(fn: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Values ``(batch,)`` of rows that don't depend on one another, and their gradients ``(batch, *event)``; see ``pullback``."""
    values, _, pull = pullback(lambda at: (fn(at), at), x)
    return values, pull(torch.ones_like(values)) if pull is not None else torch.zeros_like(x)


def require_gradient(fn: Callable[[Tensor], Tensor], x: Tensor, what: str) -> Tensor:
    """Values at x of a function of points; ``ValueError`` where they change from point to point, but never with a gradient.

    So are those of a function that is detached, or steps.
    """

    def look(at: Tensor) -> tuple[Tensor, bool]:
        values, _, pull = pullback(lambda point: (fn(point), point), at)
        if not isinstance(values, Tensor) or pull is None:
            return values, not isinstance(values, Tensor)
        v = torch.linspace(1, 2, values.numel(), dtype=values.dtype, device=values.device)
        return values, bool((pull(v.view(values.shape)) != 0).any())

    first, good = look(x)
    if good:
        return first
    others = [look(at) for at in (-x, x + 1, 2 * x)]
    if not any(good for _, good in others) and any(bool((values != first).any()) for values, _ in others):
        raise ValueError(
            f"expected {what} that is differentiable in x, got one that changes in steps, or detached: its gradient is 0"
        )
    return first
