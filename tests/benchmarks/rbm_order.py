"""CD-1, CD-10 and PCD by exact likelihood of 8x8 digits, each at the best of a grid of settings by validation data.

``python -m tests.benchmarks.rbm_order`` trains restricted Boltzmann machines of 16 hidden units, several side by side.
Each loss takes the rate and the number of epochs whose mean likelihood of 200 validation digits is the largest over five
splits of the digits. With these settings it then learns other splits, and only of these the test digits are looked at.
It takes scikit-learn and ten minutes. Validation can't tell CD-10's 0.4 from its 0.8: either may be taken.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import product
from statistics import mean
from typing import NamedTuple

import torch
from scipy import stats
from torch import Tensor

from ebmppl.models import BernoulliRBM
from ebmppl.partition import Exact
from tests.benchmarks.rbm_likelihood import HIDDEN, LOSSES, digits, over, spread
from tests.benchmarks.side_by_side import SideBySide
from tests.benchmarks.timing import machine, table

BATCH = 100


class Setting(NamedTuple):
    """Of one machine."""

    epochs: int
    rate: float

    def __str__(self) -> str:
        return f"{self.epochs} x {self.rate:g}"


def grid(epochs: int, *rates: float) -> list[Setting]:
    """Settings of so many epochs."""
    return [Setting(epochs, rate) for rate in rates]


GRIDS = {  # 1000 epochs for CD-1 alone: the others are above it with 300 already
    "CD-1": [*grid(300, 0.4, 0.8, 1.6), *grid(1000, 0.2, 0.4, 0.8)],
    "CD-10": grid(300, 0.4, 0.8, 1.6),
    "PCD": grid(300, 0.4, 0.8, 1.6),
}


@torch.no_grad()
def likelihood(rbm: BernoulliRBM, x: Tensor) -> float:
    """The exact mean log-likelihood of digits, in nats."""
    return float(Exact().log_prob(rbm, x.to(rbm.W.dtype)).mean())


def trained(
    name: str, rates: Sequence[float], seeds: Sequence[int], epochs: int, *, batch: int = BATCH
) -> dict[tuple[float, int], BernoulliRBM]:
    """By rate and seed, machines that are trained by plain gradient descent with rates that fall to a hundredth."""
    x = [digits(seed).train for seed in seeds]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    begun = [
        BernoulliRBM(rows.shape[1], HIDDEN, generator=generator).init_from_data(rows, generator=generator)
        for rows, generator in zip(x, generators, strict=True)
    ]
    model = SideBySide(begun * len(rates))
    bound = LOSSES[name](seeds[0])(model.joint)
    scale = torch.tensor(rates).repeat_interleave(len(seeds))
    for parameter in model.parameters():  # a rate for each machine
        parameter.register_hook(lambda grad: grad * scale.view(-1, *[1] * (grad.dim() - 1)))
    optim = torch.optim.SGD(bound.parameters(), 1.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optim, 1.0, 0.01, epochs * -(-len(x[0]) // batch))
    for _ in range(epochs):
        orders = [torch.randperm(len(rows), generator=g) for rows, g in zip(x, generators, strict=True)]
        epoch = torch.cat([rows[order] for rows, order in zip(x, orders, strict=True)], 1).repeat(1, len(rates))
        for rows in epoch.split(batch):
            optim.zero_grad()
            bound(rows).backward()
            optim.step()
            schedule.step()
    return {key: model.machine(i) for i, key in enumerate(product(rates, seeds))}


def chosen(name: str, seeds: Sequence[int]) -> Setting:
    """Of the grid the best by the mean likelihood of validation digits; prints all."""
    found: dict[Setting, float] = {}
    for epochs in sorted({setting.epochs for setting in GRIDS[name]}):
        rates = [setting.rate for setting in GRIDS[name] if setting.epochs == epochs]
        machines = trained(name, rates, seeds, epochs)
        for rate in rates:
            found[Setting(epochs, rate)] = mean(
                likelihood(machines[rate, seed], digits(seed).validation) for seed in seeds
            )
    print(f"{name}, validation by epochs x rate:", ", ".join(f"{s}: {v:.3f}" for s, v in found.items()), flush=True)
    return max(found, key=lambda setting: found[setting])


def learned(name: str, setting: Setting, seeds: Sequence[int]) -> dict[str, list[float]]:
    """Exact likelihoods of training and test digits by seed."""
    machines = trained(name, [setting.rate], seeds, setting.epochs)
    splits = {seed: digits(seed) for seed in seeds}
    parts = ("train", "test")
    return {p: [likelihood(machines[setting.rate, seed], getattr(splits[seed], p)) for seed in seeds] for p in parts}


def said_over(values: Sequence[float], first: Sequence[float]) -> str:
    """The mean difference, its standard error and the p-value of a paired one-sided t test."""
    gain, error = over(values, first)
    p = float(stats.ttest_rel(values, first, alternative="greater").pvalue)
    return f"{gain:+.3f} +- {error:.3f} (p = {p:.2g})"


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--choose", type=int, default=5, help="splits whose validation digits choose")
    parser.add_argument("--seeds", type=int, default=20, help="splits after these whose test digits are looked at")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(", ".join(f"{k} {v}" for k, v in machine(["torch", "sklearn"]).items()))
    settings = {name: chosen(name, range(args.choose)) for name in LOSSES}
    found = {name: learned(name, settings[name], range(args.choose, args.choose + args.seeds)) for name in LOSSES}
    for name, by_part in found.items():
        print(name, "test by seed:", [round(value, 3) for value in by_part["test"]])
    for n in sorted({min(5, args.seeds), args.seeds}):
        rows, first = [], found[next(iter(LOSSES))]
        for name, by_part in found.items():
            parts = {part: values[:n] for part, values in by_part.items()}
            gains = ["" if by_part is first else said_over(v, first[p][:n]) for p, v in parts.items()]
            rows.append([name, str(settings[name]), *(spread(values) for values in parts.values()), *gains])
        print(f"\n{n} splits, nats; +- standard deviations, of paired differences standard errors\n")
        print(
            table(["", "epochs x rate", "training", "test", "training over CD-1", "test over CD-1"], rows), flush=True
        )


if __name__ == "__main__":
    main()
