"""Conditional scores by class labels, classifiers, likelihoods, and with a weight but no classifier."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from ebmppl.arguments import require
from ebmppl.score.base import over
from ebmppl.score.conditions import Conditional, Score
from ebmppl.score.parameterisations import same_shape
from ebmppl.score.pullback import pullback, require_gradient


class ClassConditional(Conditional):
    r"""A network of a point, a time and a label as a score (or noise, ...) given the label: s(x, t | y) = network(x, t, y).

    References:
        Dhariwal and Nichol 2021, "Diffusion models beat GANs on image synthesis", section 3.1.

    Args:
        network: ``(x, t, label) -> tensor (batch, *event)``; labels come as ``(batch, ...)``.
        label: one for all, an integer or a tensor without axes, or one for each chain, ``(chains, ...)``.

    Raises:
        ValueError: for a network that isn't callable, or a label that is neither an integer nor a tensor.

    Example:
        >>> network = lambda x, t, label: label.unsqueeze(1) - x  # of N(label, I), which grows no noise
        >>> ClassConditional(network, torch.tensor([1.0, 5.0]))(torch.zeros(2, 1), torch.ones(2))
        tensor([[1.],
                [5.]])
    """

    label: Tensor

    def __init__(self, network: Callable[[Tensor, Tensor, Tensor], Tensor], label: int | Tensor) -> None:
        super().__init__(network, "a network (x, t, label) -> tensor")
        self.network = network
        keep_label(self, label)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """What the network says of the label."""
        return same_shape(self.network(x, t, label_of(self, x)), x)


def keep_label(model: Conditional, label: int | Tensor) -> None:
    """Keep a label for all, or labels ``(chains, ...)``."""
    good = isinstance(label, Tensor) or (isinstance(label, int) and not isinstance(label, bool))
    require(good, "a label as an integer or a tensor", repr(label))
    value = torch.as_tensor(label)
    model.keep("label", value, by_row=value.dim() > 0)


def label_of(model: Conditional, x: Tensor) -> Tensor:
    """Labels ``(batch, ...)`` for points."""
    label = model.given("label", x)
    return label if label.dim() else label.expand(len(x))


class Guidance(Conditional):
    """Abstract: a score and the gradient of a log-likelihood at the noisy point, s(x, t) + scale d/dx log p(y | x, t)."""

    scale: Tensor

    def __init__(self, score: Score, scale: float | Tensor) -> None:
        super().__init__(score)
        self.score = score
        self.keep_weight("scale", scale, least=0.0)

    @abstractmethod
    def log_likelihood(self, x: Tensor, t: Tensor) -> Tensor:
        """Log p(y | x, t) in nats, up to a constant, ``(batch,)``."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """See the class."""
        value, gradient = self._gradient(x, t)
        gradient = gradient + over(value - value, x)  # NaN where the log-likelihood is not finite
        return same_shape(self.score(x, t), x) + over(self.given("scale", x), x) * gradient

    def _gradient(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Log-likelihoods ``(batch,)`` and their gradients in x."""
        value, _, pull = pullback(lambda at: (self.log_likelihood(at, t), at), x)
        if not isinstance(value, Tensor) or value.shape != x.shape[:1]:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"expected log-likelihoods of shape ({len(x)},), got {got}")
        if pull is None:
            raise ValueError("expected a log-likelihood that is differentiable in x, got one that has no gradient")
        return value, pull(torch.ones_like(value))

    def check(self, x: Tensor, t: Tensor) -> None:
        """Raise ``ValueError`` for a log-likelihood that changes from point to point, but never with a gradient."""
        self._gradient(x, t)
        require_gradient(lambda at: self.log_likelihood(at, t), x, "a log-likelihood")


class LikelihoodGuidance(Guidance):
    r"""A score given data whose likelihood is known at noisy points: :math:`s(x, t) + w \nabla_x \log p(y | x, t)`.

    For a likelihood of denoised points, take it at ``Denoiser(score, sde)(x, t)``: diffusion posterior sampling (Chung, Kim,
    Mccann, Klasky and Ye 2023, "Diffusion posterior sampling for general noisy inverse problems", eq. 16).

    References:
        Song et al. 2021, "Score-based generative modeling through stochastic differential equations", section 5.

    Args:
        score: ``(x, t) -> score``.
        likelihood: ``(x, t) -> (batch,)``, log p(y | x, t) in nats up to a constant, differentiable in x; with ``data``,
            ``(x, t, data) -> (batch,)``.
        scale: w >= 0, for all or for each chain ``(chains,)``.
        data: of each chain, ``(chains, ...)``; what is the same for all may be inside the likelihood.

    Raises:
        ValueError: for what isn't callable, or a scale that is negative or not finite; when called, for log-likelihoods of
            another shape or without a gradient.
    """

    def __init__(
        self, score: Score, likelihood: Callable[..., Tensor], scale: float | Tensor = 1.0, data: Tensor | None = None
    ) -> None:
        super().__init__(score, scale)
        require(callable(likelihood), "a log-likelihood (x, t) -> tensor", type(likelihood).__name__)
        self.likelihood, self.has_data = likelihood, data is not None
        if data is not None:
            require(isinstance(data, Tensor) and data.dim() > 0, "data (chains, ...) as a tensor", repr(data))
            self.keep("data", data, by_row=True)

    def log_likelihood(self, x: Tensor, t: Tensor) -> Tensor:
        """The user's."""
        return self.likelihood(x, t, self.given("data", x)) if self.has_data else self.likelihood(x, t)


class ClassifierGuidance(Guidance):
    r"""A score given a class by a classifier of noisy points: :math:`s(x, t) + w \nabla_x \log p(y | x, t)`.

    References:
        Dhariwal and Nichol 2021, "Diffusion models beat GANs on image synthesis", algorithm 1.

    Args:
        score: ``(x, t) -> score``.
        classifier: ``(x, t) -> logits (batch, classes)``.
        label: a class for all, or one for each chain, ``(chains,)`` of integers.
        scale: w >= 0, for all or for each chain ``(chains,)``; 1 is Bayes' rule.

    Raises:
        ValueError: for what isn't callable, labels that aren't integers, or a scale that is negative or not finite; at the start
            of a run, for labels that aren't classes, or logits of another shape.

    Example:
        >>> classifier = lambda x, t: torch.cat([x, -x], 1)
        >>> guided = ClassifierGuidance(lambda x, t: -x, classifier, label=1)
        >>> guided(torch.zeros(1, 1), torch.ones(1)).detach()
        tensor([[-1.]])
    """

    def __init__(
        self,
        score: Score,
        classifier: Callable[[Tensor, Tensor], Tensor],
        label: int | Tensor,
        scale: float | Tensor = 1.0,
    ) -> None:
        super().__init__(score, scale)
        require(callable(classifier), "a classifier (x, t) -> logits", type(classifier).__name__)
        whole = not isinstance(label, Tensor) or (label.dim() <= 1 and label.dtype == torch.int64)
        require(whole, "labels as int64, one or (chains,)", getattr(label, "dtype", None))
        self.network = classifier
        keep_label(self, label)

    def log_likelihood(self, x: Tensor, t: Tensor) -> Tensor:
        """The log-probability of the label."""
        logits = self._logits(x, t)
        return logits.log_softmax(1).gather(1, label_of(self, x).unsqueeze(1)).squeeze(1)

    def _logits(self, x: Tensor, t: Tensor) -> Tensor:
        logits = self.network(x, t)
        if logits.dim() != 2 or len(logits) != len(x):
            raise ValueError(f"expected logits of shape ({len(x)}, classes), got {tuple(logits.shape)}")
        return logits

    def check(self, x: Tensor, t: Tensor) -> None:
        """Labels that aren't classes, too."""
        classes, label = self._logits(x, t).shape[1], self.get_buffer("label")
        outside = label[(label < 0) | (label >= classes)].flatten().tolist()
        require(not outside, f"labels in 0 ... {classes - 1}", outside[:5])
        super().check(x, t)


class ClassifierFreeGuidance(Conditional):
    r"""Two scores for a sharper one: :math:`(1 + w)\,s(x, t | y) - w\,s(x, t)`.

    Weight 0 is the conditional score, -1 the unconditional one. For w > 0 it is no score of a density diffused by the SDE, so
    draws are sharper than the class, and solvers differ in what they make of it. Two network calls. One network learns both
    scores by a loss with ``label_dropout``; without, what it says when called without labels is not trained.

    References:
        Ho and Salimans 2022, "Classifier-free diffusion guidance", eq. 6.

    Args:
        conditional: ``(x, t) -> score``, such as ``ClassConditional(network, label)``.
        unconditional: ``(x, t) -> score``, such as the model itself, called without labels.
        weight: w >= -1, for all or for each chain ``(chains,)``.

    Raises:
        ValueError: for what isn't callable, or a weight under -1 or not finite.

    Example:
        >>> guided = ClassifierFreeGuidance(lambda x, t: 1 - x, lambda x, t: -x, weight=2.0)
        >>> guided(torch.zeros(1, 1), torch.ones(1)).detach()
        tensor([[3.]])
    """

    weight: Tensor

    def __init__(self, conditional: Score, unconditional: Score, weight: float | Tensor = 1.0) -> None:
        super().__init__(conditional)
        require(callable(unconditional), "an unconditional score (x, t) -> tensor", type(unconditional).__name__)
        self.score, self.network = conditional, unconditional
        self.keep_weight("weight", weight, least=-1.0)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """See the class."""
        given, free = (same_shape(score(x, t), x) for score in (self.score, self.network))
        return given + over(self.given("weight", x), x) * (given - free)
