"""Losses speak ELBO: hyper-parameters that are called with an energy, and the bound module that is called with data."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import reduce
from typing import Any, ClassVar, NoReturn

import pyro
import torch
from pyro.infer.elbo import ELBO
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn.modules.batchnorm import _BatchNorm

from ebmppl.energies.base import ONE_SITE, Energy, dtype_and_device, require_energy
from ebmppl.energies.discrete import discrete
from ebmppl.energies.supports import describe, elementwise, is_discrete
from ebmppl.errors import EnergyError, NonFiniteLoss
from ebmppl.losses.store import hidden_from_pyro, registered, require_own_names, shared_names, warn_of_untrained

UNCONSTRAINED = "unconstrained x (infinite at the edge of a support)"
_MOST_BOUND = 16  # energies (and guides) that one loss remembers under SVI

Data = Tensor | Mapping[str, Tensor]


class BoundLoss(nn.Module):
    """Abstract: a loss of one energy (and guide), called with a batch of data, as Pyro's bound ELBO is.

    Final classes implement ``terms``, and ``keep`` where something moves. What a loss trains beside the energy (NCE's
    log Z) are parameters of its own; persistent chains are buffers. In ``eval()`` nothing moves: neither chains nor seeds.

    Args:
        energy: what is trained.
        guide: the auxiliary distribution where the method has one.

    Attributes:
        step: number of training calls so far.
        values: the terms of the last call.
    """

    step: Tensor

    def __init__(self, energy: Energy, guide: Any = None) -> None:
        super().__init__()
        self.energy = energy
        self.guide = guide
        self.values: dict[str, Tensor] = {}
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self._first = True
        self._shared = shared_names(self)

    @abstractmethod
    def terms(self, x: Any) -> dict[str, Tensor]:
        """Scalars that add up to the loss, in nats where the loss has a unit, for what ``data`` gives."""

    def forward(self, x: Data) -> Tensor:
        """The loss of a batch ``(rows, *event)`` or by site ``(rows, *site)``; its gradient is the method's.

        Raises:
            ValueError: for data of another shape, outside the support, or with NaN; for a ``PyroParam`` whose name in
                Pyro's store is another energy's; at the first call, for an energy with batch normalisation in training mode.
            NonFiniteLoss: where it is NaN or infinite, or chains find no points of finite energy to begin at any more.
        """
        points = self.data(x)
        if self._first:
            require_rows_apart(self.energy)
            self._first = not self.training
        if self._shared:
            require_own_names(self._shared)
        try:
            terms = self.terms(points)
        except EnergyError as error:  # of chains that begin
            if not int(self.step):
                raise
            self._not_finite({"energy": torch.tensor(math.nan)}, f" ({error})")
        vars(self)["values"] = {name: term.detach() for name, term in terms.items()}  # past the module's slow way
        total = reduce(torch.add, [term.reshape(()) if term.dim() else term for term in terms.values()])
        if not math.isfinite(total.item()):
            self._not_finite(terms)
        if self.training:
            self.keep()
            self.step.add_(1)
        return total

    def keep(self) -> None:
        """Take what the last ``terms`` moved (chains, counts) for the state: in training, once the loss is finite."""

    def data(self, x: Data) -> Any:
        """What ``terms`` takes: checked points ``(rows, *event)``, floating point ones at the dtype of the parameters."""
        return checked_data(self.energy, x)

    def _not_finite(self, terms: Mapping[str, Tensor], why: str = "") -> NoReturn:
        state = {name: value.clone() for name, value in self.state_dict().items()}
        values = {name: float(term.detach()) for name, term in terms.items()}
        bad = [f"{name} is {value}" for name, value in values.items() if not abs(value) < float("inf")]
        step = int(self.step)
        state = {**self.state_dict(), **state}
        what = f"{', '.join(bad) or values}{why}"
        raise NonFiniteLoss(f"the loss is not finite at step {step}: {what}", step, values, state)


class Loss(ELBO):
    """Abstract: the hyper-parameters of a loss. Calling it with an energy binds it; ``SVI`` takes it as it takes an ELBO.

    Under ``SVI(energy, guide, optim, loss=loss)`` it binds once for each energy and guide, so that chains and log Z of
    several go on side by side; the last one used is ``bound``. It holds the last 16; one that is used again after
    that begins anew.
    All parameters are registered with Pyro; ``evaluate_loss`` moves nothing.

    Class attributes:
        continuous: True where the method is for continuous energies alone, False for discrete ones alone, None for both.

    Example:
        >>> import ebmppl as eb
        >>> bound = eb.losses.CD(k=1, kernel=eb.Gibbs)(eb.models.Ising((3, 3)))  # doctest: +SKIP
    """

    continuous: ClassVar[bool | None] = None

    def __init__(self) -> None:
        super().__init__()
        self.bound: BoundLoss | None = None
        self._all: list[BoundLoss] = []  # under SVI, one for each energy and guide

    @abstractmethod
    def bind(self, energy: Energy, guide: Any) -> BoundLoss:
        """The loss of one energy."""

    def __call__(self, energy: Energy, guide: Any = None) -> BoundLoss:
        """Bind: an ``nn.Module`` whose call with data gives the loss, for plain ``torch.optim`` loops.

        Raises:
            ValueError: for something else than an energy, or one that the method isn't for.
        """
        require_energy(energy)
        if self.continuous is not None and discrete(energy) is self.continuous:
            kind = "continuous" if self.continuous else "discrete"
            raise ValueError(f"expected a {kind} energy for {type(self).__name__}, got one over {energy.support}")
        return self.bind(energy, guide)

    # Pyro's protocol.

    def differentiable_loss(self, energy: Energy, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The loss as a tensor."""
        bound = self._bound_to(energy, guide)
        registered(bound, {"energy": bound.energy})
        with hidden_from_pyro(bound):
            return bound(*args, **kwargs)

    def loss_and_grads(self, energy: Energy, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The loss, after adding its gradient to the parameters' ``.grad``.

        Raises:
            ValueError: when there is nothing to train.
        """
        if not any(parameter.requires_grad for parameter in self._bound_to(energy, guide).parameters()):
            raise ValueError(
                "expected something to train, got an energy (and loss) without parameters that require gradients"
            )
        value = self.differentiable_loss(energy, guide, *args, **kwargs)
        warn_of_untrained(self._bound_to(energy, guide), value, pyro.get_param_store()._params.values())
        value.backward()
        return value.item()

    def loss(self, energy: Energy, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The loss as a number; nothing moves."""
        bound = self._bound_to(energy, guide)
        with torch.enable_grad(), _still(bound):  # Pyro calls it under no_grad, and scores are gradients
            return bound(*args, **kwargs).item()

    def _bound_to(self, energy: Energy, guide: Any) -> BoundLoss:
        bound = self.bound
        if bound is None or bound.energy is not energy or bound.guide is not guide:
            known = [b for b in self._all if b.energy is energy and b.guide is guide]
            bound = self.bound = known[0] if known else self(energy, guide)
            self._all = [*(b for b in self._all if b is not bound), bound][-_MOST_BOUND:]
        return bound

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        raise NotImplementedError("losses of energies have no traces")


@contextmanager
def _still(bound: BoundLoss) -> Iterator[None]:
    """All modules in ``eval`` mode (so that no statistics or power iterations move either), and back."""
    modes = [(module, module.training) for module in bound.modules()]
    bound.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def checked_data(energy: Energy, x: Data) -> Tensor:
    """Data as points ``(rows, *event)`` of an energy, floating point ones at the dtype of its parameters.

    Raises:
        ValueError: for another shape or dtype, no rows, NaN or infinite values (says where), or values outside the support.
    """
    if (
        energy.support is constraints.real and not energy.packed and isinstance(x, Tensor)
    ):  # what is said below, in short
        require_numbers(ONE_SITE, x, real=True)
        require_finite(ONE_SITE, x)
        return at_dtype_of(energy, shaped(energy.event_shape, x))
    by_site = x if isinstance(x, Mapping) else {ONE_SITE: x}
    if energy.packed and not isinstance(x, Mapping):
        by_site = energy.unpack(shaped(energy.event_shape, x))
    for name, value in by_site.items():
        support = energy.site_support(name) if name in energy.sites else constraints.real
        require_numbers(name, value, real=not is_discrete(support))
        if support is constraints.boolean and value.is_floating_point() and all_bits(value):
            continue  # finite as well
        require_finite(name, value)
        if elementwise(support) is not constraints.real:
            _require(support.check(value), value, f"data of site {name!r} in {describe(support)}")
    x = shaped(energy.event_shape, energy.pack(by_site) if isinstance(x, Mapping) else x)
    return at_dtype_of(energy, x)


def require_rows_apart(energy: object) -> None:
    """Raise ``ValueError`` for an energy with batch normalisation in training mode: a row's energy depends on the others."""
    modules = energy.named_modules() if isinstance(energy, Energy) else ()
    found = [f"{type(m).__name__} ({name})" for name, m in modules if isinstance(m, _BatchNorm) and m.training]
    if found:
        raise ValueError(
            f"expected rows that don't depend on one another, got batch normalisation in training mode: {found[0]}; "
            "leave it out, or hold it, not the whole energy, in eval mode"
        )


def all_bits(x: Tensor) -> bool:
    """Whether all numbers are 0 or 1, in two passes: at nothing else is x - x^2 = 0."""
    least, most = torch.aminmax(torch.addcmul(x, x, x, value=-1)) if x.numel() else (x.new_zeros(()),) * 2
    return least.item() == 0.0 == most.item()


def at_dtype_of(module: nn.Module, x: Tensor) -> Tensor:
    """Floating point x at the widest dtype of a module's parameters and buffers; as it is where there are no parameters."""
    own = _first_parameter(module)
    if own is None or own.dtype == x.dtype or not x.is_floating_point():
        return x
    return x.to(dtype_and_device(module)[0])


def _first_parameter(module: nn.Module) -> Tensor | None:
    """What ``module.parameters()`` begins with, in a tenth of its time."""
    for own in module._parameters.values():
        if own is not None:
            return own
    inner = (_first_parameter(child) for child in module._modules.values() if child is not None)
    return next((found for found in inner if found is not None), None)


def require_numbers(name: str, value: object, *, real: bool) -> None:
    """Raise ``ValueError`` unless data are a dense tensor of real numbers, floating point where the support has them."""
    if not isinstance(value, Tensor):
        raise ValueError(f"expected data as tensors, got {type(value).__name__}")
    if value.is_complex() or value.layout is not torch.strided:
        raise ValueError(f"expected data as dense tensors of real numbers, got {name} of {value.dtype}, {value.layout}")
    if real and not value.is_floating_point():
        raise ValueError(f"expected floating point data, got {name} of {value.dtype}")


def _require(good: Any, value: Tensor, wanted: str) -> None:
    """Raise ``ValueError`` that names the first value that is not good; ``good`` may lack trailing axes."""
    if not bool(good.all()):
        at = tuple((~good).nonzero()[0].tolist())
        where = f"row {at[0]}" + (f", coordinate {at[1:]}" if len(at) > 1 else "")
        raise ValueError(f"expected {wanted}, got {value[at].tolist()} at {where}")


def require_finite(name: str, x: Tensor) -> None:
    """Raise ``ValueError`` that says where data ``(rows, *site)`` are NaN or infinite."""
    if isinstance(x, Tensor) and x.is_floating_point() and not math.isfinite(x.sum().item()):
        bad = (~torch.isfinite(x)).nonzero()
        if len(bad):  # a sum may overflow
            at = tuple(bad[0].tolist())
            raise ValueError(f"expected finite data, got {name} = {x[at].item()} at row {at[0]}, coordinate {at[1:]}")


def shaped(event_shape: torch.Size, x: Any) -> Tensor:
    """Data if they have shape ``(rows, *event)`` and at least one row, else ``ValueError``."""
    shape = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
    if not isinstance(x, Tensor) or x.shape[1:] != event_shape or not len(x):
        wanted = ", ".join(("rows", *map(str, event_shape)))
        raise ValueError(f"expected data of shape ({wanted}), at least one row, got {shape}")
    return x
