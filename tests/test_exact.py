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
from ebmppl.energies import Clamped, Energy, Gaussian, as_energy, categories, spin
from ebmppl.energies.discrete import Indexed, indexed, levels_of
from ebmppl.errors import EnergyError
from ebmppl.models import BernoulliRBM, BoltzmannMachine, GaussianRBM, Graph, Ising, Potts, SoftmaxRBM
from ebmppl.partition import Exact, LogZ, log_partition
from ebmppl.partition.transfer import Transfer
from tests.discrete import law, number, p_value, states_of
from tests.discrete_registry import DISCRETE, normal

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
            _close(Exact(by=by, chunk=1).log_z(energy), log_z, tolerance)
        for chunk in (None, 7):
            exact = Exact(by=by, chunk=chunk)
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
    assert (log_z.std_error, log_z.lower, log_z.upper, log_z.ess) == (0, float(log_z.value), float(log_z.value), math.inf)
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
            _close(exact.moments(glass).mean, _t(r["E_s"]), REFERENCE)
            _close(exact.moments(glass).second, _t(r["E_ss"]), REFERENCE)
        energies = Exact().expectation(glass, lambda x: torch.stack([glass(x), glass(x) ** 2], 1))
        _close(energies[0], _t(r["mean_energy"]), REFERENCE)
        _close(energies[1] - energies[0] ** 2, _t(r["var_energy"]), REFERENCE)
    r = next(m for m in boltzmann if m["kind"] == "potts")
    couplings = torch.triu(_t(r["J"]), 1)
    potts = Potts(None, r["q"], couplings + couplings.mT, _t(r["h"]))
    for by in ("enumeration", "layers", "transfer"):
        _close(Exact(by=by).log_z(potts), _t(r["log_Z"]), REFERENCE)
        _close(Exact(by=by).marginals(potts), _t(r["marginals"]), REFERENCE)
