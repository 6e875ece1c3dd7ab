"""Score matching: explicit, by the trace of the Jacobian, by slices, and by denoising."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, cast

import torch
from torch import Tensor

from ebmppl.arguments import positive, require, whole
from ebmppl.energies.base import Energy
from ebmppl.energies.matching import Matching
from ebmppl.energies.supports import elementwise
from ebmppl.losses.base import BoundLoss
from ebmppl.losses.score_base import BoundScoreLoss, ScoreLoss
from ebmppl.losses.scores import Scored, matched


class ExplicitScoreMatching(ScoreLoss):
    r"""Explicit score matching: :math:`\overline{\tfrac12 |s(x) - \nabla \log p(x)|^2}` with the data's known score.

    The Fisher divergence of the data to the model. It is taken in the coordinates of the data, whatever the support.

    References:
        Hyvarinen 2005, "Estimation of non-normalized statistical models by score matching", equation 2.

    Args:
        score: ``(rows, *event) -> (rows, *event)``, the score of the data's distribution.

    Raises:
        ValueError: when it isn't callable; at binding, for a support whose coordinates depend on one another.
    """

    def __init__(self, score: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        require(callable(score), "score as a callable", type(score).__name__)
        self.score = score

    def bind(self, energy: Energy, guide: Any) -> BoundLoss:
        """The loss of one energy."""
        return BoundExplicit(energy, guide, self)


class BoundExplicit(BoundScoreLoss):
    """See ``ExplicitScoreMatching``."""

    def __init__(self, energy: Scored, guide: Any, loss: ExplicitScoreMatching) -> None:
        for name in energy.sites if isinstance(energy, Energy) else ():
            support = elementwise(cast(Energy, energy).site_support(name))
            if support.event_dim:
                raise ValueError(
                    f"expected coordinates that don't depend on one another, got site {name!r} in {support}"
                )
        super().__init__(energy, guide, 0, constrained=True)
        self.of_data = loss.score

    def of_points(self, x: Tensor, *, graph: bool) -> dict[str, Tensor]:
        """Half the squared distance of the scores."""
        with torch.no_grad():
            wanted = self.of_data(x)
        if wanted.shape != x.shape:
            raise ValueError(f"expected the data's score of shape {tuple(x.shape)}, got {tuple(wanted.shape)}")
        distance, _ = matched(self.target, x, Matching(target=-wanted), graph=graph)
        return {"distance": distance}


class ScoreMatching(ScoreLoss):
    r"""Score matching: :math:`\overline{\mathrm{tr}\, \nabla s(x) + \tfrac12 |s(x)|^2}`.

    Up to a constant of the data the explicit one, where densities vanish at infinity. The exact trace needs one more
    backward pass for each coordinate; for many coordinates take probes, whose estimate (Hutchinson 1990) of the trace
    by random signs is unbiased, or ``SlicedScoreMatching``.

    References:
        Hyvarinen 2005, "Estimation of non-normalized statistical models by score matching", theorem 1.

    Args:
        trace: "exact", or by probes.
        probes: for each point, when the trace is not exact; at least 1.
        seed: of the probes; from the operating system when None.

    Raises:
        ValueError: for an unknown trace or probes without use.
    """

    def __init__(
        self, trace: Literal["exact", "probes"] | None = None, *, probes: int | None = None, seed: int | None = None
    ) -> None:
        super().__init__()
        trace = trace or ("exact" if probes is None else "probes")
        require(trace in ("exact", "probes"), "trace 'exact' or 'probes'", trace)
        require(trace == "probes" or probes is None, "no probes for the exact trace", probes)
        self.probes = None if trace == "exact" else whole("probes", 1 if probes is None else probes, 1)
        self.seed = seed if self.probes else 0  # nothing is random

    def bind(self, energy: Energy, guide: Any) -> BoundLoss:
        """The loss of one energy."""
        return BoundScoreMatching(energy, guide, self)


class BoundScoreMatching(BoundScoreLoss):
    """See ``ScoreMatching``."""

    def __init__(self, energy: Scored, guide: Any, loss: ScoreMatching) -> None:
        super().__init__(energy, guide, loss.seed)
        self.probes = loss.probes

    def of_points(self, x: Tensor, *, graph: bool) -> dict[str, Tensor]:
        """The trace of the score's Jacobian, and half the squared score."""
        size = self.target.event_shape.numel()
        if self.probes is None:
            v = torch.eye(size, dtype=x.dtype, device=x.device).view(size, 1, *x.shape[1:]).expand(size, *x.shape)
        else:
            v = self.signs(x, self.probes)
        square, change = matched(self.target, x, Matching(v=v), graph=graph)
        trace = cast(Tensor, change)
        return {"trace": trace * size if self.probes is None else trace, "square": square}


class SlicedScoreMatching(ScoreLoss):
    r"""Sliced score matching: :math:`\overline{v^\top \nabla s(x)\, v + \tfrac12 (v^\top s(x))^2}` for v ~ N(0, I).

    Its expectation over v is ``ScoreMatching``. With variance reduction :math:`\tfrac12 |s(x)|^2` takes the place of its
    unbiased estimate :math:`\tfrac12 (v^\top s(x))^2`.

    References:
        Song, Garg, Shi and Ermon 2019, "Sliced score matching", equations 7 and 8.

    Args:
        num_slices: directions v for each point, at least 1.
        reduced_variance: True for equation 8 (SSM-VR), False for equation 7 (SSM).
        seed: of the directions; from the operating system when None.

    Raises:
        ValueError: for fewer than one slice.
    """

    def __init__(self, num_slices: int = 1, *, reduced_variance: bool = True, seed: int | None = None) -> None:
        super().__init__()
        self.num_slices, self.reduced_variance = whole("num_slices", num_slices, 1), reduced_variance
        self.seed = seed

    def bind(self, energy: Energy, guide: Any) -> BoundLoss:
        """The loss of one energy."""
        return BoundSliced(energy, guide, self)


class BoundSliced(BoundScoreLoss):
    """See ``SlicedScoreMatching``."""

    def __init__(self, energy: Scored, guide: Any, loss: SlicedScoreMatching) -> None:
        super().__init__(energy, guide, loss.seed)
        self.num_slices, self.reduced_variance = loss.num_slices, loss.reduced_variance

    def of_points(self, x: Tensor, *, graph: bool) -> dict[str, Tensor]:
        """The score's change along the slices, and half its square."""
        v = self.normals(x, self.num_slices)
        square, change = matched(self.target, x, Matching(v=v, along=not self.reduced_variance), graph=graph)
        return {"change": cast(Tensor, change), "square": square}


class DenoisingScoreMatching(ScoreLoss):
    r"""Denoising score matching: :math:`\overline{\tfrac12 |s(x + \sigma\epsilon) + \epsilon / \sigma|^2}`, epsilon ~ N(0, I).

    It matches the score of the data blurred by noise of standard deviation sigma (in the units of x; of the unconstrained
    space for a constrained energy). As sigma goes to 0 it is ``ScoreMatching`` plus :math:`d / 2 \sigma^2`.

    References:
        Vincent 2011, "A connection between score matching and denoising autoencoders".

    Args:
        sigma: standard deviation of the noise, positive.
        seed: of the noise; from the operating system when None.

    Raises:
        ValueError: for a sigma that isn't positive and finite.
    """

    def __init__(self, sigma: float, *, seed: int | None = None) -> None:
        super().__init__()
        self.sigma, self.seed = positive("sigma", sigma), seed

    def bind(self, energy: Energy, guide: Any) -> BoundLoss:
        """The loss of one energy."""
        return BoundDenoising(energy, guide, self)


class BoundDenoising(BoundScoreLoss):
    """See ``DenoisingScoreMatching``."""

    def __init__(self, energy: Scored, guide: Any, loss: DenoisingScoreMatching) -> None:
        super().__init__(energy, guide, loss.seed)
        self.sigma = loss.sigma

    def of_points(self, x: Tensor, *, graph: bool) -> dict[str, Tensor]:
        """Half the squared distance of the score to that of the noise."""
        noise = self.normals(x)
        y = torch.add(x, noise, alpha=self.sigma)
        distance, _ = matched(self.target, y, Matching(target=noise, scale=1 / self.sigma), graph=graph)
        return {"distance": distance}
