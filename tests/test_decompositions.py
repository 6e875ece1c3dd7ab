"""Operations that compiled ticks compute in a way of their own: what torch gives, to rounding."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from ebmppl.sampling.decompositions import (
    aten,
    decompositions,
    mm,
    sigmoid,
    silu,
    silu_backward,
    softplus,
    softplus_backward,
)


def points(dtype: torch.dtype) -> Tensor:
    special = torch.tensor([0.0, -0.0, 17.0, 20.0, 20.0001, 1e30, -1e30, torch.inf, -torch.inf, torch.nan])
    return torch.cat([torch.linspace(-120, 60, 100_001), special]).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("beta", "threshold"), [(1.0, 20.0), (2.5, 20.0), (1.0, 3.0), (0.5, 17.0)])
def test_softplus_and_its_gradient_are_torchs(beta: float, threshold: float, dtype: torch.dtype) -> None:
    x = points(dtype)
    grad = torch.full_like(x, -3.0)
    eps = torch.finfo(dtype).eps  # four roundings each; far left torch's own numbers are subnormal
    close = partial(torch.testing.assert_close, rtol=4 * eps, atol=torch.finfo(dtype).tiny, equal_nan=True)
    close(softplus(x, beta, threshold), aten.softplus(x, beta, threshold))
    wanted = aten.softplus_backward(grad, x, beta, threshold)
    finite = x.isfinite()  # torch's formula is inf / inf in float32 where exp(x) overflows under a high threshold
    close(softplus_backward(grad, x, beta, threshold)[finite], wanted[finite])
    inf = torch.tensor([torch.inf, -torch.inf], dtype=dtype)
    assert softplus_backward(torch.ones(2, dtype=dtype), inf, beta, threshold).tolist() == [1.0, 0.0]


def test_a_traced_softplus_shares_its_exponential_with_its_gradient() -> None:
    """And takes the logarithm of small numbers only."""

    def both(x: Tensor) -> list[Tensor]:
        return [aten.softplus(x), aten.softplus_backward(torch.ones_like(x), x, 1.0, 20.0)]

    graph = make_fx(both, decompositions())(torch.zeros(3)).graph
    arguments = {node.args for node in graph.nodes if node.target is aten.exp.default}
    negated = [node for (node,) in arguments]
    assert all(node.target is aten.neg.default for node in negated)
    assert len({node.args[0].args for node in negated}) == 1  # of the same number
    assert not any(node.target in (aten.softplus.default, aten.softplus_backward.default) for node in graph.nodes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sigmoid_and_silu_with_its_gradient_are_torchs(dtype: torch.dtype) -> None:
    x = points(dtype)
    x = x[x.abs() < 1e30]  # torch's own silu of minus infinity is NaN
    grad = torch.full_like(x, -3.0)
    eps = torch.finfo(dtype).eps  # x (1 - sigmoid) + 1 cancels near x = -1.3: eps there, not relative to the sum
    close = partial(torch.testing.assert_close, rtol=4 * eps, atol=8 * eps)
    close(sigmoid(x), aten.sigmoid(x))
    close(silu(x), aten.silu(x))
    close(silu_backward(grad, x), aten.silu_backward(grad, x))
    far = torch.tensor([torch.inf, -torch.inf, torch.nan], dtype=dtype)
    assert sigmoid(far).nan_to_num(-1.0).tolist() == [1.0, 0.0, -1.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64, torch.bool])
def test_sigmoid_and_silu_of_other_types_are_torchs(dtype: torch.dtype) -> None:
    x = torch.linspace(-6, 6, 101).to(dtype)
    assert torch.equal(sigmoid(x), aten.sigmoid(x))  # computed in float32, rounded once
    if dtype.is_floating_point:
        assert torch.equal(silu(x), aten.silu(x))
        assert torch.equal(silu_backward(x, x), aten.silu_backward(x, x))


def test_a_traced_silu_shares_one_exponential_with_its_gradient() -> None:
    """In line: of Inductor's own sigmoid it would be the library's, twice as slow, and a second one."""

    def both(x: Tensor) -> list[Tensor]:
        return [aten.silu(x), aten.silu_backward(torch.ones_like(x), x), aten.sigmoid(x)]

    graph = make_fx(both, decompositions())(torch.zeros(3)).graph
    negated = [node.args[0] for node in graph.nodes if node.target is aten.exp.default]
    assert len({node.args[0] for node in negated}) == 1
    assert not any(node.target in (aten.silu.default, aten.sigmoid.default) for node in graph.nodes)


@pytest.mark.parametrize(("columns", "turned"), [(1, False), (2, True), (15, True), (16, False)])
def test_a_traced_product_takes_few_columns_one_by_one(columns: int, turned: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(256, 256, generator=generator), torch.randn(256, columns, generator=generator)
    traced = make_fx(lambda a, b: a @ b, decompositions())(a, b)
    assert any(node.target is aten.clone.default for node in traced.graph.nodes) == turned
    # a sum of 256 products in another order: rounding of about 1e-7 times sqrt(256), times some standard deviations
    torch.testing.assert_close(traced(a, b), a @ b, rtol=1e-5, atol=2e-5)
    assert mm(a, b.t().contiguous().t()) is NotImplemented  # as it is already
    assert mm(a.double(), b.double()) is NotImplemented  # not measured
