"""The probability flow's velocity and its divergence, at points of a batch or compiled for one form."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor

from ebmppl.errors import SamplingWarning
from ebmppl.score.base import SDE, LinearSDE, over
from ebmppl.score.clock import Clock
from ebmppl.score.conditions import chosen_rows, num_conditions
from ebmppl.score.ode import Field
from ebmppl.score.pullback import Pull, pullback

Score = Callable[[Tensor, Tensor], Tensor]
_MOST_PULLS = 64  # in one compiled graph
# what an eager call takes, by the numbers of a network that compiled code makes in the time: seen for 2 to 16 dimensions
_EAGER_CALL, _EAGER = 1_500_000, 1.5  # whatever its rows, and for each number


def velocity(sde: SDE, x: Tensor, t: Tensor, score: Tensor) -> Tensor:
    r"""The probability flow's :math:`f(x, t) - \tfrac12 g(t)^2 s`: points and scores ``(rows, *event)`` by times ``(rows,)``."""
    return sde.drift(x, t) - over(0.5 * sde.diffusion(t).square(), x) * score


class Flow:
    """Velocities of points ``(rows, dimension)``, followed by the divergence, or by each probe's estimate of it.

    Args:
        score: ``(x, t) -> score``.
        sde: the forward SDE.
        event: the shape of a point.
        signs: of the probes ``(probes, points, dimension)``; None for the exact divergence.
    """

    def __init__(self, score: Score, sde: SDE, event: torch.Size, signs: Tensor | None) -> None:
        self.score, self.sde, self.event, self.signs = score, sde, event, signs
        self.dimension, self.estimates = event.numel(), 1 if signs is None else len(signs)
        self.clock = Clock(sde)
        self.fewest = 1.0  # see ``solve``
        self._by_row = num_conditions(score) is not None
        self._compiled: tuple[int, Callable[..., Tensor], Callable[..., Tensor]] | None = None

    def velocity(self, y: Tensor, u: Tensor) -> Tensor:
        """The velocity by the clock, where it shows u ``(rows,)``, followed by zeros ``(rows, estimates)``."""
        t, rate = self.clock.at(u, y.dtype)
        points = y[:, : self.dimension].reshape(len(y), *self.event)
        slope = velocity(self.sde, points, t, self.score(points, t))
        return torch.nn.functional.pad(slope.reshape(len(y), -1) * rate.unsqueeze(1), (0, self.estimates))

    def with_divergence(self, y: Tensor, u: Tensor, signs: Tensor | None = None) -> Tensor:
        """The velocity by the clock, followed by divergences ``(rows, estimates)``."""
        t, rate = self.clock.at(u, y.dtype)
        half = 0.5 * self.sde.diffusion(t).square().unsqueeze(1)
        linear = self.sde.drift_coefficient(t).unsqueeze(1) if isinstance(self.sde, LinearSDE) else None

        def of(x: Tensor) -> tuple[Tensor, Tensor]:
            points = x.view(len(x), *self.event)
            slope = self.score(points, t).reshape(x.shape)
            if linear is None:
                slope = self.sde.drift(points, t).reshape(x.shape) - half * slope
            return slope, slope

        x = y[:, : self.dimension]
        slope, _, pull = pullback(of, x)
        divergence = _divergence(pull, x, signs)
        if linear is not None:  # the drift's part is known
            slope = torch.addcmul(linear * x, half, slope, value=-1)
            divergence = torch.addcmul(linear * self.dimension, half, divergence, value=-1)
        return torch.cat([slope, divergence], 1) * rate.unsqueeze(1)

    def fields(self, first: int, rows: Tensor) -> tuple[Field, Field]:
        """For points of these numbers, counted from ``first``: the velocity with its divergence, and the velocity alone."""
        rows = rows + first
        signs = () if self.signs is None else (self.signs[:, rows],)
        if self._compiled is not None and self._compiled[0] == len(rows):
            return lambda y, u: self._compiled[1](y, u, *signs), self._compiled[2]

        def chosen(field: Callable[..., Tensor], *more: Tensor) -> Field:
            def call(y: Tensor, u: Tensor) -> Tensor:
                with chosen_rows(self.score, rows) if self._by_row else nullcontext():
                    return field(y, u, *more)

            return call

        return chosen(self.with_divergence, *signs), chosen(self.velocity)

    def compile(self, y: Tensor, first: float, *, wanted: bool) -> None:
        """Compile both for as many points as these ``(rows, dimension + estimates)``, where that is possible.

        Warns:
            SamplingWarning: where it isn't; with ``wanted`` False only when something went wrong.
        """
        from ebmppl.sampling.compiled_function import Compiling, compiled_functions
        from ebmppl.sampling.engines import Refused

        signs = [] if self.signs is None else [self.signs[:, : len(y)].contiguous()]
        u = self.clock.of(torch.linspace(first, self.sde.t_max, len(y), dtype=y.dtype, device=y.device))
        objects, label = (self.score, self.sde), f"{self.event} {self.estimates}"
        try:
            if self._by_row:
                raise Refused("the score is given something for each row", worth_a_warning=False)
            if self.signs is None and self.dimension > _MOST_PULLS:
                raise Refused(f"{self.dimension} derivatives, more than {_MOST_PULLS}", worth_a_warning=False)
            axes = [0, 0, 1][: 2 + len(signs)]
            wanted_both = Compiling(self.with_divergence, [y, u, *signs], axes, f"divergence {label}")
            both, alone = compiled_functions(
                [wanted_both, Compiling(self.velocity, [y, u], [0, 0], f"velocity {label}")], objects
            )
        except Refused as refusal:
            if wanted or refusal.worth_a_warning:
                warnings.warn(f"the flow runs eagerly, slower: {refusal}", SamplingWarning, stacklevel=4)
            return
        self._compiled = len(y), both.call, alone.call
        self.fewest = max(0.0, (both.work - _EAGER_CALL) / (_EAGER * both.work))


def _divergence(pull: Pull | None, x: Tensor, signs: Tensor | None) -> Tensor:
    """Of slopes at points ``(rows, dimension)``: the sum of all derivatives ``(rows, 1)``, or estimates ``(rows, probes)``."""
    if pull is None:  # the same everywhere
        return x.new_zeros(len(x), 1 if signs is None else len(signs))
    if signs is not None:
        return torch.stack([(pull(sign) * sign).sum(1) for sign in signs], 1)
    total, one = torch.zeros_like(x[:, 0]), torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    for i, unit in enumerate(one):
        total = total + pull(unit.expand_as(x))[:, i]
    return total.unsqueeze(1)
