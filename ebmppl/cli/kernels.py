"""The kernel table, which options apply to which kernel, and kernels made of kernels."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from ebmppl.cli.errors import UserError
from ebmppl.energies import Energy
from ebmppl.energies.discrete import discrete
from ebmppl.energies.supports import is_discrete
from ebmppl.kernels import (
    HMC,
    MALA,
    NUTS,
    Blocks,
    DiscreteKernel,
    DiscreteLangevin,
    Gibbs,
    GibbsWithGradients,
    Kernel,
    Langevin,
    Metropolis,
    ParallelTempering,
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
IN_STEP = [name for name, kind in KERNELS.items() if kind.synchronous]  # those that replicas can move by

OPTIONS = {  # argument of a kernel -> its option
    argument: f"--{argument.replace('_', '-')}"
    for argument in ("step_size", "trajectory_length", "num_steps", "full_mass", "target_accept_prob", "max_tree_depth")
}


class Wanted(NamedTuple):
    """What the command line says of the kernel.

    Attributes:
        names: of one kernel, of one by block of sites, or None.
        settings: arguments of kernels that were given as options.
        betas: inverse temperatures of parallel tempering, or how many; None without it.
    """

    names: str | Mapping[tuple[str, ...], str] | None
    settings: Mapping[str, Any]
    betas: int | Sequence[float] | None

    def check(self) -> None:
        """Look at all that can be judged before there is an energy.

        Raises:
            UserError: see ``kernel_class``; also for tempering of kernels that draw out of step, or of blocks.
        """
        names = list(self.names.values()) if isinstance(self.names, Mapping) else [self.names] if self.names else []
        for name in names:
            if name not in KERNELS:
                raise UserError(f"expected --kernel as one of {listed(name, list(KERNELS))}, got {name!r}")
        if names:
            _require_taken(self.settings, names)
        for name in names:
            kernel_class(name, self._of(name))
        if self.betas is not None:
            if isinstance(self.names, Mapping):
                raise UserError(
                    "expected one kernel with --betas, got one by site: replicas of blocks can't be tempered"
                )
            if self.names is not None and self.names not in IN_STEP:
                raise UserError(f"expected --kernel with --betas as one of {', '.join(IN_STEP)}, got {self.names!r}")

    def make(self, energy: Energy) -> Kernel:
        """The kernel of an energy.

        Raises:
            UserError: for names or options that don't fit it.
        """
        names = self.names
        if names is None and mixed(energy):
            names = _halves(energy)
        if isinstance(names, Mapping):
            if self.betas is not None:
                raise UserError("expected an energy of discrete or of continuous sites with --betas, got a mixed one")
            return self._blocks(energy, names)
        if names is None and self.betas is not None and not discrete(energy):
            names = "mala"
        name = fitting(names, energy)
        kernel = kernel_class(name, self.settings)(energy, **self.settings)
        return kernel if self.betas is None else ParallelTempering(kernel, self.betas)

    def _blocks(self, energy: Energy, names: Mapping[tuple[str, ...], str]) -> Kernel:
        _require_taken(self.settings, list(names.values()))
        return Blocks(energy, {sites: partial(self._of_block, name) for sites, name in names.items()})

    def _of_block(self, name: str, energy: Energy) -> Kernel:
        own = self._of(name)
        return kernel_class(fitting(name, energy), own)(energy, **own)

    def _of(self, name: str) -> dict[str, Any]:
        """The settings that a kernel takes."""
        return {argument: value for argument, value in self.settings.items() if argument in _takes(name)}


def kernel_class(name: str, settings: Mapping[str, Any]) -> type[Kernel]:
    """The kernel of a name, once the settings are known to apply to it.

    Args:
        name: a key of ``KERNELS``.
        settings: arguments of the kernel that were given as options.

    Raises:
        UserError: for an option that does not apply or one that is missing.
    """
    _require_taken(settings, [name])
    takes = _takes(name)
    for argument, option in OPTIONS.items():
        if argument in takes and takes[argument].default is inspect.Parameter.empty and argument not in settings:
            raise UserError(f"{name} needs {option}: it has no default and nothing adapts it")
    return KERNELS[name]


def _takes(name: str) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(KERNELS[name]).parameters


def _require_taken(settings: Mapping[str, Any], names: Sequence[str]) -> None:
    """Raise ``UserError`` for an option that none of some kernels takes."""
    applying = [option for argument, option in OPTIONS.items() if any(argument in _takes(name) for name in names)]
    for argument in settings:
        if OPTIONS[argument] not in applying:
            verb = "takes" if len(names) == 1 else "take"
            which = f"{' or '.join(names)}, which {verb} {', '.join(applying) or 'no such options'}"
            raise UserError(f"{OPTIONS[argument]} does not apply to {which}")


def mixed(energy: Energy) -> bool:
    """Whether some sites are discrete and others are not."""
    return len({is_discrete(energy.site_support(site)) for site in energy.sites}) == 2


def _halves(energy: Energy) -> dict[tuple[str, ...], str]:
    """What a mixed energy gets where no kernel was named: gibbs for its discrete sites, nuts for the others."""
    kinds = {site: is_discrete(energy.site_support(site)) for site in energy.sites}
    return {tuple(s for s, d in kinds.items() if d): "gibbs", tuple(s for s, d in kinds.items() if not d): "nuts"}


def fitting(name: str | None, energy: Energy) -> str:
    """The kernel of a name, or the one that an energy gets where none was named: nuts, or gibbs for a discrete one.

    Raises:
        UserError: for a kernel that moves another kind of point; the message names those that fit.
    """
    if mixed(energy):
        first = next(iter(energy.sites))
        raise UserError(
            f"expected a kernel for each site of an energy of discrete and continuous sites, as {first}=..., got {name!r}"
        )
    kind, names = ("a discrete", DISCRETE) if discrete(energy) else ("a continuous", CONTINUOUS)
    if name is not None and name not in names:
        raise UserError(f"expected --kernel for {kind} energy as one of {', '.join(names)}, got {name!r}")
    return name or ("gibbs" if names is DISCRETE else "nuts")


def listed(name: str, candidates: list[str]) -> str:
    """Candidates in one line, those that look like the name first."""
    close = difflib.get_close_matches(name, candidates, n=3, cutoff=0.5)
    return ", ".join([*close, *(c for c in candidates if c not in close)])
