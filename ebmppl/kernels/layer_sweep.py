"""Gibbs sweeps of a model with hidden bits summed out: the hidden layer given the visible one, then the other way."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ebmppl.energies.discrete import Layers, Levels
from ebmppl.kernels.base import Noise, NoiseSpec
from ebmppl.kernels.discrete import draw_level
from ebmppl.kernels.words import KEYS, labels, uniform_of, upper_by_word, words


class LayerState(NamedTuple):
    """Visible units."""

    visible: Tensor  # (chains, coordinates) at the energy's dtype, ready for a product


class LayerSweep:
    """Both layers once: two matrix products, their epilogues fused when compiled.

    Args:
        layers: the two conditionals.
        levels: of the visible units.
        dtype: of the energy.
    """

    def __init__(self, layers: Layers, levels: Levels, dtype: torch.dtype) -> None:
        self.layers, self.levels, self.dtype = layers, levels, dtype
        number = layers.num_hidden
        self._labels = labels(number + len(levels.table)).split([number, len(levels.table)])

    def noise(self) -> dict[str, NoiseSpec]:
        """Two keys."""
        return {"keys": KEYS}

    def init(self, x: Tensor) -> LayerState:
        """Of flat points ``(chains, coordinates)``."""
        return LayerState(x.to(self.dtype))

    def points(self, state: LayerState, dtype: torch.dtype) -> Tensor:
        """Flat points ``(chains, coordinates)``."""
        return state.visible.to(dtype)

    def sweep(self, state: LayerState, noise: Noise) -> LayerState:
        """Hidden bits, which are forgotten, then visible units."""
        v, (first, second) = state.visible, noise["keys"].unsqueeze(2).unbind(1)
        of_hidden, of_visible = (words(label.to(v.device), first, second) for label in self._labels)
        h = upper_by_word(self.layers.hidden_logits(v), of_hidden).to(v.dtype)
        logits = self.layers.visible_logits(h)
        values = self.levels.table.to(v.device, v.dtype)
        if logits.dim() == 2:
            return LayerState(torch.where(upper_by_word(logits, of_visible), values[:, 1], values[:, 0]))
        drawn = draw_level(logits, uniform_of(of_visible, logits.dtype))
        return LayerState(values.gather(1, drawn.mT).mT.contiguous())

    def energies(self, state: LayerState) -> Tensor:
        """``(chains,)`` in nats: one more product."""
        return self.layers.free_energy(state.visible)
