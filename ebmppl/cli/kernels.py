"""The kernel table, and which options apply to which kernel."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

from ebmppl.cli.errors import UserError
from ebmppl.kernels import HMC, MALA, NUTS, Kernel, Langevin

KERNELS: dict[str, type[Kernel]] = {"nuts": NUTS, "hmc": HMC, "mala": MALA, "langevin": Langevin}

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
            raise UserError(f"{OPTIONS[argument]} does not apply to {name}, which takes {', '.join(applying)}")
    for argument, option in OPTIONS.items():
        if argument in takes and takes[argument].default is inspect.Parameter.empty and argument not in settings:
            raise UserError(f"{name} needs {option}: it has no default and nothing adapts it")
    return kind


def listed(name: str, candidates: list[str]) -> str:
    """Candidates in one line, those that look like the name first."""
    close = difflib.get_close_matches(name, candidates, n=3, cutoff=0.5)
    return ", ".join([*close, *(c for c in candidates if c not in close)])
