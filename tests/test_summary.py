"""The summary's flags on runs whose faults are known, and its thresholds on chains whose law is known."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from scipy.signal import lfilter

import ebmppl as eb
from ebmppl.diagnostics import Summary, convergence, summarize
from ebmppl.diagnostics.convergence import compare_chains, ess_within, r_hat_threshold
from ebmppl.energies import Gaussian
from ebmppl.interop.arviz import import_arviz, quiet_arviz

CHAINS, DRAWS = 8, 400


def _ar(seed: int, chains: int, draws: int, correlation: float) -> np.ndarray:
    """Stationary first-order autoregressions of unit variance: ESS = draws (1 - r) / (1 + r) per chain."""
    noise = np.random.default_rng(seed).normal(size=(chains, draws + 300)) * math.sqrt(1 - correlation**2)
    return lfilter([1.0], [1.0, -correlation], noise, axis=1)[:, 300:]


def _data(
    attrs: dict[str, Any] | None = None, stats: dict[str, np.ndarray] | None = None, **posterior: np.ndarray
) -> Any:
    az = import_arviz()
    with quiet_arviz():
        data = az.from_dict(posterior=posterior, sample_stats=stats)
    data["posterior"].attrs.update(attrs or {})
    return data


def _normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape or (CHAINS, DRAWS))


def _flags(summary: Summary) -> dict[str, str]:
    return {flag.partition(":")[0]: flag for flag in summary.flags}


# Convergence.


def test_convergence_is_arviz_on_every_element() -> None:
    az = import_arviz()
    samples = {"a": torch.tensor(_normal()), "b": torch.tensor(_normal(CHAINS, DRAWS, 2, 3, seed=1))}
    figures = convergence(samples)
    assert figures["a"]["n_eff"].shape == figures["a"]["r_hat"].shape == ()
    assert figures["b"]["n_eff"].shape == figures["b"]["r_hat"].shape == (2, 3)
    for index in np.ndindex(2, 3):
        draws = samples["b"][:, :, index[0], index[1]].numpy()
        assert float(figures["b"]["n_eff"][index]) == az.ess(draws, method="bulk")
        assert float(figures["b"]["r_hat"][index]) == az.rhat(draws, method="rank")


def test_convergence_of_one_chain_compares_its_halves() -> None:
    still = torch.tensor(_normal(1, 400))
    drifting = still + torch.linspace(0, 3, 400)
    assert float(convergence({"x": still})["x"]["r_hat"]) < 1.02
    assert float(convergence({"x": drifting})["x"]["r_hat"]) > 1.2


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.float32, torch.bfloat16])
def test_convergence_takes_any_dtype(dtype: torch.dtype) -> None:
    draws = (torch.tensor(_normal()) > 0).to(dtype)
    figures = convergence({"x": draws})["x"]
    assert float(figures["r_hat"]) == pytest.approx(1.0, abs=0.01)
    assert 0.5 < float(figures["n_eff"]) / draws.numel() < 2.0


def test_convergence_is_nan_where_there_is_no_answer(caplog: pytest.LogCaptureFixture) -> None:
    assert math.isnan(convergence({"x": torch.zeros(4, 3)})["x"]["n_eff"])  # too few
    assert math.isnan(convergence({"x": torch.ones(4, 100)})["x"]["r_hat"])  # constant
    holed = torch.tensor(_normal())
    holed[1, 2] = math.nan
    assert math.isnan(convergence({"x": holed})["x"]["n_eff"])
    assert logging.root.manager.disable == logging.NOTSET  # ArviZ was silenced, and nobody else for longer


def test_diagnostics_of_a_run() -> None:
    mcmc = eb.MCMC(eb.MALA(Gaussian(torch.zeros(2), torch.eye(2))), 100, 50, num_chains=4, seed=1, disable_progbar=True)
    mcmc.run()
    figures = mcmc.diagnostics()
    assert figures["x"]["n_eff"].shape == (2,)
    assert set(figures["divergences"]) == {f"chain {i}" for i in range(4)}


# The threshold of R-hat.


def test_the_threshold_of_few_and_of_long_chains() -> None:
    assert r_hat_threshold(50.0, 4) == pytest.approx(math.sqrt(1 + 2 / 50))
    assert r_hat_threshold(1000.0, 4) == 1.01
    assert r_hat_threshold(1000.0, 64) == 1.01
    assert r_hat_threshold(1.0, 64) == 1.2


def test_the_threshold_of_many_chains_tends_to_the_expected_r_hat() -> None:
    expected = math.sqrt(1 + 2 / 55)
    thresholds = [r_hat_threshold(55.0, chains) for chains in (8, 64, 512, 10**6)]
    assert thresholds == sorted(thresholds, reverse=True)
    assert thresholds[-1] == pytest.approx(expected, rel=1e-4)
    assert thresholds[1] > expected


@pytest.mark.parametrize(("chains", "draws", "r"), [(64, 200, 0.57), (256, 100, 0.57), (500, 100, 0.6), (8, 400, 0.57)])
def test_stationary_chains_pass_though_r_hat_is_over_1_01(chains: int, draws: int, r: float) -> None:
    # one in a thousand of such quantities is meant to be flagged; of 10, one flag has a probability of 1 %
    compared = [compare_chains(_ar(seed, chains, draws, r)) for seed in range(10)]
    assert all(c.agrees for c in compared)
    if chains > 8:
        assert max(c.r_hat for c in compared) > 1.01  # the plain rule would have flagged these


@pytest.mark.parametrize(
    ("chains", "draws", "share", "shift"),
    [(64, 200, 0.5, 0.5), (500, 200, 0.5, 0.5), (64, 1000, 0.5, 0.3), (64, 200, 1 / 64, 3.0), (4, 1000, 0.25, 0.5)],
)
def test_chains_that_disagree_are_caught(chains: int, draws: int, share: float, shift: float) -> None:
    # a threshold made from the bulk ESS, which falls where chains disagree, passes nearly all of these
    for seed in range(5):
        x = _ar(seed, chains, draws, 0.5)
        x[: max(1, round(share * chains))] += shift
        assert not compare_chains(x).agrees


@pytest.mark.parametrize(("draws", "r"), [(200, 0.57), (1000, 0.8)])
def test_ess_within_chains_is_that_of_the_process(draws: int, r: float) -> None:
    wanted = draws * (1 - r) / (1 + r)
    still = ess_within(_ar(0, 256, draws, r))
    assert still == pytest.approx(wanted, rel=0.12)  # its own spread is 1 %; what is left is the bias of short halves
    shifted = _ar(0, 256, draws, r) + np.repeat([0.0, 1.0], 128)[:, None]
    assert ess_within(shifted) == pytest.approx(
        still, rel=0.05
    )  # whether or not the chains agree (ranks feel it a bit)


def test_antithetic_draws_are_judged_by_their_spread_too() -> None:
    # the mean mixes faster than independent draws, the spread slower, and ArviZ's R-hat is the larger of both
    rng = np.random.default_rng(0)
    size = np.exp(0.5 * _ar(1, 64, 200, 0.8))
    x = size * np.where(rng.random((64, 1)) < 0.5, 1, -1) * np.resize([1, -1], 200)
    summary = summarize(_data(x=x + 0.1 * rng.normal(size=x.shape)))
    assert summary.table.loc["x", "ess_bulk"] > 64 * 200
    assert summary.table.loc["x", "r_hat"] > 1.01
    assert summary.flags == []


# Flags of known faults.


def test_a_good_run_has_no_flags_and_says_what_was_checked() -> None:
    stats = {
        "diverging": np.zeros((CHAINS, DRAWS), bool),
        "energy": _normal(),
        "n_steps": np.ones((CHAINS, DRAWS), int),
    }
    summary = summarize(_data(stats=stats, x=_normal(), y=_normal(CHAINS, DRAWS, 3, seed=1)))
    assert summary.flags == []
    last = str(summary).splitlines()[-1]
    assert last.startswith("nothing flagged in 4 quantities, 8 chains x 400 draws; checked: finite draws, stuck chains")
    assert last.endswith("divergences, E-BFMI")
    assert repr(summary) == "Summary(4 quantities, 8 chains x 400 draws, 0 flags)"


def test_a_stuck_chain_is_named() -> None:
    x = _normal(CHAINS, DRAWS, 2)
    x[5, :, 1] = 0.1  # in the middle of the others, where R-hat hardly sees it
    flags = _flags(summarize(_data(x=x)))
    assert flags["stuck"].startswith("stuck: every draw the same in chain 5 (1 of 8), for x[1] (1 of 2)")


def test_a_constant_quantity_never_passes() -> None:
    summary = summarize(_data(x=_normal(), z=np.full((CHAINS, DRAWS), 2.0)))
    assert "z (1 of 2) never change" in _flags(summary)["constant"]
    assert math.isnan(summary.table.loc["z", "r_hat"])
    every = np.repeat(np.arange(CHAINS, dtype=float)[:, None], DRAWS, axis=1)  # all chains stuck, each elsewhere
    assert "constant" in _flags(summarize(_data(x=every)))


def test_constants_of_a_cholesky_factor_are_not_flagged() -> None:
    factor = np.zeros((CHAINS, DRAWS, 2, 2))
    factor[..., 0, 0] = 1.0
    factor[..., 1, 0] = 0.5 * _normal()
    factor[..., 1, 1] = np.sqrt(1 - np.minimum(factor[..., 1, 0] ** 2, 0.9))
    assert "constant" not in _flags(summarize(_data(factor=factor)))


def test_one_element_of_a_discrete_state_may_keep_its_value() -> None:
    state = np.random.default_rng(0).random((CHAINS, DRAWS, 2)) < [0.998, 0.5]
    state[3, :, 0] = True  # which has a probability of 0.45
    assert "stuck" not in _flags(summarize(_data(state=state)))
    state[3] = True
    assert "chain 3 (1 of 8)" in _flags(summarize(_data(state=state)))["stuck"]


def test_a_shifted_chain_is_named() -> None:
    x = _normal()
    x[6] += 2.0
    flag = _flags(summarize(_data(x=x, y=_normal(seed=1))))["R-hat"]
    assert flag.startswith("R-hat: too high in x (1 of 2)")
    assert "apart: chain 6 (1 of 8)" in flag


def test_one_shifted_chain_among_hundreds_does_not_hide() -> None:
    x = _normal(300, 200)
    x[123] += 0.7
    summary = summarize(_data(x=x))
    assert summary.table.loc["x", "r_hat"] < 1.01  # R-hat is blind to it
    assert _flags(summary)["apart"].startswith("apart: chain 123 (1 of 300)")


def test_good_chains_are_not_called_apart() -> None:
    # a false alarm has a probability of 0.001 for each run
    for seed in range(10):
        assert summarize(_data(x=_ar(seed, 64, 200, 0.57), y=_ar(seed + 50, 64, 200, -0.5))).flags == []


def test_few_effective_draws() -> None:
    summary = summarize(_data(x=_ar(0, 4, 500, 0.9), y=_normal(4, 500)))
    assert _flags(summary)["ESS"].startswith("ESS: under 400 in x (1 of 2); lowest bulk ")
    assert "ESS" not in _flags(summarize(_data(y=_normal(4, 500))))


def test_divergences_are_counted_and_their_chains_named() -> None:
    diverging = np.zeros((CHAINS, DRAWS), bool)
    diverging[3, :20], diverging[7, 0] = True, True
    flag = _flags(summarize(_data(stats={"diverging": diverging}, x=_normal())))["divergences"]
    assert flag.startswith("divergences: 21, 0.66% of the draws, in 2 of 8 chains (most: 20 in chain 3, 1 in chain 7)")
    assert "smaller step_size" in flag
    stats = {"diverging": diverging, "n_steps": np.ones((CHAINS, DRAWS), int)}
    assert "target_accept_prob" in _flags(summarize(_data(stats=stats, x=_normal())))["divergences"]


def test_low_e_bfmi_is_asked_of_hamiltonian_kernels_alone() -> None:
    energy = _normal()
    energy[2] = np.cumsum(energy[2])
    stats = {"energy": energy}
    assert "E-BFMI" not in _flags(summarize(_data(stats=stats, x=_normal())))
    stats["n_steps"] = np.ones((CHAINS, DRAWS), int)
    assert _flags(summarize(_data(stats=stats, x=_normal())))["E-BFMI"].startswith(
        "E-BFMI: under 0.3 in chain 2 (1 of 8)"
    )


def test_trees_cut_at_their_largest_depth() -> None:
    depth = np.full((CHAINS, DRAWS), 3)
    depth[1, :40] = 10
    attrs = {"kernel_settings": '{"max_tree_depth": 10}'}
    flag = _flags(summarize(_data(attrs, stats={"tree_depth": depth}, x=_normal())))["tree depth"]
    assert flag.startswith("tree depth: 1.2% of the draws end at the largest tree, in chain 1 (1 of 8)")
    assert "tree depth" in _flags(summarize(_data(stats={"reached_max_tree_depth": depth == 10}, x=_normal())))
    assert "tree depth" not in summarize(_data(stats={"tree_depth": depth}, x=_normal())).checked


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_draws_that_are_not_finite(value: float) -> None:
    x = _normal()
    x[2, 7] = value
    flags = _flags(summarize(_data(x=x, y=_normal(seed=1))))
    assert flags["not finite"].startswith("not finite: 1 draws of x (1 of 2) in chain 2 (1 of 8)")
    assert "no R-hat" not in flags  # said once


def test_too_few_draws_are_no_good_run() -> None:
    assert summarize(_data(x=_normal(4, 3))).flags[0].startswith("too short: 3 draws per chain")
    assert "no R-hat" in _flags(summarize(_data(x=_normal(1, 7))))


def test_one_chain_is_judged_by_its_halves() -> None:
    assert summarize(_data(x=_normal(1, 1000))).flags == []
    drifting = _normal(1, 1000) + np.linspace(0, 3, 1000)
    summary = summarize(_data(x=drifting))
    assert summary.table.loc["x", "r_hat"] > 1.2
    assert "R-hat" in _flags(summary)


def test_long_lists_are_cut_and_counted() -> None:
    x = _normal(CHAINS, DRAWS, 9)
    x[:7, :, :] = 0.0
    flag = _flags(summarize(_data(x=x)))["stuck"]
    assert "chains 0, 1, 2, 3 and 3 more (7 of 8), for x[0], x[1], x[2], x[3] and 5 more (9 of 9)" in flag


# The table.


def test_the_table_is_arvizs() -> None:
    data = _data(x=_normal(), y=_normal(CHAINS, DRAWS, 3, seed=1))
    table = summarize(data, prob=0.8).table
    wanted = import_arviz().summary(data, hdi_prob=0.8, round_to="none")
    assert table.equals(wanted)
    assert {"hdi_10%", "hdi_90%"} <= set(table.columns)
    text = str(summarize(data))
    assert "y[2]" in text
    assert len(max(text.splitlines()[:5], key=len)) < 120


def test_a_long_table_is_printed_in_part() -> None:
    summary = summarize(_data(x=_normal(4, 10, 100)))
    assert len(summary.table) == 100
    assert len(str(summary).splitlines()) < 60


def _as_tree(data: Any) -> Any:
    return xr.DataTree.from_dict({name: data[name] for name in data.groups()})


def _as_file(data: Any, folder: Path) -> Path:
    data.to_netcdf(folder / "run.nc")
    return folder / "run.nc"


def test_both_forms_and_files_give_the_same(tmp_path: Path) -> None:
    stats = {"diverging": np.eye(CHAINS, DRAWS) > 0}
    data = _data(stats=stats, x=_normal(), y=_normal(CHAINS, DRAWS, 3, seed=1))
    wanted = str(summarize(data))
    assert str(summarize(_as_tree(data))) == wanted
    path = _as_file(data, tmp_path)
    assert str(summarize(path)) == str(summarize(str(path))) == wanted


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: summarize(_data(x=_normal()), prob=1.0), r"expected prob in \(0, 1\), got 1.0"),
        (lambda: summarize(xr.DataTree()), "expected data with a group 'posterior'"),
    ],
)
def test_wrong_arguments(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_summary_of_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    mcmc = eb.MCMC(
        eb.HMC(Gaussian(torch.zeros(2), torch.eye(2)), num_steps=4), 150, 50, num_chains=6, seed=1, disable_progbar=True
    )
    mcmc.run()
    summary = mcmc.summary(prob=0.5)
    assert capsys.readouterr().out == f"{summary}\n"
    assert {"hdi_25%", "hdi_75%"} <= set(summary.table.columns)
    assert "E-BFMI" in summary.checked
