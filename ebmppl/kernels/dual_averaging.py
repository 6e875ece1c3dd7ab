"""Dual averaging of the step size, pooled over all chains, and the smaller steps of chains that it leaves behind."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ebmppl.kernels.accept import some
from ebmppl.kernels.pooling import pooled_sum

LEAP = 10.0  # it begins by trying this multiple of a step size
SHARES = 2  # most of its own shares that a chain has in what is pooled
HOPELESS = 0.01  # acceptance rates below it are of draws whose step was far too large
# a limit is halved and trebled, and begins at 6 steps: three such draws in a row, and it is the smaller one; no sequence of
# these factors makes it equal to the step
_DOWN, _UP, _SPARE = 2.0, 3.0, 6.0


class DualAveraging(NamedTuple):
    """State of Nesterov dual averaging on log step size (Hoffman and Gelman 2014, section 3.2)."""

    center: Tensor  # mu: log step size that is shrunk towards
    error: Tensor  # H-bar: average of target - acceptance
    log_average: Tensor  # the averaged iterate, log step size
    updates: Tensor
    rate_sum: Tensor  # (chains,), acceptance rates of draws that wait for an update
    waiting: Tensor  # (chains,), how many these are
    limit: Tensor  # (chains,), largest step size of each chain, see ``limited``


def dual_averaging(step_size: Tensor, chains: int) -> DualAveraging:
    """Begin at a step size; the centre is a multiple of it, as in Stan."""
    log_step = step_size.log()
    zero, rows = torch.zeros_like(step_size), step_size.new_zeros(chains)
    limit = torch.full_like(rows, math.inf)
    return DualAveraging(log_step + math.log(LEAP), zero, zero.clone(), zero.clone(), rows, rows.clone(), limit)


def dual_averaging_update(
    da: DualAveraging, step_size: Tensor, rate: Tensor, done: Tensor, target: float
) -> tuple[DualAveraging, Tensor]:
    """Take in the acceptance rates of the draws that finished; one update for every ``chains`` finished draws.

    A round of one draw per chain then counts as one update, as if the chains ran in step, whoever finished them. A
    chain that rejects at every tick finishes a hundred draws while others finish one: it counts for ``SHARES``.

    Returns:
        the next state and the step size to explore with.
    """
    gamma, t0, kappa = 0.05, 10.0, 0.75
    rate_sum = da.rate_sum + torch.where(done, rate, 0.0)
    waiting = da.waiting + done.to(rate.dtype)
    counted = waiting.clamp_max(float(SHARES))
    number = pooled_sum(counted)
    full = number >= len(done)
    if not some(full):
        return da._replace(rate_sum=rate_sum, waiting=waiting), step_size
    mean = pooled_sum(rate_sum * (counted / waiting.clamp_min(1.0))) / number.clamp_min(1.0)
    count = da.updates + 1
    weight = 1 / (count + t0)
    error = (1 - weight) * da.error + weight * (target - mean)
    log_step = da.center - count.sqrt() / gamma * error
    forget = count.pow(-kappa)
    average = forget * log_step + (1 - forget) * da.log_average
    new = DualAveraging(
        da.center,
        torch.where(full, error, da.error),
        torch.where(full, average, da.log_average),
        torch.where(full, count, da.updates),
        rate_sum.masked_fill(full, 0.0),
        waiting.masked_fill(full, 0.0),
        da.limit,
    )
    return new, torch.where(full, log_step.exp(), step_size)


def limited(limit: Tensor, rate: Tensor, used: Tensor, done: Tensor, power: float) -> tuple[Tensor, Tensor]:
    """Limits of the chains' steps after these draws, and the rates ``(chains,)`` that these say of the common step size.

    A chain out in a tail may need steps a thousand times smaller than the others. At the common one all its draws are
    rejected, so that it stays where it is, and a few rejections among many chains hardly lower the common one. So each
    chain has a limit, which a draw with next to no chance of acceptance halves, and any other trebles: from the third
    such draw in a row on a chain takes smaller steps than the others, until the common one is below its limit again.
    It comes in from the tail at the pace that the tail allows, as a chain with a step size of its own would. To the
    common step size its draws say that it was too large: their rate is 0.

    Args:
        limit: ``(chains,)`` so far.
        rate: acceptance rates of the draws ``(chains,)``.
        used: step sizes that they took ``(chains,)``: the common one or the limit, whichever was smaller.
        done: which chains finished a draw ``(chains,)``.
        power: the leapfrog step is ``step_size ** power``, and it is halved.
    """
    common = used < limit  # who took the common step size
    down, up, spare = (factor ** (1 / power) for factor in (_DOWN, _UP, _SPARE))
    cut, grown = torch.minimum(limit, spare * used) / down, limit * up
    new = torch.where(rate < HOPELESS, cut, grown)
    return torch.where(done, new, limit), torch.where(common, rate, 0.0)
