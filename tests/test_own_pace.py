"""Chains at their own pace: one that needs many more ticks than the others changes nothing of theirs, and fills no memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import ebmppl as eb
from ebmppl.sampling import chains as chains_module
from tests.test_parts import of_all_chains, ticks_of


def two_wells(x: Tensor) -> Tensor:
    """Normals of deviation 1 at 0 and of 50 at 10,000, too far for a chain to go from one to the other."""
    far = 0.5 * ((x[:, 0] - 1e4) ** 2 + x[:, 1] ** 2) / 2500
    return torch.where(x[:, 0] > 5000, far, 0.5 * x.square().sum(-1))


def run(chains: int, backend: str, draws: int, **options: Any) -> eb.MCMC:
    """One chain is in the wide well; its trees are of 127 and 255 leapfrog steps, the others' of 1 or 3."""
    start = torch.randn(chains, 2, generator=torch.Generator().manual_seed(1))
    start[chains // 2, 0] += 1e4
    kernel = eb.NUTS(eb.as_energy(two_wells, (2,), batched=True), 1.4, adapt_step_size=False, adapt_mass_matrix=False)
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
        (6, "inductor", 3),
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
    assert int(own[stuck]) > 20 * int(others.max())
    mcmc.save(tmp_path / "run.pt")
    loaded = eb.MCMC.load(tmp_path / "run.pt", mcmc.kernel)
    for other in (mcmc, loaded):
        other.run(num_samples=draws - draws // 2)
        assert torch.equal(other.get_samples()["x"], whole.get_samples()["x"])
        assert all(torch.equal(value, other.stats()[name]) for name, value in whole.stats().items())
        # a quarter more; of the last block, as many ticks as draws lacked
        assert rows(other) <= 1.25 * draws + draws
    assert torch.equal(ticks_of(mcmc), ticks_of(loaded))
