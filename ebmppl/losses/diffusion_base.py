"""What losses of score models have in common: data with labels, times, and noised points."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor

from ebmppl.arguments import real, require
from ebmppl.energies.base import ONE_SITE, Energy
from ebmppl.losses.base import BoundLoss, Data, Loss, at_dtype_of, require_finite, require_numbers, shaped
from ebmppl.losses.seeded import SeededLoss, normals, uniforms
from ebmppl.score.parameterisations import Parameterisation
from ebmppl.score.weightings import EDMWeighting, LikelihoodWeighting, UniformTimes, Weighting

LABEL, NO_LABEL = "label", -1
_NAMED: dict[str, type[Weighting]] = {"uniform": UniformTimes, "likelihood": LikelihoodWeighting, "edm": EDMWeighting}


class DiffusionLoss(Loss):
    """Abstract: a loss of score models. Takes a ``Parameterisation``, that is a network, an SDE and what is predicted.

    Data are points ``(rows, *event)``, or ``{"x": points, "label": labels}`` for a conditional model, in ``fit`` and
    ``SVI`` too. Labels ``(rows,)`` are whole numbers, -1 for none; of some rows, drawn anew at each step, they are
    dropped, so that one network learns the conditional and the unconditional score (classifier-free guidance).

    References:
        Ho and Salimans 2022, "Classifier-free diffusion guidance".

    Args:
        weighting: a ``Weighting`` of ``ebmppl.score.weightings``, or the name of one: "uniform", "likelihood" or "edm".
        t_min: least time, in (0, T); not for weightings with times of their own.
        label_dropout: probability in [0, 1) with which a label is dropped in training, which needs labels then.
        low_discrepancy: spread the times of a batch evenly: u_i = (u_0 + i / rows) mod 1 in the place of independent ones.
            Each row's time has the same law, and the batch's mean less variance (Kingma et al. 2021).
        seed: of times and noise; from the operating system when None.

    Raises:
        ValueError: for settings outside these ranges; at binding, for anything but a ``Parameterisation`` whose SDE has
            what the weighting needs; when called in training, for a label_dropout and no labels.
    """

    continuous: ClassVar[bool | None] = True

    def __init__(
        self,
        weighting: str | Weighting,
        *,
        t_min: float,
        label_dropout: float,
        low_discrepancy: bool,
        seed: int | None,
    ) -> None:
        super().__init__()
        known = isinstance(weighting, Weighting) or weighting in _NAMED
        require(known, f"a Weighting, or one of {', '.join(map(repr, _NAMED))}", repr(weighting))
        require(0 <= real(label_dropout) < 1, "label_dropout in [0, 1)", repr(label_dropout))
        self.weighting = weighting if isinstance(weighting, Weighting) else _NAMED[weighting]()
        self.t_min, self.label_dropout = t_min, real(label_dropout)
        self.low_discrepancy, self.seed = low_discrepancy, seed

    def __call__(self, energy: Any, guide: Any = None) -> BoundLoss:
        """Bind to a ``Parameterisation``.

        Raises:
            ValueError: for something else.
        """
        wanted = "a Parameterisation, such as NoisePrediction(network, VP())"
        require(isinstance(energy, Parameterisation), wanted, type(energy).__name__)
        return self.bind(energy, guide)


class Noised(NamedTuple):
    """Data at the times of a step.

    Attributes:
        x: data ``(rows, *event)``.
        noise: standard normal ``(rows, *event)``.
        t: times ``(rows,)``.
        points: a x + std noise ``(rows, *event)``.
        labels: ``(rows,)``, where there are some.
        weight: of the rows' squared errors of the noise ``(rows,)``.
    """

    x: Tensor
    noise: Tensor
    t: Tensor
    points: Tensor
    labels: Tensor | None
    weight: Tensor


class BoundDiffusionLoss(SeededLoss):
    """Abstract: final classes implement ``errors``."""

    def __init__(self, energy: Any, guide: Any, loss: DiffusionLoss) -> None:
        super().__init__(cast(Energy, energy), guide, loss.seed)
        self.weighting, self.t_min = loss.weighting, loss.t_min
        self.label_dropout, self.low_discrepancy = loss.label_dropout, loss.low_discrepancy
        self.weighting.require(self.model, self.t_min)

    @property
    def model(self) -> Parameterisation:
        """What is trained."""
        return cast(Parameterisation, self.energy)

    def data(self, x: Data) -> tuple[Tensor, Tensor | None]:
        """Points ``(rows, *event)`` and labels ``(rows,)``."""
        given = x if isinstance(x, Mapping) else {ONE_SITE: x}
        wanted = f"data by {ONE_SITE!r}, and perhaps {LABEL!r}"
        require(ONE_SITE in given and set(given) <= {ONE_SITE, LABEL}, wanted, sorted(given))
        points, labels = given[ONE_SITE], given.get(LABEL)
        nothing = labels is None and self.training and self.label_dropout > 0
        require(not nothing, f"data with {LABEL!r} where label_dropout is set", sorted(given))
        require_numbers(ONE_SITE, points, real=True)
        event = getattr(self.model.network, "event_shape", points.shape[1:])
        points = at_dtype_of(self, shaped(torch.Size(event), points))
        require_finite(ONE_SITE, points)
        return points, None if labels is None else self._checked(labels, len(points))

    def _checked(self, labels: Tensor, rows: int) -> Tensor:
        whole = isinstance(labels, Tensor) and not labels.is_floating_point() and not labels.is_complex()
        require(whole and labels.dtype is not torch.bool, "labels as whole numbers", getattr(labels, "dtype", labels))
        require(labels.shape == (rows,), f"labels of shape ({rows},)", tuple(labels.shape))
        require(bool((labels >= NO_LABEL).all()), "labels from 0, or -1 for none", int(labels.min()))
        return labels.long()

    def terms(self, x: tuple[Tensor, Tensor | None]) -> dict[str, Tensor]:
        """The mean of the weighted errors; under ``no_grad`` too, where some errors need gradients all the same."""
        graph = torch.is_grad_enabled()
        with torch.no_grad():
            generator = self.seeded(x[0].device)
            noised = self._noised(*x, generator)
        with torch.set_grad_enabled(graph):
            rows = self.errors(noised, generator)
        return {name: (noised.weight * error).mean() for name, error in rows.items()}

    @abstractmethod
    def errors(self, noised: Noised, generator: torch.Generator) -> dict[str, Tensor]:
        """For each row ``(rows,)``, by term: in sum half the squared error of the noise, up to what the model doesn't change."""

    def _noised(self, x: Tensor, labels: Tensor | None, generator: torch.Generator) -> Noised:
        rows = len(x)
        if self.low_discrepancy:
            first = uniforms(1, x, generator)
            u = (first + torch.arange(rows, dtype=x.dtype, device=x.device) / rows).frac()
        else:
            u = uniforms(rows, x, generator)
        noise = normals(x.shape, x, generator)
        if labels is not None and self.training and self.label_dropout:
            labels = labels.masked_fill(uniforms(rows, x, generator) < self.label_dropout, NO_LABEL)
        t = self.weighting.times(self.model, u, self.t_min)
        weight = self.weighting.weight(self.model, t, self.t_min)
        return Noised(x, noise, t, self.model.sde.perturb(x, t, noise), labels, weight)
