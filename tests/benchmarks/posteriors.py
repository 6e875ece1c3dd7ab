"""Posteriors of the NUTS benchmarks, for torch and for JAX: the same numbers, and neither side imports the other's library."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    Energy = Callable[[Tensor], Tensor]

Y = (28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0)
SIGMA = (15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0)
ROWS, WEIGHTS = 1000, 25
DIMENSION, CONDITION = 100, 1e4
SCALE = 3.0  # of the funnel's log variance
GROUPS = 100


class Posterior(NamedTuple):
    """One posterior over R^dimension; ``energy`` and ``log_density`` make their data anew."""

    title: str
    dimension: int
    energy: Callable[[], Energy] | None  # torch: nats of a batch of points (chains, dimension)
    log_density: Callable[[], Callable[[Any], Any]]  # JAX: of one point (dimension,), positive sites as logarithms
    model: str  # its name in pyro_models.py
    from_model: bool = False  # whether ebmppl takes the Pyro model


def logistic_data() -> tuple[np.ndarray, np.ndarray]:
    """Rows (1000, 25) and answers (1000,)."""
    rng = np.random.default_rng(0)
    x, weights = rng.normal(size=(ROWS, WEIGHTS)), rng.normal(size=WEIGHTS)
    y = rng.random(ROWS) < 1 / (1 + np.exp(-x @ weights))
    return x.astype(np.float32), y.astype(np.float32)


def precisions() -> np.ndarray:
    """Of the Gaussian: spread evenly in logarithm around one."""
    return (np.logspace(-0.5, 0.5, DIMENSION) ** np.log10(CONDITION)).astype(np.float32)


def groups_data() -> dict[str, np.ndarray]:
    """A varying-intercepts-and-slopes regression: 100 groups of 2 to 19 rows."""
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(GROUPS), rng.integers(2, 20, GROUPS))
    x = rng.normal(size=len(group))
    intercept, slope = rng.normal(1.0, 0.7, GROUPS), rng.normal(-0.5, 0.4, GROUPS)
    y = rng.normal(intercept[group] + slope[group] * x, 0.8)
    return {"group": group, "x": x.astype(np.float32), "y": y.astype(np.float32)}


def _logistic_energy(device: str = "cpu") -> Energy:
    import torch

    x, y = (torch.from_numpy(numbers).to(device) for numbers in logistic_data())
    softplus = torch.nn.functional.softplus

    def energy(beta: Tensor) -> Tensor:
        logits = beta @ x.T
        return (softplus(logits) - y * logits).sum(-1) + 0.5 * beta.square().sum(-1)

    return energy


def _logistic_log_density() -> Callable[[Any], Any]:
    import jax
    import jax.numpy as jnp

    x, y = map(jnp.array, logistic_data())

    def log_density(beta: Any) -> Any:
        logits = x @ beta
        return (y * logits - jax.nn.softplus(logits)).sum() - 0.5 * (beta**2).sum()

    return log_density


def _gaussian_energy() -> Energy:
    import torch

    precision = torch.from_numpy(precisions())
    return lambda x: 0.5 * (precision * x.square()).sum(-1)


def _gaussian_log_density() -> Callable[[Any], Any]:
    import jax.numpy as jnp

    precision = jnp.array(precisions())
    return lambda x: -0.5 * (precision * x**2).sum()


def _funnel_energy() -> Energy:
    import torch

    def energy(x: Tensor) -> Tensor:
        v, rest = x[:, 0], x[:, 1:]
        return 0.5 * (v / SCALE).square() + 4.5 * v + 0.5 * torch.exp(-v) * rest.square().sum(-1)

    return energy


def _funnel_log_density() -> Callable[[Any], Any]:
    import jax.numpy as jnp

    def log_density(x: Any) -> Any:
        v, rest = x[0], x[1:]
        return -(0.5 * (v / SCALE) ** 2 + 4.5 * v + 0.5 * jnp.exp(-v) * (rest**2).sum())

    return log_density


def _schools_energy() -> Energy:
    import torch

    y, sigma = torch.tensor(Y), torch.tensor(SIGMA)

    def energy(x: Tensor) -> Tensor:
        z, mu, log_tau = x[:, :8], x[:, 8:9], x[:, 9:]
        tau = log_tau.exp()
        likelihood = 0.5 * ((y - mu - tau * z) / sigma).square().sum(-1)
        prior_of_mu_tau = 0.5 * (mu / 5).square() + torch.log1p((tau / 5).square()) - log_tau
        return likelihood + 0.5 * z.square().sum(-1) + prior_of_mu_tau.squeeze(-1)

    return energy


def _schools_log_density() -> Callable[[Any], Any]:
    import jax.numpy as jnp

    y, sigma = jnp.array(Y), jnp.array(SIGMA)

    def log_density(x: Any) -> Any:
        z, mu, log_tau = x[:8], x[8], x[9]
        tau = jnp.exp(log_tau)
        likelihood = 0.5 * (((y - mu - tau * z) / sigma) ** 2).sum()
        return -(likelihood + 0.5 * (z**2).sum() + 0.5 * (mu / 5) ** 2 + jnp.log1p((tau / 5) ** 2) - log_tau)

    return log_density


def _groups_log_density() -> Callable[[Any], Any]:
    import jax.numpy as jnp

    data = {name: jnp.array(values) for name, values in groups_data().items()}
    group, x, y = data["group"], data["x"], data["y"]

    def log_density(point: Any) -> Any:
        means, logs, z = point[:2], point[2:5], point[5:].reshape(2, GROUPS)
        tau_a, tau_b, sigma = scales = jnp.exp(logs)
        a, b = means[0] + tau_a * z[0], means[1] + tau_b * z[1]
        likelihood = 0.5 * (((y - a[group] - b[group] * x) / sigma) ** 2).sum() + len(y) * logs[2]
        prior_of_scales = (0.5 * scales**2 - logs).sum()
        return -(likelihood + 0.125 * (means**2).sum() + prior_of_scales + 0.5 * (z**2).sum())

    return log_density


POSTERIORS = {
    "a": Posterior(f"logistic {ROWS}x{WEIGHTS}", WEIGHTS, _logistic_energy, _logistic_log_density, "logistic"),
    "b": Posterior("Gaussian 100-d, 1e4", DIMENSION, _gaussian_energy, _gaussian_log_density, "gaussian"),
    "c": Posterior("funnel 10-d", 10, _funnel_energy, _funnel_log_density, "funnel"),
    "d": Posterior("eight schools", 10, _schools_energy, _schools_log_density, "schools", from_model=True),
    "e": Posterior(f"{GROUPS} groups", 2 * GROUPS + 5, None, _groups_log_density, "groups", from_model=True),
}
