"""The posteriors as Pyro models; a module that processes of their own can import."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch

from tests.benchmarks import posteriors


def logistic() -> Callable[[], None]:
    """Standard normal weights."""
    x, y = map(torch.from_numpy, posteriors.logistic_data())

    def model() -> None:
        beta = pyro.sample("beta", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
        with pyro.plate("row", len(x)):
            pyro.sample("y", dist.Bernoulli(logits=x @ beta), obs=y)

    return model


def gaussian() -> Callable[[], None]:
    """Independent normals."""
    scale = torch.from_numpy(posteriors.precisions()).rsqrt()
    return lambda: pyro.sample("x", dist.Normal(torch.zeros_like(scale), scale).to_event(1))


def funnel() -> Callable[[], None]:
    """Neal's, centred."""

    def model() -> None:
        v = pyro.sample("v", dist.Normal(0.0, posteriors.SCALE))
        with pyro.plate("rest", 9):
            pyro.sample("x", dist.Normal(0.0, (0.5 * v).exp()))

    return model


def schools() -> Callable[[], None]:
    """Eight schools (Rubin 1981), non-centred."""
    y, sigma = torch.tensor(posteriors.Y), torch.tensor(posteriors.SIGMA)

    def model() -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        with pyro.plate("school", 8):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(mu + tau * z, sigma), obs=y)

    return model


def groups() -> Callable[[], None]:
    """Varying intercepts and slopes, non-centred: 205 latents."""
    data = {name: torch.from_numpy(values) for name, values in posteriors.groups_data().items()}
    group, x, y = data["group"], data["x"], data["y"]

    def model() -> None:
        mean_a, mean_b = pyro.sample("mean_a", dist.Normal(0.0, 2.0)), pyro.sample("mean_b", dist.Normal(0.0, 2.0))
        tau_a, tau_b = pyro.sample("tau_a", dist.HalfNormal(1.0)), pyro.sample("tau_b", dist.HalfNormal(1.0))
        sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
        with pyro.plate("group", posteriors.GROUPS):
            z_a, z_b = pyro.sample("z_a", dist.Normal(0.0, 1.0)), pyro.sample("z_b", dist.Normal(0.0, 1.0))
        a, b = mean_a + tau_a * z_a, mean_b + tau_b * z_b
        with pyro.plate("row", len(y)):
            pyro.sample("y", dist.Normal(a[group] + b[group] * x, sigma), obs=y)

    return model


MODELS: dict[str, Callable[[], Callable[[], Any]]] = {
    "logistic": logistic,
    "gaussian": gaussian,
    "funnel": funnel,
    "schools": schools,
    "groups": groups,
}
