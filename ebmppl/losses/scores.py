"""Scores and their derivatives: of energies by autograd, and of score networks."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import cast

import torch
from torch import Tensor, nn

from ebmppl.energies.base import Energy, Shape, flatten_batch, require_energy
from ebmppl.energies.matching import Matching
from ebmppl.energies.unconstrained import unconstrained
from ebmppl.errors import SamplingWarning
from ebmppl.score.pullback import NO_GRADIENT, require_gradient

_NUDGE = 64  # roundings: kinks are farther apart, what is smooth changes


class ScoreNetwork(nn.Module):
    """A score that needs not be a gradient: a callable ``(rows, *event) -> (rows, *event)`` with the shape of one point.

    The losses of scores take it in place of an energy. It is written for a batch; rows must not depend on one another.

    Args:
        fn: the callable (an ``nn.Module`` stays trainable).
        event_shape: shape of one point.

    Raises:
        ValueError: when fn isn't callable, or the shape isn't one.

    Example:
        >>> network = ScoreNetwork(lambda x: -x, (2,))
        >>> network(torch.ones(3, 2)).shape
        torch.Size([3, 2])
    """

    def __init__(self, fn: Callable[[Tensor], Tensor], event_shape: Shape) -> None:
        super().__init__()
        if not callable(fn) or isinstance(fn, Energy):
            raise ValueError(f"expected a callable score, got {type(fn).__name__}")
        self.event_shape = Energy(event_shape).event_shape
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        """Scores ``(*batch, *event)``."""
        rows, batch = flatten_batch(x, self.event_shape)
        score = self.fn(rows)
        if not isinstance(score, Tensor) or score.shape != rows.shape:
            got = tuple(score.shape) if isinstance(score, Tensor) else type(score).__name__
            raise ValueError(f"expected scores of shape {tuple(rows.shape)}, got {got}")
        return score.reshape(x.shape)

    def extra_repr(self) -> str:
        """Shape, for ``repr``."""
        return f"event_shape={tuple(self.event_shape)}"


Scored = Energy | ScoreNetwork


def require_scored(model: object) -> None:
    """Raise ``ValueError`` with a hint unless this is an ``Energy`` or a ``ScoreNetwork``."""
    if isinstance(model, ScoreNetwork):
        return
    if callable(model) and not isinstance(model, Energy):
        hint = "wrap a callable with as_energy(fn, event_shape), or one that gives scores with ScoreNetwork(fn, event_shape)"
        raise ValueError(f"expected an Energy or a ScoreNetwork, got {type(model).__name__}; {hint}")
    require_energy(model)


def differentiated(model: Scored) -> Scored:
    """What a score is taken of: a score network itself, an energy in its unconstrained space."""
    return model if isinstance(model, ScoreNetwork) else unconstrained(model)


def matched(model: Scored, x: Tensor, what: Matching, *, graph: bool) -> tuple[Tensor, Tensor | None]:
    """The two terms of ``Matching`` at x ``(rows, *event)``; where there is no energy its gradient is minus the score.

    The second one is None where there are no directions.

    Args:
        model: what has scores.
        x: points.
        what: is matched.
        graph: differentiable in the parameters.
    """
    closed = None if isinstance(model, ScoreNetwork) else model.matched(x, what)
    if closed is not None:
        return closed
    x = x.detach().requires_grad_()
    grad = gradient(model, x, graph=graph or what.v is not None)
    change = None if what.v is None else -changes(grad, x, what.v, graph=graph).mean()
    return what.square(grad), change


def gradient(model: Scored, x: Tensor, *, graph: bool = False) -> Tensor:
    """Of an energy; its ``value_and_grad`` is detached, so this goes through ``forward``. Of a network, minus the score.

    Raises:
        ValueError: for an energy that changes with x, but by nothing that has a gradient.
    """
    with uncompiled():
        value = model(x)
    if isinstance(model, ScoreNetwork):
        return -cast(Tensor, value)
    found = None
    if value.requires_grad:
        (found,) = torch.autograd.grad(value, x, torch.ones_like(value), create_graph=graph, allow_unused=True)
    if found is None:  # the same everywhere, or cut off from x
        require_gradient(model, x, "an energy")
        return torch.zeros_like(x)
    return found


def gradient_seen(energy: Energy, x: Tensor, of: Callable[[Energy, Tensor], Tensor] = gradient) -> bool:
    """Whether a loss's first calls have told that an energy has a gradient; not yet while it is constant, as at weights of 0.

    Args:
        energy: what is matched, or moves chains.
        x: the points ``(rows, *event)``; only where all gradients there are 0, points between them are looked at, too.
        of: gradients ``(rows, *event)`` of an energy at points.

    Raises:
        ValueError: where it changes from point to point, yet its gradient is 0: it changes in steps.
    """

    def graded(at: Tensor) -> bool:
        with torch.enable_grad():
            return bool((of(energy, at.detach().requires_grad_()) != 0).any())

    if graded(x):
        return True
    others = [x.lerp(x.roll(1, 0), weight) for weight in (0.3, 0.6)] if len(x) > 1 else [-x, x + 1, 2 * x]
    if any(graded(at) for at in others):  # data at minima
        return True
    with torch.no_grad():
        values = torch.cat([energy(at) for at in (x, *others)])
    values = values[values.isfinite()]  # walls around a plateau are no steps
    if bool((values != values[:1]).any()):
        raise ValueError(f"expected an energy {NO_GRADIENT}")
    return False


def changes(score: Tensor, x: Tensor, v: Tensor, *, graph: bool) -> Tensor:
    """V' (ds/dx) v ``(n, rows)`` of scores s ``(rows, *event)`` of x, by one backward pass for each direction."""
    if not score.requires_grad:  # a score that doesn't depend on x
        return v.new_zeros(v.shape[:2])
    found = []
    for i, direction in enumerate(v):
        keep = graph or i + 1 < len(v)
        (pulled,) = torch.autograd.grad(
            score, x, direction, create_graph=graph, retain_graph=keep, materialize_grads=True
        )
        found.append(dot(pulled, direction))
    return torch.stack(found)


def derivative_seen(
    change: Tensor, square: Tensor, score: Callable[[Tensor], Tensor], x: Tensor, stacklevel: int
) -> bool:
    """Whether a loss's first calls have told if the score has a derivative; not yet while it is 0 everywhere.

    Args:
        change: the terms of the score's derivative.
        square: those of the score.
        score: of points, or its negative; called only where all changes are 0.
        x: the points ``(rows, *event)``.
        stacklevel: of the warning.

    Raises:
        ValueError: where the score changes with x, yet its derivative is 0: it is cut off from x.

    Warns:
        SamplingWarning: where the score is the same around every point, as of an energy that is straight between kinks.
    """
    if bool(change.detach().any()):
        return True
    if not bool(square.detach().any()):
        return False
    size = x.detach().square().mean().sqrt()
    near = x.detach() + _NUDGE * torch.finfo(x.dtype).eps * torch.where(size > 0, size, 1.0)
    first, again, moved = (score(at).detach().reshape(len(x), -1) for at in (x, x, near))
    if torch.equal(first, again) and 2 * int((first != moved).any(1).sum()) > len(x):
        raise ValueError(f"expected a score {NO_GRADIENT}")
    warnings.warn(
        "the score is the same around every point, so that score matching only makes it smaller: networks of "
        "ReLUs have no second derivatives; take smooth activations (SiLU, softplus, tanh)",
        SamplingWarning,
        stacklevel=stacklevel,
    )
    return True


def uncompiled() -> AbstractContextManager[object]:
    """What ``torch.compile`` made has no second derivatives; inside this it runs as it was written."""
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products over the event: ``(rows,)`` of ``(rows, *event)``, or ``(n, rows)`` where b has n in front."""
    product, lead = a * b, b.dim() - a.dim() + 1
    return product.flatten(lead).sum(-1) if product.dim() > lead else product
