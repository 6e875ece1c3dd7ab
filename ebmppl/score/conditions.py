"""Scores given something: one value for all points, or one for each row of a batch, which is chosen with its row."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ebmppl.arguments import require
from ebmppl.score.dtypes import state_dtype

Score = Callable[[Tensor, Tensor], Tensor]


class Conditional(nn.Module):
    """Abstract: a score ``(x, t) -> score`` given something.

    What is given for each row of a batch has rows first; kernels that find this module inside their score choose rows with their
    chains. Inside a plain function it is not found: there it takes batches of as many points as there are rows.

    Args:
        score: what is called inside; values given come to the device of its first floating tensor, and to its dtype (from
            half precision to float32).

    Raises:
        ValueError: for what isn't callable.
    """

    def __init__(self, score: Callable[..., Tensor], what: str = "a score (x, t) -> tensor") -> None:
        super().__init__()
        require(callable(score), what, type(score).__name__)
        self._like = first_floating(score)
        self.by_row: tuple[str, ...] = ()

    @abstractmethod
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Scores ``(batch, *event)`` at points of that shape and times ``(batch,)``."""

    def check(self, x: Tensor, t: Tensor) -> None:
        """Look, before a run from points x, at what can only be seen by calling; raise ``ValueError``."""

    def keep(self, name: str, value: Tensor, *, by_row: bool) -> None:
        """Keep what is given as a buffer, ``(rows, ...)`` where it is by row."""
        value = value.detach().clone()
        if self._like is not None:
            dtype = state_dtype(self._like.dtype) if value.is_floating_point() else value.dtype
            value = value.to(self._like.device, dtype)
        self.register_buffer(name, value)
        if by_row:
            require(len(value) > 0, f"at least one {name} where there is one for each chain", "none")
            self.by_row = (*self.by_row, name)
            num_conditions(self)

    def given(self, name: str, x: Tensor) -> Tensor:
        """What is kept under a name: ``(rows, ...)``, as many as there are points x, or one value for all."""
        value = self.get_buffer(name)
        if name in self.by_row and len(value) != len(x):
            hint = "; a score with one for each chain must be a module, or made of such, for its rows to be found"
            raise ValueError(f"expected {len(value)} chains or points, one for each {name} given, got {len(x)}{hint}")
        return value

    def keep_weight(self, name: str, value: float | Tensor, least: float) -> None:
        """Keep a weight of at least so much, a number or ``(chains,)``, as a buffer."""
        weight = torch.as_tensor(value, dtype=torch.get_default_dtype()) if _number(value) else value
        fits = isinstance(weight, Tensor) and weight.dim() <= 1 and weight.is_floating_point()
        require(fits, f"{name} as a number, or one for each chain", _shown(value))
        assert isinstance(weight, Tensor)
        good = bool(weight.isfinite().all()) and bool((weight >= least).all())
        require(good, f"a finite {name} >= {least:g}", _shown(value))
        self.keep(name, weight, by_row=weight.dim() == 1)


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _shown(value: object) -> object:
    return value if not isinstance(value, Tensor) else value.tolist() if value.numel() <= 6 else tuple(value.shape)


def first_floating(score: object) -> Tensor | None:
    """The first floating tensor of a module, whose dtype and device what it is given should have."""
    tensors = (*score.parameters(), *score.buffers()) if isinstance(score, nn.Module) else ()
    return next((t.detach() for t in tensors if t.is_floating_point()), None)


def num_conditions(score: object) -> int | None:
    """For how many rows a score is given something; None where that is the same for all.

    Raises:
        ValueError: where its parts have different numbers of rows.
    """
    counts = {len(value) for _, _, value in _by_row(score)}
    require(len(counts) <= 1, "as many rows of everything that is given by row", sorted(counts))
    return next(iter(counts), None)


@contextmanager
def choosing_rows(score: object, count: int) -> Iterator[Callable[[Tensor], None]]:
    """Let a score be one of ``count`` rows, which the callable that comes chooses, again and again, by their numbers.

    Rows are numbered modulo their number; what was given is there again at the end.
    """
    whole = list(_by_row(score))
    own = [value[torch.arange(count, device=value.device) % len(value)] for _, _, value in whole]

    def choose(rows: Tensor) -> None:
        for into, (_, _, value) in zip(own, whole, strict=True):
            into.copy_(value.index_select(0, rows.to(value.device) % len(value)))  # in place, for compiled ticks

    try:
        for (part, name, _), value in zip(whole, own, strict=True):
            part._buffers[name] = value
        yield choose
    finally:
        for part, name, value in whole:
            part._buffers[name] = value


@contextmanager
def chosen_rows(score: object, rows: Tensor) -> Iterator[None]:
    """Let a score be that of some of its rows, by their numbers; of all, where nothing is given by row."""
    with choosing_rows(score, len(rows)) as choose:
        choose(rows)
        yield


def check_conditions(score: object, x: Tensor, t: Tensor) -> None:
    """Every part's own look, see ``Conditional.check``."""
    for module in score.modules() if isinstance(score, nn.Module) else ():
        if isinstance(module, Conditional):
            module.check(x, t)


def _by_row(score: object) -> Iterator[tuple[Conditional, str, Tensor]]:
    for module in score.modules() if isinstance(score, nn.Module) else ():
        if isinstance(module, Conditional):
            yield from ((module, name, module.get_buffer(name)) for name in module.by_row)
