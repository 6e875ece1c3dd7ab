"""Neural energies of vectors and of images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ebmppl.energies import mlp_forms
from ebmppl.energies.activations import ACTIVATIONS, smooth
from ebmppl.energies.base import Energy, Shape, flatten_batch, like
from ebmppl.energies.matching import Matching


def confined(confine: float, beside: nn.Module) -> Tensor:
    """The factor of a quadratic term, checked, at the dtype and device of a module."""
    if not 0 <= confine < math.inf:
        raise ValueError(f"expected confine >= 0 and finite, got {confine}")
    return like(beside).new_tensor(float(confine))


def _widths(name: str, widths: Sequence[int]) -> tuple[int, ...]:
    found = tuple(widths)
    if not found or any(not isinstance(n, int) or n < 1 for n in found):
        raise ValueError(f"expected {name} as one or more positive widths, got {widths}")
    return found


@torch.no_grad()
def _drawn(
    kind: Callable[..., nn.Module], inputs: int, outputs: int, *, generator: torch.Generator | None, **options: Any
) -> nn.Module:
    """A layer as torch makes it, uniform within 1 / sqrt(inputs of one output), by a generator."""
    layer = cast(Any, nn.utils.skip_init(kind, inputs, outputs, **{k: v for k, v in options.items() if v is not None}))
    bound = 1 / math.sqrt(layer.weight[0].numel())
    layer.weight.uniform_(-bound, bound, generator=generator)
    layer.bias.uniform_(-bound, bound, generator=generator)
    return layer


class MLPEnergy(Energy):
    r"""A fully connected network of smooth activations: :math:`E(x) = f_\theta(x) + \tfrac c2 |x|^2`.

    The network has bounded slopes, so :math:`e^{-E}` is integrable for every c > 0, whatever the parameters. With c = 0 it
    need not be: score matching and noise-contrastive estimation on data don't mind, samplers may run away.

    Its gradient and its second derivatives along directions have closed forms, which are differentiable in the
    parameters: score matching takes them.

    Args:
        event_shape: shape of one point, or the dimension of vectors.
        hidden: widths of the hidden layers, at least one.
        activation: "silu", "softplus", "tanh" or "gelu".
        confine: c >= 0, in nats per unit of x squared.
        generator: of the first weights; torch's global one when None.
        dtype: of the parameters.
        device: of the parameters.

    Raises:
        ValueError: for empty or negative widths, an unknown activation, or a negative c.

    Example:
        >>> MLPEnergy(2, hidden=(16, 16), confine=0.1)(torch.zeros(5, 2)).shape
        torch.Size([5])
    """

    confine: Tensor
    net: Any  # layers, whose tensors torch does not type

    def __init__(
        self,
        event_shape: int | Shape,
        hidden: Sequence[int] = (128, 128),
        activation: str = "silu",
        *,
        confine: float = 0.0,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__((event_shape,) if isinstance(event_shape, int) else event_shape)
        widths = (self.event_shape.numel(), *_widths("hidden", hidden), 1)
        self.activation = activation
        self.function = smooth(activation).function
        self.net = nn.ModuleList(
            _drawn(nn.Linear, a, b, generator=generator, dtype=dtype, device=device)
            for a, b in zip(widths, widths[1:], strict=False)
        )
        self.register_buffer("confine", confined(confine, self.net[0]))

    def forward(self, x: Tensor) -> Tensor:
        """Energies ``(*batch)`` in nats of points ``(*batch, *event)``."""
        x = self._flat(x)
        h = x
        *inner, last = self.net
        for layer in inner:
            h = self.function(layer(h))
        return last(h).squeeze(-1) + 0.5 * self.confine * x.square().sum(-1)

    @torch.no_grad()
    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Closed form."""
        if not self._plain():
            return super().value_and_grad(x)
        flat = self._flat(x)
        a, found = flat, []
        *inner, last = self.net
        for layer in inner:
            a, slope = ACTIVATIONS[self.activation].derivatives(layer(a), 1)
            found.append((layer.weight, slope))
        pulled = last.weight[0]
        for weight, slope in reversed(found):
            pulled = (pulled * slope) @ weight
        pull = self.confine * flat
        return last(a).squeeze(-1) + 0.5 * (pull * flat).sum(-1), (pulled + pull).reshape(x.shape)

    def gradient(self, x: Tensor) -> Tensor:
        """Of the energy in x, ``(*batch, *event)``, differentiable."""
        flat = self._flat(x).reshape(-1, self.event_shape.numel())
        found, _ = mlp_forms.derivatives(flat, None, self.activation, self._parameters_in_order())
        return torch.addcmul(found, self.confine, flat).reshape(x.shape)

    def slopes(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient once, and what each layer's bend adds to the second derivative: see ``mlp_forms``."""
        flat, along = self._flat(x), self._flat(v)
        grad, twice = mlp_forms.derivatives(flat, along, self.activation, self._parameters_in_order())
        once = (along * torch.addcmul(grad, self.confine, flat)).sum(-1)
        return once, torch.addcmul(twice, self.confine, along.square().sum(-1))

    def matched(self, x: Tensor, what: Matching) -> tuple[Tensor, Tensor | None] | None:
        """In one piece."""
        if not self._plain():
            return None
        if len(self.event_shape) != 1:
            x, what = self._flat(x), what.flat()
        return mlp_forms.matched(x, what, self.confine, self.activation, self._parameters_in_order())

    def _plain(self) -> bool:
        """Whether layers and activation are as they were made, so that closed forms are those of ``forward``."""
        own = self.__dict__  # a sixth of the time of attributes
        confine = own["_buffers"].get("confine")
        if confine is None or confine.requires_grad or own["function"] is not ACTIVATIONS[own["activation"]].function:
            return False
        for layer in own["_modules"]["net"]._modules.values():
            if layer._forward_hooks or layer._forward_pre_hooks or type(layer).forward is not nn.Linear.forward:
                return False
        return True

    def _parameters_in_order(self) -> list[Tensor]:
        parts: list[Any] = []
        for layer in cast(Any, self._modules["net"])._modules.values():
            own = layer._parameters  # a fifth of the time of attributes
            parts += (own[name] if name in own else getattr(layer, name) for name in ("weight", "bias"))
        return parts[:-1]

    def _flat(self, x: Tensor) -> Tensor:
        if len(self.event_shape) == 1:
            return x
        rows, batch = flatten_batch(x, self.event_shape)
        return rows.reshape(*batch, self.event_shape.numel())

    def extra_repr(self) -> str:
        """Shape and activation, for ``repr``."""
        return f"{super().extra_repr()}, activation={self.activation!r}, confine={float(self.confine):g}"


class ConvEnergy(Energy):
    r"""A convolutional network over images of any size: :math:`E(x) = f_\theta(x) + \tfrac c2 |x|^2`.

    3x3 convolutions with smooth activations, the first at full resolution and each further one halving it (rounded up),
    then one linear layer. It has no batch statistics, so rows are independent. Its slopes are bounded: :math:`e^{-E}` is
    integrable for every c > 0; with c = 0 it need not be.

    References:
        Nijkamp, Hill, Han, Zhu and Wu 2020, "On the anatomy of MCMC-based maximum likelihood learning of energy-based
        models" (such networks); Miyato, Kataoka, Koyama and Yoshida 2018, "Spectral normalization for generative
        adversarial networks".

    Args:
        channels: of the images.
        size: height and width, or one number for both.
        hidden: channels of the convolutions, at least one.
        activation: "silu", "softplus", "tanh" or "gelu".
        spectral_norm: divide every layer's weights, as a matrix with a row for each output, by an estimate of their
            largest singular value: one step of power iteration at each call in training mode, none in eval mode.
        confine: c >= 0, in nats per unit of x squared.
        generator: of the first weights; torch's global one when None.
        dtype: of the parameters.
        device: of the parameters.

    Raises:
        ValueError: for numbers that are not positive, an unknown activation, or a negative c.

    Example:
        >>> ConvEnergy(1, (28, 20), hidden=(8, 8))(torch.zeros(5, 1, 28, 20)).shape
        torch.Size([5])
    """

    confine: Tensor
    net: Any  # layers, whose tensors torch does not type

    def __init__(
        self,
        channels: int,
        size: int | tuple[int, int],
        hidden: Sequence[int] = (32, 64, 64),
        activation: str = "silu",
        *,
        spectral_norm: bool = False,
        confine: float = 0.0,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        height, width = (size, size) if isinstance(size, int) else size
        super().__init__((channels, height, width))
        widths = (channels, *_widths("hidden", hidden))
        self.activation = activation
        self.function = smooth(activation).function
        convolutions: list[nn.Module] = []
        for i, (a, b) in enumerate(zip(widths, widths[1:], strict=False)):
            options = {"kernel_size": 3, "stride": 1 if i == 0 else 2, "padding": 1, "dtype": dtype, "device": device}
            convolutions.append(_drawn(nn.Conv2d, a, b, generator=generator, **options))
            if i:
                height, width = -(-height // 2), -(-width // 2)
        pooled = _drawn(nn.Linear, widths[-1] * height * width, 1, generator=generator, dtype=dtype, device=device)
        self.net = nn.ModuleList([*convolutions, pooled])
        self.norms = nn.ModuleList(_SpectralNorm(layer.weight, generator) for layer in self.net if spectral_norm)
        self.register_buffer("confine", confined(confine, pooled))

    def forward(self, x: Tensor) -> Tensor:
        """Energies ``(*batch)`` in nats of images ``(*batch, channels, height, width)``."""
        rows, batch = flatten_batch(x, self.event_shape)
        *convolutions, pooled = self.net
        *weights, to_number = self._weights()
        h = rows
        for layer, weight in zip(convolutions, weights, strict=True):
            h = self.function(F.conv2d(h, weight, layer.bias, layer.stride, layer.padding))
        energy = F.linear(h.flatten(1), to_number, pooled.bias).squeeze(-1)
        return (energy + 0.5 * self.confine * rows.square().sum((1, 2, 3))).reshape(batch)

    def _weights(self) -> list[Tensor]:
        if not len(self.norms):
            return [layer.weight for layer in self.net]
        return [layer.weight / norm(layer.weight) for layer, norm in zip(self.net, self.norms, strict=True)]

    def extra_repr(self) -> str:
        """Shape and settings, for ``repr``."""
        normed = ", spectral_norm=True" if len(self.norms) else ""
        return f"{super().extra_repr()}, activation={self.activation!r}, confine={float(self.confine):g}{normed}"


class _SpectralNorm(nn.Module):
    """An estimate of a weight's largest singular value, by power iteration in training mode."""

    left: Tensor
    right: Tensor

    def __init__(self, weight: Tensor, generator: torch.Generator | None, steps: int = 15) -> None:
        super().__init__()
        matrix = weight.detach().flatten(1)
        left = torch.randn(len(matrix), generator=generator, dtype=matrix.dtype, device=matrix.device)
        self.register_buffer("left", F.normalize(left, dim=0))
        self.register_buffer("right", F.normalize(matrix.mT @ self.left, dim=0))
        for _ in range(steps):
            self._iterate(matrix)

    def forward(self, weight: Tensor) -> Tensor:
        """The estimate, differentiable in the weight."""
        matrix = weight.flatten(1)
        if self.training:
            self._iterate(matrix.detach())
        # copies, because graphs that are still to be differentiated hold them
        return torch.dot(self.left.clone(), matrix @ self.right.clone())

    @torch.no_grad()
    def _iterate(self, matrix: Tensor) -> None:
        self.left.copy_(F.normalize(matrix @ self.right, dim=0))
        self.right.copy_(F.normalize(matrix.mT @ self.left, dim=0))
