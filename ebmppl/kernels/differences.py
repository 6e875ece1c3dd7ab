"""What gradient kernels for discrete energies share: first-order estimates of energy differences, and their state."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ebmppl.arguments import require
from ebmppl.energies.base import Energy
from ebmppl.energies.checks import check_gradient
from ebmppl.energies.discrete import Levels, one_hot
from ebmppl.kernels.discrete import DiscreteKernel
from ebmppl.kernels.gradients import Gradient


class Differences:
    r"""Estimates of energy differences from one gradient, :math:`d_i(k) = E(x) - E(x \text{ with } x_i = k)`.

    With the gradient g of the energy at real points, to first order: of ordered values
    :math:`d_i(k) = g_i (x_i - k)`; of one-hot vectors :math:`d_i(k) = g_{i, x_i} - g_{i k}`, where the energy has a
    ``relaxed`` form. They are exact for energies that are linear in every coordinate alone, as pairwise ones without
    self-couplings are.

    Attributes:
        binary: whether all coordinates have two levels. Estimates are then those of the other level,
            ``(chains, coordinates)``; else ``(chains, coordinates, levels)``, 0 at the present level and -inf where
            a coordinate has no such level.

    Args:
        energy: of integers.
        levels: its levels.

    Raises:
        ValueError: for a relaxed form that doesn't fit the levels.
    """

    def __init__(self, energy: Energy, levels: Levels) -> None:
        relaxed = energy.relaxed()
        if relaxed is not None:
            wanted = (*energy.event_shape, levels.most)
            fits = tuple(relaxed.event_shape) == wanted and not levels.ragged
            require(fits, f"a relaxed energy of event shape {wanted}", tuple(relaxed.event_shape))
        self.hot, self.levels = relaxed is not None, levels
        self.energy = energy if relaxed is None else relaxed
        self._ragged = levels.ragged
        self.binary = levels.most == 2 and not self._ragged
        self._gradient = Gradient(self.energy, self._elsewhere)
        self._checked = False

    def move(self, device: torch.device) -> None:
        """See ``Kernel.move``."""
        self.levels = self.levels.to(device)

    def prepare(self, x: Tensor, dtype: torch.dtype, *, values: bool, many: bool) -> None:
        """See ``Kernel.prepare``; the first time the gradient is checked.

        Raises:
            EnergyError: for an energy that isn't differentiable, or a gradient that is not finite.
        """
        self.check(x, dtype)
        self._gradient.prepare(self.points(x, dtype), values=values, trace=many)

    def check(self, x: Tensor, dtype: torch.dtype) -> None:
        """Check the gradient, the first time.

        Raises:
            EnergyError: see ``prepare``.
        """
        if not self._checked:
            check_gradient(self.energy, self.points(x, dtype))
            self._checked = True

    def untraced(self, x: Tensor, dtype: torch.dtype) -> str | None:
        """See ``Kernel.untraced``."""
        return self._gradient.untraced(self.points(x, dtype))

    def points(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Flat integers as the real points at which gradients are taken, ``(chains, *event)`` of the relaxed energy."""
        real = one_hot(self.numbers(x), self.levels.most, dtype) if self.hot else x.to(dtype)
        return real.view(len(x), *self.energy.event_shape)

    def value_and_grad(self, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Energies ``(chains,)`` and gradients as ``DiscreteGradientState`` holds them."""
        value, grad = self._gradient(self.points(x, dtype))
        shape = (*x.shape, self.levels.most) if self.hot else x.shape
        return value, grad.reshape(shape).contiguous()

    def table(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Values ``(coordinates, levels)`` at a dtype, where x is."""
        return self.levels.table.to(x.device, dtype)

    def numbers(self, x: Tensor) -> Tensor:
        """Of the levels that flat values are at, int64."""
        return (x.unsqueeze(-1) > self.table(x, x.dtype)).sum(-1)  # values increase

    def upper(self, x: Tensor) -> Tensor:
        """Of two levels, whether values are at the upper one."""
        return x == self.table(x, x.dtype)[:, 1]

    def other(self, x: Tensor) -> Tensor:
        """Of two levels the other one."""
        table = self.table(x, x.dtype)
        return torch.where(x == table[:, 1], table[:, 0], table[:, 1])

    def estimates(self, x: Tensor, grad: Tensor) -> Tensor:
        """See the class."""
        if self.binary:
            if self.hot:
                rise = grad[..., 1] - grad[..., 0]
            else:
                table = self.table(x, grad.dtype)
                rise = grad * (table[:, 1] - table[:, 0])
            return torch.where(self.upper(x), rise, -rise)
        if self.hot:
            return grad.gather(-1, self.numbers(x).unsqueeze(-1)) - grad
        away = x.to(grad.dtype).unsqueeze(-1) - self.table(x, grad.dtype)
        estimates = grad.unsqueeze(-1) * away
        return estimates.masked_fill(self._missing(x), -torch.inf) if self._ragged else estimates

    def squared_distances(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """From the present level to others, of the shape of the estimates or one that broadcasts to it."""
        table = self.table(x, dtype)
        if self.binary:
            return (table[:, 1] - table[:, 0]).square() if not self.hot else torch.full_like(table[:, 0], 2.0)
        if self.hot:
            return 2.0 * (x.unsqueeze(-1) != self.table(x, x.dtype)).to(dtype)
        return (x.to(dtype).unsqueeze(-1) - table).square()

    def largest_distance(self) -> float:
        """Squared, between two levels of a coordinate."""
        span = self.levels.table[:, -1] - self.levels.table[:, 0]
        return 2.0 if self.hot else float(span.square().max().clamp_min(1))

    def _missing(self, x: Tensor) -> Tensor:
        """Levels ``(coordinates, levels)`` that a coordinate hasn't: there its last value repeats."""
        table = self.table(x, x.dtype)
        return torch.cat([torch.zeros_like(table[:, :1], dtype=torch.bool), table[:, 1:] == table[:, :-1]], 1)

    def _elsewhere(self, points: Tensor) -> Tensor:
        """Every coordinate at its mirrored level, so that they are other points inside the support."""
        if self.hot:
            return points.flip(-1)
        flat = points.reshape(len(points), -1)
        ends = self.levels.table[:, 0] + self.levels.table[:, -1]
        return (ends.to(flat) - flat).reshape(points.shape)


class DiscreteGradientState(NamedTuple):
    """Points with their energy and gradient, so that nothing is evaluated twice."""

    position: Tensor  # (chains, coordinates)
    energy: Tensor  # (chains,)
    grad: Tensor  # (chains, coordinates), of one-hot vectors (chains, coordinates, levels)


class DiscreteGradientKernel(DiscreteKernel):
    """Abstract kernel for discrete energies that are differentiable at real points: proposes by gradients there.

    Energies of categories are asked at one-hot vectors where they have a ``relaxed`` form; all others at their
    values as real numbers. Gradients only propose: where a Metropolis step follows, the kernel is exact whatever they are.

    Raises:
        ValueError: for a continuous energy.
        EnergyError: at the start of a run, for an energy that can't be differentiated at discrete points.
    """

    def __init__(self, energy: Energy) -> None:
        super().__init__(energy)
        self._differences = Differences(self.target, self._levels)

    def move(self, device: torch.device) -> None:
        """The levels."""
        super().move(device)
        self._differences.move(device)

    def prepare(self, x: Tensor, *, values: bool, many: bool) -> None:
        """Check the gradient and trace it."""
        super().prepare(x, values=values, many=many)
        self._differences.prepare(self.flat(x), self.random_dtype(x), values=values, many=many)

    def check(self, x: Tensor, dtype: torch.dtype) -> None:
        """Check the gradient at points as numbers of a dtype, the first time."""
        self._differences.check(self.flat(x), dtype)

    @property
    def differentiated(self) -> Energy:
        """The energy whose gradient is taken."""
        return self._differences.energy

    def real_points(self, x: Tensor) -> Tensor:
        """Points ``(chains, *event)`` as the real ones at which it is taken."""
        return self._differences.points(self.flat(x), self.random_dtype(x))

    def untraced(self, x: Tensor) -> str | None:
        """The reason why the gradient isn't traced."""
        return self._differences.untraced(self.flat(x), self.random_dtype(x))

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Energies ``(chains,)`` and gradients at flat points."""
        return self._differences.value_and_grad(x, self.random_dtype(x))

    def init(self, x: Tensor) -> DiscreteGradientState:
        """State at points ``(chains, *event)``."""
        position = self.flat(x)
        energy, grad = self.value_and_grad(position)
        return DiscreteGradientState(position, energy.clone(), grad.clone(memory_format=torch.contiguous_format))

    def proposed(self, x: Tensor) -> DiscreteGradientState:
        """A proposal with its one gradient."""
        return DiscreteGradientState(x, *self.value_and_grad(x))

    def estimates(self, state: Any) -> Tensor:
        """Of the energy differences from a state, see ``Differences``."""
        return self._differences.estimates(state.position, state.grad)
