"""One row for every model and every kernel of discrete energies; the laws are tested over all rows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ebmppl.energies import Clamped, Energy, GeometricPath, as_energy, categories, spin
from ebmppl.kernels import (
    DiscreteLangevin,
    Gibbs,
    GibbsWithGradients,
    Kernel,
    Metropolis,
    ParallelTempering,
    SwendsenWang,
    Wolff,
)
from ebmppl.models import BernoulliRBM, BoltzmannMachine, Graph, Hopfield, Ising, Potts, ProductOfExperts, SoftmaxRBM

F64 = torch.float64


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    """Random parameters."""
    return scale * torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def _symmetric(n: int, seed: int, scale: float = 0.5) -> Tensor:
    a = normal(n, n, seed=seed, scale=scale).triu(1)
    return a + a.mT


def _triangles() -> Graph:
    return Graph([(0, 1), (1, 2), (2, 0), (2, 3), (3, 4), (4, 2), (0, 4)], (5,))


def _mattis() -> Tensor:
    """A glass of both signs that flips of sites 1 and 3 make a ferromagnet."""
    flip = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0], dtype=F64)
    i, j = _triangles().edges.unbind(1)
    return normal(7, seed=6, scale=0.5).abs() * flip[i] * flip[j]


# Models: name -> energy in float64, of at most some hundred states


def _callable(x: Tensor) -> Tensor:
    return -0.4 * (x[:, 1:] * x[:, :-1]).sum(-1) + 0.3 * x[:, 0] * x[:, 1] * x[:, 2]


def _rbm(v: int = 4, h: int = 3, seed: int = 10) -> BernoulliRBM:
    return BernoulliRBM(
        v, h, W=normal(v, h, seed=seed), b=normal(v, seed=seed + 1, scale=0.5), c=normal(h, seed=seed + 2)
    )


def _softmax_rbm(v: int, k: int, h: int) -> SoftmaxRBM:
    return SoftmaxRBM(v, k, h, W=normal(v, k, h, seed=14), b=normal(v, k, seed=15, scale=0.5), c=normal(h, seed=16))


def _machine() -> BoltzmannMachine:
    return BoltzmannMachine(3, 3, coupling=_symmetric(6, 17, 0.8), bias=normal(6, seed=18, scale=0.5))


DISCRETE: dict[str, Callable[[], Energy]] = {
    "ising, matrix": lambda: Ising(coupling=_symmetric(5, 1), field=normal(5, seed=2, scale=0.3)),
    "ising, lattice": lambda: Ising(
        (2, 3), normal(7, seed=3, scale=0.5), normal(2, 3, seed=4, scale=0.3), periodic=False
    ),
    "ising, ferromagnet": lambda: Ising((3, 2), 0.35, periodic=(True, False), dtype=F64),
    "ising, tempered": lambda: 0.6 * Ising(Graph([(0, 1), (1, 2), (0, 3)], (4,)), 0.8, 0.2, dtype=F64),
    "ising, ferromagnet in a field": lambda: Ising(
        (2, 3), 0.4, normal(2, 3, seed=5, scale=0.3), periodic=(False, True)
    ),
    "ising, positive graph": lambda: Ising(_triangles(), normal(7, seed=6, scale=0.5).abs(), -0.15),
    "ising, mattis glass": lambda: 0.9 * Ising(_triangles(), _mattis(), normal(5, seed=7, scale=0.3)),
    "rbm": _rbm,
    "rbm, joint": lambda: _rbm(3, 3).joint,
    "rbm, hidden": lambda: _rbm().hidden_energy,
    "rbm, tempered": lambda: _rbm(5, 2).tempered(0.5, _rbm(5, 2, seed=30)),
    "rbm, joint, tempered": lambda: 0.7 * _rbm(3, 2).joint,
    "softmax rbm": lambda: _softmax_rbm(3, 4, 2),
    "softmax rbm, joint": lambda: _softmax_rbm(2, 3, 3).joint,
    "potts, lattice": lambda: Potts((2, 2), 3, normal(4, seed=19), normal(2, 2, 3, seed=20), periodic=False),
    "potts, ferromagnet": lambda: Potts((4,), 4, 0.7, dtype=F64),
    "potts, ferromagnet in a field": lambda: Potts((2, 2), 3, 0.9, normal(2, 2, 3, seed=8, scale=0.4), periodic=False),
    "potts, tempered": lambda: 0.7 * Potts(Graph([(0, 1), (1, 2), (0, 2)], (4,)), 3, normal(3, seed=9).abs(), 0.0),
    "potts, two states": lambda: Potts(Graph([(0, 1), (1, 2), (0, 2)], (3,)), 2, 0.8, normal(2, seed=21)),
    "potts, clamped": lambda: Clamped(
        Potts(None, 3, _symmetric(5, 22), 0.1), torch.tensor([False, True, False, False, True]), torch.tensor(2)
    ),
    "boltzmann machine": _machine,
    "boltzmann machine, posterior": lambda: _machine().posterior(torch.tensor([1.0, 0.0, 1.0])),
    "hopfield": lambda: Hopfield(normal(3, 6, seed=23).sign(), normal(6, seed=24, scale=0.3)),
    "sum": lambda: Ising((6,), 0.4, dtype=F64) + Ising(Graph([(0, 3), (1, 2)], (6,)), -0.5, 0.2, dtype=F64),
    "path": lambda: GeometricPath(Ising(Graph([], (5,)), field=0.4, dtype=F64), Ising((5,), 0.8, dtype=F64), 0.6),
    "product of experts": lambda: ProductOfExperts(
        [Potts((3,), 3, 0.9, dtype=F64), Potts(Graph([(0, 2)], (3,)), 3, 0.7, normal(3, seed=25))], [0.5, 1.5]
    ),
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


_FERROMAGNETS = {
    "ising, ferromagnet",
    "ising, tempered",
    "ising, ferromagnet in a field",
    "ising, positive graph",
    "ising, mattis glass",
    "potts, ferromagnet",
    "potts, two states",
    "potts, ferromagnet in a field",
    "potts, tempered",
}

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
    "swendsen-wang": DiscreteCase(SwendsenWang, reversible=True, takes=_FERROMAGNETS.__contains__),
    "wolff": DiscreteCase(Wolff, reversible=True, takes=_FERROMAGNETS.__contains__),
    # exact for all replicas together, not for one alone whose others begin anywhere: see test_parallel_tempering.py
    "tempered gibbs": DiscreteCase(lambda e: ParallelTempering(Gibbs(e), [0.4, 0.7, 1.0]), exact=False),
}
