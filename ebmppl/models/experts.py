"""Ready experts of real vectors: functions of linear filters' outputs."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ebmppl.energies.base import Energy
from ebmppl.energies.gaussian import Quadratic
from ebmppl.models.pairwise import full_parameter
from ebmppl.models.rbm_views import log1p_exp


class FilterExperts(Energy):
    r"""Abstract: one expert for every linear filter, :math:`E(x) = \sum_k \alpha_k \phi(y_k)` of outputs y = J x + b.

    With as many filters as dimensions, which is noiseless independent component analysis, the outputs are independent
    and log Z is known where that of one output is (Teh, Welling, Osindero and Hinton 2003, "Energy-based models for
    sparse overcomplete representations").

    Args:
        num_experts: K filters.
        dimension: D of the vectors x.
        filters: J ``(K, D)``; by default normal of standard deviation 1 / sqrt(D), so that white data give outputs of
            unit variance. A ``Parameter`` is shared, not copied.
        bias: b ``(K,)``; by default 0.
        generator: of the default filters.
        dtype: of the parameters; that of the first given tensor, else torch's default.

    Raises:
        ValueError: for numbers that are not positive, other shapes, or values that are not finite.
    """

    filters: nn.Parameter
    bias: nn.Parameter

    def __init__(
        self,
        num_experts: int,
        dimension: int,
        *,
        filters: Tensor | None = None,
        bias: Tensor | None = None,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if num_experts < 1:
            raise ValueError(f"expected at least one expert, got {num_experts}")
        super().__init__((dimension,))
        like = (filters, bias)
        if filters is None:
            real = dtype or (bias.dtype if bias is not None else None)
            device = bias.device if bias is not None else None if generator is None else generator.device
            filters = torch.randn(num_experts, dimension, generator=generator, dtype=real, device=device)
            filters = filters / math.sqrt(dimension)
        self.filters = full_parameter("filters", filters, (num_experts, dimension), like, dtype)
        self.bias = full_parameter("bias", bias, (num_experts,), (filters, bias), dtype)

    def outputs(self, x: Tensor) -> Tensor:
        """Filter outputs y = J x + b, ``(*batch, K)``."""
        return x @ self.filters.mT + self.bias

    @property
    def alpha(self) -> Tensor | float:
        """Weights of the experts, ``(K,)`` or a number for all."""
        return 1.0

    @staticmethod
    def expert(y: Tensor) -> Tensor:
        """Phi, the energies of single outputs, elementwise."""
        raise NotImplementedError

    @staticmethod
    def slope(y: Tensor) -> Tensor:
        """The derivative of phi, elementwise."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Energies ``(*batch)`` in nats of ``(*batch, D)``."""
        return (self.alpha * self.expert(self.outputs(x))).sum(-1)

    @torch.no_grad()
    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Closed form: the gradient is the slopes times the filters."""
        y, alpha = self.outputs(x), self.alpha
        return (alpha * self.expert(y)).sum(-1), (alpha * self.slope(y)) @ self.filters

    def _log_z_complete(self, one: Tensor) -> Tensor | None:
        """Log Z from log integrals ``(K,)`` of exp(-alpha phi(y)) over each output."""
        if self.filters.shape[0] != self.filters.shape[1]:
            return None
        log_det = torch.linalg.slogdet(self.filters)[1]
        return one.sum() - log_det if bool(torch.isfinite(log_det)) else None

    def extra_repr(self) -> str:
        """Shape and experts, for ``repr``."""
        return f"{super().extra_repr()}, num_experts={len(self.filters)}"


class WeightedExperts(FilterExperts):
    """Abstract: with learned positive weights alpha = exp(log_alpha), which ``FilterExperts``'s filters can't replace.

    Args:
        num_experts: see ``FilterExperts``.
        dimension: see ``FilterExperts``.
        filters: see ``FilterExperts``.
        bias: see ``FilterExperts``.
        alpha: positive weights ``(K,)``; by default 1.
        generator: see ``FilterExperts``.
        dtype: see ``FilterExperts``.

    Raises:
        ValueError: also for weights that are not positive.
    """

    log_alpha: nn.Parameter

    def __init__(
        self,
        num_experts: int,
        dimension: int,
        *,
        filters: Tensor | None = None,
        bias: Tensor | None = None,
        alpha: Tensor | None = None,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_experts, dimension, filters=filters, bias=bias, generator=generator, dtype=dtype)
        if alpha is not None and not bool(((alpha > 0) & torch.isfinite(alpha)).all()):
            raise ValueError(f"expected positive weights alpha, got {alpha.tolist()}")
        log_alpha = None if alpha is None else alpha.detach().log()
        self.log_alpha = full_parameter("alpha", log_alpha, (num_experts,), (self.filters,), dtype)

    @property
    def alpha(self) -> Tensor:
        """Weights of the experts, ``(K,)``."""
        return self.log_alpha.exp()


class GaussianExperts(FilterExperts):
    r"""A product of Gaussians along filters: :math:`E(x) = \tfrac12 \sum_k (J_k^\top x + b_k)^2`.

    A filter's norm is its expert's precision. With filters that span all directions it is a Gaussian of precision J'J
    and its log Z is known (``as_quadratic``).

    References:
        Williams and Agakov 2002, "Products of Gaussians and probabilistic minor component analysis".

    Args: see ``FilterExperts``.
    """

    @staticmethod
    def expert(y: Tensor) -> Tensor:
        """y^2 / 2."""
        return 0.5 * y.square()

    @staticmethod
    def slope(y: Tensor) -> Tensor:
        """The output itself."""
        return y

    def as_quadratic(self) -> Quadratic | None:
        """x'(J'J/2)x + b'J x + b'b/2, where J'J is positive definite."""
        half, dimension = 0.5 * self.filters.mT @ self.filters, self.filters.shape[1]
        # rounding may hide from the factorisation that a direction is missing
        if int(torch.linalg.matrix_rank(self.filters.detach())) < dimension or bool(
            torch.linalg.cholesky_ex(half)[1] != 0
        ):
            return None
        return Quadratic(half, -(self.bias @ self.filters), 0.5 * self.bias.square().sum())


class StudentTExperts(WeightedExperts):
    r"""A product of Student-t distributions along filters: :math:`E(x) = \sum_k \alpha_k \log(1 + \tfrac12 y_k^2)`, y = J x + b.

    Heavy tails make outputs sparse. It can be normalised where the weights of the filters that see a direction are large
    enough; with K = D where all alpha > 1/2.

    References:
        Welling, Hinton and Osindero 2003, "Learning sparse topographic representations with products of Student-t
        distributions" (there b = 0).

    Args: see ``WeightedExperts``.
    """

    @staticmethod
    def expert(y: Tensor) -> Tensor:
        """log(1 + y^2 / 2)."""
        return torch.log1p(0.5 * y.square())

    @staticmethod
    def slope(y: Tensor) -> Tensor:
        """y / (1 + y^2 / 2)."""  # noqa: D403
        return y / (1 + 0.5 * y.square())

    @property
    def log_z(self) -> Tensor | None:
        """Log partition function in nats for K = D, invertible filters and alpha > 1/2, else None."""
        alpha = self.alpha
        if not bool((alpha > 0.5).all()):
            return None
        one = 0.5 * math.log(2 * math.pi) + torch.lgamma(alpha - 0.5) - torch.lgamma(alpha)
        return self._log_z_complete(one)


class LogisticExperts(WeightedExperts):
    r"""A product of logistic densities along filters: :math:`E(x) = -\sum_k \alpha_k \log \sigma(y_k) \sigma(-y_k)`.

    With outputs y = J x + b and the logistic function sigma, so :math:`\phi(y) = \log(1 + e^y) + \log(1 + e^{-y})`. With
    K = D and alpha = 1 it is independent component analysis by Infomax.

    References:
        Hinton, Welling, Teh and Osindero 2001, "A new view of ICA"; Bell and Sejnowski 1995, "An information-maximization
        approach to blind separation and blind deconvolution".

    Args: see ``WeightedExperts``.
    """

    @staticmethod
    def expert(y: Tensor) -> Tensor:
        """log(1 + e^y) + log(1 + e^-y)."""
        return log1p_exp(y) + log1p_exp(-y)

    @staticmethod
    def slope(y: Tensor) -> Tensor:
        """tanh(y / 2)."""
        return torch.tanh(0.5 * y)

    @property
    def log_z(self) -> Tensor | None:
        """Log partition function in nats for K = D and invertible filters, else None."""
        alpha = self.alpha
        return self._log_z_complete(2 * torch.lgamma(alpha) - torch.lgamma(2 * alpha))


class SoftplusExperts(FilterExperts):
    r"""The hidden units of a restricted Boltzmann machine as experts: :math:`E(x) = -\sum_k \log(1 + e^{J_k^\top x + b_k})`.

    Each is a mixture of "off", which says nothing, and "on", which pulls along its filter. Alone they can't be
    normalised over real vectors; times a Gaussian they are a ``GaussianRBM``.

    References:
        Hinton 2002, "Training products of experts by minimizing contrastive divergence".

    Args: see ``FilterExperts``.
    """

    @staticmethod
    def expert(y: Tensor) -> Tensor:
        """-log(1 + e^y)."""
        return -log1p_exp(y)

    @staticmethod
    def slope(y: Tensor) -> Tensor:
        """Minus the probability of "on"."""
        return -torch.sigmoid(y)
