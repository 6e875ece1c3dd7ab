"""What a compiled tick makes of operations of torch: Inductor's decompositions, but for a few."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ebmppl.kernels.tracer import REAL_ZEROS

aten = torch.ops.aten


@cache
def decompositions() -> dict[Any, Callable[..., Any]]:
    """By operation."""
    from torch._inductor.decomposition import select_decomp_table

    own: dict[Any, Callable[..., Any]] = {
        **REAL_ZEROS,
        aten.softplus.default: softplus,
        aten.softplus_backward.default: softplus_backward,
    }
    return {**select_decomp_table(), **own}


def softplus(x: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """Log(1 + exp(beta x)) / beta, x itself above the threshold, with a logarithm of numbers from 1 to 2 only.

    That takes half the time, see ``fast_math.py``, and the exponential is the gradient's, too.
    """
    z = _scaled(x, beta)
    value = z.clamp_min(0.0) + torch.exp(-z.abs()).log1p()
    value = value if beta == 1 else value / beta
    return value if _rounded_off(x, threshold) else torch.where(z > threshold, x, value)


def softplus_backward(grad: Tensor, x: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """The gradient of ``softplus`` times ``grad``."""
    z = _scaled(x, beta)
    small = torch.exp(-z.abs())
    rate = torch.where(z < 0, small, 1.0) / (small + 1.0)
    return grad * rate if _rounded_off(x, threshold) else torch.where(z > threshold, grad, grad * rate)


def _scaled(x: Tensor, beta: float) -> Tensor:
    return x if beta == 1 else x * beta


def _rounded_off(x: Tensor, threshold: float) -> bool:
    """Whether the formulas give beyond the threshold what is to be given there."""
    return x.dtype == torch.float32 and threshold >= 17  # 1 + exp(-17) is 1
