"""In-painting digits: a score model is the prior of a picture in a Pyro model, and its half that is seen the data.

    x ~ the score model's distribution at a noise level,    y | x ~ Normal(x / a, s) where pixels are seen

Pyro knows the prior's log density by ``eb.ScoreDistribution``, whose gradient is the score, and ``eb.Langevin`` walks by it, in
many chains. One noise level after another, from much noise to little: at the first the chains go from digit to digit, at the
last they see what a picture is, and a denoising step ends them. Beside it, guidance changes the score itself
(``score.InPainting``) and a reverse SDE draws in one go. Both are compared with the digit that was hidden, and with what
scikit-learn's digits have in the place of the hidden half where the rest is most like it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from score_digits import OUT, SCALE, SDE, Digits, dequantised, digits, tiles, train  # beside this file
from torch import Generator, Tensor

import ebmppl as eb
from ebmppl.score import EDM, InPainting

NOISE_STD = 0.5 * SCALE  # of a pixel that is seen: half a level
NOISES = (1.0, 0.5, 0.25)  # of the prior, over the signal: sigma / a, from level to level
STEP = 0.2  # of Langevin, in units of the smallest variance of a direction
IMAGE = (1, 8, 8)


class Task(NamedTuple):
    """Digits of which the upper half is seen, with noise."""

    truth: Tensor  # (digits, 1, 8, 8), in x
    seen: Tensor  # (1, 8, 8), True where a pixel is
    y: Tensor  # (digits, 1, 8, 8); what it has at the others does not matter


def task(data: Digits, n: int) -> Task:
    generator = Generator().manual_seed(1)
    truth = dequantised(data.levels[:n], generator)
    seen = (torch.arange(8) < 4).view(1, 8, 1).expand(IMAGE)
    return Task(truth, seen, truth + NOISE_STD * torch.randn(truth.shape, generator=generator))


def time_of(noise: float) -> float:
    """The time at which sigma / a is the noise."""
    t = torch.linspace(1e-4, 1, 10_001, dtype=torch.float64)
    mean, std = SDE.marginal(t)
    return float(t[int((std / mean > noise).nonzero()[0])])


def program(model: EDM, t: float, given: Task) -> None:
    """The Pyro model: pictures with the noise of a time, and what is seen of them."""
    mean, std = (float(v) for v in SDE.marginal(torch.tensor(t)))
    prior = eb.ScoreDistribution(model, SDE, IMAGE, t_min=t, rtol=0.05, atol=0.05, probes=1)
    with pyro.plate("digits", len(given.y)):
        x = pyro.sample("x", prior)
        # y is of the picture without the prior's noise; of x it is as far as both noises go
        likelihood = dist.Normal(x / mean, (NOISE_STD**2 + (std / mean) ** 2) ** 0.5)
        pyro.sample("y", likelihood.mask(given.seen).to_event(3), obs=given.y)


def langevin(model: EDM, given: Task, chains: int, draws: int) -> Tensor:
    """The last draw of every chain at the least noise, denoised: ``(chains, digits, 1, 8, 8)``."""
    x = None
    for noise in NOISES:
        t = time_of(noise)
        mean, std = SDE.marginal(torch.tensor(t))
        energy = eb.from_pyro(program, model, t, given)
        kernel = eb.Langevin(energy, step_size=STEP * float(std) ** 2)
        if x is None:
            x = eb.ScoreDistribution(model, SDE, IMAGE, t_min=t, rtol=0.05, atol=0.05).sample((chains, len(given.y)))
        run = eb.MCMC(
            kernel, draws, 0, initial_params={"x": x}, num_chains=chains, seed=0, disable_progbar=True, backend="eager"
        )
        run.run()
        x = run.get_samples(group_by_chain=True)["x"][:, -1]
    rows = x.reshape(-1, *IMAGE)
    with torch.no_grad():
        clean = (rows + std**2 * model(rows, torch.full((len(rows),), t))) / mean
    return clean.reshape(x.shape)


def guided(model: EDM, given: Task, chains: int, steps: int) -> Tensor:
    """Draws by guidance ``(chains, digits, 1, 8, 8)``: row i of the score is of digit i, and every digit is drawn as often."""
    n = len(given.y)
    score = InPainting(model, SDE, IMAGE, given.seen, given.y, NOISE_STD, data_std=0.7)
    kernel = eb.ReverseSDE(score, SDE, IMAGE, steps, "ancestral", t_min=1e-3)
    return eb.generate(kernel, chains * n, seed=0).view(chains, n, *IMAGE)


def likeliest(given: Task, data: Digits, k: int) -> Tensor:
    """The k training digits whose seen half is nearest ``(k, digits, 1, 8, 8)``."""
    x = SCALE * (data.levels + 0.5) - 1
    apart = torch.cdist(given.y[:, given.seen], x[:, given.seen])
    return x[apart.topk(k, largest=False).indices].transpose(0, 1)


def error(draws: Tensor, given: Task) -> tuple[float, float]:
    """Root mean square error of the mean in hidden pixels, and of one draw, in levels."""
    hidden = ~given.seen.expand(IMAGE)
    square = lambda x: float((x - given.truth)[..., hidden].square().mean().sqrt()) / SCALE
    return square(draws.mean(0)), square(draws)


def draw(columns: Mapping[str, Tensor], path: Path) -> None:
    """A block of pictures for each way ``(k, digits, 1, 8, 8)``, a row for each digit."""
    figure, axes = plt.subplots(
        1, len(columns), figsize=(2 + 0.62 * sum(len(c) for c in columns.values()), 0.75 * len(next(iter(columns.values()))[0])),
        width_ratios=[len(c) for c in columns.values()],
    )  # fmt: skip
    for axis, (name, images) in zip(axes, columns.items(), strict=True):
        axis.imshow(tiles(images.transpose(0, 1).flatten(0, 1), len(images)).numpy(), cmap="Greys", vmin=0, vmax=16)
        axis.set_title(name, fontsize=9)
        axis.set_axis_off()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(epochs: int = 400, hidden: int = 256, n: int = 10, chains: int = 8, draws: int = 100, steps: int = 250) -> int:
    began = time.perf_counter()
    OUT.mkdir(exist_ok=True)
    data, held_out = digits()
    model = train(data, epochs, hidden, label_dropout=0.9)
    given = task(held_out, n)
    ways = {
        "Langevin by a Pyro model": langevin(model, given, chains, draws),
        "guidance": guided(model, given, chains, steps),
        "nearest training digits": likeliest(given, data, chains),
    }
    average = (SCALE * (data.levels.mean(0) + 0.5) - 1).expand(1, n, *IMAGE)
    errors = {name: error(found, given) for name, found in (ways | {"average digit": average}).items()}
    for name, (mean, one) in errors.items():
        print(f"{name}: hidden pixels are {mean:.2f} levels from the mean, {one:.2f} from one.")
    masked = torch.where(given.seen, given.y, torch.nan)
    shown = {"digit, and what is seen": torch.stack([given.truth, masked])}
    shown |= {f"{name}, and mean": torch.cat([found[:5], found.mean(0)[None]]) for name, found in ways.items()}
    draw({name: (x + 1) / SCALE - 0.5 for name, x in shown.items()}, OUT / "inpainting_digits.png")
    print(f"Wrote {OUT}/inpainting_digits.png in {time.perf_counter() - began:.0f} s.")
    useful = all(errors[name][0] < errors["average digit"][0] for name in list(ways)[:2])
    return 0 if useful else 1


if __name__ == "__main__":
    sys.exit(main())
