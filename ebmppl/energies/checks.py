"""What an energy must keep, checked once at the start of a run: an error says what was wanted and what came."""

from __future__ import annotations

import torch
from torch import Tensor

from ebmppl.arguments import require
from ebmppl.energies.base import Energy
from ebmppl.energies.discrete import discrete, levels_of
from ebmppl.energies.function import same_energy
from ebmppl.energies.looped import POINTS, require_whole_gradient, scattered
from ebmppl.energies.randomness import RANDOM, Draws
from ebmppl.errors import EnergyError


def require_values(energy: Energy, kernel: str) -> None:
    """Raise ``ValueError`` for an energy of which the gradient alone is known, where a kernel needs its values."""
    got = "a score's gradient alone; take Langevin, or the energy of a model score.EnergyGradient (energies.EnergyAt)"
    require(energy.has_values, f"an energy whose values are known for {kernel}", got)


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
    if energy.has_values:
        _check_tensor(value, x)
    else:  # what is known, the gradient, is checked in its place
        value = _gradient(energy, x)
    with Draws() as random:
        again = _call(energy, x)
    if random.drawn or not same_energy(again, value):
        raise EnergyError(RANDOM)
    _check_rows(energy, x, value)
    if finite and energy.has_values:
        _check_finite("energy", value)
    if gradient:
        check_gradient(energy, x, finite=finite)


def check_gradient(energy: Energy, x: Tensor, *, finite: bool = True) -> None:
    """Check the gradient of an energy at points ``(chains, *event)``; a discrete energy's at these real numbers.

    Raises:
        EnergyError: where there is none, or one of another shape or dtype, or not finite (chains are named), or, of code
            that looks at values, one that misses a part.
    """
    grad = _gradient(energy, x)
    if finite:
        _check_finite("gradient", grad)
    if any(isinstance(part, Energy) and part.looped for part in energy.modules()):
        points = scattered(POINTS, x.shape[1:]).to(x)
        works = [point for point in points if _works(energy, point[None])]
        if works:
            require_whole_gradient(energy, torch.stack(works))


def _works(energy: Energy, x: Tensor) -> bool:
    try:
        _call(energy, x)
    except Exception:
        return False  # the user's code may raise anything there, for nobody asked for these points
    return True


def _call(energy: Energy, x: Tensor) -> Tensor:
    try:
        with torch.no_grad():
            return energy(x) if energy.has_values else energy.value_and_grad(x)[1]
    except EnergyError:
        raise
    except (RuntimeError, TypeError, IndexError, ValueError) as error:
        if "called random operation" in str(error):  # vmap's own words
            raise EnergyError(RANDOM) from error
        raise EnergyError(
            f"the energy failed at points of shape {tuple(x.shape)}, {x.dtype} on {x.device} (the dtype and device "
            f"of the initial points): {type(error).__name__}: {error}"
        ) from error


def _check_tensor(value: Tensor, x: Tensor) -> None:
    if not isinstance(value, Tensor) or value.shape != x.shape[:1]:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise EnergyError(f"expected energy of shape ({len(x)},), got {got}")
    if x.is_floating_point() and value.dtype != x.dtype:
        raise EnergyError(f"expected energy of dtype {x.dtype} (that of the initial points), got {value.dtype}")
    if not value.is_floating_point():
        raise EnergyError(f"expected energy of a floating point dtype, got {value.dtype}")
    if value.device != x.device:
        raise EnergyError(f"expected energy on {x.device} (where the initial points are), got {value.device}")


def _check_rows(energy: Energy, x: Tensor, value: Tensor) -> None:
    for row in {0, len(x) // 2, len(x) - 1}:
        alone = _call(energy, x[row : row + 1])
        # an energy with a value per row of the batch (Tempered's beta) answers one point by a whole batch
        if alone.shape == value[:1].shape and not same_energy(alone, value[row : row + 1], of_batches=True):
            raise EnergyError(
                f"the energy mixes the rows of a batch: the energy of chain {row} alone differs "
                "from its energy beside the other chains; chains must not depend on one another"
            )
    # chains may all start at one point, where a mean over the batch is that point: so the others move away
    others = _elsewhere(energy, x)
    try:
        beside = _call(energy, torch.cat([x[:1], others[1:]]))
    except EnergyError:
        return  # it can't be evaluated there, which nobody asked it for
    if not same_energy(beside[:1], value[:1]):
        raise EnergyError(
            "the energy mixes the rows of a batch: the energy of chain 0 changes when the other chains "
            "move (a function of one point? then pass batched=False); chains must not depend on one another"
        )


def _elsewhere(energy: Energy, x: Tensor) -> Tensor:
    """Points that differ from one another and from x; of a discrete energy every coordinate's next level."""
    if discrete(energy):
        levels = levels_of(energy)
        table = levels.table.to(x.device)
        at = (x.reshape(len(x), -1, 1) == table).long().argmax(-1)
        after = (at + 1) % levels.counts.to(x.device)
        return table.gather(1, after.mT).mT.reshape(x.shape).to(x.dtype)
    return x[:1] + torch.linspace(0.5, 1.5, len(x), dtype=x.dtype, device=x.device).view(-1, *[1] * (x.dim() - 1))


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
        if torch.is_inference_mode_enabled():
            raise EnergyError("expected gradients to be possible, got torch.inference_mode(); use no_grad()") from error
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
