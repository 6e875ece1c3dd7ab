"""Statistics of discrete draws: their values, how they reach ArviZ and the summary, and what they cost."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor

import ebmppl as eb
from ebmppl.diagnostics import convergence, plot_rank, plot_trace, summarize
from ebmppl.diagnostics.convergence import as_dataset
from ebmppl.diagnostics.quantities import quantities
from ebmppl.diagnostics.statistics import absolute_magnetisation, magnetisation, overlap, replica_overlap
from ebmppl.energies.supports import categories
from ebmppl.interop.arviz import host_arrays
from ebmppl.interop.derived import derived
from ebmppl.kernels.gibbs import GibbsInfo
from ebmppl.models import Ising

FORMS = ["inference_data", "datatree"]


def _spins(*shape: int, seed: int = 0) -> Tensor:
    bits = torch.randint(2, shape, generator=torch.Generator().manual_seed(seed))
    return (2 * bits - 1).to(torch.int8)


@pytest.fixture(scope="module")
def ising() -> eb.MCMC:
    kernel = eb.Gibbs(Ising(lattice=(4, 6), coupling=0.2, field=0.1))
    mcmc = eb.MCMC(kernel, 300, 30, num_chains=4, seed=0, disable_progbar=True)
    mcmc.run()
    return mcmc


def _group(data: Any, name: str) -> xr.Dataset:
    group = data[name]
    return group if isinstance(group, xr.Dataset) else group.to_dataset()


# Values.


def test_magnetisation_is_the_mean_spin_and_sums_of_small_integers_do_not_overflow() -> None:
    up = torch.ones(2, 20, 20, dtype=torch.int8)  # 400 is no int8
    assert magnetisation(up).tolist() == [1.0, 1.0]
    up[0, :10] = -1
    up[1] = -1
    assert magnetisation(up).tolist() == [0.0, -1.0]
    assert absolute_magnetisation(up).tolist() == [0.0, 1.0]
    assert magnetisation(up.double()).dtype == torch.float64


def test_overlap_with_one_or_several_references() -> None:
    x, patterns = _spins(5, 3, 4), _spins(7, 3, 4, seed=1)
    wanted = torch.einsum("bij,kij->bk", x.double(), patterns.double()) / 12
    assert overlap(patterns)(x).shape == (5, 7)
    torch.testing.assert_close(overlap(patterns)(x).double(), wanted, atol=1e-6, rtol=0)
    torch.testing.assert_close(overlap(patterns[2])(x).double(), wanted[:, 2], atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match=r"expected a reference of shape .*3, 4.*, got \(4, 3\)"):
        overlap(patterns[0].mT)(x)


def test_replicas_are_disjoint_pairs_of_chains_at_the_same_draw() -> None:
    x = _spins(5, 8, 3, 4)
    wanted = torch.stack([(x[2 * k].double() * x[2 * k + 1]).mean((1, 2)) for k in range(2)])
    torch.testing.assert_close(replica_overlap(x).double(), wanted, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="two chains or more"):
        replica_overlap(x[:1])
    # independent pairs: all draws are effective
    q = replica_overlap(_spins(8, 500, 36))
    assert float(convergence({"q": q})["q"]["n_eff"]) == pytest.approx(2000, rel=0.15)
    assert list(summarize({"q": q}).table.index) == ["q"]


def test_draws_in_pieces_give_what_they_give_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    x = _spins(4, 50, 6, 6)
    whole, pairs = derived({"x": x}, {"m": magnetisation})["m"], replica_overlap(x)
    assert torch.equal(whole, magnetisation(x.flatten(0, 1)).view(4, 50))
    monkeypatch.setattr("ebmppl.interop.derived._NUMBERS", 4 * 36 * 7)  # 7 draws of each chain, and one at the end
    monkeypatch.setattr("ebmppl.diagnostics.statistics._NUMBERS", 36 * 7)
    assert torch.equal(derived({"x": x}, {"m": magnetisation})["m"], whole)
    assert torch.equal(replica_overlap(x), pairs)


# In ArviZ.


@pytest.mark.parametrize("form", FORMS)
def test_statistics_are_variables_and_states_keep_their_dtype(form: str, ising: eb.MCMC, tmp_path: Path) -> None:
    patterns = _spins(3, 4, 6)
    statistics = {"m": magnetisation, "q": overlap(patterns), "e": ising.kernel.energy}
    data = ising.to_arviz(statistics=statistics, form=form)
    data.to_netcdf(tmp_path / "run.nc", **({"engine": "h5netcdf"} if form == "datatree" else {}))
    x = ising.get_samples(group_by_chain=True)["x"]
    with xr.open_datatree(tmp_path / "run.nc") as tree:
        posterior = tree["posterior"].to_dataset().load()
        lp = tree["sample_stats"]["lp"].values
    assert posterior["x"].dtype == np.int8
    np.testing.assert_array_equal(posterior["x"].values, x.numpy())
    assert posterior["m"].dims == ("chain", "draw")
    np.testing.assert_allclose(posterior["m"].values, x.double().mean((2, 3)).numpy(), atol=1e-6)
    assert posterior["q"].shape == (4, 300, 3)
    np.testing.assert_allclose(posterior["e"].values, -lp, atol=1e-4)  # float32 sums of 48 bonds


@pytest.mark.parametrize("number", [2, 200, 40000])
def test_categories_are_stored_in_the_smallest_integers_that_hold_them(number: int, tmp_path: Path) -> None:
    energy = eb.as_energy(lambda x: 0.0 * x.sum(-1), (3,), categories(number))
    start = torch.zeros(2, 3, dtype=torch.int64)
    mcmc = eb.MCMC(_Still(energy), 4, 0, start, num_chains=2, seed=0, disable_progbar=True)
    mcmc.run()
    wanted = mcmc.get_samples()["x"].dtype
    mcmc.to_arviz().to_netcdf(str(tmp_path / "run.nc"))
    with xr.open_datatree(tmp_path / "run.nc") as tree:
        assert str(tree["posterior"]["x"].dtype) == str(wanted).removeprefix("torch.")


class _Still(eb.Gibbs):
    """Stays where it is: forty thousand levels would take as many energies."""

    def tick(self, state: Any, tuning: Any, noise: Any) -> Any:
        done = torch.ones(len(state.position), dtype=torch.bool)
        energy = self.energies(state.position)
        return state, GibbsInfo(done, -energy, energy, torch.ones_like(energy), ~done)


@pytest.mark.parametrize(
    ("statistics", "message"),
    [
        ({"x": magnetisation}, r"expected names of statistics other than \['x'\], got \['x'\]"),
        ({"chain": magnetisation}, "expected site names other than"),
        ({"m": lambda x: x.float().mean()}, r"expected statistic 'm' of shape \(1200,\) or \(1200, ...\) .* got \(\)"),
        ({"m": lambda x: x[:5]}, r"for 1200 points, got \(5, 4, 6\)"),
    ],
)
def test_wrong_statistics_say_what_was_wanted(ising: eb.MCMC, statistics: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ising.to_arviz(statistics=statistics)


def test_statistics_of_several_sites_get_a_dict() -> None:
    energy = eb.as_energy(lambda s: 0.5 * (s["a"] ** 2 + (s["b"] ** 2).sum(-1)), {"a": (), "b": (2,)})
    mcmc = eb.MCMC(eb.MALA(energy), 20, 20, num_chains=2, seed=0, disable_progbar=True)
    mcmc.run()
    data = _group(mcmc.to_arviz(statistics={"sum": lambda s: s["a"] + s["b"].sum(-1), "e": energy}), "posterior")
    np.testing.assert_allclose(data["sum"].values, data["a"].values + data["b"].values.sum(-1), rtol=1e-5)
    np.testing.assert_allclose(data["e"].values, -mcmc.stats()["lp"].numpy(), rtol=1e-4, atol=1e-5)


def test_a_lattice_goes_through_at_a_byte_a_spin() -> None:
    x = _spins(4, 64, 256, 256)  # 16.8 MB; at float64 134 MB
    from ebmppl.interop.arviz import _assemble

    tracemalloc.start()
    arrays = host_arrays({"x": x})
    data = _assemble({"posterior": arrays}, {}, {}, {}, "inference_data")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert data["posterior"]["x"].dtype == np.int8
    assert peak < 1.5 * x.numel()


# In the summary.


def test_energy_is_judged_for_discrete_draws_alone(ising: eb.MCMC) -> None:
    summary = summarize(ising.to_arviz(statistics={"m": magnetisation}))
    assert list(summary.table.index)[-2:] == ["m", "energy"]
    assert len(summary.table) == 26
    lp = ising.stats()["lp"].numpy()
    assert summary.table.loc["energy", "mean"] == pytest.approx(-lp.mean(), rel=1e-5)
    only = ising.summary(statistics={"m": magnetisation}, var_names=["m", "energy"])
    assert list(only.table.index) == ["m", "energy"]
    mcmc = eb.MCMC(eb.MALA(eb.energies.Gaussian(torch.zeros(1), torch.eye(1))), 20, 20, seed=0, disable_progbar=True)
    mcmc.run()
    assert list(mcmc.summary().table.index) == ["x[0]"]


def test_diagnostics_of_statistics(ising: eb.MCMC) -> None:
    figures = ising.diagnostics({"m": magnetisation})
    assert set(figures) == {"energy", "m", "divergences", "acceptance rate"}
    assert float(figures["m"]["n_eff"]) > 100
    assert set(ising.diagnostics()) == {"x", "divergences", "acceptance rate"}


def test_the_sites_of_a_large_lattice_are_left_out_and_a_note_says_so() -> None:
    mcmc = eb.MCMC(eb.Gibbs(Ising(lattice=(17, 17), coupling=0.2)), 50, 10, num_chains=4, seed=0, disable_progbar=True)
    mcmc.run()
    data = mcmc.to_arviz(statistics={"m": magnetisation})
    summary = summarize(data)
    assert list(summary.table.index) == ["m", "energy"]
    assert summary.notes == [
        "the 289 sites of x are not judged one by one: give statistics of them, or var_names",
    ]
    assert summary.notes[0] in str(summary)
    with pytest.raises(ValueError, match="expected statistics or var_names for a variable of many sites"):
        summarize({"x": _spins(4, 50, 17, 17)})
    with pytest.raises(ValueError, match=r"expected var_names among \['energy', 'm', 'x'\], got \['n'\]"):
        summarize(data, var_names=["n"])


def test_differences_of_small_integers_do_not_overflow() -> None:
    x = torch.randint(-100, 101, (4, 200), generator=torch.Generator().manual_seed(0))
    wanted = summarize({"x": x}).table
    found = summarize({"x": x.to(torch.int8)}).table
    assert found.equals(wanted)
    assert 160 < found.loc["x", "hdi_95%"] - found.loc["x", "hdi_5%"] < 200


def test_an_off_pixel_of_a_square_image_is_no_constant_of_a_cholesky_factor() -> None:
    x = np.random.default_rng(0).integers(0, 2, (4, 50, 3, 3))
    x[:, :, 0, 2] = 0
    x[:, :, 1, 1] = 1
    (note,) = summarize({"x": x}).notes
    assert note.startswith("x[0, 2], x[1, 1] (2 of 9) keep one value")
    assert not any(q.fixed for q in quantities(as_dataset({"x": x})))


class _Rates(eb.Gibbs):
    """Tells three numbers of every transition."""

    def tick(self, state: Any, tuning: Any, noise: Any) -> Any:
        state, info = super().tick(state, tuning, noise)
        return state, _RatesInfo(*info, info.energy.unsqueeze(1) * torch.arange(3))


class _RatesInfo(NamedTuple):
    done: Tensor
    lp: Tensor
    energy: Tensor
    acceptance_rate: Tensor
    diverging: Tensor
    swap_rates: Tensor


@pytest.mark.parametrize("form", FORMS)
def test_statistics_of_several_numbers_a_draw_reach_the_file(form: str, tmp_path: Path) -> None:
    kernel = _Rates(Ising(lattice=(3, 3), coupling=0.2))
    mcmc = eb.MCMC(kernel, 20, 5, num_chains=4, seed=0, thinning=2, disable_progbar=True)
    mcmc.run()
    mcmc.to_arviz(form=form).to_netcdf(str(tmp_path / "run.nc"))
    with xr.open_datatree(tmp_path / "run.nc") as tree:
        rates, energy = tree["sample_stats"]["swap_rates"].values, tree["sample_stats"]["energy"].values
    np.testing.assert_allclose(rates, energy[..., None] * np.arange(3), rtol=1e-6)
    assert "energy" in mcmc.summary(var_names=["energy"]).table.index


def test_plots_show_statistics_in_place_of_a_large_lattice() -> None:
    x = _spins(4, 30, 20, 20).numpy()
    data = xr.DataTree.from_dict(
        {
            "posterior": as_dataset({"x": x, "m": x.mean((2, 3))}),
            "sample_stats": as_dataset({"lp": x.sum((2, 3)) * 0.1}),
        }
    )
    for plot in (plot_trace, plot_rank):
        figure = plot(data)
        names = [title for axis in figure.axes if (title := axis.get_title(loc="left"))]
        plt.close(figure)
        assert names == ["m", "energy"]
    figure = plot_trace(xr.DataTree.from_dict({"posterior": as_dataset({"x": x})}))
    title = figure.get_suptitle()
    plt.close(figure)
    assert title.startswith("8 of 400 quantities")
