"""Landscapes that samplers are tried on, each with its exact log Z, moments and draws."""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from ebmppl.energies.analytic import LOG_2PI, AnalyticEnergy, normal


class DoubleWell(AnalyticEnergy):
    r""":math:`E(x) = h \sum_i (x_i^2 - w^2)^2`: two wells at +-w per coordinate, behind barriers of h w^4 nats.

    Coordinates are independent; log Z, variance and draws come from quadrature on a fine grid (double precision).

    Args:
        dimension: number of coordinates.
        height: h > 0.
        well: w > 0.

    Raises:
        ValueError: for values out of range.
    """

    def __init__(self, dimension: int, height: float = 2.0, well: float = 1.0) -> None:
        _require_positive(dimension=dimension, height=height, well=well)
        super().__init__((dimension,))
        self.dimension, self.height, self.well = dimension, float(height), float(well)

    def forward(self, x: Tensor) -> Tensor:
        """Energies ``(*batch)`` in nats."""
        return self.height * (x.square() - self.well**2).square().sum(-1)

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Closed form: the gradient is 4 h x (x^2 - w^2)."""
        x = x.detach()
        gap = x.square().sub_(self.well**2)
        energy = torch.linalg.vector_norm(gap, dim=-1).square_().mul_(self.height)
        return energy, gap.mul_(x).mul_(4 * self.height)

    @cached_property
    def _grid(self) -> tuple[Tensor, Tensor, float]:
        """Points, cumulative probabilities at them, and log Z of one coordinate."""
        end = math.sqrt(self.well**2 + math.sqrt(60 / self.height))  # energy 60 nats above the wells
        grid = torch.linspace(-end, end, 200_001, dtype=torch.float64)
        density = torch.exp(-self.height * (grid.square() - self.well**2).square())
        mass = torch.cumulative_trapezoid(density, grid)
        return grid, torch.cat([mass.new_zeros(1), mass]) / mass[-1], float(mass[-1].log())

    @property
    def log_z(self) -> Tensor:
        """Log partition function in nats."""
        return torch.tensor(self.dimension * self._grid[2], dtype=torch.float64)

    @property
    def mean(self) -> Tensor:
        """Zero, by symmetry."""
        return torch.zeros(self.dimension, dtype=torch.float64)

    @property
    def covariance(self) -> Tensor:
        """Diagonal, with the variance of one coordinate by quadrature."""
        grid, cdf, _ = self._grid
        middle = (grid[1:] + grid[:-1]) / 2
        return torch.eye(self.dimension, dtype=torch.float64) * (middle.square() * cdf.diff()).sum()

    def sample(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Independent draws ``(num_samples, dimension)`` in float64 by inverting the cumulative distribution."""
        grid, cdf, _ = self._grid
        u = torch.rand(num_samples, self.dimension, dtype=torch.float64, generator=generator)
        upper = torch.searchsorted(cdf, u).clamp_(1, len(grid) - 1)
        low, high = cdf[upper - 1], cdf[upper]
        part = (u - low) / (high - low).clamp_min(torch.finfo(torch.float64).tiny)
        return grid[upper - 1] + part * (grid[upper] - grid[upper - 1])


class Funnel(AnalyticEnergy):
    r"""Neal's funnel (Neal 2003, "Slice sampling"): :math:`v \sim N(0, s^2)`, :math:`x_i | v \sim N(0, e^v)`.

    .. math:: E(v, x) = \frac{v^2}{2 s^2} + \frac{e^{-v}}{2} \sum_i x_i^2 + \frac{d-1}{2} v

    The first coordinate is v. Its neck is too narrow for one step size, so a chain's divergences show there.

    Args:
        dimension: number of coordinates, v included, at least 2.
        scale: standard deviation s of v.

    Raises:
        ValueError: for a dimension under 2 or a scale <= 0.
    """

    def __init__(self, dimension: int = 10, scale: float = 3.0) -> None:
        _require_positive(dimension=dimension - 1, scale=scale)
        super().__init__((dimension,))
        self.dimension, self.scale = dimension, float(scale)

    def forward(self, x: Tensor) -> Tensor:
        """Energies ``(*batch)`` in nats."""
        v, rest = x[..., 0], x[..., 1:]
        prior = 0.5 * (v / self.scale).square() + 0.5 * (self.dimension - 1) * v
        return prior + 0.5 * torch.exp(-v) * rest.square().sum(-1)

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Closed form."""
        x = x.detach()
        v, rest = x[..., 0], x[..., 1:]
        shrink = torch.exp(-v)
        half = 0.5 * shrink * rest.square().sum(-1)
        linear = 0.5 * (self.dimension - 1)
        energy = 0.5 * (v / self.scale).square() + linear * v + half
        d_v = v / self.scale**2 + linear - half
        return energy, torch.cat([d_v.unsqueeze(-1), shrink.unsqueeze(-1) * rest], -1)

    @property
    def log_z(self) -> Tensor:
        """Log partition function in nats."""
        return torch.tensor(0.5 * self.dimension * LOG_2PI + math.log(self.scale), dtype=torch.float64)

    @property
    def mean(self) -> Tensor:
        """Zero."""
        return torch.zeros(self.dimension, dtype=torch.float64)

    @property
    def covariance(self) -> Tensor:
        """Diagonal: s^2 for v and E[e^v] = exp(s^2 / 2) for the others."""
        variance = torch.full((self.dimension,), math.exp(self.scale**2 / 2), dtype=torch.float64)
        variance[0] = self.scale**2
        return torch.diag(variance)

    def sample(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Exact independent draws ``(num_samples, dimension)`` in float64."""
        noise = normal((num_samples, self.dimension), self.mean, generator)
        v = self.scale * noise[:, :1]
        return torch.cat([v, torch.exp(v / 2) * noise[:, 1:]], -1)


class Rosenbrock(AnalyticEnergy):
    r"""The even Rosenbrock banana (Pagani, Wiegand and Nadarajah 2021): pairs (u, w).

    .. math:: E = \sum_{\text{pairs}} a\,(u - \mu)^2 + b\,(w - u^2)^2

    so u is Gaussian, w given u is Gaussian around u^2, and log Z = d/2 log(pi / sqrt(a b)).

    Args:
        dimension: an even number of coordinates, u and w alternating.
        a: curvature along the valley, > 0.
        b: curvature across it, > 0.
        location: mu.

    Raises:
        ValueError: for an odd dimension or curvatures that are not positive.
    """

    def __init__(self, dimension: int = 2, a: float = 0.05, b: float = 5.0, location: float = 1.0) -> None:
        _require_positive(dimension=dimension, a=a, b=b)
        if dimension % 2:
            raise ValueError(f"expected an even dimension, got {dimension}")
        super().__init__((dimension,))
        self.dimension, self.a, self.b, self.location = dimension, float(a), float(b), float(location)

    def forward(self, x: Tensor) -> Tensor:
        """Energies ``(*batch)`` in nats."""
        u, w = x[..., ::2], x[..., 1::2]
        return (self.a * (u - self.location).square() + self.b * (w - u.square()).square()).sum(-1)

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Closed form."""
        x = x.detach()
        u, w = x[..., ::2], x[..., 1::2]
        along, across = u - self.location, w - u.square()
        energy = (self.a * along.square() + self.b * across.square()).sum(-1)
        d_u = 2 * self.a * along - 4 * self.b * across * u
        return energy, torch.stack([d_u, 2 * self.b * across], -1).flatten(-2)

    @property
    def log_z(self) -> Tensor:
        """Log partition function in nats."""
        pair = math.log(math.pi) - 0.5 * math.log(self.a * self.b)
        return torch.tensor(0.5 * self.dimension * pair, dtype=torch.float64)

    @property
    def mean(self) -> Tensor:
        """(mu, mu^2 + var u) for each pair."""
        return torch.tensor([self.location, self.location**2 + 0.5 / self.a], dtype=torch.float64).repeat(
            self.dimension // 2
        )

    @property
    def covariance(self) -> Tensor:
        """Blocks of a pair: var u = s, cov = 2 mu s, var w = 4 mu^2 s + 2 s^2 + 1 / (2 b), with s = 1 / (2 a)."""
        s, mu = 0.5 / self.a, self.location
        block = [[s, 2 * mu * s], [2 * mu * s, 4 * mu**2 * s + 2 * s**2 + 0.5 / self.b]]
        return torch.block_diag(*[torch.tensor(block, dtype=torch.float64)] * (self.dimension // 2))

    def sample(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Exact independent draws ``(num_samples, dimension)`` in float64."""
        noise = normal((num_samples, self.dimension), self.mean, generator)
        u = self.location + noise[:, ::2] / math.sqrt(2 * self.a)
        w = u.square() + noise[:, 1::2] / math.sqrt(2 * self.b)
        return torch.stack([u, w], -1).flatten(-2)


def _require_positive(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"expected {name} > 0, got {value}")
