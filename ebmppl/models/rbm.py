"""Restricted Boltzmann machines: what the family shares, and the one of bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from ebmppl.energies.base import Energy, flatten_batch
from ebmppl.energies.discrete import Layers, RealLayers
from ebmppl.models.pairwise import full_parameter
from ebmppl.models.rbm_training import Trained, free_energies
from ebmppl.models.rbm_views import HiddenEnergy, RBMJoint, TemperedRBM, affine, log1p_exp

_TERMS = {"visible_energy", "hidden_logits", "features", "free_energy", "joint_energy"}
INITIAL_SCALE = 0.01  # standard deviation of initial weights (Hinton 2012, section 8)


class RBM(Energy):
    r"""Abstract: an energy of visible units v with hidden bits h summed out, each layer independent given the other.

    .. math:: E(v, h) = E_0(v) - c^\top h - x(v)^\top W h, \qquad F(v) = E_0(v) - \sum_k \log(1 + e^{c_k + x(v)^\top W_k})

    with features x(v) of the visible units. The energy of v is the free energy F.

    Args:
        num_visible: V.
        support: of one visible unit.
        features: shape of x(v), of which the first axis is V.
        num_hidden: H.
        W: weights ``(*features, H)``; by default normal of standard deviation 0.01.
        b: visible biases ``features``; by default 0.
        c: hidden biases ``(H,)``; by default 0.
        generator: of the default weights.
        dtype: of the parameters; that of the first given tensor, else torch's default.

    Raises:
        ValueError: for numbers of units that are not positive, other shapes, or values that are not finite.
    """

    W: nn.Parameter
    b: nn.Parameter
    c: nn.Parameter
    linear: bool | None = None  # E_0(v) = -b'x(v); None where terms are not known to be as above
    layered: bool = True  # units of each layer are independent given the other

    def __init_subclass__(cls, **settings: Any) -> None:
        """A class with terms of its own doesn't inherit what is known of another class's, unless it says so."""
        super().__init_subclass__(**settings)
        own = vars(cls)
        if "linear" not in own and _TERMS & own.keys():
            cls.linear, cls.layered = None, own.get("layered", "visible_fields" in own)
            if "log_visible" not in own:
                cls.log_visible = RBM.log_visible  # type: ignore[method-assign]

    def __init__(
        self,
        num_visible: int,
        support: Constraint,
        features: Sequence[int],
        num_hidden: int,
        W: Tensor | None,
        b: Tensor | None,
        c: Tensor | None,
        generator: torch.Generator | None,
        dtype: torch.dtype | None,
    ) -> None:
        if num_visible < 1 or num_hidden < 1:
            raise ValueError(f"expected at least one visible and one hidden unit, got {num_visible} and {num_hidden}")
        super().__init__((num_visible,), support)
        self.num_visible, self.num_hidden = num_visible, num_hidden
        like = (W, b, c)
        shape = (*features, num_hidden)
        if W is None:
            device = next((t.device for t in like if t is not None), None if generator is None else generator.device)
            real = dtype or next((t.dtype for t in like if t is not None), torch.get_default_dtype())
            W = INITIAL_SCALE * torch.randn(shape, generator=generator, dtype=real, device=device)
        self.W = full_parameter("W", W, shape, like, dtype)
        self.b = full_parameter("b", b, features, (W, b, c), dtype)
        self.c = full_parameter("c", c, (num_hidden,), (W, b, c), dtype)

    def features(self, v: Tensor) -> Tensor:
        """What the weights multiply, flat ``(*batch, features)``, of visible units ``(*batch, V)``."""
        raise NotImplementedError(f"{type(self).__name__} must implement features(v)")

    def visible_energy(self, v: Tensor) -> Tensor:
        """E_0 ``(*batch)`` in nats: the energy with all hidden units at 0."""
        raise NotImplementedError(f"{type(self).__name__} must implement visible_energy(v)")

    def visible_fields(self, h: Tensor) -> Tensor:
        """Natural parameters ``(*batch, *features)`` of the visible units given hidden ones ``(*batch, H)``."""
        fields = affine(self.b.reshape(-1), h.to(self.W.dtype), self.weights.mT)
        return fields.reshape(*h.shape[:-1], *self.b.shape)

    def log_visible(self, h: Tensor) -> Tensor:
        """Log of the sum (integral) over v of exp(-E(v, h) - c'h), ``(*batch)`` in nats."""
        raise NotImplementedError(f"{type(self).__name__} has terms of its own and must implement log_visible(h)")

    def data_bias(self, data: Tensor, pseudocount: float) -> Tensor:
        """The visible biases of independent units with the statistics of data ``(points, V)``."""
        raise NotImplementedError(f"{type(self).__name__} must implement data_bias(data, pseudocount)")

    @property
    def weights(self) -> Tensor:
        """W as a matrix ``(features, H)``."""
        return self.W.reshape(-1, self.num_hidden)

    def forward(self, v: Tensor) -> Tensor:
        """Free energies ``(*batch)`` in nats of visible units ``(*batch, V)``."""
        return self.free_energy(v)

    def free_energy(self, v: Tensor, hidden_logits: Tensor | None = None) -> Tensor:
        """F(v) = -log sum_h exp(-E(v, h)), ``(*batch)`` in nats; ``hidden_logits(v)`` may be given where it is at hand."""
        logits = self.hidden_logits(v) if hidden_logits is None else hidden_logits
        return self.visible_energy(v) - log1p_exp(logits).sum(-1)

    def trained_energies(self, *batches: tuple[Tensor, Tensor]) -> list[Trained]:
        """F of batches v ``(rows, V)`` and their hidden logits: the means as functions of the parameters, once, and the rows."""
        return free_energies(self, batches)

    def joint_energy(self, v: Tensor, h: Tensor) -> Tensor:
        """E(v, h) ``(*batch)`` in nats of ``(*batch, V)`` and ``(*batch, H)``."""
        flatten_batch(h, torch.Size([self.num_hidden]))
        return -(self.hidden_logits(v) * h.to(self.W.dtype)).sum(-1) + self.visible_energy(v)

    def hidden_logits(self, v: Tensor) -> Tensor:
        """Log-odds ``(*batch, H)`` of h = 1 given v: c + x(v)'W."""
        flatten_batch(v, self.event_shape)
        return affine(self.c, self.features(v), self.weights)

    def p_hidden(self, v: Tensor) -> Tensor:
        """p(h = 1 | v), ``(*batch, H)``."""
        return torch.sigmoid(self.hidden_logits(v))

    @property
    def joint(self) -> RBMJoint:
        """The energy E(v, h) of sites v and h with these very parameters."""
        return RBMJoint(self)

    @property
    def hidden_energy(self) -> HiddenEnergy:
        """The energy of h with v summed (integrated) out, with these very parameters."""
        return HiddenEnergy(self)

    def tempered(self, beta: float | Tensor, base: RBM | None = None) -> TemperedRBM:
        """The energy of v whose joint energy is (1 - beta) base.joint + beta self.joint: see ``TemperedRBM``."""
        return TemperedRBM(self, beta, base)

    def bipartite(self) -> Layers | RealLayers | None:
        """Itself where it is ``layered``."""
        raise NotImplementedError(f"{type(self).__name__} must implement bipartite()")

    @property
    def log_z(self) -> Tensor | None:
        """Log partition function in nats where the layers don't interact (W = 0), else None."""
        if bool(self.W.any()) or not self.layered or type(self).log_visible is RBM.log_visible:
            return None
        return self.log_visible(torch.zeros_like(self.c)) + log1p_exp(self.c).sum()

    @torch.no_grad()
    def init_from_data(
        self,
        data: Tensor,
        *,
        pseudocount: float = 1.0,
        scale: float = INITIAL_SCALE,
        generator: torch.Generator | None = None,
    ) -> Self:
        """Start of learning: visible biases from the data's statistics, small random weights, hidden biases 0.

        With scale = 0 it is the base-rate model, whose units are independent and whose log Z is known: where annealed
        importance sampling starts (Salakhutdinov and Murray 2008).

        References:
            Hinton 2012, "A practical guide to training restricted Boltzmann machines", section 8.

        Args:
            data: ``(points, V)``.
            pseudocount: imagined observations of every level >= 0, so that a unit that is always off has a finite bias.
            scale: standard deviation of the weights.
            generator: of the weights.

        Returns:
            this model, its parameters changed in place.

        Raises:
            ValueError: for data of another shape, outside the support, or with infinite biases.
        """
        if data.dim() != 2 or data.shape[1] != self.num_visible or not len(data):
            raise ValueError(f"expected data of shape (points, {self.num_visible}), got {tuple(data.shape)}")
        data = data.to(device=self.W.device)
        data = data if data.is_floating_point() else data.to(self.W.dtype)
        bias = self.data_bias(data, pseudocount)
        if not bool(torch.isfinite(bias).all()):
            raise ValueError("expected finite visible biases, got a unit that never takes some level: pseudocount > 0")
        self.b.copy_(bias)
        self.c.zero_()
        self.W.copy_(scale * torch.randn(self.W.shape, generator=generator, dtype=self.W.dtype, device=self.W.device))
        return self

    def extra_repr(self) -> str:
        """Numbers of units, for ``repr``."""
        return f"{super().extra_repr()}, num_hidden={self.num_hidden}"


class BernoulliRBM(RBM):
    r"""Bits in both layers: :math:`E(v, h) = -b^\top v - c^\top h - v^\top W h`; an energy of v, h summed out.

    .. math:: F(v) = -b^\top v - \sum_k \log(1 + e^{c_k + v^\top W_k})

    ``joint`` is the energy of both layers, ``tempered(beta)`` the model of beta times the joint energy. (``beta * rbm``
    raises the marginal of v to the power beta, which is another density without layers.)

    References:
        Smolensky 1986, "Information processing in dynamical systems: foundations of harmony theory"; Hinton 2002,
        "Training products of experts by minimizing contrastive divergence".

    Args:
        num_visible: V.
        num_hidden: H.
        W: weights ``(V, H)``; by default normal of standard deviation 0.01. A ``Parameter`` is shared, not copied.
        b: visible biases ``(V,)``; by default 0.
        c: hidden biases ``(H,)``; by default 0.
        generator: of the default weights.
        dtype: of the parameters; that of the first given tensor, else torch's default.

    Raises:
        ValueError: for numbers of units that are not positive, other shapes, or values that are not finite.

    Example:
        >>> rbm = BernoulliRBM(3, 2, W=torch.zeros(3, 2))
        >>> rbm(torch.ones(1, 3))  # -2 log 2
        tensor([-1.3863], grad_fn=<SubBackward0>)
    """

    linear = True

    def __init__(
        self,
        num_visible: int,
        num_hidden: int,
        *,
        W: Tensor | None = None,
        b: Tensor | None = None,
        c: Tensor | None = None,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            num_visible, constraints.boolean, (num_visible,), num_hidden, W, b, c, generator=generator, dtype=dtype
        )

    def features(self, v: Tensor) -> Tensor:
        """The bits."""
        return v.to(self.W.dtype)

    def visible_energy(self, v: Tensor) -> Tensor:
        """-b'v."""
        return -(v.to(self.W.dtype) @ self.b)

    def visible_logits(self, h: Tensor) -> Tensor:
        """Log-odds ``(*batch, V)`` of v = 1 given h: b + W h."""
        return self.visible_fields(h)

    def p_visible(self, h: Tensor) -> Tensor:
        """p(v = 1 | h), ``(*batch, V)``."""
        return torch.sigmoid(self.visible_logits(h))

    def log_visible(self, h: Tensor) -> Tensor:
        """Sum over i of log(1 + exp(b_i + W_i h))."""
        return log1p_exp(self.visible_fields(h)).sum(-1)

    def bipartite(self) -> Layers | None:
        """Itself where it is ``layered``."""
        return self if self.layered else None

    @torch.no_grad()
    def value_and_grad(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Closed form: the gradient is -b - W p(h = 1 | v), at real numbers, too."""
        if not self.linear:
            return super().value_and_grad(v)
        logits = self.hidden_logits(v)
        return self.free_energy(v, logits), -self.b - torch.sigmoid(logits) @ self.W.mT

    def data_bias(self, data: Tensor, pseudocount: float) -> Tensor:
        """log[p / (1 - p)] with p the mean of bits or grey values, counted with ``pseudocount`` more of each value."""
        require_data(data, (data >= 0) & (data <= 1), "values in [0, 1]")
        ones = data.sum(0)
        return torch.log(ones + pseudocount) - torch.log(len(data) - ones + pseudocount)


def require_data(data: Tensor, inside: Tensor, wanted: str) -> None:
    """Raise ``ValueError`` that names the first value of data ``(points, V)`` that is not inside."""
    if not bool(inside.all()):
        at = tuple((~inside).nonzero()[0].tolist())
        raise ValueError(f"expected data of {wanted}, got {data[at].item():.6g} (point {at[0]}, unit {at[1]})")
