"""Contrastive estimation of relative energies: ranking and conditional noise-contrastive estimation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.distributions import Distribution

from ebmppl.arguments import positive, require, seed_of, whole
from ebmppl.energies.base import Energy
from ebmppl.energies.supports import is_discrete
from ebmppl.energies.unconstrained import unconstrained
from ebmppl.losses.base import BoundLoss, Loss, shaped
from ebmppl.losses.noise import (
    as_noise,
    energies_inside,
    own_stream,
    require_cover,
    require_covers,
    step_seed,
    support_of,
)
from ebmppl.models.rbm_views import log1p_exp

Form = Literal["ranking", "conditional"]
Conditional = Callable[[Tensor], Distribution]


class ContrastiveNCE(Loss):
    r"""Relative energies by contrast with noise; log Z is neither needed nor found.

    ``form="ranking"``: every row of data is to be told among K points of noise,

    .. math:: -\overline{\log \frac{e^{s(x)}}{e^{s(x)} + \sum_{k=1}^K e^{s(y_k)}}}, \qquad s(u) = -E(u) - \log p_n(u)

    with the noise p_n as the guide (see ``NCE``). It is InfoNCE with log p_n in place of a learned critic's constant.

    ``form="conditional"``: every row is to be told from K points near it, :math:`y \sim p_c(\cdot \mid x)`,

    .. math:: -2\, \overline{\log \sigma(G(x, y))}, \qquad G(x, y) = E(y) - E(x) + \log p_c(y \mid x) - \log p_c(x \mid y)

    By default p_c is normal around x with standard deviation ``scale``, and symmetric: its densities cancel. The guide isn't
    used.

    References:
        Ma and Collins 2018, "Noise contrastive estimation and negative sampling for conditional models: consistency and
        statistical efficiency"; van den Oord, Li and Vinyals 2018, "Representation learning with contrastive predictive
        coding"; Ceylan and Gutmann 2018, "Conditional noise-contrastive estimation of unnormalised models".

    Args:
        num_negatives: K, points of noise for each row of data, at least 1.
        form: "ranking" or "conditional".
        scale: of the default p_c, in units of the data, > 0.
        conditional: p_c instead: from points ``(n, *event)`` to a distribution over as many, of shape ``(n, *event)`` with
            its batch and event axes together.
        seed: of the noise, which is a function of the seed and the step; from the operating system when None.

    Raises:
        ValueError: for an unknown form, counts or a scale out of range, or a ``conditional`` of the ranking form; bound,
            for a guide of other shapes, or without a ``conditional`` a discrete energy, or one over a simplex or other
            support of no volume; called, for noise that doesn't cover the data.

    Example:
        >>> import ebmppl as eb
        >>> bound = ContrastiveNCE(4, form="conditional", scale=0.5, seed=0)(eb.energies.Gaussian(torch.zeros(2), torch.eye(2)))
        >>> bound(torch.zeros(5, 2)).shape
        torch.Size([])
    """

    def __init__(
        self,
        num_negatives: int = 1,
        *,
        form: Form = "ranking",
        scale: float = 1.0,
        conditional: Conditional | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        require(form in get_args(Form), f"form among {get_args(Form)}", repr(form))
        require(conditional is None or callable(conditional), "a callable conditional", conditional)
        require(conditional is None or form == "conditional", "a conditional only with form='conditional'", form)
        self.num_negatives, self.form, self.seed = whole("num_negatives", num_negatives, 1), form, seed
        self.scale, self.conditional = positive("scale", scale), conditional

    def bind(self, energy: Energy, guide: Any) -> BoundLoss:
        """The loss of one energy; the ranking form against the noise ``guide``."""
        return BoundRanking(energy, guide, self) if self.form == "ranking" else BoundConditional(energy, guide, self)


class _Contrast(BoundLoss):
    """Abstract: K points of noise for each row, at the seed of the step."""

    seed: Tensor

    def __init__(self, energy: Energy, guide: Any, loss: ContrastiveNCE) -> None:
        super().__init__(energy, guide)
        self.num_negatives = loss.num_negatives
        self.register_buffer("seed", torch.tensor(seed_of(loss.seed)))

    @property
    def now(self) -> int:
        """The seed of this step."""
        return step_seed(int(self.seed), int(self.step))

    def _of_rows(self, noise: Tensor, rows: int) -> Tensor:
        """Given points of noise, ``(rows * K, *event)``: the first K are the first row's."""
        noise = shaped(self.energy.event_shape, noise)
        if len(noise) % rows:
            raise ValueError(f"expected noise as some points for each of {rows} rows, got {len(noise)}")
        return noise


class BoundRanking(_Contrast):
    """See ``ContrastiveNCE``."""

    def __init__(self, energy: Energy, guide: Any, loss: ContrastiveNCE) -> None:
        super().__init__(energy, guide, loss)
        self.noise = as_noise(guide, energy)

    def terms(self, x: Tensor, noise: Tensor | None = None) -> dict[str, Tensor]:
        """Minus the mean log-probability that the row of data is told among its points of noise.

        Args:
            x: data ``(rows, *event)``.
            noise: ``(rows * K, *event)`` where they are given; the first K are the first row's.
        """
        n = len(x)
        y = self.noise.draw(n * self.num_negatives, self.now) if noise is None else self._of_rows(noise, n)
        both = torch.cat([x, y.to(x)])
        log_noise = require_covers(self.noise.log_prob(both), n)
        energies = energies_inside(self.energy, both)
        score = -energies - log_noise.to(energies)
        among = torch.cat([score[:n].unsqueeze(1), score[n:].reshape(n, -1)], 1)
        return {"ranking": (torch.logsumexp(among, 1) - among[:, 0]).mean()}


class BoundConditional(_Contrast):
    """See ``ContrastiveNCE``."""

    def __init__(self, energy: Energy, guide: Any, loss: ContrastiveNCE) -> None:
        super().__init__(energy, guide, loss)
        self.scale, self.conditional = loss.scale, loss.conditional
        unordered = [name for name in energy.sites if is_discrete(energy.site_support(name))]
        if self.conditional is None and unordered:
            raise ValueError(
                f"expected a conditional for an energy with the discrete sites {unordered}: normal noise is for real ones"
            )
        if self.conditional is None and unconstrained(energy).event_shape.numel() < energy.event_shape.numel():
            raise ValueError(
                f"expected a conditional for an energy over {energy.support}, of fewer dimensions than its points have "
                "coordinates: normal noise never stays there"
            )

    def terms(self, x: Tensor, noise: Tensor | None = None) -> dict[str, Tensor]:
        """Minus twice the mean log-probability that a row is told from the points near it.

        Args:
            x: data ``(rows, *event)``.
            noise: ``(rows * K, *event)`` where they are given; the first K are near the first row.
        """
        k = self.num_negatives if noise is None else len(self._of_rows(noise, len(x))) // len(x)
        near = x if k == 1 else x.repeat_interleave(k, 0)
        y, log_ratio = self._noise(near, noise)
        energies = energies_inside(self.energy, torch.cat([x, y]))
        rise = energies[len(x) :].reshape(len(x), k) - energies[: len(x)].unsqueeze(1)
        if log_ratio is not None:
            rise = rise + log_ratio.reshape(len(x), k).to(rise)
        return {"conditional": 2 * log1p_exp(-rise).mean()}

    @torch.no_grad()
    def _noise(self, x: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """A point near each of x, and log p_c(y | x) - log p_c(x | y) where it is not 0."""
        if self.conditional is None:
            if noise is not None:
                return noise.to(x), None
            generator = torch.Generator(x.device).manual_seed(self.now)
            return torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator).mul_(self.scale).add_(
                x
            ), None
        there = self._given(x)
        if noise is None:
            with own_stream(self.now):
                noise = there.sample()
        y = noise.to(x)
        ratio = _log_prob(there, y, "the points near the data") - _log_prob(self._given(y), x, "the data from there")
        return y, ratio

    def _given(self, x: Tensor) -> Distribution:
        assert self.conditional is not None
        there = self.conditional(x)
        if not isinstance(there, Distribution):
            raise ValueError(f"expected the conditional to give a distribution, got {type(there).__name__}")
        if there.batch_shape + there.event_shape != x.shape:
            raise ValueError(
                f"expected the conditional to give a distribution over points of shape {tuple(x.shape)}, got batch shape "
                f"{tuple(there.batch_shape)} and event shape {tuple(there.event_shape)}"
            )
        return there


def _log_prob(there: Distribution, y: Tensor, what: str) -> Tensor:
    """Log-densities ``(rows,)`` of one point from each of as many distributions; all must be finite."""
    support = support_of(there)
    rows = len(y)
    inside = None if support is None else support.check(y).reshape(rows, -1).all(1)
    if inside is not None and not bool(inside.all()):
        require_cover(torch.zeros(rows).masked_fill(~inside.cpu(), -torch.inf), what)
    return require_cover(there.log_prob(y).reshape(rows, -1).sum(1), what)
