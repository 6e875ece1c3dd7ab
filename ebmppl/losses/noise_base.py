"""What all noise of noise-contrastive losses has in common: draws at a seed, and density ratios that must be finite."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from ebmppl.energies.base import Energy
from ebmppl.energies.supports import elementwise
from ebmppl.sampling.noise import block_seeds

_SHOWN = 10  # rows that an error names


class Noise(ABC):
    """Abstract: independent draws of points, and their log-densities; both count as constants.

    Attributes:
        dtype: of the draws.
    """

    dtype: torch.dtype

    @abstractmethod
    def draw(self, n: int, seed: int) -> Tensor:
        """Points ``(n, *event)``, a function of the seed; the global generator is left as it was."""

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """Log-densities ``(rows,)`` in nats of points ``(rows, *event)``; -inf where there is no density."""


def step_seed(seed: int, step: int) -> int:
    """The seed of a step's random numbers."""
    return block_seeds(block_seeds(seed, 0, 1)[0], step, 1)[0]


def require_cover(log_prob: Tensor, what: str) -> Tensor:
    """Log-densities of the noise if all are finite.

    Raises:
        ValueError: that counts and names the rows where the density is 0, infinite or NaN: there the ratio of the
            densities is no number, and a logistic loss would pass over it in silence.
    """
    if bool(torch.isfinite(log_prob.sum())):
        return log_prob
    bad = (~torch.isfinite(log_prob)).nonzero().squeeze(1).tolist()
    if not bad:  # a sum may overflow
        return log_prob
    rows = ", ".join(map(str, bad[:_SHOWN])) + (", ..." if len(bad) > _SHOWN else "")
    first = log_prob[bad[0]].item()
    kind = "density 0" if first == -torch.inf else f"log-density {first}"
    raise ValueError(
        f"expected noise that covers {what}, got {kind} at {len(bad)} of {len(log_prob)} rows, where the ratio of the "
        f"densities is infinite: rows {rows}"
    )


def energies_inside(energy: Energy, x: Tensor) -> Tensor:
    """Energies ``(rows,)``, infinity outside the support, where the energy isn't asked.

    Raises:
        ValueError: where all rows are outside.
    """
    checks = [
        (part, energy.site_support(name))
        for name, part in energy.unpack(x).items()
        if not isinstance(elementwise(energy.site_support(name)), type(constraints.real))
    ]
    if not checks:
        return energy(x)
    inside = torch.stack([support.check(part).reshape(len(x), -1).all(1) for part, support in checks]).all(0)
    if bool(inside.all()):
        return energy(x)
    if not bool(inside.any()):
        raise ValueError(f"expected noise on the energy's support {energy.support}, got {len(x)} rows outside it")
    values = energy(x[inside])
    return values.new_full((len(x),), torch.inf).masked_scatter(inside, values)


def support_of(distribution: Any) -> Constraint | None:
    """The support of a distribution, which needs not tell it."""
    try:
        return distribution.support
    except NotImplementedError:
        return None


@contextmanager
def own_stream(seed: int) -> Iterator[None]:
    """Torch's global generators at a seed of their own; the user's are put back afterwards."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        torch.default_generator.manual_seed(seed)
        if devices:
            torch.cuda.manual_seed(seed)
        yield
