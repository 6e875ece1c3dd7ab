"""Elementary functions in line, in compiled float32: what float64 gives, to some units in the last place."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from ebmppl.sampling import cpp_unit
from ebmppl.sampling.compiler import compile_graph
from ebmppl.sampling.fast_math import FAST_MATH, in_line

FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {  # with units in the last place, as documented
    "exp": (torch.exp, 1.3),
    "log": (torch.log, 0.9),
    "log1p": (torch.log1p, 1.7),
}
SPECIAL = torch.tensor(
    [torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 1.0, -1.0, -2.0, 1e-45, 1e-38, 3e38, -3e38, 88.8, -87.5, -104.0, 0.5]
)


def everywhere(name: str) -> Tensor:
    """A million points over all that the function takes."""
    u = torch.rand(1 << 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    if name == "exp":
        return (174 * u - 87).float()
    positive = 10 ** (76 * u - 37.9)
    negative = torch.arange(len(u)) % 2 == (0 if name == "log1p" else 2)
    return torch.where(negative, -u * (1 - 2.0**-24), positive).float()


@pytest.fixture(scope="module", params=["small header", "torch's headers"])
def compiled(request: pytest.FixtureRequest) -> Callable[[str, Tensor], Tensor]:
    """All functions of one input in one graph."""
    small = request.param == "small header"
    names = list(FUNCTIONS)[:: 1 if small else -1]  # or the process knows the graph

    def run(x: Tensor) -> list[Tensor]:
        return [FUNCTIONS[name][0](x) for name in names]

    x = everywhere("exp")
    with pytest.MonkeyPatch.context() as patch:
        if not small:
            patch.setattr(cpp_unit, "suits", lambda _: False)
        found = compile_graph(make_fx(run)(x), [x])
    return lambda name, x: found([x])[names.index(name)]


def units(found: Tensor, exact: Tensor) -> Tensor:
    """By how many units in the last place numbers of float32 are wrong."""
    rounded = exact.float().abs()
    unit = (torch.nextafter(rounded, torch.full_like(rounded, torch.inf)) - rounded).double()
    return (found.double() - exact).abs() / unit


@pytest.mark.parametrize("name", FUNCTIONS)
def test_within_some_units_in_the_last_place(name: str, compiled: Callable[[str, Tensor], Tensor]) -> None:
    function, most = FUNCTIONS[name]
    x = everywhere(name)
    assert float(units(compiled(name, x), function(x.double())).max()) < most
    assert not torch.equal(compiled(name, x), function(x))  # or it is the library's


def test_log1p_between_0_and_1(compiled: Callable[[str, Tensor], Tensor]) -> None:
    """There it has a polynomial of its own."""
    u = torch.rand(1 << 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = torch.where(u < 0.5, 2 * u, 10 ** (-76 * (u - 0.5))).float()
    x[:3] = torch.tensor([0.0, 1.0, 2.0**-126])
    found, exact = compiled("log1p", x), x.double().log1p()
    assert 0.9 < float(units(found, exact).max()) < 1.7
    x = torch.where(x < 1, x + 1.0001, x)
    assert float(units(compiled("log1p", x), x.double().log1p()).max()) < 0.9


@pytest.mark.parametrize("other", [2.0, 100.0, 1e-40, -1.0, torch.inf, torch.nan])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_bit_depends_on_the_others_of_a_vector(
    name: str, other: float, compiled: Callable[[str, Tensor], Tensor]
) -> None:
    """Or chains would see one another, where one diverges."""
    u = torch.rand(1 << 20, generator=torch.Generator().manual_seed(0))
    found = compiled(name, u)
    beside = compiled(name, torch.where(torch.arange(len(u)) % 8 == 3, other, u))
    assert torch.equal(found.view(-1, 8)[:, [0, 1, 2, 4, 5, 6, 7]], beside.view(-1, 8)[:, [0, 1, 2, 4, 5, 6, 7]])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_out_of_reach_is_the_librarys(name: str, compiled: Callable[[str, Tensor], Tensor]) -> None:
    """Overflow, infinities, NaN, subnormal numbers; equal to rounding beside them."""
    function, _ = FUNCTIONS[name]
    x = SPECIAL.repeat(1 << 16)
    torch.testing.assert_close(compiled(name, x), function(x), equal_nan=True, rtol=1e-6, atol=1e-44)


def test_only_calls_of_numbers_are_replaced() -> None:
    assert in_line("auto tmp5 = tmp4.log1p(); x.exp(); tmp1.expm1(); std::exp(tmp2);") == (
        "auto tmp5 = fast::log1p(tmp4); x.exp(); tmp1.expm1(); std::exp(tmp2);"
    )
    assert "fast::" not in FAST_MATH.replace("namespace fast", "")
