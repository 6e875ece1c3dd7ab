"""Schedules: noise levels, noise rates and grids of time, each a function that returns a tensor in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ebmppl.arguments import positive, real, require, whole
from ebmppl.score.base import SDE, LinearSDE

F64 = torch.float64


def geometric_sigmas(num_levels: int, sigma_min: float, sigma_max: float) -> Tensor:
    """Noise levels ``(num_levels,)`` of NCSN, decreasing from sigma_max to sigma_min with a constant factor.

    They are the standard deviations of ``VE(sigma_min, sigma_max)`` at evenly spaced times.

    References:
        Song and Ermon 2019, "Generative modeling by estimating gradients of the data distribution".

    Raises:
        ValueError: for fewer than two levels, or not 0 < sigma_min < sigma_max.
    """
    least, most = _ends(num_levels, sigma_min, sigma_max)
    return torch.linspace(math.log(most), math.log(least), num_levels, dtype=F64).exp()


def karras_sigmas(num_levels: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    r"""Noise levels ``(num_levels,)``, decreasing, evenly spaced in :math:`\sigma^{1/\rho}`.

    References:
        Karras, Aittala, Aila and Laine 2022, "Elucidating the design space of diffusion-based generative models", eq. 5.

    Raises:
        ValueError: for fewer than two levels, rho <= 0, or not 0 < sigma_min < sigma_max.
    """
    (least, most), rho = _ends(num_levels, sigma_min, sigma_max), positive("rho", rho)
    return torch.linspace(most ** (1 / rho), least ** (1 / rho), num_levels, dtype=F64) ** rho


def linear_betas(num_steps: int, beta_min: float = 0.1, beta_max: float = 20.0) -> Tensor:
    """Noise rates ``(num_steps,)`` of DDPM for steps 1 to N, increasing from beta_min / N to beta_max / N.

    With N = 1000 the defaults are DDPM's 1e-4 to 0.02. The product of 1 - beta over the first t N steps tends to the squared
    mean coefficient of ``VP(beta_min, beta_max)`` at t.

    References:
        Ho, Jain and Abbeel 2020, "Denoising diffusion probabilistic models"; the limit: Song et al. 2021, appendix B.

    Raises:
        ValueError: for fewer than two steps, not 0 < beta_min <= beta_max, or a rate of 1 and more.
    """
    whole("num_steps", num_steps, 2)
    least, most = real(beta_min), real(beta_max)
    require(0 < least <= most < num_steps, "0 < beta_min <= beta_max < num_steps", (beta_min, beta_max))
    return torch.linspace(least / num_steps, most / num_steps, num_steps, dtype=F64)


def cosine_betas(num_steps: int, offset: float = 0.008, most: float = 0.999) -> Tensor:
    """Noise rates ``(num_steps,)`` for steps 1 to N whose product of 1 - beta follows a squared cosine; see ``CosineVP``.

    References:
        Nichol and Dhariwal 2021, "Improved denoising diffusion probabilistic models".

    Args:
        num_steps: N >= 2.
        offset: s >= 0.
        most: where the rates are cut off, in (0, 1).

    Raises:
        ValueError: for numbers outside these ranges.
    """
    whole("num_steps", num_steps, 2)
    offset = positive("offset", offset, zero=True)
    require(0 < real(most) < 1, "most in (0, 1)", repr(most))
    t = torch.linspace(0, 1, num_steps + 1, dtype=F64)
    kept = torch.cos(0.5 * math.pi * (t + offset) / (1 + offset)).square()
    return (1 - kept[1:] / kept[:-1]).clamp_max(real(most))


def uniform_times(sde: SDE, num_steps: int, t_min: float) -> Tensor:
    """Times ``(num_steps + 1,)`` from T down to t_min, evenly spaced."""
    t_min = _start(sde, num_steps, t_min)
    return torch.linspace(sde.t_max, t_min, num_steps + 1, dtype=F64)


def log_snr_times(sde: SDE, num_steps: int, t_min: float) -> Tensor:
    """Times ``(num_steps + 1,)`` from T down to t_min, evenly spaced in the log of noise over signal.

    References:
        Lu, Zhou, Bao, Chen, Li and Zhu 2022, "DPM-Solver".

    Raises:
        ValueError: for an SDE that isn't linear.
    """
    return _times_of_sigmas(sde, num_steps, t_min, geometric_sigmas)


def karras_times(sde: SDE, num_steps: int, t_min: float) -> Tensor:
    """Times ``(num_steps + 1,)`` from T down to t_min at which noise over signal is ``karras_sigmas`` (rho = 7).

    Raises:
        ValueError: for an SDE that isn't linear.
    """
    return _times_of_sigmas(sde, num_steps, t_min, karras_sigmas)


def _times_of_sigmas(sde: SDE, num_steps: int, t_min: float, sigmas: object) -> Tensor:
    require(isinstance(sde, LinearSDE), "a linear SDE", type(sde).__name__)
    assert isinstance(sde, LinearSDE)
    assert callable(sigmas)
    t_min = _start(sde, num_steps, t_min)
    least, most = sde.ratio(torch.tensor([t_min, sde.t_max], dtype=F64)).tolist()
    times = sde.time_of(sigmas(num_steps + 1, least, most).clamp(least, most))
    times[0], times[-1] = sde.t_max, t_min
    return times


def _ends(num_levels: int, sigma_min: float, sigma_max: float) -> tuple[float, float]:
    whole("num_levels", num_levels, 2)
    least, most = real(sigma_min), real(sigma_max)
    require(0 < least < most < math.inf, "finite 0 < sigma_min < sigma_max", (sigma_min, sigma_max))
    return least, most


def _start(sde: SDE, num_steps: int, t_min: float) -> float:
    require(isinstance(sde, SDE), "an SDE", type(sde).__name__)
    whole("num_steps", num_steps, 1)
    return sde.require_start(t_min)


def langevin_step(step_size: float | None, sigmas: Tensor) -> float:
    """Step size at the smallest of noise levels; when None 0.2 of its square, as NCSN's 2e-5 at sigma_L = 0.01."""
    return 0.2 * float(sigmas[-1]) ** 2 if step_size is None else positive("step_size", step_size)


def decreasing(name: str, values: object) -> Tensor:
    """Positive, decreasing numbers, a tensor or a sequence of such, as float64 ``(many,)`` on the CPU; else ``ValueError``."""
    if not isinstance(values, Tensor):
        numbers = isinstance(values, Sequence) and all(isinstance(v, (int, float)) for v in values)
        require(numbers, f"{name} as a tensor or a sequence of numbers", repr(values))
        values = torch.tensor(values, dtype=torch.float64)
    require_decreasing(name, values)
    return values.detach().to("cpu", torch.float64)


def require_decreasing(name: str, values: Tensor) -> None:
    """Raise ``ValueError`` unless these are positive numbers ``(many,)``, each less than the one before."""
    require(isinstance(values, Tensor) and values.dim() == 1 and len(values) > 0, f"{name} as a vector", repr(values))
    good = bool((values > 0).all()) and bool(values.isfinite().all()) and bool((values[1:] < values[:-1]).all())
    shown = [round(v, 6) for v in values.tolist()]
    require(good, f"positive, decreasing {name}", shown if len(shown) <= 6 else [*shown[:3], "...", *shown[-3:]])
