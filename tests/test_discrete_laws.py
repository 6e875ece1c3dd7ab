"""Laws of every model and kernel of discrete energies: conditionals, invariance, detailed balance, independence ..."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor

import ebmppl as eb
from ebmppl.energies.discrete import indexed, levels_of
from ebmppl.kernels.discrete import ByEnergies
from ebmppl.kernels.gibbs import GibbsState
from ebmppl.kernels.pooling import BLOCK
from ebmppl.sampling.chains import Chains
from ebmppl.sampling.initial import Uniform, starting_points
from tests.discrete import balance_p_value, exact_draws, law, number, p_value, states_of
from tests.discrete_registry import DISCRETE, DISCRETE_KERNELS

PAIRS = [(k, e) for k, case in DISCRETE_KERNELS.items() for e in DISCRETE if case.takes(e)]
EXACT = [(k, e) for k, e in PAIRS if DISCRETE_KERNELS[k].exact]
FALSE_ALARM = 1e-3  # of all tests of this file together; seeds are fixed
LIMIT = FALSE_ALARM / (4 * max(1, len(EXACT)))  # at most four tests of each pair


def some_by_default(pairs: list[tuple[str, str]]) -> list[Any]:
    """Each kernel with every sixth of its energies, shifted from kernel to kernel; the others are marked long."""
    shift = {kernel: i for i, kernel in enumerate(DISCRETE_KERNELS)}
    place = {pair: sum(k == pair[0] for k, _ in pairs[: pairs.index(pair)]) for pair in pairs}
    return [p if (place[p] + shift[p[0]]) % 6 == 0 else pytest.param(*p, marks=pytest.mark.long) for p in pairs]


every_pair = pytest.mark.parametrize(("kernel", "energy"), some_by_default(PAIRS))
every_exact_pair = pytest.mark.parametrize(("kernel", "energy"), some_by_default(EXACT))
every_energy = pytest.mark.parametrize("energy", DISCRETE)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def end_of(kernel: eb.kernels.Kernel, start: Tensor, transitions: int, seed: int) -> Tensor:
    run = Chains(kernel, start, seed)
    run.advance(transitions)
    return run.position().cpu()


# Models.


@every_energy
def test_rows_are_independent_and_batches_of_any_shape(energy: str) -> None:
    e = DISCRETE[energy]()
    target, x = indexed(e), exact_draws(e, 12, seed=1)
    value = target(x)
    assert value.shape == (12,)
    rounding = {"rtol": 1e-12, "atol": 1e-12} if value.dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(target(x.reshape(3, 4, *x.shape[1:])), value.reshape(3, 4), **rounding)
    torch.testing.assert_close(torch.stack([target(row) for row in x]), value, **rounding)
    torch.testing.assert_close(target(x.double()).to(value.dtype), value, **rounding)


@every_energy
def test_blocks_are_a_partition_of_independent_coordinates(energy: str) -> None:
    """The conditional of a block's coordinate by the structure is the one by energies, whatever the rest of the block is."""
    target = indexed(DISCRETE[energy]())
    conditionals, levels = target.conditionals(), levels_of(target)
    if conditionals is None:
        pytest.skip("no structure: Gibbs calls the energy")
    blocks = [b.tolist() for b in conditionals.blocks]
    assert sorted(sum(blocks, [])) == list(range(len(levels.table)))
    x = exact_draws(target, 20, seed=2).reshape(20, -1)
    one_by_one = ByEnergies(target, levels)
    for b, members in enumerate(blocks):
        logits = conditionals.logits(b, x)
        for k, i in enumerate(members):
            wanted = one_by_one.logits(i, x)[:, 0]
            found = logits[:, k]
            if found.dim() == 2:
                found, wanted = found.log_softmax(-1), wanted.log_softmax(-1)
            torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


@every_energy
def test_every_coordinate_moves_the_energy_or_nothing(energy: str) -> None:
    """So that the laws below are about energies that are not flat."""
    assert law(DISCRETE[energy]()).std() > 1e-3


# Kernels.


@pytest.mark.parametrize("transitions", [1, 7])
@every_exact_pair
def test_exact_draws_stay_exact(kernel: str, energy: str, transitions: int, device: torch.device) -> None:
    e, there = DISCRETE[energy](), DISCRETE[energy]().to(device)
    start = exact_draws(e, 40_000, seed=transitions).to(device)
    end = end_of(DISCRETE_KERNELS[kernel].factory(there), start, transitions, seed=3)
    counts = torch.bincount(number(e, end), minlength=len(law(e)))
    assert p_value(counts, law(e)) > LIMIT


@every_exact_pair
def test_chains_forget_where_they_began(kernel: str, energy: str, device: torch.device) -> None:
    """All at the least probable state; 120 transitions are many times the time to mix of these energies."""
    e, there = DISCRETE[energy](), DISCRETE[energy]().to(device)
    start = states_of(e)[law(e).argmin()].expand(5_000, *indexed(e).event_shape).to(device)
    end = end_of(DISCRETE_KERNELS[kernel].factory(there), start, 120, seed=4)
    assert p_value(torch.bincount(number(e, end), minlength=len(law(e))), law(e)) > LIMIT


@pytest.mark.parametrize(("kernel", "energy"), some_by_default([p for p in EXACT if DISCRETE_KERNELS[p[0]].reversible]))
def test_detailed_balance(kernel: str, energy: str, device: torch.device) -> None:
    e, there = DISCRETE[energy](), DISCRETE[energy]().to(device)
    start = exact_draws(e, 100_000, seed=5)
    end = end_of(DISCRETE_KERNELS[kernel].factory(there), start.to(device), 1, seed=6)
    n = len(law(e))
    flows = torch.bincount(number(e, start) * n + number(e, end), minlength=n * n).reshape(n, n)
    assert balance_p_value(flows) > LIMIT


@pytest.mark.parametrize(
    "kernel", [k for k, case in DISCRETE_KERNELS.items() if case.exact and case.takes("ising, ferromagnet")]
)
def test_every_kernel_notices_a_target_a_twelfth_colder(kernel: str) -> None:
    """The power of the tests above: 40,000 exact draws of beta = 1 move under a kernel of beta = 1.08."""
    e = DISCRETE["ising, ferromagnet"]()
    end = end_of(DISCRETE_KERNELS[kernel].factory(1.08 * e), exact_draws(e, 40_000, seed=7), 20, seed=8)
    assert p_value(torch.bincount(number(e, end), minlength=len(law(e))), law(e)) < LIMIT


class SkippingGibbs(eb.Gibbs):
    """Wrong: it draws the last block from the conditional of a state that is older than the other blocks."""

    def tick(self, state: GibbsState, tuning: Any, noise: Any) -> Any:
        right, info = super().tick(state, tuning, noise)
        last = self._conditionals.blocks[-1]
        logits = self._conditionals.logits(len(self._conditionals.blocks) - 1, state.position)
        upper = noise["uniform"].index_select(1, last) < torch.sigmoid(logits)
        x = right.position.index_copy(1, last, (2 * upper.to(torch.int8) - 1))
        return GibbsState(x), info


def test_a_wrong_kernel_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eb.models.Ising, "pairs", lambda ising: None)  # so that it has blocks to skip
    e = DISCRETE["ising, lattice"]()
    end = end_of(SkippingGibbs(e), exact_draws(e, 40_000, seed=9), 7, seed=10)
    assert p_value(torch.bincount(number(e, end), minlength=len(law(e))), law(e)) < LIMIT


@every_pair
def test_a_chain_does_not_depend_on_the_others(kernel: str, energy: str) -> None:
    e = DISCRETE[energy]()
    start = exact_draws(e, 2 * BLOCK, seed=11)
    factory = DISCRETE_KERNELS[kernel].factory
    many, few = (end_of(factory(e), start[:n], 5, seed=12) for n in (2 * BLOCK, BLOCK))
    assert torch.equal(many[:BLOCK], few)


@every_pair
def test_points_keep_their_dtype_and_runs_give_the_users_values(kernel: str, energy: str) -> None:
    e = DISCRETE[energy]()
    target = indexed(e)
    mcmc = eb.MCMC(DISCRETE_KERNELS[kernel].factory(e), 4, 2, num_chains=3, seed=13, disable_progbar=True)
    mcmc.run()
    assert mcmc.chains is not None
    assert mcmc.chains.position().dtype == levels_of(target).dtype == torch.int8
    for name, value in mcmc.get_samples(group_by_chain=True).items():
        assert value.shape == (3, 4, *e.sites[name])
        assert bool(e.site_support(name).check(value).all())
    assert mcmc.stats()["energy"].dtype == torch.float64 or energy.startswith("callable")


@pytest.mark.parametrize("kernel", DISCRETE_KERNELS)
def test_saved_and_loaded_runs_go_on_as_if_nothing_had_happened(kernel: str, tmp_path: Any) -> None:
    name = next(e for k, e in PAIRS if k == kernel)
    e, factory = DISCRETE[name](), DISCRETE_KERNELS[kernel].factory
    whole = eb.MCMC(factory(e), 12, 8, num_chains=5, seed=14, disable_progbar=True)
    whole.run()
    part = eb.MCMC(factory(e), 5, 8, num_chains=5, seed=14, disable_progbar=True)
    part.run()
    part.save(tmp_path / "run")
    again = eb.MCMC.load(tmp_path / "run", factory(e))
    again.run(num_samples=7)
    for site, value in whole.get_samples().items():
        assert torch.equal(value, again.get_samples()[site])


@pytest.mark.parametrize("kernel", DISCRETE_KERNELS)
def test_runs_under_pyros_mcmc(kernel: str) -> None:
    name = next(e for k, e in PAIRS if k == kernel)
    pyro.set_rng_seed(0)
    mcmc = pyro.infer.MCMC(
        DISCRETE_KERNELS[kernel].factory(DISCRETE[name]()), num_samples=5, warmup_steps=3, disable_progbar=True
    )
    mcmc.run()
    assert all(len(value) == 5 for value in mcmc.get_samples().values())


def test_continuous_energies_are_refused() -> None:
    e = eb.as_energy(lambda x: x.square().sum(-1), (2,))
    for case in DISCRETE_KERNELS.values():
        with pytest.raises(ValueError, match="discrete"):
            case.factory(e)


# Starts.


def test_a_state_outside_the_support_is_named() -> None:
    e = eb.models.Ising((3, 3))
    x = torch.ones(2, 3, 3, dtype=torch.int8)
    x[1, 2, 0] = 0
    with pytest.raises(ValueError, match=r"site 'x' in \{-1, 1\}, got 0 \(chain 1, coordinate \(2, 0\)\)"):
        eb.MCMC(eb.Gibbs(e), 5, initial_params=x, num_chains=2)


def test_values_to_hold_outside_the_support_are_named() -> None:
    held = torch.tensor([False, True, False, True])
    values = torch.tensor([7.0, 1.0, 7.0, 0.5])  # free entries don't count
    with pytest.raises(ValueError, match=r"site 'x' in \{-1, 1\}, got 0.5 \(to hold, at \(3,\)\)"):
        eb.energies.Clamped(eb.models.Ising((4,)), held, values)
    with pytest.raises(ValueError, match=r"site 'v' in \{0, 1\}, got 2 \(to hold, at \(1, 0\)\)"):
        eb.energies.Clamped(eb.models.BernoulliRBM(2, 3).joint, ["v"], {"v": torch.tensor([[0, 1], [2, 0]])})


def test_numbers_of_another_kind_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 categories, got 2.5"):
        eb.models.Potts((3, 3), 2.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="record_energy as True or False, got 2"):
        eb.Gibbs(eb.models.Ising((3, 3)), record_energy=2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"coupling as a matrix \(sites, sites\), got list "):
        eb.models.Ising(coupling=[[0, 1], [1, 0]])  # type: ignore[arg-type]


def test_chains_begin_anywhere() -> None:
    """The default start is uniform over all states: chi-square over 81 of them."""
    e = eb.as_energy(lambda x: 0 * x.sum(-1), (4,), eb.energies.categories(3))
    x = starting_points(e, Uniform(), 20_000, 15).points
    assert p_value(torch.bincount(number(e, x), minlength=81), torch.full((81,), 1 / 81).double()) > 1e-3
