"""Kernels: one algorithm per file, on the tick contract of ``base.py``.

To add a kernel: one file with its State, Info and final class (``init``, ``init_tuning``, ``noise``, ``tick``,
``position``), one line here, one row in ``tests/registry.py``, whose laws then test it. Acceptance, integrators and
adaptation are shared parts: ``accept.py``, ``integrators.py``, ``adaptation.py``.
"""

from ebmppl.kernels.adaptive_flow import AdaptiveFlow
from ebmppl.kernels.adaptive_reverse_sde import AdaptiveReverseSDE
from ebmppl.kernels.annealed_langevin import AnnealedLangevin
from ebmppl.kernels.annealed_mala import AnnealedMALA
from ebmppl.kernels.base import Kernel, NoiseSpec
from ebmppl.kernels.blocks import Blocks
from ebmppl.kernels.discrete import DiscreteKernel
from ebmppl.kernels.discrete_langevin import DiscreteLangevin
from ebmppl.kernels.gibbs import Gibbs
from ebmppl.kernels.gibbs_with_gradients import GibbsWithGradients
from ebmppl.kernels.gradient_kernel import GradientKernel
from ebmppl.kernels.hmc import HMC
from ebmppl.kernels.langevin import Langevin
from ebmppl.kernels.mala import MALA
from ebmppl.kernels.metropolis import Metropolis
from ebmppl.kernels.nuts import NUTS
from ebmppl.kernels.parallel_tempering import ParallelTempering
from ebmppl.kernels.probability_flow import ProbabilityFlow
from ebmppl.kernels.reverse_sde import ReverseSDE
from ebmppl.kernels.swendsen_wang import SwendsenWang
from ebmppl.kernels.wolff import Wolff

__all__ = [
    "HMC",
    "MALA",
    "NUTS",
    "AdaptiveFlow",
    "AdaptiveReverseSDE",
    "AnnealedLangevin",
    "AnnealedMALA",
    "Blocks",
    "DiscreteKernel",
    "DiscreteLangevin",
    "Gibbs",
    "GibbsWithGradients",
    "GradientKernel",
    "Kernel",
    "Langevin",
    "Metropolis",
    "NoiseSpec",
    "ParallelTempering",
    "ProbabilityFlow",
    "ReverseSDE",
    "SwendsenWang",
    "Wolff",
]
