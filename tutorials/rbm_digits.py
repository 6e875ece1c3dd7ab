"""A restricted Boltzmann machine of handwritten digits: its filters, its samples, and how good it truly is.

8x8 digits, each pixel on or off, are learned by persistent contrastive divergence. With 16 hidden units the log
partition function is a sum over 65,536 hidden states, so the exact log-likelihood of held-out digits can be watched.
"""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

import ebmppl as eb
from ebmppl.diagnostics import plot_filters
from ebmppl.training import Monitor, RaiseK

mpl.use("Agg")
OUT = Path("out")
SIDE, BATCH, TRAINED_ON = 8, 50, 1500


def digits() -> tuple[Tensor, Tensor]:
    """Bits ``(1500, 64)`` to learn from and ``(297, 64)`` held out."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        sys.exit("The digits come with scikit-learn: pip install scikit-learn")
    images = torch.from_numpy(load_digits().data)
    bits = (images > 7).float()[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))]
    return bits[:TRAINED_ON], bits[TRAINED_ON:]


@torch.no_grad()
def log_likelihood(rbm: eb.models.BernoulliRBM, data: Tensor) -> float:
    """Exact mean log-likelihood in nats."""
    log_z = eb.partition.Exact().log_z(rbm)
    return float(-rbm(data).mean() - log_z)


def train(data: Tensor, held_out: Tensor, hidden: int, epochs: int) -> tuple[eb.models.BernoulliRBM, list[list[float]]]:
    """PCD for some epochs; the curve ``[epoch, train, held out]`` of exact log-likelihoods."""
    generator = torch.Generator().manual_seed(0)
    rbm = eb.models.BernoulliRBM(SIDE * SIDE, hidden).init_from_data(data, generator=generator)
    per_epoch = -(-len(data) // BATCH)
    run = eb.fit(
        eb.losses.PCD(k=1, kernel=eb.Gibbs, num_chains=100, seed=0),
        rbm,
        data,
        epochs=epochs,
        batch_size=BATCH,
        optimizer=partial(torch.optim.SGD, lr=0.4),
        schedule=partial(
            torch.optim.lr_scheduler.LinearLR, start_factor=1.0, end_factor=0.1, total_iters=epochs * per_epoch
        ),
        ema=0.99,
        monitor=Monitor([RaiseK(most=8)], every=per_epoch),
        seed=0,
        progress=False,
    )
    assert run.ema is not None
    curve = [[0.0, log_likelihood(rbm, data), log_likelihood(rbm, held_out)]]
    print(f"{'epoch':>6} {'train':>9} {'held out':>9}   nats per digit, exact")
    for record in run:
        if record.health is not None and record.health.problems:
            print(record.health)
        if (record.step + 1) % per_epoch == 0 and (record.epoch < 5 or record.epoch % 5 == 4):
            with run.ema.applied():
                curve.append([record.epoch + 1.0, log_likelihood(rbm, data), log_likelihood(rbm, held_out)])
            if record.epoch % 10 == 9 or record.epoch == 0:
                print(f"{record.epoch + 1:6d} {curve[-1][1]:9.2f} {curve[-1][2]:9.2f}")
    run.ema.put()  # the average is what is kept
    return rbm, curve


def sample(rbm: eb.models.BernoulliRBM, chains: int, sweeps: int) -> Tensor:
    """Probabilities of the pixels ``(chains, pixels)`` given hidden units of independent chains of Gibbs sampling."""
    mcmc = eb.MCMC(eb.Gibbs(rbm), 1, sweeps, num_chains=chains, seed=1, disable_progbar=True)
    mcmc.run()
    with torch.no_grad():
        return rbm.p_visible(
            rbm.p_hidden(mcmc.get_samples()["x"].float()).bernoulli(generator=torch.Generator().manual_seed(2))
        )


def draw_samples(data: Tensor, samples: Tensor, side: int, path: Path) -> None:
    rows = min(8, int(min(len(data), len(samples)) ** 0.5))
    figure, axes = plt.subplots(1, 2, figsize=(8, 4.3))
    for axis, images, title in ((axes[0], data, "data"), (axes[1], samples, "samples (pixel probabilities)")):
        tiles = images[: rows * rows].reshape(rows, rows, side, side).numpy()
        tiles = np.pad(tiles, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=0.35)
        axis.imshow(tiles.transpose(0, 2, 1, 3).reshape(rows * (side + 2), -1), cmap="gray_r", vmin=0, vmax=1)
        axis.set(xticks=[], yticks=[])
        axis.set_title(title, fontsize=11)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_curve(curve: list[list[float]], path: Path) -> None:
    epochs, train_, held_out = np.array(curve).T
    figure, axis = plt.subplots(figsize=(7, 4.2))
    axis.plot(epochs, train_, "o-", ms=3, color="C0", label="training digits")
    axis.plot(epochs, held_out, "o-", ms=3, color="C3", label="held-out digits")
    axis.axhline(curve[0][2], color="0.6", linewidth=0.8, linestyle="--", label="independent pixels (held out)")
    axis.set(xlabel="epoch", ylabel="exact log-likelihood, nats per digit")
    axis.legend(frameon=False, loc="center right")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(hidden: int = 16, epochs: int = 60, sweeps: int = 500) -> int:
    began = time.perf_counter()
    OUT.mkdir(exist_ok=True)
    data, held_out = digits()
    rbm, curve = train(data, held_out, hidden, epochs)
    draw_curve(curve, OUT / "rbm_digits_likelihood.png")
    plot_filters(rbm.W, (SIDE, SIDE), OUT / "rbm_digits_filters.png")
    draw_samples(held_out, sample(rbm, 64, sweeps), SIDE, OUT / "rbm_digits_samples.png")
    gained = curve[-1][2] - curve[0][2]
    print(f"\nHeld-out digits: {curve[0][2]:.2f} nats as independent pixels, {curve[-1][2]:.2f} by the RBM.")
    names = ("likelihood", "filters", "samples")
    print(
        f"Wrote {', '.join(f'{OUT}/rbm_digits_{name}.png' for name in names)} in {time.perf_counter() - began:.0f} s."
    )
    return 0 if gained > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
