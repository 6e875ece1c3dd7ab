"""The tick contract: a kernel advances all chains at once by one tick, as a pure function of state, tuning and noise."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from torch import Tensor

from ebmppl.arguments import require
from ebmppl.energies.base import Energy
from ebmppl.energies.fingerprint import fingerprint
from ebmppl.energies.function import same_energy
from ebmppl.kernels.gradients import Traces

if TYPE_CHECKING:
    from torch.distributions import Transform

    from ebmppl.kernels.adaptation import Adaptation
    from ebmppl.kernels.under_pyro import UnderPyro

Noise = Mapping[str, Tensor]
Told = tuple[Any, list[Tensor]] | None  # of ticks that were not all made, and acceptance rates


class NoiseSpec(NamedTuple):
    """What random numbers one tick of one chain needs."""

    kind: str  # "normal", "uniform" (in [0, 1)) or "bits" (words of 32 bits, int32)
    shape: tuple[int, ...]
    held: int = 1  # for how many ticks numbers stay the same
    where_zero: str | None = None  # integer field of the state: only chains where it is 0 look at the numbers


class Kernel(MCMCKernel):
    """Abstract kernel. A final class states its algorithm in ``init``, ``noise`` and ``tick``; the base gives Pyro's interface.

    A *state* is what the next tick needs, an *info* what a person looks at, a *tuning* what adaptation changes: NamedTuples of
    tensors, chains first (all share a tuning). States have their own storage in every field and are never changed in place.

    Class attributes:
        calls_per_tick: energy (or network) calls of one tick, the same for every chain.
        synchronous: True when every tick finishes a draw of every chain.
        exact: True when the kernel leaves the density exp(-E) invariant at any step size.
        scratch: fields of the state that a tick writes into, where nothing that was there will be read again.
        rounded: fields of the state that follow from an estimated error: compiled and eager ones may differ by half and this.
        proportional: fields of the state, where it has them, that double when the energy does.
        step_size_by_chain: whether ``step_size`` in the tuning may be ``(chains,)``, one for each chain.
        independent: whether a chain's draws don't depend on those before.
        looks_at_points: whether ``prepare`` looks at the points.
        operators: names of those of ``operators.py`` that its ticks take.
    """

    calls_per_tick: ClassVar[int] = 1
    synchronous: ClassVar[bool] = True
    exact: ClassVar[bool] = True
    scratch: ClassVar[tuple[str, ...]] = ()
    rounded: ClassVar[Mapping[str, float]] = {}
    proportional: ClassVar[tuple[str, ...]] = ("energy", "grad")
    step_size_by_chain: ClassVar[bool] = False
    independent: ClassVar[bool] = False
    looks_at_points: ClassVar[bool] = True
    operators: ClassVar[tuple[str, ...]] = ()

    energy: Energy
    target: Energy

    def __init__(self, energy: Energy) -> None:
        hint = "; wrap a callable with as_energy(fn, event_shape)" if callable(energy) else ""
        require(isinstance(energy, Energy), "an Energy", type(energy).__name__ + hint)
        self.energy = self.target = energy  # the target: in the coordinates in which the chains move
        self.model = None  # asked for by pyro.infer.MCMC
        self._under_pyro: UnderPyro | None = None
        self._warmup_steps = 0
        self._initial_params: dict[str, Tensor] | None = None

    @abstractmethod
    def init(self, x: Tensor) -> Any:
        """The state of chains that begin at points ``(chains, *event)`` of ``target``."""

    @abstractmethod
    def init_tuning(self, x: Tensor) -> Any:
        """The tuning to begin with, at the dtype and device of the points."""

    @abstractmethod
    def noise(self) -> dict[str, NoiseSpec]:
        """The random numbers of one tick: name -> kind and shape per chain."""

    @abstractmethod
    def tick(self, state: Any, tuning: Any, noise: Noise) -> tuple[Any, Any]:
        """One tick of all chains: the next state, and an info whose ``done`` ``(chains,)`` says who finished a draw."""

    def __init_subclass__(cls, **options: Any) -> None:
        """A tick of its own makes no use of what its base has written for several."""
        super().__init_subclass__(**options)
        if "tick" in vars(cls):
            for name in {"ticks", "known_after", "held_after"} - vars(cls).keys():
                setattr(cls, name, getattr(Kernel, name))

    def ticks(self, state: Any, tuning: Any, noise: Sequence[Noise]) -> tuple[Any, list[Tensor]]:
        """Eager ticks of which only the end counts, and the acceptance rates: the state, and rates ``(chains,)`` of each tick.

        Kernels for which all else that a tick tells takes time override it; the states are the same, bit for bit.
        """
        rates = []
        for row in noise:
            state, info = self.tick(state, tuning, row)
            rates.append(info.acceptance_rate)
        return state, rates

    @abstractmethod
    def position(self, state: Any) -> Tensor:
        """The chains' last draws ``(chains, *event)`` in the coordinates of ``target``."""

    def held(self, state: Any) -> tuple[Tensor, ...]:
        """What of a state outlasts a change of the energy's parameters, chains first: the positions, and what else there is."""
        return (self.position(state),)

    def resume(self, x: Tensor, *more: Tensor) -> Any:
        """The state of chains that held this, under the energy as it is now."""
        return self.init(x)

    def renew(self, state: Any) -> Any:
        """The state of the same chains under the energy as it is now."""
        return self.resume(*self.held(state))

    def known(self, state: Any) -> dict[str, Tensor]:
        """What ticks came upon at their last positions, by name, and a caller would have to compute again."""
        return {}

    def known_after(self, state: Any, tuning: Any, noise: Sequence[Noise]) -> Told:
        """What ``known`` would tell after these eager ticks, and acceptance rates; None where that takes all of ``ticks``."""
        return None

    def held_after(self, state: Any, tuning: Any, noise: Sequence[Noise]) -> Told:
        """The same of ``held``, for chains that don't go on from there; by chain, whatever the others do."""
        return None

    def random_dtype(self, x: Tensor) -> torch.dtype:
        """Of the random numbers of chains at such points."""
        return x.dtype

    def move(self, device: torch.device) -> None:
        """Have what ticks look up where the chains are: a tick that copied it would wait for a GPU."""

    def prepare(self, x: Tensor, *, values: bool, many: bool) -> None:
        """Before ticks of chains at points ``(chains, *event)``: look whether what was got ready still holds.

        With ``values`` these are compared, too, at the price of some evaluations; getting ready pays for ``many`` ticks.
        """
        self.move(x.device)

    @torch.no_grad()
    def outdated(self, state: Any) -> bool:
        """Whether the energy at the last draws (or its gradient, where that alone is known) is not what the state has."""
        if not hasattr(state, "energy"):
            return False
        x = self.position(state)
        if self.target.has_values:
            return not same_energy(self.target(x), state.energy, by_row=True)
        return not same_energy(self.target.value_and_grad(x)[1].reshape(state.grad.shape), state.grad, by_row=True)

    def holds(self) -> bool:
        """Whether what ``prepare`` found of the energy's values is still so; if not, compiled ticks are made anew."""
        return True

    @property
    def ticks_per_draw(self) -> int:
        """About how many, to decide whether compiling pays; nothing else depends on it."""
        return 1

    @property
    def in_step(self) -> bool:
        """Whether all chains finish a draw together, after exactly ``ticks_per_draw`` ticks."""
        return self.synchronous

    def untraced(self, x: Tensor) -> str | None:
        """Why ticks of chains at such points can't be traced after ``prepare``; None where they can, as far as is known."""
        return None

    def traces(self) -> Traces:
        """What ``prepare`` traced."""
        return {}

    def adopt(self, traces: Traces) -> None:
        """Take over what was traced by a kernel of the same identity, whose energy is known to hold still."""

    def kind(self) -> tuple[Any, ...]:
        """The class and the settings, whatever the energy."""
        own = {k: v for k, v in vars(self).items() if k[0] != "_" and k not in ("energy", "target", "model")}
        return (type(self), fingerprint(own))

    def identity(self) -> tuple[Any, ...]:
        """What kernels whose ticks are the same share: kind, settings and energy."""
        return (*self.kind(), self.target.identity())

    def restart(self, state: Any) -> Any:
        """The state with every draw in progress dropped; a synchronous kernel has none."""
        return state

    def adaptation(self) -> Adaptation | None:
        """What warm-up adapts; None for a kernel without adaptation."""
        return None

    def settings(self) -> dict[str, Any]:
        """The constructor's numbers and flags, for attributes of results and for ``repr``."""
        return {k: v for k, v in vars(self).items() if k[0] != "_" and isinstance(v, (int, float, str, bool))}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v}' for k, v in self.settings().items())})"

    # Pyro's interface, so that every kernel runs under pyro.infer.MCMC unchanged.

    def setup(self, warmup_steps: int, *args: Any, **kwargs: Any) -> None:
        """Called by ``pyro.infer.MCMC`` before the first sample."""
        if args or kwargs:
            raise ValueError("expected no arguments to MCMC.run(): the energy already holds its data (see from_pyro)")
        self._warmup_steps = warmup_steps
        self._under_pyro = None

    @property
    def initial_params(self) -> dict[str, Tensor]:
        """Unconstrained initial values by site; drawn for one chain, as ``MCMC`` draws them, unless they were set."""
        if self._initial_params is None:
            from ebmppl.sampling.initial import as_start, starting_points

            seed = int(torch.randint(2**31, ()))  # Pyro's users seed the global generator
            start = as_start(self, None, 1)
            self._initial_params = self.target.unpack(starting_points(self.target, start, 1, seed).points[0])
        return self._initial_params

    @initial_params.setter
    def initial_params(self, params: Mapping[str, Tensor]) -> None:
        self._initial_params = dict(params)

    @property
    def transforms(self) -> dict[str, Transform]:
        """By site, the map from the support to the unconstrained space, as Pyro keeps it."""
        return self.target.transforms

    def sample(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tick until every chain finished one draw; sites of the event's rank are one chain, with an axis more chains."""
        from ebmppl.kernels.under_pyro import UnderPyro

        if self._under_pyro is None:
            self._under_pyro = UnderPyro(self, params, self._warmup_steps)
        self._under_pyro.move(params)
        return self._under_pyro.sample()

    def logging(self) -> dict[str, str]:
        """Acceptance, step size and divergences so far, as strings for Pyro's progress bar."""
        return {} if self._under_pyro is None else self._under_pyro.logging()

    def diagnostics(self) -> dict[str, Any]:
        """Under Pyro: the draws that diverged, once for every chain that did, and the acceptance rate."""
        return {} if self._under_pyro is None else self._under_pyro.diagnostics()
