"""What kernels for discrete energies share: points as small integers, flat; conditionals, and drawing from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ebmppl.energies.base import Energy, dtype_and_device
from ebmppl.energies.discrete import Levels, indexed, levels_of
from ebmppl.kernels.base import Kernel


class NoTuning(NamedTuple):
    """Nothing adapts."""


class DiscreteKernel(Kernel):
    """Abstract kernel for energies of finitely many levels: moves flat integers ``(chains, coordinates)``.

    States hold the points at the dtype that the chains began with, int8 by default. Energies and random numbers have
    the dtype of the energy's tensors.

    Raises:
        ValueError: for an energy with a continuous site.
    """

    def __init__(self, energy: Energy) -> None:
        super().__init__(energy)
        self.target = indexed(energy)
        self._levels = levels_of(self.target)
        self.num_coordinates = self.target.event_shape.numel()

    def move(self, device: torch.device) -> None:
        """The levels."""
        self._levels = self._levels.to(device)

    def init_tuning(self, x: Tensor) -> Any:
        """None, unless a kernel says otherwise."""
        return NoTuning()

    @property
    def integers(self) -> bool:
        """Whether states hold points as integers, so that it is best to begin with such."""
        return True

    def random_dtype(self, x: Tensor) -> torch.dtype:
        """That of the energy."""
        return dtype_and_device(self.target)[0]

    def energies(self, x: Tensor) -> Tensor:
        """``(chains,)`` in nats at flat points."""
        return self.target(x.view(len(x), *self.target.event_shape))

    def flat(self, x: Tensor) -> Tensor:
        """Own contiguous copy ``(chains, coordinates)`` of points ``(chains, *event)``."""
        return x.detach().reshape(len(x), self.num_coordinates).clone(memory_format=torch.contiguous_format)

    def position(self, state: Any) -> Tensor:
        """The chains' last draws ``(chains, *event)``."""
        x: Tensor = state.position
        return x.view(len(x), *self.target.event_shape)


class ByEnergies:
    """Conditionals of single coordinates of any energy, by calling it with every level in turn."""

    def __init__(self, energy: Energy, levels: Levels) -> None:
        self.energy, self.levels = energy, levels
        counts = levels.counts.tolist()
        self._values = [row[:n] for row, n in zip(levels.table.tolist(), counts, strict=True)]  # a trace can't look

    @property
    def blocks(self) -> Sequence[Tensor]:
        """Every coordinate alone."""
        return list(torch.arange(len(self.levels.table), device=self.levels.table.device).split(1))

    def logits(self, block: int, x: Tensor) -> Tensor:
        """Minus the energies with the coordinate at each of its levels."""
        values = self._values[block]
        count = len(values)
        tried = x.unsqueeze(1).repeat(1, count, 1)
        for k in range(count):
            tried[:, k, block].fill_(values[k])  # a number assigned would be a tensor on the CPU
        energy = self.energy(tried.view(len(x) * count, *self.energy.event_shape)).view(len(x), count)
        return (energy[:, 0] - energy[:, 1]).unsqueeze(1) if count == 2 else -energy.unsqueeze(1)


def draw_upper(log_odds: Tensor, uniform: Tensor) -> Tensor:
    """Whether each of two levels is the upper one, by uniforms in [0, 1) of the same shape."""
    return uniform < torch.sigmoid(log_odds)


def draw_level(logits: Tensor, uniform: Tensor) -> Tensor:
    """A level's number for every row of log-probabilities up to a constant ``(..., levels)``, by uniforms ``(...)``."""
    below = torch.softmax(logits, -1).cumsum(-1)
    # the last one is 1 up to rounding, and a uniform may lie above it
    return (uniform.unsqueeze(-1) >= below[..., :-1]).sum(-1)


def pick(log_probabilities: Tensor, uniform: Tensor) -> Tensor:
    """One of many for every row, ``(chains, 1)`` int64, none of probability 0.

    Args:
        log_probabilities: normalised, ``(chains, many)``.
        uniform: two uniforms in [0, 1) for each row, ``(chains, 2)``; of numbers of 24 bits the second refines the first.
    """
    below = log_probabilities.double().exp().cumsum(1)
    fine = uniform[:, 1:].double() * 2.0**-24 if uniform.dtype != torch.float64 else 0.0
    at = (uniform[:, :1].double() + fine) * below[:, -1:]
    # the first whose sum lies above; there is one, as a uniform is less than 1, unless probabilities are NaN
    return (at >= below).sum(1, keepdim=True).clamp_max(below.shape[1] - 1)
