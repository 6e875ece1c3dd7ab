"""Gibbs sweeps of spins that interact in pairs: chains innermost, neighbours as whole rows, words against thresholds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import NamedTuple

import torch
from torch import Tensor

from ebmppl.energies.discrete import Pairs
from ebmppl.kernels.accept import in_trace
from ebmppl.kernels.base import Noise, NoiseSpec
from ebmppl.kernels.words import KEYS, labels, thresholds, upper_by_word, words

_NUMBERS = 1 << 15  # of an eager operation, which then stays in cache
_TERMS = 8  # most that a compiled tick adds one by one: that compiles to vectors, but slowly
_TABLE = 8  # most neighbours of which a table of thresholds is looked up


class PairState(NamedTuple):
    """Spins."""

    spins: Tensor  # (sites, chains), block after block, -1.0 or 1.0: a compiler vectorises no mix of sizes


class _Tables(NamedTuple):
    """Where things are."""

    back: Tensor  # (sites,) places of the sites
    near: list[Tensor]  # by block, (size, degree) places of neighbours among the sites of all other blocks
    labels: list[Tensor]  # by block, (size, 1)
    signs: list[Tensor | None]  # by block, (size, degree)


class _Alike(NamedTuple):
    """That a block's couplings are one number up to their signs, and its fields one number, at the time of looking."""

    signs: Tensor | None  # relative to the first coupling, (size, degree); None: all are +1

    def same(self, other: _Alike) -> bool:
        """Whether both say the same."""
        a, b = self.signs, other.signs
        return (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b))


class _Local:
    """What a block's sites feel of the others: rows of sites, columns of chains.

    Args:
        couplings: ``(size, degree)`` or ``()``.
        signs: of one coupling, ``(size, degree)``; None: all are +1.
        fields: ``(size,)`` or ``()``.
        near: ``(size, degree)`` rows of ``others``.
        labels: ``(size, 1)`` words.
        others: spins ``(other sites, chains)``.
    """

    def __init__(
        self, couplings: Tensor, signs: Tensor | None, fields: Tensor, near: Tensor, labels: Tensor, others: Tensor
    ) -> None:
        self.couplings, self.fields, self.near, self.labels, self.others = couplings, fields, near, labels, others
        self._weights = couplings if couplings.dim() else signs
        degree = near.shape[1]
        self.table: Tensor | None = None
        if couplings.dim() == 0 and fields.dim() == 0 and degree <= _TABLE:
            sums = torch.arange(-degree, degree + 1, 2, dtype=torch.float64, device=near.device)
            self.table = thresholds(2 * (couplings.double() * sums + fields.double()))

    def draw(self, rows: slice, keys: Tensor) -> Tensor:
        """Spins of some sites."""
        word = words(self.labels[rows], keys[0], keys[1])
        if self.table is not None:
            upper = word < _looked_up(self._sums(rows), self.table)
        else:
            upper = upper_by_word(2 * self.fields_at(rows).expand(word.shape), word)
        return upper.to(self.fields.dtype) * 2 - 1

    def fields_at(self, rows: slice, share: float = 1.0) -> Tensor:
        """Of some sites, with a share of what their neighbours add."""
        own = self.fields[rows].unsqueeze(1) if self.fields.dim() else self.fields
        if share == 0 or len(self.others) == 0:
            return own
        sums = self._sums(rows)
        return own + share * (sums if self.couplings.dim() else self.couplings * sums)

    def _sums(self, rows: slice) -> Tensor:
        """Over neighbours, of couplings times spins, or of signs times spins where all couplings are one number."""
        near = self.near[rows]
        weights = None if self._weights is None else self._weights[rows]
        if near.shape[1] > _TERMS or not in_trace():
            first = torch.arange(0, near.numel(), near.shape[1], device=near.device)
            each = None if weights is None else weights.flatten()
            return torch.embedding_bag(self.others, near.flatten(), first, per_sample_weights=each)[0]
        total: Tensor | None = None
        for k in range(near.shape[1]):
            term = self.others.index_select(0, near[:, k])
            term = term if weights is None else term * weights[:, k : k + 1]
            total = term if total is None else total + term
        assert total is not None  # a graph's tables have a column at least
        return total


class PairSweep:
    """One sweep over the colours of a graph of spins.

    Probabilities are exact to 2^-32 and never 0. Where all couplings are one number up to their signs and all fields are
    one number, a site's probability is looked up by the sum of its neighbours (the heat bath of Creutz, Jacobs and Rebbi
    1979): where a model says so, or ``look`` finds it of couplings that are a number for every edge.

    Args:
        pairs: blocks of sites and what they interact with.
    """

    def __init__(self, pairs: Pairs) -> None:
        self.pairs = pairs
        self._alike: list[_Alike | None] = [None] * len(pairs.blocks)
        self._of_device: dict[torch.device, _Tables] = {}

    def noise(self) -> dict[str, NoiseSpec]:
        """Two keys."""
        return {"keys": KEYS}

    def move(self, device: torch.device) -> None:
        """Where things are, which is found once for a device."""
        self._tables(device)

    def look(self) -> None:
        """Find blocks whose couplings, a number for every edge, are alike at the present parameters."""
        self._alike = [self._found(block) for block in range(len(self._alike))]

    def holds(self) -> bool:
        """Whether what ``look`` found is still so."""
        return all(
            known is None or ((now := self._found(block)) is not None and known.same(now))
            for block, known in enumerate(self._alike)
        )

    def identity(self) -> tuple[bytes | None, ...]:
        """What sweeps by what ``look`` found share."""
        found = [None if a is None else b"" if a.signs is None else _digest(a.signs) for a in self._alike]
        return tuple(found)

    def _found(self, block: int) -> _Alike | None:
        couplings, fields = self.pairs.couplings(block).detach(), self.pairs.fields(block).detach()
        if couplings.dim() == 0 or couplings.numel() == 0 or couplings.shape[1] > _TABLE:
            return None
        first = couplings[0, 0]
        # 0 to missing neighbours is another number, unless all are 0, and NaN is no number
        if not bool((couplings.abs() == first.abs()).all() & (first != 0) & (fields == fields.flatten()[0]).all()):
            return None
        signs = couplings.sign() * first.sign()
        return _Alike(None if bool((signs > 0).all()) else signs)

    def init(self, x: Tensor) -> PairState:
        """Of flat points ``(chains, sites)``."""
        order = torch.cat(list(self.pairs.blocks)).to(x.device)
        spins = x.mT.index_select(0, order).to(self.pairs.fields(0).dtype)
        return PairState(spins.contiguous())

    def points(self, state: PairState, dtype: torch.dtype) -> Tensor:
        """Flat points ``(chains, sites)``."""
        back = self._tables(state.spins.device).back
        return state.spins.index_select(0, back).mT.to(dtype)

    def sweep(self, state: PairState, noise: Noise) -> PairState:
        """Every block once."""
        keys = noise["keys"].mT.contiguous()
        parts = list(state.spins.split(self._sizes))
        for block in range(len(parts)):
            local = self._local(block, _whole(parts[:block] + parts[block + 1 :]))
            drawn = [local.draw(rows, keys) for rows in _chunks(parts[block])]
            parts[block] = _whole(drawn)
        return PairState(torch.cat(parts))

    def energies(self, state: PairState) -> Tensor:
        """``(chains,)`` in nats."""
        parts = list(state.spins.split(self._sizes))
        total = state.spins.new_zeros(state.spins.shape[1])
        for block, part in enumerate(parts):
            local = self._local(block, _whole(parts[:block] + parts[block + 1 :]))
            # of two colours, every pair is seen from the first
            share = (1.0, 0.0)[block] if len(parts) == 2 else 0.5
            for rows in _chunks(part):
                total = total - (part[rows] * local.fields_at(rows, share)).sum(0)
        return total

    def _local(self, block: int, others: Tensor) -> _Local:
        tables = self._tables(others.device)
        couplings, fields = self.pairs.couplings(block), self.pairs.fields(block)
        signs, alike = tables.signs[block], self._alike[block]
        if alike is not None:
            couplings, signs, fields = couplings[0, 0], alike.signs, fields.flatten()[0]
        return _Local(couplings, signs, fields, tables.near[block], tables.labels[block], others)

    @property
    def _sizes(self) -> list[int]:
        return [len(members) for members in self.pairs.blocks]

    def _tables(self, device: torch.device) -> _Tables:
        tables = self._of_device.get(device)
        if tables is None:
            tables = self._of_device[device] = _tables_of(self.pairs, device)
        return tables


def _tables_of(pairs: Pairs, device: torch.device) -> _Tables:
    blocks = [members.cpu() for members in pairs.blocks]
    sites = sum(map(len, blocks))
    near, named, first = [], [], 0
    for block, members in enumerate(blocks):
        place = torch.zeros(sites, dtype=torch.int64)  # of a missing neighbour any
        others = torch.cat([*blocks[:block], *blocks[block + 1 :], members[:0]])
        place[others] = torch.arange(len(others))
        near.append(place[pairs.neighbours(block).cpu()].to(device))
        named.append(labels(len(members), first).unsqueeze(1).to(device))
        first += len(members)
    signs = [None if found is None else found.to(device) for found in map(pairs.signs, range(len(blocks)))]
    return _Tables(torch.cat(blocks).argsort().to(device), near, named, signs)


def _chunks(part: Tensor) -> Iterator[slice]:
    """Rows of an eager operation; a compiler fuses them all."""
    rows = len(part) if in_trace() or not part.is_cpu else max(1, _NUMBERS // part.shape[1])
    return (slice(first, min(first + rows, len(part))) for first in range(0, len(part), rows))


def _digest(signs: Tensor) -> bytes:
    return sha256((signs > 0).cpu().numpy().tobytes()).digest()


def _whole(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts)) if parts else torch.empty(0, 0)


def _looked_up(total: Tensor, table: Tensor) -> Tensor:
    """Entries for sums -degree, -degree + 2, ..., degree; comparisons for a compiler, which vectorises no lookup."""
    degree = len(table) - 1
    if not in_trace():
        return table.index_select(0, ((total + degree) * 0.5).to(torch.int64).flatten()).view(total.shape)
    found = table[degree].expand(total.shape)
    for k in range(degree - 1, -1, -1):
        found = torch.where(total <= 2 * k - degree, table[k], found)
    return found
