"""The tutorials' parts against closed forms, and a small version of each run."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy.signal import lfilter

TUTORIALS = Path(__file__).parents[1] / "tutorials"


@pytest.fixture(scope="module")
def ising() -> ModuleType:
    spec = importlib.util.spec_from_file_location("_ising_tutorial", TUTORIALS / "ising.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_ising_runs_and_writes_its_pictures(
    ising: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ising, "TEMPERATURES", (1.6, 2.3, 3.0))
    # at L = 8 and T = 1.6 the magnetisation is the infinite one up to exp(-L / 0.9), far below its error here
    assert ising.main(size=8, chains=8, draws=60, steps=300, picture=16) == 0
    for name in ("magnetisation", "lattices", "autocorrelation"):
        assert (tmp_path / f"out/ising_{name}.png").read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    assert "as it should be" in out
    assert "Wolff" in out


def test_the_magnetisation_of_the_infinite_lattice(ising: ModuleType) -> None:
    assert math.sinh(2 / ising.CRITICAL) == pytest.approx(1.0)
    below, above = ising.exact_magnetisation(np.array([ising.CRITICAL - 1e-9, ising.CRITICAL + 1e-9]))
    assert 0 < below < 0.1
    assert above == 0.0
    # to the first two orders at low temperatures: 1 - 2 u^4 - 8 u^6, u = exp(-2 / T)
    u = math.exp(-2 / 0.5)
    assert 1 - float(ising.exact_magnetisation(0.5)) == pytest.approx(2 * u**4 + 8 * u**6, rel=1e-4)


def test_the_integrated_time_is_that_of_the_process(ising: ModuleType) -> None:
    r = 0.9
    noise = np.random.default_rng(0).normal(size=(32, 4000))
    x = lfilter([1.0], [1.0, -r], noise, axis=1)[:, 200:]
    rho = ising.correlations(x)
    assert rho[10] == pytest.approx(r**10, abs=0.03)
    assert ising.integrated_time(rho) == pytest.approx((1 + r) / (1 - r), rel=0.06)
