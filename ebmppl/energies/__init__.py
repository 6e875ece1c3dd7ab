"""Energies: plain callables, the algebra, analytic ones, and the unconstrained view.

To add an energy: one final class of ``Energy`` in a file of its own, one line here, one row in ``tests/registry.py``.
"""

from ebmppl.energies.algebra import GeometricPath, Mixture, Sum, Tempered
from ebmppl.energies.analytic import AnalyticEnergy
from ebmppl.energies.base import Energy
from ebmppl.energies.checks import check_energy
from ebmppl.energies.clamped import Clamped
from ebmppl.energies.classifier import ClassifierEnergy
from ebmppl.energies.function import as_energy
from ebmppl.energies.gaussian import Gaussian, GaussianMixture, Quadratic
from ebmppl.energies.landscapes import DoubleWell, Funnel, Rosenbrock
from ebmppl.energies.neural import ConvEnergy, MLPEnergy
from ebmppl.energies.score_energy import EnergyAt, ScoreEnergy
from ebmppl.energies.student import StudentT
from ebmppl.energies.supports import categories, spin
from ebmppl.energies.unconstrained import Unconstrained, unconstrained

__all__ = [
    "AnalyticEnergy",
    "Clamped",
    "ClassifierEnergy",
    "ConvEnergy",
    "DoubleWell",
    "Energy",
    "EnergyAt",
    "Funnel",
    "Gaussian",
    "GaussianMixture",
    "GeometricPath",
    "MLPEnergy",
    "Mixture",
    "Quadratic",
    "Rosenbrock",
    "ScoreEnergy",
    "StudentT",
    "Sum",
    "Tempered",
    "Unconstrained",
    "as_energy",
    "categories",
    "check_energy",
    "spin",
    "unconstrained",
]
