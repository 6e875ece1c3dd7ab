"""A large restricted Boltzmann machine of binarized MNIST: filters, samples, and the curves that can be had without log Z.

``python tutorials/rbm_mnist.py binarized_mnist.npz`` learns 784 visible and 500 hidden units by persistent contrastive
divergence. Here log Z is out of reach of sums. The pseudo-likelihood and the reconstruction need none: they tell whether
learning goes on, not how good the model is (a model may reconstruct well and give poor samples). ``partition`` estimates log Z.
"""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch
from rbm_digits import OUT, draw_samples, sample
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

import ebmppl as eb
from ebmppl.diagnostics import plot_filters
from ebmppl.training import Monitor, RaiseK, TensorBoard

mpl.use("Agg")
SIDE, BATCH = 28, 100


def images(path: Path) -> tuple[Tensor, Tensor]:
    """Bits ``(images, 784)`` to learn from and held out, of a file with packed rows ``train`` and ``test``."""
    with np.load(path) as packed:
        train, test = (torch.from_numpy(np.unpackbits(packed[name], axis=1)).float() for name in ("train", "test"))
    return train, test


@torch.no_grad()
def reconstruction(rbm: eb.models.BernoulliRBM, data: Tensor) -> float:
    """Mean log p(v | h) in nats, of data v and hidden units h that are drawn given them."""
    h = rbm.p_hidden(data).bernoulli(generator=torch.Generator().manual_seed(0))
    surprise = binary_cross_entropy_with_logits(rbm.visible_logits(h), data, reduction="none")
    return -float(surprise.sum(1).mean())


@torch.no_grad()
def pseudo_likelihood(rbm: eb.models.BernoulliRBM, data: Tensor) -> float:
    """Mean log pseudo-likelihood in nats, by 98 pixels, always the same."""
    bound = eb.losses.PseudoLikelihood(min(98, rbm.num_visible), seed=0)(rbm).eval()
    return -float(bound(data))


Curve = list[tuple[float, float, float]]


def train(
    data: Tensor, held_out: Tensor, hidden: int, epochs: int, every: int, board: TensorBoard | None = None
) -> tuple[eb.models.BernoulliRBM, Curve]:
    """PCD for some epochs; the curve (epoch, pseudo-likelihood, reconstruction) of held-out images."""
    generator = torch.Generator().manual_seed(0)
    rbm = eb.models.BernoulliRBM(data.shape[1], hidden).init_from_data(data, generator=generator)
    per_epoch = -(-len(data) // BATCH)
    loss = eb.losses.PCD(k=1, kernel=eb.Gibbs, num_chains=BATCH, seed=0)
    falling = partial(torch.optim.lr_scheduler.LinearLR, start_factor=1.0, end_factor=0.05)
    run = eb.fit(
        loss, rbm, data, epochs=epochs, batch_size=BATCH, seed=0, progress=False,
        optimizer=partial(torch.optim.SGD, lr=0.05), schedule=partial(falling, total_iters=epochs * per_epoch),
        monitor=Monitor([RaiseK(most=4)], every=per_epoch),
    )  # fmt: skip
    curve = [(0.0, pseudo_likelihood(rbm, held_out), reconstruction(rbm, held_out))]
    print(f"{'epoch':>6} {'pseudo':>9} {'reconstruction':>15}   nats per held-out image")
    for record in run:
        if record.health is not None and record.health.problems:
            print(record.health)
        more = {}
        if (record.step + 1) % every == 0:
            more = {
                "pseudo_likelihood": pseudo_likelihood(rbm, held_out),
                "reconstruction": reconstruction(rbm, held_out),
            }
            curve.append(((record.step + 1) / per_epoch, *more.values()))
            print("{:6.2f} {:9.2f} {:15.2f}".format(*curve[-1]), flush=True)
        if board is not None:
            board(record, **more)
    return rbm, curve


def draw_curve(curve: Curve, path: Path) -> None:
    epochs, pseudo, reconstructed = zip(*curve, strict=True)
    figure, axis = plt.subplots(figsize=(7, 4.2))
    axis.plot(epochs, pseudo, "o-", ms=3, color="C0", label="log pseudo-likelihood")
    axis.plot(epochs, reconstructed, "o-", ms=3, color="C3", label="log-probability of the reconstruction")
    axis.set(xlabel="epoch", ylabel="nats per held-out image")
    axis.legend(frameon=False, loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(
    path: Path, hidden: int = 500, epochs: int = 5, every: int = 100, sweeps: int = 1000, board: Path | None = None
) -> int:
    began = time.perf_counter()
    OUT.mkdir(exist_ok=True)
    data, test = images(path)
    test = test[:: max(1, len(test) // 500)]  # a file may be in the order of the digits
    with nullcontext() if board is None else TensorBoard(board, every=10) as curves:
        rbm, curve = train(data, test, hidden, epochs, every, curves)
    draw_curve(curve, OUT / "rbm_mnist_curves.png")
    plot_filters(rbm.W, (SIDE, SIDE), OUT / "rbm_mnist_filters.png")
    draw_samples(test[:: max(1, len(test) // 64)], sample(rbm, 64, sweeps), SIDE, OUT / "rbm_mnist_samples.png")
    names = ", ".join(f"{OUT}/rbm_mnist_{name}.png" for name in ("curves", "filters", "samples"))
    print(f"Wrote {names} in {time.perf_counter() - began:.0f} s.")
    return 0 if curve[-1][1] > curve[0][1] else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, help="an npz with bit-packed rows 'train' and 'test', 784 pixels each")
    parser.add_argument("--hidden", type=int, default=500)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--board", type=Path, help="write TensorBoard's curves here, too (pip install tensorboard)")
    given = parser.parse_args()
    sys.exit(main(given.path, given.hidden, given.epochs, board=given.board))
