"""What the score models of digits share, of 8x8 and of 28x28 pixels: training, samples by class, and how good they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import matplotlib.pyplot as plt
import torch
from relative_distance import Distance, farther
from torch import Generator, Tensor

import ebmppl as eb
from ebmppl.score import EDM, SDE, ClassConditional, ClassifierFreeGuidance, log_snr_times

mpl.use("Agg")
OUT = Path("out")
CLASSES = 10


class Digits(NamedTuple):
    """Grey levels ``(rows, 1, side, side)``, whole numbers from 0, and labels ``(rows,)``."""

    levels: Tensor
    label: Tensor


class Dequantised(NamedTuple):
    """So many grey levels as x = 2 (level + u) / count - 1 in [-1, 1], with uniform u, that they may have a density."""

    count: int

    @property
    def scale(self) -> float:
        """Of a level in x."""
        return 2 / self.count

    def __call__(self, levels: Tensor, generator: Generator) -> Tensor:
        return self.scale * (levels + torch.rand(levels.shape, generator=generator)) - 1

    def levels_of(self, x: Tensor) -> Tensor:
        """The levels whose interval x is in, with what is out of range at the ends."""
        return ((x + 1) / self.scale).floor().clamp(0, self.count - 1)


class Loader:
    """Batches of points and labels, in another order and with other noise in each epoch."""

    def __init__(self, data: Digits, dequantised: Dequantised, batch: int) -> None:
        self.data, self.dequantised, self.batch = data, dequantised, batch
        self.generator = Generator().manual_seed(0)  # ``fit`` saves it with a run

    def __len__(self) -> int:
        return -(-len(self.data.label) // self.batch)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for rows in torch.randperm(len(self.data.label), generator=self.generator).split(self.batch):
            x = self.dequantised(self.data.levels[rows].float(), self.generator)
            yield {"x": x, "label": self.data.label[rows]}


def train(model: EDM, loss: eb.losses.Loss, loader: Loader, steps: int, rate: float, ema: float) -> list[float]:
    """Losses of the steps; the model then has the averaged weights."""
    schedule = partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=max(steps, 1))
    optimizer = partial(torch.optim.Adam, lr=rate)
    run = eb.fit(loss, model, loader, steps=steps, ema=ema, progress=False, optimizer=optimizer, schedule=schedule)
    records = run.run()
    assert run.ema is not None
    run.ema.put()
    losses = [record.loss for record in records]
    tail = max(len(losses) // 20, 1)
    means = [sum(part) / len(part) for part in (losses[:tail], losses[-tail:])]
    seconds = sum(record.seconds for record in records)
    print(f"Loss of the first and last twentieth of {steps} steps: {means[0]:.2f}, {means[1]:.2f}; {seconds:.0f} s.")
    return losses


def sample(model: EDM, each: int, t_min: float, calls: int = 20, weight: float = 0.0) -> tuple[Tensor, Tensor]:
    """Images by class ``(10 each, ...)`` by DPM-Solver++, and their labels; weight w > 0 is classifier-free guidance."""
    event, made = model.network.event_shape, []
    for label in range(CLASSES):
        score = ClassConditional(model, label)
        guided = ClassifierFreeGuidance(score, model, weight) if weight else score
        kernel = eb.ProbabilityFlow(guided, model.sde, event, calls, t_min=t_min, times=log_snr_times)
        made.append(eb.generate(kernel, each, seed=label))
    return torch.cat(made), torch.arange(CLASSES).repeat_interleave(each)


def few_calls_against_many(
    model: EDM, data: Tensor, label: Tensor, t_min: float, many: int = 500
) -> tuple[Distance, float]:
    """By how much 20 calls of DPM-Solver++ are farther from data than ``many`` of Euler-Maruyama, see ``farther``.

    Samples have the classes of the data; the bandwidth is the median distance of two images.
    """
    score, sde, event = ClassConditional(model, label), model.sde, model.network.event_shape
    few = eb.ProbabilityFlow(score, sde, event, 20, t_min=t_min, times=log_snr_times)
    x, z = (eb.generate(k, len(data), seed=5) for k in (few, eb.ReverseSDE(score, sde, event, many, t_min=t_min)))
    return farther(x, z, data, float(torch.pdist(data.flatten(1)).median()))


def through_noise(model: EDM, columns: int, t_min: float) -> tuple[Tensor, list[float]]:
    """A sample of each class on its way ``(10 columns, ...)``, and the levels of noise over signal where it is shown.

    The probability flow from the same noise, stopped at times even in the log of noise over signal.
    """
    sde, event = model.sde, model.network.event_shape
    score = ClassConditional(model, torch.arange(CLASSES))
    times = log_snr_times(sde, columns - 1, t_min)
    shown = [sde.prior_std * torch.randn(CLASSES, *event, generator=Generator().manual_seed(3))]
    for t in times[1:].tolist():
        flow = eb.ProbabilityFlow(score, sde, event, 20, t_min=t, times=log_snr_times)
        shown.append(eb.transport(flow, shown[0]))
    mean, std = sde.marginal(times)
    return torch.stack(shown, 1).flatten(0, 1), (std / mean).tolist()


def nearest(x: Tensor, data: Digits) -> tuple[Tensor, Tensor]:
    """Each one's nearest digit of the data and their distance, in root mean square levels."""
    apart = torch.cdist(x.flatten(1).float(), data.levels.flatten(1).float()) / math.sqrt(x[0].numel())
    distance, at = apart.min(1)
    return data.levels[at].float(), distance


def bits(
    score: Callable[[Tensor, Tensor], Tensor], sde: SDE, x: Tensor, scale: float, **how: float
) -> tuple[float, float]:
    """Mean bits per dimension of dequantised images, an upper bound for the levels', and its standard error."""
    found = eb.log_likelihood(score, sde, x, **how).bits_per_dimension(scale)
    return float(found.mean()), float(found.std()) / math.sqrt(len(found))


def tiles(images: Tensor, columns: int) -> Tensor:
    """A picture ``(height, width)`` of images, row by row."""
    framed = torch.nn.functional.pad(images[:, 0], (1, 1, 1, 1), value=math.nan)
    return torch.cat([torch.cat(list(row), 1) for row in framed.split(columns)], 0)


def with_neighbours(samples: Tensor, neighbours: Tensor) -> Tensor:
    """Three of each class in five rows of six, and under each row their nearest neighbours."""
    some = torch.arange(len(samples)).view(CLASSES, -1)[:, :3].flatten()
    return torch.stack([image for part in some.split(6) for image in (*samples[part], *neighbours[part])])


def draw(panels: dict[str, tuple[Tensor, int]], most: int, path: Path) -> None:
    """Pictures side by side: by title, images and how many are in a row; levels from 0 to ``most``."""
    figure, axes = plt.subplots(1, len(panels), figsize=(5.5 * len(panels), 5.4), squeeze=False)
    for axis, (title, (images, columns)) in zip(axes[0], panels.items(), strict=True):
        axis.imshow(tiles(images, columns).numpy(), cmap="Greys", vmin=0, vmax=most)
        axis.set_title(title, fontsize=10)
        axis.set_axis_off()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
