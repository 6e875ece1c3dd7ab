"""Pictures: states of lattices, and filters of an RBM or of a product of experts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ebmppl.diagnostics.plots import DPI
from ebmppl.diagnostics.quantities import posterior_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

MOST_LEVELS = 8  # values that have a colour and a line in the legend each
MOST_FILTERS = 100
MOST_PANELS = 24
_TWO = ("#f7f3e8", "#1d3557")  # paper and ink
# Okabe and Ito 2008, "Color universal design", told apart by the colour-blind
_MANY = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#000000")


def plot_lattice(
    data: Any,
    path: str | Path | None = None,
    var_name: str | None = None,
    *,
    chains: int = 4,
    draws: int = 3,
    titles: Sequence[str] | None = None,
) -> Figure:
    """States of a lattice of two axes: a row for each of some draws, a column for each of some chains.

    Draws and chains are evenly spaced, the first and the last among them. Spins, bits and up to 8 categories have
    colours of their own and a legend, other values a scale.

    Args:
        data: ``InferenceData``, ``DataTree`` or the path of a netCDF file of either, of which one variable is drawn; or
            states ``(height, width)``, ``(states, height, width)`` or ``(chains, draws, height, width)``.
        path: where to write a PNG; the figure is then closed.
        var_name: variable to draw; the first of two axes when None.
        chains: columns, at most.
        draws: rows, at most.
        titles: above each of ``(states, height, width)``.

    Returns:
        The figure.

    Raises:
        ValueError: for data without a variable of two axes, or other states.
    """
    states, names = _states(data, var_name, chains, draws, titles)
    rows, columns = states.shape[:2]
    height, width = states.shape[2:]
    side = min(3.0, 11.0 / columns)
    tall = min(max(side * height / width, 0.35), 6.0)
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        rows, columns, figsize=(max(side * columns, 3.0) + 1.5, (tall + 0.3) * rows + 0.2), squeeze=False
    )
    show = _Colours(states[np.isfinite(states)] if states.dtype.kind == "f" else states)
    for place, axis in enumerate(axes.flat):
        name = names[place] if place < len(names) else None
        _bare(axis)
        if name is None:
            axis.set_visible(False)
            continue
        image = show.draw(axis, states[place // columns, place % columns])
        axis.set_title(name, fontsize=9)
    figure.tight_layout()
    show.explain(figure, axes, image)
    return _written(figure, path)


def _states(
    data: Any, var_name: str | None, chains: int, draws: int, titles: Sequence[str] | None
) -> tuple[np.ndarray, list[str]]:
    """What to draw, ``(rows, columns, height, width)``, and what is written above each."""
    for name, count in (("chains", chains), ("draws", draws)):
        if count < 1:
            raise ValueError(f"expected {name} >= 1, got {count}")
    if isinstance(data, (Tensor, np.ndarray)):
        values = data.detach().cpu().numpy() if isinstance(data, Tensor) else data
        if values.ndim in (2, 3):
            return _row_by_row(values[None] if values.ndim == 2 else values, titles)
        if values.ndim != 4:
            raise ValueError(
                "expected states (height, width), (states, height, width) or (chains, draws, height, width), "
                f"got {tuple(values.shape)}"
            )
    else:
        values = _variable(data, var_name)
    if titles is not None:
        raise ValueError("expected titles with states (states, height, width) only")
    which = [_spaced(values.shape[axis], most) for axis, most in ((1, draws), (0, chains))]
    chosen = values[np.ix_(which[1], which[0])].swapaxes(0, 1)
    names = [f"chain {c}, draw {d}" for d in which[0] for c in which[1]]
    return chosen, names


def _row_by_row(values: np.ndarray, titles: Sequence[str] | None) -> tuple[np.ndarray, list[str]]:
    number = len(values)
    if titles is not None and len(titles) != number:
        raise ValueError(f"expected {number} titles, got {len(titles)}")
    if not 0 < number <= MOST_PANELS:
        raise ValueError(f"expected 1 to {MOST_PANELS} states, got {number}")
    columns = number if number <= 4 else math.ceil(math.sqrt(number))
    rows = -(-number // columns)
    filled = np.concatenate([values, np.repeat(values[-1:], rows * columns - number, 0)])
    return filled.reshape(rows, columns, *values.shape[1:]), list(titles or [""] * number)


def _variable(data: Any, var_name: str | None) -> np.ndarray:
    posterior = posterior_of(data, None if var_name is None else [var_name])
    found = [v for v in posterior.data_vars.values() if v.ndim == 4]
    if not found:
        shapes = {str(name): v.shape[2:] for name, v in posterior.data_vars.items()}
        raise ValueError(f"expected a variable of two axes, got {shapes}")
    values: np.ndarray = found[0].values
    return values


def _spaced(number: int, most: int) -> np.ndarray:
    places = np.linspace(0, number - 1, min(number, most)) if most > 1 else np.array([number - 1])
    return places.round().astype(int)


class _Colours:
    """How values are coloured: each on its own where they are few integers, along a scale otherwise."""

    def __init__(self, values: np.ndarray) -> None:
        from matplotlib.colors import ListedColormap

        levels = np.unique(values)
        whole = bool(np.array_equal(levels, levels.round()))
        self.levels = levels if whole and len(levels) <= MOST_LEVELS else None
        self.limits = (float(levels[0]), float(levels[-1])) if len(levels) else (0.0, 1.0)
        if self.levels is not None:
            binary = set(levels.tolist()) <= {-1, 1} or set(levels.tolist()) <= {0, 1}
            if binary:  # a state of one value has its own colour, too
                self.levels = np.array([-1 if -1 in levels or 0 not in levels else 0, 1])
            number = len(self.levels)
            self.map = ListedColormap(_TWO if binary else _MANY[:number])

    def draw(self, axis: Axes, state: np.ndarray) -> AxesImage:
        if self.levels is None:
            return axis.imshow(state, cmap="viridis", vmin=self.limits[0], vmax=self.limits[1], interpolation="nearest")
        index = np.searchsorted(self.levels, state)
        return axis.imshow(index, cmap=self.map, vmin=-0.5, vmax=len(self.levels) - 0.5, interpolation="nearest")

    def explain(self, figure: Figure, axes: np.ndarray, image: AxesImage) -> None:
        if self.levels is None:
            figure.colorbar(image, ax=axes, shrink=0.8, fraction=0.03, pad=0.02).ax.tick_params(labelsize=8)
            return
        from matplotlib.patches import Patch

        signed = bool((self.levels < 0).any())
        patches = [
            Patch(
                facecolor=self.map(k),
                edgecolor="0.5",
                linewidth=0.5,
                label=f"{int(v):+d}" if signed and v else f"{int(v)}",
            )
            for k, v in enumerate(self.levels)
        ]
        right = max(axis.get_position().x1 for axis in axes.flat)
        figure.legend(handles=patches, loc="center left", bbox_to_anchor=(right + 0.01, 0.5), fontsize=9, frameon=False)


def plot_filters(
    weights: Tensor | np.ndarray,
    shape: Sequence[int],
    path: str | Path | None = None,
    *,
    columns: int | None = None,
    common_scale: bool = True,
) -> Figure:
    """The filters of hidden units or experts as images: blue negative, white zero, red positive.

    At most 100 filters are drawn, those of the largest norm, the largest first; the title says so.

    Args:
        weights: ``(visible, hidden)``, a filter in each column, as an RBM's W; transpose a matrix of filters in rows.
        shape: ``(height, width)`` of the visible units.
        path: where to write a PNG; the figure is then closed.
        columns: filters in a row; about as many as rows when None.
        common_scale: one scale for all, so that strong filters are told from weak ones; else each has its own.

    Returns:
        The figure.

    Raises:
        ValueError: for weights of another shape, or such as are not finite.
    """
    import matplotlib.pyplot as plt

    values = np.asarray(weights.detach().cpu() if isinstance(weights, Tensor) else weights, dtype=float)
    height, width = _image_shape(values, shape)
    order = np.argsort(-np.linalg.norm(values, axis=0), kind="stable")[:MOST_FILTERS]
    across = columns or math.ceil(math.sqrt(len(order)))
    rows = -(-len(order) // across)
    side = min(1.2, 9.0 / across)
    size = (max(side * across, 2.5) + 1.2, max(side * height / width, 0.3) * rows + 0.7)
    figure, axes = plt.subplots(rows, across, figsize=size, squeeze=False, gridspec_kw={"wspace": 0.08, "hspace": 0.08})
    reach = float(np.abs(values[:, order]).max()) or 1.0
    for axis in axes.flat:
        _bare(axis)
    for axis in axes.flat[len(order) :]:
        axis.set_visible(False)
    for axis, unit in zip(axes.flat, order, strict=False):
        own = reach if common_scale else float(np.abs(values[:, unit]).max()) or 1.0
        image = axis.imshow(
            values[:, unit].reshape(height, width), cmap="RdBu_r", vmin=-own, vmax=own, interpolation="nearest"
        )
    number = values.shape[1]
    what = (
        f"{len(order)} of {number} filters, those of the largest norm" if len(order) < number else f"{number} filters"
    )
    right = 1 - (1.0 if common_scale else 0.1) / size[0]
    figure.subplots_adjust(left=0.02, right=right, bottom=0.1 / size[1], top=1 - 0.45 / size[1])
    figure.suptitle(
        what if common_scale else f"{what}; each on its own scale", fontsize=11, y=1 - 0.1 / size[1], va="top"
    )
    if common_scale:
        bar = figure.add_axes((1 - 0.85 / size[0], 0.1 / size[1], 0.16 / size[0], 1 - 0.55 / size[1]))
        figure.colorbar(image, cax=bar).ax.tick_params(labelsize=8)
    return _written(figure, path)


def _image_shape(values: np.ndarray, shape: Sequence[int]) -> tuple[int, int]:
    if len(shape) != 2:
        raise ValueError(f"expected shape as (height, width), got {tuple(shape)}")
    height, width = shape
    if values.ndim != 2 or len(values) != height * width or not values.shape[1]:
        raise ValueError(
            f"expected weights ({height * width}, hidden) for images {height} x {width}, got {values.shape}"
        )
    if not np.isfinite(values).all():
        unit = int(np.flatnonzero(~np.isfinite(values).all(0))[0])
        raise ValueError(f"expected finite weights, got {values[~np.isfinite(values)][0]} in filter {unit}")
    return height, width


def _bare(axis: Axes) -> None:
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set(linewidth=0.5, color="0.6")


def _written(figure: Figure, path: str | Path | None) -> Figure:
    import matplotlib.pyplot as plt

    if path is not None:
        figure.savefig(path, dpi=DPI, bbox_inches="tight")
        plt.close(figure)
    return figure
