"""Multivariate Student-t."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ebmppl.energies.analytic import AnalyticEnergy, cholesky, normal, require_square, require_vector


class StudentT(AnalyticEnergy):
    r"""Multivariate Student-t: :math:`E(x) = \frac{\nu+d}{2}\log\!\big(1+\tfrac1\nu (x-\mu)^\top\Sigma^{-1}(x-\mu)\big)`.

    Args:
        df: degrees of freedom nu > 0.
        loc: location ``(dimension,)``.
        scale: positive definite scale matrix ``(dimension, dimension)``.

    Raises:
        ValueError: for df <= 0, wrong shapes, or a scale matrix that is not positive definite.
    """

    loc: Tensor
    precision: Tensor
    _factor: Tensor

    def __init__(self, df: float, loc: Tensor, scale: Tensor) -> None:
        if not 0 < df < math.inf:
            raise ValueError(f"expected degrees of freedom > 0, got {df}")
        require_vector("loc", loc)
        require_square("scale", scale, len(loc))
        super().__init__((len(loc),))
        self.df = float(df)
        factor = cholesky("scale", scale)
        self.register_buffer("loc", loc)
        self.register_buffer("_factor", factor)
        self.register_buffer("precision", torch.cholesky_inverse(factor))

    def forward(self, x: Tensor) -> Tensor:
        """Energies ``(*batch)`` in nats."""
        delta = x - self.loc
        distance = ((delta @ self.precision) * delta).sum(-1)
        return 0.5 * (self.df + len(self.loc)) * torch.log1p(distance / self.df)

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Closed form: (nu + d) / (nu + distance) times the precision times (x - loc)."""
        with torch.no_grad():
            delta = x - self.loc
            pull = delta @ self.precision
            distance = (pull * delta).sum(-1)
            total = self.df + len(self.loc)
            energy = 0.5 * total * torch.log1p(distance / self.df)
            return energy, (total / (self.df + distance)).unsqueeze(-1) * pull

    @property
    def log_z(self) -> Tensor:
        """Log partition function in nats."""
        d, nu = len(self.loc), self.df
        constant = math.lgamma(nu / 2) - math.lgamma((nu + d) / 2) + 0.5 * d * math.log(nu * math.pi)
        return constant + self._factor.diagonal().log().sum()

    @property
    def mean(self) -> Tensor:
        """Loc for df > 1, else NaN."""
        return self.loc if self.df > 1 else torch.full_like(self.loc, math.nan)

    @property
    def covariance(self) -> Tensor:
        """Df / (df - 2) times the scale matrix; inf for df <= 2."""
        factor = self.df / (self.df - 2) if self.df > 2 else math.inf
        return factor * (self._factor @ self._factor.mT)

    def sample(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Exact independent draws ``(num_samples, dimension)``."""
        noise = normal((num_samples, len(self.loc)), self.loc, generator) @ self._factor.mT
        shape = torch.full((num_samples, 1), self.df / 2).to(self.loc)
        chi2 = 2 * torch._standard_gamma(shape, generator=generator)
        return self.loc + noise / (chi2 / self.df).sqrt()
