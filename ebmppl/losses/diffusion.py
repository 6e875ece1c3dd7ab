"""Losses of score models over all noise levels: by denoising, in continuous time or at given levels, and by slices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ebmppl.arguments import whole
from ebmppl.losses.base import BoundLoss
from ebmppl.losses.diffusion_base import BoundDiffusionLoss, DiffusionLoss, Noised
from ebmppl.losses.scores import changes, derivative_seen, dot, uncompiled
from ebmppl.losses.seeded import normals
from ebmppl.score.weightings import NoiseLevels, Weighting


class DiffusionScoreMatching(DiffusionLoss):
    r"""Denoising score matching over an SDE: :math:`\overline{\tfrac12 w(t)\, |\sigma s(x_t, t) + \epsilon|^2}`.

    Here :math:`x_t = a x + \sigma\epsilon`, epsilon ~ N(0, I), and the weighting has the law of t and w. The network's
    own error is taken, weighted to the same (see ``Parameterisation``). So with "uniform" the loss of a
    ``NoisePrediction`` is half of DDPM's :math:`\overline{|\epsilon(x_t, t) - \epsilon|^2}`; at DDPM's own times see
    ``DiscreteTimes``. With "likelihood" it is in nats and, but for constants of the data, bounds the negative
    log-likelihood of the reverse SDE; with "edm" it is half of EDM's.

    References:
        Song et al. 2021, "Score-based generative modeling through stochastic differential equations", equation 7; Ho,
        Jain and Abbeel 2020, "Denoising diffusion probabilistic models", equation 14.

    Args:
        weighting: see ``DiffusionLoss``, as for all others.
        t_min: least time, in (0, T).
        label_dropout: probability in [0, 1) with which a label is dropped in training.
        low_discrepancy: spread the times of a batch evenly.
        seed: of times and noise; from the operating system when None.

    Raises:
        ValueError: see ``DiffusionLoss``.

    Example:
        >>> import ebmppl as eb
        >>> model = eb.score.NoisePrediction(eb.score.TimeMLP((2,), (32, 32)), eb.score.VP())
        >>> bound = DiffusionScoreMatching("likelihood", seed=0)(model)
        >>> bound(torch.randn(64, 2)).shape
        torch.Size([])
    """

    def __init__(
        self,
        weighting: str | Weighting = "uniform",
        *,
        t_min: float = 1e-5,
        label_dropout: float = 0.0,
        low_discrepancy: bool = False,
        seed: int | None = None,
    ) -> None:
        super().__init__(
            weighting, t_min=t_min, label_dropout=label_dropout, low_discrepancy=low_discrepancy, seed=seed
        )

    def bind(self, energy: Any, guide: Any) -> BoundLoss:
        """The loss of one score model."""
        return BoundDenoisingDiffusion(energy, guide, self)


class BoundDenoisingDiffusion(BoundDiffusionLoss):
    """See ``DiffusionScoreMatching``."""

    def errors(self, noised: Noised, generator: torch.Generator) -> dict[str, Tensor]:
        """Half the squared errors of the output, with the parameterisation's weight."""
        x, noise, t, points, labels, _ = noised
        apart = self.model.output(points, t, labels) - self.model.target(x, noise, t)
        return {"distance": 0.5 * self.model.weight(t) * dot(apart, apart)}


class NoiseConditionalScoreMatching(DiffusionLoss):
    r"""NCSN's loss: denoising at noise levels, with :math:`\lambda(\sigma) = \sigma^2`, each level as often.

    That is :math:`\overline{\tfrac12 |\sigma_i s(x + \sigma_i\epsilon, \sigma_i) + \epsilon|^2}`. A model of
    ``KarrasVE(sigma_max)`` is called with the levels, as ``AnnealedLangevin`` calls it. For an SDE that scales the data the
    levels are those of noise over signal.

    References:
        Song and Ermon 2019, "Generative modeling by estimating gradients of the data distribution", equation 6.

    Args:
        sigmas: positive, decreasing noise levels ``(levels,)``, in units of x; see ``geometric_sigmas``.
        label_dropout: probability in [0, 1) with which a label is dropped in training.
        low_discrepancy: spread the levels of a batch evenly, see ``DiffusionLoss``.
        seed: of levels and noise; from the operating system when None.

    Raises:
        ValueError: for other sigmas; at binding, for levels that the SDE doesn't reach. See ``DiffusionLoss``.

    Example:
        >>> import ebmppl as eb
        >>> sigmas = eb.score.geometric_sigmas(10, 0.05, 5.0)
        >>> network = eb.score.TimeMLP((2,), (32, 32), log_time=True)
        >>> model = eb.score.ScorePrediction(network, eb.score.KarrasVE(5.0))
        >>> bound = NoiseConditionalScoreMatching(sigmas, seed=0)(model)
        >>> bound(torch.randn(64, 2)).shape
        torch.Size([])
    """

    def __init__(
        self,
        sigmas: Tensor | Sequence[float],
        *,
        label_dropout: float = 0.0,
        low_discrepancy: bool = False,
        seed: int | None = None,
    ) -> None:
        super().__init__(
            NoiseLevels(sigmas), t_min=0.0, label_dropout=label_dropout, low_discrepancy=low_discrepancy, seed=seed
        )

    def bind(self, energy: Any, guide: Any) -> BoundLoss:
        """The loss of one score model."""
        return BoundDenoisingDiffusion(energy, guide, self)


class SlicedDiffusionScoreMatching(DiffusionLoss):
    r"""Sliced score matching of the noised data: :math:`\overline{w(t)\,\sigma^2 [v^\top \nabla s\, v + \tfrac12 |s|^2]}`.

    Here v ~ N(0, I), and s is the score at x_t. In expectation it is ``DiffusionScoreMatching`` less
    :math:`\overline{w} d / 2`; it costs one derivative of the score more for each slice, and varies more. With
    ``NoiseLevels(sigmas)`` it is NCSN's sliced variant.

    References:
        Song, Garg, Shi and Ermon 2019, "Sliced score matching", equation 8; over noise levels: Song and Ermon 2019,
        section 3.1, and Song et al. 2021, equation 19.

    Args:
        weighting: see ``DiffusionLoss``, as for all others.
        num_slices: directions v for each point, at least 1.
        t_min: least time, in (0, T).
        label_dropout: probability in [0, 1) with which a label is dropped in training.
        low_discrepancy: spread the times of a batch evenly.
        seed: of times, noise and directions; from the operating system when None.

    Raises:
        ValueError: for fewer than one slice; see ``DiffusionLoss``.
    """

    def __init__(
        self,
        weighting: str | Weighting = "uniform",
        *,
        num_slices: int = 1,
        t_min: float = 1e-5,
        label_dropout: float = 0.0,
        low_discrepancy: bool = False,
        seed: int | None = None,
    ) -> None:
        super().__init__(
            weighting, t_min=t_min, label_dropout=label_dropout, low_discrepancy=low_discrepancy, seed=seed
        )
        self.num_slices = whole("num_slices", num_slices, 1)

    def bind(self, energy: Any, guide: Any) -> BoundLoss:
        """The loss of one score model."""
        return BoundSlicedDiffusion(energy, guide, self)


class BoundSlicedDiffusion(BoundDiffusionLoss):
    """See ``SlicedDiffusionScoreMatching``."""

    def __init__(self, energy: Any, guide: Any, loss: SlicedDiffusionScoreMatching) -> None:
        super().__init__(energy, guide, loss)
        self.num_slices, self._unseen = loss.num_slices, True

    def errors(self, noised: Noised, generator: torch.Generator) -> dict[str, Tensor]:
        """The score's change along the slices, and half its square, both in units of the noise."""
        graph = torch.is_grad_enabled()
        points = noised.points.requires_grad_()
        v = normals((self.num_slices, *points.shape), points, generator)
        with torch.enable_grad(), uncompiled():
            score = self.model(points, noised.t, noised.labels)
            change = changes(score, points, v, graph=graph).mean(0)
            if self._unseen:
                self._unseen = not derivative_seen(
                    change, score, lambda at: self.model(at, noised.t, noised.labels), points, 7
                )
        variance = self.model.sde.marginal(noised.t)[1].square()
        terms = {"change": variance * change, "square": 0.5 * variance * dot(score, score)}
        return terms if graph else {name: term.detach() for name, term in terms.items()}
