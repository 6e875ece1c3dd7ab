"""What kernels that move by gradients share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ebmppl.energies.base import Energy
from ebmppl.energies.checks import require_values
from ebmppl.energies.unconstrained import unconstrained
from ebmppl.kernels.base import Kernel
from ebmppl.kernels.gradients import Gradient, Traces


class GradientKernel(Kernel):
    """Abstract kernel for continuous energies: moves flat unconstrained vectors ``(chains, dimension)`` by gradients.

    Raises:
        ValueError: for an energy with a discrete support.
    """

    def __init__(self, energy: Energy) -> None:
        super().__init__(energy)
        if self.exact:
            require_values(energy, type(self).__name__)
        self.target = unconstrained(energy)
        self.dimension = self.target.event_shape.numel()
        self._gradient = Gradient(self.target)

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Energies ``(chains,)`` and gradients ``(chains, dimension)`` at flat points."""
        shape = self.target.event_shape
        value, grad = self._gradient(x if len(shape) == 1 else x.view(len(x), *shape))
        return value, grad.reshape(x.shape).contiguous()  # states keep one memory format

    def prepare(self, x: Tensor, *, values: bool, many: bool) -> None:
        """Trace the gradient."""
        self._gradient.prepare(x, values=values, trace=many)

    def untraced(self, x: Tensor) -> str | None:
        """The reason why the gradient isn't traced."""
        reason = self._gradient.untraced(x)
        return None if reason is None else f"the gradient is not traced: {reason}"

    def traces(self) -> Traces:
        """Of the gradient."""
        return dict(self._gradient.traced)

    def adopt(self, traces: Traces) -> None:
        """Use them."""
        self._gradient.traced |= traces

    def flat(self, x: Tensor) -> Tensor:
        """Own contiguous copy ``(chains, dimension)`` of points ``(chains, *event)``."""
        return x.detach().reshape(len(x), self.dimension).clone(memory_format=torch.contiguous_format)

    def position(self, state: Any) -> Tensor:
        """The chains' last draws ``(chains, *event)``."""
        x: Tensor = state.position
        return x.view(len(x), *self.target.event_shape)
