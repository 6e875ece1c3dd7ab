"""What kernels that follow a score share: their target, and a tick made of linear steps that are known beforehand."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ebmppl.arguments import positive, require
from ebmppl.energies.base import Energy
from ebmppl.errors import EnergyError
from ebmppl.kernels.accept import not_finite, select, some
from ebmppl.kernels.base import Kernel, Noise, NoiseSpec
from ebmppl.score.agreement import require_process
from ebmppl.score.base import SDE
from ebmppl.score.contract import look, look_at_rates, look_at_times

Score = Callable[[Tensor, Tensor], Tensor]


class ScoreTarget(Energy):
    """Stands for the density that a score model samples: its event shape and where chains begin; no energy is known.

    Args:
        score: ``(x, t) -> score``, from points ``(chains, *event)`` and times (or noise levels) ``(chains,)``.
        event_shape: of one point.
        prior_std: chains begin at draws of N(0, prior_std^2 I).
        sde: whose time t is; None where times are noise levels.

    Raises:
        ValueError: for a score that isn't callable or that has another ``sde``, or prior_std not > 0.
    """

    def __init__(self, score: Score, event_shape: Sequence[int], prior_std: float, sde: SDE | None = None) -> None:
        require(callable(score), "a score (x, t) -> tensor", type(score).__name__)
        super().__init__(event_shape)
        require_process(score, sde, self.event_shape)
        self.fn, self.sde = score, sde
        self.prior_std = positive("prior_std", prior_std)

    def forward(self, x: Tensor) -> Tensor:
        """Raise: a score model gives no energy."""
        raise EnergyError("expected an energy, got a score model: its density is known by log_likelihood alone")

    def check(self, x: Tensor, t: Tensor) -> Tensor:
        """The score, after a look at it and the SDE, see ``contract``."""
        found = look(self.fn, x, t)
        if self.sde is not None:
            look_at_rates(self.sde, x)
            look_at_times(self.fn, self.sde, x)
        return found


class ScoreKernel(Kernel):
    """Abstract kernel that carries a prior draw to a draw of the data, and then begins anew: draws are independent.

    Chains begin at prior draws (or where ``initial_params`` says). What a score that is not finite spoils is left as it
    is, NaN; the draw counts as diverging, and ``failed_at`` is the time at which that happened first.
    """

    synchronous: ClassVar[bool] = False
    exact: ClassVar[bool] = False
    independent: ClassVar[bool] = True
    target: ScoreTarget

    def __init__(self, target: ScoreTarget) -> None:
        super().__init__(target)
        self._event = tuple(target.event_shape)

    @property
    @abstractmethod
    def first_time(self) -> float:
        """The time (or noise level) at which chains begin."""

    def begin(self, x: Tensor) -> Tensor:
        """Own copy of points ``(chains, *event)``, after a look at the score there."""
        return self.looked(x)[0]

    def looked(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Own copy of points ``(chains, *event)``, and the score there."""
        x = x.detach().clone(memory_format=torch.contiguous_format)
        score = self.target.check(x, torch.full_like(x.reshape(len(x), -1)[:, 0], self.first_time))
        return x, score.detach()

    def position(self, state: Any) -> Tensor:
        """The chains' last draws ``(chains, *event)``; before the first, where they began."""
        position: Tensor = state.position
        return position

    def start(self, normal: Tensor) -> Tensor:
        """Prior draws from standard normal noise."""
        return self.target.prior_std * normal


class Steps(NamedTuple):
    """Linear steps in float64, one for each tick, from the point x and the score s at a time.

    With v = s, or v = f(x, t) + drift s where the SDE's drift is a user's own, a tick is
    x' = point x + score v + noise z + sum_j history_j q_j, where q_1 is what the tick before kept, q_2 the one before
    that; it keeps q = kept_point x + kept_score v. So are Euler-Maruyama, Heun, ancestral steps, DDIM, multistep solvers and
    Langevin steps, with one network call a tick.
    """

    time: Tensor  # (ticks,)
    point: Tensor
    score: Tensor
    noise: Tensor
    history: Tensor  # (ticks, kept)
    kept_point: Tensor  # (ticks,)
    kept_score: Tensor
    drift: Tensor | None = None


def steps(rows: Sequence[dict[str, float]], kept: int = 0, *, drift: bool = False) -> Steps:
    """Steps from one dict for each tick; what isn't named is 0, ``q1``, ``q2`` are the history's coefficients."""

    def column(name: str) -> Tensor:
        return torch.tensor([float(row.get(name, 0.0)) for row in rows], dtype=torch.float64)

    by_history = [column(f"q{j + 1}") for j in range(kept)]
    history = torch.stack(by_history, 1) if kept else torch.zeros(len(rows), 0, dtype=torch.float64)
    time, point, score, noise = map(column, ("time", "point", "score", "noise"))
    kept_point, kept_score, own = column("kept_point"), column("kept_score"), column("drift") if drift else None
    return Steps(time, point, score, noise, history, kept_point, kept_score, own)


class SteppedState(NamedTuple):
    """A draw under way, and the last one."""

    position: Tensor  # (chains, *event), the last draw
    point: Tensor  # (chains, *event), under way
    history: Tensor  # (chains, kept, *event)
    begun: Tensor  # (chains, *event) where each draw begins there again, else (chains, 0)
    step: Tensor  # (chains,) int64, of the next tick
    failed_at: Tensor  # (chains,)
    failure: Tensor  # (chains,), ``failed_at`` of the last draw


class ScoreInfo(NamedTuple):
    """What a person looks at, by chain."""

    done: Tensor
    acceptance_rate: Tensor  # 1, or 0 once a score was not finite
    diverging: Tensor  # whether a score of this draw was not finite
    time: Tensor  # at which the score was taken
    failed_at: Tensor  # the first time at which that was so; 0 where all went well
    n_steps: Tensor  # network calls of this draw so far


class SteppedTuning(NamedTuple):
    """Nothing adapts; the steps at the chains' dtype."""

    table: Tensor  # (ticks, columns)


class SteppedKernel(ScoreKernel):
    """Abstract: every draw takes the same steps, one a tick, with one network call.

    Args:
        target: what is sampled.
        steps: see ``Steps``.
        renew: draw a new start from the prior after each draw; else begin again where the chain began.
    """

    def __init__(self, target: ScoreTarget, steps: Steps, *, renew: bool = True) -> None:
        super().__init__(target)
        self._steps, self._kept, self._renew = steps, steps.history.shape[1], renew
        self._noisy = bool((steps.noise != 0).any())
        # numbers that the last step does not use start the next draw
        self._start = "normal" if self._noisy and not bool(steps.noise[-1]) else "start"
        self._ticks = len(steps.time)

    @property
    def ticks_per_draw(self) -> int:
        """As many as there are steps."""
        return self._ticks

    @property
    def in_step(self) -> bool:
        """All chains finish their draws together."""
        return True

    @property
    def first_time(self) -> float:
        """That of the first step."""
        return float(self._steps.time[0])

    def identity(self) -> tuple[Any, ...]:
        """The steps are tuning, but their number and form are not."""
        form = (self._ticks, self._kept, self._renew, self._noisy, self._start, self._steps.drift is None)
        return (*super().identity(), form)

    def init(self, x: Tensor) -> SteppedState:
        """State of chains whose first draw begins at points ``(chains, *event)``."""
        x = self.begin(x)
        history = x.new_zeros(len(x), self._kept, *self._event)
        begun = x.new_zeros(len(x), 0) if self._renew else x.clone()
        none = x.new_zeros(len(x))
        return SteppedState(x, x.clone(), history, begun, torch.zeros_like(none, dtype=torch.int64), none, none.clone())

    def init_tuning(self, x: Tensor) -> SteppedTuning:
        """The steps at the dtype and device of the points."""
        s = self._steps
        columns = [s.time, s.point, s.score, s.noise, *s.history.unbind(1), s.kept_point, s.kept_score]
        columns += [] if s.drift is None else [s.drift]
        return SteppedTuning(torch.stack(columns, 1).to(x))

    def noise(self) -> dict[str, NoiseSpec]:
        """Normal numbers for each step, which also start the next draw where the last step takes none; else for the start."""
        specs = {}
        if self._noisy:
            specs["normal"] = NoiseSpec("normal", self._event)
        if self._renew and self._start not in specs:
            specs[self._start] = NoiseSpec("normal", self._event, held=self._ticks)
        return specs

    def _moved(
        self, x: Tensor, time: Tensor, score: Tensor, row: Sequence[Tensor], history: Tensor, noise: Noise
    ) -> tuple[Tensor, Tensor]:
        """Points after the step of a row of the table, and what is kept for the ones to come."""
        kept, sde = self._kept, self.target.sde
        if self._steps.drift is not None and sde is not None:
            score = torch.addcmul(sde.drift(x, time), row[-1], score)
        new = torch.addcmul(row[1] * x, row[2], score)
        if self._noisy:
            new = torch.addcmul(new, row[3], noise["normal"])
        if kept:
            for j, by_history in enumerate(row[4 : 4 + kept]):
                new = torch.addcmul(new, by_history, history[:, j])
            q = torch.addcmul(row[4 + kept] * x, row[5 + kept], score).unsqueeze(1)
            history = torch.cat([q, history[:, :-1]], 1)
        return new, history

    def ticks(self, state: SteppedState, tuning: SteppedTuning, noise: Sequence[Noise]) -> tuple[Any, list[Tensor]]:
        """On a CPU, without what only an info tells: as of small networks it takes most of a tick's time."""
        if not state.point.is_cpu:
            return super().ticks(state, tuning, noise)
        position, x, history, begun, steps, failed_at, failure = state
        step, rows, rates = int(steps[0]), tuning.table.unbind(0), []
        rate = (failed_at == 0).to(x.dtype)
        for numbers in noise:
            row = rows[step].unbind(0)
            time = row[0].expand(len(x))
            score = self.target.fn(x, time)
            x, history = self._moved(x, time, score, row, history, numbers)
            if not math.isfinite(float(x.sum())):  # in some chain
                bad = not_finite(x.reshape(len(x), -1).sum(1))
                failed_at = torch.where((failed_at == 0) & bad, time, failed_at)
                rate = (failed_at == 0).to(x.dtype)
            step += 1
            rates.append(rate)
            if step == self._ticks:
                position, x, step = x, self.start(numbers[self._start]) if self._renew else begun, 0
                history, failure, failed_at = torch.zeros_like(history), failed_at, torch.zeros_like(failed_at)
                rate = torch.ones_like(rate)
        return SteppedState(position, x, history, begun, torch.full_like(steps, step), failed_at, failure), rates

    def tick(self, state: SteppedState, tuning: SteppedTuning, noise: Noise) -> tuple[SteppedState, ScoreInfo]:
        """One step of every chain."""
        x, target = state.point, self.target
        # all chains are at the same step, so one row of the table serves them
        row = tuning.table.index_select(0, state.step[:1]).squeeze(0).unbind(0)
        time = row[0].expand(len(x))
        score = target.fn(x, time)
        new, history = self._moved(x, time, score, row, state.history, noise)
        bad = not_finite(new.reshape(len(x), -1).sum(1))  # of the score, or of a user's drift
        n_steps = state.step + 1
        done = n_steps == self._ticks
        first = (state.failed_at == 0) & bad
        failed_at = torch.where(first, time, state.failed_at)
        failed = failed_at != 0
        info = ScoreInfo(done, 1.0 - failed.to(time.dtype), failed, time, failed_at, n_steps)
        position, step, failure = state.position, n_steps, state.failure
        if some(done):
            start = self.start(noise[self._start]) if self._renew else state.begun
            position, new = select(done, new, position), select(done, start, new)
            if self._kept:  # what is left from a score that was not finite would spoil the next draw, too
                history = select(done, torch.zeros_like(history), history)
            failure = torch.where(done, failed_at, failure)
            step, failed_at = torch.where(done, 0, n_steps), torch.where(done, 0.0, failed_at)
        return SteppedState(position, new, history, state.begun, step, failed_at, failure), info
