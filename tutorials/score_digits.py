"""A score model of handwritten digits, given the class: samples, how near to the training data, and bits per dimension.

8x8 digits of 17 grey levels are dequantised: x = 2 (level + u) / 17 - 1 with uniform u, drawn anew whenever a digit is
seen, so that levels have a density. One network learns the score for every class and, as labels are dropped at times,
without one; DPM-Solver++ samples it in 20 network calls. The probability flow gives log p(x), and so bits for each pixel:
averaged over u an upper bound for those of the levels themselves. ``score_mnist.py`` does the same with a U-Net.
"""

from __future__ import annotations

import math
import sys
import time
from typing import Any

import torch
from digit_models import (
    CLASSES,
    OUT,
    Dequantised,
    Digits,
    Loader,
    bits,
    draw,
    few_calls_against_many,
    nearest,
    sample,
    through_noise,
    train,
    with_neighbours,
)
from torch import Generator

import ebmppl as eb
from ebmppl.score import EDM, VP, TimeMLP

TRAINED_ON, BATCH = 1500, 150
LEVELS = Dequantised(17)
SDE = VP(0.1, 14.0)
T_MIN = 1e-3  # at which the noise is 0.01, a twelfth of a level


def digits() -> tuple[Digits, Digits]:
    """1500 to learn from and 297 held out."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        sys.exit("The digits come with scikit-learn: pip install scikit-learn")
    found = load_digits()
    order = torch.randperm(len(found.data), generator=Generator().manual_seed(0))
    levels = torch.from_numpy(found.data).float().view(-1, 1, 8, 8)[order]
    label = torch.from_numpy(found.target).long()[order]
    return Digits(levels[:TRAINED_ON], label[:TRAINED_ON]), Digits(levels[TRAINED_ON:], label[TRAINED_ON:])


def learn(data: Digits, epochs: int, hidden: int, label_dropout: float = 0.1) -> EDM:
    """A conditional score model with averaged weights; the more labels are dropped, the more it learns without."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = TimeMLP((1, 8, 8), (hidden,) * 3, num_classes=CLASSES)
    model = EDM(network, SDE, data_std=0.7)
    loader = Loader(data, LEVELS, BATCH)
    loss = eb.DiffusionScoreMatching("edm", label_dropout=label_dropout, low_discrepancy=True, seed=0)
    train(model, loss, loader, epochs * len(loader), rate=2e-3, ema=0.998)
    return model


def classifier(data: Digits) -> Any:
    """Logistic regression of real digits."""
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(max_iter=500).fit((data.levels / 16).flatten(1).numpy(), data.label.numpy())


def accuracy(found: Any, data: Digits) -> float:
    return float(found.score((data.levels / 16).flatten(1).numpy(), data.label.numpy()))


def main(epochs: int = 500, hidden: int = 256, each: int = 12, scored: int = 100, many: int = 500) -> int:
    began = time.perf_counter()
    OUT.mkdir(exist_ok=True)
    data, held_out = digits()
    model = learn(data, epochs, hidden)
    x, label = sample(model, each, T_MIN)
    made = Digits(LEVELS.levels_of(x), label)
    found = classifier(data)
    right, real = accuracy(found, made), accuracy(found, held_out)
    print(f"A classifier of real digits is right for {right:.3f} of the samples, for {real:.3f} of held-out digits.")
    neighbours, apart = nearest(made.levels, data)
    least, usual = float(apart.median()), float(nearest(held_out.levels, data)[1].median())
    print(f"Nearest training digit, median distance in levels: of samples {least:.2f}, of held-out digits {usual:.2f}.")
    x = LEVELS(held_out.levels, Generator().manual_seed(4))
    by, worse = few_calls_against_many(model, x, held_out.label, T_MIN, many)
    print(
        f"Squared MMD to held-out digits, 20 calls of DPM-Solver++ less {many} of Euler-Maruyama: "
        f"{by.value:+.5f} +- {by.error:.5f}, p = {worse:.3f} for no worse."
    )
    for name, some in (("training", data), ("held-out", held_out)):
        x = LEVELS(some.levels[:scored], Generator().manual_seed(2))
        mean, error = bits(model, SDE, x, LEVELS.scale, rtol=1e-3, atol=1e-3, t_min=T_MIN, probes=4)
        print(
            f"{name} digits: {mean:.3f} +- {error:.3f} bits per dimension; uniform levels have {math.log2(LEVELS.count):.2f}."
        )
    x, noise = through_noise(model, 8, T_MIN)
    panels = {
        f"out of noise: noise / signal {noise[0]:.0f} to {noise[-1]:.2g}": (LEVELS.levels_of(x), 8),
        "samples, a row for each class": (made.levels, each),
        "samples, and under each row the nearest training digits": (with_neighbours(made.levels, neighbours), 6),
    }
    draw(panels, LEVELS.count - 1, OUT / "score_digits.png")
    print(f"Wrote {OUT}/score_digits.png in {time.perf_counter() - began:.0f} s.")
    return 0 if right > 0.8 else 1


if __name__ == "__main__":
    sys.exit(main())
