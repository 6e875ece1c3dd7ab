"""A score model of data in the plane: one network for all noise levels, and how few calls of it make a sample.

Data are diffused to noise by dx = -beta(t) x / 2 dt + sqrt(beta(t)) dw. A network learns the score of the diffused data at
every noise level by denoising; the reverse SDE, or the probability-flow ODE, then carries noise to data. Samples are
compared with data that were held out, by the squared MMD and a permutation test; and 20 network calls of DPM-Solver++
with 500 of Euler-Maruyama. What is left of the distance is the network's: of a coarser one 40 calls gave the same, a better
training less.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import matplotlib.pyplot as plt
import torch
from relative_distance import farther, squared_mmd
from torch import Generator, Tensor

import ebmppl as eb
from ebmppl.diagnostics.distances import two_sample_test
from ebmppl.score import EDM, VP, TimeMLP, log_snr_times

mpl.use("Agg")
OUT = Path("out")
BANDWIDTH = 0.3  # of the MMD: the size of what a coarse model misses
SDE = VP(0.1, 10.0)  # of data of unit size: at t = 1 their part is 0.08, and less of it would cost steps for nothing
T_MIN = 4e-3  # at which the noise is 0.02, a fifth of the data's own
FEW = 2000  # points of the permutation test
SHOWN = (1.0, 0.5, 0.3, 0.15, 0.05, T_MIN)  # times of the pictures


def moons(n: int, generator: Generator) -> Tensor:
    """Two half circles that interlock."""
    angle = math.pi * torch.rand(n, generator=generator)
    upper = torch.rand(n, generator=generator) < 0.5
    x = torch.where(upper, angle.cos(), 1 - angle.cos()) - 0.5
    y = torch.where(upper, angle.sin(), 0.5 - angle.sin()) - 0.25
    return 1.5 * torch.stack([x, y], 1) + 0.1 * torch.randn(n, 2, generator=generator)


def rings(n: int, generator: Generator) -> Tensor:
    """Two circles around 0."""
    angle = 2 * math.pi * torch.rand(n, generator=generator)
    radius = torch.where(torch.rand(n, generator=generator) < 0.4, 0.8, 1.8)
    x = radius.unsqueeze(1) * torch.stack([angle.cos(), angle.sin()], 1)
    return x + 0.1 * torch.randn(n, 2, generator=generator)


def checkerboard(n: int, generator: Generator) -> Tensor:
    """The dark squares of a board of four by four, softened."""
    column = torch.randint(4, (n,), generator=generator)
    row = 2 * torch.randint(2, (n,), generator=generator) + column % 2
    corner = torch.stack([column, row], 1) - 2
    return corner + torch.rand(n, 2, generator=generator) + 0.05 * torch.randn(n, 2, generator=generator)


SETS: dict[str, Callable[[int, Generator], Tensor]] = {"moons": moons, "rings": rings, "checkerboard": checkerboard}


class Result(NamedTuple):
    """Of one data set.

    Attributes:
        model: the score, with averaged weights.
        p_values: of held-out data against samples, by sampler.
        worse: p-value of DPM-Solver++ being no farther from the data than Euler-Maruyama.
    """

    model: EDM
    p_values: dict[str, float]
    worse: float


def train(data: Tensor, steps: int, seed: int) -> EDM:
    """A score model with averaged weights.

    In batches of 256 of a fifth of the data, samples of the moons were five times as far, of the checkerboard seven times.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = EDM(TimeMLP((2,), (128, 128, 128)), SDE, data_std=float(data.std()))
    run = eb.fit(
        eb.DiffusionScoreMatching("edm", low_discrepancy=True, seed=seed), model, data, steps=steps,
        batch_size=min(1024, len(data)), ema=0.998, seed=seed, progress=False, optimizer=partial(torch.optim.Adam, lr=3e-3),
        schedule=lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps),
    )  # fmt: skip
    records = run.run()
    assert run.ema is not None
    run.ema.put()  # what is sampled and evaluated has the averaged weights from here on
    last = [record.loss for record in records[-200:]]
    print(f"  loss {records[0].loss:.3f} -> {sum(last) / len(last):.3f} in {sum(r.seconds for r in records):.0f} s")
    return model


def samplers(model: EDM) -> dict[str, eb.kernels.Kernel]:
    """The kernels by what they are called, with their network calls. Even steps in log of noise over signal suit the ODE."""
    flow = partial(eb.ProbabilityFlow, model, SDE, (2,), t_min=T_MIN, times=log_snr_times)
    return {
        "Euler-Maruyama, 500": eb.ReverseSDE(model, SDE, (2,), 500, t_min=T_MIN),
        "DPM-Solver++(2M), 20": flow(20, "dpm_solver_2m"),
        "DPM-Solver++(3M), 20": flow(19, "dpm_solver_3m"),
        "DDIM, 20": flow(20, "euler"),
    }


def learn(name: str, steps: int, points: int, seed: int) -> Result:
    """Train on one set, sample, compare; sets have seeds of their own, as samplers begin at the same noise."""
    generator = Generator().manual_seed(seed)
    data, held_out = (SETS[name](n, generator) for n in (10 * points, points))
    print(name)
    model = train(data, steps, seed)
    draws, p_values = {}, {}
    for called, kernel in samplers(model).items():
        draws[called] = eb.generate(kernel, points, seed=seed)
        found = squared_mmd(draws[called], held_out, BANDWIDTH)
        p_values[called] = two_sample_test(draws[called][:FEW], held_out[:FEW], bandwidth=BANDWIDTH).p_value
        told = f"squared MMD {found.value:.5f} +- {found.error:.5f}, p = {p_values[called]:.3f} by {min(FEW, points)} points"
        print(f"  {called:>21} network calls: {told}")
    by, worse = farther(draws["DPM-Solver++(2M), 20"], draws["Euler-Maruyama, 500"], held_out, BANDWIDTH)
    print(f"  DPM-Solver++(2M) less Euler-Maruyama: {by.value:+.5f} +- {by.error:.5f}, p = {worse:.3f} for no worse")
    return Result(model, p_values, worse)


def draw(models: dict[str, EDM], n: int, path: Path) -> None:
    """The same noise on its way to data: the probability flow, stopped at some times."""
    figure, axes = plt.subplots(
        len(models), len(SHOWN), figsize=(2.1 * len(SHOWN), 2.2 * len(models)), squeeze=False, sharex=True, sharey=True
    )
    for row, (name, model) in zip(axes, models.items(), strict=True):
        start = torch.randn(n, 2, generator=Generator().manual_seed(2))
        for axis, t in zip(row, SHOWN, strict=True):
            x = start
            if t < 1:
                x = eb.transport(eb.ProbabilityFlow(model, SDE, (2,), 40, t_min=t, times=log_snr_times), start)
            axis.scatter(*x.mT.numpy(), s=1.5, linewidths=0, color="C0")
            axis.set(xlim=(-3.2, 3.2), ylim=(-3.2, 3.2), xticks=[], yticks=[], aspect="equal")
        row[0].set_ylabel(name)
    for axis, t in zip(axes[0], SHOWN, strict=True):
        ratio = float(SDE.ratio(torch.tensor(t, dtype=torch.float64)))
        axis.set_title(f"noise / signal {ratio:.2g}", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main(steps: int = 4000, points: int = 10_000) -> int:
    began = time.perf_counter()
    OUT.mkdir(exist_ok=True)
    results = {name: learn(name, steps, points, seed) for seed, name in enumerate(SETS, 1)}
    draw({name: result.model for name, result in results.items()}, min(FEW, points), OUT / "score_2d.png")
    print(f"Wrote {OUT}/score_2d.png in {time.perf_counter() - began:.0f} s.")
    return 0 if all(result.worse > 0.01 for result in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
