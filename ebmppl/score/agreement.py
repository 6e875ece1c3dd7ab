"""Whether a score is that of the SDE (or of the noise levels) by which it is to be used."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from ebmppl.arguments import require
from ebmppl.score.base import SDE
from ebmppl.score.conditions import Conditional, first_floating
from ebmppl.score.inverse import Denoiser

_TIMES = 5  # at which SDEs are compared
_CLOSE = 1e-5  # relative; numbers of an SDE may be float32


def require_process(score: object, sde: SDE | None, event_shape: Sequence[int]) -> None:
    """Raise ``ValueError`` where a score, or one inside conditional scores, is known to be that of another process.

    What is known is its attribute ``sde``. Equal are SDEs with the same drift and diffusion at some times that both have, and
    the same marginals where both know them, whatever their classes.

    Args:
        score: what is used, with or without an ``sde``.
        sde: by which it is used; None where its times are noise levels.
        event_shape: of one point.
    """
    for part, own in _processes(score):
        if sde is None:
            wanted = "a score whose time is its noise level, as those of KarrasVE"
            require(_of_levels(own), wanted, f"{type(part).__name__} of {_shown(own)}")
        else:
            same = own is sde or _same(own, sde, event_shape)
            require(same, f"a score of the given {_shown(sde)}", f"{type(part).__name__} of {_shown(own)}")


def _processes(score: object) -> Iterator[tuple[object, SDE]]:
    """A score's SDE, and those of the scores that it holds where it is one of ours that passes its times on."""
    own = getattr(score, "sde", None)
    if isinstance(own, SDE):
        yield score, own
    if isinstance(score, (Conditional, Denoiser)):
        for part in score.children():
            yield from _processes(part)


def _same(a: SDE, b: SDE, event_shape: Sequence[int]) -> bool:
    last = min(a.t_max, b.t_max)
    points = torch.linspace(-1, 1, _TIMES * torch.Size(event_shape).numel()).reshape(_TIMES, *event_shape)

    def rates(sde: SDE) -> list[Tensor]:
        return _called(lambda t: (sde.drift(points.to(t), t), sde.diffusion(t)), sde, last)

    try:
        marginals = [_called(sde.marginal, sde, last) for sde in (a, b)]
    except ValueError:  # not known
        marginals = [[], []]
    return _close(rates(a), rates(b)) and _close(*marginals)


def _of_levels(sde: SDE) -> bool:
    level = sde.t_max * torch.linspace(0.1, 1, _TIMES, dtype=torch.float64)
    return _close(_called(sde.marginal, sde, sde.t_max), [torch.ones_like(level), level])


def _called(fn: Callable[[Tensor], Sequence[Tensor]], sde: SDE, last: float) -> list[Tensor]:
    """What an SDE says at some times, asked for at its own dtype and device."""
    like = first_floating(sde)
    t = last * torch.linspace(0.1, 1, _TIMES, dtype=torch.float64)
    with torch.no_grad():
        return [part.to("cpu", torch.float64) for part in fn(t if like is None else t.to(like))]


def _close(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    return all(torch.allclose(x, y, rtol=_CLOSE, atol=0.0, equal_nan=True) for x, y in zip(a, b, strict=True))


def _shown(sde: nn.Module) -> str:
    numbers = [f"{name}={value:g}" for name, value in vars(sde).items() if type(value) is float]
    return f"{type(sde).__name__}({', '.join(numbers)})"
