"""Blocks of ticks that are made whole: half of one is no state that a run could go on from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ebmppl.errors import SamplingError
from ebmppl.sampling.scopes import uninterrupted

if TYPE_CHECKING:
    from ebmppl.sampling.chains import Chains


@contextmanager
def unbroken(chains: Chains) -> Iterator[None]:
    """Ctrl-C waits until the block is made; whatever else stops it leaves the chains ``broken``."""
    with uninterrupted():
        try:
            yield
        except BaseException:
            chains.broken = True
            raise


def require_unbroken(chains: Chains) -> None:
    """Raise ``SamplingError`` for chains that were stopped within a block."""
    if chains.broken:
        raise SamplingError(
            "an exception stopped the chains within a block of ticks, and their state is no point of the run: "
            "the draws so far can be read, but no more be added; begin again with run(), or from a saved run"
        )
