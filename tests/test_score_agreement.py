"""A score is used by its own SDE, or not at all."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import ebmppl as eb
from ebmppl.score import (
    SDE,
    VE,
    VP,
    ClassConditional,
    ClassifierFreeGuidance,
    CosineVP,
    DiscreteVP,
    GenericSDE,
    KarrasVE,
    LikelihoodGuidance,
    Replacement,
    ScorePrediction,
    SubVP,
    linear_betas,
)

MASK = torch.tensor([True, False])
ALL: dict[str, Callable[[], SDE]] = {
    "ve": lambda: VE(0.01, 50.0),
    "narrow ve": lambda: VE(0.02, 50.0),
    "karras": KarrasVE,
    "vp": VP,
    "fast vp": lambda: VP(0.1, 21.0),
    "subvp": SubVP,
    "cosine": CosineVP,
    "discrete": lambda: DiscreteVP(linear_betas(100)),
    "user's": lambda: GenericSDE(lambda x, t: -torch.sin(x), lambda t: 1 + t, 1.0),
}


class Ornstein(SDE):
    """A user's, with a buffer."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.register_buffer("rate", torch.tensor(rate, dtype=torch.float32))

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        return -self.rate * x

    def diffusion(self, t: Tensor) -> Tensor:
        return (2 * self.rate).sqrt().expand(t.shape)


def model(sde: SDE) -> ScorePrediction:
    return ScorePrediction(lambda x, t, label=None: -x, sde)


USES: dict[str, Callable[[Any, SDE], object]] = {
    "reverse": lambda s, sde: eb.ReverseSDE(s, sde, (2,), 4),
    "flow": lambda s, sde: eb.ProbabilityFlow(s, sde, (2,), 4, "heun"),
    "adaptive": lambda s, sde: eb.AdaptiveFlow(s, sde, (2,)),
    "adaptive reverse": lambda s, sde: eb.AdaptiveReverseSDE(s, sde, (2,)),
    "likelihood": lambda s, sde: eb.score.log_likelihood(s, sde, torch.zeros(1, 2), 0.1, 0.1, 0.5),
    "distribution": lambda s, sde: eb.ScoreDistribution(s, sde, (2,)),
}
INSIDE: dict[str, Callable[[Any], Any]] = {
    "itself": lambda s: s,
    "label": lambda s: ClassConditional(s, 1),
    "likelihood": lambda s: LikelihoodGuidance(s, lambda x, t: -x.square().sum(1)),
    "one of two": lambda s: ClassifierFreeGuidance(ClassConditional(lambda x, t, label: -x, 1), s),
    "mask": lambda s: Replacement(s, VP(), (2,), MASK, torch.zeros(2)),
    "measured": lambda s: eb.score.InPainting(s, VP(), (2,), MASK, torch.zeros(2)),
}


@pytest.mark.parametrize("use", USES)
def test_another_sde_is_refused_and_an_equal_one_taken(use: str) -> None:
    with pytest.raises(ValueError, match=r"a score of the given VP\(.*, got ScorePrediction of VE\(sigma_min=0.01"):
        USES[use](model(VE()), VP())
    USES[use](model(VP()), VP())


@pytest.mark.parametrize("inside", INSIDE)
def test_a_score_inside_others_is_found(inside: str) -> None:
    with pytest.raises(ValueError, match=r"got ScorePrediction of VE"):
        eb.ReverseSDE(INSIDE[inside](model(VE())), VP(), (2,), 4)
    eb.ReverseSDE(INSIDE[inside](model(VP())), VP(), (2,), 4)


@pytest.mark.parametrize("own", ALL)
def test_each_sde_agrees_with_its_copies_alone(own: str) -> None:
    for other, make in ALL.items():
        score, given = model(make()), ALL[own]()
        if own == other != "user's":  # a user's functions are others by every call
            eb.ReverseSDE(score, given, (2,), 4)
        elif own != other:
            with pytest.raises(ValueError, match="a score of the given"):
                eb.ReverseSDE(score, given, (2,), 4)
    eb.ReverseSDE(model(given), copy.deepcopy(given), (2,), 4)


def test_a_users_own_agrees_by_what_it_does() -> None:
    sde = Ornstein(2.0)
    for same in (sde, Ornstein(2.0), copy.deepcopy(sde).double(), GenericSDE(sde.drift, sde.diffusion, 1.0)):
        eb.ReverseSDE(model(sde), same, (2,), 4)
    with pytest.raises(ValueError, match="given Ornstein"):
        eb.ReverseSDE(model(sde), Ornstein(2.1), (2,), 4)


def test_noise_levels_are_the_times_of_a_model_that_has_some() -> None:
    energy = lambda x, t: x.square().sum(1)
    for sde in (VE(), VP()):
        for make in (
            lambda sde=sde: eb.AnnealedLangevin(model(sde), [0.5, 0.1], (2,)),
            lambda sde=sde: eb.AnnealedMALA(eb.score.EnergyGradient(energy, sde), [0.5, 0.1], (2,)),
        ):
            with pytest.raises(ValueError, match="whose time is its noise level, as those of KarrasVE, got .* of V"):
                make()
    own = GenericSDE(lambda x, t: 0 * x, lambda t: (2 * t).sqrt(), 5.0, 5.0, lambda t: (torch.ones_like(t), t))
    for sde in (KarrasVE(5.0), own):
        eb.AnnealedLangevin(model(sde), [5.0, 1.0], (2,))
