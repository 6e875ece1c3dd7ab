"""The reverse-time SDE of a diffusion, from noise to data, in fixed steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from ebmppl.arguments import positive, real, require, whole
from ebmppl.kernels.score import Score, ScoreTarget, SteppedKernel, Steps, steps
from ebmppl.kernels.solvers import Row, corrected, denoised, euler, grid, heun, resampled
from ebmppl.score.base import SDE
from ebmppl.score.schedules import karras_times, uniform_times
from ebmppl.score.sde import KarrasVE

METHODS = ("euler_maruyama", "heun", "ancestral", "predictor_corrector")


class ReverseSDE(SteppedKernel):
    r"""Draws by the reverse-time SDE :math:`dx = (f(x, t) - g(t)^2 s(x, t))\,dt + g(t)\,d\bar w` from T down to t_min.

    A tick is one network call of every chain; a draw takes ``num_steps`` of them, twice that with "heun", and
    ``1 + corrector_steps`` times with "predictor_corrector". Draws are independent. Methods:

    - "euler_maruyama": weak order 1;
    - "heun": stochastic Heun, :math:`x' = x - \tfrac h2 (v(x, t) + v(\tilde x, t - h)) + \sqrt h\,\tfrac{g + g'}2 z` with the
      Euler-Maruyama step :math:`\tilde x` of the same z; weak order 2;
    - "ancestral": draws of x(t - h) given x(t) and the denoised point, as DDPM (Ho, Jain and Abbeel 2020);
    - "predictor_corrector": after each ancestral step, Langevin steps :math:`x' = x + \epsilon s + \sqrt{2 \epsilon} z`
      with :math:`\epsilon = 2 (r \sigma(t))^2` at the new time. That is the paper's rule for the signal-to-noise ratio r
      (for VE; for VP it has a factor 1 - beta_i more) with the norms of noise and score at their expectations under noise, so
      that steps don't depend on the point, nor on other chains.

    Resampling (RePaint) makes every ``jump`` ancestral steps ``resample`` times, and goes back by the forward SDE between; for a
    score that in-paints by ``score.Replacement``. It takes ``resample`` times as many calls.

    References:
        Anderson 1982, "Reverse-time diffusion equation models"; Song et al. 2021, algorithms 2 to 5; Lugmayr et al. 2022,
        "RePaint: inpainting using denoising diffusion probabilistic models", algorithm 1.

    Args:
        score: ``(x, t) -> score``, ``(chains, *event)`` from such points and times ``(chains,)``.
        sde: the forward SDE; all methods but "euler_maruyama" and "heun" need a linear one.
        event_shape: of one point.
        num_steps: from T to t_min, >= 1.
        method: as above.
        t_min: the last time, in (0, T).
        times: the grid, a function of SDE, num_steps and t_min; see ``ebmppl.score``. When None ``uniform_times``, but of
            ``KarrasVE`` ``karras_times``: its time is the noise level, and few even steps would be at the data's scale.
        last_noise: add the last step's noise; without it, as usual, a draw is that step's mean.
        denoise: one more network call for the mean of x(0) given x(t_min) (Tweedie).
        snr: r > 0, of the corrector.
        corrector_steps: Langevin steps after each step, >= 1.
        resample: how often ancestral steps are made, >= 1.
        jump: how many are made before the forward SDE goes back, >= 1.

    Raises:
        ValueError: for arguments outside these ranges.

    Example:
        >>> import torch
        >>> import ebmppl as eb
        >>> sde = eb.score.VP()
        >>> kernel = ReverseSDE(lambda x, t: -x, sde, (2,), num_steps=50)  # of N(0, I), which VP leaves as it is
        >>> eb.generate(kernel, 100, seed=0).shape
        torch.Size([100, 2])
    """

    def __init__(
        self,
        score: Score,
        sde: SDE,
        event_shape: Sequence[int],
        num_steps: int,
        method: str = "euler_maruyama",
        *,
        t_min: float = 1e-3,
        times: Callable[[SDE, int, float], Tensor] | None = None,
        last_noise: bool = False,
        denoise: bool = False,
        snr: float = 0.16,
        corrector_steps: int = 1,
        resample: int = 1,
        jump: int = 1,
    ) -> None:
        require(method in METHODS, f"a method of {', '.join(map(repr, METHODS))}", repr(method))
        self.num_steps, self.method = whole("num_steps", num_steps, 1), method
        self.t_min, self.last_noise, self.denoise = real(t_min), last_noise, denoise
        self.snr, self.corrector_steps = positive("snr", snr), whole("corrector_steps", corrector_steps, 1)
        self.resample, self.jump = whole("resample", resample, 1), whole("jump", jump, 1)
        require(resample == 1 or method == "ancestral", 'the method "ancestral" to resample', repr(method))
        best = karras_times if isinstance(sde, KarrasVE) else uniform_times
        at = grid(sde, times or best, self.num_steps, t_min)
        super().__init__(ScoreTarget(score, event_shape, sde.prior_std, sde), self._rows(sde, at))

    def _rows(self, sde: SDE, at: list[float]) -> Steps:
        rows: list[Row]
        if self.method == "euler_maruyama":
            rows = euler(sde, at, share=1.0, noisy=True)
        elif self.method == "heun":
            rows = heun(sde, at, share=1.0, noisy=True)
        else:
            rows = resampled(sde, at, self.resample, self.jump)
        if not self.last_noise:
            rows[-2 if self.method == "heun" else -1]["noise"] = 0.0
        if self.method == "predictor_corrector":
            rows = corrected(sde, rows, at, self.snr, self.corrector_steps)
        if self.denoise:
            rows.append(denoised(sde, at[-1]))
        return steps(rows, int(self.method == "heun"), drift="drift" in rows[0])
