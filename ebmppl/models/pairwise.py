"""What models of pairs share: parameters on a graph, its tables as buffers, and sums over neighbours."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ebmppl.models.graph import Graph


class NeighbourTables(nn.Module):
    """A graph's edges, colour classes and neighbours as buffers, which follow the model from device to device."""

    edges: Tensor

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.register_buffer("edges", graph.edges, persistent=False)
        sites, numbers = graph.neighbours()
        classes = graph.classes()
        self.colours = len(classes)
        for c, members in enumerate(classes):
            degree = max(1, int((numbers[members] < len(graph.edges)).sum(1).max()))
            self.register_buffer(f"members{c}", members, persistent=False)
            self.register_buffer(f"sites{c}", sites[members, :degree], persistent=False)
            self.register_buffer(f"numbers{c}", numbers[members, :degree], persistent=False)

    @property
    def classes(self) -> list[Tensor]:
        """The sites of each colour."""
        return [self.get_buffer(f"members{c}") for c in range(self.colours)]

    def neighbours(self, colour: int, x: Tensor) -> Tensor:
        """Values ``(rows, size, degree)`` of the neighbours of a colour's sites; of missing ones any."""
        near = self.get_buffer(f"sites{colour}")
        return x.index_select(-1, near.flatten()).reshape(*x.shape[:-1], *near.shape)

    def weights(self, colour: int, coupling: Tensor) -> Tensor:
        """Couplings ``(size, degree)`` to them, 0 to missing ones."""
        weights = torch.cat([whole_tensor(coupling, len(self.edges)), coupling.new_zeros(1)])
        numbers = self.get_buffer(f"numbers{colour}")
        return weights.index_select(0, numbers.flatten()).reshape(numbers.shape)

    def local_fields(self, colour: int, x: Tensor, coupling: Tensor) -> Tensor:
        """Sums over neighbours of coupling times value, ``(rows, size)``, of flat values ``(rows, sites)``."""
        near = self.neighbours(colour, x).to(coupling.dtype)
        return (near * self.weights(colour, coupling)).sum(-1)


def products(x: Tensor, graph: Graph, edges: Tensor) -> Tensor:
    """Of the values at the two ends of every edge, ``(rows, edges)``, from ``(rows, sites)``."""
    if graph.periodic is not None:
        sites = x.reshape(len(x), *graph.shape)
        axes = enumerate(zip(graph.shape, graph.periodic, strict=True), 1)
        return torch.cat([_along(sites, axis, n, close).flatten(1) for axis, (n, close) in axes], 1)
    return x.index_select(1, edges[:, 0]) * x.index_select(1, edges[:, 1])


def _along(sites: Tensor, axis: int, length: int, close: bool) -> Tensor:  # noqa: FBT001
    """Products of sites with the next ones along an axis."""
    there = sites.roll(-1, axis) if close else sites.narrow(axis, 1, length - 1)
    return (sites if close else sites.narrow(axis, 0, length - 1)) * there


def on_graph(
    lattice: Sequence[int] | Graph | None,
    coupling: float | Tensor,
    *,
    periodic: bool | Sequence[bool],
    symmetrise: bool,
) -> tuple[Graph, float | Tensor]:
    """The graph of a model and its couplings, from a lattice or graph, or from a matrix of couplings without one.

    Raises:
        ValueError: see ``Graph.lattice`` and ``couplings_of_matrix``.
    """
    if lattice is None:
        return couplings_of_matrix(coupling, symmetrise=symmetrise)
    return lattice if isinstance(lattice, Graph) else Graph.lattice(lattice, periodic), coupling


def couplings_of_matrix(matrix: float | Tensor, *, symmetrise: bool) -> tuple[Graph, Tensor]:
    """The graph of a matrix of couplings, and the coupling of every edge.

    Raises:
        ValueError: for anything but a symmetric square matrix with a zero diagonal.
    """
    if not isinstance(matrix, Tensor) or matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
        got = tuple(matrix.shape) if isinstance(matrix, Tensor) else f"{type(matrix).__name__} {matrix!r:.20}"
        raise ValueError(f"expected a lattice, or coupling as a matrix (sites, sites), got {got}")
    if symmetrise:
        matrix = (matrix + matrix.mT) / 2
    values = matrix.detach()
    if not torch.equal(values, values.mT):
        i, j = (values != values.mT).nonzero()[0].tolist()
        raise ValueError(
            f"expected symmetric couplings, got {values[i, j].item():.6g} at ({i}, {j}) and {values[j, i].item():.6g} "
            f"at ({j}, {i}): symmetrise=True takes their mean"
        )
    loops = values.diagonal().nonzero()
    if len(loops):
        i = int(loops[0])
        raise ValueError(f"expected no self-couplings, got {values[i, i].item():.6g} at ({i}, {i})")
    graph = Graph.of_matrix(values)
    return graph, matrix[graph.edges[:, 0], graph.edges[:, 1]]


def as_parameter(
    name: str, value: float | Tensor, shape: Sequence[int], like: Sequence[object], dtype: torch.dtype | None
) -> nn.Parameter:
    """A scalar or a tensor of a shape as a parameter of a model.

    Args:
        name: for the error.
        value: what was given; a ``Parameter`` is shared, not copied.
        shape: that a tensor must have.
        like: arguments of which the first floating tensor sets the dtype and device.
        dtype: asked for.

    Raises:
        ValueError: for another shape, or values that are not finite.
    """
    if isinstance(value, nn.Parameter):
        parameter = value
    else:
        first = next((v for v in like if isinstance(v, Tensor) and v.is_floating_point()), torch.empty(0))
        tensor = torch.as_tensor(value, dtype=dtype or first.dtype, device=first.device)
        parameter = nn.Parameter(tensor.detach().clone())
    if parameter.dim() and parameter.shape != torch.Size(shape):
        raise ValueError(f"expected {name} as a number or of shape {tuple(shape)}, got {tuple(parameter.shape)}")
    if not bool(torch.isfinite(parameter).all()):
        raise ValueError(f"expected a finite {name}, got {parameter.detach()[~torch.isfinite(parameter)][0].item()}")
    return parameter


def full_parameter(
    name: str, value: Tensor | None, shape: Sequence[int], like: Sequence[object], dtype: torch.dtype | None
) -> nn.Parameter:
    """A tensor of exactly this shape as a parameter; zeros for None."""
    if value is None:
        first = next((t for t in like if isinstance(t, Tensor) and t.is_floating_point()), torch.empty(0))
        value = torch.zeros(torch.Size(shape), dtype=dtype or first.dtype, device=first.device)
    if value.shape != torch.Size(shape):
        raise ValueError(f"expected {name} of shape {tuple(shape)}, got {tuple(value.shape)}")
    return as_parameter(name, value, shape, like, dtype)


def whole_tensor(value: Tensor, size: int) -> Tensor:
    """A scalar or a tensor as a vector ``(size,)``."""
    return value.expand(size) if value.dim() == 0 else value.reshape(size)


def weighted_sum(values: Tensor, weights: Tensor) -> Tensor:
    """Sums ``(rows)`` of values ``(rows, n)`` times weights ``(n,)``, by pieces.

    A product with a vector sums one after the other: 65 nats off for a Potts model of 256 x 256 sites in float32.
    """
    return (values * weights).sum(-1)


def two_levels(low: float, like: Tensor) -> Tensor:
    """``low`` and 1 at the dtype and place of another tensor, without a copy to it: kernels ask in every tick."""
    return torch.linspace(low, 1.0, 2, dtype=like.dtype, device=like.device)
