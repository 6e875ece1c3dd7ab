"""Border to Pyro (models) and ArviZ."""

from ebmppl.interop.arviz import to_arviz
from ebmppl.interop.pyro_model import PyroEnergy, from_pyro

__all__ = ["PyroEnergy", "from_pyro", "to_arviz"]
