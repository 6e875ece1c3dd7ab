"""What a network predicts: how to train it, and how to turn it into a score, side by side."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ebmppl.arguments import positive, require
from ebmppl.score.base import SDE, over
from ebmppl.score.pullback import value_and_grad

Network = Callable[..., Tensor]  # of points and times, and of labels where there are some


class Parameterisation(nn.Module):
    r"""Abstract: a score model :math:`s(x, t) \approx \nabla \log p_t(x)` made of a network ``(x, t) -> tensor``.

    Called at points ``(batch, *event)`` and times ``(batch,)`` it gives scores ``(batch, *event)``. It is trained by
    :math:`w(t)\,\|\text{output}(x_t, t) - \text{target}(x_0, \epsilon, t)\|^2` at
    :math:`x_t = a x_0 + \sigma \epsilon`; with :math:`w` = ``weight(t)`` that is :math:`\sigma^2 \|s - s^*\|^2`
    with the score :math:`s^* = -\epsilon / \sigma` of x_t given x_0, whatever the parameterisation.

    A conditional model is called as ``model(x, t, labels)`` and calls its network so; labels ``(batch,)`` are whole numbers,
    -1 for none. Without labels the network is called as ``network(x, t)``, and gives the unconditional score.

    Args:
        network: any callable ``(x, t) -> tensor``, or ``(x, t, labels)``; one that is a module is trained.
        sde: with known marginals.

    Raises:
        ValueError: for a network that isn't callable or an SDE that is none; when called, for another output shape, or times
            outside (0, T].
    """

    def __init__(self, network: Network, sde: SDE) -> None:
        super().__init__()
        require(callable(network), "a network (x, t) -> tensor", type(network).__name__)
        require(isinstance(sde, SDE), "an SDE", type(sde).__name__)
        self.network, self.sde = network, sde

    def output(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """What is trained, ``(batch, *event)``: the network's output, at the dtype of x (under autocast it comes in half)."""
        return same_shape(self.called(x, t, labels), x).to(x.dtype)

    def called(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        """The network at its own inputs, with labels where there are some."""
        return self.network(x, t) if labels is None else self.network(x, t, labels)

    def target(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the output is trained to be, from data x and standard normal noise at times t."""
        raise NotImplementedError(f"{type(self).__name__} must implement target")

    def weight(self, t: Tensor) -> Tensor:
        """The weight w(t), with which the squared error of the output is sigma^2 times that of the score."""
        raise NotImplementedError(f"{type(self).__name__} must implement weight")

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """Scores ``(batch, *event)``."""
        raise NotImplementedError(f"{type(self).__name__} must implement forward")


class ScorePrediction(Parameterisation):
    r"""The network is the score; trained to :math:`-\epsilon / \sigma`.

    References:
        Vincent 2011, "A connection between score matching and denoising autoencoders"; Song and Ermon 2019.
    """

    def target(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """-noise / sigma."""
        return -noise / over(self.sde.marginal(t)[1], x)

    def weight(self, t: Tensor) -> Tensor:
        """The variance sigma^2."""
        return self.sde.marginal(t)[1].square()

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """The output."""
        self.sde.require_times(t, zero=False)
        return self.output(x, t, labels)


class NoisePrediction(Parameterisation):
    r"""The network is the noise epsilon of x_t; the score is :math:`-\epsilon(x, t) / \sigma` (Ho, Jain and Abbeel 2020)."""

    def target(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The noise."""
        return noise

    def weight(self, t: Tensor) -> Tensor:
        """1: DDPM's simple loss."""
        return torch.ones_like(t)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """-output / sigma."""
        self.sde.require_times(t, zero=False)
        return -self.output(x, t, labels) / over(self.sde.marginal(t)[1], x)


class DataPrediction(Parameterisation):
    r"""The network is the denoised point :math:`E[x_0 | x_t]`; the score is :math:`(a x_0(x, t) - x) / \sigma^2` (Tweedie)."""

    def target(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The data."""
        return x

    def weight(self, t: Tensor) -> Tensor:
        """The signal-to-noise ratio a^2 / sigma^2."""
        mean, std = self.sde.marginal(t)
        return (mean / std).square()

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """(a output - x) / sigma^2."""
        self.sde.require_times(t, zero=False)
        mean, std = self.sde.marginal(t)
        return (over(mean, x) * self.output(x, t, labels) - x) / over(std.square(), x)


class VelocityPrediction(Parameterisation):
    r"""The network is :math:`v = a \epsilon - \sigma x_0`; the score is :math:`-(\sigma x + a v) / (\sigma (a^2 + \sigma^2))`.

    References:
        Salimans and Ho 2022, "Progressive distillation for fast sampling of diffusion models" (there a^2 + sigma^2 = 1).
    """

    def target(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The velocity a noise - sigma x."""
        mean, std = self.sde.marginal(t)
        return over(mean, x) * noise - over(std, x) * x

    def weight(self, t: Tensor) -> Tensor:
        """The square of a / (a^2 + sigma^2)."""
        mean, std = self.sde.marginal(t)
        return (mean / (mean.square() + std.square())).square()

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """-(sigma x + a output) / (sigma (a^2 + sigma^2))."""
        self.sde.require_times(t, zero=False)
        mean, std = self.sde.marginal(t)
        both = std * (mean.square() + std.square())
        return -(over(std, x) * x + over(mean, x) * self.output(x, t, labels)) / over(both, x)


class EDM(Parameterisation):
    r"""The preconditioning of Karras et al. 2022: inputs, outputs and targets of unit variance at every noise level.

    With :math:`r = \sigma / a` and :math:`y = x / a` the denoised point is
    :math:`D = c_{skip} y + c_{out} F(c_{in} y, c_{noise})`, where
    :math:`c_{skip} = s^2 / (r^2 + s^2)`, :math:`c_{out} = r s / \sqrt{r^2 + s^2}`, :math:`c_{in} = 1 / \sqrt{r^2 + s^2}`,
    :math:`c_{noise} = \tfrac14 \log r` and s is the data's standard deviation. The score is :math:`(a D - x) / \sigma^2`.
    The squared error of F is EDM's own loss at each level.

    References:
        Karras, Aittala, Aila and Laine 2022, "Elucidating the design space of diffusion-based generative models", table 1.

    Args:
        network: F, called with c_noise in the place of t.
        sde: with known marginals.
        data_std: s > 0, in units of x.

    Raises:
        ValueError: as ``Parameterisation``, or for data_std <= 0.
    """

    def __init__(self, network: Network, sde: SDE, data_std: float = 0.5) -> None:
        super().__init__(network, sde)
        self.data_std = positive("data_std", data_std)

    def _ratio(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A, r, and the root of r^2 + s^2."""
        mean, std = self.sde.marginal(t)
        ratio = std / mean
        return mean, ratio, (ratio.square() + self.data_std**2).sqrt()

    def output(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """F(c_in y, c_noise)."""
        mean, ratio, root = self._ratio(t)
        return same_shape(self.called(x / over(mean * root, x), 0.25 * ratio.log(), labels), x).to(x.dtype)

    def target(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """(x - c_skip y) / c_out = (r x / s - s noise) / root."""
        _, ratio, root = self._ratio(t)
        return over(ratio / (self.data_std * root), x) * x - over(self.data_std / root, x) * noise

    def weight(self, t: Tensor) -> Tensor:
        """The square of c_out / r; 1 gives EDM's own weighting."""
        return (self.data_std / self._ratio(t)[2]).square()

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """(a D - x) / sigma^2 = -x / (a^2 root^2) + s output / (a r root)."""
        self.sde.require_times(t, zero=False)
        mean, ratio, root = self._ratio(t)
        gain = self.data_std / (mean * ratio * root)
        return over(gain, x) * self.output(x, t, labels) - x / over((mean * root).square(), x)


class EnergyGradient(Parameterisation):
    r"""The network is an energy ``(x, t) -> (batch,)`` in nats; the score is :math:`-\nabla_x E(x, t)`.

    Such a score is conservative: ``energy(x, t)`` at one t is an unnormalised density, so that steps may be corrected by
    Metropolis. Trained as the score is; gradients of parameters go through the gradient in x.

    References:
        Salimans and Ho 2021, "Should EBMs model the energy or the score?"; Du et al. 2023, "Reduce, reuse, recycle".
    """

    def energy(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """Energies ``(batch,)`` in nats."""
        self.sde.require_times(t, zero=False)
        energy = self.called(x, t, labels)
        good = isinstance(energy, Tensor) and energy.shape == x.shape[:1]
        got = tuple(energy.shape) if isinstance(energy, Tensor) else type(energy).__name__
        require(good, f"energies of shape ({len(x)},)", got)
        return energy

    def output(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """Minus the gradient of the energy in x."""
        return -value_and_grad(lambda at: self.energy(at, t, labels), x)[1]

    def target(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """-noise / sigma."""
        return -noise / over(self.sde.marginal(t)[1], x)

    def weight(self, t: Tensor) -> Tensor:
        """The variance sigma^2."""
        return self.sde.marginal(t)[1].square()

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """The output."""
        return self.output(x, t, labels)


def same_shape(output: Tensor, x: Tensor) -> Tensor:
    """The output of a network, of the shape of its points; ``ValueError`` for any other."""
    if not isinstance(output, Tensor) or output.shape != x.shape:
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"expected a network output of shape {tuple(x.shape)} (that of the points), got {got}")
    return output
