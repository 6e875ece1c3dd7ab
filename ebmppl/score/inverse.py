"""Conditional scores of linear inverse problems and of in-painting."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from ebmppl.arguments import form, positive, require
from ebmppl.score.base import LinearSDE, over
from ebmppl.score.conditions import Conditional, Score
from ebmppl.score.parameterisations import same_shape
from ebmppl.score.pullback import Pull, pullback, require_gradient

METHODS = ("pigdm", "tmpd", "dps", "annealed")


class Denoiser(nn.Module):
    r"""The mean of the data given a noisy point: :math:`\hat x_0(x, t) = (x + \sigma^2 s(x, t)) / a` (Tweedie).

    Args:
        score: ``(x, t) -> score``.
        sde: with known marginals.

    Raises:
        ValueError: for what isn't such.
    """

    def __init__(self, score: Score, sde: LinearSDE) -> None:
        super().__init__()
        require(callable(score), "a score (x, t) -> tensor", type(score).__name__)
        require(isinstance(sde, LinearSDE), "a linear SDE", type(sde).__name__)
        self.score, self.sde = score, sde

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Denoised points ``(batch, *event)``."""
        return self.of(x, t, same_shape(self.score(x, t), x))

    def of(self, x: Tensor, t: Tensor, score: Tensor) -> Tensor:
        """Those that a score says."""
        mean, std = self.sde.marginal(t)
        return (x + over(std.square(), x) * score) / over(mean, x)


class Measured(Conditional):
    """Abstract: y = A x0 + noise_std z by one of the Gaussian approximations of p(y | x_t); see ``LinearGuidance``."""

    def __init__(
        self, score: Score, sde: LinearSDE, noise_std: float, method: str, data_std: float, scale: float | Tensor
    ) -> None:
        super().__init__(score)
        require(method in METHODS, f"a method of {', '.join(map(repr, METHODS))}", repr(method))
        self.denoiser, self.method = Denoiser(score, sde), method
        self.noise_std = positive("noise_std", noise_std, zero=method != "dps")
        self.data_std = positive("data_std", data_std)
        self.keep_weight("scale", scale, least=0.0)

    @abstractmethod
    def residual(self, points: Tensor) -> Tensor:
        """The residual y - A x0 ``(batch, measurements)``, in coordinates where A A' is diagonal."""

    @abstractmethod
    def adjoint(self, residual: Tensor, like: Tensor) -> Tensor:
        """A' of that, ``(batch, *event)``."""

    @abstractmethod
    def spectrum(self) -> Tensor:
        """The diagonal of A A', ``(measurements,)`` or a scalar."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The score and the gradient of the approximate log-likelihood."""
        if self.method == "annealed":
            score, gradient = same_shape(self.denoiser.score(x, t), x), self._annealed(x, t)
        else:
            score, gradient = self._through_denoised(x, t)
        return score + over(self.given("scale", x), x) * gradient

    def check(self, x: Tensor, t: Tensor) -> None:
        """A score without the gradient that the method goes through."""
        if self.method != "annealed":
            require_gradient(lambda at: self.denoiser.score(at, t), x, "a score")

    def _annealed(self, x: Tensor, t: Tensor) -> Tensor:
        """Of x0 given x alone, N(x / a, r^2 I)."""
        mean, std = self.denoiser.sde.marginal(t)
        rows = self.residual(x / over(mean, x))
        return self.adjoint(rows / self._variance((std / mean).square()), x) / over(mean, x)

    def _variance(self, of_data: Tensor) -> Tensor:
        """Of the measurements, where x0 has variance ``of_data (batch,)`` in every direction."""
        return self.noise_std**2 + of_data.unsqueeze(1) * self.spectrum()

    def _through_denoised(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Score, and the gradient of the log-likelihood at the denoised point."""

        def of(at: Tensor) -> tuple[Tensor, Tensor]:
            score = same_shape(self.denoiser.score(at, t), at)
            return self.denoiser.of(at, t, score), score

        denoised, score, pull = pullback(of, x)
        assert pull is not None  # denoised points depend on x itself
        rows = self.residual(denoised)
        score = score if torch.is_grad_enabled() else score.detach()
        if self.method == "tmpd":
            return score, self._by_moments(x, t, rows, pull)
        mean, std = self.denoiser.sde.marginal(t)
        ratio, prior = (std / mean).square(), self.data_std**2
        variance = torch.zeros_like(t) if self.method == "dps" else ratio * prior / (ratio + prior)
        return score, pull(self.adjoint(rows / self._variance(variance), x))

    def _by_moments(self, x: Tensor, t: Tensor, rows: Tensor, pull: Pull) -> Tensor:
        """With the covariance of x0 given x, std^2 / a (d denoised / dx): one gradient for each measurement."""
        mean, std = self.denoiser.sde.marginal(t)
        unit = torch.eye(rows.shape[1], dtype=x.dtype, device=x.device)
        by_row = [pull(self.adjoint(e.expand_as(rows), x)) for e in unit]
        stacked = torch.stack([part.reshape(len(x), -1) for part in by_row], 1)  # (batch, measurements, dimension)
        covariance = torch.stack([self._forward(part) for part in by_row], 1) * (std.square() / mean).view(-1, 1, 1)
        covariance = covariance + self.noise_std**2 * unit
        solved = torch.linalg.solve_ex(covariance, rows.unsqueeze(2))[0]
        return (solved * stacked).sum(1).view_as(x)

    def _forward(self, points: Tensor) -> Tensor:
        """A times points, ``(batch, measurements)``."""
        return self.residual(torch.zeros_like(points)) - self.residual(points)


class LinearGuidance(Measured):
    r"""A score given measurements :math:`y = A x_0 + \sigma_y z` of the data.

    The score of :math:`p(x_t | y)` is :math:`s(x, t) + \nabla_x \log p(y | x_t)`, and
    :math:`p(y | x_t) = \int p(y | x_0)\,p(x_0 | x_t)\,dx_0` is approximated, with a Gaussian in the place of
    :math:`p(x_0 | x_t)`. Methods:

    - "pigdm": :math:`N(\hat x_0(x, t), r_t^2 I)` with the denoised point and
      :math:`r_t^{-2} = a^2 / \sigma^2 + 1 / c^2`: exact for Gaussian data of covariance c^2 I; one network call and one gradient
      through it (Song, Vahdat, Mardani and Kautz 2023, "Pseudoinverse-guided diffusion models for inverse problems", eq. 8);
    - "tmpd": :math:`N(\hat x_0, \tfrac{\sigma^2}{a} \tfrac{\partial \hat x_0}{\partial x})`, the true moments: exact for all
      Gaussian data; a gradient for each measurement (Boys, Girolami, Pidstrigach, Reich, Mosca and Akyildiz 2023, "Tweedie
      moment projected diffusions for inverse problems");
    - "dps": the denoised point itself, :math:`N(y; A \hat x_0, \sigma_y^2 I)`: exact for t to 0 alone, and stiff where sigma_y is
      small; the paper's own weight is a ``scale`` (Chung et al. 2023, "Diffusion posterior sampling", eq. 16);
    - "annealed": :math:`N(x / a, (\sigma / a)^2 I)`, which forgets the data: exact for flat data; no gradient through the network
      (Jalal, Arvinte, Daras, Price, Dimakis and Tamir 2021, "Robust compressed sensing MRI with deep generative priors", with
      :math:`\gamma_t = \sigma / a`).

    Args:
        score: ``(x, t) -> score``, differentiable in x but for "annealed".
        sde: a linear one.
        matrix: A ``(measurements, dimension)`` for flattened points.
        measurement: y ``(measurements,)`` for all, or ``(chains, measurements)``.
        noise_std: sigma_y >= 0 (> 0 for "dps"), in units of y.
        method: as above.
        data_std: c > 0, of "pigdm", in units of x.
        scale: of the likelihood's gradient, >= 0, for all or for each chain ``(chains,)``; 1 is Bayes' rule.

    Raises:
        ValueError: for arguments of another shape or outside these ranges, or rows of A that depend on one another without noise.

    Example:
        >>> from ebmppl.score import VP
        >>> known = LinearGuidance(lambda x, t: -x, VP(), torch.ones(1, 2), torch.tensor([3.0]), noise_std=0.1)
        >>> known(torch.zeros(1, 2), torch.full((1,), 1e-4)).detach().round()  # nearly at the data: A' y / (sigma_y^2 + ...)
        tensor([[299., 299.]])
    """

    rows: Tensor
    rotated: Tensor
    squares: Tensor

    def __init__(
        self,
        score: Score,
        sde: LinearSDE,
        matrix: Tensor,
        measurement: Tensor,
        noise_std: float,
        method: str = "pigdm",
        *,
        data_std: float = 1.0,
        scale: float | Tensor = 1.0,
    ) -> None:
        super().__init__(score, sde, noise_std, method, data_std, scale)
        fits = isinstance(matrix, Tensor) and matrix.dim() == 2 and matrix.is_floating_point() and len(matrix) > 0
        require(fits, "a matrix (measurements, dimension)", form(matrix))
        require(bool(matrix.isfinite().all()), "a finite matrix", "one that isn't")
        fits = isinstance(measurement, Tensor) and measurement.dim() in (1, 2) and measurement.is_floating_point()
        fits = fits and measurement.shape[-1] == len(matrix)
        require(fits, f"measurements ({len(matrix)},) or (chains, {len(matrix)})", form(measurement))
        require(bool(measurement.isfinite().all()), "finite measurements", "others")
        squares, vectors = torch.linalg.eigh((matrix @ matrix.mT).double())
        independent = bool(squares[0] > 1e-12 * squares[-1])
        require(independent or self.noise_std > 0, "independent rows of the matrix where noise_std is 0", "others")
        self.keep("rows", (vectors.mT @ matrix.double()).to(matrix.dtype), by_row=False)
        rotated = (measurement.double() @ vectors).to(measurement.dtype)
        self.keep("rotated", rotated, by_row=measurement.dim() == 2)
        self.keep("squares", squares.clamp_min(0).to(matrix.dtype), by_row=False)

    def residual(self, points: Tensor) -> Tensor:
        """See the base."""
        return self.given("rotated", points) - points.reshape(len(points), -1) @ self.rows.mT

    def adjoint(self, residual: Tensor, like: Tensor) -> Tensor:
        """See the base."""
        return (residual @ self.rows).view(like.shape)

    def spectrum(self) -> Tensor:
        """See the base."""
        return self.squares

    def check(self, x: Tensor, t: Tensor) -> None:
        """Another dimension, too."""
        wanted = x[0].numel()
        require(self.rows.shape[1] == wanted, f"a matrix (measurements, {wanted})", tuple(self.rows.shape))
        super().check(x, t)
