"""The seven reference posteriors of the shared data, as energies over named sites (see SPECS.md beside the data)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Cauchy, Gamma, Normal, constraints
from torch.distributions.constraints import Constraint

Sites = dict[str, Tensor]
NAMES = (
    "eight_schools_noncentered",
    "kidscore_interaction",
    "arK",
    "logmesquite",
    "nes1980",
    "gp_regr",
    "brownian_motion_missing",
)


class Posterior(NamedTuple):
    """An unnormalised posterior: ``energy`` takes sites ``(batch, *site)`` in their support, and gives nats ``(batch,)``."""

    sites: dict[str, tuple[int, ...]]
    support: dict[str, Constraint]
    energy: Callable[[Sites], Tensor]
    reported: Callable[[Sites], Sites]  # the scalars of the reference, any leading axes


def reference(name: str, folder: Path) -> dict[str, dict[str, float]]:
    """By scalar its mean and sd with their Monte Carlo errors; 0 for those of a closed form."""
    found = json.loads((folder / "posteriors" / f"{name}.reference.json").read_text())
    return {k: {"mcse_mean": 0.0, "mcse_sd": 0.0, **v} for k, v in found["parameters"].items()}


def load(name: str, folder: Path, dtype: torch.dtype = torch.float64) -> Posterior:
    """One of ``NAMES``."""
    data = json.loads((folder / "posteriors" / f"{name}.data.json").read_text())
    values = {
        k: torch.tensor([float("nan") if u is None else u for u in v], dtype=dtype)
        for k, v in data.items()
        if isinstance(v, list)
    }
    return {
        "eight_schools_noncentered": _eight_schools,
        "kidscore_interaction": _kidscore,
        "arK": _ar,
        "logmesquite": _mesquite,
        "nes1980": _nes,
        "gp_regr": _gp,
        "brownian_motion_missing": _brownian,
    }[name](values)


def _half_cauchy(x: Tensor, scale: float) -> Tensor:
    return Cauchy(0.0, scale).log_prob(x)


def _numbered(**sites: tuple[Tensor, bool]) -> Sites:
    """A vector site (theta, True) of shape (*, n) becomes theta[1] ... theta[n]; a scalar one (mu, False) stays."""
    out = {}
    for name, (value, is_vector) in sites.items():
        if is_vector:
            out.update({f"{name}[{i + 1}]": value[..., i] for i in range(value.shape[-1])})
        else:
            out[name] = value
    return out


def _eight_schools(data: Sites) -> Posterior:
    def theta(s: Sites) -> Tensor:
        return s["mu"].unsqueeze(-1) + s["tau"].unsqueeze(-1) * s["theta_trans"]

    def energy(s: Sites) -> Tensor:
        prior = Normal(0.0, 1.0).log_prob(s["theta_trans"]).sum(-1) + Normal(0.0, 5.0).log_prob(s["mu"])
        prior = prior + _half_cauchy(s["tau"], 5.0)
        return -prior - Normal(theta(s), data["sigma"]).log_prob(data["y"]).sum(-1)

    return Posterior(
        {"theta_trans": (8,), "mu": (), "tau": ()},
        {"tau": constraints.positive},
        energy,
        lambda s: _numbered(theta=(theta(s), True), mu=(s["mu"], False), tau=(s["tau"], False)),
    )


def _regression(x: Tensor, y: Tensor, scale_prior: Callable[[Tensor], Tensor] | None = None) -> Posterior:
    """y ~ N(x beta, sigma), beta flat."""

    def energy(s: Sites) -> Tensor:
        log_p = Normal(s["beta"] @ x.T, s["sigma"].unsqueeze(-1)).log_prob(y).sum(-1)
        return -log_p if scale_prior is None else -log_p - scale_prior(s["sigma"])

    return Posterior(
        {"beta": (x.shape[1],), "sigma": ()},
        {"sigma": constraints.positive},
        energy,
        lambda s: _numbered(beta=(s["beta"], True), sigma=(s["sigma"], False)),
    )


def _kidscore(data: Sites) -> Posterior:
    hs, iq = data["mom_hs"], data["mom_iq"]
    x = torch.stack([torch.ones_like(iq), hs, iq, hs * iq], -1)
    return _regression(x, data["kid_score"], lambda sigma: _half_cauchy(sigma, 2.5))


def _mesquite(data: Sites) -> Posterior:
    logs = [data[k].log() for k in ("diam1", "diam2", "canopy_height", "total_height", "density")]
    x = torch.stack([torch.ones_like(logs[0]), *logs, data["group"]], -1)
    return _regression(x, data["weight"].log())


def _nes(data: Sites) -> Posterior:
    ages = [(data["age_discrete"] == k).to(data["income"].dtype) for k in (2, 3, 4)]
    columns = [data["real_ideo"], data["race_adj"], *ages, data["educ1"], data["gender"], data["income"]]
    return _regression(torch.stack([torch.ones_like(columns[0]), *columns], -1), data["partyid7"])


def _ar(data: Sites) -> Posterior:
    y, lags = data["y"], 5
    x = torch.stack([y[lags - k - 1 : len(y) - k - 1] for k in range(lags)], -1)

    def energy(s: Sites) -> Tensor:
        mean = s["alpha"].unsqueeze(-1) + s["beta"] @ x.T
        prior = Normal(0.0, 10.0).log_prob(s["alpha"]) + Normal(0.0, 10.0).log_prob(s["beta"]).sum(-1)
        prior = prior + _half_cauchy(s["sigma"], 2.5)
        return -prior - Normal(mean, s["sigma"].unsqueeze(-1)).log_prob(y[lags:]).sum(-1)

    return Posterior(
        {"alpha": (), "beta": (lags,), "sigma": ()},
        {"sigma": constraints.positive},
        energy,
        lambda s: _numbered(alpha=(s["alpha"], False), beta=(s["beta"], True), sigma=(s["sigma"], False)),
    )


def _gp(data: Sites) -> Posterior:
    y, distance = data["y"], (data["x"].unsqueeze(0) - data["x"].unsqueeze(1)).square()

    def energy(s: Sites) -> Tensor:
        rho, alpha, sigma = (s[k].view(-1, 1, 1) for k in ("rho", "alpha", "sigma"))
        cov = alpha.square() * torch.exp(-0.5 * distance / rho.square()) + sigma * torch.eye(len(y)).to(y)
        factor, info = torch.linalg.cholesky_ex(cov)
        half = torch.linalg.solve_triangular(factor, y.expand(len(cov), -1).unsqueeze(-1), upper=False).squeeze(-1)
        log_p = -0.5 * half.square().sum(-1) - factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        prior = Gamma(25.0, 4.0).log_prob(s["rho"]) - s["alpha"].square() / 8 - s["sigma"].square() / 2
        return torch.where(info == 0, -prior - log_p, torch.inf)

    scalars = ("rho", "alpha", "sigma")
    return Posterior(
        dict.fromkeys(scalars, ()),
        dict.fromkeys(scalars, constraints.positive),
        energy,
        lambda s: {k: s[k] for k in scalars},
    )


def _brownian(data: Sites) -> Posterior:
    seen = ~data["observed_locs"].isnan()
    observed = data["observed_locs"][seen]

    def energy(s: Sites) -> Tensor:
        x = s["locs"]
        steps = torch.cat([x[..., :1], x.diff(dim=-1)], -1)
        return 0.5 * (steps / 0.1).square().sum(-1) + 0.5 * ((observed - x[..., seen]) / 0.15).square().sum(-1)

    return Posterior({"locs": (30,)}, {}, energy, lambda s: _numbered(locs=(s["locs"], True)))
