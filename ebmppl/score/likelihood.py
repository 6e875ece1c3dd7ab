"""Log-likelihoods of a score model by the probability flow and its divergence."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ebmppl.arguments import form, positive, require, seed_number, whole
from ebmppl.errors import SamplingWarning
from ebmppl.score.agreement import require_process
from ebmppl.score.base import SDE
from ebmppl.score.conditions import num_conditions
from ebmppl.score.contract import look, look_at_rates, look_at_times
from ebmppl.score.dtypes import require_state
from ebmppl.score.failures import failures
from ebmppl.score.ode import Solution, solve
from ebmppl.score.pullback import require_gradient
from ebmppl.score.velocity import Flow

BACKENDS = ("auto", "eager", "inductor")
_NUMBERS = 1 << 20  # of the points of a batch; a network makes some hundred times as many
_ROWS = 1024  # of a compiled batch
_LOOKED = 16  # points at which the score is looked at first
_WORTH_COMPILING = 1 << 14  # points


class LogLikelihood(NamedTuple):
    """Of points ``(batch, *event)``.

    Attributes:
        value: log p(x), ``(batch,)`` in nats; NaN where the flow could not be solved.
        std_error: of the value, from the probes ``(batch,)``; 0 for an exact divergence, NaN for one probe, or a failed point.
        end: where the flow carries the points, ``(batch, *event)`` at T.
        divergence: the integral of the flow's divergence from t_min to T, ``(batch,)`` in nats.
        failed_at: the time where the flow could not be solved, ``(batch,)``; 0 where it was.
        rows: how many points the score was asked for in all, without those of the divergence.
        tolerance_unmet: where the score was finite, and the step size fell under its limit ``(batch,)``, bool.
    """

    value: Tensor
    std_error: Tensor
    end: Tensor
    divergence: Tensor
    failed_at: Tensor
    rows: int
    tolerance_unmet: Tensor

    def bits_per_dimension(self, scale: float) -> Tensor:
        """Bits per dimension ``(batch,)`` of integers n that were dequantised to x = scale (n + u) + constant, u in [0, 1).

        Averaged over u it bounds the bits of a code for n from above (Theis, van den Oord and Bethge 2016). The scale of pixels
        0 to 255 is 1 / 256 where x is in [0, 1], and 1 / 128 where it is in [-1, 1].
        """
        scale, dimension = positive("scale", scale), self.end[0].numel()
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
    backend: str = "auto",
) -> LogLikelihood:
    r"""Log-likelihoods by the probability flow :math:`v(x, t) = f(x, t) - \tfrac12 g(t)^2 s(x, t)`.

    .. math:: \log p_{t_{min}}(x) = \log p_T(x(T)) + \int_{t_{min}}^T \nabla \cdot v(x(t), t)\,dt

    The integral joins the ODE, by Dormand and Prince's pair with a ``Clock`` and a step size for each point. A step is taken
    where the root mean square, over point and integrals, of the order-4 result's error over ``atol + rtol |value|`` is at most
    1; that of order 5 goes on. It is six calls of the score; the exact divergence takes as many gradients of five of them as an
    event has numbers, that of ``probes`` K: :math:`\epsilon^\top \tfrac{\partial v}{\partial x} \epsilon` by a point's own signs.

    References:
        Hutchinson 1990; Chen et al. 2018, "Neural ODEs"; Grathwohl et al. 2019, "FFJORD"; Song et al. 2021, section 4.3.

    Args:
        score: ``(x, t) -> score``, ``(batch, *event)`` from such points and times ``(batch,)``, differentiable in x.
        sde: the forward SDE.
        x: points ``(batch, *event)``, float32 or float64.
        rtol: relative tolerance of each step, > 0.
        atol: absolute tolerance, > 0, in units of x and in nats.
        t_min: where the flow begins, in (0, T).
        probes: K >= 1; None for the exact divergence.
        log_prior: log density of points at T, ``(batch,)``; that of the SDE's prior when None.
        seed: of the probes.
        same_probes: the same signs for all points: the value is then a function of the point, but errors don't average out.
        backend: "eager"; "inductor" compiles, in seconds, once for batches of a size; "auto": so from 16,384 points on a CPU.

    Returns:
        Values with their errors; no gradient flows through them.

    Raises:
        ValueError: for arguments outside these ranges, a score of another shape, dtype or ``sde``, or one that mixes rows.

    Warns:
        SamplingWarning: where the flow could not be solved to the tolerance, or a score was not finite: which points, when.

    Example:
        >>> from ebmppl.score import VP
        >>> log_likelihood(lambda x, t: -x, VP(), torch.zeros(1, 2)).value  # of N(0, I)
        tensor([-1.8379])
    """
    _check(score, sde, x, (rtol, atol), t_min, probes, log_prior, seed, backend)
    with _evaluating(score), torch.no_grad():
        x, signs = x.detach(), _signs(probes, x.reshape(len(x), -1), seed, same=same_probes)
        end, integrals, found = _flow(score, sde, x, (rtol, atol), t_min, signs, backend)
    divergence, prior = integrals.mean(1), _prior(log_prior or sde.prior(x.shape[1:], like=x).log_prob, end)
    value, error = prior + divergence.masked_fill(found.failed_at != 0, math.nan), _error(integrals, probes, found)
    return LogLikelihood(value, error, end, divergence, found.failed_at, found.rows, found.unmet)


def _prior(log_prior: Callable[[Tensor], Tensor], end: Tensor) -> Tensor:
    found = log_prior(end)
    good = isinstance(found, Tensor) and found.shape == end.shape[:1]
    require(good, f"log prior densities of shape ({len(end)},)", form(found))
    return found


def _error(estimates: Tensor, probes: int | None, found: Solution) -> Tensor:
    """The standard error of their mean; NaN of a point that failed."""
    if probes == 1:
        return torch.full_like(estimates[:, 0], math.nan)
    error = torch.zeros_like(estimates[:, 0]) if probes is None else estimates.std(1) / math.sqrt(probes)
    return error.masked_fill(found.failed_at != 0, math.nan)


def _check(
    score: object,
    sde: object,
    x: Tensor,
    tolerances: tuple[float, float],
    t_min: float,
    probes: int | None,
    log_prior: object,
    seed: int,
    backend: str,
) -> None:
    require(log_prior is None or callable(log_prior), "a callable log_prior", type(log_prior).__name__)
    require(callable(score), "a score (x, t) -> tensor", type(score).__name__)
    require(isinstance(sde, SDE), "an SDE", type(sde).__name__)
    assert isinstance(sde, SDE)
    good = isinstance(x, Tensor) and x.dim() >= 1 and x.numel() > 0 and x.is_floating_point()
    require(
        good, "floating point points (batch, *event)", tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
    )
    require_state(x)
    require_process(score, sde, x.shape[1:])
    for name, tolerance in zip(("rtol", "atol"), tolerances, strict=True):
        positive(name, tolerance)
    sde.require_start(t_min)
    if probes is not None:
        whole("probes", probes, 1)
    seed_number(seed)
    require(backend in BACKENDS, f"a backend of {', '.join(map(repr, BACKENDS))}", repr(backend))


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
    backend: str,
) -> tuple[Tensor, Tensor, Solution]:
    """Ends, integrals of the divergence ``(batch, 1)`` or of its estimates ``(batch, probes)``, and both in one.

    Points are solved in batches of one size; the last one takes some of those before it again.
    """
    some = x if num_conditions(score) is not None else x[:_LOOKED]
    begun = x.new_full((len(some),), t_min)
    look(score, some, begun)
    look_at_rates(sde, some)
    look_at_times(score, sde, some)
    require_gradient(lambda at: score(at, begun), some, "a score")
    compiled = backend == "inductor" or (backend == "auto" and x.device.type == "cpu" and len(x) >= _WORTH_COMPILING)
    most = max(1, min(_ROWS if compiled else len(x), _NUMBERS // x[0].numel()))
    size = -(-len(x) // -(-len(x) // most))
    flow = Flow(score, sde, x.shape[1:], signs)
    start = nn.functional.pad(x.reshape(len(x), -1), (0, flow.estimates))
    y, failed_at, rows = start.clone(), start.new_zeros(len(x)), 0
    unmet = torch.zeros_like(failed_at, dtype=torch.bool)
    if compiled:
        flow.compile(start[:size], t_min, wanted=backend == "inductor")
    for begin in range(0, len(x), size):
        own = slice(min(begin, len(x) - size), min(begin + size, len(x)))
        fields = partial(flow.fields, own.start)
        found = solve(fields, start[own], t_min, sde.t_max, *tolerances, fewest=flow.fewest, clock=flow.clock)
        y[own], failed_at[own], unmet[own], rows = found.end, found.failed_at, found.unmet, rows + found.rows
    told = failures(failed_at, unmet, "likelihoods")
    if told is not None:
        warnings.warn(f"{told}. They are NaN, and their ends where the flow was then", SamplingWarning, stacklevel=3)
    return y[:, : flow.dimension].reshape(x.shape), y[:, flow.dimension :], Solution(y, failed_at, unmet, rows)


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
