"""Losses with random numbers that are a function of a seed and the step."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ebmppl.arguments import seed_of
from ebmppl.energies.base import Energy, dtype_and_device
from ebmppl.losses.base import BoundLoss
from ebmppl.sampling.noise import block_seeds


class SeededLoss(BoundLoss):
    """Abstract: a bound loss that draws random numbers anew at each step.

    Attributes:
        seed: of the random numbers, which are a function of the seed and the step.
    """

    seed: Tensor

    def __init__(self, energy: Energy, guide: Any, seed: int | None = None) -> None:
        super().__init__(energy, guide)
        self.register_buffer("seed", torch.tensor(seed_of(seed)))
        self._generator = torch.Generator(dtype_and_device(energy)[1])

    def seeded(self, device: torch.device) -> torch.Generator:
        """The generator of this step, at its beginning."""
        if self._generator.device != device:
            self._generator = torch.Generator(device)
        return self._generator.manual_seed(block_seeds(_start(int(self.seed)), int(self.step), 1)[0])

    def __getstate__(self) -> dict[str, Any]:
        """Generators don't travel, and this one is seeded anew at each step."""
        return {**self.__dict__, "_generator": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """See ``__getstate__``."""
        super().__setstate__(state)
        self._generator = torch.Generator(self.seed.device)


@lru_cache(maxsize=64)
def _start(seed: int) -> int:
    return block_seeds(seed, 0, 1)[0]


def normals(shape: Sequence[int], like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal numbers at the dtype and device of ``like``."""
    return torch.randn(tuple(shape), dtype=like.dtype, device=like.device, generator=generator)


def uniforms(rows: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """Numbers ``(rows,)`` in [0, 1) at the dtype and device of ``like``."""
    return torch.rand(rows, dtype=like.dtype, device=like.device, generator=generator)
