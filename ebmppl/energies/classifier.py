"""A classifier as an energy."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from ebmppl.energies.base import Energy, Shape, flatten_batch
from ebmppl.energies.neural import confined


class ClassifierEnergy(Energy):
    r"""A classifier as a density of its inputs: :math:`E(x) = -\log\sum_y e^{f_\theta(x)_y} + \tfrac c2 |x|^2`.

    The joint energy of x and class y is :math:`-f_\theta(x)_y`, so p(y|x) is the classifier's own softmax and the energy is
    the joint one with y summed out. It is as integrable as the classifier is: a network of bounded slopes for c > 0.

    References:
        Grathwohl, Wang, Jacobsen, Duvenaud, Norouzi and Swersky 2020, "Your classifier is secretly an energy based model
        and you should treat it like one", equations 5 to 7.

    Args:
        classifier: from a batch ``(rows, *event)`` to logits ``(rows, classes)``; an ``nn.Module`` stays trainable. Rows
            must not depend on one another: batch normalisation only in eval mode.
        event_shape: shape of one input.
        confine: c >= 0, in nats per unit of x squared.

    Raises:
        ValueError: when the classifier isn't callable or answers with another shape, or for a negative c.

    Example:
        >>> import torch
        >>> energy = ClassifierEnergy(nn.Linear(2, 3), (2,))
        >>> energy.log_prob_class(torch.zeros(5, 2)).exp().sum(-1).shape
        torch.Size([5])
    """

    confine: Tensor

    def __init__(self, classifier: Callable[[Tensor], Tensor], event_shape: Shape, *, confine: float = 0.0) -> None:
        super().__init__(event_shape)
        if not callable(classifier):
            raise ValueError(f"expected a callable classifier, got {type(classifier).__name__}")
        self.classifier = classifier
        module = classifier if isinstance(classifier, nn.Module) else nn.Module()
        self.register_buffer("confine", confined(confine, module))

    def logits(self, x: Tensor) -> Tensor:
        """The classifier's ``(*batch, classes)`` for ``(*batch, *event)``."""
        rows, batch = flatten_batch(x, self.event_shape)
        found = self.classifier(rows)
        if found.dim() != 2 or len(found) != len(rows):
            raise ValueError(f"expected logits of shape ({len(rows)}, classes), got {tuple(found.shape)}")
        return found.reshape(*batch, found.shape[1])

    def forward(self, x: Tensor) -> Tensor:
        """Energies ``(*batch)`` in nats of inputs ``(*batch, *event)``."""
        return self._confinement(x) - self.logits(x).logsumexp(-1)

    def joint(self, x: Tensor, y: Tensor) -> Tensor:
        """Energies ``(*batch)`` in nats of inputs ``(*batch, *event)`` with classes ``(*batch)``, from 0.

        Raises:
            ValueError: for classes of another shape, or that the classifier doesn't have.
        """
        logits = self.logits(x)
        if y.shape != logits.shape[:-1]:
            raise ValueError(f"expected classes of shape {tuple(logits.shape[:-1])}, got {tuple(y.shape)}")
        if bool(((y < 0) | (y >= logits.shape[-1])).any()):
            raise ValueError(f"expected classes from 0 to {logits.shape[-1] - 1}, got {int(y.min())} to {int(y.max())}")
        return self._confinement(x) - logits.gather(-1, y.long().unsqueeze(-1)).squeeze(-1)

    def log_prob_class(self, x: Tensor) -> Tensor:
        """Log p(y|x) of every class, ``(*batch, classes)``."""
        return self.logits(x).log_softmax(-1)

    def _confinement(self, x: Tensor) -> Tensor:
        rows, batch = flatten_batch(x, self.event_shape)
        return (0.5 * self.confine * rows.reshape(len(rows), self.event_shape.numel()).square().sum(1)).reshape(batch)
