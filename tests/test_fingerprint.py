"""Fingerprints: equal while nothing changes, different when anything that a trace takes for granted does."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ebmppl.energies import Gaussian, as_energy
from ebmppl.energies.fingerprint import fingerprint, same

NAMED = {"scale": 2.0}


def helper(x: Tensor) -> Tensor:
    return NAMED["scale"] * x


def named(x: Tensor) -> Tensor:
    return helper(x).square().sum(-1)


@dataclass
class Options:
    scale: float = 1.0
    powers: list[float] = field(default_factory=lambda: [2.0])


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.options, self.pair = nn.Linear(2, 1), Options(), (1.0, 2.0)
        self.plain = torch.zeros(2)  # no buffer
        self.function = lambda x, by=[3.0]: by[0] * x

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).squeeze(-1)


def assigned(net: Net) -> None:
    net.load_state_dict(net.state_dict(), assign=True)
    net.linear.weight = nn.Parameter(torch.zeros(1, 2))


@dataclass(slots=True)
class Slots:
    scale: float = 1.0


class Settings:
    scale = 1.0


class Plain:
    """Of which the class holds what its call comes to."""

    scale = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        return self.scaled(x).sum(-1)

    def scaled(self, x: Tensor) -> Tensor:
        return self.scale * helper(x)

    def unused(self) -> Any:
        return UNUSED


class Derived(Plain, nn.Module):
    forward = Plain.__call__


UNUSED: list[int] = []
SLOTS = Slots()
# by what is changed: a function of the energy's, and the change
REACHED: dict[str, tuple[Callable[..., Any], Callable[[pytest.MonkeyPatch], None]]] = {
    "a global of a generator": (
        lambda x: sum(NAMED["scale"] * x[..., i] for i in range(2)),
        lambda patch: patch.setitem(NAMED, "scale", 3.0),
    ),
    "a global of a function inside": (
        lambda x: (lambda y: NAMED["scale"] * y)(x),
        lambda patch: patch.setitem(NAMED, "scale", 3.0),
    ),
    "a number in slots": (lambda x: SLOTS.scale * x, lambda patch: patch.setattr(SLOTS, "scale", 2.0)),
    "a number of a class": (lambda x: Settings.scale * x, lambda patch: patch.setattr(Settings, "scale", 2.0)),
    "a number of an object's class": (Plain(), lambda patch: patch.setattr(Plain, "scale", 2.0)),
    "a method": (Plain(), lambda patch: patch.setattr(Plain, "scaled", lambda self, x: x)),
    "a global of a method's": (Plain(), lambda patch: patch.setitem(NAMED, "scale", 3.0)),
    "a number of the class that a module's is derived from": (
        Derived(),
        lambda patch: patch.setattr(Plain, "scale", 2.0),
    ),
}


@pytest.mark.parametrize("what", REACHED)
def test_what_code_reaches_is_seen(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was not, and chains whose first points lie where the old and the new energy agree sampled the old one."""
    function, change = REACHED[what]
    energy = as_energy(function, (2,))
    before = fingerprint(energy)
    UNUSED.append(0)  # what no code that is called names
    assert fingerprint(energy) == before
    change(monkeypatch)
    assert fingerprint(energy) != before


def test_modules_of_the_users_are_looked_into() -> None:
    """Also those of a name that begins like a library's, and only where code names them."""
    module = ModuleType("pyro_models")
    exec("scale, other = 1.0, 1.0\ndef energy(x): return scale * x.sum(-1)", vars(module))
    for energy in (as_energy(module.energy, (2,)), as_energy(lambda x: module.energy(x), (2,))):
        before = fingerprint(energy)
        module.other += 1
        assert fingerprint(energy) == before
        module.scale += 1
        assert fingerprint(energy) != before


def test_hooks_and_other_strides_are_seen() -> None:
    net, square = Net(), torch.zeros(2, 2)
    before = fingerprint([net, square])
    square.t_()
    turned = fingerprint([net, square])
    net.register_forward_hook(lambda module, args, out: 2 * out)
    assert len({before, turned, fingerprint([net, square])}) == 3


def test_another_object_never_has_the_address_of_an_old_one() -> None:
    """Python gives an object's memory to the next one of its size."""
    holder = SimpleNamespace(prior=None)
    energy = as_energy(lambda x: -holder.prior.log_prob(x).sum(-1), (2,))
    known = []
    for i in range(20):
        holder.prior = None
        holder.prior = torch.distributions.Normal(float(i), 1.0)
        known.append(fingerprint(energy))
    assert len(set(known)) == 20


CHANGES: dict[str, Callable[[Net], Any]] = {
    "a tensor": assigned,
    "a plain tensor": lambda net: setattr(net, "plain", torch.zeros(2)),
    "a number in a dataclass": lambda net: setattr(net.options, "scale", 1.5),
    "a number in a list": lambda net: net.options.powers.append(3.0),
    "a tuple": lambda net: setattr(net, "pair", (1.0, 3.0)),
    "a default": lambda net: net.function.__defaults__[0].append(1.0),
    "a mode": lambda net: net.linear.eval(),
    "a new attribute": lambda net: setattr(net, "extra", "x"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_module_reaches_is_seen(change: str) -> None:
    net = Net()
    energy = as_energy(net, (2,))
    before = fingerprint(energy)
    for _ in range(20):
        gc.collect(0)
        assert fingerprint(energy) == before  # no address of a temporary object is part of it
    with torch.no_grad():
        net.linear.weight.add_(1.0)  # in place: a trace sees that
    assert fingerprint(energy) == before
    assert fingerprint(as_energy(net, (2,))) == before  # another energy of the same callable
    CHANGES[change](net)
    assert fingerprint(energy) != before


def test_globals_closures_and_partials_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    scale = 1.0

    def closed(x: Tensor) -> Tensor:
        return scale * x

    before = [fingerprint(f) for f in (named, closed, partial(named, by=1.0))]
    monkeypatch.setitem(NAMED, "scale", 3.0)
    scale = 2.0
    after = [fingerprint(f) for f in (named, closed, partial(named, by=2.0))]
    assert all(a != b for a, b in zip(before, after, strict=True))


def test_objects_that_hold_themselves_come_to_an_end() -> None:
    loop: list[Any] = [1.0]
    loop.append(loop)
    assert fingerprint(loop) == fingerprint(loop)


def test_tensors_of_our_own_energies_count() -> None:
    a, b = (Gaussian(torch.zeros(2), torch.ones(2)) for _ in range(2))
    assert fingerprint(a) == fingerprint(a)
    assert fingerprint(a) != fingerprint(b)


def test_keys_are_by_identity_but_for_plain_values() -> None:
    class Equal:
        def __eq__(self, other: object) -> bool:
            return True

        def __hash__(self) -> int:
            return 0

        def method(self) -> None: ...

    one, other = Equal(), Equal()
    assert same(one) == same(one) != same(other)
    assert same(one.method) == same(one.method) != same(other.method)
    assert same(2) == same(2) != same(2.0)
    assert {same([1]): 1}  # what can't be hashed can be a key


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.jit's
def test_scripted_modules_are_looked_into() -> None:
    """Whose class has no ``forward`` and whose mode is no attribute of Python's: they ended a run with an AttributeError."""
    net = torch.jit.script(nn.Sequential(nn.Linear(2, 1), nn.Dropout()))
    before = fingerprint(net)
    assert fingerprint(net) == before
    net.eval()
    assert fingerprint(net) != before
    net.train()
    assert fingerprint(net) == before
    net.load_state_dict({name: value + 1 for name, value in net.state_dict().items()}, assign=True)
    assert fingerprint(net) != before
