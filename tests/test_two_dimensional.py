"""Energies of five data sets in the plane, trained in four ways, against data that were held out; with pictures.

Samples of a trained energy are exact but for the cells of a fine grid, so that no sampler is tested with it. Denoising
learns the blurred data, and is compared with those. ``EBMPPL_PICTURES`` names the folder of the pictures.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pyro.distributions as dist
import pytest
import torch
from torch import Generator, Tensor

from ebmppl.diagnostics.distances import two_sample_test
from ebmppl.energies import Energy, MLPEnergy
from ebmppl.kernels import Langevin
from ebmppl.losses import NCE, PCD, DenoisingScoreMatching, Loss, SlicedScoreMatching
from ebmppl.training import fit
from tests.plane import SETS

mpl.use("Agg")
import matplotlib.pyplot as plt

SIGMA, REACH, CELLS, STEPS = 0.2, 4.0, 400, 1500
BANDWIDTH = 0.3  # of the MMD: the size of what a Gaussian misses


def normal(x: Tensor, scale: float = 1.0) -> dist.MultivariateNormal:
    """With the data's mean, and scale times their covariance."""
    return dist.MultivariateNormal(x.mean(0), scale * x.mT.cov())


def loss_of(method: str, x: Tensor) -> tuple[Loss, Any]:
    """A loss and its guide."""
    if method == "nce":
        return NCE(2, seed=0), normal(x, 1.5)
    if method == "pcd":
        chains = partial(Langevin, step_size=0.02)
        return PCD(k=10, kernel=chains, num_chains=256, reinit=0.02, seed=0), None
    if method == "ssm":
        return SlicedScoreMatching(seed=0), None
    return DenoisingScoreMatching(SIGMA, seed=0), None


@torch.no_grad()
def on_grid(energy: Energy) -> tuple[Tensor, Tensor]:
    """Centres of cells ``(cells, 2)`` and their probabilities."""
    line = (torch.arange(CELLS) + 0.5) * (2 * REACH / CELLS) - REACH
    centres = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)
    return centres, torch.softmax(-energy(centres).double(), 0)


def draw(centres: Tensor, p: Tensor, n: int, generator: Generator) -> Tensor:
    at = centres[torch.multinomial(p, n, replacement=True, generator=generator)]
    return at + (torch.rand(n, 2, generator=generator) - 0.5) * (2 * REACH / CELLS)


def picture(title: str, p: Tensor, samples: Tensor, held_out: Tensor, path: Path) -> None:
    """Density of the energy, its samples, and the data."""
    figure, axes = plt.subplots(1, 3, figsize=(9, 3.4), sharex=True, sharey=True)
    extent = (-REACH, REACH, -REACH, REACH)
    axes[0].imshow((p / p.max()).sqrt().reshape(CELLS, CELLS).mT.numpy(), extent=extent, origin="lower", cmap="Greys")
    for axis, points, name in zip(axes[1:], (samples, held_out), ("samples", "held-out data"), strict=True):
        axis.scatter(*points.mT.numpy(), s=2, linewidths=0)
        axis.set_title(name, fontsize=10)
    axes[0].set_title("square root of the density", fontsize=10)
    axes[0].set(xlim=(-3, 3), ylim=(-3, 3))
    for axis in axes:
        axis.set_aspect("equal")
    figure.suptitle(title, fontsize=11)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


@pytest.mark.long
@pytest.mark.parametrize("method", ["nce", "pcd", "ssm", "dsm"])
@pytest.mark.parametrize("name", SETS)
def test_a_network_learns_data_in_the_plane(name: str, method: str, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    x, held_out = SETS[name](10000, generator), SETS[name](1000, generator)
    if method == "dsm":
        held_out = held_out + SIGMA * torch.randn(held_out.shape, generator=generator)
    loss, guide = loss_of(method, x)
    energy = MLPEnergy(2, (128, 128), confine=0.1, generator=torch.Generator().manual_seed(0))
    untrained = two_sample_test(draw(*on_grid(energy), 1000, generator), held_out, bandwidth=BANDWIDTH, permutations=1)
    fit(
        loss, energy, x, guide=guide, steps=STEPS, batch_size=256, clip=10.0, seed=0, progress=False,
        optimizer=partial(torch.optim.Adam, lr=2e-3),
        schedule=lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS),
    ).run()  # fmt: skip
    centres, p = on_grid(energy)
    samples = draw(centres, p, 1000, generator)
    found = two_sample_test(samples, held_out, bandwidth=BANDWIDTH)
    covariance = x.mT.cov() + (SIGMA**2 * torch.eye(2) if method == "dsm" else 0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plain = dist.MultivariateNormal(x.mean(0), covariance).sample((1000,))
    gaussian = two_sample_test(plain, held_out, bandwidth=BANDWIDTH)
    said = f"{name} by {method}: squared MMD {found.distance:.5f}, p = {found.p_value:.3f}"
    print(
        f"{said}; of a Gaussian {gaussian.distance:.5f}, p = {gaussian.p_value:.3f}; untrained {untrained.distance:.5f}"
    )
    folder = Path(os.environ.get("EBMPPL_PICTURES", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name.replace(' ', '_').lower()}_{method}.png"
    picture(said, p, samples, held_out, path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert gaussian.p_value <= 0.01  # the test sees what is to be learned
    assert found.distance < gaussian.distance < untrained.distance * 2
    # scores hardly see the weights of modes that are apart; what others reach in so few steps, the figures say
    if method == "dsm" and name != "eight Gaussians":
        assert found.p_value >= 0.01
