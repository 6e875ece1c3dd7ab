"""Exact laws of small discrete energies, and tests of visited states against them."""

from __future__ import annotations

import itertools

import torch
from scipy import stats
from torch import Tensor

from ebmppl.energies import Energy
from ebmppl.energies.discrete import indexed, levels_of

LEAST = 5.0  # expected visits of a cell of a chi-square test


def states_of(energy: Energy) -> Tensor:
    """Every point ``(states, *event)``, as kernels hold them, in the order of ``number``."""
    target = indexed(energy)
    levels = levels_of(target)
    lists = [row[:n] for row, n in zip(levels.table.tolist(), levels.counts.tolist(), strict=True)]
    table = torch.tensor(list(itertools.product(*lists)), dtype=levels.dtype)
    return table.reshape(-1, *target.event_shape)


def number(energy: Energy, x: Tensor) -> Tensor:
    """Which of the states each point is."""
    levels = levels_of(indexed(energy))
    flat = x.reshape(len(x), -1, 1)
    at = (flat == levels.table).long().argmax(-1)
    code = torch.zeros(len(x), dtype=torch.int64)
    for i, n in enumerate(levels.counts.tolist()):
        code = code * n + at[:, i]
    return code


def law(energy: Energy) -> Tensor:
    """The probability of every state, float64."""
    with torch.no_grad():
        return torch.softmax(-indexed(energy)(states_of(energy)).double(), 0)


def exact_draws(energy: Energy, n: int, seed: int) -> Tensor:
    """Independent points ``(n, *event)``."""
    which = torch.multinomial(law(energy), n, replacement=True, generator=torch.Generator().manual_seed(seed))
    return states_of(energy)[which]


def p_value(counts: Tensor, probabilities: Tensor) -> float:
    """Of a chi-square test of counts of independent visits; states that are rare go into one cell."""
    expected = probabilities * counts.sum()
    order = expected.argsort(descending=True)
    cells = max(2, int((expected >= LEAST).sum()))
    seen, wanted = counts[order].double(), expected[order]
    seen = torch.cat([seen[: cells - 1], seen[cells - 1 :].sum(0, keepdim=True)])
    wanted = torch.cat([wanted[: cells - 1], wanted[cells - 1 :].sum(0, keepdim=True)])
    statistic = float(((seen - wanted).square() / wanted).sum())
    return float(stats.chi2.sf(statistic, cells - 1))


def balance_p_value(flows: Tensor) -> float:
    """Of detailed balance: flows ``(states, states)`` are counts of transitions of chains that begin at equilibrium.

    Then each transition and its reverse are equally probable, so given both counts together each is binomial of a half.
    """
    there, back = flows.triu(1), flows.tril(-1).mT
    both = (there + back)[flows.new_ones(flows.shape).triu(1).bool()].double()
    apart = (there - back)[flows.new_ones(flows.shape).triu(1).bool()].double()
    enough = both >= 2 * LEAST
    statistic = float((apart[enough].square() / both[enough]).sum())
    return float(stats.chi2.sf(statistic, int(enough.sum()))) if bool(enough.any()) else 1.0
