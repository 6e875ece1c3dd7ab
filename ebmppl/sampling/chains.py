"""The tick engine: all chains of one run, advanced together, eagerly or compiled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ebmppl.arguments import require
from ebmppl.kernels.accept import choose
from ebmppl.kernels.adaptation import AdaptationState
from ebmppl.kernels.base import Kernel, NoiseSpec
from ebmppl.kernels.dual_averaging import SHARES
from ebmppl.sampling.advance import advance_apart, advance_together
from ebmppl.sampling.choice import Choice, choose_backend
from ebmppl.sampling.compiled_ticks import Compiled, Job
from ebmppl.sampling.draws import Counts, Draws, Now, Ticks, finished, unlink
from ebmppl.sampling.noise import NoiseSource
from ebmppl.sampling.parts import Parts
from ebmppl.sampling.schedule import ENOUGH, FEW, Looks, require_some_good, stan_windows
from ebmppl.sampling.scopes import PASSES, evaluating, require_unbroken, threads, ticking, unbroken, using_threads
from ebmppl.sampling.stragglers import Block, begin_anew, next_block, ticked

_TICKS, _COMPILED_TICKS = 64, 256  # most between two looks at whether a window ended or all chains have their draws
_LOG_NUMBERS = 1 << 22  # position numbers that may wait for their harvest

Report = Callable[[], None]
Observe = Callable[[Any], None]


class Chains:
    """The chains of a run: state, tuning, adaptation and noise.

    Args:
        kernel: the kernel.
        x: initial points ``(chains, *event)`` of the kernel's target.
        seed: of the run.
        backend: how ticks run; "auto" decides when it is known how many there will be.
        record: False where chains only ``advance``: compiled ticks then leave out all that only a record would show.
    """

    def __init__(self, kernel: Kernel, x: Tensor, seed: int, backend: str = "eager", *, record: bool = True) -> None:
        self.kernel, self.num_chains, self.seed, self.record = kernel, len(x), seed, record
        self.dtype, self.device = kernel.random_dtype(x), x.device
        self.noise = NoiseSource(kernel.noise(), len(x), seed, self.dtype, x.device)
        self.adaptation = kernel.adaptation()
        self.numbers = x.numel()
        self.choice = Choice(backend, "as asked for")
        self.compiled: Compiled | Parts | None = None
        self.threads = threads(PASSES * self.numbers)
        with torch.no_grad(), using_threads(self.threads), evaluating(kernel.target):
            kernel.prepare(x, values=True, many=False)
            state, tuning = kernel.init(x), kernel.init_tuning(x)
        self.now = Now(0, state, tuning, None, None, None)
        self._search: NoiseSource | None = None
        self._planned = 0  # draws so far
        self.broken = False  # see ``unbroken``

    def __getstate__(self) -> dict[str, Any]:
        """Copies compile for themselves: engines hold memory of these chains."""
        return {**vars(self), "compiled": None}

    def _tick(self, *, adapt: bool, log: bool = False, active: Tensor | None = None, own: int | None = None) -> Any:
        """One eager tick, of the ``active`` chains where given: the run's next, or their ``own``. Returns the info."""
        now, used = self.now, self.now.tuning
        block = Block(now.tick, 1) if own is None else Block(own, 1, active)
        if adapt and now.adaptation is not None and self.adaptation is not None:
            used = self.adaptation.own_steps(now.adaptation.averaging, used)
        state, info = self.kernel.tick(now.state, used, self.noise.row(block.first))
        if active is not None:
            info = info._replace(done=info.done & active)
            state = choose(active, state, now.state)
        adapted, tuning = now.adaptation, now.tuning
        if adapt and adapted is not None and self.adaptation is not None:
            averaging, tuning = self.adaptation.update(adapted.averaging, tuning, info)
            adapted = adapted._replace(averaging=averaging)
        entry = (now.log, self.kernel.position(state), info) if log else None
        now = ticked(now, block, self.num_chains)
        self.now = now._replace(state=state, tuning=tuning, adaptation=adapted, log=entry)
        return info

    def prepare(self, draws: int, *, values: bool = True) -> None:
        """Get the kernel ready for so many draws more, if they are worth it."""
        self._planned += draws
        holds = self.compiled is not None and self.compiled.holds
        if not holds and self.choice.backend != "eager":
            self._choose_backend()
        if self.compiled is None:
            x = self.position() if self.kernel.looks_at_points else self.now.state[0]  # points may have to be made
            self.kernel.prepare(x, values=values, many=self._planned >= self.kernel.target.traced_from)

    def _choose_backend(self) -> None:
        """Compile where that was asked for or pays, and try what was compiled."""
        now = self.now
        own = None if self.adaptation is None else self.adaptation.init(now.tuning, now.state).averaging
        job = Job(self.kernel, self.adaptation, self.noise, now.state, now.tuning, own)
        draws, ticks = self._planned, self._most_ticks(compiled=True)
        self.choice, self.compiled = choose_backend(self.choice, job, draws=draws, ticks=ticks, record=self.record)
        if self.compiled is not None:
            self.threads = self.compiled.engine.threads

    def _most_ticks(self, *, compiled: bool | None = None) -> int:
        many = self.compiled is not None if compiled is None else compiled
        return max(1, min(_COMPILED_TICKS if many else _TICKS, _LOG_NUMBERS // self.numbers))

    @ticking
    def warm_up(self, steps: int, draws: Draws, report: Report, more: int = 0) -> None:
        """Adapt over Stan's windows (chains x window draws, of a chain twice its own at most); ``more`` draws will follow."""
        self.now = self.now._replace(counts=draws.counts(self.device))
        self.begin_adaptation()
        self._planned = more
        self.prepare(steps)  # with a step size at which compiled and eager ticks can be compared
        self._planned = steps
        first = self._counts()
        # where nothing adapts a run is the same on every back-end: so are the ticks after which it looks
        most_between = self._most_ticks(compiled=True if self.adaptation is None else None)
        for length, metric in stan_windows(steps, self.num_chains):
            begun, looks = self._counts(), Looks(self.now.tick, self.num_chains, self.kernel.synchronous, most_between)

            def block(length: int = length, begun: Counts = begun, looks: Looks = looks) -> Block:
                drawn = (self._counts().finished - begun.finished).clamp_max(SHARES * length).sum()
                ticks = looks.until_next(self.now.tick, length * self.num_chains, lambda: int(drawn))
                return Block(self.now.tick, min(ticks, self._most_ticks()))

            self._run(draws, block, report, adapt=True)
            require_some_good(begun, self._counts(), ENOUGH, self.now.tuning)
            self.end_window(metric=metric)
        if FEW <= steps < ENOUGH:
            require_some_good(first, self._counts(), steps, self.now.tuning)
        self.end_adaptation()

    @ticking
    def collect(self, num_samples: int, draws: Draws, report: Report, kept: int = 0) -> None:
        """Tick every chain until it has its draws, ``kept`` of them by now."""
        require_unbroken(self)
        require(self.record, "chains that record their ticks", "record=False")
        if self.now.counts is None:
            self.now = self.now._replace(counts=draws.counts(self.device))
        wanted = num_samples * draws.thinning
        begin_anew(self, draws, kept)
        self.prepare(wanted - int(self._counts().finished.min()))
        draws.reserve(num_samples)
        try:
            self._run(draws, lambda: next_block(self, wanted, self._most_ticks()), report, adapt=False)
        finally:
            if self.compiled is not None:
                with unbroken(self):
                    self.compiled.narrow(None)

    def _run(self, draws: Draws, next_block: Callable[[], Block], report: Report, *, adapt: bool) -> None:
        try:
            while (block := next_block()).ticks > 0:
                if self.compiled is not None:
                    with unbroken(self):
                        self._take_in(draws, self._run_compiled(self.compiled, block, adapt=adapt), adapt=adapt)
                else:
                    for i in range(block.ticks):
                        self._tick(adapt=adapt, log=True, active=block.chains, own=block.first + i)
                    self._harvest(draws, adapt=adapt)
                report()
        except BaseException:
            self._harvest(draws, adapt=adapt)
            raise

    def _run_compiled(self, compiled: Compiled | Parts, block: Block, *, adapt: bool) -> Mapping[str, Tensor]:
        """A block of ticks; the next ones overwrite the log."""
        now = self.now
        own = now.adaptation
        compiled.load(now.state, now.tuning, None if own is None else own.averaging, adapting=adapt and own is not None)
        compiled.narrow(block.chains)
        with using_threads(compiled.engine.threads):
            log = compiled.run(block.first, block.ticks)
        state, tuning, averaging, *_ = compiled.carried
        own = None if own is None else own._replace(averaging=averaging)
        self.now = ticked(now, block, compiled.width)._replace(state=state, tuning=tuning, adaptation=own)
        return log

    def _counts(self) -> Counts:
        counts = self.now.counts
        assert counts is not None  # set when a phase begins
        return counts

    def _harvest(self, draws: Draws, *, adapt: bool) -> None:
        """Take in what eager ticks left."""
        if self.now.log is not None:
            self._take_in(draws, unlink(self.now.log), adapt=adapt)

    def _take_in(self, draws: Draws, log: Mapping[str, Ticks], *, adapt: bool) -> None:
        """Keep and count the draws of some ticks, and let the adaptation see them."""
        if adapt:
            self._observe(log)
        places = None if self.compiled is None else self.compiled.places
        self.now = self.now._replace(counts=draws.extend(self._counts(), log, places), log=None)

    def _observe(self, log: Mapping[str, Ticks]) -> None:
        own: AdaptationState | None = self.now.adaptation
        if own is not None and self.adaptation is not None:
            own = own._replace(draws=self.adaptation.observe(own.draws, *finished(log)))
            self.now = self.now._replace(adaptation=own)

    @ticking
    def advance(
        self, n: int, *, adapt: bool = False, observe: Observe | None = None, rates: list[Tensor] | None = None
    ) -> None:
        """Exactly n draws of every chain: a chain that has them stands still until the others have theirs.

        Args:
            n: draws.
            adapt: let the adaptation see the draws.
            observe: called with the info of every tick.
            rates: gets the acceptance rates ``(chains,)`` of every eager tick.
        """
        self.prepare(n, values=False)
        ticks = n * self.kernel.ticks_per_draw if self.kernel.in_step else None
        unseen, most = observe is None and not adapt, self._most_ticks()
        if ticks is not None and unseen:
            for first in range(0, ticks, most):
                count = min(most, ticks - first)
                if self.compiled is None:
                    self.now = advance_together(self.kernel, self.noise, self.now, count, rates)
                else:
                    with unbroken(self):
                        self._run_compiled(self.compiled, Block(self.now.tick, count), adapt=False)
            return
        if ticks is None and unseen and rates is None and self.kernel.independent:
            self.now = advance_apart(self.kernel, self.noise, self.now, n)
            return
        left = torch.full((self.num_chains,), n, device=self.device)
        while bool((left > 0).any()) if ticks is None else ticks > 0:
            info = self._tick(adapt=adapt, active=None if ticks is not None else left > 0)
            if adapt:
                self._observe(unlink((None, self.position(), info)))
            if observe is not None:
                observe(info)
            if rates is not None:
                rates.append(info.acceptance_rate)
            if ticks is None:
                left = left - info.done.long()
            else:
                ticks -= 1

    # Adaptation, outside the ticks.

    @ticking
    def begin_adaptation(self) -> None:
        """Find a first step size and begin to adapt."""
        if self.adaptation is not None:
            now, own = self.now, self.adaptation.init(self.now.tuning, self.now.state)
            own, tuning = self.adaptation.begin(own, now.tuning, now.state, self._normal)
            self.now = now._replace(adaptation=own, tuning=tuning)

    @ticking
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

    @ticking
    def end_adaptation(self) -> None:
        """Freeze the tuning; no draw that began before is kept."""
        now, tuning = self.now, self.now.tuning
        if self.adaptation is not None and now.adaptation is not None:
            tuning = self.adaptation.finish(now.adaptation, tuning)
        state = self.kernel.restart(now.state)
        self.now = Now(now.tick, state, tuning, None, None, None, begun=now.tick, computed=now.computed)

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

    @ticking
    def put(self, tick: int, held: tuple[Tensor, ...] | None, tuning: Any) -> None:
        """Be at a tick of a run, which also tells what pays, where chains held this (see ``Kernel.held``), or where they are."""
        self._planned = tick
        state = self.kernel.renew(self.now.state) if held is None else self.kernel.resume(*held)
        self.now = Now(tick, state, tuning, None, None, None, begun=tick)

    @ticking
    def move(self, x: Tensor) -> None:
        """Put the chains at other points ``(chains, *event)``, keeping tuning and adaptation."""
        self.now = self.now._replace(state=self.kernel.init(x))
