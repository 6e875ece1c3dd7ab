"""Losses by conditionals of single coordinates: pseudo-likelihood and ratio matching."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ebmppl.arguments import seed_of, whole
from ebmppl.energies.base import Energy
from ebmppl.losses.base import BoundLoss, Data, Loss
from ebmppl.losses.neighbours import Neighbours
from ebmppl.losses.noise import step_seed
from ebmppl.models.rbm_views import log1p_exp


class PseudoLikelihood(Loss):
    r"""Minus the mean log pseudo-likelihood of discrete data, :math:`-\overline{\sum_i \log p(x_i \mid x_{-i})}` in nats.

    Of conditionals of single coordinates, which need no log Z. Consistent; exact where coordinates are independent. They
    come from the model's structure where it tells them (``Energy.conditionals``, weights of an RBM), else from energies
    with each coordinate at its other levels, in bounded memory.

    References:
        Besag 1975, "Statistical analysis of non-lattice data".

    Args:
        num_coordinates: sum over a random subset of so many coordinates, the same for all rows, and scale up: unbiased,
            and cheaper; all of them when None.
        seed: of the subsets, which are a function of the seed and the step; from the operating system when None.

    Raises:
        ValueError: for a number that is not positive; bound, for a continuous energy or one of fewer coordinates.

    Example:
        >>> import ebmppl as eb
        >>> bound = PseudoLikelihood()(eb.models.Ising((3, 3), coupling=0.0))
        >>> bound(torch.ones(5, 3, 3)).item()  # 9 log 2
        6.238...
    """

    continuous: ClassVar[bool | None] = False

    def __init__(self, num_coordinates: int | None = None, *, seed: int | None = None) -> None:
        super().__init__()
        self.num_coordinates = None if num_coordinates is None else whole("num_coordinates", num_coordinates, 1)
        self.seed = seed

    def bind(self, energy: Energy, guide: Any) -> BoundPseudoLikelihood:
        """The loss of one energy."""
        return BoundPseudoLikelihood(energy, guide, self.num_coordinates, self.seed)


class _OfCoordinates(BoundLoss):
    """Abstract: a sum over coordinates, or over a random subset and scaled up."""

    seed: Tensor

    def __init__(self, energy: Energy, guide: Any, num_coordinates: int | None, seed: int | None) -> None:
        super().__init__(energy, guide)
        self.neighbours = Neighbours(energy)
        self.size = self.neighbours.size
        if num_coordinates is not None and num_coordinates > self.size:
            raise ValueError(f"expected at most {self.size} coordinates, got num_coordinates = {num_coordinates}")
        self.num_coordinates = None if num_coordinates == self.size else num_coordinates
        unused = self.num_coordinates is None  # nothing is random
        seed = 0 if unused else seed_of(seed)
        self.register_buffer("seed", torch.tensor(seed))

    def data(self, x: Data) -> Tensor:
        """Checked points as they are given, one-hot vectors as integers."""
        return self.neighbours.inward(super().data(x))

    def which(self) -> Tensor | None:
        """Flat numbers of this step's coordinates, in increasing order; None for all."""
        if self.num_coordinates is None:
            return None
        generator = torch.Generator().manual_seed(step_seed(int(self.seed), int(self.step)))
        return torch.randperm(self.size, generator=generator)[: self.num_coordinates].sort().values

    @property
    def scale(self) -> float:
        """Of a sum over the subset."""
        return 1.0 if self.num_coordinates is None else self.size / self.num_coordinates


class BoundPseudoLikelihood(_OfCoordinates):
    """See ``PseudoLikelihood``."""

    def terms(self, x: Tensor) -> dict[str, Tensor]:
        """Minus the mean of the rows' log pseudo-likelihoods."""
        return {"pseudo_likelihood": self.of_rows(x).mean()}

    def of_rows(self, x: Tensor) -> Tensor:
        """Minus the log pseudo-likelihood of every row, ``(rows,)`` in nats, of checked data."""
        parts = [_surprise(ratios).sum(1) for ratios in self.neighbours.log_ratios(x, self.which())]
        return torch.stack(parts).sum(0) * self.scale


class RatioMatching(Loss):
    r"""Ratio matching of bits or spins: :math:`\overline{\sum_i g(p(x) / p(x_{\bar\imath}))^2}` with :math:`g(u) = 1 / (1 + u)`.

    Where :math:`x_{\bar\imath}` is x with its coordinate i flipped; so g is the conditional probability of the flipped value.
    Consistent, and without log Z; bounded, which makes it less sensitive to improbable rows than ``PseudoLikelihood``.

    References:
        Hyvarinen 2007, "Some extensions of score matching", section on ratio matching of binary variables.

    Args:
        num_coordinates: see ``PseudoLikelihood``.
        seed: see ``PseudoLikelihood``.

    Raises:
        ValueError: for a number that is not positive; bound, for a continuous energy or coordinates of more than two levels.
    """

    continuous: ClassVar[bool | None] = False

    def __init__(self, num_coordinates: int | None = None, *, seed: int | None = None) -> None:
        super().__init__()
        self.num_coordinates = None if num_coordinates is None else whole("num_coordinates", num_coordinates, 1)
        self.seed = seed

    def bind(self, energy: Energy, guide: Any) -> BoundRatioMatching:
        """The loss of one energy."""
        return BoundRatioMatching(energy, guide, self.num_coordinates, self.seed)


class BoundRatioMatching(_OfCoordinates):
    """See ``RatioMatching``."""

    def __init__(self, energy: Energy, guide: Any, num_coordinates: int | None, seed: int | None) -> None:
        super().__init__(energy, guide, num_coordinates, seed)
        if not self.neighbours.binary:
            raise ValueError(
                f"expected coordinates of two levels for RatioMatching, got {energy.support}; PseudoLikelihood takes others"
            )

    def terms(self, x: Tensor) -> dict[str, Tensor]:
        """The mean of the rows' sums of squares."""
        parts = [torch.sigmoid(ratios).square().sum(1) for ratios in self.neighbours.log_ratios(x, self.which())]
        return {"ratio_matching": torch.stack(parts).sum(0).mean() * self.scale}


def _surprise(ratios: Tensor) -> Tensor:
    """-log p(x_i | others) from log-ratios to the other level ``(rows, size)``, or to all levels ``(rows, size, levels)``."""
    return log1p_exp(ratios) if ratios.dim() == 2 else torch.logsumexp(ratios, -1)
