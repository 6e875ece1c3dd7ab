"""Gibbs with gradients: single coordinates, chosen by the gradient, change by Metropolis."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ebmppl.energies.base import Energy
from ebmppl.kernels.accept import choose, metropolis
from ebmppl.kernels.base import Noise, NoiseSpec
from ebmppl.kernels.differences import DiscreteGradientKernel, DiscreteGradientState
from ebmppl.kernels.discrete import NoTuning, pick


class GibbsWithGradientsInfo(NamedTuple):
    """What a person looks at, by chain."""

    done: Tensor
    lp: Tensor  # minus the energy, nats
    energy: Tensor
    acceptance_rate: Tensor
    energy_error: Tensor  # of the proposal, minus the logarithm of the ratio of proposal probabilities, nats
    diverging: Tensor


class GibbsWithGradients(DiscreteGradientKernel):
    r"""One tick changes one coordinate of every chain, or rejects that.

    The pair of a coordinate i and a new level k is proposed with :math:`q(i, k \mid x) \propto e^{d_i(k) / 2}`, where
    :math:`d_i(k)` is the first-order estimate of E(x) - E(x with x_i = k); the Metropolis-Hastings step uses the
    reverse probability from the gradient at the proposal, which the state keeps: one gradient a tick. Exact for every
    differentiable energy and reversible.

    References:
        Grathwohl, Swersky, Hashemi, Duvenaud and Maddison 2021, "Oops I took a gradient: scalable sampling for
        discrete distributions", algorithms 1 and 2; Zanella 2020, "Informed proposals for local MCMC in discrete spaces".

    Args:
        energy: a discrete energy, differentiable at real points (see ``Energy.relaxed``).

    Raises:
        ValueError: for a continuous energy, or one in which no coordinate has a second level.
        EnergyError: at the start of a run, for an energy that can't be differentiated at discrete points.

    Example:
        >>> import ebmppl as eb
        >>> ising = eb.models.Ising(lattice=(4, 4), coupling=0.4)
        >>> mcmc = eb.MCMC(eb.GibbsWithGradients(ising), 100, 50, num_chains=8, seed=0, disable_progbar=True)
        >>> mcmc.run()
        >>> mcmc.get_samples()["x"].shape
        torch.Size([800, 4, 4])
    """

    def __init__(self, energy: Energy) -> None:
        super().__init__(energy)
        if self._levels.states == 1:
            raise ValueError("expected a coordinate with at least two levels, got none")

    def noise(self) -> dict[str, NoiseSpec]:
        """Two uniforms for the choice, so that rare ones keep their probability in float32, and one to accept."""
        return {"choice": NoiseSpec("uniform", (2,)), "accept": NoiseSpec("uniform", ())}

    def tick(
        self, state: DiscreteGradientState, tuning: NoTuning, noise: Noise
    ) -> tuple[DiscreteGradientState, GibbsWithGradientsInfo]:
        """One proposal of every chain, accepted or not."""
        there = self.log_probabilities(state)
        chosen = pick(there, noise["choice"])
        position, way_back = self._changed(state.position, chosen)
        new = self.proposed(position)
        forward, back = there.gather(1, chosen), self.log_probabilities(new).gather(1, way_back)
        error = new.energy - state.energy + (forward - back).squeeze(1)
        accept, rate, diverging = metropolis(error, noise["accept"])
        new = choose(accept, new, state)
        return new, GibbsWithGradientsInfo(
            done=torch.ones_like(accept),
            lp=-new.energy,
            energy=new.energy,
            acceptance_rate=rate,
            energy_error=error,
            diverging=diverging,
        )

    def log_probabilities(self, state: DiscreteGradientState) -> Tensor:
        """Of the proposals from a state, ``(chains, coordinates)`` or ``(chains, coordinates * levels)``."""
        half = 0.5 * self.estimates(state)
        if not self._differences.binary:
            x = state.position
            half = half.masked_fill(x.unsqueeze(-1) == self._differences.table(x, x.dtype), -torch.inf)
        return torch.log_softmax(half.flatten(1), 1)

    def _changed(self, x: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Points with a chosen pair ``(chains, 1)`` of coordinate and level changed, and the pair that leads back."""
        if self._differences.binary:
            return x.scatter(1, chosen, self._differences.other(x).gather(1, chosen)), chosen
        most = self._levels.most
        at = chosen.div(most, rounding_mode="floor")
        table = self._differences.table(x, x.dtype)
        value = table.flatten().index_select(0, chosen.squeeze(1)).unsqueeze(1)
        before = (x.gather(1, at) > table.index_select(0, at.squeeze(1))).sum(1, keepdim=True)
        return x.scatter(1, at, value), at * most + before
