"""What losses of scores ask of an energy: one question, so that a closed form can answer it in one piece."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import mse_loss


class Matching(NamedTuple):
    r"""Half a mean square of gradients of an energy, and its score's mean change along directions.

    .. math:: \tfrac12 \overline{|\nabla E(x) - t|^2} \text{ or } \tfrac12 \overline{(v^\top \nabla E(x))^2},
        \qquad -\overline{v^\top \nabla^2 E(x)\, v}

    The second term is None where there are no directions.

    Attributes:
        target: t / scale ``(rows, *event)``; None for 0.
        v: directions ``(n, rows, *event)``; None for none, and no second derivative.
        along: the second form of the square, along v.
        scale: of the target.
    """

    target: Tensor | None = None
    v: Tensor | None = None
    along: bool = False
    scale: float = 1.0

    @property
    def directions(self) -> Tensor | None:
        """V, without its first axis where there is one direction: operations on three axes take longer."""
        return self.v[0] if self.v is not None and self.v.shape[0] == 1 else self.v

    @property
    def number(self) -> int:
        """Directions of all rows."""
        return 0 if self.v is None else self.v.shape[0] * self.v.shape[1]

    def square(self, grad: Tensor) -> Tensor:
        """The first of these, of gradients ``(rows, *event)`` of the energy."""
        if self.along and self.v is not None:
            once = self.v * grad
            once = once.flatten(2).sum(-1) if once.dim() > 2 else once
            return 0.5 * mse_loss(once, torch.zeros_like(once))
        target = torch.zeros_like(grad) if self.target is None else self.scale * self.target
        return mse_loss(grad, target, reduction="sum") * (0.5 / len(grad))

    def apart(self, grad: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor]:
        """The same, of ``(rows, D)``, and what is squared in it: ``(rows, D)``, or ``(n, rows, 1)``, ``(rows, 1)`` for one v.

        ``v`` are the ``directions``.
        """
        if self.along and v is not None:
            apart, number = (v * grad).sum(-1, keepdim=True), self.number
        else:
            apart = grad if self.target is None else torch.add(grad, self.target, alpha=-self.scale)
            number = grad.shape[0]
        flat = apart.reshape(-1)
        return flat.dot(flat) * (0.5 / number), apart

    def pulled(self, apart: Tensor, by: Tensor, v: Tensor | None) -> Tensor:
        """Derivatives in the gradients ``(rows, D)`` from ``by``, that in the square."""
        if self.along and v is not None:
            pulled = v * (apart * (by / self.number))
            return pulled if pulled.dim() == 2 else pulled.sum(0)
        return apart * (by / apart.shape[0])

    def flat(self) -> Matching:
        """The same over points as vectors."""
        target, v = self.target, self.v
        return self._replace(
            target=None if target is None else target.reshape(len(target), -1),
            v=None if v is None else v.reshape(*v.shape[:2], -1),
        )
