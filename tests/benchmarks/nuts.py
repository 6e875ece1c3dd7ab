"""Our NUTS next to NumPyro's, BlackJAX's, nutpie's and Pyro's: smallest effective draws per second, warm and cold.

    python -m tests.benchmarks.nuts [--quick] [--problems a b c d e] [--chains 4 64 512] [--ways cold warm] [--pairs 5]
        [--peers numpyro numpyro-parallel blackjax blackjax-parallel nutpie pyro pyro-jit pyro-processes] [--json FILE]

(a) logistic regression 1000x25, (b) Gaussian in 100 dimensions, condition number 1e4, (c) Neal's funnel, (d) eight
schools and (e) a regression of 205 latents, for ours and Pyro's from the Pyro model, for the others a log density. Every
sampler at its own defaults (target acceptance 0.8, depth 10), 500 + 500 draws, float32, begun at uniform(-2, 2) in the
unconstrained space.

Every run of every side happens in a process of that side alone, one process at work at a time. Cold: its first run,
with no compiled code on disk. Warm: the second run in the process; ours over the same callable with new ``as_energy``,
``NUTS`` and ``MCMC`` and another seed, the peers with what they compiled (a new ``MCMC`` of NumPyro's compiles again).
Sides take turns, every second pair in reverse order; ratios are taken pair by pair: medians [quartiles].

Effective draws: ArviZ's bulk ESS, the smallest of all coordinates. Seconds: from the call to draws on the host.
Neither they nor the ratios that are judged count imports and the making of data, on any side (modules that a library
imports late, in its run, count); the column "with imports" counts everything from the new process's start.
Used: gradients of the kept draws' trees over those computed in the sampling phase, the last chains' tail included, next
to mean over maximum of the chains' own gradients, the bound of samplers whose chains tick until the last one has its
draws (in parts ours leave out ticks). For samplers whose chains wait for the deepest tree of each draw, their most.
Chains of Pyro's and nutpie's have nothing in common: their rates are those of one to four chains, times as many as asked
for would take as much longer. Of several numbers of chains they are measured at one, 64 where it is among them.
All cells take many hours on two cores, with JAX's and 512 chains most of them.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that the script runs from a checkout

from tests.benchmarks.peers import SIDES, Effort
from tests.benchmarks.posteriors import POSTERIORS
from tests.benchmarks.report import Findings, Verdict, head, notes, rows, verdicts
from tests.benchmarks.timing import machine, save
from tests.benchmarks.worker import Failed, Worker

CHAINS, WAYS = (4, 64, 512), ("cold", "warm")
PEERS = tuple(side for side in SIDES if side != "blackjax-parallel")
QUICK = {"problems": ["d"], "chains": [4], "pairs": 1, "peers": ["blackjax", "pyro-jit"], "draws": 40, "limit": 300.0}
FULL = {
    "problems": list(POSTERIORS),
    "chains": list(CHAINS),
    "pairs": 5,
    "peers": list(PEERS),
    "draws": 500,
    "limit": 3600.0,
}


class Cell:
    """One posterior at one number of chains.

    Args:
        key: of the posterior.
        effort: size of a run.
        sides: "ours", its peers, and "gradient" if ticks are to be compared with it.
        ways: "cold", "warm" or both.
        limit: most seconds of one run.
    """

    def __init__(self, key: str, effort: Effort, sides: Sequence[str], ways: Sequence[str], limit: float) -> None:
        self.key, self.effort, self.sides, self.ways, self.limit = key, effort, sides, ways, limit
        self.findings: dict[str, dict[str, list[dict[str, Any]]]] = {
            side: {way: [] for way in (ways if side != "gradient" else ["warm"])} for side in sides
        }
        self.failed: dict[str, str] = {}
        self._kept: dict[str, Worker] = {}

    def measure(self, pairs: int) -> Findings:
        """So many turns of every side; a side that fails has no more."""
        with ExitStack() as stack:
            for pair in range(pairs):
                for side in self.sides if pair % 2 == 0 else self.sides[::-1]:
                    if side in self.failed:
                        continue
                    try:
                        self._turn(side, pair, stack)
                    except Failed as error:
                        self.failed[side] = str(error)
                        self.findings[side] = {}
        self._kept.clear()
        return self.findings

    def _turn(self, side: str, pair: int, stack: ExitStack) -> None:
        found, seed = self.findings[side], 2 * pair
        with self._worker(side, stack) as (worker, fresh):
            if fresh:
                first = worker.run(seed)
                if "cold" in found:
                    found["cold"].append(first)
            if "warm" in found:
                found["warm"].append(worker.run(seed + 1))

    @contextmanager
    def _worker(self, side: str, stack: ExitStack) -> Iterator[tuple[Worker, bool]]:
        """A process and whether it is new; one that is never cold serves all pairs."""
        if "cold" in self.findings[side]:
            with Worker(side, self.key, self.effort, self.limit) as worker:
                yield worker, True
            return
        fresh = side not in self._kept
        if fresh:
            self._kept[side] = stack.enter_context(Worker(side, self.key, self.effort, self.limit))
        yield self._kept[side], fresh


def sides_of(key: str, chains: int, options: argparse.Namespace) -> list[str]:
    """Who takes part in a cell, ours first."""
    alone = 64 if 64 in options.chains else options.chains[0]
    found = ["ours"]
    for peer in options.peers:
        if peer.startswith(("nutpie", "pyro")) and chains != alone:
            continue
        found.append(peer)
    if key == "a" and "warm" in options.ways and not options.no_gradient:
        found.append("gradient")
    return found


def arguments_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Options, with what ``--quick`` or a full run chooses where nothing is given."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="a smoke run")
    parser.add_argument("--problems", nargs="+", choices=list(POSTERIORS), help="posteriors, a to e")
    parser.add_argument("--chains", nargs="+", type=int)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--peers", nargs="*", choices=list(SIDES), help="none: ours alone")
    parser.add_argument("--pairs", type=int, help="turns of every side")
    parser.add_argument("--draws", type=int, help="of each chain, after as many in warm-up")
    parser.add_argument("--backend", default="auto", help="ours")
    parser.add_argument("--limit", type=float, help="most seconds of one run")
    parser.add_argument("--no-gradient", action="store_true", help="don't compare (a)'s ticks with the bare gradient")
    parser.add_argument("--json", metavar="FILE", help="write all findings to FILE, after every cell")
    options = parser.parse_args(arguments)
    for name, value in (QUICK if options.quick else FULL).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and return what ``--json`` writes."""
    options = arguments_of(arguments)
    if "nutpie" in options.peers and find_spec("nutpie") is None:
        options.peers.remove("nutpie")
        print("nutpie is not installed: left out")
    libraries = ("torch", "jax", "numpyro", "blackjax", "nutpie", "pyro-ppl", "arviz", "ebmppl")
    where = machine([name for name in libraries if name != "nutpie" or find_spec("nutpie")])
    print("\n".join(f"{name}: {value}" for name, value in where.items()))
    print(f"{options.draws}+{options.draws} draws, float32; medians [quartiles] of {options.pairs} alternating pairs")
    print("(ratios count no imports, on any side; 'with imports' all from the process's start)\n")
    print(head(), flush=True)
    results: dict[str, Any] = {"machine": where, "options": vars(options), "cells": []}
    judged: list[Verdict] = []
    for chains in options.chains:
        for key in options.problems:
            effort = Effort(chains, options.draws, options.draws, options.backend)
            cell = Cell(key, effort, sides_of(key, chains, options), options.ways, options.limit)
            findings = cell.measure(options.pairs)
            found = verdicts(key, chains, findings)
            judged += found
            for line in rows(key, chains, findings):
                print(line)
            told = [*notes(findings), *(f"{side} FAILED: {why}" for side, why in cell.failed.items())]
            told += [verdict.text() for verdict in found]
            print("\n".join(f"  {line}" for line in told), flush=True)
            lines = [{**verdict._asdict(), "found": verdict.found._asdict(), "met": verdict.met} for verdict in found]
            results["cells"].append(
                {"problem": key, "chains": chains, "sides": findings, "failed": cell.failed, "verdicts": lines}
            )
            if options.json:
                save(options.json, results)
    print("\nTargets\n")
    for verdict in judged:
        if verdict.wanted is not None:
            print(verdict.text())
    return results


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no process outlives this one
    main()
