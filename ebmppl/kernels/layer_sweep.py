"""Gibbs sweeps of a model of two layers, each given the other; hidden bits are forgotten, or part of the points."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ebmppl.energies.discrete import Layers, Levels
from ebmppl.kernels.base import Noise, NoiseSpec
from ebmppl.kernels.discrete import draw_level
from ebmppl.kernels.words import KEYS, bits_by_word, labels, uniform_of, upper_by_word, words


class LayerState(NamedTuple):
    """Visible units."""

    visible: Tensor  # (chains, coordinates) at the energy's dtype, ready for a product


class JointState(NamedTuple):
    """Both layers, and what the last sweep drew the hidden one by."""

    visible: Tensor  # (chains, visible) at the energy's dtype, ready for a product
    hidden: Tensor  # (chains, hidden) at that dtype
    logits: Tensor  # of the hidden bits given the visible units; before the first sweep 0, and not looked at


class TwoLayers:
    """What both sweeps share.

    Args:
        layers: the two conditionals.
        levels: of the visible units.
        dtype: of the energy.
    """

    def __init__(self, layers: Layers, levels: Levels, dtype: torch.dtype) -> None:
        self.layers, self.levels, self.dtype = layers, levels, dtype
        number = layers.num_hidden
        self._of_hidden, self._of_visible = labels(number), labels(len(levels.table), number)
        self._bits = levels.most == 2 and bool((levels.table == torch.arange(2)).all())

    def move(self, device: torch.device) -> None:
        """Have what sweeps look up on the chains' device: a sweep that copied it would wait for a GPU."""
        self.levels = self.levels.to(device)
        self._of_hidden, self._of_visible = self._of_hidden.to(device), self._of_visible.to(device)

    def noise(self) -> dict[str, NoiseSpec]:
        """Two keys."""
        return {"keys": KEYS}

    def hidden(self, logits: Tensor, noise: Noise) -> Tensor:
        """Hidden bits by their log-odds."""
        return bits_by_word(logits, _words(self._of_hidden, noise, logits.device))

    def visible(self, h: Tensor, noise: Noise) -> Tensor:
        """Visible units given hidden bits."""
        logits, word = self.layers.visible_logits(h), _words(self._of_visible, noise, h.device)
        if logits.dim() == 2 and self._bits:
            return bits_by_word(logits, word)
        values = self.levels.table.to(h.device, h.dtype)
        if logits.dim() == 2:
            return torch.where(upper_by_word(logits, word), values[:, 1], values[:, 0])
        drawn = draw_level(logits, uniform_of(word, logits.dtype))
        return values.gather(1, drawn.mT).mT.contiguous()


def _words(label: Tensor, noise: Noise, device: torch.device) -> Tensor:
    """For the units of one layer; both layers' together would not stay in cache."""
    first, second = noise["keys"].unsqueeze(2).unbind(1)
    return words(label.to(device), first, second)


class LayerSweep(TwoLayers):
    """Both layers once: two matrix products, their epilogues fused when compiled."""

    def init(self, x: Tensor) -> LayerState:
        """Of flat points ``(chains, coordinates)``."""
        return LayerState(x.to(self.dtype))

    def points(self, state: LayerState, dtype: torch.dtype) -> Tensor:
        """Flat points ``(chains, coordinates)``."""
        return state.visible.to(dtype)

    def sweep(self, state: LayerState, noise: Noise) -> LayerState:
        """Hidden bits, which are forgotten, then visible units."""
        h = self.hidden(self.layers.hidden_logits(state.visible), noise)
        return LayerState(self.visible(h, noise))

    def energies(self, state: LayerState) -> Tensor:
        """``(chains,)`` in nats: one more product."""
        return self.layers.free_energy(state.visible)


class JointSweep(TwoLayers):
    """The visible units given the hidden bits of the points, then the other way: two matrix products.

    In this order what the hidden bits are drawn by is that of the new visible units, and known at the end.

    Args:
        layers: the two conditionals.
        levels: of the visible units and the hidden bits.
        dtype: of the energy.
    """

    def __init__(self, layers: Layers, levels: Levels, dtype: torch.dtype) -> None:
        number = len(levels.table) - layers.num_hidden
        super().__init__(layers, levels._replace(table=levels.table[:number], counts=levels.counts[:number]), dtype)

    def init(self, x: Tensor, *, own: bool = True) -> JointState:
        """Of flat points ``(chains, coordinates)``; with memory of its ``own``, or where x will do x's."""
        parts = x.split([len(self.levels.table), self.layers.num_hidden], 1)
        v, h = (part.to(self.dtype) for part in parts)
        if not own:
            return JointState(v, h, h)  # whose last field nobody looks at
        return JointState(v.contiguous(), h.contiguous(), torch.zeros_like(h))

    def points(self, state: JointState, dtype: torch.dtype) -> Tensor:
        """Flat points ``(chains, coordinates)``."""
        return torch.cat([state.visible.to(dtype), state.hidden.to(dtype)], 1)

    def sweep(self, state: JointState, noise: Noise) -> JointState:
        """Visible units, then hidden bits."""
        half = self.half(state, noise)
        return half._replace(hidden=self.hidden(half.logits, noise))

    def half(self, state: JointState, noise: Noise) -> JointState:
        """The hidden bits are not drawn yet: they are those that the visible units were drawn by."""
        v = self.visible(state.hidden, noise)
        return JointState(v, state.hidden, self.layers.hidden_logits(v))

    def energies(self, state: JointState) -> Tensor:
        """Of both layers ``(chains,)`` in nats, after a sweep: no product."""
        free = self.layers.free_energy(state.visible, state.logits)
        return free + (softplus(state.logits, threshold=40.0) - state.logits * state.hidden).sum(1)

    def known(self, state: JointState) -> dict[str, Tensor]:
        """The visible units at the energy's dtype, and the hidden bits' log-odds given these."""
        return {"visible": state.visible, "hidden_logits": state.logits}
