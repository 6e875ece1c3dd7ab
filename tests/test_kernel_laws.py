"""Laws of every kernel in the registry: the target is invariant, chains are independent, ticks are pure ..."""

from __future__ import annotations

import copy
import io
import math
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import MCMC as PyroMCMC
from torch import Tensor
from torch.distributions import constraints

import ebmppl as eb
from ebmppl.energies import Energy, Gaussian
from ebmppl.kernels import MALA, NUTS, GradientKernel, Kernel, NoiseSpec
from ebmppl.kernels.accept import metropolis, select
from ebmppl.kernels.adaptation import Tuning, factorise
from ebmppl.kernels.integrators import Phase, kinetic, leapfrog
from ebmppl.kernels.mala import MALAInfo, MALAState
from ebmppl.sampling.chains import Chains
from ebmppl.sampling.noise import NoiseSource
from tests.registry import KERNELS, KernelCase
from tests.targets import FUNCTIONS, TARGETS, Walls, f64, gen

EXACT = [name for name, case in KERNELS.items() if case.exact]
CPU = torch.device("cpu")
FALSE_ALARM = 1e-3  # of all invariance tests of this file together; seeds are fixed


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Small tensors: a second thread costs more than it brings (DESIGN 4), and rounding should not depend on it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# The target is invariant.

RUNS = [(1, 50_000), (10, 10_000), pytest.param(10, 50_000, marks=pytest.mark.long)]  # transitions, chains
_TESTS = 3 * len(EXACT) * sum(f(TARGETS[name].sample(2, gen(0))).shape[1] for name, f in FUNCTIONS.items())
# Start and end of a reversible kernel at equilibrium are exchangeable, so a change has a symmetric law, and for sums of
# independent symmetric numbers P(|sum| > t sqrt(sum of squares)) <= 2 exp(-t^2 / 2), whatever their tails (Efron 1969).
LIMIT = math.sqrt(2 * math.log(2 * _TESTS / FALSE_ALARM))


def drift(target: str, start: Tensor, end: Tensor) -> float:
    """The largest self-normalised change of any function; compare with ``LIMIT``."""
    change = FUNCTIONS[target](end) - FUNCTIONS[target](start)
    return float((change.sum(0) / change.square().sum(0).sqrt().clamp_min(1e-300)).abs().max())


def metric(case: KernelCase, dimension: int) -> Tensor:
    """An inverse mass matrix that is not the identity and does not fit the target."""
    diagonal = f64(0.6, 1.4, 1.0)[:dimension]
    if not case.dense:
        return diagonal
    a = f64([1.0, 0.3, 0.0], [0.0, 1.0, -0.4], [0.2, 0.0, 1.0])[:dimension, :dimension]
    return a @ torch.diag(diagonal) @ a.T


def on(device: torch.device, target: str) -> Energy:
    """The energy of a target, on a device."""
    return copy.deepcopy(TARGETS[target].energy).to(device)


def chains_of(case: KernelCase, energy: Energy, x: Tensor, seed: int) -> Chains:
    chains = Chains(case.factory(energy), x, seed)
    if case.adapts:
        mass = metric(case, x[0].numel()).to(x)
        chains.now = chains.now._replace(tuning=Tuning(chains.now.tuning.step_size, mass, factorise(mass)))
    return chains


@pytest.mark.parametrize(("transitions", "chains"), RUNS)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kernel", EXACT)
def test_exact_draws_stay_exact(kernel: str, target: str, transitions: int, chains: int, device: torch.device) -> None:
    """Power: a mean change of 0.036 of its root mean square is found in 50,000 chains with probability 0.98."""
    start = TARGETS[target].sample(chains, gen(transitions))
    run = chains_of(KERNELS[kernel], on(device, target), start.to(device), seed=transitions)
    run.advance(transitions)
    assert drift(target, start, run.position().cpu()) < LIMIT


def test_the_stated_power_holds() -> None:
    # z ~ N(0.036 sqrt(50,000), 1) is over the limit with probability over 0.98
    assert 0.036 * math.sqrt(50_000) - LIMIT > 2.05


@pytest.mark.parametrize("kernel", EXACT)
def test_every_kernel_notices_a_target_a_fifth_colder(kernel: str) -> None:
    start = TARGETS["gaussian"].sample(10_000, gen(5))
    run = chains_of(KERNELS[kernel], 1.2 * TARGETS["gaussian"].energy, start, seed=5)
    run.advance(10)
    assert drift("gaussian", start, run.position()) > LIMIT


@pytest.mark.parametrize("kernel", [name for name in KERNELS if name not in EXACT])
def test_an_inexact_kernel_is_seen_to_be_one(kernel: str) -> None:
    start = TARGETS["gaussian"].sample(50_000, gen(6))
    run = chains_of(KERNELS[kernel], TARGETS["gaussian"].energy, start, seed=6)
    run.advance(1)
    assert drift("gaussian", start, run.position()) > LIMIT


# Deliberately wrong kernels must fail.


class PlainHMC(GradientKernel):
    """A whole trajectory in one tick, right with no flaw and wrong with one. Its steps are so long that it often rejects."""

    synchronous = False

    def __init__(self, energy: Energy, flaw: str | None = None, *, step: float = 1.2, steps: int = 3) -> None:
        super().__init__(energy)
        self.flaw, self.step, self.steps = flaw, step, steps

    def init(self, x: Tensor) -> MALAState:
        position = self.flat(x)
        return MALAState(position, *self.value_and_grad(position))

    def init_tuning(self, x: Tensor) -> Tuning:
        return Tuning.identity(self.step, self.dimension, x, full_mass=False)

    def noise(self) -> dict[str, NoiseSpec]:
        return {"momentum": NoiseSpec("normal", (self.dimension,)), "accept": NoiseSpec("uniform", ())}

    def tick(self, state: MALAState, tuning: Tuning, noise: Any) -> tuple[MALAState, MALAInfo]:
        size = tuning.step_size.expand_as(state.energy)
        start = end = Phase(state.position, noise["momentum"], state.energy, state.grad)
        going = torch.ones(len(size), dtype=torch.bool)
        for _ in range(self.steps):
            new = leapfrog(self.value_and_grad, end, size, tuning.factor)
            end = Phase(*(select(going, a, b) for a, b in zip(new, end, strict=True)))
            if self.flaw == "length depends on the end point":
                going = going & (end.position[:, 0] < 0.5)
        if self.flaw == "no last half kick":
            end = end._replace(momentum=end.momentum + 0.5 * size.unsqueeze(1) * end.grad)
        error = end.energy - start.energy
        if self.flaw != "no kinetic energy in the decision":
            error = error + kinetic(end.momentum) - kinetic(start.momentum)
        if self.flaw == "sign of the error":
            error = -error
        if self.flaw == "half the error":
            error = 0.5 * error
        accept, rate, diverging = metropolis(error, noise["accept"])
        if self.flaw == "accepts always":
            accept = torch.isfinite(error)
        kept = accept
        if self.flaw == "keeps the gradient of what it rejected":
            kept = torch.ones_like(accept)
        if self.flaw == "counts accepted moves only":  # a draw that was rejected is not one: moves until it accepts
            done = accept
        else:
            done = torch.ones_like(accept)
        new_state = MALAState(
            select(accept, end.position, state.position),
            select(accept, end.energy, state.energy),
            select(kept, end.grad, state.grad),
        )
        lp = -new_state.energy
        return new_state, MALAInfo(done, lp, new_state.energy, rate, error, diverging, size)


FLAWS = [
    "accepts always",
    "no kinetic energy in the decision",
    "no last half kick",
    "length depends on the end point",
    "sign of the error",
    "half the error",
    "keeps the gradient of what it rejected",
    "counts accepted moves only",
]


def after(kernel: Kernel, target: str, transitions: int) -> float:
    start = TARGETS[target].sample(50_000, gen(7))
    run = Chains(kernel, start, seed=7)
    run.advance(transitions)
    return drift(target, start, run.position())


@pytest.mark.parametrize("target", ["mixture", "student"])
def test_the_plain_kernel_without_a_flaw_passes(target: str) -> None:
    assert after(PlainHMC(TARGETS[target].energy), target, 4) < LIMIT


@pytest.mark.parametrize("flaw", FLAWS)
@pytest.mark.parametrize("target", ["mixture", "student"])
def test_a_wrong_kernel_fails(target: str, flaw: str) -> None:
    assert after(PlainHMC(TARGETS[target].energy, flaw), target, 4) > LIMIT


def test_mala_that_accepts_always_fails() -> None:
    class Always(MALA):
        def tick(self, state: Any, tuning: Any, noise: Any) -> Any:
            return super().tick(state, tuning, {**noise, "accept": torch.zeros_like(noise["accept"])})

    assert after(Always(TARGETS["gaussian"].energy, 0.8), "gaussian", 1) > LIMIT


class _Reached(NamedTuple):
    by_draws: Tensor  # third draw of every chain
    by_ticks: Tensor  # last draw of every chain when a number of ticks is over


def reached(kernel: Kernel, start: Tensor, ticks: int) -> _Reached:
    run = Chains(kernel, start, seed=8)
    third, count = start.clone(), torch.zeros(len(start), dtype=torch.int64)
    last = start
    for t in range(10_000):
        info = run._tick(adapt=False)
        count += info.done
        third = select(info.done & (count == 3), run.position(), third)
        if t + 1 == ticks:
            last = run.position()
        if t >= ticks and bool((count >= 3).all()):
            break
    return _Reached(third, last)


@pytest.mark.long
def test_stopping_by_ticks_fails_where_stopping_by_draws_passes() -> None:
    """A chain under way in a long tree when the time is over keeps its old draw: points with long trees are too many."""
    start = TARGETS["funnel"].sample(20_000, gen(8))
    found = reached(NUTS(TARGETS["funnel"].energy, 0.15, max_tree_depth=6), start, ticks=50)
    assert drift("funnel", start, found.by_draws) < LIMIT
    assert drift("funnel", start, found.by_ticks) > LIMIT


# Chains are independent.


def draws(kernel: Kernel, x: Tensor, n: int, seed: int = 3, **options: Any) -> eb.MCMC:
    """A run at fixed tuning from given points."""
    mcmc = eb.MCMC(kernel, n, 0, x, len(x), seed=seed, disable_progbar=True, **options)
    mcmc.run()
    return mcmc


def by_chain(mcmc: eb.MCMC) -> Tensor:
    return mcmc.get_samples(group_by_chain=True)["x"]


@pytest.mark.parametrize("target", ["mixture", "gaussian", "walls"])
@pytest.mark.parametrize("case", KERNELS.values(), ids=KERNELS)
def test_a_chain_does_not_see_where_others_start(case: KernelCase, target: str, device: torch.device) -> None:
    x = TARGETS[target].sample(70, gen(1)).to(device)  # two blocks
    moved = 0.1 * x - 0.3  # inside the walls
    same = torch.zeros(70, dtype=torch.bool, device=device)
    same[[0, 5, 63, 64, 69]] = True
    moved[same] = x[same]
    a, b = (by_chain(draws(case.factory(on(device, target)), start, 12)) for start in (x, moved))
    assert torch.equal(a[same], b[same])
    assert not torch.equal(a[~same], b[~same])


@pytest.mark.parametrize("chains", [65, 128, 200])
@pytest.mark.parametrize("target", ["mixture", "gaussian", "walls"])
@pytest.mark.parametrize("case", KERNELS.values(), ids=KERNELS)
def test_more_blocks_change_nothing_for_the_first(case: KernelCase, target: str, chains: int) -> None:
    x = TARGETS[target].sample(chains, gen(2))
    many, few = (draws(case.factory(TARGETS[target].energy), start, 12) for start in (x, x[:64]))
    assert torch.equal(by_chain(many)[:64], by_chain(few))
    for name, value in few.stats().items():
        # the energy error of a proposal beyond a wall is NaN or inf, bit for bit the same
        assert torch.equal(torch.nan_to_num(many.stats()[name][:64].double()), torch.nan_to_num(value.double())), name


def test_initial_points_do_not_depend_on_the_number_of_blocks() -> None:
    few, many = (eb.MCMC(MALA(Walls((2,))), 1, 0, num_chains=n, seed=4, disable_progbar=True) for n in (64, 130))
    few.run()
    many.run()
    assert torch.equal(by_chain(few), by_chain(many)[:64])


def test_one_random_number_for_all_chains_would_be_seen() -> None:
    """The normal numbers of 256 chains are different, within a tick and across blocks and ticks.

    Those of 32 random bits meet by chance: 0.3 pairs of 51,200 numbers are expected, and more than 5 once in a million.
    """
    source = NoiseSource({"n": NoiseSpec("normal", (2,)), "u": NoiseSpec("uniform", ())}, 256, 0, torch.float64, CPU)
    rows = [source.row(t) for t in range(100)]
    for name in ("n", "u"):
        numbers = torch.cat([row[name].flatten() for row in rows])
        assert len(numbers.unique()) >= len(numbers) - 5
        assert all(len(row[name].unique()) == row[name].numel() for row in rows[:20])


# Where the energy is not finite.


class Barrier(Energy):
    """A standard normal in the plane up to x0 = 0.5, and trouble of a kind beyond."""

    def __init__(self, kind: str) -> None:
        super().__init__((2,))
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        energy = 0.5 * x.square().sum(-1)
        beyond = {"inf": math.inf, "nan": math.nan, "minus inf": -math.inf}.get(self.kind)
        return energy if beyond is None else torch.where(x[..., 0] > 0.5, beyond, energy)

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        energy, grad = super().value_and_grad(x)
        bad = {"gradient nan": math.nan, "gradient inf": math.inf}.get(self.kind)
        return energy, grad if bad is None else torch.where(x[..., :1] > 0.5, bad, grad)


@pytest.mark.parametrize("kind", ["inf", "nan", "minus inf", "gradient nan", "gradient inf"])
@pytest.mark.parametrize("case", KERNELS.values(), ids=KERNELS)
def test_what_is_not_finite_is_rejected_and_counted(case: KernelCase, kind: str, device: torch.device) -> None:
    x = -torch.rand(100, 2, dtype=torch.float64, generator=gen(3)).to(device)
    mcmc = draws(case.factory(Barrier(kind)), x, 40)
    position, stats = by_chain(mcmc), mcmc.stats()
    assert bool(torch.isfinite(position).all())
    assert float(position[..., 0].max()) <= 0.5  # never accepted
    for name in ("lp", "energy", "acceptance_rate"):
        assert bool(torch.isfinite(stats[name]).all()), name
    assert torch.equal(stats["lp"], -mcmc.kernel.target(position))
    counts = mcmc.now.counts
    # chains may have finished a few draws more than were asked for
    assert bool((counts.diverging >= stats["diverging"].sum(1)).all())
    assert bool((counts.diverging - stats["diverging"].sum(1) <= counts.finished - 40).all())
    # the wall has a mass of 0.31 behind it and is met all the time
    assert float(stats["diverging"].double().mean()) > 0.02
    if "tree_depth" not in stats:  # one proposal for a draw: a diverging one moves nothing
        before = torch.cat([x.unsqueeze(1), position[:, :-1]], 1)
        assert torch.equal(position[stats["diverging"]], before[stats["diverging"]])
        assert float(stats["acceptance_rate"][stats["diverging"]].max()) == 0.0
    state = mcmc.now.state
    assert bool(torch.isfinite(state.position).all() & torch.isfinite(state.energy).all())
    assert bool(torch.isfinite(state.grad).all())


@pytest.mark.parametrize("kind", ["inf", "nan", "gradient nan"])
@pytest.mark.parametrize(
    "name",
    [  # a trajectory of fixed length takes a thousand steps where the wall holds the step size down
        pytest.param(name, marks=[pytest.mark.long] if "length" in name else [])
        for name, case in KERNELS.items()
        if case.adapts
    ],
)
def test_warm_up_beside_a_wall_stays_finite(name: str, kind: str) -> None:
    x = -torch.rand(20, 2, dtype=torch.float64, generator=gen(4))
    mcmc = eb.MCMC(KERNELS[name].factory(Barrier(kind)), 5, 30, x, 20, seed=0, disable_progbar=True)
    mcmc.run()
    tuning = mcmc.now.tuning
    assert all(bool(torch.isfinite(field).all()) for field in tuning)
    assert 1e-3 < float(tuning.step_size) < 10
    assert float(by_chain(mcmc)[..., 0].max()) <= 0.5


@pytest.mark.parametrize("case", KERNELS.values(), ids=KERNELS)
def test_lp_is_minus_the_energy_of_the_draw(case: KernelCase) -> None:
    mcmc = draws(case.factory(TARGETS["mixture"].energy), TARGETS["mixture"].sample(16, gen(5)), 20)
    # the closed-form gradient and forward sum in another order: rounding of numbers of size 10
    assert torch.allclose(mcmc.stats()["lp"], -TARGETS["mixture"].energy(by_chain(mcmc)), rtol=0, atol=1e-13)


# Tensors.


def leaves(value: Any) -> dict[str, Tensor]:
    return value._asdict()


def gaussian_like(x: Tensor) -> Energy:
    """A correlated Gaussian over points like these."""
    n = x[0].numel()
    covariance = 0.3 + torch.diag(torch.linspace(0.5, 1.5, n))
    return Gaussian(torch.zeros(n).to(x), covariance.to(x))


@pytest.mark.parametrize("wanted", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", KERNELS.values(), ids=KERNELS)
def test_dtype_and_device_are_kept(case: KernelCase, wanted: torch.dtype, device: torch.device) -> None:
    x = torch.randn(5, 3, generator=gen(6)).to(device, wanted)
    kernel = case.factory(gaussian_like(x))
    chains = Chains(kernel, x, seed=0)
    infos: list[Any] = []
    chains.begin_adaptation()
    chains.advance(3, adapt=True, observe=infos.append)
    chains.end_window(metric=True)
    chains.end_adaptation()
    chains.advance(2, observe=infos.append)
    for value in (chains.now.state, chains.now.tuning, kernel.init(x), kernel.init_tuning(x), infos[0], infos[-1]):
        for name, leaf in leaves(value).items():
            assert leaf.device.type == device.type, name
            assert not leaf.is_floating_point() or leaf.dtype == wanted, name
    for name, leaf in {**leaves(chains.now.state), **leaves(infos[-1])}.items():
        assert len(leaf) == 5, f"{name} has no chain axis"
        assert not leaf.requires_grad
    assert infos[-1].done.dtype == infos[-1].diverging.dtype == torch.bool
    assert chains.position().dtype == wanted


class ChainsLast(Energy):
    """A Gaussian whose author keeps chains last inside, so that gradients come with other strides."""

    def forward(self, x: Tensor) -> Tensor:
        return self.value_and_grad(x)[0]

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        grad = torch.diag(torch.linspace(0.5, 1.5, 3)).to(x) @ x.T
        return 0.5 * (grad * x.T).sum(0), grad.T


AWKWARD: dict[str, Energy] = {
    "plain": Gaussian(torch.zeros(3), torch.eye(3)),
    "autograd": eb.as_energy(lambda x: (0.5 * x**2).sum(-1), (3,)),
    "chains last": ChainsLast((3,)),
    "matrix": eb.as_energy(lambda x: 0.5 * (x**2).sum((1, 2)), (2, 2)),
    "scalar": eb.as_energy(lambda x: 0.5 * x**2, ()),
    "positive": eb.as_energy(lambda x: x.sum(-1), (3,), constraints.positive),
    "slope": eb.as_energy(lambda x: x.sum(-1), (3,)),  # its gradient is one number, expanded
    "identity": eb.as_energy(lambda x: x[..., 0], (1,), batched=True),  # its value is a view of the point
}


@pytest.mark.parametrize("energy", [AWKWARD[name] for name in ("plain", "chains last", "positive")])
@pytest.mark.parametrize("case", KERNELS.values(), ids=KERNELS)
def test_a_tick_keeps_the_form_of_every_leaf(case: KernelCase, energy: Energy) -> None:
    """Shape, dtype and strides of a state never change: a compiled tick is compiled once."""
    chains = Chains(case.factory(energy), torch.randn(5, 3, generator=gen(6)), seed=0)
    form = {name: (leaf.shape, leaf.dtype, leaf.stride()) for name, leaf in leaves(chains.now.state).items()}
    for _ in range(10):
        chains._tick(adapt=False)
        now = {name: (leaf.shape, leaf.dtype, leaf.stride()) for name, leaf in leaves(chains.now.state).items()}
        assert now == form


@pytest.mark.parametrize("energy", AWKWARD.values(), ids=AWKWARD)
@pytest.mark.parametrize("case", KERNELS.values(), ids=KERNELS)
def test_every_leaf_of_init_has_its_own_contiguous_storage(case: KernelCase, energy: Energy) -> None:
    kernel = case.factory(energy)
    x = torch.randn(4, *energy.event_shape, generator=gen(7))
    for given in (x, torch.stack([x, x], -1)[..., 0]):  # contiguous, and not
        state, tuning = leaves(kernel.init(given)), leaves(kernel.init_tuning(given))
        for name, leaf in {**state, **tuning}.items():
            assert leaf.is_contiguous(), name
            assert leaf.untyped_storage().nbytes() == leaf.numel() * leaf.element_size(), f"{name} is part of another"
        storages = {leaf.untyped_storage().data_ptr() for leaf in (*state.values(), *tuning.values(), given)}
        assert len(storages) == len(state) + len(tuning) + 1


@pytest.mark.parametrize("case", KERNELS.values(), ids=KERNELS)
def test_a_tick_is_pure(case: KernelCase) -> None:
    kernel = case.factory(TARGETS["walls"].energy)
    chains = Chains(kernel, TARGETS["walls"].sample(300, gen(8)), seed=0)
    for _ in range(7):
        chains._tick(adapt=False)
    state, tuning = chains.now.state, chains.now.tuning
    noise = {name: row.clone() for name, row in chains.noise.row(chains.now.tick).items()}
    given = [*state, *tuning, *noise.values()]
    before = [leaf.clone() for leaf in given]
    generators = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    results = [kernel.tick(state, tuning, noise) for _ in range(2)]
    scratch = [id(getattr(state, name)) for name in kernel.scratch]
    for a, b in zip(given, before, strict=True):
        assert id(a) in scratch or torch.equal(a.nan_to_num(), b.nan_to_num())
    for a, b in zip(*([*new, *info] for new, info in results), strict=True):
        assert torch.equal(a.nan_to_num(), b.nan_to_num())
        assert a.dtype == b.dtype
    assert torch.equal(generators[0], torch.get_rng_state())
    assert generators[1] == random.getstate()
    assert np.array_equal(generators[2], np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize("case", KERNELS.values(), ids=KERNELS)
def test_what_a_tick_returns_does_not_alias_what_it_was_given(case: KernelCase) -> None:
    """A new leaf is the old one passed on or has memory of its own, so that no view of old memory gets into a state."""
    kernel = case.factory(TARGETS["mixture"].energy)
    chains = Chains(kernel, TARGETS["mixture"].sample(5, gen(9)), seed=0)
    for _ in range(9):
        old, row = chains.now.state, chains.noise.row(chains.now.tick)
        chains._tick(adapt=False)
        before = leaves(old)
        given = {leaf.untyped_storage().data_ptr() for leaf in (*before.values(), *row.values())}
        for name, leaf in leaves(chains.now.state).items():
            assert leaf is before[name] or leaf.untyped_storage().data_ptr() not in given, name


@pytest.mark.parametrize("case", KERNELS.values(), ids=KERNELS)
def test_noise_is_declared(case: KernelCase) -> None:
    kernel = case.factory(TARGETS["mixture"].energy)
    specs = kernel.noise()
    assert all(spec.kind in ("normal", "uniform") for spec in specs.values())
    source = NoiseSource(specs, 3, 0, torch.float32, CPU)
    for name, row in source.row(0).items():
        assert row.shape == (3, *specs[name].shape)
        assert row.dtype == torch.float32
        assert specs[name].kind == "normal" or bool(((row >= 0) & (row < 1)).all())


@pytest.mark.parametrize("case", KERNELS.values(), ids=KERNELS)
def test_advance_gives_exactly_n_draws_of_every_chain(case: KernelCase) -> None:
    chains = Chains(case.factory(TARGETS["walls"].energy), TARGETS["walls"].sample(40, gen(1)), seed=0)
    count = torch.zeros(40, dtype=torch.int64)

    def observe(info: Any) -> None:
        count.add_(info.done)

    for n in (1, 3):
        count.zero_()
        chains.advance(n, observe=observe)
        assert count.tolist() == [n] * 40


OWN_TICKS = {n: c for n, c in KERNELS.items() if type(c.factory(Barrier("none"))).ticks is not Kernel.ticks}


@pytest.mark.parametrize("kind", ["none", "inf", "nan", "gradient nan"])  # an infinite energy shows in no later point
@pytest.mark.parametrize("case", OWN_TICKS.values(), ids=OWN_TICKS)
def test_ticks_whose_infos_nobody_sees_are_the_same(case: KernelCase, kind: str) -> None:
    x = -torch.rand(40, 2, generator=gen(4))
    infos: list[Any] = []
    rates: list[Tensor] = []
    looked, unseen = (Chains(case.factory(Barrier(kind)), x, seed=5) for _ in range(2))
    for n in (1, 70):  # within a block of ticks, and over one
        looked.advance(n, observe=infos.append)
        unseen.advance(n, rates=rates)
    assert looked.now.tick == unseen.now.tick == 71
    for name, leaf in leaves(looked.now.state).items():
        assert torch.equal(leaf, leaves(unseen.now.state)[name]), name
    seen = torch.stack([info.acceptance_rate for info in infos])
    assert torch.equal(seen, torch.stack(rates))
    assert bool((seen < 1).any()) == (kind != "none")


@pytest.mark.parametrize("case", KERNELS.values(), ids=KERNELS)
def test_advance_equals_a_run_where_one_chain_runs(case: KernelCase) -> None:
    x = TARGETS["walls"].sample(1, gen(2))
    chains = Chains(case.factory(TARGETS["walls"].energy), x, seed=3)
    chains.advance(5)
    assert torch.equal(chains.position(), by_chain(draws(case.factory(TARGETS["walls"].energy), x, 5))[:, 4])


@pytest.mark.parametrize("case", KERNELS.values(), ids=KERNELS)
def test_restart_drops_what_is_under_way_and_keeps_the_draws(case: KernelCase) -> None:
    kernel = case.factory(TARGETS["walls"].energy)
    chains = Chains(kernel, TARGETS["walls"].sample(20, gen(3)), seed=0)
    for _ in range(8):
        chains._tick(adapt=False)
    position = chains.position().clone()
    state = kernel.restart(chains.now.state)
    assert torch.equal(kernel.position(state), position)
    # from here on it is as if the chains had just been put there
    fresh, row = kernel.init(position), chains.noise.row(8)
    for _ in range(3):
        (state, a), (fresh, b) = (kernel.tick(s, chains.now.tuning, row) for s in (state, fresh))
        assert torch.equal(a.done, b.done)
        done = a.done
        assert torch.allclose(kernel.position(state)[done], kernel.position(fresh)[done], rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", KERNELS.values(), ids=KERNELS)
def test_a_state_goes_through_a_dict_of_tensors(case: KernelCase, device: torch.device) -> None:
    kernel = case.factory(on(device, "mixture"))
    chains = Chains(kernel, TARGETS["mixture"].sample(6, gen(4)).to(device), seed=0)
    for _ in range(5):
        chains._tick(adapt=False)
    state, tuning, row = chains.now.state, chains.now.tuning, chains.noise.row(5)
    file = io.BytesIO()
    torch.save({"state": state._asdict(), "tuning": tuning._asdict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again = type(state)(**saved["state"]), type(tuning)(**saved["tuning"])
    for a, b in zip(kernel.tick(state, tuning, row)[0], kernel.tick(*again, row)[0], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", KERNELS)
def test_a_seed_fixes_the_run_and_another_changes_it(name: str, device: torch.device) -> None:
    def run(seed: int) -> Tensor:
        kernel = KERNELS[name].factory(on(device, "mixture"))
        mcmc = eb.MCMC(kernel, 6, 25, num_chains=3, seed=seed, disable_progbar=True)
        mcmc.run()
        return by_chain(mcmc)

    a, again, b = run(0), run(0), run(1)
    assert torch.equal(a, again)
    assert not bool(torch.isclose(a, b).any())


@pytest.mark.parametrize("case", KERNELS.values(), ids=KERNELS)
def test_the_global_generators_are_not_used(case: KernelCase, device: torch.device) -> None:
    there = torch.cuda.get_rng_state_all()  # empty without a GPU
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    mcmc = eb.MCMC(case.factory(on(device, "mixture")), 3, 25, num_chains=3, seed=0, disable_progbar=True)
    mcmc.run()
    assert torch.equal(before[0], torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(there, torch.cuda.get_rng_state_all(), strict=True))
    assert before[1] == random.getstate()
    assert np.array_equal(before[2], np.random.get_state()[1])  # noqa: NPY002


# Shapes.


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3), (1, 4, 4)])
@pytest.mark.parametrize("case", KERNELS.values(), ids=KERNELS)
def test_event_shapes(case: KernelCase, shape: tuple[int, ...]) -> None:
    """Any event shape gives what its flattened vector gives, number by number."""
    scale = torch.linspace(0.5, 2.0, math.prod(shape), dtype=torch.float64)

    def energy(x: Tensor) -> Tensor:
        return 0.5 * (x.reshape(len(x), -1) / scale).square().sum(1)

    x = torch.randn(4, *shape, dtype=torch.float64, generator=gen(5))
    runs = []
    for event in (shape, (len(scale),)):
        kernel = case.factory(eb.as_energy(energy, event, batched=True))
        mcmc = eb.MCMC(kernel, 5, 25, x.reshape(4, *event), 4, seed=1, disable_progbar=True)
        mcmc.run()
        assert by_chain(mcmc).shape == (4, 5, *event)
        assert mcmc.get_samples()["x"].shape == (20, *event)
        runs.append(by_chain(mcmc))
    assert torch.equal(runs[0].reshape(runs[1].shape), runs[1])


# Under Pyro's own driver.


def under_pyro(kernel: Kernel, start: dict[str, Tensor] | None, n: int = 6, warmup: int = 25) -> dict[str, Tensor]:
    run = PyroMCMC(kernel, num_samples=n, warmup_steps=warmup, initial_params=start, num_chains=1, disable_progbar=True)
    run.run()
    run.diagnostics()
    return run.get_samples()


@pytest.fixture
def _own_pyro_seed() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
        pyro.set_rng_seed(0)
        yield
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


@pytest.mark.usefixtures("_own_pyro_seed")
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
@pytest.mark.parametrize("case", KERNELS.values(), ids=KERNELS)
def test_under_pyro_one_axis_more_is_chains(case: KernelCase, shape: tuple[int, ...]) -> None:
    energy = eb.as_energy(lambda x: 0.5 * x.reshape(len(x), -1).square().sum(1), shape, batched=True)
    assert under_pyro(case.factory(energy), {"x": torch.zeros(shape)})["x"].shape == (6, *shape)
    assert under_pyro(case.factory(energy), {"x": torch.zeros(5, *shape)})["x"].shape == (6, 5, *shape)
    assert under_pyro(case.factory(energy), None)["x"].shape == (6, *shape)


@pytest.mark.usefixtures("_own_pyro_seed")
@pytest.mark.parametrize("case", KERNELS.values(), ids=KERNELS)
def test_under_pyro_samples_are_in_the_support(case: KernelCase) -> None:
    def fn(site: dict[str, Tensor]) -> Tensor:
        return (site["tau"] - torch.log(site["tau"])) + 0.5 * site["b"].square().sum(-1) - site["p"].log().sum(-1)

    support = {"tau": constraints.positive, "p": constraints.simplex}
    energy = eb.as_energy(fn, {"tau": (), "b": (2,), "p": (3,)}, support)
    start = {"tau": torch.zeros(4), "b": torch.zeros(4, 2), "p": torch.zeros(4, 2)}  # unconstrained
    found = under_pyro(case.factory(energy), start)
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        "tau": (6, 4),
        "b": (6, 4, 2),
        "p": (6, 4, 3),
    }
    assert bool((found["tau"] > 0).all())
    assert torch.allclose(found["p"].sum(-1), torch.ones(6, 4))  # float32 rounding


@pytest.mark.usefixtures("_own_pyro_seed")
@pytest.mark.parametrize("case", KERNELS.values(), ids=KERNELS)
def test_under_pyro_the_seed_reproduces(case: KernelCase) -> None:
    found = []
    for seed in (1, 1, 2):
        pyro.set_rng_seed(seed)
        found.append(under_pyro(case.factory(TARGETS["mixture"].energy), None)["x"])
    assert torch.equal(found[0], found[1])
    assert not bool(torch.isclose(found[0], found[2]).any())


@pytest.mark.usefixtures("_own_pyro_seed")
@pytest.mark.parametrize("case", KERNELS.values(), ids=KERNELS)
def test_under_pyro_the_draws_are_those_of_the_chains(case: KernelCase, device: torch.device) -> None:
    x = TARGETS["mixture"].sample(3, gen(6)).to(device)
    pyro.set_rng_seed(4)
    found = under_pyro(case.factory(on(device, "mixture")), {"x": x}, n=4, warmup=0)["x"]
    pyro.set_rng_seed(4)
    chains = Chains(case.factory(on(device, "mixture")), x, seed=int(torch.randint(2**31, ())))
    for row in found:
        chains.advance(1)
        assert torch.equal(row, chains.position())


@pytest.mark.usefixtures("_own_pyro_seed")
@pytest.mark.parametrize("case", KERNELS.values(), ids=KERNELS)
def test_under_pyro_moved_params_are_believed(case: KernelCase) -> None:
    """Pyro's own HMC ignores the params it is given while its cache is full."""
    energy = eb.as_energy(lambda x: (1 + x.square()).sqrt().sum(-1), (2,))  # gradients under 1
    kernel = case.factory(energy)
    kernel.setup(0)
    first = kernel.sample({"x": torch.zeros(3, 2)})
    second = kernel.sample(first)
    assert float(second["x"].abs().max()) < 40
    moved = kernel.sample({"x": second["x"] + 1000})
    # one draw takes at most 8 steps of 0.8 from a momentum of under 6: it moves by under 100
    assert float((moved["x"] - 1000).abs().max()) < 140
    state = kernel._under_pyro.chains.now.state
    assert torch.equal(state.energy, energy(moved["x"]))  # nothing stale
    back = kernel.sample({"x": moved["x"].clone()})  # an equal tensor that is not its own is a move too
    assert float((back["x"] - moved["x"]).abs().max()) < 100


@pytest.mark.usefixtures("_own_pyro_seed")
@pytest.mark.parametrize("name", [name for name, case in KERNELS.items() if case.adapts])
def test_under_pyro_tuning_is_frozen_after_warm_up(name: str) -> None:
    kernel = KERNELS[name].factory(TARGETS["gaussian"].energy)
    kernel.setup(30)
    params = {"x": TARGETS["gaussian"].sample(8, gen(7))}
    tunings = []
    for _ in range(36):
        params = kernel.sample(params)
        tunings.append(kernel._under_pyro.chains.now.tuning)
    frozen = tunings[29:]
    assert all(torch.equal(a, b) for t in frozen for a, b in zip(t, frozen[0], strict=True))
    assert not torch.equal(tunings[0].step_size, tunings[10].step_size)
    assert not torch.equal(frozen[0].inverse_mass, kernel.init_tuning(params["x"]).inverse_mass)


def test_pyro_refuses_arguments_of_run() -> None:
    with pytest.raises(ValueError, match="expected no arguments"):
        PyroMCMC(MALA(TARGETS["gaussian"].energy), num_samples=1, warmup_steps=0, disable_progbar=True).run(1.0)
