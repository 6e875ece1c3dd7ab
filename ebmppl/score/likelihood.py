"""Log-likelihoods of a score model by the probability flow and its divergence."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ebmppl.errors import SamplingWarning
from ebmppl.score.base import SDE, LinearSDE, over, require
from ebmppl.score.conditions import chosen_rows, num_conditions
from ebmppl.score.ode import CALLS, Field, attempt, error_ratio, factor, first_step
from ebmppl.score.parameterisations import same_shape
from ebmppl.score.pullback import require_gradient

_LEAST_STEP = {torch.float64: 1e-9, torch.float32: 1e-5}  # of the time, under which a tolerance can't be met


class LogLikelihood(NamedTuple):
    """Of points ``(batch, *event)``.

    Attributes:
        value: log p(x), ``(batch,)`` in nats; NaN where the flow could not be solved.
        std_error: of the value, from the probes ``(batch,)``; 0 for an exact divergence, NaN for one probe.
        end: where the flow carries the points, ``(batch, *event)`` at T.
        divergence: the integral of the flow's divergence from t_min to T, ``(batch,)`` in nats.
        failed_at: the time where the flow could not be solved, ``(batch,)``; 0 where it was.
        rows: how many points the score was asked for in all, without those of the divergence.
    """

    value: Tensor
    std_error: Tensor
    end: Tensor
    divergence: Tensor
    failed_at: Tensor
    rows: int

    def bits_per_dimension(self, scale: float) -> Tensor:
        """Bits per dimension ``(batch,)`` of integers n that were dequantised to x = scale (n + u) + constant, u in [0, 1).

        Averaged over u it bounds the bits of a code for n from above (Theis, van den Oord and Bethge 2016). The scale of pixels
        0 to 255 is 1 / 256 where x is in [0, 1], and 1 / 128 where it is in [-1, 1].
        """
        require(0 < scale < math.inf, "scale > 0", scale)
        dimension = self.end[0].numel()
        return -(self.value / dimension + math.log(scale)) / math.log(2)


def log_likelihood(
    score: Callable[[Tensor, Tensor], Tensor],
    sde: SDE,
    x: Tensor,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    t_min: float = 1e-5,
    probes: int | None = None,
    *,
    log_prior: Callable[[Tensor], Tensor] | None = None,
    seed: int = 0,
    same_probes: bool = False,
) -> LogLikelihood:
    r"""Log-likelihoods by the probability flow :math:`v(x, t) = f(x, t) - \tfrac12 g(t)^2 s(x, t)`.

    .. math:: \log p_{t_{min}}(x) = \log p_T(x(T)) + \int_{t_{min}}^T \nabla \cdot v(x(t), t)\,dt

    The integral joins the ODE, by Dormand and Prince's pair with a step size for each point; one that has arrived costs no
    more. A step is six calls of the score; the exact divergence takes as many gradients of five of them as an event has
    numbers, with ``probes`` K of them: :math:`\epsilon^\top \tfrac{\partial v}{\partial x} \epsilon` with random signs, the same
    along a point's whole path (Hutchinson 1990), and the standard error of their mean.

    References:
        Chen, Rubanova, Bettencourt and Duvenaud 2018, "Neural ordinary differential equations"; Grathwohl et al. 2019,
        "FFJORD"; Song et al. 2021, section 4.3.

    Args:
        score: ``(x, t) -> score``, ``(batch, *event)`` from such points and times ``(batch,)``, differentiable in x.
        sde: the forward SDE.
        x: points ``(batch, *event)``.
        rtol: relative tolerance of each step, > 0.
        atol: absolute tolerance, > 0, in units of x and in nats.
        t_min: where the flow begins, in (0, T).
        probes: K >= 1; None for the exact divergence.
        log_prior: log density of points at T, ``(batch,)``; that of the SDE's prior when None.
        seed: of the probes.
        same_probes: the same signs for all points: the value is then a function of the point, but errors don't average out.

    Returns:
        Values with their errors; no gradient flows through them.

    Raises:
        ValueError: for arguments outside these ranges, or a score of another shape.

    Warns:
        SamplingWarning: where the flow could not be solved to the tolerance, or a score was not finite: how often and when.

    Example:
        >>> from ebmppl.score import VP
        >>> log_likelihood(lambda x, t: -x, VP(), torch.zeros(1, 2)).value  # of N(0, I)
        tensor([-1.8379])
    """
    _check(score, sde, x, (rtol, atol), t_min, probes)
    with _evaluating(score), torch.no_grad():
        x, signs = x.detach(), _signs(probes, x.reshape(len(x), -1), seed, same=same_probes)
        end, integrals, failed_at, rows = _flow(score, sde, x, (rtol, atol), t_min, signs)
    _report(failed_at)
    prior = sde.prior(x.shape[1:], like=x).log_prob(end) if log_prior is None else log_prior(end)
    value = torch.where(failed_at == 0, prior + integrals.mean(1), math.nan)
    return LogLikelihood(value, _standard_error(integrals, probes), end, integrals.mean(1), failed_at, rows)


def _standard_error(estimates: Tensor, probes: int | None) -> Tensor:
    if probes is None:
        return torch.zeros_like(estimates[:, 0])
    return estimates.std(1) / math.sqrt(probes) if probes > 1 else torch.full_like(estimates[:, 0], math.nan)


def _check(
    score: object, sde: object, x: Tensor, tolerances: tuple[float, float], t_min: float, probes: int | None
) -> None:
    require(callable(score), "a score (x, t) -> tensor", type(score).__name__)
    require(isinstance(sde, SDE), "an SDE", type(sde).__name__)
    assert isinstance(sde, SDE)
    good = isinstance(x, Tensor) and x.dim() >= 1 and len(x) > 0 and x.is_floating_point()
    require(
        good, "floating point points (batch, *event)", tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
    )
    require(all(0 < tol < math.inf for tol in tolerances), "rtol > 0 and atol > 0", tolerances)
    require(0 < t_min < sde.t_max, f"t_min in (0, {sde.t_max:g})", t_min)
    whole = isinstance(probes, int) and not isinstance(probes, bool)
    require(probes is None or (whole and probes >= 1), "at least 1 probe, or None", probes)


def _signs(probes: int | None, flat: Tensor, seed: int, *, same: bool) -> Tensor | None:
    if probes is None:
        return None
    generator = torch.Generator(flat.device).manual_seed(seed)
    rows = 1 if same else len(flat)
    bits = torch.randint(2, (probes, rows, flat.shape[1]), generator=generator, device=flat.device)
    return (bits.to(flat.dtype) * 2 - 1).expand(probes, *flat.shape)


def _flow(
    score: Callable[[Tensor, Tensor], Tensor],
    sde: SDE,
    x: Tensor,
    tolerances: tuple[float, float],
    t_min: float,
    signs: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Ends, integrals of the divergence ``(batch, 1)`` or of its estimates ``(batch, probes)``, failures and rows."""
    begun = x.new_full((len(x),), t_min)
    same_shape(require_gradient(lambda at: score(at, begun), x, "a score"), x)
    flat, event = x.reshape(len(x), -1), x.shape[1:]

    by_row, none = num_conditions(score) is not None, 1 if signs is None else len(signs)

    def field(rows: Tensor) -> tuple[Field, Field]:
        own = None if signs is None else signs[:, rows]

        def velocity(y: Tensor, t: Tensor) -> Tensor:
            with chosen_rows(score, rows) if by_row else nullcontext():
                return _augmented(score, sde, y, t, event, own)

        def steering(y: Tensor, t: Tensor) -> Tensor:
            points = y[:, : event.numel()].reshape(len(y), *event)
            with chosen_rows(score, rows) if by_row else nullcontext():
                slope = sde.drift(points, t) - over(0.5 * sde.diffusion(t).square(), points) * score(points, t)
            return nn.functional.pad(slope.reshape(len(y), -1), (0, none))

        return velocity, steering

    start = torch.cat([flat, flat.new_zeros(len(x), none)], 1)
    y, failed_at, rows = _solve(field, start, t_min, sde.t_max, *tolerances)
    return y[:, : flat.shape[1]].reshape(x.shape), y[:, flat.shape[1] :], failed_at, rows


def _augmented(
    score: Callable[[Tensor, Tensor], Tensor], sde: SDE, y: Tensor, t: Tensor, event: torch.Size, signs: Tensor | None
) -> Tensor:
    """The flow's velocity ``(rows, dimension)``, and its divergence or each probe's estimate of it."""
    dimension, half = event.numel(), 0.5 * sde.diffusion(t).square().unsqueeze(1)
    linear = sde.drift_coefficient(t).unsqueeze(1) if isinstance(sde, LinearSDE) else None
    with torch.enable_grad():
        x = y[:, :dimension].detach().requires_grad_()
        points = x.view(len(x), *event)
        slope = score(points, t).reshape(x.shape)
        if linear is None:
            slope = sde.drift(points, t).reshape(x.shape) - half * slope
        divergence = _divergence(slope, x, signs)
    slope = slope.detach()
    if linear is not None:  # the drift's part is known
        slope = torch.addcmul(linear * x.detach(), half, slope, value=-1)
        divergence = torch.addcmul(linear * dimension, half, divergence, value=-1)
    return torch.cat([slope, divergence], 1)


def _divergence(slope: Tensor, x: Tensor, signs: Tensor | None) -> Tensor:
    """Of slopes at points ``(rows, dimension)``: the sum of all derivatives ``(rows, 1)``, or estimates ``(rows, probes)``."""
    if not slope.requires_grad:  # the same everywhere
        return x.new_zeros(len(x), 1 if signs is None else len(signs))
    pull = partial(torch.autograd.grad, slope, x, retain_graph=True, materialize_grads=True)
    if signs is not None:
        return torch.stack([(pull(sign)[0] * sign).sum(1) for sign in signs], 1)
    total, one = torch.zeros_like(x[:, 0]), torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    for i, unit in enumerate(one):
        total = total + pull(unit.expand_as(x))[0][:, i]
    return total.unsqueeze(1)


def _solve(
    field: Callable[[Tensor], tuple[Field, Field]], y: Tensor, first: float, last: float, rtol: float, atol: float
) -> tuple[Tensor, Tensor, int]:
    """Ends ``(rows, n)``, the times of failures ``(rows,)``, and how many rows were evaluated."""
    span, least = last - first, _LEAST_STEP.get(y.dtype, 1e-3) * (last - first)
    ends, failed_at = y.clone(), y.new_zeros(len(y))
    active = torch.arange(len(y), device=y.device)
    t = y.new_full((len(y),), first)
    flow, steering = field(active)
    velocity = flow(y, t)
    h, rows = first_step(y, velocity, span, rtol, atol), len(y)
    while len(active):
        left = last - t
        final = h >= left
        size = torch.minimum(h, left)
        tried = attempt(flow, y, t, size, velocity, steering=steering)
        rows += CALLS * len(active)
        ratio = error_ratio(tried, y, rtol, atol)
        taken, h = ratio <= 1, size * factor(ratio)
        column = taken.unsqueeze(1)
        y, velocity = torch.where(column, tried.end, y), torch.where(column, tried.velocity, velocity)
        failed = ~taken & (h < least)
        t = torch.where(taken, t + size, t)
        over_now = (taken & final) | failed
        if bool(over_now.any()):
            ends[active[over_now]] = y[over_now]
            failed_at[active[failed]] = t[failed]
            on = ~over_now
            active, y, velocity, t, h = (v[on] for v in (active, y, velocity, t, h))
            flow, steering = field(active)
    return ends, failed_at, rows


@contextmanager
def _evaluating(score: object) -> Iterator[None]:
    training = [m for m in score.modules() if m.training] if isinstance(score, nn.Module) else []
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


def _report(failed_at: Tensor) -> None:
    which = failed_at.nonzero().squeeze(1).tolist()
    if which:
        shown = ", ".join(map(str, which[:10])) + (", ..." if len(which) > 10 else "")
        warnings.warn(
            f"{len(which)} of {len(failed_at)} likelihoods are not known: at t = {float(failed_at[which].min()):.6g} and after, "
            f"the tolerance could not be met or the score was not finite. Points: {shown}",
            SamplingWarning,
            stacklevel=3,
        )
