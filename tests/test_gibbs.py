"""Gibbs by counter-based words: probabilities, independence, every kind of graph and layer, compiled as eager."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from scipy import stats
from torch import Tensor

import ebmppl as eb
from ebmppl.energies.discrete import indexed
from ebmppl.kernels.gibbs import BlockSweep, Gibbs
from ebmppl.kernels.layer_sweep import LayerSweep
from ebmppl.kernels.pair_sweep import PairSweep
from ebmppl.kernels.words import LEAST, bits_by_word, labels, thresholds, upper_by_word, words
from ebmppl.models import BernoulliRBM, Graph, Ising
from ebmppl.sampling.chains import Chains
from tests.discrete import exact_draws, law, number, p_value

F64 = torch.float64
LIMIT = 1e-3 / 40  # false alarms of all tests of this file together: one in 1000; seeds are fixed


def normal(*shape: int, seed: int, scale: float = 0.4) -> Tensor:
    return scale * torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def _signs(edges: int) -> Tensor:
    return 0.5 * (2.0 * (normal(edges, seed=1) > 0) - 1.0).to(F64)


def _ring_of_signs() -> Tensor:
    matrix = torch.zeros(6, 6, dtype=F64)
    for i, sign in enumerate([1, -1, -1, 1, 1, -1]):
        matrix[i, (i + 1) % 6] = matrix[(i + 1) % 6, i] = 0.7 * sign
    return matrix


STAR = Graph([(0, i) for i in range(1, 10)], (10,))  # of more neighbours than are added one by one
PAIRS: dict[str, Callable[[], eb.Energy]] = {
    "ring": lambda: Ising((6,), 0.5, 0.2, dtype=F64),
    "odd ring, three colours": lambda: Ising((5,), 0.5, -0.3, dtype=F64),
    "open chain": lambda: Ising((5,), 0.7, 0.1, periodic=False, dtype=F64),
    "torus, odd": lambda: Ising((3, 3), 0.2, dtype=F64),
    "open square": lambda: Ising((3, 3), 0.4, 0.1, periodic=False, dtype=F64),
    "cylinder, antiferromagnet": lambda: Ising((4, 2), -0.5, 0.3, periodic=(True, False), dtype=F64),
    "cube, open": lambda: Ising((2, 2, 2), 0.3, 0.1, periodic=False, dtype=F64),
    "plus and minus": lambda: Ising((3, 3), _signs(18), dtype=F64),
    "plus and minus, matrix": lambda: Ising(coupling=_ring_of_signs(), field=torch.full((6,), 0.2, dtype=F64)),
    "plus and minus, tempered": lambda: 0.6 * Ising((3, 3), _signs(18), 0.1, dtype=F64),
    "one J with signs": lambda: Ising((3, 3), 0.5, 0.1, signs=_signs(18).sign(), dtype=F64),
    "one J with signs, open": lambda: Ising((3, 3), 0.5, 0.1, signs=_signs(12).sign(), periodic=False, dtype=F64),
    "one J with signs, tempered": lambda: 0.6 * Ising((6,), -0.9, 0.3, signs=_signs(6).sign(), dtype=F64),
    "fields": lambda: Ising((2, 4), 0.4, normal(2, 4, seed=2), periodic=(False, True), dtype=F64),
    "star": lambda: Ising(STAR, normal(9, seed=3), 0.1, dtype=F64),
    "no edges": lambda: Ising(coupling=torch.zeros(3, 3, dtype=F64), field=normal(3, seed=4)),
    "single precision": lambda: Ising((3, 3), 0.25, 0.1),
    "tempered": lambda: 0.5 * Ising((6,), 0.9, 0.3, dtype=F64),
}


def _rbm(seed: int = 5) -> BernoulliRBM:
    return BernoulliRBM(6, 4, W=normal(6, 4, seed=seed, scale=1.0), b=normal(6, seed=6), c=normal(4, seed=7))


# Words.


def test_labels_are_all_different() -> None:
    assert len(labels(1 << 16).unique()) == 1 << 16


@pytest.mark.parametrize("axis", [0, 1])
def test_words_are_uniform_and_neighbours_independent(axis: int) -> None:
    """Pairs of bytes of neighbouring sites, and of neighbouring chains: 65,536 cells with 64 visits each."""
    keys = torch.randint(LEAST, -LEAST, (2, 2048), dtype=torch.int32, generator=torch.Generator().manual_seed(8))
    word = words(labels(2048).unsqueeze(1), keys[0], keys[1])
    first, second = word.unfold(axis, 2, 1).unbind(-1)
    for shift in (24, 12, 0):
        code = (first >> shift & 0xFF) * 256 + (second >> shift & 0xFF)
        counts = torch.bincount(code.flatten(), minlength=1 << 16).double()
        statistic = float(((counts - counts.mean()).square() / counts.mean()).sum())
        assert LIMIT < stats.chi2.sf(statistic, (1 << 16) - 1) < 1 - LIMIT


def test_the_same_place_is_independent_from_tick_to_tick() -> None:
    keys = torch.randint(LEAST, -LEAST, (2, 1 << 16), dtype=torch.int32, generator=torch.Generator().manual_seed(9))
    ups = (words(labels(32).unsqueeze(1), keys[0], keys[1]) < 0).double() * 2 - 1  # (places, ticks)
    correlation = (ups @ ups.mT / ups.shape[1] * math.sqrt(ups.shape[1])).triu(1)
    z = correlation[correlation != 0]
    assert stats.kstest(z.numpy(), "norm").pvalue > LIMIT
    assert stats.kstest((ups.sum(1) / math.sqrt(ups.shape[1])).numpy(), "norm").pvalue > LIMIT


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_probabilities_are_exact_to_one_in_two_to_the_32(dtype: torch.dtype) -> None:
    """The word at which the decision turns, found by halving, is the probability times 2^32."""
    log_odds = torch.tensor([-30.0, -22.0, -5.0, -0.7, 0.0, 1e-3, 2.0, 21.0, 40.0], dtype=dtype)
    low, high = torch.full((9,), LEAST), torch.full((9,), -LEAST)  # drawn below the turn
    while bool((high - low > 1).any()):
        middle = (low + high) // 2
        up = upper_by_word(log_odds, (middle - 1).to(torch.int32))
        low, high = torch.where(up, middle, low), torch.where(up, high, middle)
    chance = (low - LEAST).double()
    wanted = torch.sigmoid(log_odds.double()) * 2.0**32
    smaller = torch.minimum(wanted, 2.0**32 - wanted)
    rounding = 1.0 + smaller * (4e-7 if dtype == torch.float32 else 1e-12)
    assert bool(((chance - wanted).abs() <= rounding).all())
    assert bool((chance >= 1).all() & (chance <= 2.0**32 - 1).all())  # never impossible, never certain
    table = thresholds(log_odds).double() - LEAST
    assert bool(((table - wanted).abs() <= 1.0).all() & (table >= 1).all() & (table <= 2.0**32 - 1).all())


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_bits_by_words_are_as_probable_as_their_log_odds(dtype: torch.dtype) -> None:
    """Of all 2^32 words those that draw the less probable bit are -1, -2, ... (1) or 0, 1, ... (0): as many as its share."""
    log_odds = torch.tensor([-400.0, -90.0, -21.0, -5.0, -0.3, 0.0, 1e-3, 2.0, 17.0, 21.0, 89.0, 400.0], dtype=dtype)
    rare, side = (log_odds <= 0).to(dtype), torch.where(log_odds > 0, 1, -1)
    low, high = torch.ones(len(log_odds), dtype=torch.int64), torch.full((len(log_odds),), 1 << 31)  # of abs(word)
    assert torch.equal(bits_by_word(log_odds, (side * low).to(torch.int32)), rare)  # never impossible
    while bool((high - low > 1).any()):
        middle = (low + high) // 2
        drawn = bits_by_word(log_odds, (side * middle).to(torch.int32)) == rare
        low, high = torch.where(drawn, middle, low), torch.where(drawn, high, middle)
        other = bits_by_word(log_odds, (-side * middle).to(torch.int32))
        assert torch.equal(other[log_odds != 0], (1 - rare)[log_odds != 0])  # at 0 the last word may be rounded to 2^31
    wanted = torch.sigmoid(-log_odds.double().abs()) * 2.0**32
    # float32 rounds log-odds' exponentials, sums, words and reciprocals, each to 6e-8; 0 and one end more or less
    rounding = 2.0 + wanted * (4e-7 if dtype == torch.float32 else 1e-12)
    assert bool(((low - wanted).abs() <= rounding).all())


def test_ties_go_by_every_bit() -> None:
    """Two probabilities 2^-31 apart decide differently exactly at the words between them."""
    table = thresholds(torch.tensor([0.4, 0.4 + 4e-9], dtype=F64))
    assert table[1] > table[0]
    between = torch.arange(int(table[0]) - 2, int(table[1]) + 2, dtype=torch.int32)
    assert bool(((between < table[0]) != (between < table[1])).eq((between >= table[0]) & (between < table[1])).all())


# Sweeps.


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_leave_the_enumerated_law_as_it_is(name: str) -> None:
    e = PAIRS[name]()
    kernel = Gibbs(e)
    assert isinstance(kernel._sweep, PairSweep)
    run = Chains(kernel, exact_draws(e, 30_000, seed=10), seed=11)
    run.advance(3)
    counts = torch.bincount(number(e, run.position()), minlength=len(law(e)))
    assert p_value(counts, law(e)) > LIMIT


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_give_the_energies_of_their_points(name: str) -> None:
    e = PAIRS[name]()
    run = Chains(Gibbs(e), exact_draws(e, 50, seed=12), seed=13)
    seen: list[Tensor] = []
    run.advance(2, observe=lambda info: seen.append(info.energy))
    torch.testing.assert_close(seen[-1], e(run.position()).detach())


@pytest.mark.parametrize("name", ["torus, odd", "plus and minus", "one J with signs", "fields", "star"])
def test_a_draw_by_pairs_is_the_one_by_conditionals_and_the_same_words(name: str) -> None:
    e = PAIRS[name]()
    sweep, conditionals = PairSweep(e.pairs()), e.conditionals()  # type: ignore[arg-type]
    x = exact_draws(e, 40, seed=14).reshape(40, -1)
    keys = torch.randint(LEAST, -LEAST, (40, 2), dtype=torch.int32, generator=torch.Generator().manual_seed(15))
    drawn = sweep.points(sweep.sweep(sweep.init(x), {"keys": keys}), torch.int8)
    word = words(labels(x.shape[1]).unsqueeze(1), keys[:, 0], keys[:, 1]).mT
    first = 0
    for block, members in enumerate(conditionals.blocks):
        own = word[:, first : first + len(members)]
        upper = upper_by_word(conditionals.logits(block, x), own)
        x = x.index_copy(1, members, upper.to(x.dtype) * 2 - 1)
        first += len(members)
    assert torch.equal(drawn, x)


def test_a_field_that_all_but_forbids_a_spin_never_freezes_it() -> None:
    """Log-odds of 400: the table and the formula keep 2^-32."""
    for field in (200.0, torch.full((4,), 200.0)):
        e = Ising((4,), 0.0, field)
        local = PairSweep(e.pairs())._local(0, torch.ones(2, 3))  # type: ignore[arg-type]
        word = torch.tensor([[LEAST, -LEAST - 2, -LEAST - 1]], dtype=torch.int32)
        if local.table is not None:
            upper = word < local.table[-1]
        else:
            upper = upper_by_word(2 * local.fields_at(slice(0, 1)).expand(1, 3), word)
        assert upper.tolist() == [[True, True, False]] or upper.sum() == 2


def _table(kernel: Gibbs, block: int = 0) -> Tensor | None:
    others = sum(len(members) for b, members in enumerate(kernel._sweep.pairs.blocks) if b != block)
    return kernel._sweep._local(block, torch.ones(others, 3, dtype=F64)).table


def test_one_coupling_up_to_signs_looks_its_thresholds_up() -> None:
    """The table of one J, of couplings by edge that are alike, and none give the same draws from the same words."""
    e = PAIRS["one J with signs"]()
    alike = Ising(e.graph, e.couplings, 0.1)  # type: ignore[attr-defined]
    start, ends = exact_draws(e, 500, seed=28), []
    for energy, looked_up in ((e, True), (alike, True), (alike, False)):
        kernel = Gibbs(energy)
        run = Chains(kernel, start, seed=29)
        if not looked_up:
            kernel.prepare = lambda *_, **__: None  # type: ignore[method-assign]
            kernel._sweep._alike = [None] * len(kernel._sweep._alike)
        run.advance(20)
        assert (_table(kernel) is not None) == looked_up
        ends.append(run.position())
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("plus and minus", True),
        ("plus and minus, matrix", True),
        ("plus and minus, tempered", True),
        ("fields", False),
        ("star", False),
        ("no edges", False),
    ],
)
def test_couplings_that_are_alike_are_found(name: str, found: bool) -> None:
    kernel = Gibbs(PAIRS[name]())
    kernel.prepare(torch.zeros(0), values=False, many=False)
    assert all((_table(kernel, b) is not None) == found for b in range(len(kernel._sweep.pairs.blocks)))


@pytest.mark.parametrize("name", ["coupling", "field", "sign", "size"])
def test_couplings_that_are_no_longer_alike_are_noticed(name: str) -> None:
    """Between two draws; another size of all of them is no other structure."""
    e = Ising((3, 3), _signs(18), torch.full((3, 3), 0.1, dtype=F64))
    kernel = Gibbs(e)
    run = Chains(kernel, exact_draws(e, 30_000, seed=18), seed=19)
    assert kernel.holds()
    before = kernel.identity()
    with torch.no_grad():
        {
            "coupling": lambda: e.coupling[3].mul_(1.5),
            "field": lambda: e.field[0, 1].add_(0.5),
            "sign": lambda: e.coupling[3].neg_(),
            "size": lambda: e.coupling.mul_(-1.2),
        }[name]()
    assert kernel.holds() == (name == "size")
    run.advance(20)
    assert kernel.holds()
    assert (kernel.identity() == before) == (name == "size")
    assert p_value(torch.bincount(number(e, run.position()), minlength=len(law(e))), law(e)) > LIMIT


@pytest.mark.long
def test_compiled_sweeps_follow_couplings_that_are_no_longer_alike() -> None:
    e = Ising((3, 3), _signs(18), 0.1, dtype=F64)
    run = Chains(Gibbs(e), exact_draws(e, 30_000, seed=18), seed=19, backend="inductor", record=False)
    run.advance(2)
    first = run.compiled
    with torch.no_grad():
        e.coupling[3].mul_(-2)
    run.advance(40)
    assert run.choice.backend == "inductor"
    assert run.compiled is not first
    assert p_value(torch.bincount(number(e, run.position()), minlength=len(law(e))), law(e)) > LIMIT


def test_layers_leave_the_enumerated_law_as_it_is() -> None:
    e = _rbm()
    kernel = Gibbs(e)
    assert isinstance(kernel._sweep, LayerSweep)
    run = Chains(kernel, exact_draws(e, 30_000, seed=16), seed=17)
    run.advance(2)
    assert p_value(torch.bincount(number(e, run.position()), minlength=len(law(e))), law(e)) > LIMIT


def test_parameters_that_change_in_place_are_seen() -> None:
    e = Ising((6,), 0.5, dtype=F64)
    kernel = Gibbs(e)
    with torch.no_grad():
        e.coupling.fill_(-0.8)
    run = Chains(kernel, exact_draws(e, 30_000, seed=18), seed=19)
    run.advance(2)
    assert p_value(torch.bincount(number(e, run.position()), minlength=len(law(e))), law(e)) > LIMIT


class Wrong(PairSweep):
    """Wrong: the words of one block are those of the block before."""

    def sweep(self, state, noise):
        tables = self._tables(state.spins.device)
        tables.labels[1] = tables.labels[0][: len(tables.labels[1])]
        return super().sweep(state, noise)


def test_words_used_twice_are_noticed() -> None:
    e = Ising((6,), 0.5, 0.2, dtype=F64)
    kernel = Gibbs(e)
    kernel._sweep = Wrong(e.pairs())  # type: ignore[arg-type]
    run = Chains(kernel, exact_draws(e, 30_000, seed=20), seed=21)
    run.advance(3)
    assert p_value(torch.bincount(number(e, run.position()), minlength=len(law(e))), law(e)) < LIMIT


def test_chains_of_one_block_are_independent() -> None:
    """Correlations of magnetisations of 64 chains over 800 draws, far apart in time at this temperature."""
    e = Ising((4, 4), 0.1)
    run = Chains(Gibbs(e, record_energy=False), exact_draws(Ising((16,), 0.0), 64, seed=22).reshape(64, 4, 4), seed=23)
    kept = []
    for _ in range(800):
        run.advance(1)
        kept.append(run.position().float().mean((1, 2)))
    z = torch.corrcoef(torch.stack(kept).mT.double()) * math.sqrt(800)
    pairs = torch.stack([z[i, j] for i, j in itertools.combinations(range(64), 2)])
    # draws that follow one another are alike: the variance of a correlation grows by sum of squared autocorrelations
    assert 0.8 < float(pairs.var()) < 2.0
    assert float(pairs.abs().max()) < 6.0


def test_record_energy_leaves_the_draws_alone() -> None:
    e = Ising((4, 4), 0.4)
    start = torch.ones(5, 4, 4, dtype=torch.int8)
    ends = []
    for record in (True, False):
        run = Chains(Gibbs(e, record_energy=record), start, seed=24)
        run.advance(5)
        ends.append(run.position())
    assert torch.equal(*ends)
    mcmc = eb.MCMC(Gibbs(e, record_energy=False), 5, 2, num_chains=2, seed=25, disable_progbar=True)
    mcmc.run()
    assert "energy" not in mcmc.stats()


@pytest.mark.parametrize(
    "name",
    [*(pytest.param(n, marks=pytest.mark.long) for n in ("signs", "one J with signs", "rbm")), "torus", "both layers"],
)
def test_compiled_chains_are_the_eager_ones(name: str) -> None:
    """Without a record, as the benchmarks run them; rounding turns less than one decision in 10^6."""
    energies = {
        "torus": lambda: Ising((4, 4), 0.4),
        "signs": lambda: Ising((3, 4), _signs(24).float(), 0.1),
        "one J with signs": lambda: Ising((3, 4), 0.5, 0.1, signs=_signs(24).sign()),
        "rbm": lambda: BernoulliRBM(12, 7, generator=torch.Generator().manual_seed(0)),
        "both layers": lambda: BernoulliRBM(7, 5, generator=torch.Generator().manual_seed(0)).joint,
    }
    e = energies[name]()
    start = (
        exact_draws(Ising((12,), 0.0), 64, seed=26).clamp_min(0)
        if name in ("rbm", "both layers")
        else torch.ones(64, *indexed(e).event_shape, dtype=torch.int8)
    )
    ends = []
    for backend in ("eager", "inductor"):
        run = Chains(Gibbs(e), start, seed=27, backend=backend, record=False)
        run.advance(20)
        assert run.choice.backend == backend, run.choice.reason
        ends.append(run.position())
    assert torch.equal(*ends)


def test_structure_decides_how_a_sweep_is_made() -> None:
    assert isinstance(Gibbs(eb.as_energy(lambda x: -x.prod(-1), (3,), eb.energies.spin))._sweep, BlockSweep)
    by_row = eb.energies.Tempered(Ising((4,), 0.3), torch.tensor([0.5, 1.0]))
    assert isinstance(Gibbs(by_row)._sweep, BlockSweep)
    with pytest.raises(ValueError, match="record"):
        Chains(Gibbs(Ising((4,))), torch.ones(2, 4, dtype=torch.int8), 0, record=False).collect(1, None, print)  # type: ignore


@pytest.mark.parametrize("energy", [Ising((3, 3), 0.3), BernoulliRBM(4, 2)], ids=["pairs", "layers"])
def test_draws_by_parameters_that_became_nan_are_counted(energy: eb.Energy) -> None:
    mcmc = eb.MCMC(Gibbs(energy), 4, 2, num_chains=3, seed=1, disable_progbar=True)
    mcmc.run()
    assert not bool(mcmc.stats()["diverging"].any())
    with torch.no_grad():
        next(energy.parameters()).fill_(math.nan)
    mcmc.run(num_samples=5)
    assert bool(mcmc.stats()["diverging"][:, -5:].all())
