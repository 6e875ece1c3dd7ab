"""Which coordinates that keep one value are called stuck, and which are not."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import ebmppl as eb
from ebmppl.diagnostics import Summary, summarize
from ebmppl.diagnostics.statistics import magnetisation
from ebmppl.diagnostics.stuck import held
from ebmppl.models import Ising

CHAINS, DRAWS = 8, 400


def _spins(*shape: int, up: float = 0.5, seed: int = 0) -> np.ndarray:
    return np.where(np.random.default_rng(seed).random(shape) < up, 1, -1).astype(np.int8)


def _flags(summary: Summary) -> dict[str, str]:
    return {flag.partition(":")[0]: flag for flag in summary.flags}


def _run(energy: eb.Energy, draws: int = 200, start: Any = None) -> Summary:
    mcmc = eb.MCMC(eb.Gibbs(energy), draws, 20, start, num_chains=4, seed=0, disable_progbar=True)
    mcmc.run()
    return summarize(mcmc.to_arviz(statistics={"m": magnetisation}))


def test_a_cold_ferromagnet_is_frozen_in_both_phases() -> None:
    start = torch.ones(4, 4, 4, dtype=torch.int8)
    start[2:] = -1
    # a spin turns against its four neighbours with odds of exp(-16), once in 9 million
    summary = _run(2.0 * Ising(lattice=(4, 4)), start=start)
    flags = _flags(summary)
    assert flags["frozen"].startswith(
        "frozen: x[0, 0], x[0, 1], x[0, 2], x[0, 3] and 12 more (16 of 16) keep one value in every chain, and not the "
        "same in all; use moves of more than one site (SwendsenWang, Wolff)"
    )
    assert "stuck" not in flags
    # and a little warmer, where single spins turn, R-hat of the magnetisation tells
    warmer = _run(0.7 * Ising(lattice=(4, 4)), start=start)
    assert warmer.table.loc["m", "r_hat"] > 1.5
    assert " m" in _flags(warmer)["R-hat"].partition(";")[0]
    assert "ParallelTempering" in _flags(warmer)["R-hat"]


def test_a_strong_field_is_not() -> None:
    # a spin turns with odds of exp(-7) = 1/1100: some do in 200 draws, most do not
    summary = _run(Ising(lattice=(6, 6), coupling=0.0, field=3.5))
    assert not {"frozen", "stuck", "constant"} & set(_flags(summary))
    (note,) = summary.notes
    assert "keep one value in all draws of all chains, as in a strong field" in note


def test_false_alarms_are_rare_whatever_the_probability_of_a_spin() -> None:
    # at most one run in a thousand, by the rule; of 30 runs one alarm has a probability under 3 %
    for seed in range(10):
        for up in (0.5, 0.98, 0.995):
            x = _spins(4, 200, 40, up=up, seed=seed)
            found = held(x)
            assert not found.frozen.any()
            assert not found.stuck.any(), (seed, up)


def test_an_element_that_the_other_chains_change_is_stuck() -> None:
    x = _spins(CHAINS, DRAWS, 3)
    x[3, :, 1] = 1
    flag = _flags(summarize({"x": x}))["stuck"]
    assert flag.startswith(
        "stuck: every draw the same in chain 3 (1 of 8), for x[1] (1 of 3), which other chains change"
    )
    rare = _spins(CHAINS, DRAWS, 3, up=0.998)
    rare[3, :, 1] = 1  # as it would be by chance in 45 chains of 100
    assert not held(rare).stuck.any()


def test_a_level_that_no_other_chain_visits_is_stuck() -> None:
    x = np.random.default_rng(0).integers(0, 3, (CHAINS, DRAWS, 2))
    x[5, :, 0] = 3
    assert held(x).stuck.tolist() == [[c == 5, False] for c in range(CHAINS)]


def test_a_chain_that_never_moves_is_stuck_though_each_of_its_spins_may_be_still() -> None:
    x = _spins(CHAINS, DRAWS, 500, up=0.9995)
    x[2] = 1
    found = held(x)
    assert found.stuck.all(1).tolist() == [c == 2 for c in range(CHAINS)]


def test_values_that_all_chains_share_are_a_note_and_a_state_that_never_changes_is_flagged() -> None:
    x = _spins(4, 100, 5)
    x[:, :, 1:3] = 1
    summary = summarize({"x": x})
    assert summary.notes == [
        "x[1], x[2] (2 of 5) keep one value in all draws of all chains, as in a strong field: their ESS and R-hat say nothing"
    ]
    assert "constant" not in _flags(summary)
    flags = _flags(summarize({"x": np.ones((4, 100, 5), np.int8)}))
    assert flags["constant"].startswith(
        "constant: x[0], x[1], x[2], x[3] and 1 more (5 of 5) never change in any chain"
    )


def test_a_large_lattice_is_searched_though_its_sites_are_not_judged() -> None:
    x = _spins(4, 60, 20, 20)
    x[1, :, 7, 3] = 1
    x[:, :, 0, 0] = np.array([1, 1, -1, 1])[:, None]
    flags = _flags(summarize({"x": x, "m": x.mean((2, 3))}))
    assert "x[0, 0] (1 of 400)" in flags["frozen"]
    assert "in chain 1 (1 of 4), for x[7, 3] (1 of 400)" in flags["stuck"]
