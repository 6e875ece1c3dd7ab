"""Swendsen-Wang: all clusters of bonded equal neighbours take new values at once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ebmppl.kernels.accept import not_finite, select, some
from ebmppl.kernels.base import Noise, NoiseSpec
from ebmppl.kernels.clusters import ClusterKernel, Clusters, ClusterState
from ebmppl.kernels.discrete import NoTuning, draw_level, draw_upper
from ebmppl.kernels.operators import labelled, summed


class SwendsenWangInfo(NamedTuple):
    """What a person looks at, by chain."""

    done: Tensor
    lp: Tensor  # minus the energy, nats
    energy: Tensor
    acceptance_rate: Tensor  # 1; 0 where diverging
    diverging: Tensor  # the energy is not finite, and the chain stays
    num_clusters: Tensor
    largest_cluster: Tensor  # its fraction of the sites


class SwendsenWang(ClusterKernel):
    r"""One tick is one sweep: every cluster takes a new level.

    For energies :math:`E(x) = -\sum_{ij} K_{ij} [x_i = x_j] - \sum_i h_i(x_i)` with K >= 0 (Ising: K = 2 J; Potts:
    K = J). Equal neighbours are bonded with probability :math:`1 - e^{-K_{ij}}`; every cluster C of bonded sites
    takes level k with probability proportional to :math:`\exp \sum_{i \in C} h_i(k)`: equal ones without fields. It is
    Gibbs sampling of levels and bonds in turn, so levels alone are reversible. Fields of mixed or large sizes make it
    slow, as its clusters don't know of them.

    Negative couplings of two levels are taken where flipping some sites makes all of them positive (an antiferromagnet
    on a bipartite graph; Mattis glasses).

    Clusters are labelled by rounds of torch's operations in eager ticks on a CPU (5 or 6 at a critical point), by C++ in
    compiled ones, by Triton on a GPU, which no tick waits for.

    References:
        Swendsen and Wang 1987, "Nonuniversal critical dynamics in Monte Carlo simulations";
        Edwards and Sokal 1988, "Generalization of the Fortuin-Kasteleyn-Swendsen-Wang representation".

    Args:
        energy: one with ``bonds()``: ``Ising``, ``Potts``, ``BoltzmannMachine``, ``Hopfield``, their sums and multiples,
            and such with some sites held (``Clamped``).

    Raises:
        ValueError: for an energy without bonds, or frustrated couplings (an edge is named).

    Example:
        >>> from ebmppl import MCMC, models
        >>> mcmc = MCMC(SwendsenWang(models.Ising((8, 8), 0.44)), 10, 5, num_chains=4, seed=0, disable_progbar=True)
        >>> mcmc.run()
        >>> mcmc.get_samples()["x"].shape
        torch.Size([40, 8, 8])
    """

    def noise(self) -> dict[str, NoiseSpec]:
        """A uniform for every edge, and for every site: a cluster takes that of its smallest site."""
        return {"bond": self.bond_noise(), "level": NoiseSpec("uniform", (self.num_coordinates,))}

    def tick(self, state: ClusterState, tuning: NoTuning, noise: Noise) -> tuple[ClusterState, SwendsenWangInfo]:
        """One sweep of every chain."""
        x = state.position
        clusters = self.clusters(x, noise["bond"])
        new = self.values_of(self._drawn(clusters.label, noise["level"]), x)
        energy = self.energies(new)
        diverging = not_finite(energy)
        if some(diverging):
            new = select(diverging, x, new)
        return ClusterState(new), self._info(clusters, energy, diverging)

    def _drawn(self, label: Tensor, uniform: Tensor) -> Tensor:
        """Levels ``(chains, sites)``, from the fields of clusters and the uniforms of their smallest sites."""
        levels, fields = self.num_levels, self.fields()
        uniform = labelled(uniform.reshape(-1), label).view(uniform.shape)
        if fields is None:
            return uniform < 0.5 if levels == 2 else (uniform * levels).to(torch.int8 if levels < 128 else torch.int64)
        if levels == 2:
            odds = (fields[..., 1] - fields[..., 0]).to(uniform.dtype).expand(uniform.shape)
            total = labelled(summed(odds.reshape(-1), label), label)
            return draw_upper(total.view(uniform.shape), uniform)
        flat = fields.to(uniform.dtype).expand(*uniform.shape, levels).reshape(-1, levels)
        total = labelled(summed(flat, label), label)
        return draw_level(total.view(*uniform.shape, levels), uniform)

    def _info(self, clusters: Clusters, energy: Tensor, diverging: Tensor) -> SwendsenWangInfo:
        shape = clusters.level.shape
        size = summed(torch.ones_like(clusters.label), clusters.label).view(shape)
        largest = size.amax(1).to(energy.dtype) / shape[1]
        rate = (~diverging).to(energy.dtype)
        done = torch.ones_like(diverging)
        return SwendsenWangInfo(done, -energy, energy, rate, diverging, (size > 0).sum(1), largest)
