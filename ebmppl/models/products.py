"""Products of experts: any energies that add up."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor, nn

from ebmppl.energies.algebra import Sum
from ebmppl.energies.base import Energy, like, register
from ebmppl.energies.combined import WeightedConditionals, present
from ebmppl.energies.discrete import Conditionals
from ebmppl.energies.gaussian import Quadratic
from ebmppl.energies.structure import Pairwise


class ProductOfExperts(Energy):
    r"""Experts whose densities are multiplied, so their energies add up: :math:`E(x) = \sum_m w_m E_m(x)`.

    Without weights it is ``experts[0] + experts[1] + ...``. The weights may be learned: give a ``Parameter``.

    References:
        Hinton 2002, "Training products of experts by minimizing contrastive divergence"; with weights it is the
        logarithmic opinion pool of Heskes 1998, "Selecting weighting factors in logarithmic opinion pools".

    Args:
        experts: energies over the same sites and support.
        weights: finite and positive, ``(experts,)``; 1 when None.

    Raises:
        ValueError: for no experts, experts over different spaces, or weights that are not positive or too many.
    """

    weights: Tensor
    experts: nn.ModuleList

    def __init__(self, experts: Sequence[Energy], weights: Sequence[float] | Tensor | None = None) -> None:
        space = Sum(list(experts))  # for its checks
        super().__init__(space.sites if space.packed else space.event_shape, space.support)
        if weights is None:
            weights = like(*experts).new_ones(len(experts))
        weights = weights if isinstance(weights, Tensor) else like(*experts).new_tensor(weights)
        values = weights.detach()
        if values.shape != (len(experts),) or not bool(((values > 0) & torch.isfinite(values)).all()):
            raise ValueError(f"expected {len(experts)} positive weights, got {values.tolist()}")
        self.experts = nn.ModuleList(experts)
        register(self, "weights", weights)

    def forward(self, x: Tensor) -> Tensor:
        """Energies ``(*batch)`` in nats."""
        return self._total([expert(x) for expert in self._experts()])

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted sums of the experts' values and gradients (closed forms are used where experts have them)."""
        with torch.no_grad():
            values, grads = zip(*(expert.value_and_grad(x) for expert in self._experts()), strict=True)
            return self._total(values), self._total(grads)

    def conditionals(self) -> Conditionals | None:
        """The experts' logits, weighted and added, where every expert has conditionals."""
        parts = present([expert.conditionals() for expert in self._experts()])
        return None if parts is None else WeightedConditionals(parts, lambda: self.weights.unbind())

    def pairwise(self) -> Pairwise | None:
        """The weighted sum of the experts' tables, where every expert has them."""
        forms = present([expert.pairwise() for expert in self._experts()])
        if forms is None:
            return None
        weighted = [form.tempered(w) for form, w in zip(forms, self.weights.unbind(), strict=True)]
        return reduce(Pairwise.plus, weighted)

    def relaxed(self) -> Energy | None:
        """The product of the experts' extensions, where every expert has one."""
        parts = present([expert.relaxed() for expert in self._experts()])
        return None if parts is None else ProductOfExperts(parts, self.weights)

    def as_quadratic(self) -> Quadratic | None:
        """The quadratic form where every expert has one."""
        forms = present([expert.as_quadratic() for expert in self._experts()])
        if forms is None:
            return None
        return Quadratic(*(self._total([getattr(form, name) for form in forms]) for name in ("A", "b", "constant")))

    def _experts(self) -> list[Energy]:
        return [expert for expert in self.experts if isinstance(expert, Energy)]

    def _total(self, values: Sequence[Tensor]) -> Tensor:
        weighted = [w.to(value.dtype) * value for w, value in zip(self.weights.unbind(), values, strict=True)]
        total = weighted[0]
        for value in weighted[1:]:
            total = total + value
        return total
