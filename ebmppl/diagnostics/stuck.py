"""Discrete coordinates that keep one value: those that are stuck, and those that may well be constant.

A spin in a strong field, or a pixel that is never on, keeps its value in every draw, and rightly: its ESS is then all
draws and it has no R-hat. So a constant coordinate is no fault by itself. What is one:

* *Frozen*: constant within every chain, at different values in different chains. Chains of one density visit the same
  values, so none of these has moved as it should. (A false alarm needs chains that each kept one of two values by
  chance: for n effective draws of a fair coin a probability of :math:`2^{1 - n}` per chain.)
* *Stuck*: constant in some chains while others leave that value so often that a chain of as many effective draws keeps
  it with a probability under one in a thousand, shared among all coordinates and chains (Bonferroni). The same rule
  holds for the whole of a variable and the steps at which none of its coordinates changes.

What the draws can't tell: coordinates that are stuck at the same value in all chains. Begin chains at different points.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ebmppl.diagnostics.convergence import FALSE_ALARM, ess_within
from ebmppl.diagnostics.quantities import FEW, few

if TYPE_CHECKING:
    import xarray as xr

MOVES = "use moves of more than one site (SwendsenWang, Wolff) or ParallelTempering"
ADVICE = f"{MOVES}, and begin the chains at different points"
_TRIED = 50  # coordinates whose effective draws are counted, the least probable ones first


class Held(NamedTuple):
    """What of one variable keeps its value.

    Attributes:
        constant: ``(chains, coordinates)``, all draws of the chain are the same.
        frozen: ``(coordinates,)``, constant in every chain and not the same in all.
        stuck: ``(chains, coordinates)``, constant in this chain and improbably so, as the other chains tell.
    """

    constant: np.ndarray
    frozen: np.ndarray
    stuck: np.ndarray


def held(values: np.ndarray) -> Held:
    """Find what keeps its value in draws ``(chains, draws, ...)`` of a discrete variable."""
    values = values.reshape(*values.shape[:2], -1)
    first = values[:, 0]
    constant, still = np.ones(first.shape, bool), np.ones(values.shape[:2], bool)
    for t in range(1, values.shape[1]):  # draw by draw: a lattice's draws are many
        constant &= values[:, t] == first
        still[:, t] = (values[:, t] == values[:, t - 1]).all(1)
    frozen = constant.all(0) & (first != first[0]).any(0)
    stuck = np.zeros_like(constant)
    some = np.flatnonzero(constant.any(0) & ~constant.all(0))
    for i in _candidates(values, constant, some):
        stuck[:, i] = _improbable(values[:, :, i], constant[:, i], constant.size)
    whole = np.all(constant, axis=1)
    if whole.any() and not whole.all():
        stuck |= _improbable(still[:, 1:], whole, len(whole))[:, None]
    return Held(constant, frozen, stuck)


def _candidates(values: np.ndarray, constant: np.ndarray, some: np.ndarray) -> list[int]:
    """Of some coordinates those whose constant chains are improbable even if every draw were effective."""
    logs = []
    for i in some:
        moving = values[~constant[:, i], :, i]
        logs.append(min(_log_share(moving, v) for v in np.unique(values[constant[:, i], 0, i])) * values.shape[1])
    order = np.argsort(logs, kind="stable")[:_TRIED]
    return [int(some[k]) for k in order if logs[k] < math.log(FALSE_ALARM / constant.size)]


def _improbable(draws: np.ndarray, constant: np.ndarray, number: int) -> np.ndarray:
    """``(chains,)``: constant chains of one quantity ``(chains, draws)`` that kept a value which the others leave."""
    moving = draws[~constant]
    effective = ess_within(moving.astype(float))
    effective = min(draws.shape[1], effective) if effective > 0 else 1.0
    level = math.log(FALSE_ALARM / number)
    return np.array(
        [c and effective * _log_share(moving, row[0]) < level for c, row in zip(constant, draws, strict=True)]
    )


def _log_share(draws: np.ndarray, value: float) -> float:
    """Log probability of a value by the draws of others, of which none may be seen (Laplace's rule)."""
    return math.log((np.count_nonzero(draws == value) + 1) / (draws.size + 2))


def stuck_flags(variable: xr.DataArray) -> tuple[list[str], list[str]]:
    """Of one discrete variable ``(chain, draw, ...)``: the flags, and notes of what is no fault."""
    found, flags = held(variable.values), []
    if found.frozen.any():
        flags.append(
            f"frozen: {_named(variable, found.frozen)} keep one value in every chain, and not the same in all; {ADVICE}"
        )
    if found.stuck.any():
        chains = np.flatnonzero(found.stuck.any(1)).tolist()
        flags.append(
            f"stuck: every draw the same in chain{'s' * (len(chains) > 1)} {few(chains)} ({len(chains)} of "
            f"{len(found.stuck)}), for {_named(variable, np.any(found.stuck, axis=0))}, which other chains change; {ADVICE}"
        )
    if found.constant.all() and not found.frozen.all():
        flags.append(
            f"constant: {_named(variable, ~found.frozen)} never change in any chain and have no R-hat; right only for "
            f"states of one point, as in a strong field or at zero temperature: else {ADVICE}"
        )
    always = found.constant.all(0) & ~found.frozen
    if found.constant.all() or not always.any():
        return flags, []
    note = (
        f"{_named(variable, always)} keep one value in all draws of all chains, as in a strong field: "
        "their ESS and R-hat say nothing"
    )
    return flags, [note]


def _named(variable: xr.DataArray, which: np.ndarray) -> str:
    shape = variable.shape[2:]
    labels = [variable[dim].values.tolist() for dim in variable.dims[2:]]
    index = np.flatnonzero(which)

    def name(place: int) -> str:
        at = np.unravel_index(place, shape) if shape else ()
        label = ", ".join(str(axis[i]) for axis, i in zip(labels, at, strict=True))
        return f"{variable.name}[{label}]" if shape else str(variable.name)

    return f"{few([name(place) for place in index[:FEW]], len(index))} ({len(index)} of {which.size})"
