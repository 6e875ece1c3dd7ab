"""The small header: kernels compiled with it give what torch gives, special values included, and others don't get it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._inductor import config, cpu_vec_isa
from torch._inductor.decomposition import select_decomp_table
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from ebmppl.sampling import compiler, cpp_unit
from ebmppl.sampling.compiler import compile_graph
from ebmppl.sampling.cpp_unit import lanes_for
from ebmppl.sampling.vectors import in_small, suits, vectors

pytestmark = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"),
    reason="the small header is for processors with AVX2 or AVX-512",
)
SPECIAL = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 1.0, -1.0, 2.0, -2.5, 0.5, 1.5, 88.0, 1e-30])


def everything(x: Tensor, y: Tensor, i: Tensor, j: Tensor, b: Tensor, table: Tensor) -> list[Tensor]:
    """All that the header has, of numbers, integers and truth values ``(rows, size)``, and a table of 50."""
    positive = x.abs()
    numbers = [
        x + y, x - y, x * y, x / y, -x, x.neg() * 2, positive, x.sqrt(), positive.sqrt(), x.rsqrt(), x.reciprocal(),
        x.exp(), x.expm1(), x.log(), positive.log(), x.log1p(), x.tanh(), x.sin(), x.cos(), x.floor(), x.ceil(), x.round(),
        x.pow(y), torch.minimum(x, y), torch.maximum(x, y), x.clamp(-1.0, 1.5), x.clamp_min(0.0), x.clamp_max(0.5),
        torch.where(b, x, y), torch.where(i < j, x, y), i.float(), b.float(), x.sigmoid(), x.erf(), torch.full_like(x, -0.0) * b,
    ]  # fmt: skip
    truths = [
        x < y, x <= y, x > y, x >= y, x == y, x != y, i < j, i == j, i >= j, b & (x < y), b | (x < y), b ^ (x < y), ~b,
        b > (x < y), b == (x < y), x.isnan(), b.logical_not(), (x < y).logical_and(b), b.any(1), (x > 9).any(1),
    ]  # fmt: skip
    integers = [
        i + j,
        i - j,
        i * j,
        i & j,
        i | j,
        i ^ j,
        i << 2,
        torch.where(b, i, j),
        b.long(),
        i.abs(),
        (i - j).abs(),
        (i - j).clamp_min(3),
    ]
    column = torch.arange(x.shape[1])
    parts = [
        torch.constant_pad_nd(x[:, 3:], (3, 0)),  # as the gradient of a slice: loads through a mask
        torch.where(column < 11, x, y),
        torch.where(column.int() * 3 > i, x, y),
    ]
    finite = torch.where(x.isfinite(), x, 0.5)
    reduced = [finite.sum(1), (finite * y).sum(1), finite.amax(1), finite.amin(1), finite.sum(), table[i].sum(1)]
    return [*numbers, *truths, *integers, *parts, *reduced, table[i]]


def points(rows: int, size: int) -> list[Tensor]:
    """Inputs of ``everything``."""
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, size, generator=generator) * 3
    y = torch.randn(rows, size, generator=generator)
    x[:, : len(SPECIAL)] = x[:, -len(SPECIAL) :] = SPECIAL
    y[:, :3] = y[:, -3:] = torch.tensor([1.0, torch.nan, -torch.inf])
    i, j = (torch.randint(0, 50, (rows, size), generator=generator) for _ in range(2))
    return [x, y, i, j, y > 0, torch.randn(50, generator=generator)]


def traced(run: Callable[..., list[Tensor]], *inputs: Tensor) -> GraphModule:
    """The graph that Inductor is given of a tick."""
    return make_fx(run, select_decomp_table())(*inputs)


@pytest.mark.parametrize("lanes", [8, 16])
def test_kernels_give_what_torch_gives(lanes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In vectors and in the rest of a row; with torch's headers spoilt, so that what is compiled is the small one's."""
    if lanes == 16 and torch.backends.cpu.get_cpu_capability() != "AVX512":
        pytest.skip("this processor has no vectors of sixteen numbers")
    monkeypatch.setattr(compiler, "lanes_for", lambda inputs: lanes)
    monkeypatch.setattr(cpp_unit, "TORCHS", "#error not to be compiled\n")
    inputs = points(3, 29)
    wanted = everything(*inputs)
    run = compile_graph(traced(everything, *inputs), inputs)
    for number, (found, expected) in enumerate(zip(run(list(inputs)), wanted, strict=True)):
        torch.testing.assert_close(
            found, expected, equal_nan=True, rtol=2e-6, atol=2e-6, msg=lambda text, n=number: f"output {n}: {text}"
        )


def test_pieces_are_begun_while_the_rest_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """All before Inductor's wrapper asks for the first kernel; they give what one piece gives, bit for bit."""

    def tick(x: Tensor, y: Tensor) -> list[Tensor]:
        return [(x.exp() @ y.T).tanh(), x.sum(0), y.amax(1).log1p(), x.t().clone()]

    begun: list[str] = []
    begun_when_asked: list[int] = []
    ahead, add = compiler.load_ahead, cpp_unit.Unit.add
    monkeypatch.setattr(compiler, "load_ahead", lambda source: (begun.append(source), ahead(source))[1])
    monkeypatch.setattr(cpp_unit.Unit, "add", lambda *a: (begun_when_asked.append(len(begun)), add(*a))[1])
    monkeypatch.setattr(cpp_unit, "TORCHS", "#error not to be compiled\n")
    inputs = points(3, 29)[:2]
    found = []
    for most in (1 << 30, 1):
        monkeypatch.setattr(cpp_unit, "_PIECE", most)
        monkeypatch.setattr(compiler, "_LINES", most)
        assert not begun
        with config.patch(force_disable_caches=True):
            run = compile_graph(traced(tick, *inputs), inputs)
        found.append(run(list(inputs)))
    assert len(begun) == len(begun_when_asked) - 2 > 2  # two are the first graph's
    assert set(begun_when_asked) == {0, len(begun)}
    assert not {source for _, source in compiler._ahead} & set(begun)  # all were taken
    assert all(torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0)) for a, b in zip(*found, strict=True))


def test_what_another_processor_left_on_disk_is_of_the_same_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache may be many machines' own: C++ of sixteen lanes that was found by one of eight never came to its end."""
    of_key = []  # options are part of a graph's key on disk
    for capability in ("AVX512", "AVX2"):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda known=capability: known)
        of_key.append(compiler._options(lanes_for([torch.zeros(48)]))["cpp.simdlen"])
    assert of_key == [512, 256]


@pytest.mark.parametrize(
    ("capability", "sizes", "lanes"),
    [
        ("AVX512", [10, 30, 44], 8),
        ("AVX512", [25], 8),
        ("AVX512", [48], 16),
        ("AVX512", [1000, 10], 16),
        ("AVX512", [], 8),
        ("AVX2", [48], 8),
        ("DEFAULT", [48], 0),
    ],
)
def test_rows_that_leave_little_over_get_wide_vectors(
    capability: str, sizes: list[int], lanes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    counts = torch.zeros(1000, 48, dtype=torch.int64)
    assert lanes_for([*(torch.zeros(32, size) for size in sizes), counts, torch.tensor(1.0)]) == lanes


def test_no_program_is_compiled_to_find_out_about_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    monkeypatch.setattr(cpu_vec_isa.VecISA, "check_build", lambda self, code: bool(looked.append(code)))
    cpu_vec_isa.valid_vec_isa_list.cache_clear()
    x = torch.linspace(1.0, 3.0, 41)
    with config.patch(force_disable_caches=True):
        compile_graph(traced(lambda x: [x * 3.25], x), [x])
    assert not looked


def test_other_kernels_get_torchs_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpp_unit, "vectors", lambda lanes: ("#error not to be compiled\n", []))
    x = torch.linspace(1.0, 3.0, 40)
    run = compile_graph(traced(lambda x: [x.lgamma()], x), [x])
    torch.testing.assert_close(run([x])[0], x.lgamma(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("auto tmp1 = tmp0.exp(); out_ptr0[static_cast<int64_t>(x0)] = std::exp(tmp2_tail);", True),
        ("tmp0.lgamma()", False),
        ("at::vec::VectorizedN<double,2>(tmp0)", False),
        ("floor_divide_integral(tmp0, tmp1)", False),
        ("std::lgamma(tmp0)", False),
        ('TORCH_CHECK(tmp0, "lgamma of something"); // lgamma', True),
    ],
)
def test_what_is_known(text: str, known: bool) -> None:
    assert suits(f"namespace kernel0_ {{ static void kernel(float* out_ptr0) {{ {text} }} }}") == known


def test_nothing_of_the_standard_library_is_left() -> None:
    assert in_small("std::exp(x0)") == "small::exp(x0)"
    assert "std::" not in vectors(8)[0]
