"""The diffusion whose marginals are those of DDPM at its steps."""

from __future__ import annotations

import torch
from torch import Tensor

from ebmppl.arguments import require
from ebmppl.score.sde import PreservingSDE


class DiscreteVP(PreservingSDE):
    r"""Variance preserving with DDPM's rates: at the times i / N its marginals are those of DDPM after i steps.

    There :math:`2 \log a(i/N) = \sum_{j \le i} \log(1 - \beta_j)`, and log a is linear between them. DDPM's loss is
    ``DiffusionScoreMatching`` at ``DiscreteTimes.of(sde)``; its sampler is ``ReverseSDE(..., num_steps=N - 1,
    method="ancestral", t_min=1 / N, denoise=True)``.

    References:
        Ho, Jain and Abbeel 2020, "Denoising diffusion probabilistic models".

    Args:
        betas: rates ``(N,)`` in (0, 1), see ``linear_betas`` and ``cosine_betas``.

    Raises:
        ValueError: for other rates.
    """

    def __init__(self, betas: Tensor) -> None:
        super().__init__()
        require(isinstance(betas, Tensor) and betas.dim() == 1 and len(betas) > 1, "betas as a vector", repr(betas))
        betas = betas.detach().double()
        require(bool(((betas > 0) & (betas < 1)).all()), "betas in (0, 1)", betas.tolist()[:6])
        log_means = 0.5 * torch.log1p(-betas).cumsum(0)
        self.log_means = torch.cat([log_means.new_zeros(1), log_means])  # no buffer: a model's dtype is not its

    @property
    def num_steps(self) -> int:
        """N."""
        return len(self.log_means) - 1

    def beta(self, t: Tensor) -> Tensor:
        """N log 1 / (1 - beta_i) for t in ((i - 1) / N, i / N]."""
        before, after, _ = self._around(t)
        return -2 * self.num_steps * (after - before).to(t.dtype)

    def log_mean(self, t: Tensor) -> Tensor:
        """Log of the mean coefficient, of the shape of t."""
        before, after, part = self._around(t)
        return torch.lerp(before.to(t.dtype), after.to(t.dtype), part)

    def time_at(self, log_mean: Tensor) -> Tensor:
        """Within the step where log a is passed."""
        log_means = self.log_means.to(log_mean.device)
        step = torch.searchsorted(-log_means, -log_mean).sub(1).clamp(0, self.num_steps - 1)
        before, after = log_means[step], log_means[step + 1]
        return (step + (log_mean - before) / (after - before)) / self.num_steps

    def _around(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log a at the ends of t's step, and the part of it before t; a time within rounding of a step's end is that end."""
        at = t * self.num_steps
        step = (at * (1 - 4 * torch.finfo(t.dtype).eps)).ceil().long().sub(1).clamp(0, self.num_steps - 1)
        log_means = self.log_means.to(t.device)
        return log_means[step], log_means[step + 1], at - step
