"""How well parallel tempering carries points between its temperatures."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ebmppl.kernels.parallel_tempering import ParallelTempering

if TYPE_CHECKING:
    from ebmppl.sampling.mcmc import MCMC


class Tempering(NamedTuple):
    """Rates of a run of ``ParallelTempering``.

    Attributes:
        betas: ``(replicas,)``, the inverse temperatures after warm-up, increasing to 1.
        swap_rates: ``(replicas - 1,)``, mean acceptance probability of each pair of neighbours.
        barrier: sum of the rejection rates, an estimate of the global communication barrier.
        round_trips: ``(chains,)``, how many all replicas of each chain made since warm-up.
        round_trip_rate: ``(chains,)``, these per transition.
        ideal_rate: what the swap rates let expect, 1 / (2 + 2 sum r / (1 - r)) with rejection rates r, if every
            transition drew the energies of all replicas anew; where it is well above ``round_trip_rate``, the inner
            kernel explores too slowly, and more replicas won't help.
    """

    betas: Tensor
    swap_rates: Tensor
    barrier: Tensor
    round_trips: Tensor
    round_trip_rate: Tensor
    ideal_rate: Tensor


def tempering(mcmc: MCMC) -> Tempering:
    """Swap and round-trip rates of a run (Syed, Bouchard-Cote, Deligiannidis and Doucet 2022, theorem 1).

    Args:
        mcmc: a run of ``ParallelTempering``.

    Raises:
        ValueError: for another kernel, or without draws.
    """
    if not isinstance(mcmc.kernel, ParallelTempering):
        raise ValueError(f"expected a run of ParallelTempering, got one of {type(mcmc.kernel).__name__}")
    stats = mcmc.stats()
    rates = stats["swap_rates"].double().mean((0, 1))
    trips = stats["round_trips"][:, -1]
    transitions = mcmc.kept * mcmc.thinning
    return Tempering(
        betas=mcmc.now.tuning.betas.clone(),
        swap_rates=rates,
        barrier=(1 - rates).sum(),
        round_trips=trips,
        round_trip_rate=trips.double() / transitions,
        ideal_rate=ideal_round_trip_rate(1 - rates),
    )


def ideal_round_trip_rate(rejections: Tensor) -> Tensor:
    """Round trips per transition of all replicas together, 1 / (2 + 2 sum r / (1 - r)), of rejection rates r."""
    return 1 / (2 + 2 * torch.sum(rejections / (1 - rejections)))
