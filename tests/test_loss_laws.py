"""Laws of every loss in the registry."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Iterator
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import SVI
from torch import Tensor, nn

from ebmppl.losses import BoundLoss, Loss
from tests.loss_registry import LOSSES

F64, F32 = torch.float64, torch.float32
every_loss = pytest.mark.parametrize("name", LOSSES)
RATE = 0.01


@pytest.fixture(autouse=True)
def _own_store() -> Iterator[None]:
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()


def no_guide(*args: Any) -> None:
    """SVI wants a callable."""


def made(name: str, device: torch.device, dtype: torch.dtype = F64) -> tuple[Loss, Any, Any, Tensor]:
    """A loss, its energy, its guide and data, always the same."""
    case = LOSSES[name]
    with device:  # guides make tensors where torch makes them by default
        guide = no_guide if case.guide is None else case.guide(dtype)
    return case.factory(), case.energy(dtype).to(device), guide, case.data(dtype).to(device)


def bound_to(name: str, device: torch.device, dtype: torch.dtype = F64) -> tuple[BoundLoss, Tensor]:
    loss, energy, guide, x = made(name, device, dtype)
    return loss(energy, guide), x


def values(module: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters and buffers."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def descend(bound: BoundLoss, x: Tensor, steps: int) -> list[float]:
    """Values of the loss over some steps of plain gradient descent."""
    optim = torch.optim.SGD(bound.parameters(), RATE)
    found = []
    for _ in range(steps):
        optim.zero_grad()
        value = bound(x)
        value.backward()
        optim.step()
        found.append(value.item())
    return found


@every_loss
def test_the_value_is_a_finite_scalar(name: str, device: torch.device) -> None:
    bound, x = bound_to(name, device)
    before = x.clone()
    value = bound(x)
    assert value.shape == ()
    assert math.isfinite(value.item())
    assert torch.equal(x, before)
    assert not x.requires_grad


@every_loss
def test_the_gradient_reaches_every_parameter(name: str, device: torch.device) -> None:
    bound, x = bound_to(name, device)
    bound(x).backward()
    for path, parameter in bound.named_parameters():
        gradient = parameter.grad
        reached = gradient is not None and bool(gradient.abs().max() > 1e-12)  # rounding of sums of numbers of size 1
        assert reached != (path in LOSSES[name].unreached), path


@every_loss
def test_steps_of_svi_are_those_of_plain_torch(name: str, device: torch.device) -> None:
    bound, x = bound_to(name, device)
    wanted = descend(bound, x, 3)
    loss, energy, guide, _ = made(name, device)
    svi = SVI(energy, guide, pyro.optim.SGD({"lr": RATE}), loss=loss)
    found = [svi.step(x) for _ in range(3)]
    assert found == wanted
    assert loss.bound is not None
    assert same(values(loss.bound), values(bound))


@every_loss
def test_evaluate_loss_twice_is_equal_and_moves_nothing(name: str, device: torch.device) -> None:
    loss, energy, guide, x = made(name, device)
    svi = SVI(energy, guide, pyro.optim.SGD({"lr": RATE}), loss=loss)
    svi.step(x)
    assert loss.bound is not None
    before = values(loss.bound)
    first = svi.evaluate_loss(x)
    assert math.isfinite(first)
    assert svi.evaluate_loss(x) == first
    assert same(values(loss.bound), before)
    assert all(module.training for module in loss.bound.modules())
    untouched, _, _, _ = made(name, device)  # and later steps don't know of it
    twin = SVI(twin_energy := LOSSES[name].energy(F64).to(device), guide, pyro.optim.SGD({"lr": RATE}), loss=untouched)
    twin.step(x)
    assert svi.step(x) == twin.step(x)
    assert same(values(energy), values(twin_energy))


@every_loss
def test_eval_mode_moves_nothing_either(name: str, device: torch.device) -> None:
    bound, x = bound_to(name, device)
    descend(bound, x, 1)
    bound.eval()
    before = values(bound)
    with torch.no_grad():
        first = bound(x)
    assert not first.requires_grad
    assert bound(x).item() == first.item()
    assert same(values(bound), before)
    assert not any(module.training for module in bound.modules())


@every_loss
def test_training_goes_on_from_a_state_dict_as_if_never_stopped(name: str, device: torch.device) -> None:
    whole, x = bound_to(name, device)
    wanted = descend(whole, x, 4)
    first, _ = bound_to(name, device)
    found = descend(first, x, 2)
    state = values(first)
    second, _ = bound_to(name, device)
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.mul_(1.5)
    second.load_state_dict(state)
    assert found + descend(second, x, 2) == wanted
    assert same(values(second), values(whole))


@every_loss
def test_copies_go_on_alike_and_apart(name: str, device: torch.device) -> None:
    bound, x = bound_to(name, device)
    descend(bound, x, 1)
    copied, travelled = copy.deepcopy(bound), pickle.loads(pickle.dumps(bound))
    before = values(bound)
    wanted = descend(copied, x, 2)
    assert same(values(bound), before)
    assert descend(travelled, x, 2) == wanted
    assert descend(bound, x, 2) == wanted
    assert same(values(bound), values(copied))
    assert same(values(bound), values(travelled))


@every_loss
@pytest.mark.parametrize("real", [F32, F64], ids=["float32", "float64"])
def test_dtype_and_device_are_kept(name: str, real: torch.dtype, device: torch.device) -> None:
    bound, x = bound_to(name, device, real)
    before = {path: (value.dtype, value.device) for path, value in bound.state_dict().items()}
    value = bound(x)
    value.backward()
    assert (value.dtype, value.device) == (real, x.device)
    assert {path: (value.dtype, value.device) for path, value in bound.state_dict().items()} == before
    for parameter in bound.parameters():
        assert parameter.grad is None or parameter.grad.dtype == real


@every_loss
def test_modes_are_restored(name: str, device: torch.device) -> None:
    bound, x = bound_to(name, device)
    modules = [module for module in bound.modules() if module is not bound]
    for i, module in enumerate(modules):
        module.training = i % 2 == 0
    before = [module.training for module in modules]
    bound(x)
    assert [module.training for module in modules] == before


@every_loss
def test_the_global_generator_is_left_alone(name: str, device: torch.device) -> None:
    bound, x = bound_to(name, device)
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    first = descend(bound, x, 2)
    assert torch.equal(torch.random.get_rng_state(), before)
    again, _ = bound_to(name, device)
    torch.manual_seed(1)
    assert descend(again, x, 2) == first
