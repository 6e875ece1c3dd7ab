"""Gibbs sampling: every coordinate from its conditional, block by block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor

from ebmppl.arguments import flag
from ebmppl.energies.base import Energy, dtype_and_device
from ebmppl.energies.discrete import BothLayers, Layers
from ebmppl.kernels.accept import not_finite
from ebmppl.kernels.base import Noise, NoiseSpec
from ebmppl.kernels.discrete import ByEnergies, DiscreteKernel, NoTuning, draw_level, draw_upper
from ebmppl.kernels.layer_sweep import JointSweep, LayerSweep, TwoLayers
from ebmppl.kernels.pair_sweep import PairSweep


class GibbsState(NamedTuple):
    """Points; a sweep needs nothing else."""

    position: Tensor  # (chains, coordinates)


class GibbsInfo(NamedTuple):
    """What a person looks at, by chain."""

    done: Tensor
    lp: Tensor  # minus the energy, nats
    energy: Tensor
    acceptance_rate: Tensor  # 1
    diverging: Tensor  # the energy is not finite: a draw by parameters that are NaN means nothing


class GibbsInfoWithoutEnergy(NamedTuple):
    """What is left of it where energies aren't recorded."""

    done: Tensor
    acceptance_rate: Tensor
    diverging: Tensor


class Gibbs(DiscreteKernel):
    """One tick is one sweep: every block of coordinates, in a fixed order, from its conditional given all others.

    Blocks are what the energy knows to be independent of one another: the colours of a lattice or a graph
    (chromatic), the layers of a Boltzmann machine; without such structure, single coordinates, whose conditionals take
    an energy call for every level. An energy with hidden bits summed out has them drawn, too, and forgotten. A sweep
    in a fixed order leaves exp(-E) invariant, but is not reversible.

    Spins of ``Ising`` are swept with chains innermost and random words from a counter-based generator. Couplings +J and
    -J with equal fields have their probabilities looked up, whether the model says so (one number, ``signs``) or a tensor
    of couplings is found to be so at the start of a run: on a CPU this is the fast path for them, faster than packing the
    spins of 64 chains into the bits of a word was.

    References:
        Geman and Geman 1984, "Stochastic relaxation, Gibbs distributions, and the Bayesian restoration of images";
        Gonzalez et al. 2011, "Parallel Gibbs sampling: from colored fields to thin junction trees".

    Args:
        energy: a discrete energy.
        record_energy: give the energies of the draws; a sweep itself doesn't need them.

    Raises:
        ValueError: for a continuous energy.
    """

    looks_at_points: ClassVar[bool] = False

    def __init__(self, energy: Energy, *, record_energy: bool = True) -> None:
        super().__init__(energy)
        self.record_energy = flag("record_energy", record_energy)
        pairs, layers = self.target.pairs(), self.target.bipartite()
        self._conditionals = self.target.conditionals() or ByEnergies(self.target, self._levels)
        self._sweep: Any = BlockSweep(self)
        if pairs is not None:
            self._sweep = PairSweep(pairs)
        elif layers is not None:
            # its visible units are discrete, or there were no levels
            self._sweep = LayerSweep(cast(Layers, layers), self._levels, dtype_and_device(self.target)[0])
        elif isinstance(self._conditionals, BothLayers):
            self._sweep = JointSweep(self._conditionals.layers, self._levels, dtype_and_device(self.target)[0])

    @property
    def integers(self) -> bool:
        """Not of two layers, ready for products."""
        return not isinstance(self._sweep, TwoLayers)

    def init(self, x: Tensor) -> Any:
        """State at points ``(chains, *event)``."""
        return self._sweep.init(self.flat(x))

    def resume(self, x: Tensor, *more: Tensor) -> Any:
        """Of both layers a look at x, which no sweep changes."""
        return self._sweep.init(x.detach(), own=False) if isinstance(self._sweep, JointSweep) else self.init(x)

    def renew(self, state: Any) -> Any:
        """Sweeps begin with points alone."""
        return state

    def move(self, device: torch.device) -> None:
        """The levels, and what the sweep looks up."""
        super().move(device)
        self._sweep.move(device)

    def prepare(self, x: Tensor, *, values: bool, many: bool) -> None:
        """Look which couplings are alike: parameters change in training."""
        super().prepare(x, values=values, many=many)
        if isinstance(self._sweep, PairSweep):
            self._sweep.look()

    def holds(self) -> bool:
        """Whether couplings that were alike still are."""
        return not isinstance(self._sweep, PairSweep) or self._sweep.holds()

    def identity(self) -> tuple[Any, ...]:
        """Also which couplings are alike."""
        own = super().identity()
        return (*own, self._sweep.identity()) if isinstance(self._sweep, PairSweep) else own

    def noise(self) -> dict[str, NoiseSpec]:
        """One uniform for every coordinate, or two keys of a generator."""
        return self._sweep.noise()

    def tick(self, state: Any, tuning: NoTuning, noise: Noise) -> tuple[Any, Any]:
        """One sweep of every chain."""
        state = self._sweep.sweep(state, noise)
        chains = _chains(noise)
        rate = torch.ones(chains, dtype=self._real(state), device=state[0].device)
        done = torch.ones(chains, dtype=torch.bool, device=state[0].device)
        if not self.record_energy:
            return state, GibbsInfoWithoutEnergy(done, rate, ~done)
        energy = self._sweep.energies(state)
        return state, GibbsInfo(done, -energy, energy, rate.to(energy.dtype), not_finite(energy))

    def ticks(self, state: Any, tuning: NoTuning, noise: Sequence[Noise]) -> tuple[Any, list[Tensor]]:
        """Sweeps of which only the end counts."""
        rates: list[Tensor] = []
        for row in noise:
            state = self._sweep.sweep(state, row)
            rates = rates or [torch.ones(_chains(row), dtype=self._real(state), device=state[0].device)]
        return state, rates * len(noise)

    def _real(self, state: Any) -> torch.dtype:
        return state[0].dtype if isinstance(self._sweep, TwoLayers) else self.random_dtype(state[0])

    def position(self, state: Any) -> Tensor:
        """The chains' last draws ``(chains, *event)``."""
        x = self._sweep.points(state, self._levels.dtype)
        return x.reshape(len(x), *self.target.event_shape)

    def known(self, state: Any) -> dict[str, Tensor]:
        """Of both layers of a model, after a sweep, the ``visible`` units and their ``hidden_logits``."""
        return self._sweep.known(state) if isinstance(self._sweep, JointSweep) else {}

    def known_after(
        self, state: Any, tuning: NoTuning, noise: Sequence[Noise]
    ) -> tuple[dict[str, Tensor], list[Tensor]] | None:
        """Of both layers of a model: the last hidden bits needn't be drawn."""
        if not isinstance(self._sweep, JointSweep):
            return None
        state, rates = self.ticks(state, tuning, noise[:-1])
        half = self._sweep.half(state, noise[-1])
        return self._sweep.known(half), [*rates, half.visible.new_ones(len(half.visible))]


def _chains(noise: Noise) -> int:
    return next(iter(noise.values())).shape[0]


class BlockSweep:
    """Sweeps of any energy by its conditionals.

    Args:
        kernel: whose conditionals and levels they are.
    """

    def __init__(self, kernel: Gibbs) -> None:
        self.kernel = kernel
        self._blocks = list(kernel._conditionals.blocks)

    def move(self, device: torch.device) -> None:
        """The blocks: those of parts know no device."""
        self._blocks = [members.to(device) for members in self.kernel._conditionals.blocks]

    def noise(self) -> dict[str, NoiseSpec]:
        """One uniform for every coordinate."""
        return {"uniform": NoiseSpec("uniform", (self.kernel.num_coordinates,))}

    def init(self, x: Tensor) -> GibbsState:
        """Of flat points ``(chains, coordinates)``."""
        return GibbsState(x)

    def points(self, state: GibbsState, dtype: torch.dtype) -> Tensor:
        """Flat points, at the dtype that they have."""
        return state.position

    def sweep(self, state: GibbsState, noise: Noise) -> GibbsState:
        """Every block once."""
        x, uniform = state.position, noise["uniform"]
        conditionals = self.kernel._conditionals
        table = self.kernel._levels.table.to(device=x.device, dtype=x.dtype)
        for block, members in enumerate(self._blocks):
            members = members.to(x.device)
            u = uniform.index_select(1, members)
            logits = conditionals.logits(block, x)
            values = table.index_select(0, members)
            if logits.dim() == u.dim():
                drawn = torch.where(draw_upper(logits, u), values[:, 1], values[:, 0])
            else:
                drawn = values.gather(1, draw_level(logits, u).mT).mT
            x = x.index_copy(1, members, drawn)
        return GibbsState(x)

    def energies(self, state: GibbsState) -> Tensor:
        """``(chains,)`` in nats."""
        return self.kernel.energies(state.position)
