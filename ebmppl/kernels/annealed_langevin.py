"""Annealed Langevin dynamics through decreasing noise levels."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from ebmppl.arguments import require, whole
from ebmppl.kernels.score import Score, ScoreTarget, SteppedKernel, steps
from ebmppl.score.schedules import decreasing, langevin_step


class AnnealedLangevin(SteppedKernel):
    r"""Langevin steps at each noise level :math:`\sigma_1 > \dots > \sigma_L` of a score, the largest first (NCSN).

    .. math:: x' = x + \tfrac{\eta_i}2 s(x, \sigma_i) + \sqrt{\eta_i}\,z, \qquad \eta_i = \eta\,\sigma_i^2 / \sigma_L^2

    Consistent steps (Jolicoeur-Martineau et al. 2021), one at each level, keep the noise in x at that of the level:
    :math:`x' = x + \eta\,\sigma_i^2 s + \beta_i \sigma_{i+1} z` with
    :math:`\beta_i^2 = 1 - ((1 - \eta)\,\sigma_i / \sigma_{i+1})^2` and :math:`\sigma_{L+1} = 0`. A tick is one network call;
    draws are independent, and begin at N(0, sigma_1^2 I). A score that is the gradient of an energy allows larger steps without
    their bias: ``AnnealedMALA``.

    References:
        Song and Ermon 2019, "Generative modeling by estimating gradients of the data distribution", and 2020, "Improved
        techniques for training score-based generative models"; Jolicoeur-Martineau, Piche-Taillefer, Tachet des Combes and
        Mitliagkas 2021, "Adversarial score matching and improved sampling for image generation".

    Args:
        score: ``(x, sigma) -> score``, ``(chains, *event)`` from such points and noise levels ``(chains,)``.
        sigmas: positive, decreasing noise levels ``(levels,)``, in units of x; see ``geometric_sigmas``.
        event_shape: of one point.
        steps_per_level: Langevin steps at each level, >= 1; 1 where consistent.
        step_size: eta > 0, in units of x squared, at the smallest level, when None 0.2 sigma_L^2, which is NCSN's 2e-5 at its
            sigma_L = 0.01; where consistent without a unit, in (0, 1], and to be given.
        consistent: take consistent steps.
        denoise: one more network call for the mean of the data given x at sigma_L (Tweedie), as in Song and Ermon 2020.

    Raises:
        ValueError: for sigmas that don't decrease, arguments outside their ranges, or a consistent step size under
            ``1 - sigma_{i+1} / sigma_i`` of some level.

    Example:
        >>> import ebmppl as eb
        >>> sigmas = eb.score.geometric_sigmas(10, 0.1, 5.0)
        >>> score = lambda x, sigma: -x / (1 + sigma.unsqueeze(1) ** 2)  # of N(0, I) with noise
        >>> eb.generate(AnnealedLangevin(score, sigmas, (2,), steps_per_level=20, step_size=0.002), 100, seed=0).shape
        torch.Size([100, 2])
    """

    def __init__(
        self,
        score: Score,
        sigmas: Tensor | Sequence[float],
        event_shape: Sequence[int],
        steps_per_level: int = 100,
        step_size: float | None = None,
        *,
        consistent: bool = False,
        denoise: bool = True,
    ) -> None:
        levels = decreasing("sigmas", sigmas)
        at = levels.tolist()
        self.steps_per_level = whole("steps_per_level", steps_per_level, 1)
        require(step_size is not None or not consistent, "a step_size where consistent", step_size)
        self.step_size = langevin_step(step_size, levels)
        self.consistent, self.denoise = consistent, denoise
        rows = self._consistent(at) if consistent else self._plain(at)
        if denoise:
            rows.append({"time": at[-1], "point": 1.0, "score": at[-1] ** 2})
        super().__init__(ScoreTarget(score, event_shape, at[0]), steps(rows))

    def _plain(self, at: list[float]) -> list[dict[str, float]]:
        rows = []
        for sigma in at:
            eta = self.step_size * (sigma / at[-1]) ** 2
            row = {"time": sigma, "point": 1.0, "score": 0.5 * eta, "noise": math.sqrt(eta)}
            rows += [dict(row) for _ in range(self.steps_per_level)]
        return rows

    def _consistent(self, at: list[float]) -> list[dict[str, float]]:
        eta = self.step_size
        require(self.steps_per_level == 1, "one step per level where consistent", self.steps_per_level)
        least = max((1 - b / a for a, b in zip(at[:-1], at[1:], strict=True)), default=0.0)
        require(least <= eta <= 1, f"a consistent step_size in [{least:.6g}, 1]", eta)
        rows = []
        for sigma, after in zip(at, [*at[1:], 0.0], strict=True):
            noise = math.sqrt(max(after**2 - ((1 - eta) * sigma) ** 2, 0.0)) if after else 0.0
            rows.append({"time": sigma, "point": 1.0, "score": eta * sigma**2, "noise": noise})
        return rows
