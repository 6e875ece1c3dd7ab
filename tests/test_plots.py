"""Plots: what they draw and how much of it; how they look was judged by eye."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest

from ebmppl.diagnostics import plot_rank, plot_trace
from ebmppl.diagnostics.ranks import chain_differences
from ebmppl.interop.arviz import import_arviz, quiet_arviz


def _data(**posterior: np.ndarray) -> Any:
    with quiet_arviz():
        return import_arviz().from_dict(posterior=posterior)


def _normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape)


@pytest.mark.parametrize("plot", [plot_trace, plot_rank])
@pytest.mark.parametrize("shape", [(1, 5), (4, 100), (64, 30), (300, 20, 2)])
def test_any_number_of_chains_is_drawn_and_the_figure_closed(plot: Any, shape: tuple[int, ...], tmp_path: Path) -> None:
    before = plt.get_fignums()
    plot(_data(x=_normal(*shape)), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"
    assert plt.get_fignums() == before


@pytest.mark.parametrize("plot", [plot_trace, plot_rank])
def test_values_of_every_kind_are_drawn(plot: Any, tmp_path: Path) -> None:
    x = _normal(9, 30)
    x[3, 4], x[2] = np.nan, np.inf
    rng = np.random.default_rng(0)
    posterior = {
        "holes": x,
        "constant": np.full((9, 30), 2.0),
        "on": rng.random((9, 30)) < 0.3,
        "count": rng.poisson(40, (9, 30)),
        "tails": rng.standard_cauchy((9, 30)),
    }
    plot(_data(**posterior), tmp_path / "plot.png")


@pytest.mark.parametrize("plot", [plot_trace, plot_rank])
def test_variables_are_chosen_and_unknown_ones_refused(plot: Any) -> None:
    data = _data(x=_normal(4, 50), y=_normal(4, 50, 3))
    figure = plot(data, var_names=["y"])
    names = [axis.get_title(loc="left") for axis in figure.axes]
    plt.close(figure)
    assert [name for name in names if name] == ["y[0]", "y[1]", "y[2]"]
    with pytest.raises(ValueError, match=r"expected var_names among \['x', 'y'\], got \['z'\]"):
        plot(data, var_names=["z"])


def test_a_trace_plot_shows_some_of_many_and_says_so() -> None:
    figure = plot_trace(_data(x=_normal(100, 20, 30)))
    title = figure.get_suptitle()
    rows = len(figure.axes) // 2
    lines = len(figure.axes[1].lines)
    plt.close(figure)
    assert (rows, lines) == (8, 64)
    assert title.startswith("8 of 30 quantities (choose with var_names), 64 of 100 chains")


def test_an_odd_chain_among_many_is_drawn_and_named() -> None:
    x = _normal(200, 100)
    x[100] += 2.0  # not among the evenly spaced ones
    trace, rank = plot_trace(_data(x=x)), plot_rank(_data(x=x))
    titles = trace.get_suptitle(), rank.axes[0].get_title(loc="right")
    plt.close(trace)
    plt.close(rank)
    assert titles == ("65 of 200 chains x 100 draws; orange: chain 100", "outside: 100")


def test_divergent_draws_are_marked() -> None:
    diverging = np.zeros((4, 50), bool)
    diverging[2, 10] = True
    data = import_arviz().from_dict(posterior={"x": _normal(4, 50)}, sample_stats={"diverging": diverging})
    figure = plot_trace(data)
    title, mark = figure.get_suptitle(), figure.axes[1].lines[-1].get_xdata()
    plt.close(figure)
    assert title == "4 chains x 50 draws; marks below: divergent draws"
    assert list(mark) == [10]


def test_the_band_of_a_rank_plot_holds_stationary_chains() -> None:
    # the bound is at least 0.95 for each quantity: 4 or more of 20 outside has a probability of 2 %
    outside = [
        bool(chain_differences(np.random.default_rng(seed).normal(size=(64, 100))).outside) for seed in range(20)
    ]
    assert sum(outside) < 4


def test_lines_of_a_rank_plot_are_differences_of_distribution_functions() -> None:
    draws = np.array([[0.0, 1.0, 2.0, 3.0] * 5, [2.0, 3.0, 3.0, 3.0] * 5])
    difference = chain_differences(draws)
    at = difference.levels.tolist().index(
        0.25
    )  # of all draws 10 in 40 are 1 or less: 10 of the first 20, none of the others
    assert difference.lines[:, at].tolist() == [0.25, -0.25]
    assert difference.levels[-1] == 1.0
    assert not difference.lines[:, -1].any()
