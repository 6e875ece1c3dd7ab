"""Hamiltonian Monte Carlo without waiting: every tick is one leapfrog step of every chain."""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ebmppl.arguments import require, whole
from ebmppl.energies.base import Energy
from ebmppl.kernels.accept import metropolis, not_finite, select, some
from ebmppl.kernels.adaptation import Tuning
from ebmppl.kernels.base import Noise, NoiseSpec
from ebmppl.kernels.hamiltonian import FullMass, HamiltonianKernel
from ebmppl.kernels.integrators import Phase, hamiltonian, leapfrog


class HMCState(NamedTuple):
    """The last draw of every chain, and the trajectory under way."""

    position: Tensor  # (chains, dimension), the last draw, where the trajectory began
    energy: Tensor  # (chains,)
    grad: Tensor  # (chains, dimension)
    moving: Tensor  # (chains, dimension), position on the trajectory
    moving_grad: Tensor
    momentum: Tensor  # (chains, dimension), whitened
    hamiltonian: Tensor  # (chains,), at the beginning of the trajectory
    step_size: Tensor  # (chains,), taken when the trajectory began
    num_steps: Tensor  # (chains,) int32, length of the trajectory
    steps_left: Tensor  # (chains,) int32; 0: the next tick begins a trajectory


class HMCInfo(NamedTuple):
    """What a person looks at, by chain; of use where ``done``."""

    done: Tensor
    lp: Tensor  # minus the potential energy of the draw, nats
    energy: Tensor  # Hamiltonian of the draw, nats
    acceptance_rate: Tensor
    energy_error: Tensor  # at the end of the trajectory, nats
    diverging: Tensor
    step_size: Tensor
    n_steps: Tensor


class HMC(HamiltonianKernel):
    r"""Hamiltonian Monte Carlo with trajectories of random length, drawn anew for every draw of every chain.

    The number of leapfrog steps is :math:`\lceil (1 - j u) L \rceil` with u uniform on [0, 1), j the jitter and
    L = ``num_steps`` or ``trajectory_length / step_size`` rounded up. With j = 1 lengths are uniform on 1 ... L, so no
    frequency of the target is in resonance (Neal 2011, section 4.2); j = 0 fixes the length, as Pyro does. A trajectory
    that meets a non-finite energy ends there and is rejected; its reverse would be too.

    References:
        Neal 2011, "MCMC using Hamiltonian dynamics"; ticks of one gradient for all chains: Dance, Glaser, Orbanz and
        Adams 2025, "Efficiently vectorized MCMC on modern accelerators".

    Args:
        energy: a continuous energy; constrained supports are unconstrained.
        step_size: leapfrog step > 0, in units of x; where adaptation begins if it is adapted.
        trajectory_length: longest trajectory > 0 in units of x; Pyro's default 2 pi if ``num_steps`` is not given either.
        num_steps: longest trajectory in leapfrog steps >= 1; not together with ``trajectory_length``.
        jitter: j in [0, 1].
        max_num_steps: bound on L, which the first steps of adaptation may meet.
        adapt_step_size: adapt the step size in warm-up by dual averaging.
        adapt_mass_matrix: adapt the inverse mass matrix over Stan's windows.
        full_mass: a dense matrix instead of a diagonal one, or groups of sites that are dense each, as
            ``[("mu", "tau"), ("beta",)]``.
        target_accept_prob: acceptance rate to reach, in (0, 1).
        inverse_mass_matrix: ``(dimension,)``, or ``(dimension, dimension)`` with ``full_mass``: where adaptation begins.

    Raises:
        ValueError: for values out of range or a discrete support.
    """

    synchronous: ClassVar[bool] = False

    def __init__(
        self,
        energy: Energy,
        step_size: float = 1.0,
        trajectory_length: float | None = None,
        num_steps: int | None = None,
        *,
        jitter: float = 1.0,
        max_num_steps: int = 1024,
        adapt_step_size: bool = True,
        adapt_mass_matrix: bool = True,
        full_mass: FullMass = False,
        target_accept_prob: float = 0.8,
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
        require(trajectory_length is None or num_steps is None, "trajectory_length or num_steps, not both", "both")
        require(trajectory_length is None or trajectory_length > 0, "trajectory_length > 0", trajectory_length)
        num_steps = None if num_steps is None else whole("num_steps", num_steps, 1)
        max_num_steps = whole("max_num_steps", max_num_steps, 1)
        require(max_num_steps >= (num_steps or 1), f"max_num_steps >= {num_steps or 1}", max_num_steps)
        require(0 <= jitter <= 1, "jitter in [0, 1]", jitter)
        self.num_steps = num_steps
        self.trajectory_length = 2 * math.pi if trajectory_length is None else float(trajectory_length)
        self.jitter, self.max_num_steps = float(jitter), max_num_steps

    def init(self, x: Tensor) -> HMCState:
        """State at points ``(chains, *event)``, with no trajectory under way."""
        position = self.flat(x)
        energy, grad = self.value_and_grad(position)
        steps = torch.zeros(len(x), dtype=torch.int32, device=x.device)
        return HMCState(
            position=position,
            energy=energy.clone(),
            grad=self.flat(grad),
            moving=position.clone(),
            moving_grad=self.flat(grad),
            momentum=torch.zeros_like(position),
            hamiltonian=energy.clone(),
            step_size=torch.ones_like(energy),
            num_steps=steps,
            steps_left=steps.clone(),
        )

    def restart(self, state: HMCState) -> HMCState:
        """Drop the trajectories under way; the next tick begins new ones at the last draws."""
        return state._replace(
            moving=state.position.clone(), moving_grad=state.grad.clone(), steps_left=torch.zeros_like(state.steps_left)
        )

    @property
    def ticks_per_draw(self) -> int:
        """The mean length, or ten steps where the step size decides it."""
        return 10 if self.num_steps is None else max(1, round(self.num_steps * (1 - self.jitter / 2)))

    def noise(self) -> dict[str, NoiseSpec]:
        """A momentum, a trajectory length and a decision, whether or not this tick needs them."""
        uniform = NoiseSpec("uniform", ())
        return {
            "momentum": NoiseSpec("normal", (self.dimension,), where_zero="steps_left"),
            "length": uniform,
            "accept": uniform,
        }

    def _length(self, step_size: Tensor, uniform: Tensor) -> Tensor:
        longest = (
            (self.trajectory_length / step_size).ceil().clamp(1, self.max_num_steps)
            if self.num_steps is None
            else float(self.num_steps)
        )
        return ((1 - self.jitter * uniform) * longest).ceil().clamp_min(1).to(torch.int32)

    def tick(self, state: HMCState, tuning: Tuning, noise: Noise) -> tuple[HMCState, HMCInfo]:
        """Begin a trajectory where the last one ended, one leapfrog step, and the decision where it is complete."""
        begin = state.steps_left.logical_not()
        if some(begin):
            state = self._begin(begin, state, tuning, noise)
        start = Phase(state.moving, state.momentum, state.energy, state.moving_grad)
        end = leapfrog(self.value_and_grad, start, state.step_size, tuning.factor)
        steps_left = state.steps_left - 1
        energy = hamiltonian(end.energy, end.momentum)
        error = energy - state.hamiltonian
        done = steps_left.logical_not() | not_finite(error)
        state = state._replace(moving=end.position, moving_grad=end.grad, momentum=end.momentum, steps_left=steps_left)
        accepted, rate, diverging = metropolis(error, noise["accept"])
        drawn = state.hamiltonian
        if some(done):
            accept = done & accepted
            drawn = torch.where(accept, energy, drawn)
            state = self._end(accept, done, end.energy, state)
        return state, HMCInfo(
            done=done,
            lp=-state.energy,
            energy=drawn,
            acceptance_rate=rate,
            energy_error=error,
            diverging=diverging,
            step_size=state.step_size,
            n_steps=state.num_steps - steps_left,
        )

    def _begin(self, begin: Tensor, state: HMCState, tuning: Tuning, noise: Noise) -> HMCState:
        """New trajectories where the last ones ended."""
        length = self._length(tuning.step_size, noise["length"])
        return state._replace(
            momentum=select(begin, noise["momentum"], state.momentum),
            hamiltonian=torch.where(begin, hamiltonian(state.energy, noise["momentum"]), state.hamiltonian),
            step_size=torch.where(begin, tuning.step_size, state.step_size),
            num_steps=torch.where(begin, length, state.num_steps),
            steps_left=torch.where(begin, length, state.steps_left),
        )

    def _end(self, accept: Tensor, done: Tensor, energy: Tensor, at: HMCState) -> HMCState:
        """Accepted chains keep where they are as their draw, rejected ones go back to the last one."""
        reject = done & ~accept
        moving, moving_grad = at.moving, at.moving_grad
        if some(reject):
            moving, moving_grad = select(reject, at.position, moving), select(reject, at.grad, moving_grad)
        return at._replace(
            position=select(accept, at.moving, at.position),
            energy=torch.where(accept, energy, at.energy),
            grad=select(accept, at.moving_grad, at.grad),
            moving=moving,
            moving_grad=moving_grad,
            steps_left=at.steps_left.masked_fill(done, 0),
        )
