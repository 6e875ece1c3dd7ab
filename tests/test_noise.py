"""The noise of a run is a function of (seed, name, tick, block of chains), whatever was asked for before."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from ebmppl.kernels.base import NoiseSpec
from ebmppl.kernels.pooling import BLOCK
from ebmppl.sampling import hashed, noise
from ebmppl.sampling.compiler import CompileError
from ebmppl.sampling.noise import NoiseSource, block_seeds

CPU = torch.device("cpu")
SPECS = {
    "few": NoiseSpec("normal", ()),
    "many": NoiseSpec("uniform", (100,)),  # a row is a call of its own
    "some": NoiseSpec("normal", (5, 2)),
    "hashed": NoiseSpec("normal", (8, 9)),
    "kept": NoiseSpec("normal", (8, 9), held=4),
}


def source(chains: int = 130, seed: int = 3, stream: str = "ticks") -> NoiseSource:
    return NoiseSource(SPECS, chains, seed, torch.float64, CPU, stream)


@pytest.mark.parametrize("name", SPECS)
def test_any_order_of_ticks_gives_the_same_numbers(name: str) -> None:
    in_order = source()
    wanted = [in_order.row(tick)[name] for tick in range(80)]
    assert len({float(row.flatten()[0]) for row in wanted}) == 80 // SPECS[name].held
    jumps = source()
    for tick in np.random.default_rng(0).integers(0, 80, 60).tolist():
        assert torch.equal(jumps.row(tick)[name], wanted[tick])


@pytest.mark.parametrize("chains", [5, 130])
def test_what_a_compiled_run_has_at_hand_are_the_rows_of_its_ticks(
    chains: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many rows that is."""
    for held in (1 << 17, 1 << 12, 0):
        monkeypatch.setattr(noise, "_HELD", held)
        found, wanted = source(chains), source(chains)
        for name in SPECS:
            rows, least = found.held[name], 1 if name == "hashed" else found.ticks[name]
            assert rows % least == 0
            assert held or rows == least
            drawn = found.fill(name, 2)
            assert drawn.numel() <= held or rows == least
            for row, numbers in enumerate(drawn):
                assert torch.equal(numbers, wanted.row(2 * rows + row)[name])


def test_a_chain_has_the_same_numbers_in_any_larger_run() -> None:
    """Full blocks of 64 do not depend on the blocks after them."""
    small, large = source(128), source(300)
    for tick in (0, 1, 63):
        for name in SPECS:
            assert torch.equal(small.row(tick)[name], large.row(tick)[name][:128])


def test_what_nobody_looks_at_is_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    draw = NoiseSource.chunk
    monkeypatch.setattr(NoiseSource, "chunk", lambda self, *args: (drawn.append(args), draw(self, *args))[1])
    noise = source()
    rows = [noise.row(tick) for tick in range(8)]
    assert drawn == []
    for row in rows:
        assert row["few"].shape == (130,)
    assert drawn == [("few", 0)]  # and neighbours share a call


def test_seeds_streams_names_and_blocks_differ() -> None:
    a = source().row(0)
    others = [source(seed=4).row(0), source(stream="initial").row(0), source(stream="step_size").row(0)]
    for other in others:
        for name in SPECS:
            assert not bool((a[name] == other[name]).any())
    blocks = a["some"].split(64)
    assert not bool((blocks[0] == blocks[1]).any())
    assert not bool((a["some"].flatten()[:130] == a["few"]).any())


def test_seeds_of_blocks_and_ticks_never_meet() -> None:
    """4096 blocks at the first, some middle and the last of 2^18 chunks, from a start that wraps around."""
    chunks = [*range(40), 12345, *range(2**18 - 40, 2**18)]
    seeds = [seed for chunk in chunks for seed in block_seeds(2**32 - 5, chunk, 4096)]
    assert len(set(seeds)) == len(chunks) * 4096
    assert all(0 <= seed < 2**32 for seed in seeds)
    # scattered: mean of 331,776 uniforms, six standard errors of 2^32 / sqrt(12 * 331776)
    assert abs(np.mean(seeds) / 2**32 - 0.5) < 6 / np.sqrt(12 * len(seeds))


def test_neighbouring_generators_are_not_correlated() -> None:
    """The first numbers of 4096 generators in a row, along ticks and along blocks; 5 standard errors."""
    noise = NoiseSource({"n": NoiseSpec("normal", (64,))}, 64 * 16, 0, torch.float64, CPU)
    first = torch.stack([noise.row(tick)["n"][::64, 0] for tick in range(256)])  # one generator each
    n = first.numel()
    assert abs(float(first.mean())) < 5 / n**0.5
    assert abs(float(first.var()) - 1) < 5 * (2 / n) ** 0.5
    for a, b in ((first[1:], first[:-1]), (first[:, 1:], first[:, :-1]), (first[1:, 1:], first[:-1, :-1])):
        assert abs(float((a * b).mean())) < 5 / a.numel() ** 0.5


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected noise of kind 'normal', 'uniform', 'bits', got \['cauchy'\]"):
        NoiseSource({"x": NoiseSpec("cauchy", ())}, 4, 0, torch.float64, CPU)


def test_few_blocks_have_the_seeds_of_many() -> None:
    """Python's integers and NumPy's give the same seeds."""
    for chunk in (0, 1, 2**18 - 1):
        assert block_seeds(2**32 - 5, chunk, 3) == block_seeds(2**32 - 5, chunk, 100)[:3]


def test_threads_that_share_a_draw_change_nothing() -> None:
    spec = {"normal": NoiseSpec("uniform", (100,))}
    before, drawn = torch.get_num_threads(), []
    for threads in (1, 3):  # of 9 blocks, the last one short
        torch.set_num_threads(threads)
        try:
            drawn.append(NoiseSource(spec, 515, 7, torch.float32, torch.device("cpu")).row(5)["normal"])
        finally:
            torch.set_num_threads(before)
    assert drawn[0].numel() >= noise._WORTH_THREADS
    assert torch.equal(*drawn)


def test_bits_are_uniform_words_of_every_block() -> None:
    """Every bit of 2^16 words is set as often as not (z at 5 of 32 bits: one false alarm in 50,000), and blocks differ."""
    specs = {"keys": NoiseSpec("bits", (2,))}
    many, few = (NoiseSource(specs, n, 3, torch.float64, torch.device("cpu")) for n in (2 * BLOCK, BLOCK))
    words = torch.stack([many.row(tick)["keys"] for tick in range(256)])
    assert words.dtype == torch.int32
    assert torch.equal(words[:, :BLOCK], torch.stack([few.row(tick)["keys"] for tick in range(256)]))
    assert not torch.equal(words[:, :BLOCK], words[:, BLOCK:])
    for bit in range(32):
        z = ((words >> bit & 1).double().mean() - 0.5) * 2 * words.numel() ** 0.5
        assert abs(float(z)) < 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_hashed_normal_numbers_are_standard_and_independent(dtype: torch.dtype) -> None:
    """Kolmogorov-Smirnov at 1e-4; powers, and products of neighbours along ticks, chains and numbers, at 4.5 errors."""
    source = NoiseSource({"n": NoiseSpec("normal", (100,))}, 128, 5, dtype, CPU)
    assert source.chunk("n", 0).shape == (32, 128, 2)  # two words for a hundred numbers
    x = torch.stack([source.row(tick)["n"] for tick in range(100)]).double()
    assert stats.kstest(x.flatten().numpy(), "norm").pvalue > 1e-4
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (5, 0, 945), (6, 15, 10170)):
        assert abs(float((x**power).mean()) - mean) < 4.5 * (variance / x.numel()) ** 0.5
    for axis in range(3):
        for lag in (1, 2, 3, 50):
            a, b = x.narrow(axis, lag, x.shape[axis] - lag), x.narrow(axis, 0, x.shape[axis] - lag)
            for f in (lambda v: v, lambda v: v**2 - 1):
                product = f(a) * f(b)
                assert abs(float(product.mean())) < 4.5 * float(product.std()) / product.numel() ** 0.5


def test_hashed_numbers_are_drawn_once_a_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels may look twice."""
    row = source().row(3)
    first = row["hashed"]
    monkeypatch.setattr(hashed, "normals", lambda *_: pytest.fail("drawn anew"))
    assert row["hashed"] is first


@pytest.mark.parametrize(("size", "chains", "threads"), [(64, 3, 1), (77, 5, 1), (100, 515, 3), (1000, 64, 2)])
def test_c_gives_the_hashed_numbers_of_torch(size: int, chains: int, threads: int) -> None:
    """To 8 units in the last place, tails and what is left over of a row included; and bit for bit on any threads."""
    source = NoiseSource({"n": NoiseSpec("normal", (size,))}, chains, 5, torch.float32, CPU)
    found = source.fill("n", 3, threads=threads)
    assert hashed._library() is not None  # or torch is compared with itself
    first = 3 * source.held["n"]
    wanted = torch.stack([source.row(first + i)["n"] for i in range(len(found))])
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-37)
    assert chains < 64 or float(found.abs().max()) > 3.5
    assert torch.equal(found, source.fill("n", 3, threads=1))


def test_without_a_compiler_hashed_numbers_are_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(source: str) -> None:
        raise CompileError("no compiler")

    monkeypatch.setattr(hashed, "load", broken)
    monkeypatch.setattr(hashed, "_library", hashed._library.__wrapped__)
    noise = NoiseSource({"n": NoiseSpec("normal", (70,))}, 9, 5, torch.float32, CPU)
    assert torch.equal(noise.fill("n", 0), torch.stack([noise.row(tick)["n"] for tick in range(noise.held["n"])]))
