"""Pictures of states and filters: what they draw and how much of it; how they look was judged by eye."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from ebmppl.diagnostics import plot_filters, plot_lattice
from ebmppl.interop.arviz import import_arviz, quiet_arviz


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    plt.close("all")


def _data(**posterior: np.ndarray) -> Any:
    with quiet_arviz():
        return import_arviz().from_dict(posterior=posterior)


def _spins(*shape: int) -> np.ndarray:
    return (2 * np.random.default_rng(0).integers(0, 2, shape) - 1).astype(np.int8)


def _panels(figure: Any) -> list[Any]:
    return [axis for axis in figure.axes if axis.images]


def _legend(figure: Any) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_draws_are_rows_and_chains_columns(tmp_path: Path) -> None:
    x = _spins(9, 21, 5, 7)
    figure = plot_lattice(_data(other=_spins(9, 21), x=x), chains=3, draws=2)
    panels = _panels(figure)
    assert [p.get_title() for p in panels] == [f"chain {c}, draw {d}" for d in (0, 20) for c in (0, 4, 8)]
    # colour 0 for -1, and 1 for +1
    np.testing.assert_array_equal(panels[4].images[0].get_array(), (x[4, 20] + 1) // 2)
    assert _legend(figure) == ["-1", "+1"]
    before = plt.get_fignums()
    plot_lattice(_data(x=x), tmp_path / "states.png", "x")
    assert (tmp_path / "states.png").read_bytes()[:4] == b"\x89PNG"
    assert plt.get_fignums() == before


def test_a_single_draw_is_the_last() -> None:
    (panel,) = _panels(plot_lattice(_data(x=_spins(3, 8, 4, 4)), chains=1, draws=1))
    assert panel.get_title() == "chain 2, draw 7"


@pytest.mark.parametrize(
    ("state", "legend"),
    [
        (np.ones((3, 3), np.int8), ["-1", "+1"]),
        (np.zeros((3, 3), bool), ["0", "1"]),
        (np.arange(9).reshape(3, 3) % 5, ["0", "1", "2", "3", "4"]),
        (np.array([[-2, 0, 3]]), ["-2", "0", "+3"]),
        (np.arange(9).reshape(3, 3), []),  # along a scale
        (np.linspace(0, 1, 9).reshape(3, 3), []),
        (np.array([[np.nan, 1.5]]), []),
    ],
)
def test_few_values_have_a_colour_each(state: np.ndarray, legend: list[str]) -> None:
    figure = plot_lattice(state)
    assert _legend(figure) == legend
    assert len(figure.axes) == (1 if legend else 2)  # with a colour bar
    (image,) = figure.axes[0].images
    colours = image.cmap(image.norm(image.get_array()))
    if legend and len(np.unique(state)) > 1:
        seen = {tuple(colours[np.where(state == v)][0]) for v in np.unique(state)}
        assert len(seen) == len(np.unique(state))


def test_states_with_titles_in_a_grid() -> None:
    panels = _panels(plot_lattice(torch.tensor(_spins(7, 4, 4)), titles=[f"T = {t}" for t in range(7)]))
    assert [p.get_title() for p in panels] == [f"T = {t}" for t in range(7)]


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (_spins(4), {}, r"expected states \(height, width\), .* got \(4,\)"),
        (_spins(30, 4, 4), {}, "expected 1 to 24 states, got 30"),
        (_spins(3, 4, 4), {"titles": ["a"]}, "expected 3 titles, got 1"),
        (_spins(3, 4, 4, 4), {"titles": ["a"]}, "expected titles with states"),
        (_spins(3, 4, 4, 4), {"draws": 0}, "expected draws >= 1, got 0"),
    ],
)
def test_states_that_cannot_be_drawn(data: np.ndarray, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plot_lattice(data, **options)


def test_data_without_a_lattice() -> None:
    with pytest.raises(ValueError, match=r"expected a variable of two axes, got {'x': \(4,\)}"):
        plot_lattice(_data(x=_spins(2, 3, 4)))
    with pytest.raises(ValueError, match="expected var_names among"):
        plot_lattice(_data(x=_spins(2, 3, 4, 4)), var_name="y")


def test_filters_by_norm_on_one_symmetric_scale(tmp_path: Path) -> None:
    weights = torch.nn.Parameter(torch.diag(torch.tensor([1.0, -3.0, 2.0, 0.5, 0.0, 0.0])))
    figure = plot_filters(weights, (2, 3))
    panels = _panels(figure)
    drawn = [p.images[0].get_array() for p in panels if p.images[0].get_array().shape == (2, 3)]
    assert [float(a.sum()) for a in drawn] == [-3.0, 2.0, 1.0, 0.5, 0.0, 0.0]
    assert drawn[0][0, 1] == -3.0  # row by row
    assert {p.images[0].get_clim() for p in panels if p.images[0].get_array().shape == (2, 3)} == {(-3.0, 3.0)}
    own = _panels(plot_filters(weights, (2, 3), common_scale=False))
    assert [p.images[0].get_clim()[1] for p in own] == [3.0, 2.0, 1.0, 0.5, 1.0, 1.0]
    plot_filters(weights, (2, 3), tmp_path / "filters.png")
    assert (tmp_path / "filters.png").read_bytes()[:4] == b"\x89PNG"


def test_many_filters_are_cut_and_counted() -> None:
    figure = plot_filters(np.random.default_rng(0).normal(size=(16, 130)), (4, 4), columns=20)
    assert figure.get_suptitle() == "100 of 130 filters, those of the largest norm"
    assert sum(axis.get_visible() and bool(axis.images) for axis in figure.axes) == 100


@pytest.mark.parametrize(
    ("weights", "shape", "message"),
    [
        (np.ones((6, 2)), (6,), r"expected shape as \(height, width\), got \(6,\)"),
        (np.ones((2, 6)), (2, 3), r"expected weights \(6, hidden\) for images 2 x 3, got \(2, 6\)"),
        (np.full((6, 2), np.nan), (2, 3), "expected finite weights, got nan in filter 0"),
    ],
)
def test_filters_that_cannot_be_drawn(weights: np.ndarray, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plot_filters(weights, shape)
