"""What losses leave out of their Langevin chains changes nothing: the gradient where a step's chains end."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from ebmppl.energies import Energy, MLPEnergy
from ebmppl.kernels import Langevin
from ebmppl.kernels.base import Kernel, Noise
from ebmppl.losses import CD, PCD, Loss

DATA = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))


class Whole(Langevin):
    """Makes all ticks."""

    def held_after(self, state: Any, tuning: Any, noise: Sequence[Noise]) -> None:
        return None


class Edge(Energy):
    """Half a squared norm times a parameter, up to an edge; beyond it energies are not finite."""

    def __init__(self) -> None:
        super().__init__((2,), torch.distributions.constraints.real)
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.gradients = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * (0.5 * x.square().sum(-1)).where(x[..., 0] < 1.0, torch.nan)

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.gradients += 1
        return super().value_and_grad(x)


def trained(loss: Loss, energy: Energy, x: Tensor) -> tuple[list[Tensor], dict[str, Any]]:
    """Parameters and buffers after four steps, and what the loss tells."""
    bound = loss(energy)
    optim = torch.optim.SGD(bound.parameters(), 0.1)
    for _ in range(4):
        optim.zero_grad()
        bound(x).backward()
        optim.step()
    return [value.clone() for value in bound.state_dict().values()], bound.diagnostics()


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("make", [CD, partial(PCD, num_chains=7), partial(PCD, num_chains=7, buffer=11, reinit=0.3)])
@pytest.mark.parametrize("edge", [False, True])
def test_steps_are_the_same_bit_for_bit(make: Any, k: int, edge: bool) -> None:
    """Also where steps to points of no finite energy are not taken."""
    found = []
    for kernel in (Langevin, Whole):
        torch.manual_seed(1)
        energy = Edge() if edge else MLPEnergy(2, (8, 8))
        x = DATA.clamp(max=0.9) if edge else DATA
        found.append(trained(make(k, kernel=partial(kernel, step_size=1.5 if edge else 0.5), seed=3), energy, x))
    (values, told), (wanted, wholly) = found
    assert all(torch.equal(a, b) for a, b in zip(values, wanted, strict=True))
    assert told["acceptance"] == wholly["acceptance"]
    assert (told["acceptance"] < 1) == edge
    assert told["gap"] == wholly["gap"]


def test_a_step_takes_as_many_gradients_as_draws() -> None:
    energy = Edge()
    bound = CD(3, kernel=partial(Langevin, step_size=1e-4), seed=0)(energy)
    bound(DATA.clamp(max=0.5))
    before = energy.gradients
    bound(DATA.clamp(max=0.5))
    assert energy.gradients - before == 3


class Trap(Energy):
    """Half a squared distance to 1 times a parameter; below 0 its gradient is NaN, from 2.5 on its value, too."""

    def __init__(self) -> None:
        super().__init__((1,), torch.distributions.constraints.real)
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        x = x[..., 0]
        half = 0.5 * (x - 1).square()
        return self.scale * torch.where(x > 0, half + 0 * x.sqrt(), half).where(x < 2.5, torch.nan)


@pytest.mark.parametrize("k", [1, 3])
def test_persistent_chains_go_to_no_point_without_a_gradient(k: int) -> None:
    """They would stand still there for good."""
    found = []
    for kernel in (Langevin, Whole):
        bound = PCD(k, kernel=partial(kernel, step_size=1.0), num_chains=4, seed=0)(Trap())
        bound.points.fill_(1.0)
        for _ in range(5):
            bound(torch.ones(8, 1))
        found.append(bound.points)
    assert torch.equal(*found)
    assert bool((found[0] >= 0).all())


@pytest.mark.parametrize("make", [CD, PCD])
@pytest.mark.parametrize("k", [1, 3])
def test_a_chain_ends_where_it_does_beside_any_others(make: Any, k: int) -> None:
    """Of the four no step alone goes to a point without energy; of the 60 others some do."""
    more: dict[str, Any] = {} if make is CD else {"num_chains": 64}
    chains = make(k, kernel=partial(Langevin, step_size=1.0), seed=0, **more)(Trap()).chains
    ends = [chains.move((torch.ones(n, 1),), k, go_on=make is PCD)[0] for n in (4, 64)]
    assert torch.equal(ends[0], ends[1][:4])
    taken = ends[1][:, 0]
    assert bool((taken < 2.5).all())
    # what ``held_after`` leaves out, and nothing else: the gradient at the end
    assert bool((taken < 0).any()) == (make is CD)


def test_a_kernel_with_another_tick_makes_all_of_them() -> None:
    class Still(Langevin):
        def tick(self, state: Any, tuning: Any, noise: Noise) -> Any:
            _, info = super().tick(state, tuning, noise)
            return state, info

    assert Still.held_after is Kernel.held_after
    bound = PCD(1, kernel=partial(Still, step_size=0.5), num_chains=5, seed=0)(MLPEnergy(2, (4,)))
    before = bound.points.clone()
    bound(DATA)
    assert torch.equal(bound.points, before)
