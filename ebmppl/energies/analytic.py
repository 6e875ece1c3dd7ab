"""What energies with known moments, log Z and exact draws have in common."""

from __future__ import annotations

import math
import sys

import torch
from torch import Tensor

from ebmppl.energies.base import Energy

LOG_2PI = math.log(2 * math.pi)


class AnalyticEnergy(Energy):
    """Abstract: an energy over vectors ``(dimension,)`` with known moments, log Z and exact draws."""

    traced_from = sys.maxsize  # a trace gains nothing on gradients written by hand

    @property
    def mean(self) -> Tensor:
        """Mean ``(dimension,)``; NaN where it does not exist."""
        raise NotImplementedError(f"{type(self).__name__} must implement mean")

    @property
    def covariance(self) -> Tensor:
        """Covariance ``(dimension, dimension)``; inf or NaN where it does not exist."""
        raise NotImplementedError(f"{type(self).__name__} must implement covariance")

    def sample(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Exact independent draws ``(num_samples, dimension)``."""
        raise NotImplementedError(f"{type(self).__name__} must implement sample")


def normal(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal numbers at the dtype and device of ``like``."""
    return torch.randn(shape, dtype=like.dtype, device=like.device, generator=generator)


def require_vector(name: str, value: Tensor, size: int | None = None) -> None:
    """Raise ``ValueError`` unless ``value`` is a vector (of ``size``)."""
    if value.dim() != 1 or (size is not None and len(value) != size):
        wanted = "(dimension,)" if size is None else f"({size},)"
        raise ValueError(f"expected {name} of shape {wanted}, got {tuple(value.shape)}")


def require_square(name: str, value: Tensor, size: int | None = None) -> None:
    """Raise ``ValueError`` unless ``value`` is a square matrix (of ``size``)."""
    n = size if size is not None else (value.shape[0] if value.dim() else 0)
    if value.shape != (n, n):
        raise ValueError(f"expected {name} of shape ({n}, {n}), got {tuple(value.shape)}")


def cholesky(name: str, matrix: Tensor) -> Tensor:
    """Lower Cholesky factor; ``ValueError`` for a matrix that is not symmetric positive definite."""
    if not torch.allclose(matrix, matrix.mT, equal_nan=True):
        raise ValueError(f"expected a symmetric {name}, got one that differs from its transpose")
    factor, info = torch.linalg.cholesky_ex(matrix)
    if bool((info != 0).any()) or not bool(torch.isfinite(factor).all()):
        smallest = torch.linalg.eigvalsh(matrix).min().item() if bool(torch.isfinite(matrix).all()) else math.nan
        raise ValueError(f"expected {name} to be positive definite, got smallest eigenvalue {smallest:.3g}")
    return factor
