"""The reverse SDE, the probability flow and the likelihood of one score model, in the plane.

An SDE carries data to noise. Its score, the gradient of log p_t, runs it back two ways with the same marginals: as an SDE,
with fresh noise, and as an ODE, which is a smooth one-to-one map (Song et al. 2021). The map gives the same noise the same
point each time, encodes data, and its divergence gives log p of any point. The data are three Gaussians, so that score and
density are known.
"""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import torch
from torch import Tensor

import ebmppl as eb
from ebmppl.score import VP

mpl.use("Agg")
OUT = Path("out")
SDE = VP()
T_MIN = 1e-3
ANGLES = torch.arange(3) * (2 * math.pi / 3)
CENTRES = 1.5 * torch.stack([ANGLES.cos(), ANGLES.sin()], 1)
WEIGHTS = torch.tensor([0.5, 0.3, 0.2])
WIDTH = 0.25


def parts(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log of the components' weighted densities ``(n, 3)``, offsets from their centres ``(n, 3, 2)`` and variances ``(n, 1)``."""
    mean, std = SDE.marginal(t)
    variance = (mean.square() * WIDTH**2 + std.square()).unsqueeze(1)
    offset = x.unsqueeze(1) - mean[:, None, None] * CENTRES.to(x)
    log = WEIGHTS.to(x).log() - 0.5 * offset.square().sum(2) / variance - (2 * math.pi * variance).log()
    return log, offset, variance


def score(x: Tensor, t: Tensor) -> Tensor:
    """Of the diffused mixture, in closed form; a trained network takes its place."""
    log, offset, variance = parts(x, t)
    return -(log.softmax(1).unsqueeze(2) * offset).sum(1) / variance


def log_density(x: Tensor, t: float) -> Tensor:
    """Of the diffused mixture."""
    return parts(x, torch.full((len(x),), t, dtype=x.dtype))[0].logsumexp(1)


def paths(n: int, every: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Times, and paths ``(times, n, 2)`` of both from the same noise: runs that stop earlier are the same until then."""
    start = torch.randn(n, 2, generator=torch.Generator().manual_seed(3))
    found: dict[str, list[Tensor]] = {"reverse SDE": [start], "probability flow": [start]}
    grid = eb.score.uniform_times(SDE, 400, T_MIN)
    for steps in range(every, 401, every):
        cut = lambda sde, num_steps, t_min, steps=steps: grid[: steps + 1]
        last = float(grid[steps])
        options = {"t_min": last, "times": cut}
        sde = eb.ReverseSDE(score, SDE, (2,), steps, last_noise=True, **options)
        found["reverse SDE"].append(eb.transport(sde, start, seed=0))
        flow = eb.ProbabilityFlow(score, SDE, (2,), steps, "dpm_solver_2m", **options)
        found["probability flow"].append(eb.transport(flow, start, seed=0))
    return grid[::every].float(), {name: torch.stack(points) for name, points in found.items()}


def draw_paths(times: Tensor, both: dict[str, Tensor], path: Path) -> None:
    """The first coordinate over time, above log p_t on the first axis."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True)
    line = torch.linspace(-3.2, 3.2, 161)
    density = []
    for t in times.tolist():
        mean, std = (float(v) for v in SDE.marginal(torch.tensor(t)))
        variance = mean**2 * WIDTH**2 + std**2
        bumps = torch.exp(-0.5 * (line[:, None] - mean * CENTRES[:, 0]) ** 2 / variance) / math.sqrt(variance)
        density.append((bumps * WEIGHTS).sum(1))
    image = torch.stack(density, 1).sqrt()
    for axis, (name, points) in zip(axes, both.items(), strict=True):
        axis.pcolormesh(
            times.numpy(), line.numpy(), image.numpy(), cmap="Greys", vmax=1.6 * float(image.max()), shading="nearest"
        )
        axis.plot(times.numpy(), points[:, :, 0].numpy(), lw=0.9)
        axis.set(xlim=(1, 0), ylim=(-3.2, 3.2), xlabel="t: noise at the left, data at the right")
        axis.set_title(name, fontsize=11)
    axes[0].set_ylabel("first coordinate")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_density(samples: dict[str, Tensor], points: int, path: Path) -> float:
    """Draws of both, and log p by the flow next to the exact one; returns the largest error in nats."""
    line = torch.linspace(-2.8, 2.8, points, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).reshape(-1, 2)
    options = {"t_min": T_MIN, "log_prior": lambda x: log_density(x, 1.0)}
    found = eb.log_likelihood(score, SDE, grid, 1e-6, 1e-6, **options).value
    exact = log_density(grid, T_MIN)
    figure, axes = plt.subplots(1, 4, figsize=(13, 3.3), sharex=True, sharey=True)
    for axis, (name, x) in zip(axes, samples.items(), strict=False):
        axis.scatter(*x[:2000].T.numpy(), s=2, color="C0", linewidths=0)
        axis.set_title(name, fontsize=11)
    for axis, (name, value) in zip(axes[2:], {"log p by the flow": found, "log p, exact": exact}.items(), strict=True):
        image = axis.imshow(
            value.reshape(points, points).numpy(), extent=(-2.8, 2.8, -2.8, 2.8), origin="lower", vmin=-12, vmax=1
        )
        axis.set_title(name, fontsize=11)
    for axis in axes:
        axis.set_aspect("equal")
    figure.colorbar(image, ax=axes, label="nats", shrink=0.9)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)
    return float((found - exact).abs().max())


def main(n: int = 4000, points: int = 41, walkers: int = 12, every: int = 10) -> int:
    began = time.perf_counter()
    OUT.mkdir(exist_ok=True)
    samples = {
        "reverse SDE, 500 calls": eb.generate(eb.ReverseSDE(score, SDE, (2,), 500), n, seed=0),
        "DPM-Solver++, 20 calls": eb.generate(eb.ProbabilityFlow(score, SDE, (2,), 20), n, seed=1),
    }
    draw_paths(*paths(walkers, every), OUT / "score_sde_paths.png")
    error = draw_density(samples, points, OUT / "score_sde_density.png")

    print(f"Shares of {n} draws by mode, where they should be {[round(w, 2) for w in WEIGHTS.tolist()]}:")
    good = error < 1e-3
    for name, x in samples.items():
        found = torch.bincount(torch.cdist(x, CENTRES).argmin(1), minlength=3) / n
        wrong = (found - WEIGHTS).abs() / (WEIGHTS * (1 - WEIGHTS) / n).sqrt()
        good &= bool((wrong < 4).all())
        print(f"  {name}: {[round(float(f), 3) for f in found]}, at most {float(wrong.max()):.1f} standard errors away")

    data = samples["DPM-Solver++, 20 calls"][:200].double()
    there = eb.transport(eb.AdaptiveFlow(score, SDE, (2,), forward=True, rtol=1e-6, atol=1e-7), data)
    back = eb.transport(eb.AdaptiveFlow(score, SDE, (2,), rtol=1e-6, atol=1e-7), there)
    print(f"Encoded to noise and decoded again, points return to within {float((back - data).abs().max()):.1e}.")

    some = data[:20]
    exact = eb.log_likelihood(score, SDE, some, t_min=T_MIN)
    probed = eb.log_likelihood(score, SDE, some, t_min=T_MIN, probes=10)
    prior = float((exact.value - log_density(some, T_MIN)).abs().max())
    print(f"log p on a grid of {points**2} points is exact to {error:.1e} nats with the exact density at T;")
    print(
        f"with the prior N(0, I) in its place to {prior:.1e} nats, at 20 draws, as the diffusion ends near it, not there."
    )
    print(f"The first of them: {float(exact.value[0]):.3f} nats by the exact divergence, {float(probed.value[0]):.3f} +- "
          f"{float(probed.std_error[0]):.3f} by ten probes.")  # fmt: skip
    print(f"Wrote {OUT}/score_sde_paths.png, {OUT}/score_sde_density.png in {time.perf_counter() - began:.0f} s.")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
