"""What ``Blocks`` is made of: the energy of some sites given the others, and the adaptation of several kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ebmppl.energies.base import Energy
from ebmppl.energies.discrete import Conditionals, discrete, levels_of
from ebmppl.kernels.adaptation import Adaptation, AdaptationState, Drawn
from ebmppl.kernels.discrete import ByEnergies
from ebmppl.kernels.gradients import Gradient
from ebmppl.kernels.records import joined, part, with_part


class Given(Energy):
    """The energy of some sites given the others, whose values, one per row, ``at`` sets.

    Args:
        energy: over all sites, in the coordinates in which chains move.
        names: the sites.
        gradient: of the energy in all coordinates.
    """

    def __init__(self, energy: Energy, names: Sequence[str], gradient: Gradient) -> None:
        super().__init__({name: energy.sites[name] for name in names}, {n: energy.site_support(n) for n in names})
        self.energy, self._gradient = energy, gradient
        index = energy.unpack(torch.arange(energy.event_shape.numel()))
        self.columns = torch.cat([index[name].reshape(-1) for name in names])
        self.integers = levels_of(self).dtype if discrete(self) else None
        self._part: _Part | None = None
        self._whole: Tensor | None = None

    def move(self, device: torch.device) -> None:
        """Have what says where these sites are on a device."""
        self.columns = self.columns.to(device)
        if self._part is not None:
            self._part.move(device)

    @contextmanager
    def at(self, whole: Tensor) -> Iterator[None]:
        """Rows have these values ``(rows, coordinates of all sites)`` until the end of the block."""
        self._whole = whole
        try:
            yield
        finally:
            self._whole = None

    def own(self, whole: Tensor) -> Tensor:
        """These sites' part ``(rows, *event)`` of whole points, discrete ones as integers."""
        x = whole.index_select(-1, self.columns.to(whole.device))
        return x if self.integers is None else x.to(self.integers)

    def filled(self, whole: Tensor, x: Tensor) -> Tensor:
        """Whole points with these sites' part replaced by ``(rows, ..., *event)``."""
        return whole.index_copy(-1, self.columns.to(whole.device), x.to(whole.dtype))

    def _rows(self, x: Tensor) -> Tensor:
        whole = self._whole
        if whole is None or len(whole) != len(x):
            rows = "none" if whole is None else str(len(whole))
            raise ValueError(f"expected as many rows as have values of the other sites, {rows}, got {len(x)}")
        between = x.dim() - 2
        return whole.view(len(whole), *[1] * between, -1).expand(*x.shape[:-1], -1) if between else whole

    def forward(self, x: Tensor) -> Tensor:
        """Energies ``(rows, ...)`` in nats of all sites."""
        return self.energy(self.filled(self._rows(x), x))

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Energies, and gradients in these sites."""
        whole = self._rows(x)
        if not whole.is_floating_point():  # all sites are discrete, and x the real point at one of its levels
            whole = whole.to(x.dtype)
        value, grad = self._gradient(self.filled(whole, x))
        return value, grad.index_select(-1, self.columns.to(grad.device))

    def conditionals(self) -> Conditionals | None:
        """For discrete sites those that the whole energy knows, else by energies."""
        if self.integers is None:
            return None
        whole = self.energy.conditionals() if discrete(self.energy) else None
        if whole is None:
            return ByEnergies(_Repeated(self), levels_of(self))
        self._part = _Part(whole, self)
        return self._part


class _Repeated(Energy):
    """``Given`` at several points for each row, one after another: ``(rows * several, *event)``."""

    def __init__(self, given: Given) -> None:
        super().__init__(given.sites, given.support)
        self._given = (given,)  # in a tuple: no module of ours

    def forward(self, x: Tensor) -> Tensor:
        (given,) = self._given
        assert given._whole is not None  # within ``at``
        return given(x.view(len(given._whole), -1, x.shape[-1])).flatten()


class _Part:
    """Conditionals of some sites among those of all."""

    def __init__(self, inside: Conditionals, given: Given) -> None:
        self.inside, self.given = inside, given
        place = {int(c): i for i, c in enumerate(given.columns)}
        members = [[(k, place[int(c)]) for k, c in enumerate(b) if int(c) in place] for b in inside.blocks]
        self._used = [(b, torch.tensor([k for k, _ in m])) for b, m in enumerate(members) if m]
        self._blocks = [torch.tensor([i for _, i in m]) for m in members if m]

    def move(self, device: torch.device) -> None:
        """See ``Given``."""
        self._used = [(b, columns.to(device)) for b, columns in self._used]
        self._blocks = [members.to(device) for members in self._blocks]

    @property
    def blocks(self) -> Sequence[Tensor]:
        return self._blocks

    def logits(self, block: int, x: Tensor) -> Tensor:
        b, columns = self._used[block]
        return self.inside.logits(b, self.given.filled(self.given._rows(x), x)).index_select(1, columns.to(x.device))


class _Nothing(NamedTuple):
    """Of a kernel that adapts nothing."""


class BlocksAdaptation(Adaptation):
    """Each block's own adaptation, by what it accepted in each draw of all blocks.

    Args:
        inner: by block; None where its kernel adapts nothing.
        energies: by block.
        tuning: one block's of a joint tuning.
        at: of a block, its kernel's state at whole points.
    """

    def __init__(
        self,
        inner: Sequence[Adaptation | None],
        energies: Sequence[Given],
        tuning: Callable[[Any, int], Any],
        at: Callable[[int, Tensor], Any],
    ) -> None:
        self.inner, self.energies, self.tuning, self.at = list(inner), energies, tuning, at

    def init(self, tuning: Any, state: Any) -> AdaptationState:
        """Nothing seen yet."""
        own = [
            AdaptationState(_Nothing(), None)
            if a is None
            else a.init(self.tuning(tuning, i), self.at(i, state.position))
            for i, a in enumerate(self.inner)
        ]
        self._kinds = [type(inside.averaging) for inside in own]
        return self._join(own)

    def _join(self, own: Sequence[AdaptationState]) -> AdaptationState:
        parts = [inside.averaging for inside in own]
        return AdaptationState(joined("BlocksAveraging", parts), tuple(inside.draws for inside in own))

    def _split(self, own: AdaptationState) -> list[AdaptationState]:
        return [AdaptationState(part(own.averaging, i, k), own.draws[i]) for i, k in enumerate(self._kinds)]

    def update(self, averaging: Any, tuning: Any, info: Any) -> tuple[Any, Any]:
        """By the rates of draws that are complete."""
        for i, a in enumerate(self.inner):
            if a is None:
                continue
            of_block = Drawn(info.done, info.acceptance_rates[:, i])
            inside, new = a.update(part(averaging, i, self._kinds[i]), self.tuning(tuning, i), of_block)
            averaging, tuning = with_part(averaging, i, inside), with_part(tuning, i, new)
        return averaging, tuning

    def observe(self, draws: Any, x: Tensor, counts: Tensor) -> Any:
        """Each its own coordinates."""
        return tuple(
            d if a is None else a.observe(d, energy.own(x), counts)
            for a, d, energy in zip(self.inner, draws, self.energies, strict=True)
        )

    def begin(self, own: AdaptationState, tuning: Any, state: Any, normal: Callable[[], Tensor]) -> tuple[Any, Any]:
        """Each kernel's search for a step size, the other sites at the last draws."""
        parts = self._split(own)
        for i, a in enumerate(self.inner):
            if a is None:
                continue
            energy, inside = self.energies[i], self.at(i, state.position)
            draw = partial(_columns, normal, energy.columns.to(state.position.device))
            with energy.at(state.position):
                parts[i], new = a.begin(parts[i], self.tuning(tuning, i), inside, draw)
            tuning = with_part(tuning, i, new)
        return self._join(parts), tuning

    def end_window(self, own: AdaptationState, tuning: Any, *, metric: bool) -> tuple[AdaptationState, Any]:
        """Each its own metric."""
        parts = self._split(own)
        for i, a in enumerate(self.inner):
            if a is not None:
                parts[i], new = a.end_window(parts[i], self.tuning(tuning, i), metric=metric)
                tuning = with_part(tuning, i, new)
        return self._join(parts), tuning

    def finish(self, own: AdaptationState, tuning: Any) -> Any:
        """Each its own frozen tuning."""
        for i, (a, inside) in enumerate(zip(self.inner, self._split(own), strict=True)):
            if a is not None:
                tuning = with_part(tuning, i, a.finish(inside, self.tuning(tuning, i)))
        return tuning


def _columns(normal: Callable[[], Tensor], columns: Tensor) -> Tensor:
    return normal().index_select(1, columns)
