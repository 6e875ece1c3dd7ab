"""Training an energy on data in the plane: how it fails, how that shows, and how it goes on.

The data are eight Gaussians on a circle; the energy is a small network. Persistent contrastive divergence moves its
chains by Langevin steps. At a learning rate that is too large for so few steps the energies of data and samples drift
apart, though nothing is infinite. A monitor says so; its actions go back to the last good state and raise k. What is
left to learn, the gaps between the modes, then takes many small steps: the rate falls to a fiftieth and the weights are averaged.
"""

from __future__ import annotations

import math
import sys
import time
import warnings
from functools import partial
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import matplotlib.pyplot as plt
import torch
from torch import Tensor

import ebmppl as eb
from ebmppl.energies import MLPEnergy
from ebmppl.errors import NonFiniteLoss, SamplingWarning
from ebmppl.training import Health, Monitor, RaiseK, RollBack, Step, Warn

mpl.use("Agg")
OUT = Path("out")
RADIUS, WIDTH = 2.0, 0.2
RATE = 0.02


def eight_gaussians(n: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    angle = torch.randint(8, (n,), generator=generator) * (math.pi / 4)
    centres = RADIUS * torch.stack([angle.cos(), angle.sin()], 1)
    return centres + WIDTH * torch.randn(n, 2, generator=generator)


class Trained(NamedTuple):
    """A run: its records, checks, energy and the persistent chains."""

    title: str
    records: list[Step]
    checks: list[Health]
    energy: MLPEnergy
    samples: Tensor
    ended: str


def train(title: str, data: Tensor, steps: int, falling: int, monitor: Monitor) -> Trained:
    """One run; the same network, seeds, data and settings each time; the learning rate falls over so many steps."""
    energy = MLPEnergy(2, (128, 128), confine=0.2, generator=torch.Generator().manual_seed(0))
    loss = eb.losses.PCD(
        k=2, kernel=partial(eb.Langevin, step_size=0.02), num_chains=256, reinit=0.02, recent=50, seed=0
    )
    run = eb.fit(
        loss, energy, data, steps=steps, batch_size=256, seed=0, monitor=monitor, progress=False,
        optimizer=partial(torch.optim.Adam, lr=RATE), ema=0.99,
        schedule=partial(torch.optim.lr_scheduler.LinearLR, start_factor=1.0, end_factor=0.02, total_iters=falling),
    )  # fmt: skip
    records: list[Step] = []
    ended = f"after {steps} steps"
    print(f"\n{title}")
    try:
        for record in run:
            records.append(record)
            if record.health is not None and record.health.problems:
                print("  " + str(record.health).replace("\n", "\n  "))
    except NonFiniteLoss as error:  # everything is back in the last good state
        ended = str(error)
        print(f"  {ended}")
    assert run.ema is not None
    run.ema.put()  # the average is what is kept
    checks = [record.health for record in records if record.health is not None]
    return Trained(title, records, checks, energy, run.bound.points.clone(), ended)


@torch.no_grad()
def log_likelihood(energy: MLPEnergy, data: Tensor) -> float:
    """Mean log-likelihood in nats; in the plane log Z is a sum over a fine grid, beyond which the energy is high."""
    line = torch.linspace(-8, 8, 301, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).reshape(-1, 2)
    log_z = torch.logsumexp(-energy(grid.float()).double(), 0) + 2 * math.log(float(line[1] - line[0]))
    return float(-energy(data).double().mean() - log_z)


def truth(data: Tensor) -> float:
    """What the density that made the data gives."""
    angle = torch.arange(8) * (math.pi / 4)
    centres = RADIUS * torch.stack([angle.cos(), angle.sin()], 1)
    squares = torch.cdist(data, centres).square() / (2 * WIDTH**2)
    return float(torch.logsumexp(-squares, 1).mean()) - math.log(8 * 2 * math.pi * WIDTH**2)


# Pictures.
def draw_energies(runs: list[Trained], data: Tensor, path: Path) -> None:
    """Densities exp(-E), normalised over the square, with the persistent chains, next to the data."""
    reach = 3.2
    line = torch.linspace(-reach, reach, 201)
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)
    figure, axes = plt.subplots(1, len(runs) + 1, figsize=(3.3 * (len(runs) + 1), 4.0), sharex=True, sharey=True)
    axes[0].scatter(*data[:1000].T.numpy(), s=3, color="C0", linewidths=0)
    axes[0].set_title("data", fontsize=11)
    for axis, run in zip(axes[1:], runs, strict=True):
        with torch.no_grad():
            energy = run.energy(grid).double()
        density = torch.exp(energy.min() - energy)
        axis.imshow(
            (density / density.max()).sqrt().numpy(), extent=(-reach, reach, -reach, reach), origin="lower",
            cmap="Greys", vmin=0, vmax=1.2,
        )  # fmt: skip
        axis.scatter(*run.samples.T.numpy(), s=5, color="C3", linewidths=0)
        axis.set_title(run.title, fontsize=11)
    axes[0].set(xlim=(-reach, reach), ylim=(-reach, reach))
    for axis in axes:
        axis.set_aspect("equal")
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.text(
        0.5,
        0.03,
        r"grey: $\sqrt{\mathrm{density}}$ of the energy;  red: its persistent chains",
        ha="center",
        fontsize=10,
    )
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_course(runs: list[Trained], path: Path) -> None:
    """The energy gap of each run, and what the monitor did."""
    figure, axis = plt.subplots(figsize=(8, 4.2))
    for colour, run in zip(("C3", "C0"), runs, strict=True):
        # of PCD the loss is the gap
        axis.plot(
            [record.step for record in run.records],
            [record.loss for record in run.records],
            color=colour,
            lw=1,
            label=run.title,
        )
        for health in run.checks:
            if health.done:
                axis.axvline(health.step, color=colour, lw=0.8, ls="--")
                k = health.done[-1].split()[2] if health.done[-1].startswith("k is") else "same"
                where = {"xycoords": ("data", "axes fraction"), "fontsize": 8, "color": colour, "va": "bottom"}
                axis.annotate(f"back,\nk = {k}", (health.step, 1.01), ha="center", **where)
    axis.axhline(0, color="0.6", lw=0.8)
    axis.set_yscale("symlog", linthresh=1)
    axis.set(xlabel="step", ylabel="energy gap, data minus samples (nats)")
    axis.legend(frameon=False, loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(steps: int = 2600, failing: int = 700, every: int = 25, points: int = 4096) -> int:
    began = time.perf_counter()
    OUT.mkdir(exist_ok=True)
    data, held_out = eight_gaussians(points, 0), eight_gaussians(1000, 1)
    limits = {"every": every, "gap": 0.3, "r_hat": None, "ess": None}  # of all readings the gap tells first here
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SamplingWarning)  # the problems are printed
        fails = train(f"learning rate {RATE}, k = 2", data, failing, steps, Monitor([Warn()], **limits))
    recovers = train(
        "the same, with actions", data, steps, steps, Monitor([RollBack(0.5), RaiseK(2, most=16)], **limits)
    )
    draw_course([fails, recovers], OUT / "train_2d_gap.png")
    draw_energies([fails, recovers], data, OUT / "train_2d_energy.png")
    found = [log_likelihood(run.energy, held_out) for run in (fails, recovers)]
    print(
        f"\nHeld-out log-likelihood, nats: {found[0]:.2f} in the first run, {found[1]:.2f} in the second; the true density "
        f"gives {truth(held_out):.2f}."
    )
    print(f"Wrote {OUT}/train_2d_gap.png, {OUT}/train_2d_energy.png in {time.perf_counter() - began:.0f} s.")
    return 0 if found[1] > found[0] else 1


if __name__ == "__main__":
    sys.exit(main())
