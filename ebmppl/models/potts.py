"""The Potts model on a lattice or any graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ebmppl.energies.base import Energy, flatten_batch
from ebmppl.energies.discrete import one_hot
from ebmppl.energies.structure import Pairwise
from ebmppl.energies.supports import categories
from ebmppl.models.graph import Graph
from ebmppl.models.pairwise import NeighbourTables, as_parameter, on_graph, weighted_sum, whole_tensor


class Potts(Energy):
    r"""Sites of q states, integers 0 ... q - 1: :math:`E(x) = -\sum_{(i,j)} J_{ij} [x_i = x_j] - \sum_i h_{i, x_i}`.

    Every edge once. Positive couplings are ferromagnetic. Two states are the Ising model of couplings J / 2. The
    temperature is part of J and h; ``beta * potts`` tempers. ``relaxed()`` is the same energy over one-hot vectors and
    any real ones in their place, with x_i'x_j for [x_i = x_j].

    References:
        Potts 1952, "Some generalized order-disorder transformations"; Wu 1982, "The Potts model".

    Args:
        lattice: sites along each axis, ``(L,)``, ``(L, L)``, ...: nearest neighbours interact. Or a ``Graph`` of your
            own. None with a matrix of couplings.
        num_states: q >= 2.
        coupling: J: a number for all edges, or ``(edges,)`` in the order of ``graph.edges``; or without a lattice a
            symmetric matrix ``(sites, sites)`` with a zero diagonal.
        field: h: a number, or a tensor ``(*lattice, q)``; ``(q,)`` is the same for all sites.
        periodic: of a lattice, whether its axes close (or each of them).
        symmetrise: take the mean of a matrix and its transpose.
        dtype: of the parameters; that of given tensors, else torch's default.

    Raises:
        ValueError: for fewer than two states, a matrix that is not symmetric, self-couplings, or shapes that don't fit.

    Example:
        >>> import torch
        >>> potts = Potts(lattice=(4, 4), num_states=3, coupling=0.5)
        >>> potts(torch.zeros(1, 4, 4, dtype=torch.int8)).item()  # 32 bonds
        -16.0
    """

    coupling: nn.Parameter
    field: nn.Parameter

    def __init__(
        self,
        lattice: Sequence[int] | Graph | None = None,
        num_states: int = 3,
        coupling: float | Tensor = 1.0,
        field: float | Tensor = 0.0,
        *,
        periodic: bool | Sequence[bool] = True,
        symmetrise: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        graph, coupling = on_graph(lattice, coupling, periodic=periodic, symmetrise=symmetrise)
        super().__init__(graph.shape, categories(num_states))
        self.graph, self.num_states = graph, num_states
        self.coupling = as_parameter("coupling", coupling, (len(graph.edges),), (coupling, field), dtype)
        shared = isinstance(field, Tensor) and field.dim() == 1
        shape = (num_states,) if shared else (*graph.shape, num_states)
        self.field = as_parameter("field", field, shape, (coupling, field), dtype)
        self.tables = NeighbourTables(graph)

    def forward(self, x: Tensor) -> Tensor:
        """Energies ``(*batch)`` in nats of categories ``(*batch, *lattice)``."""
        rows, batch = flatten_batch(x, self.event_shape)
        flat = rows.reshape(len(rows), -1)
        real = self.coupling.dtype
        edges = self.tables.edges
        equal = (flat.index_select(1, edges[:, 0]) == flat.index_select(1, edges[:, 1])).to(real)
        pairs = weighted_sum(equal, whole_tensor(self.coupling, len(edges)))
        alone = weighted_sum(one_hot(flat, self.num_states, real).flatten(1), self.fields.flatten())
        return -(pairs + alone).reshape(batch)

    @property
    def fields(self) -> Tensor:
        """H of every site and state, ``(sites, q)``."""
        q, sites = self.num_states, self.graph.num_sites
        return (self.field.reshape(-1, q) if self.field.dim() > 1 else self.field).expand(sites, q)

    def conditionals(self) -> PottsConditionals:
        """By colour: log-probabilities of a state are the couplings to neighbours in that state, and its field."""
        return PottsConditionals(self)

    def pairwise(self) -> Pairwise:
        """Tables h, and J where the states are equal."""
        couplings = whole_tensor(self.coupling, len(self.graph.edges))[:, None, None]
        equal = torch.eye(self.num_states, dtype=couplings.dtype, device=couplings.device)
        return Pairwise(self.fields, self.tables.edges, couplings * equal, self.graph.shape, self.graph.as_lattice)

    def relaxed(self) -> Energy:
        """Over one-hot vectors ``(*lattice, q)``."""
        return OneHotPotts(self)

    def extra_repr(self) -> str:
        """Shape, states and edges, for ``repr``."""
        return f"{tuple(self.event_shape)}, num_states={self.num_states}, {len(self.graph.edges)} edges"


class OneHotPotts(Energy):
    r"""A Potts model over one-hot vectors ``(*lattice, q)``: minus the sums of :math:`J_{ij} x_i^\top x_j` and h'x."""

    def __init__(self, potts: Potts) -> None:
        super().__init__((*potts.event_shape, potts.num_states), constraints.one_hot)
        self.potts = potts

    def forward(self, x: Tensor) -> Tensor:
        """Energies ``(*batch)`` in nats of ``(*batch, *lattice, q)``."""
        potts, (rows, batch) = self.potts, flatten_batch(x.to(self.potts.coupling.dtype), self.event_shape)
        sites = rows.reshape(len(rows), -1, potts.num_states)
        edges = potts.tables.edges
        alike = (sites.index_select(1, edges[:, 0]) * sites.index_select(1, edges[:, 1])).sum(-1)
        pairs = weighted_sum(alike, whole_tensor(potts.coupling, len(edges)))
        return -(pairs + weighted_sum(sites.flatten(1), potts.fields.flatten())).reshape(batch)

    def pairwise(self) -> Pairwise:
        """That of the model."""
        return self.potts.pairwise()

    def identity(self) -> tuple[Any, ...]:
        """That of the model."""
        return (type(self), self.potts.identity())


class PottsConditionals:
    """See ``Conditionals``."""

    def __init__(self, model: Potts) -> None:
        self.model = model

    @property
    def blocks(self) -> Sequence[Tensor]:
        """The sites of each colour."""
        return self.model.tables.classes

    def logits(self, block: int, x: Tensor) -> Tensor:
        """Of every state; of two the log-odds of the upper one."""
        model = self.model
        near = model.tables.neighbours(block, x)
        weights = model.tables.weights(block, model.coupling)
        alike = torch.stack([((near == k).to(weights.dtype) * weights).sum(-1) for k in range(model.num_states)], -1)
        logits = alike + model.fields.index_select(0, model.tables.classes[block])
        return logits[..., 1] - logits[..., 0] if model.num_states == 2 else logits
