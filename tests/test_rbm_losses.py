"""What losses of restricted Boltzmann machines compute once, and how far persistent chains train one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ebmppl.energies import Energy
from ebmppl.kernels import Gibbs
from ebmppl.kernels.layer_sweep import JointSweep
from ebmppl.losses import CD, MLE, PCD, Loss
from ebmppl.losses.base import all_bits
from ebmppl.models import BernoulliRBM
from ebmppl.models.rbm_training import log_of_product
from ebmppl.partition import Exact
from ebmppl.sampling.chains import Chains
from tests.discrete import number, p_value, states_of
from tests.exact_gradients import F64, FALSE_ALARM, data_of, enumerated, flat, gradients, random, rbm
from tests.exact_gradients import p_value as p_value_of
from tests.test_models import EXACT, RBMS, every_rbm, visible

_PRODUCTS = [getattr(torch.ops.aten, name) for name in ("mm", "addmm", "addmm_", "bmm")]


class Products(TorchDispatchMode):
    """Counts products of two matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += func.overloadpacket in _PRODUCTS
        return func(*args, **(kwargs or {}))


# The closed form of a trained free energy.


@every_rbm
def test_trained_energies_are_free_energies_with_their_gradients(kind: str) -> None:
    """Of two batches in one go; a Gaussian's features depend on parameters, too."""
    model = RBMS[kind]()
    parts = visible(model)[:7].split([5, 2])
    wanted = [model(v) for v in parts]
    (2 * wanted[0].mean() - 3 * wanted[1].mean()).backward()
    by_autograd = flat(model)
    model.zero_grad()
    first, second = found = model.trained_energies(*((v, model.hidden_logits(v)) for v in parts))
    (2 * first.mean - 3 * second.mean).backward()
    for own, energies in zip(found, wanted, strict=True):
        torch.testing.assert_close(own.energies, energies.detach(), **EXACT)
        torch.testing.assert_close(own.mean, energies.mean(), **EXACT)
    torch.testing.assert_close(flat(model), by_autograd, **EXACT)


@every_rbm
def test_trained_energies_have_second_derivatives(kind: str) -> None:
    """Of a gradient penalty: those of autograd through free energies, in every parameter."""
    model, found = RBMS[kind](), []
    parts = visible(model)[:7].split([5, 2])
    for of in (lambda v: model(v).mean(), lambda v: model.trained_energies((v, model.hidden_logits(v)))[0].mean):
        first, second = (of(v) for v in parts)
        gap = 2 * first - 3 * second
        slopes = torch.autograd.grad(gap, list(model.parameters()), create_graph=True)
        model.zero_grad()
        (gap + sum(slope.pow(4).sum() for slope in slopes)).backward()
        found.append((torch.cat([slope.detach().flatten() for slope in slopes]), flat(model)))
    for own, wanted in zip(*found, strict=True):
        torch.testing.assert_close(own, wanted, **EXACT)


def test_trained_energies_stay_at_their_dtype_under_autocast() -> None:
    """Value and gradient are the same from the same logits; and CD runs, whose logits are rounded."""
    model, found = BernoulliRBM(4, 3, generator=torch.Generator().manual_seed(0)), []
    v = data_of(model).float()
    logits = model.hidden_logits(v)
    for on in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=on):
            mean = model.trained_energies((v, logits))[0].mean
            mean.backward()
        found.append(torch.cat([mean.detach()[None], flat(model)]))
    assert torch.equal(*found)
    with torch.autocast("cpu", torch.bfloat16):
        CD(2, kernel=Gibbs, seed=0)(model.joint)(v).backward()


def test_trained_energies_of_large_logits_are_finite_and_right() -> None:
    model = BernoulliRBM(1, 4, W=torch.tensor([[900.0, -900.0, 0.0, 30.0]], dtype=F64))
    v = torch.ones(1, 1, dtype=F64)
    (found,) = model.trained_energies((v, model.hidden_logits(v)))
    torch.testing.assert_close(found.energies, model(v).detach(), rtol=1e-15, atol=0)


class Pairs(BernoulliRBM):
    """With visible units that are not independent given hidden ones."""

    def __init__(self) -> None:
        super().__init__(4, 3, W=random(4, 3, seed=1), b=random(4, seed=2), c=random(3, seed=3))
        self.q = torch.nn.Parameter(torch.ones((), dtype=F64))

    def visible_energy(self, v: Tensor) -> Tensor:
        return super().visible_energy(v) + self.q * (v.to(self.W.dtype).sum(-1) - 2).square()


def test_a_subclass_with_a_term_of_its_own_is_trained_with_it() -> None:
    """Its gradient by chains on both layers is that of enumeration; no closed form of its parent is taken for it."""
    model = Pairs()
    x = data_of(model)
    bound = MLE(kernel=Gibbs, num_chains=100, warmup=15, draws=5, seed=0)(model.joint)
    value, exact = enumerated(model, x)
    assert p_value_of(gradients(bound, x, 20), exact) > FALSE_ALARM
    assert MLE(Exact())(model)(x).item() == pytest.approx(value.item(), abs=1e-10)
    assert model.bipartite() is None is model.tempered(0.5).bipartite()
    point = x.requires_grad_()
    slope = torch.autograd.grad(model(point).sum(), point)[0]
    torch.testing.assert_close(model.value_and_grad(point)[1], slope, **EXACT)


class Offset(BernoulliRBM):
    """Biased by 1 more, in two layers: what is said of ``visible_fields`` alone says nothing of the sum over v."""

    def visible_energy(self, v: Tensor) -> Tensor:
        return super().visible_energy(v) - v.to(self.W.dtype).sum(-1)

    def visible_fields(self, h: Tensor) -> Tensor:
        return super().visible_fields(h) + 1


class Summed(Pairs):
    """Which knows the sum."""

    def log_visible(self, h: Tensor) -> Tensor:
        v = states_of(self).to(F64)
        return torch.logsumexp(-self.visible_energy(v) + h.to(F64) @ (v @ self.W).mT, -1)


@pytest.mark.parametrize("make", [Pairs, lambda: Offset(4, 3, W=torch.zeros(4, 3))], ids=["pairs", "offset"])
def test_a_subclass_does_not_take_its_parents_sum_over_visible_units(make: Callable[[], BernoulliRBM]) -> None:
    model = make()
    for ask in (lambda: model.hidden_energy, lambda: model.log_visible(model.c)):
        with pytest.raises(NotImplementedError, match=r"terms of its own and must implement log_visible\(h\)"):
            ask()
    assert model.log_z is None
    own = Summed()
    h = states_of(own.hidden_energy).to(F64)
    wanted = torch.logsumexp(-own(states_of(own).to(F64)), 0)
    torch.testing.assert_close(torch.logsumexp(-own.hidden_energy(h), 0), wanted, **EXACT)


# Sweeps of both layers.


def _swept(model: BernoulliRBM, x: Tensor) -> tuple[Gibbs, Any]:
    kernel = Gibbs(model.joint)
    chains = Chains(kernel, x, seed=3)
    chains.advance(1)
    return kernel, chains


def test_a_sweep_of_both_layers_draws_visible_units_given_the_hidden_ones() -> None:
    """From one h: v is of p(v | h), and the pair of p(v | h) p(h' | v). The other order has another law."""
    model, n = rbm(), 20_000
    states, h = states_of(model.joint), torch.tensor([1, 0, 1], dtype=torch.int8)
    _, chains = _swept(model, torch.cat([torch.zeros(n, 4, dtype=torch.int8), h.expand(n, 3)], 1))
    v, new = states.to(F64).split([4, 3], 1)
    with torch.no_grad():
        p_v, p_h = model.p_visible(h.to(F64)), model.p_hidden(v)
    law = (v * p_v + (1 - v) * (1 - p_v)).prod(1) * (new * p_h + (1 - new) * (1 - p_h)).prod(1)
    counts = torch.bincount(number(model.joint, chains.position()), minlength=len(states))
    assert p_value(counts, law) > FALSE_ALARM
    with torch.no_grad():
        wrong = torch.softmax(-model.joint(states.to(F64)), 0)  # where a long run ends
    assert p_value(counts, wrong) < FALSE_ALARM


def test_what_a_sweep_of_both_layers_tells() -> None:
    model = rbm()
    kernel, chains = _swept(model, states_of(model.joint))
    assert isinstance(kernel._sweep, JointSweep)
    state, x = chains.now.state, chains.position()
    assert x.dtype == torch.int8
    torch.testing.assert_close(kernel.known(state)["hidden_logits"], model.hidden_logits(x[:, :4]), **EXACT)
    torch.testing.assert_close(kernel._sweep.energies(state), model.joint(x), **EXACT)
    assert Gibbs(model).known(Gibbs(model).init(states_of(model))) == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n", [1, 2, 5, 64, 129, 500])
def test_sums_of_logs_by_products(n: int, dtype: torch.dtype) -> None:
    """Of the least numbers, where a product of 128 would be nothing in float32, and of any: within the roundings of n terms."""
    x = torch.cat([torch.full((1, n), 0.5), torch.rand(3, n, generator=torch.Generator().manual_seed(0)) / 2 + 0.5])
    x = x.to(dtype)
    found, wanted = log_of_product(x.clone()), x.double().log().sum(1)
    assert found.dtype == x.dtype
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=n * torch.finfo(x.dtype).eps)


# Products.


@pytest.mark.parametrize("loss", [CD(1, kernel=Gibbs, seed=0), PCD(1, kernel=Gibbs, num_chains=12, seed=0)])
def test_a_step_takes_five_products(loss: Loss) -> None:
    """Two of the data's rows (hidden units, gradient), three of the chains'."""
    bound = loss(rbm().joint)
    x = data_of(rbm())
    bound(x)
    with Products() as products:
        bound(x).backward()
    assert products.number == 5


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("make", [CD, partial(PCD, num_chains=9)])
def test_log_odds_at_hand_are_those_of_the_parameters_as_they_are(make: Any, k: int) -> None:
    """Over updates, calls in eval mode and calls that were not kept: the gradient is autograd's at the same points."""
    model = rbm()
    bound = make(k, kernel=Gibbs, seed=5)(model.joint)
    seen: list[tuple[Tensor, Tensor]] = []
    inside = bound.gap
    bound.gap = lambda x, end, known: seen.append((x, known["visible"])) or inside(x, end, known)
    for step in range(4):
        bound.train(step != 2)
        model.zero_grad()
        value = bound(data_of(model, seed=step))
        value.backward()
        found = flat(model)
        model.zero_grad()
        x, end = seen[-1]
        wanted = model(x[:, :4]).mean() - model(end).mean()
        wanted.backward()
        torch.testing.assert_close(value, wanted, **EXACT)
        torch.testing.assert_close(found, flat(model), **EXACT)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.sub_(0.3 * parameter.grad)


class Whole(Gibbs):
    """Makes all of its ticks."""

    def known_after(self, state: Any, tuning: Any, noise: Any) -> None:
        return None


class Anew(Gibbs):
    """Begins every step from the points."""

    def renew(self, state: Any) -> Any:
        return self.resume(*self.held(state))


@pytest.mark.parametrize(("make", "other"), [(partial(CD, 2), Whole), (partial(PCD, 2, num_chains=9), Anew)])
def test_what_is_left_out_changes_nothing(make: Any, other: Any) -> None:
    """Last hidden bits that nobody looks at, and points that nobody moved: steps are the same, bit for bit."""
    found = []
    for kernel in (Gibbs, other):
        model = rbm()
        bound = make(kernel=kernel, seed=5)(model.joint)
        optim = torch.optim.SGD(model.parameters(), 0.3)
        for step in range(4):
            optim.zero_grad()
            bound(data_of(model, seed=step)).backward()
            optim.step()
        found.append((torch.cat([p.detach().flatten() for p in model.parameters()]), bound.diagnostics()))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1]["gap"] == found[1][1]["gap"]
    assert found[0][1]["acceptance"] == found[1][1]["acceptance"] == 1.0


@pytest.mark.parametrize("make", [partial(CD, 2), partial(PCD, 2, num_chains=9)])
def test_inference_mode_gives_the_same_values(make: Any) -> None:
    """Of a loss's evaluation; and what is left of it stops no training."""
    x = data_of(rbm())
    found = []
    for mode in (torch.no_grad, torch.inference_mode):
        bound = make(kernel=Gibbs, seed=5)(rbm().joint)
        bound.eval()
        with mode():
            values = [bound(x).item(), bound(x.clone()).item()]
        bound.train()
        for _ in range(2):
            value = bound(x)
            value.backward()
            values.append(value.item())
        found.append((values, flat(bound.energy)))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])


def test_persistent_chains_that_were_put_elsewhere_go_on_from_there() -> None:
    """In place, as ``load_state_dict`` and roll-backs do: as a loss does that had the points from the start."""
    model, x = rbm(), data_of(rbm())
    bounds = [PCD(kernel=Gibbs, num_chains=400, seed=5)(model.joint) for _ in range(2)]
    for bound in bounds:
        bound(x)
    zeros = torch.zeros_like(bounds[0].points)
    bounds[0].points.copy_(zeros)
    bounds[1].load_state_dict({**bounds[1].state_dict(), "points": zeros})
    fresh = PCD(kernel=Gibbs, num_chains=400, seed=5)(model.joint)
    fresh.load_state_dict({**bounds[0].state_dict()})
    unmoved = PCD(kernel=Gibbs, num_chains=400, seed=5)(model.joint)
    unmoved(x)
    values = [bound(x).item() for bound in (*bounds, fresh, unmoved)]
    assert values[0] == values[1] == values[2] != values[3]


def test_bits_are_told_from_all_other_numbers() -> None:
    good = torch.tensor([0.0, 1.0, -0.0])
    others = (0.5, 2.0, -1.0, 1 + 2.0**-23, 1 - 2.0**-24, 1e-38, -1e-38, torch.inf, -torch.inf, torch.nan)
    assert all_bits(good)
    assert [other for other in others if all_bits(torch.cat([good, torch.tensor([other])]))] == []


def test_chains_of_losses_record_no_energies() -> None:
    kernels: list[Gibbs] = []

    def make(energy: Energy) -> Gibbs:
        kernels.append(Gibbs(energy))
        return kernels[-1]

    PCD(kernel=make, num_chains=3, seed=0)(rbm())(data_of(rbm()))
    assert [kernel.record_energy for kernel in kernels] == [False]


# Training.


def trained(x: Tensor, hidden: int, epochs: int, batch: int, rate: float) -> BernoulliRBM:
    """By PCD with as many chains as rows of a batch, at a rate that falls to 0."""
    generator = torch.Generator().manual_seed(0)
    model = BernoulliRBM(x.shape[1], hidden).init_from_data(x, generator=generator)
    bound = PCD(1, kernel=Gibbs, num_chains=batch, seed=0)(model.joint)
    optim = torch.optim.SGD(bound.parameters(), rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optim, 1.0, 0.01, epochs * (len(x) // batch))
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator)[: len(x) // batch * batch].split(batch):
            optim.zero_grad()
            bound(x[rows]).backward()
            optim.step()
            schedule.step()
    return model


@pytest.mark.data
@pytest.mark.long
def test_pcd_on_binarized_mnist(shared_data: Path) -> None:
    """16 hidden units, 15 epochs: the mean log-likelihood of the test set, exact, is better than -149.7 nats."""
    with np.load(shared_data / "binarized_mnist.npz") as packed:
        train, test = (torch.from_numpy(np.unpackbits(packed[name], axis=1)).float() for name in ("train", "test"))
    model = trained(train, 16, epochs=15, batch=100, rate=0.2)
    with torch.no_grad():
        assert float(Exact().log_prob(model, test).mean()) > -149.7
