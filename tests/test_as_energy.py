"""Plain callables as energies: what is found out about them, and what a bad one is told."""

from __future__ import annotations

import copy
import functools
import math
import pickle
import re
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn import functional

import ebmppl as eb
from ebmppl.energies import Energy, Unconstrained, as_energy, check_energy
from ebmppl.errors import EnergyError

CHAINS = 64


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def run(energy: Energy, start: Tensor | None = None, chains: int = CHAINS) -> None:
    """What a user does; the energy is checked at its beginning."""
    eb.MCMC(eb.HMC(energy, num_steps=1), 2, 2, start, chains, seed=0, disable_progbar=True).run()


# Batch or one point: found out, told, right


class Batched(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.5, 2.0]))

    def forward(self, x: Tensor) -> Tensor:
        return (self.weight * x.square()).sum(-1)


class OnePoint(Batched):
    def forward(self, x: Tensor) -> Tensor:
        return self.weight @ x.square()


MATRIX = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 3.0]])
FUNCTIONS: dict[
    str, tuple[Callable[[Tensor], Tensor], tuple[int, ...], bool]
] = {  # fn, event shape, written for a batch
    "sum over the event": (lambda x: x.square().sum(-1), (3,), True),
    "sum over everything": (lambda x: x.square().sum(), (3,), False),
    "one coordinate each": (lambda x: x[0] ** 2 + 3 * x[1], (2,), False),
    "one coordinate each, of a batch": (lambda x: x[:, 0] ** 2 + 3 * x[:, 1], (2,), True),
    "one coordinate each, of any": (lambda x: x[..., 0] ** 2 + 3 * x[..., 1], (2,), True),
    "quadratic form": (lambda x: x @ MATRIX @ x, (3,), False),
    "quadratic form of a batch": (lambda x: ((x @ MATRIX) * x).sum(1), (3,), True),
    "quadratic form by einsum": (lambda x: torch.einsum("i,ij,j->", x, MATRIX, x), (3,), False),
    "scalar event": (lambda x: x**2, (), True),
    "scalar event, one point": (lambda x: x.square().sum(), (), False),
    "scalar event, stacked": (lambda x: torch.stack([x, 2 * x]).square().sum(0), (), True),
    "matrix event": (lambda x: torch.trace(x @ x.mT), (2, 2), False),
    "matrix event of a batch": (lambda x: x.square().sum((-2, -1)), (2, 2), True),
    "image": (lambda x: x.flatten(1).square().sum(1), (1, 4, 4), True),
    "image, one point": (lambda x: x[0, 1, 2] ** 2 + x.flatten().norm() ** 2, (1, 4, 4), False),
    "event of one number": (lambda x: x.squeeze().square(), (1,), False),
    "event of one number, of a batch": (lambda x: x.squeeze(-1).square(), (1,), True),
    "first row, square event": (lambda x: x[0].square().sum(-1), (2, 2), False),
    "sum over axis 0": (lambda x: x.square().sum(0), (3,), False),
    "norm over axis 0": (lambda x: torch.linalg.vector_norm(x, dim=0), (2,), False),
    "module": (Batched(), (2,), True),
    "module of one point": (OnePoint(), (2,), False),
    "partial": (functools.partial(torch.sum, dim=-1), (2,), True),
    "infinite outside": (lambda x: torch.where(x[:, 0] > 0, x.sum(-1), torch.inf), (2,), True),
    "nan outside, one point": (lambda x: x[0].sqrt() + x.sum(), (2,), False),
    "squares of a mean, one point": (lambda x: (x - x.mean()).square().sum(), (3,), False),
}


@pytest.mark.parametrize("chains", [1, 2, 3, 4, 5])  # these are also sizes of events
@pytest.mark.parametrize("name", FUNCTIONS)
def test_batch_or_one_point_is_found_out_and_told(name: str, chains: int) -> None:
    fn, shape, batched = FUNCTIONS[name]
    energy = as_energy(fn, shape)
    assert "batched=unknown until called" in repr(energy)
    x = normal(chains, *shape)
    wanted = fn(x) if batched else torch.stack([fn(row) for row in x])
    torch.testing.assert_close(energy(x), wanted, equal_nan=True)
    told = "batched=True" if batched else "batched=False (vmapped)"
    assert told in repr(energy)
    # found out once, right for every other number of points
    y = normal(2, 3, *shape, seed=1)
    rows = y.reshape(6, *shape)
    wanted = fn(rows) if batched else torch.stack([fn(row) for row in rows])
    torch.testing.assert_close(energy(y), wanted.reshape(2, 3), equal_nan=True)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_found_out_may_be_said_instead(name: str) -> None:
    fn, shape, batched = FUNCTIONS[name]
    x = normal(4, *shape)
    told = as_energy(fn, shape, batched=batched)
    assert ("batched=True" if batched else "batched=False (vmapped)") in repr(told)
    torch.testing.assert_close(told(x), as_energy(fn, shape)(x), equal_nan=True)


def test_the_callable_is_not_called_before_it_is_needed() -> None:
    calls = []

    def fn(x: Tensor) -> Tensor:
        calls.append(x.shape)
        return x.sum(-1)

    energy = as_energy(fn, (2,))
    repr(energy)
    copy.deepcopy(energy).state_dict()
    eb.HMC(energy + 0.5 * energy)
    _ = energy.log_z, energy.potential_fn, energy.transforms
    assert calls == []
    energy(torch.zeros(3, 2))
    found_out = len(calls)
    energy(torch.zeros(3, 2))
    assert calls[found_out:] == [(3, 2)]  # once per call from then on


@pytest.mark.parametrize("batch", [(), (1,), (5,), (2, 3), (1, 1, 4)])
def test_a_callable_sees_one_batch_axis_whatever_the_points_have(batch: tuple[int, ...]) -> None:
    seen = set()

    def fn(x: Tensor) -> Tensor:
        seen.add(x.dim())
        return x.square().sum(-1)

    energy = as_energy(fn, (2,), batched=True)
    assert energy(torch.zeros(*batch, 2)).shape == batch
    assert seen == {2}


def test_one_point_functions_see_one_point() -> None:
    seen = set()

    def fn(x: Tensor) -> Tensor:
        seen.add(x.shape)
        return x.square().sum()

    as_energy(fn, (2, 3), batched=False)(torch.zeros(5, 2, 3))
    assert seen == {(2, 3)}


def test_the_first_points_decide_only_where_nothing_can_be_decided_they_are_refused_later() -> None:
    """Equal rows hide that a mean runs over the batch; a run looks beside them."""
    centred = lambda x: (x - x.mean()).square().sum(-1)
    start = torch.ones(8, 3)
    with pytest.raises(EnergyError, match="mixes the rows of a batch.*then pass batched=False"):
        run(as_energy(centred, (3,)), start, 8)
    energy = as_energy(centred, (3,), batched=False)
    run(energy, start, 8)
    x = normal(5, 3)
    torch.testing.assert_close(energy(x), torch.stack([centred(row) for row in x]))


def test_ambiguous_functions_are_refused_with_the_way_out() -> None:
    with pytest.raises(EnergyError, match="it also takes one point: if it is written for one, pass batched=False"):
        as_energy(lambda x: (x - x.mean()).square().sum(-1), (3,))(normal(5, 3))


def test_modules_stay_trainable_and_travel() -> None:
    energy = as_energy(Batched(), (2,))
    assert [name for name, _ in energy.named_parameters()] == ["fn.weight"]
    x = normal(3, 2)
    energy(x).sum().backward()
    torch.testing.assert_close(energy.fn.weight.grad, x.square().sum(0))
    twin = pickle.loads(pickle.dumps(energy))
    torch.testing.assert_close(twin(x), energy(x))
    assert twin.batched is True
    with torch.no_grad():
        energy.fn.weight.mul_(2)  # an optimiser's step is seen
    torch.testing.assert_close(energy(x), 2 * twin(x))
    assert as_energy(Batched(), (2,)).double()(x.double()).dtype == torch.float64


def test_parameters_of_a_function_of_one_point_get_gradients_through_vmap() -> None:
    energy = as_energy(OnePoint(), (2,))
    x = normal(3, 2)
    energy(x).sum().backward()
    torch.testing.assert_close(energy.fn.weight.grad, x.square().sum(0))


def test_repr_names_the_callable_and_the_support() -> None:
    def banana(x: Tensor) -> Tensor:
        return x.sum(-1)

    assert repr(as_energy(banana, (2,), constraints.positive)) == (
        "FunctionEnergy(banana, event_shape=(2,), support=GreaterThan(lower_bound=0.0), batched=unknown until called)"
    )
    assert "partial, event_shape=()" in repr(as_energy(functools.partial(torch.sum, dim=-1), ()))
    assert "Batched, event_shape=(2,)" in repr(as_energy(Batched(), (2,)))
    sites = repr(as_energy(banana, {"mu": (), "theta": (8,)}, {"mu": constraints.positive}))
    assert "event_shape={'mu': (), 'theta': (8,)}" in sites
    assert "'mu': GreaterThan" in sites


# Named sites

SITES = {"mu": (), "theta": (3,), "matrix": (2, 2)}


def of_batch(s: dict[str, Tensor]) -> Tensor:
    return s["mu"] ** 2 + (s["theta"] - s["mu"].unsqueeze(-1)).square().sum(-1) + s["matrix"].square().sum((-2, -1))


def of_one(s: dict[str, Tensor]) -> Tensor:
    return s["mu"] ** 2 + (s["theta"] - s["mu"]).square().sum() + torch.trace(s["matrix"].mT @ s["matrix"])


@pytest.mark.parametrize("chains", [1, 2, 3, 5])
@pytest.mark.parametrize(("fn", "batched"), [(of_batch, True), (of_one, False)])
def test_named_sites_get_one_dict(fn: Callable[..., Tensor], batched: bool, chains: int) -> None:
    energy = as_energy(fn, SITES)
    assert energy.event_shape == (8,)
    assert list(energy.sites) == list(SITES)
    x = normal(chains, 8)
    mu, theta, matrix = x[:, 0], x[:, 1:4], x[:, 4:].view(-1, 2, 2)
    wanted = mu**2 + (theta - mu[:, None]).square().sum(-1) + matrix.square().sum((-2, -1))
    torch.testing.assert_close(energy(x), wanted)
    torch.testing.assert_close(energy.potential_fn({"matrix": matrix, "mu": mu, "theta": theta}), wanted)
    assert f"batched={batched}" in repr(energy)
    run(energy, chains=chains)


def test_a_single_site_has_its_shape_in_the_dict() -> None:
    energy = as_energy(lambda s: s["w"].square().sum((-2, -1)), {"w": (2, 2)})
    assert energy.event_shape == (4,)
    torch.testing.assert_close(energy(torch.ones(3, 4)), torch.full((3,), 4.0))


def test_supports_of_sites_are_real_unless_said() -> None:
    energy = as_energy(of_batch, SITES, {"mu": constraints.positive})
    assert energy.site_support("theta") is constraints.real
    assert energy.site_support("mu") is constraints.positive
    everywhere = as_energy(of_batch, SITES, constraints.positive)
    assert everywhere.site_support("matrix") is constraints.positive


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"mu": torch.zeros(5), "theta": torch.zeros(5, 3)},
            r"\['matrix', 'mu', 'theta'\]; unknown: \[\], missing: \['matrix'\]",
        ),
        (
            {"mu": torch.zeros(5), "theta": torch.zeros(5, 3), "matrix": torch.zeros(5, 2, 2), "tau": torch.zeros(5)},
            r"unknown: \['tau'\], missing: \[\]",
        ),
        (
            {"mu": torch.zeros(5), "theta": torch.zeros(5, 2), "matrix": torch.zeros(5, 2, 2)},
            r"expected site 'theta' of shape \(\*, 3\), got \(5, 2\)",
        ),
        (
            {"mu": torch.zeros(5), "theta": torch.zeros(()), "matrix": torch.zeros(5, 2, 2)},
            r"expected site 'theta' of shape \(\*, 3\), got \(\)",
        ),
        (
            {"mu": torch.zeros(4), "theta": torch.zeros(5, 3), "matrix": torch.zeros(5, 2, 2)},
            r"same leading axes for all sites, got \{'mu': \(4,\), 'theta': \(5,\), 'matrix': \(5,\)\}",
        ),
        (
            {"mu": torch.zeros(()), "theta": torch.zeros(5, 3), "matrix": torch.zeros(5, 2, 2)},
            r"same leading axes for all sites, got \{'mu': \(\), 'theta': \(5,\)",
        ),
    ],
)
def test_wrong_dicts_of_sites_are_refused(values: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_energy(of_batch, SITES).pack(values)


def test_a_site_that_the_callable_looks_for_in_vain_is_named() -> None:
    with pytest.raises(EnergyError, match=r"failed on a batch of shape \(64, 8\).*KeyError: 'sigma'"):
        run(as_energy(lambda s: s["sigma"].sum(-1), SITES))


# Wrong arguments


def plain(x: Tensor) -> Tensor:
    return x.sum(-1)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: as_energy(3, (2,)), "expected a callable energy, got int"),
        (lambda: as_energy(plain, 3), r"shape of site 'x' as a sequence such as \(3,\), got 3"),
        (lambda: as_energy(plain, {"a": 3}), r"shape of site 'a' as a sequence such as \(3,\), got 3"),
        (lambda: as_energy(plain, None), "shape of site 'x' as a sequence of integers, got None"),
        (lambda: as_energy(plain, (2.5,)), r"shape of site 'x' as a sequence of integers, got \(2.5,\)"),
        (lambda: as_energy(plain, "ab"), "shape of site 'x' as a sequence of integers, got 'ab'"),
        (lambda: as_energy(plain, (0,)), r"expected positive sizes in the shape of site 'x', got \(0,\)"),
        (lambda: as_energy(plain, (3, -1)), r"expected positive sizes in the shape of site 'x', got \(3, -1\)"),
        (lambda: as_energy(plain, {"a": (2,), "b": (0, 2)}), r"positive sizes in the shape of site 'b', got \(0, 2\)"),
        (lambda: as_energy(plain, {}), "expected at least one site, got an empty dict"),
        (
            lambda: as_energy(plain, {"a": ()}, {"c": constraints.positive}),
            r"unknown sites \['c'\]; the sites are \['a'\]",
        ),
        (lambda: as_energy(plain, (2,), {"y": constraints.positive}), r"unknown sites \['y'\]; the sites are \['x'\]"),
        (
            lambda: as_energy(plain, (2,), "positive"),
            "expected a constraint as the support of site 'x', got 'positive'",
        ),
        (lambda: as_energy(plain, {"a": ()}, {"a": 1.0}), "expected a constraint as the support of site 'a', got 1.0"),
        (
            lambda: as_energy(plain, (2,), constraints.interval),
            "expected a constraint as the support of site 'x', got <class",
        ),
        (lambda: eb.HMC(plain), r"expected an Energy, got function; wrap a callable with as_energy\(fn, event_shape\)"),
        (lambda: Unconstrained(plain), r"expected an Energy, got function; wrap a callable with as_energy"),
    ],
)
def test_wrong_arguments_are_refused_at_construction(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("shape", [(5, 2), (2, 5), (3, 1), (), (1,)])
def test_points_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"points of shape \(\*, 3\), got {re.escape(str(tuple(shape)))}"):
        as_energy(plain, (3,))(torch.zeros(shape))


# What a bad callable is told. Every one is found at the start of a run, before the first step.


def _item(x: Tensor) -> Tensor:
    return torch.tensor([float(row.square().sum().item()) for row in x.detach()])


def _numpy(x: Tensor) -> Tensor:
    return torch.as_tensor((x.detach().numpy() ** 2).sum(-1))


def _in_place(x: Tensor) -> Tensor:
    x += 1
    return x.square().sum(-1)


class Centred(nn.Module):
    """A network of the given layers."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.net = nn.Sequential(*layers, nn.Linear(3, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(-1) + x.square().sum(-1)


def _soft(x: Tensor) -> Tensor:
    return (torch.softmax(x, 0) * x).sum(-1)


def _assigns(x: Tensor) -> Tensor:
    out = torch.zeros(3)
    out[0] = x[0]
    return out.sum() if x.dim() == 1 else torch.zeros(())


W64 = torch.ones(3, dtype=torch.float64)
MIXES = "mixes the rows of a batch.*chains must not depend on one another"
RANDOM = (
    "expected the same energy for the same points, got another at a second call.*without random numbers inside .dropout"
)
NOT_DIFFERENTIABLE = r"expected an energy that is differentiable in its points.*detach, \.item\(\), NumPy or integers"
VMAP = "written for one point and torch.func.vmap can't vectorise it"
BAD: dict[str, tuple[Callable[..., object], str]] = {
    "keeps an axis": (lambda x: x.square().sum(-1, keepdim=True), r"expected energy of shape \(64,\), got \(64, 1\)"),
    "a network's last axis": (nn.Linear(3, 1), r"expected energy of shape \(64,\), got \(64, 1\)"),
    "no sum over the event": (lambda x: x.square(), r"expected energy of shape \(64,\), got \(64, 3\)"),
    "scalar for a batch": (lambda x: x[:, 0].square().sum(), r"expected energy of shape \(64,\), got \(\)"),
    "another length": (lambda x: x.square().sum(-1)[:-1], r"expected energy of shape \(64,\), got \(63,\)"),
    "loses the axis of one point": (
        lambda x: x[:, 0].square().squeeze(),
        r"expected energy of shape \(1,\), got \(\)",
    ),
    "float": (lambda x: 1.0, r"expected energy of shape \(64,\), got float"),
    "nothing": (lambda x: None, r"expected energy of shape \(64,\), got NoneType"),
    "tuple": (lambda x: (x.sum(-1), x), r"expected energy of shape \(64,\), got tuple"),
    "numpy array": (lambda x: x.detach().numpy().sum(-1), r"expected energy of shape \(64,\), got ndarray"),
    "numpy number": (lambda x: np.float32(1.0), r"expected energy of shape \(64,\), got float32"),
    "mean-centred": (lambda x: (x - x.mean(0)).square().sum(-1), MIXES),
    "softmax over the batch": (_soft, MIXES),
    "softmax of the batch": (lambda x: torch.softmax(x.sum(-1), 0), MIXES),
    "sorted over the batch": (lambda x: x.sort(0).values.sum(-1), MIXES),
    "divided by the batch": (lambda x: x.square().sum(-1) / len(x), MIXES),
    "batch normalisation": (
        lambda x: (x - functional.batch_norm(x, None, None, training=True)).square().sum(-1),
        r"failed on a batch of shape \(1, 3\).*Expected more than 1 value",
    ),
    "batch statistics": (lambda x: ((x - x.mean(0)) / (x.std(0, correction=0) + 1)).sum(-1), MIXES),
    "dropout": (lambda x: functional.dropout(x, 0.5).square().sum(-1), RANDOM),
    "random numbers": (lambda x: x.square().sum(-1) + torch.rand(len(x)), RANDOM),
    "small random numbers": (lambda x: x.square().sum(-1) + 1e-9 * torch.randn(len(x)), RANDOM),
    "one random number": (lambda x: x.square().sum() + torch.rand(()), RANDOM),
    "detach": (lambda x: x.detach().square().sum(-1), NOT_DIFFERENTIABLE),
    "item": (_item, NOT_DIFFERENTIABLE),
    "numpy inside": (_numpy, NOT_DIFFERENTIABLE),
    "constant": (lambda x: torch.zeros(len(x)), NOT_DIFFERENTIABLE),
    "numpy of a leaf": (
        lambda x: torch.as_tensor(x.numpy().sum(-1)),
        r"gradient of the energy failed.*Can't call numpy\(\)",
    ),
    "integers": (lambda x: x.square().sum(-1).long(), "dtype torch.float32 .*of the initial points.*, got torch.int64"),
    "booleans": (lambda x: x.sum(-1) > 0, "dtype torch.float32 .*, got torch.bool"),
    "captured double": (lambda x: (W64 * x).square().sum(-1), "dtype torch.float32 .*, got torch.float64"),
    "captured double, product": (lambda x: x @ W64, r"failed on a batch of shape \(64, 3\), torch.float32 on cpu"),
    "complex": (lambda x: torch.complex(x, x).sum(-1), "dtype torch.float32 .*, got torch.complex64"),
    "another event": (
        lambda x: x @ torch.ones(5),
        r"failed on a batch of shape \(64, 3\).*RuntimeError: size mismatch",
    ),
    "key error": (lambda x: x["mu"], r"failed on a batch of shape \(64, 3\)"),
    "its own error": (lambda x: {}["a"], "KeyError: 'a'"),
    "assigns to one point": (_assigns, VMAP),
    "in place": (_in_place, "got another at a second call"),
    "nan": (lambda x: x.square().sum(-1) * math.nan, r"got 64 of 64.* \(the first is nan\); chains: 0, 1, .*9, \.\.\."),
    "inf": (lambda x: x.square().sum(-1) + math.inf, r"got 64 of 64.* \(the first is inf\)"),
    "minus infinity": (lambda x: x.square().sum(-1) - math.inf, r"got 64 of 64.* \(the first is -inf\)"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_callable_is_told_what_was_wanted_and_what_came(name: str) -> None:
    fn, message = BAD[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        with pytest.raises(EnergyError, match=re.compile(message, re.DOTALL)):
            run(as_energy(fn, (3,)))


FORCED: dict[str, tuple[Callable[..., object], bool, str]] = {
    "batch said to be one point": (
        lambda x: x[:, 0].sum(-1),
        False,
        r"failed at points of shape \(64, 3\).*too many indices",
    ),
    "one point said to be a batch": (lambda x: x @ x, True, r"failed at points of shape \(64, 3\)"),
    "scalar said to be a batch": (lambda x: x.square().sum(), True, r"expected energy of shape \(64,\), got \(\)"),
    "vector of one point": (lambda x: x.square(), False, r"expected energy of shape \(64,\), got \(64, 3\)"),
    "float of one point": (lambda x: 1.0, False, "must only return Tensors, got type <class 'float'>"),
    "mixes": (lambda x: (x - x.mean(0)).square().sum(-1), True, MIXES),
    "depends on the batch's size": (lambda x: x.square().sum(-1) / len(x), True, MIXES),
    "batch normalisation": (
        lambda x: functional.batch_norm(x, None, None, training=True).square().sum(-1),
        True,
        r"failed at points of shape \(1, 3\)",
    ),
    "random": (lambda x: x.square().sum(-1) + torch.rand(len(x)), True, RANDOM),
    "random, one point": (lambda x: x.square().sum() + torch.rand(()), False, "random operation"),
    "assigns": (_assigns, False, VMAP),
    "another device": (lambda x: torch.zeros(len(x), device="meta"), True, "expected energy on cpu .*, got meta"),
    "float": (lambda x: 1.0, True, "expected the energy as a tensor, got float"),
    "array": (lambda x: x.detach().numpy(), True, "expected the energy as a tensor, got ndarray"),
}


@pytest.mark.parametrize("name", FORCED)
def test_a_bad_callable_is_told_so_when_batched_is_said(name: str) -> None:
    fn, batched, message = FORCED[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        with pytest.raises(EnergyError, match=re.compile(message, re.DOTALL)):
            run(as_energy(fn, (3,), batched=batched))


def test_tensors_on_another_device_are_named() -> None:
    captured = torch.ones(3, device="meta")  # stands for a tensor on a GPU
    with pytest.raises(EnergyError, match=r"failed.*\(64, 3\), torch.float32 on cpu"):
        run(as_energy(lambda x: (x * captured).sum(-1), (3,)))


@pytest.mark.parametrize("mode", [True, False])
def test_modules_with_batch_normalisation_and_dropout_run_in_evaluation_mode(mode: bool) -> None:
    module = Centred(nn.BatchNorm1d(3), nn.Dropout(0.5)).train(mode)
    run(as_energy(module, (3,)))
    assert all(m.training is mode for m in module.modules())


@pytest.mark.parametrize("batched", [None, True])
def test_a_mean_over_equal_chains_is_found_too(batched: bool | None) -> None:
    """initial_params=torch.zeros(chains, d) is a common start, where the mean over the batch is every row."""
    energy = as_energy(lambda x: (x - x.mean(0)).square().sum(-1) + x.square().sum(-1), (3,), batched=batched)
    with pytest.raises(EnergyError, match=MIXES):
        run(energy, torch.zeros(8, 3), 8)


def test_one_chain_may_be_computed_however_it_likes() -> None:
    run(as_energy(lambda x: (x - x.mean(0)).square().sum(-1) + x.square().sum(-1), (3,)), chains=1)


def test_an_energy_that_cannot_be_evaluated_elsewhere_is_not_blamed() -> None:
    def fn(x: Tensor) -> Tensor:
        if bool((x > 1).any()):
            raise RuntimeError("the solver did not converge")
        return x.square().sum(-1)

    check_energy(as_energy(fn, (3,)), torch.full((4, 3), 0.9))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_chains_that_start_badly_are_named(bad: float) -> None:
    energy = as_energy(lambda x: torch.where(x[:, 0] > 0, x.square().sum(-1), bad), (2,))
    start = torch.ones(8, 2)
    start[[2, 5]] = -1
    with pytest.raises(EnergyError, match=rf"finite energy .*got 2 of 8 .*\(the first is {bad}\); chains: 2, 5$"):
        run(energy, start, 8)


@pytest.mark.parametrize("shape", [(), (2,), (2, 2)])
def test_chains_with_a_bad_gradient_are_named(shape: tuple[int, ...]) -> None:
    energy = as_energy(lambda x: x.abs().sqrt().reshape(len(x), -1).sum(-1), shape, batched=True)
    start = torch.ones(8, *shape)
    start[3] = 0  # a finite energy with an infinite slope
    with pytest.raises(EnergyError, match="expected a finite gradient at the initial points, got 1 of 8 .*chains: 3$"):
        run(energy, start, 8)


def test_named_sites_that_mix_rows_are_refused() -> None:
    fn = lambda s: s["mu"] + (s["theta"] - s["theta"].mean(0)).square().sum(-1)
    with pytest.raises(EnergyError, match=MIXES):
        run(as_energy(fn, SITES, batched=True))


def test_a_function_of_constrained_points_sees_only_those() -> None:
    smallest = []

    def fn(s: dict[str, Tensor]) -> Tensor:
        smallest.append(float(s["rate"].detach().min()))
        return (s["rate"] - s["rate"].log()).sum(-1)

    energy = Unconstrained(as_energy(fn, {"rate": (2,)}, {"rate": constraints.positive}))
    check_energy(energy, normal(8, 2))
    assert min(smallest) > 0


def test_the_dtype_of_the_initial_points_is_that_of_the_run() -> None:
    energy = as_energy(lambda x: (W64 * x).square().sum(-1), (3,))
    run(energy, normal(4, 3, dtype=torch.float64), 4)
    with pytest.raises(EnergyError, match="dtype torch.float32"):
        run(energy, normal(4, 3), 4)


def test_inference_mode_is_told() -> None:
    with torch.inference_mode(), pytest.raises(EnergyError, match=r"got torch\.inference_mode\(\); use no_grad\(\)"):
        check_energy(as_energy(lambda x: x.square().sum(-1), (2,)), torch.ones(3, 2))
