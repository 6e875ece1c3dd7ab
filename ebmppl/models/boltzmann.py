"""The general Boltzmann machine: visible and hidden bits on any graph."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ebmppl.energies.base import Energy, flatten_batch
from ebmppl.energies.clamped import Clamped
from ebmppl.energies.structure import Pairwise
from ebmppl.models.graph import Graph
from ebmppl.models.pairwise import (
    NeighbourTables,
    as_parameter,
    couplings_of_matrix,
    products,
    two_levels,
    weighted_sum,
    whole_tensor,
)
from ebmppl.models.rbm_views import log1p_exp

MOST_HIDDEN = 20  # interacting hidden units that are enumerated
CHUNK = 4096  # states at a time


class BoltzmannMachine(Energy):
    r"""Bits on a graph, visible ones first: :math:`E(v, h) = -\sum_{(i,j)} W_{ij} x_i x_j - \sum_i b_i x_i`, x = (v, h).

    An energy of the sites ``v`` and ``h`` (of ``v`` alone without hidden units). ``posterior(v)`` is the energy of the
    hidden units given visible ones, ``free_energy(v)`` sums them out where that can be done.

    References:
        Ackley, Hinton and Sejnowski 1985, "A learning algorithm for Boltzmann machines".

    Args:
        num_visible: visible units, sites 0 ... num_visible - 1 of the graph.
        num_hidden: hidden units, the sites after them.
        graph: which units interact; by default all pairs, or those at which a matrix of couplings is not zero.
        coupling: W: a number for all edges, ``(edges,)`` in the order of ``graph.edges``, or a symmetric matrix
            ``(units, units)`` with a zero diagonal; by default normal of standard deviation 0.01.
        bias: b: a number for all units, or ``(units,)``.
        symmetrise: take the mean of a matrix and its transpose.
        generator: of the default couplings.
        dtype: of the parameters; that of given tensors, else torch's default.

    Raises:
        ValueError: for a matrix that is not symmetric, self-couplings, a coupling to a missing unit, or other shapes.

    Example:
        >>> import torch
        >>> machine = BoltzmannMachine(2, 1, coupling=0.5)
        >>> machine.pack({"v": torch.ones(1, 2), "h": torch.ones(1, 1)})
        tensor([[1., 1., 1.]])
        >>> machine(torch.ones(1, 3)).item()
        -1.5
    """

    coupling: nn.Parameter
    bias: nn.Parameter

    def __init__(
        self,
        num_visible: int,
        num_hidden: int = 0,
        *,
        graph: Graph | None = None,
        coupling: float | Tensor | None = None,
        bias: float | Tensor = 0.0,
        symmetrise: bool = False,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if num_visible < 1 or num_hidden < 0:
            raise ValueError(f"expected num_visible >= 1 and num_hidden >= 0, got {num_visible} and {num_hidden}")
        sites = {"v": (num_visible,)} | ({"h": (num_hidden,)} if num_hidden else {})
        super().__init__(sites, constraints.boolean)
        self.num_visible, self.num_hidden = num_visible, num_hidden
        units = num_visible + num_hidden
        if graph is None and isinstance(coupling, Tensor) and coupling.dim() == 2:
            graph, coupling = couplings_of_matrix(coupling, symmetrise=symmetrise)
        if graph is None:
            graph = Graph(torch.combinations(torch.arange(units)), (units,))
        if graph.num_sites != units:
            raise ValueError(f"expected couplings of {num_visible} + {num_hidden} units, got {graph.num_sites}")
        if coupling is None:
            coupling = 0.01 * torch.randn(len(graph.edges), generator=generator, dtype=dtype)
        self.graph = graph
        self.coupling = as_parameter("coupling", coupling, (len(graph.edges),), (coupling, bias), dtype)
        self.bias = as_parameter("bias", bias, (units,), (coupling, bias), dtype)
        self.tables = NeighbourTables(graph)
        self.dense = 8 * len(graph.edges) > units**2  # a product with a matrix beats gathering both ends of every edge
        self.groups = _groups(graph.edges - num_visible, num_hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Energies ``(*batch)`` in nats of packed bits ``(*batch, units)``, at real numbers, too."""
        rows, batch = flatten_batch(x.to(self.coupling.dtype), self.event_shape)
        if self.dense:
            pairs = 0.5 * ((rows @ self.couplings) * rows).sum(-1)
        else:
            ends = products(rows, self.graph, self.tables.edges)
            pairs = weighted_sum(ends, whole_tensor(self.coupling, len(self.graph.edges)))
        return -(pairs + weighted_sum(rows, self.biases)).reshape(batch)

    @property
    def couplings(self) -> Tensor:
        """W as a symmetric matrix ``(units, units)``."""
        i, j = self.tables.edges.unbind(1)
        half = self.coupling.new_zeros(self.graph.num_sites, self.graph.num_sites)
        half = half.index_put((i, j), whole_tensor(self.coupling, len(i)))
        return half + half.mT

    @property
    def biases(self) -> Tensor:
        """B of every unit, ``(units,)``."""
        return whole_tensor(self.bias, self.graph.num_sites)

    def conditionals(self) -> BoltzmannConditionals:
        """By colour: the log-odds of 1 are the local field."""
        return BoltzmannConditionals(self)

    def pairwise(self) -> Pairwise:
        """Tables b x and W x x'."""
        bits = two_levels(0.0, self.coupling)
        pairs = whole_tensor(self.coupling, len(self.graph.edges))[:, None, None] * torch.outer(bits, bits)
        return Pairwise(self.biases[:, None] * bits, self.tables.edges, pairs, self.graph.shape)

    def posterior(self, v: Tensor) -> Clamped:
        """The energy of ``h`` given visible bits.

        Args:
            v: ``(V,)``, or ``(rows, V)`` for one in every row of the batch.
        """
        if not self.num_hidden:
            raise ValueError("expected hidden units, got a machine without")
        return Clamped(self, ["v"], {"v": v})

    def free_energy(self, v: Tensor) -> Tensor:
        """F(v) = -log sum_h exp(-E(v, h)), ``(*batch)`` in nats of visible bits ``(*batch, V)``.

        Hidden units that interact, be it through others, are enumerated together; the rest is in closed form.

        Raises:
            ValueError: for more than 20 hidden units that interact.
        """
        most = max(map(len, self.groups), default=0)
        if most > MOST_HIDDEN:
            raise ValueError(
                f"expected at most {MOST_HIDDEN} hidden units that interact, got {most} (2^{most} states for every v): "
                "sample posterior(v) instead"
            )
        rows, batch = flatten_batch(v.to(self.coupling.dtype), torch.Size([self.num_visible]))
        couplings, biases, n = self.couplings, self.biases, self.num_visible
        energy = -0.5 * ((rows @ couplings[:n, :n]) * rows).sum(-1) - rows @ biases[:n]
        fields = biases[n:] + rows @ couplings[:n, n:]
        single = [group[0] for group in self.groups if len(group) == 1]
        energy = energy - log1p_exp(fields[:, single]).sum(-1)
        for group in self.groups:
            if len(group) > 1:
                at = torch.tensor(group, device=rows.device)
                energy = energy - _log_sum(fields[:, at], couplings[n:, n:][at][:, at])
        return energy.reshape(batch)


class BoltzmannConditionals:
    """See ``Conditionals``."""

    def __init__(self, model: BoltzmannMachine) -> None:
        self.model = model

    @property
    def blocks(self) -> Sequence[Tensor]:
        """The units of each colour."""
        return self.model.tables.classes

    def logits(self, block: int, x: Tensor) -> Tensor:
        r"""Log-odds :math:`\sum_j W_{ij} x_j + b_i` of 1."""
        model = self.model
        local = model.tables.local_fields(block, x, model.coupling)
        return local + model.biases[model.tables.classes[block]]


def _log_sum(fields: Tensor, couplings: Tensor) -> Tensor:
    """Log of the sum over bits s of exp(fields's + s'couplings s / 2), ``(rows,)``, some states at a time."""
    m = fields.shape[1]
    parts = []
    for numbers in torch.arange(2**m, device=fields.device).split(CHUNK):
        states = (numbers.unsqueeze(1) >> torch.arange(m, device=fields.device) & 1).to(fields.dtype)
        inner = 0.5 * ((states @ couplings) * states).sum(-1)
        parts.append(torch.logsumexp(fields @ states.mT + inner, -1))
    return torch.logsumexp(torch.stack(parts), 0)


def _groups(edges: Tensor, units: int) -> list[list[int]]:
    """The connected components of units 0 ... units - 1; edges to others (negative) don't count."""
    near: list[list[int]] = [[] for _ in range(units)]
    for i, j in edges[(edges >= 0).all(1)].tolist():
        near[i].append(j)
        near[j].append(i)
    groups, seen = [], [False] * units
    for root in range(units):
        if seen[root]:
            continue
        group, waiting = [], [root]
        seen[root] = True
        while waiting:
            unit = waiting.pop()
            group.append(unit)
            fresh = [other for other in near[unit] if not seen[other]]
            for other in fresh:
                seen[other] = True
            waiting += fresh
        groups.append(sorted(group))
    return groups
