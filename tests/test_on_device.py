"""What only a GPU can show (``--device cuda``): ticks never wait for the host, and compiled ones are the eager ones."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from torch import Tensor

import ebmppl as eb
from ebmppl.energies.discrete import discrete
from ebmppl.kernels import Kernel, operators
from ebmppl.sampling.chains import Chains
from ebmppl.sampling.scopes import evaluating
from ebmppl.sampling.stragglers import Block
from ebmppl.score import VP, geometric_sigmas
from tests.discrete import states_of
from tests.discrete_registry import DISCRETE, DISCRETE_KERNELS
from tests.registry import KERNELS
from tests.test_clusters import GRAPHS
from tests.test_own_pace import two_wells


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


def _score(x: Tensor, t: Tensor) -> Tensor:
    return torch.sin(3 * x) - x / (0.5 + t.unsqueeze(1))


def _blurred(x: Tensor, sigma: Tensor) -> Tensor:
    return (0.1 * torch.tanh(x) - x) / (1 + sigma.unsqueeze(1).square())


def _discrete(kernel: str, model: str, device: torch.device) -> Kernel:
    return DISCRETE_KERNELS[kernel].factory(DISCRETE[model]().float().to(device))


def _tempered(kernel: str, model: str, device: torch.device) -> Kernel:
    return eb.ParallelTempering(_discrete(kernel, model, device), 4)


def _blocks(spins: Callable[[eb.Energy], Kernel], real: Callable[[eb.Energy], Kernel], _: torch.device) -> Kernel:
    sites = {"s": (3,), "x": (4,)}
    pair = eb.as_energy(
        lambda v: (v["x"] ** 2).sum(-1) - v["s"].to(v["x"].dtype).prod(-1) * torch.tanh(v["x"].sum(-1)),
        sites,
        {"s": eb.energies.spin},
        batched=True,
    )
    return eb.Blocks(pair, {"s": spins, "x": real})


def _two_blocks(device: torch.device) -> Kernel:
    """Parts of a model that knows its conditionals."""
    joint = DISCRETE["rbm"]().float().joint.to(device)
    return eb.Blocks(joint, {"v": eb.Gibbs, "h": eb.kernels.Metropolis})


Make = Callable[[torch.device], Kernel]
CASES: dict[str, Make] = {
    f"{name}, {which}": lambda device, name=name, energy=energy: KERNELS[name].factory(energy(device))  # type: ignore[misc]
    for name in ("nuts", "hmc, steps", "mala", "langevin")
    for which, energy in (("closed form", gaussian), ("callable", regression))
}
CASES |= {
    f"{kernel}, {model}": partial(_discrete, kernel, model)
    for kernel, model in (
        ("gibbs", "ising, lattice"),
        ("gibbs", "rbm"),
        ("gibbs", "rbm, joint"),
        ("gibbs", "potts, clamped"),
        ("gibbs", "sum"),
        ("gibbs", "callable, ordered"),
        ("metropolis", "potts, lattice"),
        ("metropolis", "boltzmann machine, posterior"),
        ("metropolis", "callable, spins"),
        ("gibbs with gradients", "ising, lattice"),
        ("gibbs with gradients", "potts, lattice"),
        ("dmala", "rbm"),
        ("dmala", "callable, ordered"),
        ("swendsen-wang", "ising, ferromagnet"),
        ("swendsen-wang", "ising, mattis glass"),
        ("swendsen-wang", "potts, ferromagnet in a field"),
        ("wolff", "ising, ferromagnet in a field"),
        ("wolff", "potts, tempered"),
    )
}
CASES |= {
    f"tempered {kernel}, {model}": partial(_tempered, kernel, model)
    for kernel, model in (
        ("gibbs", "ising, lattice"),
        ("gibbs", "hopfield"),
        ("metropolis", "potts, lattice"),
        ("gibbs with gradients", "ising, lattice"),
        ("dmala", "potts, lattice"),
        ("swendsen-wang", "ising, ferromagnet in a field"),
    )
}
CASES |= {
    "tempered mala": lambda device: eb.ParallelTempering(eb.MALA(regression(device)), 4),
    "blocks, gibbs and nuts": partial(_blocks, eb.Gibbs, eb.NUTS),
    "blocks, gibbs with gradients and mala": partial(_blocks, eb.GibbsWithGradients, eb.MALA),
    "blocks, two layers": _two_blocks,
}
CASES |= {
    f"reverse sde, {method}": lambda _, method=method: eb.ReverseSDE(_score, VP(), (7,), 500, method)  # type: ignore[misc]
    for method in ("euler_maruyama", "heun", "ancestral", "predictor_corrector")
}
CASES |= {
    f"flow, {method}": lambda _, method=method: eb.ProbabilityFlow(_score, VP(), (7,), 500, method)  # type: ignore[misc]
    for method in ("euler", "heun", "dpm_solver_2m", "dpm_solver_3m")
}
CASES |= {
    "adaptive reverse sde": lambda _: eb.AdaptiveReverseSDE(_score, VP(), (7,)),
    "adaptive flow": lambda _: eb.AdaptiveFlow(_score, VP(), (7,)),
    "annealed langevin": lambda _: eb.AnnealedLangevin(_blurred, geometric_sigmas(5, 0.1, 5.0), (7,)),
}


def chains(name: str, backend: str, device: torch.device, count: int = 256) -> Chains:
    kernel, made = CASES[name](device), torch.Generator().manual_seed(0)
    energy = kernel.target
    if discrete(energy):
        x = states_of(energy.cpu())
        x = x[torch.randint(len(x), (count,), generator=made)]
        energy.to(device)
    else:
        x = torch.randn(count, *energy.event_shape, generator=made)
        if "s" in energy.sites:  # of spins, in front
            x[:, :3] = x[:, :3].sign()
    return Chains(kernel, x.to(device), 0, backend, record=False)


@pytest.mark.parametrize("backend", ["eager", "cudagraph"])
@pytest.mark.parametrize("name", CASES)
def test_hot_loops_never_wait_for_the_host(name: str, backend: str, device: torch.device) -> None:
    found = chains(name, backend, device)
    found.prepare(100_000)
    assert (found.compiled is None) == (backend == "eager"), found.choice.reason
    with torch.no_grad(), evaluating(found.kernel.target):
        found._tick(adapt=False)  # what a kernel makes once
        tick(found, 20)
        with no_waiting():
            tick(found, 64)


ADAPTING = ["nuts, callable", "hmc, steps, closed form", "mala, callable", "dmala, rbm", "tempered mala"]


@pytest.mark.parametrize("backend", ["eager", "cudagraph"])
@pytest.mark.parametrize("name", [*ADAPTING, "blocks, gibbs and nuts"])
def test_ticks_of_warm_up_never_wait_for_the_host(name: str, backend: str, device: torch.device) -> None:
    found = chains(name, backend, device)
    found.begin_adaptation()
    found.prepare(100_000)
    with torch.no_grad(), evaluating(found.kernel.target):
        tick(found, 20, adapt=True)
        with no_waiting():
            tick(found, 64, adapt=True)


def tick(run: Chains, times: int, *, adapt: bool = False) -> None:
    if run.compiled is not None:
        run._run_compiled(run.compiled, Block(run.now.tick, times), adapt=adapt)
        return
    for _ in range(times):
        run._tick(adapt=adapt)


def under_way(run: Chains) -> Tensor:
    """Where the chains are: score kernels keep the last draw as their position."""
    return getattr(run.now.state, "point", run.position()).clone()


@pytest.mark.parametrize("name", [name for name in CASES if name != "adaptive flow"])  # rounding moves its steps
def test_graphs_give_the_eager_draws(name: str, device: torch.device) -> None:
    """In float32 until rounding turns a decision: after ten ticks in a few chains at most."""
    runs = [chains(name, backend, device) for backend in ("eager", "cudagraph")]
    begun = under_way(runs[0])
    for run in runs:
        run.prepare(100_000)
        with torch.no_grad(), evaluating(run.kernel.target):
            tick(run, 10)
    start, a, b = (at.flatten(1).double() for at in (begun, *map(under_way, runs)))
    assert not torch.equal(a, start)
    apart = (a - b).abs().amax(1) > 1e-3
    assert int(apart.sum()) <= 5


@pytest.mark.parametrize("backend", ["eager", "inductor", "cudagraph"])
def test_runs_with_a_straggler_go_on_as_if_uninterrupted(backend: str, device: torch.device) -> None:
    """Chains that have their draws leave out ticks, and make them when the run goes on."""

    def run(draws: int) -> eb.MCMC:
        start = torch.randn(100, 2, generator=torch.Generator().manual_seed(1))
        start[50, 0] += 1e4  # in the wide well, whose trees are a hundred times as large
        kernel = eb.NUTS(
            eb.as_energy(two_wells, (2,), batched=True), 1.4, adapt_step_size=False, adapt_mass_matrix=False
        )
        options = {"seed": 3, "backend": backend, "disable_progbar": True}
        mcmc = eb.MCMC(kernel, draws, 0, start.to(device), 100, **options)
        mcmc.run()
        assert mcmc.backend == backend
        return mcmc

    whole, parts = run(6), run(2)
    parts.run(num_samples=3)
    parts.run(num_samples=1)
    (a,), (b,) = (m.get_samples(group_by_chain=True).values() for m in (whole, parts))
    assert a.device.type == device.type
    assert torch.equal(a, b)
    assert float(a[50, :, 0].min()) > 5000


@pytest.mark.parametrize("name", GRAPHS)
def test_clusters_have_the_labels_that_the_host_gives_them(name: str, device: torch.device) -> None:
    """All threads hook at once; ten times, so that they meet in other orders. Some graphs have all edges."""
    i, j, sites = GRAPHS[name]()
    uniform = torch.rand(50, len(i), generator=torch.Generator().manual_seed(2))
    uniform[::2] = 0.0
    given = torch.zeros(50, sites, dtype=torch.int8), uniform, torch.full((len(i),), 0.5), i, j
    wanted = operators.bonded(*given)
    for _ in range(10):
        found = operators.bonded(*(tensor.to(device) for tensor in given))
        assert found.dtype == wanted.dtype
        assert torch.equal(found.cpu(), wanted)
