"""The Ising model through its phase transition: magnetisation, lattices, and why clusters beat single spins at it.

Spins x = -1 or +1 on a square lattice whose neighbours like to agree: E(x) = -sum x_i x_j over bonds, sampled from exp(-E / T).
Hot spins are noise. Under T_c = 2 / log(1 + sqrt 2) = 2.269 most of them agree, and the lattice is a magnet.
"""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path

import arviz as az
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

import ebmppl as eb
from ebmppl.diagnostics import plot_lattice
from ebmppl.diagnostics.statistics import absolute_magnetisation, magnetisation

mpl.use("Agg")
OUT = Path("out")
CRITICAL = 2 / math.log(1 + math.sqrt(2))  # Onsager 1944
TEMPERATURES = (1.6, 1.8, 2.0, 2.1, 2.2, 2.25, 2.3, 2.35, 2.4, 2.6, 2.8, 3.2)


def exact_magnetisation(temperature: float | np.ndarray) -> np.ndarray:
    """Of the infinite lattice (Onsager 1948, proved by Yang 1952): (1 - sinh(2 / T)^-4)^(1/8) under T_c, 0 above."""
    return np.maximum(0.0, 1 - np.sinh(2 / np.asarray(temperature)) ** -4.0) ** 0.125


def sample(kernel: eb.kernels.Kernel, chains: int, warmup: int, draws: int, start: Tensor | None = None) -> eb.MCMC:
    """All chains advance together; ``1 / T * ising`` is an energy like any other."""
    mcmc = eb.MCMC(kernel, draws, warmup, start, num_chains=chains, seed=0, disable_progbar=True)
    mcmc.run()
    return mcmc


# 1. The magnetisation curve.
def curve(size: int, chains: int, draws: int) -> float:
    """Swendsen-Wang at each temperature; the largest difference from the exact curve, in Monte Carlo errors."""
    ising = eb.models.Ising(lattice=(size, size))
    print(f"{size} x {size} spins, {chains} chains x {draws} sweeps of Swendsen-Wang at each temperature\n")
    print(f"{'T':>6} {'|m|':>8} {'error':>8} {'infinite lattice':>17}")
    found, worst = [], 0.0
    for temperature in TEMPERATURES:
        mcmc = sample(eb.SwendsenWang(1 / temperature * ising), chains, 60, draws)
        m = absolute_magnetisation(mcmc.get_samples()["x"]).view(chains, draws).double().numpy()
        mean, error, exact = m.mean(), float(az.mcse(m)), float(exact_magnetisation(temperature))
        print(f"{temperature:6.2f} {mean:8.4f} {error:8.4f} {exact:17.4f}")
        found.append((mean, error))
        if temperature < 2.15:  # nearer to T_c the finite lattice shows
            worst = max(worst, abs(mean - exact) / error)
    draw_curve(np.array(found), size)
    return worst


def draw_curve(found: np.ndarray, size: int) -> None:
    figure, axis = plt.subplots(figsize=(7, 4.5))
    fine = np.linspace(1.5, 3.3, 1000)
    axis.plot(fine, exact_magnetisation(fine), color="0.3", label="infinite lattice (Onsager, Yang)")
    axis.errorbar(
        TEMPERATURES, found[:, 0], 2 * found[:, 1], fmt="o", color="C3", ms=5, label=f"{size} x {size}, sampled"
    )
    axis.axvline(CRITICAL, color="0.7", linewidth=0.8, linestyle="--")
    axis.annotate(r"$T_c$", (CRITICAL, 1.0), xytext=(4, 0), textcoords="offset points", va="top")
    axis.set(xlabel="temperature T", ylabel="mean of |m|", ylim=(0, 1.04), xlim=(1.5, 3.3))
    axis.legend(frameon=False, loc="upper right")
    figure.tight_layout()
    figure.savefig(OUT / "ising_magnetisation.png", dpi=120)
    plt.close(figure)


# 2. Lattices at three temperatures.
def lattices(size: int, sweeps: int) -> None:
    ising = eb.models.Ising(lattice=(size, size))
    states, titles = [], []
    for temperature, name in ((1.9, "cold"), (CRITICAL, "critical"), (3.2, "hot")):
        mcmc = sample(eb.SwendsenWang(1 / temperature * ising), 1, sweeps, 1)
        states.append(mcmc.get_samples()["x"][0])
        titles.append(f"{name}: T = {temperature:.2f}")
    plot_lattice(torch.stack(states), OUT / "ising_lattices.png", titles=titles)


# 3. Autocorrelation at the critical temperature.
def autocorrelation(size: int, chains: int, draws: int) -> dict[str, float]:
    """Of |m|, by sweep: one of Gibbs touches every spin once, a cluster of Wolff's as many as it has sites."""
    energy = 1 / CRITICAL * eb.models.Ising(lattice=(size, size))
    start = sample(eb.SwendsenWang(energy), chains, 100, 1).get_samples()["x"]  # exact draws, nearly: no warm-up then
    taus, curves = {}, {}
    for name, kernel in (("Gibbs", eb.Gibbs(energy)), ("Wolff", eb.Wolff(energy))):
        mcmc = sample(kernel, chains, 0, draws, start)
        m = absolute_magnetisation(mcmc.get_samples()["x"]).view(chains, draws).double().numpy()
        stats = mcmc.stats()
        sweep = float(stats["cluster_size"].double().mean()) / size**2 if name == "Wolff" else 1.0
        rho = correlations(m)
        taus[name] = sweep * integrated_time(rho)
        curves[name] = (sweep * np.arange(len(rho)), rho)
    draw_autocorrelation(curves, taus, size)
    return taus


def correlations(x: np.ndarray) -> np.ndarray:
    """Autocorrelations ``(draws // 2,)`` of chains ``(chains, draws)`` about the mean of all of them."""
    chains, n = x.shape
    power = np.abs(np.fft.rfft(x - x.mean(), 2 * n, axis=1)) ** 2
    products = np.fft.irfft(power.mean(0))[: n // 2] / (n - np.arange(n // 2))
    return products / products[0]


def integrated_time(rho: np.ndarray) -> float:
    """1 + 2 sum rho, up to the first lag beyond five times it (Sokal 1997): the draws that are worth one."""
    tau = 1 + 2 * np.cumsum(rho[1:])
    beyond = np.flatnonzero(np.arange(1, len(rho)) >= 5 * tau / 2)
    return float(tau[beyond[0] if len(beyond) else -1])


def draw_autocorrelation(curves: dict[str, tuple[np.ndarray, np.ndarray]], taus: dict[str, float], size: int) -> None:
    figure, axis = plt.subplots(figsize=(7, 4.5))
    for (name, (lag, rho)), colour in zip(curves.items(), ("C0", "C1"), strict=True):
        axis.plot(lag, rho, color=colour, label=f"{name}: {taus[name]:.3g} sweeps for one independent draw")
    axis.axhline(0, color="0.7", linewidth=0.8)
    end = max(5.0, min(2 * taus["Gibbs"], curves["Gibbs"][0][-1]))
    axis.set(xlabel="lag in sweeps", ylabel="autocorrelation of |m|", xlim=(0, end), ylim=(-0.1, 1.02))
    axis.set_title(f"{size} x {size} spins at $T_c$", fontsize=11)
    axis.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(OUT / "ising_autocorrelation.png", dpi=120)
    plt.close(figure)


# 4. What the diagnostics say where single spins are not enough.
def judge(size: int, draws: int) -> eb.diagnostics.Summary:
    """Gibbs at a low temperature: each chain falls into one of the two phases, or keeps stripes of both, and stays there."""
    kernel = eb.Gibbs(1 / 1.6 * eb.models.Ising(lattice=(size, size)))
    mcmc = sample(kernel, 8, 300, draws)
    statistics = {"m": magnetisation, "|m|": absolute_magnetisation}
    return mcmc.summary(statistics=statistics, var_names=["m", "|m|", "energy"])


def main(size: int = 32, chains: int = 32, draws: int = 200, steps: int = 3000, picture: int = 128) -> int:
    began = time.perf_counter()
    OUT.mkdir(exist_ok=True)
    worst = curve(size, chains, draws)
    agree = worst < 4  # the largest of four z-scores passes 4 once in 4,000 runs when all is right
    print(
        f"\nUnder T = 2.15 the largest difference from the exact curve is {worst:.1f} Monte Carlo errors, "
        f"{'as it should be' if agree else 'WRONG'}."
    )
    lattices(picture, 100)
    taus = autocorrelation(size, chains, steps)
    print(
        f"\nAt T_c one independent |m| takes {taus['Gibbs']:.0f} sweeps of Gibbs and {taus['Wolff']:.1f} of Wolff: ",
        end="",
    )
    print(f"{taus['Gibbs'] / taus['Wolff']:.0f} times fewer (and the ratio grows with the lattice).")
    print("\nGibbs at T = 1.6, eight chains from random spins: each falls into one phase, or keeps stripes of both.\n")
    judge(size, draws)
    names = ("magnetisation", "lattices", "autocorrelation")
    print(f"\nWrote {', '.join(f'{OUT}/ising_{name}.png' for name in names)} in {time.perf_counter() - began:.0f} s.")
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
