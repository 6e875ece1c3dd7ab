"""Gaussian mixtures diffused by a linear SDE: log densities, scores and divergences in closed form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from ebmppl.score import VE, VP, LinearSDE, SubVP

F64 = torch.float64


class DiffusedMixture(nn.Module):
    """The score ``(x, t) -> (batch, dimension)`` of sum_k w_k N(a m_k, a^2 S_k + std^2 I)."""

    def __init__(self, sde: LinearSDE, weights: Any, means: Any, covariances: Any) -> None:
        super().__init__()
        self.sde = sde
        self.weights, self.means, self.covariances = (
            torch.as_tensor(v, dtype=F64) for v in (weights, means, covariances)
        )
        self.values, self.vectors = torch.linalg.eigh(self.covariances)

    def parts(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Log of the components' weighted densities ``(batch, k)`` and their scores ``(batch, k, dimension)``."""
        mean, std = self.sde.marginal(t)
        mean, std = mean.reshape(-1, 1, 1), std.reshape(-1, 1, 1)
        variances = mean.square() * self.values + std.square()
        u = torch.einsum("kij,bki->bkj", self.vectors, x.unsqueeze(1) - mean * self.means)
        log = -0.5 * (u.square() / variances + (2 * torch.pi * variances).log()).sum(-1) + self.weights.log()
        return log, -torch.einsum("kij,bkj->bki", self.vectors, u / variances)

    def log_prob(self, x: Tensor, t: Tensor) -> Tensor:
        return self.parts(x, t)[0].logsumexp(-1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        log, scores = self.parts(x, t)
        return (log.softmax(-1).unsqueeze(-1) * scores).sum(1)

    def data(self) -> MixtureSameFamily:
        return MixtureSameFamily(Categorical(self.weights), MultivariateNormal(self.means, self.covariances))


def sdes(parameters: dict[str, float]) -> dict[str, LinearSDE]:
    """The SDEs of ``sde_gmm.json``."""
    betas = parameters["bmin"], parameters["bmax"]
    return {"ve": VE(parameters["smin"], parameters["smax"]), "vp": VP(*betas), "subvp": SubVP(*betas)}


PARAMETERS = {"bmin": 0.1, "bmax": 10.0, "smin": 0.02, "smax": 20.0}
MIXTURE = ([0.6, 0.4], [[-1.0, 0.0], [2.0, 0.5]], [[[0.25, 0.05], [0.05, 0.15]], [[0.4, 0.0], [0.0, 0.1]]])
