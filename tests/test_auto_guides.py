"""Pyro's automatic guides as noise: densities and draws against distributions, parameters held, what has no density refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoGuide, AutoMultivariateNormal, AutoNormal
from torch import Tensor, nn
from torch.distributions import constraints

import ebmppl as eb
from ebmppl.energies import Energy, MLPEnergy
from ebmppl.losses import MLE, NCE, ContrastiveNCE, Loss
from ebmppl.losses.noise import as_noise


@pytest.fixture(autouse=True)
def _empty_store() -> Iterator[None]:
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()


def model() -> None:
    with pyro.plate("rates", 3):
        pyro.sample("a", dist.Gamma(2.0, 1.0))
    pyro.sample("b", dist.Normal(torch.ones(2), 1.0).to_event(1))
    pyro.sample("u", dist.Uniform(0.0, 2.0))


class Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.ones(()))

    def forward(self, s: dict[str, Tensor]) -> Tensor:
        return self.rate * (s["a"] - s["a"].log()).sum(-1) + s["b"].square().sum(-1) + self.rate * s["u"]


def energy() -> Energy:
    support = {"a": constraints.positive, "u": constraints.interval(0.0, 2.0)}
    return eb.as_energy(Product(), {"u": (), "a": (3,), "b": (2,)}, support)


def trained(kind: Callable[[Any], AutoGuide]) -> Any:
    """After some steps of variational inference, so that nothing is at its first value."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        guide = kind(model)
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
        for _ in range(20):
            svi.step()
    return guide


def normal_density(guide: Any, site: dict[str, Tensor]) -> Tensor:
    (a, sa), (b, sb), (u, su) = (guide._get_loc_and_scale(name) for name in "abu")
    squeezed = dist.TransformedDistribution(
        dist.Normal(u, su),
        [torch.distributions.SigmoidTransform(), torch.distributions.AffineTransform(0.0, 2.0)],
    )
    of_a, of_b = dist.LogNormal(a, sa).log_prob(site["a"]), dist.Normal(b, sb).log_prob(site["b"])
    return of_a.sum(-1) + of_b.sum(-1) + squeezed.log_prob(site["u"])


def joint_density(guide: Any, site: dict[str, Tensor]) -> Tensor:
    a, u = site["a"], site["u"].unsqueeze(1)
    z = torch.cat([a.log(), site["b"], (u / (2 - u)).log()], 1)
    slopes = a.log().sum(1) + (u * (2 - u) / 2).log().squeeze(1)  # of exp, and of 2 / (1 + exp(-z))
    return guide.get_posterior().log_prob(z) - slopes


GUIDES = {"normal": (AutoNormal, normal_density), "multivariate": (AutoMultivariateNormal, joint_density)}


@pytest.mark.parametrize("name", GUIDES)
def test_draws_and_densities_are_those_of_the_guide(name: str) -> None:
    kind, density = GUIDES[name]
    guide, of = trained(kind), energy()
    noise = as_noise(guide, of)
    x = noise.draw(20_000, 3)
    assert torch.equal(noise.draw(20_000, 3), x)
    site = of.unpack(x)
    with torch.no_grad():
        torch.testing.assert_close(noise.log_prob(x), density(guide, site), rtol=1e-4, atol=1e-4)
        quantiles = guide.quantiles([0.1, 0.5, 0.9])
    for which in ("a", "b", "u"):
        levels = torch.stack([torch.as_tensor(q) for q in quantiles[which]]).unsqueeze(1)
        share = (site[which] < levels).double().mean(1)
        p = torch.tensor([0.1, 0.5, 0.9]).double().view(3, *[1] * (share.dim() - 1))
        # 18 scores in each of 2 tests, the largest is over 4.5 once in 4,000 suites
        assert float(((share - p) / (p * (1 - p) / len(x)).sqrt()).abs().max()) < 4.5
    outside = {**{k: v[:2] for k, v in site.items()}, "u": torch.tensor([2.5, 1.0])}
    assert noise.log_prob(of.pack(outside)).isinf().tolist() == [True, False]


@pytest.mark.parametrize("make", [NCE, partial(ContrastiveNCE, 2), partial(MLE, num_samples=20)])
def test_a_guide_is_held_while_the_energy_is_trained(make: Callable[..., Loss]) -> None:
    guide, of, loss = trained(AutoNormal), energy(), make(seed=0)
    before = [p.detach().clone() for p in guide.parameters()]
    data = of.unpack(as_noise(guide, of).draw(16, 1))
    svi = SVI(of, guide, pyro.optim.Adam({"lr": 0.1}), loss=loss)
    svi.step(data)
    eb.fit(loss, of, data, guide=guide, steps=2, progress=False).run()
    assert next(of.parameters()).item() != 1.0
    assert all(torch.equal(a, b) for a, b in zip(before, guide.parameters(), strict=True))


def test_guides_that_are_no_noise_are_refused() -> None:
    spins = eb.as_energy(lambda s: s["a"].sum(-1), {"a": (3,), "b": (2,), "u": ()}, {"u": constraints.boolean})
    for guide, of, told in [
        (partial(trained, AutoDelta), energy(), "a guide of known density, .* got AutoDelta"),
        (partial(AutoNormal, model), energy(), "one that was not called yet"),
        (partial(trained, AutoNormal), MLPEnergy(2), r"over the sites {'x': \(2,\)}, got one over"),
        (partial(trained, AutoNormal), spins, r"continuous guide of the sites \['u'\]"),
    ]:
        with pytest.raises(ValueError, match=told):
            NCE()(of, guide())
