"""The gradient of an energy, traced once below Python: the same operations without autograd and the energy's own code."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from ebmppl.energies.base import Energy
from ebmppl.energies.fingerprint import fingerprint
from ebmppl.energies.function import same_energy
from ebmppl.energies.linalg import RowwiseLinalg
from ebmppl.energies.reads import Read, Reading, note, unchanged
from ebmppl.errors import SamplingWarning, one_line
from ebmppl.kernels.tracer import REAL_ZEROS, tracing_through

logger = logging.getLogger(__name__)
aten = torch.ops.aten

TRACING = threading.RLock()  # tracing and compiling change torch's global state
Run = Callable[[Tensor], tuple[Tensor, Tensor]]
_MOST_NUMBERS = 1 << 22  # of a constant
_NEW = {aten.ones_like.default: 1.0, aten.zeros_like.default: 0.0}
_ONLY_OF_THE_FORM = {  # take an input's shape, type and device, not its values
    *_NEW,
    *(op.default for op in (aten.new_zeros, aten.new_ones, aten.new_full, aten.full_like, aten.new_empty)),
}


class Trace(NamedTuple):
    """Of an energy's gradient at one shape."""

    run: Run | None  # None where the eager gradient is used
    reason: str | None  # why it is
    form: tuple[Any, ...]  # the fingerprint of the energy
    reads: list[Read]  # numbers that the trace holds

    def is_of(self, energy: Energy) -> bool:
        """Whether it is of the energy as it is now, as far as its values don't tell."""
        return self.form == fingerprint(energy) and unchanged(self.reads)


Traces = dict[tuple[Any, ...], Trace]  # by shape, dtype and device


class Gradient:
    """``value_and_grad`` of an energy, which ``prepare`` replaces by its trace for one shape.

    A trace holds the energy's parameters and buffers themselves, so that changes in place are seen. ``prepare``
    notices other ones, other modes (``train``, ``eval``) and attributes, and values that differ, and traces anew.

    Args:
        energy: over unconstrained points, or a discrete one at real points.
        elsewhere: gives other points of the same shape, at which a trace is tried, too.
    """

    def __init__(self, energy: Energy, elsewhere: Callable[[Tensor], Tensor] | None = None) -> None:
        self.energy = energy
        self._elsewhere = elsewhere or _other_rows
        self.traced: Traces = {}

    def __getstate__(self) -> dict[str, Any]:
        """Copies trace for themselves: a trace can't be pickled, and holds the tensors of this energy."""
        return {**vars(self), "traced": {}}

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Energies ``(chains,)`` and gradients ``(chains, *event)``."""
        traced = self.traced.get((x.shape, x.dtype, x.device))
        if traced is None or traced.run is None:
            return self.energy.value_and_grad(x)
        if traced.reads:
            note(traced.reads)
        return traced.run(x)

    def untraced(self, x: Tensor) -> str | None:
        """Why the eager gradient is used at points like these; None where there is a trace."""
        traced = self.traced.get((x.shape, x.dtype, x.device))
        return "the gradient was not traced" if traced is None else traced.reason

    def prepare(self, x: Tensor, *, values: bool = True, trace: bool = True) -> None:
        """Trace the gradient at points ``(chains, *event)``, or look whether the trace still holds.

        Args:
            x: points of the shape to come.
            values: compare values, too, not only the energy's form.
            trace: trace where there is none; a trace that no longer holds is renewed in any case.

        Warns:
            SamplingWarning: when it can't be traced, with the reason; the eager gradient is used then.
        """
        key = (x.shape, x.dtype, x.device)
        known = self.traced.get(key)
        if (known is None and not trace) or (known is not None and not values and known.is_of(self.energy)):
            return
        points = (x, self._elsewhere(x))
        eager = [self.energy.value_and_grad(point) for point in points]
        now = fingerprint(self.energy)
        if known is not None and known.is_of(self.energy) and (known.run is None or _agree(known.run, points, eager)):
            return
        run: Run | None = None
        reads: list[Read] = []
        reason: str | None = "the traced gradient differs from the eager one"
        try:
            with TRACING:
                traced, reads = _trace(self.energy.value_and_grad, x)
            if _agree(traced, points, eager):
                run, reason = traced, None
        except Exception as error:
            reason = one_line(error)
        self.traced[key] = Trace(run, reason, now, reads)
        if run is None:
            name = type(self.energy).__name__
            warnings.warn(f"the gradient of {name} runs untraced, slower: {reason}", SamplingWarning, stacklevel=2)


def _other_rows(x: Tensor) -> Tensor:
    return 0.9 * x.flip(0)  # the rows change places


def _agree(run: Run, points: tuple[Tensor, ...], eager: list[tuple[Tensor, Tensor]]) -> bool:
    found = [run(point) for point in points]
    return all(same_energy(a, b) for f, e in zip(found, eager, strict=True) for a, b in zip(f, e, strict=True))


def _trace(value_and_grad: Run, x: Tensor) -> tuple[Run, list[Read]]:
    reading = Reading()

    def read(points: Tensor) -> tuple[Tensor, Tensor]:
        with reading:
            return value_and_grad(points)

    with torch.no_grad(), RowwiseLinalg(), tracing_through():
        traced = make_fx(read, REAL_ZEROS)(x)
        _refuse_sizes_of_points(traced.graph)
        _fold(traced, x.device)
        _call_directly(traced, x)
    forward = traced.forward
    logger.debug("gradient traced: %d nodes", len(traced.graph.nodes))

    def run(points: Tensor) -> tuple[Tensor, Tensor]:
        if not torch.is_grad_enabled():
            return forward(points)
        with torch.no_grad():  # of the parameters
            return forward(points)

    return run, reading.reads()


def _fold(traced: fx.GraphModule, device: torch.device) -> None:
    """Take once what is the same in every call: what is made of ones and zeros alone, and views of captured tensors.

    Views share later changes in place. Ones and zeros go to ``device`` where the graph names none.
    """
    graph = traced.graph
    if any(isinstance(n.target, torch._ops.OpOverload) and n.target._schema.is_mutable for n in graph.nodes):
        return  # something is written into: these may be what it is written into
    constant: set[fx.Node] = set()
    for node in list(graph.nodes):
        if node.target is aten.detach.default or (node.target is aten.pow.Tensor_Scalar and node.args[1] == 1):
            node.replace_all_uses_with(node.args[0])  # there is no graph; x^1 is the derivative of x^2
            continue
        inputs = node.all_input_nodes
        ours = node.target in _NEW or (_is_pure(node) and bool(inputs) and constant.issuperset(inputs))
        if not ours and not (_is_view(node) and inputs[0].op == "get_attr"):
            continue
        if node.target in _NEW:
            meta = node.meta["tensor_meta"]
            where = node.kwargs.get("device") or device
            value = torch.full(meta.shape, _NEW[node.target], dtype=meta.dtype, device=where)
        else:
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: getattr(traced, str(n.target)))
            value = node.target(*args, **kwargs)
        if not isinstance(value, Tensor) or (ours and value.numel() > _MOST_NUMBERS):
            continue
        name = f"_folded{node.name}"
        traced.register_buffer(name, value, persistent=False)
        with graph.inserting_before(node):
            folded = graph.get_attr(name)
        node.replace_all_uses_with(folded)
        if ours:
            constant.add(folded)
    output = graph.output_node()
    for node in set(output.all_input_nodes):
        if _base(node).op in ("get_attr", "placeholder"):  # results are the caller's own
            with graph.inserting_before(output):
                output.replace_input_with(node, graph.call_function(aten.clone.default, (node,)))
    graph.eliminate_dead_code()


class _CallDirectly(fx.Interpreter):
    """Runs a graph and notes which calls torch's own bindings, 1 us faster than operators of ``torch.ops``, take."""

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__(traced)
        self.found: dict[fx.Node, Callable[..., Any]] = {}

    def run_node(self, n: fx.Node) -> Any:
        binding = _binding(n.target)
        if binding is not None:
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            try:
                value = binding(*args, **kwargs)
            except (TypeError, RuntimeError):
                pass
            else:
                self.found[n] = binding
                return value
        return super().run_node(n)


def _call_directly(traced: fx.GraphModule, x: Tensor) -> None:
    """Make calls cheap, and keep tensors where Python looks first."""
    calls = _CallDirectly(traced)
    calls.run(x)
    for node, binding in calls.found.items():
        node.target = binding
    for name in (*traced._parameters, *traced._buffers):
        vars(traced)[name] = getattr(traced, name)
    traced.recompile()


def _binding(target: object) -> Callable[..., Any] | None:
    """The function of the same name in torch, if there is one."""
    if not isinstance(target, torch._ops.OpOverload) or target.namespace != "aten":
        return None
    name = target._schema.name.removeprefix("aten::")
    homes = (torch, torch._C._nn, torch._C._linalg, Tensor)  # type: ignore[attr-defined]
    found = (getattr(home, name, None) for home in homes)
    return next((f for f in found if callable(f)), None)


def _base(node: fx.Node) -> fx.Node:
    """Whose memory a node's value lies in."""
    while _is_view(node):
        (node,) = node.all_input_nodes
    return node


def _refuse_sizes_of_points(graph: fx.Graph) -> None:
    """Refuse what would have another shape at other points, as ``x[x > 0]`` has; a trace has one shape."""
    of_points: set[fx.Node] = set()  # nodes whose values depend on the points
    for node in graph.nodes:
        if node.op == "placeholder":
            of_points.add(node)
        if node.target in _ONLY_OF_THE_FORM or of_points.isdisjoint(node.all_input_nodes):
            continue
        of_points.add(node)
        if not isinstance(node.target, torch._ops.OpOverload):
            continue
        if node.target._schema.is_mutable:
            of_points.add(_base(node.all_input_nodes[0]))
        if node.target is aten.index.Tensor:
            masks = [mask for mask in node.args[1] if mask in of_points]
            refused = any(mask.meta["tensor_meta"].dtype is torch.bool for mask in masks)
        else:
            refused = torch.Tag.dynamic_output_shape in node.target.tags
        if refused:
            raise ValueError(f"a size depends on the points ({node.target})")


def _is_pure(node: fx.Node) -> bool:
    """Whether the same inputs give the same value."""
    return isinstance(node.target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded not in node.target.tags


def _is_view(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target.is_view
