"""All points of a discrete energy, some at a time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ebmppl.energies.discrete import Levels


class States:
    """Every combination of levels in chunks, numbered with the last coordinate fastest.

    A chunk is some values of the first coordinates (the head) times all of the last ones (the tail).

    Args:
        levels: of every coordinate.
        rows: at most so many points in a chunk.
        tail: at most so many values of the last coordinates; ``rows`` when None.
        device: of the points.
    """

    def __init__(self, levels: Levels, rows: int, tail: int | None, device: torch.device) -> None:
        self.levels = levels
        self.table, counts = levels.table.to(device), levels.counts.tolist()
        self.cut, self.tail_size = len(counts), 1
        while self.cut and self.tail_size * counts[self.cut - 1] <= min(rows, tail or rows):
            self.cut -= 1
            self.tail_size *= counts[self.cut]
        self.head_size = math.prod(counts[: self.cut])
        self.heads_each = max(1, rows // self.tail_size)
        self.chunks = -(-self.head_size // self.heads_each)
        self.tail = self._digits(torch.arange(self.tail_size, device=device), counts[self.cut :])
        self._counts = counts

    def head(self, chunk: int) -> Tensor:
        """Numbers of levels ``(heads, cut)`` of the first coordinates."""
        start = chunk * self.heads_each
        numbers = torch.arange(start, min(start + self.heads_each, self.head_size), device=self.table.device)
        return self._digits(numbers, self._counts[: self.cut])

    def digits(self, chunk: int) -> Tensor:
        """Numbers of levels ``(rows, coordinates)`` of a chunk's points."""
        head = self.head(chunk)
        shape = (len(head), self.tail_size)
        return torch.cat([head[:, None].expand(*shape, -1), self.tail[None].expand(*shape, -1)], -1).flatten(0, 1)

    def values(self, digits: Tensor, dtype: torch.dtype) -> Tensor:
        """Flat points ``(rows, coordinates)`` from numbers of levels."""
        return self.table.to(dtype).gather(1, digits.mT).mT

    @staticmethod
    def _digits(numbers: Tensor, counts: list[int]) -> Tensor:
        digits = numbers.new_empty(len(numbers), len(counts))
        for i in reversed(range(len(counts))):
            digits[:, i] = numbers % counts[i]
            numbers = numbers // counts[i]
        return digits


def one_hot_rows(digits: Tensor, most: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """``(rows, coordinates, most)`` from numbers of levels ``(rows, coordinates)``."""
    return (digits.unsqueeze(-1) == torch.arange(most, device=digits.device)).to(dtype)


def power(number: int) -> str:
    """A count for a message: as a power of two where that is shorter."""
    if number > 0 and number & (number - 1) == 0 and number >= 1024:
        return f"2^{number.bit_length() - 1}"
    return str(number) if number < 10**7 else f"about 2^{math.log2(number):.1f}"
