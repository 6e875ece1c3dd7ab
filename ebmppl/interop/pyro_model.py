"""Any Pyro model with continuous latents as one unconstrained energy, batched over chains."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.mcmc.util import initialize_model
from torch import Tensor
from torch.distributions import Distribution, Transform

from ebmppl.energies.base import Energy, flatten_batch
from ebmppl.energies.fingerprint import same
from ebmppl.energies.linalg import rowwise
from ebmppl.energies.looped import POINTS, one_by_one, require_whole_gradient, scattered
from ebmppl.errors import LOOKS_AT_VALUES, SamplingWarning, first_line, looks_at_values
from ebmppl.interop.pyro_checks import SameSites, check_model, plate_nesting
from ebmppl.interop.vmappable import vmappable


def from_pyro(model: Callable[..., Any], *args: Any, **kwargs: Any) -> PyroEnergy:
    """The posterior of a Pyro model as an energy: minus its log joint in the unconstrained space.

    Latent sites become the energy's sites, transformed as Pyro's NUTS does; ``get_samples()`` gives them back in
    their support. Plates, observed data and ``pyro.param`` (at its present value) work; discrete latents that can
    be enumerated are summed out. A model may branch on values (``if z > 0:``); what it computes must stay tensors.

    Args:
        model: a Pyro model, a callable that contains ``pyro.sample`` statements.
        *args: arguments of the model, its data among them.
        **kwargs: keyword arguments of the model.

    Raises:
        ValueError: for a model without continuous latents, with discrete ones that can't be enumerated, with
            subsampled plates, with sites or supports that change from call to call, or with reserved site names.
        EnergyError: for a model that computes with Python numbers (``float(z)``, ``z.item()``) of latents: its gradient,
            compared with finite differences, misses them.

    Warns:
        SamplingWarning: for a model that ``torch.func.vmap`` can't take; it runs chain by chain, slower.

    Example:
        >>> import pyro.distributions as dist
        >>> def model(y):
        ...     scale = pyro.sample("scale", dist.HalfNormal(1.0))
        ...     pyro.sample("y", dist.Normal(0.0, scale), obs=y)
        >>> energy = from_pyro(model, torch.tensor(1.0))
        >>> energy.sites
        {'scale': torch.Size([])}
    """
    return PyroEnergy(model, args, kwargs)


class PyroEnergy(Energy):
    """The energy that ``from_pyro`` makes; see there. ``trace`` is a prototype trace of the model."""

    traced_from = 20  # Pyro's own Python takes most of the time

    def __init__(self, model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not callable(model):
            raise ValueError(f"expected a Pyro model (a callable), got {type(model).__name__}")
        with _quiet(), torch.random.fork_rng(_cuda()):  # the global generator is the user's
            prototype = check_model(model, args, kwargs)
            _, potential, maps, trace = initialize_model(
                model,
                args,
                kwargs,
                max_plate_nesting=plate_nesting(prototype),
                # as without enumeration, where a latent doesn't take the axes of discrete ones that it depends on
                init_strategy=lambda site: prototype.nodes[site["name"]]["value"],
                initial_params={},  # anything but None: no search for starting points here
            )
            z = {name: maps[name](trace.nodes[name]["value"].detach()) for name in maps}
            with torch.no_grad():
                energy = potential(z)
        super().__init__({name: value.shape for name, value in z.items()})
        self.model, self.args, self.kwargs = model, args, kwargs
        self.trace, self._maps, self._potential_fn = trace, maps, potential
        dtype = energy.dtype
        for value in z.values():
            dtype = torch.promote_types(dtype, value.dtype)
        # the run's dtype and device, unless initial_params say otherwise
        self.register_buffer("like", torch.zeros((), dtype=dtype, device=energy.device), persistent=False)
        self._over_chains: Callable[..., Any] = torch.func.vmap
        self._prototype: poutine.Trace | None = None  # where calls may have other sites
        self._find_how_to_batch(z, prototype)

    def _find_how_to_batch(self, z: dict[str, Tensor], prototype: poutine.Trace) -> None:
        """One chain after the other where vmap can't take the model; what else fails will fail in its own place."""
        point = torch.cat([z[name].flatten() for name in self.sites])
        try:
            self.value_and_grad(torch.stack([point, point]))
        except RuntimeError as error:
            if "vmap" not in str(error) or "random" in str(error):
                return  # no function
            self._over_chains, self.traced_from, self._prototype = one_by_one, sys.maxsize, prototype
            with torch.random.fork_rng(_cuda()):
                require_whole_gradient(self, torch.cat([point[None], scattered(POINTS, point.shape).to(point)]))
            reason = LOOKS_AT_VALUES if looks_at_values(error) else first_line(error)
            told = f"the model runs chain by chain, slower, for torch.func.vmap can't take it: {reason}"
            warnings.warn(told, SamplingWarning, stacklevel=4)

    def _potential(self, z: Tensor) -> Tensor:
        """Pyro's potential at one packed point ``(dimension,)``."""
        return rowwise(self._at_point, z)

    def _at_point(self, z: Tensor) -> Tensor:
        with nullcontext() if self._prototype is None else SameSites(self._prototype):
            return self._potential_fn(self.unpack(z))

    def forward(self, x: Tensor) -> Tensor:
        """Energies ``(*batch)`` in nats at unconstrained points ``(*batch, dimension)``, log-Jacobian included."""
        rows, batch = flatten_batch(x, self.event_shape)
        with _quiet(), vmappable():
            # Pyro reads `.data`, which vmap alone refuses and a gradient transform below it allows
            energy = self._over_chains(lambda z: torch.func.vjp(self._potential, z)[0])(rows)
        return energy if len(batch) == 1 else energy.reshape(batch)

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Energies and gradients by one batched gradient."""
        rows, batch = flatten_batch(x.detach(), self.event_shape)
        with _quiet(), vmappable(), torch.no_grad():  # of the model's parameters
            grad, energy = self._over_chains(torch.func.grad_and_value(self._potential))(rows)
        return energy.reshape(batch), grad.reshape(x.shape)

    def identity(self) -> tuple[Any, ...]:
        """The model and the arguments it was given."""
        named = ((name, same(value)) for name, value in self.kwargs.items())
        return (type(self), same(self.model), *map(same, self.args), *named)

    def constrain(self, x: Tensor) -> dict[str, Tensor]:
        """Values of the latent sites in their support, ``(*batch, *site)``."""
        return {name: self._maps[name].inv(z) for name, z in self.unpack(x).items()}

    @property
    def transforms(self) -> dict[str, Transform]:
        """By site, the map from the support to the unconstrained space."""
        return dict(self._maps)


@contextmanager
def _quiet() -> Iterator[None]:
    """Pyro's own setting for HMC: no validation (a bad point is NaN, not an exception), unseen by outer handlers.

    Distributions that were made outside the model keep a switch of their own, so what it turns on does nothing here.
    """
    validate = Distribution._validate_sample
    Distribution._validate_sample = lambda self, value: None  # type: ignore[method-assign]
    try:
        with pyro.validation_enabled(is_validate=False), poutine.block():
            yield
    finally:
        Distribution._validate_sample = validate  # type: ignore[method-assign]


def _cuda() -> list[int]:
    return [torch.cuda.current_device()] if torch.cuda.is_available() else []
