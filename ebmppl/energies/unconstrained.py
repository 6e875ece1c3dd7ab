"""A constrained energy seen from the unconstrained space, where gradient kernels move."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Transform, biject_to, constraints
from torch.distributions.constraints import Constraint

from ebmppl.energies.base import ONE_SITE, Energy, Shape, require_energy
from ebmppl.energies.supports import elementwise, is_discrete, levels, storage


def unconstrained(energy: Energy) -> Energy:
    """The energy itself where its support is real, else ``Unconstrained(energy)``."""
    return energy if all(is_real(energy.site_support(name)) for name in energy.sites) else Unconstrained(energy)


class Unconstrained(Energy):
    r"""An energy in the unconstrained coordinates z of its support, with x = T(z) = ``biject_to(support)(z)``.

    .. math:: E_z(z) = E(T(z)) - \log |\det \partial T / \partial z|

    so the density of x is unchanged. Works for every support with a bijection that knows its log-Jacobian:
    positive, intervals, simplex, ordered vectors, correlation Cholesky factors ...

    Args:
        energy: the constrained energy.
        keep_discrete: leave discrete sites as they are, with a gradient of zero; ``constrain`` gives them as integers.

    Raises:
        ValueError: for a discrete support that is not kept, or one that has no bijection with a log-Jacobian.

    Example:
        >>> from ebmppl.energies import as_energy
        >>> gamma = as_energy(lambda x: x - torch.log(x), (), constraints.positive)
        >>> Unconstrained(gamma)(torch.zeros(1))  # E(1) - log|dx/dz| = 1 - 0
        tensor([1.])
    """

    def __init__(self, energy: Energy, *, keep_discrete: bool = False) -> None:
        require_energy(energy)
        supports = {name: energy.site_support(name) for name in energy.sites}
        kept = {name: support for name, support in supports.items() if keep_discrete and is_discrete(support)}
        bijections = {
            name: None if name in kept else _bijection(name, shape, supports[name])
            for name, shape in energy.sites.items()
        }
        shapes: dict[str, Shape] = {
            name: shape if (t := bijections[name]) is None else t.inverse_shape(shape)
            for name, shape in energy.sites.items()
        }
        if energy.packed:
            super().__init__(shapes, kept)
        else:
            super().__init__(shapes[ONE_SITE], kept.get(ONE_SITE, constraints.real))
        self.energy = energy
        self.kept = list(kept)
        self.bijections = bijections

    def forward(self, x: Tensor) -> Tensor:
        """Energies ``(*batch)`` in nats at unconstrained points ``(*batch, *event)``, log-Jacobian included."""
        inside, log_jacobian = self._inside(x)
        return self.energy(inside) - log_jacobian

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The energy's own value and gradient, pulled back through the bijections."""
        with torch.enable_grad():
            z = x.detach().requires_grad_()
            inside, log_jacobian = self._inside(z)
            value, pull = self.energy.value_and_grad(inside)
            (grad,) = torch.autograd.grad((inside * pull).sum() - log_jacobian.sum(), z)
        return value - log_jacobian.detach(), grad

    def identity(self) -> tuple[Any, ...]:
        """That of the energy inside."""
        return (type(self), self.energy.identity())

    def _inside(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Points in the support ``(*batch, *event of the energy)`` and the log-Jacobian ``(*batch)`` there."""
        log_jacobian = x.new_zeros(x.shape[: x.dim() - len(self.event_shape)])
        values = self.unpack(x)
        for name in self.kept:
            values[name] = values[name].detach()
        for name, transform in self.bijections.items():
            if transform is None:
                continue
            z = values[name]
            values[name] = transform(z)
            term = transform.log_abs_det_jacobian(z, values[name])
            rest = len(self.sites[name]) - transform.domain.event_dim
            log_jacobian = log_jacobian + (term.flatten(-rest).sum(-1) if rest else term)
        return self.energy.pack(values), log_jacobian

    @property
    def log_z(self) -> Tensor | None:
        """A change of coordinates leaves the partition function as it is."""
        return self.energy.log_z

    def constrain(self, x: Tensor) -> dict[str, Tensor]:
        """Values by site in the support, ``(*batch, *site)``."""
        values = self.unpack(x)
        for name, transform in self.bijections.items():
            if transform is not None:
                values[name] = transform(values[name])
        for name in self.kept:
            integers = storage(levels(self.site_support(name)) or [1 << 32])
            values[name] = values[name].to(integers) if values[name].is_floating_point() else values[name]
        return values

    def unconstrain(self, values: Mapping[str, Tensor]) -> Tensor:
        """The inverse of ``constrain``; infinite at the edge of a support, in whose place torch may take a point inside."""
        transforms, found = self.transforms, dict(values)
        for name in transforms.keys() & values.keys():
            x, support = values[name], elementwise(self.energy.site_support(name))
            z = transforms[name](x)
            if isinstance(support, (constraints.interval, constraints.half_open_interval)):
                z = z.masked_fill(x == support.lower_bound, -torch.inf).masked_fill(x == support.upper_bound, torch.inf)
            if isinstance(support, type(constraints.simplex)):
                z = z.masked_fill((x == 0).any(-1, keepdim=True), -torch.inf)
            found[name] = z
        return self.pack(found)

    @property
    def transforms(self) -> dict[str, Transform]:
        """Pyro's convention: by site, the map from the support to the unconstrained space."""
        return {name: t.inv for name, t in self.bijections.items() if t is not None}


def is_real(support: Constraint) -> bool:
    """Whether a constraint lets every real number pass (``real``, ``real_vector``, independent of these)."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return type(support) is type(constraints.real)  # a copy of an energy has a copy of its support


def _bijection(name: str, shape: torch.Size, support: Constraint) -> Transform | None:
    if is_real(support):
        return None
    try:
        discrete = support.is_discrete
    except NotImplementedError as error:
        raise ValueError(f"expected a definite support for site {name!r}, got {support}") from error
    if discrete:
        raise ValueError(f"expected a continuous support for site {name!r}, got the discrete {support}")
    if support.event_dim > len(shape):
        raise ValueError(
            f"expected site {name!r} with at least {support.event_dim} axes for its support {support}, "
            f"got shape {tuple(shape)}"
        )
    try:
        transform = biject_to(support)
        z = torch.zeros(3 if 2 in shape else 2, *transform.inverse_shape(shape))  # a batch, so that its axis fits too
        x = transform(z)
        term = transform.log_abs_det_jacobian(z, x)
        if term.dim() != z.dim() - transform.domain.event_dim:  # torch's stack along an axis of the event
            raise ValueError(f"its log-Jacobian has shape {tuple(term.shape[1:])}")
    except (NotImplementedError, AssertionError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"site {name!r}: no bijection with a log-Jacobian for its support {support} and shape {tuple(shape)}: {error}"
        ) from error
    if x.shape[1:] != shape:
        raise ValueError(f"expected site {name!r} of shape {tuple(x.shape[1:])} for {support}, got {tuple(shape)}")
    return transform
