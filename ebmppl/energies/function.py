"""A plain Python callable as an energy, whether it is written for a batch or for one point."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from ebmppl.energies.base import Energy, Shape, Support, flatten_batch, like
from ebmppl.energies.fingerprint import same
from ebmppl.energies.linalg import rowwise
from ebmppl.energies.randomness import RANDOM
from ebmppl.errors import LOOKS_AT_VALUES, EnergyError, SamplingWarning, looks_at_values


def as_energy(
    fn: Callable[..., Tensor],
    event_shape: Shape | Mapping[str, Shape],
    support: Support = constraints.real,
    *,
    batched: bool | None = None,
) -> Energy:
    """An energy from a Python callable ``x -> E(x)`` in nats.

    Args:
        fn: the callable (an ``nn.Module`` stays trainable). Over one tensor it gets ``(batch, *event)``
            and returns ``(batch,)``, or gets ``event`` and returns a scalar. Over named sites it gets one
            dict of such tensors, as Pyro's ``potential_fn`` does.
        event_shape: shape of one point, or a dict of shapes by site name.
        support: constraint of the points, or a dict by site; fn always sees points inside the support, as floating point numbers.
        batched: True if fn is written for a batch, False for one point; None finds out at the first call
            (``repr`` tells which) and vectorises a function of one point with ``torch.func.vmap``. One that branches on
            values (``if x[0] > 0:``) is called point by point, slower; its gradient, compared with finite differences at
            the start of a run, must not miss what it computes with Python numbers (``x[0].item()``).

    Returns:
        An energy of points ``(*batch, *event)``. fn is not called here but first by a run or a loss.

    Raises:
        ValueError: when fn isn't callable or shapes and supports don't fit together.

    Example:
        >>> energy = as_energy(lambda x: 0.5 * (x**2).sum(-1), event_shape=(2,))
        >>> energy(torch.zeros(3, 2))
        tensor([0., 0., 0.])
    """
    return FunctionEnergy(fn, event_shape, support, batched=batched)


class FunctionEnergy(Energy):
    """The energy that ``as_energy`` makes; see there."""

    def __init__(
        self,
        fn: Callable[..., Tensor],
        event_shape: Shape | Mapping[str, Shape],
        support: Support,
        *,
        batched: bool | None,
    ) -> None:
        if not callable(fn):
            raise ValueError(f"expected a callable energy, got {type(fn).__name__}")
        super().__init__(event_shape, support)
        self.fn = fn
        self.batched = batched

    def forward(self, x: Tensor) -> Tensor:
        """Energies ``(*batch)`` in nats of points ``(*batch, *event)``."""
        if not x.is_floating_point():  # states of discrete kernels; what users write is for real numbers
            x = x.to(like(self).dtype)
        rows, batch = flatten_batch(x, self.event_shape)
        if not len(rows):  # fn need not know what to do with nothing
            return rows.reshape(0, self.event_shape.numel()).sum(1).reshape(batch)
        if self.batched is None:
            self.batched = self._find_out(rows.detach())
        out = self._rows(rows) if self.batched else self._vmapped(rows)
        if not isinstance(out, Tensor):
            raise EnergyError(f"expected the energy as a tensor, got {type(out).__name__}")
        if out.shape != rows.shape[:1]:
            raise EnergyError(f"expected energy of shape ({len(rows)},), got {tuple(out.shape)}")
        return out if len(batch) == 1 else out.reshape(batch)

    def identity(self) -> tuple[Any, ...]:
        """The callable, and how it is called."""
        sites = tuple((name, shape, repr(self.site_support(name))) for name, shape in self.sites.items())
        return (type(self), same(self.fn), self.packed, self.batched, sites)

    def _rows(self, x: Tensor) -> Any:
        return rowwise(self._call_fn, x)

    def _call_fn(self, x: Tensor) -> Any:
        return self.fn(self.unpack(x) if self.packed else x)

    def _vmapped(self, rows: Tensor) -> Any:
        if not self.looped:
            try:
                return torch.func.vmap(self._rows)(rows)
            except (RuntimeError, ValueError) as error:
                if not looks_at_values(error):
                    raise EnergyError(
                        "the energy is written for one point and torch.func.vmap can't vectorise it; "
                        f"write it for a batch (in-place changes stop vmap): {error}"
                    ) from error
            self.looped = True
            told = f"the energy runs chain by chain, slower, for torch.func.vmap can't take it: {LOOKS_AT_VALUES}"
            warnings.warn(told, SamplingWarning, stacklevel=2)
        values = [self._rows(row) for row in rows]
        wrong = [value for value in values if not isinstance(value, Tensor)]
        return wrong[0] if wrong else torch.stack(values)

    @torch.no_grad()
    def _find_out(self, rows: Tensor) -> bool:
        """Whether fn is written for a batch: its rows must then not depend on one another."""
        size = 2
        while size in self.event_shape or any(size in shape for shape in self.sites.values()):
            size += 1  # so that no axis of the event can be taken for the batch
        probe = rows[torch.arange(size, device=rows.device) % len(rows)]
        batch, failure = _attempt(self._rows, probe)
        if failure is None and isinstance(batch, Tensor) and not same_energy(self._rows(probe), batch):
            raise EnergyError(RANDOM)
        points = [_attempt(self._rows, row)[0] for row in probe]
        of_point = all(isinstance(p, Tensor) and p.shape == () for p in points)
        if isinstance(batch, Tensor) and batch.shape == (size,):
            alone = [_attempt(self._rows, probe[i : i + 1])[0] for i in range(size)]
            if all(isinstance(a, Tensor) and a.shape == (1,) for a in alone):
                if same_energy(torch.cat(alone), batch, of_batches=True):
                    return True
                # over sites, a sum over everything in a function of one point takes scalar sites for a batch
                if self.packed and of_point and same_energy(torch.cat(alone), torch.stack(points), of_batches=True):
                    return False
                also = " (it also takes one point: if it is written for one, pass batched=False)" if of_point else ""
                raise EnergyError(
                    "the energy mixes the rows of a batch: the energy of a point changes with the points "
                    f"beside it{also}; chains must not depend on one another"
                )
        if of_point:
            return False
        for part in (rows, rows[:1], probe):  # the points of a run, one of them alone, and some together
            self._explain(part)
        return True

    def _explain(self, rows: Tensor) -> None:
        """Raise what is wrong with fn's answer to a batch, if something is."""
        answer, failure = _attempt(self._rows, rows)
        if failure is not None:
            raise EnergyError(
                f"the energy failed on a batch of shape {tuple(rows.shape)}, {rows.dtype} on {rows.device}: "
                f"{type(failure).__name__}: {failure}"
            ) from failure
        if not isinstance(answer, Tensor) or answer.shape != rows.shape[:1]:
            got = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
            raise EnergyError(f"expected energy of shape ({len(rows)},), got {got}")

    def extra_repr(self) -> str:
        """Shape, support and what was found out about fn."""
        how = "point by point" if self.looped else "vmapped"
        written = {None: "batched=unknown until called", True: "batched=True", False: f"batched=False ({how})"}
        name = getattr(self.fn, "__name__", type(self.fn).__name__)
        return f"{name}, {super().extra_repr()}, {written[self.batched]}"


_TF32 = 2.0**-10  # rounding of what a GPU's convolutions of float32 are made of, by default


def same_energy(a: Tensor, b: Tensor, *, of_batches: bool = False, by_row: bool = False) -> bool:
    """Whether two energies agree up to the rounding of a differently shaped matrix product.

    Those of batches of another size may come of other algorithms: on a GPU they may then differ by the rounding of TF32, and
    under autocast by that of half precision. By row, one of a size beyond all others has no part in what those may differ by.
    """
    if not b.is_floating_point():
        return torch.equal(a, b)
    eps, device = torch.finfo(b.dtype).eps, b.device.type
    if of_batches and b.is_cuda and b.dtype == torch.float32:
        eps = max(eps, _TF32)
    if of_batches and torch.is_autocast_enabled(device):
        eps = max(eps, torch.finfo(torch.get_autocast_dtype(device)).eps)
    tolerance = eps**0.6
    finite = torch.isfinite(b)
    scale: Tensor | float = b[finite].abs().max().clamp(min=1.0) if bool(finite.any()) else 1.0
    if by_row:
        sizes = torch.where(finite, b.abs(), 0.0).reshape(len(b), -1).amax(1)
        scale = sizes.clamp_min(sizes.median()).clamp_min(1.0).view(-1, *[1] * (b.dim() - 1))
    return bool(torch.allclose(a / scale, b / scale, rtol=0.0, atol=tolerance, equal_nan=True))


def _attempt(fn: Callable[[Tensor], Any], x: Tensor) -> tuple[Any, Exception | None]:
    # The user's code may raise anything at a shape it was not written for; that is an answer here.
    try:
        return fn(x), None
    except Exception as error:
        return None, error
