"""Training of energies: ``fit``, with a monitor of the chains and actions where they don't keep up."""

from ebmppl.training.actions import Action, RaiseK, Reinitialise, RollBack, Warn
from ebmppl.training.ema import EMA
from ebmppl.training.fitting import Fit, fit
from ebmppl.training.health import Health, Problem
from ebmppl.training.monitor import Monitor
from ebmppl.training.run import Run, Step
from ebmppl.training.tensorboard import TensorBoard

__all__ = [
    "EMA",
    "Action",
    "Fit",
    "Health",
    "Monitor",
    "Problem",
    "RaiseK",
    "Reinitialise",
    "RollBack",
    "Run",
    "Step",
    "TensorBoard",
    "Warn",
    "fit",
]
