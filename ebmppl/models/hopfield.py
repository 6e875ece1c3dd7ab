"""Hopfield's associative memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ebmppl.energies.base import Energy, flatten_batch
from ebmppl.energies.structure import Pairwise
from ebmppl.energies.supports import spin
from ebmppl.models.pairwise import as_parameter, two_levels, whole_tensor


class Hopfield(Energy):
    r"""Spins with Hebb's couplings, :math:`J_{ij} = \frac1n \sum_\mu \xi_i^\mu \xi_j^\mu`, zero for i = j:

    .. math:: E(x) = -\sum_{i<j} J_{ij} x_i x_j - \sum_i h_i x_i

    Stored patterns are minima while there are few of them: up to about 0.138 n random ones (Amit, Gutfreund and
    Sompolinsky 1985). Energies take patterns x sites operations instead of sites^2; to learn single couplings start
    ``Ising(coupling=hopfield.couplings)``. ``beta * hopfield`` tempers.

    References:
        Hopfield 1982, "Neural networks and physical systems with emergent collective computational abilities".

    Args:
        patterns: spins -1 or +1, ``(patterns, sites)``; kept as a buffer.
        field: h: a number for all sites, or ``(sites,)``.
        dtype: of the parameters; that of floating patterns, else torch's default.

    Raises:
        ValueError: for patterns that are not spins, or shapes that don't fit.

    Example:
        >>> import torch
        >>> memory = Hopfield(torch.tensor([[1, -1, 1, -1]]))
        >>> memory(memory.patterns).item()  # -(n - 1) / 2
        -1.5
    """  # noqa: D415

    patterns: Tensor
    field: nn.Parameter

    def __init__(self, patterns: Tensor, field: float | Tensor = 0.0, *, dtype: torch.dtype | None = None) -> None:
        if patterns.dim() != 2 or not patterns.numel():
            raise ValueError(f"expected patterns of shape (patterns, sites), got {tuple(patterns.shape)}")
        wrong = (~spin.check(patterns)).nonzero()
        if len(wrong):
            m, i = wrong[0].tolist()
            raise ValueError(
                f"expected patterns of spins -1 and 1, got {patterns[m, i].item()} (pattern {m}, site {i})"
            )
        super().__init__((patterns.shape[1],), spin)
        like = (patterns, field)
        self.field = as_parameter("field", field, self.event_shape, like, dtype)
        self.register_buffer("patterns", patterns.to(self.field).clone())
        self.register_buffer("alone", torch.arange(patterns.shape[1], device=self.field.device), persistent=False)

    alone: Tensor

    @property
    def couplings(self) -> Tensor:
        """J ``(sites, sites)``, symmetric with a zero diagonal."""
        couplings = self.patterns.mT @ self.patterns / self.patterns.shape[1]
        return couplings - torch.diag(couplings.diagonal())

    @property
    def fields(self) -> Tensor:
        """H of every site, ``(sites,)``."""
        return whole_tensor(self.field, len(self.alone))

    def forward(self, x: Tensor) -> Tensor:
        """Energies ``(*batch)`` in nats of spins ``(*batch, sites)``, at real numbers, too."""
        flatten_batch(x, self.event_shape)
        x = x.to(self.field.dtype)
        count, n = self.patterns.shape
        overlaps = x @ self.patterns.mT
        pairs = (overlaps.square().sum(-1) - count * x.square().sum(-1)) / (2 * n)
        return -pairs - x @ self.fields

    def overlaps(self, x: Tensor) -> Tensor:
        """Overlaps with the patterns, the means of x_i xi_i in [-1, 1], ``(*batch, patterns)``."""
        return x.to(self.field.dtype) @ self.patterns.mT / self.patterns.shape[1]

    def conditionals(self) -> HopfieldConditionals:
        """Single sites, because all interact."""
        return HopfieldConditionals(self)

    def pairwise(self) -> Pairwise:
        """Tables h x and J x x' of all pairs."""
        n, spins = len(self.alone), two_levels(-1.0, self.field)
        edges = torch.triu_indices(n, n, 1, device=spins.device).mT.contiguous()
        couplings = self.couplings[edges[:, 0], edges[:, 1]][:, None, None]
        return Pairwise(self.fields[:, None] * spins, edges, couplings * torch.outer(spins, spins), self.event_shape)


class HopfieldConditionals:
    """See ``Conditionals``."""

    def __init__(self, model: Hopfield) -> None:
        self.model = model

    @property
    def blocks(self) -> Sequence[Tensor]:
        """Every site alone."""
        return self.model.alone.split(1)

    def logits(self, block: int, x: Tensor) -> Tensor:
        """Twice the local field."""
        model = self.model
        x = x.to(model.field.dtype)
        count, n = model.patterns.shape
        local = ((x @ model.patterns.mT) @ model.patterns[:, block] - count * x[:, block]) / n
        return 2 * (local + model.fields[block]).unsqueeze(-1)
