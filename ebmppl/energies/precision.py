"""Where products are written by hand, and autocast is off."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def as_given(like: Tensor) -> AbstractContextManager[object]:
    """Autocast off on the device of ``like``: derivatives by hand take tensors of one dtype, and keep it."""
    device = like.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
