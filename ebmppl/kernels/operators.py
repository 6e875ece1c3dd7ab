"""Operators of this library's own: each is one call of a compiled tick, whatever loops it takes; no GPU is waited for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ebmppl.kernels.accept import in_trace
from ebmppl.kernels.components import components, identity, in_rounds

_IN_CACHE = 1 << 16  # sites that are labelled at a time on a CPU

# by an operator's name and arguments what it gives, or None where it can't: C++, where ticks are compiled
in_c: Callable[[str, tuple[Tensor, ...]], Tensor | None] | None = None


def bonded(level: Tensor, uniform: Tensor, closing: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """Labels of the clusters that bonds between equal neighbours connect.

    Args:
        level: of each site, ``(chains, sites)``.
        uniform: of each edge, ``(chains, edges)``.
        closing: the probability of its bond, ``(edges,)`` or ``(chains, edges)``.
        i: one end of each, ``(edges,)``.
        j: the other.

    Returns:
        of each site its cluster's smallest site, counted through all chains, ``(chains * sites,)``.
    """
    labels: Tensor = torch.ops.ebmppl.bonded(level, uniform, closing, i, j)
    return labels


def summed(values: Tensor, label: Tensor) -> Tensor:
    """Sums ``(sites, ...)`` of the values of all sites that have the same label, at that one; 0 elsewhere.

    In one order on a CPU, so that draws are the same whatever the number of threads.
    """
    found: Tensor = torch.ops.ebmppl.summed(values, label) if in_trace() else _summed(values, label)
    return found


def labelled(values: Tensor, label: Tensor) -> Tensor:
    """Of every site the values ``(sites, ...)`` at its label."""
    found: Tensor = torch.ops.ebmppl.labelled(values, label) if in_trace() else values.index_select(0, label)
    return found


def straight(points: Tensor, ignore: Tensor, number: Tensor, leaf: Tensor, total: Tensor, leaf_sum: Tensor) -> Tensor:
    """Whether no sub-tree that a leaf completes makes a U-turn, ``(chains,)``; see ``uturn.py``.

    Args:
        points: checkpoints ``(chains, 2, levels, 2 * (dimension + 1))``.
        ignore: by number of a leaf, checkpoints not to compare with, ``(leaves, 2 * levels)``.
        number: of the leaf, ``(chains,)``.
        leaf: its momentum, ``(chains, dimension)``.
        total: sum of the momenta of its sub-tree so far.
        leaf_sum: their product, ``(chains, 1)``.
    """
    args = points, ignore, number, leaf, total, leaf_sum
    found: Tensor = torch.ops.ebmppl.straight(*args) if in_trace() else _straight(*args)
    return found


def _straight(points: Tensor, ignore: Tensor, number: Tensor, leaf: Tensor, total: Tensor, leaf_sum: Tensor) -> Tensor:
    chains, _, levels, width = points.shape
    minus_one = leaf.new_full((), -1.0).expand(chains, 1)
    probe = torch.cat([total, minus_one, leaf, leaf_sum], 1).view(2 * chains, 1, width // 2)
    # a row times a matrix: the other way round a CPU takes six times as long
    product = torch.bmm(probe, points.view(2 * chains, 2 * levels, width // 2).mT).view(chains, 2, 2 * levels)
    return (product.amin(1) > 0).logical_or_(ignore.index_select(0, number)).all(1)


def _joined(level: Tensor, uniform: Tensor, closing: Tensor, i: Tensor, j: Tensor) -> Tensor:
    return (uniform < closing) & (level.index_select(1, i) == level.index_select(1, j))


def _bonded_on_host(level: Tensor, uniform: Tensor, closing: Tensor, i: Tensor, j: Tensor) -> Tensor:
    sites = level.shape[1]
    label = identity(level.numel(), level.device)
    most = max(1, _IN_CACHE // sites)
    joined = _joined(level, uniform, closing, i, j)
    for first in range(0, len(joined), most):
        row, edge = joined[first : first + most].nonzero().unbind(1)
        start, of_rows = row * sites, label[first * sites : (first + most) * sites]
        found = components(start + i.index_select(0, edge), start + j.index_select(0, edge), len(of_rows))
        of_rows.copy_(found).add_(first * sites)
    return label


def _bonded_elsewhere(level: Tensor, uniform: Tensor, closing: Tensor, i: Tensor, j: Tensor) -> Tensor:
    joined = _joined(level, uniform, closing, i, j).contiguous()
    try:
        from ebmppl.kernels.components_by_triton import by_trees
    except ImportError:  # no Triton: torch's operations take more time, and no compiled ticks are there
        return in_rounds(joined, i, j, level.shape[1])
    with torch.cuda.device(joined.device):
        return by_trees(joined, i, j, level.shape[1])


def _bonded_of_no_values(level: Tensor, *_: Tensor) -> Tensor:
    return identity(level.numel(), level.device)


def _summed(values: Tensor, label: Tensor) -> Tensor:
    return torch.zeros_like(values, memory_format=torch.contiguous_format).index_add_(0, label, values)


def _labelled(values: Tensor, label: Tensor) -> Tensor:
    return values.index_select(0, label)


def _or_in_c(name: str, by_torch: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(*args: Tensor) -> Tensor:
        found = None if in_c is None else in_c(name, args)
        return by_torch(*args) if found is None else found

    return run


_LIBRARY = torch.library.Library("ebmppl", "FRAGMENT")
_IMPLEMENTED: dict[str, tuple[str, dict[str, Callable[..., Any]]]] = {
    "bonded": (
        "(Tensor level, Tensor uniform, Tensor closing, Tensor i, Tensor j) -> Tensor",
        {"CPU": _bonded_on_host, "CUDA": _bonded_elsewhere, "Meta": _bonded_of_no_values},
    ),
    "summed": ("(Tensor values, Tensor label) -> Tensor", {"CPU": _summed, "CUDA": _summed, "Meta": _summed}),
    "labelled": ("(Tensor values, Tensor label) -> Tensor", {"CPU": _labelled, "CUDA": _labelled, "Meta": _labelled}),
}
_IMPLEMENTED["straight"] = (
    "(Tensor points, Tensor ignore, Tensor number, Tensor leaf, Tensor total, Tensor leaf_sum) -> Tensor",
    {"CPU": _straight, "CUDA": _straight, "Meta": _straight},
)
NAMES = tuple(_IMPLEMENTED)
for _name, (_form, _ways) in _IMPLEMENTED.items():
    _LIBRARY.define(_name + _form)
    for _place, _way in _ways.items():
        _LIBRARY.impl(_name, _or_in_c(_name, _way) if _place == "CPU" else _way, _place)
