"""The leapfrog integrator in whitened momenta, and the energies of these."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

ValueAndGrad = Callable[[Tensor], tuple[Tensor, Tensor]]


class Phase(NamedTuple):
    """Points of phase space with the potential energy and its gradient at the position."""

    position: Tensor  # (chains, dimension)
    momentum: Tensor  # (chains, dimension), whitened
    energy: Tensor  # (chains,)
    grad: Tensor  # (chains, dimension)


def leapfrog(value_and_grad: ValueAndGrad, at: Phase, step_size: Tensor, factor: Tensor) -> Phase:
    """One leapfrog step (Neal 2011, "MCMC using Hamiltonian dynamics", equations 2.28 to 2.30).

    The momentum r ~ N(0, M) is kept whitened as p = F' r ~ N(0, I), where F F' is the inverse mass matrix: then the
    kinetic energy is p'p / 2, the position moves by F p and the momentum by -F' grad, whatever the metric.

    Args:
        value_and_grad: energies ``(chains,)`` and gradients ``(chains, dimension)`` at positions.
        at: where to start.
        step_size: ``(chains,)`` or one for all, negative to go back in time.
        factor: F, ``(dimension,)`` for a diagonal inverse mass matrix or ``(dimension, dimension)``.
    """
    step = step_size.unsqueeze(-1)
    if factor.dim() == 1:
        scaled = step * factor
        momentum = torch.addcmul(at.momentum, at.grad, scaled, value=-0.5)
        position = torch.addcmul(at.position, momentum, scaled)
        energy, grad = value_and_grad(position)
        return Phase(position, momentum.addcmul_(grad, scaled, value=-0.5), energy, grad)
    momentum = torch.addcmul(at.momentum, at.grad @ factor, step, value=-0.5)
    position = torch.addcmul(at.position, momentum @ factor.mT, step)
    energy, grad = value_and_grad(position)
    return Phase(position, momentum.addcmul_(grad @ factor, step, value=-0.5), energy, grad)


def kinetic(momentum: Tensor) -> Tensor:
    """Kinetic energy ``(chains,)`` in nats of whitened momenta ``(chains, dimension)``."""
    return torch.linalg.vector_norm(momentum, dim=-1).square_().mul_(0.5)


def hamiltonian(energy: Tensor, momentum: Tensor) -> Tensor:
    """Potential plus kinetic energy ``(chains,)`` in nats."""
    norm = torch.linalg.vector_norm(momentum, dim=-1)
    return torch.addcmul(energy, norm, norm, value=0.5)
