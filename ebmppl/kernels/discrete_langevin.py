"""Discrete Langevin: all coordinates at once from a product of conditionals by the gradient, adjusted or not."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ebmppl.arguments import flag, fraction, positive
from ebmppl.energies.base import Energy
from ebmppl.kernels.accept import choose, metropolis, not_finite
from ebmppl.kernels.base import Noise, NoiseSpec
from ebmppl.kernels.differences import DiscreteGradientKernel, DiscreteGradientState
from ebmppl.kernels.discrete import draw_level, draw_upper
from ebmppl.kernels.step_size import StepSizeAdaptation

_FLAT = 1e3  # step size in largest squared distances: its term is then 1/2000 nat at most


class DiscreteLangevinTuning(NamedTuple):
    """What warm-up adapts."""

    step_size: Tensor  # scalar


class DiscreteLangevinInfo(NamedTuple):
    """What a person looks at, by chain."""

    done: Tensor
    lp: Tensor  # minus the energy, nats
    energy: Tensor
    acceptance_rate: Tensor  # without adjustment 1, or 0 where the step would have left the finite energies
    energy_error: Tensor  # of the proposal, with the ratio of proposal probabilities; unadjusted: change of energy
    diverging: Tensor
    step_size: Tensor


class DiscreteLangevin(DiscreteGradientKernel):
    r"""One tick proposes all coordinates at once, independently: the discrete Metropolis-adjusted Langevin algorithm.

    Each coordinate is drawn from the levels k with

    .. math:: q_i(k \mid x) \propto \exp\Big(-\tfrac12 g_i (k - x_i) - \frac{(k - x_i)^2}{2 \alpha}\Big),

    where g is the gradient of the energy and alpha the step size; of one-hot vectors with products and squared
    distances of vectors (2 between any two). A Metropolis-Hastings step with the exact reverse probability follows
    (DMALA), or none (DULA): its stationary law then differs from exp(-E), less for smaller alpha. The state keeps the
    gradient: one a tick. Adjusted, it is reversible and exact for every differentiable energy.

    References:
        Zhang, Liu and Liu 2022, "A Langevin-like sampler for discrete distributions", section 3 (U there is -E).

    Args:
        energy: a discrete energy, differentiable at real points (see ``Energy.relaxed``).
        step_size: alpha > 0, in units of x squared; where adaptation begins if it is adapted.
        adjusted: accept by Metropolis (DMALA); False leaves that out (DULA), and nothing adapts.
        adapt_step_size: adapt alpha in warm-up by dual averaging, if adjusted.
        target_accept_prob: acceptance rate to reach, in (0, 1). Where every step size is accepted more often, alpha
            ends at 1000 squared distances, above which it makes no difference.

    Raises:
        ValueError: for values out of range or a continuous energy.
        EnergyError: at the start of a run, for an energy that can't be differentiated at discrete points.

    Example:
        >>> import ebmppl as eb
        >>> ising = eb.models.Ising(lattice=(4, 4), coupling=0.3)
        >>> mcmc = eb.MCMC(eb.DiscreteLangevin(ising), 100, 100, num_chains=8, seed=0, disable_progbar=True)
        >>> mcmc.run()
        >>> mcmc.get_samples()["x"].shape
        torch.Size([800, 4, 4])
    """

    def __init__(
        self,
        energy: Energy,
        step_size: float = 0.2,
        *,
        adjusted: bool = True,
        adapt_step_size: bool = True,
        target_accept_prob: float = 0.574,
    ) -> None:
        super().__init__(energy)
        self.target_accept_prob = fraction("target_accept_prob", target_accept_prob)
        self.adjusted = flag("adjusted", adjusted)
        self.adapt_step_size = flag("adapt_step_size", adapt_step_size) and adjusted
        self.step_size = positive("step_size", step_size)

    @property
    def exact(self) -> bool:  # type: ignore[override]
        """Whether it is adjusted."""
        return self.adjusted

    def init_tuning(self, x: Tensor) -> DiscreteLangevinTuning:
        """The step size as a tensor."""
        return DiscreteLangevinTuning(torch.tensor(self.step_size, dtype=self.random_dtype(x), device=x.device))

    def adaptation(self) -> StepSizeAdaptation | None:
        """Of the step size."""
        if not self.adapt_step_size:
            return None
        return StepSizeAdaptation(self.target_accept_prob, _FLAT * self._differences.largest_distance())

    def noise(self) -> dict[str, NoiseSpec]:
        """One uniform for every coordinate, and one to accept."""
        accept = {"accept": NoiseSpec("uniform", ())} if self.adjusted else {}
        return {"level": NoiseSpec("uniform", (self.num_coordinates,)), **accept}

    def tick(
        self, state: DiscreteGradientState, tuning: DiscreteLangevinTuning, noise: Noise
    ) -> tuple[DiscreteGradientState, DiscreteLangevinInfo]:
        """One proposal of every chain, accepted or not."""
        x, step_size = state.position, tuning.step_size
        there = self.logits(state, step_size)
        if self._differences.binary:
            moved = draw_upper(there, noise["level"])
            new = self.proposed(torch.where(moved, self._differences.other(x), x))
        else:
            level = draw_level(there, noise["level"]).minimum(self._last(x))
            new = self.proposed(self._differences.table(x, x.dtype).gather(1, level.mT).mT.contiguous())
        error = new.energy - state.energy
        if not self.adjusted:
            diverging = not_finite(new.energy + new.grad.flatten(1).sum(1))
            accept, rate = ~diverging, (~diverging).to(error.dtype)
        else:
            back = self.logits(new, step_size)
            if self._differences.binary:
                error = error + _log_of_flips(there, moved) - _log_of_flips(back, moved)
            else:
                before = self._differences.numbers(x)
                error = error + _log_of_levels(there, level) - _log_of_levels(back, before)
            accept, rate, diverging = metropolis(error, noise["accept"])
        new = choose(accept, new, state)
        return new, DiscreteLangevinInfo(
            done=torch.ones_like(accept),
            lp=-new.energy,
            energy=new.energy,
            acceptance_rate=rate,
            energy_error=error,
            diverging=diverging,
            step_size=step_size.expand_as(rate),
        )

    def logits(self, state: DiscreteGradientState, step_size: Tensor) -> Tensor:
        """Of the proposals from a state.

        Of two levels the log-odds of a flip ``(chains, coordinates)``, else log-probabilities up to a constant
        ``(chains, coordinates, levels)``.
        """
        distances = self._differences.squared_distances(state.position, state.grad.dtype)
        return 0.5 * (self.estimates(state) - distances / step_size)

    def _last(self, x: Tensor) -> Tensor:
        """The number of each coordinate's last level."""
        table = self._differences.table(x, x.dtype)
        return self._differences.numbers(table[:, -1].unsqueeze(0))


def _log_of_flips(log_odds: Tensor, flipped: Tensor) -> Tensor:
    """Log-probability ``(chains,)`` that those coordinates flip and no others."""
    return (torch.where(flipped, log_odds, 0.0) - softplus(log_odds)).sum(1)


def _log_of_levels(logits: Tensor, level: Tensor) -> Tensor:
    """Log-probability ``(chains,)`` of a level of every coordinate."""
    return torch.log_softmax(logits, -1).gather(-1, level.unsqueeze(-1)).squeeze(-1).sum(1)
