"""Intra-op threads: one for small work, where a second costs more than it brings; the user's setting returns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

PASSES = 64  # of an eager tick over the positions
_SMALL = 1 << 21  # numbers that a tick makes; under it a second thread costs more than it brings


def threads(work: int | None = None) -> int:
    """How many threads for a tick that makes so many numbers; the user's setting when None."""
    setting = torch.get_num_threads()
    return setting if work is None or work >= _SMALL else 1


@contextmanager
def using_threads(use: int) -> Iterator[None]:
    """Compute with so many threads."""
    before = torch.get_num_threads()
    if use != before:
        torch.set_num_threads(use)
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)
