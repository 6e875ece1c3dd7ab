"""The noise of noise-contrastive losses: a distribution, a Pyro program or guide, or an energy with log Z and exact draws."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from pyro.infer.autoguide import AutoGuide
from torch import Tensor
from torch.distributions import Distribution, constraints

from ebmppl.energies.base import Energy
from ebmppl.energies.discrete import discrete
from ebmppl.energies.supports import elementwise, is_discrete
from ebmppl.losses.noise_auto import AutoNoise
from ebmppl.losses.noise_base import (
    Noise,
    energies_inside,
    own_stream,
    require_cover,
    require_covers,
    step_seed,
    support_of,
)
from ebmppl.losses.noise_program import ProgramNoise

__all__ = [
    "Noise",
    "as_noise",
    "energies_inside",
    "own_stream",
    "require_cover",
    "require_covers",
    "step_seed",
    "support_of",
]


@runtime_checkable
class Drawable(Protocol):
    """An energy that is normalised and gives exact draws, as ``Gaussian``."""

    @property
    def log_z(self) -> Tensor | None:
        """Log partition function in nats."""

    def sample(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Exact independent draws ``(num_samples, *event)``."""


def as_noise(guide: object, energy: Energy) -> Noise:
    """The noise of an energy's loss.

    Args:
        guide: a torch or Pyro distribution over one point; an energy with ``log_z`` and ``sample``; or a Pyro program or
            automatic guide (``AutoNormal``, ``AutoMultivariateNormal``, ...) whose sample sites are the energy's sites.
        energy: that is trained.

    Raises:
        ValueError: for anything else, other shapes or sites, or discrete noise of a continuous energy (or the reverse).
    """
    if isinstance(guide, Distribution):
        return DistributionNoise(guide, energy)
    if isinstance(guide, Energy):
        return EnergyNoise(guide, energy)
    if isinstance(guide, AutoGuide):
        return AutoNoise(guide, energy)
    if callable(guide):
        return ProgramNoise(guide, energy)
    raise ValueError(
        "expected the noise as guide: a distribution, a Pyro program, or an energy with log_z and sample; "
        f"got {type(guide).__name__}"
    )


class DistributionNoise(Noise):
    """A torch or Pyro distribution; its batch axes count as independent coordinates."""

    def __init__(self, distribution: Distribution, energy: Energy) -> None:
        batch, event = distribution.batch_shape, distribution.event_shape
        if batch + event != energy.event_shape:
            raise ValueError(
                f"expected noise over points of shape {tuple(energy.event_shape)}, got a distribution of batch shape "
                f"{tuple(batch)} and event shape {tuple(event)}"
            )
        self.distribution = distribution
        support = support_of(distribution)
        kinds = {is_discrete(energy.site_support(name)) for name in energy.sites}
        if support is not None and kinds != {is_discrete(support)}:
            raise ValueError(f"expected noise over {energy.support}, got a distribution over {support}")
        real = support is None or isinstance(elementwise(support), type(constraints.real))
        self._support = None if real else support  # finite points needn't be compared with all numbers
        drawn = self.draw(1, 0)
        self.dtype = drawn.dtype
        if drawn.shape[1:] != energy.event_shape:
            raise ValueError(f"expected draws of shape (1, {energy.event_shape}), got {tuple(drawn.shape)}")

    @torch.no_grad()
    def draw(self, n: int, seed: int) -> Tensor:
        """See ``Noise``."""
        with own_stream(seed):
            return self.distribution.sample(torch.Size([n]))

    @torch.no_grad()
    def log_prob(self, x: Tensor) -> Tensor:
        """See ``Noise``."""
        x = x.to(self.dtype)
        if self._support is not None:
            inside = self._support.check(x).reshape(len(x), -1).all(1)
            if not bool(inside.all()):
                if not bool(inside.any()):
                    return torch.full((len(x),), -torch.inf, device=x.device)
                some = self._of_rows(x[inside])
                return some.new_full((len(x),), -torch.inf).masked_scatter(inside, some)
        return self._of_rows(x)

    def _of_rows(self, x: Tensor) -> Tensor:
        log_prob: Tensor = self.distribution.log_prob(x)
        return log_prob if log_prob.dim() == 1 else log_prob.flatten(1).sum(1)


class EnergyNoise(Noise):
    """An energy whose log Z is known, with exact draws."""

    def __init__(self, noise: Energy, energy: Energy) -> None:
        if not isinstance(noise, Drawable) or noise.log_z is None:
            missing = "sample" if not isinstance(noise, Drawable) else "known log_z"
            raise ValueError(
                f"expected noise with exact draws and known log_z, got {type(noise).__name__} without {missing}"
            )
        if noise.event_shape != energy.event_shape or set(noise.sites) != set(energy.sites):
            raise ValueError(
                f"expected noise over points of shape {tuple(energy.event_shape)}, sites {sorted(energy.sites)}, got an "
                f"energy over {tuple(noise.event_shape)}, {sorted(noise.sites)}"
            )
        if discrete(noise) != discrete(energy):
            raise ValueError(f"expected noise over {energy.support}, got an energy over {noise.support}")
        self.noise: Any = noise
        self.dtype = self.draw(1, 0).dtype

    @torch.no_grad()
    def draw(self, n: int, seed: int) -> Tensor:
        """See ``Noise``."""
        return self.noise.sample(n, torch.Generator(self.noise.log_z.device).manual_seed(seed))

    @torch.no_grad()
    def log_prob(self, x: Tensor) -> Tensor:
        """See ``Noise``."""
        try:
            energies = energies_inside(self.noise, x.to(self.dtype))
        except ValueError:  # no row is inside
            return torch.full((len(x),), -torch.inf, device=x.device)
        return -energies - self.noise.log_z
