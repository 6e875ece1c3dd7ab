"""Warm-up, pooled over all chains: the step size by dual averaging, and the mass matrix of all chains' draws."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ebmppl.errors import SamplingError, SamplingWarning
from ebmppl.kernels.accept import DIVERGENCE, some
from ebmppl.kernels.dual_averaging import LEAP, DualAveraging, dual_averaging, dual_averaging_update, limited
from ebmppl.kernels.integrators import Phase, ValueAndGrad, kinetic, leapfrog
from ebmppl.kernels.pooling import pooled_sum
from ebmppl.kernels.welford import Welford, regularised, welford_update

_WIDE = 1e8  # standard deviation in the unconstrained space that no density in sensible units has
_GROWTH = 30  # of the standard deviation from one window to the next, once there is one
_FEW = 5  # updates of it that are no average yet
_OF_MEDIAN = 1.4826  # a normal standard deviation over the median absolute deviation


class Tuning(NamedTuple):
    """What warm-up adapts for the Hamiltonian kernels."""

    step_size: Tensor  # scalar
    inverse_mass: Tensor  # (dimension,) or (dimension, dimension)
    factor: Tensor  # F with F F' = inverse_mass; the square root of a diagonal

    @classmethod
    def identity(cls, step_size: float, dimension: int, like: Tensor, *, full_mass: bool) -> Tuning:
        """A step size and the identity metric at the dtype and device of ``like``."""
        unit = torch.ones(dimension, dtype=like.dtype, device=like.device)
        unit = torch.diag(unit) if full_mass else unit
        return cls(torch.tensor(step_size, dtype=like.dtype, device=like.device), unit, unit.clone())


class AdaptationState(NamedTuple):
    """What an adaptation carries: what each tick changes, and what is known of the window's draws."""

    averaging: Any  # NamedTuples of tensors
    draws: Any


class Drawn(NamedTuple):
    """What the adaptation of a kernel inside another one sees of a tick; not the steps, which all chains then share."""

    done: Tensor
    acceptance_rate: Tensor


class Adaptation(Protocol):
    """How a kernel is tuned in warm-up. All values are NamedTuples of tensors; ``update`` is pure and branch-free."""

    def init(self, tuning: Any, state: Any) -> AdaptationState:
        """The adaptation's own state."""

    def update(self, averaging: Any, tuning: Any, info: Any) -> tuple[Any, Any]:
        """After each tick: the own state, and the tuning that chains take when they start their next draw."""

    def own_steps(self, averaging: Any, tuning: Any) -> Any:
        """Before each tick: the tuning with step sizes ``(chains,)``, where some chains may need smaller ones."""
        return tuning

    def observe(self, draws: Any, x: Tensor, counts: Tensor) -> Any:
        """Some ticks at a time: take in their draws ``(draws, dimension)``, chain by chain, so many of each ``(chains,)``."""

    def begin(self, own: Any, tuning: Any, state: Any, normal: Callable[[], Tensor]) -> tuple[Any, Any]:
        """Before the first tick and after each window: find a step size for the present metric."""

    def end_window(self, own: Any, tuning: Any, *, metric: bool) -> tuple[Any, Any]:
        """A window ended: forget its draws, after setting the metric from them where the window is for that."""

    def finish(self, own: Any, tuning: Any) -> Any:
        """The tuning that is frozen for sampling."""


def secant_variances(x: Tensor, grad: Tensor) -> Tensor:
    """A guess of the variances ``(dimension,)`` by what points of several chains and the gradients there tell of curvature.

    The median over pairs of neighbouring chains of abs(difference of positions / difference of gradients), the variance
    itself for a Gaussian of independent coordinates. Its logarithm is shrunk towards that of all coordinates as far as
    pairs disagree: by b / (b + w) with the spread b between coordinates and w between a coordinate's pairs, both
    variances, and by pairs / (pairs + 5). (Nutpie begins from gradients, too, by their variances; pairs need no mean, and
    one chain far out, where gradients are huge, is one among many.)

    Args:
        x: points ``(chains, dimension)``.
        grad: of the energy there.
    """
    logs = ((x - x.roll(1, 0)) / (grad - grad.roll(1, 0))).abs().log()
    good = logs.isfinite()  # not where chains agree, or the energy is linear
    logs = torch.where(good, logs, torch.nan)
    own = logs.nanmedian(0).values
    within = (_OF_MEDIAN * (logs - own).abs().nanmedian(0).values).square()
    pairs, known = good.sum(0), good.any(0)
    common = torch.where(known, own, torch.nan).nanmean().nan_to_num()
    apart = torch.where(known, own - common, 0.0)
    between = apart.square().sum() / (known.sum() - 1).clamp_min(1)
    trust = between / (between + within.nan_to_num() + torch.finfo(x.dtype).tiny) * pairs / (pairs + 5)
    return torch.exp(common + trust * apart)


def _warn_of_scale(new: Tensor, old: Tensor, *, first: bool) -> None:
    """Warn where the draws of a window are spread as those of an improper density, which never stop growing."""
    spread, before = ((m if m.dim() == 1 else m.diagonal()).sqrt() for m in (new, old))
    growth = spread / before
    if bool((spread > _WIDE).any()):
        at = int(spread.argmax())
        what = f"a warm-up window have a standard deviation of {float(spread[at]):.2g}"
    elif not first and bool((growth > _GROWTH).any()):
        at = int(growth.argmax())
        what = f"the last warm-up window spread {float(growth[at]):.0f} times as far as those of the one before"
    else:
        return
    told = f"the draws of {what} (in coordinate {at} of the unconstrained space): is the density proper?"
    warnings.warn(f"{told} If so, warm up longer: its scale is not found yet", SamplingWarning, stacklevel=2)


def factorise(inverse_mass: Tensor) -> Tensor:
    """F with F F' = inverse_mass."""
    return inverse_mass.sqrt() if inverse_mass.dim() == 1 else torch.linalg.cholesky(inverse_mass)


def _has_factor(inverse_mass: Tensor) -> bool:
    """Whether it is one to take; warn of a dense one that rounding has made singular."""
    if inverse_mass.dim() == 1 or bool(torch.linalg.cholesky_ex(inverse_mass).info == 0):
        return True
    dtype = str(inverse_mass.dtype).removeprefix("torch.")
    told = f"the covariance of a warm-up window's draws has no Cholesky factor in {dtype}, as when some chains are"
    told += " far from all others: the metric stays what it was; take float64, full_mass=False or other initial points"
    warnings.warn(told, SamplingWarning, stacklevel=2)
    return False


def _with_metric(tuning: Tuning, inverse_mass: Tensor) -> Tuning:
    return tuning._replace(inverse_mass=inverse_mass, factor=factorise(inverse_mass))


class HamiltonianAdaptation:
    """Dual averaging and a diagonal or dense metric, for HMC, NUTS and MALA.

    Args:
        value_and_grad: the kernel's own, for the search of a first step size.
        target: acceptance rate to reach, in (0, 1).
        step_size: whether to adapt the step size.
        mass: whether to adapt the metric.
        power: the leapfrog step is ``step_size ** power`` (1 for HMC, 1/2 for MALA, whose step size is a time).
        blocks: for a dense metric, which entries ``(dimension, dimension)`` may differ from zero; all when None.
        guess: begin with a metric by the chains' gradients, see ``secant_variances``.
    """

    def __init__(
        self,
        value_and_grad: ValueAndGrad,
        *,
        target: float,
        step_size: bool,
        mass: bool,
        power: float = 1.0,
        blocks: Tensor | None = None,
        guess: bool = False,
    ) -> None:
        self.value_and_grad = value_and_grad
        self.target, self.step_size, self.mass, self.power, self.blocks = target, step_size, mass, power, blocks
        self.guess = guess and mass and step_size

    def init(self, tuning: Tuning, state: Any) -> AdaptationState:
        """Nothing seen yet."""
        chains = len(state.energy)
        welford = Welford.empty(state.position.mean(0), chains, full=tuning.inverse_mass.dim() == 2)
        return AdaptationState(dual_averaging(tuning.step_size, chains), welford)

    def update(self, averaging: DualAveraging, tuning: Tuning, info: Any) -> tuple[DualAveraging, Tuning]:
        """Dual averaging; limits where the draws tell what steps they took."""
        if not self.step_size or not some(info.done):
            return averaging, tuning
        rate, limit = info.acceptance_rate, averaging.limit
        if hasattr(info, "step_size"):
            limit, rate = limited(limit, rate, info.step_size, info.done, self.power)
        averaging, step_size = dual_averaging_update(averaging, tuning.step_size, rate, info.done, self.target)
        return averaging._replace(limit=limit), tuning._replace(step_size=step_size)

    def own_steps(self, averaging: DualAveraging, tuning: Tuning) -> Tuning:
        """The common step size, or a chain's limit."""
        return tuning._replace(step_size=torch.minimum(tuning.step_size, averaging.limit)) if self.step_size else tuning

    def observe(self, draws: Welford, x: Tensor, counts: Tensor) -> Welford:
        """Moments for the metric."""
        return welford_update(draws, x, counts) if self.mass and len(x) else draws

    def begin(
        self, own: AdaptationState, tuning: Tuning, state: Any, normal: Callable[[], Tensor]
    ) -> tuple[AdaptationState, Tuning]:
        """Search a step size for the present metric, at first a guess, and restart dual averaging from it."""
        if not self.step_size:
            return own, tuning
        if self.guess and len(state.grad) > 1 and not bool(own.draws.metrics):
            variances = secant_variances(state.position, state.grad)
            tuning = _with_metric(tuning, variances if tuning.inverse_mass.dim() == 1 else variances.diag())
        step = find_step_size(self.value_and_grad, state, tuning, normal, self.power)
        return own._replace(averaging=dual_averaging(step, len(state.energy))), tuning._replace(step_size=step)

    def end_window(self, own: AdaptationState, tuning: Tuning, *, metric: bool) -> tuple[AdaptationState, Tuning]:
        """Metric from the window's draws."""
        draws: Welford = own.draws
        empty = draws.emptied()
        if self.mass and metric and bool((draws.total > 0).any()):
            inverse_mass = regularised(draws)
            _warn_of_scale(inverse_mass, tuning.inverse_mass, first=not bool(draws.metrics))
            if self.blocks is not None:
                inverse_mass = inverse_mass * self.blocks.to(inverse_mass.device)
            if _has_factor(inverse_mass):
                tuning = _with_metric(tuning, inverse_mass)
                empty = empty._replace(metrics=draws.metrics + 1)
        return own._replace(draws=empty), tuning

    def finish(self, own: AdaptationState, tuning: Tuning) -> Tuning:
        """The averaged step size; after a handful of updates, which are leaps, the one that the search had found."""
        da = own.averaging
        if not self.step_size:
            return tuning
        searched = da.center - math.log(LEAP)
        return tuning._replace(step_size=torch.where(da.updates >= _FEW, da.log_average, searched).exp())


def find_step_size(
    value_and_grad: ValueAndGrad, state: Any, tuning: Tuning, normal: Callable[[], Tensor], power: float
) -> Tensor:
    """Double or halve the step size until the mean acceptance of one leapfrog step crosses 0.8 (Stan's heuristic, pooled).

    Args:
        value_and_grad: energies and gradients at positions.
        state: has ``position``, ``energy`` and ``grad`` of all chains.
        tuning: the step size to begin with and the metric.
        normal: gives fresh momenta ``(chains, dimension)``.
        power: the leapfrog step is ``step_size ** power``.

    Raises:
        SamplingError: when the step size runs away to 0 or infinity.
    """
    step = tuning.step_size
    lowest = math.sqrt(torch.finfo(step.dtype).tiny)  # so that its square is still a number
    direction = 0.0
    while True:
        start = Phase(state.position, normal(), state.energy, state.grad)
        end = leapfrog(value_and_grad, start, step.pow(power).expand(len(state.energy)), tuning.factor)
        error = end.energy + kinetic(end.momentum) - start.energy - kinetic(start.momentum)
        rate = torch.where(torch.isfinite(error) & (error < DIVERGENCE), torch.exp(-error.clamp_min(0.0)), 0.0)
        up = 1.0 if float(pooled_sum(rate)) > 0.8 * len(rate) else -1.0
        direction = direction or up
        if not lowest < float(step) < 1 / lowest or (direction < 0 and bool((end.position == start.position).all())):
            break  # a step that moves nothing keeps the energy, but is no step
        if up != direction:
            return step
        step = step * 2.0 ** (direction / power)
    where, why = (
        ("infinity", "the energy is flat: is the density proper?")
        if direction > 0
        else ("zero", "no step keeps the energy: is it smooth and of a sensible scale at the initial points?")
    )
    raise SamplingError(f"the step size ran away to {where} ({float(step):.3g}): {why}")
