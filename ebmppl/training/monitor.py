"""Whether the chains of a loss keep up with the model, what is wrong where they don't, and what is done about it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ebmppl.arguments import require, whole
from ebmppl.training.actions import Action, Warn
from ebmppl.training.health import Health, Problem, explain
from ebmppl.training.mixing import LEAST, effective, judged, r_hat

if TYPE_CHECKING:
    from ebmppl.training.run import Run

Statistic = Callable[[Tensor], Tensor]
ERRORS = 4.0  # standard errors that an energy gap must be beyond its limit
_FOLLOWED = 64  # chains whose points are compared from step to step


class Monitor:
    r"""Checks the mixing of a loss's chains every so many steps of ``fit``; actions follow where something is wrong.

    It reads ``bound.diagnostics()``: ``energies`` (of persistent chains in recent steps), ``age``, ``gap``, ``gap_error``,
    ``acceptance``, each where the loss has it. R-hat and ESS are those of the chains' energies minus their mean at each
    step. They need 20 moves of each chain; before that, whether the chains mix is not known, and the state is not kept as
    a good one. A loss that never keeps so many is refused.

    False alarms: stationary chains of n recent steps with autocorrelation time tau have
    :math:`\hat R^2 \approx 1 + 2 (\tau / n) \chi^2_\nu / \nu`, where nu = 2 chains - 1. With tau <= n / 10 and at least 20
    chains the default limit of 1.2 is passed in fewer than one check of 10,000.

    References:
        Vehtari, Gelman, Simpson, Carpenter and Buerkner 2021, "Rank-normalization, folding, and localization"; of
        energies that are trained: Nijkamp, Hill, Han, Zhu and Wu 2020, "On the anatomy of MCMC-based maximum likelihood
        learning of energy-based models".

    Args:
        actions: called in this order with the run and its health where there is a problem; ``Warn()`` by default. Your own
            function ``action(run, health) -> str`` says what it did.
        every: steps between two checks.
        r_hat: the largest that is good; None turns a reading off, here and below.
        ess: the fewest effective draws of all chains together.
        frozen: the largest share of chains that did not move between two checks.
        gap: the most standard deviations of the samples' energies by which data and samples may differ (beyond four
            standard errors); for persistent chains. At 3 at most one sample in ten has an energy as far from the samples'
            mean as that of the data, whatever their law (Cantelli's inequality: 1 / (1 + 9)): energies tell them apart.
        acceptance: the lowest rate.
        age: the most steps since chains began, on average.
        statistics: further functions of points ``(chains, *event)`` to ``(chains,)`` whose R-hat and ESS are read.

    Raises:
        ValueError: for limits out of range.
    """

    def __init__(
        self,
        actions: Sequence[Action] | None = None,
        *,
        every: int = 100,
        r_hat: float | None = 1.2,
        ess: float | None = 50.0,
        frozen: float | None = 0.5,
        gap: float | None = 3.0,
        acceptance: float | None = 0.1,
        age: float | None = None,
        statistics: Mapping[str, Statistic] | None = None,
    ) -> None:
        self.actions = [Warn()] if actions is None else list(actions)
        for action in self.actions:
            made = callable(action) and not isinstance(action, type)
            require(made, "actions as functions of a run and its health, such as RollBack()", repr(action))
        self.every = whole("every", every, 1)
        least = {"r_hat": 1.0, "ess": 0.0, "frozen": 0.0, "gap": 0.0, "acceptance": 0.0, "age": 0.0}
        given = {"r_hat": r_hat, "ess": ess, "frozen": frozen, "gap": gap, "acceptance": acceptance, "age": age}
        for name, value in given.items():
            require(value is None or value >= least[name], f"{name} >= {least[name]}", value)
        self.limits = {name: value for name, value in given.items() if value is not None}
        self.statistics = dict(statistics or {})
        self._begin()

    def _begin(self) -> None:
        """Nothing is known: of a run that begins."""
        self.last: Health | None = None
        self._again = 0  # step from which checks are made: what an action changed must show first
        self._since = 0  # step after which there is something to read
        self._recent: dict[str, list[Tensor]] = {name: [] for name in self.statistics}
        self._points: Tensor | None = None
        self._age: Tensor | None = None
        self._moved: Tensor | None = None  # by chain, since the last check
        self._asked: Tensor | None = None  # whether it was to move

    def require_fit(self, bound: Any) -> None:
        """Before the first step of a run; what is known of another one is forgotten.

        Raises:
            ValueError: for an action that a loss has nothing for, such as ``RaiseK`` where there is no k; for a loss that
                keeps energies of too few steps for R-hat and ESS.
        """
        self._begin()
        for action in self.actions:
            if hasattr(action, "require_fit"):
                action.require_fit(bound)
        energies, moved = getattr(bound, "energies", None), getattr(bound, "num_chains", None)
        if not self._asks_mixing or not isinstance(energies, Tensor) or moved is None:
            return
        steps, size = energies.shape
        least = LEAST if moved == size else -(-LEAST * 5 * size // (4 * moved))  # a quarter more: who moves is drawn
        wanted = f"recent >= {least} for a monitor of R-hat and ESS ({LEAST} moves of each of {size} chains)"
        require(steps >= least, f"{wanted}, or Monitor(r_hat=None, ess=None)", steps)

    @property
    def _asks_mixing(self) -> bool:
        return bool(self.limits.keys() & {"r_hat", "ess"})

    def look(self, run: Run) -> Health | None:
        """After a step: read, and where a check is due make it and act."""
        bound, step = run.bound, run.step
        self._follow(bound)
        if step % self.every or step < self._again:
            return None
        health = self.check(bound, step)
        if health.problems:
            done = tuple(filter(None, (action(run, health) for action in self.actions)))
            health = health._replace(done=done)
            if done:
                self._forget(bound, step)
        self._begin_window()
        self.last = health
        return health

    def check(self, bound: Any, step: int) -> Health:
        """What is to be read of a bound loss now; nothing is done."""
        found = bound.diagnostics() if hasattr(bound, "diagnostics") else {}
        energies = found.get("energies")
        if energies is not None:
            energies = energies[max(0, len(energies) - (step - self._since)) :]
        tables = [] if energies is None else [energies]
        tables += [torch.stack(rows) for rows in self._recent.values() if rows]
        chains = [c for c in (judged(table.detach().double().cpu().numpy()) for table in tables) if c is not None]
        age = found.get("age")
        gap, error = float(found.get("gap", math.nan)), float(found.get("gap_error", math.nan))
        health = Health(
            step=step,
            r_hat=max((r_hat(c) for c in chains), default=math.nan),
            ess=min((effective(c) for c in chains), default=math.nan),
            frozen=self._frozen(),
            age=math.nan if age is None else float(age.double().mean()),
            gap=gap,
            gap_error=error,
            gap_ratio=_ratio(gap, error, energies),
            acceptance=float(found.get("acceptance", math.nan)),
        )
        unread = any(math.isnan(getattr(health, name)) for name in ("r_hat", "ess") if name in self.limits)
        return health._replace(problems=self._problems(health), known=energies is None or not unread)

    def _problems(self, health: Health) -> tuple[Problem, ...]:
        values = health._asdict() | {"gap": health.gap_ratio}
        found = []
        for name, limit in self.limits.items():
            value = values[name]
            beyond = value < limit if name in ("ess", "acceptance") else abs(value) > limit
            if beyond:
                found.append(Problem(name, value, limit, explain(name, value, limit)))
        return tuple(found)

    # What it keeps from step to step.

    @torch.no_grad()
    def _follow(self, bound: Any) -> None:
        points = getattr(bound, "points", None)
        if points is None:
            return
        points, age = points[:_FOLLOWED], bound.age[:_FOLLOWED]
        if self._points is not None:
            changed = (points != self._points).flatten(1).any(1)
            self._moved = changed if self._moved is None else self._moved | changed
            self._asked = (age != self._age) if self._asked is None else self._asked | (age != self._age)
        self._points, self._age = points.clone(), age.clone()
        for name, statistic in self.statistics.items():
            value = statistic(bound.chains.outward(bound.points)).detach().double()
            require(value.shape == bound.age.shape, f"{name} of shape {tuple(bound.age.shape)}", tuple(value.shape))
            self._recent[name] = [*self._recent[name], value][-len(bound.energies) :]

    def _frozen(self) -> float:
        """Of the chains that were to move, the share that did not."""
        if self._moved is None or self._asked is None or not bool(self._asked.any()):
            return math.nan
        return float((~self._moved[self._asked]).double().mean())

    def _begin_window(self) -> None:
        self._moved = self._asked = None

    def _forget(self, bound: Any, step: int) -> None:
        """Chains or weights are others: what was read is of the past."""
        energies = getattr(bound, "energies", None)
        self._since, self._again = step, step + (self.every if energies is None else len(energies))
        self._recent = {name: [] for name in self.statistics}
        self._points = None
        self._begin_window()

    def state_dict(self) -> dict[str, Any]:
        """What it remembers."""
        return {
            "again": self._again,
            "since": self._since,
            "recent": {name: list(rows) for name, rows in self._recent.items()},
            "points": self._points,
            "age": self._age,
            "moved": self._moved,
            "asked": self._asked,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with what was saved.

        Raises:
            ValueError: for other statistics.
        """
        names = sorted(state["recent"])
        require(names == sorted(self.statistics), f"the statistics that were saved, {names}", sorted(self.statistics))
        for name in ("again", "since", "points", "age", "moved", "asked"):
            setattr(self, f"_{name}", state[name])
        self._recent = {name: list(rows) for name, rows in state["recent"].items()}


def _ratio(gap: float, error: float, energies: Tensor | None) -> float:
    """The gap, less what may be chance, in standard deviations of the samples' energies."""
    if energies is None or not len(energies) or math.isnan(gap):
        return math.nan
    last = energies[-1][torch.isfinite(energies[-1])].double()
    spread = float(last.std()) if len(last) > 1 else math.nan
    sure = max(0.0, abs(gap) - ERRORS * error)
    if not sure or math.isnan(error):
        return 0.0 if not sure else math.nan
    return math.copysign(sure / spread if spread > 0 else math.inf, gap)
