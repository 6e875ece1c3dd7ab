"""The tick engine: all chains of one run, advanced together on the eager back-end."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ebmppl.energies.base import Energy
from ebmppl.energies.function import same_energy
from ebmppl.errors import SamplingError, SamplingWarning
from ebmppl.kernels.accept import choose
from ebmppl.kernels.base import Kernel, NoiseSpec
from ebmppl.sampling.draws import Counts, Draws
from ebmppl.sampling.noise import NoiseSource
from ebmppl.sampling.schedule import stan_windows

_WARMUP_TICKS = 8  # between two looks at whether a window ended
_SAMPLE_TICKS = 64  # between two looks at whether all chains have their draws
_LOG_NUMBERS = 1 << 22  # position numbers that may wait for their harvest

_ENOUGH = 10  # draws of each chain that tell whether a window of warm-up is lost
_FEW = 5  # that tell whether a whole short warm-up is lost

_SMALL = 1 << 15  # position numbers under which a second thread costs more than it brings

Report = Callable[[], None]
Observe = Callable[[Any], None]


@contextmanager
def ticking(numbers: int) -> Iterator[None]:
    """No gradients of parameters, and one intra-op thread for small states; the user's settings return afterwards."""
    threads = torch.get_num_threads()
    if numbers < _SMALL and threads > 1:
        torch.set_num_threads(1)
    try:
        with torch.no_grad():
            yield
    finally:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


@contextmanager
def evaluating(target: Energy) -> Iterator[None]:
    """Modules in evaluation mode, so that dropout and batch normalisation make no chain depend on chance or neighbours."""
    training = [module for module in target.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _ticks(method: Callable[..., None]) -> Callable[..., None]:
    """Run a method of ``Chains`` under ``ticking`` and ``evaluating``."""

    @wraps(method)
    def run(self: Chains, *args: Any, **kwargs: Any) -> None:
        with ticking(self.numbers), evaluating(self.kernel.target):
            method(self, *args, **kwargs)

    return run


class Now(NamedTuple):
    """Everything that a tick changes. Replaced as a whole, so that an interrupt finds it whole."""

    tick: int
    state: Any
    tuning: Any
    adaptation: Any
    counts: Counts | None
    log: tuple[Any, Tensor, Any] | None  # ticks that wait for their harvest: (older, position, info)


class Chains:
    """The chains of a run: state, tuning, adaptation and noise.

    Args:
        kernel: the kernel.
        x: initial points ``(chains, *event)`` of the kernel's target.
        seed: of the run.
    """

    def __init__(self, kernel: Kernel, x: Tensor, seed: int) -> None:
        self.kernel, self.num_chains, self.seed = kernel, len(x), seed
        self.dtype, self.device = x.dtype, x.device
        self.noise = NoiseSource(kernel.noise(), len(x), seed, x.dtype, x.device)
        self.adaptation = kernel.adaptation()
        self.numbers = x.numel()
        with ticking(self.numbers), evaluating(kernel.target):
            kernel.prepare(x, values=True, many=False)
            state, tuning = kernel.init(x), kernel.init_tuning(x)
        self.now = Now(0, state, tuning, None, None, None)
        most = max(1, _LOG_NUMBERS // self.numbers)
        self._warmup_ticks, self._sample_ticks = min(_WARMUP_TICKS, most), min(_SAMPLE_TICKS, most)
        self._search: NoiseSource | None = None
        self._planned = 0  # draws so far

    # One tick, and the three ways to ask for many.

    def _tick(self, *, adapt: bool, log: bool = False, active: Tensor | None = None) -> Any:
        """Advance everything by one tick (only the ``active`` chains where given) and return the info."""
        now = self.now
        state, info = self.kernel.tick(now.state, now.tuning, self.noise.row(now.tick))
        if active is not None:
            info = info._replace(done=info.done & active)
            state = choose(active, state, now.state)
        own, tuning = now.adaptation, now.tuning
        if adapt and own is not None and self.adaptation is not None:
            own, tuning = self.adaptation.update(own, tuning, state, info)
        entry = (now.log, self.kernel.position(state), info) if log else None
        self.now = Now(now.tick + 1, state, tuning, own, now.counts, entry)
        return info

    def prepare(self, draws: int, *, values: bool = True) -> None:
        """Get the kernel ready for so many draws more, if they are enough to be worth it, and notice another energy."""
        self._planned += draws
        x = self.position()
        self.kernel.prepare(x, values=values, many=self._planned >= self.kernel.target.traced_from)
        cached = getattr(self.now.state, "energy", None)
        if not values or cached is None:
            return
        with torch.no_grad():
            energy = self.kernel.target(x)
        if not same_energy(energy, cached):
            self.now = self.now._replace(state=self.kernel.init(x))
            if self.now.counts is not None and bool(self.now.counts.finished.any()):
                told = "the energy is another one than at the last draw (new parameters or data): the draws to come are of it"
                warnings.warn(told, SamplingWarning, stacklevel=4)

    @_ticks
    def warm_up(self, steps: int, draws: Draws, report: Report) -> None:
        """Adapt over Stan's windows; a window ends at chains x window finished draws in all."""
        self.now = self.now._replace(counts=draws.counts(self.device))
        self.prepare(steps)
        self.begin_adaptation()
        end, first = 0, self._counts()
        for length, metric in stan_windows(steps):
            end += length

            def ticks(counts: Counts, end: int = end) -> int:
                left = end * self.num_chains - int(counts.finished.sum())
                return min(self._warmup_ticks, max(1, left // self.num_chains)) if left > 0 else 0

            begun = self._counts()
            self._run(draws, ticks, report, adapt=True)
            self._require_some_good(begun, _ENOUGH)
            self.end_window(metric=metric)
        if _FEW <= steps < _ENOUGH:
            self._require_some_good(first, steps)
        self.end_adaptation()

    def _require_some_good(self, begun: Counts, enough: int) -> None:
        """Stop a warm-up that can't learn anything: all transitions of all chains since then diverged."""
        counts = self._counts()
        finished = int((counts.finished - begun.finished).sum())
        diverged = int((counts.diverging - begun.diverging).sum())
        if diverged < finished or finished < enough * self.num_chains:
            return
        step = getattr(self.now.tuning, "step_size", None)
        at = "" if step is None else f" at a step size of {float(step):.3g}"
        raise SamplingError(
            f"all {finished} transitions of {self.num_chains} chains diverged in warm-up{at}: begin where the "
            "energy is smooth (initial_params), bring the parameters to a scale of about one, or give a smaller step_size"
        )

    @_ticks
    def collect(self, num_samples: int, draws: Draws, report: Report) -> None:
        """Tick until every chain has its draws; a chain that has them goes on until all have theirs."""
        if self.now.counts is None:
            self.now = self.now._replace(counts=draws.counts(self.device))

        def ticks(counts: Counts) -> int:
            # no chain finishes more than one draw in a tick
            return min(self._sample_ticks, num_samples * draws.thinning - int(counts.finished.min()))

        self.prepare(num_samples)
        draws.reserve(num_samples)
        self._run(draws, ticks, report, adapt=False)

    def _run(self, draws: Draws, ticks: Callable[[Counts], int], report: Report, *, adapt: bool) -> None:
        try:
            while (n := ticks(self._counts())) > 0:
                for _ in range(n):
                    self._tick(adapt=adapt, log=True)
                self._harvest(draws)
                report()
        except KeyboardInterrupt:
            self._harvest(draws)
            raise

    def _counts(self) -> Counts:
        counts = self.now.counts
        assert counts is not None  # set when a phase begins
        return counts

    def _harvest(self, draws: Draws) -> None:
        entries = []
        node = self.now.log
        while node is not None:
            node, position, info = node
            entries.append((position, info))
        if entries:
            self.now = self.now._replace(counts=draws.extend(self._counts(), entries[::-1]), log=None)

    @_ticks
    def advance(self, n: int, *, adapt: bool = False, observe: Observe | None = None) -> None:
        """Exactly n draws of every chain: a chain that has them stands still until the others have theirs.

        Args:
            n: draws.
            adapt: let the adaptation see the draws.
            observe: called with the info of every tick.
        """
        self.prepare(n, values=False)
        left = torch.full((self.num_chains,), n, device=self.device)
        ticks = n if self.kernel.synchronous else None
        while ticks is None or ticks > 0:
            info = self._tick(adapt=adapt, active=None if ticks is not None else left > 0)
            if observe is not None:
                observe(info)
            if ticks is not None:
                ticks -= 1
                continue
            left = left - info.done.long()
            if not bool((left > 0).any()):
                return

    # Adaptation, outside the ticks.

    @_ticks
    def begin_adaptation(self) -> None:
        """Find a first step size and begin to adapt."""
        now = self.now
        if self.adaptation is not None:
            own = self.adaptation.init(now.tuning, now.state)
            own, tuning = self.adaptation.begin(own, now.tuning, now.state, self._normal)
            self.now = now._replace(adaptation=own, tuning=tuning)

    @_ticks
    def end_window(self, *, metric: bool) -> None:
        """Take the window's metric; chains drop what they have under way and begin again from their last draws."""
        now = self.now
        if self.adaptation is None:
            return
        own, tuning = self.adaptation.end_window(now.adaptation, now.tuning, metric=metric)
        state = now.state
        if metric:
            state = self.kernel.restart(state)
            own, tuning = self.adaptation.begin(own, tuning, state, self._normal)
        self.now = now._replace(state=state, adaptation=own, tuning=tuning)

    @_ticks
    def end_adaptation(self) -> None:
        """Freeze the tuning; no draw that began before is kept."""
        now = self.now
        tuning = now.tuning
        if self.adaptation is not None and now.adaptation is not None:
            tuning = self.adaptation.finish(now.adaptation, tuning)
        self.now = Now(now.tick, self.kernel.restart(now.state), tuning, None, None, None)

    def _normal(self) -> Tensor:
        if self._search is None:
            specs = {"normal": NoiseSpec("normal", (self.kernel.target.event_shape.numel(),))}
            self._search = NoiseSource(specs, self.num_chains, self.seed, self.dtype, self.device, "step_size")
            self._searched = 0
        self._searched += 1
        return self._search.row(self._searched - 1)["normal"]

    # What others read.

    def position(self) -> Tensor:
        """The chains' last draws ``(chains, *event)`` in the target's coordinates."""
        return self.kernel.position(self.now.state)

    @_ticks
    def move(self, x: Tensor) -> None:
        """Put the chains at other points ``(chains, *event)``, keeping tuning and adaptation."""
        self.now = self.now._replace(state=self.kernel.init(x))
