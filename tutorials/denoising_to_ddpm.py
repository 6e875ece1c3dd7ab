"""From denoising to DDPM, in one page of formulas and code.

1. Denoising is scores. For x = x_0 + sigma eps, eps ~ N(0, I), Tweedie's formula says of the density p of x

       grad log p(x) = (E[x_0 | x] - x) / sigma^2 = -E[eps | x] / sigma.

   The best predictor of the noise in the mean square is E[eps | x]. So whoever learns to remove noise learns a score
   (Vincent 2011): min_e E |e(x) - eps|^2 is denoising score matching.

2. One noise level is too few: small noise leaves most of space without data, much noise blurs what is wanted. So take many
   (Song and Ermon 2019). DDPM (Ho, Jain and Abbeel 2020) mixes noise in step by step, and shrinks the data as much:

       x_i = sqrt(1 - beta_i) x_{i-1} + sqrt(beta_i) z_i   =>   x_i = sqrt(abar_i) x_0 + sqrt(1 - abar_i) eps,

   with abar_i = (1 - beta_1) ... (1 - beta_i), so that x_N is all but pure noise, and learns one e(x, i) for all i:

       L = E_{i, x_0, eps} |e(x_i, i) - eps|^2.

3. Sampling goes back. Given x_0, the law of x_{i-1} given x_i is Gaussian, with mean and variance

       mu = sqrt(abar_{i-1}) beta_i / (1 - abar_i) x_0 + sqrt(1 - beta_i) (1 - abar_{i-1}) / (1 - abar_i) x_i,
       v  = beta_i (1 - abar_{i-1}) / (1 - abar_i).

   Put the denoised x_0 = (x_i - sqrt(1 - abar_i) e(x_i, i)) / sqrt(abar_i) in the place of x_0, and draw, from i = N to 1.

4. With many steps this is an SDE: dx = -beta(t) x / 2 dt + sqrt(beta(t)) dw, t = i / N, beta_i = beta(t) / N. Song et al. (2021)
   run it backward, dx = [-beta x / 2 - beta s(x, t)] dt + sqrt(beta) dw with s = -e / sigma, or without noise as an ODE, of
   which DDIM is Euler's method in sigma / sqrt(abar), and which takes 20 network calls in the place of N.

The code does all four for two bumps on a line, where the exact score is known: by hand, and by the library.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import torch
from torch import Generator, Tensor

import ebmppl as eb
from ebmppl.score import DiscreteTimes, DiscreteVP, NoisePrediction, TimeMLP, linear_betas, log_snr_times

mpl.use("Agg")
OUT = Path("out")
N = 200
WEIGHTS, MEANS, STD = torch.tensor([0.3, 0.7]), torch.tensor([-2.0, 1.0]), 0.3  # of the two bumps


def data(n: int, generator: Generator) -> Tensor:
    which = torch.multinomial(WEIGHTS, n, replacement=True, generator=generator)
    return MEANS[which].unsqueeze(1) + STD * torch.randn(n, 1, generator=generator)


def exact_noise(x: Tensor, kept: Tensor) -> Tensor:
    """1. E[eps | x] at x ``(rows, 1)`` where abar is ``kept`` ``(rows,)``: -sigma times the score of two blurred bumps."""
    kept = kept.unsqueeze(1)
    variance = kept * STD**2 + 1 - kept
    bumps = torch.softmax(WEIGHTS.log() - 0.5 * (x - kept.sqrt() * MEANS).square() / variance, 1)
    score = (bumps * (kept.sqrt() * MEANS - x) / variance).sum(1, keepdim=True)
    return -(1 - kept).sqrt() * score


def loss_by_hand(network: torch.nn.Module, x: Tensor, abar: Tensor, steps: Tensor, noise: Tensor) -> Tensor:
    """2. DDPM's loss at steps 1 to N ``(rows,)``; halved, as the library's."""
    kept = abar[steps - 1].unsqueeze(1)
    noised = kept.sqrt() * x + (1 - kept).sqrt() * noise
    return 0.5 * (network(noised, steps / len(abar)) - noise).square().sum(1).mean()


@torch.no_grad()
def sample_by_hand(network: torch.nn.Module, n: int, betas: Tensor, generator: Generator) -> Tensor:
    """3. DDPM's sampler, without noise in the last step."""
    abar = (1 - betas).cumprod(0)
    before = torch.cat([torch.ones(1), abar[:-1]])
    x = torch.randn(n, 1, generator=generator)
    for i in range(len(betas), 0, -1):
        beta, kept, last = betas[i - 1], abar[i - 1], before[i - 1]
        e = network(x, torch.full((n,), i / len(betas)))
        denoised = (x - (1 - kept).sqrt() * e) / kept.sqrt()
        mean = last.sqrt() * beta / (1 - kept) * denoised + (1 - beta).sqrt() * (1 - last) / (1 - kept) * x
        x = mean + (beta * (1 - last) / (1 - kept)).sqrt() * torch.randn(n, 1, generator=generator)
    return x


def train(x: Tensor, steps: int) -> NoisePrediction:
    """2. by the library: the loss of the noise at DDPM's own times."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = NoisePrediction(TimeMLP((1,), (64, 64)), DiscreteVP(linear_betas(N)))
    loss = eb.DiffusionScoreMatching(DiscreteTimes.of(model.sde), low_discrepancy=True, seed=0)
    run = eb.fit(
        loss, model, x, steps=steps, batch_size=256, ema=0.99, seed=0, progress=False,
        optimizer=partial(torch.optim.Adam, lr=5e-3),
        schedule=lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps),
    )  # fmt: skip
    run.run()
    assert run.ema is not None
    run.ema.put()
    return model


def main(steps: int = 1500, n: int = 4000) -> int:
    OUT.mkdir(exist_ok=True)
    generator = Generator().manual_seed(0)
    model = train(data(4000, generator), steps)
    network, sde, betas = model.network, model.sde, linear_betas(N).float()
    abar = (1 - betas).cumprod(0)

    x, noise = data(4000, generator), torch.randn(4000, 1, generator=generator)
    at = torch.randint(1, N + 1, (4000,), generator=generator)
    kept = abar[at - 1]
    noised = kept.sqrt().unsqueeze(1) * x + (1 - kept).sqrt().unsqueeze(1) * noise
    with torch.no_grad():
        loss = float(loss_by_hand(network, x, abar, at, noise))
        best = float(0.5 * (exact_noise(noised, kept) - noise).square().sum(1).mean())
        apart = float((network(noised, at / N) - exact_noise(noised, kept)).square().mean())
    print(f"Loss {loss:.4f}; of the exact E[eps | x] {best:.4f}. Mean squared distance of the two: {apart:.4f}.")

    ways = {
        f"DDPM by hand, {N} calls": sample_by_hand(network, n, betas, generator),
        f"ReverseSDE, ancestral, {N} calls": eb.generate(
            eb.ReverseSDE(model, sde, (1,), N - 1, "ancestral", t_min=1 / N, denoise=True), n, seed=1
        ),
        "DDIM, 20 calls": eb.generate(eb.ProbabilityFlow(model, sde, (1,), 20, "euler", t_min=1 / N), n, seed=1),
        "DPM-Solver++(2M), 20 calls": eb.generate(
            eb.ProbabilityFlow(model, sde, (1,), 20, t_min=1 / N, times=log_snr_times), n, seed=1
        ),
    }
    figure, axes = plt.subplots(1, len(ways), figsize=(3 * len(ways), 2.6), sharex=True, sharey=True)
    line = torch.linspace(-4, 3, 400).unsqueeze(1)
    density = (WEIGHTS * torch.exp(-0.5 * ((line - MEANS) / STD) ** 2) / (STD * 2.5066283)).sum(1)
    for axis, (name, draws) in zip(axes, ways.items(), strict=True):
        left = float((draws < -0.5).float().mean())
        print(f"{name:>34}: {left:.3f} of the samples in the left bump, of the data {float(WEIGHTS[0]):.3f}.")
        axis.hist(draws.squeeze(1).numpy(), 80, range=(-4, 3), density=True, color="C0", alpha=0.5)
        axis.plot(line.squeeze(1), density, color="C3", lw=1)
        axis.set_title(name, fontsize=9)
    figure.tight_layout()
    figure.savefig(OUT / "denoising_to_ddpm.png", dpi=120)
    plt.close(figure)
    print(f"Wrote {OUT}/denoising_to_ddpm.png.")
    return 0 if apart < 0.1 else 1


if __name__ == "__main__":
    sys.exit(main())
