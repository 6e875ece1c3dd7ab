"""Gibbs over blocks of sites with a kernel for each: mixed discrete and continuous energies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ebmppl.arguments import require
from ebmppl.energies.base import Energy, dtype_and_device
from ebmppl.energies.checks import require_values
from ebmppl.energies.discrete import discrete
from ebmppl.energies.unconstrained import Unconstrained
from ebmppl.kernels.accept import choose, select, some
from ebmppl.kernels.base import Kernel, Noise, NoiseSpec
from ebmppl.kernels.conditional import BlocksAdaptation, Given
from ebmppl.kernels.differences import DiscreteGradientKernel
from ebmppl.kernels.gradient_kernel import GradientKernel
from ebmppl.kernels.gradients import Gradient
from ebmppl.kernels.records import joined, part

Factory = Callable[[Energy], Kernel]


class _Block(NamedTuple):
    """The sites of a block, and their kernel given all others."""

    sites: tuple[str, ...]
    energy: Given
    kernel: Kernel


class BlocksInfo(NamedTuple):
    """What a person looks at, by chain; of use where ``done``."""

    done: Tensor
    lp: Tensor  # minus the energy, nats
    energy: Tensor
    acceptance_rate: Tensor  # mean over the blocks
    diverging: Tensor  # in any block of the draw
    acceptance_rates: Tensor  # (chains, blocks)


class Blocks(Kernel):
    """Gibbs sampling of blocks of sites in a fixed order, each by its own kernel on its conditional energy.

    A draw is one draw of every block's kernel in turn, given the present values of all other sites. Every chain goes
    through its blocks at its own pace: in a tick a chain advances the block it is in by one tick, and goes on to the next
    one as soon as that block has drawn; where all kernels are synchronous a tick is a draw. What a block's kernel knows
    of the energy is computed anew when a chain comes to it, since other blocks have moved.

    Continuous sites are unconstrained inside, as for every gradient kernel; discrete ones are given back as integers.
    In warm-up each kernel adapts as it would alone, once for every draw. Statistics: ``acceptance_rates``, by block, beside
    their mean.

    References:
        Geman and Geman 1984; Metropolis steps within Gibbs: Tierney 1994, "Markov chains for exploring posterior
        distributions".

    Args:
        energy: an energy over named sites.
        blocks: by site, or tuple of sites, what makes a kernel of an energy of these: ``{"s": Gibbs, ("x", "y"):
            partial(HMC, num_steps=8)}``. Every site once.

    Raises:
        ValueError: for no blocks, sites that are unknown, missing or in two blocks, or that a kernel can't move.

    Example:
        >>> import ebmppl as eb
        >>> pair = eb.as_energy(lambda v: (v["x"] - v["s"]) ** 2, {"s": (), "x": ()}, {"s": eb.energies.spin})
        >>> kernel = Blocks(pair, {"s": eb.Gibbs, "x": eb.NUTS})
        >>> mcmc = eb.MCMC(kernel, 10, num_chains=2, seed=0, disable_progbar=True)
        >>> mcmc.run()
        >>> {name: value.dtype for name, value in mcmc.get_samples().items()}
        {'s': torch.int8, 'x': torch.float32}
    """

    def __init__(self, energy: Energy, blocks: Mapping[str | tuple[str, ...], Factory]) -> None:
        super().__init__(energy)
        require_values(energy, "Blocks")
        sites = _sites(energy, blocks)
        self.target = energy if discrete(energy) else Unconstrained(energy, keep_discrete=True)
        # a trace is tried at points of the support, too, where that is one of integers
        self._gradient = Gradient(self.target, (lambda x: x.flip(0)) if discrete(energy) else None)
        made = []
        for names, factory in zip(sites, blocks.values(), strict=True):
            require(callable(factory), f"a function from an energy to a kernel for {list(names)}", repr(factory))
            given = Given(self.target, names, self._gradient)
            kernel = factory(given)
            require(isinstance(kernel, Kernel), f"a kernel from the factory for {list(names)}", type(kernel).__name__)
            made.append(_Block(names, given, kernel))
        self._blocks = made
        self._state_types: list[Any] = []  # by block, known from init and init_tuning on
        self._tuning_types: list[Any] = []
        self.synchronous = all(block.kernel.synchronous for block in made)  # type: ignore[misc]
        self.exact = all(block.kernel.exact for block in made)  # type: ignore[misc]
        self.calls_per_tick = sum(block.kernel.calls_per_tick + 1 for block in made)  # type: ignore[misc]

    def settings(self) -> dict[str, Any]:
        """By block, its kernel."""
        return {"blocks": {", ".join(block.sites): repr(block.kernel) for block in self._blocks}}

    def identity(self) -> tuple[Any, ...]:
        """Kind, blocks with their kernels' settings, and energy."""
        kernels = tuple((block.sites, *block.kernel.kind()) for block in self._blocks)
        return (type(self), kernels, self.target.identity())

    def random_dtype(self, x: Tensor) -> torch.dtype:
        """That of the points, or of a discrete energy."""
        return x.dtype if x.is_floating_point() else dtype_and_device(self.target)[0]

    @property
    def ticks_per_draw(self) -> int:
        """A draw of every block; blocks of one tick share it with their successors."""
        return 1 + sum(block.kernel.ticks_per_draw - 1 for block in self._blocks)

    @property
    def _by_gradients(self) -> bool:
        return any(isinstance(block.kernel, (GradientKernel, DiscreteGradientKernel)) for block in self._blocks)

    def _real(self, x: Tensor) -> Tensor:
        """Points as those at which the gradient is taken."""
        return x if x.is_floating_point() else x.to(self.random_dtype(x))

    def move(self, device: torch.device) -> None:
        """Of every block its kernel's, and where its sites are."""
        for block in self._blocks:
            block.energy.move(device)
            block.kernel.move(device)

    def prepare(self, x: Tensor, *, values: bool, many: bool) -> None:
        """Check the gradients in discrete sites, trace that in all sites."""
        super().prepare(x, values=values, many=many)
        for block in self._blocks:
            if isinstance(block.kernel, DiscreteGradientKernel):
                with block.energy.at(x):
                    block.kernel.check(block.energy.own(x), self.random_dtype(x))
        if self._by_gradients:
            self._gradient.prepare(self._real(x), values=values, trace=many)

    def untraced(self, x: Tensor) -> str | None:
        """The reason why the gradient isn't traced."""
        return self._gradient.untraced(self._real(x)) if self._by_gradients else None

    def init(self, x: Tensor) -> Any:
        """State at points ``(chains, *event)``, before the first block."""
        x = x.detach().clone(memory_format=torch.contiguous_format)
        with torch.no_grad():
            energy = self.target(x).clone()
        true = torch.ones(len(x), dtype=torch.bool, device=x.device)
        parts = [self._at(i, x) for i in range(len(self._blocks))]
        self._state_types = [type(inner) for inner in parts]
        rates = energy.new_zeros(len(x), len(parts))
        own = {"position": x, "energy": energy, "current": x.clone(), "phase": true.long() - 1, "fresh": true}
        return joined("BlocksState", parts, {**own, "rates": rates, "diverged": ~true})

    def init_tuning(self, x: Tensor) -> Any:
        """The kernels' tunings one after another."""
        parts = [block.kernel.init_tuning(block.energy.own(x)) for block in self._blocks]
        self._tuning_types = [type(inner) for inner in parts]
        return joined("BlocksTuning", parts)

    def _at(self, i: int, whole: Tensor) -> Any:
        """A block's kernel's state at whole points, with what it knows of the energy there."""
        block = self._blocks[i]
        with block.energy.at(whole):
            return block.kernel.init(block.energy.own(whole))

    def noise(self) -> dict[str, NoiseSpec]:
        """Those of all kernels."""
        return {
            f"block{i}_{name}": spec._replace(where_zero=None)
            for i, block in enumerate(self._blocks)
            for name, spec in block.kernel.noise().items()
        }

    def position(self, state: Any) -> Tensor:
        """The chains' last draws ``(chains, *event)``."""
        x: Tensor = state.position
        return x

    def restart(self, state: Any) -> Any:
        """Begin again with the first block, at the last draw."""
        phase = torch.zeros_like(state.phase)
        return state._replace(current=state.position.clone(), phase=phase, fresh=torch.ones_like(state.fresh))

    def adaptation(self) -> BlocksAdaptation | None:
        """What each kernel adapts."""
        inner = [block.kernel.adaptation() for block in self._blocks]
        if not any(adaptation is not None for adaptation in inner):
            return None
        return BlocksAdaptation(inner, [block.energy for block in self._blocks], self._tuning, self._at)

    def _tuning(self, tuning: Any, i: int) -> Any:
        return part(tuning, i, self._tuning_types[i])

    # A tick.

    def tick(self, state: Any, tuning: Any, noise: Noise) -> tuple[Any, BlocksInfo]:
        """One tick of the block that each chain is in, and of those that follow on blocks that drew."""
        first = (state.phase == 0) & state.fresh
        now = state._replace(diverged=state.diverged & ~first)
        for i in range(len(self._blocks)):
            active = now.phase == i
            if some(active):
                now = self._advance(i, active, now, tuning, noise)
        done = now.phase == len(self._blocks)
        now = now._replace(position=select(done, now.current, now.position), phase=now.phase.masked_fill(done, 0))
        rate = now.rates.mean(1)
        return now, BlocksInfo(done, -now.energy, now.energy, rate, now.diverged, now.rates)

    def _advance(self, i: int, active: Tensor, now: Any, tuning: Any, noise: Noise) -> Any:
        """The chains in block i advanced by one tick of its kernel."""
        block, inner = self._blocks[i], part(now, i, self._state_types[i])
        inner = self._refreshed(i, active & now.fresh, now.current, inner)
        prefix = f"block{i}_"
        given = {name: noise[prefix + name] for name in block.kernel.noise()}
        with block.energy.at(now.current):
            new, info = block.kernel.tick(inner, self._tuning(tuning, i), given)
        inner = choose(active, new, inner)
        done = active & info.done
        drawn = block.energy.filled(now.current, block.kernel.position(inner))
        rate = torch.where(done, info.acceptance_rate.to(now.rates.dtype), now.rates[:, i])
        # only the last block's counts: then the energy is that of the draw
        last = done if i == len(self._blocks) - 1 else torch.zeros_like(done)
        return now._replace(
            energy=torch.where(last, -info.lp, now.energy),
            current=select(done, drawn, now.current),
            phase=now.phase + done,
            fresh=torch.where(active, done, now.fresh),
            rates=torch.cat([now.rates[:, :i], rate.unsqueeze(1), now.rates[:, i + 1 :]], 1),
            diverged=now.diverged | (done & info.diverging),
            **{f"{prefix}{name}": value for name, value in inner._asdict().items()},
        )

    def _refreshed(self, i: int, entering: Tensor, whole: Tensor, inner: Any) -> Any:
        """The kernel's state where chains come to its block: at the present values of all sites."""
        return choose(entering, self._at(i, whole), inner) if some(entering) else inner


def _sites(energy: Energy, blocks: object) -> list[tuple[str, ...]]:
    """The sites of each block, checked."""
    require(energy.packed, "an energy over named sites", "one over a single tensor")
    if not isinstance(blocks, Mapping) or not blocks:
        raise ValueError(f"expected blocks as a dict of sites to kernel factories, got {blocks!r}")
    sites: list[tuple[str, ...]] = [(key,) if isinstance(key, str) else tuple(key) for key in blocks]
    names: Sequence[str] = [name for block in sites for name in block]
    unknown, missing = sorted(set(names) - set(energy.sites)), sorted(set(energy.sites) - set(names))
    twice = sorted({name for name in names if names.count(name) > 1})
    if unknown or missing or twice or not all(sites):
        raise ValueError(
            f"expected every site of {sorted(energy.sites)} in one block; "
            f"unknown: {unknown}, missing: {missing}, more than once: {twice}"
        )
    return sites
