"""Metropolis, Gibbs with gradients and discrete Langevin: equal to the papers' methods written straight, and what they cost."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import constraints

import ebmppl as eb
from ebmppl.energies import Energy, as_energy, spin
from ebmppl.energies.discrete import levels_of
from ebmppl.errors import EnergyError
from ebmppl.kernels import DiscreteLangevin, GibbsWithGradients, Kernel, Metropolis
from ebmppl.kernels.differences import Differences
from ebmppl.kernels.discrete import pick
from ebmppl.sampling.chains import Chains
from tests.discrete import exact_draws, law, number, p_value, states_of
from tests.discrete_registry import F64, normal

LIMIT = 1e-4  # false-alarm rate of each test of draws; seeds are fixed


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Polynomial(nn.Module):
    """Of third order in any real numbers, float64."""

    def __init__(self, size: int, seed: int) -> None:
        super().__init__()
        self.a = nn.Parameter(normal(size, seed=seed))
        self.b = nn.Parameter(normal(size, size, seed=seed + 1, scale=0.4))
        self.c = nn.Parameter(normal(size, seed=seed + 2, scale=0.1))

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return x @ self.a + ((x @ self.b) * x).sum(-1) + (self.c * x**3).sum(-1)


class Packed(Polynomial):
    """Of sites."""

    def forward(self, x: Any) -> Tensor:
        return super().forward(torch.cat([x["s"], x["k"].unsqueeze(-1), x["one"].unsqueeze(-1)], -1))


INTERVAL = constraints.integer_interval
ENERGIES: dict[str, Callable[[], Energy]] = {
    "spins": lambda: as_energy(Polynomial(4, 1), (2, 2), spin, batched=True),
    "bits": lambda: as_energy(Polynomial(4, 2), (4,), constraints.boolean, batched=True),
    "ordered": lambda: 0.2 * as_energy(Polynomial(2, 3), (2,), INTERVAL(-1, 2), batched=True),
    "ragged": lambda: as_energy(
        Packed(4, 4),
        {"s": (2,), "k": (), "one": ()},
        {"s": spin, "k": INTERVAL(0, 2), "one": INTERVAL(1, 1)},
        batched=True,
    ),
    "one-hot": lambda: as_energy(Polynomial(6, 5), (2, 3), constraints.one_hot, batched=True),
    "one-hot, two": lambda: as_energy(Polynomial(6, 6), (3, 2), constraints.one_hot, batched=True),
}
every_energy = pytest.mark.parametrize("name", ENERGIES)


class Straight:
    """What the two papers need of one point, in Python's own numbers: f = -E, its gradient, and vectors of levels.

    A coordinate's level is a vector: of one number for ordered values, one-hot for categories.
    """

    def __init__(self, energy: Energy) -> None:
        self.energy = energy
        self.hot = isinstance(energy.support, type(constraints.one_hot))
        if self.hot:
            n, levels = energy.event_shape
            self.levels = [[(torch.arange(levels) == k).to(F64) for k in range(levels)]] * n
        else:
            table = levels_of(energy)
            self.levels = [
                [torch.tensor([v], dtype=F64) for v in row[:c]]
                for row, c in zip(table.table.tolist(), table.counts.tolist(), strict=True)
            ]

    def f_and_grad(self, at: list[int]) -> tuple[float, Tensor]:
        x = torch.cat([self.levels[i][k] for i, k in enumerate(at)]).requires_grad_()
        f = -self.energy(x.view(1, *self.energy.event_shape))[0]
        (grad,) = torch.autograd.grad(f, x)
        return float(f.detach()), grad.view(len(at), -1)

    def indices(self, x: Tensor) -> list[int]:
        """Of a kernel's flat integers."""
        found = []
        for levels, value in zip(self.levels, x.tolist(), strict=True):
            values = range(len(levels)) if self.hot else [int(v) for v in levels]
            found.append(list(values).index(value))
        return found

    def gwg(self, at: list[int], choice: float, accept: float) -> tuple[list[int], float]:
        """Algorithm 2 of Grathwohl et al. 2021 on inverse-CDF draws: the next point and log of the acceptance ratio."""

        def q(at: list[int]) -> tuple[float, dict[tuple[int, int], float]]:
            f, grad = self.f_and_grad(at)
            pairs = [(i, k) for i, levels in enumerate(self.levels) for k in range(len(levels)) if k != at[i]]
            d = torch.stack([grad[i] @ (self.levels[i][k] - self.levels[i][at[i]]) for i, k in pairs])
            return f, dict(zip(pairs, torch.softmax(d / 2, 0).tolist(), strict=True))

        f, there = q(at)
        below = list(itertools.accumulate(there.values()))
        i, k = next(pair for pair, sum_ in zip(there, below, strict=True) if choice * below[-1] < sum_)
        new = [*at[:i], k, *at[i + 1 :]]
        f_new, back = q(new)
        ratio = f_new - f + math.log(back[i, at[i]] / there[i, k])
        return (new if accept < math.exp(ratio) else at), ratio

    def dlp(self, at: list[int], alpha: float) -> tuple[float, list[Tensor]]:
        """F and the probabilities of every coordinate's levels: the discrete Langevin proposal of Zhang et al. 2022."""
        f, grad = self.f_and_grad(at)
        found = []
        for i, levels in enumerate(self.levels):
            moves = [theta - levels[at[i]] for theta in levels]
            logits = [0.5 * (grad[i] @ move) - (move @ move) / (2 * alpha) for move in moves]
            found.append(torch.softmax(torch.stack(logits), 0))
        return f, found

    def dmala(self, at: list[int], alpha: float, uniform: Tensor, accept: float) -> tuple[list[int], float]:
        """The next point and log of the acceptance ratio; of two levels a small uniform means the other one."""
        f, there = self.dlp(at, alpha)
        binary, new = all(len(levels) == 2 for levels in self.levels), []
        for k, q, u in zip(at, there, uniform.tolist(), strict=True):
            new.append((1 - k if u < q[1 - k] else k) if binary else int((u >= q.cumsum(0)[:-1]).sum()))
        f_new, back = self.dlp(new, alpha)
        ratio = f_new - f
        ratio += sum(float(b[k].log() - t[j].log()) for b, t, k, j in zip(back, there, at, new, strict=True))
        return (new if accept < math.exp(ratio) else at), ratio


def one_tick(kernel: Kernel, x: Tensor, noise: dict[str, Tensor]) -> tuple[Any, Any]:
    with torch.no_grad():
        kernel.prepare(x, values=True, many=False)
        return kernel.tick(kernel.init(x), kernel.init_tuning(x), noise)


def uniforms(kernel: Kernel, chains: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(8)
    return {n: torch.rand((chains, *s.shape), generator=g, dtype=F64) for n, s in kernel.noise().items()}


@every_energy
@pytest.mark.parametrize("make", [GibbsWithGradients, partial(DiscreteLangevin, step_size=1.7)], ids=["gwg", "dmala"])
def test_one_transition_equals_the_papers_method_on_the_same_random_numbers(name: str, make: Any) -> None:
    """60 points, float64: decisions are the same, and the logarithm of the acceptance ratio up to rounding."""
    energy = ENERGIES[name]()
    straight, kernel, x = Straight(energy), make(energy), exact_draws(energy, 60, seed=9)
    noise = uniforms(kernel, 60)
    state, info = one_tick(kernel, x, noise)
    moved = 0
    for c in range(60):
        at, accept = straight.indices(x[c].flatten()), float(noise["accept"][c])
        if make is GibbsWithGradients:
            new, ratio = straight.gwg(at, float(noise["choice"][c, 0]), accept)
        else:
            new, ratio = straight.dmala(at, 1.7, noise["level"][c], accept)
        assert float(info.energy_error[c]) == pytest.approx(-ratio, abs=1e-10)
        assert float(info.acceptance_rate[c]) == pytest.approx(min(1.0, math.exp(ratio)), abs=1e-10)
        assert straight.indices(state.position[c]) == new
        moved += new != at
    assert moved > 5
    value, grad = kernel.value_and_grad(state.position)
    torch.testing.assert_close((state.energy, state.grad), (value, grad), rtol=1e-12, atol=1e-12)


def metropolis(energy: Energy, x: Tensor, order: list[int], noise: dict[str, Tensor]) -> tuple[Tensor, float]:
    """A sweep of one point, proposal by proposal, and its mean acceptance rate; ``x`` is flat."""
    levels = levels_of(energy)
    lists = [row[:c] for row, c in zip(levels.table.tolist(), levels.counts.tolist(), strict=True)]
    x, total = x.clone(), 0.0
    for i, slot in order:
        others = [v for v in lists[i] if v != x[i]]
        # in the order of levels from the present one on, and back to the first
        at = lists[i].index(int(x[i]))
        others = sorted(others, key=lambda v: (lists[i].index(v) < at, v))
        u = float(noise["level"][slot]) if "level" in noise else 0.0
        new = x.clone()
        if others:
            new[i] = others[int(u * len(others))]
        rise = float((energy(new.view(1, *energy.event_shape)) - energy(x.view(1, *energy.event_shape)))[0])
        rate = min(1.0, math.exp(-rise))
        total += rate
        if float(noise["accept"][slot]) < rate:
            x = new
    return x, total / len(order)


@pytest.mark.parametrize("random_scan", [False, True])
@pytest.mark.parametrize("name", ["spins", "ordered", "ragged", "ising"])
def test_a_sweep_of_metropolis_equals_one_written_straight(name: str, random_scan: bool) -> None:
    energy = eb.models.Ising((2, 3), normal(7, seed=3, scale=0.5), 0.2, periodic=False) if name == "ising" else None
    energy = energy or ENERGIES[name]()
    kernel, x = Metropolis(energy, random_scan=random_scan), exact_draws(energy, 40, seed=10)
    noise = uniforms(kernel, 40)
    state, info = one_tick(kernel, x, noise)
    n = kernel.num_coordinates
    by_colour = name == "ising" and not random_scan
    assert kernel.calls_per_tick == (1 if by_colour else n)
    fixed = [(i, i) for i in (torch.cat(energy.graph.classes()).tolist() if by_colour else range(n))]
    with torch.no_grad():
        for c in range(40):
            row = {k: u[c] for k, u in noise.items()}
            order = [(int(u * n), j) for j, u in enumerate(row["coordinate"].tolist())] if random_scan else fixed
            wanted, rate = metropolis(energy, x[c].flatten(), order, row)
            assert torch.equal(state.position[c], wanted)
            assert float(info.acceptance_rate[c]) == pytest.approx(rate, abs=1e-10)
        torch.testing.assert_close(state.energy, energy(kernel.position(state)), rtol=1e-12, atol=1e-12)


# Pieces.


@pytest.mark.parametrize("self_coupling", [0.0, 0.3])
def test_estimates_are_exact_without_self_couplings_and_only_then(self_coupling: float) -> None:
    """E = a x + x B x on bits: the flip of one changes it by its gradient, and by the diagonal of B besides."""
    module = Polynomial(5, 11)
    with torch.no_grad():
        module.b.fill_diagonal_(self_coupling)
        module.c.zero_()
    energy = as_energy(module, (5,), constraints.boolean, batched=True)
    differences, x = Differences(energy, levels_of(energy)), states_of(energy)
    _, grad = differences.value_and_grad(x, F64)
    flipped = torch.where(torch.eye(5, dtype=torch.bool), 1 - x.unsqueeze(1), x.unsqueeze(1))
    with torch.no_grad():
        exact = energy(x).unsqueeze(1) - energy(flipped)
    error = (differences.estimates(x, grad) - exact).abs()
    # x^2 = x for bits: the gradient counts a diagonal b twice where x = 1 and not at all where x = 0
    torch.testing.assert_close(error, torch.full_like(error, self_coupling), rtol=0, atol=1e-12)


def test_estimates_of_an_ising_model_are_its_log_odds() -> None:
    ising = eb.models.Ising((3, 3), normal(18, seed=12), normal(3, 3, seed=13))
    differences, x = Differences(ising, levels_of(ising)), exact_draws(ising, 50, seed=14).flatten(1)
    _, grad = differences.value_and_grad(x, F64)
    conditionals = ising.conditionals()
    for b, members in enumerate(conditionals.blocks):
        wanted = -x[:, members] * conditionals.logits(b, x)
        torch.testing.assert_close(differences.estimates(x, grad)[:, members], wanted, rtol=1e-10, atol=1e-10)


def test_a_pick_is_never_of_probability_zero_and_keeps_rare_ones_in_float32() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, -18.0, -torch.inf]]).log_softmax(1)
    ends = torch.tensor([[0.0, 0.0], [1 - 2**-24, 0.0], [1 - 2**-24, 1 - 2**-24]])
    assert pick(logits.expand(3, -1), ends).squeeze(1).tolist() == [1, 1, 3]
    # e^-18 = 0.26 of the last step of a uniform of 24 bits
    last = torch.stack([torch.full((4096,), 1 - 2**-24), torch.arange(4096) / 4096], 1)
    share = (pick(logits.expand(4096, -1), last) == 3).double().mean()
    assert float(share) == pytest.approx(2**24 * float(logits[0, 3].double().exp()), abs=2e-3)
    doubles = torch.tensor([[1 - 2**-53, 1 - 2**-53]], dtype=F64)
    assert pick(logits.double(), doubles).item() == 3


class Counted(eb.models.Ising):
    gradients = values = 0

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.gradients += 1
        return super().value_and_grad(x)

    def forward(self, x: Tensor) -> Tensor:
        self.values += 1
        return super().forward(x)


@pytest.mark.parametrize(
    "make",
    [GibbsWithGradients, DiscreteLangevin, partial(DiscreteLangevin, adjusted=False)],
    ids=["gwg", "dmala", "dula"],
)
def test_one_gradient_a_tick_and_no_other_call(make: Any) -> None:
    energy = Counted((4, 4), 0.3)
    kernel = make(energy)
    chains = Chains(kernel, exact_draws(eb.models.Ising((4, 4), 0.3), 8, seed=15), seed=0)
    before = energy.gradients, energy.values
    chains.advance(20)
    assert (energy.gradients - before[0], energy.values - before[1]) == (20, 20)
    assert kernel.calls_per_tick == 1


# Step size.


def test_the_step_size_is_adapted_to_an_acceptance_of_0574() -> None:
    """Ising 10 x 10 near its critical point; the mean of 32 x 120 draws has an error of about 0.008."""
    kernel = DiscreteLangevin(eb.models.Ising((10, 10), 0.4))
    mcmc = eb.MCMC(kernel, 120, 250, num_chains=32, seed=16, disable_progbar=True)
    mcmc.run()
    assert float(mcmc.stats()["acceptance_rate"].mean()) == pytest.approx(0.574, abs=0.03)
    assert mcmc.stats()["step_size"].unique().numel() == 1


def test_a_step_size_that_is_always_accepted_ends_where_it_makes_no_difference() -> None:
    mcmc = eb.MCMC(DiscreteLangevin(eb.models.Ising((3, 3), 0.0)), 20, 50, num_chains=8, seed=17, disable_progbar=True)
    mcmc.run()
    assert float(mcmc.stats()["acceptance_rate"].min()) == pytest.approx(1.0, abs=1e-6)
    assert float(mcmc.stats()["step_size"].max()) == 4000.0


def test_settings_out_of_range_are_refused() -> None:
    ising = eb.models.Ising((3, 3))
    for settings in ({"step_size": 0.0}, {"target_accept_prob": 1.0}, {"adjusted": 1}, {"adapt_step_size": None}):
        with pytest.raises(ValueError, match=f"expected .*{next(iter(settings))}"):
            DiscreteLangevin(ising, **settings)
    with pytest.raises(ValueError, match="random_scan as True or False, got 1"):
        Metropolis(ising, random_scan=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least two levels"):
        GibbsWithGradients(as_energy(lambda x: x.sum(-1), (2,), INTERVAL(3, 3)))


# Laws.


def stationary(energy: Energy, alpha: float) -> Tensor:
    """Of the unadjusted method, from its transition matrix, written straight."""
    straight, states = Straight(energy), states_of(energy)
    at = [straight.indices(x.flatten()) for x in states]
    rows = []
    for point in at:
        _, q = straight.dlp(point, alpha)
        rows.append(torch.stack([torch.stack([p[k] for p, k in zip(q, to, strict=True)]).prod() for to in at]))
    matrix = torch.stack(rows)
    torch.testing.assert_close(matrix.sum(1), torch.ones(len(at), dtype=F64))
    equations = torch.cat([matrix.mT - torch.eye(len(at), dtype=F64), torch.ones(1, len(at), dtype=F64)])
    return torch.linalg.lstsq(equations, (torch.arange(len(at) + 1) == len(at)).to(F64).unsqueeze(1)).solution[:, 0]


@pytest.fixture(scope="module")
def pairs() -> Energy:
    """Log-quadratic, for which the bias vanishes with the step size (theorem 5.1 of Zhang et al.)."""
    return eb.models.Ising(coupling=(a := normal(4, 4, seed=18, scale=0.6).triu(1)) + a.mT, field=0.3)


def test_without_adjustment_the_bias_is_visible_and_vanishes_with_the_step_size(pairs: Energy) -> None:
    bias = [0.5 * float((stationary(pairs, alpha) - law(pairs)).abs().sum()) for alpha in (4.0, 2.0, 1.0, 0.5, 0.25)]
    assert bias[0] > 0.05
    # the probability that two spins flip at once falls as exp(-2 / alpha) of that for one
    assert all(b < 0.8 * a for a, b in itertools.pairwise(bias))
    assert bias[-1] < 1e-3 * bias[0]


def test_draws_without_adjustment_have_their_own_law_and_adjusted_ones_the_energys(pairs: Energy) -> None:
    """40,000 chains after 25 transitions from the one law, against both laws; each wrong pair is noticed."""
    own, exact = stationary(pairs, 2.0), law(pairs)
    for adjusted in (False, True):
        kernel = DiscreteLangevin(pairs, 2.0, adjusted=adjusted)
        assert kernel.exact is adjusted
        assert (kernel.adaptation() is None) is not adjusted
        run = Chains(kernel, exact_draws(pairs, 40_000, seed=19), seed=20)
        run.advance(25)
        counts = torch.bincount(number(pairs, run.position()), minlength=16)
        right, wrong = (exact, own) if adjusted else (own, exact)
        assert p_value(counts, right) > LIMIT
        assert p_value(counts, wrong) < 1e-12


class WithoutReverse(GibbsWithGradients):
    """Wrong: it takes the probability of the way back for that of the way there."""

    def tick(self, state: Any, tuning: Any, noise: Any) -> Any:
        seen: list[Tensor] = []
        original = self.log_probabilities

        def once(at: Any) -> Tensor:
            seen.append(original(at) if not seen else seen[0])
            return seen[-1]

        self.log_probabilities = once  # type: ignore[method-assign]
        try:
            return super().tick(state, tuning, noise)
        finally:
            self.log_probabilities = original  # type: ignore[method-assign]


@pytest.mark.parametrize(("make", "right"), [(GibbsWithGradients, True), (WithoutReverse, False)])
def test_the_reverse_probability_matters(pairs: Energy, make: Any, right: bool) -> None:
    run = Chains(make(pairs), exact_draws(pairs, 40_000, seed=21), seed=22)
    run.advance(10)
    found = p_value(torch.bincount(number(pairs, run.position()), minlength=16), law(pairs))
    assert found > LIMIT if right else found < 1e-12


# Bad energies.


TABLE = normal(3, seed=23)
NOT_DIFFERENTIABLE: dict[str, Callable[[Tensor], Tensor]] = {
    "indexing": lambda x: TABLE.to(torch.get_default_dtype())[x.long()].sum(-1),
    "detach": lambda x: x.detach().square().sum(-1),
    "item": lambda x: torch.tensor([row.sum().item() for row in x]),
}


@pytest.mark.parametrize("fn", NOT_DIFFERENTIABLE.values(), ids=NOT_DIFFERENTIABLE)
def test_gradient_kernels_refuse_what_cant_be_differentiated_at_discrete_points(fn: Any) -> None:
    energy = as_energy(fn, (4,), INTERVAL(0, 2), batched=True)
    for make in (GibbsWithGradients, DiscreteLangevin):
        mcmc = eb.MCMC(make(energy), 3, 2, num_chains=2, seed=24, disable_progbar=True)
        with pytest.raises(EnergyError, match="expected an energy that is differentiable in its points"):
            mcmc.run()
    eb.MCMC(Metropolis(energy), 3, 2, num_chains=2, seed=24, disable_progbar=True).run()


def test_a_gradient_that_is_not_finite_at_the_start_is_told() -> None:
    energy = as_energy(lambda x: x.clamp_min(0).sqrt().sum(-1), (2,), constraints.boolean, batched=True)
    mcmc = eb.MCMC(GibbsWithGradients(energy), 3, 0, torch.tensor([[1, 1], [0, 1]]), 2, disable_progbar=True)
    with pytest.raises(EnergyError, match=r"finite gradient at the initial points, got 1 of 2 .* chains: 1"):
        mcmc.run()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize(
    "make",
    [Metropolis, partial(Metropolis, random_scan=True), GibbsWithGradients]
    + [partial(DiscreteLangevin, step_size=4.0, adjusted=adjusted) for adjusted in (True, False)],
    ids=["metropolis", "metropolis, random scan", "gwg", "dmala", "dula"],
)
def test_energies_that_are_not_finite_reject_and_are_counted(make: Any, bad: float) -> None:
    energy = as_energy(lambda x: 0.1 * x.sum(-1) + torch.where(x.sum(-1) > 1, bad, 0.0), (3,), spin, batched=True)
    mcmc = eb.MCMC(make(energy), 60, 0, -torch.ones(20, 3, dtype=torch.int8), 20, seed=25, disable_progbar=True)
    mcmc.run()
    assert bool(mcmc.stats()["energy"].isfinite().all())
    assert int(mcmc.get_samples()["x"].sum(-1).max()) == 1
    diverging = mcmc.stats()["diverging"].double().mean()
    assert 0.02 < float(diverging) < 1


# Cost.


def straight_dmala(matrix: Tensor, x: Tensor, alpha: float, steps: int, seed: int) -> Tensor:
    """The paper's method for spins of energy -x J x / 2, on real numbers; energies ``(chains, steps)``."""
    g = torch.Generator().manual_seed(seed)
    gradient = x @ matrix  # of U = -E
    found = []
    for _ in range(steps):
        flip = torch.sigmoid(-gradient * x - 2 / alpha)  # half of gradient (x' - x), and (x' - x)^2 / (2 alpha)
        flips = torch.rand(x.shape, generator=g, dtype=F64) < flip
        new = torch.where(flips, -x, x)
        gradient_new = new @ matrix
        back = torch.sigmoid(-gradient_new * new - 2 / alpha)
        ratio = 0.5 * ((gradient_new * new) - (gradient * x)).sum(1)
        ratio += (torch.where(flips, back, 1 - back).log() - torch.where(flips, flip, 1 - flip).log()).sum(1)
        accept = (torch.rand(len(x), generator=g, dtype=F64).log() < ratio).unsqueeze(1)
        x, gradient = torch.where(accept, new, x), torch.where(accept, gradient_new, gradient)
        found.append(-0.5 * (gradient * x).sum(1))
    return torch.stack(found, 1)


def autocorrelation_time(energies: Tensor, lags: int = 30) -> float:
    """Of equal chains ``(chains, draws)``, by the sum of autocorrelations up to a lag of three times, about the mean of all."""
    e = energies - energies.mean()
    rho = torch.stack([(e[:, : e.shape[1] - k] * e[:, k:]).mean() for k in range(lags)]) / e.square().mean()
    return float(1 + 2 * rho[1:].sum())


@pytest.mark.long
def test_ess_per_gradient_is_that_of_the_papers_method(record_property: Callable[[str, object], None]) -> None:
    """Ising 8 x 8 at J = 0.2 and alpha = 1, one gradient a draw for both; the error is that of 8 groups of chains."""
    ising, alpha, steps, chains = eb.models.Ising((8, 8), 0.2, dtype=F64), 1.0, 3000, 8 * 64
    i, j = ising.graph.edges.unbind(1)
    matrix = torch.zeros(64, 64, dtype=F64)
    matrix[torch.cat([i, j]), torch.cat([j, i])] = 0.2
    start = Chains(eb.Gibbs(ising), torch.ones(chains, 8, 8, dtype=torch.int8), seed=26)
    start.advance(100)
    x = start.position()
    wanted = straight_dmala(matrix, x.flatten(1).double(), alpha, steps, seed=27)
    found: list[Tensor] = []
    run = Chains(DiscreteLangevin(ising, alpha), x, seed=28)
    run.advance(steps, observe=lambda info: found.append(info.energy))
    groups = zip(torch.stack(found, 1).split(64), wanted.split(64), strict=True)
    ratios = torch.tensor([autocorrelation_time(theirs) / autocorrelation_time(ours) for ours, theirs in groups])
    ratio, error = float(ratios.mean()), float(ratios.std() / 8**0.5)
    record_property("ESS per gradient, ours to the paper's", f"{ratio:.3f} +- {error:.3f}")
    print(f"ESS per gradient, ours to the paper's: {ratio:.3f} +- {error:.3f}")
    assert error < 0.02
    assert ratio > 0.95


# Compiled.


COMPILED = {
    "dmala": lambda: DiscreteLangevin(ENERGIES["spins"](), 2.0),
    "dula": lambda: DiscreteLangevin(ENERGIES["ordered"](), 1.0, adjusted=False),
    "dmala, one-hot": lambda: DiscreteLangevin(ENERGIES["one-hot"](), 2.0),
    "gwg": lambda: GibbsWithGradients(ENERGIES["bits"]()),
    "gwg, ragged": lambda: GibbsWithGradients(ENERGIES["ragged"]()),
    "metropolis": lambda: Metropolis(eb.models.Ising((4, 4), 0.4, dtype=F64)),
    "metropolis, ragged": lambda: Metropolis(ENERGIES["ragged"]()),
    "metropolis, random scan": lambda: Metropolis(ENERGIES["ordered"](), random_scan=True),
}


@pytest.mark.parametrize("name", [n if n == "dmala" else pytest.param(n, marks=pytest.mark.long) for n in COMPILED])
def test_the_same_seed_gives_the_same_draws_on_every_backend(name: str) -> None:
    """20 ticks of warm-up and 50 draws of 10 chains in float64: no decision is within rounding of the other one."""
    runs = []
    for backend in ("eager", "inductor"):
        mcmc = eb.MCMC(COMPILED[name](), 50, 20, num_chains=10, seed=29, backend=backend, disable_progbar=True)
        mcmc.run()
        assert mcmc.backend == backend, mcmc.backend_reason
        runs.append(mcmc)
    eager, compiled = runs
    for site, value in eager.get_samples().items():
        assert torch.equal(value, compiled.get_samples()[site])
    for field, value in eager.stats().items():
        torch.testing.assert_close(value.double(), compiled.stats()[field].double(), rtol=1e-7, atol=1e-9)


def test_hard_walls_in_every_sweep_do_not_end_a_warm_up() -> None:
    """Hard-core particles on a ring: a Metropolis sweep nearly always proposes two neighbours."""

    def hard_core(x: Tensor) -> Tensor:
        return torch.where((x * x.roll(1, -1)).sum(-1) > 0, torch.inf, -2.0 * x.sum(-1))

    energy = eb.as_energy(hard_core, (8,), torch.distributions.constraints.boolean)
    start = torch.zeros(4, 8, dtype=torch.int8)
    mcmc = eb.MCMC(eb.Metropolis(energy), 50, 50, start, 4, seed=0, disable_progbar=True)
    mcmc.run()
    x = mcmc.get_samples()["x"]
    assert not bool((x * x.roll(1, -1)).any())
    assert int(x.sum()) > 0
