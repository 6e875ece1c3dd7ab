"""Fingerprints: equal while nothing changes, different when anything that a trace takes for granted does."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
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
