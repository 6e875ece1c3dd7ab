"""The Gaussian integral, Gaussians and their mixtures."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ebmppl.energies.analytic import LOG_2PI, AnalyticEnergy, cholesky, normal, require_square, require_vector
from ebmppl.energies.base import register


class Quadratic(AnalyticEnergy):
    r"""The Gaussian integral: :math:`E(x) = x^\top A x - b^\top x + c` for a positive definite A.

    Completing the square gives a Gaussian of mean :math:`A^{-1} b / 2` and covariance :math:`A^{-1} / 2` with

    .. math:: \log Z = \tfrac d2 \log\pi - \tfrac12 \log|A| + \tfrac14 b^\top A^{-1} b - c

    Only the symmetric part of A enters the energy. The sum of two quadratic energies is a quadratic one.

    Args:
        A: matrix ``(dimension, dimension)`` with positive definite symmetric part.
        b: vector ``(dimension,)``.
        constant: c, a scalar in nats.

    Raises:
        ValueError: for wrong shapes or an A that is not positive definite.

    Example:
        >>> Quadratic(torch.eye(2), torch.zeros(2)).log_z  # log pi
        tensor(1.1447)
    """

    A: Tensor
    b: Tensor
    constant: Tensor

    def __init__(self, A: Tensor, b: Tensor, constant: float | Tensor = 0.0) -> None:
        require_square("A", A)
        require_vector("b", b, len(A))
        super().__init__((len(A),))
        cholesky("A", (A.detach() + A.detach().T) / 2)
        register(self, "A", A)
        register(self, "b", b)
        register(self, "constant", torch.as_tensor(constant, dtype=A.dtype, device=A.device))

    def forward(self, x: Tensor) -> Tensor:
        """Energies ``(*batch)`` in nats."""
        return ((x @ self.A - self.b) * x).sum(-1) + self.constant

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Closed form: the gradient is x (A + A') - b."""
        with torch.no_grad():
            grad = x @ (self.A + self.A.T) - self.b
            return 0.5 * ((grad - self.b) * x).sum(-1) + self.constant, grad

    def as_quadratic(self) -> Quadratic:
        """Itself."""
        return self

    @property
    def log_z(self) -> Tensor:
        """Log partition function in nats, differentiable in A, b and c."""
        chol = self._factor()
        half = torch.linalg.solve_triangular(chol, self.b.unsqueeze(-1), upper=False)
        log_det = 2 * chol.diagonal().log().sum()
        return 0.5 * len(self.b) * math.log(math.pi) - 0.5 * log_det + 0.25 * half.square().sum() - self.constant

    @property
    def mean(self) -> Tensor:
        """A^-1 b / 2."""
        return torch.cholesky_solve(self.b.unsqueeze(-1), self._factor()).squeeze(-1) / 2

    @property
    def covariance(self) -> Tensor:
        """A^-1 / 2."""
        return torch.cholesky_inverse(self._factor()) / 2

    def sample(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Exact independent draws ``(num_samples, dimension)``."""
        noise = normal((num_samples, len(self.b)), self.b, generator)
        half = torch.linalg.solve_triangular(self._factor().mT, noise.mT, upper=True).mT
        return self.mean + half / math.sqrt(2)

    def _factor(self) -> Tensor:
        return torch.linalg.cholesky((self.A + self.A.mT) / 2)


class Gaussian(AnalyticEnergy):
    r""":math:`E(x) = \tfrac12 (x-\mu)^\top \Sigma^{-1} (x-\mu)`, with :math:`\log Z = \tfrac d2\log 2\pi + \tfrac12\log|\Sigma|`.

    Args:
        mean: vector ``(dimension,)``.
        covariance: positive definite ``(dimension, dimension)``; a vector ``(dimension,)`` is a diagonal one.

    Raises:
        ValueError: for wrong shapes, or a covariance that is not symmetric positive definite.
    """

    precision: Tensor

    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        require_vector("mean", mean)
        if covariance.dim() == 1:
            require_vector("covariance", covariance, len(mean))
            covariance = torch.diag(covariance)
        require_square("covariance", covariance, len(mean))
        super().__init__((len(mean),))
        factor = cholesky("covariance", covariance)
        self.register_buffer("_mean", mean)
        self.register_buffer("_factor", factor)
        self.register_buffer("precision", torch.cholesky_inverse(factor))

    _mean: Tensor
    _factor: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Energies ``(*batch)`` in nats."""
        delta = x - self._mean
        return 0.5 * ((delta @ self.precision) * delta).sum(-1)

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Closed form: the gradient is the precision times (x - mean)."""
        with torch.no_grad():
            delta = x - self._mean
            grad = delta @ self.precision
            return 0.5 * (grad * delta).sum(-1), grad

    def as_quadratic(self) -> Quadratic:
        """x'(P/2)x - (P mean)'x + mean'P mean / 2."""
        shift = self.precision @ self._mean
        return Quadratic(self.precision / 2, shift, 0.5 * (shift @ self._mean))

    @property
    def log_z(self) -> Tensor:
        """Log partition function in nats."""
        return 0.5 * len(self._mean) * LOG_2PI + self._factor.diagonal().log().sum()

    @property
    def mean(self) -> Tensor:
        """The mean given."""
        return self._mean

    @property
    def covariance(self) -> Tensor:
        """The covariance given."""
        return self._factor @ self._factor.mT

    def sample(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Exact independent draws ``(num_samples, dimension)``."""
        return self._mean + normal((num_samples, len(self._mean)), self._mean, generator) @ self._factor.mT


class GaussianMixture(AnalyticEnergy):
    r"""A normalised mixture of Gaussians, :math:`E(x) = -\log\sum_k w_k N(x; \mu_k, \Sigma_k)`; log Z = 0.

    Args:
        means: ``(components, dimension)``.
        covariances: ``(components, dimension, dimension)``, or ``(dimension, dimension)`` shared by all.
        weights: positive, ``(components,)``, normalised here; equal when None.

    Raises:
        ValueError: for wrong shapes, weights that are not positive, or a covariance that is not positive definite.
    """

    means: Tensor
    precisions: Tensor
    weights: Tensor
    _factors: Tensor
    _log_norm: Tensor

    def __init__(self, means: Tensor, covariances: Tensor, weights: Tensor | Sequence[float] | None = None) -> None:
        if means.dim() != 2:
            raise ValueError(f"expected means of shape (components, dimension), got {tuple(means.shape)}")
        k, d = means.shape
        covariances = covariances.expand(k, d, d) if covariances.shape == (d, d) else covariances
        if covariances.shape != (k, d, d):
            raise ValueError(f"expected covariances of shape ({k}, {d}, {d}), got {tuple(covariances.shape)}")
        w = torch.ones(k).to(means) if weights is None else torch.as_tensor(weights).to(means)
        if w.shape != (k,) or not bool(((w > 0) & torch.isfinite(w)).all()):
            raise ValueError(f"expected {k} positive weights, got {w.tolist()}")
        super().__init__((d,))
        factors = cholesky("covariances", covariances)
        self.register_buffer("means", means)
        self.register_buffer("weights", w / w.sum())
        self.register_buffer("precisions", torch.cholesky_inverse(factors))
        self.register_buffer("_factors", factors)
        log_det = factors.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        self.register_buffer("_log_norm", self.weights.log() - 0.5 * d * LOG_2PI - log_det)

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        delta = x.unsqueeze(-2) - self.means  # (*batch, components, dimension)
        pull = (self.precisions @ delta.unsqueeze(-1)).squeeze(-1)
        return self._log_norm - 0.5 * (pull * delta).sum(-1), pull

    def forward(self, x: Tensor) -> Tensor:
        """Energies ``(*batch)`` in nats."""
        return -torch.logsumexp(self._parts(x)[0], -1)

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Closed form: the components' pulls weighted by their responsibilities."""
        with torch.no_grad():
            logits, pull = self._parts(x)
            total = torch.logsumexp(logits, -1, keepdim=True)
            return -total.squeeze(-1), ((logits - total).exp().unsqueeze(-1) * pull).sum(-2)

    @property
    def log_z(self) -> Tensor:
        """Zero: the density is normalised."""
        return self.means.new_zeros(())

    @property
    def mean(self) -> Tensor:
        """Weighted mean of the means."""
        return self.weights @ self.means

    @property
    def covariance(self) -> Tensor:
        """Within plus between components."""
        within = self._factors @ self._factors.mT
        delta = self.means - self.mean
        between = delta.unsqueeze(-1) * delta.unsqueeze(-2)
        return (self.weights[:, None, None] * (within + between)).sum(0)

    def sample(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Exact independent draws ``(num_samples, dimension)``."""
        k = torch.multinomial(self.weights, num_samples, replacement=True, generator=generator)
        noise = normal((num_samples, self.means.shape[1]), self.means, generator)
        return self.means[k] + (self._factors[k] @ noise.unsqueeze(-1)).squeeze(-1)
