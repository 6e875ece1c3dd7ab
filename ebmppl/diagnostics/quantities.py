"""The scalar quantities of a run: every element of every variable, with its name, from either form of ArviZ's data."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import xarray as xr

FEW = 4  # names in a line
MOST_SITES = 256  # of a discrete variable whose sites are judged one by one (ArviZ takes some 10 ms for each)


class Quantity(NamedTuple):
    """One element of a variable.

    Attributes:
        name: such as ``theta[3]``, or with the labels of its dims.
        variable: such as ``theta``.
        draws: ``(chains, draws)``.
        fixed: a constant by its place in a square matrix: a zero above the diagonal, a one on it.
    """

    name: str
    variable: str
    draws: np.ndarray
    fixed: bool


def group_of(data: Any, name: str) -> xr.Dataset | None:
    """One group of ``InferenceData``, of a ``DataTree`` or of a netCDF file of either; None where it is missing."""
    import xarray as xr

    if isinstance(data, str | Path):
        with xr.open_datatree(data) as tree:
            return tree[name].to_dataset().load() if name in tree.children else None
    if name not in data:
        return None
    group = data[name]
    return group if isinstance(group, xr.Dataset) else group.to_dataset()


def posterior_of(data: Any, var_names: Sequence[str] | None = None) -> xr.Dataset:
    """The posterior, or some variables of it, as ``(chain, draw, ...)``.

    Raises:
        ValueError: when there is none, or unknown variables are asked for.
    """
    posterior = group_of(data, "posterior")
    if posterior is None:
        raise ValueError("expected data with a group 'posterior', got none")
    return chosen(posterior, var_names).transpose("chain", "draw", ...)


def chosen(posterior: xr.Dataset, var_names: Sequence[str] | None) -> xr.Dataset:
    """Some variables of a group; all when None.

    Raises:
        ValueError: for unknown ones.
    """
    unknown = sorted(set(var_names or ()) - set(posterior.data_vars))
    if unknown:
        raise ValueError(f"expected var_names among {sorted(map(str, posterior.data_vars))}, got {unknown}")
    return posterior if var_names is None else posterior[list(var_names)]


class Judged(NamedTuple):
    """What of a run is judged.

    Attributes:
        variables: those whose elements are quantities, as ``(chain, draw, ...)``.
        large: discrete variables of many sites, which are not judged one by one.
        discrete: all discrete variables.
    """

    variables: xr.Dataset
    large: list[xr.DataArray]
    discrete: list[xr.DataArray]


def judged_of(data: Any, var_names: Sequence[str] | None = None) -> Judged:
    """The variables of a run, and the energy where some are discrete; of several large ones those that are named.

    Raises:
        ValueError: when there is no posterior, or unknown variables are asked for.
    """
    posterior, stats = posterior_of(data), group_of(data, "sample_stats")
    if any(_whole(v) for v in posterior.data_vars.values()) and stats is not None and "lp" in stats:
        posterior = posterior if "energy" in posterior else posterior.assign(energy=-stats["lp"])
    found = chosen(posterior, var_names).transpose("chain", "draw", ...)
    discrete = [v for v in found.data_vars.values() if _whole(v)]
    large = [] if var_names else [v for v in discrete if v[0, 0].size > MOST_SITES]
    return Judged(found.drop_vars([str(v.name) for v in large]), large, discrete)


def _whole(variable: xr.DataArray) -> bool:
    return bool(variable.dtype.kind != "f")


def quantities(posterior: xr.Dataset) -> list[Quantity]:
    """All quantities of a posterior ``(chain, draw, ...)``, in the order of ArviZ's table."""
    return [quantity for name in posterior.data_vars for quantity in _elements(posterior[name])]


def _elements(variable: xr.DataArray) -> list[Quantity]:
    values, name = variable.values, str(variable.name)
    labels = [variable[dim].values.tolist() for dim in variable.dims[2:]]
    shape = values.shape[2:]
    square = len(shape) >= 2 and shape[-1] == shape[-2] > 1 and not _whole(variable)
    found = []
    for index in product(*map(range, shape)):
        draws = values[(slice(None), slice(None), *index)]
        above = square and index[-1] > index[-2] and not draws.any()
        corner = square and index[-1] == index[-2] and bool((draws == 1).all())
        label = ", ".join(str(axis[i]) for axis, i in zip(labels, index, strict=True))
        found.append(Quantity(f"{name}[{label}]" if index else name, name, draws, above or corner))
    return found


def few(items: Sequence[Any], number: int | None = None, most: int = FEW) -> str:
    """The first few items, then how many more there are of a number of them."""
    number = len(items) if number is None else number
    shown = ", ".join(map(str, items[:most]))
    return f"{shown} and {number - most} more" if number > most else shown
