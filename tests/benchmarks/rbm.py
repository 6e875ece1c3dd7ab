"""Steps per second of a restricted Boltzmann machine of 784 x 500 units beside scikit-learn's ``BernoulliRBM``.

``python -m tests.benchmarks.rbm`` prints the time of one update with batches of 128, where scikit-learn's ``partial_fit``
computes in float64 whatever it is given. It takes scikit-learn. Likelihoods are in ``rbm_likelihood``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch

from ebmppl.kernels import Gibbs
from ebmppl.losses import CD, PCD, Loss
from ebmppl.models import BernoulliRBM
from tests.benchmarks.timing import Spread, alternate, machine, ratio, table


def updates() -> dict[str, Callable[[int], object]]:
    """By name, so many updates at 784 x 500, batch 128."""
    from sklearn.neural_network import BernoulliRBM as Peer

    x = (torch.rand(128, 784, generator=torch.Generator().manual_seed(0)) < 0.2).float()
    peers: dict[str, Callable[[int], object]] = {}

    def of_loss(loss: Loss) -> Callable[[int], object]:
        rbm = BernoulliRBM(784, 500)
        bound: Any = loss(rbm.joint)
        optim = torch.optim.SGD(bound.parameters(), 0.05)

        def work(n: int) -> None:
            for _ in range(n):
                optim.zero_grad()
                bound(x).backward()
                optim.step()

        return work

    peer, rows = Peer(500, learning_rate=0.05, batch_size=128), x.numpy()
    W, both, p = torch.rand(784, 500), torch.cat([x, x]), torch.rand(256, 500)

    def products(n: int) -> None:
        for _ in range(n):
            _ = both[:128] @ W, p[:128] @ W.mT, both[128:] @ W, both.mT @ p

    peers["PCD"] = of_loss(PCD(1, kernel=Gibbs, num_chains=128, seed=0))
    peers["CD-1"] = of_loss(CD(1, kernel=Gibbs, seed=0))
    peers["scikit-learn"] = lambda n: [peer.partial_fit(rows) for _ in range(n)]
    peers["five products alone, float32"] = products  # the limit of a step
    return peers


def speed(rounds: int) -> None:
    """The table of steps per second."""
    torch.set_num_threads(1)
    peers = updates()
    times = alternate(peers, rounds=rounds, seconds=dict.fromkeys(peers, 0.5))
    base = times["scikit-learn"]
    rows = [
        [name, Spread.of([1e6 / t for t in found]).text(1), ratio(base, found).text(2)] for name, found in times.items()
    ]
    print(table(["784 x 500, batch 128", "steps/s", "over scikit-learn"], rows))


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    print(", ".join(f"{k} {v}" for k, v in machine(["torch", "sklearn", "numpy"]).items()), "\n")
    speed(args.rounds)


if __name__ == "__main__":
    main()
