"""Other energies with the parameters of a restricted Boltzmann machine: of both layers, of the hidden one, tempered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import softplus

from ebmppl.energies.algebra import GeometricPath, Tempered
from ebmppl.energies.base import Energy, flatten_batch, register
from ebmppl.energies.discrete import Conditionals, Layers, RealLayers
from ebmppl.energies.supports import is_discrete

if TYPE_CHECKING:
    from ebmppl.models.rbm import RBM


def log1p_exp(x: Tensor) -> Tensor:
    """log(1 + e^x), exact to rounding in float64: torch's own threshold of 20 is an error of 2e-9."""
    return softplus(x, threshold=40.0)


def affine(bias: Tensor, x: Tensor, weights: Tensor) -> Tensor:
    """Bias + x weights, in one pass where x ``(rows, n)`` is a batch."""
    return torch.addmm(bias, x, weights) if x.dim() == 2 else bias + x @ weights


class RBMJoint(Energy):
    """E(v, h) of both layers of a restricted Boltzmann machine, as sites ``v`` and ``h``; parameters are shared.

    ``beta * rbm.joint`` is the tempered model with both layers, linear in beta as parallel tempering wants it.

    Args:
        rbm: a ``BernoulliRBM``, ``SoftmaxRBM`` or ``GaussianRBM``.
    """

    visible: Tensor
    hidden: Tensor

    def __init__(self, rbm: RBM) -> None:
        super().__init__(
            {"v": rbm.event_shape, "h": (rbm.num_hidden,)}, {"v": rbm.site_support("x"), "h": constraints.boolean}
        )
        self.rbm = rbm
        both = torch.arange(self.event_shape.numel(), device=rbm.W.device)
        self.register_buffer("visible", both[: rbm.num_visible].clone(), persistent=False)
        self.register_buffer("hidden", both[rbm.num_visible :].clone(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Energies ``(*batch)`` in nats of packed layers ``(*batch, V + H)``."""
        flatten_batch(x, self.event_shape)
        v, h = x.split([self.rbm.num_visible, self.rbm.num_hidden], -1)
        return self.rbm.joint_energy(v, h)

    def conditionals(self) -> Conditionals | None:
        """Two blocks: h given v, then v given h; None where v is real."""
        layers = self.rbm.bipartite() if is_discrete(self.rbm.site_support("x")) else None
        return None if layers is None else LayerConditionals(self, layers)  # type: ignore[arg-type]

    def identity(self) -> tuple[Any, ...]:
        """That of the model."""
        return (type(self), self.rbm.identity())


class LayerConditionals:
    """See ``BothLayers``."""

    def __init__(self, joint: RBMJoint, layers: Layers) -> None:
        self.joint, self.layers = joint, layers

    @property
    def blocks(self) -> Sequence[Tensor]:
        """Hidden, visible."""
        return [self.joint.hidden, self.joint.visible]

    def logits(self, block: int, x: Tensor) -> Tensor:
        """Of one layer given the other."""
        v, h = x.split([len(self.joint.visible), len(self.joint.hidden)], -1)
        if block == 0:
            return self.layers.hidden_logits(v)
        logits = self.layers.visible_logits(h)
        # two categories are two levels, told by their log-odds
        return logits[..., 1] - logits[..., 0] if logits.dim() == 3 and logits.shape[-1] == 2 else logits


class HiddenEnergy(Energy):
    r"""The energy of the hidden bits, v summed (integrated) out: :math:`-\log\sum_v e^{-E(v, h)}`; parameters are shared.

    Args:
        rbm: a ``BernoulliRBM``, ``SoftmaxRBM`` or ``GaussianRBM``.

    Raises:
        NotImplementedError: for a subclass with terms of its own whose ``log_visible`` is another class's.
    """

    def __init__(self, rbm: RBM) -> None:
        super().__init__((rbm.num_hidden,), constraints.boolean)
        with torch.no_grad():
            rbm.log_visible(rbm.c)  # whether it is known
        self.rbm = rbm

    def forward(self, h: Tensor) -> Tensor:
        """Energies ``(*batch)`` in nats of ``(*batch, H)``."""
        flatten_batch(h, self.event_shape)
        return -(h.to(self.rbm.W.dtype) @ self.rbm.c) - self.rbm.log_visible(h)

    def identity(self) -> tuple[Any, ...]:
        """That of the model."""
        return (type(self), self.rbm.identity())


class TemperedRBM(Energy):
    r"""The energy of v whose *joint* energy is that of a restricted Boltzmann machine, tempered:

    .. math:: E_\beta(v, h) = (1 - \beta) E_{base}(v, h) + \beta E(v, h)

    without the first term where there is no base; h is summed out after tempering, so it is again a model of two
    layers. At beta = 1 it is the model. This is the path of annealed importance sampling; with a base without weights,
    it is the one that starts at the base-rate model. It is not linear in beta, so parallel tempering takes ``rbm.joint``.

    References:
        Salakhutdinov and Murray 2008, "On the quantitative analysis of deep belief networks", section 4.1.1.

    Args:
        rbm: the model at beta = 1; parameters are shared.
        beta: finite inverse temperature >= 0 (in [0, 1] with a base): a number, or one for every row ``(rows,)``. Kept as
            a tensor, so changing it in place retraces nothing.
        base: the model at beta = 0, of the same kind and sizes; None for the flat one.

    Raises:
        ValueError: for a beta out of range, a base of another kind or size, or beta = 0 over real v without a base.
    """  # noqa: D415

    def __init__(self, rbm: RBM, beta: float | Tensor, base: RBM | None = None) -> None:
        super().__init__(rbm.event_shape, rbm.support)
        if base is not None and (type(base) is not type(rbm) or base.W.shape != rbm.W.shape):
            raise ValueError(f"expected a base such as {rbm!r}, got {base!r}")
        path = Tempered(rbm, beta) if base is None else GeometricPath(base, rbm, beta)  # for their checks
        self.real = not is_discrete(rbm.site_support("x"))
        if self.real and base is None and bool((path.beta <= 0).any()):
            raise ValueError("expected beta > 0 over real visible units without a base, got 0: it has no normalisation")
        self.rbm, self.base = rbm, base
        register(self, "beta", path.beta)
        self.num_hidden = rbm.num_hidden

    beta: Tensor

    def forward(self, v: Tensor) -> Tensor:
        """Free energies ``(*batch)`` in nats of ``(*batch, V)``."""
        return self.free_energy(v)

    def free_energy(self, v: Tensor, hidden_logits: Tensor | None = None) -> Tensor:
        """See ``Layers``."""
        logits = self.hidden_logits(v) if hidden_logits is None else hidden_logits
        return self._between("visible_energy", v) - log1p_exp(logits).sum(-1)

    def hidden_logits(self, v: Tensor) -> Tensor:
        """Log-odds ``(*batch, H)`` of h = 1 given v."""
        return self._between("hidden_logits", v)

    def visible_logits(self, h: Tensor) -> Tensor:
        """Of discrete visible units given h: see ``Layers``."""
        return self._between("visible_fields", h)

    def visible_mean(self, h: Tensor) -> Tensor:
        """Means ``(*batch, V)`` of real visible units given h."""
        return self._between("visible_fields", h) * self.visible_scale.square()

    @property
    def visible_scale(self) -> Tensor:
        """Standard deviations of real visible units given h, ``(V,)`` or ``(rows, V)``."""
        return self._between("visible_precision").rsqrt()

    def bipartite(self) -> Layers | RealLayers | None:
        """Itself where the model has two layers."""
        return self if self.rbm.layered else None

    def _between(self, name: str, *arguments: Tensor) -> Tensor:
        """A term that is linear in the joint energy, at beta."""
        there = _term(self.rbm, name, *arguments)
        beta = self.beta.to(there.dtype)
        if beta.dim():
            axes = there.dim() - beta.dim() if arguments else 1  # a term without arguments has no axis of rows yet
            beta = beta.reshape(*beta.shape, *[1] * axes)
        return beta * there if self.base is None else beta * there + (1 - beta) * _term(self.base, name, *arguments)


def _term(rbm: RBM, name: str, *arguments: Tensor) -> Tensor:
    term: Any = getattr(rbm, name)
    value: Tensor = term(*arguments) if arguments else term
    return value
