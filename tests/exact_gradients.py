"""Exact gradients of mean negative log-likelihoods by enumeration in float64, and tests of stochastic ones against them."""

from __future__ import annotations

import torch
from scipy import stats
from torch import Tensor

from ebmppl.energies import Energy
from ebmppl.losses import BoundLoss
from ebmppl.models import BernoulliRBM, Ising, Potts
from tests.discrete import states_of

F64 = torch.float64
FALSE_ALARM = 1e-4  # of one test, over all its coordinates


def random(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    """Normal numbers."""
    return scale * torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def rbm() -> BernoulliRBM:
    """Strong enough for CD-1 to be biased."""
    return BernoulliRBM(4, 3, W=random(4, 3, seed=1, scale=1.5), b=random(4, seed=2, scale=0.5), c=random(3, seed=3))


def ising() -> Ising:
    """On six sites, every coupling its own."""
    return Ising((2, 3), random(7, seed=4, scale=0.7), random(2, 3, seed=5, scale=0.4), periodic=False)


def potts() -> Potts:
    """Three states on a square."""
    return Potts((2, 2), 3, random(4, seed=6, scale=0.7), random(2, 2, 3, seed=7, scale=0.4), periodic=False)


DISCRETE = {"rbm": rbm, "ising": ising, "potts": potts}


def data_of(energy: Energy, rows: int = 12, seed: int = 8) -> Tensor:
    """Uniform states: not from the model, so that the gradient is not 0."""
    states = states_of(energy)
    return states[torch.randint(len(states), (rows,), generator=torch.Generator().manual_seed(seed))].to(F64)


def flat(energy: Energy) -> Tensor:
    """All gradients in one vector."""
    return torch.cat([p.grad.flatten() for p in energy.parameters() if p.grad is not None])


def enumerated(energy: Energy, x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean negative log-likelihood in nats, and its gradient."""
    energy.zero_grad()
    value = energy(x).mean() + torch.logsumexp(-energy(states_of(energy)), 0)
    value.backward()
    found = flat(energy)
    energy.zero_grad()
    return value.detach(), found


def gradients(bound: BoundLoss, x: Tensor, repetitions: int) -> Tensor:
    """Of several calls, nothing updated between them, ``(repetitions, parameters)``."""
    found = []
    for _ in range(repetitions):
        bound.zero_grad()
        bound(x).backward()
        found.append(flat(bound.energy))
    bound.zero_grad()
    return torch.stack(found)


def p_value(found: Tensor, exact: Tensor) -> float:
    """Of the largest of all coordinates' t statistics (Bonferroni), for independent rows."""
    n, error = len(found), found.std(0) / len(found) ** 0.5
    off = (found.mean(0) - exact).abs()
    fixed = error < 1e-12  # a coordinate without randomness must be right
    if bool((off[fixed] > 1e-10).any()):
        return 0.0
    t = (off / error)[~fixed]
    return min(1.0, float(2 * stats.t.sf(float(t.max()), n - 1) * len(t)))
