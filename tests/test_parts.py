"""Compiled ticks in parts of the chains: what all chains at once would give, on any number of threads."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import ebmppl as eb
from ebmppl.energies import as_energy
from ebmppl.errors import SamplingWarning
from ebmppl.kernels import Kernel
from ebmppl.kernels.adaptation import HamiltonianAdaptation
from ebmppl.sampling import chains as chains_module
from ebmppl.sampling import cpp_unit, parts, pool
from ebmppl.sampling.chains import Chains
from ebmppl.sampling.choice import Choice
from ebmppl.sampling.compiled_ticks import Compiled
from ebmppl.sampling.native import Team
from ebmppl.sampling.parts import Parts, part_size
from ebmppl.sampling.places import pack
from ebmppl.sampling.replay import Replay
from ebmppl.sampling.stragglers import Block
from tests.registry import KERNELS
from tests.test_compiled import BANANA, banana, begin_anew, compare_state_by_state

CHAINS = 96  # three parts; a full block of noise and one that is not
BY_DEFAULT = ("nuts",)
ALL = [name if name in BY_DEFAULT else pytest.param(name, marks=pytest.mark.long) for name in KERNELS]


def points(dtype: torch.dtype = torch.float64, chains: int = CHAINS) -> Tensor:
    return 1.5 * torch.randn(chains, 3, dtype=dtype, generator=torch.Generator().manual_seed(1))


def run(make: Callable[..., Kernel], draws: int = 20, dtype: torch.dtype = torch.float64, **options: Any) -> eb.MCMC:
    settings = {"num_chains": CHAINS, "seed": 3, "disable_progbar": True, "backend": "inductor", **options}
    mcmc = eb.MCMC(make(BANANA), draws, 40, 0.3 * points(dtype), **settings)
    mcmc.run()
    return mcmc


def compiled_of(mcmc: eb.MCMC) -> Parts | Compiled | None:
    assert mcmc.chains is not None
    return mcmc.chains.compiled


def agree(a: eb.MCMC, b: eb.MCMC) -> bool:
    fields = a.stats()
    same = all(torch.equal(value, b.stats()[name]) for name, value in fields.items())
    return same and torch.equal(a.get_samples()["x"], b.get_samples()["x"])


def test_parts_are_as_many_chains_each() -> None:
    state = lambda chains: (torch.zeros(chains, 3), torch.zeros(chains))
    sizes = {chains: part_size(state(chains), chains) for chains in (63, 64, 66, 67, 70, 100, 512)}
    assert sizes == {63: None, 64: 32, 66: 22, 67: None, 70: None, 100: 25, 512: 32}
    assert part_size((torch.zeros(64, 3), torch.zeros(())), 64) is None  # not a row for each chain
    assert part_size((torch.zeros(3, 64),), 64) is None


@pytest.mark.parametrize("name", ALL)
def test_parts_equal_eager_ticks_state_by_state(name: str) -> None:
    """The adaptation over all of them included; tolerance as in test_compiled.py, over the same sums."""
    assert compare_state_by_state(KERNELS[name].factory(BANANA), points()) < 1e-10


def test_tick_and_adaptation_are_one_unit_of_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    begin_anew(monkeypatch)
    compiled = compiled_of(run(KERNELS["nuts"].factory))
    assert isinstance(compiled, Parts)
    assert compiled._pool is not None
    replays = [compiled.parts[0].calls, compiled._pool.calls]
    assert all(isinstance(replay, Replay) for replay in replays)
    kernels = [
        [call.func for call in replay._calls[0] if isinstance(call.func, cpp_unit.CppKernel)] for replay in replays
    ]
    assert all(kernels)
    assert len({kernel.unit for kernel in sum(kernels, [])}) == 1


def test_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, warm-up included; more threads than cores meet in any order. What they are really asked for is seen."""
    asked, call, runs = [], Team.__call__, []

    def see(self: Team, first: int, pool: int | None, times: int, threads: int, count: int | None = None) -> None:
        asked.append((pool is not None, threads))
        call(self, first, pool, times, threads, count)

    monkeypatch.setattr(Team, "__call__", see)
    for threads, small in ((1, 1 << 62), (2, 0), (3, 0), (3, 1 << 62)):
        monkeypatch.setattr(parts, "_SMALL", small)
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            runs.append(run(KERNELS["nuts"].factory))
        finally:
            assert torch.get_num_threads() == threads
            torch.set_num_threads(before)
        assert isinstance(compiled_of(runs[-1]), Parts)
    assert {(pool, n) for pool, n in asked} == {(pool, n) for pool in (False, True) for n in (1, 2, 3)}
    assert all(agree(runs[0], other) for other in runs[1:])


@pytest.mark.long
def test_a_chains_draws_are_those_of_a_run_of_fewer_chains() -> None:
    """Bit for bit: a part knows nothing of the others."""
    few, many = [
        eb.MCMC(
            eb.NUTS(BANANA, 0.3),
            30,
            0,
            0.3 * points(chains=128)[:n],
            num_chains=n,
            seed=2,
            backend="inductor",
            disable_progbar=True,
        )
        for n in (64, 128)
    ]
    few.run()
    many.run()
    wanted = many.get_samples(group_by_chain=True)["x"][:64]
    assert torch.equal(few.get_samples(group_by_chain=True)["x"], wanted)


def ticks_of(mcmc: eb.MCMC) -> Tensor:
    """That each chain has made."""
    own = mcmc.now.own
    return torch.full((mcmc.num_chains,), mcmc.now.tick) if own is None else own


def of_all_chains(chains: Chains, wanted: int, most: int) -> Block:
    """Instead of ``next_block``: no chain leaves out a tick until all have their draws."""
    return Block(chains.now.tick, min(most, wanted - int(chains._counts().finished.min())))


def test_runs_in_parts_continue_and_load_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chains that had their draws left out ticks, and make them first; as if none had."""
    make, single = KERNELS["nuts"].factory, torch.float32
    with monkeypatch.context() as patch:
        patch.setattr(chains_module, "next_block", of_all_chains)
        whole = run(make, dtype=single)
    assert whole.now.own is None
    assert whole.gradients == CHAINS * whole.now.tick
    first = run(make, 7, single)
    first.save(tmp_path / "run.pt")
    loaded = eb.MCMC.load(tmp_path / "run.pt", make(BANANA))
    assert int(ticks_of(loaded).min()) < loaded.now.tick
    assert CHAINS * first.now.tick > first.gradients == loaded.gradients >= int(ticks_of(first).sum())
    for other in (first, loaded, run(make, dtype=single)):
        other.run(num_samples=20 - other.num_samples) if other.num_samples < 20 else None
        assert agree(other, whole)
        other.run(num_samples=5)
    whole.run(num_samples=5)
    assert agree(first, whole)
    assert agree(other, whole)


def test_ticks_left_out_are_made_up_for_on_another_backend() -> None:
    """To rounding: with a fixed step size, for few draws."""
    make = lambda energy: eb.NUTS(energy, 0.3, adapt_step_size=False, adapt_mass_matrix=False)
    whole, first = run(make, 4, seed=5), run(make, 1, seed=5)
    assert int(ticks_of(first).min()) < first.now.tick
    assert first.chains is not None
    first.chains.compiled, first.chains.choice = None, Choice("eager", "as asked for")
    first.run(num_samples=3)
    found, wanted = (mcmc.get_samples()["x"] for mcmc in (first, whole))
    assert torch.allclose(found, wanted, rtol=0, atol=1e-9)


def test_a_chain_keeps_its_place_in_as_few_parts_as_there_are() -> None:
    active = torch.rand(96, generator=torch.Generator().manual_seed(0)) < 0.2
    chains, used = pack(active, 32)
    assert chains[used].sort().values.tolist() == active.nonzero().squeeze(1).tolist()
    assert torch.equal(chains % 32, torch.arange(len(chains)) % 32)
    assert len(chains) == 32 * int(active.view(3, 32).sum(0).max()) == 64
    assert int(used.sum()) == int(active.sum())


def test_a_wrong_adaptation_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool is compared with the adaptation before a run, and where they differ ticks are eager."""
    update, make_graph = HamiltonianAdaptation.update, pool.make_graph

    def off(self: Any, averaging: Any, tuning: Any, info: Any) -> Any:
        averaging, tuning = update(self, averaging, tuning, info)
        return averaging, tuning._replace(step_size=1.001 * tuning.step_size)

    def wrong(function: Any, *rest: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(HamiltonianAdaptation, "update", off)
            return make_graph(function, *rest)

    begin_anew(monkeypatch)
    monkeypatch.setattr(pool, "make_graph", wrong)
    with pytest.warns(SamplingWarning, match="the compiled adaptation differs from the eager one"):
        assert run(KERNELS["nuts"].factory).backend == "eager"


@pytest.mark.parametrize("chains", [CHAINS, 5])
def test_a_run_after_one_that_was_interrupted_while_compiling(chains: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What had no C++ yet is not found again."""

    def interrupt(self: object) -> None:
        raise KeyboardInterrupt

    make = partial(eb.MCMC, eb.NUTS(BANANA), 5, 10, num_chains=chains, seed=0, disable_progbar=True)
    begin_anew(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(cpp_unit.Unit, "compile", interrupt)
        with pytest.raises(KeyboardInterrupt):
            make(backend="inductor").run()
    again = make(backend="inductor")
    again.run()
    assert again.backend == "inductor"


@pytest.mark.long
def test_what_python_has_to_call_runs_as_a_whole() -> None:
    """A product that torch's C interface lacks."""

    def energy(x: Tensor) -> Tensor:
        return banana(x) + 0.1 * torch.linalg.solve_triangular(
            torch.eye(3, dtype=x.dtype), x.mT, upper=False
        ).square().sum(0)

    mcmc = eb.MCMC(
        eb.NUTS(as_energy(energy, (3,), batched=True), 0.1),
        5,
        5,
        0.3 * points(),
        num_chains=CHAINS,
        seed=0,
        backend="inductor",
        disable_progbar=True,
    )
    mcmc.run()
    assert isinstance(compiled_of(mcmc), Compiled)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("pooled", [False, True])
def test_what_a_kernel_throws_in_a_part_is_an_error_of_pythons(*, pooled: bool, threads: int) -> None:
    """An index out of bounds, of the noise of the second part: no thread waits for ever."""
    ticks = compiled_of(run(KERNELS["nuts"].factory))
    assert isinstance(ticks, Parts)
    ticks.threads, ticks._adapting = threads, pooled
    rows = ticks.parts[1].program.rows(ticks.parts[1].leaves)
    rows[-1].fill_(1 << 30)
    with pytest.raises(RuntimeError, match="of a compiled tick failed"):
        ticks._advance(50, 0)
