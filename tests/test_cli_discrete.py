"""The command line with discrete energies: models and kernels, statistics, pictures, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

import ebmppl as eb
from ebmppl.cli import app
from ebmppl.cli.errors import UserError
from ebmppl.cli.kernels import CONTINUOUS, DISCRETE, KERNELS
from ebmppl.cli.models import MODELS, is_call, make
from ebmppl.diagnostics.summary import group_of
from ebmppl.models import Ising

MODEL = """
import torch
from ebmppl import as_energy
from ebmppl.models import Ising

ising = Ising(lattice=(4, 4), coupling=0.2, field=0.1)

def alternating(x):
    return x[:, ::2, :].float().mean((1, 2)) - x[:, 1::2, :].float().mean((1, 2))

def chain(x):
    return -0.3 * (x[:, 1:] * x[:, :-1]).sum(-1)

def levels(x):
    return 0.5 * ((x - 1.5) ** 2).sum(-1)

def bowl(x):
    return 0.5 * (x**2).sum(-1)

def mixed(s):
    return s["a"] ** 2 * s["b"]
"""
SMALL = ("--chains", "4", "--draws", "120", "--warmup", "20", "--quiet", "--seed", "1")
Cli = Callable[..., Result]


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Runs the command line in a folder with ``model.py``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "model.py").write_text(MODEL)
    return lambda *args: CliRunner().invoke(app, list(args))


def sampled(result: Result) -> str:
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(result: Result, *words: str) -> None:
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr


def test_an_ising_model_from_end_to_end(cli: Cli) -> None:
    files = ("--out", "d.nc", "--save", "run.pt", "--plot", "trace.png")
    statistics = ("--statistic", "magnetisation", "--statistic", "alternating")
    out = sampled(cli("sample", "model.py:ising", *SMALL, *statistics, *files, "--lattice-plot", "states.png"))
    assert "Gibbs: 4 chains x 120 draws after 20 of warm-up" in out
    assert re.search(r"[\d,]+ energies, [\d,]+ a second; seed 1, backend eager\.", out)
    for row in ("x[3, 3]", "magnetisation", "alternating", "energy"):
        assert re.search(rf"^{re.escape(row)} ", out, re.MULTILINE), row
    for file in ("trace.png", "states.png"):
        assert Path(file).read_bytes().startswith(b"\x89PNG")
    posterior = group_of("d.nc", "posterior")
    assert posterior is not None
    assert posterior["x"].dtype == np.int8
    mcmc = eb.MCMC(
        eb.Gibbs(Ising(lattice=(4, 4), coupling=0.2, field=0.1)), 120, 20, num_chains=4, seed=1, disable_progbar=True
    )
    mcmc.run()
    x = mcmc.get_samples(group_by_chain=True)["x"]
    assert torch.equal(torch.from_numpy(posterior["x"].values), x)
    np.testing.assert_allclose(posterior["magnetisation"].values, x.double().mean((2, 3)), atol=1e-6)
    again = eb.MCMC.load("run.pt", eb.Gibbs(Ising(lattice=(4, 4), coupling=0.2, field=0.1)))
    assert torch.equal(again.get_samples(group_by_chain=True)["x"], x)
    assert sampled(cli("summary", "d.nc")) in out


@pytest.mark.parametrize("kernel", DISCRETE)
def test_every_discrete_kernel(cli: Cli, kernel: str) -> None:
    model = "Ising(lattice=(3, 4), coupling=0.2)"
    out = sampled(cli("sample", model, "--kernel", kernel, *SMALL, "--draws", "20", "--backend", "eager"))
    assert f"{KERNELS[kernel].__name__}: 4 chains x 20 draws" in out


@pytest.mark.parametrize(
    "model",
    [
        "Potts(lattice=(3, 3), num_states=4)",
        "BernoulliRBM(num_visible=4, num_hidden=3)",
        "SoftmaxRBM(2, 3, 2)",
        "BoltzmannMachine(3, coupling=[[0, 1, 0], [1, 0, -0.5], [0, -0.5, 0]])",
        "Hopfield(patterns=[[1, -1, 1], [1, 1, -1]])",
    ],
)
def test_other_models(cli: Cli, model: str) -> None:
    assert "Gibbs: 4 chains x 20 draws" in sampled(cli("sample", model, *SMALL, "--draws", "20"))


@pytest.mark.parametrize(
    ("name", "options", "values"),
    [
        ("chain", ("--event-shape", "5", "--support", "spin"), {-1, 1}),
        ("chain", ("--event-shape", "5", "--support", "boolean"), {0, 1}),
        ("levels", ("--event-shape", "3", "--support", "0..3"), {0, 1, 2, 3}),
    ],
)
def test_a_function_of_discrete_points(cli: Cli, name: str, options: tuple[str, ...], values: set[int]) -> None:
    sampled(cli("sample", f"model.py:{name}", *options, *SMALL, "--out", "d.nc"))
    posterior = group_of("d.nc", "posterior")
    assert posterior is not None
    assert set(np.unique(posterior["x"].values).tolist()) == values


@pytest.mark.parametrize("kernel", CONTINUOUS)
def test_a_kernel_for_continuous_points_is_refused_for_discrete_ones(cli: Cli, kernel: str) -> None:
    step = ("--step-size", "0.1") if kernel == "langevin" else ()
    refused(
        cli("sample", "model.py:ising", "--kernel", kernel, *step, *SMALL),
        f"expected --kernel for a discrete energy as one of {', '.join(DISCRETE)}, got '{kernel}'",
    )


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["model.py:bowl", "--event-shape", "2", "-k", "gibbs"], ["for a continuous energy as one of nuts", "'gibbs'"]),
        (
            ["model.py:mixed", "--event-shape", "a=,b=", "--support", "b=boolean"],
            ["all discrete or all continuous", "Blocks"],
        ),
        (["model.py:ising", "-k", "gibbs", "--step-size", "1"], ["--step-size does not apply to gibbs", "no such"]),
        (["model.py:ising", "--step-size", "1"], ["--step-size does not apply to gibbs"]),
        (["model.py:ising", "--statistic", "magnetization"], ["--statistic as one of magnetisation", "alternating"]),
        (["model.py:ising", "--lattice-plot", "a.nc"], ["expected --lattice-plot as a file that ends in .png"]),
        (["Ising(lattice=(8,), coupling=1.0)", "--lattice-plot", "a.png"], ["two axes for --lattice-plot", "(8,)"]),
        (["Isin(lattice=(8, 8))"], ["expected a model such as Ising(", "'Isin'", "there are Ising"]),
        (["Ising(lattice=open('x'))"], ["plain values", "open"]),
        (["Ising(lattice=(8, 8)"], ["plain values"]),
        (["Ising"], ["Python file"]),
        (["Ising(lattice=8, 8)"], ["plain values"]),
        (["Ising(latice=(8, 8))"], ["latice", "coupling"]),
        (["Ising(lattice=(2, 8))"], ["at least 3 sites"]),
        (["Ising(lattice=(3, 3), coupling=-0.3)", "-k", "swendsen-wang"], ["frustrated"]),
        (["BernoulliRBM(4, 3)", "-k", "wolff"], ["bonds"]),
        (["Ising(coupling=[[0.0, 1.0], [2.0, 0.0]])"], ["symmetric couplings"]),
        (["Ising(lattice=(8, 8))", "--event-shape", "2"], ["models know their own"]),
    ],
)
def test_what_is_refused(cli: Cli, args: list[str], words: list[str]) -> None:
    refused(cli("sample", *args, *SMALL), *words)


def test_a_call_of_a_model() -> None:
    assert is_call("Ising(lattice=(3, 3))")
    assert not is_call("model.py:ising")
    assert not is_call("a folder (1)/model.py:f(2)")
    model = make("Ising((3, 4), coupling=0.5, periodic=False)")
    assert isinstance(model, Ising)
    assert (tuple(model.event_shape), model.coupling.item(), len(model.graph.edges)) == ((3, 4), 0.5, 17)
    square = make("Ising(coupling=[[0, 1.5], [1.5, 0]])")
    assert square(torch.ones(1, 2)).item() == -1.5
    with pytest.raises(UserError, match="plain values"):
        make("Ising(*[1], **{})")
    assert MODELS["Ising"] is Ising


def test_dtype_and_seed_hold_for_models_too(cli: Cli) -> None:
    for path, seed in (("a.nc", "5"), ("b.nc", "5"), ("c.nc", "6")):
        args = ("--chains", "4", "--draws", "20", "--quiet", "--dtype", "float64", "--seed", seed, "--out", path)
        sampled(cli("sample", "Ising(lattice=(3, 4))", *args))
    a, b, c = (group_of(path, "posterior") for path in ("a.nc", "b.nc", "c.nc"))
    stats = group_of("a.nc", "sample_stats")
    assert a is not None
    assert stats is not None
    assert stats["lp"].dtype == np.float64
    assert a.equals(b)
    assert not a.equals(c)
