"""What a cold start leaves out or does beside other work."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
import threading
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from ebmppl import HMC, NUTS, as_energy
from ebmppl.errors import SamplingWarning
from ebmppl.kernels import tracer
from ebmppl.sampling import choice, compiler, gcc, hashed, inductor_shortcuts, operators_in_c
from ebmppl.sampling.gcc import build
from ebmppl.sampling.inductor_import import import_inductor
from ebmppl.sampling.program import make_graph

SOURCE = 'extern "C" int twice(int x) { return 2 * x; }'
FRESH = """
import sys
import torch
import ebmppl as eb

energy = eb.as_energy(lambda x: x.square().sum(-1), (3,))
eb.MCMC(eb.NUTS(energy), 5, 5, num_chains=2, seed=0, disable_progbar=True).run()
assert "torch._dynamo" not in sys.modules, "an eager run imported Dynamo"
assert "scipy.interpolate" not in sys.modules, "a fifth of the library's import, for ladders alone"

from ebmppl.sampling.inductor_import import import_inductor

import_inductor()
from torch._functorch._activation_checkpointing import graph_info_provider

assert "torch._inductor.compile_fx" in sys.modules
assert "networkx" not in sys.modules, "nobody asked for it"
import networkx

assert graph_info_provider.nx.DiGraph is networkx.DiGraph
"""


def test_a_new_process_imports_what_it_needs() -> None:
    ended = subprocess.run([sys.executable, "-c", FRESH], check=False, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


WITHOUT_FOLDER = """
import warnings
import ebmppl as eb

energy = eb.as_energy(lambda x: x.square().sum(-1), (3,))
for _ in range(2):
    mcmc = eb.MCMC(eb.NUTS(energy), 5, 5, num_chains=2, seed=0, disable_progbar=True, backend="inductor")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", eb.errors.SamplingWarning)
        mcmc.run()
    for reason in (mcmc.backend_reason, *(str(w.message) for w in told if w.category is eb.errors.SamplingWarning)):
        assert "File exists: " in reason, reason
    assert mcmc.backend == "eager"
"""


@pytest.mark.long
def test_a_folder_that_cant_be_made_is_the_reason_that_is_told(tmp_path: Path) -> None:
    """In a process whose first import of Inductor fails by it, every time."""
    (tmp_path / "file").touch()
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "file")}
    command = [sys.executable, "-c", WITHOUT_FOLDER]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stderr


def test_the_first_failure_to_import_is_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one is of its own: what was imported halfway is registered already."""
    fails = iter([PermissionError("not yours"), AssertionError("already registered")])

    def fail(name: str) -> None:
        raise next(fails)

    monkeypatch.setattr(tracer, "_failure", [])
    monkeypatch.setattr(tracer.importlib, "import_module", fail)
    energy = as_energy(lambda x: x.square().sum(-1), (3,))
    for _ in range(2):
        with pytest.warns(SamplingWarning, match="runs untraced, .*PermissionError: not yours"):
            NUTS(energy).prepare(torch.zeros(2, 3), values=True, many=True)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Calls of GCC, with an empty disk cache."""
    calls: list[str] = []
    run = subprocess.run
    monkeypatch.setattr(gcc.subprocess, "run", lambda *a, **k: (calls.append("g++"), run(*a, **k))[1])
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    return calls


def test_a_library_is_built_once_and_only_whole(
    counted: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = build(SOURCE, "g++", tmp_path / "new")
    assert ctypes.CDLL(str(library)).twice(21) == 42
    assert build(SOURCE, "g++", tmp_path / "new") == library
    assert len(counted) == 1
    with monkeypatch.context() as patch:
        patch.setattr(gcc, "_FLAGS", [*gcc._FLAGS, "-O1"])
        assert build(SOURCE, "g++", tmp_path / "new") != library
    with pytest.raises(subprocess.CalledProcessError):
        build("not C++", "g++", tmp_path / "other")
    assert list((tmp_path / "other").iterdir()) == []
    with pytest.raises(FileNotFoundError, match="no compiler 'no-such-compiler'"):
        build(SOURCE, "no-such-compiler", tmp_path)


X86 = "processor\t: 0\nmodel name\t: A\nflags\t\t: fpu avx2\n\nprocessor\t: 1\nmodel name\t: A\nflags\t\t: fpu avx2\n"
ARM = "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n"


def test_libraries_of_unlike_processors_are_kept_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    known = [
        X86,
        X86.replace("A", "B"),
        X86.replace("avx2", "avx512f"),
        ARM,
        ARM.replace("asimd", "asimd sve"),
        ARM.replace("0xd0c", "0xd40"),
    ]
    found = []
    for text in [*known, None]:

        def read(self: Path, text: str | None = text) -> str:
            if text is None:
                raise FileNotFoundError(self)
            return text

        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_text", read)
            found.append(gcc._processor())
    assert found[0] == found[1]  # of another name and the same kind
    assert len(set(found)) == len(found) - 1
    assert found[-1] == platform.machine() != ""
    assert all(text.startswith(platform.machine()) for text in found)


def test_what_was_begun_is_what_is_loaded(counted: list[str]) -> None:
    compiler.load_ahead(SOURCE)
    compiler.load_ahead(SOURCE)
    assert compiler.load(SOURCE).twice(4) == 8
    assert len(counted) == 1
    assert not any(source == SOURCE for _, source in compiler._ahead)


def test_a_fork_does_not_wait_for_its_parents_threads(counted: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on, stood = threading.Event(), threading.Event(), []

    def slow(*args: Any) -> Path:
        begun.set()
        stood.append(go_on.wait(10))
        return build(*args)

    monkeypatch.setattr(compiler, "build", slow)
    compiler.load_ahead(SOURCE)
    assert begun.wait(10)
    monkeypatch.setattr(compiler, "build", build)
    process = os.getpid()
    with monkeypatch.context() as fork:
        fork.setattr(os, "getpid", lambda: process + 1)
        assert compiler.load(SOURCE).twice(4) == 8
    assert not stood
    go_on.set()
    assert compiler.load(SOURCE).twice(4) == 8
    assert stood == [True]


@pytest.mark.parametrize(
    ("where", "error"),
    [("build", subprocess.CalledProcessError(1, "g++")), ("getpass.getuser", KeyError("uid not found: 4711"))],
)
def test_where_gcc_fails_inductor_builds(where: str, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> Path:
        raise error

    monkeypatch.setattr(f"ebmppl.sampling.compiler.{where}", fails)
    monkeypatch.setattr(compiler, "_built_by_inductor", lambda source: ("Inductor's", source))
    compiler.load_ahead(SOURCE)
    assert compiler.load(SOURCE) == ("Inductor's", SOURCE)
    assert compiler.load(SOURCE) == ("Inductor's", SOURCE)


@pytest.mark.parametrize(
    ("backend", "draws", "begins"),
    [("auto", 5000, True), ("auto", 5, False), ("inductor", 5, True), ("eager", 5000, False)],
)
def test_only_a_run_that_compiles_begins_ahead(
    backend: str, draws: int, begins: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[object] = []
    monkeypatch.setattr(hashed, "compile_ahead", lambda: begun.append("numbers"))
    monkeypatch.setattr(operators_in_c, "compile_ahead", begun.extend)
    monkeypatch.setattr(choice, "LEAST_TICKS", 5000)
    energy = as_energy(lambda x: x.square().sum(-1), (3,))
    for kernel, operators in ((NUTS(energy), ["straight"]), (HMC(energy, num_steps=4), [])):
        choice.begin_ahead(backend, kernel, draws)
        assert begun == ([*operators, "numbers"] if begins else [])
        begun.clear()
    double = as_energy(torch.nn.Linear(3, 1, dtype=torch.float64), (3,))
    choice.begin_ahead(backend, NUTS(double), draws)
    assert begun == (["straight"] if begins else [])  # numbers of another type are torch's


@pytest.mark.parametrize("wrong", [False, True])
def test_values_that_were_traced_are_those_that_inductor_finds(wrong: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their forms, and which share memory; a version that takes views for new memory is seen."""
    import_inductor()
    import torch._inductor.compile_fx as inductor

    def tick(x: torch.Tensor, log: torch.Tensor, row: torch.Tensor) -> list[torch.Tensor]:
        a, b = (x.T @ x).unsqueeze(0).expand(2, -1, -1).unbind(0)
        log.index_copy_(0, row, (a * b[:1] + x.sum()).reshape(1, -1))
        return [a + log.select(0, 1)[:3], torch.where(x > 0, x.exp(), x).view(-1), row + 1]

    inputs = [torch.randn(4, 3), torch.zeros(5, 9), torch.zeros(1, dtype=torch.int64)]
    form: list[Any] = []
    if wrong:
        monkeypatch.setattr(inductor_shortcuts, "_is_new", lambda target: isinstance(target, torch._ops.OpOverload))
    for scope in (nullcontext, partial(inductor_shortcuts.quicker, 0)):
        graph = make_graph(tick, [x.clone() for x in inputs], lambda: []).graph
        assert graph is not None
        mode = inductor_shortcuts.fake_mode(graph)
        with scope(), torch.no_grad():
            inductor.fake_tensor_prop(graph, [mode.from_tensor(x, static_shapes=True) for x in inputs])
        values = [(n.name, n.meta["val"]) for n in graph.graph.nodes if isinstance(n.meta.get("val"), torch.Tensor)]
        first: dict[Any, str] = {}
        form.append(
            [
                (name, v.shape, v.stride(), v.dtype, first.setdefault(v.untyped_storage()._cdata, name))
                for name, v in values
            ]
        )
    assert len(form[0]) > 15
    assert (form[0] == form[1]) is not wrong
