"""Conditionals of energies made of energies: weighted sums, and some coordinates held."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from ebmppl.energies.discrete import Conditionals, Pairs

T = TypeVar("T")


def present(values: Sequence[T | None]) -> list[T] | None:
    """The values, or None where one of them is."""
    found = [value for value in values if value is not None]
    return found if len(found) == len(values) else None


class WeightedConditionals:
    """See ``Conditionals``: of a weighted sum of energies, whose logits add up.

    Blocks are the intersections of the terms' blocks, in the order of the first term's: what is independent in every
    term is independent in the sum. Terms with the same blocks keep them.

    Args:
        terms: of the energies.
        weights: gives each term's weight, a scalar or ``(rows,)``, at the time of asking; None for a sum.
    """

    def __init__(self, terms: Sequence[Conditionals], weights: Callable[[], Sequence[Tensor]] | None = None) -> None:
        self.terms, self.weights = terms, weights
        blocks = [[b.tolist() for b in term.blocks] for term in terms]
        self._same = all(b == blocks[0] for b in blocks)
        self._split = {} if self._same else _intersections(blocks)
        self._tensors: dict[torch.device, list[tuple[Tensor, list[tuple[int, Tensor]]]]] = {}
        self._at()  # here, not first inside a trace

    @property
    def blocks(self) -> Sequence[Tensor]:
        """Of the sum."""
        return self.terms[0].blocks if self._same else [members for members, _ in self._at()]

    def logits(self, block: int, x: Tensor) -> Tensor:
        """The terms' logits, weighted and added."""
        if self._same:
            parts = [term.logits(block, x) for term in self.terms]
        else:
            places = self._at()[block][1]
            parts = [t.logits(b, x).index_select(1, at) for t, (b, at) in zip(self.terms, places, strict=True)]
        if self.weights is not None:
            parts = [_weighted(w, part) for w, part in zip(self.weights(), parts, strict=True)]
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total

    def _at(self) -> list[tuple[Tensor, list[tuple[int, Tensor]]]]:
        """By block its members, and of every term the number of its block and the members' places in it; on the device."""
        device = self.terms[0].blocks[0].device
        if device not in self._tensors:
            self._tensors[device] = [
                (
                    torch.tensor(members, device=device),
                    [
                        (b, torch.tensor(at, device=device))
                        for b, at in zip(numbers, zip(*places, strict=True), strict=True)
                    ],
                )
                for numbers, (members, places) in self._split.items()
            ]
        return self._tensors[device]


def _intersections(
    terms: Sequence[Sequence[Sequence[int]]],
) -> dict[tuple[int, ...], tuple[list[int], list[tuple[int, ...]]]]:
    """By the terms' block numbers: the coordinates in all of these blocks, and their places in each."""
    where = [{i: (b, k) for b, block in enumerate(blocks) for k, i in enumerate(block)} for blocks in terms]
    found: dict[tuple[int, ...], tuple[list[int], list[tuple[int, ...]]]] = {}
    for i in sorted(where[0]):
        key = tuple(w[i][0] for w in where)
        members, places = found.setdefault(key, ([], []))
        members.append(i)
        places.append(tuple(w[i][1] for w in where))
    return dict(sorted(found.items()))


def _weighted(weight: Tensor, logits: Tensor) -> Tensor:
    """Weight * logits by row, where a weight of 0 switches infinite logits off."""
    weight = weight.to(logits.dtype)
    weight = weight.reshape(*weight.shape, *[1] * (logits.dim() - weight.dim())) if weight.dim() else weight
    return torch.where(weight == 0, torch.zeros_like(logits), weight * logits)


class WeightedPairs:
    """See ``Pairs``: of an energy times a number.

    Args:
        inside: of the energy.
        weight: gives the number ``()`` at the time of asking.
    """

    def __init__(self, inside: Pairs, weight: Callable[[], Tensor]) -> None:
        self.inside, self.weight = inside, weight

    @property
    def blocks(self) -> Sequence[Tensor]:
        """Of the energy."""
        return self.inside.blocks

    def neighbours(self, block: int) -> Tensor:
        """Of the energy."""
        return self.inside.neighbours(block)

    def couplings(self, block: int) -> Tensor:
        """Weighted."""
        couplings = self.inside.couplings(block)
        return self.weight().to(couplings.dtype) * couplings

    def signs(self, block: int) -> Tensor | None:
        """Of the energy."""
        return self.inside.signs(block)

    def fields(self, block: int) -> Tensor:
        """Weighted."""
        fields = self.inside.fields(block)
        return self.weight().to(fields.dtype) * fields


class FreeConditionals:
    """See ``Conditionals``: of the free coordinates, the others held.

    Args:
        inside: of all coordinates.
        free: numbers of the free ones.
        fill: whole flat points ``(rows, coordinates)`` from free coordinates ``(rows, free)``.
    """

    def __init__(self, inside: Conditionals, free: Tensor, fill: Callable[[Tensor], Tensor]) -> None:
        self.inside, self.fill = inside, fill
        number = {i: n for n, i in enumerate(free.tolist())}
        self._parts: list[tuple[int, list[int], list[int]]] = []  # block, new numbers of its free members, their places
        for b, block in enumerate(inside.blocks):
            places = [k for k, i in enumerate(block.tolist()) if i in number]
            if places:
                self._parts.append((b, [number[int(block[k])] for k in places], places))
        self._tensors: dict[torch.device, list[tuple[Tensor, Tensor]]] = {}
        self._at()  # here, not first inside a trace

    @property
    def blocks(self) -> Sequence[Tensor]:
        """The free members of every block that has some."""
        return [members for members, _ in self._at()]

    def logits(self, block: int, x: Tensor) -> Tensor:
        """Those of whole points."""
        logits = self.inside.logits(self._parts[block][0], self.fill(x))
        places = self._at()[block][1]
        return logits if len(places) == logits.shape[1] else logits.index_select(1, places)

    def _at(self) -> list[tuple[Tensor, Tensor]]:
        device = self.inside.blocks[0].device
        if device not in self._tensors:
            self._tensors[device] = [
                (torch.tensor(members, device=device), torch.tensor(places, device=device))
                for _, members, places in self._parts
            ]
        return self._tensors[device]
