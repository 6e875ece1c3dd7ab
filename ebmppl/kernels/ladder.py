"""Ladders of inverse temperatures, and the swaps of neighbours on them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ebmppl.arguments import require

FROM_COLD, FROM_HOT = 1, 2  # where points of a replica have been last
_LEAST = 1e-6  # rejection rate between neighbours that still keeps them apart


def ladder(betas: int | Sequence[float] | Tensor, beta_min: float, *, base: bool = False) -> list[float]:
    """Inverse temperatures, increasing to 1: as given, or so many from ``beta_min`` in geometric progression.

    With a base they may begin at 0, and so many are evenly spaced from 0.

    Raises:
        ValueError: for fewer than two, or values that are not positive, increasing and ending at 1.
    """
    if isinstance(betas, int) and not isinstance(betas, bool):
        require(betas >= 2, "at least 2 replicas", betas)
        require(0 < beta_min < 1, "beta_min in (0, 1)", beta_min)
        parts = [i / (betas - 1) for i in range(betas)]
        return parts if base else [float(beta_min ** (1 - part)) for part in parts]
    try:
        values = [float(b) for b in betas]  # type: ignore[union-attr]
    except (TypeError, ValueError) as error:
        raise ValueError(f"expected betas as numbers or their count, got {betas!r}") from error
    require(len(values) >= 2, "at least 2 betas", values)
    positive = all(b > 0 for b in values)  # NaN is not
    require(positive or (base and values[0] >= 0), f"betas {'>= 0' if base else '> 0'}", values)
    require(all(a < b for a, b in zip(values, values[1:], strict=False)), "betas in increasing order", values)
    require(values[-1] == 1, "betas that end at 1", values)
    return values


def equal_rates(betas: Tensor, rejections: Tensor, *, logarithmic: bool = True) -> Tensor:
    r"""Inverse temperatures of equal swap rates (Syed et al. 2022, algorithm 4).

    The communication barrier :math:`\Lambda(\beta_k) = \sum_{i \le k} r_i` is interpolated by a monotone cubic (Fritsch
    and Carlson 1980) against log beta, or beta itself, and cut into equal parts.

    Args:
        betas: ``(replicas,)``, increasing; the ends stay.
        rejections: ``(replicas - 1,)``, of swaps between neighbours, in [0, 1].
        logarithmic: in log beta, where all are positive.
    """
    from scipy.interpolate import PchipInterpolator  # half a second: a fifth of the library's import

    barrier = torch.cat([betas.new_zeros(1), rejections.clamp_min(_LEAST).cumsum(0)]).double().cpu()
    places = (betas.log() if logarithmic else betas).double().cpu()
    parts = torch.linspace(0, float(barrier[-1]), len(betas), dtype=torch.float64)
    inside = PchipInterpolator(barrier.numpy(), places.numpy())(parts.numpy()[1:-1])
    new = torch.as_tensor(inside)
    new = (new.exp() if logarithmic else new).to(betas)
    return torch.cat([betas[:1], new, betas[-1:]])


def exchanged(accept: Tensor) -> Tensor:
    """From which replica ``(chains, replicas)`` each takes its state, by accepted swaps ``(chains, replicas - 1)``."""
    none = accept.new_zeros(len(accept), 1).long()
    up = accept.long()
    here = torch.arange(accept.shape[1] + 1, device=accept.device)
    return here + torch.cat([up, none], 1) - torch.cat([none, up], 1)


def labelled(label: Tensor) -> tuple[Tensor, Tensor]:
    """Points learn at the ends where they have been; and how many ``(chains,)`` completed a round trip."""
    hot, cold = label[:, :1], label[:, -1:]
    turned = torch.where(hot == FROM_COLD, torch.full_like(hot, FROM_HOT), hot)
    new = torch.cat([turned, label[:, 1:-1], torch.full_like(cold, FROM_COLD)], 1)
    return new, (cold.squeeze(1) == FROM_HOT).long()
