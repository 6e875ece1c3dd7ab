"""Trace and rank plots that stay readable with one chain or a thousand.

They are drawn with matplotlib alone, so that they look the same whichever generation of ArviZ is installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.ndimage import gaussian_filter1d

from ebmppl.diagnostics.convergence import halves
from ebmppl.diagnostics.quantities import Quantity, few, group_of, judged_of, posterior_of, quantities
from ebmppl.diagnostics.ranks import chain_differences

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_ROWS = 8  # quantities of a trace plot
MOST_PANELS = 12  # quantities of a rank plot
MOST_LINES = 64  # chains of a trace plot
FEW_CHAINS = 8  # which have colours of their own
NAMED = ("orange", "green", "red")  # matplotlib's C1, C2 and C3, for odd chains among many
MOST_VALUES = 20  # of a discrete quantity that is shown by value
DPI = 120
_BINS = 256


def plot_trace(data: Any, path: str | Path | None = None, var_names: Sequence[str] | None = None) -> Figure:
    """Trace plot: one row for each quantity, with the density and the draws of each chain; divergent draws are marked.

    At most 8 quantities and 64 evenly spaced chains are drawn, and the title says so. More than 8 chains are thin
    lines of one colour, and up to three that leave the band of ``plot_rank`` have colours of their own.

    Args:
        data: ``InferenceData``, ``DataTree`` or the path of a netCDF file of either.
        path: where to write a PNG; the figure is then closed.
        var_names: variables to draw; the first ones when None.

    Returns:
        The figure.

    Raises:
        ValueError: for unknown variables.
    """
    import matplotlib.pyplot as plt

    posterior = _shown(data, var_names)
    found, (chains, draws) = quantities(posterior), (posterior.sizes["chain"], posterior.sizes["draw"])
    shown = found[:MOST_ROWS]
    odd = _odd_chains(shown) if chains > FEW_CHAINS else []
    lines = {*np.linspace(0, chains - 1, min(chains, MOST_LINES)).round().astype(int).tolist(), *odd}
    styles = {chain: _style(chain, chains, odd) for chain in sorted(lines)}
    diverging = _diverging(data)
    figure, axes = plt.subplots(len(shown), 2, figsize=(11, 1.7 * len(shown) + 0.8), squeeze=False)
    for (density, trace), quantity in zip(axes, shown, strict=True):
        _draw_density(density, quantity.draws, styles)
        for chain, style in styles.items():
            trace.plot(quantity.draws[chain], **style)
        _mark(density, quantity.draws[diverging] if diverging is not None else None)
        _mark(trace, np.nonzero(diverging)[1] if diverging is not None else None)
        density.set_title(quantity.name, loc="left", fontsize=11)
        trace.set_xlim(0, max(draws - 1, 1))
    axes[-1, 0].set_xlabel("value", fontsize=9)
    axes[-1, 1].set_xlabel("draw", fontsize=9)
    drawn = f"{len(lines)} of {chains} chains" if len(lines) < chains else _count(chains, "chain")
    notes = [_title(len(shown), len(found), drawn, draws)]
    notes += [", ".join(f"{colour}: chain {c}" for colour, c in zip(NAMED, odd, strict=False))] if odd else []
    notes += ["marks below: divergent draws"] if diverging is not None else []
    return _finished(figure, "; ".join(notes), path)


def _shown(data: Any, var_names: Sequence[str] | None) -> xr.Dataset:
    """What is judged; of a run of one large discrete variable alone its first elements."""
    judged = judged_of(data, var_names)
    return judged.variables if judged.variables.data_vars else posterior_of(data)


def _odd_chains(shown: list[Quantity]) -> list[int]:
    """Up to three chains that differ most from the others."""
    reach: dict[int, float] = {}
    for quantity in shown:
        difference = chain_differences(quantity.draws)
        for chain in difference.outside[: len(NAMED)]:
            reach[chain] = max(reach.get(chain, 0.0), float(np.abs(difference.lines[chain]).max()) / difference.band)
    return sorted(reach, key=lambda chain: -reach[chain])[: len(NAMED)]


def _style(chain: int, chains: int, odd: list[int]) -> dict[str, Any]:
    if chains <= FEW_CHAINS:
        return {"color": f"C{chain}", "alpha": 0.8, "linewidth": 0.9}
    if chain in odd:
        return {"color": f"C{odd.index(chain) + 1}", "alpha": 0.9, "linewidth": 0.9, "zorder": 3}
    return {"color": "C0", "alpha": min(0.8, 25 / chains) if chains < MOST_LINES else 0.35, "linewidth": 0.5}


def _diverging(data: Any) -> np.ndarray | None:
    """``(chains, draws)``: divergent draws; None without any."""
    stats = group_of(data, "sample_stats")
    if stats is None or "diverging" not in stats:
        return None
    diverging = stats["diverging"].transpose("chain", "draw").values.astype(bool)
    return diverging if diverging.any() else None


def _draw_density(axis: Axes, draws: np.ndarray, styles: dict[int, dict[str, Any]]) -> None:
    """Smoothed histograms of the chains, or the shares of each value of a discrete quantity."""
    axis.set_yticks([])
    finite = draws[np.isfinite(draws)]
    values = np.unique(finite) if draws.dtype.kind != "f" else finite
    if not len(values):
        return
    if draws.dtype.kind != "f" and len(values) <= MOST_VALUES:
        values = values.astype(float)
        axis.bar(values, [(finite == v).mean() for v in values], width=0.7, color="0.88")
        for chain, style in styles.items():
            shares = [(draws[chain] == v).mean() for v in values]
            axis.plot(values, shares, **{**style, "linestyle": "", "marker": "_", "markersize": 14})
        axis.set_xticks(values)
        return
    first, third = np.quantile(finite, [0.25, 0.75]).astype(float)
    spread = (third - first) / 1.34 or float(finite.std()) or 1.0
    low, high = max(float(finite.min()), first - 6 * spread), min(float(finite.max()), third + 6 * spread)
    low, high = (low, high) if low < high else (low - spread, high + spread)
    width = 0.9 * spread * draws.shape[1] ** -0.2  # Silverman's rule, the same for all chains
    middles = np.linspace(low, high, 2 * _BINS + 1)[1::2]
    for chain, style in styles.items():
        counts, _ = np.histogram(draws[chain], _BINS, (low, high))
        axis.plot(middles, gaussian_filter1d(counts / draws.shape[1], width * _BINS / (high - low)), **style)
    axis.set_ylim(bottom=0)


def _mark(axis: Axes, places: np.ndarray | None) -> None:
    axis.tick_params(labelsize=9)
    if places is not None:
        (marks,) = axis.plot(places, np.full(len(places), 0.05), "|", color="k", alpha=0.5, markersize=7, zorder=4)
        marks.set_transform(axis.get_xaxis_transform())


def plot_rank(data: Any, path: str | Path | None = None, var_names: Sequence[str] | None = None) -> Figure:
    r"""Rank plot: for each chain, how the ranks of its draws among all draws differ from uniform.

    A line is :math:`F_c(u) - u`, with :math:`F_c` the share of the chain's draws whose rank is under a share u of all
    draws. Chains that see the same density stay in the grey band, see ``ranks.chain_differences``; those that leave it
    are named, and the worst are coloured. A bow means a shifted chain, an S a wider or narrower one. Of a single chain
    the halves are compared. At most 12 quantities are drawn.

    References:
        Vehtari et al. 2021 (rank plots); Säilynoja, Bürkner and Vehtari 2022, "Graphical test for discrete uniformity
        and its applications in goodness-of-fit evaluation and multiple sample comparison" (ECDF differences).

    Args:
        data: ``InferenceData``, ``DataTree`` or the path of a netCDF file of either.
        path: where to write a PNG; the figure is then closed.
        var_names: variables to draw; the first ones when None.

    Returns:
        The figure.

    Raises:
        ValueError: for unknown variables.
    """
    import matplotlib.pyplot as plt

    posterior = _shown(data, var_names)
    chains = posterior.sizes["chain"]
    found = quantities(halves(posterior) if chains == 1 else posterior)
    shown = found[:MOST_PANELS]
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    size = (max(6.0, 3.8 * columns), 2.5 * rows + 0.7)
    figure, axes = plt.subplots(rows, columns, figsize=size, sharex=True, squeeze=False)
    for axis, quantity in zip(axes.flat, shown, strict=False):
        _draw_ranks(axis, quantity)
    for axis in axes.flat[len(shown) :]:
        axis.set_visible(False)
    for axis in axes[:, 0]:
        axis.set_ylabel("ECDF - uniform", fontsize=9)
    for column in range(columns):
        last = max(row for row in range(rows) if row * columns + column < len(shown))
        axes[last, column].set_xlabel("rank among all draws, as a share", fontsize=9)
        axes[last, column].tick_params(labelbottom=True)
    if chains <= FEW_CHAINS:
        axes[0, 0].legend(fontsize=8, loc="upper right", title="chain" if chains > 1 else "half")
    title = _title(len(shown), len(found), _count(chains, "chain"), posterior.sizes["draw"])
    return _finished(figure, title, path)


def _draw_ranks(axis: Axes, quantity: Quantity) -> None:
    levels, lines, band = difference = chain_differences(quantity.draws)
    chains, outside = len(lines), difference.outside
    axis.fill_between(levels, -band, band, color="0.92", linewidth=0)
    axis.axhline(0, color="0.6", linewidth=0.8)
    if chains <= FEW_CHAINS:
        for chain, line in enumerate(lines):
            axis.plot(levels, line, color=f"C{chain}", linewidth=1.8 if chain in outside else 1.0, label=str(chain))
    else:
        opacity = min(0.35, max(0.05, 30 / chains))
        axis.plot(levels, np.delete(lines, outside, axis=0).T, color="C0", alpha=opacity, linewidth=0.7)
        axis.plot(levels, lines[outside[len(NAMED) :]].T, color="0.35", linewidth=0.7)
        for place, chain in enumerate(outside[: len(NAMED)]):
            axis.plot(levels, lines[chain], color=f"C{place + 1}", linewidth=1.4)
    axis.set_title(quantity.name, loc="left", fontsize=11)
    if outside:
        axis.set_title(f"outside: {few(outside, most=len(NAMED))}", loc="right", fontsize=9)
    reach = 1.15 * max(band, float(np.abs(lines).max()))
    axis.set(xlim=(0, 1), ylim=(-reach, reach))
    axis.tick_params(labelsize=9)


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"


def _title(shown: int, found: int, chains: str, draws: int) -> str:
    if shown < found:
        return f"{shown} of {found} quantities (choose with var_names), {chains}"
    return f"{chains} x {_count(draws, 'draw')}"


def _finished(figure: Figure, title: str, path: str | Path | None) -> Figure:
    import matplotlib.pyplot as plt

    figure.suptitle(title, fontsize=12)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.1 / figure.get_figheight()))
    if path is not None:
        figure.savefig(path, dpi=DPI)
        plt.close(figure)
    return figure
