"""A run on disk: tensors, numbers and names only, so that loading executes nothing."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ebmppl.errors import SamplingWarning
from ebmppl.kernels.base import Kernel
from ebmppl.sampling.chains import Chains
from ebmppl.sampling.choice import Choice
from ebmppl.sampling.draws import Counts, Draws, Now
from ebmppl.sampling.scopes import require_unbroken

if TYPE_CHECKING:
    from ebmppl.sampling.mcmc import MCMC

FORMAT = 1
_OPTIONS = (
    "num_samples",
    "warmup_steps",
    "num_chains",
    "thinning",
    "seed",
    "backend",
    "save_warmup",
    "disable_progbar",
)
_RESULTS = ("kept", "warmup_kept", "sampling_time", "backend_reason")


def save_run(mcmc: MCMC, path: str | Path) -> None:
    """Write a run.

    Raises:
        ValueError: when nothing has run.
        SamplingError: when an exception stopped it where no run can go on.
    """
    now, chains = mcmc.now, mcmc.chains
    assert chains is not None  # mcmc.now raises otherwise
    require_unbroken(chains)
    if now.counts is None:
        raise ValueError("expected a run with draws, got one that was stopped before its first draw")
    torch.save(
        {
            "format": FORMAT,
            "kernel": _identity(mcmc.kernel),
            "settings": mcmc.kernel.settings(),
            "options": {name: getattr(mcmc, name) for name in _OPTIONS},
            "transforms": sorted(mcmc.transforms or {}),
            "save_params": None if mcmc.save_params is None else list(mcmc.save_params),
            "results": {name: getattr(mcmc, name) for name in _RESULTS},
            "tick": now.tick,
            "own": now.own,
            "begun": now.begun,
            "computed": now.computed,
            "position": chains.position(),
            "state": now.state._asdict(),
            "tuning": now.tuning._asdict(),
            "counts": now.counts._asdict(),
            "draws": _draws(mcmc.draws),
            "warmup_draws": _draws(mcmc.warmup_draws),
        },
        path,
    )


def load_run(cls: type[MCMC], path: str | Path, kernel: Kernel) -> MCMC:
    """Read a run; the kernel gives the energy and must be of the saved kind."""
    saved: Any = _read(path)
    found = saved.get("format") if isinstance(saved, dict) else type(saved).__name__
    if found != FORMAT:
        raise ValueError(f"expected a run saved in format {FORMAT}, got {found} in {path}")
    if saved["kernel"] != _identity(kernel):
        raise ValueError(f"expected the kernel that was saved, {saved['kernel']}, got {_identity(kernel)}")
    if saved["settings"] != kernel.settings():
        raise ValueError(f"expected the settings that were saved, {saved['settings']}, got {kernel.settings()}")
    if saved["transforms"]:
        told = f"the transforms of {saved['transforms']} were not saved: set mcmc.transforms to have them again"
        warnings.warn(told, SamplingWarning, stacklevel=3)
    options = dict(saved["options"])
    if options["backend"] == "cudagraph" and not torch.cuda.is_available():
        told = "the run's back-end 'cudagraph' is not here: draws to come are of another one, and not bit for bit what it drew"
        warnings.warn(told, SamplingWarning, stacklevel=3)
        options["backend"] = "auto"
    mcmc = cls(kernel, save_params=saved["save_params"], **options)
    for name in _RESULTS:
        setattr(mcmc, name, saved["results"][name])
    mcmc.draws, mcmc.warmup_draws = (_restore(mcmc, saved[name]) for name in ("draws", "warmup_draws"))
    chains = mcmc.chains = Chains(kernel, saved["position"], mcmc.seed, mcmc.backend)
    chains.choice = Choice(mcmc.backend, mcmc.backend_reason)
    blank = chains.now
    chains.now = Now(
        tick=saved["tick"],
        state=type(blank.state)(**saved["state"]),
        tuning=type(blank.tuning)(**saved["tuning"]),
        adaptation=None,
        counts=Counts(**saved["counts"]),
        log=None,
        own=saved["own"],
        begun=saved.get("begun", saved["tick"]),  # runs saved by earlier versions didn't know
        computed=saved["computed"],
    )
    return mcmc


def _read(path: str | Path) -> object:
    try:
        # what was saved on a GPU can be read without one
        return torch.load(path, map_location=None if torch.cuda.is_available() else "cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a wrong file makes torch trip over anything
        raise ValueError(f"expected a run saved by MCMC.save in {path}, got something else: {error}") from error


def _identity(kernel: Kernel) -> dict[str, Any]:
    """What a saved run and the kernel that continues it must share."""
    return {
        "kind": type(kernel).__name__,
        "sites": {name: list(shape) for name, shape in kernel.target.sites.items()},
    }


def _draws(draws: Draws) -> dict[str, Any]:
    return {"thinning": draws.thinning, "columns": draws.columns, "buffers": draws.buffers}


def _restore(mcmc: MCMC, saved: dict[str, Any]) -> Draws:
    draws = Draws(mcmc.num_chains, saved["thinning"], saved["columns"])
    draws.buffers = saved["buffers"]
    return draws
