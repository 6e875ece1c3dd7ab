"""Chains at their own pace: one that needs many more ticks than the others changes nothing of theirs, and fills no memory."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ebmppl as eb
from ebmppl.errors import SamplingWarning
from ebmppl.sampling import chains as chains_module
from ebmppl.sampling.native import Team
from tests.test_parts import of_all_chains, ticks_of


def two_wells(x: Tensor) -> Tensor:
    """Normals of deviation 1 at 0 and of 50 at 10,000, too far for a chain to go from one to the other."""
    far = 0.5 * ((x[:, 0] - 1e4) ** 2 + x[:, 1] ** 2) / 2500
    return torch.where(x[:, 0] > 5000, far, 0.5 * x.square().sum(-1))


class Raised(nn.Module):
    """By an offset, which changes the energy and no draw."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.tensor(0.0))

    def forward(self, x: Tensor) -> Tensor:
        return two_wells(x) + self.offset


def run(
    chains: int, backend: str, draws: int, energy: Callable[[Tensor], Tensor] = two_wells, **options: Any
) -> eb.MCMC:
    """One chain is in the wide well; its trees are of 127 and 255 leapfrog steps, the others' of 1 or 3."""
    start = torch.randn(chains, 2, generator=torch.Generator().manual_seed(1))
    start[chains // 2, 0] += 1e4
    kernel = eb.NUTS(eb.as_energy(energy, (2,), batched=True), 1.4, adapt_step_size=False, adapt_mass_matrix=False)
    mcmc = eb.MCMC(kernel, draws, 0, start, chains, seed=3, backend=backend, disable_progbar=True, **options)
    mcmc.run()
    assert mcmc.backend == backend
    return mcmc


def rows(mcmc: eb.MCMC) -> int:
    """Of memory for draws."""
    return max(len(buffer) for buffer in mcmc.draws.buffers.values())


def long(*values: object) -> Any:
    return pytest.param(*values, marks=pytest.mark.long)


@pytest.mark.parametrize(
    ("chains", "backend", "thinning"),
    [
        (6, "eager", 1),
        long(6, "eager", 3),
        long(64, "eager", 1),
        long(6, "inductor", 3),
        (64, "inductor", 1),
        long(64, "inductor", 3),
    ],
)
def test_draws_beyond_those_asked_for_are_few(
    chains: int, backend: str, thinning: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit what they would be beside chains that all go on until the last one has its draws."""
    draws, stuck = 4, chains // 2
    with monkeypatch.context() as patch:
        patch.setattr(chains_module, "next_block", of_all_chains)
        whole = run(chains, backend, draws, thinning=thinning)
    assert rows(whole) > 20 * draws
    mcmc = run(chains, backend, draws // 2, thinning=thinning)
    own = ticks_of(mcmc)
    others = own[torch.arange(chains) != stuck]
    assert int(own[stuck]) > 10 * int(others.max())
    mcmc.save(tmp_path / "run.pt")
    loaded = eb.MCMC.load(tmp_path / "run.pt", mcmc.kernel)
    for other in (mcmc, loaded):
        other.run(num_samples=draws - draws // 2)
        assert torch.equal(other.get_samples()["x"], whole.get_samples()["x"])
        assert all(torch.equal(value, other.stats()[name]) for name, value in whole.stats().items())
        # a quarter more; of the last block, three quarters of the ticks that the draws which lacked will take
        assert rows(other) <= 1.25 * draws + draws
    assert torch.equal(ticks_of(mcmc), ticks_of(loaded))


def test_gradients_are_those_computed_with_another_energy_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ticks that chains left out before the change are never made."""
    computed, call = [], Team.__call__

    def see(self: Team, first: int, pool: int | None, times: int, threads: int, count: int | None = None) -> None:
        computed.append(times * 32 * (2 if count is None else count))
        call(self, first, pool, times, threads, count)

    monkeypatch.setattr(Team, "__call__", see)
    energy = Raised()
    mcmc = run(64, "inductor", 3, energy)
    assert mcmc.gradients == sum(computed) < 64 * mcmc.now.tick
    energy.offset.data.fill_(20.0)
    with pytest.warns(SamplingWarning, match="another one than at the last draw"):
        mcmc.run(num_samples=2)
    assert mcmc.gradients == sum(computed) < 64 * mcmc.now.tick


def test_ctrl_c_while_getting_ready_for_another_energy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling for it takes seconds. What chains had drawn ahead of the old one is not taken for draws of the new one."""
    energy = Raised()
    mcmc = run(6, "eager", 4, energy)
    assert int(mcmc.now.counts.finished.max()) > 4
    energy.offset.data.fill_(20.0)
    with monkeypatch.context() as patch:
        patch.setattr(chains_module.Chains, "prepare", lambda *args, **options: signal.raise_signal(signal.SIGINT))
        with pytest.warns(SamplingWarning) as told:
            mcmc.run(num_samples=2)
    assert ["another one than" in str(w.message) for w in told] == [True, False]
    assert mcmc.kept == int(mcmc.now.counts.finished.max()) == 4
    assert torch.allclose(mcmc.now.state.energy, energy(mcmc.now.state.position))
    mcmc.run(num_samples=2)
    x = mcmc.get_samples(group_by_chain=True)["x"][:, 4:]
    assert torch.allclose(-mcmc.stats()["lp"][:, 4:].flatten(), energy(x.flatten(0, 1)))


@pytest.mark.parametrize(("chains", "backend"), [long(6, "eager"), (64, "inductor")])
def test_ctrl_c_while_chains_catch_up_and_while_one_ticks_alone(
    chains: int, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within a block: eager ticks stop at once, compiled ones when the block is made; the run goes on bit for bit."""
    whole = run(chains, backend, 9).get_samples(group_by_chain=True)["x"]
    mcmc, stuck, calls = run(chains, backend, 2), chains // 2, [0]
    before = mcmc.now.tick
    places: list[Callable[[], bool]] = [lambda: int(ticks_of(mcmc)[stuck]) > before + 100, lambda: calls[0] == 2]
    where, name = (eb.NUTS, "tick") if backend == "eager" else (Team, "__call__")
    real = getattr(where, name)

    def press(*args: Any, **options: Any) -> Any:
        calls[0] += 1
        if places and places[-1]():
            places.pop()
            signal.raise_signal(signal.SIGINT)
        return real(*args, **options)

    monkeypatch.setattr(where, name, press)
    for left in (1, 0):
        with pytest.warns(SamplingWarning, match=r"interrupted: kept [2-8] of 9 draws"):
            mcmc.run(num_samples=9 - mcmc.kept)
        assert len(places) == left
        own = ticks_of(mcmc)
        assert int(own[torch.arange(chains) != stuck].max()) < before <= int(own[stuck])
        assert (int(own[stuck]) > before) == (left == 0)
        assert torch.equal(mcmc.get_samples(group_by_chain=True)["x"], whole[:, : mcmc.kept])
    mcmc.run(num_samples=9 - mcmc.kept)
    assert torch.equal(mcmc.get_samples(group_by_chain=True)["x"], whole)
