"""The reverse-time SDE by steps that adapt to each chain, with a memory of the noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ebmppl.arguments import positive, require
from ebmppl.kernels.accept import Rows, but_not, not_finite, some
from ebmppl.kernels.adaptive_score import AdaptiveInfo, AdaptiveTuning, least_step
from ebmppl.kernels.base import Noise, NoiseSpec
from ebmppl.kernels.score import Score, ScoreKernel, ScoreTarget
from ebmppl.score.base import SDE, LinearSDE, over

_NESTED = 20  # rejections inside one another; each at least halves the step
_SAFETY, _POWER, _MOST = 0.9, 0.9, 5.0
_REJECTED = (0.1, 0.5)  # least and most factor of the step size
_FIRST = 0.01  # of the time between the ends


class AdaptiveReverseState(NamedTuple):
    """A draw under way, and the last one."""

    position: Tensor  # (chains, *event), the last draw
    point: Tensor  # (chains, dimension), under way
    before: Tensor  # (chains, dimension), the Euler step that led there
    increment: Tensor  # (chains, dimension), of the Brownian motion over the length
    length: Tensor  # (chains,), over which it is known; 0 where it isn't
    ahead: Tensor  # (chains, nested, dimension), increments known behind that, the nearest last
    lengths: Tensor  # (chains, nested)
    depth: Tensor  # (chains,) int64, how many of them there are
    time: Tensor  # (chains,)
    step_size: Tensor  # (chains,), > 0, wanted; 0 where only the denoised point is
    failed_at: Tensor  # (chains,)
    failure: Tensor  # (chains,), ``failed_at`` of the last draw
    tolerance_unmet: Tensor  # (chains,) bool, whether that failed though the score was finite
    n_steps: Tensor  # (chains,) int64, network calls of this draw


class _Brownian(NamedTuple):
    """The increment of the step that is tried, and what is known behind it."""

    increment: Tensor
    length: Tensor
    split: Tensor  # (chains,) bool: whether a rest is put away
    full: Tensor  # (chains,) bool: whether there was no room for one


class AdaptiveReverseSDE(ScoreKernel):
    r"""Draws by the reverse-time SDE :math:`dx = (f - g^2 s)\,dt + g\,d\bar w` to a tolerance, with a step size for each chain.

    A tick is one attempted step h of every chain, two network calls: Euler-Maruyama to x' from x, and to
    :math:`\tilde x` from x with drift and g taken at (x', t - h), by the same noise. Where
    :math:`E = \|(x' - x'') / \delta\| / \sqrt{n} \le 1` with :math:`x'' = (x' + \tilde x) / 2` and
    :math:`\delta = \max(atol, rtol \max(|x'|, |x'_{before}|))`, the chain goes on to x'', which is of weak order 2
    ("extrapolation"). The next step size is :math:`0.9\,h\,E^{-0.9}`, at most 5 h.

    What the noise of a rejected step was is not forgotten, as drawing anew would favour small noise (the paper draws anew): a
    shorter step takes its part of it by a Brownian bridge, and the rest is kept for the steps that follow (Rackauckas
    and Nie 2017). A rejected step is at least halved. After 20 rejections inside one another, or under 1e-9 of the time between
    the ends (1e-5 in float32), because the tolerance can't be met or the score isn't finite, the draw ends where it is and
    counts as diverging; ``failed_at`` is the time, and ``tolerance_unmet`` tells the two apart.

    References:
        Jolicoeur-Martineau, Li, Piche-Taillefer, Kachman and Mitliagkas 2021, "Gotta go fast when generating data with
        score-based models", algorithm 1; Rackauckas and Nie 2017, "Adaptive methods for stochastic differential equations via
        natural embeddings and rejection sampling with memory".

    Args:
        score: ``(x, t) -> score``, ``(chains, *event)`` from such points and times ``(chains,)``.
        sde: the forward SDE.
        event_shape: of one point.
        rtol: relative tolerance, > 0.
        atol: absolute tolerance, > 0, in units of x; the paper's is a 256th of the range of pixels.
        t_min: the last time, in (0, T).
        denoise: one more tick for the mean of x(0) given x(t_min) (Tweedie), of a linear SDE.

    Raises:
        ValueError: for arguments outside these ranges.

    Example:
        >>> import ebmppl as eb
        >>> eb.generate(AdaptiveReverseSDE(lambda x, t: -x, eb.score.VP(), (2,)), 100, seed=0).shape
        torch.Size([100, 2])
    """

    calls_per_tick: ClassVar[int] = 2
    scratch: ClassVar[tuple[str, ...]] = ("ahead", "lengths")

    def __init__(
        self,
        score: Score,
        sde: SDE,
        event_shape: Sequence[int],
        *,
        rtol: float = 0.02,
        atol: float = 0.0078,
        t_min: float = 1e-3,
        denoise: bool = False,
    ) -> None:
        require(isinstance(sde, SDE), "an SDE", type(sde).__name__)
        self.t_min = sde.require_start(t_min)
        require(not denoise or isinstance(sde, LinearSDE), "a linear SDE to denoise", type(sde).__name__)
        super().__init__(ScoreTarget(score, event_shape, sde.prior_std, sde))
        self.rtol, self.atol = positive("rtol", rtol), positive("atol", atol)
        self._sde, self.denoise = sde, denoise

    @property
    def first_time(self) -> float:
        """T."""
        return self._sde.t_max

    @property
    def ticks_per_draw(self) -> int:
        """About."""
        return 100

    def init(self, x: Tensor) -> AdaptiveReverseState:
        """State of chains whose first draw begins at points ``(chains, *event)``."""
        x = self.begin(x)
        point = x.reshape(len(x), -1).clone()
        none = x.new_zeros(len(x))
        ahead, lengths = point.new_zeros(len(x), _NESTED, point.shape[1]), none.new_zeros(len(x), _NESTED)
        time, size = torch.full_like(none, self.first_time), torch.full_like(none, self._first_step)
        depth, calls = torch.zeros_like(none, dtype=torch.int64), torch.zeros_like(none, dtype=torch.int64)
        known = torch.zeros_like(point), none, ahead, lengths, depth
        failures = none.clone(), none.clone(), torch.zeros_like(none, dtype=torch.bool)
        return AdaptiveReverseState(x, point, point.clone(), *known, time, size, *failures, calls)

    def init_tuning(self, x: Tensor) -> AdaptiveTuning:
        """The times at the dtype and device of the points."""
        return AdaptiveTuning(*(x.new_tensor(t) for t in (self._sde.t_max, self.t_min)))

    def noise(self) -> dict[str, NoiseSpec]:
        """For each step, and for the start of the next draw."""
        spec = NoiseSpec("normal", self._event)
        return {"normal": spec, "start": spec}

    @property
    def _first_step(self) -> float:
        return _FIRST * (self._sde.t_max - self.t_min)

    def _rates(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The reverse drift f - g^2 s ``(chains, dimension)``, g ``(chains,)`` and the score, of flat points."""
        points = x.view(len(x), *self._event)
        g = self._sde.diffusion(t)
        score = self.target.fn(points, t)
        drift = self._sde.drift(points, t) - over(g.square(), points) * score
        return drift.reshape(x.shape), g, score

    def _brownian(self, state: AdaptiveReverseState, left: Tensor, z: Tensor) -> _Brownian:
        """The increment of a step of the wanted size, or of a shorter one; a rest is written behind it.

        What is left of a known increment is no less than what is taken of it: a step is the whole of it or at most half.
        """
        length, fresh, wanted = state.length, state.length == 0, state.step_size
        shorter = ~fresh & (wanted < length)
        full = shorter & (state.depth == _NESTED)
        split = shorter & ~full
        size = torch.where(
            fresh, torch.minimum(wanted, left), torch.where(split, torch.minimum(wanted, 0.5 * length), length)
        )
        rest = torch.where(split, length - size, 0.0)
        share = torch.where(split, size / length, 1.0)
        deviation = torch.where(fresh, size, share * rest).sqrt()
        known = torch.where(fresh, 0.0, share).unsqueeze(1) * state.increment
        increment = torch.addcmul(known, deviation.unsqueeze(1), z)
        at = state.depth.clamp_max(_NESTED - 1)
        row, kept = at.view(-1, 1, 1).expand(-1, 1, z.shape[1]), split.unsqueeze(1)
        # only above the depth, where nothing is known
        away = torch.where(kept, state.increment - increment, state.ahead.gather(1, row).squeeze(1))
        state.ahead.scatter_(1, row, away.unsqueeze(1))
        state.lengths.scatter_(1, at.unsqueeze(1), torch.where(split, rest, self._last(state.lengths, at)).unsqueeze(1))
        return _Brownian(increment, size, split, full)

    @staticmethod
    def _last(lengths: Tensor, at: Tensor) -> Tensor:
        return lengths.gather(1, at.unsqueeze(1)).squeeze(1)

    def tick(
        self, state: AdaptiveReverseState, tuning: AdaptiveTuning, noise: Noise
    ) -> tuple[AdaptiveReverseState, Any]:
        """One attempted step of every chain."""
        time, x = state.time, state.point
        left = time - tuning.last
        ended = left <= 0  # and the denoised point is wanted
        tried = self._brownian(state, left, noise["normal"].reshape(x.shape))
        depth = state.depth + tried.split.long()
        h, w = tried.length, tried.increment
        span, eps = self._sde.t_max - self.t_min, torch.finfo(time.dtype).eps
        final = left - h <= 8 * eps * self._sde.t_max  # times and lengths are rounded
        drift, g, score = self._rates(x, time)
        then = torch.where(final, tuning.last, time - h)
        euler = x - h.unsqueeze(1) * drift + g.unsqueeze(1) * w
        drift_then, g_then, _ = self._rates(euler, then)
        other = x - h.unsqueeze(1) * drift_then + g_then.unsqueeze(1) * w
        end = 0.5 * (euler + other)
        scale = (self.rtol * torch.maximum(euler.abs(), state.before.abs())).clamp_min(self.atol)
        ratio = ((euler - end) / scale).square().mean(1).sqrt()
        taken = (ratio <= 1) & ~ended
        broken = ~torch.isfinite(drift.sum(1))
        failed = broken | (~taken & ~ended & (tried.full | (h < least_step(time.dtype) * span)))
        factor = (_SAFETY * ratio.clamp_min(1e-10).pow(-_POWER)).clamp_max(_MOST).nan_to_num(0.0)
        step_size = h * torch.where(taken, factor, factor.clamp(*_REJECTED))
        # of a step that was taken, what is known behind it comes next
        pop = taken & (depth > 0)
        at = (depth - 1).clamp_min(0)
        behind = state.ahead.gather(1, at.view(-1, 1, 1).expand(-1, 1, x.shape[1])).squeeze(1)
        rows = Rows(taken)
        moved = state._replace(
            point=rows.select(end, x),
            before=rows.select(euler, state.before),
            increment=Rows(pop).select(behind, w),
            length=torch.where(pop, self._last(state.lengths, at), torch.where(taken, 0.0, h)),
            depth=depth - pop.long(),
            time=torch.where(taken, then, time),
            step_size=torch.where(ended, state.step_size, step_size),
            failed_at=torch.where(failed, time, state.failed_at),
            n_steps=state.n_steps + 2,
        )
        if self.denoise:
            arrived = ended & ~broken
            moved = moved._replace(point=Rows(arrived).select(self._denoised(x, score, time), moved.point))
        else:
            arrived = taken & final
        unmet = but_not(failed, not_finite(end.sum(1)))
        return self._next(moved, tuning, noise, arrived | failed, unmet, time)

    def _denoised(self, x: Tensor, score: Tensor, time: Tensor) -> Tensor:
        mean, std = self._sde.marginal(time)
        return (x + std.square().unsqueeze(1) * score.reshape(x.shape)) / mean.unsqueeze(1)

    def _next(
        self,
        state: AdaptiveReverseState,
        tuning: AdaptiveTuning,
        noise: Noise,
        done: Tensor,
        unmet: Tensor,
        time: Tensor,
    ) -> tuple[AdaptiveReverseState, Any]:
        """Begin the next draw of chains that are done."""
        failed = state.failed_at != 0
        info = AdaptiveInfo(done, 1.0 - failed.to(time.dtype), failed, time, state.failed_at, unmet, state.n_steps)
        if not some(done):
            return state, info
        rows, start = Rows(done), self.start(noise["start"]).reshape(state.point.shape)
        ends = state.point.view_as(state.position)
        return state._replace(
            position=Rows(done).select(ends, state.position),
            point=rows.select(start, state.point),
            before=rows.select(start, state.before),
            length=torch.where(done, 0.0, state.length),
            depth=torch.where(done, 0, state.depth),
            time=torch.where(done, tuning.first, state.time),
            step_size=torch.where(done, self._first_step, state.step_size),
            failure=torch.where(done, state.failed_at, state.failure),
            tolerance_unmet=torch.where(done, unmet, state.tolerance_unmet),
            failed_at=torch.where(done, 0.0, state.failed_at),
            n_steps=torch.where(done, 0, state.n_steps),
        ), info
