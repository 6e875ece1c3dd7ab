"""Steps of the solvers of reverse SDE and probability flow, one dict of ``Steps``' columns for each network call."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ebmppl.arguments import require
from ebmppl.score.base import SDE, LinearSDE
from ebmppl.score.schedules import require_decreasing

Row = dict[str, float]


def grid(sde: SDE, times: Callable[[SDE, int, float], Tensor], num_steps: int, t_min: float) -> list[float]:
    """Times from T down to t_min by a user's function, looked at."""
    require(isinstance(sde, SDE), "an SDE", type(sde).__name__)
    require(callable(times), "times as a function of SDE, num_steps and t_min", type(times).__name__)
    t_min = sde.require_start(t_min)
    at = times(sde, num_steps, t_min)
    require_decreasing("times", at)
    require(len(at) == num_steps + 1, f"{num_steps + 1} times", len(at))
    sde.require_times(at)
    return [float(t) for t in at]


class _Level(NamedTuple):
    """The marginal at one time."""

    time: float
    mean: float
    std: float

    @property
    def ratio(self) -> float:
        return self.std / self.mean


def _level(sde: SDE, time: float) -> _Level:
    mean, std = sde.marginal(torch.tensor([time], dtype=torch.float64))
    return _Level(time, float(mean), float(std))


def linear(sde: SDE) -> LinearSDE:
    """The SDE, or ``ValueError`` where it isn't linear."""
    require(isinstance(sde, LinearSDE), "a linear SDE (VE, VP, SubVP, ...) for this method", type(sde).__name__)
    assert isinstance(sde, LinearSDE)
    return sde


def _rates(sde: SDE, time: float) -> tuple[float, float]:
    """The drift's coefficient (0 for an SDE that isn't linear, whose drift comes apart) and g."""
    t = torch.tensor([time], dtype=torch.float64)  # an SDE of one's own may count its rows
    f = float(sde.drift_coefficient(t)) if isinstance(sde, LinearSDE) else 0.0
    return f, float(sde.diffusion(t))


def _velocity(sde: SDE, time: float, share: float) -> Row:
    """V = f(x, t) - share g^2 s as a row's coefficients of x and s, or of v itself."""
    f, g = _rates(sde, time)
    if isinstance(sde, LinearSDE):
        return {"point": f, "score": -share * g * g}
    return {"point": 0.0, "score": 1.0, "drift": -share * g * g}


def _moved(velocity: Row, by: float) -> Row:
    """The row x + by v."""
    return {**velocity, "point": 1 + by * velocity["point"], "score": by * velocity["score"]}


def euler(sde: SDE, at: list[float], *, share: float, noisy: bool) -> list[Row]:
    """Euler in t; share 1 with noise is Euler-Maruyama, 1/2 without is the probability flow's."""
    rows = []
    for t, end in zip(at[:-1], at[1:], strict=True):
        row = _moved(_velocity(sde, t, share), end - t)
        noise = _rates(sde, t)[1] * math.sqrt(abs(t - end)) if noisy else 0.0
        rows.append({"time": t, **row, "noise": noise})
    return rows


def heun(sde: SDE, at: list[float], *, share: float, noisy: bool) -> list[Row]:
    """Heun in t, two rows a step: x~ = x + h v + G z, keeping v; then x' = x~ + h (v~ - v) / 2."""
    rows = []
    for t, end in zip(at[:-1], at[1:], strict=True):
        v, h = _velocity(sde, t, share), end - t
        g = 0.5 * (_rates(sde, t)[1] + _rates(sde, end)[1])
        noise = g * math.sqrt(abs(h)) if noisy else 0.0
        rows.append({"time": t, **_moved(v, h), "noise": noise, "kept_point": v["point"], "kept_score": v["score"]})
        rows.append({"time": end, **_moved(_velocity(sde, end, share), 0.5 * h), "q1": -0.5 * h})
    return rows


def ancestral(sde: SDE, at: list[float]) -> list[Row]:
    """Draws of x(t - h) given x(t) and the denoised point; its means are x' = a'/a x + a'/a (std^2 - (a/a')^2 std'^2) s."""
    rows = []
    for t, end in zip(at[:-1], at[1:], strict=True):
        old, new = _level(linear(sde), t), _level(sde, end)
        ratio = old.mean / new.mean
        gained = old.std**2 - (ratio * new.std) ** 2
        noise = math.sqrt(gained) * new.std / old.std
        rows.append({"time": t, "point": 1 / ratio, "score": gained / ratio, "noise": noise})
    return rows


def resampled(sde: SDE, at: list[float], times: int, jump: int) -> list[Row]:
    """Ancestral steps of which each ``jump`` are made so many times, after all but the last of these the forward SDE goes back.

    Lugmayr et al. 2022, algorithm 1; the way back joins the row before it, as both add Gaussian noise.
    """
    rows = []
    for first in range(0, len(at) - 1, jump):
        part = at[first : first + jump + 1]
        down = ancestral(sde, part)
        old, new, last = _level(linear(sde), part[0]), _level(sde, part[-1]), down[-1]
        ratio = old.mean / new.mean
        noise = math.sqrt((ratio * last["noise"]) ** 2 + old.std**2 - (ratio * new.std) ** 2)
        back = {**last, "point": ratio * last["point"], "score": ratio * last["score"], "noise": noise}
        rows += (times - 1) * [*down[:-1], back] + down
    return [dict(row) for row in rows]


def corrected(sde: SDE, rows: list[Row], at: list[float], snr: float, corrector_steps: int) -> list[Row]:
    """Langevin steps after each row, at its end. The last row's noise decides whether the last of them has any."""
    both = []
    for row, end in zip(rows, at[1:], strict=True):
        size = 2 * (snr * _level(sde, end).std) ** 2
        step = {"time": end, "point": 1.0, "score": size, "noise": math.sqrt(2 * size)}
        both += [row, *(dict(step) for _ in range(corrector_steps))]
    if rows[-1]["noise"] == 0:
        both = both[: len(both) - corrector_steps]  # of a mean there is nothing to correct
    return both


def denoised(sde: SDE, time: float) -> Row:
    """The mean of x(0) given x(t) (Tweedie): (x + std^2 s) / a."""
    level = _level(linear(sde), time)
    return {"time": time, "point": 1 / level.mean, "score": level.std**2 / level.mean}


def ddim(sde: LinearSDE, at: list[float]) -> list[Row]:
    """Euler in x / a over noise-to-signal r: x' = a' (x / a + (r - r') std s), which is DDIM."""
    levels = [_level(sde, t) for t in at]
    return [_ddim(old, new) for old, new in zip(levels[:-1], levels[1:], strict=True)]


def _ddim(old: _Level, new: _Level) -> Row:
    """One step; it keeps -std s, the slope of x / a."""
    by_score = new.mean * old.std * (old.ratio - new.ratio)
    return {"time": old.time, "point": new.mean / old.mean, "score": by_score, "kept_score": -old.std}


class Churn(NamedTuple):
    """Of Karras et al. 2022, algorithm 2: S_churn, S_tmin, S_tmax and S_noise, levels in noise over signal."""

    churn: float = 0.0
    least: float = 0.0
    most: float = math.inf
    noise: float = 1.0

    def raised(self, sde: LinearSDE, levels: list[_Level], num_steps: int) -> list[_Level]:
        """Levels r (1 + min(S_churn / N, sqrt(2) - 1)), of which T's is the highest."""
        factor = 1 + min(self.churn / num_steps, math.sqrt(2) - 1)
        within = [i for i, level in enumerate(levels) if self.churn and self.least <= level.ratio <= self.most]
        ratios = torch.tensor([levels[i].ratio for i in within], dtype=torch.float64)
        times = sde.time_of((factor * ratios).clamp_max(_level(sde, sde.t_max).ratio)) if within else ratios
        higher = {i: _level(sde, t) for i, t in zip(within, times.tolist(), strict=True)}
        return [higher.get(i, level) for i, level in enumerate(levels)]


def ddim_heun(sde: LinearSDE, at: list[float], churn: Churn | None = None) -> list[Row]:
    """Heun in x / a over noise-to-signal r (Karras et al. 2022), two rows a step; the first keeps -std s.

    The noise that raises a step's level is added at the end of the step before; T's level is not raised.
    """
    levels = [_level(sde, t) for t in at]
    churn = churn or Churn()
    raised = [levels[0], *churn.raised(sde, levels[1:-1], len(at) - 1), levels[-1]]
    rows = []
    for old, new, end in zip(raised[:-1], levels[1:], raised[1:], strict=True):
        half, scale = 0.5 * new.mean * (new.ratio - old.ratio), end.mean / new.mean
        noise = churn.noise * end.mean * math.sqrt(max(end.ratio**2 - new.ratio**2, 0.0)) if end is not new else 0.0
        second = {"point": scale, "score": -half * new.std * scale, "q1": -half * scale, "noise": noise}
        rows += [_ddim(old, new), {"time": new.time, **second}]
    return rows


def _data_row(level: _Level, point: float, weights: list[float]) -> Row:
    """The row point x + weights[0] D + weights[1] q1 + ..., keeping D = (x + std^2 s) / a, the denoised point."""
    kept_point, kept_score = 1 / level.mean, level.std**2 / level.mean
    row = {"time": level.time, "point": point + weights[0] * kept_point, "score": weights[0] * kept_score}
    history = {f"q{j}": w for j, w in enumerate(weights) if j}
    return {**row, **history, "kept_point": kept_point, "kept_score": kept_score}


def _log_snr_step(old: _Level, new: _Level) -> float:
    """The step in lambda = log(a / std)."""
    return math.log(old.ratio / new.ratio)


def dpm_solver_2m(sde: LinearSDE, at: list[float]) -> list[Row]:
    """DPM-Solver++(2M) (Lu et al. 2022): x' = std'/std x + a' (1 - e^-h) (D + (D - D_before) h / (2 h_before))."""
    levels = [_level(sde, t) for t in at]
    rows, before = [], None
    for old, new in zip(levels[:-1], levels[1:], strict=True):
        h = _log_snr_step(old, new)
        weight = -new.mean * math.expm1(-h)
        change = 0.0 if before is None else 0.5 * h / before
        rows.append(_data_row(old, new.std / old.std, [weight * (1 + change), -weight * change]))
        before = h
    return rows


def dpm_solver_3m(sde: LinearSDE, at: list[float]) -> list[Row]:
    """DPM-Solver++ with three points: the denoised point as a parabola in lambda, integrated exactly, so of order 3.

    The first step takes two calls (DPM-Solver++(2S) with its middle), as a first step of order 1 would leave order 2.
    """
    levels = [_level(sde, t) for t in at]
    old, new = levels[:2]
    h = _log_snr_step(old, new)
    middle = _level(sde, float(sde.time_of(torch.tensor([math.sqrt(old.ratio * new.ratio)], dtype=torch.float64))))
    half = middle.mean * math.expm1(-0.5 * h)
    rows = [
        _data_row(old, middle.std / old.std, [-half, 0.0, 0.0]),
        _data_row(middle, new.std / middle.std, [-new.mean * math.expm1(-h), new.std / middle.std * half, 0.0]),
    ]
    nodes = [middle, old]
    for old, new in zip(levels[1:-1], levels[2:], strict=True):
        h = _log_snr_step(old, new)
        places = [-_log_snr_step(node, old) / h for node in nodes]
        weights = [new.mean * w for w in _parabola_weights(h, *places)]
        rows.append(_data_row(old, new.std / old.std, weights))
        nodes = [old, nodes[0]]
    return rows


def _parabola_weights(h: float, b: float, c: float) -> list[float]:
    """Weights of values at 0, b, c in the integral of h e^(-(1 - u) h) times their parabola over u in (0, 1)."""
    zeroth = -math.expm1(-h)
    first = 1 - zeroth / h
    second = 1 - 2 * first / h
    return [
        (second - (b + c) * first + b * c * zeroth) / (b * c),
        (second - c * first) / (b * (b - c)),
        (second - b * first) / (c * (c - b)),
    ]
