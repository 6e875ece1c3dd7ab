"""Energies of a score model: one of which the gradient alone is known, and that of a conservative score at one time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from ebmppl.energies.base import Energy, Shape, flatten_batch
from ebmppl.errors import EnergyError


class ScoreEnergy(Energy):
    r"""The energy whose gradient is minus a score: :math:`\nabla E(x) = -s(x)`, or :math:`-s(x, t)` at one time t.

    Its values are not known: ``value_and_grad`` gives NaN for them, ``forward`` raises, and ``Langevin`` steps,
    :math:`x' = x + \tfrac\eta2 s(x) + \sqrt\eta\,\xi`, need none. Kernels that accept by Metropolis refuse it: they need the
    energy itself, which a model ``score.EnergyGradient`` has (``EnergyAt``). Sums with other energies are
    such energies, too: the score of a prior and the energy of a likelihood are the posterior's.

    Args:
        score: ``x -> score``, ``(rows, *event)`` from such points, or ``(x, t) -> score`` with times ``(rows,)``. Rows must
            not depend on one another. A module stays trainable.
        event_shape: shape of one point.
        t: the time (or noise level) at which the score is taken, finite; None for a score of points alone.

    Raises:
        ValueError: for a score that isn't callable or an energy, or is given something by row (an energy is one function of a
            point), or t not finite; at the first call, for a mask or guidance that does not fit, as kernels do.

    Example:
        >>> import ebmppl as eb
        >>> learned = ScoreEnergy(lambda x, t: -x / (1 + t.unsqueeze(1) ** 2), (2,), t=0.1)
        >>> mcmc = eb.MCMC(eb.Langevin(learned, 0.1), 10, num_chains=4, seed=0, disable_progbar=True)
        >>> mcmc.run()
        >>> mcmc.get_samples()["x"].shape
        torch.Size([40, 2])
    """

    own_values = False

    def __init__(self, score: Callable[..., Tensor], event_shape: Shape, t: float | None = None) -> None:
        if not callable(score) or isinstance(score, Energy):
            raise ValueError(f"expected a callable score, got {type(score).__name__}")
        from ebmppl.score.conditions import num_conditions

        rows = num_conditions(score)
        if rows is not None:
            raise ValueError(f"expected a score that is given the same for all points, got one given {rows} rows")
        super().__init__(event_shape)
        self._looked = False
        self.fn, self.t = score, None if t is None else _time(t)

    def forward(self, x: Tensor) -> Tensor:
        """Raise: the value is not known."""
        raise EnergyError(
            "expected an energy, got a score, of which the gradient alone is known: sample it with Langevin, or take a "
            "model whose score is the gradient of an energy (score.EnergyGradient, energies.EnergyAt)"
        )

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """NaN ``(*batch)`` for the values, and minus the score ``(*batch, *event)``."""
        rows, batch = flatten_batch(x.detach(), self.event_shape)
        with torch.no_grad():
            time = () if self.t is None else (rows.new_full((len(rows),), self.t),)
            if time and not self._looked and not is_in_torch_dispatch_mode():
                self._look(rows, *time)
            score = self.fn(rows, *time)
        if not isinstance(score, Tensor) or score.shape != rows.shape:
            got = tuple(score.shape) if isinstance(score, Tensor) else type(score).__name__
            raise EnergyError(f"expected a score of shape {tuple(rows.shape)} (that of the points), got {got}")
        return rows.new_full((len(rows),), math.nan).reshape(batch), -score.reshape(x.shape)

    def _look(self, x: Tensor, t: Tensor) -> None:
        from ebmppl.score.conditions import check_conditions

        check_conditions(self.fn, x, t)
        self._looked = True

    def extra_repr(self) -> str:
        """Shape and time, for ``repr``."""
        return super().extra_repr() + ("" if self.t is None else f", t={self.t:g}")


class EnergyAt(Energy):
    r"""A time-dependent energy at one time: :math:`E(x) = E(x, t)` in nats, the unnormalised density of x(t).

    Of a score model that is the gradient of an energy (``score.EnergyGradient``): MALA, HMC and NUTS sample it exactly, as
    Metropolis steps correct for their step size.

    References:
        Salimans and Ho 2021, "Should EBMs model the energy or the score?"; Du et al. 2023, "Reduce, reuse, recycle".

    Args:
        model: has a method ``energy(x, t)``, as ``score.EnergyGradient``, or is such a callable: energies ``(rows,)`` of points
            ``(rows, *event)`` at times ``(rows,)``. A module stays trainable.
        event_shape: shape of one point.
        t: the time (or noise level), finite.

    Raises:
        ValueError: for a model that is neither, or t not finite.

    Example:
        >>> from ebmppl.score import VP, EnergyGradient
        >>> model = EnergyGradient(lambda x, t: 0.5 * x.square().sum(1), VP())
        >>> EnergyAt(model, (2,), t=0.1)(torch.ones(3, 2))
        tensor([1., 1., 1.])
    """

    def __init__(self, model: object, event_shape: Shape, t: float) -> None:
        if not callable(getattr(model, "energy", model)):
            raise ValueError(f"expected a model with energies (x, t) -> (rows,), got {type(model).__name__}")
        super().__init__(event_shape)
        self.model, self.t = model, _time(t)

    def forward(self, x: Tensor) -> Tensor:
        """Energies ``(*batch)`` in nats."""
        rows, batch = flatten_batch(x, self.event_shape)
        fn: Any = getattr(self.model, "energy", self.model)
        energy = fn(rows, rows.new_full((len(rows),), self.t))
        if not isinstance(energy, Tensor) or energy.shape != rows.shape[:1]:
            got = tuple(energy.shape) if isinstance(energy, Tensor) else type(energy).__name__
            raise EnergyError(f"expected energies of shape ({len(rows)},), got {got}")
        return energy.reshape(batch)

    def extra_repr(self) -> str:
        """Shape and time, for ``repr``."""
        return f"{super().extra_repr()}, t={self.t:g}"


def _time(t: object) -> float:
    if isinstance(t, bool) or not isinstance(t, (int, float)) or not math.isfinite(t):
        raise ValueError(f"expected a finite time t, got {t!r}")
    return float(t)
