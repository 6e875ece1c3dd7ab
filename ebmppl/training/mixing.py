"""R-hat and effective draws of many short chains, from arrays."""

from __future__ import annotations

import math

import numpy as np

LEAST = 20  # draws of a chain that can be judged


def judged(energies: np.ndarray) -> np.ndarray | None:
    """Chains ``(chains, draws)`` from a table ``(steps, chains)`` with NaN where a chain did not move.

    The mean over chains is taken off each step: as parameters change all energies do, and that is no mixing. Of chains
    that moved at different steps the last draws are taken, as many as half of them have. None where there are too few,
    or where all energies are one and the same up to rounding.
    """
    there = np.isfinite(energies)
    counts = there.sum(0)
    most = int(np.median(counts)) if counts.size else 0
    used = np.flatnonzero(counts >= most)
    if most < LEAST or len(used) < 2:
        return None
    rows = there.any(1)
    energies, there = energies[rows].astype(float), there[rows]
    means = np.where(there, energies, 0).sum(1) / there.sum(1)
    centred = energies - means[:, None]
    chains = np.stack([centred[there[:, c], c][-most:] for c in used])
    scale = np.abs(means).max() + 1e-30
    return chains if chains.std() > 1e-6 * scale else None


def r_hat(chains: np.ndarray) -> float:
    r"""Split :math:`\hat R` of ``(chains, draws)`` (Gelman et al. 2013, equation 11.4): 1 if chains agree, inf if none moves."""
    split = _halves(chains)
    within, between = split.var(1, ddof=1).mean(), split.mean(1).var(ddof=1)
    n = split.shape[1]
    if within == 0:
        return math.inf if between > 0 else math.nan
    return math.sqrt((n - 1) / n + between / within)


def effective(chains: np.ndarray) -> float:
    """Effective draws of all chains together, by Geyer's initial monotone sequence (Vehtari et al. 2021, section 3)."""
    split = _halves(chains)
    m, n = split.shape
    centred = split - split.mean(1, keepdims=True)
    power = np.abs(np.fft.rfft(centred, 2 * n, axis=1)) ** 2
    covariance = np.fft.irfft(power, axis=1)[:, :n].mean(0) / n
    within = covariance[0] * n / (n - 1)
    total = covariance[0] + split.mean(1).var(ddof=1)
    if not total > 0:
        return math.nan
    rho = 1 - (within - covariance) / total
    rho[0] = 1.0
    pairs = rho[: 2 * ((n - 1) // 2)].reshape(-1, 2).sum(1)
    ends = np.flatnonzero(pairs <= 0)
    end = int(ends[0]) if len(ends) else len(pairs) - 1
    beyond = max(0.0, float(rho[2 * end]))  # half of the first pair that is left out, where it is positive
    tau = -1 + 2 * np.minimum.accumulate(pairs[:end]).sum() + beyond
    return float(m * n / max(tau, 1 / math.log10(m * n)))


def _halves(chains: np.ndarray) -> np.ndarray:
    half = chains.shape[1] // 2
    return np.concatenate([chains[:, :half], chains[:, chains.shape[1] - half :]])
