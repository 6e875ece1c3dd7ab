"""Steps per second of a restricted Boltzmann machine of 784 x 500 units beside scikit-learn's ``BernoulliRBM``.

``python -m tests.benchmarks.rbm`` tells what one update with batches of 128 takes, by the clock and in processor time,
where scikit-learn's ``partial_fit`` computes in float64 whatever it is given. It takes scikit-learn; all use one thread.
Peers take turns, each in a process of its own, as its user has it: whether glibc keeps the memory of large arrays or gives
it back to the system at every step (see the page faults) depends on what else a process allocates. ``--together`` puts
all in one. Likelihoods are in ``rbm_likelihood``.
"""

from __future__ import annotations

import argparse
import gc
import os
import resource
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch

from ebmppl.kernels import Gibbs
from ebmppl.losses import CD, PCD, Loss
from ebmppl.models import BernoulliRBM
from tests.benchmarks.timing import Spread, Work, machine, ratio, table

PEER = "scikit-learn"
UNITS, BATCH = (784, 500), 128
WARM = 10  # steps before any that is timed


class Cost(NamedTuple):
    """Of one unit of work."""

    clock: float  # ms
    processor: float  # ms
    faults: float  # of pages


def of_loss(loss: Loss, x: torch.Tensor) -> Work:
    """Updates by a loss."""
    bound: Any = loss(BernoulliRBM(*UNITS).joint)
    optim = torch.optim.SGD(bound.parameters(), 0.05)

    def work(n: int) -> None:
        for _ in range(n):
            optim.zero_grad()
            bound(x).backward()
            optim.step()

    return work


def of_peer(x: torch.Tensor) -> Work:
    """Updates by scikit-learn."""
    from sklearn.neural_network import BernoulliRBM as Peer

    peer, rows = Peer(UNITS[1], learning_rate=0.05, batch_size=BATCH), x.numpy()
    return lambda n: [peer.partial_fit(rows) for _ in range(n)]


def products(x: torch.Tensor, dtype: torch.dtype) -> Work:
    """The matrix products of an update alone."""
    x = x.to(dtype)
    W, p = (torch.rand(shape, dtype=dtype) for shape in (UNITS, (BATCH, UNITS[1])))

    def work(n: int) -> None:
        for _ in range(n):
            _ = x @ W, p @ W.mT, x @ W, (x.mT @ p).addmm_(x.mT, p)

    return work


PEERS: dict[str, Callable[[torch.Tensor], Work]] = {
    "PCD": lambda x: of_loss(PCD(1, kernel=Gibbs, num_chains=BATCH, seed=0), x),
    "CD-1": lambda x: of_loss(CD(1, kernel=Gibbs, seed=0), x),
    PEER: of_peer,
    "five products alone, float32": lambda x: products(x, torch.float32),  # the limit of a step
    "five products alone, float64": lambda x: products(x, torch.float64),  # and of scikit-learn's
}


def work_of(name: str) -> Work:
    """A peer's, warm."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    work = PEERS[name]((torch.rand(BATCH, UNITS[0], generator=generator) < 0.2).float())
    work(WARM)
    return work


def _used() -> tuple[float, float, int]:
    own = resource.getrusage(resource.RUSAGE_SELF)
    return 1e3 * time.perf_counter(), 1e3 * (own.ru_utime + own.ru_stime), own.ru_minflt


def turn(work: Work, units: int) -> Cost:
    """What so many units cost, for one."""
    gc.collect()
    before = _used()
    work(units)
    return Cost(*((b - a) / units for a, b in zip(before, _used(), strict=True)))


def _serve(name: str, asked: Connection) -> None:
    work = work_of(name)
    while units := asked.recv():
        asked.send(turn(work, units))


def _apart(name: str, stack: ExitStack) -> Callable[[int], Cost]:
    """A peer in a process of its own."""
    here, there = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=_serve, args=(name, there), daemon=True)
    process.start()

    def end() -> None:
        here.send(0)
        process.join()

    def ask(units: int) -> Cost:
        here.send(units)
        return here.recv()

    stack.callback(end)
    ask(1)
    return ask


def costs(rounds: int, units: int, *, together: bool) -> dict[str, list[Cost]]:
    """By peer, one of each round; every second round is in reverse order."""
    found: dict[str, list[Cost]] = {name: [] for name in PEERS}
    with ExitStack() as stack:
        turns: dict[str, Callable[[int], Cost]] = {}
        for name in PEERS:
            work = work_of(name) if together else None
            turns[name] = (lambda n, work=work: turn(work, n)) if work is not None else _apart(name, stack)
        order = list(PEERS)
        for _ in range(rounds):
            for name in order:
                found[name].append(turns[name](units))
            order.reverse()
    return found


def main(arguments: Sequence[str] | None = None) -> dict[str, list[Cost]]:
    """Parse the command line, measure, print, and return what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=25, help="of one turn")
    parser.add_argument("--together", action="store_true", help="all in one process")
    args = parser.parse_args(arguments)
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    print(", ".join(f"{k} {v}" for k, v in machine(["torch", "sklearn", "numpy"]).items()), "\n")
    found = costs(args.rounds, args.steps, together=args.together)
    base = found[PEER]
    rows = []
    for name, own in found.items():
        clock, processor, faults = map(Spread.of, zip(*own, strict=True))
        over = [ratio([of[i] for of in base], [of[i] for of in own]).text(2) for i in (0, 1)]
        rows.append(
            [name, f"{1e3 / clock.median:.1f}", clock.text(1), processor.text(1), *over, f"{faults.median:.0f}"]
        )
    beside = ["over scikit-learn", "by processor time"]
    head = ["784 x 500, batch 128", "steps/s", "ms by the clock", "ms of the processor", *beside, "page faults"]
    print(table(head, rows))
    return found


if __name__ == "__main__":
    main()
