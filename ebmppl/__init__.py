"""ebmppl: energy-based and score-based models on Pyro and PyTorch."""

from ebmppl import energies, kernels, losses, models, partition, score, training
from ebmppl.energies import Energy, as_energy
from ebmppl.interop import from_pyro
from ebmppl.kernels import (
    HMC,
    MALA,
    NUTS,
    AdaptiveFlow,
    AdaptiveReverseSDE,
    AnnealedLangevin,
    Blocks,
    DiscreteLangevin,
    Gibbs,
    GibbsWithGradients,
    Langevin,
    Metropolis,
    ParallelTempering,
    ProbabilityFlow,
    ReverseSDE,
    SwendsenWang,
    Wolff,
)
from ebmppl.losses import (
    CD,
    MLE,
    NCE,
    PCD,
    ContrastiveNCE,
    DenoisingScoreMatching,
    ExplicitScoreMatching,
    PseudoLikelihood,
    RatioMatching,
    ScoreMatching,
    SlicedScoreMatching,
)
from ebmppl.partition import log_partition
from ebmppl.sampling import MCMC, generate, transport
from ebmppl.score import log_likelihood
from ebmppl.training import fit

__version__ = "0.1.0"
__all__ = [
    "CD",
    "HMC",
    "MALA",
    "MCMC",
    "MLE",
    "NCE",
    "NUTS",
    "PCD",
    "AdaptiveFlow",
    "AdaptiveReverseSDE",
    "AnnealedLangevin",
    "Blocks",
    "ContrastiveNCE",
    "DenoisingScoreMatching",
    "DiscreteLangevin",
    "Energy",
    "ExplicitScoreMatching",
    "Gibbs",
    "GibbsWithGradients",
    "Langevin",
    "Metropolis",
    "ParallelTempering",
    "ProbabilityFlow",
    "PseudoLikelihood",
    "RatioMatching",
    "ReverseSDE",
    "ScoreMatching",
    "SlicedScoreMatching",
    "SwendsenWang",
    "Wolff",
    "as_energy",
    "energies",
    "fit",
    "from_pyro",
    "generate",
    "kernels",
    "log_likelihood",
    "log_partition",
    "losses",
    "models",
    "partition",
    "score",
    "training",
    "transport",
]
