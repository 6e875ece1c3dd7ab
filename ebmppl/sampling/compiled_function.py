"""Functions of tensors compiled for one form, kept in the process, and tried against themselves before they are trusted."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ebmppl.energies.fingerprint import fingerprint, same
from ebmppl.energies.function import same_energy
from ebmppl.kernels.gradients import TRACING
from ebmppl.sampling.engines import Engine, Refused, compile_traced
from ebmppl.sampling.program import make_graph
from ebmppl.sampling.scopes import threads

_KEPT = 8  # functions, with the tensors that they hold
Function = Callable[..., Tensor]


class _Known(NamedTuple):
    """What a function was compiled to."""

    fingerprint: tuple[Any, ...]
    constants: list[Tensor]
    engine: Engine

    def call(self, *inputs: Tensor) -> Tensor:
        """What the function gives."""
        (output,) = self.engine.run([*inputs, *self.constants])
        return output


_known: OrderedDict[Hashable, _Known] = OrderedDict()


def compiled_function(fn: Function, inputs: Sequence[Tensor], name: str, of: Sequence[object]) -> Function:
    """Compile a function without gradients for inputs of these forms, or find it compiled.

    The tensors that it holds are inputs of the compiled one, so that changes in place are seen. What was compiled is compared
    with the function itself at these inputs in every call, and made anew where it differs or is of other objects.

    Args:
        fn: from tensors to one tensor.
        inputs: as it will be given, no two of them the same tensor, contiguous.
        name: of the function, among those of the same objects.
        of: objects that it is made of, see ``fingerprint``.

    Raises:
        Refused: with the reason why it can't be compiled.
    """
    shapes = tuple((t.shape, t.stride(), t.dtype, t.device) for t in inputs)
    key, now = (name, *map(same, of), shapes, torch.get_num_threads()), fingerprint(list(of))
    with torch.no_grad(), TRACING:
        wanted = fn(*inputs)
        known = _known.get(key)
        if known is None or known.fingerprint != now or not same_energy(known.call(*inputs), wanted):
            known = _known[key] = _Known(now, *_compile(fn, inputs, shapes))
            if not same_energy(known.call(*inputs), wanted):
                del _known[key]
                raise Refused("the compiled function differs from the eager one")
        _known.move_to_end(key)
        while len(_known) > _KEPT:
            _known.popitem(last=False)
    return known.call


def _compile(fn: Function, inputs: Sequence[Tensor], shapes: Hashable) -> tuple[list[Tensor], Engine]:
    try:
        traced = make_graph(lambda *tensors: [fn(*tensors)], inputs, lambda: ())
    except Exception as error:  # the user's code may raise anything
        raise Refused(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}") from error
    engine = compile_traced(traced, [*inputs, *traced.constants], shapes, threads(traced.work))
    return traced.constants, engine
