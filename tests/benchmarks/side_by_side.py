"""Restricted Boltzmann machines of one size that are trained side by side: one energy, so that a step is one of each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ebmppl.energies.base import flatten_batch
from ebmppl.models import BernoulliRBM
from ebmppl.models.rbm_views import log1p_exp


class SideBySide(BernoulliRBM):
    """The sum of the energies of M machines, each with its own V of M V visible and its own H of M H hidden units.

    Losses and kernels take it as they take one machine, and do to each what they would do to it alone.

    Args:
        machines: of one size; their parameters are copied.
    """

    def __init__(self, machines: Sequence[BernoulliRBM]) -> None:
        first, number = machines[0], len(machines)
        super().__init__(number * first.num_visible, number * first.num_hidden)
        for name in ("W", "b", "c"):  # with an axis of machines in front
            setattr(self, name, nn.Parameter(torch.stack([getattr(machine, name).detach() for machine in machines])))

    def machine(self, i: int) -> BernoulliRBM:
        """A copy of one."""
        W, b, c = (value[i].detach().clone() for value in (self.W, self.b, self.c))
        return BernoulliRBM(*W.shape, W=W, b=b, c=c)

    def parted(self, units: Tensor) -> Tensor:
        """Units of all machines ``(rows, M n)`` as ``(M, rows, n)``."""
        return units.to(self.W.dtype).unflatten(1, (len(self.W), -1)).transpose(0, 1)

    def hidden_logits(self, v: Tensor) -> Tensor:
        """Of all machines' hidden bits."""
        flatten_batch(v, self.event_shape)
        return _side_by_side(torch.baddbmm(self.c.unsqueeze(1), self.parted(v), self.W))

    def visible_fields(self, h: Tensor) -> Tensor:
        """Of all machines' visible units."""
        return _side_by_side(torch.baddbmm(self.b.unsqueeze(1), self.parted(h), self.W.mT))

    def visible_energy(self, v: Tensor) -> Tensor:
        """-b'v."""
        return -(v.to(self.W.dtype) @ self.b.flatten())

    def free_energy(self, v: Tensor, hidden_logits: Tensor | None = None) -> Tensor:
        """The sum of the machines'."""
        logits = self.hidden_logits(v) if hidden_logits is None else hidden_logits
        return self.visible_energy(v) - log1p_exp(logits).sum(-1)


def _side_by_side(units: Tensor) -> Tensor:
    """``(M, rows, n)`` as ``(rows, M n)``."""
    return units.transpose(0, 1).flatten(1)
