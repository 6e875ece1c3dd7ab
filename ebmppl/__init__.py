"""ebmppl: energy-based and score-based models on Pyro and PyTorch."""

from ebmppl import energies, kernels, models
from ebmppl.energies import Energy, as_energy
from ebmppl.interop import from_pyro
from ebmppl.kernels import (
    HMC,
    MALA,
    NUTS,
    DiscreteLangevin,
    Gibbs,
    GibbsWithGradients,
    Langevin,
    Metropolis,
    SwendsenWang,
    Wolff,
)
from ebmppl.sampling import MCMC

__version__ = "0.1.0"
__all__ = [
    "HMC",
    "MALA",
    "MCMC",
    "NUTS",
    "DiscreteLangevin",
    "Energy",
    "Gibbs",
    "GibbsWithGradients",
    "Langevin",
    "Metropolis",
    "SwendsenWang",
    "Wolff",
    "as_energy",
    "energies",
    "from_pyro",
    "kernels",
    "models",
]
