"""The probability-flow ODE by steps that adapt to each chain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ebmppl.arguments import positive, require
from ebmppl.kernels.accept import but_not, not_finite, select, some
from ebmppl.kernels.adaptive_score import AdaptiveInfo, AdaptiveTuning, least_step
from ebmppl.kernels.base import Noise, NoiseSpec
from ebmppl.kernels.score import Score, ScoreKernel, ScoreTarget
from ebmppl.score.base import SDE
from ebmppl.score.clock import Clock
from ebmppl.score.ode import CALLS, CALM, attempt, error_ratio, factor, first_step, second_look
from ebmppl.score.velocity import velocity


class AdaptiveState(NamedTuple):
    """A draw under way, and the last one."""

    position: Tensor  # (chains, *event), the last draw
    point: Tensor  # (chains, dimension), under way
    velocity: Tensor  # (chains, dimension), there, by the clock
    begun: Tensor  # (chains, dimension) where each draw begins there again, else (chains, 0)
    time: Tensor  # (chains,)
    step_size: Tensor  # (chains,), > 0; 0 where the velocity isn't known yet
    ratio: Tensor  # (chains,), of error and tolerance of the last step taken
    failed_at: Tensor  # (chains,)
    failure: Tensor  # (chains,), ``failed_at`` of the last draw
    tolerance_unmet: Tensor  # (chains,) bool, whether that failed though the score was finite
    n_steps: Tensor  # (chains,) int64, network calls of this draw


class AdaptiveFlow(ScoreKernel):
    r"""Solves :math:`\tfrac{dx}{dt} = f(x, t) - \tfrac12 g(t)^2 s(x, t)` to a tolerance, with a step size for each chain.

    A tick is one attempted step of every chain by Dormand and Prince's pair, six network calls. Steps are solved by a ``Clock``.
    One is taken where the root mean square of error over ``atol + rtol |x|`` is at most 1, the error as the pair estimates it for
    its result of order 4, while that of order 5 goes on; ``ode.factor`` says how its size changes. No chain waits for
    another one. Where the step size falls under 1e-9 of the time between the ends (1e-5 in float32), because the tolerance
    can't be met or the score isn't finite, the draw ends where it is and counts as diverging; ``failed_at`` is the time, and
    ``tolerance_unmet`` tells the two apart.

    References:
        Dormand and Prince 1980, "A family of embedded Runge-Kutta formulae"; Song et al. 2021, section 4.3.

    Args:
        score: ``(x, t) -> score``, ``(chains, *event)`` from such points and times ``(chains,)``.
        sde: the forward SDE.
        event_shape: of one point.
        rtol: relative tolerance, > 0.
        atol: absolute tolerance, > 0, in units of x.
        t_min: the time nearest to the data, in (0, T).
        forward: from t_min to T: draws are the noise that given points are carried to.

    Raises:
        ValueError: for arguments outside these ranges.

    Example:
        >>> import ebmppl as eb
        >>> eb.generate(AdaptiveFlow(lambda x, t: -x, eb.score.VP(), (2,)), 100, seed=0).shape
        torch.Size([100, 2])
    """

    calls_per_tick: ClassVar[int] = CALLS
    rounded: ClassVar[Mapping[str, float]] = {"step_size": 0.0, "ratio": 0.5}

    def __init__(
        self,
        score: Score,
        sde: SDE,
        event_shape: Sequence[int],
        *,
        rtol: float = 1e-4,
        atol: float = 1e-5,
        t_min: float = 1e-3,
        forward: bool = False,
    ) -> None:
        require(isinstance(sde, SDE), "an SDE", type(sde).__name__)
        self.t_min = sde.require_start(t_min)
        super().__init__(ScoreTarget(score, event_shape, sde.prior_std, sde))
        self.rtol, self.atol = positive("rtol", rtol), positive("atol", atol)
        self._sde, self._clock, self.forward = sde, Clock(sde), forward
        self._careful = 1e-6 * (sde.t_max - self.t_min)
        self._span = self._clock.span(self.t_min, sde.t_max) * (1 if forward else -1)

    @property
    def first_time(self) -> float:
        """T, or t_min forward."""
        return self.t_min if self.forward else self._sde.t_max

    @property
    def ticks_per_draw(self) -> int:
        """About."""
        return 20

    def init(self, x: Tensor) -> AdaptiveState:
        """State of chains whose first draw begins at points ``(chains, *event)``, where the score is asked for."""
        x, score = self.looked(x)
        point, none = x.reshape(len(x), -1).clone(), x.new_zeros(len(x))
        time, begun = torch.full_like(none, self.first_time), point.clone() if self.forward else x.new_zeros(len(x), 0)
        slope = self._slope(x, time, self._clock.at(self._clock.of(time), x.dtype).rate, score)
        step_size, calls = self._first_step(point, slope, time), torch.ones_like(none, dtype=torch.int64)
        if self.forward and self._clock.is_time:
            ends = self._clock.of(time), step_size, self._careful, self.rtol, self.atol
            step_size, calls = second_look(self._field, point, slope, *ends), calls + 1
        step_size = torch.where(not_finite(slope.sum(1)), 0.0, step_size)
        unmet = torch.zeros_like(none, dtype=torch.bool)
        rest = torch.full_like(none, CALM), none, none.clone(), unmet, calls
        return AdaptiveState(x, point, slope, begun, time, step_size, *rest)

    def init_tuning(self, x: Tensor) -> AdaptiveTuning:
        """The times at the dtype and device of the points."""
        ends = (self.t_min, self._sde.t_max) if self.forward else (self._sde.t_max, self.t_min)
        return AdaptiveTuning(*(x.new_tensor(t) for t in ends))

    def noise(self) -> dict[str, NoiseSpec]:
        """For the start of the next draw."""
        return {} if self.forward else {"normal": NoiseSpec("normal", self._event)}

    def _slope(self, x: Tensor, t: Tensor, rate: Tensor, score: Tensor) -> Tensor:
        return velocity(self._sde, x, t, score).reshape(len(x), -1) * rate.unsqueeze(1)

    def _field(self, x: Tensor, u: Tensor) -> Tensor:
        """Velocities ``(chains, dimension)`` of the probability flow by the clock, where it shows u ``(chains,)``."""
        t, rate = self._clock.at(u, x.dtype)
        points = x.view(len(x), *self._event)
        return self._slope(points, t, rate, self.target.fn(points, t))

    def _first_step(self, x: Tensor, slope: Tensor, time: Tensor) -> Tensor:
        return first_step(x, slope, time, self._clock, self._span, self._careful, self.rtol, self.atol)

    def tick(self, state: AdaptiveState, tuning: AdaptiveTuning, noise: Noise) -> tuple[AdaptiveState, Any]:
        """One attempted step of every chain; a later draw's first attempt, of size 0, finds its velocity."""
        time, last, span = state.time, tuning.last, abs(self._sde.t_max - self.t_min)
        fresh = state.step_size == 0
        left = (last - time).abs()
        final = state.step_size >= left
        size = torch.minimum(state.step_size, left)
        end = torch.where(final, last, time + (size if self.forward else -size))
        u = self._clock.of(time)
        tried = attempt(self._field, state.point, u, self._clock.of(end) - u, state.velocity)
        ratio = error_ratio(tried, state.point, self.rtol, self.atol)
        taken = (ratio <= 1) & ~fresh
        broken = fresh & not_finite(tried.velocity.sum(1))
        begun_size = self._first_step(state.point, tried.velocity, time)
        step_size = torch.where(fresh, begun_size, size * factor(ratio, state.ratio))
        failed = broken | (~fresh & ~taken & (step_size < least_step(time.dtype) * span))
        arrived = taken & final
        new_time, kept = torch.where(taken, end, time), torch.where(taken, ratio, state.ratio)
        point = select(taken, tried.end, state.point)
        slope = select(taken | fresh, tried.velocity, state.velocity)
        failed_at = torch.where(failed, time, state.failed_at)
        n_steps = state.n_steps + CALLS
        done = arrived | failed
        unmet_now = but_not(failed, not_finite(tried.error.sum(1)))
        info = AdaptiveInfo(done, 1.0 - failed.to(time.dtype), failed, time, failed_at, unmet_now, n_steps)
        position, failure, unmet = state.position, state.failure, state.tolerance_unmet
        if some(done):
            position = select(done, point.view_as(position), position)
            start = state.begun if self.forward else self.start(noise["normal"]).reshape(point.shape)
            point = select(done, start, point)
            new_time, step_size = torch.where(done, tuning.first, new_time), torch.where(done, 0.0, step_size)
            kept, failure = torch.where(done, CALM, kept), torch.where(done, failed_at, failure)
            failed_at, n_steps = torch.where(done, 0.0, failed_at), torch.where(done, 0, n_steps)
            unmet = torch.where(done, unmet_now, unmet)
        rest = new_time, step_size, kept, failed_at, failure, unmet, n_steps
        return AdaptiveState(position, point, slope, state.begun, *rest), info
