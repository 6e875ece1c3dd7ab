"""Moments of a window's draws, chain by chain, and the estimate of the (co)variance that they make together."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ebmppl.kernels.pooling import BLOCK, pooled_sum

# mean squares of a chain over the median chain's, from where on it counts as still on its way: ten standard deviations,
# which no normal draws are away. (At five a funnel's widest chains are left out, and its trees grow by a tenth.)
_FAR = 100.0


class Welford(NamedTuple):
    """Running counts, means and sums of squared deviations of each chain's draws (Chan, Golub and LeVeque 1979)."""

    total: Tensor  # (chains,), number of draws
    origin: Tensor  # (dimension,), where the chains began: float32 keeps few digits far from zero
    mean: Tensor  # (chains, dimension), from the origin
    scatter: Tensor  # (chains, dimension), about the chain's mean
    products: Tensor | None  # (dimension, dimension), about the chains' means, of all of them; for a dense metric
    metrics: Tensor  # scalar, how many windows before have set one

    @classmethod
    def empty(cls, origin: Tensor, chains: int, *, full: bool) -> Welford:
        """Nothing seen yet."""
        zeros = origin.new_zeros(chains, len(origin))
        products = origin.new_zeros(len(origin), len(origin)) if full else None
        return cls(origin.new_zeros(chains), origin, zeros, zeros.clone(), products, origin.new_zeros(()))

    def emptied(self) -> Welford:
        """Nothing seen yet, by the same chains, about the point where they were on average."""
        middle = self.origin + pooled_sum(self.total.unsqueeze(1) * self.mean) / self.total.sum().clamp_min(1.0)
        empty = Welford.empty(middle, len(self.total), full=self.products is not None)
        return empty._replace(metrics=self.metrics)


def welford_update(w: Welford, x: Tensor, counts: Tensor) -> Welford:
    """Merge points ``(draws, dimension)``, those of chain 0 first, ``counts`` ``(chains,)`` of each."""
    chain = torch.repeat_interleave(counts)
    new, before = counts.to(w.mean.dtype).unsqueeze(1), w.total.unsqueeze(1)
    delta = (x - w.origin) - w.mean.index_select(0, chain)  # against running means, so that large offsets don't cancel
    shift = _by_chain(delta, counts) / new.clamp_min(1.0)
    delta = delta - shift.index_select(0, chain)
    after = before + new
    spread = new * before / after.clamp_min(1.0)
    products = w.products
    if products is not None:
        products = products + sum(a.mT @ a for a in delta.split(BLOCK)) + (spread * shift).mT @ shift
    return w._replace(
        total=after.squeeze(1),
        mean=w.mean + shift * (new / after.clamp_min(1.0)),
        scatter=w.scatter + _by_chain(delta.square(), counts) + spread * shift * shift,  # 0 times infinity is NaN
        products=products,
    )


def _by_chain(values: Tensor, counts: Tensor) -> Tensor:
    """Sums ``(chains, dimension)``."""
    return torch.segment_reduce(values, "sum", lengths=counts, axis=0)


def estimate(w: Welford) -> Tensor:
    """The covariance of all draws; of a diagonal the variances without chains that are still on their way, by coordinate.

    A few chains far out in a tail make a coordinate's variance hundreds of times what it is for all others, and the
    next window's trajectories as many times too long. A chain is left out of a coordinate where its mean square about
    the median of the chains' means is over 100 times the median chain's. Not of a matrix: other variances do not fit the
    correlations that such chains make, and a regression's HMC mixed a hundred times as slowly by the two together.
    """
    number = w.total.unsqueeze(1)
    if w.products is not None:
        away = w.mean - _mean(w, number)
        return (w.products + (number * away).mT @ away) / (w.total.sum() - 1).clamp_min(1.0)
    known = w.total > 0
    square = w.scatter / number + (w.mean - _median(w.mean, known)).square()
    usual = _median(square, known)
    return _pooled(w, number.masked_fill((square > _FAR * usual) & (usual > 0), 0.0))


def _mean(w: Welford, share: Tensor) -> Tensor:
    return pooled_sum(share * w.mean) / pooled_sum(share)


def _pooled(w: Welford, share: Tensor) -> Tensor:
    """Variances ``(dimension,)`` of so many draws of each chain, all of its or none."""
    away = torch.where(share > 0, w.mean - _mean(w, share), 0.0)  # whose square may be infinite elsewhere
    scatter = torch.where(share > 0, w.scatter, 0.0) + share * away.square()
    return pooled_sum(scatter) / (pooled_sum(share) - 1).clamp_min(1.0)


def _median(values: Tensor, known: Tensor) -> Tensor:
    """Over the known chains, between the two in the middle of an even number."""
    some = values[known]
    return (some.median(0).values - (-some).median(0).values) / 2


def regularised(w: Welford) -> Tensor:
    """Stan's shrinkage of the estimate: towards 1e-3 with the weight of 5 draws."""
    n, found = w.total.sum(), estimate(w)
    unit = torch.ones_like(found) if found.dim() == 1 else torch.eye(len(found)).to(found)
    return n / (n + 5) * found + 1e-3 * (5 / (n + 5)) * unit
