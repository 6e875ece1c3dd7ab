"""Diffusions that carry data to noise, with Gaussian marginals in closed form."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ebmppl.arguments import positive, real, require
from ebmppl.score.base import LinearSDE, Marginal, bisect, require_beside


class VE(LinearSDE):
    r"""Variance exploding: no drift, :math:`g(t) = \sigma(t) \sqrt{2 \log(\sigma_{max} / \sigma_{min})}`.

    The marginal is :math:`N(x_0, \sigma(t)^2 I)` with :math:`\sigma(t) = \sigma_{min} (\sigma_{max} / \sigma_{min})^t`,
    as in Song et al. 2021 (not :math:`\sigma(t)^2 - \sigma_{min}^2`): at t = 0 the data already has noise sigma_min. It is
    the limit of many noise levels of NCSN, ``geometric_sigmas``.

    Args:
        sigma_min: noise at t = 0, > 0, in units of x.
        sigma_max: noise at t = 1, > sigma_min; about the largest distance between data points.

    Raises:
        ValueError: unless 0 < sigma_min < sigma_max.

    Example:
        >>> mean, std = VE(0.1, 10.0).marginal(torch.tensor([0.0, 0.5, 1.0]))
        >>> std
        tensor([ 0.1000,  1.0000, 10.0000])
    """

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 50.0) -> None:
        super().__init__()
        self.sigma_min, self.sigma_max = real(sigma_min), real(sigma_max)
        good = 0 < self.sigma_min < self.sigma_max < math.inf
        require(good, "finite 0 < sigma_min < sigma_max", (sigma_min, sigma_max))
        self.prior_std = self.sigma_max

    def drift_coefficient(self, t: Tensor) -> Tensor:
        """0."""
        self.require_times(t)
        return torch.zeros_like(t)

    def diffusion(self, t: Tensor) -> Tensor:
        """The diffusion g(t), of the shape of t."""
        self.require_times(t)
        return self._sigma(t) * math.sqrt(2 * math.log(self.sigma_max / self.sigma_min))

    def marginal(self, t: Tensor) -> Marginal:
        """1 and sigma(t)."""
        self.require_times(t)
        return torch.ones_like(t), self._sigma(t)

    def solve(self, ratio: Tensor) -> Tensor:
        """Log(ratio / sigma_min) over its range."""
        return (ratio / self.sigma_min).log() / math.log(self.sigma_max / self.sigma_min)

    def _sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * torch.exp(t * math.log(self.sigma_max / self.sigma_min))


class KarrasVE(LinearSDE):
    r"""Variance exploding with the noise level for a time: :math:`\sigma(t) = t`, so :math:`dx = \sqrt{2t}\,dw`.

    A score model of it is called with noise levels, as NCSN's and EDM's are, and as ``AnnealedLangevin`` calls it. Of evenly
    spread times nearly all are large noise: train it with ``EDMWeighting`` or ``NoiseLevels``.

    References:
        Karras, Aittala, Aila and Laine 2022, "Elucidating the design space of diffusion-based generative models", section 3.

    Args:
        sigma_max: the last time and its noise, > 0, in units of x.

    Raises:
        ValueError: unless sigma_max > 0.

    Example:
        >>> KarrasVE(80.0).marginal(torch.tensor([0.0, 0.5, 80.0]))[1]
        tensor([ 0.0000,  0.5000, 80.0000])
    """

    def __init__(self, sigma_max: float = 80.0) -> None:
        super().__init__()
        self.t_max = self.prior_std = positive("sigma_max", sigma_max)

    def drift_coefficient(self, t: Tensor) -> Tensor:
        """0."""
        self.require_times(t)
        return torch.zeros_like(t)

    def diffusion(self, t: Tensor) -> Tensor:
        """The root of 2t."""
        self.require_times(t)
        return (2 * t).sqrt()

    def marginal(self, t: Tensor) -> Marginal:
        """1 and t."""
        self.require_times(t)
        return torch.ones_like(t), t

    def solve(self, ratio: Tensor) -> Tensor:
        """The ratio."""
        return ratio


class PreservingSDE(LinearSDE):
    """Abstract: drift -beta(t) x / 2, so that a(t) = exp(-(integral of beta) / 2) and x(t) keeps the data's scale.

    Raises:
        ValueError: when a subclass is defined with a ``beta`` of its own beside its parent's ``log_mean``, or the other way.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        require_beside(cls, "beta", ("log_mean",), unknown=PreservingSDE)
        require_beside(cls, "log_mean", ("beta",), unknown=PreservingSDE)

    def beta(self, t: Tensor) -> Tensor:
        """The noise rate, of the shape of t."""
        raise NotImplementedError(f"{type(self).__name__} must implement beta(t)")

    def log_mean(self, t: Tensor) -> Tensor:
        """Log of the mean coefficient, of the shape of t."""
        raise NotImplementedError(f"{type(self).__name__} must implement log_mean(t)")

    def drift_coefficient(self, t: Tensor) -> Tensor:
        """-beta(t) / 2."""
        self.require_times(t)
        return -0.5 * self.beta(t)

    def diffusion(self, t: Tensor) -> Tensor:
        """The root of beta(t)."""
        self.require_times(t)
        return self.beta(t).sqrt()

    def marginal(self, t: Tensor) -> Marginal:
        """The mean coefficient a(t) and the root of 1 - a(t)^2."""
        self.require_times(t)
        log_mean = self.log_mean(t)
        return log_mean.exp(), (-torch.expm1(2 * log_mean)).sqrt()

    def log_mean_at(self, ratio: Tensor) -> Tensor:
        """Log of the mean coefficient where noise over signal is ``ratio``."""
        return -0.5 * torch.log1p(ratio.square())

    def time_at(self, log_mean: Tensor) -> Tensor:
        """The time, in float64, at which the log of the mean coefficient is this; by bisection where there is no closed form."""
        return bisect(lambda t: -self.log_mean(t), -log_mean, self.t_max)

    def solve(self, ratio: Tensor) -> Tensor:
        """The time of the mean coefficient."""
        return self.time_at(self.log_mean_at(ratio))


class _LinearBeta(PreservingSDE):
    """Beta grows linearly from beta_min to beta_max."""

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0) -> None:
        super().__init__()
        self.beta_min, self.beta_max = real(beta_min), real(beta_max)
        good = 0 < self.beta_min <= self.beta_max < math.inf
        require(good, "finite 0 < beta_min <= beta_max", (beta_min, beta_max))

    def beta(self, t: Tensor) -> Tensor:
        """The noise rate, of the shape of t."""
        return self.beta_min + (self.beta_max - self.beta_min) * t

    def log_mean(self, t: Tensor) -> Tensor:
        """Log of the mean coefficient, of the shape of t."""
        return -0.25 * t * t * (self.beta_max - self.beta_min) - 0.5 * self.beta_min * t

    def time_at(self, log_mean: Tensor) -> Tensor:
        """The root of the quadratic (beta_max - beta_min) t^2 / 2 + beta_min t = -2 log a."""
        exponent, slope = -2 * log_mean, 2 * (self.beta_max - self.beta_min)
        return 2 * exponent / (self.beta_min + (self.beta_min**2 + slope * exponent).sqrt())


class VP(_LinearBeta):
    r"""Variance preserving: :math:`dx = -\tfrac12 \beta(t) x\,dt + \sqrt{\beta(t)}\,dw` with beta linear in t.

    The marginal is :math:`N(a x_0, (1 - a^2) I)` with :math:`\log a = -t^2 (\beta_{max} - \beta_{min}) / 4 - t \beta_{min} / 2`
    (Song et al. 2021). It is the limit of many steps of DDPM, ``linear_betas``.

    Args:
        beta_min: rate at t = 0, > 0, per unit of time.
        beta_max: rate at t = 1, >= beta_min.

    Raises:
        ValueError: unless 0 < beta_min <= beta_max.
    """


class SubVP(_LinearBeta):
    r"""The sub-VP SDE: drift of ``VP``, :math:`g^2 = \beta (1 - a^4)`, marginal :math:`N(a x_0, (1 - a^2)^2 I)`.

    Its variance is below that of ``VP`` at all times (Song et al. 2021).

    Args:
        beta_min: rate at t = 0, > 0, per unit of time.
        beta_max: rate at t = 1, >= beta_min.

    Raises:
        ValueError: unless 0 < beta_min <= beta_max.
    """

    def diffusion(self, t: Tensor) -> Tensor:
        """The diffusion g(t), of the shape of t."""
        self.require_times(t)
        return (-self.beta(t) * torch.expm1(4 * self.log_mean(t))).sqrt()

    def marginal(self, t: Tensor) -> Marginal:
        """The mean coefficient a(t) and 1 - a(t)^2."""
        self.require_times(t)
        log_mean = self.log_mean(t)
        return log_mean.exp(), -torch.expm1(2 * log_mean)

    def log_mean_at(self, ratio: Tensor) -> Tensor:
        """Log of the a > 0 with 1 - a^2 = ratio a."""
        return -torch.asinh(0.5 * ratio)


class CosineVP(PreservingSDE):
    r"""Variance preserving with :math:`a(t) = \cos(\tfrac\pi2 \tfrac{t + s}{1 + s}) / \cos(\tfrac\pi2 \tfrac{s}{1 + s})`.

    The limit of many steps of ``cosine_betas``. Its rate is infinite at t = 1, so that t ends before.

    References:
        Nichol and Dhariwal 2021, "Improved denoising diffusion probabilistic models".

    Args:
        offset: s >= 0, which keeps the noise near t = 0 from being too small.
        t_max: the last time, in (0, 1).

    Raises:
        ValueError: for an offset < 0, or t_max outside (0, 1).
    """

    def __init__(self, offset: float = 0.008, t_max: float = 0.995) -> None:
        super().__init__()
        self.offset, self.t_max = positive("offset", offset, zero=True), real(t_max)
        require(0 < self.t_max < 1, "t_max in (0, 1)", repr(t_max))

    def beta(self, t: Tensor) -> Tensor:
        """The noise rate, of the shape of t."""
        return math.pi / (1 + self.offset) * torch.tan(self._angle(t))

    def log_mean(self, t: Tensor) -> Tensor:
        """Log of the mean coefficient, of the shape of t."""
        return (torch.cos(self._angle(t)).log() - math.log(self._first)).clamp_max(0)  # rounding at t = 0

    def time_at(self, log_mean: Tensor) -> Tensor:
        """From the angle whose cosine is a times the first one's."""
        angle = torch.acos(self._first * log_mean.exp())
        return angle * (1 + self.offset) / (0.5 * math.pi) - self.offset

    @property
    def _first(self) -> float:
        return math.cos(0.5 * math.pi * self.offset / (1 + self.offset))

    def _angle(self, t: Tensor) -> Tensor:
        return 0.5 * math.pi * (t + self.offset) / (1 + self.offset)
