"""Models: energies with structure that kernels use (blocks, colourings, conditionals); no sampling code.

To add a model: one final class of ``Energy`` in a file of its own with ``conditionals``, one line here, one row in
``tests/registry.py``.
"""

from ebmppl.models.gaussian_rbm import GaussianRBM
from ebmppl.models.graph import Graph
from ebmppl.models.ising import Ising
from ebmppl.models.rbm import RBM, BernoulliRBM
from ebmppl.models.rbm_views import HiddenEnergy, RBMJoint, TemperedRBM
from ebmppl.models.softmax_rbm import SoftmaxRBM

__all__ = [
    "RBM",
    "BernoulliRBM",
    "GaussianRBM",
    "Graph",
    "HiddenEnergy",
    "Ising",
    "RBMJoint",
    "SoftmaxRBM",
    "TemperedRBM",
]
