"""The command line with discrete energies: models and kernels, statistics, pictures, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import ebmppl as eb
from ebmppl.cli.errors import UserError
from ebmppl.cli.kernels import CONTINUOUS, DISCRETE, KERNELS
from ebmppl.cli.models import MODELS, is_call, make
from ebmppl.diagnostics.summary import group_of
from ebmppl.models import Ising
from tests.command_line import Cli, in_folder, refused, sampled

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
    return 0.5 * (s["a"] - s["b"]) ** 2 + 0.5 * (s["c"] - s["a"]) ** 2

def broken(x):
    return x[:, 99]

def one_number(x):
    return x.float().sum()
"""
MIXED = ("model.py:mixed", "--event-shape", "a=,b=,c=", "--support", "b=boolean")
SMALL = ("--chains", "4", "--draws", "120", "--warmup", "20", "--quiet", "--seed", "1")


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    return in_folder(tmp_path, MODEL, monkeypatch)


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
        "Ising(Graph(((0, 1), (1, 2)), (3,)), [0.5, -0.2])",
        "ProductOfExperts([Ising((4,), 0.3), Ising(Graph(((0, 2),), (4,)), coupling=0.1)], weights=[1, 0.5])",
    ],
)
def test_other_models(cli: Cli, model: str) -> None:
    assert "Gibbs: 4 chains x 20 draws" in sampled(cli("sample", model, *SMALL, "--draws", "20"))


@pytest.mark.parametrize(
    "model", ["StudentTExperts(3, 2)", "ProductOfExperts([GaussianExperts(2, 2), SoftplusExperts(3, 2)])"]
)
def test_products_of_experts_over_numbers(cli: Cli, model: str) -> None:
    out = sampled(cli("sample", model, "-k", "hmc", "--num-steps", "2", *SMALL, "--draws", "20"))
    assert "HMC: 4 chains x 20 draws" in out


@pytest.mark.parametrize(
    ("model", "options", "inner"),
    [
        (["model.py:ising"], ["--betas", "3"], "Gibbs("),
        (
            ["model.py:ising"],
            ["--betas", "0.2,0.5,1", "-k", "dmala", "--step-size", "0.3"],
            "DiscreteLangevin(",
        ),
        (["model.py:bowl", "--event-shape", "2"], ["--betas", "3"], "MALA("),
    ],
)
def test_parallel_tempering(cli: Cli, model: list[str], options: list[str], inner: str) -> None:
    out = sampled(cli("sample", *model, *options, *SMALL, "--draws", "20", "--out", "d.nc"))
    assert "ParallelTempering: 4 chains x 20 draws" in out
    assert re.search(r"^3 replicas from beta [\d.]+: swap rates [\d.]+ to [\d.]+, ", out, re.MULTILINE)
    posterior = group_of("d.nc", "posterior")
    assert posterior is not None
    assert inner in posterior.attrs["kernel_settings"]
    if "," in options[1]:
        for setting in ("step_size=0.3", '"betas": [0.2, 0.5, 1.0]'):
            assert setting in posterior.attrs["kernel_settings"]


@pytest.mark.parametrize(
    ("options", "kernels"),
    [
        ([], ['"b": "Gibbs(', '"a, c": "NUTS(']),
        (
            ["-k", "a=mala,b=metropolis,c=hmc", "--num-steps", "3", "--step-size", "0.2"],
            ['"a": "MALA(', '"b": "Metropolis(', '"c": "HMC(', "step_size=0.2"],
        ),
    ],
)
def test_a_kernel_for_each_site(cli: Cli, options: list[str], kernels: list[str]) -> None:
    out = sampled(cli("sample", *MIXED, *options, *SMALL, "--draws", "10", "--warmup", "5", "--out", "d.nc"))
    assert "Blocks: 4 chains x 10 draws" in out
    posterior = group_of("d.nc", "posterior")
    assert posterior is not None
    assert set(posterior) == {"a", "b", "c"}
    assert set(np.unique(posterior["b"].values).tolist()) <= {0, 1}
    for kernel in kernels:
        assert kernel in posterior.attrs["kernel_settings"]


def test_a_statistic_that_fails_does_not_take_the_draws_along(cli: Cli) -> None:
    statistics = [word for name in ("magnetisation", "broken", "one_number") for word in ("--statistic", name)]
    args = (*SMALL, "--draws", "20", *statistics, "--out", "d.nc", "--save", "run.pt", "--plot", "t.png")
    result = cli("sample", "model.py:ising", *args)
    assert result.exit_code == 1
    for word in ("Wrote draws to d.nc.", "to run.pt.", "to t.png.", "Gibbs: 4 chains x 20 draws"):
        assert word in result.stdout
    line = MODEL[: MODEL.index("    return x[:, 99]")].count("\n") + 1
    assert f"Error: without statistic 'broken': model.py, line {line}: IndexError: " in result.stderr
    assert "without statistic 'one_number': expected statistic 'one_number' of shape (80,)" in result.stderr
    assert result.stderr.count("\n") == 1
    posterior = group_of("d.nc", "posterior")
    assert posterior is not None
    assert set(posterior) == {"x", "magnetisation"}
    assert "Traceback" in cli("sample", "model.py:ising", *args, "--debug").stderr


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
        ([*MIXED, "-k", "gibbs"], ["a kernel for each site", "as a=..., got 'gibbs'"]),
        ([*MIXED, "-k", "a=gibbs,b+c=nuts"], ["--kernel for a continuous energy as one of nuts", "'gibbs'"]),
        ([*MIXED, "-k", "b=gibbs,a=nuts"], ["every site of ['a', 'b', 'c'] in one block", "missing: ['c']"]),
        ([*MIXED, "-k", "b=gibbs,nuts"], ["--kernel as SITE=KERNEL for every site once", "'b=gibbs,nuts'"]),
        ([*MIXED, "-k", "b=gibbs,b+a=nuts"], ["every site once"]),
        ([*MIXED, "-k", "b=gibbs,a+c=nutz"], ["--kernel as one of nuts, ", "'nutz'"]),
        (
            [*MIXED, "-k", "b=gibbs,a+c=nuts", "--num-steps", "3"],
            ["--num-steps does not apply to gibbs or nuts, which"],
        ),
        ([*MIXED, "-k", "b=gibbs,a+c=langevin"], ["langevin needs --step-size"]),
        ([*MIXED, "--betas", "3"], ["--betas, got a mixed one"]),
        ([*MIXED, "-k", "b=gibbs,a+c=mala", "--betas", "3"], ["one kernel with --betas, got one by site"]),
        (["model.py:ising", "--betas", "many"], ["--betas as how many or as numbers such as", "'many'"]),
        (["model.py:ising", "--betas", "1"], ["at least 2 replicas, got 1"]),
        (["model.py:ising", "--betas", "0.5,0.2,1"], ["betas in increasing order"]),
        (["model.py:ising", "--betas", "0.5,0.9"], ["betas that end at 1"]),
        (["model.py:bowl", "--event-shape", "2", "-k", "nuts", "--betas", "3"], ["--betas as one of mala, ", "'nuts'"]),
        (
            ["ProductOfExperts([Ising((3, 3)), Ising((4, 4))])"],
            ["energies over the same sites", "([3, 3])", "([4, 4])"],
        ),
        (["ProductOfExperts([Ising((3, 3)), open('x')])"], ["plain values", "open"]),
        (["Graph(((0, 1),), (2,))"], ["expected a model such as", "'Graph'"]),
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
        (["BernoulliRBM(4, 3)", "-k", "wolff"], ["an energy of pairs that like to be equal", "got BernoulliRBM"]),
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
