"""One row for every energy and kernel; the laws are tested over all rows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from ebmppl.energies import Energy
from ebmppl.kernels import HMC, MALA, NUTS, Kernel, Langevin

# Kernels


class KernelCase(NamedTuple):
    """A kernel that the laws run over. Steps are large for a target of unit scale, so that rejections matter."""

    factory: Callable[[Energy], Kernel]
    exact: bool = True  # leaves exp(-E) invariant at any step size
    adapts: bool = True
    dense: bool = False  # its metric is a matrix


KERNELS: dict[str, KernelCase] = {
    "langevin": KernelCase(partial(Langevin, step_size=0.5), exact=False, adapts=False),
    "mala": KernelCase(partial(MALA, step_size=0.8)),
    "mala, dense": KernelCase(partial(MALA, step_size=0.8, full_mass=True), dense=True),
    "hmc, steps": KernelCase(partial(HMC, step_size=0.7, num_steps=4)),
    "hmc, steps, no jitter": KernelCase(partial(HMC, step_size=0.7, num_steps=3, jitter=0.0)),
    "hmc, length": KernelCase(partial(HMC, step_size=0.6, trajectory_length=2.0)),
    "hmc, length, no jitter": KernelCase(partial(HMC, step_size=0.6, trajectory_length=1.5, jitter=0.0)),
    "hmc, dense": KernelCase(partial(HMC, step_size=0.7, num_steps=4, jitter=0.5, full_mass=True), dense=True),
    "nuts": KernelCase(partial(NUTS, step_size=0.6, max_tree_depth=3)),
    "nuts, dense": KernelCase(partial(NUTS, step_size=0.8, max_tree_depth=3, full_mass=True), dense=True),
}
