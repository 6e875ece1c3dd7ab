"""Sampling: the door (``MCMC``), the tick engine, the warm-up schedule, noise and draws."""

from ebmppl.sampling.generate import generate, transport
from ebmppl.sampling.initial import FromData, Uniform
from ebmppl.sampling.mcmc import MCMC

__all__ = ["MCMC", "FromData", "Uniform", "generate", "transport"]
