"""The kernel table, and which options apply to which kernel."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

from ebmppl.cli.errors import UserError
from ebmppl.energies import Energy
from ebmppl.energies.discrete import discrete
from ebmppl.energies.supports import is_discrete
from ebmppl.kernels import (
    HMC,
    MALA,
    NUTS,
    DiscreteKernel,
    DiscreteLangevin,
    Gibbs,
    GibbsWithGradients,
    Kernel,
    Langevin,
    Metropolis,
    SwendsenWang,
    Wolff,
)

KERNELS: dict[str, type[Kernel]] = {
    "nuts": NUTS,
    "hmc": HMC,
    "mala": MALA,
    "langevin": Langevin,
    "gibbs": Gibbs,
    "metropolis": Metropolis,
    "gwg": GibbsWithGradients,
    "dmala": DiscreteLangevin,
    "swendsen-wang": SwendsenWang,
    "wolff": Wolff,
}
DISCRETE = [name for name, kind in KERNELS.items() if issubclass(kind, DiscreteKernel)]
CONTINUOUS = [name for name in KERNELS if name not in DISCRETE]

OPTIONS = {  # argument of a kernel -> its option
    argument: f"--{argument.replace('_', '-')}"
    for argument in ("step_size", "trajectory_length", "num_steps", "full_mass", "target_accept_prob", "max_tree_depth")
}


def kernel_class(name: str, settings: Mapping[str, Any]) -> type[Kernel]:
    """The kernel of a name, once the settings are known to apply to it.

    Args:
        name: a key of ``KERNELS``.
        settings: arguments of the kernel that were given as options.

    Raises:
        UserError: for an unknown name, an option that does not apply or one that is missing.
    """
    if name not in KERNELS:
        raise UserError(f"expected --kernel as one of {listed(name, list(KERNELS))}, got {name!r}")
    kind = KERNELS[name]
    takes = inspect.signature(kind).parameters
    applying = [option for argument, option in OPTIONS.items() if argument in takes]
    for argument in settings:
        if argument not in takes:
            takes_what = ", ".join(applying) or "no such options"
            raise UserError(f"{OPTIONS[argument]} does not apply to {name}, which takes {takes_what}")
    for argument, option in OPTIONS.items():
        if argument in takes and takes[argument].default is inspect.Parameter.empty and argument not in settings:
            raise UserError(f"{name} needs {option}: it has no default and nothing adapts it")
    return kind


def fitting(name: str | None, energy: Energy) -> str:
    """The kernel of a name, or the one that an energy gets where none was named: nuts, or gibbs for a discrete one.

    Raises:
        UserError: for a kernel that moves another kind of point; the message names those that fit.
    """
    if discrete(energy):
        kind, names = "a discrete", DISCRETE
    elif any(is_discrete(energy.site_support(site)) for site in energy.sites):
        raise UserError(
            "expected an energy whose sites are all discrete or all continuous; Blocks in Python takes others"
        )
    else:
        kind, names = "a continuous", CONTINUOUS
    if name is not None and name not in names:
        raise UserError(f"expected --kernel for {kind} energy as one of {', '.join(names)}, got {name!r}")
    return name or ("gibbs" if names is DISCRETE else "nuts")


def listed(name: str, candidates: list[str]) -> str:
    """Candidates in one line, those that look like the name first."""
    close = difflib.get_close_matches(name, candidates, n=3, cutoff=0.5)
    return ", ".join([*close, *(c for c in candidates if c not in close)])
