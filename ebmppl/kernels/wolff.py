"""Wolff: the cluster of one random site takes another value."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ebmppl.kernels.accept import metropolis, not_finite
from ebmppl.kernels.base import Noise, NoiseSpec
from ebmppl.kernels.clusters import ClusterKernel, ClusterState
from ebmppl.kernels.discrete import NoTuning


class WolffInfo(NamedTuple):
    """What a person looks at, by chain."""

    done: Tensor
    lp: Tensor  # minus the energy, nats
    energy: Tensor
    acceptance_rate: Tensor  # 1 without fields
    diverging: Tensor  # the energy is not finite, and the chain stays
    cluster_size: Tensor  # sites of the cluster, whether it moved or not


class Wolff(ClusterKernel):
    r"""One tick moves one cluster: that of a random site, to another level, equally probable ones.

    For energies :math:`E(x) = -\sum_{ij} K_{ij} [x_i = x_j] - \sum_i h_i(x_i)` with K >= 0. The cluster is connected
    by bonds between equal neighbours, each there with probability :math:`1 - e^{-K_{ij}}`. Fields accept the move with
    probability :math:`\min(1, \exp \sum_{i \in C} [h_i(k') - h_i(k)])` (Metropolis): strong ones reject the moves of
    large clusters. Each tick is reversible.

    A tick of cluster size s moves a fraction s / sites of a sweep: times per sweep are times in ticks times the mean
    of ``cluster_size / num_coordinates``. All chains' clusters are labelled together from bonds on all edges, which has
    the same law as growing one from its site and takes far fewer passes than a cluster has shells; so a tick costs as
    much as one of Swendsen-Wang. Couplings of both signs are taken as there.

    References:
        Wolff 1989, "Collective Monte Carlo updating for spin systems".

    Args:
        energy: one with ``bonds()``: ``Ising``, ``Potts``, ``BoltzmannMachine``, ``Hopfield``, their sums and multiples,
            and such with some sites held (``Clamped``).

    Raises:
        ValueError: for an energy without bonds, or frustrated couplings (an edge is named).

    Example:
        >>> from ebmppl import MCMC, models
        >>> mcmc = MCMC(Wolff(models.Ising((8, 8), 0.44)), 10, 5, num_chains=4, seed=0, disable_progbar=True)
        >>> mcmc.run()
        >>> mcmc.stats()["cluster_size"].shape
        torch.Size([4, 10])
    """

    def noise(self) -> dict[str, NoiseSpec]:
        """A uniform for every edge; for the site, the new level and the acceptance."""
        return {"bond": self.bond_noise(), "move": NoiseSpec("uniform", (3,))}

    def tick(self, state: ClusterState, tuning: NoTuning, noise: Noise) -> tuple[ClusterState, WolffInfo]:
        """One cluster of every chain."""
        x, (site, other, accept) = state.position, noise["move"].unbind(1)
        clusters = self.clusters(x, noise["bond"])
        label = clusters.label.view(x.shape)
        # the largest uniform below 1 times a number rounds to less than the number
        seed = (site * x.shape[1]).long().unsqueeze(1)
        member = label == label.gather(1, seed)
        old = clusters.level
        if self.num_levels == 2:
            new = old ^ member
        else:
            step = 1 + (other * (self.num_levels - 1)).long()
            new = torch.where(member, (old + step.unsqueeze(1)) % self.num_levels, old)
        error = self._field_error(old, new, accept)
        decision = metropolis(error, accept)
        level = torch.where(decision.accept.unsqueeze(1), new, old)
        moved = self.values_of(level, x)
        energy = self.energies(moved)
        bad = not_finite(energy) | not_finite(error)
        moved = torch.where(bad.unsqueeze(1), x, moved)
        rate = torch.where(bad, 0.0, decision.rate)
        done = torch.ones_like(bad)
        return ClusterState(moved), WolffInfo(done, -energy, energy, rate, bad, member.sum(1))

    def _field_error(self, old: Tensor, new: Tensor, like: Tensor) -> Tensor:
        """By chain, the fields' energy of new levels minus that of old ones."""
        fields = self.fields()
        if fields is None:
            return torch.zeros_like(like)
        if self.num_levels == 2:
            odds = (fields[..., 1] - fields[..., 0]).to(like.dtype)
            return -(odds * (new.to(like.dtype) - old.to(like.dtype))).sum(1)
        fields = fields.to(like.dtype).expand(*old.shape, self.num_levels)
        there, here = (fields.gather(2, level.long().unsqueeze(2)).squeeze(2) for level in (new, old))
        return (here - there).sum(1)
