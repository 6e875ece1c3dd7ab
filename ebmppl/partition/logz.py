"""Log partition functions with their errors."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from ebmppl.energies.base import Energy, require_energy
from ebmppl.partition.exact import Exact


@dataclass(frozen=True)
class LogZ:
    """A log partition function, in nats.

    Attributes:
        value: scalar, float64; an exact one is differentiable in the energy's parameters.
        std_error: standard error of the value; 0 where it is exact.
        lower: lower end of the interval; the value where it is exact.
        upper: upper end of the interval.
        ess: effective number of the estimate's weights; infinite where it is exact.
        method: how it was computed.
        energy: of which.
    """

    value: Tensor
    std_error: float
    lower: float
    upper: float
    ess: float
    method: str
    energy: Energy = field(repr=False)

    def log_likelihood(self, data: Tensor) -> Tensor:
        """The log-probability of every point, -E(x) - log Z, ``(*batch)`` in nats, float64, differentiable.

        Args:
            data: ``(*batch, *event)``.
        """
        return -self.energy(data).double() - self.value


class Method(Protocol):
    """A way to log Z."""

    def estimate(self, energy: Energy) -> LogZ:
        """Log Z of an energy, with its error."""


def log_partition(energy: Energy, method: Exact | Method | None = None) -> LogZ:
    """The log partition function of an energy.

    Args:
        energy: the energy.
        method: ``Exact()`` when None.

    Example:
        >>> from ebmppl.models import Ising
        >>> log_z = log_partition(0.4 * Ising((4, 4)))
        >>> round(log_z.value.item(), 4), log_z.method
        (14.5611, 'transfer')
    """
    require_energy(energy)
    method = Exact() if method is None else method
    if not isinstance(method, Exact):
        return method.estimate(energy)
    value, name = method.solve(energy)
    number = float(value.detach())
    return LogZ(value, 0.0, number, number, math.inf, name, energy)
