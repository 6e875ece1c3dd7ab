"""Exact answers of discrete energies: by enumeration, with a layer summed out, or by the transfer matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ebmppl.arguments import seed_of
from ebmppl.energies.base import Energy, flatten_batch, require_energy
from ebmppl.energies.discrete import Indexed, discrete, indexed, levels_of
from ebmppl.energies.supports import describe, is_discrete, require_inside
from ebmppl.partition.enumeration import Enumeration
from ebmppl.partition.split import Block, Hidden, Pairs, Whole
from ebmppl.partition.states import power
from ebmppl.partition.transfer import Transfer
from ebmppl.sampling.scopes import evaluating

By = Literal["auto", "enumeration", "layers", "transfer"]
_WAYS = ("auto", "enumeration", "layers", "transfer")
Route = Enumeration | Transfer


class Moments(NamedTuple):
    """Of flat points, float64.

    Attributes:
        mean: ``(coordinates,)``.
        second: ``(coordinates, coordinates)``, the mean of x x'.
    """

    mean: Tensor
    second: Tensor

    @property
    def covariance(self) -> Tensor:
        """``(coordinates, coordinates)``."""
        return self.second - torch.outer(self.mean, self.mean)


@dataclass(frozen=True)
class Exact:
    r"""Exact sums over all states of a discrete energy, accumulated in float64 and in bounded memory.

    Three ways, of which the one of fewest operations is taken:

    * ``"enumeration"`` of all states in chunks;
    * ``"layers"``: one layer is enumerated and the other summed out, :math:`\log Z = \log \sum_h e^{-E(h)}`: the hidden
      layer of a model with ``bipartite()`` (a restricted Boltzmann machine, also of real visible units), or the coordinates
      outside the largest block of independent ones of an energy with ``conditionals()``;
    * ``"transfer"``: the transfer matrix, site by site, of an energy with ``pairwise()`` on a narrow lattice or another
      thin graph. A lattice of width W makes levels^W numbers at a time; one that is periodic along its length
      levels^(2W).

    A closed form is used where the energy has one (``energy.log_z``) and its space is continuous.

    Args:
        max_states: the most states (numbers of a message, for the transfer matrix).
        chunk: how many at a time; by default as many as take some tens of MiB. Changes memory and time, never results.
        by: the way.

    Raises:
        ValueError: for limits that are not positive, an unknown way; and when asked about an energy that is not discrete
            or has too many states.

    Example:
        >>> import torch
        >>> from ebmppl.models import BernoulliRBM
        >>> rbm = BernoulliRBM(30, 4, W=torch.zeros(30, 4))
        >>> round(Exact().log_z(rbm).item() / torch.log(torch.tensor(2.0)).item(), 4)  # 34 free bits
        34.0
        >>> Exact().route(rbm).name
        'layers'
    """

    max_states: int = 2**25
    chunk: int | None = None
    by: By = "auto"

    def __post_init__(self) -> None:
        if self.max_states < 1 or (self.chunk is not None and self.chunk < 1):
            raise ValueError(f"expected max_states and chunk >= 1, got {self.max_states} and {self.chunk}")
        if self.by not in _WAYS:
            raise ValueError(f"expected by to be one of {_WAYS}, got {self.by!r}")

    def log_z(self, energy: Energy) -> Tensor:
        """Log partition function, a scalar in nats, float64, differentiable (once) in what the energy is computed from."""
        return self.solve(energy)[0]

    def solve(self, energy: Energy) -> tuple[Tensor, str]:
        """Log partition function and the way it was computed."""
        require_energy(energy)
        if not discrete(energy) and energy.bipartite() is None and energy.log_z is not None:
            return energy.log_z.double(), "closed form"
        with evaluating(energy):
            route = self.route(energy)
            return route.log_z(), route.name

    def log_prob(self, energy: Energy, x: Tensor) -> Tensor:
        """The log-probability, -E(x) - log Z of points ``(*batch, *event)``: ``(*batch)`` in nats, float64.

        Raises:
            ValueError: for points of another shape or outside the support.
        """
        rows, batch = flatten_batch(x, energy.event_shape)
        for name, part in energy.unpack(rows).items():
            if is_discrete(energy.site_support(name)):
                require_inside(name, part, energy.site_support(name))
        with evaluating(energy):
            return -energy(rows).double().reshape(batch) - self.log_z(energy)

    def marginals(self, energy: Energy) -> Tensor:
        """Probabilities ``(coordinates, levels)`` of every coordinate's levels, in increasing order of the values.

        Coordinates are those of flat (packed) points; one with fewer levels than the most has zeros at the end. Of one-hot
        vectors a coordinate is a whole vector.
        """
        with self._asking(energy) as route:
            return route.marginals()

    def moments(self, energy: Energy) -> Moments:
        """Mean and second moments of flat (packed) points; one-hot vectors are flattened, too."""
        hot = isinstance(indexed(energy), Indexed)
        with self._asking(energy) as route:
            if isinstance(route, Enumeration):
                return Moments(*route.moments(hot=hot))
            single, joint = route.marginals(), route.pair_marginals()
            if hot:
                return Moments(single.flatten(), joint.flatten(2).flatten(0, 1))
            values = levels_of(energy).table.to(single)
            return Moments((single * values).sum(1), torch.einsum("iajb,ia,jb->ij", joint, values, values))

    def expectation(self, energy: Energy, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Mean of any function of points, ``(...)`` float64, by enumeration of all states.

        Args:
            energy: the energy.
            function: from points ``(rows, *event)``, at the energy's dtype, to ``(rows, ...)``.
        """
        whole = Exact(self.max_states, self.chunk, "enumeration")
        with whole._asking(energy) as route:
            assert isinstance(route, Enumeration)
            return route.expectation(lambda flat: function(_points(energy, flat)))

    def sample(
        self, energy: Energy, n: int, *, seed: int | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Independent exact draws ``(n, *event)``, at the energy's dtype.

        Args:
            energy: the energy.
            n: how many, >= 1.
            seed: of a new generator; from the system when None.
            generator: instead of a seed, on the energy's device.
        """
        if n < 1:
            raise ValueError(f"expected n >= 1 draws, got {n}")
        if seed is not None and generator is not None:
            raise ValueError("expected a seed or a generator, got both")
        with self._asking(energy) as route:
            if generator is None:
                generator = torch.Generator(_device(route)).manual_seed(seed_of(seed))
            x = route.sample(n, generator)
            if isinstance(route, Transfer):
                table = levels_of(indexed(energy)).table.to(route.form.unary.device)
                x = table.gather(1, x.mT).mT.to(Whole(energy).dtype)
            return _points(energy, x)

    def route(self, energy: Energy) -> Route:
        """The way that is taken for an energy.

        Raises:
            ValueError: where there is none, or all have too many states.
        """
        require_energy(energy)
        routes = list(self._routes(energy))
        fitting = [route for route in routes if route.states <= self.max_states]
        if not fitting:
            raise ValueError(self._refusal(energy, routes))
        return min(fitting, key=lambda route: route.operations)

    def _routes(self, energy: Energy) -> Iterator[Route]:
        layers, target = energy.bipartite(), indexed(energy)
        finite = discrete(energy)
        if finite:
            levels_of(target)  # says what is wrong
        form = energy.pairwise() if finite else None
        if finite and self.by in ("auto", "enumeration"):
            yield Enumeration(Whole(energy) if form is None else Pairs(energy, form), self.chunk)
        if self.by in ("auto", "layers"):
            if layers is not None:
                yield Enumeration(Hidden(energy, layers), self.chunk)
            conditionals = target.conditionals() if finite else None
            if conditionals is not None and len(conditionals.blocks) > 1:
                yield Enumeration(Block(energy, conditionals), self.chunk)
        if form is not None and self.by in ("auto", "transfer"):
            yield Transfer(form, self.chunk, self.max_states)

    def _refusal(self, energy: Energy, routes: list[Route]) -> str:
        instead = "draw with MCMC, and estimate log Z by annealing"
        if routes:
            sizes = " and ".join(f"{_size(route)} by {route.name}" for route in routes)
            return f"expected at most max_states = {power(self.max_states)} states, got {sizes}; instead {instead}"
        if not discrete(energy):
            name = next(n for n in energy.sites if not is_discrete(energy.site_support(n)))
            support = describe(energy.site_support(name))
            return f"expected a discrete energy, got site {name!r} in {support}: log Z is an integral; {instead}"
        needs = {"layers": "bipartite() or conditionals()", "transfer": "pairwise()"}[self.by]
        return f"expected an energy with {needs} for by={self.by!r}, got {type(energy).__name__}: by='enumeration'"

    @contextmanager
    def _asking(self, energy: Energy) -> Iterator[Route]:
        require_energy(energy)
        with evaluating(energy):
            yield self.route(energy)


def _size(route: Route) -> str:
    beyond = isinstance(route, Transfer) and not route.plan.complete
    return ("at least " if beyond else "") + power(route.states)


def _device(route: Route) -> torch.device:
    return route.form.unary.device if isinstance(route, Transfer) else route.split.device


def _points(energy: Energy, flat: Tensor) -> Tensor:
    """Points ``(rows, *event)`` of the energy from flat ones of its indexed form."""
    target = indexed(energy)
    x = flat.reshape(len(flat), *target.event_shape)
    return target.constrain(x)["x"] if isinstance(target, Indexed) else x
