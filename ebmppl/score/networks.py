"""Networks of a point, a time and perhaps a label; any callable ``(x, t) -> tensor`` does as well."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ebmppl.arguments import form, positive, require, seed_number, size, whole
from ebmppl.score.base import readable


class FourierFeatures(nn.Module):
    r"""Features :math:`\sin(2 \pi w t), \cos(2 \pi w t)` of times, with fixed normal frequencies w.

    References:
        Tancik et al. 2020, "Fourier features let networks learn high frequency functions in low dimensional domains".

    Args:
        num_features: an even number of features.
        scale: standard deviation of the frequencies, > 0, per unit of time.
        seed: of the frequencies.

    Raises:
        ValueError: for an odd number of features, or a scale <= 0.
    """

    frequencies: Tensor

    def __init__(self, num_features: int, scale: float = 4.0, seed: int = 0) -> None:
        super().__init__()
        even = whole("num_features", num_features, 2) % 2 == 0
        require(even, "an even number of features", num_features)
        scale, generator = positive("scale", scale), torch.Generator().manual_seed(seed_number(seed))
        self.register_buffer("frequencies", scale * torch.randn(num_features // 2, generator=generator))

    def forward(self, t: Tensor) -> Tensor:
        """Features ``(batch, num_features)`` of times ``(batch,)``."""
        require(isinstance(t, Tensor) and t.is_floating_point(), "times as a floating point tensor", form(t))
        angle = 2 * math.pi * t.unsqueeze(-1) * self.frequencies.to(t.dtype)
        return torch.cat([angle.sin(), angle.cos()], -1)


class Condition(nn.Module):
    """Fourier features of times, plus a learned vector for each label; one more vector stands for no label.

    Args:
        num_features: an even number of features.
        scale: of the frequencies, see ``FourierFeatures``.
        num_classes: labels are 0 to num_classes - 1, or -1 for none; None where there are no labels.
        log_time: take features of log t: for times that are noise levels.

    Raises:
        ValueError: for numbers outside these ranges; when called, for labels of a network that has no classes.
    """

    def __init__(self, num_features: int, scale: float, num_classes: int | None, *, log_time: bool = False) -> None:
        super().__init__()
        num_classes = None if num_classes is None else whole("num_classes", num_classes, 1)
        self.times, self.num_classes, self.log_time = FourierFeatures(num_features, scale), num_classes, log_time
        shape = (0 if num_classes is None else num_classes + 1), num_features
        self.classes = None if num_classes is None else nn.Parameter(torch.randn(shape))

    def forward(self, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """Features ``(batch, num_features)`` of times ``(batch,)`` and labels ``(batch,)``."""
        features: Tensor = self.times(t.log() if self.log_time else t)
        if self.classes is None:
            require(labels is None, "no labels for a network without num_classes", "labels")
            return features
        if labels is None:
            return features + self.classes[0]  # the row of no label
        self._require_labels(labels, t, len(self.classes) - 2)
        return features + self.classes[labels + 1]

    @staticmethod
    def _require_labels(labels: Tensor, t: Tensor, last: int) -> None:
        integers = isinstance(labels, Tensor) and not labels.is_floating_point() and labels.dtype != torch.bool
        require(integers, "labels as a tensor of whole numbers", form(labels))
        require(labels.dim() == 0 or t.dim() == 0 or labels.shape == t.shape, "a label for each time", form(labels))
        if readable(labels):
            least, most = (int(end) for end in labels.aminmax())
            good = least >= -1 and most <= last
            require(good, f"labels from 0 to {last}, or -1 for none", least if least < -1 else most)


class TimeMLP(nn.Module):
    """A multi-layer perceptron of a point and the Fourier features of a time, and of a label where there are classes.

    Each hidden layer adds a linear map of the features to its inputs, before SiLU.

    Args:
        event_shape: of a point, any shape; it is flattened.
        hidden: sizes of the hidden layers.
        out_shape: of the output; that of a point when None, ``()`` for an energy.
        num_features: of the time, even.
        scale: of the frequencies, see ``FourierFeatures``.
        num_classes: labels are 0 to num_classes - 1, or -1 for none; None for a network without labels.
        log_time: take features of log t: for times that are noise levels, as those of ``KarrasVE``.

    Raises:
        ValueError: without hidden layers, or for sizes < 1.

    Example:
        >>> network = TimeMLP((2,), hidden=(64, 64))
        >>> network(torch.zeros(5, 2), torch.full((5,), 0.5)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        hidden: Sequence[int] = (256, 256, 256),
        *,
        out_shape: Sequence[int] | None = None,
        num_features: int = 64,
        scale: float = 4.0,
        num_classes: int | None = None,
        log_time: bool = False,
    ) -> None:
        super().__init__()
        self.event_shape = size("the event shape", event_shape)
        self.out_shape = self.event_shape if out_shape is None else size("the output's shape", out_shape)
        hidden = size("the sizes of hidden layers", hidden)
        require(len(hidden) > 0, "hidden layers", "none")
        self.features = Condition(num_features, scale, num_classes, log_time=log_time)
        sizes = [self.event_shape.numel(), *hidden]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes[:-1], sizes[1:], strict=True))
        self.times = nn.ModuleList(nn.Linear(num_features, size, bias=False) for size in hidden)
        self.last = nn.Linear(sizes[-1], self.out_shape.numel())

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """Outputs ``(batch, *out_shape)`` at points ``(batch, *event_shape)``, times and labels ``(batch,)``."""
        require_points(x, t, self.event_shape)
        h, features = x.reshape(len(x), -1), self.features(t, labels)
        for layer, time in zip(self.layers, self.times, strict=True):
            h = nn.functional.silu(layer(h) + time(features))
        return self.last(h).reshape(len(x), *self.out_shape)


def require_points(x: Tensor, t: Tensor, event_shape: torch.Size) -> None:
    """Raise ``ValueError`` for anything but points ``(batch, *event)`` and times ``(batch,)`` or one for all."""
    good = isinstance(x, Tensor) and x.dim() == len(event_shape) + 1 and x.shape[1:] == event_shape
    require(good, f"points of shape (batch, {', '.join(map(str, event_shape))})", form(x))
    fits = isinstance(t, Tensor) and t.shape in ((), (1,), x.shape[:1])
    require(fits, f"times of shape ({len(x)},) or ()", form(t))


class _Block(nn.Module):
    """Two convolutions with a residual connection; the time shifts the channels between them."""

    def __init__(self, inputs: int, outputs: int, num_features: int) -> None:
        super().__init__()
        groups = math.gcd(8, inputs), math.gcd(8, outputs)
        self.norms = nn.ModuleList(nn.GroupNorm(g, n) for g, n in zip(groups, (inputs, outputs), strict=True))
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.time = nn.Linear(num_features, outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        h = self.first(nn.functional.silu(self.norms[0](x)))
        h = h + self.time(features)[:, :, None, None]
        return self.skip(x) + self.second(nn.functional.silu(self.norms[1](h)))


class UNet(nn.Module):
    r"""A small U-Net for images: at each of ``depth`` halvings of the image a block down and, with its skip, a block up.

    Its work goes with the square of ``width`` and with the number of pixels. Patches make an image of p times less height and
    width and of p^2 times as many channels, which the net then sees in the place of the pixels: p^2 times less work. Fine
    features :math:`\sin(2^n \pi x), \cos(2^n \pi x)` of the pixels are further inputs, by which the net sees differences far
    smaller than the pixels' range: for likelihoods of dequantised images, n = 7 where a level is 1 / 128.

    References:
        Ronneberger, Fischer and Brox 2015, "U-Net"; with times: Ho, Jain and Abbeel 2020; patches: Luhman and Luhman 2022,
        "Improving diffusion model efficiency through patching"; fine features: Kingma et al. 2021, "Variational
        diffusion models", appendix C.

    Args:
        image_shape: channels, height, width; height and width are multiples of patch times 2^depth.
        width: channels at full size (of patches); they double at each halving.
        depth: how many halvings, >= 0.
        patch: height and width of a patch in pixels, >= 1.
        fine: exponents n of the fine features; none when empty.
        num_features: of the time, even.
        scale: of the frequencies, see ``FourierFeatures``.
        num_classes: labels are 0 to num_classes - 1, or -1 for none; None for a network without labels.
        log_time: take features of log t: for times that are noise levels, as those of ``KarrasVE``.

    Raises:
        ValueError: for an image that can't be divided so, or numbers outside these ranges.

    Example:
        >>> network = UNet((1, 28, 28), width=8, depth=1, patch=2)
        >>> network(torch.zeros(5, 1, 28, 28), torch.full((5,), 0.5)).shape
        torch.Size([5, 1, 28, 28])
    """

    fine: Tensor

    def __init__(
        self,
        image_shape: Sequence[int],
        width: int = 32,
        depth: int = 2,
        *,
        patch: int = 1,
        fine: Sequence[int] = (),
        num_features: int = 64,
        scale: float = 4.0,
        num_classes: int | None = None,
        log_time: bool = False,
    ) -> None:
        super().__init__()
        image_shape = size("an image shape (channels, height, width)", image_shape)
        require(len(image_shape) == 3, "an image shape (channels, height, width)", tuple(image_shape))
        width, depth, patch = whole("width", width, 1), whole("depth", depth, 0), whole("patch", patch, 1)
        fine = size("fine features' exponents", fine, 0)
        channels, height, length = image_shape
        unit = patch * 2**depth
        require(
            height % unit == 0 and length % unit == 0,
            f"height and width that are multiples of {unit}",
            (height, length),
        )
        self.event_shape, self.patch = image_shape, patch
        inputs, outputs = channels * patch**2 * (1 + 2 * len(fine)), channels * patch**2
        self.register_buffer("fine", 2.0 ** torch.tensor(fine), persistent=False)
        self.features = Condition(num_features, scale, num_classes, log_time=log_time)
        self.embedding = nn.Sequential(nn.Linear(num_features, num_features), nn.SiLU())
        sizes = [width * 2**level for level in range(depth + 1)]
        pairs = list(zip(sizes[:-1], sizes[1:], strict=True))
        self.first = nn.Conv2d(inputs, width, 3, padding=1)
        self.down = nn.ModuleList(_Block(a, a, num_features) for a, _ in pairs)
        self.coarser = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairs)
        self.middle = _Block(sizes[-1], sizes[-1], num_features)
        self.finer = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in pairs[::-1])
        self.up = nn.ModuleList(_Block(2 * a, a, num_features) for a, _ in pairs[::-1])
        self.last = nn.Conv2d(width, outputs, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """Outputs ``(batch, channels, height, width)`` at images of that shape, times and labels ``(batch,)``."""
        require_points(x, t, self.event_shape)
        features, skips = self.embedding(self.features(t, labels)), []
        h = self.first(nn.functional.pixel_unshuffle(self._inputs(x), self.patch))
        for block, coarser in zip(self.down, self.coarser, strict=True):
            h = block(h, features)
            skips.append(h)
            h = coarser(h)
        h = self.middle(h, features)
        for finer, block in zip(self.finer, self.up, strict=True):
            h = block(torch.cat([finer(h), skips.pop()], 1), features)
        return nn.functional.pixel_shuffle(self.last(nn.functional.silu(h)), self.patch)

    def _inputs(self, x: Tensor) -> Tensor:
        """Pixels and their fine features, as channels."""
        if not len(self.fine):
            return x
        angle = (math.pi * x.unsqueeze(2) * self.fine[:, None, None]).flatten(1, 2)
        return torch.cat([x, angle.sin(), angle.cos()], 1)
