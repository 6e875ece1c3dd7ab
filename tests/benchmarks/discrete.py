"""Gibbs on lattices, a sparse graph and an RBM, compiled and eager, next to thrml and rbms and to what they cost at least.

    python -m tests.benchmarks.discrete [--quick] [--cases lattice signs sparse rbm] [--rounds 7] [--json FILE]

(lattice) Ising, 256x256, one coupling, 64 replicas. (signs) The same with couplings +J or -J. (sparse) A random graph of
degree 15, 4000 nodes, normal couplings, 256 chains. (rbm) 784x500, 512 chains: hidden given visible, and back.

A unit of work is one sweep of all chains; nothing is recorded on either side. Times are of the processor (all threads of
the process), so that what else runs on the machine counts little; the table gives those of the clock, too. The limit of
a lattice or graph is its numbers alone: one word for every site from the compiled generator; that of the RBM its two
matrix products. Peers are in the extra ``bench``, side by side with those of the other benchmarks; those that are not
installed are left out, with the reason.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.fx.experimental.proxy_tensor import make_fx

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that the script runs from a checkout

import ebmppl as eb
from ebmppl.kernels.words import labels, words
from ebmppl.models import BernoulliRBM, Graph, Ising
from ebmppl.sampling.chains import Chains
from ebmppl.sampling.compiler import compile_graph
from ebmppl.sampling.scopes import using_threads
from tests.benchmarks.discrete_peers import rbms, thrml
from tests.benchmarks.timing import Spread, Work, machine, ratio, save, table

SEED = 20250
CRITICAL = 0.4406868
WANTED = {"lattice": 5.0, "signs": 10.0, "sparse": 3.0, "rbm": 1.5}  # the peer's time over ours
OF_THE_PRODUCTS = 0.85


class Case(NamedTuple):
    """What is sampled, and beside whom."""

    title: str
    energy: eb.Energy
    chains: int
    peer: str
    rival: Callable[[eb.Energy, int], Work]
    limit: Callable[[eb.Energy, int], Work]


def generator() -> torch.Generator:
    """Of what the cases draw."""
    return torch.Generator().manual_seed(SEED)


def lattice(side: int, chains: int) -> Case:
    """One coupling."""
    energy = Ising((side, side), CRITICAL)
    return Case(f"Ising {side}x{side}, one J", energy, chains, "thrml", thrml, numbers)


def signs(side: int, chains: int) -> Case:
    """Couplings of both signs."""
    graph = Graph.lattice((side, side))
    signs = 2.0 * (torch.rand(len(graph.edges), generator=generator()) < 0.5) - 1.0
    return Case(f"Ising {side}x{side}, +-J", Ising(graph, CRITICAL, signs=signs), chains, "thrml", thrml, numbers)


def sparse(nodes: int, chains: int) -> Case:
    """Of degree 15 in the mean."""
    edges = (torch.rand(nodes, nodes, generator=generator()) < 15 / nodes).triu(1).nonzero()
    coupling = 0.2 * torch.randn(len(edges), generator=generator())
    return Case(
        f"graph of degree 15, {nodes}", Ising(Graph(edges, (nodes,)), coupling), chains, "thrml", thrml, numbers
    )


def rbm(visible: int, hidden: int, chains: int) -> Case:
    """Bits on both sides."""
    energy = BernoulliRBM(visible, hidden, generator=generator())
    return Case(f"RBM {visible}x{hidden}", energy, chains, "rbms", rbms, products)


def cases(*, quick: bool) -> dict[str, Case]:
    """All of them."""
    if quick:
        return {"lattice": lattice(16, 16), "signs": signs(16, 16), "sparse": sparse(200, 16), "rbm": rbm(20, 10, 16)}
    return {
        "lattice": lattice(256, 64),
        "signs": signs(256, 64),
        "sparse": sparse(4000, 256),
        "rbm": rbm(784, 500, 512),
    }


# What is timed.


def ours(case: Case, backend: str) -> Work:
    """The engine going on with a long run that records nothing."""
    low = 0 if case.peer == "rbms" else -1
    x = torch.randint(0, 2, (case.chains, *case.energy.event_shape), generator=generator()) * (1 - low) + low
    chains = Chains(eb.Gibbs(case.energy, record_energy=False), x.to(torch.int8), SEED, backend, record=False)
    with torch.no_grad(), using_threads(chains.threads):
        chains.prepare(1000)
    if (chains.compiled is None) == (backend == "inductor"):
        raise RuntimeError(f"expected the backend {backend!r}: {chains.choice.reason}")
    return chains.advance


def numbers(energy: eb.Energy, chains: int) -> Work:
    """A word for every site of every chain, compiled, into memory at hand."""
    label = labels(energy.event_shape.numel()).unsqueeze(1)
    keys = torch.randint(-(1 << 31), 1 << 31, (2, chains), dtype=torch.int32, generator=generator())
    graph = make_fx(lambda label, keys: [words(label, keys[0], keys[1])])(label, keys)
    compiled = compile_graph(graph, [label, keys])

    def work(n: int) -> None:
        for _ in range(n):
            compiled([label, keys])

    return work


def products(energy: eb.Energy, chains: int) -> Work:
    """The two matrix products of a sweep, into memory at hand."""
    assert isinstance(energy, BernoulliRBM)
    weights = energy.W.detach()
    v, h = torch.rand(chains, len(weights), generator=generator()), torch.empty(chains, weights.shape[1])
    out = torch.empty_like(v)

    def work(n: int) -> None:
        for _ in range(n):
            torch.mm(v, weights, out=h)
            torch.mm(h, weights.mT, out=out)

    return work


class Turn(NamedTuple):
    """Microseconds of a sweep."""

    processor: float
    clock: float


def alternate(peers: Mapping[str, Work], rounds: int, seconds: float) -> dict[str, list[Turn]]:
    """Peers in turn, every second round in reverse order; as many sweeps a turn as fill the seconds."""
    units = {}
    for name, work in peers.items():
        work(1)
        units[name] = max(1, min(1000, round(seconds / max(1e-6, _turn(work, 1).processor * 1e-6))))
        work(units[name])
    times: dict[str, list[Turn]] = {name: [] for name in peers}
    order = list(peers)
    for _ in range(rounds):
        for name in order:
            times[name].append(_turn(peers[name], units[name]))
        order.reverse()
    return times


def _turn(work: Work, units: int) -> Turn:
    gc.collect()
    processor, clock = time.process_time(), time.perf_counter()
    work(units)
    taken = time.process_time() - processor, time.perf_counter() - clock
    return Turn(*(1e6 * t / units for t in taken))


# What is reported.


def measure(name: str, case: Case, rounds: int, seconds: float) -> dict[str, Any]:
    """One case: times of every side, and why a peer is missing."""
    works: dict[str, Work] = {
        "compiled": ours(case, "inductor"),
        "eager": ours(case, "eager"),
        "limit": case.limit(case.energy, case.chains),
    }
    missing = ""
    try:
        works[case.peer] = case.rival(case.energy, case.chains)
    except ImportError as error:
        missing = str(error)
    with torch.no_grad():
        times = alternate(works, rounds, seconds)
    return {"case": name, "title": case.title, "chains": case.chains, "peer": case.peer, "missing": missing,
            "numbers": case.chains * _drawn(case.energy), "times": times}  # fmt: skip


def _drawn(energy: eb.Energy) -> int:
    return energy.event_shape.numel() + (energy.num_hidden if isinstance(energy, BernoulliRBM) else 0)


HEAD = ("case", "side", "us/sweep, processor", "clock", "flips/ns", "peer / it", "clock", "limit / it")


def rows(found: Mapping[str, Any]) -> list[list[str]]:
    """Of one case."""
    times, lines = found["times"], []
    for side, turns in times.items():
        used, clock = ([turn[k] for turn in turns] for k in (0, 1))
        against = by_clock = of_limit = ""
        if side in ("compiled", "eager"):
            of_limit = ratio([turn.processor for turn in times["limit"]], used).text(2)
            against = f"no {found['peer']}"
            if not found["missing"]:
                spread = ratio([turn.processor for turn in times[found["peer"]]], used)
                wanted = WANTED[found["case"]]
                met = "yes" if spread.median >= wanted else "NO"
                against = spread.text(1) + (f" >= {wanted:g} {met}" if side == "compiled" else "")
                by_clock = f"{ratio([turn.clock for turn in times[found['peer']]], clock).median:.1f}"
            if found["case"] == "rbm" and side == "compiled":
                share = ratio([turn.processor for turn in times["limit"]], used).median
                of_limit += f" >= {OF_THE_PRODUCTS} {'yes' if share >= OF_THE_PRODUCTS else 'NO'}"
        speed = found["numbers"] / Spread.of(used).median / 1000
        title = f"{found['title']}, {found['chains']} chains"
        lines.append([title, side, Spread.of(used).text(0), f"{Spread.of(clock).median:.0f}", f"{speed:.3f}", against,
                      by_clock, of_limit])  # fmt: skip
    return lines


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and return what ``--json`` writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="a smoke run of small cases")
    parser.add_argument("--cases", nargs="+", choices=list(WANTED), default=list(WANTED))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="intra-op threads of torch")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", metavar="FILE", help="write all times to FILE")
    options = parser.parse_args(arguments)
    packages = [name for name in ("torch", "ebmppl", "thrml", "jax", "rbms") if _installed(name)]
    where = machine(packages)
    print("\n".join(f"{name}: {value}" for name, value in where.items()))
    rounds, seconds = (3, 0.01) if options.quick else (options.rounds, 0.5)
    print(f"float32; medians [quartiles] of {rounds} alternating rounds; torch.set_num_threads({options.threads})\n")
    before = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    results: list[dict[str, Any]] = []
    try:
        known = cases(quick=options.quick)
        for name in options.cases:
            results.append(measure(name, known[name], rounds, seconds))
            print(f"{name} done, load {os.getloadavg()[0]:.1f}", file=sys.stderr)
    finally:
        torch.set_num_threads(before)
    print(table(HEAD, [line for found in results for line in rows(found)]))
    for found in results:
        if found["missing"]:
            print(f"{found['case']}: without {found['peer']}: {found['missing']}")
    everything = {"machine": where, "load after": os.getloadavg(), "cases": results}
    if options.json:
        save(options.json, everything)
    return everything


def _installed(name: str) -> bool:
    from importlib.util import find_spec

    return find_spec(name) is not None


if __name__ == "__main__":
    main()
