"""Gibbs sampling: every coordinate from its conditional, block by block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ebmppl.energies.base import Energy
from ebmppl.energies.discrete import Levels
from ebmppl.kernels.base import Noise, NoiseSpec
from ebmppl.kernels.discrete import DiscreteKernel, draw_level, draw_upper


class GibbsState(NamedTuple):
    """Points; a sweep needs nothing else."""

    position: Tensor  # (chains, coordinates)


class NoTuning(NamedTuple):
    """Nothing adapts."""


class GibbsInfo(NamedTuple):
    """What a person looks at, by chain."""

    done: Tensor
    lp: Tensor  # minus the energy, nats
    energy: Tensor
    acceptance_rate: Tensor  # 1
    diverging: Tensor  # False


class Gibbs(DiscreteKernel):
    """One tick is one sweep: every block of coordinates, in a fixed order, from its conditional given all others.

    Blocks are what the energy knows to be independent of one another: the colours of a lattice or a graph
    (chromatic), the layers of a Boltzmann machine; without such structure, single coordinates, whose conditionals take
    an energy call for every level. A sweep in a fixed order leaves exp(-E) invariant, but is not reversible.

    References:
        Geman and Geman 1984, "Stochastic relaxation, Gibbs distributions, and the Bayesian restoration of images";
        Gonzalez et al. 2011, "Parallel Gibbs sampling: from colored fields to thin junction trees".

    Args:
        energy: a discrete energy.

    Raises:
        ValueError: for a continuous energy.
    """

    def __init__(self, energy: Energy) -> None:
        super().__init__(energy)
        self._conditionals = self.target.conditionals() or ByEnergies(self.target, self._levels)

    def init(self, x: Tensor) -> GibbsState:
        """State at points ``(chains, *event)``."""
        return GibbsState(self.flat(x))

    def init_tuning(self, x: Tensor) -> NoTuning:
        """None."""
        return NoTuning()

    def noise(self) -> dict[str, NoiseSpec]:
        """One uniform for every coordinate."""
        return {"uniform": NoiseSpec("uniform", (self.num_coordinates,))}

    def tick(self, state: GibbsState, tuning: NoTuning, noise: Noise) -> tuple[GibbsState, GibbsInfo]:
        """One sweep of every chain."""
        x, uniform = state.position, noise["uniform"]
        table = self._levels.table.to(device=x.device, dtype=x.dtype)
        for block, members in enumerate(self._conditionals.blocks):
            u = uniform.index_select(1, members)
            logits = self._conditionals.logits(block, x)
            values = table.index_select(0, members)
            if logits.dim() == u.dim():
                drawn = torch.where(draw_upper(logits, u), values[:, 1], values[:, 0])
            else:
                drawn = values.gather(1, draw_level(logits, u).mT).mT
            x = x.index_copy(1, members, drawn)
        return GibbsState(x), self._info(x)

    def _info(self, x: Tensor) -> GibbsInfo:
        energy = self.energies(x)
        done = torch.ones(len(x), dtype=torch.bool, device=x.device)
        return GibbsInfo(done, -energy, energy, torch.ones_like(energy), ~done)


class ByEnergies:
    """Conditionals of single coordinates of any energy, by calling it with every level in turn."""

    def __init__(self, energy: Energy, levels: Levels) -> None:
        self.energy, self.levels = energy, levels
        counts = levels.counts.tolist()
        self._values = [row[:n] for row, n in zip(levels.table.tolist(), counts, strict=True)]  # a trace can't look

    @property
    def blocks(self) -> Sequence[Tensor]:
        """Every coordinate alone."""
        return list(torch.arange(len(self.levels.table)).split(1))

    def logits(self, block: int, x: Tensor) -> Tensor:
        """Minus the energies with the coordinate at each of its levels."""
        values = self._values[block]
        count = len(values)
        tried = x.unsqueeze(1).repeat(1, count, 1)
        for k in range(count):
            tried[:, k, block] = values[k]
        energy = self.energy(tried.view(len(x) * count, *self.energy.event_shape)).view(len(x), count)
        return (energy[:, 0] - energy[:, 1]).unsqueeze(1) if count == 2 else -energy.unsqueeze(1)
