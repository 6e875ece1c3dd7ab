"""Unadjusted Langevin dynamics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ebmppl.arguments import positive
from ebmppl.energies.base import Energy
from ebmppl.energies.linalg import rowwise
from ebmppl.kernels.accept import choose, not_finite, select
from ebmppl.kernels.base import Noise, NoiseSpec
from ebmppl.kernels.gradient_kernel import GradientKernel


class LangevinState(NamedTuple):
    """Position with its energy and gradient, so that nothing is evaluated twice."""

    position: Tensor  # (chains, dimension)
    energy: Tensor  # (chains,)
    grad: Tensor  # (chains, dimension)


class LangevinTuning(NamedTuple):
    """Nothing adapts; a tensor, so that a schedule may change it."""

    step_size: Tensor


class LangevinInfo(NamedTuple):
    """What a person looks at, by chain."""

    done: Tensor
    lp: Tensor  # minus the energy, nats
    energy: Tensor
    acceptance_rate: Tensor  # 1, or 0 where the step would have left the finite energies
    energy_error: Tensor  # change of energy in this step
    diverging: Tensor
    step_size: Tensor


class Langevin(GradientKernel):
    r"""Unadjusted Langevin: :math:`x' = x - \tfrac\eta2 \nabla E(x) + \sqrt\eta\,\xi`, with :math:`\xi \sim N(0, I)`.

    Without a Metropolis step its stationary law differs from exp(-E) by O(eta): for a Gaussian of precision P
    the covariance is :math:`P^{-1} (I - \eta P / 4)^{-1}`, and it exists only for eta < 4 / (largest eigenvalue).
    A step to a point of non-finite energy or gradient is not taken, and is counted as diverging. Nothing adapts.
    (``CD`` drops its chains after k steps and leaves out the last gradient: its last step asks for a finite energy alone.)

    Of a score alone (``energies.ScoreEnergy``) it makes :math:`x' = x + \tfrac\eta2 s(x) + \sqrt\eta\,\xi`; ``energy`` and ``lp``
    are then not known: NaN.

    References:
        Roberts and Tweedie 1996, "Exponential convergence of Langevin distributions and their discrete approximations".

    Args:
        energy: a continuous energy, constrained supports are unconstrained; or a ``ScoreEnergy``.
        step_size: eta > 0, in units of x squared.

    Raises:
        ValueError: for a step size <= 0 or a discrete support.
    """

    exact: ClassVar[bool] = False
    step_size_by_chain: ClassVar[bool] = True

    def __init__(self, energy: Energy, step_size: float) -> None:
        super().__init__(energy)
        self.step_size = positive("step_size", step_size)
        self._values = energy.has_values

    def init(self, x: Tensor) -> LangevinState:
        """State at points ``(chains, *event)``."""
        position = self.flat(x)
        energy, grad = self.value_and_grad(position)
        return LangevinState(position, energy.clone(), self.flat(grad))

    def init_tuning(self, x: Tensor) -> LangevinTuning:
        """The step size as a tensor."""
        return LangevinTuning(torch.tensor(self.step_size, dtype=x.dtype, device=x.device))

    def noise(self) -> dict[str, NoiseSpec]:
        """One normal per coordinate."""
        return {"normal": NoiseSpec("normal", (self.dimension,))}

    def tick(self, state: LangevinState, tuning: LangevinTuning, noise: Noise) -> tuple[LangevinState, LangevinInfo]:
        """One step of every chain."""
        eta, root = _scales(tuning)
        proposal = torch.addcmul(state.position, noise["normal"], root).addcmul_(state.grad, eta, value=-0.5)
        energy, grad = self.value_and_grad(proposal)
        bad = not_finite(energy + grad.sum(-1) if self._values else grad.sum(-1))
        ok = ~bad
        new = choose(ok, LangevinState(proposal, energy, grad), state)
        return new, LangevinInfo(
            done=torch.ones_like(ok),
            lp=-new.energy,
            energy=new.energy,
            acceptance_rate=ok.to(energy.dtype),
            energy_error=energy - state.energy,
            diverging=bad,
            step_size=tuning.step_size.expand_as(energy),
        )

    def ticks(
        self, state: LangevinState, tuning: LangevinTuning, noise: Sequence[Noise]
    ) -> tuple[LangevinState, list[Tensor]]:
        """Without a look at each: one number that is not finite shows in the sums, and then all are made anew."""
        eta, root = _scales(tuning)
        (x, energy, grad), energies, grads = state, torch.zeros_like(state.energy), torch.zeros_like(state.grad)
        for row in noise:
            x = torch.addcmul(x, row["normal"], root).addcmul_(grad, eta, value=-0.5)
            energy, grad = self.value_and_grad(x)
            energies += energy
            grads += grad
        if not math.isfinite(energies.sum() + grads.sum()):
            return super().ticks(state, tuning, noise)
        return LangevinState(x, energy, grad), [torch.ones_like(energy)] * len(noise)

    def held_after(
        self, state: LangevinState, tuning: LangevinTuning, noise: Sequence[Noise]
    ) -> tuple[tuple[Tensor, ...], list[Tensor]] | None:
        """Without the gradient at the end, so a chain takes its last step wherever the energy alone is finite there."""
        if not self._values:
            return None
        (before, _, grad), rates = self.ticks(state, tuning, noise[:-1])
        eta, root = _scales(tuning)
        x = torch.addcmul(before, noise[-1]["normal"], root).addcmul_(grad, eta, value=-0.5)
        shape = (len(x), *self.target.event_shape)
        energy = rowwise(self.target, x.view(shape))
        rate = torch.ones_like(energy)
        if not math.isfinite(energy.sum()):
            bad = not_finite(energy)
            x, rate = select(bad, before, x), rate.masked_fill_(bad, 0.0)
        return (x.view(shape),), [*rates, rate]


def _scales(tuning: LangevinTuning) -> tuple[Tensor, Tensor]:
    """Of gradients and of normals: step sizes and their roots, ``(1,)`` or one for each chain."""
    eta = tuning.step_size.unsqueeze(-1)
    return eta, eta.sqrt()
