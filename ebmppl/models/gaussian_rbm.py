"""The restricted Boltzmann machine of real visible units."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ebmppl.energies.discrete import RealLayers
from ebmppl.models.pairwise import full_parameter
from ebmppl.models.rbm import RBM, require_data
from ebmppl.models.rbm_views import log1p_exp


class GaussianRBM(RBM):
    r"""Real visible units with learned variances, hidden bits summed out:

    .. math:: E(v, h) = \sum_i \frac{(v_i - b_i)^2}{2 \sigma_i^2} - c^\top h - \sum_i \frac{v_i}{\sigma_i^2} (W h)_i

    so v given h is normal of mean b + W h and variances :math:`\sigma^2`, and the log-odds of h are
    :math:`c + W^\top (v / \sigma^2)`. The learned parameters are :math:`z_i = \log\sigma_i^2`.

    References:
        Cho, Ilin and Raiko 2011, "Improved learning of Gaussian-Bernoulli restricted Boltzmann machines", equation 3;
        with unit variances it is that of Welling, Rosen-Zvi and Hinton 2004.

    Args:
        num_visible: V.
        num_hidden: H.
        W: weights ``(V, H)``; by default normal of standard deviation 0.01. A ``Parameter`` is shared, not copied.
        b: means of v at h = 0, ``(V,)``; by default 0.
        c: hidden biases ``(H,)``; by default 0.
        log_variance: z ``(V,)``; by default 0.
        generator: of the default weights.
        dtype: of the parameters; that of the first given tensor, else torch's default.

    Raises:
        ValueError: for numbers of units that are not positive, other shapes, or values that are not finite.
    """  # noqa: D415

    log_variance: nn.Parameter
    linear = False

    def __init__(
        self,
        num_visible: int,
        num_hidden: int,
        *,
        W: Tensor | None = None,
        b: Tensor | None = None,
        c: Tensor | None = None,
        log_variance: Tensor | None = None,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_visible, constraints.real, (num_visible,), num_hidden, W, b, c, generator, dtype)
        self.log_variance = full_parameter("log_variance", log_variance, (num_visible,), (self.W,), dtype)

    @property
    def visible_precision(self) -> Tensor:
        """1 / sigma^2 of v given h, ``(V,)``."""
        return torch.exp(-self.log_variance)

    @property
    def visible_scale(self) -> Tensor:
        """Sigma ``(V,)``: standard deviations of v given h."""
        return torch.exp(0.5 * self.log_variance)

    def features(self, v: Tensor) -> Tensor:
        """The units over their variances."""
        return v.to(self.W.dtype) * self.visible_precision

    def visible_energy(self, v: Tensor) -> Tensor:
        """Sum of (v - b)^2 / (2 sigma^2)."""
        return 0.5 * ((v.to(self.W.dtype) - self.b).square() @ self.visible_precision)

    def visible_mean(self, h: Tensor) -> Tensor:
        """Means ``(*batch, V)`` of v given h: b + W h."""
        return super().visible_fields(h)

    def visible_fields(self, h: Tensor) -> Tensor:
        """Means over variances, ``(*batch, V)``."""
        return self.visible_mean(h) * self.visible_precision

    def log_visible(self, h: Tensor) -> Tensor:
        """Log of the Gaussian integral over v: of log(2 pi sigma^2) / 2 + (mean^2 - b^2) / (2 sigma^2)."""
        squares = (self.visible_mean(h).square() - self.b.square()) @ self.visible_precision
        return 0.5 * (squares + self.log_variance.sum() + self.num_visible * math.log(2 * math.pi))

    def bipartite(self) -> RealLayers | None:
        """Itself where it is ``layered``."""
        return self if self.layered else None

    @torch.no_grad()
    def value_and_grad(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Closed form: the gradient is (v - b - W p(h = 1 | v)) / sigma^2."""
        if self.linear is None:
            return super().value_and_grad(v)
        logits = self.hidden_logits(v)
        value = self.visible_energy(v) - log1p_exp(logits).sum(-1)
        return value, (v - self.b - torch.sigmoid(logits) @ self.W.mT) * self.visible_precision

    def data_bias(self, data: Tensor, pseudocount: float) -> Tensor:
        """The means; log-variances are set to those of the data, too."""
        require_data(data, torch.isfinite(data), "finite values")
        variance = data.var(0, correction=0)
        constant = (variance == 0).nonzero()
        if len(constant):
            i = int(constant[0])
            raise ValueError(f"expected data in which every unit varies, got only {data[0, i].item():.6g} at unit {i}")
        self.log_variance.copy_(variance.log())
        return data.mean(0)
