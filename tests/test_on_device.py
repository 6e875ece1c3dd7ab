"""What only a GPU can show (``--device cuda``): ticks never wait for the host, and compiled ones are the eager ones."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

import ebmppl as eb
from ebmppl.sampling.chains import Chains
from ebmppl.sampling.scopes import evaluating
from tests.registry import KERNELS

CASES = {name: KERNELS[name] for name in ("nuts", "hmc, steps", "mala", "langevin")}


@pytest.fixture(autouse=True)
def only_there(device: torch.device) -> None:
    if device.type != "cuda":
        pytest.skip("of a GPU: --device cuda")


@contextmanager
def no_waiting() -> Iterator[None]:
    torch.cuda.synchronize()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the mode is a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def regression(device: torch.device) -> eb.energies.Energy:
    """A callable, whose gradient is traced: its constants are inputs of the graph, some of them expanded."""
    inputs = torch.randn(30, 7, generator=torch.Generator().manual_seed(1)).to(device)
    return eb.as_energy(
        lambda w: torch.nn.functional.softplus(w @ inputs.mT).sum(-1) + w.square().sum(-1), (7,), batched=True
    )


def gaussian(device: torch.device) -> eb.energies.Energy:
    return eb.energies.Gaussian(torch.zeros(7, device=device), torch.eye(7, device=device))


ENERGIES = {"closed form": gaussian, "callable": regression}
every_energy = pytest.mark.parametrize("energy", ENERGIES)


def chains(name: str, energy: str, backend: str, device: torch.device, count: int = 256) -> Chains:
    x = torch.randn(count, 7, generator=torch.Generator().manual_seed(0)).to(device)
    return Chains(CASES[name].factory(ENERGIES[energy](device)), x, 0, backend, record=False)


@pytest.mark.parametrize("backend", ["eager", "cudagraph"])
@every_energy
@pytest.mark.parametrize("name", CASES)
def test_hot_loops_never_wait_for_the_host(name: str, energy: str, backend: str, device: torch.device) -> None:
    found = chains(name, energy, backend, device)
    found.prepare(100_000)
    assert (found.compiled is None) == (backend == "eager"), found.choice.reason
    with torch.no_grad(), evaluating(found.kernel.target):
        found._tick(adapt=False)  # what a kernel makes once
        if found.compiled is not None:
            found._run_compiled(found.compiled, 20, adapt=False)
        with no_waiting():
            if found.compiled is None:
                for _ in range(20):
                    found._tick(adapt=False)
            else:
                found._run_compiled(found.compiled, 64, adapt=False)


@every_energy
@pytest.mark.parametrize("name", CASES)
def test_graphs_give_the_eager_draws(name: str, energy: str, device: torch.device) -> None:
    """In float32 until rounding turns a decision: after ten ticks in a few chains at most."""
    runs = [chains(name, energy, backend, device) for backend in ("eager", "cudagraph")]
    for run in runs:
        run.prepare(100_000)
        with torch.no_grad(), evaluating(run.kernel.target):
            if run.compiled is None:
                for _ in range(10):
                    run._tick(adapt=False)
            else:
                run._run_compiled(run.compiled, 10, adapt=False)
    a, b = (run.position() for run in runs)
    assert not torch.equal(a, torch.randn_like(a))
    apart = (a - b).abs().amax(1) > 1e-3
    assert int(apart.sum()) <= 5
