"""Metropolis-adjusted annealed Langevin dynamics, of a score that is the gradient of an energy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ebmppl.arguments import form, require, whole
from ebmppl.kernels.accept import choose, metropolis, not_finite, select, some
from ebmppl.kernels.base import Noise, NoiseSpec
from ebmppl.kernels.integrators import Phase, hamiltonian, leapfrog
from ebmppl.kernels.score import Score, ScoreKernel, ScoreTarget
from ebmppl.score.pullback import value_and_grad
from ebmppl.score.schedules import decreasing, langevin_step


class AnnealedMALAState(NamedTuple):
    """A draw under way, and the last one."""

    position: Tensor  # (chains, *event), the last draw
    point: Tensor  # (chains, dimension), under way
    potential: Tensor  # (chains,), the energy there at the level of the last tick, nats
    slope: Tensor  # (chains, dimension), its gradient
    step: Tensor  # (chains,) int64, of the next tick
    rates: Tensor  # (chains,), sum of the acceptance rates of this draw
    level_rates: Tensor  # (chains,), of this level
    least: Tensor  # (chains,), mean acceptance rate of the level where it was least
    failed_at: Tensor  # (chains,)
    failure: Tensor  # (chains,), ``failed_at`` of the last draw


class AnnealedMALATuning(NamedTuple):
    """Nothing adapts; a row for each tick: level, leapfrog step (0 where a level begins), steps of the draw, of the level."""

    table: Tensor  # (ticks, 4)
    last_variance: Tensor  # sigma_L^2


class AnnealedMALAInfo(NamedTuple):
    """What a person looks at, by chain."""

    done: Tensor
    acceptance_rate: Tensor  # mean over this draw's steps so far
    least_acceptance_rate: Tensor  # mean over the steps of the level where it was least, of those that are over
    diverging: Tensor  # whether an energy or a gradient of this draw was not finite
    time: Tensor  # the noise level
    failed_at: Tensor  # the first level at which that was so; 0 where all went well
    n_steps: Tensor  # network calls of this draw so far


class AnnealedMALA(ScoreKernel):
    r"""MALA steps at each noise level :math:`\sigma_1 > \dots > \sigma_L`, the largest first: exact at each, at any step size.

    A score that is the gradient of an energy, :math:`s = -\nabla E(x, \sigma)`, has an unnormalised density at every level. The
    step of ``AnnealedLangevin``, :math:`x' = x + \tfrac{\eta_i}2 s(x, \sigma_i) + \sqrt{\eta_i}\,z` with
    :math:`\eta_i = \eta\,\sigma_i^2 / \sigma_L^2`, is then accepted with probability

    .. math:: \min\Bigl(1, e^{E(x, \sigma_i) - E(x', \sigma_i)}\,\frac{q_i(x | x')}{q_i(x' | x)}\Bigr), \qquad
        q_i(x' | x) = N\bigl(x';\, x + \tfrac{\eta_i}2 s(x, \sigma_i),\, \eta_i I\bigr)

    and has no bias of its own: what is left is that of too few steps. A tick is one network call with its gradient. A level
    begins with one that takes the energy where the chain is; then come its steps. Draws are independent, and begin at
    N(0, sigma_1^2 I). What is not finite is rejected, and counts as diverging; a chain that stands on such a point stays there
    until the next level.

    References:
        Song and Ermon 2019, "Generative modeling by estimating gradients of the data distribution"; Roberts and Tweedie 1996;
        Du et al. 2023, "Reduce, reuse, recycle: compositional generation with energy-based diffusion models and MCMC".

    Args:
        score: with a method ``energy(x, sigma)``: ``(chains,)`` in nats from points ``(chains, *event)`` and noise levels
            ``(chains,)``, as ``score.EnergyGradient`` of ``KarrasVE``.
        sigmas: positive, decreasing noise levels ``(levels,)``, in units of x; see ``geometric_sigmas``.
        event_shape: of one point.
        steps_per_level: steps at each level, >= 1.
        step_size: eta > 0, in units of x squared, at the smallest level; 0.2 sigma_L^2 when None.
        denoise: end with the mean of the data given x at sigma_L (Tweedie), at no further call.

    Raises:
        ValueError: for a score without an energy, sigmas that don't decrease, or arguments outside their ranges.

    Example:
        >>> import ebmppl as eb
        >>> energy = lambda x, sigma: 0.5 * x.square().sum(1) / (1 + sigma**2)  # of N(0, I) with noise
        >>> score = eb.score.EnergyGradient(energy, eb.score.KarrasVE(5.0))
        >>> sigmas = eb.score.geometric_sigmas(10, 0.5, 5.0)
        >>> eb.generate(AnnealedMALA(score, sigmas, (2,), steps_per_level=5, step_size=0.5), 100, seed=0).shape
        torch.Size([100, 2])
    """

    def __init__(
        self,
        score: Score,
        sigmas: Tensor | Sequence[float],
        event_shape: Sequence[int],
        steps_per_level: int = 10,
        step_size: float | None = None,
        *,
        denoise: bool = True,
    ) -> None:
        energy: Any = getattr(score, "energy", None)
        require(callable(energy), "a score with an energy, as score.EnergyGradient", type(score).__name__)
        levels = decreasing("sigmas", sigmas)
        super().__init__(ScoreTarget(score, event_shape, float(levels[0])))
        self.steps_per_level = whole("steps_per_level", steps_per_level, 1)
        self.step_size, self.denoise = langevin_step(step_size, levels), denoise
        self._energy, self._levels = energy, levels

    @property
    def ticks_per_draw(self) -> int:
        """One more at each level than it has steps."""
        return len(self._levels) * (self.steps_per_level + 1)

    @property
    def in_step(self) -> bool:
        """All chains finish their draws together."""
        return True

    @property
    def first_time(self) -> float:
        """The largest level."""
        return float(self._levels[0])

    def identity(self) -> tuple[Any, ...]:
        """The levels are tuning, but their number is not."""
        return (*super().identity(), len(self._levels))

    def init(self, x: Tensor) -> AnnealedMALAState:
        """State of chains whose first draw begins at points ``(chains, *event)``."""
        x = self.begin(x)
        energy = self._energy(x, torch.full_like(x.reshape(len(x), -1)[:, 0], self.first_time))
        good = isinstance(energy, Tensor) and energy.shape == x.shape[:1]
        require(good, f"energies of shape ({len(x)},)", form(energy))
        point = x.reshape(len(x), -1).clone()
        step = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        rates, level_rates, failed_at, failure, potential = x.new_zeros(5, len(x)).unbind()
        zeros = (rates.clone(), level_rates.clone(), torch.ones_like(rates), failed_at.clone(), failure.clone())
        return AnnealedMALAState(x, point, potential.clone(), torch.zeros_like(point), step, *zeros)

    def init_tuning(self, x: Tensor) -> AnnealedMALATuning:
        """The steps at the dtype and device of the points."""
        per, sigma = self.steps_per_level + 1, self._levels
        leap = self.step_size**0.5 * sigma / sigma[-1]
        of_level = torch.arange(per).expand(len(sigma), per).double()
        of_draw = of_level + self.steps_per_level * torch.arange(len(sigma)).unsqueeze(1)
        columns = [sigma.unsqueeze(1).expand_as(of_level), leap.unsqueeze(1) * (of_level > 0), of_draw, of_level]
        table = torch.stack([column.flatten() for column in columns], 1)
        return AnnealedMALATuning(table.to(x), sigma[-1].square().to(x))

    def noise(self) -> dict[str, NoiseSpec]:
        """A normal per coordinate and a uniform for each step, and normals for the start of the next draw."""
        start = NoiseSpec("normal", self._event, held=self.ticks_per_draw)
        return {"normal": NoiseSpec("normal", self._event), "accept": NoiseSpec("uniform", ()), "start": start}

    def tick(
        self, state: AnnealedMALAState, tuning: AnnealedMALATuning, noise: Noise
    ) -> tuple[AnnealedMALAState, AnnealedMALAInfo]:
        """One proposal of every chain, or the energy at another level."""
        x = state.point
        # all chains are at the same step, so one row of the table serves them
        level, leap, of_draw, of_level = tuning.table.index_select(0, state.step[:1]).unbind(1)
        sigma, moves = level.expand(len(x)), leap > 0

        def potential(flat: Tensor) -> tuple[Tensor, Tensor]:
            value, grad = value_and_grad(lambda at: self._energy(at, sigma), flat.view(len(x), *self._event))
            return value, grad.reshape(flat.shape)

        momentum = noise["normal"].reshape(x.shape)
        slope = torch.where(moves, state.slope, 0.0)  # where nothing moves the old level's need not be finite
        end = leapfrog(potential, Phase(x, momentum, state.potential, slope), leap, torch.ones_like(leap))
        error = hamiltonian(end.energy, end.momentum) - hamiltonian(state.potential, momentum)
        accept, rate, _ = metropolis(error, noise["accept"])
        now = choose(accept | ~moves, end, Phase(x, end.momentum, state.potential, state.slope))
        bad = not_finite(end.energy + end.grad.sum(1))
        rates = state.rates + torch.where(moves, rate, 0.0)
        level_rates = torch.where(moves, state.level_rates + rate, 0.0)
        over = of_level == self.steps_per_level
        least = torch.where(over, torch.minimum(state.least, level_rates / self.steps_per_level), state.least)
        new = state._replace(
            point=now.position,
            potential=now.energy,
            slope=now.grad,
            step=state.step + 1,
            rates=rates,
            level_rates=level_rates,
            least=least,
            failed_at=torch.where((state.failed_at == 0) & bad, sigma, state.failed_at),
        )
        return self._next(new, tuning, noise, sigma, rates / of_draw.clamp_min(1.0))

    def _next(
        self, state: AnnealedMALAState, tuning: AnnealedMALATuning, noise: Noise, sigma: Tensor, rate: Tensor
    ) -> tuple[AnnealedMALAState, AnnealedMALAInfo]:
        """Begin the next draw of chains that are done."""
        done = state.step == self.ticks_per_draw
        info = AnnealedMALAInfo(
            done, rate, state.least.clone(), state.failed_at != 0, sigma, state.failed_at.clone(), state.step.clone()
        )
        if not some(done):
            return state, info
        drawn = (
            torch.addcmul(state.point, tuning.last_variance, state.slope, value=-1.0) if self.denoise else state.point
        )
        return state._replace(
            position=select(done, drawn.view_as(state.position), state.position),
            point=select(done, self.start(noise["start"]).reshape(state.point.shape), state.point),
            step=torch.where(done, 0, state.step),
            rates=torch.where(done, 0.0, state.rates),
            least=torch.where(done, 1.0, state.least),
            failed_at=torch.where(done, 0.0, state.failed_at),
            failure=torch.where(done, state.failed_at, state.failure),
        ), info
