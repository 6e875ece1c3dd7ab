"""Where chains begin: uniform in the unconstrained space, with retries for points of non-finite energy."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ebmppl.energies.base import Energy
from ebmppl.energies.checks import check_energy
from ebmppl.kernels.base import NoiseSpec
from ebmppl.sampling.noise import NoiseSource

RETRIES = 100


def initial_points(target: Energy, chains: int, seed: int, radius: float = 2.0) -> Tensor:
    """Points ``(chains, *event)`` uniform in (-radius, radius), drawn again where energy or gradient is not finite.

    Args:
        target: an unconstrained energy; its parameters and buffers give dtype and device (else torch's defaults).
        chains: how many.
        seed: of the run.
        radius: half the side of the box, as in Stan and Pyro.

    Raises:
        EnergyError: when the energy breaks its contract, or some chains found no finite point in 100 attempts.
    """
    dtype, device = dtype_and_device(target)
    specs = {"point": NoiseSpec("uniform", tuple(target.event_shape))}
    source = NoiseSource(specs, chains, seed, dtype, device, "initial")

    def draw(attempt: int) -> Tensor:
        return (2 * source.row(attempt)["point"] - 1) * radius

    x = draw(0)
    check_energy(target, x, finite=False)
    for attempt in range(1, RETRIES + 1):
        energy, grad = target.value_and_grad(x)
        good = torch.isfinite(energy) & torch.isfinite(grad.reshape(chains, -1).sum(1))
        if bool(good.all()):
            return x
        x = torch.where(good.view(-1, *[1] * (x.dim() - 1)), x, draw(attempt))
    check_energy(target, x)
    return x


def given_points(target: Energy, params: Tensor | Mapping[str, Tensor], chains: int) -> Tensor:
    """A user's unconstrained points as an own tensor ``(chains, *event)``; one chain may come without its axis.

    Raises:
        ValueError: for unknown or missing sites, another shape, or integers.
    """
    for value in params.values() if isinstance(params, Mapping) else [params]:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            got = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"expected floating point tensors as initial_params, got {got}")
    x = target.pack(params) if isinstance(params, Mapping) else params
    if x.shape == target.event_shape and chains == 1:
        x = x.unsqueeze(0)
    if x.shape != (chains, *target.event_shape):
        wanted = f"{(chains, *target.event_shape)} (unconstrained, chains first)"
        raise ValueError(f"expected initial_params of shape {wanted}, got {tuple(x.shape)}")
    return x.detach().clone()


def dtype_and_device(energy: Energy) -> tuple[torch.dtype, torch.device]:
    """The widest floating dtype of an energy's parameters and buffers and their device; torch's defaults without any."""
    tensors = [t for t in (*energy.parameters(), *energy.buffers()) if t.is_floating_point()]
    if not tensors:
        return torch.get_default_dtype(), torch.get_default_device()
    dtype = tensors[0].dtype
    for t in tensors[1:]:
        dtype = torch.promote_types(dtype, t.dtype)
    return dtype, tensors[0].device
