"""The in-place samplers of torch in a form that ``torch.func.vmap`` can batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


def _normal(x: Tensor, mean: float = 0.0, std: float = 1.0, **_: Any) -> Tensor:
    return mean + std * torch.randn_like(x)


def _uniform(x: Tensor, low: float = 0.0, high: float = 1.0, **_: Any) -> Tensor:
    return low + (high - low) * torch.rand_like(x)


def _exponential(x: Tensor, lambd: float = 1.0, **_: Any) -> Tensor:
    return -torch.log1p(-torch.rand_like(x)) / lambd


def _cauchy(x: Tensor, median: float = 0.0, sigma: float = 1.0, **_: Any) -> Tensor:
    return median + sigma * torch.tan(math.pi * (torch.rand_like(x) - 0.5))


_SAMPLERS: dict[Any, Callable[..., Tensor]] = {
    Tensor.normal_: _normal,
    Tensor.uniform_: _uniform,
    Tensor.exponential_: _exponential,
    Tensor.cauchy_: _cauchy,
}


class VmappableNoise(TorchFunctionMode):
    """Within it, ``torch.empty(shape).normal_()`` and its kind work under vmap with randomness="different".

    Most of torch's distributions draw so, and vmap refuses to write batched numbers into a tensor without a batch. The
    numbers come back as a new tensor; the old one becomes NaN, so that code which goes on with it can't go unnoticed.
    """

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        sampler = _SAMPLERS.get(func)
        if sampler is None:
            return func(*args, **(kwargs or {}))
        args[0].fill_(math.nan)
        return sampler(*args, **(kwargs or {}))
