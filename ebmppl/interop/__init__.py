"""Border to Pyro (models) and ArviZ."""

from ebmppl.interop.arviz import to_arviz
from ebmppl.interop.pyro_model import PyroEnergy, from_pyro
from ebmppl.interop.score_distribution import ScoreDistribution

__all__ = ["PyroEnergy", "ScoreDistribution", "from_pyro", "to_arviz"]
