"""Clusters: labels against SciPy's, limits of percolation, gauges, wrong kernels, fields, tempering by rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import ebmppl as eb
from ebmppl.energies import Clamped, GeometricPath
from ebmppl.energies.bonds import Bonds
from ebmppl.energies.discrete import levels_of
from ebmppl.energies.structure import Pairwise
from ebmppl.kernels import operators
from ebmppl.kernels.clusters import Clusters, ClusterState, balanced
from ebmppl.kernels.components import components, in_rounds, lattice_components
from ebmppl.models import BoltzmannMachine, Graph, Hopfield, Ising, Potts, ProductOfExperts
from ebmppl.sampling import operators_in_c
from ebmppl.sampling.chains import Chains
from tests.discrete import exact_draws, law, number, p_value, states_of
from tests.discrete_registry import DISCRETE

F64 = torch.float64
LIMIT = 1e-5  # false alarms of each chi-square test of this file


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# Labels.


def _smallest(i: Tensor, j: Tensor, sites: int) -> Tensor:
    """By SciPy, of every site the smallest one of its component."""
    graph = coo_matrix((np.ones(len(i)), (i.numpy(), j.numpy())), shape=(sites, sites))
    number, label = connected_components(graph, directed=False)
    first = np.full(number, sites)
    np.minimum.at(first, label, np.arange(sites))
    return torch.from_numpy(first[label])


def _path(order: Tensor) -> tuple[Tensor, Tensor, int]:
    return order[:-1], order[1:], len(order)


def _random(edges: int, sites: int, seed: int) -> tuple[Tensor, Tensor, int]:
    i, j = torch.randint(sites, (2, edges), generator=torch.Generator().manual_seed(seed)).unbind()
    return i, j, sites


def _bit_reversed(bits: int) -> Tensor:
    x = torch.arange(1 << bits)
    return sum((((x >> b) & 1) << (bits - 1 - b) for b in range(bits)), torch.zeros_like(x))


def _comb(n: int) -> tuple[Tensor, Tensor, int]:
    """Small sites that only large ones connect: 0 ... n - 1 along n ... 2 n - 2."""
    low, high = torch.arange(n), n + torch.arange(n - 1)
    return torch.cat([low[:-1], low[1:]]), torch.cat([high, high]), 2 * n - 1


GRAPHS: dict[str, Callable[[], tuple[Tensor, Tensor, int]]] = {
    "no edges": lambda: _random(0, 7, 0),
    "one site": lambda: _random(0, 1, 0),
    "sparse": lambda: _random(300, 1000, 1),
    "critical": lambda: _random(1000, 2000, 2),
    "dense": lambda: _random(5000, 300, 3),
    "path": lambda: _path(torch.arange(5000)),
    "path backwards": lambda: _path(torch.arange(5000).flip(0)),
    "path at random": lambda: _path(torch.randperm(5000, generator=torch.Generator().manual_seed(4))),
    "path, bits reversed": lambda: _path(_bit_reversed(12)),
    "star of a small centre": lambda: (torch.zeros(999, dtype=torch.int64), torch.arange(1, 1000), 1000),
    "star of a large centre": lambda: (torch.full((999,), 999), torch.arange(999), 1000),
    "comb": lambda: _comb(2000),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_components_are_those_of_scipy(name: str) -> None:
    i, j, sites = GRAPHS[name]()
    assert torch.equal(components(i, j, sites).long(), _smallest(i, j, sites))


def _by_operator(joined: Tensor, i: Tensor, j: Tensor, sites: int, *, in_c: bool) -> Tensor:
    args = torch.zeros(len(joined), sites, dtype=torch.int8), 1.0 - joined.float(), torch.ones(len(i)), i, j
    if not in_c:
        return operators.bonded(*args)
    out, call = operators_in_c.call("bonded", lambda *form: torch.empty_strided(form[0], form[1], dtype=form[2]), args)
    call()
    return out


WAYS: dict[str, Callable[..., Tensor]] = {
    "in rounds": in_rounds,  # looks at no value
    "operator": partial(_by_operator, in_c=False),
    "operator in C": partial(_by_operator, in_c=True),
}


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("way", WAYS)
def test_components_of_many_graphs_are_those_of_each(way: str, name: str) -> None:
    """Half of the edges of some rows, all or none of others."""
    i, j, sites = GRAPHS[name]()
    joined = torch.rand(5, len(i), generator=torch.Generator().manual_seed(23)) < 0.5
    joined[1], joined[3] = True, False
    label = WAYS[way](joined, i, j, sites).view(5, sites)
    for row in range(5):
        wanted = _smallest(i[joined[row]], j[joined[row]], sites)
        assert torch.equal(label[row].long() - row * sites, wanted)


class _Counting(torch.overrides.TorchFunctionMode):
    """Counts the rounds of a labelling by their hooks."""

    rounds = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.rounds += function is Tensor.scatter_reduce
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", GRAPHS)
def test_no_more_rounds_than_proved(name: str) -> None:
    i, j, sites = GRAPHS[name]()
    with _Counting() as count:
        components(i, j, sites)
    assert (count.rounds > 0) == (len(i) > 0)
    assert count.rounds <= 2 * math.log2(sites) + 1


def _open_lattices(kind: str, shape: tuple[int, ...], rows: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    axes = range(len(shape))
    if kind == "all":
        return [torch.ones(rows, *shape, dtype=torch.bool) for _ in axes]
    if kind == "none":
        return [torch.zeros(rows, *shape, dtype=torch.bool) for _ in axes]
    if kind == "snake":  # along the last axis, from row to row at its ends
        along, across = (torch.zeros(rows, *shape, dtype=torch.bool) for _ in range(2))
        along[..., :-1] = True
        across[:, ::2, -1] = across[:, 1::2, 0] = True
        across[:, -1] = False
        return [across, along]
    return [torch.rand(rows, *shape, generator=generator) < float(kind) for _ in axes]


@pytest.mark.parametrize(
    ("kind", "shape"),
    [(kind, (20, 20)) for kind in ("all", "none", "snake", "0.3", "0.5", "0.6")]
    + [("0.4", (50,)), ("0.25", (6, 7, 8)), ("0.5", (3, 31)), ("snake", (33, 17))],
)
def test_lattices_by_slices_are_those_of_scipy(kind: str, shape: tuple[int, ...]) -> None:
    bonds = _open_lattices(kind, shape, 4)
    site = torch.arange(bonds[0].numel()).view(bonds[0].shape)
    i = torch.cat([site[b] for b in bonds])
    j = torch.cat([site.roll(-1, axis)[b] for axis, b in enumerate(bonds, 1)])
    assert torch.equal(lattice_components(bonds).long(), _smallest(i, j, site.numel()))


# Bonds.


def _clusters(model: eb.Energy, x: Tensor, uniform: Tensor) -> Clusters:
    return eb.SwendsenWang(model).clusters(x.reshape(len(x), -1), uniform)


@pytest.mark.parametrize("periodic", [True, False, (True, False)])
def test_a_lattice_and_its_graph_have_the_same_clusters(periodic: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the rows are taken some at a time."""
    lattice = Graph.lattice((4, 5), periodic)
    coupling = torch.rand(len(lattice.edges), generator=torch.Generator().manual_seed(6))
    x = 2 * torch.randint(2, (30, 4, 5), generator=torch.Generator().manual_seed(7)).to(torch.int8) - 1
    uniform = torch.rand(30, len(lattice.edges), generator=torch.Generator().manual_seed(8))
    sliced = _clusters(Ising(lattice, coupling), x, uniform)
    looked_up = _clusters(Ising(Graph(lattice.edges, (4, 5)), coupling), x, uniform)
    assert torch.equal(sliced.label, looked_up.label)
    monkeypatch.setattr("ebmppl.kernels.clusters._IN_CACHE", 45)
    assert torch.equal(_clusters(Ising(lattice, coupling), x, uniform).label, sliced.label)


def test_bonds_join_equal_neighbours_with_their_probability() -> None:
    """Of 400,000 pairs; 4.9 standard errors are a false alarm of 1e-6."""
    n, coupling = 400_000, 0.3
    x = torch.tensor([[1, 1, -1]], dtype=torch.int8).expand(n, 3)
    model = Ising(Graph([(0, 1), (1, 2)], (3,)), coupling, dtype=F64)
    label = _clusters(model, x, torch.rand(n, 2, dtype=F64, generator=torch.Generator().manual_seed(9))).label.view(
        n, 3
    )
    p, found = 1 - math.exp(-2 * coupling), float((label[:, 0] == label[:, 1]).double().mean())
    assert abs(found - p) < 4.9 * math.sqrt(p * (1 - p) / n)
    assert not bool((label[:, 1] == label[:, 2]).any())


def test_without_coupling_every_site_is_alone_and_with_a_large_one_none() -> None:
    x = torch.ones(8, 6, 6, dtype=torch.int8)
    for coupling, clusters, largest in ((0.0, 36, 1 / 36), (40.0, 1, 1.0)):
        chains = Chains(eb.SwendsenWang(Ising((6, 6), coupling, dtype=F64)), x, seed=10)
        infos: list[Any] = []
        for _ in range(3):
            chains.advance(1, observe=infos.append)
            whole = chains.position().flatten(1).double().mean(1).abs()
            assert bool((whole == 1).all()) == (clusters == 1)
        for info in infos[:1] if clusters == 1 else infos:
            assert bool((info.num_clusters == clusters).all())
            torch.testing.assert_close(info.largest_cluster, torch.full((8,), largest, dtype=F64))
    wolff: list[Any] = []
    for coupling, size in ((0.0, 1), (40.0, 36)):
        Chains(eb.Wolff(Ising((6, 6), coupling)), x, seed=11).advance(1, observe=wolff.append)
        assert bool((wolff[-1].cluster_size == size).all())


def test_without_coupling_fields_make_spins_independent() -> None:
    """Means of 40,000 chains are tanh(h); 5.5 standard errors of 6 spins are a false alarm of 3e-7."""
    field = torch.linspace(-1.5, 1.5, 6, dtype=F64)
    chains = Chains(eb.SwendsenWang(Ising((6,), 0.0, field)), torch.ones(40_000, 6, dtype=torch.int8), seed=12)
    chains.advance(1)
    error = (1 - field.tanh().square()).div(40_000).sqrt()
    assert bool(((chains.position().double().mean(0) - field.tanh()).abs() < 5.5 * error).all())


# Gauges.


def test_a_balanced_graph_is_gauged_and_a_frustrated_loop_is_named() -> None:
    edges = torch.tensor([(0, 1), (1, 2), (2, 3), (3, 0), (4, 5)])
    flips = balanced(edges, torch.tensor([-1.0, 1.0, -1.0, 1.0, -1.0]), 6)
    assert flips.tolist() == [False, True, True, False, False, True]
    with pytest.raises(ValueError, match=r"frustrated loop through edge \(\d, \d\)"):
        balanced(edges, torch.tensor([-1.0, 1.0, 1.0, 1.0, 1.0]), 6)
    balanced(edges, torch.tensor([-1.0, 1.0, 0.0, 1.0, 1.0]), 6)  # no loop without the third edge


@pytest.mark.parametrize("kernel", [eb.SwendsenWang, eb.Wolff])
def test_antiferromagnets_are_taken_on_bipartite_graphs_only(kernel: Any) -> None:
    even = Ising((4, 4), -0.5)
    chains = Chains(kernel(even), torch.ones(50, 4, 4, dtype=torch.int8), seed=13)
    chains.advance(100)
    staggered = (torch.arange(4)[:, None] + torch.arange(4)) % 2 * 2 - 1
    assert float((chains.position() * staggered).double().mean((1, 2)).abs().mean()) > 0.8
    with pytest.raises(ValueError, match="frustrated loop through edge"):
        kernel(Ising((3, 4), -0.5))
    with torch.no_grad():
        even.coupling[...] = 0.5
    chains.advance(200)
    assert float(chains.position().double().mean((1, 2)).abs().mean()) > 0.8


def test_potts_models_of_negative_couplings_are_taken_with_two_states_only() -> None:
    with pytest.raises(ValueError, match=r"strengths >= 0 with 3 levels, got -0.5 at edge \(0, 4\)"):
        eb.SwendsenWang(Potts((4, 4), 3, -0.5))
    eb.SwendsenWang(Potts((4, 4), 2, -0.5))
    with pytest.raises(ValueError, match="frustrated"):
        eb.SwendsenWang(Potts((3, 3), 2, -0.5))


@pytest.mark.parametrize("kernel", [eb.SwendsenWang, eb.Wolff])
def test_sites_without_edges(kernel: Any) -> None:
    model = Ising(Graph([], (3,)), field=torch.tensor([0.3, -0.2, 0.0], dtype=F64))
    chains = Chains(kernel(model), exact_draws(model, 20_000, seed=20), seed=21)
    chains.advance(2)
    assert p_value(torch.bincount(number(model, chains.position()), minlength=8), law(model)) > LIMIT


# Compiled ticks.


@pytest.mark.parametrize("kernel", [eb.SwendsenWang, pytest.param(eb.Wolff, marks=pytest.mark.long)])
def test_compiled_ticks_see_parameters_that_change(kernel: Any) -> None:
    """Strengths of the same signs go on in the same ticks; other signs, or the first field, take others."""
    runs = []
    for backend in ("eager", "inductor"):
        model = Ising((4, 6), 0.3, dtype=F64)
        chains = Chains(kernel(model), torch.ones(40, 4, 6, dtype=torch.int8), 22, backend, record=False)
        draws, made = [], []
        for coupling, field in ((0.3, 0.0), (0.45, 0.0), (-0.4, 0.0), (-0.4, 0.2)):
            with torch.no_grad():
                model.coupling.fill_(coupling)
                model.field.fill_(field)
            chains.advance(10)
            draws.append(chains.position().clone())
            made.append(chains.compiled)
        runs.append((draws, made))
    (eager, none), (found, made) = runs
    assert none == [None] * 4
    assert all(map(torch.equal, eager, found))
    assert None not in made
    assert [a is b for a, b in zip(made[1:], made[:-1], strict=True)] == [True, False, False]


def test_parameters_that_become_frustrated_are_refused() -> None:
    model = Ising(Graph([(0, 1), (1, 2), (2, 0)], (3,)), torch.full((3,), 0.5))
    chains = Chains(eb.Wolff(model), torch.ones(2, 3, dtype=torch.int8), seed=14)
    with torch.no_grad():
        model.coupling[1] = -0.5
    with pytest.raises(ValueError, match="frustrated"):
        chains.advance(1)


@pytest.mark.parametrize("kernel", [eb.SwendsenWang, eb.Wolff])
def test_energies_without_bonds_are_refused(kernel: Any) -> None:
    with pytest.raises(ValueError, match=r"expected an energy of pairs .*, got FunctionEnergy; Gibbs takes any"):
        kernel(eb.as_energy(lambda x: x.sum(-1), (3,), eb.energies.spin))


# Bonds by tables of pairs.


def _of_bonds(bonds: Bonds, level: Tensor) -> Tensor:
    """Energies ``(rows,)`` up to a constant of numbers of levels ``(rows, coordinates)``."""
    i, j = bonds.edges.unbind(1)
    fields = bonds.fields()[torch.arange(level.shape[1]), level].sum(1)
    return -fields - (level[:, i] == level[:, j]).to(fields.dtype) @ bonds.strengths()


BY_TABLES: dict[str, Callable[[], eb.Energy]] = {
    "ising": lambda: Ising((3, 3), 0.3, 0.2, periodic=False, dtype=F64),
    "one edge twice": lambda: (
        Ising(Graph([(0, 1), (1, 2)], (3,)), torch.tensor([0.5, 0.6], dtype=F64))
        + Ising(Graph([(2, 1), (0, 2)], (3,)), torch.tensor([-0.2, 0.3], dtype=F64), 0.1)
    ),
    "path": lambda: GeometricPath(Ising((4,), 0.2, 0.3, dtype=F64), Ising((4,), 0.7, dtype=F64), 0.6),
    "product": lambda: ProductOfExperts(
        [Potts((3,), 3, 0.9, dtype=F64), Potts(Graph([(0, 2)], (3,)), 3, 0.7, torch.linspace(-0.4, 0.5, 3, dtype=F64))],
        [0.5, 1.5],
    ),
    "clamped": lambda: Clamped(
        Ising((3, 3), 0.4, 0.1, periodic=False, dtype=F64),
        torch.tensor([[True, False, False], [False, True, False], [False, False, True]]),
        torch.tensor([[1.0, 0, 0], [0, -1, 0], [0, 0, 1]], dtype=F64),
    ),
    "clamped potts": lambda: (
        0.8
        * Clamped(
            Potts((3, 2), 3, 0.6, periodic=False, dtype=F64),
            torch.tensor([[False, False], [True, False], [False, False]]),
            torch.tensor(2),
        )
    ),
    "bits": lambda: BoltzmannMachine(3, 2, coupling=0.7, bias=torch.linspace(-1, 0.5, 5, dtype=F64), dtype=F64),
    "memory": lambda: Hopfield(torch.tensor([[1, -1, 1, 1, -1]]), 0.1, dtype=F64),
}


@pytest.mark.parametrize("name", BY_TABLES)
def test_bonds_are_the_energy_up_to_a_constant(name: str) -> None:
    e = BY_TABLES[name]()
    x, bonds = states_of(e), e.bonds()
    assert bonds is not None
    level = (x.flatten(1).unsqueeze(-1) > levels_of(e).table).sum(-1)
    with torch.no_grad():
        off = e(x) - _of_bonds(bonds, level)
    torch.testing.assert_close(off, off[:1].expand_as(off), rtol=0, atol=1e-12)
    key = bonds.edges.sort(1).values
    assert len(key.unique(dim=0)) == len(key)


@pytest.mark.parametrize(
    ("kernel", "name"),
    [*((eb.SwendsenWang, name) for name in BY_TABLES), (eb.Wolff, "clamped potts"), (eb.Wolff, "bits")],
)
def test_clusters_of_sums_paths_parts_and_machines_leave_the_law(kernel: Any, name: str) -> None:
    e = BY_TABLES[name]()
    chains = Chains(kernel(e), exact_draws(e, 20_000, seed=31), seed=32)
    chains.advance(3)
    assert p_value(torch.bincount(number(e, chains.position()), minlength=len(law(e))), law(e)) > LIMIT


LOOKS = ("_local_scalar_dense", "nonzero", "lift_fresh", "equal", "bincount", "masked_select")


class _Looking(TorchDispatchMode):
    """Names of operations that wait for a GPU: they read a value, or copy numbers of Python's there."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.name().split("::")[1]
        masks = name == "index.Tensor" and any(n is not None and n.dtype == torch.bool for n in args[1])
        if masks or name.split(".")[0] in LOOKS:
            self.found.add(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("kernel", [eb.SwendsenWang, eb.Wolff])
@pytest.mark.parametrize("name", sorted(BY_TABLES.keys() - {"one edge twice", "path", "product"}))
def test_ticks_look_at_no_value(name: str, kernel: Any) -> None:
    """As traces and eager ones on a GPU are; sums look whether their terms have the same edges, traces of them once."""
    e = BY_TABLES[name]()
    chains = Chains(kernel(e), exact_draws(e, 5, seed=33), seed=34)
    chains.advance(1)
    noise = chains.noise.row(1)
    with torch.no_grad(), _Looking() as looking:
        chains.kernel.tick(chains.now.state, chains.now.tuning, noise)
    assert looking.found == set()


@pytest.mark.parametrize("name", BY_TABLES)
def test_tables_of_pairs_are_the_energy(name: str) -> None:
    """With its constant, that of held sites included."""
    e = BY_TABLES[name]()
    form, x = e.pairwise(), states_of(e)
    assert form is not None
    level = (x.flatten(1).unsqueeze(-1) > levels_of(e).table).sum(-1)
    i, j = form.edges.unbind(1)
    total = form.unary[torch.arange(level.shape[1]), level].sum(1)
    total = total + form.pairs[torch.arange(len(i)), level[:, i], level[:, j]].sum(1)
    torch.testing.assert_close(-total, e(x), rtol=0, atol=1e-12)


def test_tables_that_are_no_bonds_are_refused() -> None:
    class Steps(eb.Energy):
        def __init__(self) -> None:
            super().__init__((2,), eb.energies.categories(3))

        def forward(self, x: Tensor) -> Tensor:
            return (x[..., 0] - x[..., 1]).double().abs()

        def pairwise(self) -> Pairwise:
            steps = torch.arange(3, dtype=F64)
            pairs = -(steps[:, None] - steps).abs()
            return Pairwise(torch.zeros(2, 3, dtype=F64), torch.tensor([[0, 1]]), pairs[None], torch.Size([2]))

    with pytest.raises(ValueError, match="an energy of pairs that like to be equal"):
        eb.SwendsenWang(Steps())


def test_values_by_row_are_refused() -> None:
    held = torch.tensor([True, False, False, False])
    with pytest.raises(ValueError, match="got Clamped; Gibbs takes any"):
        eb.Wolff(Clamped(Ising((4,), 0.4), held, torch.tensor([[1.0, 1, 1, 1], [-1, 1, 1, 1]])))


# Laws beyond the registry's.


@pytest.mark.parametrize("kernel", [eb.SwendsenWang, eb.Wolff])
def test_every_row_has_its_own_beta(kernel: Any) -> None:
    model = Ising((2, 3), 0.5, 0.2, periodic=False, dtype=F64)
    betas, n = (0.0, 0.5, 1.2), 20_000
    start = torch.cat([exact_draws(beta * model, n, seed=i) for i, beta in enumerate(betas)])
    chains = Chains(kernel(torch.tensor(betas, dtype=F64).repeat_interleave(n) * model), start, seed=15)
    chains.advance(3)
    for end, beta in zip(chains.position().split(n), betas, strict=True):
        assert p_value(torch.bincount(number(model, end), minlength=64), law(beta * model)) > LIMIT


@pytest.mark.parametrize("kernel", [eb.SwendsenWang, eb.Wolff])
def test_energies_that_are_nan_keep_the_chain_and_are_counted(kernel: Any) -> None:
    model = Ising((3, 3), 0.5)
    x = 2 * torch.randint(2, (20, 3, 3), generator=torch.Generator().manual_seed(16)).to(torch.int8) - 1
    chains, infos = Chains(kernel(model), x, seed=17), list[Any]()
    with torch.no_grad():
        model.coupling.fill_(math.nan)
    chains.advance(2, observe=infos.append)
    assert torch.equal(chains.position(), x)
    assert all(bool(info.diverging.all()) and not bool(info.acceptance_rate.any()) for info in infos)


class HalfBonds(eb.SwendsenWang):
    """Wrong: bonds with probability 1 - exp(-K / 2)."""

    def clusters(self, x: Tensor, uniform: Tensor) -> Clusters:
        k = self._bonds.strengths().detach()
        return super().clusters(x, uniform * torch.expm1(-k) / torch.expm1(-k / 2))


class BlindWolff(eb.Wolff):
    """Wrong: it moves clusters whatever the fields say."""

    def _field_error(self, old: Tensor, new: Tensor, like: Tensor) -> Tensor:
        return torch.zeros_like(like)


class OwnFields(eb.SwendsenWang):
    """Wrong: a cluster's level follows the field of its smallest site alone."""

    def _drawn(self, label: Tensor, uniform: Tensor) -> Tensor:
        return super()._drawn(torch.arange(len(label)), uniform)


class NewBonds(eb.Wolff):
    """Wrong: it joins neighbours that differ, too."""

    def _level(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x, dtype=torch.bool)

    def tick(self, state: ClusterState, tuning: Any, noise: Any) -> Any:
        new, info = super().tick(state, tuning, noise)
        flipped = torch.where(new.position > 0, -state.position, state.position)
        return ClusterState(flipped), info


def _without_gauge(base: Any) -> Any:
    """Wrong: it takes the fields as they are, although sites are flipped."""
    return type(f"Ungauged{base.__name__}", (base,), {"fields": lambda self: self._bonds.fields().detach()})


@pytest.mark.parametrize("kernel", [eb.SwendsenWang, eb.Wolff])
def test_fields_that_are_not_gauged_are_noticed(kernel: Any) -> None:
    model = DISCRETE["ising, mattis glass"]()
    chains = Chains(_without_gauge(kernel)(model), exact_draws(model, 40_000, seed=23), seed=24)
    chains.advance(3)
    assert p_value(torch.bincount(number(model, chains.position()), minlength=32), law(model)) < 1e-9


@pytest.mark.parametrize("kernel", [HalfBonds, BlindWolff, OwnFields, NewBonds])
def test_wrong_kernels_are_noticed(kernel: Any) -> None:
    model = Ising((2, 3), 0.4, torch.linspace(-0.3, 0.4, 6, dtype=F64).view(2, 3), periodic=(False, True))
    chains = Chains(kernel(model), exact_draws(model, 40_000, seed=18), seed=19)
    chains.advance(3)
    assert p_value(torch.bincount(number(model, chains.position()), minlength=64), law(model)) < 1e-9
