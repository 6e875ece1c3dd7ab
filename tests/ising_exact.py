"""Exact two-dimensional Ising models without fields, E = -sum of s_i s_j over bonds: Kaufman, Onsager, Yang."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from scipy import special
from torch import Tensor

CRITICAL_BETA = math.log(1 + math.sqrt(2)) / 2


class Torus(NamedTuple):
    """Of an L x L torus at one inverse temperature."""

    log_z: float
    energy: float  # per spin
    specific_heat: float  # per spin, beta^2 times the variance of the whole energy over the number of spins


def kaufman(length: int, beta: float) -> Torus:
    """Kaufman 1949, "Crystal statistics II. Partition function evaluated by spinor analysis"; L >= 3, beta > 0.

    The energy and the specific heat are its derivatives by automatic differentiation.
    """
    k = torch.tensor(beta, dtype=torch.float64, requires_grad=True)
    log_z = kaufman_log_z(length, k)
    (first,) = torch.autograd.grad(log_z, k, create_graph=True)
    (second,) = torch.autograd.grad(first, k)
    spins = length**2
    return Torus(log_z.item(), -first.item() / spins, beta**2 * second.item() / spins)


def kaufman_log_z(length: int, beta: Tensor) -> Tensor:
    r"""log of (2 sinh 2K)^{L^2/2} / 2 times the sum of four products of 2 cosh or 2 sinh of :math:`L\gamma_r/2`."""
    steps = torch.arange(1, 2 * length, dtype=torch.float64)
    cosine = torch.cosh(2 * beta) / torch.tanh(2 * beta) - torch.cos(math.pi * steps / length)
    gamma = torch.acosh(cosine)
    zero = 2 * beta + torch.log(torch.tanh(beta))  # the only one that changes its sign, at the critical point
    odd, even = length / 2 * gamma[::2], length / 2 * gamma[1::2]
    first = length / 2 * zero
    logs = torch.stack([_log_cosh(odd).sum(), _log_sinh(odd).sum(), _log_cosh(even).sum(), _log_sinh(even).sum()])
    ends = torch.stack([torch.ones(()).double(), torch.ones(()).double(), 2 * torch.cosh(first), 2 * torch.sinh(first)])
    top = logs.detach().max()
    total = (ends * torch.exp(logs - top)).sum()
    return length**2 / 2 * torch.log(2 * torch.sinh(2 * beta)) - math.log(2) + top + torch.log(total)


def _log_cosh(x: Tensor) -> Tensor:
    return x + torch.log1p(torch.exp(-2 * x))


def _log_sinh(x: Tensor) -> Tensor:
    return x + torch.log1p(-torch.exp(-2 * x))


def onsager_energy(beta: float) -> float:
    """Per spin of the infinite lattice (Onsager 1944)."""
    t = 2 * math.tanh(2 * beta) ** 2 - 1
    # the modulus is 1 - t^2; told by its distance from 1, which is what counts near the critical point
    elliptic = 0.0 if t == 0 else t * float(special.ellipkm1(t**2))
    return -(1 + 2 / math.pi * elliptic) / math.tanh(2 * beta)


def onsager_specific_heat(beta: float) -> float:
    """Per spin of the infinite lattice (Onsager 1944); infinite at the critical point."""
    square = math.tanh(2 * beta) ** 2
    t = 2 * square - 1
    first, second = float(special.ellipkm1(t**2)), float(special.ellipe(1 - t**2))
    inside = first - second - (1 - square) * (math.pi / 2 + t * first)
    return 4 / math.pi * (beta / math.tanh(2 * beta)) ** 2 * inside


def yang_magnetisation(beta: float) -> float:
    """Spontaneous magnetisation per spin of the infinite lattice (Yang 1952)."""
    return 0.0 if beta <= CRITICAL_BETA else (1 - math.sinh(2 * beta) ** -4) ** 0.125
