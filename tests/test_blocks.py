"""Blocks of sites with a kernel each: mixed energies against their exact laws."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import pyro
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.distributions import constraints

import ebmppl as eb
from ebmppl.energies import Energy, as_energy, categories, spin
from ebmppl.errors import EnergyError
from ebmppl.kernels import DiscreteKernel, Kernel, NoiseSpec
from ebmppl.kernels.accept import choose, metropolis
from ebmppl.kernels.discrete import NoTuning
from ebmppl.kernels.pooling import BLOCK
from ebmppl.sampling.chains import Chains
from ebmppl.sampling.initial import Uniform, starting_points
from tests.discrete import exact_draws, law, number, p_value
from tests.discrete_registry import DISCRETE

F64 = torch.float64
FALSE_ALARM = 1e-5  # of each p-value below; some 100 of them, seeds are fixed
SIGMA, FIELD = 0.6, 0.3
CONTINUOUS: dict[str, Callable[[Energy], Kernel]] = {
    "mala": partial(eb.MALA, step_size=0.5),
    "hmc": partial(eb.HMC, step_size=0.5, num_steps=4),
    "nuts": partial(eb.NUTS, step_size=0.5, max_tree_depth=3),
}
every_kernel = pytest.mark.parametrize("kernel", CONTINUOUS)
long = pytest.mark.long
some_long = pytest.mark.parametrize(
    "kernel", [pytest.param("mala"), pytest.param("hmc", marks=long), pytest.param("nuts", marks=long)]
)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# Energies with exact laws: a point is (discrete sites' number, standardised or uniform numbers of the others).


class Mixed(NamedTuple):
    """An energy, exact draws ``(n, *event)`` of its target, the law of its discrete sites, and residuals N(0, 1)."""

    energy: Energy
    probabilities: Tensor
    draw: Callable[[int, torch.Generator], dict[str, Tensor]]  # in the user's values
    which: Callable[[dict[str, Tensor]], Tensor]
    residual: Callable[[dict[str, Tensor]], Tensor]  # (n, k), standard normal given the discrete sites


def pair() -> Mixed:
    """E = (x - s)^2 / (2 sigma^2) - h s with s = -1, 1: a mixture of two Gaussians of weights 1 / (1 + exp(-+ 2 h))."""
    energy = as_energy(
        lambda v: (v["x"] - v["s"]).square() / (2 * SIGMA**2) - FIELD * v["s"], {"s": (), "x": ()}, {"s": spin}
    )
    p = torch.sigmoid(torch.tensor([-2 * FIELD, 2 * FIELD], dtype=F64))

    def draw(n: int, g: torch.Generator) -> dict[str, Tensor]:
        s = 2.0 * torch.multinomial(p, n, replacement=True, generator=g).double() - 1
        return {"s": s, "x": s + SIGMA * torch.randn(n, dtype=F64, generator=g)}

    return Mixed(
        energy,
        p,
        draw,
        lambda v: ((v["s"] + 1) / 2).long(),
        lambda v: ((v["x"] - v["s"]) / SIGMA).unsqueeze(1),
    )


W = torch.tensor([[0.9, -0.6, 0.4], [0.2, 0.8, -1.0]], dtype=F64)
B, C = torch.tensor([0.3, -0.2], dtype=F64), torch.tensor([-0.4, 0.1, 0.3], dtype=F64)


def gaussian_rbm() -> Mixed:
    """E = |v - b|^2 / 2 - v' W h - c' h: p(h) ~ exp(c'h + b'Wh + |Wh|^2 / 2), v given h is N(b + W h, 1)."""
    energy = as_energy(
        lambda x: (
            0.5 * (x["v"] - B.to(x["v"])).square().sum(-1)
            - ((x["v"] @ W.to(x["v"])) * x["h"]).sum(-1)
            - x["h"] @ C.to(x["h"])
        ),
        {"v": (2,), "h": (3,)},
        {"h": constraints.boolean},
    )
    h = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3)), dtype=F64)
    p = torch.softmax(h @ C + (h @ W.mT) @ B + 0.5 * (h @ W.mT).square().sum(-1), 0)

    def draw(n: int, g: torch.Generator) -> dict[str, Tensor]:
        drawn = h[torch.multinomial(p, n, replacement=True, generator=g)]
        return {"v": B + drawn @ W.mT + torch.randn(n, 2, dtype=F64, generator=g), "h": drawn}

    weights = torch.tensor([4, 2, 1])
    return Mixed(
        energy,
        p,
        draw,
        lambda x: (x["h"].long() * weights).sum(-1),
        lambda x: x["v"] - B - x["h"].double() @ W.mT,
    )


def gamma() -> Mixed:
    """E = (1 + k) r - log r on r > 0, k = 0, 1, 2: r given k is Gamma(2, 1 + k), p(k) ~ (1 + k)^-2."""
    energy = as_energy(
        lambda v: (1 + v["k"]) * v["r"] - v["r"].log(),
        {"r": (), "k": ()},
        {"r": constraints.positive, "k": categories(3)},
    )
    p = torch.tensor([1, 1 / 4, 1 / 9], dtype=F64)
    p = p / p.sum()

    def draw(n: int, g: torch.Generator) -> dict[str, Tensor]:
        k = torch.multinomial(p, n, replacement=True, generator=g).double()
        u = torch.rand(n, 2, dtype=F64, generator=g)
        return {"r": -u.log().sum(-1) / (1 + k), "k": k}

    def residual(v: dict[str, Tensor]) -> Tensor:
        cdf = stats.gamma.cdf((v["r"] * (1 + v["k"])).numpy(), 2)
        return torch.as_tensor(stats.norm.ppf(cdf)).unsqueeze(1)

    return Mixed(energy, p, draw, lambda v: v["k"].long(), residual)


MIXED: dict[str, Callable[[], Mixed]] = {"pair": pair, "gaussian rbm": gaussian_rbm, "gamma": gamma}


def blocks(case: Mixed, kernel: str, kind: type[eb.Blocks] = eb.Blocks) -> eb.Blocks:
    made: dict[str | tuple[str, ...], Any] = {
        name: eb.Gibbs if eb.energies.supports.is_discrete(case.energy.site_support(name)) else CONTINUOUS[kernel]
        for name in case.energy.sites
    }
    return kind(case.energy, made)


def p_values(case: Mixed, values: dict[str, Tensor]) -> list[float]:
    """Chi-square of the discrete sites; Kolmogorov's test of each residual and of each beside the most probable state."""
    which, residual = case.which(values), case.residual(values)
    counts = torch.bincount(which, minlength=len(case.probabilities))
    found = [p_value(counts, case.probabilities)]
    for part in (residual, residual[which == int(case.probabilities.argmax())]):
        found += [float(stats.kstest(column.numpy(), "norm").pvalue) for column in part.unbind(1)]
    return found


def after(kernel: eb.Blocks, start: dict[str, Tensor], draws: int, seed: int) -> dict[str, Tensor]:
    run = Chains(kernel, kernel.target.unconstrain(start), seed)
    run.advance(draws)
    return kernel.target.constrain(run.position())


DEFAULT = {
    ("mala", "pair", 4),
    ("mala", "gaussian rbm", 1),
    ("mala", "gamma", 4),
    ("hmc", "gaussian rbm", 4),
    ("nuts", "pair", 4),
}
PAIRS = [
    row if row in DEFAULT else pytest.param(*row, marks=pytest.mark.long)
    for row in itertools.product(CONTINUOUS, MIXED, (1, 4))
]


@pytest.mark.parametrize(("kernel", "name", "draws"), PAIRS)
def test_exact_draws_stay_exact(kernel: str, name: str, draws: int) -> None:
    case = MIXED[name]()
    start = case.draw(20_000, torch.Generator().manual_seed(draws))
    assert min(p_values(case, start)) > FALSE_ALARM
    assert min(p_values(case, after(blocks(case, kernel), start, draws, seed=2))) > FALSE_ALARM


class Stale(eb.Blocks):
    """Wrong: a block goes on with what it knew of the energy before the others moved."""

    def _refreshed(self, block: Any, entering: Tensor, whole: Tensor, inner: Any) -> Any:
        return inner


@some_long
def test_a_stale_energy_is_noticed(kernel: str) -> None:
    case = gaussian_rbm() if kernel == "nuts" else pair()
    start = case.draw(40_000, torch.Generator().manual_seed(1))
    assert min(p_values(case, after(blocks(case, kernel, Stale), start, 6, seed=2))) < FALSE_ALARM


@some_long
def test_a_target_a_twelfth_colder_is_noticed(kernel: str) -> None:
    """By p-values of 1e-10 and less; of 20,000 points some were near the bound."""
    case = gaussian_rbm()
    start = case.draw(40_000, torch.Generator().manual_seed(1))
    colder = case._replace(energy=1.08 * case.energy)
    assert min(p_values(case, after(blocks(colder, kernel), start, 20, seed=2))) < FALSE_ALARM


@some_long
def test_chains_forget_where_they_began(kernel: str) -> None:
    """A whole run from Uniform(2), with its warm-up: the last draw of each chain, and the weight of all draws."""
    case = pair()
    mcmc = eb.MCMC(blocks(case, kernel), 30, 30, num_chains=1_000, seed=3, disable_progbar=True)
    mcmc.run()
    values = {name: v[:, -1].double() for name, v in mcmc.get_samples(group_by_chain=True).items()}
    assert min(p_values(case, values)) > FALSE_ALARM
    weight = float(case.probabilities[1])
    share = (mcmc.get_samples(group_by_chain=True)["s"] == 1).double().mean(1)
    assert abs(float(share.mean()) - weight) < stats.norm.isf(FALSE_ALARM / 2) * float(share.std()) / math.sqrt(1_000)


# Discrete blocks.


class FlipState(NamedTuple):
    """Points, with their energies."""

    position: Tensor
    energy: Tensor


class FlipInfo(NamedTuple):
    """What laws look at."""

    done: Tensor
    lp: Tensor
    energy: Tensor
    acceptance_rate: Tensor
    diverging: Tensor


class Flip(DiscreteKernel):
    """Metropolis: one coordinate to another level, with the energy kept in the state."""

    def init(self, x: Tensor) -> FlipState:
        flat = self.flat(x)
        return FlipState(flat, self.energies(flat).clone())

    def init_tuning(self, x: Tensor) -> NoTuning:
        return NoTuning()

    def noise(self) -> dict[str, NoiseSpec]:
        return {name: NoiseSpec("uniform", ()) for name in ("where", "level", "accept")}

    def tick(self, state: FlipState, tuning: NoTuning, noise: Any) -> Any:
        at = (noise["where"] * self.num_coordinates).long().unsqueeze(1)
        table, counts = self._levels.table.to(state.position), self._levels.counts
        now = (state.position.unsqueeze(-1) == table).long().argmax(-1).gather(1, at)
        count = counts[at]
        new = (now + 1 + (noise["level"].unsqueeze(1) * (count - 1)).long()) % count
        proposal = state.position.scatter(1, at, table[at.squeeze(1)].gather(1, new))
        energy = self.energies(proposal)
        accept, rate, diverging = metropolis(energy - state.energy, noise["accept"])
        kept = choose(accept, FlipState(proposal, energy), state)
        return kept, FlipInfo(torch.ones_like(accept), -kept.energy, kept.energy, rate, diverging)


@pytest.mark.parametrize("draws", [1, 5])
def test_two_discrete_blocks_of_different_kernels(draws: int) -> None:
    e = DISCRETE["callable, sites"]()
    run = Chains(eb.Blocks(e, {"k": Flip, "s": eb.Gibbs}), exact_draws(e, 40_000, 4), seed=5)
    run.advance(draws)
    assert run.position().dtype == torch.int8
    assert p_value(torch.bincount(number(e, run.position()), minlength=len(law(e))), law(e)) > FALSE_ALARM


@pytest.mark.parametrize("kind", [eb.GibbsWithGradients, partial(eb.DiscreteLangevin, step_size=1.0)])
@pytest.mark.parametrize(("name", "site"), [("callable, sites", "k"), ("rbm, joint", "v")])
def test_a_discrete_block_by_gradients_where_all_sites_are_discrete(name: str, site: str, kind: Any) -> None:
    e = DISCRETE[name]()
    kernels = {s: kind if s == site else eb.Gibbs for s in e.sites}
    run = Chains(eb.Blocks(e, kernels), exact_draws(e, 20_000, 4), seed=5)
    run.advance(4)
    assert p_value(torch.bincount(number(e, run.position()), minlength=len(law(e))), law(e)) > FALSE_ALARM


@pytest.mark.parametrize("kind", [eb.GibbsWithGradients, partial(eb.DiscreteLangevin, step_size=1.0)])
def test_a_discrete_block_by_gradients_of_a_mixed_energy(kind: Any) -> None:
    case = gaussian_rbm()
    kernel = eb.Blocks(case.energy, {"h": kind, "v": CONTINUOUS["mala"]})
    end = after(kernel, case.draw(20_000, torch.Generator().manual_seed(1)), 4, seed=3)
    assert min(p_values(case, end)) > FALSE_ALARM


@pytest.mark.parametrize("kind", [eb.GibbsWithGradients, partial(eb.DiscreteLangevin, step_size=1.0)])
def test_gradients_of_discrete_blocks_alone_are_traced(kind: Any) -> None:
    """And the traced ones make the same draws."""
    e, ends = DISCRETE["callable, sites"](), []
    for traced in (False, True):
        kernel = eb.Blocks(e, {"k": kind, "s": eb.Gibbs})
        start = exact_draws(e, 50, 4)
        run = Chains(kernel, start, seed=6)
        kernel.prepare(start, values=True, many=traced)
        assert (kernel.untraced(start) is None) == traced
        run.advance(20)
        ends.append(run.position())
    assert torch.equal(*ends)


@pytest.mark.long
def test_compiled_blocks_of_discrete_sites_are_the_eager_ones() -> None:
    e, ends = DISCRETE["callable, sites"](), []
    for backend in ("eager", "inductor"):
        kernel = eb.Blocks(e, {"k": eb.GibbsWithGradients, "s": eb.Gibbs})
        run = Chains(kernel, exact_draws(e, 50, 4), seed=7, backend=backend)
        run.advance(50)
        assert run.choice.backend == backend, run.choice.reason
        ends.append(run.position())
    assert torch.equal(*ends)


def test_a_block_that_cant_be_differentiated_is_refused() -> None:
    e = as_energy(lambda v: -0.5 * (v["x"] == v["y"]).double(), {"x": (), "y": ()}, categories(3))
    kernel = eb.Blocks(e, {"x": eb.GibbsWithGradients, "y": eb.Gibbs})
    with pytest.raises(EnergyError, match="differentiable in its points"):
        eb.MCMC(kernel, 5, 5, num_chains=2, seed=0, disable_progbar=True).run()


def test_a_stale_energy_of_a_discrete_block_is_noticed() -> None:
    e = DISCRETE["callable, sites"]()
    run = Chains(Stale(e, {"k": Flip, "s": eb.Gibbs}), exact_draws(e, 40_000, 4), seed=5)
    run.advance(5)
    assert p_value(torch.bincount(number(e, run.position()), minlength=len(law(e))), law(e)) < FALSE_ALARM


def test_several_sites_in_one_block() -> None:
    e = as_energy(
        lambda v: 0.5 * (v["x"] - v["y"] - v["s"]).square() + 0.5 * v["y"].square(),
        {"x": (), "s": (), "y": ()},
        {"s": spin},
    )
    kernel = eb.Blocks(e, {("y", "x"): partial(eb.HMC, num_steps=4), "s": eb.Gibbs})
    mcmc = eb.MCMC(kernel, 30, 30, num_chains=200, seed=6, disable_progbar=True)
    mcmc.run()
    x = mcmc.get_samples(group_by_chain=True)["x"].double()  # variance 1 + 1 + 1, mean 0
    assert abs(float(x.mean())) < stats.norm.isf(FALSE_ALARM / 2) * float(x.mean(1).std()) / math.sqrt(200)
    square = x.square().mean(1)
    assert abs(float(square.mean()) - 3) < stats.norm.isf(FALSE_ALARM / 2) * float(square.std()) / math.sqrt(200)


# Runs.


@some_long
def test_values_have_the_users_types(kernel: str) -> None:
    case = gamma()
    mcmc = eb.MCMC(blocks(case, kernel), 10, 30, num_chains=3, seed=7, disable_progbar=True)
    mcmc.run()
    samples = mcmc.get_samples(group_by_chain=True)
    assert samples["k"].dtype == torch.int8
    assert samples["r"].shape == (3, 10)
    assert bool((samples["r"] > 0).all())
    assert bool(categories(3).check(samples["k"]).all())
    group = mcmc.to_arviz()
    assert group.posterior["k"].dtype == "int8"
    assert group.sample_stats["acceptance_rates"].shape == (3, 10, 2)
    with torch.no_grad():
        energy = mcmc.kernel.target(mcmc.draws.select(0, 10)["position"])
    torch.testing.assert_close(mcmc.stats()["energy"], energy)


@long
@every_kernel
def test_each_kernel_adapts(kernel: str) -> None:
    case = gaussian_rbm()
    mcmc = eb.MCMC(blocks(case, kernel), 100, 200, num_chains=32, seed=8, disable_progbar=True)
    mcmc.run()
    rate = float(mcmc.stats()["acceptance_rates"][..., 0].mean())
    assert abs(rate - (0.574 if kernel == "mala" else 0.8)) < 0.12
    variance = mcmc.now.tuning.block0_inverse_mass
    exact = mcmc.get_samples()["v"].var(0)
    torch.testing.assert_close(variance, exact, rtol=0.15, atol=0.0)


@some_long
def test_saved_runs_go_on(kernel: str, tmp_path: Any) -> None:
    case = gaussian_rbm()
    whole, part = (eb.MCMC(blocks(case, kernel), n, 20, num_chains=3, seed=9, disable_progbar=True) for n in (14, 6))
    whole.run()
    part.run()
    part.save(tmp_path / "run")
    again = eb.MCMC.load(tmp_path / "run", blocks(case, kernel))
    again.run(num_samples=8)
    for name, value in whole.get_samples().items():
        assert torch.equal(value, again.get_samples()[name])


@some_long
def test_a_chain_does_not_depend_on_the_others(kernel: str) -> None:
    case = gaussian_rbm()
    start = case.draw(2 * BLOCK, torch.Generator().manual_seed(10))
    many = after(blocks(case, kernel), start, 5, seed=11)
    few = after(blocks(case, kernel), {n: v[:BLOCK] for n, v in start.items()}, 5, seed=11)
    for name in many:
        torch.testing.assert_close(many[name][:BLOCK], few[name], rtol=1e-9, atol=1e-9)


@some_long
def test_runs_under_pyro(kernel: str) -> None:
    pyro.set_rng_seed(0)
    kind = blocks(pair(), kernel)
    mcmc = pyro.infer.MCMC(kind, num_samples=5, warmup_steps=5, disable_progbar=True)
    mcmc.run()
    assert set(mcmc.get_samples()["s"].tolist()) <= {-1.0, 1.0}


@pytest.mark.long
@every_kernel
def test_compiled_ticks_are_the_eager_ones(kernel: str) -> None:
    """In float64, whose rounding does not grow to another decision in so few ticks."""
    start = gaussian_rbm().draw(4, torch.Generator().manual_seed(12))
    runs = [
        eb.MCMC(blocks(gaussian_rbm(), kernel), 20, 40, start, 4, seed=12, backend=backend, disable_progbar=True)
        for backend in ("eager", "inductor")
    ]
    for run in runs:
        run.run()
    assert runs[1].backend == "inductor", runs[1].backend_reason
    for name, value in runs[0].get_samples().items():
        torch.testing.assert_close(value, runs[1].get_samples()[name], rtol=1e-5, atol=1e-5)


def test_chains_begin_at_levels() -> None:
    case = gamma()
    target = blocks(case, "mala").target
    x = target.unpack(starting_points(target, Uniform(), 6_000, 13).points)
    assert float(stats.kstest(x["r"].numpy(), "uniform", (-2, 4)).pvalue) > FALSE_ALARM
    assert p_value(torch.bincount(x["k"].long(), minlength=3), torch.full((3,), 1 / 3).double()) > FALSE_ALARM


def test_initial_values_outside_a_discrete_site_are_named() -> None:
    kernel = blocks(pair(), "mala")
    start = {"s": torch.tensor([1, 2]), "x": torch.zeros(2)}
    with pytest.raises(ValueError, match=r"site 's' in \{-1, 1\}, got 2 \(chain 1\)"):
        eb.MCMC(kernel, 5, initial_params=start, num_chains=2)
    mcmc = eb.MCMC(kernel, 5, initial_params={**start, "s": torch.tensor([1, -1])}, num_chains=2, disable_progbar=True)
    mcmc.run()


# Bad input.


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({}, "dict of sites to kernel factories, got {}"),
        ([("s", eb.Gibbs)], "dict of sites to kernel factories"),
        ({"s": eb.Gibbs}, r"unknown: \[\], missing: \['x'\]"),
        ({"s": eb.Gibbs, "x": eb.NUTS, "y": eb.NUTS}, r"unknown: \['y'\]"),
        ({"s": eb.Gibbs, ("x", "s"): eb.NUTS}, r"more than once: \['s'\]"),
        ({"s": eb.Gibbs, "x": eb.NUTS, (): eb.NUTS}, "every site"),
        ({"s": eb.Gibbs, "x": eb.Gibbs}, "finite discrete support of site 'x'"),
        ({"s": eb.NUTS, "x": eb.NUTS}, "continuous support for site 's'"),
        ({"s": eb.Gibbs, "x": "nuts"}, "a function from an energy to a kernel"),
        ({"s": eb.Gibbs, "x": lambda e: e}, r"a kernel from the factory for \['x'\], got Given"),
    ],
)
def test_bad_blocks(made: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        eb.Blocks(pair().energy, made)


def test_an_energy_without_names_is_refused() -> None:
    with pytest.raises(ValueError, match="named sites"):
        eb.Blocks(eb.models.Ising((3, 3)), {"x": eb.Gibbs})


def test_what_ticks_look_up_moves_to_the_chains_device() -> None:
    """A tick that copied it would wait for a GPU; for want of one, to no device at all."""
    sites = {"s": (2,), "x": (2,)}
    energy = as_energy(lambda v: (v["x"] - v["s"]).square().sum(-1), sites, {"s": spin}, batched=True)
    nowhere = torch.device("meta")
    for kind in (eb.Gibbs, eb.kernels.Metropolis, eb.GibbsWithGradients):
        blocks = eb.Blocks(energy, {"s": kind, "x": eb.MALA})
        spins = as_energy(lambda s: s.sum(-1), (2,), spin, batched=True)
        tempered = eb.ParallelTempering(kind(spins))
        blocks.move(nowhere)
        tempered.move(nowhere)
        for inner in (blocks._blocks[0].kernel, tempered._inner):
            assert inner._levels.table.device == nowhere
            if kind is eb.GibbsWithGradients:
                assert inner._differences.levels.table.device == nowhere
            elif kind is eb.kernels.Metropolis:
                assert all(members.device == nowhere for members in inner._blocks)
            else:
                assert all(members.device == nowhere for members in inner._sweep._blocks)
        assert all(block.energy.columns.device == nowhere for block in blocks._blocks)
