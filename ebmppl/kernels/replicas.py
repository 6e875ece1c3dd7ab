"""What parallel tempering is made of: an energy with one inverse temperature a row, ladders, and their adaptation."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from scipy.interpolate import PchipInterpolator
from torch import Tensor, nn

from ebmppl.energies.base import Energy
from ebmppl.energies.bonds import Bonds, Lattice
from ebmppl.energies.discrete import Conditionals, discrete, levels_of
from ebmppl.kernels.adaptation import Adaptation, AdaptationState, Drawn
from ebmppl.kernels.base import require
from ebmppl.kernels.gibbs import ByEnergies
from ebmppl.kernels.gradients import Gradient
from ebmppl.kernels.integrators import ValueAndGrad
from ebmppl.kernels.pooling import pooled_sum

_LEAST = 1e-6  # rejection rate between neighbours that still keeps them apart


@cache
def record(name: str, fields: tuple[str, ...]) -> Callable[..., Any]:
    """A NamedTuple type that is known only when the inner kernel is."""
    return namedtuple(name, fields)


FROM_COLD, FROM_HOT = 1, 2  # where points of a replica have been last


class Replicas(Energy):
    """An energy at one inverse temperature per row of the batch, that of the block ``at`` in force.

    Args:
        energy: the energy at beta = 1.
        base: where the path from beta = 0 begins, ``beta * energy + (1 - beta) * base``; None for ``beta * energy``.
    """

    def __init__(self, energy: Energy, base: Energy | None = None) -> None:
        super().__init__(energy.sites if energy.packed else energy.event_shape, energy.support)
        self.energy, self.base = energy, base
        self.ends = [energy] if base is None else [energy, base]
        self.gradients = [] if discrete(energy) else [Gradient(end) for end in self.ends]
        self._beta: Tensor | None = None

    @contextmanager
    def at(self, beta: Tensor) -> Iterator[None]:
        """Rows have these inverse temperatures ``(rows,)`` until the end of the block."""
        self._beta = beta
        try:
            yield
        finally:
            self._beta = None

    def between(self, value: Tensor, base: Tensor | None = None) -> Tensor:
        """Values ``(rows, ...)`` of the energy and the base, linear in both; a weight of 0 switches infinity off."""
        beta = self._beta
        if beta is None or len(beta) != len(value):
            rows = "none" if beta is None else str(len(beta))
            raise ValueError(f"expected values of as many rows as there are temperatures, {rows}, got {len(value)}")
        beta = beta.to(value.dtype).view(-1, *[1] * (value.dim() - 1))
        if base is None:
            return beta * value
        return torch.where(beta == 0, 0.0, beta * value) + torch.where(beta == 1, 0.0, (1 - beta) * base)

    def forward(self, x: Tensor) -> Tensor:
        """Energies ``(rows, ...)`` in nats, beta included."""
        return self.between(*(end(x) for end in self.ends))

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Value and gradient, beta included."""
        calls: Sequence[ValueAndGrad] = self.gradients or [end.value_and_grad for end in self.ends]
        values, grads = zip(*(call(x) for call in calls), strict=True)
        return self.between(*values), self.between(*grads)

    def conditionals(self) -> Conditionals | None:
        """Those of the ends, their logits weighted."""
        if not discrete(self.energy):
            return None
        known = [c for c in (end.conditionals() for end in self.ends) if c is not None]
        blocks = [[block.tolist() for block in c.blocks] for c in known]
        if len(known) < len(self.ends) or blocks[0] != blocks[-1]:
            return _Conditionals([ByEnergies(end, levels_of(end)) for end in self.ends], self)
        return _Conditionals(known, self)

    def bonds(self) -> Bonds | None:
        """Those of the energy, weighted; none with a base."""
        inside = self.energy.bonds() if self.base is None else None
        return None if inside is None else _Bonds(inside, self)

    def relaxed(self) -> Energy | None:
        """The extensions of the ends, weighted."""
        inside = [end.relaxed() for end in self.ends]
        known = [end for end in inside if end is not None]
        return _Relaxed(known, self) if len(known) == len(inside) else None


class _Relaxed(Energy):
    """Other energies at the temperatures of ``Replicas``."""

    def __init__(self, ends: Sequence[Energy], replicas: Replicas) -> None:
        super().__init__(ends[0].sites if ends[0].packed else ends[0].event_shape, ends[0].support)
        self.ends, self._replicas = nn.ModuleList(ends), (replicas,)  # in a tuple: no module of ours

    def forward(self, x: Tensor) -> Tensor:
        return self._replicas[0].between(*(end(x) for end in self.ends))


class _Conditionals:
    """Conditionals at the temperatures of ``Replicas``."""

    def __init__(self, ends: Sequence[Conditionals], replicas: Replicas) -> None:
        self.ends, self.replicas = list(ends), replicas

    @property
    def blocks(self) -> Sequence[Tensor]:
        return self.ends[0].blocks

    def logits(self, block: int, x: Tensor) -> Tensor:
        return self.replicas.between(*(end.logits(block, x) for end in self.ends))


class _Bonds:
    """Bonds at the temperatures of ``Replicas``; outside of ``at`` those of beta = 1, of the same signs."""

    def __init__(self, inside: Bonds, replicas: Replicas) -> None:
        self.inside, self.replicas = inside, replicas

    @property
    def edges(self) -> Tensor:
        return self.inside.edges

    @property
    def lattice(self) -> Lattice | None:
        return self.inside.lattice

    def strengths(self) -> Tensor:
        return self._by_row(self.inside.strengths(), 1)

    def fields(self) -> Tensor:
        return self._by_row(self.inside.fields(), 2)

    def _by_row(self, value: Tensor, axes: int) -> Tensor:
        beta = self.replicas._beta
        if beta is None:
            return value
        return self.replicas.between(value.expand(len(beta), *value.shape[-axes:]))


def ladder(betas: int | Sequence[float] | Tensor, beta_min: float, *, base: bool = False) -> list[float]:
    """Inverse temperatures, increasing to 1: as given, or so many from ``beta_min`` in geometric progression.

    With a base they may begin at 0, and so many are evenly spaced from 0.

    Raises:
        ValueError: for fewer than two, or values that are not positive, increasing and ending at 1.
    """
    if isinstance(betas, int) and not isinstance(betas, bool):
        require(betas >= 2, "at least 2 replicas", betas)
        require(0 < beta_min < 1, "beta_min in (0, 1)", beta_min)
        parts = [i / (betas - 1) for i in range(betas)]
        return parts if base else [float(beta_min ** (1 - part)) for part in parts]
    try:
        values = [float(b) for b in betas]  # type: ignore[union-attr]
    except (TypeError, ValueError) as error:
        raise ValueError(f"expected betas as numbers or their count, got {betas!r}") from error
    require(len(values) >= 2, "at least 2 betas", values)
    positive = all(b > 0 for b in values)  # NaN is not
    require(positive or (base and values[0] >= 0), f"betas {'>= 0' if base else '> 0'}", values)
    require(all(a < b for a, b in zip(values, values[1:], strict=False)), "betas in increasing order", values)
    require(values[-1] == 1, "betas that end at 1", values)
    return values


def equal_rates(betas: Tensor, rejections: Tensor, *, logarithmic: bool = True) -> Tensor:
    r"""Inverse temperatures of equal swap rates (Syed et al. 2022, algorithm 4).

    The communication barrier :math:`\Lambda(\beta_k) = \sum_{i \le k} r_i` is interpolated by a monotone cubic (Fritsch
    and Carlson 1980) against log beta, or beta itself, and cut into equal parts.

    Args:
        betas: ``(replicas,)``, increasing; the ends stay.
        rejections: ``(replicas - 1,)``, of swaps between neighbours, in [0, 1].
        logarithmic: in log beta, where all are positive.
    """
    barrier = torch.cat([betas.new_zeros(1), rejections.clamp_min(_LEAST).cumsum(0)]).double().cpu()
    places = (betas.log() if logarithmic else betas).double().cpu()
    parts = torch.linspace(0, float(barrier[-1]), len(betas), dtype=torch.float64)
    inside = PchipInterpolator(barrier.numpy(), places.numpy())(parts.numpy()[1:-1])
    new = torch.as_tensor(inside)
    new = (new.exp() if logarithmic else new).to(betas)
    return torch.cat([betas[:1], new, betas[-1:]])


class TemperingAdaptation(Adaptation):
    """Equal swap rates from window to window, and what the inner kernel adapts, by its chains at beta = 1.

    Args:
        inner: of the inner kernel; None where it adapts nothing.
        replicas: the inner kernel's energy.
        cold: from a state of all replicas the inner kernel's at beta = 1.
        split: from a joint tuning the inner kernel's.
        betas: whether to adapt the temperatures.
    """

    def __init__(
        self,
        inner: Adaptation | None,
        replicas: Replicas,
        cold: Callable[[Any], Any],
        split: Callable[[Any], Any],
        *,
        betas: bool,
    ) -> None:
        self.inner, self.replicas, self.cold, self.split, self.betas = inner, replicas, cold, split, betas

    def init(self, tuning: Any, state: Any) -> AdaptationState:
        """Nothing seen yet."""
        none = AdaptationState((), ())
        with self.replicas.at(torch.ones_like(state.energy)):
            inside = none if self.inner is None else self.inner.init(self.split(tuning), self.cold(state))
        self._kind = type(inside.averaging)
        names = (*getattr(inside.averaging, "_fields", ()), "rejections", "ticks")
        zero = torch.zeros_like(tuning.betas[1:])
        averaging = record("TemperingAveraging", names)(*inside.averaging, zero, torch.zeros_like(tuning.betas[0]))
        return AdaptationState(averaging, inside.draws)

    def _inside(self, averaging: Any) -> Any:
        return self._kind(*averaging[:-2])

    def update(self, averaging: Any, tuning: Any, info: Any) -> tuple[Any, Any]:
        """Add up the rejection rates of all neighbours, whichever were tried."""
        rejected = pooled_sum(1 - info.swap_rates) / len(info.swap_rates)
        sums = {"rejections": averaging.rejections + rejected, "ticks": averaging.ticks + 1}
        if self.inner is not None:
            drawn = Drawn(info.done, info.acceptance_rate)  # no steps of its own: a stuck replica goes to another place
            inside, new = self.inner.update(self._inside(averaging), self.split(tuning), drawn)
            sums |= inside._asdict()
            tuning = tuning._replace(**new._asdict())
        return averaging._replace(**sums), tuning

    def observe(self, draws: Any, x: Tensor) -> Any:
        """Draws at beta = 1."""
        return draws if self.inner is None else self.inner.observe(draws, x)

    def begin(self, own: AdaptationState, tuning: Any, state: Any, normal: Callable[[], Tensor]) -> tuple[Any, Any]:
        """The inner kernel's search for a step size."""
        if self.inner is None:
            return own, tuning
        inside = own._replace(averaging=self._inside(own.averaging))
        with self.replicas.at(torch.ones_like(state.energy)):  # for ``cold``, too
            inside, new = self.inner.begin(inside, self.split(tuning), self.cold(state), normal)
        return self._outside(own, inside), tuning._replace(**new._asdict())

    def end_window(self, own: AdaptationState, tuning: Any, *, metric: bool) -> tuple[AdaptationState, Any]:
        """Temperatures from the window's rejections; the first and the last window are too short for that."""
        sums = own.averaging
        if self.betas and metric:
            rates = sums.rejections / sums.ticks.clamp_min(1.0)
            tuning = tuning._replace(betas=equal_rates(tuning.betas, rates, logarithmic=self.replicas.base is None))
        zeros = {"rejections": torch.zeros_like(sums.rejections), "ticks": torch.zeros_like(sums.ticks)}
        own = own._replace(averaging=sums._replace(**zeros))
        if self.inner is None:
            return own, tuning
        inside = own._replace(averaging=self._inside(own.averaging))
        inside, new = self.inner.end_window(inside, self.split(tuning), metric=metric)
        return self._outside(own, inside), tuning._replace(**new._asdict())

    def finish(self, own: AdaptationState, tuning: Any) -> Any:
        """The inner kernel's frozen tuning, at the last temperatures."""
        if self.inner is None:
            return tuning
        inside = own._replace(averaging=self._inside(own.averaging))
        return tuning._replace(**self.inner.finish(inside, self.split(tuning))._asdict())

    def _outside(self, own: AdaptationState, inside: AdaptationState) -> AdaptationState:
        return AdaptationState(own.averaging._replace(**inside.averaging._asdict()), inside.draws)


def exchanged(accept: Tensor) -> Tensor:
    """From which replica ``(chains, replicas)`` each takes its state, by accepted swaps ``(chains, replicas - 1)``."""
    none = accept.new_zeros(len(accept), 1).long()
    up = accept.long()
    here = torch.arange(accept.shape[1] + 1, device=accept.device)
    return here + torch.cat([up, none], 1) - torch.cat([none, up], 1)


def labelled(label: Tensor) -> tuple[Tensor, Tensor]:
    """Points learn at the ends where they have been; and how many ``(chains,)`` completed a round trip."""
    hot, cold = label[:, :1], label[:, -1:]
    turned = torch.where(hot == FROM_COLD, torch.full_like(hot, FROM_HOT), hot)
    new = torch.cat([turned, label[:, 1:-1], torch.full_like(cold, FROM_COLD)], 1)
    return new, (cold.squeeze(1) == FROM_HOT).long()
