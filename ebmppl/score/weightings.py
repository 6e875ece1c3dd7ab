"""At which times a score model is trained, and with what weight there."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from ebmppl.arguments import positive, real, require
from ebmppl.score.base import LinearSDE
from ebmppl.score.discrete_sde import DiscreteVP
from ebmppl.score.parameterisations import Parameterisation
from ebmppl.score.schedules import decreasing, require_decreasing


class Weighting(ABC):
    r"""Abstract: a law q of times and a weight, which make the loss of score models.

    .. math:: \tfrac12 \int \lambda(t)\, E\,|s(x_t, t) - s^*|^2\, dt
        = \tfrac12\, E_{t \sim q}\, w(t)\, \sigma(t)^2\, E\,|s(x_t, t) - s^*|^2, \qquad w = \frac{\lambda}{q\,\sigma^2}.

    The law changes the variance alone, lambda what is learned best.
    """

    def require(self, model: Parameterisation, t_min: float) -> None:
        """Raise ``ValueError`` for a model that it isn't for, or t_min outside (0, T)."""
        model.sde.require_start(t_min)

    @abstractmethod
    def times(self, model: Parameterisation, u: Tensor, t_min: float) -> Tensor:
        """Times ``(rows,)`` with law q from uniform numbers ``(rows,)`` in [0, 1)."""

    @abstractmethod
    def weight(self, model: Parameterisation, t: Tensor, t_min: float) -> Tensor:
        """The weight w(t), ``(rows,)``, of the squared error of the noise."""


class UniformTimes(Weighting):
    r"""Uniform t in [t_min, T] and w = 1, :math:`\lambda = \sigma^2 / (T - t_{min})`: the mean squared error of the noise.

    References:
        Ho, Jain and Abbeel 2020, "Denoising diffusion probabilistic models", equation 14; Song et al. 2021, equation 7.
    """

    def times(self, model: Parameterisation, u: Tensor, t_min: float) -> Tensor:
        """Times ``(rows,)``."""
        return t_min + (model.sde.t_max - t_min) * u

    def weight(self, model: Parameterisation, t: Tensor, t_min: float) -> Tensor:
        """1."""
        return torch.ones_like(t)


class LikelihoodWeighting(Weighting):
    r""":math:`\lambda(t) = g(t)^2`, with which the loss bounds the negative log-likelihood of the reverse SDE, in nats.

    Times are drawn from :math:`q \propto g^2 / \sigma^2`, under which w is constant. As
    :math:`\tfrac{d}{dt} \log r^2 = g^2 / \sigma^2` for a linear SDE, r = std / a, log r is uniform then.

    References:
        Song, Durkan, Murray and Ermon 2021, "Maximum likelihood training of score-based diffusion models", section 4 and
        equation 20.

    Args:
        importance: False for uniform t, which any SDE with known marginals takes.

    Raises:
        ValueError: when bound, for importance sampling of an SDE that isn't linear.
    """

    def __init__(self, *, importance: bool = True) -> None:
        self.importance = importance

    def require(self, model: Parameterisation, t_min: float) -> None:
        """See ``Weighting``."""
        super().require(model, t_min)
        if self.importance:
            linear(model, "importance=False")

    def times(self, model: Parameterisation, u: Tensor, t_min: float) -> Tensor:
        """Times ``(rows,)``."""
        sde = model.sde
        if not self.importance:
            return t_min + (sde.t_max - t_min) * u
        least, most = _log_ratios(linear(model), t_min)
        return linear(model).time_of((least + (most - least) * u.double()).exp()).to(u.dtype).clamp(t_min, sde.t_max)

    def weight(self, model: Parameterisation, t: Tensor, t_min: float) -> Tensor:
        """Its normaliser, or g^2 / sigma^2 times T - t_min."""
        if not self.importance:
            rate = (model.sde.diffusion(t) / model.sde.marginal(t)[1]).square()
            return (model.sde.t_max - t_min) * rate
        least, most = _log_ratios(linear(model), t_min)
        return torch.full_like(t, 2 * (most - least))


class EDMWeighting(Weighting):
    r"""Log-normal noise over signal r, and the loss of the denoised point at data scale by :math:`(r^2 + s^2) / (r s)^2`.

    So :math:`w = (r^2 + s^2) / s^2`, and the loss of the network of ``EDM`` has weight 1 at all r. The law is cut at t_min and T.

    References:
        Karras, Aittala, Aila and Laine 2022, "Elucidating the design space of diffusion-based generative models", table 1.

    Args:
        mean: of log r.
        std: of log r, > 0.
        data_std: s > 0, in units of x; of an ``EDM`` its own when None, else 0.5.

    Raises:
        ValueError: for numbers outside these ranges; when bound, for an SDE that isn't linear, or one without such r.
    """

    def __init__(self, mean: float = -1.2, std: float = 1.2, data_std: float | None = None) -> None:
        self.mean, self.std = real(mean), positive("std", std)
        require(math.isfinite(self.mean), "a finite mean", repr(mean))
        self.data_std = None if data_std is None else positive("data_std", data_std)

    def require(self, model: Parameterisation, t_min: float) -> None:
        """See ``Weighting``."""
        super().require(model, t_min)
        linear(model)
        least, most = self._ends(model, t_min)
        wanted = f"times at which noise over signal is about exp({self.mean:g} +- {self.std:g})"
        require(most - least > 1e-3, wanted, f"{most - least:.2g} of their probability")

    def times(self, model: Parameterisation, u: Tensor, t_min: float) -> Tensor:
        """Times ``(rows,)``."""
        sde, (least, most) = linear(model), self._ends(model, t_min)
        z = torch.special.ndtri(least + (most - least) * u.double())
        ends = _log_ratios(sde, t_min)
        ratio = (self.mean + self.std * z).clamp(*ends).exp()
        return sde.time_of(ratio).to(u.dtype).clamp(t_min, sde.t_max)

    def weight(self, model: Parameterisation, t: Tensor, t_min: float) -> Tensor:
        """(r^2 + s^2) / s^2."""
        own = getattr(model, "data_std", 0.5) if self.data_std is None else self.data_std
        return (linear(model).ratio(t) / own).square() + 1

    def _ends(self, model: Parameterisation, t_min: float) -> tuple[float, float]:
        """Probabilities of less noise than at t_min and at T."""
        z = [(end - self.mean) / self.std for end in _log_ratios(linear(model), t_min)]
        least, most = torch.special.ndtr(torch.tensor(z, dtype=torch.float64)).tolist()
        return least, most


class DiscreteTimes(Weighting):
    """Times of a grid, each as often, and w = 1: DDPM's own loss at ``DiscreteTimes.of(DiscreteVP(betas))``.

    References:
        Ho, Jain and Abbeel 2020, "Denoising diffusion probabilistic models", equation 14.

    Args:
        times: ``(many,)``, decreasing or increasing, in (0, T].

    Raises:
        ValueError: for other times.
    """

    def __init__(self, times: Tensor) -> None:
        require(isinstance(times, Tensor) and times.dim() == 1 and len(times) > 0, "times as a vector", repr(times))
        require_decreasing("times", times.flip(0) if float(times[0]) < float(times[-1]) else times)
        self.grid = times.detach().double()

    @classmethod
    def of(cls, sde: DiscreteVP) -> DiscreteTimes:
        """DDPM's: i / N for i = 1 to N."""
        require(isinstance(sde, DiscreteVP), "a DiscreteVP", type(sde).__name__)
        return cls(torch.arange(1, sde.num_steps + 1, dtype=torch.float64) / sde.num_steps)

    def require(self, model: Parameterisation, t_min: float) -> None:
        """See ``Weighting``; t_min is not used."""
        model.sde.require_times(self.grid)

    def times(self, model: Parameterisation, u: Tensor, t_min: float) -> Tensor:
        """Times ``(rows,)``."""
        return _chosen(self.grid, u)

    def weight(self, model: Parameterisation, t: Tensor, t_min: float) -> Tensor:
        """1."""
        return torch.ones_like(t)


class NoiseLevels(Weighting):
    r"""NCSN's: given levels of noise over signal, each as often, and w = 1, that is :math:`\lambda(\sigma) = \sigma^2`.

    References:
        Song and Ermon 2019, "Generative modeling by estimating gradients of the data distribution", section 4.2.

    Args:
        sigmas: positive, decreasing noise levels ``(levels,)``, in units of x; see ``geometric_sigmas``.

    Raises:
        ValueError: for other sigmas; when bound, for levels that no time of the SDE has.
    """

    def __init__(self, sigmas: Tensor | Sequence[float]) -> None:
        self.sigmas = decreasing("sigmas", sigmas)

    def require(self, model: Parameterisation, t_min: float) -> None:
        """See ``Weighting``; t_min is not used."""
        linear(model).time_of(self.sigmas)

    def times(self, model: Parameterisation, u: Tensor, t_min: float) -> Tensor:
        """Times ``(rows,)``."""
        return _chosen(linear(model).time_of(self.sigmas), u)

    def weight(self, model: Parameterisation, t: Tensor, t_min: float) -> Tensor:
        """1."""
        return torch.ones_like(t)


def _chosen(values: Tensor, u: Tensor) -> Tensor:
    """One of the values for each uniform number, each as often."""
    values = values.to(u.device)
    return values[(u * len(values)).long().clamp_max(len(values) - 1)].to(u.dtype)


def linear(model: Parameterisation, instead: str = "uniform times") -> LinearSDE:
    """A model's SDE, or ``ValueError`` where it isn't linear."""
    sde = model.sde
    require(isinstance(sde, LinearSDE), "a linear SDE (VE, VP, SubVP, ...)", f"{type(sde).__name__}: take {instead}")
    assert isinstance(sde, LinearSDE)
    return sde


def _log_ratios(sde: LinearSDE, t_min: float) -> tuple[float, float]:
    """Log of noise over signal at t_min and T."""
    least, most = sde.ratio(torch.tensor([t_min, sde.t_max], dtype=torch.float64)).log().tolist()
    return least, most
