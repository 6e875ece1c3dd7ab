"""What the kernels that move by leapfrog steps share: their settings, the metric they ask for, and its adaptation."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ebmppl.arguments import flag, fraction, positive, require
from ebmppl.energies.base import Energy
from ebmppl.kernels.adaptation import HamiltonianAdaptation, Tuning, factorise
from ebmppl.kernels.gradient_kernel import GradientKernel

FullMass = bool | Sequence[Sequence[str]]
_COPIES = 4  # the inverse mass matrix, its factor, the estimate for the next one and what making it takes


class HamiltonianKernel(GradientKernel):
    """Abstract: a gradient kernel with a step size and a mass matrix, both adapted if asked for.

    Args:
        energy: a continuous energy; constrained supports are unconstrained.
        step_size: > 0; where adaptation begins if it is adapted.
        adapt_step_size: adapt the step size in warm-up by dual averaging.
        adapt_mass_matrix: adapt the inverse mass matrix over Stan's windows.
        full_mass: True for a dense matrix, False for a diagonal one; or groups of site names, as in NumPyro: dense
            within each group, diagonal in the sites that no group names.
        target_accept_prob: acceptance rate to reach, in (0, 1).
        inverse_mass_matrix: ``(dimension,)``, or ``(dimension, dimension)`` with ``full_mass``, over the unconstrained
            coordinates, whose covariance it should be like; where adaptation begins. The identity if not given.

    Raises:
        ValueError: for values out of range, unknown or repeated sites, or a discrete support.
    """

    power: ClassVar[float] = 1.0  # the leapfrog step is step_size ** power

    def __init__(
        self,
        energy: Energy,
        *,
        step_size: float,
        adapt_step_size: bool,
        adapt_mass_matrix: bool,
        full_mass: FullMass,
        target_accept_prob: float,
        inverse_mass_matrix: Tensor | None,
    ) -> None:
        super().__init__(energy)
        self.target_accept_prob = fraction("target_accept_prob", target_accept_prob)
        self.adapt_step_size = flag("adapt_step_size", adapt_step_size)
        self.adapt_mass_matrix = flag("adapt_mass_matrix", adapt_mass_matrix)
        self.step_size = positive("step_size", step_size)
        self.full_mass = full_mass
        if full_mass:
            _require_memory(self.dimension, torch.empty(()))
        self._blocks = None if isinstance(full_mass, bool) else _blocks(self.target, full_mass)
        self.inverse_mass_matrix = inverse_mass_matrix
        if inverse_mass_matrix is not None:
            _require_inverse_mass(inverse_mass_matrix, self.dimension, full=bool(full_mass))

    def init_tuning(self, x: Tensor) -> Tuning:
        """The given step size and metric.

        Raises:
            ValueError: for a dense metric that is too large for the memory.
        """
        if self.full_mass:
            _require_memory(self.dimension, x)
        tuning = Tuning.identity(self.step_size, self.dimension, x, full_mass=bool(self.full_mass))
        if self.inverse_mass_matrix is None:
            return tuning
        given = self.inverse_mass_matrix.detach().to(tuning.inverse_mass, copy=True)
        return tuning._replace(inverse_mass=given, factor=factorise(given))

    def adaptation(self) -> HamiltonianAdaptation | None:
        """Dual averaging and mass matrix, as asked for."""
        if not (self.adapt_step_size or self.adapt_mass_matrix):
            return None
        return HamiltonianAdaptation(
            self.value_and_grad,
            target=self.target_accept_prob,
            step_size=self.adapt_step_size,
            mass=self.adapt_mass_matrix,
            power=self.power,
            blocks=self._blocks,
            guess=self.inverse_mass_matrix is None,
        )


def _blocks(target: Energy, groups: Sequence[Sequence[str]]) -> Tensor:
    """Which entries of the matrix ``(dimension, dimension)`` are not zero."""
    sequences = isinstance(groups, Sequence) and all(isinstance(group, Sequence) for group in groups)
    if not sequences or isinstance(groups, str) or any(isinstance(group, str) for group in groups):
        raise ValueError(f"expected full_mass as True, False or a list of tuples of site names, got {groups!r}")
    names = [name for group in groups for name in group]
    unknown = sorted(set(names) - set(target.sites))
    if unknown:
        raise ValueError(f"full_mass names unknown sites {unknown}; the sites are {sorted(target.sites)}")
    require(len(names) == len(set(names)), "every site in one group of full_mass", names)
    number = torch.arange(target.event_shape.numel())
    group_of = -1 - number  # a group of its own
    index = target.unpack(number) if target.packed else {name: number for name in target.sites}
    for i, group in enumerate(groups):
        for name in group:
            group_of[index[name].flatten()] = i
    return group_of.unsqueeze(1) == group_of


def _require_inverse_mass(given: Tensor, dimension: int, *, full: bool) -> None:
    wanted = (dimension, dimension) if full else (dimension,)
    require(
        isinstance(given, Tensor) and given.shape == wanted,
        f"inverse_mass_matrix as a tensor of shape {wanted} with full_mass={full}",
        tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__,
    )
    if full:
        symmetric = torch.allclose(given, given.mT)
        good = symmetric and bool(torch.linalg.cholesky_ex(given).info == 0)
    else:
        good = bool((given.isfinite() & (given > 0)).all())
    require(good, "a positive definite inverse_mass_matrix", given)


def _require_memory(dimension: int, like: Tensor) -> None:
    wanted = _COPIES * dimension**2 * like.element_size()
    if like.is_cuda:
        there = torch.cuda.mem_get_info(like.device)[0]
    elif like.device.type == "cpu" and hasattr(os, "sysconf"):
        there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    else:
        return
    gib = 2**30
    require(
        wanted < there,
        f"a mass matrix that fits in the memory of {there / gib:.1f} GiB; full_mass=False keeps a diagonal",
        f"{dimension} x {dimension}, {wanted / gib:.1f} GiB with its factor and its estimate",
    )
