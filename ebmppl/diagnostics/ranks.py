"""How the distribution of each chain's draws differs from that of all draws, and which chains differ by too much."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ebmppl.diagnostics.convergence import MIN_DRAWS, ess_within

LEVEL = 0.05  # that some chain of a stationary run leaves the band
_POINTS = 101


class ChainDifferences(NamedTuple):
    """Differences of distribution functions.

    Attributes:
        levels: share of all draws up to some value, ``(points,)`` in [0, 1].
        lines: of each chain, the share of its draws up to that value minus the level, ``(chains, points)``.
        band: half-width of the band that holds all lines of a stationary run with a probability of 0.95 or more.
    """

    levels: np.ndarray
    lines: np.ndarray
    band: float

    @property
    def outside(self) -> list[int]:
        """Chains that leave the band, the farthest first."""
        reach = np.abs(self.lines).max(1)
        return [int(chain) for chain in np.argsort(-reach, kind="stable") if reach[chain] > self.band]


def chain_differences(draws: np.ndarray) -> ChainDifferences:
    """Compare the chains of one quantity ``(chains, draws)``.

    The band is that of Dvoretzky, Kiefer and Wolfowitz (1956; constant by Massart 1990) for as many draws as are
    effective within a chain, in location or in scale, whichever are fewer; Bonferroni over the chains.
    """
    chains, n = draws.shape
    pooled = np.sort(draws, axis=None)
    values = pooled[np.linspace(0, pooled.size - 1, _POINTS).round().astype(int)]
    levels = np.searchsorted(pooled, values, side="right") / pooled.size
    counts = np.array([np.searchsorted(chain, values, side="right") for chain in np.sort(draws, axis=1)])
    ends = np.zeros((chains, 1))
    return ChainDifferences(
        levels=np.concatenate([[0.0], levels]),
        lines=np.concatenate([ends, counts / n - levels], axis=1),
        band=math.sqrt(math.log(2 * chains / LEVEL) / (2 * _effective(draws))),
    )


def _effective(draws: np.ndarray) -> float:
    n = draws.shape[1]
    if n < 2 * MIN_DRAWS:
        return n
    found = [ess_within(x) for x in (draws, np.abs(draws - np.median(draws)))]
    return max(1.0, min([n, *(ess for ess in found if ess > 0)]))  # constant or non-finite draws have none
