"""Targets of the NUTS benchmarks, written plainly for torch and for JAX."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

Y = (28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0)
SIGMA = (15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0)


class Problem(NamedTuple):
    """One target for both sides, over R^dimension."""

    dimension: int
    energy: Callable[[Tensor], Tensor]  # of a batch of points (chains, dimension), nats
    log_density: Callable[[Any], Any]  # of one JAX array (dimension,)


def logistic(rows: int = 1000, dimension: int = 25) -> Problem:
    """Logistic regression with a standard normal prior, on data made here."""
    import jax
    import jax.numpy as jnp

    g = torch.Generator().manual_seed(0)
    x, weights = torch.randn(rows, dimension, generator=g), torch.randn(dimension, generator=g)
    y = (torch.rand(rows, generator=g) < torch.sigmoid(x @ weights)).float()
    xs, ys = jnp.array(x.numpy()), jnp.array(y.numpy())
    tables = {torch.float32: (x, y), torch.float64: (x.double(), y.double())}

    def energy(beta: Tensor) -> Tensor:
        x, y = tables[beta.dtype]
        logits = beta @ x.T
        return (torch.nn.functional.softplus(logits) - y * logits).sum(-1) + 0.5 * beta.square().sum(-1)

    def log_density(beta: Any) -> Any:
        logits = xs @ beta
        return (ys * logits - jax.nn.softplus(logits)).sum() - 0.5 * (beta**2).sum()

    return Problem(dimension, energy, log_density)


def gaussian(dimension: int = 100, condition: float = 1e4) -> Problem:
    """Independent normals, precisions spread evenly in logarithm around one."""
    import jax.numpy as jnp

    precision = torch.logspace(-0.5, 0.5, dimension, dtype=torch.float64) ** math.log10(condition)
    precisions = jnp.array(precision.numpy())
    tables = {torch.float32: precision.float(), torch.float64: precision}

    def energy(x: Tensor) -> Tensor:
        return 0.5 * (tables[x.dtype] * x.square()).sum(-1)

    return Problem(dimension, energy, lambda x: -0.5 * (precisions * x**2).sum())


def eight_schools() -> Problem:
    """Non-centred eight schools (Rubin 1981), points (z[1..8], mu, log tau)."""
    import jax.numpy as jnp

    y, sigma = jnp.array(Y), jnp.array(SIGMA)
    tables = {
        dtype: (torch.tensor(Y, dtype=dtype), torch.tensor(SIGMA, dtype=dtype))
        for dtype in (torch.float32, torch.float64)
    }

    def energy(x: Tensor) -> Tensor:
        y, sigma = tables[x.dtype]
        z, mu, log_tau = x[:, :8], x[:, 8:9], x[:, 9:]
        tau = log_tau.exp()
        likelihood = 0.5 * ((y - mu - tau * z) / sigma).square().sum(-1)
        prior = 0.5 * z.square().sum(-1) + (
            0.5 * (mu / 5).square() + torch.log1p((tau / 5).square()) - log_tau
        ).squeeze(-1)
        return likelihood + prior

    def log_density(x: Any) -> Any:
        z, mu, log_tau = x[:8], x[8], x[9]
        tau = jnp.exp(log_tau)
        likelihood = 0.5 * (((y - mu - tau * z) / sigma) ** 2).sum()
        return -(likelihood + 0.5 * (z**2).sum() + 0.5 * (mu / 5) ** 2 + jnp.log1p((tau / 5) ** 2) - log_tau)

    return Problem(10, energy, log_density)


def funnel(dimension: int = 10, scale: float = 3.0) -> Problem:
    """Neal's funnel, its first coordinate the log variance of the others."""
    import jax.numpy as jnp

    def energy(x: Tensor) -> Tensor:
        v, rest = x[:, 0], x[:, 1:]
        return 0.5 * (v / scale).square() + 0.5 * (dimension - 1) * v + 0.5 * torch.exp(-v) * rest.square().sum(-1)

    def log_density(x: Any) -> Any:
        v, rest = x[0], x[1:]
        return -(0.5 * (v / scale) ** 2 + 0.5 * (dimension - 1) * v + 0.5 * jnp.exp(-v) * (rest**2).sum())

    return Problem(dimension, energy, log_density)


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "logistic 1000x25": logistic,
    "Gaussian 100-d, condition 1e4": gaussian,
    "eight schools, non-centred": eight_schools,
    "funnel 10-d": funnel,
}
