"""The restricted Boltzmann machine of categorical visible units."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from ebmppl.energies.base import Energy
from ebmppl.energies.discrete import Layers, one_hot
from ebmppl.energies.supports import categories
from ebmppl.models.rbm import RBM, require_data
from ebmppl.models.rbm_views import log1p_exp


class SoftmaxRBM(RBM):
    r"""Visible units of K categories, integers 0 ... K - 1, and hidden bits, which are summed out:

    .. math:: E(v, h) = -\sum_i b_{i, v_i} - c^\top h - \sum_i W_{i, v_i}^\top h

    ``relaxed()`` is the same energy over one-hot vectors ``(V, K)`` and any real ones in their place.

    References:
        Salakhutdinov, Mnih and Hinton 2007, "Restricted Boltzmann machines for collaborative filtering".

    Args:
        num_visible: V.
        num_categories: K >= 2.
        num_hidden: H.
        W: weights ``(V, K, H)``; by default normal of standard deviation 0.01. A ``Parameter`` is shared, not copied.
        b: visible biases ``(V, K)``; by default 0.
        c: hidden biases ``(H,)``; by default 0.
        generator: of the default weights.
        dtype: of the parameters; that of the first given tensor, else torch's default.

    Raises:
        ValueError: for numbers of units that are not positive, fewer than two categories, other shapes, or values that
            are not finite.
    """  # noqa: D415

    linear = True

    def __init__(
        self,
        num_visible: int,
        num_categories: int,
        num_hidden: int,
        *,
        W: Tensor | None = None,
        b: Tensor | None = None,
        c: Tensor | None = None,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.num_categories = num_categories
        features = (num_visible, num_categories)
        super().__init__(num_visible, categories(num_categories), features, num_hidden, W, b, c, generator, dtype)

    def features(self, v: Tensor) -> Tensor:
        """One-hot vectors, flat ``(*batch, V * K)``."""
        return one_hot(v, self.num_categories, self.W.dtype).flatten(-2)

    def visible_energy(self, v: Tensor) -> Tensor:
        """Minus the sum of the biases of the categories."""
        return -(self.features(v) @ self.b.flatten())

    def visible_logits(self, h: Tensor) -> Tensor:
        """Log-probabilities ``(*batch, V, K)`` of the categories given h, up to a constant: b + W h."""
        return self.visible_fields(h)

    def p_visible(self, h: Tensor) -> Tensor:
        """p(v = k | h), ``(*batch, V, K)``."""
        return torch.softmax(self.visible_logits(h), -1)

    def log_visible(self, h: Tensor) -> Tensor:
        """Sum over i of log sum_k exp(b_ik + W_ik h)."""
        return torch.logsumexp(self.visible_fields(h), -1).sum(-1)

    def bipartite(self) -> Layers | None:
        """Itself where it is ``layered``."""
        return self if self.layered else None

    def relaxed(self) -> Energy:
        """The free energy of one-hot vectors ``(V, K)``, at any real vectors in their place."""
        return OneHotRBM(self)

    def data_bias(self, data: Tensor, pseudocount: float) -> Tensor:
        """Log-probabilities of the categories, counted with ``pseudocount`` more of each."""
        last = self.num_categories - 1
        require_data(data, (data >= 0) & (data <= last) & (data == data.floor()), f"categories 0 to {last}")
        counts = one_hot(data, self.num_categories, self.W.dtype).sum(0) + pseudocount
        return counts.log() - counts.sum(-1, keepdim=True).log()


class OneHotRBM(Energy):
    """The free energy of a ``SoftmaxRBM`` over one-hot vectors ``(V, K)``; parameters are shared."""

    def __init__(self, rbm: SoftmaxRBM) -> None:
        super().__init__((rbm.num_visible, rbm.num_categories), constraints.one_hot)
        self.rbm = rbm

    def forward(self, x: Tensor) -> Tensor:
        """Energies ``(*batch)`` in nats of ``(*batch, V, K)``."""
        flat = x.to(self.rbm.W.dtype).flatten(-2)
        return -(flat @ self.rbm.b.flatten()) - log1p_exp(self.rbm.c + flat @ self.rbm.weights).sum(-1)

    @torch.no_grad()
    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Closed form: the gradient is -b - W p(h = 1 | v)."""
        flat = x.flatten(-2)
        logits = self.rbm.c + flat @ self.rbm.weights
        grad = -(self.rbm.b.flatten() + torch.sigmoid(logits) @ self.rbm.weights.mT)
        return -(flat @ self.rbm.b.flatten()) - log1p_exp(logits).sum(-1), grad.reshape(x.shape)

    def identity(self) -> tuple[Any, ...]:
        """That of the model."""
        return (type(self), self.rbm.identity())
