"""The asymptotic error of noise-contrastive estimation's log Z."""

from __future__ import annotations

import math
import warnings
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from ebmppl.energies.base import Energy
from ebmppl.errors import SamplingWarning
from ebmppl.sampling.scopes import evaluating

MOST_PARAMETERS = 4096  # whose covariance is computed
_NUMBERS = 1 << 22  # of one chunk of gradients


class LogZInterval(NamedTuple):
    """An estimate of log Z in nats.

    Attributes:
        value: the estimate.
        std_error: its standard error.
        lower: lower end of the interval.
        upper: upper end.
        level: asymptotic probability that the interval covers log Z.
    """

    value: float
    std_error: float
    lower: float
    upper: float
    level: float


def log_z_interval(
    energy: Energy, log_z: float, points: tuple[Tensor, Tensor], odds: tuple[Tensor, Tensor], level: float
) -> LogZInterval:
    """See ``BoundNCE.log_z_interval``.

    Args:
        energy: whose parameters that require gradients were estimated with log Z.
        log_z: the estimate.
        points: data and noise ``(rows, *event)``.
        odds: log-odds G ``(rows,)`` of both.
        level: in (0, 1).
    """
    parameters = {name: p.detach() for name, p in energy.named_parameters() if p.requires_grad}
    size = 1 + sum(p.numel() for p in parameters.values())
    if size > MOST_PARAMETERS:
        raise ValueError(
            f"expected at most {MOST_PARAMETERS} trained parameters, got {size}: requires_grad_(False) holds some of them"
        )
    if len(points[0]) < 2 or len(points[1]) < 2:
        raise ValueError(f"expected at least two rows of data and of noise, got {[len(p) for p in points]}")
    information = torch.zeros(size, size, dtype=torch.float64)
    scatter, score = torch.zeros_like(information), torch.zeros(size, dtype=torch.float64)
    for x, g, sign in zip(points, odds, (1.0, -1.0), strict=True):
        total, second, curvature = _sums(energy, parameters, x, (sign * g).double(), sign)
        information += curvature
        scatter += (second - torch.outer(total, total) / len(x)) * (len(x) / (len(x) - 1))
        score += total
    move, variance = _solve(information, scatter, score, torch.finfo(odds[0].dtype).eps)
    error = math.sqrt(variance)
    if not abs(move) <= error:
        warnings.warn(
            f"expected parameters at the minimum of the loss for these data and this noise, got ones from which a Newton "
            f"step moves log Z by {move:.3g}, more than its standard error {error:.3g}",
            SamplingWarning,
            stacklevel=3,
        )
    half = NormalDist().inv_cdf((1 + level) / 2) * error
    return LogZInterval(log_z, error, log_z - half, log_z + half, level)


def _sums(
    energy: Energy, parameters: dict[str, Tensor], x: Tensor, margin: Tensor, sign: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Of log sigma(margin), margin = sign G: sums of the scores, their squares, and minus the second derivatives."""
    totals: list[tuple[Tensor, Tensor, Tensor]] = []
    size = 1 + sum(p.numel() for p in parameters.values())
    with evaluating(energy):
        for rows, m in zip(x.split(max(1, _NUMBERS // size)), margin.split(max(1, _NUMBERS // size)), strict=True):
            slopes = -torch.cat([_row_gradients(energy, parameters, rows), torch.ones_like(m).unsqueeze(1)], 1)
            # where the model has no density, noise is told from data for sure
            slopes, m = slopes.masked_fill(~torch.isfinite(m).unsqueeze(1), 0).cpu(), m.cpu().unsqueeze(1)
            scores = sign * torch.sigmoid(-m) * slopes
            weights = torch.sigmoid(m) * torch.sigmoid(-m)
            totals.append((scores.sum(0), scores.mT @ scores, slopes.mT @ (weights * slopes)))
    first, second, curvature = (torch.stack(parts).sum(0) for parts in zip(*totals, strict=True))
    return first, second, curvature


def _row_gradients(energy: Energy, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
    """Gradients ``(rows, parameters)`` float64 of every row's energy."""
    if not parameters:
        return x.new_zeros(len(x), 0, dtype=torch.float64)

    def one(values: dict[str, Tensor], row: Tensor) -> Tensor:
        return functional_call(energy, values, (row.unsqueeze(0),)).squeeze(0)

    try:
        found = vmap(grad(one), in_dims=(None, 0))(parameters, x)
    except (RuntimeError, NotImplementedError):  # an operation without a batching rule, or one that looks at values
        rows = [grad(one)(parameters, row) for row in x]
        found = {name: torch.stack([row[name] for row in rows]) for name in parameters}
    return torch.cat([found[name].reshape(len(x), -1).double() for name in parameters], 1)


def _solve(information: Tensor, scatter: Tensor, score: Tensor, rounding: float) -> tuple[float, float]:
    """The last parameter's Newton step and sandwich variance; directions without information are left out.

    Raises:
        ValueError: where the last parameter has a part in such directions.
    """
    scale = information.diagonal().sqrt()
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    values, vectors = torch.linalg.eigh(information / torch.outer(scale, scale))
    seen = values > values[-1] * len(values) * rounding
    if bool((vectors[-1, ~seen].square().sum() > 1e-6).item()):
        raise ValueError(
            "expected log Z to be identified, got an energy whose parameters change it by a constant: hold that constant "
            "(requires_grad_(False)) or log Z"
        )
    inverse = (vectors[:, seen] / values[seen]) @ vectors[:, seen].mT / torch.outer(scale, scale)
    row = inverse[-1]
    return float(row @ score), float(row @ scatter @ row)
