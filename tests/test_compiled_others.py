"""Compiled ticks of kernels other than gradient ones: equal to eager ones state by state, in every field."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

import ebmppl as eb
from ebmppl.kernels import Kernel
from ebmppl.score import VP, geometric_sigmas
from tests.discrete import states_of
from tests.discrete_registry import DISCRETE, DISCRETE_KERNELS
from tests.test_blocks import pair
from tests.test_clusters import BY_TABLES
from tests.test_compiled import BANANA, STATES, compare_state_by_state


def _score(x: Tensor, t: Tensor) -> Tensor:
    return torch.sin(3 * x) - x / (0.5 + t.unsqueeze(1))


def _discrete(kernel: str, model: str) -> Kernel:
    return DISCRETE_KERNELS[kernel].factory(DISCRETE[model]())


MADE: dict[str, Callable[[], Kernel]] = {
    f"{kernel}, {model}": partial(_discrete, kernel, model)
    for kernel in ("gibbs", "metropolis", "gibbs with gradients", "dmala", "dula")
    for model in ("ising, lattice", "potts, lattice", "rbm")
}
MADE |= {
    f"{kernel}, {model}": partial(_discrete, kernel, model)
    for kernel in ("swendsen-wang", "wolff")
    for model in (
        "ising, ferromagnet",  # a lattice that closes along one axis
        "ising, ferromagnet in a field",
        "ising, mattis glass",  # a graph, a gauge and fields
        "potts, ferromagnet",
        "potts, ferromagnet in a field",
        "potts, tempered",  # a graph
    )
}
MADE |= {
    f"swendsen-wang, {name}": lambda name=name: eb.SwendsenWang(BY_TABLES[name]())  # type: ignore[misc]
    for name in ("clamped", "clamped potts", "one edge twice", "product", "bits")
}
MADE |= {
    "metropolis, random scan": partial(_discrete, "metropolis, random scan", "ising, tempered"),
    "tempered gibbs": partial(_discrete, "tempered gibbs", "ising, lattice"),
    "tempered swendsen-wang": lambda: eb.ParallelTempering(
        _discrete("swendsen-wang", "ising, ferromagnet in a field"), [0.4, 0.7, 1.0]
    ),
    "tempered mala": lambda: eb.ParallelTempering(eb.MALA(BANANA, 0.3), 3),
    "blocks": lambda: eb.Blocks(pair().energy, {"s": eb.Gibbs, "x": partial(eb.HMC, step_size=0.3, num_steps=3)}),
}
MADE |= {
    f"reverse sde, {method}": lambda method=method: eb.ReverseSDE(_score, VP(), (3,), 300, method)  # type: ignore[misc]
    for method in ("euler_maruyama", "heun", "ancestral", "predictor_corrector")
}
MADE |= {
    f"flow, {method}": lambda method=method: eb.ProbabilityFlow(_score, VP(), (3,), 300, method)  # type: ignore[misc]
    for method in ("euler", "heun", "dpm_solver_2m", "dpm_solver_3m")
}
MADE |= {
    "adaptive reverse sde": lambda: eb.AdaptiveReverseSDE(_score, VP(), (3,)),
    "adaptive flow": lambda: eb.AdaptiveFlow(_score, VP(), (3,)),
    "annealed langevin": lambda: eb.AnnealedLangevin(_score, geometric_sigmas(5, 0.1, 5.0), (3,)),
}


def _begin(kernel: Kernel) -> Tensor:
    """Random states."""
    generator = torch.Generator().manual_seed(1)
    if isinstance(kernel, eb.Blocks):
        return kernel.target.unconstrain(pair().draw(STATES, generator))
    if kernel.target.support.is_discrete:
        states = states_of(kernel.target)
        return states[torch.randint(len(states), (STATES,), generator=generator)]
    return torch.randn(STATES, *kernel.target.event_shape, dtype=torch.float64, generator=generator)


BY_DEFAULT = ("swendsen-wang, ising, mattis glass", "wolff, potts, ferromagnet in a field")
ALL = [name if name in BY_DEFAULT else pytest.param(name, marks=pytest.mark.long) for name in MADE]


@pytest.mark.parametrize("name", ALL)
def test_compiled_ticks_of_other_kernels_equal_eager_ones_state_by_state(name: str) -> None:
    """70 chains, 200 ticks, float64: sums of some ten numbers of size one in another order differ by some 1e-15."""
    kernel = MADE[name]()
    assert compare_state_by_state(kernel, _begin(kernel)) < 1e-10
