"""The benchmark scripts run; what they measure is no matter for a test."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import ebmppl as eb
from tests.benchmarks import discrete, langevin, losses, nuts, nuts_equality, rbm, report, score
from tests.benchmarks.posteriors import POSTERIORS
from tests.benchmarks.pyro_models import MODELS
from tests.benchmarks.timing import Spread, alternate, ratio, table
from tests.benchmarks.worker import Failed, Worker


@pytest.mark.long
def test_langevin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torchebm")
    file = tmp_path / "results.json"
    effort = langevin.Effort(sizes=((4, 2),), rounds=2, seconds=1e-4)
    langevin.main(["--threads", "1", "--json", str(file)], effort)
    results = json.loads(file.read_text())
    assert [row["kernel"] for row in results["double_well"]] == ["Langevin", "MALA", "HMC"]
    for row in results["double_well"] + results["network"]:
        assert len(row["tick"]) == 2
        assert min(row["tick"]) > 0
    assert [row["torchebm_gradients"] for row in results["double_well"]] == [1, 1, 2]
    out = capsys.readouterr().out
    assert "torch.set_num_threads(1)" in out
    assert out.count("| 4x2 ") == 6


def test_losses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torchebm")
    file = tmp_path / "results.json"
    effort = losses.Effort(batches=(4,), rounds=2, seconds=1e-4)
    losses.main(["--slices", "2", "--json", str(file)], effort)
    rows = json.loads(file.read_text())["losses"]
    assert [row["loss"] for row in rows] == ["denoising", "CD-10", "sliced", "sliced, reduced"]
    assert all(min(row["ours"] + row["limit"] + row["torchebm"]) > 0 for row in rows)
    assert capsys.readouterr().out.count("| 4 ") == 4


@pytest.mark.long
def test_losses_of_an_rbm(capsys: pytest.CaptureFixture[str]) -> None:
    """Each peer in a process of its own."""
    pytest.importorskip("sklearn")
    found = rbm.main(["--rounds", "2", "--steps", "1"])
    assert {name: len(costs) for name, costs in found.items()} == dict.fromkeys(rbm.PEERS, 2)
    assert min(min(cost[:2]) for costs in found.values() for cost in costs) > 0
    assert capsys.readouterr().out.count("products alone") == 2


@pytest.mark.long
def test_nuts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("blackjax")
    file = tmp_path / "results.json"
    nuts.main(["--quick", "--json", str(file)])
    (cell,) = json.loads(file.read_text())["cells"]
    assert (cell["problem"], cell["chains"], cell["failed"]) == ("d", 4, {})
    for side in ("ours", "blackjax", "pyro-jit"):
        cold, warm = (cell["sides"][side][way] for way in ("cold", "warm"))
        assert len(cold) == len(warm) == 1
        assert 0 < cold[0]["seconds"] < cold[0]["whole"]
        assert warm[0]["rate"] > 0
        assert warm[0]["per_gradient"] > 0
    assert 0 < cell["sides"]["ours"]["warm"][0]["used"] <= cell["sides"]["ours"]["warm"][0]["bound"] + 1e-6
    out = capsys.readouterr().out
    assert out.count("| eight schools ") == 6
    assert "best of Pyro's ways (pyro-jit)" in out


@pytest.mark.long
def test_nuts_equality(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("blackjax")
    file = tmp_path / "results.json"
    effort = nuts_equality.Effort(rounds=1, chains=4, warmup=40, draws=40, seconds=1e-4)
    nuts_equality.main(["--json", str(file)], effort)
    results = json.loads(file.read_text())
    assert len(results["per_gradient"]) == 2 * len(nuts_equality.EQUAL)
    assert all(min(row["ours"] + row["blackjax"]) > 0 for row in results["per_gradient"])
    assert capsys.readouterr().out.count("| adapted |") == 3


def test_a_failing_sampler_says_why_and_others_go_on() -> None:
    with pytest.raises(Failed, match="KeyError"), Worker("no such sampler", "e", nuts.Effort(4, 5, 5), 60) as worker:
        worker.run(0)
    cell = nuts.Cell("e", nuts.Effort(4, 5, 5), ["no such sampler"], ["cold"], 60)
    cell.measure(pairs=2)
    assert "KeyError" in cell.failed["no such sampler"]


@pytest.mark.parametrize("key", list(POSTERIORS))
def test_every_sampler_gets_the_same_posterior(key: str) -> None:
    """Energies and log densities add up to one constant: float32 sums of at most 1,000 terms round by 1e-6 of them."""
    jax = pytest.importorskip("jax")
    posterior, generator = POSTERIORS[key], torch.Generator().manual_seed(0)
    points = 0.3 * torch.randn(20, posterior.dimension, generator=generator)
    log_density = np.asarray(jax.vmap(posterior.log_density())(points.numpy()), dtype=np.float64)
    energies = [posterior.energy()(points)] if posterior.energy is not None else []
    if posterior.from_model:
        in_its_order = points.roll(2, 1) if key == "d" else points  # eight schools: mu and tau first
        energies.append(eb.from_pyro(MODELS[posterior.model]())(in_its_order))
    for energy in energies:
        sums = energy.numpy() + log_density
        np.testing.assert_allclose(sums, sums.mean(), atol=4e-6 * np.abs(log_density).max())


def test_targets_are_judged_against_the_best_peer_pair_by_pair() -> None:
    def runs(rates: list[float], **more: float) -> dict[str, list[dict[str, float]]]:
        return {"warm": [{"rate": rate, "used": 0.95, "bound": 0.96, **more} for rate in rates]}

    found = {
        "ours": runs([40.0, 60.0, 50.0], tick=1.5),
        "numpyro": runs([5.0, 5.0, 5.0]),
        "blackjax-parallel": runs([10.0, 10.0, 10.0]),
        "gradient": runs([0.0, 0.0, 0.0], tick=1.0),
    }
    judged = report.verdicts("a", 64, found)
    assert [(v.found.median, v.wanted, v.met) for v in judged] == [
        (5.0, 4.0, True),
        (0.95, 0.93, True),
        (1.5, None, None),
    ]
    assert "(blackjax-parallel)" in judged[0].what
    slow = report.verdicts("a", 512, found)
    assert [v.met for v in slow] == [False, True, False]
    assert slow[0].text().endswith("5.00 [4.50, 5.50] >= 8 NO")


def test_peers_alternate() -> None:
    calls: list[str] = []
    peers = {"a": lambda n: calls.append("a"), "b": lambda n: calls.append("b")}
    times = alternate(peers, rounds=4, seconds={"a": 0.0, "b": 0.0})
    assert [len(times[name]) for name in peers] == [4, 4]
    assert calls[-8:] == ["a", "b", "b", "a", "a", "b", "b", "a"]


def test_a_ratio_is_taken_round_by_round() -> None:
    assert ratio([2.0, 4.0, 9.0], [1.0, 2.0, 3.0]) == Spread(2.0, 2.0, 2.5)


def test_columns_of_a_table_are_aligned() -> None:
    lines = table(["a", "long"], [["value", "b"]]).splitlines()
    assert lines == ["| a     | long |", "|-------|------|", "| value | b    |"]


def test_discrete(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without the peers, which say why they are missing."""
    file = tmp_path / "times.json"
    found = discrete.main(["--quick", "--cases", "lattice", "--threads", "1", "--json", str(file)])
    assert file.exists()
    printed = capsys.readouterr().out
    assert "Ising 16x16" in printed
    (case,) = found["cases"]
    assert {"compiled", "eager", "limit"} <= set(case["times"])
    assert ("thrml" in case["times"]) == (not case["missing"])


@pytest.mark.long
def test_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torchsde")
    pytest.importorskip("torchdiffeq")
    file = tmp_path / "times.json"
    score.main(["--quick", "--json", str(file)])
    found = json.loads(file.read_text())["cases"]
    assert set(found) == set(score.CASES)
    assert min(turn[0] for turns in found["network"]["times"].values() for turn in turns) > 0
    assert "torchsde / it" in capsys.readouterr().out


def test_rows_at_an_error_are_interpolated() -> None:
    found = [(1e-2, 10.0, 1e-2), (1e-3, 20.0, 1e-3), (1e-4, 40.0, 1e-4)]
    assert score._rows_at(1e-3, found) == pytest.approx(20.0)
    assert score._rows_at(10**-2.5, found) == pytest.approx(10 * 2**0.5)
    assert score._rows_at(1e-5, found) != score._rows_at(1e-5, found)  # NaN: not reached
