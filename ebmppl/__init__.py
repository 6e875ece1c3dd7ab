"""ebmppl: energy-based and score-based models on Pyro and PyTorch."""

from ebmppl import energies, kernels, models, partition, score
from ebmppl.energies import Energy, as_energy
from ebmppl.interop import from_pyro
from ebmppl.kernels import (
    HMC,
    MALA,
    NUTS,
    AdaptiveFlow,
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
from ebmppl.partition import log_partition
from ebmppl.sampling import MCMC, generate, transport
from ebmppl.score import log_likelihood

__version__ = "0.1.0"
__all__ = [
    "HMC",
    "MALA",
    "MCMC",
    "NUTS",
    "AdaptiveFlow",
    "AnnealedLangevin",
    "Blocks",
    "DiscreteLangevin",
    "Energy",
    "Gibbs",
    "GibbsWithGradients",
    "Langevin",
    "Metropolis",
    "ParallelTempering",
    "ProbabilityFlow",
    "ReverseSDE",
    "SwendsenWang",
    "Wolff",
    "as_energy",
    "energies",
    "from_pyro",
    "generate",
    "kernels",
    "log_likelihood",
    "log_partition",
    "models",
    "partition",
    "score",
    "transport",
]
