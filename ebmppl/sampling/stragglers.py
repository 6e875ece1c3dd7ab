"""Chains at their own pace: those with all their draws leave out ticks, and make them where a run goes on."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ebmppl.errors import SamplingWarning
from ebmppl.sampling.draws import Draws, Now
from ebmppl.sampling.parts import Parts

if TYPE_CHECKING:
    from ebmppl.sampling.chains import Chains


class Block(NamedTuple):
    """Ticks that some chains make together."""

    first: int  # number of the first one
    ticks: int
    chains: Tensor | None = None  # (chains,) bool; all when None


def next_block(chains: Chains, wanted: int, most: int) -> Block:
    """Until every chain has ``wanted`` transitions: ticks of those that are behind all others which lack some.

    Chains that have theirs make no more ticks; where their ticks are computed all the same, not before they have a quarter
    more. A chain's noise is that of its own ticks, so that it draws what it would have drawn beside the others.
    """
    counts, now, kernel = chains.now.counts, chains.now, chains.kernel
    assert counts is not None  # set when a phase begins
    finished = counts.finished.cpu()
    lacks = finished < wanted
    if not bool(lacks.any()):
        return Block(now.tick, 0)
    own = torch.full_like(finished, now.tick) if now.own is None else now.own.cpu()
    first = int(own[lacks].min())
    most_drawn = wanted if isinstance(chains.compiled, Parts) else wanted + wanted // 4
    here, later = (own == first) & (finished < most_drawn), own[lacks & (own > first)]
    drawn = finished[here & lacks]
    ticks = wanted - int(drawn.min())  # at most one draw a tick
    if kernel.in_step:
        ticks = kernel.ticks_per_draw * ticks - first % kernel.ticks_per_draw
    else:  # less than their pace so far tells, so that few ticks are made that nobody needs
        made, elapsed = int(drawn.sum()), first - now.begun
        # a first draw takes as long as it has taken, for all one knows
        left = wanted * len(drawn) - made if made else 1
        ticks = max(ticks, 3 * left * elapsed // (4 * max(1, made)))
    ticks = min(most, ticks)
    if len(later):
        ticks = min(ticks, int(later.min()) - first)
    return Block(first, ticks, None if bool(here.all()) else here.to(counts.finished.device))


def ticked(now: Now, block: Block, width: int) -> Now:
    """After these ticks, which were computed of so many chains."""
    end, own = block.first + block.ticks, None
    if block.chains is not None:
        own = now.own
        if own is None:
            own = torch.full_like(block.chains, now.tick, dtype=torch.int64)
        own = own.masked_fill(block.chains, end)
    return now._replace(tick=max(now.tick, end), own=own, computed=now.computed + width * block.ticks)


def begin_anew(chains: Chains, draws: Draws, kept: int) -> None:
    """Where the energy is another one than at the last draws: be at the same points under the one that is.

    Of the old one are the ``kept`` draws alone, and no tick that was left out is made. State and counts change together:
    an interrupt while compiling for the new one can't leave surplus draws of the old one to be taken for the new one's.

    Warns:
        SamplingWarning: where there are draws of the old one.
    """
    now, kernel, counts = chains.now, chains.kernel, chains.now.counts
    assert counts is not None  # set when a phase begins
    if not kernel.outdated(now.state):
        return
    kernel.prepare(chains.position(), values=True, many=False)  # what was traced of the old one
    chains.compiled = None  # to be tried anew
    chains.now = now._replace(state=kernel.renew(now.state), counts=draws.cut(counts, kept), log=None, own=None)
    if bool(counts.finished.any()):
        told = "the energy is another one than at the last draw (new parameters or data): draws to come are of it"
        warnings.warn(told, SamplingWarning, stacklevel=4)
