"""The noise of a run is a function of (seed, name, tick, block of chains), whatever was asked for before."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from ebmppl.kernels.base import NoiseSpec
from ebmppl.kernels.pooling import BLOCK
from ebmppl.sampling import hashed, noise
from ebmppl.sampling.compiler import CompileError
from ebmppl.sampling.hashed import Hashed
from ebmppl.sampling.noise import NoiseSource, block_seeds
from ebmppl.sampling.noise_at_hand import NoiseAtHand

CPU = torch.device("cpu")
SPECS = {
    "few": NoiseSpec("bits", ()),
    "many": NoiseSpec("bits", (100,)),  # a row is a call of its own
    "level": NoiseSpec("uniform", ()),  # hashed, 64 chains by one key
    "some": NoiseSpec("normal", (5, 2)),
    "hashed": NoiseSpec("normal", (8, 9)),  # each chain by its own
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
            rows, least = found.held[name], found.ticks[name]
            assert rows % least == 0
            assert held or rows == least
            drawn = found.fill(name, 2)
            assert drawn.numel() <= held or rows == least
            for row, numbers in enumerate(drawn):
                assert torch.equal(numbers, wanted.row(2 * rows + row)[name])


def test_a_chain_has_the_same_numbers_in_any_larger_run() -> None:
    """Full blocks of 64 do not depend on the blocks after them, and hashes on no other chain at all."""
    small, large = source(128), source(300)
    for tick in (0, 1, 63):
        for name in SPECS:
            assert torch.equal(small.row(tick)[name], large.row(tick)[name][:128])
        for name in ("level", "some", "hashed"):
            assert torch.equal(source(7).row(tick)[name], large.row(tick)[name][:7])


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
    spec = {"bits": NoiseSpec("bits", (100,))}
    before, drawn = torch.get_num_threads(), []
    for threads in (1, 3):  # of 9 blocks, the last one short
        torch.set_num_threads(threads)
        try:
            drawn.append(NoiseSource(spec, 515, 7, torch.float32, torch.device("cpu")).row(5)["bits"])
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


def numbers(size: int, chains: int, dtype: torch.dtype = torch.float32, kind: str = "normal") -> Hashed:
    return Hashed(kind, size, chains, 2**64 - 5, dtype)


@pytest.mark.parametrize("size", [3, 100])  # 64 chains by one key, and each by its own
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_hashed_normal_numbers_are_standard_and_independent(dtype: torch.dtype, size: int) -> None:
    """Kolmogorov-Smirnov at 1e-4; powers, and products of neighbours along ticks, chains and numbers, at 4.5 errors."""
    x = numbers(size, 12800 // size, dtype).draw(7, 100).double()
    assert stats.kstest(x.flatten().numpy(), "norm").pvalue > 1e-4
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (5, 0, 945), (6, 15, 10170)):
        assert abs(float((x**power).mean()) - mean) < 4.5 * (variance / x.numel()) ** 0.5
    for axis in range(3):
        for lag in (1, 2, 3, 50, 64):
            if lag >= x.shape[axis]:
                continue
            a, b = x.narrow(axis, lag, x.shape[axis] - lag), x.narrow(axis, 0, x.shape[axis] - lag)
            for f in (lambda v: v, lambda v: v**2 - 1):
                product = f(a) * f(b)
                assert abs(float(product.mean())) < 4.5 * float(product.std()) / product.numel() ** 0.5


@pytest.mark.parametrize("size", [3, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_hashed_uniform_numbers_are_uniform_and_independent(dtype: torch.dtype, size: int) -> None:
    """As the normal ones; in [0, 1), as fine as the dtype or a word of 32 bits."""
    u = numbers(size, 12800 // size, dtype, "uniform").draw(7, 100)
    assert u.dtype == dtype
    assert 0 <= float(u.min()) < 1e-5
    assert 1 - 1e-5 < float(u.max()) < 1
    bits = 24 if dtype == torch.float32 else 32
    grid = u.double() * 2.0**bits
    assert torch.equal(grid, grid.round())
    assert bool((grid % 2 == 1).any())
    x = u.double() - 0.5
    assert stats.kstest(u.flatten().double().numpy(), "uniform").pvalue > 1e-4
    for axis in range(3):
        for lag in (1, 2, 3, 50, 64):
            if lag >= x.shape[axis]:
                continue
            a, b = x.narrow(axis, lag, x.shape[axis] - lag), x.narrow(axis, 0, x.shape[axis] - lag)
            for f in (lambda v: v, lambda v: v**2 - 1 / 12):
                product = f(a) * f(b)
                assert abs(float(product.mean())) < 4.5 * float(product.std()) / product.numel() ** 0.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_uniform_numbers_of_half_precision_are_below_one(dtype: torch.dtype) -> None:
    """Of 100,000 some would be rounded to 1, by which kernels would divide or take logarithms of 0."""
    u = numbers(100, 1000, dtype, "uniform").draw(0, 1)
    assert u.dtype == dtype
    assert 0 <= float(u.min())
    assert float(u.max()) == 1 - torch.finfo(dtype).eps / 2


@pytest.mark.parametrize("kind", ["normal", "uniform"])
@pytest.mark.parametrize("size", [3, 100, 1000])
def test_many_numbers_are_made_in_pieces(size: int, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same ones: operations on all of a large lattice at once wait for memory, thirty times as long as they compute."""
    found, called = numbers(size, 130, kind=kind), []
    wanted, make = found.draw(3, 2), getattr(hashed, f"{kind}s")
    monkeypatch.setattr(hashed, f"{kind}s", lambda *args: called.append(made := make(*args)) or made)
    monkeypatch.setattr(hashed, "_PIECE", 300)
    assert torch.equal(found.draw(3, 2), wanted)
    assert len(called) > 1
    assert max(made.numel() for made in called) <= 300


def test_keys_are_splitmix() -> None:
    """By its formula in Python's integers; a tick or a row further on is another start."""
    start, tick, row = 2**64 - 5, 3, 2
    x = (start + tick * 0x9E3779B97F4A7C15 + row * 0xD1B54A32D192ED03) % 2**64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    x ^= x >> 31
    keys = numbers(100, 3).keys(1, 4)
    assert keys.shape == (4, 3, 2)
    assert [int(k) % 2**32 for k in keys[tick - 1, row]] == [x % 2**32, x >> 32]
    assert len(set(map(tuple, keys.flatten(0, 1).tolist()))) == 12


def test_hashed_numbers_are_drawn_once_for_some_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels may look twice."""
    found = source(20)
    assert found.ticks["hashed"] > 3
    first = found.row(0)["hashed"]
    monkeypatch.setattr(hashed, "normals", lambda *_: pytest.fail("drawn anew"))
    assert found.row(0)["hashed"].data_ptr() == first.data_ptr()
    assert found.row(3)["hashed"].shape == (20, 8, 9)


SIZES = [(1, 4096), (2, 150), (25, 64), (64, 3), (77, 5), (100, 515), (1000, 64)]


@pytest.mark.parametrize("kind", ["normal", "uniform"])
@pytest.mark.parametrize(("size", "chains"), SIZES)
def test_c_gives_the_hashed_numbers_of_torch(size: int, chains: int, kind: str) -> None:
    """Normal ones to 8 units in the last place, with tails and what is left over of a row; and so for some of the chains."""
    found, out, tick = numbers(size, chains, kind=kind), torch.empty(chains, size), torch.tensor(37)
    assert found.native()  # or torch is compared with itself
    found.before_tick(out, tick)()
    wanted = found.draw(37, 1)[0]
    torch.testing.assert_close(out, wanted, rtol=1e-6 if kind == "normal" else 0.0, atol=1e-37)
    assert chains * size < 4096 or float(out.abs().max()) > (3.3 if kind == "normal" else 0.999)
    assert torch.equal(wanted, found.draw(30, 10)[7])
    some = torch.empty(chains - 2, size)
    which = torch.arange(chains - 2, 0, -1)
    found.before_tick(some, tick, which)()
    assert torch.equal(some, out[which])
    which = torch.arange(chains).roll(chains // 2)[: chains - 2]  # neighbours are drawn together
    found.before_tick(some, tick, which)()
    assert torch.equal(some, out[which])


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize(("size", "chains"), SIZES)
def test_c_draws_for_chains_whose_counter_is_zero(size: int, chains: int, dtype: torch.dtype) -> None:
    found, out, tick = numbers(size, chains), torch.empty(chains, size), torch.tensor(5)
    found.before_tick(out, tick)()
    counter = torch.arange(chains).remainder(3).to(dtype) << (0 if dtype == torch.int32 else 40)
    some = torch.full((chains, size), 9.0)
    call = found.before_tick(some, tick, None, counter)
    call()
    assert torch.equal(some[counter == 0], out[counter == 0])
    assert bool((some[counter != 0] == 9).all())
    tick += 1  # read when the call is made
    call()
    assert not bool((some[counter == 0] == out[counter == 0]).any())


def test_without_a_compiler_hashed_numbers_are_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(source: str) -> None:
        raise CompileError("no compiler")

    monkeypatch.setattr(hashed, "load", broken)
    monkeypatch.setattr(hashed, "_library", hashed._library.__wrapped__)
    noise = NoiseSource({"n": NoiseSpec("normal", (70,))}, 9, 5, torch.float32, CPU)
    at_hand = NoiseAtHand(noise)
    assert at_hand.held == noise.held
    (found,) = at_hand.chunks
    assert torch.equal(found, torch.stack([noise.row(tick)["n"] for tick in range(noise.held["n"])]))


def test_a_compiled_run_draws_normal_numbers_before_each_tick() -> None:
    """The rest it has at hand for many ticks."""
    specs = {"n": NoiseSpec("normal", (7,), where_zero="steps"), "b": NoiseSpec("bits", ())}
    noise = NoiseSource(specs, 9, 5, torch.float32, CPU)
    at_hand = NoiseAtHand(noise)
    assert at_hand.rows == {"n": 1, "b": 128}
    assert at_hand.have(3, 500) == 125  # as many as there are bits for
    state = SimpleNamespace(steps=torch.tensor([0, 1] * 4 + [0]))
    tick, kept = torch.tensor([0]), at_hand.chunks[0][0, 1::2].clone()
    (call,) = at_hand.before_tick(at_hand.chunks, tick, state)
    tick.fill_(200)
    call()
    torch.testing.assert_close(at_hand.chunks[0][0, ::2], noise.row(200)["n"][::2], rtol=1e-6, atol=1e-37)
    assert torch.equal(at_hand.chunks[0][0, 1::2], kept)
