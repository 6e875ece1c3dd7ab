"""Training: a loop that says how it goes, goes back to the last good state, and goes on exactly where it was saved."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from tqdm.auto import tqdm

from ebmppl.arguments import positive, require
from ebmppl.errors import EnergyError, NonFiniteLoss
from ebmppl.losses.base import BoundLoss
from ebmppl.losses.store import warn_of_untrained
from ebmppl.sampling.scopes import evaluating
from ebmppl.training.batches import Batches
from ebmppl.training.ema import EMA
from ebmppl.training.state import copied, global_generators, load_fit, save_fit, set_global_generators

if TYPE_CHECKING:
    from ebmppl.training.health import Health
    from ebmppl.training.monitor import Monitor

OptimizerFactory = Callable[[list[nn.Parameter]], Optimizer]
ScheduleFactory = Callable[[Optimizer], LRScheduler]


class Step(NamedTuple):
    """What happened in one step.

    Attributes:
        step: its number, from 0.
        epoch: of its batch, from 0.
        loss: of the batch, before the update.
        terms: that add up to the loss.
        grad_norm: of all parameters together, before clipping.
        learning_rate: of the update (the first group's).
        seconds: that it took.
        validation: loss of the held-out data after the update, where it was due.
        health: what the monitor found after the update, where a check was due.
    """

    step: int
    epoch: int
    loss: float
    terms: dict[str, float]
    grad_norm: float
    learning_rate: float
    seconds: float
    validation: float | None = None
    health: Health | None = None


class Settings(NamedTuple):
    """Of a run; see ``fit``."""

    steps: int | None
    clip: float | None
    validate_every: int
    keep_every: int
    progress: bool


class Run:
    """Training under way, put together from its parts. Iterating makes steps; leaving the loop stops, another loop goes on.

    Attributes:
        bound: the loss of the energy, with persistent chains where there are some.
        optimizer: yours, or Adam.
        schedule: of learning rates, if any.
        ema: the running average of the weights, if any.
        monitor: if any.
        step: how many steps were made.
    """

    def __init__(
        self,
        bound: BoundLoss,
        batches: Batches,
        held_out: Batches | None,
        optimizer: Optimizer,
        schedule: LRScheduler | None,
        ema: EMA | None,
        monitor: Monitor | None,
        settings: Settings,
    ) -> None:
        self.bound, self.batches, self.held_out = bound, batches, held_out
        self.optimizer, self.schedule, self.ema, self.monitor = optimizer, schedule, ema, monitor
        self.settings, self.step = settings, 0
        self.kept: dict[str, Any] | None = None  # the last good state
        self.candidate: dict[str, Any] | None = None  # good if the next loss is finite

    @property
    def energy(self) -> Any:
        """What is trained."""
        return self.bound.energy

    def __iter__(self) -> Iterator[Step]:
        """Make steps until all are made.

        Raises:
            NonFiniteLoss: where loss or gradient is NaN or infinite; everything is back in the last good state.
            ValueError: for data of another shape, outside the support, or with NaN.
        """
        self._train()
        if self.kept is None:
            self.kept = self.snapshot()
        per_epoch, steps = self.batches.per_epoch(), self.settings.steps
        if steps is None and per_epoch is not None and self.batches.epochs is not None:
            steps = per_epoch * self.batches.epochs
        shown = 0.0
        with tqdm(total=steps, initial=self.step, desc="Fit", unit="step", disable=not self.settings.progress) as bar:
            while self.settings.steps is None or self.step < self.settings.steps:
                record = self._make_step()
                if record is None:
                    return
                bar.update()
                if not bar.disable and time.monotonic() > shown:
                    shown = time.monotonic() + 0.2
                    bar.set_postfix(loss=f"{record.loss:.4g}", epoch=record.epoch)
                yield record

    def run(self) -> list[Step]:
        """Make all steps and return their records."""
        return list(self)

    def _train(self) -> None:
        """In training mode, but for parts of an energy in training mode that the user holds in evaluation mode."""
        if self.energy.training:
            self.bound.training = True
        else:
            self.bound.train()

    def _make_step(self) -> Step | None:
        began = time.perf_counter()
        x = self.batches.take()
        if x is None:
            return None
        rate = float(self.optimizer.param_groups[0]["lr"])
        try:
            loss = self.bound(x)
            norm = self._gradients(loss)
        except NonFiniteLoss as error:
            raise self._went_back(error) from None
        if self.candidate is not None:
            self.kept, self.candidate = self.candidate, None
        self.optimizer.step()
        if self.schedule is not None and not isinstance(self.schedule, ReduceLROnPlateau):
            self.schedule.step()
        if self.ema is not None:
            self.ema.update()
        terms = {name: float(value) for name, value in self.bound.values.items()}
        self.step += 1
        health = self._health(terms)
        validation = self._validation()
        due = self.step % self.settings.keep_every == 0 if self.monitor is None else health is not None and health.good
        if due:
            self.candidate = self.snapshot()
        value, seconds = float(loss.detach()), time.perf_counter() - began
        return Step(self.step - 1, self.batches.epoch, value, terms, norm, rate, seconds, validation, health)

    def _health(self, terms: dict[str, float]) -> Health | None:
        """What the monitor finds; chains that find no points to begin at again are as a loss that is not finite."""
        try:
            return None if self.monitor is None else self.monitor.look(self)
        except EnergyError as error:
            what = f"no chains after {self.step} steps: {error}"
            raise self._went_back(NonFiniteLoss(what, self.step, terms, self.snapshot()["bound"])) from error

    def _validation(self) -> float | None:
        """Where it is due; a schedule that waits for it is told. One that is not finite is a loss that is not."""
        if self.held_out is None or self.step % self.settings.validate_every:
            return None
        try:
            value = self.validate()
        except NonFiniteLoss as error:
            raise self._went_back(error, "held-out data: ") from None
        if isinstance(self.schedule, ReduceLROnPlateau):
            self.schedule.step(value)
        return value

    def _gradients(self, loss: Tensor) -> float:
        """Set the gradients, clipped if asked for; their norm before that."""
        require(loss.requires_grad, "a loss that depends on the parameters", "one that does not")
        warn_of_untrained(self.bound, loss, (p for group in self.optimizer.param_groups for p in group["params"]))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        require(bool(parameters), "an optimizer of parameters that the loss depends on", "one of others")
        total = get_total_norm([p.grad for p in parameters])
        if not math.isfinite(norm := float(total)):
            terms = {name: float(value) for name, value in self.bound.values.items()}
            what = f"the gradient is not finite at step {self.step}: its norm is {norm}"
            raise NonFiniteLoss(what, self.step, terms, copied(self.bound.state_dict()))
        if self.settings.clip is not None:
            clip_grads_with_norm_(parameters, self.settings.clip, total)
        return norm

    def _went_back(self, error: NonFiniteLoss, of: str = "") -> NonFiniteLoss:
        kept = self.roll_back()
        message = (
            f"{of}{error}; weights, optimiser and chains are back as they were after {kept} of {self.step} steps, the last "
            "good state: try a smaller learning rate, clip=..., or more draws of the chains"
        )
        return NonFiniteLoss(message, self.step, error.terms, error.state)

    def validate(self) -> float:
        """The loss of the held-out data, a mean over rows: in eval mode, under the averaged weights if there are some.

        Nothing moves: no weights, chains or generators.
        """
        require(self.held_out is not None, "held-out data: fit(..., validation=...)", "none")
        assert self.held_out is not None
        values, rows = 0.0, 0
        state = global_generators()
        try:
            with evaluating(self.bound), nullcontext() if self.ema is None else self.ema.applied():
                for x in self.held_out.once():
                    n = len(x if isinstance(x, Tensor) else next(iter(x.values())))
                    values, rows = values + n * float(self.bound(x).detach()), rows + n
        finally:
            set_global_generators(state)
        return values / rows

    # The last good state.

    def snapshot(self) -> dict[str, Any]:
        """Weights, chains and tuning, optimiser, schedule and averaged weights, copied."""
        return {
            "step": self.step,
            "bound": copied(self.bound.state_dict()),
            "optimizer": copied(self.optimizer.state_dict()),
            "schedule": None if self.schedule is None else copied(self.schedule.state_dict()),
            "ema": None if self.ema is None else copied(self.ema.state_dict()),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """The reverse of ``snapshot``, but for the number of steps."""
        self.bound.load_state_dict(state["bound"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.schedule is not None:
            self.schedule.load_state_dict(copied(state["schedule"]))
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])

    def roll_back(self) -> int:
        """Go back to the last good state; steps are counted, and data go on, from where they are.

        Returns:
            After how many steps that state was.
        """
        state = self.kept or self.snapshot()
        self.restore(state)
        self.optimizer.zero_grad(set_to_none=True)
        self.candidate = None
        return int(state["step"])

    def keep(self, step: int | None = None) -> None:
        """Take the state as it is for the last good one; ``step``: after how many steps it was, if not now."""
        self.kept, self.candidate = self.snapshot() | ({} if step is None else {"step": step}), None

    def scale_learning_rate(self, factor: float) -> None:
        """Multiply the learning rates, those to come of the schedule, too, by a factor > 0."""
        factor = positive("factor", factor)
        for group in self.optimizer.param_groups:
            for name in {"lr", "initial_lr", "max_lr", "min_lr"} & group.keys():
                group[name] = group[name] * factor
        schedules = [] if self.schedule is None else [self.schedule]
        while schedules:
            schedule = schedules.pop()
            schedules += getattr(schedule, "_schedulers", [])
            for name in {"base_lrs", "max_lrs"} & vars(schedule).keys():
                setattr(schedule, name, [rate * factor for rate in getattr(schedule, name)])

    # On disk.

    def save(self, path: str | Path) -> None:
        """Write everything that the rest of the run depends on, between two steps."""
        save_fit(self, path)

    def load(self, path: str | Path) -> Self:
        """Go on where a run was saved that was made by the same call: bit for bit as if it had not stopped.

        Torch's global generators are set, too, for energies with dropout and loaders that draw from them.

        Returns:
            this.

        Raises:
            ValueError: for another file, or another loss, energy, optimiser, schedule, or data.
        """
        load_fit(self, path)
        return self
