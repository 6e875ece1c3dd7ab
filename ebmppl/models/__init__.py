"""Models: energies with structure that kernels use (blocks, colourings, conditionals); no sampling code.

To add a model: one final class of ``Energy`` in a file of its own with ``conditionals``, one line here, one row in
``tests/registry.py``.
"""

from ebmppl.models.boltzmann import BoltzmannMachine
from ebmppl.models.experts import GaussianExperts, LogisticExperts, SoftplusExperts, StudentTExperts
from ebmppl.models.gaussian_rbm import GaussianRBM
from ebmppl.models.graph import Graph
from ebmppl.models.hopfield import Hopfield
from ebmppl.models.ising import Ising
from ebmppl.models.potts import Potts
from ebmppl.models.products import ProductOfExperts
from ebmppl.models.rbm import RBM, BernoulliRBM
from ebmppl.models.rbm_views import HiddenEnergy, RBMJoint, TemperedRBM
from ebmppl.models.softmax_rbm import SoftmaxRBM

__all__ = [
    "RBM",
    "BernoulliRBM",
    "BoltzmannMachine",
    "GaussianExperts",
    "GaussianRBM",
    "Graph",
    "HiddenEnergy",
    "Hopfield",
    "Ising",
    "LogisticExperts",
    "Potts",
    "ProductOfExperts",
    "RBMJoint",
    "SoftmaxRBM",
    "SoftplusExperts",
    "StudentTExperts",
    "TemperedRBM",
]
