"""Where chains begin: uniform in the unconstrained space, at a user's points, or at rows of data."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ebmppl.arguments import require
from ebmppl.energies.base import ONE_SITE, Energy, dtype_and_device
from ebmppl.energies.checks import check_energy
from ebmppl.energies.discrete import Levels, discrete, levels_of
from ebmppl.energies.supports import is_discrete, require_inside
from ebmppl.errors import EnergyError
from ebmppl.kernels.base import Kernel, NoiseSpec
from ebmppl.kernels.score import ScoreTarget
from ebmppl.sampling.noise import NoiseSource
from ebmppl.score.dtypes import state_dtype

logger = logging.getLogger(__name__)
RETRIES = 100
_ROUNDING = 1e-3  # of times


class Started(NamedTuple):
    """Points ``(chains, *event)`` to begin at, and how often each chain drew ``(chains,)`` until one was good."""

    points: Tensor
    attempts: Tensor


class Start(Protocol):
    """Draws starting points, of which only those of finite energy and gradient are taken."""

    def sampler(self, target: Energy, chains: int, seed: int) -> Callable[[int], Tensor]:
        """A function of the number of the attempt to points ``(chains, *event)`` of the unconstrained target."""


class Uniform(NamedTuple):
    """Uniform in (-radius, radius) in the unconstrained space, as Stan and Pyro begin; over all levels of discrete sites."""

    radius: float = 2.0

    def sampler(self, target: Energy, chains: int, seed: int) -> Callable[[int], Tensor]:
        """See ``Start``; dtype and device are those of the energy's parameters and buffers (else torch's defaults)."""
        require(self.radius > 0, "radius > 0", self.radius)
        dtype, device = dtype_and_device(target)
        if discrete(target):
            return _uniform_levels(target, chains, seed)
        specs = {"point": NoiseSpec("uniform", tuple(target.event_shape))}
        source = NoiseSource(specs, chains, seed, dtype, device, "initial")
        kept = [name for name in target.sites if is_discrete(target.site_support(name))]

        def draw(attempt: int) -> Tensor:
            uniform = source.row(attempt)["point"]
            x = (2 * uniform - 1) * self.radius
            if not kept:
                return x
            inside, drawn = target.unpack(x), target.unpack(uniform)
            for name in kept:
                values = _levels(levels_of(target, [name]), drawn[name].reshape(chains, -1))
                inside[name] = values.to(dtype).view(inside[name].shape)
            return target.pack(inside)

        return draw


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
        whole = any(is_discrete(target.site_support(name)) for name in target.sites)
        require(self.jitter == 0 or not whole, "no jitter for discrete sites", self.jitter)
        rows = _unconstrained_rows(target, self.values)
        normal = NoiseSpec("normal", tuple(target.event_shape))
        specs = {"row": NoiseSpec("uniform", ())} | ({"jitter": normal} if self.jitter else {})
        dtype = rows.dtype if rows.is_floating_point() else torch.get_default_dtype()
        source = NoiseSource(specs, chains, seed, dtype, rows.device, "initial")

        def draw(attempt: int) -> Tensor:
            noise = source.row(attempt)
            x = rows.index_select(0, (noise["row"] * len(rows)).long())
            return x + self.jitter * noise["jitter"] if self.jitter else x

        return draw


class FromPrior(NamedTuple):
    """Draws of a score model's prior N(0, prior_std^2 I), at the device and dtype (at least float32) of its parameters."""

    def sampler(self, target: Energy, chains: int, seed: int) -> Callable[[int], Tensor]:
        """See ``Start``."""
        require(isinstance(target, ScoreTarget), "a score model, which has a prior", type(target).__name__)
        assert isinstance(target, ScoreTarget)
        std, specs = target.prior_std, {"point": NoiseSpec("normal", tuple(target.event_shape))}
        dtype, device = dtype_and_device(target)
        source = NoiseSource(specs, chains, seed, state_dtype(dtype), device, "initial")
        return lambda attempt: std * source.row(attempt)["point"]


def _uniform_levels(target: Energy, chains: int, seed: int) -> Callable[[int], Tensor]:
    """Any level of every coordinate, at the smallest integers that hold them."""
    dtype, device = dtype_and_device(target)
    levels = levels_of(target)
    source = NoiseSource({"point": NoiseSpec("uniform", (len(levels.table),))}, chains, seed, dtype, device, "initial")

    def draw(attempt: int) -> Tensor:
        return _levels(levels, source.row(attempt)["point"]).reshape(chains, *target.event_shape).contiguous()

    return draw


def _levels(levels: Levels, uniform: Tensor) -> Tensor:
    """A level of every coordinate by uniforms ``(chains, coordinates)``."""
    table, count = levels.table.to(device=uniform.device, dtype=levels.dtype), levels.counts.to(uniform.device)
    # a uniform just under 1 times many levels may round to their number
    which = (uniform * count).long().minimum(count - 1)
    return table.gather(1, which.mT).mT


def _require_tensors(target: Energy, by_site: Mapping[str, Tensor], what: str) -> None:
    """Raise ``ValueError`` unless these are numbers; floating point ones for continuous energies, inside discrete supports."""
    for name, value in by_site.items():
        known = name in target.sites  # not the name of a packed vector, nor one that is refused later
        support = target.site_support(name) if known else None
        whole = discrete(target) if support is None else is_discrete(support)
        if not isinstance(value, Tensor) or value.is_complex() or not (whole or value.is_floating_point()):
            got = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"expected {'' if whole else 'floating point '}tensors as {what}, got {got}")
        shape = target.sites[name] if known else ()
        if support is not None and whole and value.shape[value.dim() - len(shape) :] == shape:
            require_inside(name, value.reshape(-1, *shape), support)


def _unconstrained_rows(target: Energy, values: Tensor | Mapping[str, Tensor]) -> Tensor:
    by_site = values if isinstance(values, Mapping) else {name: values for name in target.sites}
    if not isinstance(values, Mapping) and target.packed:
        raise ValueError(f"expected data by site, {sorted(target.sites)}, got one tensor")
    _require_tensors(target, by_site, "data to begin at")
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
    if isinstance(target, ScoreTarget):  # has no energy; the kernel looks at its score
        return Started(start if isinstance(start, Tensor) else start.sampler(target, chains, seed)(0), attempts)
    if isinstance(start, Tensor):
        check_energy(target, start, gradient=not discrete(target))
        return Started(start, attempts)
    draw = start.sampler(target, chains, seed)
    x = draw(0)
    check_energy(target, x, gradient=not discrete(target), finite=False)
    for attempt in range(1, RETRIES + 1):
        bad = ~_finite(target, x)
        if not bool(bad.any()):
            _report(attempts)
            return Started(x, attempts)
        attempts += bad.cpu()
        x = torch.where(bad.view(-1, *[1] * (x.dim() - 1)), draw(attempt), x)
    try:
        check_energy(target, x, gradient=not discrete(target))
    except EnergyError as error:
        raise EnergyError(f"{error}; each drew {RETRIES} points: pass initial_params inside the support") from None
    return Started(x, attempts)


def _finite(target: Energy, x: Tensor) -> Tensor:
    """By chain, whether energy and, where there is one, gradient are finite."""
    if discrete(target):
        with torch.no_grad():
            return torch.isfinite(target(x))
    energy, grad = target.value_and_grad(x)
    total = grad.reshape(len(x), -1).sum(1)
    return torch.isfinite(energy + total if target.has_values else total)


def _report(attempts: Tensor) -> None:
    again = (attempts > 1).nonzero().squeeze(1).tolist()
    if again:
        shown = ", ".join(map(str, again[:10])) + (", ..." if len(again) > 10 else "")
        logger.info(
            "%d of %d chains drew their initial point again, up to %d times, where energy or gradient was not finite: %s",
            len(again), len(attempts), int(attempts.max()) - 1, shown,
        )  # fmt: skip


def as_start(kernel: Kernel, given: Tensor | Mapping[str, Tensor] | Start | None, chains: int) -> Tensor | Start:
    """A user's ``initial_params``: points, checked and copied, or a way to draw them.

    Raises:
        ValueError: for anything else, as ``given_points``, and for no points of a score kernel that begins elsewhere than
            at the prior.
    """
    target = kernel.target
    if given is None and isinstance(target, ScoreTarget):
        _require_end(target, getattr(kernel, "first_time", None))
        return FromPrior()
    if given is None:
        return Uniform()
    if isinstance(given, (Tensor, Mapping)):
        return given_points(target, given, chains)
    if not hasattr(given, "sampler"):
        wanted = "a tensor, a dict of tensors by site, Uniform(...) or FromData(...)"
        raise ValueError(f"expected initial_params as {wanted}, got {type(given).__name__}")
    return given


def _require_end(target: ScoreTarget, begins: float | None) -> None:
    if target.sde is not None and begins is not None:
        end = target.sde.t_max
        told = f"a kernel that begins at T = {end:g}, where draws of the prior are (transport() takes other points)"
        require(begins > (1 - _ROUNDING) * end, told, f"one that begins at {begins:g}")


def given_points(target: Energy, params: Tensor | Mapping[str, Tensor], chains: int) -> Tensor:
    """A user's unconstrained points as an own tensor ``(chains, *event)``; one chain may come without its axis.

    Raises:
        ValueError: for unknown or missing sites, another shape, or integers.
    """
    by_site = params if isinstance(params, Mapping) else {"packed" if target.packed else ONE_SITE: params}
    _require_tensors(target, by_site, "initial_params")
    x = target.pack(params) if isinstance(params, Mapping) else params
    if x.shape == target.event_shape and chains == 1:
        x = x.unsqueeze(0)
    if x.shape != (chains, *target.event_shape):
        wanted = f"{(chains, *target.event_shape)} (unconstrained, chains first)"
        raise ValueError(f"expected initial_params of shape {wanted}, got {tuple(x.shape)}")
    x = x.detach().clone()
    return x.to(levels_of(target).dtype) if discrete(target) and x.dtype == torch.bool else x  # bools don't add up
