"""Metropolis-adjusted Langevin algorithm."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ebmppl.energies.base import Energy
from ebmppl.kernels.accept import choose, metropolis
from ebmppl.kernels.adaptation import Tuning
from ebmppl.kernels.base import Noise, NoiseSpec
from ebmppl.kernels.hamiltonian import FullMass, HamiltonianKernel
from ebmppl.kernels.integrators import Phase, hamiltonian, leapfrog


class MALAState(NamedTuple):
    """Position with its energy and gradient, so that nothing is evaluated twice."""

    position: Tensor  # (chains, dimension)
    energy: Tensor  # (chains,)
    grad: Tensor  # (chains, dimension)


class MALAInfo(NamedTuple):
    """What a person looks at, by chain."""

    done: Tensor
    lp: Tensor  # minus the energy, nats
    energy: Tensor
    acceptance_rate: Tensor
    energy_error: Tensor  # of the proposal, nats
    diverging: Tensor
    step_size: Tensor


class MALA(HamiltonianKernel):
    r"""Langevin proposals :math:`x - \tfrac\eta2 M^{-1}\nabla E(x) + \sqrt\eta\, M^{-1/2}\xi`, accepted by Metropolis.

    A proposal is one leapfrog step of size sqrt(eta) from a fresh momentum, so the ratio of the proposal densities
    is the energy error of that step (Neal 2011, section 5.2).

    References:
        Roberts and Tweedie 1996; optimal acceptance 0.574: Roberts and Rosenthal 1998.

    Args:
        energy: a continuous energy; constrained supports are unconstrained.
        step_size: eta > 0, in units of x squared; where adaptation begins if it is adapted.
        adapt_step_size: adapt eta in warm-up by dual averaging.
        adapt_mass_matrix: adapt the inverse mass matrix over Stan's windows.
        full_mass: a dense matrix instead of a diagonal one, or groups of sites that are dense each, as
            ``[("mu", "tau"), ("beta",)]``.
        target_accept_prob: acceptance rate to reach, in (0, 1).
        inverse_mass_matrix: ``(dimension,)``, or ``(dimension, dimension)`` with ``full_mass``: where adaptation begins.

    Raises:
        ValueError: for values out of range or a discrete support.
    """

    power: ClassVar[float] = 0.5
    step_size_by_chain: ClassVar[bool] = True

    def __init__(
        self,
        energy: Energy,
        step_size: float = 0.1,
        *,
        adapt_step_size: bool = True,
        adapt_mass_matrix: bool = True,
        full_mass: FullMass = False,
        target_accept_prob: float = 0.574,
        inverse_mass_matrix: Tensor | None = None,
    ) -> None:
        super().__init__(
            energy,
            step_size=step_size,
            adapt_step_size=adapt_step_size,
            adapt_mass_matrix=adapt_mass_matrix,
            full_mass=full_mass,
            target_accept_prob=target_accept_prob,
            inverse_mass_matrix=inverse_mass_matrix,
        )

    def init(self, x: Tensor) -> MALAState:
        """State at points ``(chains, *event)``."""
        position = self.flat(x)
        energy, grad = self.value_and_grad(position)
        return MALAState(position, energy.clone(), self.flat(grad))

    def noise(self) -> dict[str, NoiseSpec]:
        """One normal per coordinate and one uniform."""
        return {"normal": NoiseSpec("normal", (self.dimension,)), "accept": NoiseSpec("uniform", ())}

    def tick(self, state: MALAState, tuning: Tuning, noise: Noise) -> tuple[MALAState, MALAInfo]:
        """One proposal of every chain, accepted or not."""
        momentum = noise["normal"]
        step = tuning.step_size.sqrt()
        start = Phase(state.position, momentum, state.energy, state.grad)
        end = leapfrog(self.value_and_grad, start, step, tuning.factor)
        error = hamiltonian(end.energy, end.momentum) - hamiltonian(state.energy, momentum)
        accept, rate, diverging = metropolis(error, noise["accept"])
        new = choose(accept, MALAState(end.position, end.energy, end.grad), state)
        return new, MALAInfo(
            done=torch.ones_like(accept),
            lp=-new.energy,
            energy=new.energy,
            acceptance_rate=rate,
            energy_error=error,
            diverging=diverging,
            step_size=tuning.step_size.expand_as(rate),
        )
