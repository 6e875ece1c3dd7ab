"""Losses as users meet them under SVI, plain loops and ``fit``: several energies, stores, dtypes, modes, seeds."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn
from torch.distributions import constraints

from ebmppl.energies import ClassifierEnergy, MLPEnergy, as_energy
from ebmppl.errors import NonFiniteLoss, SamplingWarning
from ebmppl.kernels import Gibbs, Langevin
from ebmppl.losses import (
    CD,
    MLE,
    NCE,
    PCD,
    ContrastiveNCE,
    DenoisingScoreMatching,
    Loss,
    ScoreMatching,
    SlicedScoreMatching,
)
from ebmppl.models import BernoulliRBM, Ising
from ebmppl.training import fit

Adam = partial(pyro.optim.Adam, {"lr": 0.1})
small = partial(Langevin, step_size=0.05)
plane = torch.randn(12, 2, generator=torch.Generator().manual_seed(0))
bits = (torch.rand(12, 4, generator=torch.Generator().manual_seed(1)) < 0.5).float()


@pytest.fixture(autouse=True)
def _empty_store() -> Iterator[None]:
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()


def mlp(dtype: torch.dtype = torch.float32) -> MLPEnergy:
    made = torch.Generator().manual_seed(2)
    return MLPEnergy(2, (8,), confine=0.5, generator=made, dtype=dtype)


def wide() -> Any:
    return dist.Normal(torch.zeros(2), 2.0).to_event(1)


def values(module: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def test_chains_of_several_energies_of_one_loss_go_on() -> None:
    loss = PCD(kernel=Gibbs, num_chains=5, seed=0)
    first, second = BernoulliRBM(4, 2), BernoulliRBM(4, 2)
    svis = [SVI(energy, None, Adam(), loss=loss) for energy in (first, second)]
    bounds = []
    for _ in range(3):
        for svi in svis:
            svi.step(bits)
            bounds.append(loss.bound)
    assert bounds[0] is bounds[2] is bounds[4]
    assert bounds[1] is bounds[3] is bounds[5]
    assert [int(bound.step) for bound in bounds[-2:] if bound is not None] == [3, 3]


def test_a_loaded_store_leaves_nothing_untrained() -> None:
    energy = BernoulliRBM(4, 2)
    svi = SVI(energy, None, Adam(), loss=CD(kernel=Gibbs, seed=0))
    svi.step(bits)
    saved = copy.deepcopy(pyro.get_param_store().get_state())
    pyro.get_param_store().set_state(saved)
    before = values(energy)
    with pytest.warns(SamplingWarning, match="the module's own takes its place"):
        svi.step(bits)
    assert not any(torch.equal(a, b) for a, b in zip(before, values(energy), strict=True))


class Network(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = PyroModule[nn.Linear](2, 8), PyroModule[nn.Linear](8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(torch.tanh(self.inner(x))).squeeze(-1) + x.square().sum(-1)


def test_pyro_modules_of_the_same_names_are_apart() -> None:
    energies = [as_energy(Network(), (2,)) for _ in range(2)]
    optim = Adam()
    svis = [SVI(energy, None, optim, loss=DenoisingScoreMatching(0.1, seed=0)) for energy in energies]
    svis[0].step(plane)
    before = values(energies[0])
    svis[1].step(plane)  # an update by momentum of the first energy would show
    assert all(torch.equal(a, b) for a, b in zip(before, values(energies[0]), strict=True))


class Scaled(PyroModule):
    def __init__(self, scale: float, name: str = "") -> None:
        super().__init__(name)
        self.scale = PyroParam(torch.tensor(scale), constraints.positive)

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * self.scale * x.square().sum(-1)


def test_pyro_params_of_one_name_are_refused() -> None:
    """Pyro's store makes them one tensor: the second energy would be the first."""
    loss = ScoreMatching()
    modules = Scaled(1.0), Scaled(4.0), Scaled(4.0, "other")
    first, second, other = (loss(as_energy(module, (2,))) for module in modules)
    first(plane)
    with pytest.raises(ValueError, match="a name of its own for every PyroParam, got 'scale' of two modules"):
        second(plane)
    wanted = 8 * plane.square().sum(1).mean() - 8  # s = -4 x
    torch.testing.assert_close(other(plane).double(), wanted.double(), rtol=1e-5, atol=1e-5)
    first(plane)
    pyro.clear_param_store()
    torch.testing.assert_close(second(plane).double(), wanted.double(), rtol=1e-5, atol=1e-5)


def test_a_loss_lets_energies_go() -> None:
    loss = CD(kernel=Gibbs, seed=0)
    energies = [BernoulliRBM(4, 2) for _ in range(20)]
    for energy in energies:
        SVI(energy, None, Adam(), loss=loss).step(bits)
    first, last = (weakref.ref(energy) for energy in (energies[0], energies[-1]))
    del energy, energies
    gc.collect()
    assert first() is None
    assert last() is not None


BY_DTYPE: dict[str, tuple[Callable[[], Loss], Any]] = {
    "cd": (partial(CD, kernel=small, seed=0), None),
    "pcd": (partial(PCD, kernel=small, num_chains=5, seed=0), None),
    "mle, chains": (partial(MLE, kernel=small, num_chains=3, warmup=2, draws=2, seed=0), None),
    "mle, weights": (partial(MLE, num_samples=9, seed=0), wide()),
    "nce": (partial(NCE, seed=0), wide()),
    "ranking": (partial(ContrastiveNCE, seed=0), wide()),
    "conditional": (partial(ContrastiveNCE, form="conditional", seed=0), None),
    "sliced": (partial(SlicedScoreMatching, seed=0), None),
}


@pytest.mark.parametrize("name", BY_DTYPE)
def test_the_dtype_is_the_energy_s_whatever_that_of_the_data(name: str) -> None:
    make, guide = BY_DTYPE[name]
    for dtype in (torch.float32, torch.float64):
        wanted = make()(mlp(dtype), guide)(plane.to(dtype))
        assert wanted.dtype == dtype
        for given in (torch.float32, torch.float64):  # float32 data are the same numbers in both
            assert make()(mlp(dtype), guide)(plane.to(given)).item() == wanted.item()


@pytest.mark.parametrize("name", BY_DTYPE)
def test_data_that_are_no_real_numbers_are_refused(name: str) -> None:
    make, guide = BY_DTYPE[name]
    bound = make()(mlp(), guide)
    for dtype in (torch.int64, torch.bool):
        with pytest.raises(ValueError, match=rf"expected floating point data, got x of {dtype}"):
            bound(torch.zeros(3, 2, dtype=dtype))
    with pytest.raises(ValueError, match="dense tensors of real numbers, got x of torch.complex64"):
        bound(torch.zeros(3, 2, dtype=torch.complex64))
    with pytest.raises(ValueError, match="dense tensors of real numbers, got x of torch.float32, torch.sparse_coo"):
        bound(torch.zeros(3, 2).to_sparse())
    with pytest.raises(ValueError, match="dense tensors or arrays of real numbers"):
        fit(make(), mlp(), torch.zeros(3, 2).to_sparse(), guide=guide, steps=1)


def test_spins_in_any_floating_dtype() -> None:
    x = torch.ones(2, 3, 3, dtype=torch.int64).triu()
    x = 2 * x - 1
    for loss in (CD(kernel=Gibbs, seed=0), PCD(kernel=Gibbs, num_chains=3, seed=0)):
        found = {loss(Ising((3, 3)))(x.to(dtype)).item() for dtype in (torch.int64, torch.float32, torch.float64)}
        assert len(found) == 1


@pytest.mark.parametrize("name", BY_DTYPE)
def test_seeds_are_whole_numbers(name: str) -> None:
    make, guide = BY_DTYPE[name]
    for seed in (-1, 1.5, "one", 1 << 63):
        with pytest.raises(ValueError, match="expected a (whole )?seed"):
            make(seed=seed)(mlp(), guide)  # type: ignore[call-arg]


class Normalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.norm(self.first(x))))


def test_fit_keeps_parts_in_evaluation_mode() -> None:
    classifier = Normalised()
    classifier.norm.eval()  # as ``ClassifierEnergy`` asks for
    mean = classifier.norm.running_mean
    assert mean is not None
    before = mean.clone()
    energy = ClassifierEnergy(classifier, (2,), confine=0.5)
    fit(CD(kernel=small, seed=0), energy, plane, steps=3, progress=False).run()
    assert not classifier.norm.training
    assert classifier.training
    assert torch.equal(before, mean)
    energy.eval()
    with pytest.raises(ValueError, match=r"batch normalisation in training mode: BatchNorm1d \(classifier.norm\)"):
        fit(CD(kernel=small, seed=0), energy, plane, steps=1, progress=False).run()
    assert classifier.training  # a whole energy that was evaluated is trained again


@pytest.mark.parametrize("loss", [CD(kernel=small, seed=0), DenoisingScoreMatching(0.1, seed=0)])
def test_rows_that_depend_on_one_another_are_refused(loss: Loss) -> None:
    energy = ClassifierEnergy(Normalised(), (2,), confine=0.5)
    with pytest.raises(ValueError, match="rows that don't depend on one another"):
        loss(energy)(plane)
    energy.eval()
    assert bool(torch.isfinite(loss(energy)(plane)))


def test_arrays_in_any_order_of_memory() -> None:
    x = np.random.default_rng(0).normal(size=(12, 2))

    def losses(data: Any) -> list[float]:
        loss = DenoisingScoreMatching(0.1, seed=0)
        return [s.loss for s in fit(loss, mlp(), data, steps=2, shuffle=False, progress=False)]

    wanted = losses(x)
    assert losses(x[::-1][::-1]) == losses(x.astype(">f8")) == losses(np.asfortranarray(x)) == wanted
    assert losses(x.astype(np.longdouble)) == wanted
    assert losses(x[::-1]) == losses(x[::-1].copy())
    with pytest.raises(ValueError, match="without gaps, got a masked array"):
        losses(np.ma.masked_array(x, mask=x > 1))


def test_optimizers_that_do_not_fit() -> None:
    make = partial(fit, DenoisingScoreMatching(0.1), mlp(), plane, steps=1, progress=False)
    with pytest.raises(ValueError, match="without a closure, got LBFGS"):
        make(optimizer=torch.optim.LBFGS)
    with pytest.raises(ValueError, match="as a factory, such as torch.optim.Adam, got one of Adam"):
        make(optimizer=torch.optim.Adam(mlp().parameters()))


@pytest.mark.parametrize(
    "loss",
    [
        partial(PCD, kernel=small, num_chains=8, reinit=0.9, seed=0),
        partial(MLE, kernel=small, num_chains=4, warmup=2, draws=2, seed=0),
    ],
)
def test_chains_that_find_no_start_any_more_are_a_loss_that_is_not_finite(loss: Callable[[], Loss]) -> None:
    energy = mlp()
    run = fit(loss(), energy, plane, steps=9, optimizer=partial(torch.optim.SGD, lr=1e30), progress=False)
    before = values(energy)
    with pytest.raises(
        NonFiniteLoss, match=r"finite energy at the initial points.*back as they were after 0 of 1 steps"
    ):
        run.run()
    assert all(torch.equal(a, b) for a, b in zip(before, values(energy), strict=True))


def test_what_a_function_only_mentions_is_not_left_untrained_in_silence() -> None:
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
    mentions = as_energy(lambda x: net(x).squeeze(-1) + x.square().sum(-1), (2,))
    told = r"depends on [34] parameters .* not trained, of shapes \[.*\(4, 2\)"
    for energy, loss in [(mentions, NCE(seed=0)), (mentions + mlp(), DenoisingScoreMatching(0.1, seed=0))]:
        run = fit(loss, energy, plane, guide=wide(), steps=3, progress=False)
        with pytest.warns(SamplingWarning, match=told) as caught:
            run.run()
        assert len(caught) == 1
        svi = SVI(energy, wide(), Adam(), loss=loss)
        with pytest.warns(SamplingWarning, match=told):
            svi.step(plane)
    mine = partial(fit, NCE(seed=0), mentions, guide=wide(), steps=1, progress=False)
    mine(plane, optimizer=lambda given: torch.optim.Adam([*given, *net.parameters()])).run()

    def scaled(x: Tensor) -> Tensor:
        return pyro.param("scale", torch.ones(())) * x.square().sum(-1)

    SVI(as_energy(scaled, (2,)) + mlp(), wide(), Adam(), loss=NCE(seed=0)).step(plane)  # Pyro trains it
