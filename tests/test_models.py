"""Models: reference values, conditionals, tempered and clamped forms, data statistics, experts, bad input, round trips."""

from __future__ import annotations

import copy
import json
import math
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

import ebmppl as eb
from ebmppl.energies import Energy, Gaussian, GeometricPath, Sum, Tempered, categories
from ebmppl.energies.discrete import indexed, levels_of, one_hot
from ebmppl.energies.supports import is_discrete
from ebmppl.kernels.gibbs import GibbsState
from ebmppl.models import (
    BernoulliRBM,
    BoltzmannMachine,
    GaussianExperts,
    GaussianRBM,
    Graph,
    Hopfield,
    Ising,
    LogisticExperts,
    Potts,
    ProductOfExperts,
    SoftmaxRBM,
    SoftplusExperts,
    StudentTExperts,
)
from ebmppl.sampling.chains import Chains
from tests.discrete import law, states_of
from tests.discrete_registry import DISCRETE, normal
from tests.registry import ENERGIES

F64 = torch.float64
EXACT = {"rtol": 1e-11, "atol": 1e-11}  # rounding of sums of some hundred terms of size 1 to 100 in float64
MODELS = [name for name in DISCRETE if not name.startswith("callable")]
RELAXED = [name for name in MODELS if DISCRETE[name]().relaxed() is not None]
every_model = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def f64(value: object) -> Tensor:
    return torch.tensor(value, dtype=F64)


def bits(n: int) -> Tensor:
    return torch.cartesian_prod(*[torch.arange(2)] * n).reshape(-1, n).to(F64)


# Reference values.


def references(folder: Path, kind: str) -> list[dict[str, Any]]:
    models = json.loads((folder / "exact" / "boltzmann.json").read_text())["models"]
    return [m for m in models if m["kind"] == kind]


def same(found: Tensor | float, wanted: object) -> None:
    found = found.detach() if isinstance(found, Tensor) else f64(found)
    torch.testing.assert_close(found, f64(wanted), rtol=1e-10, atol=1e-10)


def gradients(model: Energy, log_likelihood: Tensor) -> dict[str, Tensor]:
    names, values = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(log_likelihood, values), strict=True))


def reference_rbm(m: dict[str, Any]) -> BernoulliRBM:
    return BernoulliRBM(m["nv"], m["nh"], W=f64(m["W"]), b=f64(m["b"]), c=f64(m["c"]))


@pytest.mark.data
@pytest.mark.parametrize("which", [0, 1])
def test_bernoulli_rbm_against_the_reference(shared_data: Path, which: int) -> None:
    m = references(shared_data, "rbm")[which]
    rbm = reference_rbm(m)
    v, data = bits(m["nv"]), f64(m["data"])
    log_z = torch.logsumexp(-rbm(v), 0)
    same(log_z, m["log_Z"])
    same(torch.logsumexp(-rbm.hidden_energy(bits(m["nh"])), 0), m["log_Z"])
    p, hidden = torch.exp(-rbm(v) - log_z), rbm.p_hidden(v)
    same(p @ v, m["E_v"])
    same(p @ hidden, m["E_h"])
    same(v.mT @ (p[:, None] * hidden), m["E_vh"])
    same(v.mT @ (p[:, None] * v), m["E_vv"])
    same(-(p * p.log()).sum(), m["entropy_v"])
    same((p * rbm.joint_energy(v, hidden)).sum(), m["mean_energy"])  # linear in h
    same(rbm(data), m["data_free_energy"])
    log_likelihood = -rbm(data).mean() - log_z
    same(log_likelihood, m["data_mean_log_likelihood"])
    for name, grad in gradients(rbm, log_likelihood).items():
        same(grad, m["log_likelihood_gradient"][name])


@pytest.mark.data
def test_gaussian_rbm_against_the_reference(shared_data: Path) -> None:
    (m,) = references(shared_data, "gbrbm")
    rbm = GaussianRBM(m["nv"], m["nh"], W=f64(m["W"]), b=f64(m["b"]), c=f64(m["c"]))
    h, points = bits(m["nh"]), f64(m["points"])
    energy = rbm.hidden_energy(h)
    log_z = torch.logsumexp(-energy, 0)
    p, mean = torch.exp(-energy - log_z), rbm.visible_mean(h)
    same(log_z, m["log_Z"])
    same(p @ h, m["E_h"])
    same(p @ mean, m["E_v"])
    centred = mean - p @ mean
    same(torch.diag(rbm.visible_scale.square()) + centred.mT @ (p[:, None] * centred), m["cov_v"])
    same(-rbm(points) - log_z, m["points_log_p"])
    same(-rbm.value_and_grad(points)[1], m["points_score"])


@pytest.mark.data
@pytest.mark.parametrize("which", [0, 1])
def test_ising_against_the_reference(shared_data: Path, which: int) -> None:
    m = references(shared_data, "ising_glass")[which]
    upper = f64(m["J"]).triu(1)
    ising = Ising(coupling=upper + upper.mT, field=f64(m["h"]))
    x = 2 * bits(m["n"]) - 1
    energy = ising(x).detach()
    p = torch.softmax(-energy, 0)
    same(torch.logsumexp(-energy, 0), m["log_Z"])
    same(p @ x, m["E_s"])
    same((x.mT @ (p[:, None] * x)).triu(1), f64(m["E_ss"]).triu(1).tolist())
    same(p @ energy, m["mean_energy"])
    same(p @ energy.square() - (p @ energy).square(), m["var_energy"])
    if m["p"] is not None:
        same(p, m["p"])


@pytest.mark.data
def test_potts_against_the_reference(shared_data: Path) -> None:
    (m,) = references(shared_data, "potts")
    upper = f64(m["J"]).triu(1)
    potts = Potts(num_states=m["q"], coupling=upper + upper.mT, field=f64(m["h"]))
    x = states_of(potts)
    energy = potts(x).detach()
    p = torch.softmax(-energy, 0)
    same(torch.logsumexp(-energy, 0), m["log_Z"])
    same((p[:, None, None] * one_hot(x, m["q"], F64)).sum(0), m["marginals"])
    same(p @ energy, m["mean_energy"])


@pytest.mark.data
def test_boltzmann_machine_is_the_deep_one_of_the_reference(shared_data: Path) -> None:
    """Two hidden layers, of which one interacts with both others: the hidden units are enumerated together."""
    (m,) = references(shared_data, "dbm")
    v, n1, n2 = m["nv"], m["n1"], m["n2"]
    couplings = torch.zeros(v + n1 + n2, v + n1 + n2, dtype=F64)
    couplings[:v, v : v + n1], couplings[v : v + n1, v + n1 :] = f64(m["W1"]), f64(m["W2"])
    machine = BoltzmannMachine(v, n1 + n2, coupling=couplings + couplings.mT, bias=f64(m["b"] + m["c1"] + m["c2"]))
    log_z = torch.logsumexp(-machine.free_energy(bits(v)), 0)
    same(log_z, m["log_Z"])
    data, h = f64(m["data"]), bits(n1 + n2)
    same(-machine.free_energy(data) - log_z, m["data_log_p"])
    for row in range(2):
        marginal = torch.softmax(-machine.posterior(data[row])(h), 0) @ h
        same(marginal, m["data_posterior_h1"][row] + m["data_posterior_h2"][row])
    grads = gradients(machine, -machine.free_energy(data).mean() - log_z)
    wanted = m["log_likelihood_gradient"]
    same(grads["bias"], wanted["b"] + wanted["c1"] + wanted["c2"])
    i, j = machine.graph.edges.mT
    matrix = torch.zeros_like(couplings).index_put((i, j), grads["coupling"])
    same(matrix[:v, v : v + n1], wanted["W1"])
    same(matrix[v : v + n1, v + n1 :], wanted["W2"])


# The RBM family.

RBMS: dict[str, Callable[[], Any]] = {
    "bernoulli": lambda: BernoulliRBM(4, 3, W=normal(4, 3), b=normal(4, seed=1), c=normal(3, seed=2)),
    "softmax": lambda: SoftmaxRBM(3, 3, 2, W=normal(3, 3, 2), b=normal(3, 3, seed=1), c=normal(2, seed=2)),
    "softmax, two categories": lambda: SoftmaxRBM(4, 2, 2, W=normal(4, 2, 2), b=normal(4, 2, seed=1), c=normal(2)),
    "gaussian": lambda: GaussianRBM(
        3, 4, W=normal(3, 4), b=normal(3, seed=1), c=normal(4, seed=2), log_variance=normal(3, seed=3, scale=0.5)
    ),
}
BASES: dict[str, Callable[[], Any]] = {
    "bernoulli": lambda: BernoulliRBM(4, 3, W=normal(4, 3, seed=9), b=normal(4, seed=8)),
    "softmax": lambda: SoftmaxRBM(3, 3, 2, b=normal(3, 3, seed=8), dtype=F64),
    "softmax, two categories": lambda: SoftmaxRBM(4, 2, 2, c=normal(2, seed=8)),
    "gaussian": lambda: GaussianRBM(3, 4, b=normal(3, seed=8), log_variance=normal(3, seed=9)).double(),
}
every_rbm = pytest.mark.parametrize("kind", RBMS)


def visible(rbm: Any) -> Tensor:
    """Visible states: all of them, or 50 points."""
    return states_of(rbm).to(F64) if is_discrete(rbm.support) else normal(50, rbm.num_visible, seed=5, scale=2.0)


def pairs(rbm: Any, v: Tensor) -> Tensor:
    """Packed ``(points, hidden states, V + H)``."""
    h = bits(rbm.num_hidden)
    return torch.cat([v[:, None].expand(-1, len(h), -1), h.expand(len(v), -1, -1)], -1)


@every_rbm
def test_free_energy_sums_the_joint_energy_out(kind: str) -> None:
    rbm = RBMS[kind]()
    v = visible(rbm)
    wanted = -torch.logsumexp(-rbm.joint(pairs(rbm, v)), -1)
    torch.testing.assert_close(rbm(v), wanted, **EXACT)
    torch.testing.assert_close(rbm.free_energy(v, rbm.hidden_logits(v)), wanted, **EXACT)


@every_rbm
def test_conditionals_are_gradients_of_free_energies(kind: str) -> None:
    rbm = RBMS[kind]()
    v, h = visible(rbm), bits(rbm.num_hidden)
    p = torch.autograd.functional.jacobian(lambda c: -torch.func.functional_call(rbm, {"c": c}, (v,)), rbm.c.detach())
    torch.testing.assert_close(p, rbm.p_hidden(v).detach(), **EXACT)
    hidden = rbm.hidden_energy
    p = torch.autograd.functional.jacobian(
        lambda b: -torch.func.functional_call(hidden, {"rbm.b": b}, (h,)), rbm.b.detach()
    )
    wanted = rbm.p_visible(h) if kind != "gaussian" else (rbm.visible_mean(h) - rbm.b) * rbm.visible_precision
    torch.testing.assert_close(p, wanted.detach(), **EXACT)


@every_rbm
@pytest.mark.parametrize("with_base", [False, True])
@pytest.mark.parametrize("by_row", [False, True])
def test_tempered_models_temper_the_joint_energy(kind: str, with_base: bool, by_row: bool) -> None:
    """Free energy and both conditionals of the path against sums over the joint energies."""
    rbm, base = RBMS[kind](), BASES[kind]() if with_base else None
    v = visible(rbm)
    beta = torch.linspace(0.05, 1.0, len(v), dtype=F64) if by_row else f64(0.3)
    model, joint = rbm.tempered(beta, base), pairs(rbm, v)
    rows = beta[:, None] if by_row else beta
    energy = rows * rbm.joint(joint) + ((1 - rows) * base.joint(joint) if base is not None else 0)
    torch.testing.assert_close(model(v), -torch.logsumexp(-energy, -1), **EXACT)
    hidden = torch.softmax(-energy, -1) @ bits(rbm.num_hidden)
    torch.testing.assert_close(torch.sigmoid(model.hidden_logits(v)), hidden, **EXACT)
    h = bits(rbm.num_hidden)[torch.arange(len(v)) % 4]
    at = torch.cat([v, h], -1)
    energy = beta * rbm.joint(at) + ((1 - beta) * base.joint(at) if base is not None else 0)
    if kind == "gaussian":  # -log p(v | h), up to what v does not change
        mean, scale = model.visible_mean(h), model.visible_scale
        found = (0.5 * ((v - mean) / scale).square()).sum(-1)
        moved = torch.cat([mean, h], -1)
        wanted = energy - beta * rbm.joint(moved) - ((1 - beta) * base.joint(moved) if base is not None else 0)
    else:
        parts = (rbm.joint.conditionals(), None if base is None else base.joint.conditionals())
        wanted = _row(beta, parts[0].logits(1, at))
        wanted = wanted if parts[1] is None else wanted + _row(1 - beta, parts[1].logits(1, at))
        found = model.visible_logits(h)
        found = found[..., 1] - found[..., 0] if kind.endswith("two categories") else found
    torch.testing.assert_close(found, wanted, **EXACT)


def _row(weight: Tensor, value: Tensor) -> Tensor:
    return weight.reshape(*weight.shape, *[1] * (value.dim() - 1)) * value if weight.dim() else weight * value


@every_rbm
def test_the_ends_of_a_tempered_path(kind: str) -> None:
    rbm, base = RBMS[kind](), BASES[kind]()
    v = visible(rbm)
    torch.testing.assert_close(rbm.tempered(1.0, base)(v), rbm(v), **EXACT)
    torch.testing.assert_close(rbm.tempered(0.0, base)(v), base(v), **EXACT)
    path = rbm.tempered(0.0, base)
    path.beta.fill_(1.0)  # in place
    torch.testing.assert_close(path(v), rbm(v), **EXACT)


@every_rbm
def test_views_share_the_parameters(kind: str) -> None:
    rbm = RBMS[kind]()
    views = [rbm.joint, rbm.hidden_energy, rbm.tempered(0.5), *([] if rbm.relaxed() is None else [rbm.relaxed()])]
    for view in views:
        assert {id(p) for p in view.parameters()} == {id(p) for p in rbm.parameters()}
    assert RBMS[kind]().joint.identity() != rbm.joint.identity() == rbm.joint.identity()


@pytest.mark.parametrize("kind", ["bernoulli", "gaussian"])
def test_closed_gradients_in_v_are_autograds(kind: str) -> None:
    rbm = RBMS[kind]()
    v = normal(20, rbm.num_visible, seed=6, scale=3.0)
    for found, wanted in zip(rbm.value_and_grad(v), Energy.value_and_grad(rbm, v), strict=True):
        torch.testing.assert_close(found, wanted, **EXACT)
        assert not found.requires_grad
    assert torch.autograd.gradgradcheck(rbm, v[:2].requires_grad_())


def test_large_logits_keep_their_digits() -> None:
    """log(1 + e^30) is 30 + 1e-13; torch's softplus says 30 from 20 on."""
    rbm = BernoulliRBM(1, 1, W=f64([[0.0]]), c=f64([21.0]))
    # 21 has a rounding error of 4e-15, and e^-21 is 8e-10
    assert float(rbm(torch.zeros(1, 1, dtype=F64)).detach() + 21) == pytest.approx(-math.exp(-21), rel=1e-5)


def test_visible_biases_from_data() -> None:
    data = torch.tensor([[1, 0, 1], [1, 0, 0], [1, 0, 1], [1, 0, 0], [1, 0, 1]], dtype=torch.uint8)
    rbm = BernoulliRBM(3, 200, c=torch.ones(200), dtype=F64)
    rbm.init_from_data(data, generator=torch.Generator().manual_seed(0)).requires_grad_(False)
    torch.testing.assert_close(rbm.b.detach(), f64([6.0, 1 / 6, 4 / 3]).log())
    assert torch.equal(rbm.c.detach(), torch.zeros(200, dtype=F64))
    assert 0.008 < float(rbm.W.std()) < 0.012  # 0.01 times 1 +- 4 standard errors of 600 normal numbers, and more
    assert abs(float(rbm.W.mean())) < 0.002
    again = (BernoulliRBM(3, 200).init_from_data(data, generator=torch.Generator().manual_seed(i)) for i in (0, 0, 1))
    one, same_seed, other = (r.W.detach() for r in again)
    assert torch.equal(one, same_seed)
    assert not torch.equal(one, other)
    grey = BernoulliRBM(1, 1).init_from_data(torch.tensor([[0.25], [0.75]]), pseudocount=0)
    assert grey.b.tolist() == [0.0]
    real = normal(50, 3, seed=7) * f64([1.0, 2.0, 3.0]) + 1
    gaussian = GaussianRBM(3, 2, dtype=F64).init_from_data(real)
    torch.testing.assert_close(gaussian.b.detach(), real.mean(0))
    torch.testing.assert_close(gaussian.visible_scale.detach(), real.std(0, correction=0))
    softmax = SoftmaxRBM(2, 3, 1, dtype=F64).init_from_data(torch.tensor([[0, 2], [0, 2], [1, 2]]))
    torch.testing.assert_close(softmax.b.detach().exp(), f64([[3, 2, 1], [1, 1, 4]]) / 6)


@every_rbm
def test_base_rate_models_know_their_log_z(kind: str) -> None:
    rbm = RBMS[kind]()
    assert rbm.log_z is None
    data = visible(rbm)
    base = rbm.init_from_data(data, scale=0)
    nn.init.constant_(base.c, 0.3)
    same(base.log_z, torch.logsumexp(-base.hidden_energy(bits(base.num_hidden)), 0).item())
    if kind == "gaussian":
        same(base.visible_mean(bits(4)), data.mean(0).expand(16, -1).tolist())
    else:
        same(base.log_z, torch.logsumexp(-base(states_of(base)), 0).item())


# Potts, Boltzmann machines, Hopfield.


def test_two_states_of_potts_are_spins() -> None:
    """[a = b] = (1 + s s') / 2 for spins of the two states."""
    graph = Graph.lattice((3, 3))
    coupling, field = normal(18), normal(3, 3, seed=1)
    potts = Potts(graph, 2, coupling, torch.stack([-field, field], -1))
    ising = Ising(graph, coupling / 2, field)
    x = (normal(30, 3, 3, seed=2) > 0).to(torch.int8)
    torch.testing.assert_close(potts(x), ising(2 * x - 1) - coupling.sum() / 2, **EXACT)


def test_couplings_and_their_gradients_are_of_pairs_that_agree() -> None:
    potts = Potts(Graph([(0, 1), (1, 2)], (3,)), 3, f64([1.0, 2.0]))
    potts(torch.tensor([[0, 0, 1], [2, 2, 2]])).sum().backward()
    assert potts.coupling.grad is not None
    assert potts.coupling.grad.tolist() == [-2.0, -1.0]


@pytest.mark.parametrize("lattice", [((5,), True), ((4, 3), (True, False)), ((3, 2, 4), (True, False, True))])
def test_signs_are_those_of_the_couplings(lattice: tuple[tuple[int, ...], bool | tuple[bool, ...]]) -> None:
    """One J with signs is the model of the couplings J and -J in energies, gradients, conditionals, bonds and tables."""
    graph = Graph.lattice(*lattice)
    signs, field = normal(len(graph.edges)).sign(), normal(*graph.shape, seed=1)
    glass = Ising(graph, 0.7, field, signs=signs.tolist())
    by_edge = Ising(graph, 0.7 * signs, field)
    assert [name for name, _ in glass.named_parameters()] == ["coupling", "field"]
    assert glass.signs is not None
    assert glass.signs.dtype == F64
    x = normal(6, *graph.shape, seed=2).sign()
    torch.testing.assert_close(glass(x), by_edge(x), **EXACT)
    for found, wanted in zip(glass.value_and_grad(x), by_edge.value_and_grad(x), strict=True):
        torch.testing.assert_close(found, wanted, **EXACT)
    for block in range(len(glass.conditionals().blocks)):
        found, wanted = (e.conditionals().logits(block, x.flatten(1)) for e in (glass, by_edge))
        torch.testing.assert_close(found, wanted, **EXACT)
    torch.testing.assert_close(glass.pairwise().pairs, by_edge.pairwise().pairs, **EXACT)
    torch.testing.assert_close(glass.bonds().strengths(), by_edge.bonds().strengths(), **EXACT)
    one, each = (torch.autograd.grad(e(x).sum(), e.coupling)[0] for e in (glass, by_edge))
    torch.testing.assert_close(one, signs @ each, **EXACT)


@pytest.mark.parametrize("periodic", [True, False, (True, False, True)])
def test_lattices_by_slices_are_the_gathered_edges(periodic: bool | tuple[bool, ...]) -> None:
    """Values, gradients in the sites and in the couplings; a graph of the same edges has no slices."""
    graph = Graph.lattice((3, 4, 5), periodic)
    coupling, field = normal(len(graph.edges)), normal(3, 4, 5, seed=1)
    models = [Ising(g, coupling, field) for g in (graph, Graph(graph.edges, graph.shape))]
    x = normal(2, 6, 3, 4, 5, seed=2)  # not spins: every product counts by itself
    torch.testing.assert_close(*(model(x) for model in models), **EXACT)
    torch.testing.assert_close(*(model.value_and_grad(x)[1] for model in models), **EXACT)
    torch.testing.assert_close(*(torch.autograd.grad(m(x).sum(), m.coupling)[0] for m in models), **EXACT)


@pytest.mark.parametrize("edges", ["all", "chain", "none"])
def test_free_energies_of_boltzmann_machines(edges: str) -> None:
    """Hidden units that all interact, that form a chain and two single ones, that don't interact."""
    v, h = 3, 5
    graph = {
        "all": None,
        "chain": Graph([(0, 1), (0, 3), (2, 5), (1, 6), (3, 4), (4, 7)], (8,)),
        "none": Graph([(0, 3), (0, 4), (1, 5), (2, 6), (2, 7), (0, 2)], (8,)),
    }[edges]
    number = 28 if graph is None else 6
    machine = BoltzmannMachine(v, h, graph=graph, coupling=normal(number), bias=normal(8, seed=1))
    assert sorted(map(len, machine.groups)) == {"all": [5], "chain": [1, 1, 3], "none": [1] * 5}[edges]
    x = bits(8).reshape(2**v, 2**h, 8)
    wanted = -torch.logsumexp(-machine(x), -1)
    torch.testing.assert_close(machine.free_energy(x[:, 0, :v]), wanted, **EXACT)
    rows = x[:, 0, :v].reshape(2, 4, v)
    torch.testing.assert_close(machine.free_energy(rows), wanted.reshape(2, 4), **EXACT)


def test_dense_and_sparse_products_agree() -> None:
    machine = BoltzmannMachine(6, coupling=normal(15), bias=normal(6, seed=1))
    assert machine.dense
    assert list(machine.sites) == ["v"]
    x = bits(6)
    wanted = machine(x)
    machine.dense = False
    torch.testing.assert_close(machine(x), wanted, **EXACT)
    assert not BoltzmannMachine(40, coupling=0.1, graph=Graph.lattice((40,))).dense


def test_posteriors_hold_one_visible_state_in_every_row() -> None:
    machine = DISCRETE["boltzmann machine"]()
    v, h = bits(3), bits(3).flip(0)
    by_row = machine.posterior(v)
    for i in range(8):
        torch.testing.assert_close(by_row(h)[i], machine.posterior(v[i])(h)[i], **EXACT)
    x = h.to(torch.int8)
    for block in range(len(by_row.conditionals().blocks)):
        alone = torch.cat([machine.posterior(v[i]).conditionals().logits(block, x[i : i + 1]) for i in range(8)])
        torch.testing.assert_close(by_row.conditionals().logits(block, x), alone, **EXACT)
    value, grad = by_row.value_and_grad(h)
    torch.testing.assert_close(grad, torch.stack([machine.posterior(a).value_and_grad(b)[1] for a, b in zip(v, h)]))  # noqa: B905
    assert value.shape == (8,)


def test_hopfield_is_an_ising_model_that_remembers() -> None:
    patterns = normal(5, 200, seed=3).sign()
    memory = Hopfield(patterns.to(torch.int8), field=normal(200, seed=4, scale=0.01), dtype=F64)
    ising = Ising(coupling=memory.couplings, field=memory.fields.detach())
    x = normal(7, 200, seed=5)
    torch.testing.assert_close(memory(x), ising(x), **EXACT)
    same(memory.overlaps(patterns).diagonal(), [1.0] * 5)
    flips = 1 - 2 * torch.eye(200, dtype=F64)
    for pattern in patterns:  # a minimum: every single flip costs energy
        assert bool((memory(pattern * flips) > memory(pattern)).all())


# What energies made of models tell of themselves.


def test_models_of_categories_have_relaxed_energies() -> None:
    several = [name for name in MODELS if levels_of(indexed(DISCRETE[name]())).most > 2]
    assert set(several) - set(RELAXED) == {"softmax rbm, joint"}  # sites of different levels


@pytest.mark.parametrize("name", RELAXED)
def test_relaxed_energies_agree_at_one_hot_vectors(name: str) -> None:
    energy = DISCRETE[name]()
    relaxed = energy.relaxed()
    assert relaxed is not None
    x = states_of(energy)
    z = one_hot(x, relaxed.event_shape[-1], F64)
    torch.testing.assert_close(relaxed(z), energy(x), **EXACT)
    soft = torch.softmax(normal(6, *relaxed.event_shape), -1)
    for found, wanted in zip(relaxed.value_and_grad(soft), Energy.value_and_grad(relaxed, soft), strict=True):
        torch.testing.assert_close(found, wanted, **EXACT)


def test_relaxed_sums_and_paths() -> None:
    a, b = Potts((3,), 3, normal(3)), Potts((3,), 3, 0.5, normal(3, seed=1))
    x = states_of(a)
    z = one_hot(x, 3, F64)
    for energy in (a + b, GeometricPath(a, b, 0.3), Tempered(a, 0.7), ProductOfExperts([a, b], [0.5, 2.0])):
        torch.testing.assert_close(energy.relaxed()(z), energy(x), **EXACT)
    assert (a + eb.as_energy(lambda x: 0.1 * x.sum(-1).double(), (3,), categories(3))).relaxed() is None


def test_conditionals_of_paths_by_row() -> None:
    start, end = Ising(Graph([], (6,)), field=normal(6)), Ising((6,), 0.7, dtype=F64)
    x = 2 * bits(6)[::7] - 1
    beta = torch.linspace(0, 1, len(x), dtype=F64)
    by_row = GeometricPath(start, end, beta).conditionals()
    assert [b.tolist() for b in by_row.blocks] == [[0, 2, 4], [1, 3, 5]]
    for block in range(2):
        found = by_row.logits(block, x)
        alone = [GeometricPath(start, end, float(t)).conditionals().logits(block, row[None]) for t, row in zip(beta, x)]  # noqa: B905
        torch.testing.assert_close(found, torch.cat(alone), **EXACT)
    assert Sum([start, eb.as_energy(lambda x: x.sum(-1), (6,), eb.energies.spin)]).conditionals() is None


@pytest.mark.parametrize(
    "name", ["sum", "path", "potts, clamped", "rbm, joint, tempered", "boltzmann machine, posterior"]
)
def test_a_sweep_over_combined_conditionals_traces_below_python(name: str) -> None:
    """Index tensors are made at construction, not inside a trace."""
    kernel = eb.Gibbs(DISCRETE[name]())
    state = kernel.init(states_of(kernel.target)[:6])
    uniform = torch.rand(2, 6, kernel.num_coordinates, dtype=F64, generator=torch.Generator().manual_seed(0))

    def tick(x: Tensor, u: Tensor) -> Tensor:
        return kernel.tick(GibbsState(x), kernel.init_tuning(x), {"uniform": u})[0].position

    traced = make_fx(tick)(state.position, uniform[0])
    assert torch.equal(traced(state.position, uniform[1]), tick(state.position, uniform[1]))


@every_model
def test_models_travel_and_are_copied(name: str) -> None:
    energy = DISCRETE[name]()
    x = states_of(energy)
    value = energy(x).detach()
    for twin in (pickle.loads(pickle.dumps(energy)), copy.deepcopy(energy)):
        assert torch.equal(twin(x), value)
        assert repr(twin) == repr(energy)
    other = DISCRETE[name]()
    with torch.no_grad():
        for p in other.parameters():
            p.add_(normal(*p.shape, seed=9))
    assert not torch.allclose(other(x), value)
    other.load_state_dict(energy.state_dict())
    assert torch.equal(other(x), value)


@every_model
def test_models_change_dtype_and_device(name: str, device: torch.device) -> None:
    energy = DISCRETE[name]()
    x = states_of(energy)
    value = energy(x).detach()
    moved = DISCRETE[name]().to(device=device, dtype=torch.float32)
    found = moved(x.to(device))
    assert found.dtype == torch.float32
    assert found.device.type == device.type
    torch.testing.assert_close(found.cpu().double(), value, rtol=1e-5, atol=1e-5)  # some ten terms of size 1
    structure = moved.conditionals()
    if structure is not None:
        assert {b.device.type for b in structure.blocks} == {device.type}
        assert structure.logits(0, x.to(device).reshape(len(x), -1)).dtype == torch.float32


@every_model
def test_every_parameter_gets_a_gradient(name: str) -> None:
    energy = DISCRETE[name]()
    grads = torch.autograd.grad(torch.logsumexp(-energy(states_of(energy)), 0), list(energy.parameters()))
    without = 1 if name == "path" else 0  # the coupling of a graph without edges
    assert sum(not bool(grad.any()) for grad in grads) == without


def test_given_parameters_are_shared_and_default_ones_come_from_the_generator() -> None:
    weights = nn.Parameter(normal(3, 2))
    assert BernoulliRBM(3, 2, W=weights).W is weights
    assert BernoulliRBM(3, 2, W=weights).b.dtype == F64
    assert Ising(coupling=0.5, lattice=(3,), dtype=F64).coupling.dtype == F64
    made: list[Callable[[torch.Generator], Energy]] = [
        lambda g: BernoulliRBM(3, 2, generator=g),
        lambda g: GaussianRBM(3, 2, generator=g),
        lambda g: SoftmaxRBM(3, 3, 2, generator=g),
        lambda g: BoltzmannMachine(3, 2, generator=g),
        lambda g: GaussianExperts(3, 2, generator=g),
        lambda g: StudentTExperts(3, 2, generator=g),
    ]
    for make in made:
        a, b, c = (list(make(torch.Generator().manual_seed(seed)).parameters())[0] for seed in (0, 0, 1))
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


# Products of experts.


def quadrature(energy: Energy, end: float, n: int) -> float:
    """Log Z by the trapezoid rule over x = sinh(z), for heavy tails, too."""
    d = energy.event_shape[0]
    z = torch.linspace(-end, end, n, dtype=F64)
    grid = torch.cartesian_prod(*[z] * d).reshape(-1, d)
    with torch.no_grad():
        log_mass = torch.logsumexp(grid.cosh().log().sum(-1) - energy(grid.sinh()), 0)
    return float(log_mass) + d * math.log(float(z[1] - z[0]))


SQUARE = torch.tensor([[1.2, 0.3], [-0.4, 0.8]], dtype=F64)
NORMALISED: dict[str, Callable[[], Energy]] = {
    "gaussian, 1-d": lambda: GaussianExperts(2, 1, filters=f64([[0.7], [0.4]]), bias=f64([0.3, -1.0])),
    "gaussian, 2-d": lambda: GaussianExperts(3, 2, filters=torch.cat([SQUARE, SQUARE[:1]]), bias=f64([0.3, -1.0, 0.2])),
    "student-t, 1-d": lambda: StudentTExperts(1, 1, filters=f64([[0.7]]), bias=f64([0.3]), alpha=f64([1.3])),
    "student-t, 2-d": lambda: StudentTExperts(2, 2, filters=SQUARE, bias=f64([0.3, -1.0]), alpha=f64([3.0, 4.0])),
    "logistic, 1-d": lambda: LogisticExperts(1, 1, filters=f64([[0.7]]), bias=f64([0.3]), alpha=f64([1.3])),
    "logistic, 2-d": lambda: LogisticExperts(2, 2, filters=SQUARE, bias=f64([0.3, -1.0]), alpha=f64([0.7, 2.0])),
}


@pytest.mark.parametrize("name", NORMALISED)
def test_log_z_of_complete_experts_against_quadrature(name: str) -> None:
    energy = NORMALISED[name]()
    assert energy.log_z is not None
    end, n = (25.0, 4_001) if energy.event_shape[0] == 1 else (9.0, 901)
    # the trapezoid rule converges faster than any power of the step; what is beyond the ends is below e^-20
    assert energy.log_z.item() == pytest.approx(quadrature(energy, end, n), abs=1e-8)


def test_experts_whose_integral_is_not_known() -> None:
    assert GaussianExperts(1, 2).log_z is None  # a direction that no filter sees
    assert StudentTExperts(3, 2).log_z is None  # overcomplete
    assert StudentTExperts(2, 2, alpha=torch.tensor([0.5, 1.0])).log_z is None  # improper
    assert LogisticExperts(2, 2, filters=torch.zeros(2, 2)).log_z is None
    assert SoftplusExperts(2, 2).log_z is None


def test_gaussian_experts_are_a_gaussian() -> None:
    experts = GaussianExperts(4, 3, filters=normal(4, 3), bias=normal(4, seed=1))
    precision = experts.filters.detach().mT @ experts.filters.detach()
    mean = -torch.linalg.solve(precision, experts.bias.detach() @ experts.filters.detach())
    gaussian = Gaussian(mean, torch.linalg.inv(precision))
    x = normal(9, 3, seed=2)
    torch.testing.assert_close(experts(x) - experts(x[:1]), gaussian(x) - gaussian(x[:1]), **EXACT)
    torch.testing.assert_close(experts.as_quadratic().mean, mean, **EXACT)


def test_hidden_units_are_experts() -> None:
    """A Gaussian times one softplus expert for every hidden unit is the Gaussian RBM (Hinton 2002)."""
    rbm = RBMS["gaussian"]()
    w, b, precision = rbm.W.detach(), rbm.b.detach(), rbm.visible_precision.detach()
    product = ProductOfExperts(
        [
            GaussianExperts(3, 3, filters=precision.sqrt().diag(), bias=-b * precision.sqrt()),
            SoftplusExperts(4, 3, filters=(w * precision[:, None]).mT, bias=rbm.c.detach()),
        ]
    )
    v = normal(20, 3, scale=2.0)
    for found, wanted in zip(product.value_and_grad(v), rbm.value_and_grad(v), strict=True):
        torch.testing.assert_close(found, wanted, **EXACT)


def test_products_are_sums_with_weights_that_learn() -> None:
    experts = [StudentTExperts(3, 2, dtype=F64), Gaussian(f64([0.0, 1.0]), SQUARE @ SQUARE.mT)]
    x = normal(9, 2)
    torch.testing.assert_close(ProductOfExperts(experts)(x), (experts[0] + experts[1])(x), **EXACT)
    weights = nn.Parameter(f64([0.5, 2.0]))
    product = ProductOfExperts(experts, weights)
    torch.testing.assert_close(product(x), 0.5 * experts[0](x) + 2 * experts[1](x), **EXACT)
    (grad,) = torch.autograd.grad(product(x).sum(), weights)
    torch.testing.assert_close(grad, torch.stack([e(x).sum() for e in experts]), **EXACT)
    assert product.as_quadratic() is None
    gaussians = ProductOfExperts([experts[1], GaussianExperts(2, 2, filters=SQUARE)], [0.5, 2.0])
    assert gaussians.log_z.item() == pytest.approx(quadrature(gaussians, 6.0, 901), abs=1e-8)
    once = ProductOfExperts(DISCRETE["product of experts"]().experts).relaxed()
    assert isinstance(once, ProductOfExperts)


def test_a_product_samples_as_the_product() -> None:
    """Kolmogorov-Smirnov of 3,000 chains in 1-d against quadrature; one expert alone is refused. False alarms: 1e-3."""
    experts = [
        StudentTExperts(1, 1, filters=f64([[1.5]])),
        LogisticExperts(1, 1, filters=f64([[1.5]]), bias=f64([-3.0])),
    ]
    chains = Chains(eb.HMC(ProductOfExperts(experts), step_size=0.4, num_steps=4), 3 * normal(3_000, 1), 1)
    chains.advance(40)
    draws = chains.position()[:, 0].numpy()
    grid = torch.linspace(-60, 60, 40_001, dtype=F64)

    def p_value(energy: Energy) -> float:
        with torch.no_grad():
            cdf = torch.softmax(-energy(grid[:, None]), 0).cumsum(0).numpy()
        return float(stats.kstest(draws, lambda x: _interpolate(x, grid.numpy(), cdf)).pvalue)

    assert p_value(Sum(experts)) > 1e-3
    assert max(map(p_value, experts)) < 1e-6


def _interpolate(x: Any, at: Any, values: Any) -> Any:
    import numpy as np

    return np.interp(x, at, values)


# Bad input.

LOOP = torch.tensor([[1.0, 0.5], [0.5, 0.0]])
SKEW = torch.tensor([[0.0, 0.5], [0.25, 0.0]])
BAD: dict[str, tuple[Callable[[], object], str]] = {
    "rbm, no units": (lambda: BernoulliRBM(0, 3), "at least one visible and one hidden unit, got 0 and 3"),
    "rbm, no hidden": (lambda: GaussianRBM(3, 0), "at least one visible and one hidden unit, got 3 and 0"),
    "rbm, W": (lambda: BernoulliRBM(3, 2, W=torch.zeros(2, 3)), r"W of shape \(3, 2\), got \(2, 3\)"),
    "rbm, b": (lambda: BernoulliRBM(3, 2, b=torch.zeros(2)), r"b of shape \(3,\), got \(2,\)"),
    "rbm, c": (lambda: SoftmaxRBM(3, 4, 2, c=torch.zeros(3)), r"c of shape \(2,\), got \(3,\)"),
    "rbm, nan": (lambda: BernoulliRBM(3, 2, b=torch.tensor([0, math.nan, 0])), "finite b, got nan"),
    "rbm, variance": (
        lambda: GaussianRBM(3, 2, log_variance=torch.zeros(2)),
        r"log_variance of shape \(3,\), got \(2,\)",
    ),
    "rbm, one category": (lambda: SoftmaxRBM(3, 1, 2), "at least 2 categories, got 1"),
    "rbm, points": (lambda: BernoulliRBM(3, 2)(torch.zeros(4, 2)), r"points of shape \(\*, 3\), got \(4, 2\)"),
    "tempered, base": (lambda: BernoulliRBM(3, 2).tempered(0.5, BernoulliRBM(3, 1)), "expected a base such as"),
    "tempered, kind": (lambda: BernoulliRBM(3, 2).tempered(0.5, GaussianRBM(3, 2)), "expected a base such as"),
    "tempered, beta": (lambda: BernoulliRBM(3, 2).tempered(-1.0), "beta >= 0, got -1"),
    "tempered, path": (lambda: BernoulliRBM(3, 2).tempered(1.5, BernoulliRBM(3, 2)), r"beta in \[0, 1\], got 1.5"),
    "tempered, flat": (lambda: GaussianRBM(3, 2).tempered(0.0), "beta > 0 over real visible units"),
    "data, shape": (lambda: BernoulliRBM(3, 2).init_from_data(torch.zeros(5, 2)), r"\(points, 3\), got \(5, 2\)"),
    "data, value": (
        lambda: BernoulliRBM(2, 2).init_from_data(torch.tensor([[0, 1], [0, 255]])),
        r"values in \[0, 1\], got 255 \(point 1, unit 1\)",
    ),
    "data, nan": (
        lambda: BernoulliRBM(1, 2).init_from_data(torch.tensor([[math.nan]])),
        r"got nan \(point 0, unit 0\)",
    ),
    "data, category": (
        lambda: SoftmaxRBM(2, 3, 2).init_from_data(torch.tensor([[0, 3]])),
        r"categories 0 to 2, got 3 \(point 0, unit 1\)",
    ),
    "data, constant": (
        lambda: GaussianRBM(2, 2).init_from_data(torch.tensor([[0.0, 1], [1, 1]])),
        "got only 1 at unit 1",
    ),
    "data, always off": (
        lambda: BernoulliRBM(1, 2).init_from_data(torch.zeros(3, 1), pseudocount=0),
        "pseudocount > 0",
    ),
    "ising, sign": (lambda: Ising((3,), 0.5, signs=[1, -1, 0.5]), r"signs \+1 or -1, got 0.5 at edge 2"),
    "ising, no sign": (lambda: Ising((3,), 0.5, signs=[1, math.nan, 1]), r"signs \+1 or -1, got nan at edge 1"),
    "ising, signs": (lambda: Ising((3,), 0.5, signs=torch.ones(4)), r"signs of shape \(3,\), got \(4,\)"),
    "ising, both": (
        lambda: Ising((3,), torch.ones(3), signs=torch.ones(3)),
        r"one number beside signs, got shape \(3,\)",
    ),
    "potts, states": (lambda: Potts((3,), 1), "at least 2 categories, got 1"),
    "potts, skew": (lambda: Potts(coupling=SKEW), r"symmetric couplings, got 0.5 at \(0, 1\) and 0.25"),
    "potts, loop": (lambda: Potts(coupling=LOOP), r"no self-couplings, got 1 at \(0, 0\)"),
    "potts, field": (lambda: Potts((3,), 4, field=torch.zeros(3)), r"field as a number or of shape \(4,\), got \(3,\)"),
    "potts, number": (lambda: Potts(), "expected a lattice, or coupling as a matrix"),
    "machine, skew": (lambda: BoltzmannMachine(2, coupling=SKEW), "symmetric couplings"),
    "machine, loop": (lambda: BoltzmannMachine(2, coupling=LOOP), "no self-couplings"),
    "machine, units": (lambda: BoltzmannMachine(2, 1, coupling=LOOP.clone().fill_diagonal_(0)), r"2 \+ 1 units, got 2"),
    "machine, missing": (lambda: BoltzmannMachine(2, 1, graph=Graph([(0, 3)], (3,))), r"sites 0 to 2, got \(0, 3\)"),
    "machine, bias": (lambda: BoltzmannMachine(2, 1, bias=torch.zeros(2)), r"bias as a number or of shape \(3,\)"),
    "machine, no visible": (lambda: BoltzmannMachine(0, 1), "num_visible >= 1"),
    "machine, posterior": (
        lambda: BoltzmannMachine(2).posterior(torch.zeros(2)),
        "hidden units, got a machine without",
    ),
    "machine, many": (
        lambda: BoltzmannMachine(2, 21).free_energy(torch.zeros(1, 2)),
        r"at most 20 hidden units that interact, got 21 \(2\^21 states",
    ),
    "graph, one-sided": (lambda: Graph.of_matrix(torch.ones(3, 3).tril(-1)), r"symmetric matrix .* at \(0, 1\)"),
    "graph, loop": (lambda: Graph.of_matrix(torch.eye(3)), r"zero diagonal, got another at \(0, 0\)"),
    "graph, real edges": (lambda: Graph(torch.tensor([[0.5, 1.5]]), (3,)), "pairs of integers"),
    "graph, triples": (lambda: Graph([(0, 1, 2), (1, 2, 0)], (3,)), r"pairs of integers \(edges, 2\)"),  # type: ignore
    "lattice, none": (lambda: Ising(()), r"integers > 0 such as \(8, 8\), got \(\)"),
    "lattice, number": (lambda: Ising(4), "integers > 0 such as .* got 4"),  # type: ignore[arg-type]
    "lattice, negative": (lambda: Potts((-3, 4), 3), r"integers > 0 such as .* got \(-3, 4\)"),
    "hopfield, patterns": (lambda: Hopfield(torch.tensor([[1, -1], [1, 0]])), r"got 0 \(pattern 1, site 1\)"),
    "hopfield, shape": (lambda: Hopfield(torch.ones(3)), r"\(patterns, sites\), got \(3,\)"),
    "product, none": (lambda: ProductOfExperts([]), "at least one energy"),
    "product, spaces": (lambda: ProductOfExperts([Ising((3,)), Ising((4,))]), "over the same sites"),
    "product, weights": (lambda: ProductOfExperts([Ising((3,))], [1.0, 2.0]), "expected 1 positive weights"),
    "product, negative": (lambda: ProductOfExperts([Ising((3,))], [-1.0]), r"1 positive weights, got \[-1.0\]"),
    "experts, filters": (lambda: GaussianExperts(3, 2, filters=torch.zeros(2, 3)), r"filters of shape \(3, 2\)"),
    "experts, none": (lambda: LogisticExperts(0, 2), "at least one expert, got 0"),
    "experts, alpha": (
        lambda: StudentTExperts(1, 2, alpha=torch.tensor([-1.0])),
        r"positive weights alpha, got \[-1.0\]",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused(case: str) -> None:
    build, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("name", ["potts, lattice", "softmax rbm"])
def test_categories_out_of_range_are_named(name: str) -> None:
    energy = DISCRETE[name]()
    x = states_of(energy)[:2].clone()
    x.view(2, -1)[1, 2] = 4
    with pytest.raises(ValueError, match="site 'x'.*got 4 .*chain 1"):
        eb.MCMC(eb.Gibbs(energy), 5, initial_params=x, num_chains=2)


def test_registries_have_the_models() -> None:
    assert len(ENERGIES) > 20
    assert all(len(law(DISCRETE[name]())) <= 300 for name in MODELS)


@pytest.mark.parametrize("model", ["ising", "potts", "boltzmann"])
def test_energies_of_large_lattices_keep_their_digits(model: str) -> None:
    """Of up to 49,152 equal terms, 20 units in float32's last place; summed one after the other they were 500 off."""
    make: dict[str, Callable[[], Energy]] = {
        "ising": lambda: Ising((128, 128), 0.7, 0.7),
        "potts": lambda: Potts((128, 128), 3, 0.7, 0.7),
        "boltzmann": lambda: BoltzmannMachine(128**2, graph=graph, coupling=0.7, bias=0.7),
    }
    graph = Graph(Graph.lattice((128, 128)).edges, (128**2,))
    energy, x = make[model](), torch.ones(2, 128, 128, dtype=torch.int64)
    x[1, 40:60] = -1 if model == "ising" else 0
    x = x.reshape(2, *energy.event_shape)
    wanted = copy.deepcopy(energy).double()(x)
    torch.testing.assert_close(energy(x).double(), wanted, rtol=2.4e-6, atol=0.0)
