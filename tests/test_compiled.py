"""Compiled ticks: equal to eager ones state by state, compiled once, and given up with a reason where they can't be had."""

from __future__ import annotations

import os
import re
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._inductor import codecache, config, sizevars
from torch._inductor.async_compile import AsyncCompile
from torch._inductor.codecache import CppPythonBindingsCodeCache, PyCodeCache
from torch._inductor.dtype_propagation import DtypePropagationOpsHandler
from torch.distributions import constraints

import ebmppl as eb
from ebmppl.energies import Energy, Gaussian, as_energy
from ebmppl.energies.reads import unchanged
from ebmppl.errors import SamplingError, SamplingWarning
from ebmppl.kernels import Kernel
from ebmppl.sampling import chains as chains_module
from ebmppl.sampling import choice, compiled_ticks, compiler, cpp_unit, engines, hashed, inductor_import, noise, pool
from ebmppl.sampling.chains import Chains
from ebmppl.sampling.compiled_ticks import Compiled
from ebmppl.sampling.program import copy, flatten, make_graph
from ebmppl.sampling.replay import Replay
from ebmppl.sampling.scopes import evaluating, uninterrupted, using_threads
from tests.registry import KERNELS
from tests.targets import f64

STATES, TICKS = 70, 200  # a full block of noise and one that is not
BY_DEFAULT = ("nuts", "hmc, steps", "langevin")
ALL = [name if name in BY_DEFAULT else pytest.param(name, marks=pytest.mark.long) for name in KERNELS]


def banana(x: Tensor) -> Tensor:
    """Curved, of three coordinates, and infinite outside a ball, so that some steps diverge."""
    curved = 0.5 * (x[:, 0] ** 2 + (x[:, 1] - x[:, 0] ** 2) ** 2 + x[:, 2] ** 2 / 4)
    return torch.where(x.square().sum(-1) < 20, curved, torch.inf)


BANANA = as_energy(banana, (3,), batched=True)


def compile_chains(kernel: Kernel, x: Tensor, seed: int = 0) -> tuple[Chains, Compiled]:
    chains = Chains(kernel, x, seed, "inductor")
    chains.now = chains.now._replace(adaptation=None if chains.adaptation is None else _begun(chains))
    with torch.no_grad(), using_threads(1), evaluating(kernel.target):
        chains.prepare(1)
    assert chains.compiled is not None, chains.choice
    return chains, chains.compiled


def _begun(chains: Chains) -> Any:
    assert chains.adaptation is not None
    return chains.adaptation.init(chains.now.tuning, chains.now.state)


def worst_difference(found: Tensor, wanted: Tensor) -> float:
    """Relative to the larger of one and the number; infinite where NaN, infinity or a decision differ."""
    if not wanted.is_floating_point():
        return 0.0 if torch.equal(found, wanted) else torch.inf
    finite = wanted.isfinite()
    if not torch.equal(finite, found.isfinite()) or not torch.equal(wanted.isnan(), found.isnan()):
        return torch.inf
    return float(((found - wanted).abs() / wanted.abs().clamp_min(1))[finite].amax()) if bool(finite.any()) else 0.0


def ticks_state_by_state(kernel: Kernel, x: Tensor) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """In every field a compiled tick and the eager one of the same state, ``TICKS`` times, from where the eager one led."""
    chains, compiled = compile_chains(kernel, x)
    program, carried = compiled.program, compiled.first
    with torch.no_grad(), using_threads(1):
        for tick in range(TICKS):
            state, tuning, averaging, adapting, _ = carried
            compiled.load(state, tuning, averaging, adapting=bool(adapting))
            before = copy(compiled.carried)
            log = {name: value.clone() for name, value in compiled.run(tick, 1).items()}
            after = [leaf.clone() for leaf in flatten(compiled.carried)]
            for size, row in program.row_of.items():
                before.rows[row].fill_(tick % size)
            carried, info = program.tick(before, compiled.chunks)
            wanted = flatten(carried)[: -len(carried.rows)]
            logged = [(log["position"][0], kernel.position(carried.state))]
            logged += [(log[name][0], value) for name, value in info._asdict().items()]
            yield [*zip(after, wanted, strict=False), *logged]


def compare_state_by_state(kernel: Kernel, x: Tensor) -> float:
    """Worst difference of a compiled tick from the eager one of the same state, over ``TICKS`` ticks, in every field."""
    return max(worst_difference(a, b) for pairs in ticks_state_by_state(kernel, x) for a, b in pairs)


def count_unlike(kernel: Kernel, x: Tensor, tolerance: float) -> int:
    """Chains, over all ticks, that differ by more in some field; of a tick in which none does, what they share must not."""
    count = 0
    for pairs in ticks_state_by_state(kernel, x):
        unlike, shared = torch.zeros(len(x), dtype=torch.bool), False
        for found, wanted in pairs:
            same = torch.isclose(found, wanted, rtol=tolerance, atol=tolerance, equal_nan=True)
            if found.dim() and len(found) == len(x):
                unlike |= ~same.reshape(len(x), -1).all(1)
            else:
                shared |= not bool(same.all())
        count += int(unlike.sum()) or (len(x) if shared else 0)
    return count


@pytest.mark.parametrize("name", ALL)
def test_compiled_ticks_equal_eager_ones_state_by_state(name: str) -> None:
    """70 chains at points of their own, 200 ticks: each from the state that the eager tick before left, in every field.

    A sum of a few float64 numbers of size up to 1e3 (a Hamiltonian) in another order differs by some 1e-13 of it.
    """
    x = 1.5 * torch.randn(STATES, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert compare_state_by_state(KERNELS[name].factory(BANANA), x) < 1e-10


@pytest.mark.long
@pytest.mark.parametrize("name", KERNELS)
def test_in_float32_too_but_for_decisions_that_rounding_turns(name: str) -> None:
    """As above. Hamiltonians of up to 1e3, sums of some ten numbers, are rounded by up to 1e-3 (8 x 6e-8 x 1e3 is 5e-4).

    A decision falls the other way where its uniform number is as near as that to the rate of acceptance: mostly some 1e-6,
    in 14,000 chains and ticks 0.1 times at most; then four times has a probability of 4e-6.
    """
    x = 1.5 * torch.randn(STATES, 3, generator=torch.Generator().manual_seed(1))
    assert count_unlike(KERNELS[name].factory(BANANA), x, 1e-3) <= 3


@pytest.mark.parametrize("off", [1e-6, 1e-2])
def test_the_comparison_sees_a_wrong_compiler(off: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """One number of one chain off by 1e-6 is found; by 0.01 in every tick at the tolerance of float32."""
    x = torch.randn(STATES, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    kernel = KERNELS["langevin"].factory(BANANA)
    monkeypatch.setattr(compiled_ticks, "_LARGE", 0)  # the function itself is called, so that it can be replaced
    _, compiled = compile_chains(kernel, x)
    run = compiled.engine.run

    def wrong(tensors: list[Tensor]) -> list[Tensor]:
        outputs = list(run(tensors))
        outputs[0][7, 1] += off
        return outputs

    engine = compiled.engine._replace(run=wrong)
    monkeypatch.setattr(Compiled, "_engine", lambda self: (engine, compiled.traced))
    if off < 1e-3:
        assert compare_state_by_state(kernel, x) > 1e-7
    else:
        assert count_unlike(kernel, x, 1e-3) == TICKS


# The same draws


D, CONDITION = 100, 1e4
PRECISION = torch.logspace(-0.5, 0.5, D, dtype=torch.float64) ** 4


def wide(x: Tensor) -> Tensor:
    """A normal in 100 dimensions, condition number 1e4, at any dtype."""
    return 0.5 * (PRECISION.to(x.dtype) * x.square()).sum(-1)


METRIC: dict[str, Any] = {
    "adapt_step_size": False,
    "adapt_mass_matrix": False,
    "inverse_mass_matrix": 2 / PRECISION * torch.linspace(0.3, 1, D, dtype=torch.float64),  # not quite the target's own
}
FIXED: dict[str, Callable[[Energy], Kernel]] = {
    "nuts": partial(eb.NUTS, step_size=0.5, **METRIC),
    "hmc": partial(eb.HMC, step_size=0.5, num_steps=8, **METRIC),
    "langevin": partial(eb.Langevin, step_size=0.01),
    "mala": partial(eb.MALA, step_size=0.01, adapt_step_size=False, adapt_mass_matrix=False),
}


def fixed_run(make: Callable[[Energy], Kernel], backend: str, dtype: torch.dtype, warmup: int = 0) -> eb.MCMC:
    start = torch.randn(4, D, generator=torch.Generator().manual_seed(2), dtype=torch.float64) / PRECISION.sqrt()
    energy = as_energy(wide, (D,), batched=True)
    mcmc = eb.MCMC(make(energy), 50, warmup, start.to(dtype), 4, seed=3, backend=backend, disable_progbar=True)
    mcmc.run()
    assert mcmc.backend == backend, mcmc.backend_reason
    return mcmc


@pytest.mark.parametrize(
    "name", [n if n in ("nuts", "hmc", "langevin") else pytest.param(n, marks=pytest.mark.long) for n in FIXED]
)
@pytest.mark.parametrize("warmup", [0, 30])
def test_the_same_seed_gives_the_same_draws_on_every_backend(name: str, warmup: int) -> None:
    """50 draws of trees of 7 or 15 steps: rounding grows little where the energy is quadratic."""
    eager, compiled = (fixed_run(FIXED[name], backend, torch.float64, warmup) for backend in ("eager", "inductor"))
    a, b = (run.get_samples(group_by_chain=True)["x"] for run in (eager, compiled))
    assert torch.allclose(a, b, rtol=0, atol=1e-9)
    for field, value in eager.stats().items():
        assert torch.allclose(value.double(), compiled.stats()[field].double(), rtol=1e-7, atol=1e-7), field


def test_in_float32_draws_agree_until_a_decision_differs(record_property: Callable[[str, object], None]) -> None:
    eager, compiled = (fixed_run(FIXED["nuts"], backend, torch.float32) for backend in ("eager", "inductor"))
    a, b = (run.get_samples(group_by_chain=True)["x"] for run in (eager, compiled))
    same = (eager.stats()["n_steps"] == compiled.stats()["n_steps"]).long().cumprod(1).bool()
    same &= (a - b).abs().amax(2).cummax(1).values < 0.1
    agreed = same.sum(1)
    record_property("draws until a decision differs, by chain", agreed.tolist())
    print("draws until a decision differs, by chain:", agreed.tolist())
    assert int(agreed.min()) >= 1
    # rounding of 1e-7 in one tree; the widest coordinate has a standard deviation of 10
    assert float((a - b)[:, :1].abs().max()) < 1e-3


@pytest.mark.parametrize("thinning", [1, 3])
def test_compiled_runs_continue_and_load_bit_for_bit(thinning: int, tmp_path: Path) -> None:
    options = {"num_chains": 70, "seed": 5, "thinning": thinning, "disable_progbar": True, "backend": "inductor"}
    make = partial(KERNELS["nuts"].factory, BANANA)
    start = torch.zeros(70, 3, dtype=torch.float64)
    whole = eb.MCMC(make(), 31, 40, start, **options)
    whole.run()
    parts = eb.MCMC(make(), 13, 40, start, **options)
    parts.run()
    parts.save(tmp_path / "run.pt")
    copied = deepcopy(parts)
    parts.run(num_samples=18)
    assert copied.get_samples()["x"].shape == (70 * 13, 3)
    copied.run(num_samples=18)
    loaded = eb.MCMC.load(tmp_path / "run.pt", make())
    assert (loaded.backend, loaded.backend_reason) == (parts.backend, parts.backend_reason)
    loaded.run(num_samples=18)
    for other in (parts, copied, loaded):
        assert other.backend == "inductor"
        assert torch.equal(other.get_samples()["x"], whole.get_samples()["x"])
        for field, value in whole.stats().items():
            assert torch.equal(other.stats()[field], value), field


def test_an_exception_within_compiled_ticks_ends_a_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The state is overwritten in place while the counts are still those of before: to go on would lose ticks."""
    make = partial(KERNELS["nuts"].factory, BANANA)
    options = {"num_chains": 70, "seed": 5, "disable_progbar": True, "backend": "inductor"}
    start = torch.zeros(70, 3, dtype=torch.float64)
    whole = eb.MCMC(make(), 50, 0, start, **options)
    whole.run()
    mcmc, real = eb.MCMC(make(), 50, 0, start, **options), Compiled.run

    def stops(self: Compiled, tick: int, ticks: int) -> dict[str, Tensor]:
        log = real(self, tick, ticks)
        if mcmc.chains is not None and mcmc.now.counts is not None and int(mcmc.now.counts.finished.min()):
            raise SystemExit
        return log

    monkeypatch.setattr(Compiled, "run", stops)
    with pytest.raises(SystemExit):
        mcmc.run()
    monkeypatch.undo()
    assert 0 < mcmc.kept < 50
    for use in (lambda: mcmc.run(num_samples=5), lambda: mcmc.save(tmp_path / "run.pt")):
        with pytest.raises(SamplingError, match="an exception stopped the chains within a block of ticks"):
            use()
    for again in (lambda: None, mcmc.run):
        again()
        x, expected = (of.get_samples(group_by_chain=True)["x"] for of in (mcmc, whole))
        assert torch.equal(x, expected[:, : mcmc.kept])


def test_ctrl_c_between_compiled_ticks_loses_nothing() -> None:
    make = partial(KERNELS["nuts"].factory, BANANA)
    options = {"num_chains": 70, "seed": 5, "disable_progbar": True, "backend": "inductor"}
    start = torch.zeros(70, 3, dtype=torch.float64)
    whole = eb.MCMC(make(), 1000, 0, start, **options)
    whole.run()
    timer = threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGINT))
    mcmc = eb.MCMC(
        make(), 1000, 0, start, hook_fn=lambda *_: timer.is_alive() or timer.ident or timer.start(), **options
    )
    with pytest.warns(SamplingWarning, match=r"interrupted: kept \d+ of 1000"):
        mcmc.run()
    timer.join()
    assert 0 < mcmc.kept < 1000
    assert mcmc.backend == "inductor"  # an interrupted run knows it, too
    mcmc.run(num_samples=1000 - mcmc.kept)
    assert torch.equal(mcmc.get_samples()["x"], whole.get_samples()["x"])


def test_the_calls_read_from_the_wrapper_do_what_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(STATES, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    runs = []
    for large in (1 << 22, 0):
        monkeypatch.setattr(compiled_ticks, "_LARGE", large)
        chains, compiled = compile_chains(KERNELS["nuts"].factory(BANANA), x)
        assert isinstance(compiled.calls, Replay) == bool(large)
        runs.append([compiled.run(tick, 7)["position"].clone() for tick in range(0, 70, 7)])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def regression(x: Tensor) -> Tensor:
    """Its tick has kernels and matrix products."""
    rows = torch.linspace(-1, 1, 60, dtype=x.dtype).view(20, 3)
    return nn.functional.softplus(x @ rows.T).sum(-1) + torch.addmm(x, x, torch.eye(3, dtype=x.dtype)).square().sum(-1)


@pytest.mark.parametrize("dtype", [pytest.param(torch.float32, marks=pytest.mark.long), torch.float64])
@pytest.mark.parametrize("energy", [regression, banana])
def test_ticks_in_c_are_what_inductors_own_kernels_called_from_python_give(
    energy: Callable[[Tensor], Tensor], dtype: torch.dtype, compiles: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, in every number that a tick leaves and logs, with the same elementary functions."""
    monkeypatch.setattr(cpp_unit, "in_line", lambda kernel: kernel)
    x = torch.randn(STATES, 3, dtype=dtype, generator=torch.Generator().manual_seed(4))
    runs = []
    for own in (False, True):
        if own:
            monkeypatch.setattr(compiler, "_into_unit", nullcontext)
            begin_anew(monkeypatch)
        _, compiled = compile_chains(KERNELS["nuts"].factory(as_energy(energy, (3,), batched=True)), x)
        assert isinstance(compiled.calls, Replay)
        assert (compiled.calls.driver is None) == own
        logs = [value.clone() for tick in range(0, 70, 7) for value in compiled.run(tick, 7).values()]
        runs.append([*logs, *compiled.leaves])
    assert len(compiles) == 2
    assert all(torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0)) for a, b in zip(*runs, strict=True))


def test_the_kernels_of_a_graph_are_one_unit(compiles: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    sources: list[str] = []
    hashed._library()  # of no graph
    build = compiler._build
    monkeypatch.setattr(compiler, "_build", lambda source: (sources.append(source), build(source))[1])
    monkeypatch.setattr(
        CppPythonBindingsCodeCache, "load_pybinding_async", lambda *_, **__: pytest.fail("a kernel compiled alone")
    )
    assert run(as_energy(regression, (3,), batched=True)).backend == "inductor"
    assert len(sources) == len(compiles) == 1
    assert sources[0].count("cpp_prefix.h") == 1
    assert sources[0].count("static void kernel(") > 1


def test_headers_are_compiled_first_when_many_graphs_use_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(codecache, "_HEADER_DIR", str(tmp_path))
    monkeypatch.setattr(compiler, "_compiled", 0)
    assert [compiler._headers()["cpp_cache_precompile_headers"] for _ in range(5)] == [False, False, False, True, True]
    monkeypatch.setattr(compiler, "_compiled", 0)
    (tmp_path / "prefix.h.gch").touch()
    assert compiler._headers()["cpp_cache_precompile_headers"]


def test_inductor_makes_its_rules_of_dtypes_once_and_simplifies_only_divisions(
    compiles: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    simplified: list[str] = []
    simplify = sizevars.simplify_index_in_vec_range
    see = lambda index, *args: (simplified.append(str(index)), simplify(index, *args))[1]
    monkeypatch.setattr(sizevars, "simplify_index_in_vec_range", see)
    make = DtypePropagationOpsHandler.__init__
    monkeypatch.setattr(DtypePropagationOpsHandler, "__init__", lambda self: (made.append(1), make(self))[1])
    with config.patch(force_disable_caches=True):
        run(as_energy(quadratic, (4,)))
    assert len(compiles) == 1
    assert 1 <= len(made) <= 3  # anew where there are more rules
    assert all("FloorDiv" in index or "//" in index or "ModularIndexing" in index for index in simplified)


def test_what_is_made_late_is_made_once() -> None:
    made: list[int] = []
    late = inductor_import._Late(lambda: made.append(1) or "text")
    assert made == []
    assert (late.upper(), late.lower(), made) == ("TEXT", "text", [1])


@pytest.mark.parametrize("change", ["the unit", "the source", "the call"])
def test_where_kernels_cant_be_one_unit_each_is_compiled_alone(
    change: str, compiles: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    if change == "the unit":
        monkeypatch.setattr(cpp_unit, "DRIVER", "not C++")
    elif change == "the source":
        monkeypatch.setattr(cpp_unit, "_SIGNATURE", re.compile("another name"))
    else:
        asked = CppPythonBindingsCodeCache.load_pybinding
        monkeypatch.setattr(AsyncCompile, "cpp_pybinding", property(lambda _: asked))
    energy = as_energy(regression, (3,), batched=True)
    alone = run(energy)
    assert alone.chains is not None
    assert alone.chains.compiled is not None
    assert isinstance(alone.chains.compiled.calls, Replay)
    assert alone.chains.compiled.calls.driver is None
    assert agree(alone, run(energy, backend="eager"))


@pytest.mark.parametrize("native_calls", [True, False])
def test_what_a_kernel_throws_is_an_error_of_pythons(native_calls: bool) -> None:
    """An index out of bounds, here of the noise."""
    _, compiled = compile_chains(LANGEVIN(BANANA), torch.zeros(STATES, 3, dtype=torch.float64))
    calls = compiled.calls
    assert isinstance(calls, Replay)
    assert calls.driver is not None
    if not native_calls:
        calls.driver = None
    compiled.program.rows(compiled.leaves)[0].fill_(1 << 30)
    with pytest.raises(RuntimeError, match="of a compiled tick failed"):
        calls(1)


# Compiled once


@pytest.fixture
def compiles(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Counts compiles (of graphs of so many nodes) and begins with nothing compiled in the process."""
    counted: list[int] = []
    compile_graph = engines.compile_graph

    def count(graph: Any, inputs: Any) -> Any:
        counted.append(len(graph.graph.nodes))
        return compile_graph(graph, inputs)

    monkeypatch.setattr(engines, "compile_graph", count)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inductor_import.import_inductor()  # which warns of itself
    begin_anew(monkeypatch)
    return counted


def begin_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing compiled in the process."""
    for module in (compiled_ticks, pool):
        monkeypatch.setattr(module, "_known", type(module._known)())
    monkeypatch.setattr(engines, "_engines", type(engines._engines)())
    monkeypatch.setattr(PyCodeCache, "modules_no_attr", {})


LANGEVIN = partial(eb.Langevin, step_size=0.05)


def run(energy: Energy, make: Callable[..., Kernel] = LANGEVIN, **options: Any) -> eb.MCMC:
    settings = {"num_chains": 5, "seed": 1, "disable_progbar": True, "backend": "inductor", **options}
    mcmc = eb.MCMC(make(energy), 30, 20, **settings)
    mcmc.run()
    return mcmc


def agree(a: eb.MCMC, b: eb.MCMC) -> bool:
    """Runs of the same seed on two back-ends, float32: 50 steps of Langevin, whose rounding decides nothing."""
    x, y = a.get_samples()["x"], b.get_samples()["x"]
    return (a.backend, b.backend) == ("inductor", "eager") and torch.allclose(x, y, rtol=1e-4, atol=1e-4)


def test_a_second_run_of_the_same_callable_compiles_and_traces_nothing(
    compiles: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(as_energy(quadratic, (4,)))
    assert len(compiles) == 1
    monkeypatch.setattr("ebmppl.sampling.program.make_fx", lambda *_: pytest.fail("traced again"))
    monkeypatch.setattr("ebmppl.kernels.gradients.make_fx", lambda *_: pytest.fail("traced again"))
    again = run(as_energy(quadratic, (4,)))  # energy and kernel are new objects
    assert len(compiles) == 1
    assert torch.equal(first.get_samples()["x"], again.get_samples()["x"])
    assert agree(again, run(as_energy(quadratic, (4,)), backend="eager"))


def test_a_second_run_searches_step_sizes_by_the_first_ones_trace(compiles: list[int]) -> None:
    """Of a Pyro model the energy's own code takes 2 ms, its trace 0.1."""
    first, again = (run(as_energy(quadratic, (4,)), eb.NUTS) for _ in range(2))
    assert len(compiles) == 1
    assert again.kernel.untraced(torch.zeros(5, 4)) is None
    assert torch.equal(first.get_samples()["x"], again.get_samples()["x"])


def quadratic(x: Tensor) -> Tensor:
    return 0.5 * (torch.arange(1.0, 5.0) * x.square()).sum(-1)


def test_the_same_code_over_other_tensors_is_compiled_once(compiles: list[int]) -> None:
    for mean in (torch.zeros(3), torch.ones(3)):
        energy = Gaussian(mean, torch.ones(3))
        assert agree(run(energy), run(energy, backend="eager"))
    assert len(compiles) == 1  # captured tensors are inputs


def test_another_shape_or_setting_is_compiled_anew(compiles: list[int]) -> None:
    energy = as_energy(quadratic, (4,))
    run(energy)
    run(energy, num_chains=6)
    assert len(compiles) == 2
    run(energy, partial(eb.Langevin, step_size=0.01))  # a step size is a tensor
    assert len(compiles) == 2


# Changes of the energy


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.register_buffer("shift", torch.zeros(3))
        self.power = 2.0
        self.dropout = nn.Dropout(0.5)
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.dropout(x))
        return self.scale * (x - self.shift).abs().pow(self.power).sum(-1)


def in_place(m: Scaled) -> None:
    m.scale.data.mul_(3.0)


def assigned(m: Scaled) -> None:
    m.load_state_dict({**m.state_dict(), "scale": torch.tensor(3.0)}, assign=True)


def buffer(m: Scaled) -> None:
    m.shift = torch.ones(3)


def attribute(m: Scaled) -> None:
    m.power = 4.0


def statistics(m: Scaled) -> None:
    m.norm.running_mean.add_(1.0)


@pytest.mark.parametrize("change", [in_place, assigned, buffer, attribute, statistics])
def test_changes_of_a_module_are_seen(change: Callable[[Scaled], None]) -> None:
    module = Scaled()  # in training mode: kernels evaluate it in evaluation mode
    before = run(as_energy(module, (3,)))
    change(module)
    after = run(as_energy(module, (3,)))
    assert module.training
    assert module.dropout.training
    assert not torch.equal(before.get_samples()["x"], after.get_samples()["x"])
    assert agree(after, run(as_energy(module, (3,)), backend="eager"))


def test_a_closure_that_was_rebound_is_seen() -> None:
    scale = torch.ones(3)

    def energy(x: Tensor) -> Tensor:
        return (scale * x.square()).sum(-1)

    run(as_energy(energy, (3,)))
    scale = 5 * torch.ones(3)
    assert agree(run(as_energy(energy, (3,))), run(as_energy(energy, (3,)), backend="eager"))


def test_a_change_between_two_parts_of_a_run_is_seen() -> None:
    runs = []
    for backend in ("inductor", "eager"):
        module = Scaled()
        mcmc = run(as_energy(module, (3,)), backend=backend)
        assigned(module)
        with pytest.warns(SamplingWarning, match="another one than at the last draw"):
            mcmc.run(num_samples=10)
        runs.append(mcmc)
    assert agree(*runs)


@pytest.mark.parametrize("make", [LANGEVIN, KERNELS["hmc, steps"].factory])
def test_values_in_containers_that_change_are_seen(make: Callable[..., Kernel]) -> None:
    """By a new kernel of the same callable, and by one kernel between two parts of a run."""
    settings = {"scale": [1.0]}
    start = torch.rand(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))  # no decision by rounding

    def energy(x: Tensor) -> Tensor:
        return (settings["scale"][0] * x.square()).sum(-1)

    def begun(backend: str = "inductor") -> eb.MCMC:
        return run(as_energy(energy, (3,)), make, backend=backend, initial_params=start)

    first = begun()
    settings["scale"] = [25.0]
    assert agree(begun(), begun("eager"))
    settings["scale"] = [4.0]
    with pytest.warns(SamplingWarning, match="another one than at the last draw"):
        first.run(num_samples=300)
    # chains that were ahead of the slowest one had drawn some more from the old one
    x, lp = first.get_samples(group_by_chain=True)["x"][:, 60:], first.stats()["lp"][:, 60:]
    assert torch.allclose(lp, -energy(x), rtol=1e-4, atol=1e-4)


def test_a_wall_that_the_first_ticks_do_not_meet_is_seen() -> None:
    class Walled:
        def __init__(self) -> None:
            self.options = {"wall": 10.0}

        def __call__(self, x: Tensor) -> Tensor:
            inside = x.abs().amax(-1) < self.options["wall"]
            return torch.where(inside, 0.01 * x.square().sum(-1), torch.inf)

    walled, start = Walled(), torch.zeros(5, 2)
    for wall in (10.0, 2.0):
        walled.options["wall"] = wall
        kernel = eb.Langevin(as_energy(walled, (2,), batched=True), 0.1)
        mcmc = eb.MCMC(kernel, 3000, 0, start, 5, seed=1, disable_progbar=True, backend="inductor")
        mcmc.run()
        largest = float(mcmc.get_samples()["x"].abs().max())
        assert mcmc.backend == "inductor"
        assert 0.9 * wall < largest < wall


TAKEN: dict[str, Callable[[Tensor], float]] = {
    "item": Tensor.item,
    "float": float,
    "tolist": lambda wall: wall.tolist(),
    "numpy": lambda wall: float(wall.numpy()),
    "a choice": lambda wall: 10.0 if wall else 2.0,
}


@pytest.mark.parametrize("how", TAKEN)
def test_numbers_that_are_taken_out_of_a_tensor_are_seen_to_change(how: str) -> None:
    """They are constants of a trace, and the tensor changes in place: where first ticks tell nothing, the wall stayed."""
    taken, start = torch.tensor(10.0), torch.zeros(5, 2)

    def energy(x: Tensor) -> Tensor:
        return torch.where(x.abs().amax(-1) < TAKEN[how](taken), 0.01 * x.square().sum(-1), torch.inf)

    for wall in (10.0, 2.0):
        taken.fill_(wall if how != "a choice" else wall == 10.0)
        kernel = eb.Langevin(as_energy(energy, (2,), batched=True), 0.1)
        mcmc = eb.MCMC(kernel, 3000, 0, start, 5, seed=1, disable_progbar=True, backend="inductor")
        mcmc.run()
        assert mcmc.backend == "inductor"
        assert 0.9 * wall < float(mcmc.get_samples()["x"].abs().max()) < wall


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_chains_that_only_advance_see_them_too(backend: str) -> None:
    """A loss compares no values with eager ones. Variances 1/2 and 1/40, of 800 numbers each, to 5 per cent."""
    scale, x = torch.tensor(1.0), torch.zeros(400, 2)
    kernel = eb.Langevin(as_energy(lambda x: scale.item() * x.square().sum(-1), (2,)), 0.01)
    chains = Chains(kernel, x, 0, backend, record=False)
    chains.advance(2000)
    wide = chains.position().square().mean()
    scale.fill_(20.0)
    chains.advance(2000)
    assert float(chains.position().square().mean()) < 0.2 * float(wide)


def test_callables_are_told_apart_by_identity_whatever_they_say_of_equality() -> None:
    @dataclass
    class Bowl:
        scale: float

        def __call__(self, x: Tensor) -> Tensor:
            return (self.scale * x.square()).sum(-1)

    for bowl in (Bowl(1.0), Bowl(9.0)):  # can't be hashed
        assert agree(run(as_energy(bowl, (3,))), run(as_energy(bowl, (3,)), backend="eager"))


def test_counts_of_numpys_are_settings_like_others() -> None:
    for n in (4, 16):
        kernel = partial(eb.HMC, step_size=0.1, num_steps=np.int64(n), jitter=0.0, adapt_step_size=False)
        assert int(run(BANANA, kernel).stats()["n_steps"].max()) == n  # a trajectory that leaves the ball is shorter


@pytest.mark.parametrize("rows", [1, 2])
def test_logs_and_noise_of_few_ticks(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As large states have: their first ticks are tried all the same."""
    monkeypatch.setattr(chains_module, "_LOG_NUMBERS", 15 * rows)
    monkeypatch.setattr(noise, "_at_once", lambda spec, device: rows)
    monkeypatch.setattr(noise, "_HELD", 0)
    energy = as_energy(quadratic, (4,))
    assert agree(run(energy, num_chains=3), run(energy, num_chains=3, backend="eager"))


def test_ctrl_c_where_it_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    press, raised = signal.raise_signal, []
    monkeypatch.setattr(signal, "raise_signal", raised.append)
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        with uninterrupted():
            press(signal.SIGINT)
            assert not raised
    finally:
        assert signal.signal(signal.SIGINT, before) is signal.SIG_DFL
    assert raised == [signal.SIGINT]


def test_ctrl_c_under_a_handler_that_is_not_pythons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "getsignal", lambda number: None)
    monkeypatch.setattr(signal, "signal", lambda *_: pytest.fail("can't be put back"))
    with uninterrupted():
        pass


# Where it can't be had


def expect_eager(energy: Energy, match: str, **options: Any) -> eb.MCMC:
    with pytest.warns(SamplingWarning, match=match):
        mcmc = run(energy, **options)
    assert mcmc.backend == "eager"
    assert torch.equal(mcmc.get_samples()["x"], run(energy, backend="eager").get_samples()["x"])
    return mcmc


def test_control_flow_that_looks_at_values_runs_eagerly_and_says_so() -> None:
    def energy(x: Tensor) -> Tensor:
        return x.square().sum(-1) if bool((x.abs() < 100).all()) else x.abs().sum(-1)

    mcmc = expect_eager(as_energy(energy, (3,), batched=True), "the gradient is not traced|runs untraced")
    assert "the gradient is not traced" in mcmc.backend_reason


def test_a_graph_too_large_says_how_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "MOST_NODES", 20)
    expect_eager(as_energy(lambda x: x.square().sum(-1), (3,)), r"the graph of a tick has \d+ nodes, more than 20")


def test_without_a_compiler_one_line_says_so(compiles: list[int]) -> None:
    with config.patch({"cpp.cxx": (None, "no-such-compiler"), "force_disable_caches": True}):
        mcmc = expect_eager(as_energy(lambda x: x.square().sum(-1), (3,)), "the compiler failed")
    assert "\n" not in mcmc.backend_reason
    assert not engines._engines


BROKEN = {  # C++ compilers that do not give what they should, and what is told of them
    "fails": ("exit 1", "No working C\\+\\+ compiler found in .*broken"),
    "writes what can't be loaded": (
        """for word in "$@"; do case "$word" in --version|-v|-dump*) exec g++ "$@";; esac; done
while [ $# -gt 0 ]; do if [ "$1" = -o ]; then echo no library > "$2"; fi; shift; done""",
        r"\.so: (file too short|invalid ELF header)",
    ),
}


@pytest.mark.parametrize("how", BROKEN)
def test_with_a_broken_compiler_one_line_says_so(
    how: str, compiles: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of the ticks, and of the random numbers, which GCC alone compiles; with empty disk caches."""
    script, told = BROKEN[how]
    broken = tmp_path / "broken"
    broken.write_text(f"#!/bin/sh\n{script}\n")
    broken.chmod(0o755)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(hashed, "_library", cache(hashed._library.__wrapped__))
    monkeypatch.setattr(compiler, "_ahead", {})
    energy = as_energy(lambda x: x.square().sum(-1) / 3, (3,))
    with config.patch({"cpp.cxx": (None, str(broken)), "force_disable_caches": True}):
        with pytest.warns(SamplingWarning) as warned:
            mcmc = run(energy)
    (warning,) = warned
    assert re.search(f"ticks run eagerly, slower: the compiler failed: .*{told}", str(warning.message))
    assert "\n" not in mcmc.backend_reason
    assert mcmc.backend == "eager"
    assert torch.equal(mcmc.get_samples()["x"], run(energy, backend="eager").get_samples()["x"])


def test_a_wrong_compiler_is_not_trusted(compiles: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    compile_graph = engines.compile_graph

    def miscompile(graph: Any, inputs: Any) -> Any:
        run = compile_graph(graph, inputs)

        def wrong(tensors: list[Tensor]) -> list[Tensor]:
            outputs = list(run(tensors))
            outputs[0][-1] += 0.01  # the last chain's position
            return outputs

        return wrong

    monkeypatch.setattr(engines, "compile_graph", miscompile)
    expect_eager(
        as_energy(lambda x: x.square().sum(-1), (3,)), "the compiled tick differs from the eager one in position"
    )


def test_where_the_private_interface_is_gone_dynamo_compiles(
    compiles: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object) -> None:
        raise ImportError("compile_fx_inner")

    monkeypatch.setattr(compiler, "_inner_compile", gone)
    energy = as_energy(quadratic, (4,))
    assert agree(run(energy), run(energy, backend="eager"))


def test_backends_that_are_not_there_are_refused() -> None:
    with pytest.raises(ValueError, match="expected a backend of 'auto', 'eager', 'inductor', 'cudagraph', got 'jit'"):
        run(BANANA, backend="jit")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="expected a CUDA device for the backend 'cudagraph', got none"):
            run(BANANA, backend="cudagraph")


def test_a_constant_beside_a_gradient_of_slices_compiles() -> None:
    """Inductor finds the forms anew of what slices were put into, and of what that is joined with."""
    constant, x = torch.ones(3, 2), torch.randn(3, 2, generator=torch.Generator().manual_seed(0))

    def function(x: Tensor) -> list[Tensor]:
        gradient = torch.slice_scatter(torch.zeros(3, 2), x[:, :1], 1, 0, 1)  # of x[:, :1], backward
        return [torch.cat([gradient, constant], 1)]

    traced = make_graph(function, [x], lambda: [0])
    (found,) = compiler.compile_graph(traced.graph, [x, *traced.constants])([x, *traced.constants])
    assert torch.equal(found, function(x)[0])


def test_what_is_written_into_a_view_leaves_what_it_views() -> None:
    """Inductor writes in place where nobody looks at the memory again; whose memory a view's is the trace doesn't know."""
    at, value, x = torch.tensor([1, 4]), torch.tensor([7.0, 8.0]), torch.randn(3, 2)

    def function(x: Tensor) -> list[Tensor]:
        whole = x + 1
        return [whole.view(-1).index_put((at,), value), 3 * whole]

    with config.patch(force_disable_caches=True):
        traced = make_graph(function, [x], lambda: [0, 1])
        found = compiler.compile_graph(traced.graph, [x, *traced.constants])([x, *traced.constants])
    assert all(torch.equal(a, b) for a, b in zip(found, function(x), strict=True))


def test_options_that_a_release_of_torch_lacks_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of them kept every graph from the inner compile, in silence."""
    monkeypatch.setattr(compiler, "_headers", lambda: {"aot_inductor.no_such_thing": True, "nor_this": 1})
    monkeypatch.setattr(compiler, "_by_dynamo", lambda *_: pytest.fail("by Dynamo"))
    x = torch.ones(3)
    traced = make_graph(lambda x: [x * 2], [x], lambda: [0])
    (found,) = compiler.compile_graph(traced.graph, [x, *traced.constants])([x, *traced.constants])
    assert torch.equal(found, x * 2)


def test_numbers_of_a_graph_are_where_its_chains_are() -> None:
    """One on the CPU among inputs on a GPU would make CUDA graphs wait; for want of a GPU, of a device without memory."""

    half, nowhere = torch.tensor(0.5), torch.device("meta")
    traced = make_graph(lambda x: [x * half], [torch.zeros(4, 3, device=nowhere)], lambda: [0])
    (constant,) = traced.constants
    assert constant.device == nowhere
    assert unchanged(traced.reads)
    half.fill_(2.0)  # which the graph doesn't see there
    assert not unchanged(traced.reads)
    assert not make_graph(lambda x: [x * half], [torch.zeros(4, 3)], lambda: [0]).reads


def test_a_tensor_times_one_compiles() -> None:
    """Such factors are left out of a trace; what the trace holds has no form there, and its energy never ran compiled."""
    weights = torch.arange(3.0)
    energy = as_energy(lambda x: x.square().sum(-1) + ((weights * 1.0) * x).sum(-1), (3,))
    assert agree(run(energy), run(energy, backend="eager"))


def test_an_energy_that_was_compiled_already_is_compiled_with_its_kernel(dynamo: None) -> None:
    """Torch refuses to trace such a function, and the ticks of who had compiled an energy to be fast were eager."""
    energy = torch.compile(quadratic, backend="eager")
    assert agree(run(as_energy(energy, (4,))), run(as_energy(quadratic, (4,)), backend="eager"))


def test_constrained_sites_and_scalar_events_compile() -> None:
    gamma = as_energy(lambda x: x - 2 * torch.log(x), (), constraints.positive)
    assert agree(run(gamma), run(gamma, backend="eager"))


# Choosing


def test_auto_decides_by_counts_and_the_run_keeps_what_it_chose(
    compiled: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    energy = as_energy(quadratic, (4,))
    few = run(energy, backend="auto")
    assert few.backend == "eager"
    assert few.backend_reason == "5 chains of 4 numbers, about 50 ticks, fewer than 5000"
    few.save(tmp_path / "run.pt")
    loaded = eb.MCMC.load(tmp_path / "run.pt", eb.Langevin(energy, 0.05))
    loaded.run(num_samples=5)
    assert loaded.backend_reason == few.backend_reason
    monkeypatch.setattr(choice, "LEAST_TICKS", 50)
    small = run(energy, backend="auto")
    assert small.backend == "eager"
    assert "too small to be worth compiling" in small.backend_reason
    monkeypatch.setattr(choice, "LEAST_CALLS", 50)
    many = run(energy, backend="auto")
    assert many.backend == "inductor"
    assert "5 chains of 4 numbers, about 50 ticks, a graph of" in many.backend_reason
    many.save(tmp_path / "run.pt")
    assert eb.MCMC.load(tmp_path / "run.pt", eb.Langevin(energy, 0.05)).backend == "inductor"
    attributes = many.to_arviz(log_likelihood=False).posterior.attrs
    assert attributes["backend"] == "inductor"
    assert attributes["backend_reason"] == many.backend_reason


def test_threads_are_the_users_again() -> None:
    before = torch.get_num_threads()
    for wanted in (1, 2):
        torch.set_num_threads(wanted)
        try:
            run(BANANA)
            assert torch.get_num_threads() == wanted
        finally:
            torch.set_num_threads(before)


def test_turns_of_which_rounding_decides_in_all_chains_are_no_difference() -> None:
    """A first step size of 1 in units of a normal's width is a sixth of an orbit: the third one turns exactly."""
    energy = as_energy(lambda x: x.square().sum(-1), (3,))
    mcmc = eb.MCMC(eb.NUTS(energy), 5, 30, num_chains=70, seed=3, backend="inductor", disable_progbar=True)
    mcmc.run()
    assert mcmc.backend == "inductor", mcmc.backend_reason


def test_constants_of_a_run_in_float64_stay_float64() -> None:
    energy = Gaussian(f64(1.0, -1.0, 0.0), f64(1.0, 2.0, 0.5))
    a, b = (run(energy, backend=backend).get_samples()["x"] for backend in ("inductor", "eager"))
    assert a.dtype == b.dtype == torch.float64
    assert torch.allclose(a, b, rtol=0, atol=1e-10)


def test_a_part_of_the_coordinates_is_clamped() -> None:
    """Inductor wrote the free ones into memory that all chains share, so that such energies never ran compiled."""
    whole = eb.as_energy(lambda x: -0.7 * (x[:, :-1] * x[:, 1:]).float().sum(-1), (3,), eb.energies.spin)
    mask, values = torch.tensor([True, False, False]), torch.tensor([1, 0, 0])
    kernel = eb.Gibbs(eb.energies.Clamped(whole, mask, values))
    draws = []
    for backend in ("eager", "inductor"):
        mcmc = eb.MCMC(kernel, 20, 0, None, 3, seed=4, backend=backend, disable_progbar=True)
        mcmc.run()
        assert mcmc.backend == backend
        draws.append(mcmc.get_samples()["x"])
    assert torch.equal(*draws)
