"""The one energy: a module from points to energies in nats, batch first, that also is a Pyro potential."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial, reduce
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from ebmppl.arguments import size
from ebmppl.energies.linalg import rowwise

if TYPE_CHECKING:
    from torch.distributions import Transform

    from ebmppl.energies.bonds import Bonds
    from ebmppl.energies.discrete import Conditionals, Layers, Pairs, RealLayers
    from ebmppl.energies.gaussian import Quadratic
    from ebmppl.energies.matching import Matching
    from ebmppl.energies.structure import Pairwise

Shape = Sequence[int]
Support = Constraint | dict[str, Constraint]
ONE_SITE = "x"
_FORMS = {"value_and_grad", "matched", "log_z", "as_quadratic", "identity", "relaxed"} | {
    "conditionals", "bonds", "pairs", "bipartite", "pairwise"
}  # fmt: skip
RESERVED = ("chain", "draw", "sample")  # dims of ArviZ


def require_names(sites: Iterable[str]) -> None:
    """Raise ``ValueError`` for site names that ArviZ keeps for itself."""
    reserved = sorted(set(sites) & set(RESERVED))
    if reserved:
        raise ValueError(f"expected site names other than ArviZ's {list(RESERVED)}, got {reserved}")


class Energy(nn.Module):
    """Abstract energy: ``forward`` maps points ``(*batch, *event)`` to energies ``(*batch)`` in nats.

    The unnormalised density is ``exp(-E(x))``: lower energy means more probable. Several named sites
    are packed into one vector, so ``event_shape`` is then ``(total size,)``; an energy over one tensor
    has the one site ``"x"``. Final classes implement ``forward`` and are not subclassed further.

    Args:
        event_shape: shape of one point, or a dict of shapes by site name.
        support: constraint of the points, or a dict of constraints by site (missing sites are real).

    Raises:
        ValueError: for an empty or negative shape, reserved site names, or a support that names unknown sites.
    """

    event_shape: torch.Size
    sites: dict[str, torch.Size]
    packed: bool
    own_values: bool = True  # False where the gradient alone is known, as of ``ScoreEnergy``

    def __init__(self, event_shape: Shape | Mapping[str, Shape], support: Support = constraints.real) -> None:
        super().__init__()
        self.packed = isinstance(event_shape, Mapping)
        shapes = event_shape if isinstance(event_shape, Mapping) else {ONE_SITE: event_shape}
        self.sites = {name: size(f"the shape of site {name!r}", shape) for name, shape in shapes.items()}
        require_names(self.sites)
        if not self.sites:
            raise ValueError("expected at least one site, got an empty dict of shapes")
        self.event_shape = (
            torch.Size([sum(s.numel() for s in self.sites.values())]) if self.packed else self.sites[ONE_SITE]
        )
        self.support = support
        if isinstance(support, dict):
            unknown = sorted(set(support) - set(self.sites))
            if unknown:
                raise ValueError(f"support names unknown sites {unknown}; the sites are {sorted(self.sites)}")
        for name in self.sites:
            constraint = self.site_support(name)
            if not isinstance(constraint, Constraint):
                raise ValueError(f"expected a constraint as the support of site {name!r}, got {constraint!r}")

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """A class with a ``forward`` of its own has no closed form of a parent's, but for those that it gives itself."""
        super().__init_subclass__(**kwargs)
        for name in _FORMS - vars(cls).keys() if "forward" in vars(cls) else ():
            setattr(cls, name, vars(Energy)[name])

    # draws of a run from which tracing its gradient pays: it saves some 10 us an operation, and costs up to a second
    traced_from: int = 1000
    looped: bool = False  # points are taken one by one, for code looks at their values; a run tries the gradient then

    def forward(self, x: Tensor) -> Tensor:
        """Energies ``(*batch)`` in nats of points ``(*batch, *event)``."""
        raise NotImplementedError(f"{type(self).__name__} must implement forward(x)")

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Energies ``(*batch)`` and their gradients ``(*batch, *event)`` in x, both detached.

        The default is autograd of the sum over the batch, which is right because rows are independent.
        """
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            energy = rowwise(self, x)
            (grad,) = torch.autograd.grad(energy, x, torch.ones_like(energy))
        return energy.detach(), grad

    @property
    def has_values(self) -> bool:
        """Whether values are known; if not, of this energy or of one inside, ``value_and_grad`` gives NaN for them."""
        return all(part.own_values for part in self.modules() if isinstance(part, Energy))

    def matched(self, x: Tensor, what: Matching) -> tuple[Tensor, Tensor | None] | None:
        """The terms of ``Matching`` at x ``(rows, *event)`` by a closed form, differentiable in parameters, else None."""
        return None

    @property
    def log_z(self) -> Tensor | None:
        """Exact log partition function in nats where it is known, else None."""
        quadratic = self.as_quadratic()
        return None if quadratic is None else quadratic.log_z

    def as_quadratic(self) -> Quadratic | None:
        """This energy as x'Ax - b'x + c where it is one, else None."""
        return None

    def conditionals(self) -> Conditionals | None:
        """For a discrete energy: blocks of independent coordinates and their conditionals, where its structure tells them."""
        return None

    def bonds(self) -> Bonds | None:
        """For an energy of pairs that like to be equal: the edges and their strengths; None for any other.

        The default is by ``pairwise``.
        """
        from ebmppl.energies.bonds import bonds_of

        return bonds_of(self)

    def pairs(self) -> Pairs | None:
        """For spins that interact in pairs alone: the couplings and fields of each block."""
        return None

    def bipartite(self) -> Layers | RealLayers | None:
        """For a model with hidden bits summed out: its two layers, ``RealLayers`` where the visible one is real."""
        return None

    def pairwise(self) -> Pairwise | None:
        """For a discrete energy: tables of its coordinates and pairs of them, where it is a sum of such."""
        return None

    def relaxed(self) -> Energy | None:
        """For an energy of categories ``(*event)``: its extension to real vectors ``(*event, levels)`` from one-hot ones.

        None where there is none; an energy of spins, bits or ordered integers is itself asked at real numbers.
        """
        return None

    def identity(self) -> tuple[Any, ...]:
        """What energies that are one and the same function share (not in their parameters' values): this object."""
        return (self,)

    def site_support(self, name: str) -> Constraint:
        """The constraint of one site."""
        if isinstance(self.support, dict):
            return self.support.get(name, constraints.real)
        return self.support

    def pack(self, values: Mapping[str, Tensor]) -> Tensor:
        """Points ``(*batch, *event)`` from a dict of sites ``(*batch, *site)``.

        Raises:
            ValueError: for unknown or missing sites, wrong site shapes or batch shapes that differ.
        """
        if set(values) != set(self.sites):
            unknown, missing = sorted(set(values) - set(self.sites)), sorted(set(self.sites) - set(values))
            raise ValueError(f"expected the sites {sorted(self.sites)}; unknown: {unknown}, missing: {missing}")
        batches = {}
        for name, shape in self.sites.items():
            value = values[name]
            cut = value.dim() - len(shape)
            if cut < 0 or value.shape[cut:] != shape:
                raise ValueError(f"expected site {name!r} of shape (*, {_dims(shape)}), got {tuple(value.shape)}")
            batches[name] = tuple(value.shape[:cut])
        if len(set(batches.values())) > 1:
            raise ValueError(f"expected the same leading axes for all sites, got {batches}")
        if not self.packed:
            return values[ONE_SITE]
        batch = next(iter(batches.values()))
        return torch.cat([values[name].reshape(*batch, shape.numel()) for name, shape in self.sites.items()], -1)

    def unpack(self, x: Tensor) -> dict[str, Tensor]:
        """Views ``(*batch, *site)`` by site name of points ``(*batch, *event)``."""
        if not self.packed:
            return {ONE_SITE: x}
        parts = x.split([shape.numel() for shape in self.sites.values()], -1)
        batch = x.shape[:-1]
        return {
            name: part.reshape((*batch, *shape)) for (name, shape), part in zip(self.sites.items(), parts, strict=True)
        }

    def constrain(self, x: Tensor) -> dict[str, Tensor]:
        """The user's values by site at points of this energy (transforms applied where there are any)."""
        return self.unpack(x)

    def unconstrain(self, values: Mapping[str, Tensor]) -> Tensor:
        """Points ``(*batch, *event)`` of this energy from the user's values by site: the inverse of ``constrain``."""
        transforms = self.transforms
        return self.pack({name: transforms[name](v) if name in transforms else v for name, v in values.items()})

    @property
    def transforms(self) -> dict[str, Transform]:
        """Pyro's convention: by site, the map from the support to the unconstrained space."""
        return {}

    @property
    def potential_fn(self) -> Callable[[Mapping[str, Tensor]], Tensor]:
        """Potential for ``pyro.infer.HMC/NUTS(potential_fn=...)``: unconstrained sites -> energy.

        Pass ``transforms=Unconstrained(energy).transforms`` along to get constrained samples back.
        """
        from ebmppl.energies.unconstrained import unconstrained

        return partial(_potential, unconstrained(self))

    def __add__(self, other: Energy) -> Energy:
        """Product of experts: energies add up. The sum of quadratic energies is a ``Quadratic``."""
        from ebmppl.energies.algebra import add

        return add(self, other) if isinstance(other, Energy) else NotImplemented

    def __radd__(self, other: object) -> Energy:
        """So that the built-in ``sum`` works."""
        return self if isinstance(other, int) and other == 0 else NotImplemented

    def __mul__(self, beta: float | Tensor) -> Energy:
        """Tempering: ``beta * energy`` with inverse temperature beta."""
        from ebmppl.energies.algebra import Tempered

        return Tempered(self, beta) if isinstance(beta, (int, float, Tensor)) else NotImplemented

    __rmul__ = __mul__

    def extra_repr(self) -> str:
        """Shape and support, for ``repr``."""
        shape = {n: tuple(s) for n, s in self.sites.items()} if self.packed else tuple(self.event_shape)
        support = "" if type(self.support) is type(constraints.real) else f", support={self.support}"
        return f"event_shape={shape}{support}"


def _potential(target: Energy, params: Mapping[str, Tensor]) -> Tensor:
    return target(target.pack(params))


def _dims(shape: torch.Size) -> str:
    return ", ".join(map(str, shape)) or "nothing more"


def register(module: nn.Module, name: str, value: Tensor) -> None:
    """Keep a tensor on a module: a ``Parameter`` stays trainable, any other tensor becomes a buffer."""
    if isinstance(value, nn.Parameter):
        module.register_parameter(name, value)
    else:
        module.register_buffer(name, value)


def require_energy(energy: object) -> None:
    """Raise ``ValueError`` with a hint unless this is an ``Energy``."""
    if not isinstance(energy, Energy):
        hint = "; wrap a callable with as_energy(fn, event_shape)" if callable(energy) else ""
        raise ValueError(f"expected an Energy, got {type(energy).__name__}{hint}")


def like(*energies: nn.Module) -> Tensor:
    """An empty tensor at the dtype and device of the energies' first floating tensor; torch's defaults without any."""
    tensors = (t for energy in energies for t in (*energy.parameters(), *energy.buffers()))
    return next((t.detach().new_empty(0) for t in tensors if t.is_floating_point()), torch.empty(0))


def dtype_and_device(energy: nn.Module) -> tuple[torch.dtype, torch.device]:
    """The widest floating dtype of an energy's parameters and buffers and their device; torch's defaults without any."""
    tensors = [t for t in (*energy.parameters(), *energy.buffers()) if t.is_floating_point()]
    if not tensors:
        return torch.get_default_dtype(), torch.get_default_device()
    return reduce(torch.promote_types, (t.dtype for t in tensors)), tensors[0].device


def flatten_batch(x: Tensor, event_shape: torch.Size) -> tuple[Tensor, torch.Size]:
    """``(*batch, *event)`` -> ``(rows, *event)`` and the batch shape.

    Raises:
        ValueError: when the trailing axes are not the event shape.
    """
    cut = x.dim() - len(event_shape)
    if cut < 0 or x.shape[cut:] != event_shape:
        raise ValueError(f"expected points of shape (*, {_dims(event_shape)}), got {tuple(x.shape)}")
    batch = x.shape[:cut]
    return (x if cut == 1 else x.reshape(batch.numel(), *event_shape)), batch
