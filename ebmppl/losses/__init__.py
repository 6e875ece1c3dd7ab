"""Losses in the protocol of Pyro's ELBO: hyper-parameters, called with an energy, called with data.

To add a loss: one file with its final ``Loss`` and ``BoundLoss`` (``bind``, ``terms``), one line here, one row in
``tests/loss_registry.py``, whose laws then test it.
"""

from ebmppl.losses.base import BoundLoss, Loss
from ebmppl.losses.contrastive import CD, PCD
from ebmppl.losses.contrastive_nce import ContrastiveNCE
from ebmppl.losses.diffusion import (
    DiffusionScoreMatching,
    NoiseConditionalScoreMatching,
    SlicedDiffusionScoreMatching,
)
from ebmppl.losses.likelihood import MLE
from ebmppl.losses.nce import NCE
from ebmppl.losses.pseudo_likelihood import PseudoLikelihood, RatioMatching
from ebmppl.losses.score_matching import (
    DenoisingScoreMatching,
    ExplicitScoreMatching,
    ScoreMatching,
    SlicedScoreMatching,
)
from ebmppl.losses.scores import ScoreNetwork

__all__ = [
    "CD",
    "MLE",
    "NCE",
    "PCD",
    "BoundLoss",
    "ContrastiveNCE",
    "DenoisingScoreMatching",
    "DiffusionScoreMatching",
    "ExplicitScoreMatching",
    "Loss",
    "NoiseConditionalScoreMatching",
    "PseudoLikelihood",
    "RatioMatching",
    "ScoreMatching",
    "ScoreNetwork",
    "SlicedDiffusionScoreMatching",
    "SlicedScoreMatching",
]
