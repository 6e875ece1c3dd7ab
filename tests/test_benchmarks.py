"""The benchmark scripts run; what they measure is no matter for a test."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarks import langevin, nuts
from tests.benchmarks.timing import Spread, alternate, ratio, table


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


@pytest.mark.long
def test_nuts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("blackjax")
    file = tmp_path / "results.json"
    nuts.main(["--json", str(file)], nuts.Effort(rounds=1, chains=4, warmup=40, draws=40, seconds=1e-4))
    results = json.loads(file.read_text())
    assert [row["problem"] for row in results["per_gradient"]] == [name for name in nuts.EQUAL for _ in range(2)]
    assert all(min(row["ours"] + row["blackjax"]) > 0 for row in results["per_gradient"])
    assert results["schools"]["ratio"] > 0
    assert capsys.readouterr().out.count("| adapted |") == 3


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
