"""The seven reference posteriors of the shared data, as energies and as Pyro models.

SPECS.md beside the data states them. Energies are in the constrained space: no log-Jacobians.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

Sites = dict[str, Tensor]


class Posterior(NamedTuple):
    """A posterior with its data, whose dtype and device the sites share; B is the batch.

    Attributes:
        name: one of ``NAMES``.
        sites: shape of each site.
        support: constraints of the sites that are not real.
        energy: minus log density in nats up to a constant, from sites ``(B, *site)`` to ``(B,)``.
        model: the same posterior as a Pyro model without arguments.
        reported: scalars of the reference ``(*)``, from sites ``(*, *site)``, any leading axes.
    """

    name: str
    sites: dict[str, tuple[int, ...]]
    support: dict[str, Constraint]
    energy: Callable[[Sites], Tensor]
    model: Callable[[], None]
    reported: Callable[[Sites], Sites]


def load(
    name: str,
    folder: Path,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Posterior:
    """One of ``NAMES``, from the folder ``posteriors`` or the data folder above it."""
    data = {
        key: torch.tensor(_numbers(value), dtype=dtype, device=device)
        for key, value in _read(folder, f"{name}.data.json").items()
    }
    return Posterior(name, *_POSTERIORS[name](data))


def reference(name: str, folder: Path) -> dict[str, dict[str, float]]:
    """By scalar its mean, sd, quantiles and Monte Carlo errors, 0 for a closed form."""
    found = _read(folder, f"{name}.reference.json")["parameters"]
    return {key: {"mcse_mean": 0.0, "mcse_sd": 0.0, **value} for key, value in found.items()}


def _read(folder: Path, file: str) -> dict[str, Any]:
    below = folder / "posteriors"
    found: dict[str, Any] = json.loads(((below if below.is_dir() else folder) / file).read_text())
    return found


def _numbers(value: Any) -> Any:
    """A number, or a list of them with NaN for what is missing."""
    return [math.nan if u is None else u for u in value] if isinstance(value, list) else value


# what load() makes a posterior of: the fields after the name
_Parts = tuple[
    dict[str, tuple[int, ...]],
    dict[str, Constraint],
    Callable[[Sites], Tensor],
    Callable[[], None],
    Callable[[Sites], Sites],
]


def _half_square(x: Tensor, loc: Tensor | float, scale: Tensor | float) -> Tensor:
    """Energy of N(loc, scale) up to log scale."""
    return 0.5 * ((x - loc) / scale).square()


def _half_cauchy(x: Tensor, scale: float) -> Tensor:
    """Energy of Cauchy+(0, scale) up to a constant."""
    return (x / scale).square().log1p()


def _numbered(**sites: Tensor) -> Sites:
    """Vectors ``(*, n)`` by scalar: theta becomes theta[1] to theta[n]."""
    out = {}
    for name, value in sites.items():
        out.update({f"{name}[{i}]": scalar for i, scalar in enumerate(value.unbind(-1), 1)})
    return out


def _eight_schools(data: Sites) -> _Parts:
    y, sigma = data["y"], data["sigma"]

    def effects(s: Sites) -> Tensor:
        return s["mu"].unsqueeze(-1) + s["tau"].unsqueeze(-1) * s["theta_trans"]

    def energy(s: Sites) -> Tensor:
        prior = _half_square(s["theta_trans"], 0.0, 1.0).sum(-1)
        prior = prior + _half_square(s["mu"], 0.0, 5.0) + _half_cauchy(s["tau"], 5.0)
        return prior + _half_square(y, effects(s), sigma).sum(-1)

    def model() -> None:
        mu = pyro.sample("mu", dist.Normal(y.new_tensor(0.0), 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(y.new_tensor(5.0)))
        with pyro.plate("school", len(y)):
            theta_trans = pyro.sample("theta_trans", dist.Normal(y.new_tensor(0.0), 1.0))
            theta = pyro.deterministic("theta", mu + tau * theta_trans)
            pyro.sample("y", dist.Normal(theta, sigma), obs=y)

    def reported(s: Sites) -> Sites:
        return _numbered(theta=effects(s)) | {"mu": s["mu"], "tau": s["tau"]}

    sites = {"theta_trans": (len(y),), "mu": (), "tau": ()}
    return sites, {"tau": constraints.positive}, energy, model, reported


def _regression(x: Tensor, y: Tensor, sigma_scale: float | None = None) -> _Parts:
    """y ~ N(x beta, sigma) with beta flat, and sigma flat or half-Cauchy."""

    def energy(s: Sites) -> Tensor:
        beta, sigma = s["beta"], s["sigma"]
        total = _half_square(y, beta @ x.T, sigma.unsqueeze(-1)).sum(-1) + len(y) * sigma.log()
        return total if sigma_scale is None else total + _half_cauchy(sigma, sigma_scale)

    def model() -> None:
        beta = pyro.sample("beta", dist.ImproperUniform(constraints.real, (), x.shape[1:]))
        if sigma_scale is None:
            sigma = pyro.sample("sigma", dist.ImproperUniform(constraints.positive, (), ()))
        else:
            sigma = pyro.sample("sigma", dist.HalfCauchy(y.new_tensor(sigma_scale)))
        mean = beta.to(x) @ x.T  # starting values of an improper prior have the default dtype
        with pyro.plate("row", len(y)):
            pyro.sample("y", dist.Normal(mean, sigma), obs=y)

    def reported(s: Sites) -> Sites:
        return _numbered(beta=s["beta"]) | {"sigma": s["sigma"]}

    sites = {"beta": (x.shape[1],), "sigma": ()}
    return sites, {"sigma": constraints.positive}, energy, model, reported


def _kidscore(data: Sites) -> _Parts:
    hs, iq = data["mom_hs"], data["mom_iq"]
    x = torch.stack([torch.ones_like(iq), hs, iq, hs * iq], -1)
    return _regression(x, data["kid_score"], sigma_scale=2.5)


def _mesquite(data: Sites) -> _Parts:
    sizes = [data[k].log() for k in ("diam1", "diam2", "canopy_height", "total_height", "density")]
    x = torch.stack([torch.ones_like(data["group"]), *sizes, data["group"]], -1)
    return _regression(x, data["weight"].log())


def _nes(data: Sites) -> _Parts:
    income = data["income"]
    ages = [(data["age_discrete"] == k).to(income) for k in (2, 3, 4)]
    columns = [data["real_ideo"], data["race_adj"], *ages, data["educ1"], data["gender"], income]
    return _regression(torch.stack([torch.ones_like(income), *columns], -1), data["partyid7"])


def _ar(data: Sites) -> _Parts:
    lags = int(data["K"])
    y = data["y"][lags:]
    x = data["y"].unfold(0, lags, 1)[:-1].flip(-1)  # row t holds y[t-1] to y[t-lags]

    def energy(s: Sites) -> Tensor:
        alpha, beta, sigma = s["alpha"], s["beta"], s["sigma"]
        prior = _half_square(alpha, 0.0, 10.0) + _half_square(beta, 0.0, 10.0).sum(-1)
        prior = prior + _half_cauchy(sigma, 2.5)
        mean = alpha.unsqueeze(-1) + beta @ x.T
        return prior + _half_square(y, mean, sigma.unsqueeze(-1)).sum(-1) + len(y) * sigma.log()

    def model() -> None:
        alpha = pyro.sample("alpha", dist.Normal(y.new_tensor(0.0), 10.0))
        beta = pyro.sample("beta", dist.Normal(y.new_zeros(lags), 10.0).to_event(1))
        sigma = pyro.sample("sigma", dist.HalfCauchy(y.new_tensor(2.5)))
        with pyro.plate("time", len(y)):
            pyro.sample("y", dist.Normal(alpha + beta @ x.T, sigma), obs=y)

    def reported(s: Sites) -> Sites:
        return _numbered(beta=s["beta"]) | {"alpha": s["alpha"], "sigma": s["sigma"]}

    sites = {"alpha": (), "beta": (lags,), "sigma": ()}
    return sites, {"sigma": constraints.positive}, energy, model, reported


def _gp(data: Sites) -> _Parts:
    x, y = data["x"], data["y"]
    distance, eye = (x - x.unsqueeze(-1)).square(), torch.eye(len(x)).to(x)

    def factor(rho: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Cholesky factor ``(*, 11, 11)`` of the covariance, and whether there is one ``(*)``."""
        rho, alpha, sigma = (u[..., None, None] for u in (rho, alpha, sigma))
        covariance = alpha.square() * torch.exp(-0.5 * distance / rho.square()) + sigma * eye
        lower, info = torch.linalg.cholesky_ex(covariance)
        return lower, info == 0

    def energy(s: Sites) -> Tensor:
        rho, alpha, sigma = s["rho"], s["alpha"], s["sigma"]
        prior = 4.0 * rho - 24.0 * rho.log()  # Gamma(25, 4)
        prior = prior + _half_square(alpha, 0.0, 2.0) + _half_square(sigma, 0.0, 1.0)
        lower, works = factor(rho, alpha, sigma)
        white = torch.linalg.solve_triangular(lower, y.unsqueeze(-1), upper=False).squeeze(-1)
        half_log_det = lower.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        total = prior + 0.5 * white.square().sum(-1) + half_log_det
        return torch.where(works, total, math.inf)

    def model() -> None:
        rho = pyro.sample("rho", dist.Gamma(y.new_tensor(25.0), 4.0))
        alpha = pyro.sample("alpha", dist.HalfNormal(y.new_tensor(2.0)))
        sigma = pyro.sample("sigma", dist.HalfNormal(y.new_tensor(1.0)))
        lower, works = factor(rho, alpha, sigma)
        # NaN for a bad row, where covariance_matrix= would raise for all chains of a batch
        lower = torch.where(works[..., None, None], lower, math.nan)
        pyro.sample("y", dist.MultivariateNormal(torch.zeros_like(y), scale_tril=lower), obs=y)

    scalars = ("rho", "alpha", "sigma")
    support: dict[str, Constraint] = {k: constraints.positive for k in scalars}
    return {k: () for k in scalars}, support, energy, model, lambda s: {k: s[k] for k in scalars}


def _brownian(data: Sites) -> _Parts:
    q, r = data["innovation_noise_scale"], data["observation_noise_scale"]
    seen = (~data["observed_locs"].isnan()).nonzero().squeeze(-1)
    y, steps = data["observed_locs"][seen], len(data["observed_locs"])

    def energy(s: Sites) -> Tensor:
        locs = s["locs"]
        walk = _half_square(locs[..., 0], 0.0, q) + _half_square(locs.diff(dim=-1), 0.0, q).sum(-1)
        return walk + _half_square(y, locs[..., seen], r).sum(-1)

    def model() -> None:
        walk = q * y.new_ones(steps, steps).tril()  # locs are cumulative sums of innovations
        locs = pyro.sample("locs", dist.MultivariateNormal(y.new_zeros(steps), scale_tril=walk))
        with pyro.plate("observation", len(y)):
            pyro.sample("y", dist.Normal(locs[..., seen], r), obs=y)

    return {"locs": (steps,)}, {}, energy, model, lambda s: _numbered(locs=s["locs"])


_POSTERIORS: dict[str, Callable[[Sites], _Parts]] = {
    "eight_schools_noncentered": _eight_schools,
    "kidscore_interaction": _kidscore,
    "arK": _ar,
    "logmesquite": _mesquite,
    "nes1980": _nes,
    "gp_regr": _gp,
    "brownian_motion_missing": _brownian,
}
NAMES: tuple[str, ...] = tuple(_POSTERIORS)
