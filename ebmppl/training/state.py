"""What training goes back to and goes on from: copies in memory, and files of tensors, numbers and names only."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from ebmppl.training.run import Run

FORMAT = 1


def copied(value: Any) -> Any:
    """Tensors in dicts, lists and tuples cloned; the rest as it is or deep-copied."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {name: copied(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(copied(item) for item in value)
    return value if isinstance(value, (int, float, str, bool, type(None))) else copy.deepcopy(value)


def require_fits(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Raise ``ValueError`` unless a module has the saved tensors in their shapes and dtypes, before anything is changed."""
    own = module.state_dict()
    if set(own) != set(state):
        unknown, missing = sorted(set(state) - set(own)), sorted(set(own) - set(state))
        raise ValueError(f"expected the loss and energy that were saved; only saved: {unknown}, only here: {missing}")
    for name, value in own.items():
        if value.shape != state[name].shape or value.dtype != state[name].dtype:
            saved, here = (f"{tuple(v.shape)} {v.dtype}" for v in (state[name], value))
            raise ValueError(f"expected {name} of {saved}, as saved, got {here}: make loss and energy as they were")


def global_generators() -> dict[str, Any]:
    """States of torch's global generators."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_global_generators(state: Mapping[str, Any]) -> None:
    """Put torch's global generators where they were."""
    torch.set_rng_state(state["cpu"].cpu())
    if state["cuda"]:
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])


def save_fit(run: Run, path: str | Path) -> None:
    """Write a run; the file appears whole or not at all."""
    state = {
        "format": FORMAT,
        **run.snapshot(),
        "kinds": _kinds(run),
        "k": getattr(run.bound, "k", None),  # an action may have raised it
        "kept": run.kept,
        "candidate": run.candidate,
        "batches": run.batches.state_dict(),
        "monitor": None if run.monitor is None else run.monitor.state_dict(),
        "generators": global_generators(),
    }
    path = Path(path)
    beside = path.with_name(path.name + ".part")
    torch.save(state, beside)
    beside.replace(path)


def load_fit(run: Run, path: str | Path) -> None:
    """Put a run where it was saved."""
    state = _read(path, next(run.bound.parameters()).device)
    kinds = _kinds(run)
    if state["kinds"] != kinds:
        saved = {name: kind for name, kind in state["kinds"].items() if kind != kinds.get(name)}
        got = {name: kinds.get(name) for name in saved}
        raise ValueError(f"expected a run of the kinds that were saved, {saved}, got {got}")
    require_fits(run.bound, state["bound"])
    run.batches.load_state_dict(state["batches"])
    run.restore(state)
    if state["k"] is not None:
        run.bound.k = state["k"]
    run.step, run.kept, run.candidate = state["step"], state["kept"], state["candidate"]
    if run.monitor is not None:
        run.monitor.load_state_dict(state["monitor"])
    set_global_generators(state["generators"])


def _kinds(run: Run) -> dict[str, Any]:
    """What a saved run and the one that goes on must share."""
    named = {"loss": run.bound, "energy": run.energy, "optimizer": run.optimizer, "schedule": run.schedule}
    return {
        **{name: type(value).__name__ for name, value in named.items()},
        "groups": [len(group["params"]) for group in run.optimizer.param_groups],
        "ema": None if run.ema is None else run.ema.decay,
        "batches": type(run.batches).__name__,
        "monitor": run.monitor is not None,
    }


def _read(path: str | Path, device: torch.device) -> dict[str, Any]:
    try:
        state: Any = torch.load(path, weights_only=True, map_location=device)
    except OSError:
        raise
    except Exception as error:  # a wrong file makes torch trip over anything
        raise ValueError(f"expected training saved by Fit.save in {path}, got something else: {error}") from error
    found = state.get("format") if isinstance(state, dict) and "bound" in state else type(state).__name__
    if found != FORMAT:
        raise ValueError(f"expected training saved in format {FORMAT}, got {found} in {path}")
    return state
