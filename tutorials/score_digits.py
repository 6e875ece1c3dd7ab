"""A score model of handwritten digits, given the class: samples, how near to the training data, and bits per dimension.

8x8 digits of 17 grey levels are dequantised: x = 2 (level + u) / 17 - 1 with uniform u, drawn anew whenever a digit is
seen, so that levels have a density. One network learns the score for every class and, as labels are dropped at times,
without one; DPM-Solver++ samples it in 20 network calls. The probability flow gives log p(x), and so bits for each pixel:
averaged over u an upper bound for those of the levels themselves.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import matplotlib.pyplot as plt
import torch
from torch import Generator, Tensor

import ebmppl as eb
from ebmppl.score import EDM, VP, TimeMLP, log_snr_times

mpl.use("Agg")
OUT = Path("out")
LEVELS, TRAINED_ON, BATCH, CLASSES = 17, 1500, 150, 10
SCALE = 2 / LEVELS  # of a level in x
SDE = VP(0.1, 14.0)
T_MIN = 1e-3  # at which the noise is 0.01, a twelfth of a level


class Digits(NamedTuple):
    """Levels 0 to 16 ``(rows, 1, 8, 8)`` and labels ``(rows,)``."""

    levels: Tensor
    label: Tensor


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


def dequantised(levels: Tensor, generator: Generator) -> Tensor:
    """X in [-1, 1]."""
    return SCALE * (levels + torch.rand(levels.shape, generator=generator)) - 1


class Loader:
    """Batches of points and labels, in another order and with other noise in each epoch."""

    def __init__(self, data: Digits) -> None:
        self.data, self.generator = data, Generator().manual_seed(0)  # ``fit`` saves the generator with a run

    def __len__(self) -> int:
        return -(-len(self.data.label) // BATCH)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for rows in torch.randperm(len(self.data.label), generator=self.generator).split(BATCH):
            yield {"x": dequantised(self.data.levels[rows], self.generator), "label": self.data.label[rows]}


def train(data: Digits, epochs: int, hidden: int, label_dropout: float = 0.1) -> EDM:
    """A conditional score model with averaged weights; the more labels are dropped, the more it learns without."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = TimeMLP((1, 8, 8), (hidden,) * 3, num_classes=CLASSES)
    model = EDM(network, SDE, data_std=0.7)
    loader = Loader(data)
    steps = epochs * len(loader)
    run = eb.fit(
        eb.DiffusionScoreMatching("edm", label_dropout=label_dropout, low_discrepancy=True, seed=0), model, loader, epochs=epochs,
        ema=0.998, progress=False, optimizer=partial(torch.optim.Adam, lr=2e-3),
        schedule=lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps),
    )  # fmt: skip
    records = run.run()
    assert run.ema is not None
    run.ema.put()  # what is sampled and evaluated has the averaged weights from here on
    last = [record.loss for record in records[-len(loader) :]]
    print(f"Loss {records[0].loss:.2f} -> {sum(last) / len(last):.2f} in {sum(r.seconds for r in records):.0f} s.")
    return model


def sample(model: EDM, label: int, n: int) -> Tensor:
    """Digits of one class ``(n, 1, 8, 8)``, in 20 network calls."""

    def score(x: Tensor, t: Tensor) -> Tensor:
        return model(x, t, torch.full((len(x),), label))

    kernel = eb.ProbabilityFlow(score, SDE, (1, 8, 8), 20, t_min=T_MIN, times=log_snr_times)
    return eb.generate(kernel, n, seed=label)


def classifier(data: Digits) -> Any:
    """Logistic regression of real digits."""
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(max_iter=500).fit((data.levels / 16).flatten(1).numpy(), data.label.numpy())


def levels_of(x: Tensor) -> Tensor:
    """The levels 0 to 16 whose interval x is in, with what is out of range at the ends."""
    return ((x + 1) / SCALE).floor().clamp(0, LEVELS - 1)


def accuracy(found: Any, data: Digits) -> float:
    return float(found.score((data.levels / 16).flatten(1).numpy(), data.label.numpy()))


def nearest(x: Tensor, data: Digits) -> tuple[Tensor, Tensor]:
    """Each one's nearest digit of the training data and their distance, in root mean square levels."""
    apart = torch.cdist(x.flatten(1), data.levels.flatten(1)) / 8
    distance, at = apart.min(1)
    return data.levels[at], distance


def tiles(images: Tensor, columns: int) -> Tensor:
    """A picture ``(height, width)`` of images, row by row."""
    framed = torch.nn.functional.pad(images[:, 0], (1, 1, 1, 1), value=math.nan)
    return torch.cat([torch.cat(list(row), 1) for row in framed.split(columns)], 0)


def draw(samples: Tensor, neighbours: Tensor, path: Path) -> None:
    """Samples, a row for each class; and some with their nearest neighbours under them."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 5.4))
    each = len(samples) // CLASSES
    some = torch.arange(each * CLASSES).view(CLASSES, each)[:, :3].flatten()  # three of each class, five rows of pairs
    pairs = [image for part in some.split(6) for image in (*samples[part], *neighbours[part])]
    for axis, images, columns, title in (
        (axes[0], samples, each, "samples, a row for each class"),
        (axes[1], torch.stack(pairs), 6, "samples, and under each row the nearest training digits"),
    ):
        axis.imshow(tiles(images, columns).numpy(), cmap="Greys", vmin=0, vmax=16)
        axis.set_title(title, fontsize=10)
        axis.set_axis_off()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(epochs: int = 500, hidden: int = 256, each: int = 12, scored: int = 100) -> int:
    began = time.perf_counter()
    OUT.mkdir(exist_ok=True)
    data, held_out = digits()
    model = train(data, epochs, hidden)
    label = torch.arange(CLASSES).repeat_interleave(each)
    made = Digits(levels_of(torch.cat([sample(model, k, each) for k in range(CLASSES)])), label)
    found = classifier(data)
    right, real = accuracy(found, made), accuracy(found, held_out)
    print(f"A classifier of real digits is right for {right:.3f} of the samples, for {real:.3f} of held-out digits.")
    neighbours, apart = nearest(made.levels, data)
    least, usual = float(apart.median()), float(nearest(held_out.levels, data)[1].median())
    print(f"Nearest training digit, median distance in levels: of samples {least:.2f}, of held-out digits {usual:.2f}.")
    for name, some in (("training", data), ("held-out", held_out)):
        x = dequantised(some.levels[:scored], Generator().manual_seed(2))
        flow = eb.log_likelihood(model, SDE, x, rtol=1e-3, atol=1e-3, t_min=T_MIN, probes=4)
        bits = flow.bits_per_dimension(SCALE)
        mean, error = float(bits.mean()), float(bits.std()) / math.sqrt(len(bits))
        print(
            f"{name} digits: {mean:.3f} +- {error:.3f} bits per dimension; uniform levels have {math.log2(LEVELS):.2f}."
        )
    draw(made.levels, neighbours, OUT / "score_digits.png")
    print(f"Wrote {OUT}/score_digits.png in {time.perf_counter() - began:.0f} s.")
    return 0 if right > 0.8 else 1


if __name__ == "__main__":
    sys.exit(main())
