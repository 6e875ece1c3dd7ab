"""Where chains begin: uniform in the unconstrained space, at a user's points, or at rows of data."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ebmppl.energies.base import Energy
from ebmppl.energies.checks import check_energy
from ebmppl.errors import EnergyError
from ebmppl.kernels.base import NoiseSpec, require
from ebmppl.sampling.noise import NoiseSource

logger = logging.getLogger(__name__)
RETRIES = 100


class Started(NamedTuple):
    """Points ``(chains, *event)`` to begin at, and how often each chain drew ``(chains,)`` until one was good."""

    points: Tensor
    attempts: Tensor


class Start(Protocol):
    """Draws starting points, of which only those of finite energy and gradient are taken."""

    def sampler(self, target: Energy, chains: int, seed: int) -> Callable[[int], Tensor]:
        """A function of the number of the attempt to points ``(chains, *event)`` of the unconstrained target."""


class Uniform(NamedTuple):
    """Uniform in (-radius, radius) in the unconstrained space, as Stan and Pyro begin."""

    radius: float = 2.0

    def sampler(self, target: Energy, chains: int, seed: int) -> Callable[[int], Tensor]:
        """See ``Start``; dtype and device are those of the energy's parameters and buffers (else torch's defaults)."""
        require(self.radius > 0, "radius > 0", self.radius)
        dtype, device = dtype_and_device(target)
        specs = {"point": NoiseSpec("uniform", tuple(target.event_shape))}
        source = NoiseSource(specs, chains, seed, dtype, device, "initial")
        return lambda attempt: (2 * source.row(attempt)["point"] - 1) * self.radius


class FromData(NamedTuple):
    """Rows of data, drawn for each chain with replacement, with normal noise in the unconstrained space if asked for.

    Attributes:
        values: points in the energy's support, ``(rows, *event)`` or by site ``(rows, *site)``. They set dtype and device.
        jitter: standard deviation of the noise.
    """

    values: Tensor | Mapping[str, Tensor]
    jitter: float = 0.0

    def sampler(self, target: Energy, chains: int, seed: int) -> Callable[[int], Tensor]:
        """See ``Start``."""
        require(self.jitter >= 0, "jitter >= 0", self.jitter)
        rows = _unconstrained_rows(target, self.values)
        normal = NoiseSpec("normal", tuple(target.event_shape))
        specs = {"row": NoiseSpec("uniform", ())} | ({"jitter": normal} if self.jitter else {})
        source = NoiseSource(specs, chains, seed, rows.dtype, rows.device, "initial")

        def draw(attempt: int) -> Tensor:
            noise = source.row(attempt)
            x = rows.index_select(0, (noise["row"] * len(rows)).long())
            return x + self.jitter * noise["jitter"] if self.jitter else x

        return draw


def _unconstrained_rows(target: Energy, values: Tensor | Mapping[str, Tensor]) -> Tensor:
    by_site = values if isinstance(values, Mapping) else {name: values for name in target.sites}
    if not isinstance(values, Mapping) and target.packed:
        raise ValueError(f"expected data by site, {sorted(target.sites)}, got one tensor")
    for value in by_site.values():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            got = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"expected floating point tensors as data to begin at, got {got}")
    rows = target.unconstrain(by_site).detach()
    require(
        rows.dim() > len(target.event_shape) and len(rows) > 0,
        "at least one row of data to begin at",
        tuple(rows.shape),
    )
    return rows


def starting_points(target: Energy, start: Tensor | Start, chains: int, seed: int) -> Started:
    """Where a run begins; what a ``Start`` draws is drawn again where energy or gradient is not finite.

    Args:
        target: an unconstrained energy.
        start: a user's points, which are taken or refused as they are, or how to draw them.
        chains: how many.
        seed: of the run.

    Raises:
        EnergyError: when the energy breaks its contract, or some chains found no finite point.
    """
    attempts = torch.ones(chains, dtype=torch.int64)
    if isinstance(start, Tensor):
        check_energy(target, start)
        return Started(start, attempts)
    draw = start.sampler(target, chains, seed)
    x = draw(0)
    check_energy(target, x, finite=False)
    for attempt in range(1, RETRIES + 1):
        energy, grad = target.value_and_grad(x)
        bad = ~torch.isfinite(energy + grad.reshape(chains, -1).sum(1))
        if not bool(bad.any()):
            _report(attempts)
            return Started(x, attempts)
        attempts += bad.cpu()
        x = torch.where(bad.view(-1, *[1] * (x.dim() - 1)), draw(attempt), x)
    try:
        check_energy(target, x)
    except EnergyError as error:
        raise EnergyError(f"{error}; each drew {RETRIES} points: pass initial_params inside the support") from None
    return Started(x, attempts)


def _report(attempts: Tensor) -> None:
    again = (attempts > 1).nonzero().squeeze(1).tolist()
    if again:
        shown = ", ".join(map(str, again[:10])) + (", ..." if len(again) > 10 else "")
        logger.info(
            "%d of %d chains drew their initial point again, up to %d times, where energy or gradient was not finite: %s",
            len(again), len(attempts), int(attempts.max()) - 1, shown,
        )  # fmt: skip


def as_start(target: Energy, given: Tensor | Mapping[str, Tensor] | Start | None, chains: int) -> Tensor | Start:
    """A user's ``initial_params``: points, checked and copied, or a way to draw them.

    Raises:
        ValueError: for anything else, and as ``given_points``.
    """
    if given is None:
        return Uniform()
    if isinstance(given, (Tensor, Mapping)):
        return given_points(target, given, chains)
    if not hasattr(given, "sampler"):
        wanted = "a tensor, a dict of tensors by site, Uniform(...) or FromData(...)"
        raise ValueError(f"expected initial_params as {wanted}, got {type(given).__name__}")
    return given


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
