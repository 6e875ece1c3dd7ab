"""CD-1, CD-10 and PCD by exact likelihood of 8x8 digits, each with the best of a grid of settings by validation data.

``python -m tests.benchmarks.rbm_order`` trains restricted Boltzmann machines of 16 hidden units, all rates and seeds side by
side. For each seed, which is a split of the digits, each loss takes the rate and the number of epochs by which the
likelihood of the 200 validation digits is largest; only then is the likelihood of the 297 test digits computed, of that
machine alone. It takes scikit-learn and half an hour.
"""

from __future__ import annotations

import argparse
from collections import Counter
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

RATES = (0.1, 0.2, 0.4, 0.8)  # at the start; they fall to a hundredth
EPOCHS = (300, 1000)
BATCH = 100


class Setting(NamedTuple):
    """Of one machine."""

    epochs: int
    rate: float

    def __str__(self) -> str:
        return f"{self.epochs} x {self.rate:g}"


class Chosen(NamedTuple):
    """Of one seed: what was chosen, and exact mean log-likelihoods in nats."""

    setting: Setting
    train: float
    validation: float
    test: float


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


def choose(name: str, settings: Sequence[Setting], seeds: Sequence[int]) -> tuple[dict[Setting, float], list[Chosen]]:
    """By setting the mean over seeds of validation likelihoods, and what is chosen by them for each seed."""
    machines: dict[tuple[Setting, int], BernoulliRBM] = {}
    for epochs in sorted({setting.epochs for setting in settings}):
        rates = [setting.rate for setting in settings if setting.epochs == epochs]
        found = trained(name, rates, seeds, epochs)
        machines |= {(Setting(epochs, rate), seed): rbm for (rate, seed), rbm in found.items()}
    splits = {seed: digits(seed) for seed in seeds}
    validation = {(s, seed): likelihood(rbm, splits[seed].validation) for (s, seed), rbm in machines.items()}
    chosen = []
    for seed in seeds:
        best = max(settings, key=lambda s, seed=seed: validation[s, seed])
        train, test = (likelihood(machines[best, seed], x) for x in (splits[seed].train, splits[seed].test))
        chosen.append(Chosen(best, train, validation[best, seed], test))
    return {s: mean(validation[s, seed] for seed in seeds) for s in settings}, chosen


def said_over(values: Sequence[float], first: Sequence[float]) -> str:
    """The mean difference, its standard error and the p-value of a paired one-sided t test."""
    gain, error = over(values, first)
    p = float(stats.ttest_rel(values, first, alternative="greater").pvalue)
    return f"{gain:+.3f} +- {error:.3f} (p = {p:.2g})"


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--epochs", type=int, nargs="+", default=EPOCHS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="seed")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(", ".join(f"{k} {v}" for k, v in machine(["torch", "sklearn"]).items()))
    settings = [Setting(*pair) for pair in product(args.epochs, args.rates)]
    seeds, rows, first = range(args.first, args.first + args.seeds), [], None
    for name in LOSSES:
        by_setting, chosen = choose(name, settings, seeds)
        columns = {part: [float(getattr(c, part)) for c in chosen] for part in ("train", "validation", "test")}
        gains = ["", ""] if first is None else [said_over(columns[p], first[p]) for p in ("train", "test")]
        first = first or columns
        often = ", ".join(f"{s} ({n})" for s, n in Counter(c.setting for c in chosen).most_common())
        rows.append([name, *(spread(values) for values in columns.values()), *gains, often])
        print(f"\n{name}: mean validation by epochs x rate:", {str(s): round(v, 3) for s, v in by_setting.items()})
        for seed, of in zip(seeds, chosen, strict=True):
            print(seed, of.setting, *(f"{value:.4f}" for value in of[1:]), flush=True)
    print(f"\nNats; +- standard deviations over {len(seeds)} seeds, of differences standard errors\n")
    over_first = [f"{part} over {rows[0][0]}" for part in ("training", "test")]
    print(table(["", "training", "validation", "test", *over_first, "epochs x rate (seeds)"], rows))


if __name__ == "__main__":
    main()
