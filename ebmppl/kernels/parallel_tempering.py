"""Parallel tempering with non-reversible swaps, around any synchronous kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ebmppl.arguments import flag
from ebmppl.energies.algebra import GeometricPath
from ebmppl.energies.base import Energy
from ebmppl.energies.checks import require_values
from ebmppl.kernels.accept import metropolis
from ebmppl.kernels.base import Kernel, Noise, NoiseSpec
from ebmppl.kernels.differences import DiscreteGradientKernel
from ebmppl.kernels.gradient_kernel import GradientKernel
from ebmppl.kernels.gradients import Gradient
from ebmppl.kernels.ladder import FROM_COLD, exchanged, labelled, ladder
from ebmppl.kernels.records import record
from ebmppl.kernels.replicas import (
    Replicas,
    TemperingAdaptation,
    rebuilt,
    require_one_energy_for_all,
    require_synchronous,
)

_OWN_STATE = ("energy", "parity", "label", "round_trips")
_OWN_INFO = ("swap_rate", "swap_rates", "round_trips")
_PREFIX = "replica_"


class ParallelTempering(Kernel):
    r"""Replicas of every chain at inverse temperatures :math:`\beta_1 < \dots < \beta_R = 1` that swap their points.

    One tick moves all replicas (chains x replicas are the rows of one batch) by the inner kernel at
    :math:`\beta_i E`, and then tries to swap neighbours i, i + 1 of even i, in the next tick those of odd i: swaps in
    a fixed alternation are not reversible, and carry points from one end to the other in a straight line where random
    ones would diffuse. A swap is accepted with probability
    :math:`\min(1, \exp((\beta_i - \beta_{i+1})(E_i - E_{i+1})))`. Draws are those of beta = 1. No energy is evaluated for a
    swap: states keep what they know of the energy at beta = 1.

    In warm-up the inverse temperatures move to equal swap rates, from the rejection rates of each window of 20 draws
    and more; so does the inner kernel's tuning, by what its chains at beta = 1 accept. Hotter replicas take the same
    tuning, those of Langevin kernels steps of ``step_size / beta``, which suits a Gaussian at every temperature.

    With a base, replicas are at :math:`\beta_i E + (1 - \beta_i) E_0`, from beta = 0 on, and E in the acceptance becomes
    E - E_0. Then energies are evaluated anew after swaps, and all replicas take the same steps.

    Statistics beside the inner kernel's at beta = 1: ``swap_rates`` ``(replicas - 1,)``, the acceptance probability of
    each pair of neighbours, tried or not, from the hottest pair on; ``swap_rate``, their mean; ``round_trips``, how
    often points of the chain's replicas went from beta = 1 to the hottest end and back since warm-up.
    ``ebmppl.diagnostics.tempering`` tells the rates of a run.

    References:
        Syed, Bouchard-Cote, Deligiannidis and Doucet 2022, "Non-reversible parallel tempering: a scalable highly
        parallel MCMC scheme"; swaps in an alternation: Okabe et al. 2001.

    Args:
        kernel: a synchronous kernel on the energy to be sampled; it is made again at the replicas' temperatures.
        betas: inverse temperatures, positive, increasing, ending at 1; or how many replicas, in geometric progression.
        beta_min: the least of these.
        adapt_betas: adapt the inverse temperatures between the hottest and 1 in warm-up.
        base: E_0, an energy over the same space, easy to explore; betas may then begin at 0, a number of them evenly spaced.

    Raises:
        ValueError: for betas that are not so, a kernel whose ticks don't finish a draw of every chain (HMC, NUTS), one
            made of other kernels, or an energy with another temperature or other values for every row.

    Example:
        >>> import ebmppl as eb
        >>> ising = eb.models.Ising((8, 8), 0.5)
        >>> mcmc = eb.MCMC(ParallelTempering(eb.Gibbs(ising), 6), 10, num_chains=2, seed=0, disable_progbar=True)
        >>> mcmc.run()
        >>> mcmc.stats()["swap_rates"].shape
        torch.Size([2, 10, 5])
    """

    def __init__(
        self,
        kernel: Kernel,
        betas: int | Sequence[float] | Tensor = 8,
        *,
        beta_min: float = 0.1,
        adapt_betas: bool = True,
        base: Energy | None = None,
    ) -> None:
        require_synchronous(kernel)
        super().__init__(kernel.energy)
        require_values(kernel.energy, "ParallelTempering")
        require_one_energy_for_all(kernel.target)
        self.target, self.adapt_betas = kernel.target, flag("adapt_betas", adapt_betas)
        self._betas = ladder(betas, beta_min, base=base is not None)
        self._replicas = Replicas(kernel.target, None if base is None else _seen_alike(base, kernel))
        self._inner = rebuilt(kernel, self._replicas)
        self._state_type: Any = None  # of the inner kernel, as its tuning; known from init on
        self._tuning_type: Any = None
        self.calls_per_tick = kernel.calls_per_tick * self.num_replicas  # type: ignore[misc]
        self.exact = kernel.exact  # type: ignore[misc]

    @property
    def num_replicas(self) -> int:
        """Of every chain."""
        return len(self._betas)

    def settings(self) -> dict[str, Any]:
        """The inner kernel and the temperatures to begin with."""
        base = "none" if self._replicas.base is None else type(self._replicas.base).__name__
        return {"kernel": repr(self._inner), "betas": list(self._betas), "adapt_betas": self.adapt_betas, "base": base}

    def identity(self) -> tuple[Any, ...]:
        """Kind, settings and energy, of the inner kernel, too."""
        ends = tuple(end.identity() for end in self._replicas.ends)
        return (type(self), self.num_replicas, *self._inner.kind(), ends)

    def random_dtype(self, x: Tensor) -> torch.dtype:
        """That of the inner kernel."""
        return self._inner.random_dtype(x)

    @property
    def _gradients(self) -> list[Gradient]:
        """Of the energy at beta = 1, and of the base, where the inner kernel goes by gradients.

        Those that are traced: a trace of the replicas' own would keep its temperatures.
        """
        if isinstance(self._inner, DiscreteGradientKernel):
            at_betas: Any = self._inner.differentiated  # the replicas, or their extensions
            return at_betas.gradients
        return self._replicas.gradients if isinstance(self._inner, GradientKernel) else []

    def _points(self, rows: Tensor) -> Tensor:
        """Where these gradients are taken."""
        return self._inner.real_points(rows) if isinstance(self._inner, DiscreteGradientKernel) else rows

    def move(self, device: torch.device) -> None:
        """The inner kernel's."""
        self._inner.move(device)

    def prepare(self, x: Tensor, *, values: bool, many: bool) -> None:
        """Trace the gradient at beta = 1 of all replicas, of discrete energies after a check; or what the inner kernel must."""
        super().prepare(x, values=values, many=many)
        rows = self._rows(x)
        if isinstance(self._inner, DiscreteGradientKernel):
            with self._replicas.at(torch.ones(len(rows), dtype=self.random_dtype(x), device=x.device)):
                self._inner.check(rows, self.random_dtype(x))
        for gradient in self._gradients:
            gradient.prepare(self._points(rows), values=values, trace=many)
        if not self._gradients:
            self._inner.prepare(rows, values=values, many=many)

    def untraced(self, x: Tensor) -> str | None:
        """The reason why the gradient isn't traced."""
        rows = self._rows(x)
        reasons = [g.untraced(self._points(rows)) for g in self._gradients] or [self._inner.untraced(rows)]
        return next((reason for reason in reasons if reason is not None), None)

    def holds(self) -> bool:
        """Whether what the inner kernel found of the energy is still so."""
        return self._inner.holds()

    def _rows(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(self.num_replicas, 0)

    def init(self, x: Tensor) -> Any:
        """State at points ``(chains, *event)``, where all replicas of a chain begin."""
        chains, replicas, rows = len(x), self.num_replicas, self._rows(x)
        with self._replicas.at(torch.ones(len(rows), dtype=self.random_dtype(x), device=x.device)):
            inner = self._inner.init(rows)
        self._state_type = type(inner)
        with torch.no_grad():
            energy = self.target(x)
        none = torch.zeros(chains, dtype=torch.int64, device=x.device)
        label = none.unsqueeze(1).repeat(1, replicas)
        label[:, -1] = FROM_COLD
        fields = [value.view(chains, replicas, *value.shape[1:]) for value in inner]
        names = (*_OWN_STATE, *(_PREFIX + name for name in inner._fields))
        return record("TemperingState", names)(energy.clone(), none, label, none.clone(), *fields)

    def init_tuning(self, x: Tensor) -> Any:
        """The inverse temperatures, and the inner kernel's tuning."""
        inner = self._inner.init_tuning(x)
        self._tuning_type = type(inner)
        betas = torch.tensor(self._betas, dtype=self.random_dtype(x), device=x.device)
        return record("TemperingTuning", ("betas", *inner._fields))(betas, *inner)

    def noise(self) -> dict[str, NoiseSpec]:
        """The inner kernel's for every replica, and a uniform for every pair of neighbours."""
        replicas = self.num_replicas
        specs = self._inner.noise().items()
        inner = {name: spec._replace(shape=(replicas, *spec.shape), where_zero=None) for name, spec in specs}
        return {**inner, "swap": NoiseSpec("uniform", (replicas - 1,))}

    def position(self, state: Any) -> Tensor:
        """The points ``(chains, *event)`` at beta = 1."""
        return self._inner.position(self._cold(state))

    def replicas(self, state: Any) -> Tensor:
        """The points ``(chains, replicas, *event)`` of all replicas, the hottest first."""
        x = self._inner.position(self._state_type(*(value.flatten(0, 1) for value in state[len(_OWN_STATE) :])))
        return x.view(-1, self.num_replicas, *x.shape[1:])

    def held(self, state: Any) -> tuple[Tensor, ...]:
        """Positions, the points of all replicas, whose turn it is to swap, and where points have been."""
        return self.position(state), self.replicas(state), state.parity, state.label, state.round_trips

    def resume(self, x: Tensor, *more: Tensor) -> Any:
        """The same replicas with energies and gradients as they are now."""
        state = self.init(x)
        if not more:
            return state
        replicas, parity, label, trips = more
        rows = replicas.flatten(0, 1)
        with self._replicas.at(torch.ones(len(rows), dtype=self.random_dtype(x), device=x.device)):
            inner = self._inner.init(rows)
        fields = (value.view(*replicas.shape[:2], *value.shape[1:]) for value in inner)
        return type(state)(state.energy, parity.clone(), label.clone(), trips.clone(), *fields)

    def restart(self, state: Any) -> Any:
        """Round trips are counted from here on."""
        label = torch.zeros_like(state.label)
        label[:, -1] = FROM_COLD
        return state._replace(label=label, round_trips=torch.zeros_like(state.round_trips))

    def adaptation(self) -> TemperingAdaptation | None:
        """Equal swap rates, and what the inner kernel adapts."""
        inner = self._inner.adaptation()
        if inner is None and not self.adapt_betas:
            return None
        return TemperingAdaptation(inner, self._replicas, self._known, self._inner_tuning, betas=self.adapt_betas)

    def _cold(self, state: Any) -> Any:
        """The inner kernel's state at beta = 1."""
        return self._state_type(*(value[:, -1].contiguous() for value in state[len(_OWN_STATE) :]))

    def _known(self, state: Any) -> Any:
        """The same with what it knows of the energy at beta = 1."""
        cold = self._cold(state)
        return cold if self._replicas.base is None else self._inner.init(self._inner.position(cold))

    def _inner_tuning(self, tuning: Any) -> Any:
        return self._tuning_type(*tuning[1:])

    def tick(self, state: Any, tuning: Any, noise: Noise) -> tuple[Any, Any]:
        """One tick of the inner kernel in every replica, then swaps of neighbours."""
        betas, chains = tuning.betas, len(state.energy)
        rows = betas.repeat(chains)
        given = {name: noise[name].flatten(0, 1) for name in noise if name != "swap"}
        inner = self._state_type(*(value.flatten(0, 1) for value in state[len(_OWN_STATE) :]))
        based = self._replicas.base is not None
        with self._replicas.at(rows):
            inner = self._inner.init(self._inner.position(inner)) if based else self._times(rows, inner)
            inner, info = self._inner.tick(inner, self._tuning_by_row(tuning, rows), given)
        inner, energy, slope = self._ends(rows, inner, info)
        swap = metropolis((betas[:-1] - betas[1:]) * (slope[:, 1:] - slope[:, :-1]), noise["swap"])
        accept = swap.accept & self._tried(state, noise)
        source = exchanged(accept) + torch.arange(chains, device=energy.device).unsqueeze(1) * self.num_replicas
        energy = energy.flatten().index_select(0, source[:, -1])
        label, trips = labelled(state.label.flatten().index_select(0, source.flatten()).view_as(state.label))
        fields = (v.index_select(0, source.flatten()).view(chains, -1, *v.shape[1:]) for v in inner)
        new = type(state)(energy, 1 - state.parity, label, state.round_trips + trips, *fields)
        return new, self._info(info, energy, swap.rate, new.round_trips)

    def _ends(self, rows: Tensor, inner: Any, info: Any) -> tuple[Any, Tensor, Tensor]:
        """What is kept of the inner state, and ``(chains, replicas)``: energies at beta = 1, and their slopes in beta."""
        replicas = self.num_replicas
        if self._replicas.base is None:
            energy = (-info.lp / rows).view(-1, replicas)
            return self._times(1 / rows, inner), energy, energy
        x = self._inner.position(inner)
        energy, base = (end(x).view(-1, replicas) for end in self._replicas.ends)
        return inner, energy, energy - base

    def _tried(self, state: Any, noise: Noise) -> Tensor:
        """Which pairs of neighbours ``(chains, replicas - 1)`` try a swap in this tick."""
        pairs = torch.arange(self.num_replicas - 1, device=state.parity.device)
        return pairs % 2 == state.parity.unsqueeze(1)

    def _times(self, factor: Tensor, inner: Any) -> Any:
        """What an inner state knows of the energy, times a factor by row."""
        known = {n: getattr(inner, n) for n in self._inner.proportional if n in inner._fields}
        return inner._replace(**{n: factor.to(v.dtype).view(-1, *[1] * (v.dim() - 1)) * v for n, v in known.items()})

    def _tuning_by_row(self, tuning: Any, rows: Tensor) -> Any:
        inner = self._inner_tuning(tuning)
        scaled = self._inner.step_size_by_chain and self._replicas.base is None
        return inner._replace(step_size=inner.step_size / rows) if scaled else inner

    def _info(self, info: Any, energy: Tensor, rates: Tensor, trips: Tensor) -> Any:
        cold = info._replace(**{n: v.view(len(energy), -1, *v.shape[1:])[:, -1] for n, v in info._asdict().items()})
        values = {**cold._asdict(), "lp": -energy, "energy": energy}
        return record("TemperingInfo", (*values, *_OWN_INFO))(*values.values(), rates.mean(1), rates, trips)


def _seen_alike(base: Energy, kernel: Kernel) -> Energy:
    """A base in the coordinates in which a kernel moves."""
    GeometricPath(base, kernel.energy)  # refuses another space
    seen: Any = type(kernel.target)
    return base if kernel.target is kernel.energy else seen(base)
