"""What parallel tempering is made of: an energy with one inverse temperature a row, and the adaptation."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ebmppl.arguments import require
from ebmppl.energies.base import Energy
from ebmppl.energies.bonds import Bonds, ScaledBonds
from ebmppl.energies.clamped import Clamped
from ebmppl.energies.discrete import Conditionals, discrete, levels_of
from ebmppl.kernels.adaptation import Adaptation, AdaptationState, Drawn
from ebmppl.kernels.base import Kernel
from ebmppl.kernels.discrete import ByEnergies
from ebmppl.kernels.gradients import Gradient
from ebmppl.kernels.ladder import equal_rates
from ebmppl.kernels.pooling import pooled_sum
from ebmppl.kernels.records import record


class Replicas(Energy):
    """An energy at one inverse temperature per row of the batch, which ``at`` sets.

    Args:
        energy: the energy at beta = 1.
        base: where the path from beta = 0 begins, ``beta * energy + (1 - beta) * base``; None for ``beta * energy``.
    """

    def __init__(self, energy: Energy, base: Energy | None = None) -> None:
        super().__init__(energy.sites if energy.packed else energy.event_shape, energy.support)
        self.energy, self.base = energy, base
        self.ends = [energy] if base is None else [energy, base]
        self.gradients = [Gradient(end) for end in self.ends]
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
        values, grads = zip(*(gradient(x) for gradient in self.gradients), strict=True)
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
        return None if inside is None else ScaledBonds(inside, self._by_row)

    def _by_row(self, value: Tensor, axes: int) -> Tensor:
        """A value that has so many axes without rows, weighted; outside of ``at`` that of beta = 1, of the same sign."""
        beta = self._beta
        return value if beta is None else self.between(value.expand(len(beta), *value.shape[-axes:]))

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
        self.gradients = [Gradient(end) for end in ends]

    def forward(self, x: Tensor) -> Tensor:
        return self._replicas[0].between(*(end(x) for end in self.ends))

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        values, grads = zip(*(gradient(x) for gradient in self.gradients), strict=True)
        return self._replicas[0].between(*values), self._replicas[0].between(*grads)


class _Conditionals:
    """Conditionals at the temperatures of ``Replicas``."""

    def __init__(self, ends: Sequence[Conditionals], replicas: Replicas) -> None:
        self.ends, self.replicas = list(ends), replicas

    @property
    def blocks(self) -> Sequence[Tensor]:
        return self.ends[0].blocks

    def logits(self, block: int, x: Tensor) -> Tensor:
        return self.replicas.between(*(end.logits(block, x) for end in self.ends))


def require_synchronous(kernel: object) -> None:
    """Raise ``ValueError`` for anything but a kernel whose every tick finishes a draw of every chain."""
    if not isinstance(kernel, Kernel):
        raise ValueError(f"expected a kernel of ebmppl.kernels, got {type(kernel).__name__}")
    if not kernel.synchronous:
        name = type(kernel).__name__
        told = "replicas can be swapped only where all have finished a draw; take MALA or Gibbs"
        raise ValueError(f"expected a kernel whose every tick finishes a draw of every chain, got {name}: {told}")


def require_one_energy_for_all(energy: Energy) -> None:
    """Raise ``ValueError`` for an energy that has something for every row: replicas are other rows than chains."""
    for part in energy.modules():
        beta = getattr(part, "beta", None)
        by_row = isinstance(beta, Tensor) and beta.dim() > 0
        if by_row or (isinstance(part, Clamped) and part.values.dim() > 1):
            what = "inverse temperatures" if by_row else "values"
            raise ValueError(f"expected one energy for all chains, got {what} by row in {type(part).__name__}")


def rebuilt(kernel: Kernel, energy: Replicas) -> Kernel:
    """A kernel of the same kind and settings on another energy.

    Raises:
        ValueError: for a kernel made of others, or that does not keep its settings as attributes.
    """
    name, names = type(kernel).__name__, [n for n in inspect.signature(type(kernel)).parameters if n != "energy"]
    missing = [n for n in names if not hasattr(kernel, n)]
    told = f"{name} without {', '.join(missing)}; take one kernel for all sites, such as MALA or Gibbs"
    require(not missing, "a kernel that can be made again at other temperatures by its settings", told)
    options: dict[str, Any] = {n: getattr(kernel, n) for n in names}
    return type(kernel)(energy, **options)


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

    def observe(self, draws: Any, x: Tensor, counts: Tensor) -> Any:
        """Draws at beta = 1."""
        return draws if self.inner is None else self.inner.observe(draws, x, counts)

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
