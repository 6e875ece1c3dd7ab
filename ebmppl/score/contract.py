"""What a score and an SDE must keep, looked at once before a run: an error says what was wanted and what came."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ebmppl.arguments import form, require
from ebmppl.score.base import SDE, LinearSDE
from ebmppl.score.conditions import check_conditions, chosen_rows
from ebmppl.score.dtypes import of_its_dtype, require_state
from ebmppl.score.parameterisations import same_shape

Score = Callable[[Tensor, Tensor], Tensor]


def look(score: Score, x: Tensor, t: Tensor) -> Tensor:
    """The score ``(rows, *event)`` at points of that shape and times ``(rows,)``.

    A score with something given for each row takes as many rows. Points are float32 or float64: of half precision they would not
    keep small steps. A network of half precision runs under ``torch.autocast`` around the run.

    Raises:
        ValueError: for a score of another shape, dtype or device than its points, one that writes over these, that is random or
            that mixes the rows of a batch, and for conditions that don't fit.
    """
    require_state(x)
    try:
        with of_its_dtype(x):
            check_conditions(score, x, t)
            found = same_shape(_untouched(score, x, t), x)
    except (RuntimeError, TypeError) as error:
        if type(error) not in (RuntimeError, TypeError):  # memory that is not there, an energy's own error
            raise
        given = f"points {form(x)} and times {form(t)}, one for each row, t.view(-1, 1, ...) beside points"
        raise ValueError(f"expected a score (x, t), got one that fails at {given}: {error}") from error
    if found.dtype != x.dtype or found.device != x.device:
        raise ValueError(f"expected a score {x.dtype} on {x.device}, got {found.dtype} on {found.device}")
    _require_rows_apart(score, x, t, found)
    return found


def look_at_rates(sde: SDE, x: Tensor) -> None:
    """Raise ``ValueError`` for a drift of another shape than points ``(rows, *event)``, or a diffusion than times ``(rows,)``.

    And for a drift that takes the times for coordinates, as ``t * x`` does where there are as many of both. That of a linear SDE
    is made for each row by the base class.
    """
    if isinstance(sde, LinearSDE):
        return
    times = sde.t_max * torch.linspace(0.5, 1.0, len(x), dtype=x.dtype, device=x.device)
    points, name = x + 1.0, type(sde).__name__
    drift, diffusion = sde.drift(points.clone(), times), sde.diffusion(times)
    for what, found, like in (("drift(x, t)", drift, x), ("diffusion(t)", diffusion, times)):
        good = isinstance(found, Tensor) and found.shape == like.shape
        require(good, f"{name}.{what} of shape {tuple(like.shape)}", form(found))
    alone = sde.drift(points[:1].clone(), times[:1])
    close = torch.allclose(alone, drift[:1], rtol=1e-3, atol=1e-6, equal_nan=True)
    require(close, f"{name}.drift(x, t) with a time for each row, t.view(-1, 1, ...)", "one that mixes rows")


def look_at_times(score: Score, sde: SDE, x: Tensor) -> None:
    """Raise ``ValueError`` for a score that takes the times for coordinates, as ``-t * x`` may where there are as many of both.

    With the same time for all, a look at rows does not show it.
    """
    if x.dim() < 2 or not len(x) == x.shape[-1] > 1:
        return
    times, points = sde.t_max * torch.linspace(0.5, 1.0, len(x), dtype=x.dtype, device=x.device), x + 1.0
    found = score(points.clone(), times.clone())
    with chosen_rows(score, torch.zeros(1, dtype=torch.int64)):
        alone = score(points[:1].clone(), times[:1].clone())
    require(_same(alone, found[:1]), "a score with a time for each row, t.view(-1, 1, ...)", "one that mixes rows")


def _same(a: Tensor, b: Tensor, *, of_batches: bool = True) -> bool:
    from ebmppl.energies.function import same_energy

    return same_energy(a, b, of_batches=of_batches)


def _untouched(score: Score, x: Tensor, t: Tensor) -> Tensor:
    given = x.clone(), t.clone()
    found = score(*given)
    same = all(bool(((now == before) | (before != before)).all()) for now, before in zip(given, (x, t), strict=True))
    require(same, "a score that leaves its points and times as they are", "one that writes over them")
    return found


def _require_rows_apart(score: Score, x: Tensor, t: Tensor, found: Tensor) -> None:
    row = len(x) // 2  # not the first or last one, which a score of one row for all would show
    with chosen_rows(score, torch.tensor([row])):
        alone = score(x[row : row + 1].clone(), t[row : row + 1].clone())
    if _same(alone, found[row : row + 1]):
        return
    again = _same(score(x.clone(), t.clone()), found, of_batches=False)
    require(again, "the same score for the same points", "another at a second call: is something random inside?")
    raise ValueError(
        f"the score mixes the rows of a batch: that of chain {row} alone differs from the one beside others"
    )
