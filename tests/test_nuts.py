"""NUTS against a plain recursive one on the same random numbers, and its own parts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import ebmppl as eb
from ebmppl.energies import Energy, Funnel, Gaussian, GaussianMixture, Rosenbrock
from ebmppl.kernels import uturn
from ebmppl.kernels.adaptation import Tuning, factorise
from ebmppl.kernels.nuts import NUTS
from ebmppl.kernels.uturn import Products, Tables
from ebmppl.sampling import operators_in_c
from ebmppl.sampling.noise import NoiseSource

Rows = Callable[[int], dict[str, Tensor]]


class _Point(NamedTuple):
    q: Tensor
    r: Tensor
    g: Tensor
    e: float


class _Tree(NamedTuple):
    """A sub-tree in the order in which it was built."""

    ok: bool
    first: Tensor  # momenta r
    last: Tensor
    rho: Tensor
    end: _Point
    draw: _Point


class _Recursive:
    """Stan's recursion (base_nuts.hpp) for one chain, with a plain mass matrix; one row of noise for every leapfrog step.

    Each leaf is drawn with the probability of its weight among the leaves of its sub-tree so far, which is the law of
    Stan's draws at the merges. The check of a left half with the first leaf of the right one is made at that leaf.
    """

    def __init__(self, energy: Energy, step: float, inverse_mass: Tensor, depth: int, rows: Rows, chain: int) -> None:
        self.energy, self.step, self.inverse_mass, self.max_depth = energy, step, inverse_mass, depth
        self.rows, self.chain, self.tick = rows, chain, 0
        self.root = torch.linalg.inv(torch.linalg.cholesky(inverse_mass)).T  # r = root p has covariance M

    def evaluate(self, q: Tensor) -> tuple[float, Tensor]:
        value, grad = self.energy.value_and_grad(q.unsqueeze(0))
        return float(value[0]), grad[0]

    def hamiltonian(self, z: _Point) -> float:
        return z.e + 0.5 * float(z.r @ self.inverse_mass @ z.r)

    def straight(self, a: Tensor, b: Tensor, rho: Tensor) -> bool:
        v = self.inverse_mass @ rho
        return float(a @ v) > 0 and float(b @ v) > 0

    def leaf(self, z: _Point, sign: float, neighbour: _Tree | None) -> _Tree:
        row = self.rows(self.tick)
        self.tick += 1
        self.n_steps += 1
        r = z.r - 0.5 * sign * self.step * z.g
        q = z.q + sign * self.step * (self.inverse_mass @ r)
        e, g = self.evaluate(q)
        r = r - 0.5 * sign * self.step * g
        new = _Point(q, r, g, e)
        error = self.hamiltonian(new) - self.h0
        weight = -error if math.isfinite(error) else -math.inf
        self.sub_weight = float(torch.logaddexp(torch.tensor(self.sub_weight).double(), torch.tensor(weight).double()))
        if self.sub_weight > -math.inf and float(row["leaf"][self.chain]) < math.exp(weight - self.sub_weight):
            self.sub_draw = new
        self.rate_sum += min(1.0, math.exp(min(0.0, weight)))
        diverging = not error <= 1000
        self.diverged |= diverging
        ok = not diverging
        if neighbour is not None and ok:
            ok = self.straight(neighbour.first, r, neighbour.rho + r)
        return _Tree(ok, r, r, r, new, new)

    def build(self, z: _Point, sign: float, depth: int, neighbour: _Tree | None) -> _Tree:
        if depth == 0:
            return self.leaf(z, sign, neighbour)
        left = self.build(z, sign, depth - 1, neighbour)
        if not left.ok:
            return left
        right = self.build(left.end, sign, depth - 1, left)
        if not right.ok:
            return right
        rho = left.rho + right.rho
        ok = self.straight(left.first, right.last, rho)
        ok &= self.straight(left.first, right.first, left.rho + right.first)
        ok &= self.straight(left.last, right.last, right.rho + left.last)
        return _Tree(ok, left.first, right.last, rho, right.end, right.draw)

    def draw(self, q: Tensor) -> dict[str, Tensor | float]:
        row = self.rows(self.tick)
        e, g = self.evaluate(q)
        root = _Point(q, self.root @ row["momentum"][self.chain], g, e)
        self.h0 = self.hamiltonian(root)
        self.diverged, self.n_steps, self.rate_sum = False, 0, 0.0
        ends = {1.0: root, -1.0: root}
        rho, weight, chosen, depth, sign = root.r, 0.0, root, 0, 1.0
        while depth < self.max_depth:
            sign = -sign if float(self.rows(self.tick)["direction"][self.chain]) < 0.5 else sign
            self.sub_weight = -math.inf
            joint, far = ends[sign].r, ends[-sign].r
            tree = self.build(ends[sign], sign, depth, None)
            if not tree.ok:
                break
            ends[sign] = tree.end
            if float(self.rows(self.tick - 1)["tree"][self.chain]) < math.exp(min(0.0, self.sub_weight - weight)):
                chosen = self.sub_draw
            weight = float(torch.logaddexp(torch.tensor(weight).double(), torch.tensor(self.sub_weight).double()))
            depth += 1
            straight = self.straight(far, tree.last, rho + tree.rho)
            straight &= self.straight(far, tree.first, rho + tree.first)
            straight &= self.straight(joint, tree.last, tree.rho + joint)
            rho = rho + tree.rho
            if not straight:
                break
        return {
            "q": chosen.q,
            "depth": depth,
            "n_steps": self.n_steps,
            "diverging": self.diverged,
            "energy": self.hamiltonian(chosen),
            "rate": self.rate_sum / self.n_steps,
        }


def _targets() -> dict[str, tuple[Energy, float, Tensor, int]]:
    """Name -> energy, step size, inverse mass matrix, greatest depth."""
    g = torch.Generator().manual_seed(3)
    a = torch.randn(5, 5, generator=g, dtype=torch.float64)
    dense = a @ a.T + torch.eye(5, dtype=torch.float64)
    diagonal = torch.tensor([1.0, 0.5, 2.0, 3.0, 0.1], dtype=torch.float64)
    means = torch.tensor([[2.0, 0.0], [-2.0, 1.0]], dtype=torch.float64)
    return {
        "gaussian, dense mass": (Gaussian(diagonal, dense), 0.3, dense, 10),
        "gaussian, diagonal mass": (Gaussian(diagonal, dense), 0.1, torch.diag(diagonal), 7),
        "mixture": (GaussianMixture(means, torch.eye(2, dtype=torch.float64)), 0.4, torch.eye(2).double(), 3),
        "funnel, diverging": (Funnel(3), 1.0, torch.eye(3).double(), 6),
        "rosenbrock": (Rosenbrock(2), 0.15, torch.eye(2).double(), 10),
    }


@pytest.mark.parametrize("name", _targets())
def test_equals_the_plain_recursion_draw_for_draw(name: str) -> None:
    energy, step, inverse_mass, depth = _targets()[name]
    chains, draws, seed = 6, 25, 11
    kernel = NUTS(energy, step, max_tree_depth=depth)
    d = kernel.dimension
    x = torch.randn(chains, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    diagonal = bool((inverse_mass == torch.diag(inverse_mass.diagonal())).all())
    mass = inverse_mass.diagonal() if diagonal else inverse_mass
    tuning = Tuning(torch.tensor(step, dtype=torch.float64), mass, factorise(mass))

    noise = NoiseSource(kernel.noise(), chains, seed, torch.float64, torch.device("cpu"))
    rows: list[dict[str, Tensor]] = []
    state, found = kernel.init(x), [[] for _ in range(chains)]
    while min(map(len, found)) < draws:
        rows.append(noise.row(len(rows)))
        state, info = kernel.tick(state, tuning, rows[-1])
        for c in range(chains):
            if info.done[c]:
                found[c].append((state.position[c], {f: getattr(info, f)[c] for f in info._fields}))

    # float64 rounding grows along a chaotic trajectory: 1e-6 is far over it and far under any wrong decision
    root = torch.linalg.cholesky(inverse_mass)
    for c in range(chains):
        plain = _Recursive(energy, step, inverse_mass, depth, lambda t: rows[t], c)
        # p = F' r: the plain momentum of the same noise is F'^-1 p
        plain.root = torch.linalg.inv(root).T
        q = x[c]
        for position, info in found[c][:draws]:
            if plain.tick + 2**depth > len(rows):
                break
            want = plain.draw(q)
            q = want["q"]
            assert torch.allclose(position, q, rtol=1e-6, atol=1e-6)
            assert int(info["tree_depth"]) == want["depth"]
            assert int(info["n_steps"]) == want["n_steps"]
            assert bool(info["diverging"]) == want["diverging"]
            assert float(info["energy"]) == pytest.approx(want["energy"], abs=1e-6)
            assert float(info["acceptance_rate"]) == pytest.approx(want["rate"], abs=1e-6)


def test_divergences_were_met_by_the_comparison() -> None:
    energy, step, *_ = _targets()["funnel, diverging"]
    mcmc = eb.MCMC(NUTS(energy, step, False, False), 50, 0, num_chains=16, seed=0, disable_progbar=True)
    mcmc.run()
    assert int(mcmc.now.counts.diverging.sum()) > 0


WAYS = ("in C", "operator", "where asked")


def _straight(way: str, points: Tensor, tables: Tables, number: Tensor, leaf: Tensor, total: Tensor) -> Tensor:
    leaf_sum = (leaf * total).sum(1, keepdim=True)
    args = points, tables.ignore, number, leaf, total, leaf_sum
    if way == "in C":
        out, call = operators_in_c.call(
            "straight", lambda *form: torch.empty_strided(form[0], form[1], dtype=form[2]), args
        )
        call()
        return out
    if way == "operator":
        return torch.ops.ebmppl.straight(*args)
    nothing = torch.zeros(len(leaf))
    p = Products(nothing, nothing, leaf_sum, leaf_sum, leaf_sum, nothing, nothing)
    return uturn._straight_where_asked(points, tables, number, leaf, total, p)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("dimension", "depth"), [(1, 1), (3, 4), (10, 10), (33, 11)])
def test_u_turns_are_found_at_the_checkpoints_of_every_leaf(
    dimension: int, depth: int, dtype: torch.dtype, way: str
) -> None:
    """By the formula of ``uturn.py``, one checkpoint after the other; one in nine has a U-turn, one in ninety is NaN."""
    generator = torch.Generator().manual_seed(dimension)
    leaves = 1 << (depth - 1)
    number = torch.arange(leaves)
    near = torch.randn(leaves, 3 * dimension, dtype=dtype, generator=generator) * 0.1 + 1.0
    leaf, total = near[:, dimension : 2 * dimension], near[:, 2 * dimension :]  # as in a state: not contiguous
    points = torch.rand(leaves, 2, max(depth - 1, 1) + 1, 2 * (dimension + 1), dtype=dtype, generator=generator) + 0.1
    points[..., dimension] = points[..., -1] = 0.01
    draw = torch.rand(points.shape[:3], generator=generator)
    points[draw < 1 / 9] *= -1
    points[draw < 1 / 90] = torch.nan
    tables = Tables.build(depth, leaf)
    found = _straight(way, points, tables, number, leaf, total)
    for n in range(leaves):
        wanted = True
        a, z = (points[n, side].view(-1, dimension + 1) for side in (0, 1))
        for row in (~tables.ignore[n]).nonzero().flatten().tolist():
            first = a[row, :-1] @ total[n] - a[row, -1]
            last = z[row, :-1] @ leaf[n] + z[row, -1] * (leaf[n] @ total[n])
            wanted &= bool(first > 0) and bool(last > 0)
        assert bool(found[n]) == wanted, n
    assert depth < 4 or set(found.tolist()) == {True, False}
