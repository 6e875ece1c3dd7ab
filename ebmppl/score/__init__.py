"""Score models: diffusions, schedules, what a network predicts and how that becomes a score, and networks."""

from ebmppl.score.base import SDE, GenericSDE, LinearSDE
from ebmppl.score.conditions import Conditional
from ebmppl.score.discrete_sde import DiscreteVP
from ebmppl.score.guidance import (
    ClassConditional,
    ClassifierFreeGuidance,
    ClassifierGuidance,
    Guidance,
    LikelihoodGuidance,
)
from ebmppl.score.inpainting import InPainting, Replacement
from ebmppl.score.inverse import Denoiser, LinearGuidance
from ebmppl.score.likelihood import LogLikelihood, log_likelihood
from ebmppl.score.networks import FourierFeatures, TimeMLP, UNet
from ebmppl.score.parameterisations import (
    EDM,
    DataPrediction,
    EnergyGradient,
    NoisePrediction,
    Parameterisation,
    ScorePrediction,
    VelocityPrediction,
)
from ebmppl.score.schedules import (
    cosine_betas,
    geometric_sigmas,
    karras_sigmas,
    karras_times,
    linear_betas,
    log_snr_times,
    uniform_times,
)
from ebmppl.score.sde import VE, VP, CosineVP, KarrasVE, PreservingSDE, SubVP
from ebmppl.score.weightings import (
    DiscreteTimes,
    EDMWeighting,
    LikelihoodWeighting,
    NoiseLevels,
    UniformTimes,
    Weighting,
)

__all__ = [
    "Conditional",
    "Replacement",
    "LinearGuidance",
    "InPainting",
    "Denoiser",
    "LikelihoodGuidance",
    "Guidance",
    "ClassifierGuidance",
    "ClassifierFreeGuidance",
    "ClassConditional",
    "EDM",
    "SDE",
    "VE",
    "VP",
    "CosineVP",
    "DataPrediction",
    "DiscreteTimes",
    "DiscreteVP",
    "EDMWeighting",
    "EnergyGradient",
    "FourierFeatures",
    "GenericSDE",
    "KarrasVE",
    "LikelihoodWeighting",
    "LinearSDE",
    "LogLikelihood",
    "NoiseLevels",
    "NoisePrediction",
    "Parameterisation",
    "PreservingSDE",
    "ScorePrediction",
    "SubVP",
    "TimeMLP",
    "UNet",
    "UniformTimes",
    "VelocityPrediction",
    "Weighting",
    "cosine_betas",
    "geometric_sigmas",
    "karras_sigmas",
    "karras_times",
    "linear_betas",
    "log_likelihood",
    "log_snr_times",
    "uniform_times",
]
