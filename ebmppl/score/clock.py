"""By what the probability flow is solved: the time, or, where slopes in time are infinite, the noise."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ebmppl.score.base import SDE
from ebmppl.score.sde import PreservingSDE


class Instant(NamedTuple):
    """What a clock shows at a reading."""

    time: Tensor  # (rows,)
    rate: Tensor  # (rows,), of time by readings


class Clock:
    r"""Readings u of the time t, in float64, by which the probability flow is solved: :math:`dx/du = v(x, t)\, dt/du`.

    Of an SDE with drift :math:`-\tfrac12 \beta x` it is :math:`u = \sqrt{-2 \log a(t)}`, so that :math:`dt/du = 2u / \beta`. Near
    t = 0 that is about the noise's standard deviation, later it grows about as t does where beta is linear. In t the slope is
    infinite at t = 0 wherever the noise that a network of ``VP`` predicts is not 0,
    :math:`v \approx \tfrac12 \beta \epsilon / \sigma \propto t^{-1/2}`, and the error of a first step there is larger than its
    estimate, which takes slopes for smooth. By u it is bounded, and the integral of the drift's own divergence is a
    polynomial. Of any other SDE it is the time; so it is where ``time_at`` is not the inverse of ``log_mean``, as in a subclass
    with a ``log_mean`` of its own.

    References:
        Karras, Aittala, Aila and Laine 2022, "Elucidating the design space of diffusion-based generative models", section 3
        (a flow's slope by the noise); Song, Meng and Ermon 2021, "Denoising diffusion implicit models", section 4.3.

    Args:
        sde: the forward SDE; None for the time.

    Example:
        >>> from ebmppl.score import VP
        >>> clock = Clock(VP())
        >>> clock.at(clock.of(torch.tensor([0.5]))).time
        tensor([0.5000], dtype=torch.float64)
    """

    _sde: PreservingSDE | None = None

    def __init__(self, sde: SDE | None = None) -> None:
        # a bisection for every stage would cost more than a step saves
        if isinstance(sde, PreservingSDE) and type(sde).time_at is not PreservingSDE.time_at and _inverts(sde):
            self._sde = sde

    @property
    def is_time(self) -> bool:
        """Whether it shows the time."""
        return self._sde is None

    def of(self, t: Tensor) -> Tensor:
        """Readings ``(rows,)`` at times ``(rows,)``."""
        t = t.double()
        return t if self._sde is None else (-2 * self._sde.log_mean(t)).sqrt()

    def at(self, u: Tensor, dtype: torch.dtype = torch.float64) -> Instant:
        """Times and their rates ``(rows,)``, of a dtype, at readings ``(rows,)``."""
        if self._sde is None:
            return Instant(u.to(dtype), torch.ones_like(u, dtype=dtype))
        time = self._sde.time_at(-0.5 * u.square()).clamp(0, self._sde.t_max).to(dtype)
        rounded = time.double()  # as the score, the drift and the diffusion are asked for it
        return Instant(time, (2 * self.of(rounded) / self._sde.beta(rounded)).to(dtype))

    def span(self, first: float, last: float) -> float:
        """Readings between two times; negative where the last one is earlier."""
        begin, end = self.of(torch.tensor([first, last], dtype=torch.float64)).tolist()
        return float(end - begin)

    def passing(self, t: Tensor, readings: Tensor) -> Tensor:
        """Times ``(rows,)`` >= 0 that pass for so many readings ``(rows,)`` from t on, either way."""
        return (self.at(self.of(t) + readings).time - t).abs().to(t.dtype)


def _inverts(sde: PreservingSDE) -> bool:
    """Whether the closed form of ``time_at`` is the inverse of ``log_mean``."""
    t = sde.t_max * torch.linspace(0.1, 1, 5, dtype=torch.float64)
    return torch.allclose(sde.time_at(sde.log_mean(t)), t, rtol=1e-6, atol=0.0)
