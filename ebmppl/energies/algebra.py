"""Energies made of energies: sums (products of experts), tempering, mixtures and bridges."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce

import torch
from torch import Tensor, nn

from ebmppl.energies.analytic import AnalyticEnergy
from ebmppl.energies.base import Energy, like, register
from ebmppl.energies.bonds import Bonds, ScaledBonds
from ebmppl.energies.combined import WeightedConditionals, WeightedPairs, present
from ebmppl.energies.discrete import Conditionals, Pairs
from ebmppl.energies.gaussian import Quadratic
from ebmppl.energies.space import shared_space
from ebmppl.energies.structure import Pairwise


def add(*energies: Energy) -> Energy:
    """The sum of energies; of quadratic ones with nothing to train or to temper it is a ``Quadratic``."""
    total = Sum(energies)
    fixed = all(isinstance(e, AnalyticEnergy) for e in total.terms) and not any(True for _ in total.parameters())
    quadratic = total.as_quadratic() if fixed else None
    return total if quadratic is None else quadratic


class Sum(Energy):
    r"""A product of experts: the energies add up, :math:`E(x) = \sum_k E_k(x)` (Hinton 2002). Nested sums flatten.

    Args:
        energies: two or more energies over the same sites and support.

    Raises:
        ValueError: for no energies, or energies over different spaces.
    """

    terms: nn.ModuleList

    def __init__(self, energies: Sequence[Energy]) -> None:
        flat = [e for energy in energies for e in (_members(energy.terms) if isinstance(energy, Sum) else [energy])]
        super().__init__(*shared_space(flat))
        self.terms = nn.ModuleList(flat)

    def forward(self, x: Tensor) -> Tensor:
        """Energies ``(*batch)`` in nats."""
        return _total(energy(x) for energy in _members(self.terms))

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Sums of the terms' values and gradients (closed forms are used where terms have them)."""
        values, grads = zip(*(energy.value_and_grad(x) for energy in _members(self.terms)), strict=True)
        return _total(values), _total(grads)

    def pairwise(self) -> Pairwise | None:
        """The sum of the terms' tables when every term has them."""
        forms = present([energy.pairwise() for energy in _members(self.terms)])
        return None if forms is None else reduce(Pairwise.plus, forms)

    def conditionals(self) -> Conditionals | None:
        """The terms' logits add up, where every term has conditionals."""
        parts = present([energy.conditionals() for energy in _members(self.terms)])
        return None if parts is None else WeightedConditionals(parts)

    def relaxed(self) -> Energy | None:
        """The sum of the terms' extensions, where every term has one."""
        parts = present([energy.relaxed() for energy in _members(self.terms)])
        return None if parts is None else Sum(parts)

    def as_quadratic(self) -> Quadratic | None:
        """The quadratic form when every term has one."""
        forms = present([energy.as_quadratic() for energy in _members(self.terms)])
        if forms is None:
            return None
        a, b, c = (torch.stack(part).sum(0) for part in zip(*((q.A, q.b, q.constant) for q in forms), strict=True))
        return Quadratic(a, b, c)


class Tempered(Energy):
    """An energy at inverse temperature beta: beta * E(x).

    Args:
        energy: the energy.
        beta: finite inverse temperature >= 0; a scalar, or one value per row of the batch. Kept as a tensor
            (buffer or ``nn.Parameter``), so changing it in place retraces nothing; a Python number takes the
            dtype of the energy's tensors (torch's default where there are none).

    Raises:
        ValueError: for a beta that is negative, infinite or NaN.
    """

    beta: Tensor

    def __init__(self, energy: Energy, beta: float | Tensor) -> None:
        super().__init__(*shared_space([energy]))
        self.energy = energy
        register(self, "beta", _inverse_temperature(beta, like(energy)))

    def forward(self, x: Tensor) -> Tensor:
        """Energies ``(*batch)`` in nats."""
        return _scaled(self.beta, self.energy(x))

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The energy's value and gradient times beta."""
        value, grad = self.energy.value_and_grad(x)
        beta = self.beta.detach()
        return _scaled(beta, value), _scaled(_rows(beta, self.event_shape), grad)

    def conditionals(self) -> Conditionals | None:
        """Those of the energy, their logits times beta."""
        inside = self.energy.conditionals()
        return None if inside is None else WeightedConditionals([inside], lambda: [self.beta])

    def pairwise(self) -> Pairwise | None:
        """The energy's tables times one beta."""
        inside = self.energy.pairwise()
        return None if inside is None or self.beta.dim() else inside.tempered(self.beta)

    def bonds(self) -> Bonds | None:
        """Those of the energy, their strengths and fields times beta."""
        inside = self.energy.bonds()
        return None if inside is None else ScaledBonds(inside, self._times)

    def _times(self, value: Tensor, axes: int) -> Tensor:
        """Beta times a value that has so many axes without rows."""
        beta = self.beta.to(value.dtype)
        return value * (beta.reshape(*beta.shape, *[1] * axes) if beta.dim() else beta)

    def pairs(self) -> Pairs | None:
        """Those of the energy times beta, for one beta."""
        inside = self.energy.pairs() if self.beta.dim() == 0 else None
        return None if inside is None else WeightedPairs(inside, lambda: self.beta)

    def relaxed(self) -> Energy | None:
        """Beta times the energy's extension."""
        inside = self.energy.relaxed()
        return None if inside is None else Tempered(inside, self.beta)

    def as_quadratic(self) -> Quadratic | None:
        """Beta times the quadratic form, for one positive beta."""
        form = self.energy.as_quadratic()
        if form is None or self.beta.dim() or not bool(self.beta > 0):
            return None
        beta = self.beta.to(form.A.dtype)
        return Quadratic(beta * form.A, beta * form.b, beta * form.constant)


class GeometricPath(Energy):
    r"""The geometric bridge between two energies, :math:`E_\beta(x) = (1-\beta) E_0(x) + \beta E_1(x)`.

    The path of annealed importance sampling (Neal 2001) and of tempered sequential Monte Carlo.

    Args:
        start: energy at beta = 0 (the base, with known log Z where one wants log Z).
        end: energy at beta = 1.
        beta: position on the path in [0, 1], a scalar or one value per row of the batch; a buffer.

    Raises:
        ValueError: for energies over different spaces or beta outside [0, 1].
    """

    beta: Tensor

    def __init__(self, start: Energy, end: Energy, beta: float | Tensor = 1.0) -> None:
        super().__init__(*shared_space([start, end]))
        self.start, self.end = start, end
        beta = _inverse_temperature(beta, like(start, end))
        if bool((beta > 1).any()):
            raise ValueError(f"expected beta in [0, 1], got {beta.tolist()}")
        register(self, "beta", beta)

    def at(self, beta: float | Tensor) -> GeometricPath:
        """The energy at another position; the two ends are shared."""
        return GeometricPath(self.start, self.end, beta)

    def forward(self, x: Tensor) -> Tensor:
        """Energies ``(*batch)`` in nats."""
        return _scaled(1 - self.beta, self.start(x)) + _scaled(self.beta, self.end(x))

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The same combination of the ends' values and gradients."""
        (e0, g0), (e1, g1) = self.start.value_and_grad(x), self.end.value_and_grad(x)
        beta = self.beta.detach()
        rows = _rows(beta, self.event_shape)
        return (
            _scaled(1 - beta, e0) + _scaled(beta, e1),
            _scaled(1 - rows, g0) + _scaled(rows, g1),
        )

    def conditionals(self) -> Conditionals | None:
        """The same combination of the ends' logits, where both have conditionals."""
        parts = present([self.start.conditionals(), self.end.conditionals()])
        return None if parts is None else WeightedConditionals(parts, lambda: [1 - self.beta, self.beta])

    def pairwise(self) -> Pairwise | None:
        """The same combination of the ends' tables, for one beta."""
        parts = present([self.start.pairwise(), self.end.pairwise()])
        return (
            None
            if parts is None or self.beta.dim()
            else parts[0].tempered(1 - self.beta).plus(parts[1].tempered(self.beta))
        )

    def relaxed(self) -> Energy | None:
        """The path between the ends' extensions, where both have one."""
        parts = present([self.start.relaxed(), self.end.relaxed()])
        return None if parts is None else GeometricPath(parts[0], parts[1], self.beta)

    def as_quadratic(self) -> Quadratic | None:
        """The quadratic form where both ends have one and beta is one number."""
        forms = (self.start.as_quadratic(), self.end.as_quadratic())
        if forms[0] is None or forms[1] is None or self.beta.dim():
            return None
        w = self.beta.to(forms[0].A.dtype)
        return Quadratic(*((1 - w) * getattr(forms[0], n) + w * getattr(forms[1], n) for n in ("A", "b", "constant")))


class Mixture(Energy):
    r"""A mixture of unnormalised densities, :math:`E(x) = -\log \sum_k w_k e^{-E_k(x)}`.

    The weights multiply the components' *unnormalised* densities, so component k has probability
    proportional to :math:`w_k Z_k`; log Z is known where every component's is.

    Args:
        energies: components over the same sites and support.
        weights: finite positive weights ``(components,)``; equal when None. A tensor keeps its dtype, numbers
            take that of the energies' tensors (torch's default where there are none).

    Raises:
        ValueError: for weights that are not positive or of another number than the energies.
    """

    log_weights: Tensor
    components: nn.ModuleList

    def __init__(self, energies: Sequence[Energy], weights: Sequence[float] | Tensor | None = None) -> None:
        super().__init__(*shared_space(energies))
        self.components = nn.ModuleList(energies)
        w = [1.0] * len(energies) if weights is None else weights
        w = w if isinstance(w, Tensor) else like(*energies).new_tensor(w)
        if w.shape != (len(energies),) or not bool(((w > 0) & torch.isfinite(w)).all()):
            raise ValueError(f"expected {len(energies)} positive weights, got {w.tolist()}")
        self.register_buffer("log_weights", w.log())

    def forward(self, x: Tensor) -> Tensor:
        """Energies ``(*batch)`` in nats."""
        return self._combine([energy(x) for energy in _members(self.components)])[0]

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient: the components' gradients weighted by their responsibilities."""
        values, grads = zip(*(energy.value_and_grad(x) for energy in _members(self.components)), strict=True)
        energy, share = self._combine(values)
        grad = _total(_scaled(_rows(s, self.event_shape), g) for s, g in zip(share.unbind(), grads, strict=True))
        return energy, grad

    def _combine(self, values: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        stacked = torch.stack(list(values))
        log_weights = self.log_weights.to(stacked.dtype).reshape(-1, *[1] * (stacked.dim() - 1))
        logits = log_weights - stacked
        total = torch.logsumexp(logits, 0)
        return -total, torch.exp(logits - total)

    @property
    def log_z(self) -> Tensor | None:
        """Log sum of w_k Z_k in nats where all components know theirs."""
        parts = present([energy.log_z for energy in _members(self.components)])
        if parts is None:
            return None
        return torch.logsumexp(self.log_weights + torch.stack([part.to(self.log_weights) for part in parts]), 0)


def _members(modules: nn.ModuleList) -> list[Energy]:
    return [m for m in modules if isinstance(m, Energy)]


def _total(values: Iterable[Tensor]) -> Tensor:
    return reduce(torch.add, values)


def _inverse_temperature(beta: float | Tensor, as_this: Tensor) -> Tensor:
    value = beta if isinstance(beta, Tensor) else as_this.new_tensor(float(beta))
    if not bool(((value.detach() >= 0) & torch.isfinite(value.detach())).all()):
        raise ValueError(f"expected an inverse temperature beta >= 0, got {value.detach().tolist()}; it must be finite")
    return value


def _rows(weight: Tensor, event_shape: torch.Size) -> Tensor:
    """A weight per row, with axes for the event; a scalar stays one."""
    return weight.reshape(*weight.shape, *[1] * len(event_shape)) if weight.dim() else weight


def _scaled(weight: Tensor, value: Tensor) -> Tensor:
    """Weight * value, where a weight of 0 switches an infinite energy off."""
    return torch.where(weight == 0, torch.zeros_like(value), weight.to(value.dtype) * value)
