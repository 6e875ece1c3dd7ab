"""In-painting: conditional scores where some numbers of the data are known."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ebmppl.arguments import form, require, size
from ebmppl.score.base import LinearSDE, over
from ebmppl.score.conditions import Conditional, Score
from ebmppl.score.inverse import Measured
from ebmppl.score.parameterisations import same_shape


class InPainting(Measured):
    """A score given some numbers of the data, with or without noise: ``LinearGuidance`` where A picks those of a mask.

    Args:
        score: ``(x, t) -> score``, differentiable in x but for "annealed".
        sde: a linear one.
        event_shape: of one point.
        mask: True where numbers are known, ``(*event)`` for all or ``(chains, *event)``.
        values: ``(*event)`` for all or ``(chains, *event)``, in units of x; those that aren't known don't matter.
        noise_std: of the known numbers, >= 0 (> 0 for "dps"), in units of x.
        method: "pigdm", "dps" or "annealed", see ``LinearGuidance``.
        data_std: c > 0, of "pigdm", in units of x.
        scale: of the likelihood's gradient, >= 0, for all or for each chain ``(chains,)``.

    Raises:
        ValueError: for a mask or values of another shape or type, or arguments outside these ranges.
    """

    mask: Tensor
    values: Tensor

    def __init__(
        self,
        score: Score,
        sde: LinearSDE,
        event_shape: Sequence[int],
        mask: Tensor,
        values: Tensor,
        noise_std: float = 0.0,
        method: str = "pigdm",
        *,
        data_std: float = 1.0,
        scale: float | Tensor = 1.0,
    ) -> None:
        require(method != "tmpd", 'a method of "pigdm", "dps" and "annealed" for a mask', repr(method))
        super().__init__(score, sde, noise_std, method, data_std, scale)
        _keep_known(self, event_shape, mask, values)

    def residual(self, points: Tensor) -> Tensor:
        """See the base; 0 where nothing is known."""
        rows = torch.where(self.given("mask", points), self.given("values", points) - points, 0.0)
        return rows.reshape(len(points), -1)

    def adjoint(self, residual: Tensor, like: Tensor) -> Tensor:
        """See the base."""
        return residual.view(like.shape)

    def spectrum(self) -> Tensor:
        """See the base."""
        return self.values.new_ones(())

    def check(self, x: Tensor, t: Tensor) -> None:
        """Another event shape, too."""
        _check_known(self, x)
        super().check(x, t)


class Replacement(Conditional):
    r"""A score for in-painting without noise: known numbers y take their own path to y, the score is asked at the others.

    .. math:: s_i(x, t | y) = \begin{cases} (a\,y_i - x_i) / \sigma^2 & i \text{ known} \\ s_i(x, t) & \text{else} \end{cases}

    The first line is the exact score of known numbers with noise, so by a reverse SDE they are a y + sigma z with a path of z
    as the forward SDE has, and by the probability flow with the same z at all times: the score is asked where known numbers are
    replaced by y with the noise of that time. Of y beyond that noise the others know nothing, so they fit it less well than they
    should, however many steps there are; resampling mends it, the more often the better
    (``ReverseSDE(..., "ancestral", resample=10)``).

    References:
        Song et al. 2021, appendix I.2; Lugmayr, Danelljan, Romero, Yu, Timofte and Van Gool 2022, "RePaint: inpainting using
        denoising diffusion probabilistic models", algorithm 1.

    Args:
        score: ``(x, t) -> score``.
        sde: a linear one.
        event_shape: of one point.
        mask: True where numbers are known, ``(*event)`` for all or ``(chains, *event)``.
        values: y ``(*event)`` for all or ``(chains, *event)``; those that aren't known don't matter.

    Raises:
        ValueError: for a mask or values of another shape or type.
    """

    mask: Tensor
    values: Tensor

    def __init__(self, score: Score, sde: LinearSDE, event_shape: Sequence[int], mask: Tensor, values: Tensor) -> None:
        super().__init__(score)
        require(isinstance(sde, LinearSDE), "a linear SDE", type(sde).__name__)
        self.score, self.sde = score, sde
        _keep_known(self, event_shape, mask, values)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """See the class."""
        mean, std = self.sde.marginal(t)
        known = (over(mean, x) * self.given("values", x) - x) / over(std.square(), x)
        return torch.where(self.given("mask", x), known, same_shape(self.score(x, t), x))

    def check(self, x: Tensor, t: Tensor) -> None:
        """Another event shape."""
        _check_known(self, x)


def _keep_known(model: Conditional, event_shape: Sequence[int], mask: Tensor, values: Tensor) -> None:
    """Keep a mask and the values that it shows, each for all or with chains in front."""
    event = size("the event shape", event_shape)
    wanted = f"{tuple(event)} or (chains, {', '.join(map(str, event))})"
    for name, value in (("mask", mask), ("values", values)):
        kind = isinstance(value, Tensor) and (
            value.dtype == torch.bool if name == "mask" else value.is_floating_point()
        )
        require(kind, f"{name} as a tensor of {'bools' if name == 'mask' else 'floating point numbers'}", form(value))
        ranks = value.dim() - len(event) in (0, 1)
        require(ranks and value.shape[value.dim() - len(event) :] == event, f"{name} of shape {wanted}", form(value))
    by_row = [value.dim() > len(event) for value in (mask, values)]
    require(not all(by_row) or len(mask) == len(values), "as many values as masks", (len(values), len(mask)))
    known = torch.where(mask, values, 0.0)
    require(bool(known.isfinite().all()), "finite values where the mask is True", "others")
    model.keep("mask", mask, by_row=by_row[0])
    model.keep("values", known, by_row=any(by_row))


def _check_known(model: Conditional, x: Tensor) -> None:
    event, by_row = model.get_buffer("mask").shape, "mask" in model.by_row
    require(event[by_row:] == x.shape[1:], f"a mask of the points' shape {tuple(x.shape[1:])}", tuple(event[by_row:]))
