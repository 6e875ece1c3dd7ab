"""Numbers that code takes out of tensors while it is traced (``float(t)``, ``t.item()``): constants of the trace."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_TAKE = frozenset(
    ("item", "tolist", "numpy", "__array__", "__bool__", "__float__", "__int__", "__index__", "__complex__")
)
_open: list[Reading] = []


class Read(NamedTuple):
    """A tensor whose numbers a trace holds, and what they were."""

    tensor: Tensor
    version: int | None
    values: Tensor


class Reading(TorchFunctionMode):
    """Within it is noted whose numbers are taken."""

    def __init__(self) -> None:
        super().__init__()
        self._tensors: dict[int, Tensor] = {}
        self._more: list[Read] = []

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        answer = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") in _TAKE and isinstance(args[0], Tensor):
            self._tensors[id(args[0])] = args[0]
        return answer

    def __enter__(self) -> Reading:
        _open.append(self)
        super().__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        _open.remove(self)
        super().__exit__(*error)

    def reads(self) -> list[Read]:
        """What was taken; to be asked for when nothing is traced any more."""
        return [read(t) for t in self._tensors.values()] + self._more


@torch.no_grad()
def read(tensor: Tensor) -> Read:
    """A tensor as it is now."""
    return Read(tensor, _version(tensor), tensor.detach().clone())


def note(reads: Sequence[Read]) -> None:
    """What is called here is a trace that holds these."""
    for reading in _open:
        reading._more.extend(reads)


def unchanged(reads: Sequence[Read]) -> bool:
    """Whether these tensors have the numbers that were taken."""
    return all(
        (read.version is not None and _version(read.tensor) == read.version) or torch.equal(read.tensor, read.values)
        for read in reads
    )


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version
