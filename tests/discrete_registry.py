"""One row for every model and every kernel of discrete energies; the laws are tested over all rows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ebmppl.energies import Energy, as_energy, categories, spin
from ebmppl.kernels import DiscreteLangevin, Gibbs, GibbsWithGradients, Kernel, Metropolis
from ebmppl.models import Graph, Ising

F64 = torch.float64


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    """Random parameters."""
    return scale * torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def _symmetric(n: int, seed: int, scale: float = 0.5) -> Tensor:
    a = normal(n, n, seed=seed, scale=scale).triu(1)
    return a + a.mT


# Models: name -> energy in float64, of at most some hundred states


def _callable(x: Tensor) -> Tensor:
    return -0.4 * (x[:, 1:] * x[:, :-1]).sum(-1) + 0.3 * x[:, 0] * x[:, 1] * x[:, 2]


DISCRETE: dict[str, Callable[[], Energy]] = {
    "ising, matrix": lambda: Ising(coupling=_symmetric(5, 1), field=normal(5, seed=2, scale=0.3)),
    "ising, lattice": lambda: Ising(
        (2, 3), normal(7, seed=3, scale=0.5), normal(2, 3, seed=4, scale=0.3), periodic=False
    ),
    "ising, ferromagnet": lambda: Ising((3, 2), 0.35, periodic=(True, False), dtype=F64),
    "ising, tempered": lambda: 0.6 * Ising(Graph([(0, 1), (1, 2), (0, 3)], (4,)), 0.8, 0.2, dtype=F64),
    "callable, spins": lambda: as_energy(_callable, (4,), spin),
    "callable, ordered": lambda: as_energy(
        lambda x: 0.3 * (x - 1.2).square().sum(-1) - 0.2 * x.prod(-1), (2,), categories(4)
    ),
    "callable, sites": lambda: as_energy(
        lambda s: 0.5 * s["s"].sum(-1) * (s["k"] - 1.0) - 0.3 * s["s"].prod(-1),
        {"s": (2,), "k": ()},
        {"s": spin, "k": categories(3)},
    ),
    "callable, one-hot": lambda: as_energy(
        lambda x: -(x[:, 0] * x[:, 1]).sum(-1) - 0.5 * x[:, 1, 2] + 0.2 * x[:, 0, 0],
        (2, 3),
        torch.distributions.constraints.one_hot,
    ),
}


class DiscreteCase(NamedTuple):
    """A kernel that the laws run over."""

    factory: Callable[[Energy], Kernel]
    exact: bool = True  # leaves exp(-E) invariant
    reversible: bool = False  # one transition satisfies detailed balance
    takes: Callable[[str], bool] = lambda name: True  # of the models above, by name


DISCRETE_KERNELS: dict[str, DiscreteCase] = {
    "gibbs": DiscreteCase(Gibbs),
    "metropolis": DiscreteCase(Metropolis),
    "metropolis, random scan": DiscreteCase(
        partial(Metropolis, random_scan=True),
        reversible=True,
        takes=lambda name: name in ("ising, tempered", "callable, ordered", "callable, sites", "callable, one-hot"),
    ),
    "gibbs with gradients": DiscreteCase(GibbsWithGradients, reversible=True),
    "dmala": DiscreteCase(partial(DiscreteLangevin, step_size=2.0), reversible=True),
    "dula": DiscreteCase(partial(DiscreteLangevin, step_size=0.5, adjusted=False), exact=False),
}
