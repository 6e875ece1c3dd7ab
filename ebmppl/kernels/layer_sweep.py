"""Gibbs sweeps of a model of two layers, each given the other; hidden bits are forgotten, or part of the points."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ebmppl.energies.discrete import Layers, Levels
from ebmppl.kernels.base import Noise, NoiseSpec
from ebmppl.kernels.discrete import draw_level
from ebmppl.kernels.words import KEYS, labels, uniform_of, upper_by_word, words


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
        self._sizes = [layers.num_hidden, len(levels.table)]
        self._labels = labels(sum(self._sizes))
        self._bits = levels.most == 2 and bool((levels.table == torch.arange(2)).all())

    def noise(self) -> dict[str, NoiseSpec]:
        """Two keys."""
        return {"keys": KEYS}

    def words(self, noise: Noise, device: torch.device) -> tuple[Tensor, Tensor]:
        """For the hidden bits, and for the visible units."""
        first, second = noise["keys"].unsqueeze(2).unbind(1)
        of_hidden, of_visible = words(self._labels.to(device), first, second).split(self._sizes, 1)
        return of_hidden, of_visible

    def visible(self, h: Tensor, word: Tensor) -> Tensor:
        """Visible units given hidden bits."""
        logits = self.layers.visible_logits(h)
        if logits.dim() == 2 and self._bits:
            return upper_by_word(logits, word).to(h.dtype)
        values = self.levels.table.to(h.device, h.dtype)
        if logits.dim() == 2:
            return torch.where(upper_by_word(logits, word), values[:, 1], values[:, 0])
        drawn = draw_level(logits, uniform_of(word, logits.dtype))
        return values.gather(1, drawn.mT).mT.contiguous()


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
        v = state.visible
        of_hidden, of_visible = self.words(noise, v.device)
        h = upper_by_word(self.layers.hidden_logits(v), of_hidden).to(v.dtype)
        return LayerState(self.visible(h, of_visible))

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

    def init(self, x: Tensor) -> JointState:
        """Of flat points ``(chains, coordinates)``."""
        parts = x.split([len(self.levels.table), self.layers.num_hidden], 1)
        v, h = (part.to(self.dtype).contiguous() for part in parts)
        return JointState(v, h, torch.zeros_like(h))

    def points(self, state: JointState, dtype: torch.dtype) -> Tensor:
        """Flat points ``(chains, coordinates)``."""
        return torch.cat([state.visible.to(dtype), state.hidden.to(dtype)], 1)

    def sweep(self, state: JointState, noise: Noise) -> JointState:
        """Visible units, then hidden bits."""
        of_hidden, of_visible = self.words(noise, state.hidden.device)
        v = self.visible(state.hidden, of_visible)
        logits = self.layers.hidden_logits(v)
        return JointState(v, upper_by_word(logits, of_hidden).to(v.dtype), logits)

    def energies(self, state: JointState) -> Tensor:
        """Of both layers ``(chains,)`` in nats, after a sweep: no product."""
        free = self.layers.free_energy(state.visible, state.logits)
        return free + (softplus(state.logits, threshold=40.0) - state.logits * state.hidden).sum(1)

    def known(self, state: JointState) -> dict[str, Tensor]:
        """The visible units at the energy's dtype, and the hidden bits' log-odds given these."""
        return {"visible": state.visible, "hidden_logits": state.logits}
