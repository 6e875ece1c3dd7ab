"""What a score model as a Pyro distribution holds: no latents of the model, and its own score when copied or reloaded."""

from __future__ import annotations

import copy
import gc
import io
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC as PyroMCMC
from pyro.infer import NUTS as PyroNUTS
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoNormal
from torch import Tensor, nn

import ebmppl as eb
from ebmppl.score import VP, EnergyGradient, NoisePrediction, TimeMLP, UNet

LATENT = "without latents of the model"
SDE = VP()
Score = Callable[[Tensor, Tensor], Tensor]


class Shifted(nn.Module):
    """The score of N(shift, 1)."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.tensor([shift]))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.shift * SDE.marginal(t)[0].unsqueeze(-1) - x


def program(score_of: Callable[[Tensor], Score], log_prior_of: Any = lambda mu: None) -> Callable[[], None]:
    def model() -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0).expand([1]).to_event(1))
        made = eb.ScoreDistribution(score_of(mu), SDE, (1,), rtol=0.1, atol=0.1, log_prior=log_prior_of(mu))
        x = pyro.sample("x", made)
        pyro.sample("y", dist.Normal(x, 0.1).to_event(1), obs=torch.tensor([3.0]))

    return model


def of_latent(mu: Tensor) -> Score:
    return lambda x, t: mu * SDE.marginal(t)[0].unsqueeze(-1) - x


def by_autograd(x: Tensor, t: Tensor) -> Tensor:
    with torch.enable_grad():
        at = x if x.requires_grad else x.detach().requires_grad_()
        return torch.autograd.grad(-0.5 * at.square().sum(), at, create_graph=True)[0]


def nuts(model: Callable[[], None]) -> None:
    PyroMCMC(PyroNUTS(model, max_tree_depth=1), 1, 0, disable_progbar=True).run()


def one_step(model: Callable[[], None], guide: Callable[[Any], Any]) -> None:
    pyro.clear_param_store()
    SVI(model, guide(model), pyro.optim.Adam({"lr": 0.1}), Trace_ELBO()).step()


WAYS = {
    "from_pyro": lambda model: eb.from_pyro(model).value_and_grad(torch.tensor([[1.0, 2.0], [2.0, 1.0]])),
    "nuts": nuts,
    "delta": lambda model: one_step(model, AutoDelta),
    "normal": lambda model: one_step(model, AutoNormal),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_score_of_another_latent_is_refused(way: Callable[[Any], object]) -> None:
    with pytest.raises(ValueError, match=f"a score {LATENT}"):
        way(program(of_latent))
    with pytest.raises(ValueError, match=f"a log_prior {LATENT}"):
        way(program(lambda mu: lambda x, t: -x, lambda mu: lambda x: -(x - mu).square().sum(1)))


network = Shifted(0.5)
ALLOWED: dict[str, Score] = {
    "module": network,
    "closure": lambda x, t: network(x, t),
    "pyro.param": lambda x, t: pyro.param("by", torch.tensor(1.0)) * -x,
    "energy": EnergyGradient(lambda x, t: 0.5 * x.square().sum(-1), SDE),
    "autograd": by_autograd,
    "autograd twice": lambda x, t: 0.5 * (by_autograd(x, t) + by_autograd(x, t)),
}


@pytest.mark.parametrize("way", [WAYS["from_pyro"], WAYS["normal"]], ids=["from_pyro", "normal"])
@pytest.mark.parametrize("score", ALLOWED.values(), ids=ALLOWED)
def test_parameters_and_derivatives_inside_are_not(score: Score, way: Callable[[Any], object]) -> None:
    way(program(lambda mu: score))


def value(made: Any) -> float:
    return float(made.log_prob(torch.ones(1, 1)))


def test_a_copy_and_a_reloaded_one_have_scores_of_their_own() -> None:
    made = eb.ScoreDistribution(Shifted(0.0), SDE, (1,))
    known = value(made)
    copied, file = copy.deepcopy(made), io.BytesIO()
    torch.save(made, file)
    file.seek(0)
    with torch.no_grad():
        made._flow.score.shift.fill_(-1.0)
        copied._flow.score.shift.fill_(2.0)
    wanted = [value(eb.ScoreDistribution(Shifted(shift), SDE, (1,))) for shift in (-1.0, 2.0)]
    assert [value(made), value(copied)] == wanted
    assert len({known, *wanted}) == 3
    del made
    gc.collect()
    other = eb.ScoreDistribution(Shifted(-2.0), SDE, (1,))
    assert value(torch.load(file, weights_only=False)) == known
    assert value(copied) == wanted[1]
    assert value(other) != known


class Unhashable:
    """The log density of N(0, I) over one number, or shifted; equal to others, as a dataclass is."""

    def __init__(self, shift: float) -> None:
        self.shift = shift

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Unhashable)

    __hash__ = None  # type: ignore[assignment]

    def __call__(self, x: Tensor) -> Tensor:
        return dist.Normal(self.shift, 1.0).log_prob(x.squeeze(1))


def test_a_log_prior_need_not_be_hashable() -> None:
    score, first, second = Shifted(0.0), Unhashable(0.0), Unhashable(3.0)
    made, again, other = (eb.ScoreDistribution(score, SDE, (1,), log_prior=p) for p in (first, first, second))
    assert made._flow is again._flow
    assert value(made) == pytest.approx(value(eb.ScoreDistribution(score, SDE, (1,))), abs=1e-5)
    assert value(other) != value(made)


@pytest.mark.parametrize("network", [TimeMLP((1, 4, 4), (8,)), UNet((1, 4, 4), 4, 1)])
def test_points_of_another_dtype_are_told(network: nn.Module) -> None:
    x, score = torch.zeros(1, 1, 4, 4, dtype=torch.float64), NoisePrediction(network, SDE)
    with pytest.raises(ValueError, match=r"dtype of the score's parameters, got torch\.float64"):
        eb.log_likelihood(score, SDE, x)
    with pytest.raises(ValueError, match=r"dtype of the score's parameters, got torch\.float64"):
        eb.ScoreDistribution(score, SDE, (1, 4, 4)).log_prob(x)
