"""Gaussian mixtures diffused by a linear SDE: log densities, scores and divergences in closed form."""

from __future__ import annotations

from typing import Any

import torch
from scipy import stats
from torch import Tensor, nn
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from ebmppl.score import VE, VP, LinearSDE, SubVP

F64 = torch.float64


class DiffusedMixture(nn.Module):
    """The score ``(x, t) -> (batch, dimension)`` of sum_k w_k N(a m_k, a^2 S_k + std^2 I)."""

    weights: Tensor
    means: Tensor
    covariances: Tensor
    values: Tensor
    vectors: Tensor

    def __init__(self, sde: LinearSDE, weights: Any, means: Any, covariances: Any) -> None:
        super().__init__()
        self.sde = sde
        tensors = [torch.as_tensor(v, dtype=F64) for v in (weights, means, covariances)]
        for name, value in zip(("weights", "means", "covariances"), tensors, strict=True):
            self.register_buffer(name, value)
        for name, value in zip(("values", "vectors"), torch.linalg.eigh(tensors[2]), strict=True):
            self.register_buffer(name, value)

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


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sdes(parameters: dict[str, float]) -> dict[str, LinearSDE]:
    """The SDEs of ``sde_gmm.json``."""
    betas = parameters["bmin"], parameters["bmax"]
    return {"ve": VE(parameters["smin"], parameters["smax"]), "vp": VP(*betas), "subvp": SubVP(*betas)}


PARAMETERS = {"bmin": 0.1, "bmax": 10.0, "smin": 0.02, "smax": 20.0}
MIXTURE = ([0.6, 0.4], [[-1.0, 0.0], [2.0, 0.5]], [[[0.25, 0.05], [0.05, 0.15]], [[0.4, 0.0], [0.0, 0.1]]])


def _functions(x: Tensor) -> Tensor:
    """Coordinates, their products, and on which side of the modes' border a point lies."""
    return torch.stack([x[:, 0], x[:, 1], x[:, 0] ** 2, x[:, 0] * x[:, 1], x[:, 1] ** 2, (x[:, 0] > 0.5).double()], 1)


def mixture_z_scores(found: Tensor) -> Tensor:
    """Of six functions' means over draws ``(n, 2)``, against ten times as many exact draws of ``MIXTURE``."""
    with torch.random.fork_rng():
        torch.manual_seed(11)
        exact = _functions(DiffusedMixture(VP(), *MIXTURE).data().sample((10 * len(found),)))
    f = _functions(found)
    return (f.mean(0) - exact.mean(0)) / (f.var(0) / len(f) + exact.var(0) / len(exact)).sqrt()


def z_limit(false_alarm: float, cases: int) -> float:
    """Above which the largest of six z-scores of one of so many cases is with this probability in all."""
    return float(stats.norm.isf(false_alarm / 2 / (6 * cases)))
