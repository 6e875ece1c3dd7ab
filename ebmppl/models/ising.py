"""The Ising model on a lattice or any graph."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ebmppl.energies.base import Energy, flatten_batch
from ebmppl.energies.structure import Pairwise
from ebmppl.energies.supports import spin
from ebmppl.models.graph import Graph
from ebmppl.models.pairwise import (
    NeighbourTables,
    as_parameter,
    on_graph,
    products,
    two_levels,
    weighted_sum,
    whole_tensor,
)


class Ising(Energy):
    r"""Spins that are -1 or +1: :math:`E(x) = -\sum_{(i,j)} J_{ij} x_i x_j - \sum_i h_i x_i`, every edge once.

    Positive couplings are ferromagnetic. The temperature is part of J and h; ``beta * ising`` tempers.

    ``Gibbs`` looks probabilities up by the sum of a site's neighbours where the couplings are +J or -J and the fields are
    equal: given as one number (with ``signs``), or found so in a tensor or matrix when a run begins.

    Args:
        lattice: sites along each axis, ``(L,)``, ``(L, L)``, ``(L, L, L)``, ...: nearest neighbours interact. Or a
            ``Graph`` of your own. None with a matrix of couplings.
        coupling: J: a number for all edges, or ``(edges,)`` in the order of ``graph.edges``; or without a lattice a
            symmetric matrix ``(sites, sites)`` with a zero diagonal.
        signs: +1 or -1 of every edge, ``(edges,)`` in the order of ``graph.edges``: couplings are J or -J (the +-J
            spin glass of Toulouse 1977). J is one number then, and learned as one. Signs are structure as the graph is, not
            parameters.
        field: h: a number for all sites, or a tensor of the lattice's shape.
        periodic: of a lattice, whether its axes close (or each of them).
        symmetrise: take the mean of a matrix and its transpose.
        dtype: of the parameters; that of given tensors, else torch's default.

    Raises:
        ValueError: for a matrix that is not symmetric, self-couplings, other signs than +1 and -1, signs beside more
            than one coupling, or shapes that don't fit.

    Example:
        >>> import torch
        >>> ising = Ising(lattice=(4, 4), coupling=0.5)
        >>> ising(torch.ones(1, 4, 4)).item()  # 32 bonds
        -16.0
    """

    coupling: nn.Parameter
    field: nn.Parameter
    signs: Tensor | None

    def __init__(
        self,
        lattice: Sequence[int] | Graph | None = None,
        coupling: float | Tensor = 1.0,
        field: float | Tensor = 0.0,
        *,
        signs: Tensor | Sequence[float] | None = None,
        periodic: bool | Sequence[bool] = True,
        symmetrise: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        graph, coupling = on_graph(lattice, coupling, periodic=periodic, symmetrise=symmetrise)
        super().__init__(graph.shape, spin)
        self.graph = graph
        self.coupling = as_parameter("coupling", coupling, (len(graph.edges),), (coupling, field), dtype)
        self.field = as_parameter("field", field, graph.shape, (coupling, field), dtype)
        self.tables = NeighbourTables(graph)
        self.register_buffer("signs", None if signs is None else _signs(signs, graph, self.coupling), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Energies ``(*batch)`` in nats of spins ``(*batch, *lattice)``, any real dtype or integers."""
        rows, batch = flatten_batch(x.to(self.coupling.dtype) if not x.is_floating_point() else x, self.event_shape)
        flat = rows.reshape(len(rows), -1)
        pairs = weighted_sum(products(flat, self.graph, self.tables.edges), self.couplings)
        return -(pairs + weighted_sum(flat, self.fields)).reshape(batch)

    @property
    def couplings(self) -> Tensor:
        """J of every edge with its sign, ``(edges,)``."""
        return whole_tensor(self.coupling, len(self.graph.edges)) if self.signs is None else self.coupling * self.signs

    @property
    def fields(self) -> Tensor:
        """H of every site, ``(sites,)``."""
        return whole_tensor(self.field, self.graph.num_sites)

    def conditionals(self) -> IsingConditionals:
        """By colour: log-odds of +1 are twice the local field."""
        return IsingConditionals(self)

    def pairwise(self) -> Pairwise:
        """Tables h x and J x x'."""
        spins = two_levels(-1.0, self.coupling)
        pairs = self.couplings[:, None, None] * torch.outer(spins, spins)
        return Pairwise(self.fields[:, None] * spins, self.tables.edges, pairs, self.graph.shape, self.graph.as_lattice)

    def pairs(self) -> IsingPairs:
        """Couplings and fields by colour."""
        return IsingPairs(self)

    def extra_repr(self) -> str:
        """Shape and edges, for ``repr``."""
        return f"{tuple(self.event_shape)}, {len(self.graph.edges)} edges"


class IsingConditionals:
    """See ``Conditionals``."""

    def __init__(self, model: Ising) -> None:
        self.model = model

    @property
    def blocks(self) -> Sequence[Tensor]:
        """The sites of each colour."""
        return self.model.tables.classes

    def logits(self, block: int, x: Tensor) -> Tensor:
        r"""Log-odds :math:`2 (\sum_j J_{ij} x_j + h_i)` of +1."""
        model = self.model
        local = model.tables.local_fields(block, x, model.couplings)
        return 2 * (local + model.fields[model.tables.classes[block]])


class IsingPairs:
    """See ``Pairs``."""

    def __init__(self, model: Ising) -> None:
        self.model = model
        tables, edges = model.tables, len(model.graph.edges)
        numbers = [tables.get_buffer(f"numbers{c}") for c in range(tables.colours)]
        self._complete = [bool((of_colour < edges).all()) for of_colour in numbers]

    @property
    def blocks(self) -> Sequence[Tensor]:
        """The sites of each colour."""
        return self.model.tables.classes

    def neighbours(self, block: int) -> Tensor:
        """Of every site."""
        return self.model.tables.get_buffer(f"sites{block}")

    def couplings(self, block: int) -> Tensor:
        """J to the neighbours."""
        model = self.model
        return model.coupling if self._one(block) else model.tables.weights(block, model.couplings)

    def signs(self, block: int) -> Tensor | None:
        """Of J to the neighbours."""
        signs = self.model.signs
        return self.model.tables.weights(block, signs) if signs is not None and self._one(block) else None

    def _one(self, block: int) -> bool:
        return self.model.coupling.dim() == 0 and self._complete[block]

    def fields(self, block: int) -> Tensor:
        """H of every site."""
        field = self.model.field
        return field if field.dim() == 0 else self.model.fields[self.model.tables.classes[block]]


def _signs(signs: Tensor | Sequence[float], graph: Graph, coupling: Tensor) -> Tensor:
    """A copy at the dtype and place of the coupling.

    Raises:
        ValueError: for anything but +1 or -1 of every edge, or more than one coupling.
    """
    if coupling.dim():
        raise ValueError(f"expected coupling as one number beside signs, got shape {tuple(coupling.shape)}")
    tensor = torch.as_tensor(signs).detach().to(coupling, copy=True)
    if tensor.shape != (len(graph.edges),):
        raise ValueError(f"expected signs of shape {(len(graph.edges),)}, got {tuple(tensor.shape)}")
    other = (tensor.abs() != 1).nonzero()
    if len(other):
        edge = int(other[0])
        raise ValueError(f"expected signs +1 or -1, got {tensor[edge].item():.6g} at edge {edge}")
    return tensor
