"""A score model of MNIST, given the class: samples with and without guidance, nearest neighbours, bits per dimension.

``python tutorials/score_mnist.py mnist.npz`` trains a small U-Net on 28x28 digits of 256 grey levels, dequantised with uniform
noise as in ``score_digits.py``, and samples it in 20 network calls. A convolutional classifier of real digits says how many
samples are of their class, and the probability flow what the images cost in bits. Bits are decided by noise smaller than
a level, that nobody sees: the net is trained there too, with features of the pixels that are as fine.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import numpy as np
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
    train,
    with_neighbours,
)
from torch import Generator, Tensor, nn

import ebmppl as eb
from ebmppl.score import EDM, VP, ClassConditional, UNet
from ebmppl.score.weightings import EDMWeighting

SHAPE, LEVELS = (1, 28, 28), Dequantised(256)
SDE = VP(0.1, 14.0)
T_MIN = 1e-6  # at which the noise is 0.0003, a twenty-fifth of a level
SHOWN = 1e-4  # samples end at noise of 0.003, under a level
PUBLISHED = "Glow 1.05 and FFJORD 0.99 (Grathwohl et al. 2019), Residual Flow 0.97 (Chen et al. 2019)"


def images(path: Path) -> tuple[Digits, Digits]:
    """60,000 to learn from and 10,000 held out, of a file with ``x_train``, ``y_train``, ``x_test``, ``y_test``."""
    with np.load(path) as file:
        parts = [[torch.from_numpy(file[f"{kind}_{part}"]) for kind in "xy"] for part in ("train", "test")]
    train_set, test_set = (Digits(x.unsqueeze(1), y.long()) for x, y in parts)
    return train_set, test_set


class Padded(nn.Module):
    """A network of 32x32 pixels for images of 28x28: they can be halved more often."""

    def __init__(self, network: UNet) -> None:
        super().__init__()
        self.network, self.event_shape = network, torch.Size(SHAPE)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.network(nn.functional.pad(x, (2, 2, 2, 2)), t, labels)[:, :, 2:-2, 2:-2]


def learn(data: Digits, steps: int, width: int, batch: int, device: str) -> tuple[EDM, list[float]]:
    """A conditional score model with averaged weights, and the losses of its steps."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Padded(UNet((1, 32, 32), width, depth=3, patch=2, fine=(5, 6, 7), num_classes=CLASSES))
    model = EDM(network.to(memory_format=torch.channels_last), SDE, data_std=1.0).to(device)
    weighting = EDMWeighting(mean=-1.5, std=1.8)  # of log noise: about one in thirty below a level
    loss = eb.DiffusionScoreMatching(weighting, t_min=T_MIN, label_dropout=0.1, low_discrepancy=True, seed=0)
    losses = train(model, loss, Loader(data, LEVELS, batch), steps, rate=2e-3, ema=max(0.0, 1 - 20 / max(steps, 20)))
    return model, losses


def classifier(data: Digits, steps: int, device: str) -> nn.Module:
    """A small convolutional network of real digits."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(1, 16, 5, stride=2, padding=2), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(32 * 7 * 7, 128), nn.ReLU(), nn.Linear(128, CLASSES),
        ).to(device)  # fmt: skip
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = Generator().manual_seed(0)
    for _ in range(steps):
        rows = torch.randint(len(data.label), (128,), generator=generator)
        optimizer.zero_grad()
        logits = network((data.levels[rows].float() / 255).to(device))
        nn.functional.cross_entropy(logits, data.label[rows].to(device)).backward()
        optimizer.step()
        schedule.step()
    return network.eval()


@torch.no_grad()
def accuracy(network: nn.Module, data: Digits) -> float:
    device = next(network.parameters()).device
    found = torch.cat([network((part.float() / 255).to(device)).argmax(1).cpu() for part in data.levels.split(1000)])
    return float((found == data.label).float().mean())


def cost(model: EDM, data: Digits, scored: int) -> dict[str, tuple[float, float]]:
    """Bits per dimension with their standard errors, without and with the class."""
    device = next(model.parameters()).device
    x = LEVELS(data.levels[:scored].float(), Generator().manual_seed(2)).to(device)
    given = ClassConditional(model, data.label[:scored].to(device))
    how = {"rtol": 1e-3, "atol": 1e-3, "t_min": T_MIN, "probes": 1}
    return {
        name: bits(score, SDE, x, LEVELS.scale, **how) for name, score in (("alone", model), ("given the class", given))
    }


def main(
    path: Path, steps: int = 2000, width: int = 16, batch: int = 32, device: str = "cpu", each: int = 20, scored: int = 64,
    classifier_steps: int = 1500, many: int = 500,
) -> dict[str, float]:  # fmt: skip
    began = time.perf_counter()
    OUT.mkdir(exist_ok=True)
    data, test = images(path)
    model, losses = learn(data, steps, width, batch, device)
    network = classifier(data, classifier_steps, device)
    real = accuracy(network, test)
    first, last = (sum(part) / len(part) for part in (losses[:50], losses[-50:]))
    found, panels = {"first losses": first, "last losses": last, "real": real}, {}
    usual = float(nearest(test.levels[:200], data)[1].median())
    print(f"A classifier of real digits is right for {real:.4f} of test digits.")
    for name, weight in (("no guidance", 0.0), ("guidance, weight 1", 1.0)):
        x, label = sample(model, each, SHOWN, weight=weight)
        made = Digits(LEVELS.levels_of(x.cpu()), label)
        neighbours, apart = nearest(made.levels, data)
        found[name] = accuracy(network, made)
        print(
            f"{name}: right for {found[name]:.3f} of {len(label)} samples; median distance to the nearest training digit "
            f"{float(apart.median()):.1f} levels, of test digits {usual:.1f}."
        )
        shown = made.levels.view(CLASSES, each, *SHAPE)[:, :12].flatten(0, 1)
        panels[f"samples, {name}"] = (shown, min(each, 12))
        if not weight:
            close = "samples, and under each row the nearest training digits"
            panels[close] = (with_neighbours(made.levels, neighbours), 6)
    some = test.levels[: each * CLASSES].float(), test.label[: each * CLASSES].to(device)
    x = LEVELS(some[0], Generator().manual_seed(4)).to(device)
    by, found["no worse"] = few_calls_against_many(model, x, some[1], SHOWN, many)
    print(
        f"Squared MMD to {len(x)} test images, 20 calls of DPM-Solver++ less {many} of Euler-Maruyama: "
        f"{by.value:+.5f} +- {by.error:.5f}, p = {found['no worse']:.3f} for no worse."
    )
    draw(panels, LEVELS.count - 1, OUT / "score_mnist.png")
    for name, (mean, error) in cost(model, test, scored).items():
        found[f"bits {name}"] = mean
        print(f"{scored} test images {name}: {mean:.3f} +- {error:.3f} bits per dimension.")
    print(
        f"Published, without classes: {PUBLISHED}.\nWrote {OUT}/score_mnist.png in {time.perf_counter() - began:.0f} s."
    )
    return found


if __name__ == "__main__":
    folder = Path(os.environ.get("EBMPPL_DATA", "../shared/data"))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, nargs="?", default=folder / "mnist.npz", help="MNIST as an npz file")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--width", type=int, default=16, help="channels of the U-Net")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    sys.exit(
        0 if main(given.path, given.steps, given.width, given.batch, given.device)["guidance, weight 1"] > 0.8 else 1
    )
