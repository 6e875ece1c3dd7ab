"""Models whose code looks at values: they run chain by chain, unless their gradient misses what became a Python number."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from functools import partial

import arviz as az
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.autograd import grad
from torch.distributions import constraints

import ebmppl as eb
from ebmppl.energies.checks import check_energy
from ebmppl.energies.looped import require_whole_gradient, scattered
from ebmppl.errors import EnergyError, SamplingWarning
from ebmppl.sampling import choice

LOOKS = r"code looks at values \(if, float\(\) or \.item\(\) of a tensor\)"
SLOWER = f"the model runs chain by chain, slower, for torch.func.vmap can't take it: {LOOKS}"
Y = torch.tensor([0.5, 1.2, -0.3])


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def mixed(y: Tensor) -> None:
    """One way for each sign of z, with sites in a plate and one that is mapped."""
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    mean = z if z > 0 else -0.5 * z
    with pyro.plate("rows", len(y)):
        w = pyro.sample("w", dist.Normal(mean, 1.0))
        pyro.factor("f", -scale * w.sum() if float(w.sum()) > 0 else torch.tensor(0.0))
        pyro.sample("y", dist.Normal(w, 1.0), obs=y)


def mixed_by_hand(x: Tensor, y: Tensor) -> Tensor:
    z, scale, w = x[:, 0], x[:, 1].exp(), x[:, 2:]
    normal = torch.distributions.Normal
    mean = torch.where(z > 0, z, -0.5 * z)[:, None]
    log = normal(0.0, 1.0).log_prob(z) + torch.distributions.HalfNormal(1.0).log_prob(scale) + x[:, 1]
    log = log + (normal(mean, 1.0).log_prob(w) + normal(w, 1.0).log_prob(y)).sum(1)
    total = w.sum(1)
    return -(log - len(y) * torch.where(total > 0, scale * total, 0.0))  # the factor counts in every row of the plate


def test_a_model_that_branches_has_the_energies_and_gradients_of_its_branches() -> None:
    with pytest.warns(SamplingWarning, match=SLOWER):
        energy = eb.from_pyro(mixed, Y)
    assert list(energy.sites) == ["z", "scale", "w"]
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    assert 0 < int((x[:, 0] > 0).sum()) < 6
    assert 0 < int((x[:, 2:].sum(1) > 0).sum()) < 6
    wanted = mixed_by_hand(x.requires_grad_(), Y)
    (slopes,) = grad(wanted.sum(), x)
    value, found = energy.value_and_grad(x)
    forward = energy(x)
    potential = torch.stack([energy.potential_fn(energy.unpack(row)) for row in x])
    for values in (value, forward, potential):
        assert torch.allclose(values, wanted, rtol=1e-12)  # float64, some ten terms
    for gradient in (found, grad(forward.sum(), x)[0], grad(potential.sum(), x)[0]):
        assert torch.allclose(gradient, slopes, rtol=1e-12)


def two_ways(y: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    mean, scale = (z, 0.5) if z > 0 else (-2 * z, 1.0)
    pyro.sample("y", dist.Normal(mean, scale), obs=y)


def moments(y: Tensor) -> tuple[float, float]:
    """The means of z and of its square under ``two_ways``, on a grid of 20,000 midpoints: good to 1e-6."""
    z = (torch.arange(20000) + 0.5) / 20000 * 12 - 6
    mean, scale = torch.where(z > 0, z, -2 * z), torch.where(z > 0, 0.5, 1.0)
    p = torch.softmax(-0.5 * z**2 - 0.5 * ((y - mean) / scale) ** 2 - scale.log(), 0)
    return float((p * z).sum()), float((p * z**2).sum())


@pytest.mark.parametrize("kernel", [eb.NUTS, partial(eb.HMC, num_steps=4)])
def test_draws_of_a_model_that_branches_have_the_moments_of_its_posterior(
    kernel: Callable[[eb.Energy], eb.kernels.Kernel],
) -> None:
    y = torch.tensor(0.8)
    with pytest.warns(SamplingWarning, match=SLOWER):
        energy = eb.from_pyro(two_ways, y)
    mcmc = eb.MCMC(kernel(energy), 250, 100, num_chains=4, seed=0, disable_progbar=True)
    mcmc.run()
    drawn = mcmc.get_samples(group_by_chain=True)["z"]
    for values, wanted in zip((drawn, drawn**2), moments(y), strict=True):
        error = float(az.mcse(values.numpy(), method="mean"))
        assert abs(float(values.mean()) - wanted) < 4 * error  # 4 numbers, each 1 in 16,000 by chance
        assert error < 0.075  # the mean of z by one way alone is off by four times that and more


def test_a_run_says_why_ticks_are_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "LEAST_TICKS", 1)
    with pytest.warns(SamplingWarning, match=SLOWER):
        energy = eb.from_pyro(two_ways, torch.tensor(0.8))
    mcmc = eb.MCMC(eb.HMC(energy, num_steps=2), 3, 3, num_chains=2, seed=0, disable_progbar=True)
    with pytest.warns(SamplingWarning, match=f"the gradient of PyroEnergy runs untraced, slower: {LOOKS}"):
        mcmc.run()
    assert mcmc.backend == "eager"
    assert mcmc.backend_reason.startswith("the gradient is not traced: code looks at values")


# Callables for one point


def bowl(x: Tensor) -> Tensor:
    return 0.5 * x.square().sum() if x[0] > 0 else 2 * x.square().sum()


@pytest.mark.parametrize("batched", [None, False])
def test_a_callable_for_one_point_may_branch(batched: bool | None) -> None:
    energy = eb.as_energy(bowl, (2,), batched=batched)
    with pytest.warns(SamplingWarning, match=f"the energy runs chain by chain, slower, .*: {LOOKS}"):
        energy(torch.zeros(2, 2))
    assert "batched=False (point by point)" in repr(energy)
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    stiff = torch.where(x[:, 0] > 0, 1.0, 4.0)
    value, slope = energy.value_and_grad(x)
    assert torch.allclose(value, 0.5 * stiff * x.square().sum(1), rtol=1e-14)  # float64, two terms
    assert torch.allclose(slope, stiff[:, None] * x, rtol=1e-14)


def test_draws_of_a_callable_that_branches_have_its_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Halves of a round Gaussian of variance 1 for positive x0, and of 1/4: masses as 4 to 1."""
    monkeypatch.setattr(choice, "LEAST_TICKS", 1)
    mcmc = eb.MCMC(eb.NUTS(eb.as_energy(bowl, (2,))), 500, 200, num_chains=4, seed=0, disable_progbar=True)
    with pytest.warns(SamplingWarning, match=LOOKS) as told:
        mcmc.run()
    assert [str(w.message).partition(",")[0] for w in told] == [
        "the energy runs chain by chain",
        "the gradient of FunctionEnergy runs untraced",
    ]
    assert mcmc.backend_reason.startswith("the gradient is not traced: code looks at values")
    drawn = mcmc.get_samples(group_by_chain=True)["x"]
    for values, wanted in ((drawn[..., 0] > 0, 0.8), (drawn[..., 0] ** 2, 0.85), (drawn[..., 1] ** 2, 0.85)):
        error = float(az.mcse(values.double().numpy(), method="mean"))
        assert abs(float(values.double().mean()) - wanted) < 4 * error  # 3 numbers, each 1 in 16,000 by chance
        assert error < 0.1  # one half alone is off by 0.15 and more


def test_the_gradient_of_a_constrained_callable_is_tried_inside_its_support() -> None:
    def energy(x: Tensor) -> Tensor:
        return x[0] * x[1].log().item() if x[0] > 0 else torch.tensor(math.log(x[0].item()))  # the latter: an error

    mcmc = eb.MCMC(
        eb.HMC(eb.as_energy(energy, (2,), constraints.positive)), 2, 2, num_chains=2, seed=0, disable_progbar=True
    )
    with pytest.warns(SamplingWarning, match=LOOKS), pytest.raises(EnergyError, match="has no gradient"):
        mcmc.run()


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (lambda x: x[0].item() * x.sum() if x.dim() == 1 else None, "along 'x' where finite differences give"),
        (lambda x: x.sum() if x[0] > 0 else 1.0, "expected the energy as a tensor, got float"),
        (lambda x: x.sum() if x[0] > 0 else x, "the energy failed at points of shape"),
    ],
)
def test_bad_callables_for_one_point_that_look_at_values_are_named(
    fn: Callable[[Tensor], object], message: str
) -> None:
    energy = eb.as_energy(fn, (2,), batched=False)  # type: ignore[arg-type]
    with pytest.warns(SamplingWarning, match=LOOKS), pytest.raises(EnergyError, match=message):
        check_energy(energy, torch.tensor([[1.0, 0.5], [-1.0, 0.5]]))


def test_points_where_a_callable_fails_decide_nothing() -> None:
    def energy(x: Tensor) -> Tensor:
        if x[0] < -1:
            raise ZeroDivisionError
        return x.square().sum()

    with pytest.warns(SamplingWarning, match=LOOKS):
        check_energy(eb.as_energy(energy, (2,)), torch.full((2, 2), 0.1))


# What is refused


def _number() -> None:
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.factor("f", torch.tensor(-x.item()))


def _number_in_a_branch() -> None:
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    y = pyro.sample("y", dist.Normal(0.0, 1.0))
    pyro.factor("f", y * float(x) if x > 1.5 else y)


def _number_of_many() -> None:
    values = [pyro.sample(f"v{i}", dist.Normal(0.0, 1.0)) for i in range(30)]
    pyro.factor("f", sum(values) * values[17].item())


def _number_of_a_vector() -> None:
    w = pyro.sample("w", dist.Normal(torch.zeros(200), 1.0).to_event(1))
    pyro.factor("f", -0.5 * w[3] * w[100].item())


def _number_after_an_assignment() -> None:
    """vmap stops at the assignment already."""
    x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    mean = torch.zeros(2)
    mean[0] = x[0] * x[1].item()
    pyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=torch.ones(2))


@pytest.mark.parametrize(
    ("model", "sites"),
    [
        (_number, "'x'"),
        (_number_in_a_branch, "'x'"),
        (_number_of_many, "'v1', 'v9', 'v17', 'v25'"),
        (_number_of_a_vector, "'w'"),
        (_number_after_an_assignment, "'x'"),
    ],
)
def test_a_gradient_that_misses_what_became_a_number_is_refused(model: Callable[[], None], sites: str) -> None:
    told = f"along {sites} where finite differences give .* has no gradient"
    with pytest.raises(EnergyError, match=rf"expected a gradient of all that the energy is made of, got .* {told}"):
        eb.from_pyro(model)


def test_it_is_refused_in_float32_too_where_the_data_have_no_other() -> None:
    X = torch.randn(1000, 5, generator=torch.Generator().manual_seed(0)).float()

    def model() -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(5, dtype=torch.float32), 1.0).to_event(1))
        with pyro.plate("rows", len(X)):
            pyro.sample("y", dist.Normal(X @ w * w[0].item(), 1.0), obs=torch.ones_like(X[:, 0]))

    torch.set_default_dtype(torch.float32)
    with pytest.raises(EnergyError, match="has no gradient"):
        eb.from_pyro(model)


def _random_in_a_branch() -> None:
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.factor("f", x * torch.randn(()) if x > 1.5 else x)


def test_random_numbers_in_a_branch_are_refused() -> None:
    with pytest.raises(EnergyError, match="must be a function, without random numbers"):
        eb.from_pyro(_random_in_a_branch)


@pytest.mark.parametrize("more", [True, False])
def test_sites_that_depend_on_a_branch_are_refused_when_it_is_taken(more: bool) -> None:
    """At 7, far from where the model is tried; an extra site would be drawn anew in every call."""

    def model() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        if bool(x > 6) is more:
            pyro.sample("rare", dist.Normal(x, 1.0), **({} if more else {"obs": torch.tensor(0.0)}))  # type: ignore[arg-type]

    with pytest.warns(SamplingWarning, match=SLOWER):
        energy = eb.from_pyro(model)
    with pytest.raises(ValueError, match="the same sites in every call, got at site 'rare'"):
        energy.value_and_grad(torch.tensor([[0.0], [7.0]]))


# What is not


def kinks(y: Tensor) -> None:
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Laplace(x if x > 0 else 2 * x, 0.1), obs=y)


def jumps(y: Tensor) -> None:
    """Its gradient is that of its steps: none."""
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.factor("f", torch.tensor(-0.01 * sum(1 for v in y.tolist() if x > v)))


def single_inside(y: Tensor) -> None:
    """In float32 inside: finite differences of small steps are noise."""
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    mean = (1000 * x.float()).to(x.dtype)
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mean if mean > 0 else 2 * mean, 1.0), obs=y)


@pytest.mark.parametrize("model", [kinks, jumps, single_inside])
def test_kinks_jumps_and_rounding_are_not_taken_for_a_missing_gradient(model: Callable[[Tensor], None]) -> None:
    y = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    with pytest.warns(SamplingWarning, match=SLOWER):
        eb.from_pyro(model, y)


@pytest.mark.parametrize("offset", [1e-7, -1e-7, 3e-6, 2e-5, 1e-4])
def test_a_point_beside_a_kink_or_jump_decides_nothing(offset: float) -> None:
    x = torch.full((1, 1), offset)
    for energy in (lambda x: torch.where(x > 0, 2 * x, -x), lambda x: torch.where(x > 0, x + 1, -x)):
        require_whole_gradient(eb.as_energy(lambda x, fn=energy: fn(x).sum(-1), (1,), batched=True), x)


def test_tried_points_are_spread_over_every_number() -> None:
    x = scattered(8, torch.Size([2, 3]))
    parts = ((x + 2) * 2).long().sort(0).values
    assert torch.equal(parts, torch.arange(8)[:, None, None].expand(8, 2, 3))


def test_numbers_that_only_decide_raise_no_warning_of_torch() -> None:
    def model() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("f", x if float(x) > 0 else -x)

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        eb.from_pyro(model)
    assert [w.category for w in told] == [SamplingWarning]
