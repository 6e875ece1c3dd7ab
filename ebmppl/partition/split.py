"""Enumeration: some coordinates take all their values in turn, the others are summed out in closed form given these."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, softplus

from ebmppl.energies.base import Energy, dtype_and_device
from ebmppl.energies.discrete import Conditionals, Layers, Levels, RealLayers, discrete, indexed, levels_of
from ebmppl.energies.structure import Pairwise
from ebmppl.errors import EnergyError
from ebmppl.partition.states import States, one_hot_rows


class Given(NamedTuple):
    """The law of independent coordinates for each of some values of the enumerated ones.

    Attributes:
        probabilities: ``(rows, coordinates, levels)`` float64; None for real coordinates.
        mean: ``(rows, coordinates)`` float64 of real ones.
        variance: of real ones, the same shape or one that broadcasts to it.
    """

    probabilities: Tensor | None
    mean: Tensor
    variance: Tensor


class Split:
    r"""Abstract: enumerated z and the rest given z, :math:`p(x) = \sum_z p(z)\, p(x \mid z)`.

    Attributes:
        levels: of z.
        points: levels of x, where they are discrete.
        width: numbers that a value of z makes, for the size of chunks.
        tail: at most so many values of the last coordinates of z in a chunk.
    """

    name = "enumeration"
    levels: Levels
    points: Levels
    width: int
    tail: int | None = None

    def __init__(self, energy: Energy) -> None:
        self.energy = energy
        self.target = indexed(energy)
        self.dtype, self.device = dtype_and_device(energy)

    def log_weights(self, states: States, chunk: int) -> Tensor:
        """Log-weights ``(rows,)`` of z, float64: their log-sum is log Z."""
        digits = states.digits(chunk)
        z = states.values(digits, self.dtype)
        return self.checked(self.of(z), z)

    def of(self, z: Tensor) -> Tensor:
        """Log-weights of values z ``(rows, enumerated coordinates)``."""
        raise NotImplementedError

    def given(self, z: Tensor) -> Given:
        """The law of flat x given z."""
        raise NotImplementedError

    def checked(self, logs: Tensor, z: Tensor) -> Tensor:
        """The log-weights, in float64.

        Raises:
            EnergyError: for a wrong shape, or an energy that is NaN or minus infinity.
        """
        if logs.shape != z.shape[:1]:
            raise EnergyError(f"expected energy of shape ({len(z)},), got {tuple(logs.shape)}")
        good = logs.detach() < torch.inf
        if not bool(good.all()):
            at = int((~good).nonzero()[0])
            value = -logs.detach()[at].item()
            raise EnergyError(f"expected energies above minus infinity, got {value} at {z[at].tolist()}")
        return logs.double()

    def energies(self, flat: Tensor) -> Tensor:
        """The energy at flat points of integers."""
        return self.target(flat.reshape(len(flat), *self.target.event_shape))


class Whole(Split):
    """All coordinates enumerated."""

    def __init__(self, energy: Energy) -> None:
        super().__init__(energy)
        self.levels = self.points = levels_of(self.target)
        self.width = len(self.levels.counts)

    def of(self, z: Tensor) -> Tensor:
        """Minus the energy."""
        return -self.energies(z)

    def given(self, z: Tensor) -> Given:
        """Certainty."""
        at = (z.unsqueeze(-1) == self.levels.table.to(z)).long().argmax(-1)
        return Given(one_hot_rows(at, self.levels.most), z.double(), z.new_zeros(1, dtype=torch.float64))


class Pairs(Whole):
    """All coordinates of an energy of pairs: the energies of heads times tails are a matrix product."""

    tail = 1 << 12

    def __init__(self, energy: Energy, form: Pairwise) -> None:
        super().__init__(energy)
        self.form = form.double()
        self.unary = self.form.unary
        self.width = 2

    @cached_property
    def dense(self) -> Tensor:
        """Tables of all pairs as one matrix ``(coordinates * levels, ...)``; zero where there is no edge."""
        n, q = self.unary.shape
        ends = (self.form.edges[:, 0], self.form.edges[:, 1])
        dense = self.unary.new_zeros(n, n, q, q).index_put(ends, self.form.pairs, accumulate=True)
        return dense.transpose(1, 2).reshape(n * q, n * q)

    def log_weights(self, states: States, chunk: int, tables: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """From the tables of the sites and the pairs, or others in their place."""
        unary, dense = tables or (self.unary, self.dense)
        q, unary = self.levels.most, unary.flatten()
        at = states.cut * q
        head = one_hot_rows(states.head(chunk), q).flatten(1)
        tail = one_hot_rows(states.tail, q).flatten(1)
        across = dense[:at, at:] + dense[at:, :at].mT
        of_head = head @ unary[:at] + ((head @ dense[:at, :at]) * head).sum(1)
        of_tail = tail @ unary[at:] + ((tail @ dense[at:, at:]) * tail).sum(1)
        return (of_head[:, None] + of_tail + (head @ across) @ tail.mT).flatten()


class Hidden(Split):
    """Hidden bits enumerated, with the visible layer summed out: for a layer of more units than there are hidden bits."""

    name = "layers"

    def __init__(self, energy: Energy, layers: Layers | RealLayers) -> None:
        super().__init__(energy)
        self.layers = layers
        number = layers.num_hidden
        self.levels = Levels(torch.tensor([[0, 1]]).repeat(number, 1), torch.full((number,), 2), torch.int8)
        self.real = not discrete(self.target)
        size = self.target.event_shape.numel()
        if not self.real:
            self.points = levels_of(self.target)
            size *= self.points.most - 1
        self.width = number + size

    def of(self, z: Tensor) -> Tensor:
        r"""By Bayes' rule at one visible v0: :math:`-F(v_0) + \log p(h | v_0) - \log p(v_0 | h)`."""
        v = self._reference(z)
        logits = self.layers.hidden_logits(v)
        hidden = (z * logits - softplus(logits, threshold=40.0)).sum(1, dtype=torch.float64)
        return hidden - self.layers.free_energy(v).double() - self._log_prob(v, z)

    def _reference(self, z: Tensor) -> Tensor:
        if self.real:
            return self._real.visible_mean(z.new_zeros(1, z.shape[1])).detach()
        return self.points.table[:, 0].to(z)[None]

    def _log_prob(self, v: Tensor, z: Tensor) -> Tensor:
        if self.real:
            scale = self._real.visible_scale
            normal = torch.distributions.Normal(self._real.visible_mean(z), scale, validate_args=False)
            return normal.log_prob(v).sum(1, dtype=torch.float64)
        logits = self._discrete.visible_logits(z)
        return _log_lowest(logits).sum(1, dtype=torch.float64)

    def given(self, z: Tensor) -> Given:
        """The visible layer's law."""
        if self.real:
            mean, scale = self._real.visible_mean(z).double(), self._real.visible_scale.double()
            return Given(None, mean, scale.square())
        return _given(_probabilities(self._discrete.visible_logits(z)), self.points)

    @property
    def _discrete(self) -> Layers:
        return self.layers  # type: ignore[return-value]

    @property
    def _real(self) -> RealLayers:
        return self.layers  # type: ignore[return-value]


class Block(Split):
    """All coordinates enumerated but those of one block, which are independent given the others and summed out."""

    name = "layers"

    def __init__(self, energy: Energy, conditionals: Conditionals) -> None:
        super().__init__(energy)
        self.conditionals = conditionals
        self.points = levels_of(self.target)
        self.number = max(range(len(conditionals.blocks)), key=lambda b: len(conditionals.blocks[b]))
        block = conditionals.blocks[self.number]
        self.block = block
        rest = torch.ones(len(self.points.counts), dtype=torch.bool)
        rest[block.cpu()] = False
        self.rest = rest.nonzero().squeeze(1)
        self.levels = Levels(self.points.table[self.rest], self.points.counts[self.rest], self.points.dtype)
        self.width = len(self.points.counts) * self.points.most

    def of(self, z: Tensor) -> Tensor:
        r"""With the block at its lowest levels b0: :math:`-E(z, b_0) - \log p(b_0 | z)`."""
        x = self._points(z)
        lowest = _log_lowest(self.conditionals.logits(self.number, x))
        return -self.energies(x).double() - lowest.sum(1, dtype=torch.float64)

    def _points(self, z: Tensor) -> Tensor:
        x = self.points.table[:, 0].to(z).repeat(len(z), 1)
        x[:, self.rest.to(x.device)] = z
        return x

    def given(self, z: Tensor) -> Given:
        """The block's law, and certainty for the others."""
        x = self._points(z)
        inside = _probabilities(self.conditionals.logits(self.number, x))
        at = (x.unsqueeze(-1) == self.points.table.to(x)).long().argmax(-1)
        whole = one_hot_rows(at, self.points.most)
        whole[:, self.block] = torch.nn.functional.pad(inside, (0, self.points.most - inside.shape[-1]))
        return _given(whole, self.points)


def _given(probabilities: Tensor, levels: Levels) -> Given:
    values = levels.table.to(probabilities)
    mean = (probabilities * values).sum(-1)
    return Given(probabilities, mean, (probabilities * values.square()).sum(-1) - mean.square())


def _log_lowest(logits: Tensor) -> Tensor:
    """Log-probabilities ``(rows, size)`` of the lowest level."""
    return -softplus(logits, threshold=40.0) if logits.dim() == 2 else log_softmax(logits, -1)[..., 0]


def _probabilities(logits: Tensor) -> Tensor:
    """Probabilities ``(rows, size, levels)`` float64 from what conditionals give."""
    logits = logits.double()
    if logits.dim() == 2:
        return torch.stack([torch.sigmoid(-logits), torch.sigmoid(logits)], -1)
    return torch.softmax(logits, -1)
