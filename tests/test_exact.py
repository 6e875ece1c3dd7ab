"""Exact sums: against brute force, reference values and closed forms, in all ways and in any chunks."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import ebmppl as eb
from ebmppl.energies import Energy, Gaussian, as_energy, categories, spin
from ebmppl.energies.discrete import Indexed, indexed, levels_of
from ebmppl.errors import EnergyError
from ebmppl.models import BernoulliRBM, BoltzmannMachine, GaussianRBM, Ising, Potts, SoftmaxRBM
from ebmppl.partition import Exact, LogZ, log_partition, transfer
from ebmppl.partition.transfer import Transfer
from tests.discrete import law, number, p_value, states_of
from tests.discrete_registry import DISCRETE, normal
from tests.ising_exact import (
    CRITICAL_BETA,
    kaufman,
    onsager_energy,
    onsager_specific_heat,
    strip_log_z,
    yang_magnetisation,
)

F64 = torch.float64
ROUNDING = 1e-10  # sums of some thousand float64 terms of size 10
FALSE_ALARM = 1e-6  # of one chi-square test; there are about a hundred


def _routes(energy: Energy) -> list[str]:
    """The ways that there are for an energy."""
    found = []
    for by in ("enumeration", "layers", "transfer"):
        try:
            Exact(by=by).route(energy)
        except ValueError:
            continue
        found.append(by)
    return found


def _brute_force(energy: Energy) -> tuple[Tensor, list[Tensor], Tensor, Tensor, Tensor]:
    """log Z, its gradients, marginals by level, mean and second moments of flat points."""
    target = indexed(energy)
    x = states_of(energy)
    log_z = torch.logsumexp(-target(x.to(F64)).double(), 0)
    parameters = list(energy.parameters())
    grads = list(torch.autograd.grad(log_z, parameters)) if parameters else []
    p, levels = law(energy), levels_of(target)
    at = (x.reshape(len(x), -1, 1) == levels.table).double()
    at = at * (torch.arange(levels.most) < levels.counts[:, None])
    flat = at.flatten(1) if isinstance(target, Indexed) else x.reshape(len(x), -1).double()
    return log_z.detach(), grads, torch.einsum("r,rnl->nl", p, at), p @ flat, flat.mT @ (p[:, None] * flat)


def _close(got: Tensor, wanted: Tensor, tolerance: float = ROUNDING) -> None:
    torch.testing.assert_close(got.double(), wanted.double(), rtol=tolerance, atol=tolerance)


# Against brute force


@pytest.mark.parametrize("name", DISCRETE)
def test_every_way_equals_brute_force_in_any_chunks(name: str) -> None:
    energy = DISCRETE[name]()
    log_z, grads, marginals, mean, second = _brute_force(energy)
    # some callables hold float32 numbers, and some registered energies have float32 buffers
    tolerance = ROUNDING if all(t.dtype == F64 for t in energy.state_dict().values()) else 1e-6
    tolerance = tolerance if energy.state_dict() else 1e-6
    for by in _routes(energy):
        with torch.no_grad():
            for chunk in (None, 1):
                _close(Exact(by=by, chunk=chunk).log_z(energy), log_z, tolerance)
        exact = Exact(by=by, chunk=7)
        value = exact.log_z(energy)
        _close(value, log_z, tolerance)
        if grads:
            for got, wanted in zip(torch.autograd.grad(value, list(energy.parameters())), grads, strict=True):
                _close(got, wanted, tolerance)
        _close(exact.marginals(energy), marginals, tolerance)
        moments = exact.moments(energy)
        _close(moments.mean, mean, tolerance)
        _close(moments.second, second, tolerance)
        _close(moments.covariance, second - torch.outer(mean, mean), 10 * tolerance)


@pytest.mark.parametrize("name", DISCRETE)
def test_draws_of_every_way_have_the_law(name: str) -> None:
    energy = DISCRETE[name]()
    for by in _routes(energy):
        x = Exact(by=by, chunk=50).sample(energy, 20_000, seed=1)
        assert x.shape == (20_000, *energy.event_shape)
        assert bool(energy.support.check(x).all()) if not isinstance(energy.support, dict) else True
        integers = indexed(energy).unconstrain({"x": x}) if isinstance(indexed(energy), Indexed) else x
        counts = torch.bincount(number(energy, integers), minlength=len(law(energy)))
        assert p_value(counts, law(energy)) > FALSE_ALARM, by


@pytest.mark.parametrize("by", ["enumeration", "layers", "transfer"])
def test_draws_of_a_colder_energy_would_be_noticed(by: str) -> None:
    energy = DISCRETE["ising, lattice"]()
    x = Exact(by=by).sample(1.15 * energy, 20_000, seed=1)
    assert p_value(torch.bincount(number(energy, x), minlength=64), law(energy)) < FALSE_ALARM


def test_draws_repeat_with_their_seed_and_are_in_no_order() -> None:
    energy = DISCRETE["ising, matrix"]()
    exact = Exact(by="enumeration", chunk=4)
    x = exact.sample(energy, 4000, seed=3)
    assert torch.equal(x, exact.sample(energy, 4000, generator=torch.Generator().manual_seed(3)))
    assert not torch.equal(x, exact.sample(energy, 4000, seed=4))
    halves = [torch.bincount(number(energy, half), minlength=32).double() for half in x.chunk(2)]
    both = halves[0] + halves[1]
    statistic = ((halves[0] - halves[1]).square() / both)[both > 10].sum()
    assert statistic < 32 + 6 * math.sqrt(64)  # chi-square of 31 degrees: false alarm below 1e-6


def test_expectations_are_of_the_users_points() -> None:
    energy = DISCRETE["callable, one-hot"]()
    p, x = law(energy), Indexed(energy).constrain(states_of(energy).double())["x"]
    wanted = torch.einsum("r,rnl->nl", p, x)
    _close(Exact(chunk=5).expectation(energy, lambda x: x), wanted, 1e-6)
    ising = DISCRETE["ising, lattice"]()
    x = states_of(ising).double()
    _close(Exact(chunk=7).expectation(ising, lambda x: x.sum((1, 2)).abs()), law(ising) @ x.sum((1, 2)).abs())


def test_log_prob_and_log_likelihood() -> None:
    energy = DISCRETE["rbm"]()
    x = states_of(energy).to(F64)
    _close(Exact().log_prob(energy, x).exp(), law(energy))
    log_z = log_partition(energy)
    value = log_z.value.item()
    assert (log_z.std_error, log_z.lower, log_z.upper, log_z.ess) == (0, value, value, math.inf)
    _close(log_z.log_likelihood(x.reshape(2, -1, x.shape[1])).exp().flatten(), law(energy))
    # maximum likelihood: the mean gradient over the law itself is 0
    (law(energy).detach() * log_z.log_likelihood(x)).sum().backward()
    assert max(float(p.grad.abs().max()) for p in energy.parameters()) < ROUNDING
    assert eb.log_partition(energy, Exact(by="layers")).method == "layers"
    assert "RBM" not in repr(log_z)
    assert eb.partition.LogZ is LogZ


# Reference values


@pytest.fixture
def boltzmann(shared_data: Path) -> list[dict]:
    return json.loads((shared_data / "exact" / "boltzmann.json").read_text())["models"]


def _t(value: list) -> Tensor:
    return torch.tensor(value, dtype=F64)


REFERENCE = 1e-9  # the references are float64 sums in another order, printed with all their digits


@pytest.mark.data
@pytest.mark.parametrize("which", [0, 1])
def test_reference_rbms(boltzmann: list[dict], which: int) -> None:
    r = [m for m in boltzmann if m["kind"] == "rbm"][which]
    rbm = BernoulliRBM(r["nv"], r["nh"], W=_t(r["W"]), b=_t(r["b"]), c=_t(r["c"]))
    assert Exact().route(rbm).name == "layers"
    for by in ("enumeration", "layers"):
        exact = Exact(by=by)
        _close(exact.log_z(rbm), _t(r["log_Z"]), REFERENCE)
        moments = exact.moments(rbm)
        _close(moments.mean, _t(r["E_v"]), REFERENCE)
        _close(moments.second, _t(r["E_vv"]), REFERENCE)
        joint = exact.moments(rbm.joint)
        _close(joint.mean, _t(r["E_v"] + r["E_h"]), REFERENCE)
        _close(joint.second[: r["nv"], r["nv"] :], _t(r["E_vh"]), REFERENCE)
        top = Exact(by=by).log_prob(rbm, _t([s["v"] for s in r["top_states"]]))
        _close(top, _t([s["log_p"] for s in r["top_states"]]), REFERENCE)
    likelihood = log_partition(rbm).log_likelihood(_t(r["data"])).mean()
    _close(likelihood, _t(r["data_mean_log_likelihood"]), REFERENCE)
    likelihood.backward()
    for name, wanted in r["log_likelihood_gradient"].items():
        _close(getattr(rbm, name).grad, _t(wanted), REFERENCE)


@pytest.mark.data
def test_reference_deep_boltzmann_machine(boltzmann: list[dict]) -> None:
    r = next(m for m in boltzmann if m["kind"] == "dbm")
    v, h1 = r["nv"], r["nv"] + r["n1"]
    couplings = torch.zeros(h1 + r["n2"], h1 + r["n2"], dtype=F64)
    couplings[:v, v:h1], couplings[v:h1, h1:] = _t(r["W1"]), _t(r["W2"])
    machine = BoltzmannMachine(
        v, r["n1"] + r["n2"], coupling=couplings + couplings.mT, bias=_t(r["b"] + r["c1"] + r["c2"])
    )
    for by in ("auto", "transfer", "layers", "enumeration"):
        _close(Exact(by=by).log_z(machine), _t(r["log_Z"]), REFERENCE)
    moments = Exact().moments(machine)
    _close(moments.mean, _t(r["E_v"] + r["E_h1"] + r["E_h2"]), REFERENCE)
    _close(moments.second[:v, v:h1], _t(r["E_vh1"]), REFERENCE)
    _close(moments.second[v:h1, h1:], _t(r["E_h1h2"]), REFERENCE)


@pytest.mark.data
def test_reference_gaussian_rbm(boltzmann: list[dict]) -> None:
    r = next(m for m in boltzmann if m["kind"] == "gbrbm")
    rbm = GaussianRBM(r["nv"], r["nh"], W=_t(r["W"]), b=_t(r["b"]), c=_t(r["c"]))
    _close(Exact().log_z(rbm), _t(r["log_Z"]), REFERENCE)
    moments = Exact(chunk=3).moments(rbm)
    _close(moments.mean, _t(r["E_v"]), REFERENCE)
    _close(moments.covariance, _t(r["cov_v"]), REFERENCE)
    _close(Exact().log_prob(rbm, _t(r["points"])), _t(r["points_log_p"]), REFERENCE)
    x = Exact().sample(rbm, 40_000, seed=2)
    z = (x.mean(0) - _t(r["E_v"])) / (_t(r["cov_v"]).diagonal() / len(x)).sqrt()
    assert z.abs().max() < 5.5  # false alarm 4 * 4e-8
    centred = x - _t(r["E_v"])
    products = centred[:, :, None] * centred[:, None, :]
    z = (products.mean(0) - _t(r["cov_v"])) / (products.std(0) / math.sqrt(len(x)))
    assert z.abs().max() < 5.5


@pytest.mark.data
def test_reference_glasses_and_potts(boltzmann: list[dict]) -> None:
    for r in [m for m in boltzmann if m["kind"] == "ising_glass"]:
        couplings = torch.triu(_t(r["J"]), 1)
        glass = Ising(coupling=couplings + couplings.mT, field=_t(r["h"]))
        for by in ("enumeration", "layers", "transfer"):
            exact = Exact(by=by)
            _close(exact.log_z(glass), _t(r["log_Z"]), REFERENCE)
            moments = exact.moments(glass)
            _close(moments.mean, _t(r["E_s"]), REFERENCE)
            _close(moments.second, _t(r["E_ss"]), REFERENCE)
        energies = Exact().expectation(glass, lambda x: torch.stack([glass(x), glass(x) ** 2], 1))
        _close(energies[0], _t(r["mean_energy"]), REFERENCE)
        _close(energies[1] - energies[0] ** 2, _t(r["var_energy"]), REFERENCE)
    r = next(m for m in boltzmann if m["kind"] == "potts")
    couplings = torch.triu(_t(r["J"]), 1)
    potts = Potts(None, r["q"], couplings + couplings.mT, _t(r["h"]))
    for by in ("enumeration", "layers", "transfer"):
        _close(Exact(by=by).log_z(potts), _t(r["log_Z"]), REFERENCE)
        _close(Exact(by=by).marginals(potts), _t(r["marginals"]), REFERENCE)


@pytest.fixture
def onsager(shared_data: Path) -> dict:
    return json.loads((shared_data / "exact" / "ising.json").read_text())


def _check_torus(row: dict, by: str) -> None:
    """Log Z and the energy per spin, which is minus its derivative in beta."""
    beta = torch.tensor(row["beta"], dtype=F64, requires_grad=True)
    length = row["L"]
    log_z = Exact(by=by).log_z(beta * Ising((length, length), 1.0, dtype=F64))
    log_z.backward()
    _close(log_z.detach(), _t(row["log_Z"]), REFERENCE)
    assert beta.grad is not None
    _close(-beta.grad / length**2, _t(row["energy"]), REFERENCE)
    exact = kaufman(length, row["beta"])
    _close(_t(list(exact)), _t([row["log_Z"], row["energy"], row["specific_heat"]]), REFERENCE)


@pytest.mark.data
def test_reference_tori(onsager: dict) -> None:
    for row in onsager["finite"]:
        for by in [*["enumeration"] * (row["L"] <= 4), *["transfer"] * (row["L"] <= 6)]:
            _check_torus(row, by)


@pytest.mark.data
@pytest.mark.long
def test_reference_tori_of_width_12(onsager: dict) -> None:
    for row in [row for row in onsager["finite"] if row["L"] == 12]:
        ising = row["beta"] * Ising((12, 12), 1.0, dtype=F64)
        with torch.no_grad():
            _close(Exact().log_z(ising), _t(row["log_Z"]), REFERENCE)


@pytest.mark.data
def test_reference_magnetisation(onsager: dict) -> None:
    for row in [row for row in onsager["finite"] if row["L"] <= 4]:
        length, wanted = row["L"], row["magnetisation"]
        ising = row["beta"] * Ising((length, length), 1.0, dtype=F64)

        def powers(x: Tensor) -> Tensor:
            m = x.mean((1, 2))
            return torch.stack([m.abs(), m**2, m**4], 1)

        got = Exact().expectation(ising, powers)
        _close(got, _t([wanted["abs_m"], wanted["m2"], wanted["m4"]]), REFERENCE)


@pytest.mark.data
def test_reference_infinite_lattice(onsager: dict) -> None:
    for row in onsager["infinite"]:
        beta = row["beta"]
        got = [onsager_energy(beta), onsager_specific_heat(beta), yang_magnetisation(beta)]
        _close(_t(got), _t([row["energy"], row["specific_heat"], row["magnetisation"]]), REFERENCE)


def test_kaufman_is_smooth_at_the_critical_point_and_tends_to_onsager() -> None:
    here, above, below = (kaufman(64, CRITICAL_BETA + d) for d in (0.0, 1e-5, -1e-5))
    step = 2e-5 * 64**2
    slope = (above.log_z - below.log_z) / step
    assert abs(slope + here.energy) < 1e-7  # rounding of log Z = 4e3 over the step, and its third derivative
    heat = CRITICAL_BETA**2 * (below.energy - above.energy) / 2e-5
    assert abs(heat - here.specific_heat) < 1e-5
    for beta in (0.3, 0.6):  # the correlation length is a few sites there
        assert abs(kaufman(64, beta).energy - onsager_energy(beta)) < 1e-8
        assert abs(kaufman(64, beta).specific_heat - onsager_specific_heat(beta)) < 1e-7


# The transfer matrix against closed forms


def test_long_chains() -> None:
    coupling, field, n = 0.7, 0.3, 1000
    matrix = torch.tensor([[coupling + field, -coupling], [-coupling, coupling - field]], dtype=F64).exp()
    values = torch.linalg.eigvalsh(matrix)
    wanted = n * values[1].log() + torch.log1p((values[0] / values[1]) ** n)
    ring = Ising((n,), coupling, field, dtype=F64)
    log_z = Exact().log_z(ring)
    _close(log_z, wanted)
    log_z.backward()
    slope = math.sinh(field) / math.sqrt(math.sinh(field) ** 2 + math.exp(-4 * coupling))
    assert ring.field.grad is not None
    _close(ring.field.grad, _t(n * slope))
    open_chain = Ising((n,), coupling, periodic=False, dtype=F64)
    _close(Exact().log_z(open_chain), _t(math.log(2) + (n - 1) * math.log(2 * math.cosh(coupling))))


def test_lattices_equal_powers_of_a_whole_transfer_matrix() -> None:
    """Columns of one lattice, 2 x 2 x 30 open, as states of a chain."""
    coupling, length = 0.3, 30
    columns = states_of(Ising((2, 2), periodic=False, dtype=F64)).to(F64)
    inside = -Ising((2, 2), coupling, periodic=False, dtype=F64)(columns).detach()
    flat = columns.flatten(1)
    between = (coupling * flat @ flat.mT).exp()
    vector, scale = inside.exp(), 0.0
    for _ in range(length - 1):
        vector = inside.exp() * (between @ vector)
        scale, vector = scale + vector.sum().log(), vector / vector.sum()
    for shape in ((2, 2, length), (length, 2, 2), (2, length, 2)):
        _close(Exact().log_z(Ising(shape, coupling, periodic=False, dtype=F64)), scale + vector.sum().log())


def test_wide_and_long_lattices_in_little_memory() -> None:
    """A cylinder of 12 x 40 spins grows by the largest eigenvalue of its transfer matrix (Kaufman 1949)."""
    cylinder = Ising((12, 40), 0.3, periodic=(True, False), dtype=F64)
    route = Exact().route(cylinder)
    assert isinstance(route, Transfer)
    assert route.states <= 2**14
    log_z = Exact().log_z(cylinder)
    longer = Exact().log_z(Ising((12, 41), 0.3, periodic=(True, False), dtype=F64))
    # what is left of the second eigenvalue is exp(-0.63 * 40)
    assert abs(float((longer - log_z).detach()) / 12 - strip_log_z(12, 0.3)) < 1e-9
    (slope,) = torch.autograd.grad(log_z, cylinder.coupling)
    more = Exact().log_z(Ising((12, 40), 0.3001, periodic=(True, False), dtype=F64))
    less = Exact().log_z(Ising((12, 40), 0.2999, periodic=(True, False), dtype=F64))
    assert abs(float((more - less).detach()) / 2e-4 - float(slope)) < 1e-5 * float(slope)


@pytest.mark.parametrize("coupling", [20.0, 1000.0, -1000.0])
def test_strong_couplings_keep_the_ground_states(coupling: float) -> None:
    ising = Ising((4, 5), coupling, periodic=(True, False), dtype=F64)  # even around, so both signs have two of them
    bonds = len(ising.graph.edges)
    for by in ("transfer", "layers", "enumeration"):
        _close(Exact(by=by).log_z(ising) - abs(coupling) * bonds, _t(math.log(2)), 1e-9)
    route = Exact(by="transfer").route(ising)
    assert isinstance(route, Transfer)
    assert route.linear == (abs(coupling) < 1000)
    _close(route.log_z(), Exact(by="enumeration").log_z(ising))
    x = Exact(by="transfer").sample(ising, 100, seed=1)
    torch.testing.assert_close(ising(x).detach(), torch.full((100,), -abs(coupling) * bonds, dtype=F64))


def test_backward_passes_in_pieces_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    ising = Ising((3, 30), normal(177, seed=7), normal(3, 30, seed=8), periodic=(True, False))
    route = Transfer(ising.pairwise())
    assert len(route.segments) > 1
    whole = route.marginals()
    monkeypatch.setattr(transfer, "_KEEP", 0)
    assert torch.equal(route.marginals(), whole)


def test_a_message_in_numbers_and_in_logarithms_agree() -> None:
    ising = Ising((3, 4), normal(24, seed=7), normal(3, 4, seed=8))
    form = ising.pairwise()
    one, other = Transfer(form, 16), Transfer(form, 16)
    other.linear = False
    other.segments = [[(step, False) for step, _ in segment] for segment in other.segments]
    _close(one.log_z(), other.log_z())
    _close(one.pair_marginals(), other.pair_marginals())


# Ways, limits and errors


def test_the_way_of_fewest_operations_is_taken() -> None:
    assert Exact().route(BernoulliRBM(784, 12)).name == "layers"
    assert Exact().route(BernoulliRBM(6, 100)).name == "enumeration"  # of the visible units: the hidden are summed out
    assert Exact().route(Ising((5, 100))).name == "transfer"
    complete = torch.ones(12, 12).fill_diagonal_(0)
    assert Exact().route(Ising(coupling=complete)).name in ("enumeration", "layers", "transfer")
    assert Exact().route(as_energy(lambda x: x.sum(-1), (3,), spin)).name == "enumeration"
    assert Exact().route(SoftmaxRBM(40, 5, 6)).name == "layers"


def test_too_many_states_say_how_many_and_what_instead() -> None:
    with pytest.raises(ValueError, match=r"max_states = 2\^25 states, got 2\^30 by enumeration; instead .*MCMC"):
        Exact().log_z(as_energy(lambda x: x.sum(-1), (30,), spin))
    with pytest.raises(ValueError, match=r"max_states = 100 states, got 2187 by enumeration"):
        Exact(max_states=100).log_z(as_energy(lambda x: x.sum(-1), (7,), categories(3)))
    with pytest.raises(ValueError, match=r"2\^784 by enumeration and 2\^500 by layers"):
        log_partition(BernoulliRBM(784, 500))
    with pytest.raises(
        ValueError, match=r"2\^16384 by enumeration and 2\^8192 by layers and at least 2\^26 by transfer"
    ):
        Exact().log_z(Ising((128, 128)))
    with pytest.raises(ValueError, match=r"got 2\^36 by enumeration"):
        Exact().expectation(Ising((6, 6)), lambda x: x)


def test_other_energies_are_refused() -> None:
    with pytest.raises(ValueError, match="expected a discrete energy, got site 'x'.*anneal"):
        Exact().log_z(as_energy(lambda x: x.square().sum(-1), (2,)))
    mixed = as_energy(lambda s: s["s"] * s["y"].square().sum(-1), {"s": (), "y": (2,)}, {"s": spin})
    with pytest.raises(ValueError, match="got site 'y'"):
        Exact().log_z(mixed)
    with pytest.raises(ValueError, match="as_energy"):
        log_partition(lambda x: x)  # type: ignore[arg-type]
    for by, needs in (("layers", "conditionals"), ("transfer", "pairwise")):
        with pytest.raises(ValueError, match=needs):
            Exact(by=by).log_z(as_energy(lambda x: x.sum(-1), (3,), spin))
    with pytest.raises(ValueError, match="real ones"):
        Exact().marginals(GaussianRBM(2, 2))
    gaussian = Gaussian(torch.zeros(2), torch.eye(2))
    assert log_partition(gaussian).method == "closed form"
    _close(log_partition(gaussian).value, _t(math.log(2 * math.pi)), 1e-6)


def test_bad_settings_and_points() -> None:
    for settings in ({"max_states": 0}, {"chunk": 0}, {"by": "magic"}):
        with pytest.raises(ValueError, match="expected"):
            Exact(**settings)
    ising = Ising((3,), dtype=F64)
    with pytest.raises(ValueError, match=r"expected values of site 'x' in \{-1, 1\}, got 0.0"):
        Exact().log_prob(ising, torch.tensor([1.0, 0.0, 1.0], dtype=F64))
    with pytest.raises(ValueError, match="expected n >= 1"):
        Exact().sample(ising, 0)
    with pytest.raises(ValueError, match="got both"):
        Exact().sample(ising, 1, seed=1, generator=torch.Generator())
    for seed in (-1, 1.5, 1 << 63):
        with pytest.raises(ValueError, match="expected a (whole )?seed"):
            Exact().sample(ising, 1, seed=seed)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"expected values of shape \(8, ...\), got \(3,\)"):
        Exact().expectation(ising, lambda x: x.sum(0))


def test_energies_that_are_not_finite() -> None:
    def with_value(value: float) -> Energy:
        return as_energy(lambda x: torch.where(x[:, 0] > 0, torch.full_like(x[:, 0], value), 0.0 * x[:, 0]), (3,), spin)

    _close(Exact().log_z(with_value(math.inf)), _t(math.log(4)), 1e-6)  # half of the states are impossible
    x = Exact(chunk=3).sample(with_value(math.inf), 1000, seed=1)
    assert bool((x[:, 0] == -1).all())
    for value in (math.nan, -math.inf):
        with pytest.raises(EnergyError, match=r"got -?(nan|inf) at \[1.0, -1.0, -1.0\]"):
            Exact().log_z(with_value(value))
    nowhere = as_energy(lambda x: torch.full_like(x[:, 0], math.inf), (3,), spin)
    for ask in (Exact().log_z, Exact(chunk=1).marginals, lambda e: Exact(chunk=2).sample(e, 3)):
        with pytest.raises(EnergyError, match="infinity at all of them"):
            ask(nowhere)


def test_gradients_reach_what_an_energy_is_computed_from() -> None:
    """Parameters held by a closure, a tensor made from them outside, and a temperature."""
    raw = torch.tensor(0.3, dtype=F64, requires_grad=True)
    scale = raw.exp()
    energy = as_energy(lambda x: -scale * x.prod(-1), (3,), spin)
    log_z = Exact(chunk=2).log_z(energy)
    log_z.backward()
    assert raw.grad is not None
    _close(log_z.detach(), 3 * _t(2).log() + scale.detach().cosh().log(), 1e-6)
    _close(raw.grad, scale.detach() * scale.detach().tanh(), 1e-6)


def test_dropout_is_off_and_comes_back() -> None:
    class Noisy(Energy):
        def __init__(self) -> None:
            super().__init__((4,), spin)
            self.drop = torch.nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            return self.drop(x.float()).sum(-1)

    noisy = Noisy().train()
    _close(Exact().log_z(noisy), _t(4 * math.log(2 * math.cosh(1))), 1e-6)
    assert noisy.drop.training


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_log_z_is_float64_and_points_keep_the_dtype(dtype: torch.dtype) -> None:
    for energy in (Ising((3, 3), 0.4, dtype=dtype), BernoulliRBM(5, 3, dtype=dtype), GaussianRBM(2, 3, dtype=dtype)):
        assert Exact().log_z(energy).dtype == F64
        assert Exact().sample(energy, 2).dtype == dtype


def test_on_a_device(device: torch.device) -> None:
    for name in ("ising, lattice", "rbm", "rbm, joint", "potts, lattice", "callable, sites"):
        here, there = DISCRETE[name](), DISCRETE[name]().to(device)
        if not here.state_dict() and device.type != "cpu":
            continue  # a callable without tensors lives on torch's default device
        for by in _routes(here):
            exact = Exact(by=by, chunk=30)
            assert exact.log_z(there).device.type == device.type
            _close(exact.log_z(there).cpu(), exact.log_z(here))
            _close(exact.moments(there).second.cpu(), exact.moments(here).second)
            x = exact.sample(there, 50, seed=1)
            assert x.device.type == device.type
            assert bool(torch.isfinite(exact.log_prob(there, x)).all())


_MEMORY = """
import resource, sys, time, torch
from ebmppl.energies import as_energy, spin
from ebmppl.models import Ising
from ebmppl.partition import Exact
torch.set_num_threads(1)
n, m = map(int, sys.argv[1:])
call = as_energy(lambda x: -0.1 * (x[:, 1:] * x[:, :-1]).sum(-1), (n,), spin)
glass = Ising(coupling=torch.ones(m, m).fill_diagonal_(0) / m)
Exact(chunk=1000).log_z(as_energy(lambda x: x.sum(-1), (3,), spin))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for energy, by in ((call, "auto"), (glass, "enumeration")):
    start = time.time()
    value = Exact(by=by).log_z(energy)
    print(float(value.detach()), time.time() - start, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
value.backward()
print(0, time.time() - start, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.parametrize(("n", "spins"), [(20, 22), pytest.param(25, 25, marks=pytest.mark.long)])
def test_memory_does_not_grow_with_the_states(n: int, spins: int) -> None:
    command = [sys.executable, "-c", _MEMORY, str(n), str(spins)]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    rows = [list(map(float, line.split())) for line in run.stdout.splitlines()]
    assert abs(rows[0][0] - math.log(2) - (n - 1) * math.log(2 * math.cosh(0.1))) < 1e-5
    # all at a time, 2^20 states of 20 spins take some 400 MB (numbers of levels alone 168), 2^25 of 25 take 18 GB
    assert max(row[2] for row in rows) < 200, rows
