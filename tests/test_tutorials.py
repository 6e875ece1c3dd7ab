"""The tutorials' parts against closed forms, and a small version of each run."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
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


def tutorial(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"_{name}_tutorial", TUTORIALS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_training_in_the_plane_fails_and_recovers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    module = tutorial("train_2d")
    assert module.main(steps=60, points=1000) in (0, 1)  # too short for a good model
    for name in ("energy", "gap"):
        assert (tmp_path / f"out/train_2d_{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "Held-out log-likelihood" in capsys.readouterr().out
    data = module.eight_gaussians(20000, 0)
    # of eight components that hardly overlap: log 8 + the entropy of one
    assert -module.truth(data) == pytest.approx(math.log(8) + math.log(2 * math.pi * math.e * 0.04), abs=0.03)


def test_an_rbm_of_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    module = tutorial("rbm_digits")
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(SystemExit, match="pip install scikit-learn"):
        module.digits()
    bars = (torch.rand((150, 8, 1), generator=torch.Generator().manual_seed(0)) < 0.4).float().expand(-1, -1, 8)
    fake = ModuleType("sklearn.datasets")
    fake.load_digits = lambda: SimpleNamespace(data=16 * bars.reshape(150, 64).numpy())
    monkeypatch.setitem(sys.modules, "sklearn.datasets", fake)
    monkeypatch.setattr(module, "TRAINED_ON", 100)
    monkeypatch.setattr(module, "BATCH", 10)
    assert module.main(hidden=4, epochs=40, sweeps=20) == 0
    for name in ("likelihood", "filters", "samples"):
        assert (tmp_path / f"out/rbm_digits_{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "Held-out digits" in capsys.readouterr().out


def bars_file(path: Path) -> Path:
    """As MNIST's: packed rows of random bars."""
    x = (
        (torch.rand((300, 28, 1), generator=torch.Generator().manual_seed(0)) < 0.3)
        .expand(-1, -1, 28)
        .reshape(300, 784)
    )
    packed = np.packbits(x.numpy().astype(np.uint8), axis=1)
    np.savez(path / "bars.npz", train=packed[:200], test=packed[200:])
    return path / "bars.npz"


def mnist(path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.chdir(path)
    monkeypatch.syspath_prepend(str(TUTORIALS))
    return tutorial("rbm_mnist")


def wrote_mnist(path: Path) -> bool:
    names = ("curves", "filters", "samples")
    return all((path / f"out/rbm_mnist_{name}.png").read_bytes().startswith(b"\x89PNG") for name in names)


def test_a_large_rbm_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = mnist(tmp_path, monkeypatch)
    assert module.main(bars_file(tmp_path), hidden=8, epochs=10, every=10, sweeps=10) == 0
    assert wrote_mnist(tmp_path)


def test_curves_of_an_rbm_without_weights_are_its_likelihood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixels are independent then, and all three are one number."""
    module = mnist(tmp_path, monkeypatch)
    data, _ = module.images(bars_file(tmp_path))
    rbm = module.eb.models.BernoulliRBM(784, 3).init_from_data(data, scale=0.0)
    wanted = module.eb.log_partition(rbm).log_likelihood(data).mean().item()
    assert module.reconstruction(rbm, data) == pytest.approx(wanted, rel=1e-5)
    monkeypatch.setattr(module, "min", max, raising=False)  # all pixels
    assert module.pseudo_likelihood(rbm, data) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.data
@pytest.mark.long
def test_500_hidden_units_of_mnist(shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One epoch; independent pixels give -206 nats."""
    module = mnist(tmp_path, monkeypatch)
    data, test = module.images(shared_data / "binarized_mnist.npz")
    rbm, curve = module.train(data, test[:500], hidden=500, epochs=1, every=250)
    assert curve[0][1] == pytest.approx(-206, abs=5)
    assert curve[-1][1] > -110
    assert curve[-1][2] > -110
