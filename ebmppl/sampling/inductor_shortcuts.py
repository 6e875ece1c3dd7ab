"""What Inductor need not do for graphs of ticks: left out, or done once, or when it is asked for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

_REVISION = 4  # of what is done to graphs: what an earlier one left in the disk cache is not found
_RELEASE = re.compile(r"\d+\.\d+\.\d+(\+\w+)?")


@contextmanager
def quicker(lanes: int) -> Iterator[None]:
    """Within it Inductor takes a third less time for the same C++, of so many numbers in a vector (0: as it finds)."""
    with _rules_once(), _strides_at_once(), _loops_once(), _values_once(), _release_as_key(), _processor_known(lanes):
        yield


def fake_mode(graph: fx.GraphModule) -> FakeTensorMode:
    """The mode of the values that a graph was traced with; a new one where they have several, or none."""
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    modes = {id(mode): mode for node in graph.graph.nodes if (mode := _mode_of(node)) is not None}
    known = next(iter(modes.values())) if len(modes) == 1 else None
    if known is not None and known.shape_env is not None:
        return known
    return FakeTensorMode(shape_env=ShapeEnv())  # without an environment Inductor's disk cache steps aside


def _mode_of(node: fx.Node) -> FakeTensorMode | None:
    value = node.meta.get("val")
    first = value[0] if isinstance(value, (list, tuple)) and value else value
    return first.fake_mode if isinstance(first, FakeTensor) else None


@contextmanager
def _processor_known(lanes: int) -> Iterator[None]:
    """Inductor compiles three programs to find out what AVX-512 the processor has, 1.4 s; torch has looked."""
    try:
        from torch._inductor import cpu_vec_isa
    except ImportError:
        yield
        return
    kind = {8: "VecAVX2", 16: "VecAVX512"}.get(lanes, "")
    made, name = getattr(cpu_vec_isa, kind, None), "valid_vec_isa_list"
    if made is None or not hasattr(cpu_vec_isa, name):
        yield
        return
    with patch.object(cpu_vec_isa, name, lambda: [made()]), patch.object(made, "__bool__", lambda _: True):
        yield


@contextmanager
def _loops_once() -> Iterator[None]:
    """Inductor writes loops over rows in one, sees that they don't fit, and writes them anew: an eighth of its time."""
    try:
        from torch._inductor.codegen.cpp import CppScheduling
    except ImportError:
        yield
        return
    name = "can_fuse_vertical_outer_loop"
    with patch.object(CppScheduling, name, lambda *_: False) if hasattr(CppScheduling, name) else nullcontext():
        yield


@contextmanager
def _rules_once() -> Iterator[None]:
    """Inductor makes its rules of dtypes anew for every operation, a tenth of its time, and they are the same."""
    try:
        from torch._inductor.codegen.common import pointwise_overrides_data
        from torch._inductor.dtype_propagation import DtypePropagationOpsHandler
        from torch._inductor.utils import op_dtype_propagation_rules
    except ImportError:
        yield
        return
    make, known = DtypePropagationOpsHandler.__init__, (0, 0)

    def make_if_new(self: Any) -> None:
        nonlocal known
        there = len(op_dtype_propagation_rules), len(pointwise_overrides_data)
        if there != known:
            make(self)
            known = there

    with patch.object(DtypePropagationOpsHandler, "__init__", make_if_new):
        yield


@contextmanager
def _strides_at_once() -> Iterator[None]:
    """Inductor lets SymPy simplify indices before it asks for strides, a sixth of its time; only divisions need that."""
    try:
        from sympy import Expr, S  # type: ignore[import-untyped]
        from torch._inductor import sizevars
        from torch.utils._sympy.functions import FloorDiv, ModularIndexing
    except ImportError:
        yield
        return
    simplify = getattr(sizevars, "simplify_index_in_vec_range", None)
    stride = getattr(sizevars, "stride_at", None)
    if not callable(simplify) or not callable(stride):
        yield
        return

    def if_it_divides(index: Any, *args: Any) -> Any:
        return simplify(index, *args) if index.has(FloorDiv, ModularIndexing) else index

    def of_a_sum(index: Any, variable: Any) -> Any:
        """Of multiples of variables: the factor of this one."""
        terms = index.as_coefficients_dict() if isinstance(index, Expr) else {}
        if not terms or not all(term == 1 or term.is_Symbol for term in terms):
            return stride(index, variable)
        return terms.get(variable, S.Zero)

    with (
        patch.object(sizevars, "simplify_index_in_vec_range", if_it_divides),
        patch.object(sizevars, "stride_at", of_a_sum),
    ):
        yield


@contextmanager
def _values_once() -> Iterator[None]:
    """Inductor finds shapes and strides of all values anew, a seventh of its time; only which are one memory is not known."""
    try:
        from torch._inductor import compile_fx
        from torch.fx.passes.fake_tensor_prop import FakeTensorProp
    except ImportError:
        yield
        return

    class OfViews(FakeTensorProp):
        def run_node(self, n: fx.Node) -> Any:
            """The value of a node."""
            value = n.meta.get("val")
            known = isinstance(value, FakeTensor) and value.fake_mode is self._mode and _is_new(n.target)
            return value if known else super().run_node(n)

    with (
        patch.object(compile_fx, "FakeTensorProp", OfViews) if hasattr(compile_fx, "FakeTensorProp") else nullcontext()
    ):
        yield


def _is_new(target: object) -> bool:
    """Whether an operation's result is memory of its own."""
    if not isinstance(target, torch._ops.OpOverload) or target is torch.ops.aten._unsafe_view.default:
        return False
    return all(result.alias_info is None for result in target._schema.returns)


@contextmanager
def _release_as_key() -> Iterator[None]:
    """Inductor's disk cache knows torch by a hash of all its sources, thousands of files; a release is known by its name."""
    from torch._inductor import codecache

    find = getattr(codecache, "torch_key", None)
    release = torch.version.git_version if _RELEASE.fullmatch(torch.__version__) else None
    if not callable(find) or not release:
        yield
        return
    with patch.object(codecache, "torch_key", lambda: f"{torch.__version__} {release} {_REVISION}".encode()):
        yield
