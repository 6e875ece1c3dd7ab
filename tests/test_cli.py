"""The command line: what it writes, what it says, and how it ends, on every path."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints

import ebmppl as eb
from ebmppl.cli.errors import UserError
from ebmppl.cli.kernels import CONTINUOUS, KERNELS, OPTIONS, kernel_class
from ebmppl.cli.loading import has_sites
from ebmppl.cli.parsing import parse_shape, parse_support
from ebmppl.diagnostics import summarize
from ebmppl.diagnostics.summary import group_of
from ebmppl.energies import Gaussian
from tests.command_line import Cli, in_folder, refused, sampled

MODEL = """
import functools
import os
import signal
from math import exp

import pyro
import pyro.distributions as dist
import torch
from ebmppl.energies import Gaussian
from tests.command_line import Cli, in_folder, refused, sampled

energy = Gaussian(torch.zeros(2), torch.eye(2))
number = 3.0
rows = torch.randn(4)

def bowl(x):
    return 0.5 * (x**2).sum(-1)

def shifted(x):
    return 0.5 * ((x - rows[0]) ** 2).sum(-1)

def dtyped(x):
    return 0.5 * (x**2).sum(-1) + torch.zeros(())

def named(sites):
    return 0.5 * sites["mu"] ** 2 + 0.5 * (sites["theta"] ** 2).sum(-1) + sites["tau"] - sites["tau"].log()

def matrix(x):
    return 0.5 * (x**2).sum((-2, -1))

def wrong_shape(x):
    return (x**2).sum(-1, keepdim=True)

def wrong_inside(x):
    return x @ torch.ones(7)

def model(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    tau = pyro.sample("tau", dist.HalfNormal(1.0))
    pyro.sample("y", dist.Normal(mu, tau), obs=y)

posterior = functools.partial(model, torch.tensor(1.0))

def no_sites():
    return torch.zeros(())

def broken_model():
    raise KeyError("lost")

def discrete():
    pyro.sample("k", dist.Poisson(3.0))

calls = 0

def interrupted(x):
    global calls
    calls += 1  # by fewer draws than make a run trace the gradient
    if calls == 300:
        os.kill(os.getpid(), signal.SIGINT)
    return 0.5 * (x**2).sum(-1)
"""
TINY = ("--chains", "4", "--draws", "50", "--warmup", "20", "--quiet", "--seed", "1")
HMC = ("--kernel", "hmc", "--num-steps", "3")
LANGEVIN = ("--kernel", "langevin", "--step-size", "0.5", "--warmup", "0")


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    return in_folder(tmp_path, MODEL, monkeypatch)


# What can be sampled.


def test_energy_draws_are_those_of_mcmc(cli: Cli) -> None:
    out = sampled(cli("sample", "model.py:energy", "--kernel", "hmc", "--num-steps", "5", *TINY, "--out", "draws.nc"))
    assert "r_hat" in out
    assert "HMC: 4 chains x 50 draws after 20 of warm-up" in out
    assert re.search(r"[\d,]+ gradients, [\d,]+ a second; seed 1, backend eager\.", out)
    assert "Wrote draws to draws.nc." in out
    mcmc = eb.MCMC(
        eb.HMC(Gaussian(torch.zeros(2), torch.eye(2)), num_steps=5), 50, 20, num_chains=4, seed=1, disable_progbar=True
    )
    mcmc.run()
    posterior, stats = group_of(Path("draws.nc"), "posterior"), group_of(Path("draws.nc"), "sample_stats")
    assert posterior is not None
    assert stats is not None
    assert torch.equal(torch.from_numpy(posterior["x"].values), mcmc.get_samples(group_by_chain=True)["x"])
    assert stats["diverging"].shape == (4, 50)
    assert f"{mcmc.gradients:,} gradients" in out


@pytest.mark.parametrize("kernel", CONTINUOUS)
def test_every_kernel(cli: Cli, kernel: str) -> None:
    step = ("--step-size", "0.5") if kernel == "langevin" else ()
    out = sampled(cli("sample", "model.py:bowl", "--event-shape", "2", "--kernel", kernel, *step, *TINY))
    assert f"{KERNELS[kernel].__name__}: 4 chains x 50 draws" in out
    assert "Wrote" not in out


def test_default_writes_nothing(cli: Cli, tmp_path: Path) -> None:
    sampled(cli("sample", "model.py:energy", *TINY))
    assert {p.name for p in tmp_path.iterdir()} <= {"model.py", "__pycache__"}


@pytest.mark.parametrize(("name", "shape", "event"), [("bowl", "2", (2,)), ("matrix", "3,4", (3, 4))])
def test_function_of_one_tensor(cli: Cli, name: str, shape: str, event: tuple[int, ...]) -> None:
    sampled(cli("sample", f"model.py:{name}", "--event-shape", shape, *LANGEVIN, *TINY, "--out", "d.nc"))
    posterior = group_of("d.nc", "posterior")
    assert posterior is not None
    assert posterior["x"].shape == (4, 50, *event)


def test_function_of_named_sites_with_support(cli: Cli) -> None:
    shape = ("--event-shape", "mu=,theta=8,tau=", "--support", "tau=positive")
    sampled(cli("sample", "model.py:named", *shape, "--thinning", "2", *HMC, *TINY, "--out", "d.nc"))
    posterior = group_of("d.nc", "posterior")
    assert posterior is not None
    assert {n: v.shape[2:] for n, v in posterior.items()} == {"mu": (), "theta": (8,), "tau": ()}
    assert bool((posterior["tau"] > 0).all())
    assert posterior.attrs["thinning"] == 2


@pytest.mark.parametrize("options", [(), ("--pyro",)])
def test_pyro_model(cli: Cli, options: tuple[str, ...]) -> None:
    out = sampled(cli("sample", "model.py:posterior", *options, *HMC, *TINY, "--out", "d.nc"))
    assert "tau" in out
    posterior = group_of("d.nc", "posterior")
    assert posterior is not None
    assert bool((posterior["tau"] > 0).all())


def test_model_is_recognised_before_anything_is_drawn() -> None:
    def improper() -> None:
        pyro.sample("mu", dist.ImproperUniform(constraints.real, (), ()))  # which can't be drawn
        raise AssertionError("went on")

    assert has_sites(improper)
    assert not has_sites(lambda: None)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("what", ["energy", "dtyped --event-shape 2", "posterior"])
def test_dtype(cli: Cli, what: str, dtype: str) -> None:
    before = torch.get_default_dtype()
    name, *options = what.split()
    sampled(cli("sample", f"model.py:{name}", *options, "--dtype", dtype, *HMC, *TINY, "--out", "d.nc"))
    posterior = group_of("d.nc", "posterior")
    assert posterior is not None
    assert {str(v.dtype) for v in posterior.values()} == {dtype}
    assert torch.get_default_dtype() == before


def test_full_mass_and_other_settings_reach_the_kernel(cli: Cli) -> None:
    options = ("--full-mass", "--target-accept-prob", "0.9", "--max-tree-depth", "4", "--step-size", "0.3")
    sampled(cli("sample", "model.py:energy", "--kernel", "nuts", *options, *TINY, "--draws", "10", "--out", "d.nc"))
    posterior = group_of("d.nc", "posterior")
    assert posterior is not None
    for setting in ('"full_mass": true', '"target_accept_prob": 0.9', '"max_tree_depth": 4', '"step_size": 0.3'):
        assert setting in posterior.attrs["kernel_settings"]


def test_plots_and_saved_run(cli: Cli) -> None:
    files = ("--plot", "trace.png", "--rank-plot", "rank.pdf", "--save", "run.pt", "--out", "d.nc")
    out = sampled(cli("sample", "model.py:energy", *HMC, *TINY, *files))
    assert Path("trace.png").read_bytes().startswith(b"\x89PNG")
    assert Path("rank.pdf").read_bytes().startswith(b"%PDF")
    mcmc = eb.MCMC.load("run.pt", eb.HMC(Gaussian(torch.zeros(2), torch.eye(2)), num_steps=3))
    posterior = group_of("d.nc", "posterior")
    assert posterior is not None
    assert torch.equal(mcmc.get_samples(group_by_chain=True)["x"], torch.from_numpy(posterior["x"].values))
    for path in ("trace.png", "rank.pdf", "run.pt", "d.nc"):
        assert f" to {path}." in out


def test_seed_covers_the_file_too(cli: Cli) -> None:
    for path, seed in (("a.nc", "5"), ("b.nc", "5"), ("c.nc", "6")):
        shape = ("--event-shape", "2", *LANGEVIN, "--chains", "4", "--draws", "20", "--quiet")
        sampled(cli("sample", "model.py:shifted", *shape, "--seed", seed, "--out", path))
    a, b, c = (group_of(path, "posterior") for path in ("a.nc", "b.nc", "c.nc"))
    assert a is not None
    assert a.equals(b)
    assert not a.equals(c)


def test_unseeded_run_says_its_seed(cli: Cli) -> None:
    args = ("sample", "model.py:energy", *HMC, "--chains", "4", "--draws", "20", "--quiet")
    found = re.search(r"seed (\d+),", sampled(cli(*args, "--out", "a.nc")))
    assert found is not None
    sampled(cli(*args, "--out", "b.nc", "--seed", found[1]))
    a, b = group_of("a.nc", "posterior"), group_of("b.nc", "posterior")
    assert a is not None
    assert a.equals(b)


def test_progress_bar_unless_quiet(cli: Cli) -> None:
    args = ("sample", "model.py:energy", *LANGEVIN, "--chains", "4", "--draws", "20")
    assert "Sample" in cli(*args).stderr
    assert cli(*args, "--quiet").stderr == ""


# The user's file.


def test_file_sees_its_folder_and_clashes_with_no_module(cli: Cli) -> None:
    Path("lib").mkdir()
    Path("lib/neighbour_of_json.py").write_text("scale = 2.0\n")
    Path("lib/json.py").write_text(
        "import json.decoder\nfrom dataclasses import dataclass\nfrom neighbour_of_json import scale\n\n"
        "@dataclass\nclass Bowl:\n    scale: float\n    def __call__(self, x):\n"
        "        return self.scale * (x**2).sum(-1)\n\nbowl = Bowl(scale)\n"
    )
    path = list(sys.path)
    sampled(cli("sample", "lib/json.py:bowl", "--event-shape", "2", *LANGEVIN, *TINY))
    assert sys.path == path
    assert sys.modules["json"].__file__ != str(Path("lib/json.py").resolve())


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("absent.py:energy", ["'absent.py'", "does not exist"]),
        (".:energy", ["is a folder"]),
        ("notes.txt:energy", ["(.py)", "'notes.txt'"]),
        ("model.py", ["expected a name", "it has", "energy", "bowl", "posterior"]),
        ("model.py:enrgy", ["no 'enrgy'", "it has energy, "]),
        ("model.py:exp2", ["no 'exp2'", "it has"]),
        ("empty.py:energy", ["empty.py has no 'energy'", "no energies, functions or models"]),
        ("model.py:number", ["'number'", "got float"]),
        ("model.py:torch", ["'torch'", "got module"]),
        ("model.py:Gaussian", ["the class 'Gaussian'"]),
        ("model.py:bowl", ["'bowl' takes x", "--event-shape 2"]),
        ("model.py:model", ["'model' takes y", "functools.partial(model, y)"]),
        ("model.py:no_sites", ["no pyro.sample", "--event-shape"]),
        ("model.py:exp", ["takes x", "--event-shape"]),
        ("model.py:broken_model", ["model.py, line ", "KeyError: 'lost'"]),
        ("model.py:discrete", ["site 'k'", "Poisson"]),
        ("raises.py:energy", ["raises.py, line 2: NameError: name 'missing' is not defined"]),
        ("bad_value.py:energy", ["bad_value.py, line 3: ValueError: expected"]),
        ("syntax.py:energy", ["SyntaxError", "syntax.py, line 1"]),
        ("exits.py:energy", ["exits.py ends the program", "__main__"]),
    ],
)
def test_file_or_object_that_will_not_do(cli: Cli, spec: str, words: list[str]) -> None:
    Path("notes.txt").write_text("x")
    Path("empty.py").write_text("from math import exp\n_hidden = exp\n")
    Path("raises.py").write_text("x = 1\nenergy = missing\n")
    Path("bad_value.py").write_text("from ebmppl.energies import DoubleWell\nn = 0\nenergy = DoubleWell(n)\n")
    Path("syntax.py").write_text("energy = = 1\n")
    Path("exits.py").write_text("raise SystemExit(0)\n")
    result = cli("sample", spec, *TINY)
    refused(result, *words)
    assert "'exp'" not in result.stderr or spec.endswith("exp")


def test_no_imported_function_among_the_candidates(cli: Cli) -> None:
    names = cli("sample", "model.py:nothing").stderr.partition("it has ")[2].strip().split(", ")
    assert "exp" not in names
    assert "Gaussian" not in names
    assert {"energy", "bowl", "model", "posterior"} <= set(names)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("energy", ["--event-shape", "2"], ["--event-shape is for plain functions"]),
        ("energy", ["--support", "positive"], ["--support goes with --event-shape"]),
        ("energy", ["--pyro"], ["--pyro is for Pyro models"]),
        ("posterior", ["--pyro", "--event-shape", "2"], ["--event-shape is for plain functions"]),
        ("model", ["--pyro"], ["'model' takes y", "functools.partial"]),
        ("no_sites", ["--pyro"], ["continuous latent sites", "none"]),
        ("number", ["--event-shape", "2"], ["got float"]),
        ("bowl", ["--event-shape", "two"], ["--event-shape", "'two'"]),
        ("bowl", ["--event-shape", "2", "--support", "positiv"], ["'positiv'", "positive, "]),
        ("named", ["--event-shape", "mu=,theta=8,tau=", "--support", "tua=positive"], ["'tua'", "'tau'"]),
        ("wrong_shape", ["--event-shape", "2"], ["expected energy of shape"]),
        ("wrong_inside", ["--event-shape", "2"], ["RuntimeError", "model.py, line "]),
        ("bowl", ["--event-shape", "2", "--support", "simplex", "--chains", "0"], ["num_chains >= 1", "0"]),
        ("energy", ["--draws", "0"], ["num_samples >= 1"]),
        ("energy", ["--warmup", "-1"], ["warmup_steps >= 0"]),
        ("energy", ["--thinning", "0"], ["thinning >= 1"]),
        ("energy", ["--seed", "-1"], ["seed"]),
        ("energy", ["--backend", "jit"], ["expected a backend of 'auto', 'eager', 'inductor', 'cudagraph', got 'jit'"]),
        ("energy", ["--step-size", "-1"], ["step_size > 0", "-1"]),
        ("energy", ["--prob", "1.5"], ["--prob in (0, 1)", "1.5"]),
        ("energy", ["--kernel", "hcm"], ["one of hmc, ", "'hcm'"]),
        (
            "energy",
            ["--kernel", "nuts", "--num-steps", "3"],
            ["--num-steps does not apply to nuts", "--max-tree-depth"],
        ),
        ("energy", ["--kernel", "langevin"], ["langevin needs --step-size"]),
        ("energy", ["--kernel", "langevin", "--full-mass"], ["--full-mass does not apply", "takes --step-size"]),
        ("energy", ["--kernel", "hmc", "--num-steps", "3", "--trajectory-length", "1"], ["not both"]),
    ],
)
def test_option_that_will_not_do(cli: Cli, name: str, options: list[str], words: list[str]) -> None:
    refused(cli("sample", f"model.py:{name}", *TINY, *options), *words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--out", "absent/d.nc"], ["--out", "'absent' does not exist"]),
        (["--out", "model.py/d.nc"], ["'model.py' is not a folder"]),
        (["--out", "d.csv"], ["--out", ".nc", "'d.csv'"]),
        (["--out", "d"], [".nc"]),
        (["--plot", "trace.xyz"], ["--plot", ".png or .pdf", "'trace.xyz'"]),
        (["--rank-plot", "absent/rank.png"], ["--rank-plot", "does not exist"]),
        (["--save", "model.py"], ["--save", ".pt"]),
        (["--out", "folder.nc"], ["got the folder"]),
        (["--plot", "a.png", "--rank-plot", "./a.png"], ["different files for --plot and --rank-plot"]),
    ],
)
def test_output_is_looked_at_before_the_file_is_imported(cli: Cli, options: list[str], words: list[str]) -> None:
    Path("folder.nc").mkdir()
    Path("loud.py").write_text("raise RuntimeError('imported')\n")
    refused(cli("sample", "loud.py:energy", *options), *words)


def test_output_without_permission(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)  # the tests may run as root
    refused(cli("sample", "model.py:energy", *TINY, "--out", "d.nc"), "'d.nc'", "permission denied")


def test_one_failing_output_does_not_take_the_others_along(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(eb.MCMC, "save", full)
    result = cli("sample", "model.py:energy", *HMC, *TINY, "--save", "run.pt", "--out", "d.nc")
    assert result.exit_code == 1
    assert "r_hat" in result.stdout
    assert "Wrote draws to d.nc." in result.stdout
    assert "could not write the run (for MCMC.load) to run.pt" in result.stderr
    assert "No space left" in result.stderr
    assert summarize("d.nc").draws == 50


def test_debug_shows_the_traceback(cli: Cli) -> None:
    result = cli("sample", "model.py:broken_model", *TINY, "--debug")
    assert result.exit_code == 1
    assert "Traceback (most recent call last)" in result.stderr
    assert result.stderr.strip().splitlines()[-1].startswith("Error: model.py, line ")


def test_warning_is_one_line_on_stderr(cli: Cli) -> None:
    Path("warns.py").write_text(
        "import warnings\nfrom ebmppl.errors import SamplingWarning\nfrom model import bowl\n"
        "warnings.warn('two\\nlines', SamplingWarning)\n"
    )
    result = cli("sample", "warns.py:bowl", "--event-shape", "2", *LANGEVIN, *TINY)
    assert "r_hat" in sampled(result)
    assert result.stderr == "Warning: two lines\n"


# Ctrl-C.


def test_interrupt_with_draws_writes_them(cli: Cli) -> None:
    args = ("--event-shape", "2", *LANGEVIN, "--chains", "4", "--draws", "900", "--quiet", "--out", "d.nc")
    result = cli("sample", "model.py:interrupted", *args)
    assert result.exit_code == 130
    found = re.fullmatch(
        r"Interrupted: every chain has (\d+) of 900 draws; the results are of these\.\n", result.stderr
    )
    assert found is not None
    assert 0 < int(found[1]) < 300
    assert f"4 chains x {found[1]} draws" in result.stdout
    assert summarize("d.nc").draws == int(found[1])


def test_interrupt_before_any_draw(cli: Cli) -> None:
    args = ("--event-shape", "2", "--kernel", "hmc", "--chains", "4", "--draws", "450", "--quiet", "--out", "d.nc")
    result = cli("sample", "model.py:interrupted", *args)
    assert result.exit_code == 130
    assert result.stdout == ""
    assert result.stderr == "Interrupted before every chain had a draw: nothing was written.\n"
    assert not Path("d.nc").exists()


# Summary, version, help, usage.


def test_summary_of_what_was_written(cli: Cli) -> None:
    out = sampled(cli("sample", "model.py:energy", *HMC, *TINY, "--out", "d.nc", "--prob", "0.5"))
    assert sampled(cli("summary", "d.nc", "--prob", "0.5")) in out
    assert sampled(cli("summary", "d.nc")) == f"{summarize('d.nc', 0.9)}\n"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["absent.nc"], ["'absent.nc'", "does not exist"]),
        (["."], ["is a folder"]),
        (["model.py"], ["'model.py'", "another format"]),
        (["other.nc"], ["posterior"]),
        (["other.nc", "--prob", "2"], ["--prob in (0, 1)"]),
    ],
)
def test_summary_refuses(cli: Cli, args: list[str], words: list[str]) -> None:
    import xarray as xr

    xr.Dataset({"a": ("n", [1.0, 2.0])}).to_netcdf("other.nc")
    refused(cli("summary", *args), *words)


def test_version(cli: Cli) -> None:
    assert sampled(cli("--version")) == f"ebmppl {eb.__version__}\n"


def test_help_teaches(cli: Cli) -> None:
    text = sampled(cli("sample", "--help"))
    for words in ("ebmppl sample model.py:posterior", "--event-shape mu=,theta=8", "Exit codes", "130", *KERNELS):
        assert words in text
    assert "ebmppl summary draws.nc" in sampled(cli("summary", "--help"))


@pytest.mark.parametrize(
    "args", [["sample"], ["sample", "model.py:energy", "--chains", "many"], ["sample", "m.py:e", "--nope"], ["nope"]]
)
def test_usage_errors(cli: Cli, args: list[str]) -> None:
    assert cli(*args).exit_code == 2


# Parts.


def test_every_option_of_the_table_is_an_argument_of_some_kernel() -> None:
    for argument, option in OPTIONS.items():
        assert any(option in _takes(name) for name in KERNELS), argument


def _takes(name: str) -> str:
    for argument in OPTIONS:
        try:
            kernel_class(name, {argument: 1, "step_size": 1})
        except UserError as error:
            return str(error)
    return str(list(OPTIONS.values()))


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("", ()), ("2", (2,)), ("2,", (2,)), ("3, 4", (3, 4)), ("mu=", {"mu": ()}),
        ("mu=,theta=8", {"mu": (), "theta": (8,)}), ("a=2,3,b=", {"a": (2, 3), "b": ()}),
    ],
)  # fmt: skip
def test_event_shape(text: str, shape: object) -> None:
    assert parse_shape(text) == shape


@pytest.mark.parametrize("text", ["x", "0", "-1", "2.5", "2,mu=3", "a=1,a=2", "=3", "1a=2", "a b=2", "a=x"])
def test_event_shape_refused(text: str) -> None:
    with pytest.raises(UserError, match="expected --event-shape such as"):
        parse_shape(text)


def test_support() -> None:
    assert parse_support([]) is constraints.real
    assert parse_support(["simplex"]) is constraints.simplex
    by_site = parse_support(["tau=positive, p=unit_interval", "a=-1:2.5", "b=:0", "c=3:"])
    assert isinstance(by_site, dict)
    assert by_site["tau"] is constraints.positive
    assert by_site["p"] is constraints.unit_interval
    assert (by_site["a"].lower_bound, by_site["a"].upper_bound) == (-1.0, 2.5)
    assert by_site["b"].upper_bound == 0.0
    assert by_site["c"].lower_bound == 3.0
    discrete = parse_support(["s=spin", "b=boolean", "k=0..3"])
    assert isinstance(discrete, dict)
    assert discrete["b"] is constraints.boolean
    assert discrete["s"].check(torch.tensor([-1, 0, 1])).tolist() == [True, False, True]
    assert (discrete["k"].lower_bound, discrete["k"].upper_bound) == (0, 3)


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["nope"], "got 'nope'"), (["dependent"], "got 'dependent'"), (["interval"], "got 'interval'"),
        (["positive", "a=real"], "got 'positive'"), (["a=positive,a=real"], "two for 'a'"), (["=real"], "got '=real'"),
        (["2:1"], "LOW < HIGH"), (["a:b"], "finite bounds"), (["0:inf"], "finite bounds"), (["1:2:3"], "finite bounds"),
        (["3..1"], "LOW < HIGH"), (["a..b"], "integers LOW..HIGH"), (["0..1.5"], "integers LOW..HIGH"),
    ],
)  # fmt: skip
def test_support_refused(texts: list[str], words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        parse_support(texts)


# As a program of its own.


def run_program(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    root = Path(eb.__file__).parents[1]
    return subprocess.run(
        [sys.executable, "-m", "ebmppl", *args],
        cwd=folder, env={"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin", "COLUMNS": "100", "HOME": str(folder)},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def test_program_samples_and_refuses(cli: Cli, tmp_path: Path) -> None:
    done = run_program(tmp_path, "sample", "model.py:energy", *HMC, *TINY, "--out", "d.nc", "--plot", "t.svg")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Wrote trace plot to t.svg." in done.stdout
    sampled(cli("sample", "model.py:energy", *HMC, *TINY, "--out", "here.nc"))
    there, here = group_of("d.nc", "posterior"), group_of("here.nc", "posterior")
    assert there is not None
    assert there.equals(here)
    failed = run_program(tmp_path, "sample", "model.py:enrgy")
    assert failed.returncode == 1
    assert failed.stderr.startswith("Error: model.py has no 'enrgy'; it has energy, ")


def test_program_interrupted(cli: Cli, tmp_path: Path) -> None:
    args = ("--event-shape", "2", *LANGEVIN, "--chains", "4", "--draws", "900", "--quiet", "--save", "run.pt")
    done = run_program(tmp_path, "sample", "model.py:interrupted", *args)
    assert done.returncode == 130
    assert done.stderr.startswith("Interrupted: every chain has ")
    assert (tmp_path / "run.pt").exists()
