"""What an energy must keep, checked once at the start of a run: an error says what was wanted and what came."""

from __future__ import annotations

import torch
from torch import Tensor

from ebmppl.energies.base import Energy
from ebmppl.energies.function import same_energy
from ebmppl.errors import EnergyError


def check_energy(energy: Energy, x: Tensor, *, gradient: bool = True, finite: bool = True) -> None:
    """Check an energy at the initial points of a run.

    Args:
        energy: the energy as the kernel sees it (unconstrained for a gradient kernel).
        x: points ``(chains, *event)``.
        gradient: also check the gradient.
        finite: also check that values are finite.

    Raises:
        EnergyError: for a failing call, a wrong shape, dtype or device, an answer that changes from call to
            call, rows that depend on one another, no gradient, or a value that is not finite (chains are named).
    """
    value = _call(energy, x)
    _check_tensor(value, x)
    if not same_energy(_call(energy, x), value):
        raise EnergyError(
            "expected the same energy for the same points, got another at a second call: "
            "an energy must be a function, without random numbers inside"
        )
    for row in {0, len(x) // 2, len(x) - 1}:
        if not same_energy(_call(energy, x[row : row + 1]), value[row : row + 1]):
            raise EnergyError(
                f"the energy mixes the rows of a batch: the energy of chain {row} alone differs "
                "from its energy beside the other chains; chains must not depend on one another"
            )
    if finite:
        _check_finite("energy", value)
    if gradient:
        grad = _gradient(energy, x)
        if finite:
            _check_finite("gradient", grad)


def _call(energy: Energy, x: Tensor) -> Tensor:
    try:
        with torch.no_grad():
            return energy(x)
    except EnergyError:
        raise
    except (RuntimeError, TypeError, IndexError, ValueError) as error:
        raise EnergyError(
            f"the energy failed at points of shape {tuple(x.shape)}, {x.dtype} on {x.device} (the dtype and device "
            f"of the initial points): {type(error).__name__}: {error}"
        ) from error


def _check_tensor(value: Tensor, x: Tensor) -> None:
    if not isinstance(value, Tensor) or value.shape != x.shape[:1]:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise EnergyError(f"expected energy of shape ({len(x)},), got {got}")
    if value.dtype != x.dtype:
        raise EnergyError(f"expected energy of dtype {x.dtype} (that of the initial points), got {value.dtype}")
    if value.device != x.device:
        raise EnergyError(f"expected energy on {x.device} (where the initial points are), got {value.device}")


def _check_finite(what: str, value: Tensor) -> None:
    bad = ~torch.isfinite(value.flatten(1).sum(1) if value.dim() > 1 else value)
    if not bool(bad.any()):
        return
    chains = bad.nonzero().squeeze(1).tolist()
    shown = ", ".join(map(str, chains[:10])) + (", ..." if len(chains) > 10 else "")
    first = "" if value.dim() > 1 else f" (the first is {value[chains[0]].item()})"
    raise EnergyError(
        f"expected a finite {what} at the initial points, got {len(chains)} of {len(value)} that are "
        f"not{first}; chains: {shown}"
    )


def _gradient(energy: Energy, x: Tensor) -> Tensor:
    try:
        _, grad = energy.value_and_grad(x)
    except RuntimeError as error:
        if "does not require grad" in str(error) or "not have been used" in str(error):
            raise EnergyError(
                "expected an energy that is differentiable in its points, got one whose value does not "
                "depend on them by differentiable operations (detach, .item(), NumPy or integers inside?)"
            ) from error
        raise EnergyError(f"the gradient of the energy failed: {error}") from error
    if grad.shape != x.shape or grad.dtype != x.dtype or grad.device != x.device:
        raise EnergyError(
            f"expected a gradient of shape {tuple(x.shape)}, {x.dtype} on {x.device}, "
            f"got {tuple(grad.shape)}, {grad.dtype} on {grad.device}"
        )
    return grad
