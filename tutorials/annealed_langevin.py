"""Annealed Langevin dynamics against plain Langevin: why a score needs noise levels.

The data are two Gaussians far apart, 80 per cent on the left. The score between them says only which one is nearer, and
nothing of their weights: plain Langevin falls into the nearer one and never leaves it. With much noise the two are one;
annealed Langevin begins there and lowers the noise, so that the weights are decided while points still cross (Song and
Ermon 2019). The reverse SDE does the same in continuous time.
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
from ebmppl.score import VE, geometric_sigmas

mpl.use("Agg")
OUT = Path("out")
LEFT, RIGHT, WEIGHT = -6.0, 6.0, 0.8  # places of the modes on the first axis, and the weight of the left one
SIGMA_MIN, SIGMA_MAX = 0.1, 60.0
ETA = 0.05  # of consistent steps; their bias grows with it: with 0.2 there are 2 per cent too many at the left


def odds(x: Tensor, variance: Tensor | float) -> Tensor:
    """Log odds ``(n,)`` of the right mode at points ``(n, 2)``, with noise: both have this variance."""
    return math.log(1 / WEIGHT - 1) + (RIGHT - LEFT) * x[:, 0] / variance


def score(x: Tensor, sigma: Tensor) -> Tensor:
    """Of the data with noise sigma ``(n,)``, in closed form."""
    variance = 1 + sigma.square()
    place = LEFT + (RIGHT - LEFT) * torch.sigmoid(odds(x, variance))
    centre = torch.stack([place, torch.zeros_like(place)], 1)
    return (centre - x) / variance.unsqueeze(1)


def energy(x: Tensor) -> Tensor:
    """Of the data, in nats."""
    left = 0.5 * ((x[:, 0] - LEFT).square() + x[:, 1].square())
    right = 0.5 * ((x[:, 0] - RIGHT).square() + x[:, 1].square())
    return -torch.logaddexp(math.log(WEIGHT) - left, math.log(1 - WEIGHT) - right)


def data(n: int) -> Tensor:
    """Exact draws."""
    generator = torch.Generator().manual_seed(9)
    x = torch.randn(n, 2, generator=generator)
    x[:, 0] += torch.where(torch.rand(n, generator=generator) < WEIGHT, LEFT, RIGHT)
    return x


def plain(n: int, steps: int) -> Tensor:
    """Langevin from a broad start."""
    start = 6.0 * torch.randn(n, 2, generator=torch.Generator().manual_seed(0))
    kernel = eb.Langevin(eb.as_energy(energy, (2,)), step_size=0.1)
    run = eb.MCMC(kernel, 1, steps, start, n, seed=0, disable_progbar=True)
    run.run()
    return run.get_samples()["x"]


def annealed(n: int, levels: int, seed: int = 1, last: float = SIGMA_MIN) -> Tensor:
    """Consistent annealed Langevin, one step at each of the noise levels down to the last."""
    sigmas = geometric_sigmas(levels, SIGMA_MIN, SIGMA_MAX)
    sigmas = sigmas[sigmas >= last * (1 - 1e-9)]
    kernel = eb.AnnealedLangevin(score, sigmas, (2,), 1, ETA, consistent=True, denoise=last == SIGMA_MIN)
    return eb.generate(kernel, n, seed=seed)


def reverse(n: int, steps: int) -> Tensor:
    """The reverse SDE."""
    sde = VE(SIGMA_MIN, SIGMA_MAX)
    return eb.generate(eb.ReverseSDE(lambda x, t: score(x, sde.marginal(t)[1]), sde, (2,), steps), n, seed=2)


def share(x: Tensor) -> tuple[float, float]:
    """Of points at the left, and its standard error."""
    found = float((x[:, 0] < 0).double().mean())
    return found, math.sqrt(WEIGHT * (1 - WEIGHT) / len(x))


def draw_methods(samples: dict[str, Tensor], path: Path) -> None:
    """Draws of each method with their share at the left."""
    figure, axes = plt.subplots(1, len(samples), figsize=(3.3 * len(samples), 2.9), sharex=True, sharey=True)
    for axis, (name, x) in zip(axes, samples.items(), strict=True):
        axis.scatter(*x[:1500].T.numpy(), s=3, color="C3" if name == "plain Langevin" else "C0", linewidths=0)
        axis.set_title(f"{name}\n{100 * share(x)[0]:.0f} % at the left", fontsize=11)
        axis.set(xlim=(-11, 11), ylim=(-4.5, 4.5))
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_levels(n: int, levels: int, path: Path) -> None:
    """Draws at some noise levels, and the density on the first axis that they should have."""
    at = geometric_sigmas(levels, SIGMA_MIN, SIGMA_MAX)[:: max(1, (levels - 1) // 4)]
    figure, axes = plt.subplots(1, len(at), figsize=(2.6 * len(at), 2.6))
    for axis, sigma in zip(axes, at.tolist(), strict=True):
        x = annealed(n, levels, last=sigma)[:, 0]
        noise = 0.0 if sigma <= SIGMA_MIN * (1 + 1e-9) else sigma
        # the last step leaves (1 - ETA) sigma of the noise and adds none: put it back
        x = x + noise * math.sqrt(1 - (1 - ETA) ** 2) * torch.randn(n, generator=torch.Generator().manual_seed(7))
        spread = math.sqrt(1 + noise**2)
        reach = 6 + 3.5 * spread
        line = torch.linspace(-reach, reach, 400)
        density = sum(
            w * torch.exp(-0.5 * ((line - m) / spread) ** 2) / (spread * math.sqrt(2 * math.pi))
            for w, m in ((WEIGHT, LEFT), (1 - WEIGHT, RIGHT))
        )
        axis.hist(x.numpy(), bins=60, range=(-reach, reach), density=True, color="C0", alpha=0.5)
        axis.plot(line.numpy(), density.numpy(), color="k", lw=1)
        axis.set_title(rf"$\sigma$ = {sigma:.2g}", fontsize=11)
        axis.set_yticks([])
        axis.set_xlabel("first coordinate")
    axes[0].set_ylabel("density")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(n: int = 4000, steps: int = 500, levels: int = 601) -> int:
    began = time.perf_counter()
    OUT.mkdir(exist_ok=True)
    samples = {
        "data": data(n),
        "plain Langevin": plain(n, steps),
        "annealed Langevin": annealed(n, levels),
        "reverse SDE": reverse(n, levels),
    }
    draw_methods(samples, OUT / "annealed_langevin_methods.png")
    draw_levels(n, levels, OUT / "annealed_langevin_levels.png")
    good = True
    print(f"Share of {n} draws at the left, where it should be {WEIGHT}:")
    for name, x in samples.items():
        found, error = share(x)
        right_one = abs(found - WEIGHT) < 4 * error
        good &= right_one == (name != "plain Langevin")
        print(f"  {name:<18} {found:.3f} +- {error:.3f}  {'as it should be' if right_one else 'wrong'}")
    print(
        f"Wrote {OUT}/annealed_langevin_methods.png, {OUT}/annealed_langevin_levels.png in {time.perf_counter() - began:.0f} s."
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
