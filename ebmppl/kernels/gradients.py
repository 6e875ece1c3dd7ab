"""The gradient of an energy, traced once below Python: the same operations without autograd and the energy's own code."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from ebmppl.energies.base import Energy
from ebmppl.energies.function import same_energy
from ebmppl.errors import SamplingWarning

logger = logging.getLogger(__name__)
aten = torch.ops.aten

Run = Callable[[Tensor], tuple[Tensor, Tensor]]
_NEW = {aten.ones_like.default: 1.0, aten.zeros_like.default: 0.0}


class _Traced(NamedTuple):
    run: Run | None  # None where the eager gradient is used
    form: tuple[Any, ...]  # of the energy, see below


class Gradient:
    """``value_and_grad`` of an energy, which ``prepare`` replaces by its trace for one shape.

    A trace holds the energy's parameters and buffers themselves, so that changes in place are seen. ``prepare``
    notices other ones, other modes (``train``, ``eval``) and attributes, and values that differ, and traces anew.

    Args:
        energy: over unconstrained points.
    """

    def __init__(self, energy: Energy) -> None:
        self.energy = energy
        self._traced: dict[tuple[Any, ...], _Traced] = {}

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Energies ``(chains,)`` and gradients ``(chains, *event)``."""
        traced = self._traced.get((x.shape, x.dtype, x.device))
        if traced is None or traced.run is None:
            return self.energy.value_and_grad(x)
        return traced.run(x)

    def prepare(self, x: Tensor, *, values: bool = True) -> None:
        """Trace the gradient at points ``(chains, *event)``, or look whether the trace still holds.

        Args:
            x: points of the shape to come.
            values: compare values, too, not only the energy's form.

        Warns:
            SamplingWarning: when it can't be traced, with the reason; the eager gradient is used then.
        """
        key = (x.shape, x.dtype, x.device)
        known = self._traced.get(key)
        if known is not None and not values and known.form == _form(self.energy):
            return
        points = (x, 0.9 * x.flip(0))  # the rows change places
        eager = [self.energy.value_and_grad(point) for point in points]
        form = _form(self.energy)
        if known is not None and known.form == form and (known.run is None or _agree(known.run, points, eager)):
            return
        run, reason = _trace(self.energy.value_and_grad, x)
        if run is not None and not _agree(run, points, eager):
            run, reason = None, "the traced gradient differs from the eager one"
        self._traced[key] = _Traced(run, form)
        if run is None:
            name = type(self.energy).__name__
            warnings.warn(f"the gradient of {name} runs untraced, slower: {reason}", SamplingWarning, stacklevel=2)


def _agree(run: Run, points: tuple[Tensor, ...], eager: list[tuple[Tensor, Tensor]]) -> bool:
    found = [run(point) for point in points]
    return all(same_energy(a, b) for f, e in zip(found, eager, strict=True) for a, b in zip(f, e, strict=True))


def _form(energy: Energy) -> tuple[Any, ...]:
    """What a trace takes for granted of a module: which tensors, modes and plain attributes it has."""
    tensors = [(id(t), t.data_ptr(), t.dtype) for t in (*energy.parameters(), *energy.buffers())]
    plain = [
        (name, value)
        for module in energy.modules()
        for name, value in vars(module).items()
        if isinstance(value, (bool, int, float, str, type(None)))
    ]
    return (*tensors, *plain)


def _trace(value_and_grad: Run, x: Tensor) -> tuple[Run | None, str]:
    """The traced gradient, or None and the reason why there is none."""
    try:
        with torch.no_grad():
            traced = make_fx(lambda points: value_and_grad(points))(x)
    except Exception as error:
        return None, f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
    logger.debug("gradient traced: %d nodes", len(traced.graph.nodes))
    _fold(traced)
    return _without_grad(traced.forward), ""


def _without_grad(run: Run) -> Run:
    @torch.no_grad()  # of the parameters
    def traced(x: Tensor) -> tuple[Tensor, Tensor]:
        return run(x)

    return traced


def _fold(traced: fx.GraphModule) -> None:
    """Take views of captured tensors, and tensors of ones and zeros, once; views share later changes in place."""
    graph = traced.graph
    if any(isinstance(n.target, torch._ops.OpOverload) and n.target._schema.is_mutable for n in graph.nodes):
        return  # something is written into: these may be what it is written into
    for node in list(graph.nodes):
        if node.target is aten.detach.default and node.args[0].op == "placeholder":
            node.replace_all_uses_with(node.args[0])
            continue
        if node.target in _NEW:
            meta = node.meta["tensor_meta"]
            value = torch.full(meta.shape, _NEW[node.target], dtype=meta.dtype, device=node.kwargs.get("device"))
        elif _is_view(node) and node.args[0].op == "get_attr":
            value = node.target(getattr(traced, node.args[0].target), *node.args[1:], **node.kwargs)
        else:
            continue
        name = f"_folded{node.name}"
        traced.register_buffer(name, value, persistent=False)
        with graph.inserting_before(node):
            node.replace_all_uses_with(graph.get_attr(name))
    output = graph.output_node()
    for node in set(output.all_input_nodes):
        if _base(node).op in ("get_attr", "placeholder"):  # results are the caller's own
            with graph.inserting_before(output):
                output.replace_input_with(node, graph.call_function(aten.clone.default, (node,)))
    graph.eliminate_dead_code()
    traced.recompile()


def _base(node: fx.Node) -> fx.Node:
    """Whose memory a node's value lies in."""
    while _is_view(node):
        (node,) = node.all_input_nodes
    return node


def _is_view(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target.is_view
