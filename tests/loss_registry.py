"""One row for every loss; the laws are tested over all rows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ebmppl.energies import ConvEnergy, Energy, MLPEnergy, as_energy
from ebmppl.kernels import MALA, Gibbs, Langevin, ParallelTempering
from ebmppl.losses import (
    CD,
    MLE,
    NCE,
    PCD,
    ContrastiveNCE,
    DenoisingScoreMatching,
    DiffusionScoreMatching,
    ExplicitScoreMatching,
    Loss,
    NoiseConditionalScoreMatching,
    PseudoLikelihood,
    RatioMatching,
    ScoreMatching,
    ScoreNetwork,
    SlicedDiffusionScoreMatching,
    SlicedScoreMatching,
)
from ebmppl.models import BernoulliRBM
from ebmppl.partition import Exact
from ebmppl.score import (
    EDM,
    VP,
    EnergyGradient,
    KarrasVE,
    NoisePrediction,
    Parameterisation,
    ScorePrediction,
    TimeMLP,
    geometric_sigmas,
)
from tests.registry import Network

SEED = 5


class LossCase(NamedTuple):
    """A loss that the laws run over. A row must make the same thing at each call: fixed seeds, fixed parameters."""

    factory: Callable[[], Loss]
    energy: Callable[[torch.dtype], Energy | ScoreNetwork | Parameterisation]
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


def joint(dtype: torch.dtype) -> Energy:
    """Both layers of ``rbm``."""
    return rbm(dtype).joint  # type: ignore[attr-defined]


def normal(dtype: torch.dtype) -> Any:
    """A proposal for ``network``."""
    return torch.distributions.Normal(torch.zeros(3, dtype=dtype), 2.0 * torch.ones(3, dtype=dtype))


def tempered(energy: Energy) -> ParallelTempering:
    """Gibbs at three temperatures."""
    return ParallelTempering(Gibbs(energy), 3)


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


def _times(dtype: torch.dtype, **settings: Any) -> TimeMLP:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return TimeMLP((3,), (8,), num_features=4, **settings).to(dtype)


def noise_model(dtype: torch.dtype) -> Parameterisation:
    """DDPM's."""
    return NoisePrediction(_times(dtype), VP())


def levels_model(dtype: torch.dtype) -> Parameterisation:
    """NCSN's."""
    return ScorePrediction(_times(dtype, log_time=True), KarrasVE(5.0))


def edm_model(dtype: torch.dtype) -> Parameterisation:
    """EDM's."""
    return EDM(_times(dtype), KarrasVE(20.0))


def energy_model(dtype: torch.dtype) -> Parameterisation:
    """With a conservative score."""
    return EnergyGradient(_times(dtype, out_shape=()), VP())


def reals(dtype: torch.dtype) -> Tensor:
    """Data of ``network`` and ``scores``."""
    return _random(10, 3, seed=8).to(dtype)


def bits(dtype: torch.dtype) -> Tensor:
    """Data of ``rbm``."""
    return (_random(10, 4, seed=9) > 0).to(dtype)


def wide(dtype: torch.dtype) -> Any:
    """Noise for ``network``."""
    return dist.Normal(torch.zeros(3, dtype=dtype), 2.0).to_event(1)


def coins(dtype: torch.dtype) -> Any:
    """Noise for ``rbm``."""
    return dist.Bernoulli(torch.full((4,), 0.4, dtype=dtype)).to_event(1)


def _program(noise: Any) -> None:
    pyro.sample("x", noise)


def program(dtype: torch.dtype) -> Any:
    """The same as ``wide``."""
    return partial(_program, wide(dtype))


def flips(x: Tensor) -> Any:
    """Bits that keep their value with probability 0.8."""
    return dist.Bernoulli(0.2 + 0.6 * x).to_event(1)


def _minus(x: Tensor) -> Tensor:
    return -x


OFFSET = frozenset({"energy.fn.net.2.bias"})  # scores don't see a constant
MLP_OFFSET = frozenset({"energy.net.2.bias"})
TIMES_OFFSET = frozenset({"energy.network.last.bias"})
sigmas = geometric_sigmas(5, 0.1, 5.0)
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
    "cd, both layers": LossCase(partial(CD, kernel=Gibbs, seed=SEED, hidden="sample"), joint, bits),
    "pcd, tempering, warm-up": LossCase(
        partial(PCD, kernel=tempered, num_chains=5, reinit=0.2, warmup=20, recent=2, seed=SEED), joint, bits
    ),
    "mle, exact": LossCase(partial(MLE, Exact()), rbm, bits),
    "mle, chains": LossCase(
        partial(MLE, kernel=MALA, num_chains=5, warmup=20, draws=3, seed=SEED), network, reals, unreached=OFFSET
    ),
    "mle, weights": LossCase(partial(MLE, num_samples=20, seed=SEED), network, reals, normal, unreached=OFFSET),
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
    "score matching over an sde": LossCase(partial(DiffusionScoreMatching, seed=SEED), noise_model, reals),
    "score matching over an sde, likelihood": LossCase(
        partial(DiffusionScoreMatching, "likelihood", low_discrepancy=True, seed=SEED), noise_model, reals
    ),
    "score matching over an sde, edm": LossCase(partial(DiffusionScoreMatching, "edm", seed=SEED), edm_model, reals),
    "score matching over an sde, energy": LossCase(
        partial(DiffusionScoreMatching, seed=SEED), energy_model, reals, unreached=TIMES_OFFSET
    ),
    "score matching over noise levels": LossCase(
        partial(NoiseConditionalScoreMatching, sigmas, seed=SEED), levels_model, reals
    ),
    "sliced score matching over an sde": LossCase(
        partial(SlicedDiffusionScoreMatching, num_slices=2, seed=SEED), noise_model, reals
    ),
    "sliced score matching over an sde, energy": LossCase(
        partial(SlicedDiffusionScoreMatching, seed=SEED), energy_model, reals, unreached=TIMES_OFFSET
    ),
    "nce": LossCase(partial(NCE, 2, seed=SEED), network, reals, wide),
    "nce, pyro program, fixed log z": LossCase(
        partial(NCE, 1.5, log_z=0.3, learnable=False, seed=SEED), network, reals, program
    ),
    "nce, bits": LossCase(partial(NCE, seed=SEED), rbm, bits, coins),
    "ranking nce": LossCase(partial(ContrastiveNCE, 3, seed=SEED), network, reals, wide, unreached=OFFSET),
    "conditional nce": LossCase(
        partial(ContrastiveNCE, 2, form="conditional", scale=0.5, seed=SEED), network, reals, unreached=OFFSET
    ),
    "conditional nce, bits": LossCase(
        partial(ContrastiveNCE, form="conditional", conditional=flips, seed=SEED), rbm, bits
    ),
    "pseudo-likelihood": LossCase(PseudoLikelihood, rbm, bits),
    "pseudo-likelihood, two coordinates": LossCase(partial(PseudoLikelihood, 2, seed=SEED), rbm, bits),
    "ratio matching": LossCase(RatioMatching, rbm, bits),
}
