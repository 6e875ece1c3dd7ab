"""Parallel tempering: joint invariance, swap rates, round trips and adapted temperatures, against closed forms."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyro
import pytest
import torch
from scipy import stats
from torch import Tensor

import ebmppl as eb
from ebmppl.diagnostics.tempering import ideal_round_trip_rate, tempering
from ebmppl.energies import Energy, Gaussian, GaussianMixture
from ebmppl.energies.discrete import indexed
from ebmppl.errors import EnergyError
from ebmppl.kernels import Kernel, NoiseSpec
from ebmppl.kernels.discrete import NoTuning
from ebmppl.kernels.ladder import equal_rates, ladder
from ebmppl.sampling.chains import Chains
from tests.discrete import exact_draws, law, number, p_value, states_of
from tests.discrete_registry import DISCRETE

F64 = torch.float64
FALSE_ALARM = 1e-5  # of each test below; some 30 of them, seeds are fixed
BETAS = [0.3, 0.55, 1.0]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def at_equilibrium(kernel: eb.ParallelTempering, replicas: Tensor, seed: int) -> Chains:
    """Chains whose replicas begin at these points ``(chains, replicas, *event)``."""
    run = Chains(kernel, replicas[:, -1], seed)
    rows = replicas.flatten(0, 1)
    with torch.no_grad(), kernel._replicas.at(torch.ones(len(rows), dtype=run.dtype)):
        inner = kernel._inner.init(rows)
    state = run.now.state
    fields = {f"replica_{n}": v.view(len(replicas), -1, *v.shape[1:]) for n, v in inner._asdict().items()}
    run.now = run.now._replace(state=state._replace(**fields))
    return run


def tempered_draws(e: Energy, n: int, seed: int) -> Tensor:
    return torch.stack([exact_draws(b * e, n, seed + i) for i, b in enumerate(BETAS)], 1)


def replica_p_values(e: Energy, run: Chains) -> list[float]:
    x = run.kernel.replicas(run.now.state)  # type: ignore[attr-defined]
    found = []
    for i, beta in enumerate(BETAS):
        p = law(beta * e)
        found.append(p_value(torch.bincount(number(e, x[:, i]), minlength=len(p)), p))
    return found


DEFAULT = {("ising, matrix", 2), ("callable, ordered", 1), ("callable, one-hot", 7)}
LAWS = [
    row if row in DEFAULT else pytest.param(*row, marks=pytest.mark.long)
    for row in itertools.product(
        ["ising, matrix", "callable, ordered", "callable, sites", "callable, one-hot"], [1, 2, 7]
    )
]


@pytest.mark.parametrize(("energy", "ticks"), LAWS)
def test_every_replica_keeps_its_law(energy: str, ticks: int) -> None:
    e = indexed(DISCRETE[energy]())
    run = at_equilibrium(eb.ParallelTempering(eb.Gibbs(e), BETAS), tempered_draws(e, 30_000, 1), seed=2)
    run.advance(ticks)
    assert min(replica_p_values(e, run)) > FALSE_ALARM


CLUSTERS = ["ising, mattis glass", "potts, ferromagnet in a field"]  # with a gauge; with fields of three levels


@pytest.mark.parametrize("kind", [eb.SwendsenWang, eb.Wolff])
@pytest.mark.parametrize("energy", CLUSTERS)
def test_clusters_keep_every_replicas_law(energy: str, kind: Any) -> None:
    e = DISCRETE[energy]()
    run = at_equilibrium(eb.ParallelTempering(kind(e), BETAS), tempered_draws(e, 20_000, 1), seed=2)
    run.advance(3)
    assert min(replica_p_values(e, run)) > FALSE_ALARM


def test_couplings_that_become_frustrated_are_refused_inside() -> None:
    e = eb.models.Ising((3, 3), torch.full((18,), 0.4), periodic=True)
    run = Chains(eb.ParallelTempering(eb.SwendsenWang(e), BETAS), torch.ones(2, 3, 3, dtype=torch.int8), seed=1)
    with torch.no_grad():
        e.coupling[0] = -0.4
    with pytest.raises(ValueError, match="frustrated"):
        run.advance(1)


class _Greedy(eb.ParallelTempering):
    """Wrong: swaps that lower the energy at beta = 1 are always taken, the others never."""

    def tick(self, state: Any, tuning: Any, noise: Any) -> Any:
        return super().tick(state, tuning, {**noise, "swap": torch.full_like(noise["swap"], 1 - 1e-12)})


def test_wrong_swaps_are_noticed() -> None:
    e = DISCRETE["ising, matrix"]()
    run = at_equilibrium(_Greedy(eb.Gibbs(e), BETAS), tempered_draws(e, 30_000, 1), seed=2)
    run.advance(2)
    assert min(replica_p_values(e, run)) < FALSE_ALARM


def test_replicas_are_independent_at_equilibrium() -> None:
    """Chi-square over the joint table of neighbours' states."""
    e = DISCRETE["callable, ordered"]()
    run = at_equilibrium(eb.ParallelTempering(eb.Gibbs(e), BETAS), tempered_draws(e, 60_000, 3), seed=4)
    run.advance(5)
    x = run.kernel.replicas(run.now.state)  # type: ignore[attr-defined]
    n = len(law(e))
    joint = torch.bincount(number(e, x[:, 1]) * n + number(e, x[:, 2]), minlength=n * n)
    assert p_value(joint, torch.outer(law(BETAS[1] * e), law(e)).flatten()) > FALSE_ALARM


def test_swap_rates_are_the_enumerated_ones() -> None:
    """Mean of min(1, exp(...)) over independent pairs of states; the z-score from independent chains."""
    e = DISCRETE["ising, lattice"]()
    run = at_equilibrium(eb.ParallelTempering(eb.Gibbs(e), BETAS), tempered_draws(e, 40_000, 5), seed=6)
    rates: list[Tensor] = []
    run.advance(1, observe=lambda info: rates.append(info.swap_rates))
    energy = e(states_of(e)).detach()
    for i, (a, b) in enumerate(zip(BETAS, BETAS[1:], strict=False)):
        accept = torch.exp((a - b) * (energy.unsqueeze(1) - energy)).clamp_max(1.0)
        exact = float(law(a * e) @ accept @ law(b * e))
        found = rates[0][:, i]
        z = float((found.mean() - exact) / (found.std() / math.sqrt(len(found))))
        assert abs(z) < stats.norm.isf(FALSE_ALARM / 2)


# Modes far apart.


def bimodal() -> tuple[Energy, Tensor]:
    """Weights 1/4 and 3/4, twelve standard deviations apart."""
    means = torch.tensor([[-6.0, 0.0], [6.0, 0.0]], dtype=F64)
    one = torch.eye(2, dtype=F64).expand(2, 2, 2)
    return GaussianMixture(means, one, torch.tensor([0.25, 0.75], dtype=F64)), means


def weight_of_the_right(kernel: Kernel, seed: int) -> tuple[float, float]:
    """And its standard error, from independent chains that all begin on the left."""
    mcmc = eb.MCMC(
        kernel, 150, 200, initial_params=torch.tensor([-6.0, 0.0], dtype=F64).expand(64, 2), num_chains=64,
        seed=seed, disable_progbar=True,
    )  # fmt: skip
    mcmc.run()
    x = mcmc.get_samples(group_by_chain=True)["x"]
    right = (x[..., 0] > 0).double().mean(1)
    return float(right.mean()), float(right.std() / 8)


def test_modes_far_apart_get_their_weights() -> None:
    e, _ = bimodal()
    betas = ladder(6, 0.03)
    right, error = weight_of_the_right(eb.ParallelTempering(eb.MALA(e, 1.0), betas), seed=7)
    assert abs(right - 0.75) < stats.t.isf(FALSE_ALARM / 2, 63) * error
    assert error < 0.05
    # the first steps of warm-up are long: in one of three runs they carry one or two of the 64 chains over
    assert weight_of_the_right(eb.MALA(e, 1.0), seed=7)[0] < 0.1


def test_langevin_replicas_have_their_biased_laws() -> None:
    """Steps of eta / beta: covariance (P - eta P^2 / 4)^-1 / beta by coordinate; swaps of unadjusted replicas mix them little."""
    g = Gaussian(torch.zeros(1, dtype=F64), torch.eye(1, dtype=F64))
    kernel = eb.ParallelTempering(eb.Langevin(g, 0.5), [0.25, 1.0], adapt_betas=False)
    assert not kernel.exact
    run = at_equilibrium(kernel, torch.randn(20_000, 2, 1, dtype=F64) * torch.tensor([[[2.0], [1.0]]]), seed=8)
    state, tuning = run.now.state, run.now.tuning
    noise = {"normal": torch.zeros(20_000, 2, 1, dtype=F64), "swap": torch.ones(20_000, 1, dtype=F64)}
    new, _ = kernel.tick(state._replace(parity=state.parity + 1), tuning, noise)
    torch.testing.assert_close(new.replica_position, 0.75 * state.replica_position)


# A base.


@pytest.mark.parametrize("kind", ["gibbs", "by energies"])
def test_replicas_on_a_path_keep_their_laws(kind: str) -> None:
    """From independent spins (or, of other blocks, another callable) at beta = 0 on: each at its end's mixture."""
    e = DISCRETE["ising, matrix" if kind == "gibbs" else "callable, spins"]()
    base = eb.models.Ising(e.graph, 0.0, 0.3, dtype=F64) if kind == "gibbs" else eb.as_energy(
        lambda x: -0.5 * x.sum(-1).abs(), (4,), eb.energies.spin
    )  # fmt: skip
    betas = [0.0, 0.5, 1.0]
    paths = [eb.energies.GeometricPath(base, e, b) for b in betas]
    start = torch.stack([exact_draws(path, 30_000, 20 + i) for i, path in enumerate(paths)], 1)
    run = at_equilibrium(eb.ParallelTempering(eb.Gibbs(e), betas, base=base), start, seed=21)
    run.advance(4)
    x = run.kernel.replicas(run.now.state)  # type: ignore[attr-defined]
    for i, path in enumerate(paths):
        assert p_value(torch.bincount(number(e, x[:, i]), minlength=len(law(e))), law(path)) > FALSE_ALARM


@pytest.mark.long
def test_modes_are_found_from_a_wide_base() -> None:
    """Each replica's mean of x by its own path of densities; the coldest has the weights 1/4 and 3/4."""
    e, _ = bimodal()
    base = Gaussian(torch.zeros(2, dtype=F64), 40 * torch.eye(2, dtype=F64))
    kernel = eb.ParallelTempering(eb.MALA(e, 1.0), 8, base=base)
    right, error = weight_of_the_right(kernel, seed=22)
    assert abs(right - 0.75) < stats.t.isf(FALSE_ALARM / 2, 63) * error
    assert error < 0.06


def test_a_base_over_another_space_is_refused() -> None:
    with pytest.raises(ValueError, match="same sites"):
        eb.ParallelTempering(eb.Gibbs(eb.models.Ising((3, 3))), 4, base=eb.models.Ising((4, 4)))


# Round trips.


class _IndependentState(NamedTuple):
    position: Tensor


class _IndependentInfo(NamedTuple):
    done: Tensor
    lp: Tensor
    energy: Tensor
    acceptance_rate: Tensor
    diverging: Tensor


class Independent(Kernel):
    """Ideal exploration: every tick draws a standard normal at its row's temperature anew."""

    def init(self, x: Tensor) -> _IndependentState:
        return _IndependentState(x.clone())

    def init_tuning(self, x: Tensor) -> NoTuning:
        return NoTuning()

    def noise(self) -> dict[str, NoiseSpec]:
        return {"normal": NoiseSpec("normal", tuple(self.target.event_shape))}

    def position(self, state: _IndependentState) -> Tensor:
        return state.position

    def tick(self, state: _IndependentState, tuning: NoTuning, noise: Any) -> Any:
        one = self.target(torch.ones_like(noise["normal"])) / (0.5 * noise["normal"].shape[1])  # the row's beta
        x = noise["normal"] / one.sqrt().unsqueeze(1)
        energy = self.target(x)
        done = torch.ones_like(energy, dtype=torch.bool)
        return _IndependentState(x), _IndependentInfo(done, -energy, energy, torch.ones_like(energy), ~done)


class Reversible(eb.ParallelTempering):
    """Even or odd pairs by a coin."""

    def noise(self) -> dict[str, NoiseSpec]:
        return {**super().noise(), "coin": NoiseSpec("uniform", (self.num_replicas,))}

    def _tried(self, state: Any, noise: Any) -> Tensor:
        return super()._tried(state._replace(parity=(noise["coin"][:, 0] < 0.5).long()), noise)


@pytest.mark.parametrize(
    ("kind", "ticks"), [(eb.ParallelTempering, 400), pytest.param(Reversible, 1200, marks=pytest.mark.long)]
)
def test_round_trips_come_at_the_rate_of_the_theory(kind: type[eb.ParallelTempering], ticks: int) -> None:
    """Syed et al. 2022: 1 / (2 + 2 sum r / (1 - r)) under ideal exploration, and 1 / (2 sum 1 / (1 - r)) by a coin.

    Of 8 replicas: the first half of the ticks, 5 and 4 periods of a replica, forget the start. The error of the theory's
    rate, whose r come from 51,200 ticks and more, is a tenth of that of the counts.
    """
    g = Gaussian(torch.zeros(4, dtype=F64), torch.eye(4, dtype=F64))
    kernel = kind(Independent(g), ladder(8, 0.05), adapt_betas=False)
    mcmc = eb.MCMC(kernel, ticks, 0, num_chains=128, seed=9, disable_progbar=True)
    mcmc.run()
    trips, run = mcmc.stats()["round_trips"], tempering(mcmc)
    assert torch.equal(run.round_trips, trips[:, -1])
    rates, half = 1 - run.swap_rates, ticks // 2
    coin = 1 / (2 * torch.sum(1 / (1 - rates)))
    assert float(run.ideal_rate) > 2 * float(coin)
    found, theory = (trips[:, -1] - trips[:, half - 1]).double() / half, coin if kind is Reversible else run.ideal_rate
    error = float(found.std() / math.sqrt(128))
    assert abs(float(found.mean() - theory)) < stats.t.isf(FALSE_ALARM / 2, 127) * error
    assert error < 0.02 * float(theory)


def test_without_rejections_half_a_trip_a_tick() -> None:
    assert float(ideal_round_trip_rate(torch.zeros(5))) == 0.5


# Temperatures.


def test_temperatures_of_equal_rates_in_closed_form() -> None:
    """A barrier linear in log beta (a Gaussian's) gives the geometric ladder, however uneven one begins."""
    betas = torch.tensor([0.1, 0.15, 0.6, 0.7, 1.0], dtype=F64)
    new = equal_rates(betas, betas.log().diff() * 0.2)
    torch.testing.assert_close(new, torch.tensor(ladder(5, 0.1), dtype=F64))


def test_warm_up_equalises_swap_rates() -> None:
    """Rates between 0.97 and 0.3 at the start; some 1000 correlated draws of the last window tell each to 0.02."""
    e = eb.models.Ising((4, 4), 0.44, dtype=F64)
    start = [0.2, 0.25, 0.3, 0.9, 1.0]

    def rates(warmup: int) -> Tensor:
        mcmc = eb.MCMC(eb.ParallelTempering(eb.Gibbs(e), start), 100, warmup, num_chains=32, seed=10,
                       disable_progbar=True)  # fmt: skip
        mcmc.run()
        return tempering(mcmc).swap_rates

    before, after = rates(10), rates(200)
    assert float(before.max() - before.min()) > 0.4
    assert float(after.max() - after.min()) < 0.08


def test_cold_step_sizes_adapt() -> None:
    g = Gaussian(torch.zeros(5, dtype=F64), torch.eye(5, dtype=F64))
    mcmc = eb.MCMC(eb.ParallelTempering(eb.MALA(g, 0.01), 4), 100, 150, num_chains=32, seed=11, disable_progbar=True)
    mcmc.run()
    assert abs(float(mcmc.stats()["acceptance_rate"].mean()) - 0.574) < 0.05


# Runs.


def kernels() -> dict[str, Any]:
    g = Gaussian(torch.zeros(3, dtype=F64), torch.eye(3, dtype=F64))
    ising = eb.models.Ising((3, 4), 0.4, dtype=F64)
    return {
        "mala": lambda: eb.ParallelTempering(eb.MALA(g), BETAS),
        "gibbs": lambda: eb.ParallelTempering(eb.Gibbs(ising), BETAS),
    }


@pytest.mark.parametrize("kind", ["mala", "gibbs"])
def test_saved_runs_go_on(kind: str, tmp_path: Any) -> None:
    make = kernels()[kind]
    whole, part = (eb.MCMC(make(), n, 40, num_chains=3, seed=12, disable_progbar=True) for n in (20, 8))
    whole.run()
    part.run()
    part.save(tmp_path / "run")
    again = eb.MCMC.load(tmp_path / "run", make())
    again.run(num_samples=12)
    assert torch.equal(whole.get_samples()["x"], again.get_samples()["x"])
    assert torch.equal(whole.stats()["swap_rates"], again.stats()["swap_rates"])


@pytest.mark.parametrize("kind", ["mala", "gibbs"])
def test_runs_under_pyro(kind: str) -> None:
    pyro.set_rng_seed(0)
    mcmc = pyro.infer.MCMC(kernels()[kind](), num_samples=5, warmup_steps=30, disable_progbar=True)
    mcmc.run()
    assert len(mcmc.get_samples()["x"]) == 5


@pytest.mark.long
@pytest.mark.parametrize("kind", ["mala", "gibbs"])
def test_compiled_ticks_are_the_eager_ones(kind: str) -> None:
    runs = [
        eb.MCMC(kernels()[kind](), 30, 60, num_chains=4, seed=13, backend=backend, disable_progbar=True)
        for backend in ("eager", "inductor")
    ]
    for run in runs:
        run.run()
    assert runs[1].backend == "inductor", runs[1].backend_reason
    for name, value in runs[0].stats().items():
        torch.testing.assert_close(value, runs[1].stats()[name], rtol=1e-6, atol=1e-6)


def test_statistics_by_pair_reach_arviz() -> None:
    mcmc = eb.MCMC(kernels()["gibbs"](), 6, 0, num_chains=2, seed=14, disable_progbar=True)
    mcmc.run()
    stats_group = mcmc.to_arviz().sample_stats
    assert stats_group["swap_rates"].shape == (2, 6, 2)
    assert stats_group["round_trips"].dtype == "int64"


def test_an_energy_that_changes_is_noticed() -> None:
    ising = eb.models.Ising((3, 4), 0.4, dtype=F64)
    mcmc = eb.MCMC(eb.ParallelTempering(eb.Gibbs(ising), BETAS), 6, 0, num_chains=2, seed=14, disable_progbar=True)
    mcmc.run()
    with torch.no_grad():
        ising.coupling.fill_(0.1)
    with pytest.warns(UserWarning, match="the energy is another one"):
        mcmc.run(num_samples=3)


@pytest.mark.parametrize(
    ("betas", "message"),
    [
        ([0.5, 0.2, 1.0], "increasing order"),
        ([0.2, 0.5, 0.5, 1.0], "increasing order"),
        ([0.2, 0.5], "end at 1"),
        ([1.0, 0.5, 0.2], "increasing order"),
        ([0.0, 1.0], "betas > 0"),
        ([-0.5, 1.0], "betas > 0"),
        ([math.nan, 1.0], "betas > 0"),
        ([1.0], "at least 2 betas"),
        (1, "at least 2 replicas"),
        (True, "betas as numbers"),
    ],
)
def test_bad_betas(betas: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        eb.ParallelTempering(eb.Gibbs(eb.models.Ising((3, 3))), betas)


@pytest.mark.parametrize("kind", [eb.HMC, eb.NUTS])
def test_kernels_out_of_step_are_refused(kind: Any) -> None:
    g = Gaussian(torch.zeros(3), torch.eye(3))
    with pytest.raises(ValueError, match=f"every tick finishes a draw of every chain, got {kind.__name__}"):
        eb.ParallelTempering(kind(g), BETAS)


@pytest.mark.long
@pytest.mark.parametrize("kind", [eb.SwendsenWang, eb.Wolff])
def test_compiled_clusters_of_replicas_are_the_eager_ones(kind: Any) -> None:
    """Also where couplings become negative between runs: the inner kernel then flips sites."""
    ends = []
    for backend in ("eager", "inductor"):
        e = eb.models.Ising((4, 4), 0.3, 0.1, dtype=F64)
        kernel = eb.ParallelTempering(kind(e), BETAS)
        run = Chains(kernel, torch.ones(7, 4, 4, dtype=torch.int8), 22, backend, record=False)
        run.advance(30)
        assert (run.compiled is None) == (backend == "eager"), run.choice.reason
        with torch.no_grad():
            e.coupling.fill_(-0.5)
        run.advance(30)
        ends.append(run.position())
    assert torch.equal(*ends)
    assert ends[0].unique(dim=0).shape[0] > 1


GRADIENTS: dict[str, Any] = {
    "spins": lambda: eb.GibbsWithGradients(eb.models.Ising((3, 3), 0.3, dtype=F64)),
    "categories": lambda: eb.DiscreteLangevin(eb.models.Potts((3,), 3, 0.6, dtype=F64), adapt_step_size=False),
}


@pytest.mark.parametrize("kind", GRADIENTS)
def test_gradients_of_discrete_replicas_are_traced(kind: str) -> None:
    """And the traced ones make the same draws."""
    ends = []
    for traced in (False, True):
        kernel = eb.ParallelTempering(GRADIENTS[kind](), BETAS)
        shape = kernel.target.event_shape
        start = torch.ones(5, *shape, dtype=torch.int8)
        run = Chains(kernel, start, seed=21)
        kernel.prepare(start, values=True, many=traced)
        assert (kernel.untraced(start) is None) == traced
        run.advance(30)
        ends.append(run.position())
    assert torch.equal(*ends)
    assert ends[0].unique(dim=0).shape[0] > 1


@pytest.mark.long
@pytest.mark.parametrize("kind", GRADIENTS)
def test_compiled_discrete_replicas_are_the_eager_ones(kind: str) -> None:
    ends = []
    for backend in ("eager", "inductor"):
        kernel = eb.ParallelTempering(GRADIENTS[kind](), BETAS)
        run = Chains(kernel, torch.ones(5, *kernel.target.event_shape, dtype=torch.int8), seed=22, backend=backend)
        run.advance(50)
        assert run.choice.backend == backend, run.choice.reason
        ends.append(run.position())
    assert torch.equal(*ends)


def test_kernels_made_of_others_are_refused() -> None:
    e = eb.as_energy(lambda v: v["x"] ** 2 - v["s"], {"s": (), "x": ()}, {"s": eb.energies.spin})
    with pytest.raises(ValueError, match="made again at other temperatures by its settings, got Blocks without blocks"):
        eb.ParallelTempering(eb.Blocks(e, {"s": eb.Gibbs, "x": eb.MALA}), BETAS)
    with pytest.raises(
        ValueError, match="made again at other temperatures by its settings, got ParallelTempering without kernel, "
    ):
        eb.ParallelTempering(eb.ParallelTempering(eb.MALA(Gaussian(torch.zeros(2), torch.eye(2))), BETAS), BETAS)


def test_energies_that_differ_by_row_are_refused() -> None:
    ising = eb.models.Ising((4,), 0.4)
    held = torch.tensor([True, False, False, False])
    clamped = eb.energies.Clamped(ising, held, torch.tensor([[1.0, 1, 1, 1], [-1, 1, 1, 1]]))
    for e, what in ((torch.tensor([0.5, 1.0]) * ising, "inverse temperatures by row in Tempered"),
                    (clamped + clamped, "values by row in Clamped")):  # fmt: skip
        with pytest.raises(ValueError, match=f"expected one energy for all chains, got {what}"):
            eb.ParallelTempering(eb.Gibbs(e), BETAS)
    eb.ParallelTempering(eb.Gibbs(0.5 * ising), BETAS)


@pytest.mark.parametrize("kind", [eb.GibbsWithGradients, eb.DiscreteLangevin])
def test_gradients_inside_are_checked(kind: Any) -> None:
    e = eb.as_energy(lambda x: -0.5 * (x[:, 1:] == x[:, :-1]).double().sum(-1), (4,), eb.energies.categories(3))
    with pytest.raises(EnergyError, match="differentiable in its points"):
        eb.MCMC(eb.ParallelTempering(kind(e), BETAS), 5, 5, num_chains=2, seed=0, disable_progbar=True).run()


def test_anything_but_a_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a kernel"):
        eb.ParallelTempering(eb.models.Ising((3, 3)), BETAS)  # type: ignore[arg-type]
