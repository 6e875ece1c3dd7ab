"""Restricted Boltzmann machines on 8x8 digits by exact test log-likelihood, and steps per second of a large one.

``python -m tests.benchmarks.rbm`` prints two tables, both beside scikit-learn's ``BernoulliRBM`` (its own persistent
contrastive divergence): mean log-likelihoods over seeds with standard deviations, at equal epochs, each side at the best
of some learning rates; and the time of one update at 784 x 500 units with batches of 128, where scikit-learn's
``partial_fit`` computes in float64 whatever it is given. It takes scikit-learn and minutes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from statistics import mean, stdev
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ebmppl.kernels import Gibbs
from ebmppl.losses import CD, PCD, Loss
from ebmppl.models import BernoulliRBM
from ebmppl.partition import Exact
from tests.benchmarks.timing import Spread, alternate, machine, ratio, table

HIDDEN, TEST = 16, 297
LOSSES: dict[str, Callable[[int, int], Loss]] = {  # by batch size and seed
    "CD-1": lambda batch, seed: CD(1, kernel=Gibbs, seed=seed),
    "CD-10": lambda batch, seed: CD(10, kernel=Gibbs, seed=seed),
    "PCD": lambda batch, seed: PCD(1, kernel=Gibbs, num_chains=500, seed=seed),
}


def digits(seed: int) -> tuple[Tensor, Tensor]:
    """Binarised digits ``(images, 64)`` to train with and to test, split by the seed."""
    from sklearn.datasets import load_digits

    x = torch.tensor(load_digits().data > 7.5).float()
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))]
    return x[TEST:], x[:TEST]


def ours(name: str, train: Tensor, rate: float, batch: int, epochs: int, seed: int) -> BernoulliRBM:
    """Plain gradient descent with a rate that falls to 0."""
    generator = torch.Generator().manual_seed(seed)
    rbm = BernoulliRBM(train.shape[1], HIDDEN, generator=generator).init_from_data(train, generator=generator)
    bound = LOSSES[name](batch, seed)(rbm.joint)  # both layers are one sweep
    optim = torch.optim.SGD(bound.parameters(), rate)
    steps = epochs * -(-len(train) // batch)
    schedule = torch.optim.lr_scheduler.LinearLR(optim, 1.0, 0.01, steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(train), generator=generator).split(batch):
            optim.zero_grad()
            bound(train[rows]).backward()
            optim.step()
            schedule.step()
    return rbm


def theirs(train: Tensor, rate: float, batch: int, epochs: int, seed: int) -> BernoulliRBM:
    """Trained by scikit-learn, as our energy."""
    from sklearn.neural_network import BernoulliRBM as Peer

    peer = Peer(HIDDEN, learning_rate=rate, batch_size=batch, n_iter=epochs, random_state=seed).fit(train.numpy())
    W, b, c = (np.asarray(a) for a in (peer.components_.T, peer.intercept_visible_, peer.intercept_hidden_))
    return BernoulliRBM(train.shape[1], HIDDEN, W=torch.tensor(W), b=torch.tensor(b), c=torch.tensor(c))


def likelihood(rbm: BernoulliRBM, x: Tensor) -> float:
    """Mean log-likelihood in nats, exact."""
    with torch.no_grad():
        return float(Exact().log_prob(rbm, x.to(rbm.W.dtype)).mean())


class Found(NamedTuple):
    """Of one learning rate, by seed."""

    train: list[float]
    test: list[float]


def found(make: Callable[..., BernoulliRBM], seeds: range, *settings: Any) -> Found:
    """Mean log-likelihoods in nats."""
    both = Found([], [])
    for seed in seeds:
        train, test = digits(seed)
        rbm = make(train, *settings, seed)
        both.train.append(likelihood(rbm, train))
        both.test.append(likelihood(rbm, test))
    return both


def quality(epochs: int, seeds: int, tuned: int, rates: list[float], batch: int) -> None:
    """The table of likelihoods; rates are chosen by the training data's on the first ``tuned`` seeds."""
    makers: dict[str, Callable[..., BernoulliRBM]] = {name: partial(ours, name) for name in LOSSES}
    makers["scikit-learn"] = theirs
    head, rows = ["", "test, nats", "over CD-1, by seed", "training, nats", "rate", "all rates, training"], []
    of_cd: list[float] = []
    for name, make in makers.items():
        tried = {rate: found(make, range(tuned), rate, batch, epochs) for rate in rates}
        rate = max(tried, key=lambda rate: mean(tried[rate].train))
        more = found(make, range(tuned, seeds), rate, batch, epochs)
        best = Found(*(a + b for a, b in zip(tried[rate], more, strict=True)))
        of_cd = of_cd or best.test
        over = _spread([a - b for a, b in zip(best.test, of_cd, strict=True)])
        others = ", ".join(f"{mean(of.train):.2f}" for of in tried.values())
        rows.append([name, _spread(best.test), over, _spread(best.train), f"{rate:g}", others])
        print(table(head, rows[-1:]), flush=True)
    print(f"\n{seeds} seeds, {epochs} epochs of batches of {batch}; +- standard deviations over seeds\n")
    print(table(head, rows))


def _spread(values: list[float]) -> str:
    return f"{mean(values):.2f} +- {stdev(values):.2f}" if len(values) > 1 else f"{values[0]:.2f}"


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
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tuned", type=int, default=2, help="seeds that choose the rate")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.1, 0.3, 1.0])
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", choices=["quality", "speed"])
    args = parser.parse_args()
    print(", ".join(f"{k} {v}" for k, v in machine(["torch", "sklearn", "numpy"]).items()), "\n")
    if args.only != "speed":
        quality(args.epochs, args.seeds, min(args.tuned, args.seeds), args.rates, args.batch)
    if args.only != "quality":
        speed(args.rounds)


if __name__ == "__main__":
    main()
