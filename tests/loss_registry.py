"""One row for every loss; the laws are tested over all rows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ebmppl.energies import ConvEnergy, Energy, MLPEnergy, as_energy
from ebmppl.kernels import Gibbs, Langevin
from ebmppl.losses import (
    CD,
    PCD,
    DenoisingScoreMatching,
    ExplicitScoreMatching,
    Loss,
    ScoreMatching,
    ScoreNetwork,
    SlicedScoreMatching,
)
from ebmppl.models import BernoulliRBM
from tests.registry import Network

SEED = 5


class LossCase(NamedTuple):
    """A loss that the laws run over. A row must make the same thing at each call: fixed seeds, fixed parameters."""

    factory: Callable[[], Loss]
    energy: Callable[[torch.dtype], Energy | ScoreNetwork]
    data: Callable[[torch.dtype], Tensor]
    guide: Callable[[torch.dtype], Any] | None = None
    unreached: frozenset[str] = frozenset()  # parameters of the bound loss that its gradient is zero in, with a reason


def _random(*shape: int, seed: int = SEED) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def network(dtype: torch.dtype) -> Energy:
    """A small network over three real numbers."""
    return as_energy(Network().to(dtype), (3,))


def rbm(dtype: torch.dtype) -> Energy:
    """Four visible bits, three hidden ones."""
    return BernoulliRBM(4, 3, W=_random(4, 3).to(dtype), b=_random(4, seed=6).to(dtype), c=_random(3, seed=7).to(dtype))


def mlp(dtype: torch.dtype) -> Energy:
    """With scores and slopes in closed form."""
    return MLPEnergy(3, (8, 6), confine=0.5, generator=torch.Generator().manual_seed(SEED), dtype=dtype)


def images(dtype: torch.dtype) -> Energy:
    """In training mode power iterations move buffers."""
    made = torch.Generator().manual_seed(SEED)
    return ConvEnergy(1, (1, 3), (4, 4), spectral_norm=True, confine=0.5, generator=made, dtype=dtype)


def pictures(dtype: torch.dtype) -> Tensor:
    """Data of ``images``."""
    return reals(dtype).view(10, 1, 1, 3)


def scores(dtype: torch.dtype) -> ScoreNetwork:
    """A score that is no gradient."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ScoreNetwork(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype), (3,))


def reals(dtype: torch.dtype) -> Tensor:
    """Data of ``network`` and ``scores``."""
    return _random(10, 3, seed=8).to(dtype)


def bits(dtype: torch.dtype) -> Tensor:
    """Data of ``rbm``."""
    return (_random(10, 4, seed=9) > 0).to(dtype)


def _minus(x: Tensor) -> Tensor:
    return -x


OFFSET = frozenset({"energy.fn.net.2.bias"})  # scores don't see a constant
MLP_OFFSET = frozenset({"energy.net.2.bias"})
small_steps = partial(Langevin, step_size=0.05)

LOSSES: dict[str, LossCase] = {
    "cd, gibbs": LossCase(partial(CD, 2, kernel=Gibbs, seed=SEED), rbm, bits),
    "cd, langevin": LossCase(partial(CD, 3, kernel=small_steps, seed=SEED), network, reals, unreached=OFFSET),
    "pcd, gibbs": LossCase(partial(PCD, kernel=Gibbs, num_chains=7, seed=SEED), rbm, bits),
    "pcd, langevin, replay buffer": LossCase(
        partial(PCD, 2, kernel=small_steps, num_chains=6, buffer=9, reinit=0.3, seed=SEED),
        network,
        reals,
        unreached=OFFSET,
    ),
    "cd, images": LossCase(partial(CD, 2, kernel=small_steps, seed=SEED), images, pictures, unreached=MLP_OFFSET),
    "explicit score matching": LossCase(partial(ExplicitScoreMatching, _minus), network, reals, unreached=OFFSET),
    "score matching": LossCase(ScoreMatching, network, reals, unreached=OFFSET),
    "score matching, probes": LossCase(partial(ScoreMatching, probes=2, seed=SEED), network, reals, unreached=OFFSET),
    "score matching, score network": LossCase(ScoreMatching, scores, reals),
    "sliced score matching": LossCase(
        partial(SlicedScoreMatching, 2, reduced_variance=False, seed=SEED), network, reals, unreached=OFFSET
    ),
    "sliced score matching, reduced variance": LossCase(
        partial(SlicedScoreMatching, seed=SEED), network, reals, unreached=OFFSET
    ),
    "sliced score matching, images": LossCase(
        partial(SlicedScoreMatching, seed=SEED), images, pictures, unreached=MLP_OFFSET
    ),
    "sliced score matching, mlp": LossCase(
        partial(SlicedScoreMatching, 2, reduced_variance=False, seed=SEED), mlp, reals, unreached=MLP_OFFSET
    ),
    "denoising score matching, mlp": LossCase(
        partial(DenoisingScoreMatching, 0.3, seed=SEED), mlp, reals, unreached=MLP_OFFSET
    ),
    "sliced score matching, score network": LossCase(partial(SlicedScoreMatching, seed=SEED), scores, reals),
    "denoising score matching": LossCase(
        partial(DenoisingScoreMatching, 0.3, seed=SEED), network, reals, unreached=OFFSET
    ),
    "denoising score matching, score network": LossCase(partial(DenoisingScoreMatching, 0.3, seed=SEED), scores, reals),
}
