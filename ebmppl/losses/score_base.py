"""What losses of scores have in common: what they take, where they work, and their random numbers."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from ebmppl.energies.base import Energy
from ebmppl.losses.base import (
    UNCONSTRAINED,
    BoundLoss,
    Data,
    Loss,
    at_dtype_of,
    checked_data,
    require_finite,
    require_numbers,
    shaped,
)
from ebmppl.losses.scores import (
    Scored,
    ScoreNetwork,
    derivative_seen,
    differentiated,
    gradient,
    gradient_seen,
    require_scored,
)
from ebmppl.losses.seeded import SeededLoss, normals


class ScoreLoss(Loss):
    """Abstract: a loss of scores s = -dE/dx, so log Z is not needed. Takes an energy or a ``ScoreNetwork``.

    A constrained energy is matched in the unconstrained space of its support, as gradient kernels move there: the data
    are mapped by ``biject_to(support).inv``, and the energy has the log-Jacobian.
    """

    continuous: ClassVar[bool | None] = True

    def __call__(self, energy: Any, guide: Any = None) -> BoundLoss:
        """Bind to an ``Energy`` or a ``ScoreNetwork``.

        Raises:
            ValueError: for something else, or a discrete energy.
        """
        require_scored(energy)
        return (
            self.bind(cast(Energy, energy), guide)
            if isinstance(energy, ScoreNetwork)
            else super().__call__(energy, guide)
        )


class BoundScoreLoss(SeededLoss):
    """Abstract: final classes implement ``of_points``."""

    def __init__(self, energy: Scored, guide: Any, seed: int | None = None, *, constrained: bool = False) -> None:
        super().__init__(cast(Energy, energy), guide, seed)
        self._unseen = True
        self._graded = False  # whether an energy was seen to have a gradient
        self._target = (energy if constrained else differentiated(energy),)  # not a module of its own

    @property
    def target(self) -> Scored:
        """What is matched: a score network, or an energy, unconstrained."""
        return self._target[0]

    def data(self, x: Data) -> Tensor:
        """Points ``(rows, *event)`` of the target, at the widest dtype of the energy's parameters and buffers."""
        energy = self.energy
        if isinstance(energy, ScoreNetwork):
            require_numbers("x", x, real=True)
            require_finite("x", cast(Tensor, x))
            x = at_dtype_of(energy, shaped(energy.event_shape, x))
        else:
            x = checked_data(energy, x)
        if self.target is energy:
            return x
        with torch.no_grad():
            z = cast(Energy, self.target).unconstrain(energy.unpack(x))
        require_finite(UNCONSTRAINED, z)
        return z

    def terms(self, x: Tensor) -> dict[str, Tensor]:
        """See ``of_points``; under ``no_grad`` and in inference mode too, where scores are gradients all the same."""
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(mode=False), torch.no_grad():
                return self.terms(x.clone())  # which is no inference tensor
        x = x.detach() if x.requires_grad else x
        graph = torch.is_grad_enabled()
        if graph:
            terms = self.of_points(x, graph=True)
        else:
            with torch.enable_grad():
                terms = self.of_points(x, graph=False)
        if not self._graded:
            self._graded = self._has_gradient(terms, x)
        if self._unseen:
            self._look_for_derivative(terms, x)
        return terms if graph else {name: term.detach() for name, term in terms.items()}

    def _has_gradient(self, terms: dict[str, Tensor], x: Tensor) -> bool:
        energy = self.target
        if isinstance(energy, ScoreNetwork) or ("square" in terms and bool(terms["square"].detach().any())):
            return True
        with torch.random.fork_rng([x.device] if x.is_cuda else []):  # of an energy with dropout
            return not energy.has_values or gradient_seen(energy, x)

    def _look_for_derivative(self, terms: dict[str, Tensor], x: Tensor) -> None:
        found = [terms[name] for name in ("trace", "change") if name in terms]

        def score(at: Tensor) -> Tensor:
            with torch.enable_grad():
                return gradient(self.target, at.detach().requires_grad_())

        self._unseen = bool(found) and not derivative_seen(found[0], terms["square"], score, x, 7)

    @abstractmethod
    def of_points(self, x: Tensor, *, graph: bool) -> dict[str, Tensor]:
        """The terms at points of the target; ``graph``: differentiable in the parameters."""

    def normals(self, x: Tensor, *lead: int) -> Tensor:
        """Standard normal numbers ``(*lead, *x.shape)`` of this step."""
        return normals((*lead, *x.shape), x, self.seeded(x.device))

    def signs(self, x: Tensor, *lead: int) -> Tensor:
        """Random signs ``(*lead, *x.shape)`` of this step."""
        bits = torch.randint(2, (*lead, *x.shape), dtype=x.dtype, device=x.device, generator=self.seeded(x.device))
        return bits.mul_(2).sub_(1)
