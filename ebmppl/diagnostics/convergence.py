"""Whether the chains agree: ESS and R-hat by ArviZ, and the R-hat that stationary chains of a given ESS would show."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from scipy.special import ndtri
from scipy.stats import chi2, rankdata
from torch import Tensor

from ebmppl.interop.arviz import host_arrays, import_arviz, quiet_arviz
from ebmppl.interop.derived import derived

if TYPE_CHECKING:
    import xarray as xr

    from ebmppl.interop.derived import Statistics
    from ebmppl.sampling.mcmc import MCMC

R_HAT = 1.01  # Vehtari et al. 2021
WORST_R_HAT = 1.2  # Gelman and Rubin 1992; chains of fewer than 4.5 effective draws can't be judged
FALSE_ALARM = 1e-3  # of one element of stationary chains, where there are more than four
_TURNS = 4  # of ESS and variance in ess_within
MIN_DRAWS = 4  # of a chain, below which ArviZ has no answer


def convergence(samples: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Bulk effective sample size and rank-normalised split R-hat of every element of every site.

    References:
        Vehtari, Gelman, Simpson, Carpenter and Bürkner 2021, "Rank-normalization, folding, and localization: an
        improved R-hat for assessing convergence of MCMC".

    Args:
        samples: by site, draws ``(chains, draws, *site)``.

    Returns:
        By site a dict with ``n_eff`` (draws of all chains) and ``r_hat`` (1 at convergence), float64 ``(*site)`` each.
        The halves of a single chain are compared like two chains. NaN with fewer than 4 draws a chain, for non-finite
        draws, and (R-hat) for constant ones.
    """
    data = as_dataset(host_arrays(samples))
    n_eff, r_hat = ess(data), rhat(data)
    return {name: {"n_eff": torch.from_numpy(n_eff[name]), "r_hat": torch.from_numpy(r_hat[name])} for name in samples}


def diagnostics(mcmc: MCMC, statistics: Statistics | None = None) -> dict[str, Any]:
    """What ``MCMC.diagnostics`` gives."""
    stats, counts = mcmc.stats(), mcmc.now.counts
    judged = mcmc.get_samples(group_by_chain=True)
    if statistics is not None:
        judged = {"energy": -stats["lp"], **derived(judged, statistics)}
    assert counts is not None  # a run with draws has them
    return {
        **convergence(judged),
        "divergences": {f"chain {i}": int(n) for i, n in enumerate(counts.diverging)},
        "acceptance rate": {f"chain {i}": float(r) for i, r in enumerate(stats["acceptance_rate"].mean(1))},
    }


def as_dataset(values: Mapping[str, np.ndarray]) -> xr.Dataset:
    """Arrays ``(chains, draws, *site)`` by name as an ``xarray.Dataset``."""
    import xarray as xr

    return xr.Dataset(
        {name: (("chain", "draw", *(f"{name}_dim_{i}" for i in range(v.ndim - 2))), v) for name, v in values.items()}
    )


@contextmanager
def arviz_numerics() -> Iterator[Any]:
    """ArviZ, without the divisions by the variance of constant draws, and the log lines that our flags say in words."""
    arviz = import_arviz()
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)  # ArviZ's logger is in no registry, so it can't be asked for by name
    try:
        with np.errstate(divide="ignore", invalid="ignore"), quiet_arviz():
            yield arviz
    finally:
        logging.disable(level)


def ess(data: xr.Dataset, method: str = "bulk") -> dict[str, np.ndarray]:
    """ArviZ's effective sample size of all chains, ``(*site)`` by name; NaN with fewer than 4 draws a chain."""
    return _by_arviz("ess", data, method)


def rhat(data: xr.Dataset, method: str = "rank") -> dict[str, np.ndarray]:
    """ArviZ's R-hat, ``(*site)`` by name; the halves of one chain count as two chains."""
    return _by_arviz("rhat", halves(data) if data.sizes["chain"] == 1 else data, method)


def _by_arviz(function: str, data: xr.Dataset, method: str) -> dict[str, np.ndarray]:
    if data.sizes["draw"] < MIN_DRAWS:
        return {str(name): np.full(v.shape[2:], np.nan) for name, v in data.data_vars.items()}
    data = data.map(lambda v: v.astype(np.int8) if v.dtype == bool else v)
    with arviz_numerics() as arviz:
        result = getattr(arviz, function)(data, method=method)
    return {str(name): np.asarray(result[name].values, dtype=float) for name in data.data_vars}


def halves(data: xr.Dataset) -> xr.Dataset:
    """Every chain cut into two, without the last draw where their number is odd: ``(2 chains, draws // 2, *site)``."""
    half = data.sizes["draw"] // 2
    return as_dataset(
        {
            str(name): np.concatenate([v.values[:, :half], v.values[:, half : 2 * half]])
            for name, v in data.data_vars.items()
        }
    )


class Comparison(NamedTuple):
    """How much the chains of one quantity disagree, and how much they may.

    Attributes:
        values: what was compared, ``(chains, draws)``: the draws, or their distances from the median.
        r_hat: rank-normalised split R-hat of these.
        threshold: see ``r_hat_threshold``.
        ess_per_chain: effective draws of these within a chain.
    """

    values: np.ndarray
    r_hat: float
    threshold: float
    ess_per_chain: float

    @property
    def agrees(self) -> bool:
        """R-hat is known and under its threshold."""
        return self.r_hat <= self.threshold


def compare_chains(draws: np.ndarray) -> Comparison:
    """Compare the chains of one quantity ``(chains, draws)`` in location and in scale; the answer is the worse one.

    Scale is the location of the distances from the median. The two mix at their own speeds (antithetic draws have more
    effective draws for their mean than for their spread), so each R-hat has the threshold of its own ESS.
    """
    if len(draws) == 1:
        half = draws.shape[1] // 2
        draws = np.concatenate([draws[:, :half], draws[:, half : 2 * half]])
    return max((_compare(x) for x in (draws, np.abs(draws - np.median(draws)))), key=lambda c: c.r_hat / c.threshold)


def _compare(draws: np.ndarray) -> Comparison:
    within = ess_within(draws)
    r_hat = float(rhat(as_dataset({"x": draws}), "z_scale")["x"])
    return Comparison(draws, r_hat, r_hat_threshold(within, len(draws)), within)


def ess_within(draws: np.ndarray) -> float:
    """Effective draws per chain of one quantity ``(chains, draws)``, whether or not the chains agree.

    The bulk ESS would not do: it falls where chains disagree, and a threshold made from it then rises beyond the R-hat
    that it is there to judge. So each half of each chain is put where stationary halves would lie: their means normal,
    with the variance that their own effective draws give them. (Halves centred at 0 would make the ESS of short chains
    too large; the variance and the ESS hang together, and are found by turns.)
    """
    n = draws.shape[1]
    ranks = normal_ranks(draws)
    split = np.concatenate([ranks[:, : n // 2], ranks[:, n - n // 2 :]])
    split = split - split.mean(1, keepdims=True)
    places = ndtri((np.arange(len(split)) + 0.5) / len(split))[:, None]
    places /= places.std(ddof=1)
    per_half = _ess_of(split) / len(split)
    for _ in range(_TURNS):
        spread = np.sqrt(split.var() / max(per_half - 1, 1.0))
        per_half = _ess_of(split + spread * places) / len(split)
    return 2 * per_half


def _ess_of(draws: np.ndarray) -> float:
    return float(ess(as_dataset({"x": draws}), "identity")["x"])


def normal_ranks(draws: np.ndarray) -> np.ndarray:
    """Rank-normalised draws (Vehtari et al. 2021, equation 14), same shape."""
    ranks = rankdata(draws, axis=None).reshape(draws.shape)
    return ndtri((ranks - 0.375) / (draws.size + 0.25))


def r_hat_threshold(ess_per_chain: float, chains: int) -> float:
    r"""The R-hat beyond which chains disagree by more than stationary chains do.

    .. math:: \min\left(1.2, \max\left(1.01, \sqrt{1 + 2 q / \mathrm{ESS}}\right)\right)

    Split chains of ESS/2 effective draws each have :math:`\hat R^2 \approx 1 + (2 / \mathrm{ESS})\, \chi^2_k / k` with
    k = 2 chains - 1, though they are stationary. So q = 1 gives what is expected: the usual rule for up to four chains.
    With more chains, each of them short, about half of all stationary runs would be beyond that; q is then the quantile
    of :math:`\chi^2_k / k` that one in a thousand exceeds (it tends to 1 with the number of chains).

    References:
        Vats and Knudson 2021, "Revisiting the Gelman-Rubin diagnostic" (R-hat as a function of ESS).

    Args:
        ess_per_chain: effective draws within one chain, > 0; see ``ess_within``.
        chains: number of chains >= 1.

    Returns:
        The threshold, from 1.01 to 1.2.
    """
    degrees = 2 * chains - 1
    q = 1.0 if chains <= 4 else float(chi2.isf(FALSE_ALARM, degrees)) / degrees
    return min(WORST_R_HAT, max(R_HAT, math.sqrt(1 + 2 * q / ess_per_chain)))
