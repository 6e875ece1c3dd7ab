"""Products with transposed Jacobians that ticks can be traced through."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from ebmppl.arguments import require

Pull = Callable[[Tensor], Tensor]
NO_GRADIENT = "that is differentiable in x, got one that changes in steps, or detached: its gradient is 0"


def pullback(fn: Callable[[Tensor], tuple[Tensor, Tensor]], x: Tensor) -> tuple[Tensor, Tensor, Pull | None]:
    """A function's values, the other tensor that it gives, and v -> (d values / dx)' v, None where the values don't depend on x.

    Under ``no_grad`` as well; where gradients are asked for outside, what comes is differentiable once more. Inside a trace
    (a transform of functorch's) it is ``torch.func.vjp``, which can't tell that nothing depends on x, and gives zeros.

    Raises:
        ValueError: under ``inference_mode``, where nothing has a gradient.
    """
    track = torch.is_grad_enabled()
    if _wrapped(x):
        values, back, rest = torch.func.vjp(fn, x, has_aux=True)  # type: ignore[misc]
        return values, rest, lambda v: back(v)[0]
    x, values, rest = _followed(fn, x)
    if not isinstance(values, Tensor) or not values.requires_grad:
        return values, rest, None

    def pull(v: Tensor) -> Tensor:
        (found,) = torch.autograd.grad(values, x, v, create_graph=track, retain_graph=True, materialize_grads=True)
        return found

    return (values if track else values.detach()), rest, pull


def value_and_grad(fn: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Values ``(batch,)`` of rows that don't depend on one another, and their gradients ``(batch, *event)``; see ``pullback``.

    Raises:
        ValueError: for values that change with x, but by nothing that has a gradient (``detach``, ``no_grad`` inside).
    """
    if _wrapped(x):
        values, _, pull = pullback(lambda at: (fn(at), at), x)
        assert pull is not None
        return values, pull(torch.ones_like(values))
    track, grad = torch.is_grad_enabled(), None
    at, values, _ = _followed(lambda point: (fn(point), point), x)
    if values.requires_grad:
        (grad,) = torch.autograd.grad(values, at, torch.ones_like(values), create_graph=track, allow_unused=True)
    if grad is None:
        if not is_in_torch_dispatch_mode() and _changes(fn, x, values):
            raise ValueError(f"expected an energy {NO_GRADIENT}")
        grad = torch.zeros_like(x)
    return (values if track else values.detach()), grad


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
    if not good and not any(look(at)[1] for at in _others(x)) and _changes(fn, x, first):
        raise ValueError(f"expected {what} {NO_GRADIENT}")
    return first


def _wrapped(x: Tensor) -> bool:
    return torch._C._functorch.is_functorch_wrapped_tensor(x)


def _followed(fn: Callable[[Tensor], tuple[Tensor, Tensor]], x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Points that gradients go to, and what the function gives there."""
    require(not torch.is_inference_mode_enabled(), "torch.no_grad() around a gradient", "torch.inference_mode()")
    with torch.enable_grad():
        x = x if x.requires_grad else x.detach().requires_grad_()
        return x, *fn(x)


def _others(x: Tensor) -> tuple[Tensor, ...]:
    return -x, x + 1, 2 * x


def _changes(fn: Callable[[Tensor], Tensor], x: Tensor, values: Tensor) -> bool:
    with torch.no_grad():
        return any(bool((fn(at) != values).any()) for at in _others(x))
