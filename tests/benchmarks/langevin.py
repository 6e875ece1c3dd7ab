"""Langevin, MALA and HMC, compiled and eager, next to torchebm and to what their gradients and random numbers cost alone.

    python tests/benchmarks/langevin.py [--quick] [--threads 1 2] [--rounds 7] [--processor-time] [--json FILE]

(A) A double well, the same on both sides: gradients per second of the engine's ticks and of torchebm's samplers, and
    the tick of a whole ``MCMC.run`` that keeps every draw, compiled.
(B) A small network: the tick next to the bare gradient of the plain module by autograd.

The limit of a tick is a bare value-and-gradient plus its random numbers, as many normals drawn by one generator in
one call, into memory at hand: of HMC the momenta of a draw, shared by its steps.
A gradient counts where the method needs it, once per leapfrog step; torchebm evaluates more, as the note says.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that the script runs from a checkout

import ebmppl as eb
from ebmppl.kernels import GradientKernel
from ebmppl.sampling.chains import Chains
from ebmppl.sampling.scopes import using_threads
from ebmppl.sampling.stragglers import Block
from tests.benchmarks.timing import Spread, Work, alternate, machine, ratio, save, table

SIZES = ((64, 8), (256, 32), (1024, 128))
LEAPFROGS = 10
ETA = 0.02  # step size of Langevin and MALA, in units of x squared
STEP = 0.1  # leapfrog step of HMC, in units of x
HIDDEN = 128
SEED = 20240
# the targets: torchebm's time over ours by kernel and size, compiled; and the compiled tick over its limit
MORE_THAN_TORCHEBM = {"Langevin": (4.0, 3.0, 2.0), "MALA": (1.3, 1.3, 1.3), "HMC": (4.0, 4.0, 4.0)}
OF_THE_LIMIT = 1.1

KERNELS: dict[str, Callable[[eb.Energy], GradientKernel]] = {
    "Langevin": partial(eb.Langevin, step_size=ETA),
    "MALA": partial(eb.MALA, step_size=ETA),
    "HMC": partial(eb.HMC, step_size=STEP, num_steps=LEAPFROGS, jitter=0.0),
}
TICKS = {"Langevin": 1, "MALA": 1, "HMC": LEAPFROGS}  # of one draw
RIVALS = {"Langevin": "Langevin", "MALA": "Langevin", "HMC": "HMC"}  # torchebm has no MALA


class Effort(NamedTuple):
    """How much to measure."""

    sizes: Sequence[tuple[int, int]] = SIZES
    rounds: int = 7
    seconds: float = 0.05  # of one turn of one peer
    clock: Callable[[], float] = time.perf_counter

    def measure(self, peers: Mapping[str, Work]) -> dict[str, list[float]]:
        """Microseconds per unit of every peer. A whole run takes longer turns, so that its beginning weighs little."""
        seconds = {name: (4 if name.endswith("run") else 1) * self.seconds for name in peers}
        return alternate(peers, rounds=self.rounds, seconds=seconds, clock=self.clock)


# What is timed. A unit of work is one draw of every chain: one tick, or ten leapfrog steps.


def ticks(name: str, energy: eb.Energy, x: Tensor, backend: str) -> Work:
    """The engine going on with a long run. HMC needs no freezing of chains here: all of them finish together."""
    chains = Chains(KERNELS[name](energy), x, SEED, backend)
    with torch.no_grad(), using_threads(chains.threads):
        chains.prepare(1000)  # the gradient of the network is traced
    compiled = chains.compiled
    if (compiled is None) == (backend == "inductor"):
        raise RuntimeError(f"expected the backend {backend!r}: {chains.choice.reason}")

    def work(n: int) -> None:
        left = n * TICKS[name]
        with torch.no_grad(), using_threads(chains.threads):
            while left > 0:
                block = min(left, chains._most_ticks())
                if compiled is not None:
                    chains._run_compiled(compiled, Block(chains.now.tick, block), adapt=False)
                else:
                    for _ in range(block):
                        chains._tick(adapt=False)
                left -= block

    return work


def run(name: str, energy: eb.Energy, x: Tensor) -> Work:
    """A whole run from its beginning, which keeps all draws."""
    kernel = KERNELS[name](energy)
    return lambda n: eb.MCMC(kernel, n, 0, x, len(x), seed=SEED, backend="inductor", disable_progbar=True).run()


def gradients(value_and_grad: Callable[[Tensor], Any], x: Tensor) -> Work:
    """Bare gradients at the same points, one for each unit."""

    @torch.no_grad()
    def work(n: int) -> None:
        for _ in range(n):
            value_and_grad(x)

    return work


def normals(name: str, energy: eb.Energy, x: Tensor) -> Work:
    """The random numbers of a tick for each unit."""
    size = len(x) * sum(math.prod(spec.shape) for spec in KERNELS[name](energy).noise().values())
    numbers, generator = torch.empty(size, dtype=x.dtype), torch.Generator().manual_seed(SEED)

    def work(n: int) -> None:
        for _ in range(n):
            numbers.normal_(generator=generator)

    return work


class Rival:
    """torchebm's sampler of the same double well, going on from where it is."""

    def __init__(self, name: str, x: Tensor) -> None:
        from torchebm.core import DoubleWellModel
        from torchebm.samplers import HamiltonianMonteCarlo, LangevinDynamics

        self.x, self.model = x, DoubleWellModel(barrier_height=2.0, b=1.0)
        self.sampler = (
            LangevinDynamics(self.model, step_size=ETA / 2)  # it adds sqrt(2 step) noise
            if name == "Langevin"
            else HamiltonianMonteCarlo(self.model, step_size=STEP, n_leapfrog_steps=LEAPFROGS)
        )

    def __call__(self, n: int) -> None:
        """So many draws."""
        self.x = self.sampler.sample(x=self.x, n_steps=n)

    def calls(self) -> int:
        """Gradients that it evaluates for one draw."""
        with mock.patch.object(self.model, "gradient", wraps=self.model.gradient) as gradient:
            self(1)
        return gradient.call_count


def network(dimension: int) -> nn.Module:
    """dimension -> 128 -> 128 -> 1 with SiLU."""
    torch.manual_seed(SEED)
    layers = nn.Linear(dimension, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, 1)
    return nn.Sequential(*layers, nn.Flatten(0)).eval()


def by_autograd(module: nn.Module) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Value and gradient of a plain module, written straight."""

    def value_and_grad(x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            value = module(x)
            (grad,) = torch.autograd.grad(value.sum(), x)
        return value.detach(), grad

    return value_and_grad


# What is reported.


def per_tick(name: str, times: dict[str, list[float]], energy: eb.Energy, x: Tensor) -> dict[str, Any]:
    """One kernel at one size: microseconds of a tick, and its limit."""
    tick, eager = ([t / TICKS[name] for t in times[key]] for key in (name, f"{name} eager"))
    whole = [t / TICKS[name] for t in times[f"{name} run"]]
    shared = TICKS[name]  # of one draw's momenta
    limit = [a + b / shared for a, b in zip(times["gradient"], times[f"{name} normals"], strict=True)]
    return {
        "kernel": name,
        "chains": len(x),
        "dimension": energy.event_shape.numel(),
        "threads": torch.get_num_threads(),
        "tick": tick,
        "eager": eager,
        "eager_ratio": ratio(eager, tick)._asdict(),
        "run": whole,
        "gradient": times["gradient"],
        "limit": limit,
        "fraction": ratio(limit, tick)._asdict(),
        "run_fraction": ratio(limit, whole)._asdict(),
        "over_limit": ratio(tick, limit)._asdict(),
    }


def peers(energy: eb.Energy, x: Tensor, bare: Callable[[Tensor], Any]) -> dict[str, Work]:
    """Our side and the limits."""
    works: dict[str, Work] = {"gradient": gradients(bare, x)}
    for name in KERNELS:
        works[name], works[f"{name} eager"] = (ticks(name, energy, x, backend) for backend in ("inductor", "eager"))
        works[f"{name} normals"] = normals(name, energy, x)
        works[f"{name} run"] = run(name, energy, x)
    return works


def double_well(effort: Effort) -> list[dict[str, Any]]:
    """Part A."""
    rows = []
    for chains, dimension in effort.sizes:
        energy = eb.energies.DoubleWell(dimension, height=2.0, well=1.0)
        x = energy.sample(chains, torch.Generator().manual_seed(SEED)).float()
        rivals = {name: Rival(name, x) for name in set(RIVALS.values())}
        works = peers(energy, x, energy.value_and_grad)
        for name, rival in rivals.items():
            works[f"torchebm {name}"] = rival
        times = effort.measure(works)
        for name, other in RIVALS.items():
            row = per_tick(name, times, energy, x)
            row["torchebm"] = [t / TICKS[other] for t in times[f"torchebm {other}"]]
            row["torchebm_gradients"] = rivals[other].calls() / TICKS[other]  # evaluated for one that is needed
            row["ratio"] = ratio(row["torchebm"], row["tick"])._asdict()
            row["run_ratio"] = ratio(row["torchebm"], row["run"])._asdict()
            rows.append(row)
    return rows


def small_network(effort: Effort) -> list[dict[str, Any]]:
    """Part B."""
    rows = []
    for chains, dimension in effort.sizes:
        module = network(dimension)
        energy = eb.as_energy(module, (dimension,))
        x = torch.randn(chains, dimension, generator=torch.Generator().manual_seed(SEED))
        times = effort.measure(peers(energy, x, by_autograd(module)))
        rows += [per_tick(name, times, energy, x) for name in KERNELS]
    return rows


def _cells(row: dict[str, Any]) -> list[str]:
    tick, limit = Spread.of(row["tick"]), Spread.of(row["limit"])
    return [
        f"{row['chains']}x{row['dimension']}",
        row["kernel"],
        tick.text(0),
        f"{Spread.of(row['eager']).median:.0f}",
        f"{row['chains'] / tick.median:.2f}",
        f"{limit.median:.0f}",
        Spread(**row["fraction"]).text(2),
        f"{Spread.of(row['run']).median:.0f}",
        f"{row['run_fraction']['median']:.2f}",
    ]


HEAD = ("size", "kernel", "us/tick", "eager", "M grad/s", "limit us", "of limit", "us/tick of run", "of limit, run")


def table_a(rows: Sequence[dict[str, Any]]) -> str:
    """Ratios: torchebm's time for a gradient over ours."""
    lines = []
    for row in rows:
        targets = dict(zip(SIZES, MORE_THAN_TORCHEBM[row["kernel"]], strict=True))
        wanted = targets.get((row["chains"], row["dimension"]))
        met = "" if wanted is None else f">= {wanted:g} {'yes' if row['ratio']['median'] >= wanted else 'NO'}"
        theirs = Spread.of(row["torchebm"]).text(0)
        lines.append(
            [*_cells(row), theirs, f"{Spread(**row['ratio']).text(2)} {met}", f"{row['run_ratio']['median']:.2f}"]
        )
    return table([*HEAD, "torchebm us", "ratio", "ratio, run"], lines)


def table_b(rows: Sequence[dict[str, Any]]) -> str:
    """Ratios: our tick over its limit."""
    lines = []
    for row in rows:
        met = "yes" if row["over_limit"]["median"] <= OF_THE_LIMIT else "NO"
        lines.append(
            [*_cells(row), f"{Spread.of(row['gradient']).median:.0f}", f"{Spread(**row['over_limit']).text(2)} {met}"]
        )
    return table([*HEAD, "gradient us", f"tick / limit <= {OF_THE_LIMIT}"], lines)


def main(arguments: Sequence[str] | None = None, effort: Effort | None = None) -> dict[str, Any]:
    """Measure, print, and return what ``--json`` writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="a smoke run of some seconds")
    parser.add_argument(
        "--threads", type=int, nargs="+", default=[1, 2], help="intra-op threads of torch, one run each"
    )
    parser.add_argument("--rounds", type=int, default=Effort().rounds)
    parser.add_argument("--processor-time", action="store_true", help="on a machine that is busy; with --threads 1")
    parser.add_argument("--json", metavar="FILE", help="write all times to FILE")
    options = parser.parse_args(arguments)
    effort = effort or (Effort(rounds=3, seconds=0.005) if options.quick else Effort(rounds=options.rounds))
    if options.processor_time:
        effort = effort._replace(clock=time.process_time)

    where = machine(["torch", "torchebm", "ebmppl"])
    print("\n".join(f"{name}: {value}" for name, value in where.items()))
    by = f"{effort.rounds} alternating rounds by {effort.clock.__name__}"
    print(f"float32; medians [quartiles] of {by}; {LEAPFROGS} leapfrog steps per draw")
    results: dict[str, Any] = {
        "machine": where,
        "effort": {**effort._asdict(), "clock": effort.clock.__name__},
        "double_well": [],
        "network": [],
    }
    before = torch.get_num_threads()
    try:
        for threads in options.threads:
            torch.set_num_threads(threads)
            print(f"\n## torch.set_num_threads({threads})\n\n(A) double well\n")
            rows_a = double_well(effort)
            print(table_a(rows_a))
            counts = {RIVALS[row["kernel"]]: row["torchebm_gradients"] for row in rows_a}
            print(
                "\ntorchebm evaluates for each needed gradient: " + ", ".join(f"{n} {c:g}" for n, c in counts.items())
            )
            print(f"\n(B) network dimension-{HIDDEN}-{HIDDEN}-1, SiLU\n")
            rows_b = small_network(effort)
            print(table_b(rows_b))
            results["double_well"] += rows_a
            results["network"] += rows_b
    finally:
        torch.set_num_threads(before)
    if options.json:
        save(options.json, results)
    return results


if __name__ == "__main__":
    main()
