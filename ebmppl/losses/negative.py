"""Model samples inside a loss: chains of an injected kernel that follow the parameters as they are trained."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ebmppl.arguments import require, seed_of
from ebmppl.energies.base import Energy, dtype_and_device
from ebmppl.energies.checks import check_gradient
from ebmppl.energies.discrete import discrete, levels_of
from ebmppl.energies.supports import is_discrete
from ebmppl.kernels.base import Kernel, Told
from ebmppl.losses.base import UNCONSTRAINED, require_finite
from ebmppl.losses.scores import gradient_seen
from ebmppl.sampling.chains import Chains
from ebmppl.sampling.draws import Draws
from ebmppl.sampling.initial import Start, starting_points
from ebmppl.sampling.scopes import evaluating, using_threads

KernelFactory = Callable[[Energy], Kernel]
Held = tuple[Tensor, ...]  # what chains are known by: see ``Kernel.held``
_SHAPES = 8  # of chains that are kept ready


class ModelChains(nn.Module):
    """Chains of one kernel that a loss moves by some draws at a time, between updates of the energy's parameters.

    A pure function of (seed, ticks so far, tuning, parameters, points): what was saved goes on exactly. Nothing of these
    moves before ``keep``. The energy's modules are in eval mode while chains move, and get their modes back.

    Args:
        energy: the energy that is trained.
        kernel: makes the kernel of an energy, as ``Gibbs`` or ``partial(Langevin, step_size=0.01)``.
        seed: from the operating system when None.

    Raises:
        ValueError: for a kernel that isn't for the energy, or something else than a factory of kernels.
    """

    ticks: Tensor
    seed: Tensor

    def __init__(self, energy: Energy, kernel: KernelFactory, seed: int | None = None) -> None:
        super().__init__()
        self._factory, self._energy = kernel, (energy,)  # in a tuple: no module of ours
        self.register_buffer("ticks", torch.zeros((), dtype=torch.int64))
        self.register_buffer("seed", torch.tensor(seed_of(seed)))
        for name, value in self._make()._asdict().items():
            self.register_buffer(f"tuning_{name}", value)
        self._chains: dict[Any, Chains] = {}
        target = self.kernel.target  # where all is real, gradients lead chains
        self._graded = any(is_discrete(target.site_support(name)) for name in target.sites)  # or were seen
        self._next: int | None = None  # ticks after the last move
        self._left: list[
            tuple[Tensor, float]
        ] = []  # what chains held at the last ``keep``, and versions: unchanged since?
        self._rates: list[Tensor] = []  # acceptance rates of the last move, by tick
        self.known: dict[str, Tensor] = {}  # of the points where the last move ended: see ``Kernel.known``

    def _make(self) -> Any:
        """Make the kernel, and return its first tuning."""
        (energy,), wanted = self._energy, "kernel as a factory of kernels of an energy, such as eb.Gibbs"
        made = self._factory(energy)
        require(isinstance(made, Kernel), wanted, f"one of {type(made).__name__}")
        require(made.energy is energy, wanted, f"one of {type(made).__name__} of another energy")
        if hasattr(made, "record_energy"):
            made.record_energy = False  # nobody looks at them
        self.kernel = made
        dtype, device = dtype_and_device(made.target)
        self._integers = levels_of(made.target).dtype if discrete(made.target) else None
        dtype = self._integers or dtype
        with torch.no_grad(), evaluating(energy):
            tuning = made.init_tuning(torch.zeros((1, *made.target.event_shape), dtype=dtype, device=device))
        self._kind = type(tuning)
        return tuning

    @property
    def tuning(self) -> Any:
        """The kernel's, a NamedTuple of tensors."""
        return self._kind(*(getattr(self, f"tuning_{name}") for name in self._kind._fields))

    def inward(self, x: Tensor) -> Tensor:
        """Points of the energy ``(rows, *event)`` in the kernel's coordinates.

        Raises:
            ValueError: for points at the edge of a support, which have none.
        """
        target, energy = self.kernel.target, self.kernel.energy
        z = x if target is energy else target.unconstrain(energy.unpack(x))
        if z is not x:
            require_finite(UNCONSTRAINED, z)
        as_is = self._integers is None or not getattr(self.kernel, "integers", True)
        return z if as_is else z.to(self._integers)

    def outward(self, z: Tensor) -> Tensor:
        """The inverse of ``inward``, at the dtype of z."""
        target, energy = self.kernel.target, self.kernel.energy
        return z if target is energy else energy.pack(target.constrain(z))

    @torch.no_grad()
    def begin(self, z: Tensor) -> Held:
        """What chains hold that begin at points ``(chains, *event)`` in the kernel's coordinates."""
        with evaluating(self.kernel.energy):
            return tuple(value.clone() for value in self.kernel.held(self.kernel.init(z)))

    @torch.no_grad()
    def move(self, held: Held, draws: int, *, go_on: bool) -> Held:
        """What chains hold after so many draws of each, under the parameters as they are now.

        Args:
            held: by chains before, or the points ``(chains, *event)`` alone where they begin, in the kernel's coordinates.
            draws: of each.
            go_on: whether chains do, from where they end. If not, a kernel may leave out what only its next tick needs, and
                with it a last look whether chains can go on from there (Langevin: that the gradient is finite).

        Raises:
            ValueError: for an energy over real points without gradient, or in steps: chains would walk at random.
        """
        with evaluating(self.kernel.target):  # once for all that follows
            self._require_gradient(held[0])
            chains = self._at(held)
            end = None if go_on else self._told(chains, draws, self.kernel.held_after)
            if end is not None:
                self.known = {}
                return end
            self._rates = []
            chains.advance(draws, rates=self._rates)
        self._next = chains.now.tick
        self.known = self.kernel.known(chains.now.state)
        return self.kernel.held(chains.now.state)

    @torch.no_grad()
    def look_ahead(self, x: Tensor, draws: int) -> bool:
        """What is ``known`` after so many draws of chains that begin at x, if the kernel can tell for less than a ``move``."""
        with evaluating(self.kernel.target):
            found = self._told(self._at((x,)), draws, self.kernel.known_after)
        if found is not None:
            self.known = found
        return found is not None

    def _told(self, chains: Chains, draws: int, after: Callable[..., Told]) -> Any:
        """What a kernel tells of the end of so many draws, while chains stay; None where ticks have to be made for it."""
        if getattr(after, "__func__", None) in (Kernel.held_after, Kernel.known_after):  # which tell nothing
            return None
        chains.prepare(draws, values=False)
        now, end = chains.now, chains.now.tick + draws * self.kernel.ticks_per_draw
        with using_threads(chains.threads):
            found = after(now.state, now.tuning, [chains.noise.row(tick) for tick in range(now.tick, end)])
        if found is None:
            return None
        (told, self._rates), self._next = found, end
        return told

    @torch.no_grad()
    def adapt(self, held: Held, draws: int) -> Held:
        """The same, while the kernel's tuning adapts as in a run's warm-up; tuning and ticks are kept at once."""
        chains = Chains(self.kernel, held[0], int(self.seed))
        chains.put(int(self.ticks), held, self._tuning_at(chains))
        chains.warm_up(draws, Draws(chains.num_chains, fields=("acceptance_rate",)), lambda: None)
        for name, value in chains.now.tuning._asdict().items():
            getattr(self, f"tuning_{name}").copy_(value)
        self.ticks.fill_(chains.now.tick)
        return self.kernel.held(chains.now.state)

    @torch.no_grad()
    def run(self, start: Start, chains: int, warmup: int, draws: int, number: int) -> Tensor:
        """Draws ``(chains * draws, *event)`` in the kernel's coordinates of a run of its own, warm-up and all.

        Args:
            start: where chains begin.
            chains: how many.
            warmup: draws of each that adapt the kernel and are dropped.
            draws: of each.
            number: of the run; each has random numbers of its own.
        """
        target, seed = self.kernel.target, mixed(int(self.seed), number)
        x = starting_points(target, start, chains, seed).points
        with evaluating(target):
            self._require_gradient(x)
        of_run, kept = Chains(self.kernel, x, seed), Draws(chains, fields=("position", "acceptance_rate"))
        if warmup:
            of_run.warm_up(warmup, Draws(chains, fields=("acceptance_rate",)), lambda: None, draws)
        of_run.collect(draws, kept, lambda: None)
        self._rates = [kept.buffers["acceptance_rate"][:draws]]
        return kept.buffers["position"][:draws].reshape(draws * chains, *target.event_shape)

    def keep(self, held: Held = ()) -> None:
        """Count the ticks of the last move, so that the next one has other random numbers; ``held`` is where it ended."""
        if self._next is not None:
            self.ticks.fill_(self._next)
        self._left = [(value, version_of(value)) for value in held]

    def acceptance(self) -> float:
        """Of the last move or run, the mean acceptance rate; NaN before any."""
        return float(torch.stack([rate.mean() for rate in self._rates]).mean()) if self._rates else float("nan")

    def _require_gradient(self, x: Tensor) -> None:
        """Once it is seen there is no more to look at."""
        if not self._graded:
            target = self.kernel.target
            check_gradient(target, x, finite=False)
            self._graded = not target.has_values or gradient_seen(target, x, lambda e, at: e.value_and_grad(at)[1])

    def _at(self, held: Held) -> Chains:
        key = (held[0].shape, held[0].dtype, held[0].device)
        chains = self._chains.pop(key, None)
        if chains is None or chains.seed != int(self.seed):
            chains = Chains(self.kernel, held[0], int(self.seed))
        self._chains[key] = chains  # the last used comes last
        if len(self._chains) > _SHAPES:
            del self._chains[next(iter(self._chains))]
        left = [(value, version_of(value)) for value in held]
        there = chains.now.tick == int(self.ticks) and len(left) == len(self._left)
        there = there and all(a is b and i == j for (a, i), (b, j) in zip(left, self._left, strict=True))
        chains.put(int(self.ticks), None if there else held, self._tuning_at(chains))
        return chains

    def _tuning_at(self, chains: Chains) -> Any:
        """At the chains' dtype and device."""
        return self._kind(
            *(t.to(chains.device, chains.dtype if t.is_floating_point() else t.dtype) for t in self.tuning)
        )

    def __getstate__(self) -> dict[str, Any]:
        """Without what is made from the rest: traces and generators don't travel."""
        made = {"kernel", "_kind", "_integers"}
        return {**{k: v for k, v in self.__dict__.items() if k not in made}, "_chains": {}, "known": {}, "_left": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Of a copy, with a kernel of its own."""
        super().__setstate__(state)
        self._make()


def version_of(value: Tensor) -> float:
    """Counts changes in place; NaN, so never the same, where nobody counts them."""
    return math.nan if value.is_inference() else value._version


def mixed(seed: int, number: int) -> int:
    """Another seed of 31 bits for every number."""
    return (seed ^ (number * 0x9E3779B1)) % (1 << 31)
