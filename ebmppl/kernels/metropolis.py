"""Metropolis: every coordinate in turn is proposed another level."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ebmppl.arguments import flag
from ebmppl.energies.base import Energy
from ebmppl.energies.discrete import Conditionals
from ebmppl.kernels.accept import metropolis
from ebmppl.kernels.base import Noise, NoiseSpec
from ebmppl.kernels.discrete import DiscreteKernel, NoTuning


class MetropolisState(NamedTuple):
    """Points with their energy."""

    position: Tensor  # (chains, coordinates)
    energy: Tensor  # (chains,)


class MetropolisInfo(NamedTuple):
    """What a person looks at, by chain."""

    done: Tensor
    lp: Tensor  # minus the energy, nats
    energy: Tensor
    acceptance_rate: Tensor  # mean over the proposals of the sweep
    diverging: Tensor  # whether one of them had an energy that is not finite, or over 1000 nats more


class Metropolis(DiscreteKernel):
    """One tick is one sweep: as many proposals as there are coordinates, each of another level of one coordinate.

    The new level is uniform among the others, and accepted with probability min(1, exp(-difference of energy)).
    In the fixed order (the default) every coordinate is proposed once, block by block where the energy knows its
    conditionals: their logits are the differences, and coordinates that don't interact are proposed together; else
    each proposal is an energy call. A sweep in a fixed order leaves exp(-E) invariant, but is not reversible.
    With ``random_scan`` each chain draws the coordinate of every proposal, with replacement and by energy calls: then
    it is reversible. A change that costs nothing is always accepted, so a flat energy of two levels is not mixed
    by either: take ``Gibbs``.

    References:
        Metropolis, Rosenbluth, Rosenbluth, Teller and Teller 1953, "Equation of state calculations by fast computing machines".

    Args:
        energy: a discrete energy.
        random_scan: propose coordinates at random instead of in a fixed order.

    Raises:
        ValueError: for a continuous energy.
    """

    def __init__(self, energy: Energy, *, random_scan: bool = False) -> None:
        super().__init__(energy)
        self.random_scan = flag("random_scan", random_scan)
        self._conditionals = None if random_scan else self.target.conditionals()
        self._blocks = [] if self._conditionals is None else list(self._conditionals.blocks)

    def move(self, device: torch.device) -> None:
        """The levels and the blocks: those of parts know no device."""
        super().move(device)
        self._blocks = [] if self._conditionals is None else [b.to(device) for b in self._conditionals.blocks]

    @property
    def calls_per_tick(self) -> int:  # type: ignore[override]
        """One for every proposal, or one after a sweep by conditionals."""
        return self.num_coordinates if self._conditionals is None else 1

    def init(self, x: Tensor) -> MetropolisState:
        """State at points ``(chains, *event)``."""
        position = self.flat(x)
        return MetropolisState(position, self.energies(position).clone())

    def noise(self) -> dict[str, NoiseSpec]:
        """For every proposal one uniform to accept, and where they are to be drawn one for the level and the coordinate."""
        each = NoiseSpec("uniform", (self.num_coordinates,))
        drawn = {"level": self._levels.most > 2, "coordinate": self.random_scan}
        return {"accept": each} | {name: each for name, wanted in drawn.items() if wanted}

    def tick(self, state: MetropolisState, tuning: NoTuning, noise: Noise) -> tuple[MetropolisState, MetropolisInfo]:
        """One sweep of every chain."""
        uniform = noise["accept"]
        level = noise["level"] if self._levels.most > 2 else torch.zeros_like(uniform)
        if self._conditionals is None:
            new, rate, diverging = self._by_calls(state, level, noise)
        else:
            new, rate, diverging = self._by_blocks(self._conditionals, state.position, level, uniform)
        return new, MetropolisInfo(
            done=torch.ones_like(diverging),
            lp=-new.energy,
            energy=new.energy,
            acceptance_rate=rate / self.num_coordinates,
            diverging=diverging,
        )

    def _by_calls(self, state: MetropolisState, level: Tensor, noise: Noise) -> tuple[MetropolisState, Tensor, Tensor]:
        """A sweep with an energy call for each proposal; the sum of the acceptance rates, and whether one diverged."""
        x, energy = state
        table, counts = self._table_and_counts(x)
        rates, diverged = torch.zeros_like(energy), torch.zeros_like(energy, dtype=torch.bool)
        for i in range(self.num_coordinates):
            if self.random_scan:  # a uniform just under 1 times many coordinates may round to their number
                at = (noise["coordinate"][:, i : i + 1] * self.num_coordinates).long().clamp_max(len(table) - 1)
                of, among = table.index_select(0, at.squeeze(1)).unsqueeze(1), counts.index_select(0, at.squeeze(1))
                among = among.unsqueeze(1)
            else:
                at = torch.full_like(x[:, :1], i, dtype=torch.int64)
                of, among = table[i : i + 1], counts[i : i + 1]
            proposal = _another(x.gather(1, at), of, among, level[:, i : i + 1])
            moved = x.scatter(1, at, proposal.value)
            there = self.energies(moved)
            accept, rate, diverging = metropolis(there - energy, noise["accept"][:, i])
            x, energy = torch.where(accept.unsqueeze(1), moved, x), torch.where(accept, there, energy)
            rates, diverged = rates + rate, diverged | diverging
        return MetropolisState(x, energy), rates, diverged

    def _by_blocks(
        self, conditionals: Conditionals, x: Tensor, level: Tensor, uniform: Tensor
    ) -> tuple[MetropolisState, Tensor, Tensor]:
        """A sweep by the conditionals' logits, whose differences are those of the energy."""
        table, counts = self._table_and_counts(x)
        rates, diverged = torch.zeros_like(uniform[:, 0]), torch.zeros_like(uniform[:, 0], dtype=torch.bool)
        for block, members in enumerate(self._blocks):
            members = members.to(x.device)
            here, of = x.index_select(1, members), table.index_select(0, members)
            proposal = _another(here, of, counts.index_select(0, members), level.index_select(1, members))
            logits = conditionals.logits(block, x)
            if logits.dim() == 2:
                error = torch.where(proposal.before > 0, logits, -logits)
            else:
                before, after = (logits.gather(-1, k.unsqueeze(-1)).squeeze(-1) for k in proposal[:2])
                error = before - after
            accept, rate, diverging = metropolis(error, uniform.index_select(1, members))
            x = x.index_copy(1, members, torch.where(accept, proposal.value, here))
            rates, diverged = rates + rate.sum(1), diverged | diverging.any(1)
        return MetropolisState(x, self.energies(x)), rates, diverged

    def _table_and_counts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of the levels, where the points are."""
        return self._levels.table.to(x.device, x.dtype), self._levels.counts.to(x.device)


class _Proposal(NamedTuple):
    """Another level of each coordinate, ``(chains, size)``."""

    before: Tensor  # number of the present level
    after: Tensor  # of the proposed one
    value: Tensor


def _another(x: Tensor, table: Tensor, counts: Tensor, uniform: Tensor) -> _Proposal:
    """Uniformly one of the other levels; the same one where there is no other.

    Args:
        x: values ``(chains, size)``.
        table: of the coordinates' levels, ``(size, levels)`` or by chain.
        counts: of them.
        uniform: in [0, 1), of the values' shape.
    """
    before = (x.unsqueeze(-1) > table).sum(-1)  # values increase
    step = 1 + (uniform * (counts - 1)).long().minimum(counts - 2)  # rounding may have given all of them
    after = (before + step) % counts
    value = table.expand(*x.shape, -1).gather(-1, after.unsqueeze(-1)).squeeze(-1)
    return _Proposal(before, after, value)
