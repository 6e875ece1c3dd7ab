"""Restricted Boltzmann machines on 8x8 digits by exact test log-likelihood, beside scikit-learn's ``BernoulliRBM``.

``python -m tests.benchmarks.rbm_likelihood`` prints a table of mean log-likelihoods over seeds at equal epochs: our losses
beside scikit-learn's persistent contrastive divergence, each at the best of a grid of rates by the likelihood of
validation data. It takes scikit-learn and minutes. Our losses among themselves are compared in ``rbm_order``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from statistics import mean, stdev
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ebmppl.kernels import Gibbs
from ebmppl.losses import CD, PCD, Loss
from ebmppl.models import BernoulliRBM
from ebmppl.partition import Exact
from tests.benchmarks.timing import machine, table

HIDDEN, TEST, VALIDATION = 16, 297, 200
EPOCHS, BATCH, RATE = 300, 260, 0.6  # 1500 steps; with smaller batches it takes longer and ends where this does
GRID = (0.3, 0.6, 1.2, 2.4)
PEER_GRID = (0.05, 0.1, 0.2, 0.4, 0.8)  # it has no falling rate, so that its best is lower
LOSSES: dict[str, Callable[[int], Loss]] = {  # by seed
    "CD-1": lambda seed: CD(1, kernel=Gibbs, seed=seed),
    "CD-10": lambda seed: CD(10, kernel=Gibbs, seed=seed),
    "PCD": lambda seed: PCD(1, kernel=Gibbs, num_chains=500, seed=seed),
}
PEER = "scikit-learn"


class Split(NamedTuple):
    """Binarised digits ``(images, 64)``."""

    train: Tensor
    validation: Tensor
    test: Tensor


def digits(seed: int) -> Split:
    """1300, 200 and 297 digits, split by the seed."""
    from sklearn.datasets import load_digits

    x = torch.tensor(load_digits().data > 7.5).float()
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))]
    return Split(x[TEST + VALIDATION :], x[TEST : TEST + VALIDATION], x[:TEST])


def ours(name: str, train: Tensor, rate: float, seed: int, *, epochs: int = EPOCHS, batch: int = BATCH) -> BernoulliRBM:
    """Plain gradient descent with a rate that falls to a hundredth."""
    generator = torch.Generator().manual_seed(seed)
    rbm = BernoulliRBM(train.shape[1], HIDDEN, generator=generator).init_from_data(train, generator=generator)
    bound = LOSSES[name](seed)(rbm.joint)  # both layers are one sweep
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


def theirs(train: Tensor, rate: float, seed: int, *, epochs: int = EPOCHS, batch: int = BATCH) -> BernoulliRBM:
    """Trained by scikit-learn, as our energy."""
    from sklearn.neural_network import BernoulliRBM as Peer

    peer = Peer(HIDDEN, learning_rate=rate, batch_size=batch, n_iter=epochs, random_state=seed).fit(train.numpy())
    W, b, c = (np.asarray(a) for a in (peer.components_.T, peer.intercept_visible_, peer.intercept_hidden_))
    return BernoulliRBM(train.shape[1], HIDDEN, W=torch.tensor(W), b=torch.tensor(b), c=torch.tensor(c))


def maker(name: str) -> Callable[..., BernoulliRBM]:
    """One of ``LOSSES``, or the peer: a function of data, rate and seed."""
    return theirs if name == PEER else partial(ours, name)


def likelihoods(name: str, rate: float, seeds: Sequence[int], *, hold: bool = True, **settings: int) -> list[Split]:
    """By seed, exact mean log-likelihoods in nats, scalars; ``hold`` says that validation data are not learned from."""
    found = []
    for seed in seeds:
        split = digits(seed)
        data = split.train if hold else torch.cat([split.train, split.validation])
        rbm = maker(name)(data, rate, seed, **settings)
        with torch.no_grad():
            found.append(Split(*(Exact().log_prob(rbm, x.to(rbm.W.dtype)).mean() for x in split)))
    return found


def column(found: Sequence[Split], part: str) -> list[float]:
    """Of one part of the data, by seed."""
    return [float(getattr(of, part)) for of in found]


def over(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """The mean of paired differences, and its standard error."""
    apart = [x - y for x, y in zip(a, b, strict=True)]
    return mean(apart), stdev(apart) / len(apart) ** 0.5


def spread(values: Sequence[float]) -> str:
    """Mean +- standard deviation."""
    return f"{mean(values):.2f} +- {stdev(values):.2f}"


def beside(seeds: range, names: Sequence[str], **settings: int) -> None:
    """Each at the best rate of its grid, by the likelihood of validation data."""
    rows = []
    for name in names:
        tried = {rate: likelihoods(name, rate, seeds, **settings) for rate in (PEER_GRID if name == PEER else GRID)}
        rate = max(tried, key=lambda rate: mean(column(tried[rate], "validation")))
        every = ", ".join(f"{r:g}: {mean(column(found, 'validation')):.2f}" for r, found in tried.items())
        rows.append([name, spread(column(tried[rate], "test")), f"{rate:g}", every])
        print(table(["", "test", "rate", "validation by rate"], rows[-1:]), flush=True)
    print("\nEach at its best rate\n")
    print(table(["", "test", "rate", "validation by rate"], rows))


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of each")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--names", nargs="+", default=[*LOSSES, PEER])
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(", ".join(f"{k} {v}" for k, v in machine(["torch", "sklearn", "numpy"]).items()))
    beside(range(args.seeds), args.names, epochs=args.epochs, batch=args.batch)


if __name__ == "__main__":
    main()
