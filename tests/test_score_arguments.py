"""What isn't a number, a shape, a function, ... where one is wanted: every constructor and function of score models says so."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pyro.infer import MCMC as PyroMCMC
from torch import Tensor

import ebmppl as eb
from ebmppl import losses, score
from ebmppl.energies import EnergyAt, ScoreEnergy
from ebmppl.score import VP

PAIR = torch.ones(2)
NO_NUMBER = ("a", None, math.nan, True, PAIR, 1j)
BAD: dict[str, tuple[Any, ...]] = {
    "positive": (*NO_NUMBER, math.inf, 0.0, -1.0),
    "number": (*NO_NUMBER, math.inf),  # infinity is out of range everywhere
    "count": (*NO_NUMBER, 1.5, 0, -1),
    "whole": (*NO_NUMBER, 1.5, -1),
    "shape": ("ab", 3, 2.0, (1.5,), (0,), (-1,), PAIR),
    "function": ("a", 3, None),
    "sde": ("a", None, VP),
    "levels": ("a", 3, [], [1.0, 2.0], [1.0, math.nan], ["a"], torch.ones(2, 2), torch.tensor([1.0, 0.0])),
    "tensor": ("a", 3.0),
    "method": ("a", None, 3),
    "weight": (*NO_NUMBER[:4], 1j, math.inf, torch.ones(2, 2), torch.tensor([1.0, math.nan])),
    "label": ("a", None, 1.5, True),
    "exponents": ("ab", 3, 2.0, (1.5,), (-1,)),
    "range": ("a", 3, [1.0], [2.0, 1.0], [math.nan, 1.0], ["a", "b"]),
}
# where None is a value; "!" after a kind says that it isn't
OPTIONAL = (
    "num_classes",
    "seed",
    "probes",
    "batch_size",
    "data_std",
    "times",
    "log_prior",
    "data",
    "like",
    "step_size",
)

Case = tuple[Callable[..., Any], dict[str, Any], dict[str, str]]


def field(x: Tensor, t: Tensor) -> Tensor:
    return -x


def energy(x: Tensor, t: Tensor) -> Tensor:
    return 0.5 * x.square().sum(1)


def likelihood(x: Tensor, t: Tensor) -> Tensor:
    return x.sum(1)


SCORE = {"score": field, "sde": VP(), "event_shape": (2,)}
SCORE_KINDS = {"score": "function", "sde": "sde", "event_shape": "shape"}
NETWORK = {"num_features": 4, "scale": 1.0, "num_classes": 3}
NETWORK_KINDS = {"num_features": "count", "scale": "positive", "num_classes": "count"}
MATRIX, VALUES, MASK = torch.eye(2), torch.zeros(2), torch.tensor([True, False])
MEASURED_KINDS = {"data_std": "positive", "scale": "weight", "method": "method", "score": "function", "sde": "sde"}
STEPS = {"num_steps": "count", "t_min": "positive"}
ADAPTIVE = {**SCORE_KINDS, "rtol": "positive", "atol": "positive", "t_min": "positive"}
LOSS = {"label_dropout": "number", "seed": "whole"}


def bound(**options: Any) -> Any:
    return eb.DiffusionScoreMatching(**options)(score.NoisePrediction(field, VP()))


def mala(**options: Any) -> Any:
    return eb.AnnealedMALA(score.EnergyGradient(energy, score.KarrasVE(5.0)), event_shape=(2,), **options)


SIGMAS = {"sigma_min": 0.1, "sigma_max": 2.0}
SIGMAS_KINDS = {"sigma_min": "positive", "sigma_max": "positive"}
BETAS_KINDS = {"beta_min": "positive", "beta_max": "positive"}

CASES: dict[str, Case] = {
    "VE": (score.VE, SIGMAS, SIGMAS_KINDS),
    "VP": (VP, {"beta_min": 0.1, "beta_max": 1.0}, BETAS_KINDS),
    "SubVP": (score.SubVP, {"beta_min": 0.1, "beta_max": 1.0}, BETAS_KINDS),
    "KarrasVE": (score.KarrasVE, {"sigma_max": 2.0}, {"sigma_max": "positive"}),
    "CosineVP": (score.CosineVP, {"offset": 0.1, "t_max": 0.9}, {"offset": "number", "t_max": "positive"}),
    "DiscreteVP": (score.DiscreteVP, {"betas": torch.full((3,), 0.1)}, {"betas": "tensor"}),
    "GenericSDE": (
        score.GenericSDE,
        {"drift": field, "diffusion": torch.ones_like, "prior_std": 1.0, "t_max": 1.0},
        {"drift": "function", "diffusion": "function", "prior_std": "positive", "t_max": "positive"},
    ),
    "time_of": (VP().time_of, {"ratio": torch.ones(2)}, {"ratio": "tensor"}),
    "prior": (VP().prior, {"event_shape": (2,)}, {"event_shape": "shape"}),
    "geometric_sigmas": (score.geometric_sigmas, {"num_levels": 3, **SIGMAS}, {"num_levels": "count", **SIGMAS_KINDS}),
    "karras_sigmas": (
        score.karras_sigmas,
        {"num_levels": 3, **SIGMAS, "rho": 7.0},
        {"num_levels": "count", **SIGMAS_KINDS, "rho": "positive"},
    ),
    "linear_betas": (score.linear_betas, {"num_steps": 50}, {"num_steps": "count", **BETAS_KINDS}),
    "cosine_betas": (
        score.cosine_betas,
        {"num_steps": 5},
        {"num_steps": "count", "offset": "number", "most": "positive"},
    ),
    **{
        fn.__name__: (fn, {"sde": VP(), "num_steps": 5, "t_min": 0.1}, {"sde": "sde", **STEPS})
        for fn in (score.uniform_times, score.log_snr_times, score.karras_times)
    },
    **{
        kind.__name__: (kind, {"network": field, "sde": VP()}, {"network": "function", "sde": "sde"})
        for kind in (score.ScorePrediction, score.NoisePrediction, score.DataPrediction, score.VelocityPrediction)
    },
    "EDM": (
        score.EDM,
        {"network": field, "sde": VP(), "data_std": 1.0},
        {"network": "function", "sde": "sde", "data_std": "positive!"},
    ),
    "EnergyGradient": (score.EnergyGradient, {"network": energy, "sde": VP()}, {"network": "function", "sde": "sde"}),
    "FourierFeatures": (
        score.FourierFeatures,
        {"num_features": 4, "scale": 1.0, "seed": 0},
        {"num_features": "count", "scale": "positive", "seed": "whole!"},
    ),
    "TimeMLP": (
        score.TimeMLP,
        {"event_shape": (2,), "hidden": (8,), "out_shape": (2,), **NETWORK},
        {"event_shape": "shape", "hidden": "shape", "out_shape": "shape", **NETWORK_KINDS},
    ),
    "UNet": (
        score.UNet,
        {"image_shape": (1, 4, 4), "width": 4, "depth": 1, "patch": 1, "fine": (3,), **NETWORK},
        {
            "image_shape": "shape",
            "width": "count",
            "depth": "whole",
            "patch": "count",
            "fine": "exponents",
            **NETWORK_KINDS,
        },
    ),
    "Denoiser": (score.Denoiser, {"score": field, "sde": VP()}, {"score": "function", "sde": "sde"}),
    "ClassConditional": (
        score.ClassConditional,
        {"network": field, "label": 1},
        {"network": "function", "label": "label"},
    ),
    "ClassifierGuidance": (
        score.ClassifierGuidance,
        {"score": field, "classifier": field, "label": 1, "scale": 1.0},
        {"score": "function", "classifier": "function", "scale": "weight", "label": "label"},
    ),
    "ClassifierFreeGuidance": (
        score.ClassifierFreeGuidance,
        {"conditional": field, "unconditional": field, "weight": 1.0},
        {"conditional": "function", "unconditional": "function", "weight": "weight"},
    ),
    "LikelihoodGuidance": (
        score.LikelihoodGuidance,
        {"score": field, "likelihood": likelihood, "scale": 1.0},
        {"score": "function", "likelihood": "function", "scale": "weight", "data": "tensor"},
    ),
    "LinearGuidance": (
        score.LinearGuidance,
        {"score": field, "sde": VP(), "matrix": MATRIX, "measurement": VALUES, "noise_std": 0.1},
        {**MEASURED_KINDS, "matrix": "tensor", "measurement": "tensor", "noise_std": "number"},
    ),
    "InPainting": (
        score.InPainting,
        {**SCORE, "mask": MASK, "values": VALUES},
        {**MEASURED_KINDS, "event_shape": "shape", "mask": "tensor", "values": "tensor", "noise_std": "number"},
    ),
    "Replacement": (
        score.Replacement,
        {**SCORE, "mask": MASK, "values": VALUES},
        {**SCORE_KINDS, "mask": "tensor", "values": "tensor"},
    ),
    "EDMWeighting": (score.EDMWeighting, {}, {"mean": "number", "std": "positive", "data_std": "positive"}),
    "DiscreteTimes": (score.DiscreteTimes, {"times": MATRIX[0] + 1}, {"times": "tensor"}),
    "DiscreteTimes.of": (score.DiscreteTimes.of, {"sde": score.DiscreteVP(torch.full((3,), 0.1))}, {"sde": "sde"}),
    "NoiseLevels": (score.NoiseLevels, {"sigmas": [2.0, 1.0]}, {"sigmas": "levels"}),
    "DiffusionScoreMatching": (bound, {}, {"weighting": "method", "t_min": "positive", **LOSS}),
    "SlicedDiffusionScoreMatching": (
        losses.SlicedDiffusionScoreMatching,
        {},
        {"weighting": "method", "num_slices": "count", "label_dropout": "number"},
    ),
    "NoiseConditionalScoreMatching": (
        losses.NoiseConditionalScoreMatching,
        {"sigmas": [2.0, 1.0]},
        {"sigmas": "levels", "label_dropout": "number"},
    ),
    "ReverseSDE": (
        eb.ReverseSDE,
        {**SCORE, "num_steps": 5},
        {**SCORE_KINDS, **STEPS, "method": "method", "snr": "positive", "corrector_steps": "count", "jump": "count"},
    ),
    "ReverseSDE, resampling": (
        eb.ReverseSDE,
        {**SCORE, "num_steps": 5, "method": "ancestral"},
        {"resample": "count", "times": "function"},
    ),
    "ProbabilityFlow": (
        eb.ProbabilityFlow,
        {**SCORE, "num_steps": 5, "method": "heun"},
        {
            **SCORE_KINDS,
            **STEPS,
            "method": "method",
            "churn": "number",
            "churn_range": "range",
            "churn_noise": "positive",
        },
    ),
    "AdaptiveFlow": (eb.AdaptiveFlow, SCORE, ADAPTIVE),
    "AdaptiveReverseSDE": (eb.AdaptiveReverseSDE, SCORE, ADAPTIVE),
    "AnnealedLangevin": (
        eb.AnnealedLangevin,
        {"score": field, "sigmas": [2.0, 1.0], "event_shape": (2,)},
        {
            "score": "function",
            "event_shape": "shape",
            "sigmas": "levels",
            "steps_per_level": "count",
            "step_size": "positive",
        },
    ),
    "AnnealedMALA": (
        mala,
        {"sigmas": [2.0, 1.0]},
        {"sigmas": "levels", "steps_per_level": "count", "step_size": "positive"},
    ),
    "generate": (
        eb.generate,
        {"kernel": eb.ProbabilityFlow(**SCORE, num_steps=2), "n": 2},
        {"kernel": "function", "n": "count", "seed": "whole", "batch_size": "count", "backend": "method"},
    ),
    "transport": (
        eb.transport,
        {"kernel": eb.ProbabilityFlow(**SCORE, num_steps=2), "x": torch.zeros(1, 2)},
        {"kernel": "function", "x": "tensor", "seed": "whole", "backend": "method"},
    ),
    "log_likelihood": (
        eb.log_likelihood,
        {"score": field, "sde": VP(), "x": torch.zeros(1, 2)},
        {k: v for k, v in ADAPTIVE.items() if k != "event_shape"}
        | {"x": "tensor", "probes": "count", "seed": "whole!", "backend": "method", "log_prior": "function"},
    ),
    "ScoreDistribution": (
        eb.ScoreDistribution,
        SCORE,
        {**ADAPTIVE, "probes": "count", "seed": "whole!", "log_prior": "function", "like": "tensor"},
    ),
    "bits_per_dimension": (
        eb.log_likelihood(field, VP(), torch.zeros(1, 2), 0.1, 0.1).bits_per_dimension,
        {"scale": 0.1},
        {"scale": "positive"},
    ),
    "ScoreEnergy": (
        ScoreEnergy,
        {"score": field, "event_shape": (2,)},
        {"score": "function", "event_shape": "shape"},
    ),
    "EnergyAt": (
        EnergyAt,
        {"model": energy, "event_shape": (2,), "t": 0.1},
        {"model": "function", "event_shape": "shape", "t": "number"},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_good_arguments(name: str) -> None:
    make, good, _ = CASES[name]
    make(**good)


@pytest.mark.parametrize(
    ("name", "argument"), [(name, argument) for name, case in CASES.items() for argument in case[2]]
)
def test_bad_input(name: str, argument: str) -> None:
    make, good, kinds = CASES[name]
    kind = kinds[argument]
    for value in BAD[kind.rstrip("!")]:
        if value is None and argument in OPTIONAL and not kind.endswith("!"):
            continue
        with pytest.raises(ValueError, match=r"(?s)expected .*, got"):
            make(**{**good, argument: value})


@pytest.mark.parametrize(
    "kernel",
    [
        eb.ReverseSDE(
            lambda x, t: -x, VP(), (2,), num_steps=4, times=lambda sde, n, end: torch.linspace(0.5, end, n + 1)
        ),
        eb.ProbabilityFlow(lambda x, t: -x, VP(), (2,), num_steps=4, forward=True),
        eb.AdaptiveFlow(lambda x, t: -x, VP(), (2,), forward=True),
    ],
    ids=["times", "forward", "adaptive"],
)
def test_draws_of_the_prior_are_not_taken_for_points_of_another_time(kernel: eb.kernels.Kernel) -> None:
    with pytest.raises(ValueError, match=r"begins at T = 1, where draws of the prior are .*, got one that begins at "):
        eb.generate(kernel, 3, seed=0)
    with pytest.raises(ValueError, match="begins at T = 1"):
        eb.MCMC(kernel, 1, 0, num_chains=3)
    with pytest.raises(ValueError, match="begins at T = 1"):
        PyroMCMC(kernel, num_samples=1, warmup_steps=0, disable_progbar=True).run()
    assert eb.transport(kernel, torch.zeros(3, 2), seed=0).shape == (3, 2)


class Own(eb.score.SDE):
    """With a drift and a diffusion that are given."""

    def __init__(self, drift: Any, diffusion: Any) -> None:
        super().__init__()
        self.given = drift, diffusion

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        return self.given[0](x, t)

    def diffusion(self, t: Tensor) -> Tensor:
        return self.given[1](t)


@pytest.mark.parametrize(
    ("drift", "diffusion", "event", "message"),
    [
        (lambda x, t: -t * x, torch.ones_like, (1,), r"Own.drift\(x, t\) of shape \(3, 1\), got .*\(3, 3\)"),
        (
            lambda x, t: -t * x,
            torch.ones_like,
            (3,),
            r"Own.drift\(x, t\) with a time for each row, .* got one that mixes",
        ),
        (lambda x, t: -x, lambda t: 1.4, (3,), r"Own.diffusion\(t\) of shape \(3,\), got float"),
        (lambda x, t: -x, lambda t: t.new_ones(len(t), 1), (3,), r"diffusion\(t\) of shape \(3,\), got .*\(3, 1\)"),
    ],
)
def test_rates_of_another_shape(drift: Any, diffusion: Any, event: tuple[int, ...], message: str) -> None:
    """Some gave draws of another shape, or rows that were each at the times of others."""
    sde, score = Own(drift, diffusion), lambda x, t: -x
    uses = (
        lambda: eb.generate(eb.ReverseSDE(score, sde, event, 5), 3, seed=0),
        lambda: eb.generate(eb.AdaptiveFlow(score, sde, event), 3, seed=0),
        lambda: eb.log_likelihood(score, sde, torch.zeros(3, *event)),
    )
    for use in uses:
        with pytest.raises(ValueError, match=message):
            use()
