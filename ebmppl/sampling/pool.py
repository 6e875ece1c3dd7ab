"""What warm-up adapts after each tick of all chains, compiled by itself."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ebmppl.energies.function import same_energy
from ebmppl.kernels.adaptation import Adaptation
from ebmppl.kernels.gradients import TRACING
from ebmppl.sampling.engines import Engine, Refused, compile_traced, get, layouts, put
from ebmppl.sampling.program import Log, make_graph
from ebmppl.sampling.replay import NotReplayable, Replay
from ebmppl.sampling.scopes import using_threads

_KEPT = 8  # adaptations


class Unsuited(Exception):
    """The chains have to tick as a whole."""


class _Known(NamedTuple):
    """What a kernel's adaptation was compiled to."""

    engine: Engine | None  # None where nothing adapts
    constants: list[Tensor]
    changed: list[int]


_known: OrderedDict[Hashable, _Known] = OrderedDict()  # by kernel, settings and shapes: nothing is even traced


class Pool:
    """What the adaptation does with the infos of all chains after a tick, compiled.

    Args:
        kernel: its identity.
        adaptation: the kernel's.
        tuning: which it writes into.
        used: what ticks take of it, see ``Adaptation.own_steps``; it writes into these, too.
        averaging: where it begins; copied.
        log: which the infos are in.
        info: of a tick.

    Raises:
        Refused: where it is not what the adaptation does.
        Unsuited: where its calls can't be made without Python.
    """

    def __init__(
        self, kernel: Hashable, adaptation: Adaptation, tuning: Any, used: Any, averaging: Any, log: Log, info: Any
    ) -> None:
        self._kernel, self._adaptation, self._log, self._info = kernel, adaptation, log, info
        self._tuning, self._used, self._first, self._form = tuning, used, averaging, type(averaging)
        own = [leaf for leaf, common in zip(used, tuning, strict=True) if leaf is not common]
        self._inputs = [leaf.clone() for leaf in averaging] + [torch.zeros(1, dtype=torch.int64)]
        self._given = len(self._inputs)
        self._inputs += [*tuning, *own, *log.buffers[1:]]
        self._made: _Known | None = None
        self.calls: Replay | None = None

    def compile(self) -> None:
        """Find its engine."""
        shapes = layouts(self._inputs)
        key = (self._kernel, type(self._adaptation), shapes)
        self._made = self._made or get(_known, key)
        if self._made is None:
            self._made = self._compiled(shapes)
            put(_known, key, _KEPT, self._made)

    def _compiled(self, shapes: Hashable) -> _Known:
        tuning, info, given, changed = self._tuning, self._info, self._given, list[int]()
        own = len(self._inputs) - given - len(tuning) - len(self._log.buffers[1:])

        def run(*tensors: Tensor) -> list[Tensor]:
            row, rest = tensors[given - 1], tensors[given:]
            before, of_kernel = self._form(*tensors[: given - 1]), type(tuning)(*rest[: len(tuning)])
            logged = self._log.info(row, type(info), rest[len(tuning) + own :])
            after, adapted = self._adaptation.update(before, of_kernel, logged)
            steps = [a for a, b in zip(self._adaptation.own_steps(after, adapted), adapted, strict=True) if a is not b]
            for old, new in zip([*of_kernel, *rest[len(tuning) :][:own]], [*adapted, *steps], strict=True):
                if new is not old:
                    old.copy_(new)
            outputs = [*after, row + 1]
            changed[:] = [i for i, (a, b) in enumerate(zip(outputs, tensors, strict=False)) if a is not b]
            return [outputs[i] for i in changed]

        with TRACING:
            # tracing computes, and what it writes into are the run's own
            traced = make_graph(run, [tensor.clone() for tensor in self._inputs], lambda: changed)
            if len(changed) == 1:  # the row
                return _Known(None, [], changed)
            engine = compile_traced(traced, [*self._inputs, *traced.constants], shapes, 1)
        return _Known(engine, traced.constants, changed)

    def prepare(self) -> None:
        """Have its calls at hand, tried, if there are any."""
        self.compile()
        assert self._made is not None
        engine, constants, changed = self._made
        if engine is None:
            return
        with torch.no_grad(), using_threads(1):
            try:
                self.calls = Replay(engine.run, [*self._inputs, *constants], changed)
            except NotReplayable:
                raise Unsuited from None
            self._try(self.calls)

    @property
    def averaging(self) -> Any:
        """Of the adaptation; memory that the next ticks change."""
        assert self.calls is not None  # or there is no pool
        return self._form(*self.calls.inputs[: len(self._first)])

    def begin(self, made: int) -> None:
        """Let the next tick's row of the log be ``made``."""
        assert self.calls is not None
        self.calls.inputs[len(self._first)].fill_(made)

    def _try(self, calls: Replay) -> None:
        """Compare with what the adaptation itself does: with a tick's infos, and where every chain has finished a draw."""
        tuning = [value.clone() for value in self._tuning]
        for done in (self._info.done, torch.ones_like(self._info.done)):
            info = self._info._replace(done=done)
            for buffer, group in zip(self._log.buffers[1:], self._log.groups, strict=True):
                buffer[0] = torch.stack([info[i] for i in group])
            wanted = self._adaptation.update(self._first, type(self._tuning)(*tuning), info)
            copy_all(self.averaging, self._first)
            self.begin(0)
            calls(1)
            found = [*self.averaging, *self._tuning, *self._used]
            pairs = zip(found, [*wanted[0], *wanted[1], *self._adaptation.own_steps(*wanted)], strict=True)
            if not all(same_energy(found, value) for found, value in pairs):
                raise Refused("the compiled adaptation differs from the eager one")
            copy_all(self._tuning, tuning)
        copy_all(self.averaging, self._first)


def copy_all(mine: Sequence[Tensor], given: Sequence[Tensor]) -> None:
    """Values, where they are not the same tensors already."""
    for own, new in zip(mine, given, strict=True):
        if own is not new:
            own.copy_(new)
