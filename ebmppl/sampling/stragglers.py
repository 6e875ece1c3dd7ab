"""Ticks that chains with all their draws leave out, and make up for where a run goes on."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ebmppl.errors import SamplingWarning
from ebmppl.sampling.draws import Draws, Now
from ebmppl.sampling.parts import Parts
from ebmppl.sampling.places import Places
from ebmppl.sampling.unbroken import unbroken

if TYPE_CHECKING:
    from ebmppl.sampling.chains import Chains


def narrow(chains: Chains, active: Tensor) -> None:
    """Tick the ``active`` chains, in as few parts as hold them."""
    if isinstance(chains.compiled, Parts) and bool(active.any()):
        chains.compiled.narrow(active)


def ticked(now: Now, places: Places | None, begin: int, ticks: int) -> Now:
    """After so many ticks, from ``begin`` on, of the chains in these places; of all when None."""
    end = max(now.tick, begin + ticks)
    if places is None or now.counts is None:
        return now._replace(tick=end)
    own = torch.full_like(now.counts.finished, now.tick) if now.own is None else now.own
    own = own.index_fill(0, places.chains[places.used], begin + ticks)
    return now._replace(tick=end, own=None if int(own.min()) == end else own)


def begin_anew(chains: Chains, draws: Draws, kept: int) -> None:
    """With another energy: of the old one are the ``kept`` draws alone, and nothing of it is made up for.

    Warns:
        SamplingWarning: where there are draws of the old one.
    """
    counts = chains.now.counts
    if counts is None or not bool(counts.finished.any()):
        return
    chains.now = chains.now._replace(counts=draws.cut(counts, kept), log=None, own=None)
    told = "the energy is another one than at the last draw (new parameters or data): draws to come are of it"
    warnings.warn(told, SamplingWarning, stacklevel=4)


@contextmanager
def caught_up(chains: Chains, draws: Draws, report: Callable[[], None]) -> Iterator[None]:
    """Within it all chains have made all ticks until now, and some may leave out those to come.

    What they left out before they draw now, as they would have beside the others.
    """
    try:
        while (own := chains.now.own) is not None:
            first = int(own.min())
            behind, later = own == first, own[own > first]
            last = min(first + chains._most_ticks(), int(later.min()) if len(later) else chains.now.tick)
            with unbroken(chains):
                if isinstance(chains.compiled, Parts):
                    chains.compiled.arrange(chains.compiled.pack(behind))
                    log = chains._run_compiled(chains.compiled, last - first, adapt=False, first=first)
                    chains._take_in(draws, log, adapt=False)
                else:
                    _eagerly(chains, draws, behind, first, last)
            report()
        with unbroken(chains):
            _widen(chains)
        yield
    finally:
        with unbroken(chains):
            _widen(chains)


def _widen(chains: Chains) -> None:
    if isinstance(chains.compiled, Parts):
        chains.compiled.arrange(None)


def _eagerly(chains: Chains, draws: Draws, behind: Tensor, first: int, last: int) -> None:
    end, own = chains.now.tick, chains.now.own
    assert own is not None
    for tick in range(first, last):
        chains.now = chains.now._replace(tick=tick)
        chains._tick(adapt=False, log=True, active=behind)
    chains._harvest(draws, adapt=False)
    own = own.masked_fill(behind, last)
    chains.now = chains.now._replace(tick=end, own=None if int(own.min()) == end else own)
