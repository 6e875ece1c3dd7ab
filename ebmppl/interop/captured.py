"""Whether a function depends on tensors that gradients are asked for: one that its caller gives no gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch._functorch.eager_transforms import enable_inplace_requires_grad
from torch.autograd.graph import Node

from ebmppl.arguments import require


def require_no_latents(fn: Callable[[], Tensor], own: Iterable[Tensor], what: str) -> None:
    """Refuse what comes out of a graph that was there before the call; parameters are none.

    What two calls share was there before them: a function may differentiate inside, by leaves of its own. One that does so more
    than once by ``requires_grad_()`` isn't looked into under ``torch.func``.

    Args:
        fn: called once, and once more where what it gives requires grad.
        own: its parameters, beside those of type ``nn.Parameter``.
        what: is refused.

    Raises:
        ValueError: for a function of a tensor that requires grad, or that ``torch.func`` differentiates by.
    """
    first = _called(fn)
    nodes = _nodes(first)
    second = _called(fn) if nodes else first
    before = nodes & _nodes(second)
    parameters = {id(p) for p in own} if before else set()
    require(
        all(_is_parameter(node, parameters) for node in before),
        f"{what} without latents of the model, for no gradient would reach them",
        "one that depends on a tensor that requires grad; draw such sites after this one, or detach() what is constant",
    )


def _nodes(value: object) -> set[Node]:
    """Of the graphs of a tensor, at every level of functorch's."""
    found: set[Node] = set()
    while isinstance(value, Tensor):
        ahead: list[Node | None] = [torch.autograd.graph.get_gradient_edge(value).node] if value.requires_grad else []
        while ahead:
            node = ahead.pop()
            if node is not None and node not in found:
                found.add(node)
                ahead += [after for after, _ in node.next_functions]
        wrapped = torch._C._functorch.is_functorch_wrapped_tensor(value)
        value = torch._C._functorch.get_unwrapped(value) if wrapped else None
    return found


def _is_parameter(node: Node, own: set[int]) -> bool:
    leaf = getattr(node, "variable", None) if node.name().endswith("AccumulateGrad") else None
    return isinstance(leaf, nn.Parameter) or id(leaf) in own


def _called(fn: Callable[[], Tensor]) -> Tensor | None:
    """What it gives; None where that can't be known.

    A function that differentiates inside by ``requires_grad_()`` may do so once under a transform of functorch's: torch forgets
    the permission with the first gradient.
    """
    if torch._C._functorch.peek_interpreter_stack() is None:
        return fn()
    try:
        with enable_inplace_requires_grad(True):  # noqa: FBT003
            return fn()
    except RuntimeError as error:
        if "requires_grad_()" not in str(error):
            raise
        return None
