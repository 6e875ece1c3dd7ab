"""The door to training."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from ebmppl.arguments import positive, require, seed_of, whole
from ebmppl.losses.base import Loss
from ebmppl.training.batches import as_batches
from ebmppl.training.ema import EMA
from ebmppl.training.monitor import Monitor
from ebmppl.training.run import OptimizerFactory, Run, ScheduleFactory, Settings


class Fit(Run):
    """Train an energy: iterate over the steps, or call ``run()``.

    A loop with ``torch.optim`` does the same: a bound loss is a module, see the second example.

    Iterating gives a ``Step`` for each step; leaving the loop stops, and another loop goes on. Attributes: see ``Run``.

    Args:
        loss: hyper-parameters of a loss; it is bound to the energy.
        energy: what is trained, in place.
        data: ``(rows, *event)`` as a tensor, an array, or a dict of these by site; a ``Dataset``; or a loader, which makes
            its own batches. Of items that are tuples the first member is taken, as no energy has a use for labels; a
            score model's labels come in a dict {"x": points, "label": labels}.
        guide: the auxiliary distribution where the loss has one.
        steps: how many; or
        epochs: how often to go through the data.
        batch_size: rows; the last batch of an epoch has what is left. Not for loaders.
        shuffle: whether rows come in another order in each epoch. Not for loaders.
        optimizer: makes one of parameters, as ``partial(torch.optim.SGD, lr=0.1)``; Adam at 1e-3 when None.
        schedule: makes one of torch's schedules of an optimiser; it is stepped at each step, ``ReduceLROnPlateau`` at
            each validation.
        clip: largest norm of the gradient; longer ones are scaled down.
        ema: decay in [0, 1) of a running average of the weights, see ``EMA``; validation then uses the average.
        validation: held-out data, as ``data``.
        validate_every: steps between two validations.
        monitor: watches the chains and acts, see ``Monitor``.
        keep_every: steps after which the state is kept as the last good one, to which a loss that is not finite goes
            back. With a monitor the state is kept where a check finds no problem.
        seed: of the order of rows; from the operating system when None.
        progress: show a bar.

    Raises:
        ValueError: for both or neither of steps and epochs, an energy without trainable parameters, settings out of
            range, a monitor's action that is not for the loss, or data of another shape or dtype, or with NaN (says
            where).

    Example:
        >>> import torch
        >>> import ebmppl as eb
        >>> rbm = eb.models.BernoulliRBM(4, 2)
        >>> x = torch.ones(32, 4)
        >>> pcd = eb.losses.PCD(k=1, kernel=eb.Gibbs, num_chains=16, seed=0)
        >>> for step in eb.fit(pcd, rbm, x, steps=10, seed=0, progress=False):
        ...     if step.grad_norm < 1e-3:
        ...         break

        The same by hand:

        >>> bound = pcd(rbm)
        >>> optimizer = torch.optim.Adam(bound.parameters(), lr=1e-3)
        >>> for batch in x.split(8):
        ...     optimizer.zero_grad()
        ...     bound(batch).backward()
        ...     _ = optimizer.step()
    """

    def __init__(
        self,
        loss: Loss,
        energy: Any,
        data: Any,
        *,
        guide: Any = None,
        steps: int | None = None,
        epochs: int | None = None,
        batch_size: int = 128,
        shuffle: bool = True,
        optimizer: OptimizerFactory | None = None,
        schedule: ScheduleFactory | None = None,
        clip: float | None = None,
        ema: float | None = None,
        validation: Any = None,
        validate_every: int = 100,
        monitor: Monitor | None = None,
        keep_every: int = 100,
        seed: int | None = None,
        progress: bool = True,
    ) -> None:
        require(isinstance(loss, Loss), "a loss, such as CD(k=1, kernel=Gibbs)", type(loss).__name__)
        require((steps is None) is not (epochs is None), "either steps or epochs", f"steps={steps}, epochs={epochs}")
        settings = Settings(
            steps=None if steps is None else whole("steps", steps, 0),
            clip=None if clip is None else positive("clip", clip),
            validate_every=whole("validate_every", validate_every, 1),
            keep_every=whole("keep_every", keep_every, 1),
            progress=progress,
        )
        epochs = None if epochs is None else whole("epochs", epochs, 0)
        batch_size = whole("batch_size", batch_size, 1)
        order = seed_of(seed) if shuffle else None
        bound = loss(energy, guide)
        trained = [p for p in bound.parameters() if p.requires_grad]
        require(
            bool(trained),
            "an energy (or loss) with parameters that require gradients",
            "none: there is nothing to train",
        )
        if monitor is not None:
            require(isinstance(monitor, Monitor), "a Monitor, such as Monitor([Warn()])", type(monitor).__name__)
            monitor.require_fit(bound)
        batches = as_batches(energy, data, batch_size, epochs, order)
        held_out = None if validation is None else as_batches(energy, validation, batch_size)
        factory = optimizer is None or callable(optimizer)
        require(factory, "optimizer as a factory, such as torch.optim.Adam", f"one of {type(optimizer).__name__}")
        made = torch.optim.Adam(trained, lr=1e-3) if optimizer is None else optimizer(trained)
        require(
            isinstance(made, Optimizer) and not isinstance(made, torch.optim.LBFGS),
            "an optimizer of torch.optim that steps without a closure",
            type(made).__name__,
        )
        planned = _scheduled(schedule, made)
        waits = isinstance(planned, ReduceLROnPlateau)
        require(not waits or held_out is not None, "held-out data for ReduceLROnPlateau: validation=...", "none")
        average = None if ema is None else EMA(bound, ema)
        super().__init__(bound, batches, held_out, made, planned, average, monitor, settings)


def _scheduled(schedule: ScheduleFactory | None, optimizer: Optimizer) -> LRScheduler | None:
    made = schedule(optimizer) if callable(schedule) else schedule
    wanted = "schedule as a factory of one of an optimiser, such as partial(StepLR, step_size=100)"
    given = schedule is None or (callable(schedule) and isinstance(made, LRScheduler))
    require(given, wanted, f"one of {type(made).__name__}")
    return made


fit = Fit
