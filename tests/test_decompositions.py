"""Operations that compiled ticks compute in a way of their own: what torch gives, to rounding."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from ebmppl.sampling.decompositions import aten, decompositions, softplus, softplus_backward


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
