"""The benchmark scripts run; what they measure is no matter for a test."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest


def load(name: str) -> ModuleType:
    """A script of ``benchmarks/`` as a module."""
    path = Path(__file__).parent / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"{name}_benchmark", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_langevin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torchebm")
    script = load("langevin")
    file = tmp_path / "results.json"
    effort = script.Effort(sizes=((4, 2),), rounds=2, seconds=1e-4)
    script.main(["--threads", "1", "--json", str(file)], effort)
    results = json.loads(file.read_text())
    assert [row["kernel"] for row in results["double_well"]] == ["Langevin", "MALA", "HMC"]
    for row in results["double_well"] + results["network"]:
        assert len(row["tick"]) == 2
        assert min(row["tick"]) > 0
    assert {row["torchebm_gradients"] for row in results["double_well"]} == {1, 2}
    out = capsys.readouterr().out
    assert "torch.set_num_threads(1)" in out
    assert out.count("| 4x2 ") == 6
