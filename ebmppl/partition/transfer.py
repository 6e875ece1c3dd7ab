"""The transfer matrix, site by site: exact sums over energies of pairs on narrow lattices and other thin graphs."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ebmppl.energies.structure import Pairwise
from ebmppl.partition.elimination import Plan, Step, best_plan, crossing
from ebmppl.partition.streaming import log_sum

_SAFE = 300.0  # nats by which coming factors may lift what has underflown below exp(-700): far too little to be seen
_RESCALE = 200.0
_NEVER = -1e30  # a log-weight of what can't be; finite, so that its gradient is 0 and not NaN
_CHUNK = 1 << 16
_KEEP = 1 << 22  # numbers that a backward pass keeps; with more it computes pieces anew


class Transfer:
    r"""Sums over all points of an energy of pairs by a message over the open sites, those with neighbours still to come.

    :math:`m'(\ldots x_s) = \sum_{x_o} e^{u_s(x_s) + p_{os}(x_o, x_s)} m(\ldots x_o)`, one site s at a time (Kramers and
    Wannier 1941, as variable elimination). On a lattice of width W a message has levels^W numbers, on a torus levels^(2W);
    of the sites that stay open longest single values are enumerated, so that memory is bounded. Messages are rescaled, and
    kept as logarithms where couplings are so strong that numbers of size 1e-308 might matter.

    Args:
        form: the energy.
        chunk: about so many numbers in a message, where that costs little; 2^16 when None.
        limit: the most numbers in a message, over all values of enumerated sites.
    """

    name = "transfer"

    def __init__(self, form: Pairwise, chunk: int | None = None, limit: int = 2**25) -> None:
        self.form = form.double()
        self.plan = best_plan(form, chunk or _CHUNK, limit)
        pairs = self.form.pairs.detach()
        ranges = (pairs.amax((1, 2)) - pairs.amin((1, 2))).tolist()
        self.edges = form.edges.tolist()
        self.linear = crossing(self.plan, self.edges, ranges) < _SAFE
        self.segments = list(_segments(self.plan, ranges, form.unary.shape[1], rescale=self.linear))
        fixed = set(self.plan.fixed)
        self._free_sites = [s for s in self.plan.order if s not in fixed]
        ends = [(e, i in fixed, j in fixed) for e, (i, j) in enumerate(self.edges)]
        self._free_edges = [e for e, i, j in ends if not i and not j]
        self._held_edges = [e for e, i, j in ends if i or j]

    @property
    def states(self) -> int:
        """Numbers in the largest message, over all values of enumerated sites."""
        return self.plan.states

    @property
    def operations(self) -> float:
        """Numbers computed."""
        return float(self.plan.operations) * self.plan.slices

    def log_z(self, unary: Tensor | None = None) -> Tensor:
        """Log Z in nats, float64, differentiable in the tables; with other tables of the sites where given."""
        outside = (self.form.unary if unary is None else unary, self.form.pairs)
        u, p = (t.detach().requires_grad_() for t in outside)
        return log_sum(lambda c: self._slice(c, u, p), self.plan.slices, [u, p], outside)

    def marginals(self, unary: Tensor | None = None) -> Tensor:
        """Probabilities ``(coordinates, levels)``: the gradient of log Z in the tables of the sites."""
        with torch.enable_grad():
            u = (self.form.unary if unary is None else unary).detach().requires_grad_()
            (grad,) = torch.autograd.grad(self.log_z(u), u)
        return grad

    def pair_marginals(self) -> Tensor:
        """Joint probabilities ``(coordinates, levels, coordinates, levels)``: each site is held at each level in turn."""
        single = self.marginals()
        sites, levels = single.shape
        joint = single.new_zeros(sites, levels, sites, levels)
        for i in range(sites):
            for a in range(levels - 1):
                unary = self.form.unary.detach().clone()
                held = unary[i, a].clone()
                unary[i] = _NEVER
                unary[i, a] = held
                if single[i, a] > 0:
                    joint[i, a] = single[i, a] * self.marginals(unary)
            joint[i, -1] = (single - joint[i].sum(0)).clamp(min=0)
        return joint

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Independent points ``(n, coordinates)``, numbers of levels: sites in reverse order, each given those behind it."""
        form = self.form
        logs = torch.stack([self._slice(c, form.unary, form.pairs) for c in range(self.plan.slices)])
        u = torch.rand(n, generator=generator, dtype=torch.float64, device=logs.device)
        counts = torch.bincount(pick(torch.softmax(logs, 0), u), minlength=len(logs)).tolist()
        draws = [self._draw(c, k, generator) for c, k in enumerate(counts) if k]
        order = torch.randperm(n, generator=generator, device=logs.device)
        return torch.cat(draws)[order]

    def _held(self, number: int) -> list[int]:
        """The levels of the enumerated sites in a slice."""
        levels = self.form.unary.shape[1]
        return [number // levels**k % levels for k in range(len(self.plan.fixed))]

    def _slice(self, number: int, unary: Tensor, pairs: Tensor) -> Tensor:
        """The log-sum over all points with the enumerated sites at given levels."""
        tables = self._tables(number, unary, pairs)
        message, log_scale = tables.one(), tables.constant
        for segment in self.segments:
            if torch.is_grad_enabled() and self.plan.operations > _KEEP:
                message, log_scale = checkpoint(
                    tables.run, segment, message, log_scale, use_reentrant=False, preserve_rng_state=False
                )
            else:
                message, log_scale = tables.run(segment, message, log_scale)
        return log_scale + (message[0].log() if self.linear else message[0])

    def _tables(self, number: int, unary: Tensor, pairs: Tensor) -> _Tables:
        held = dict(zip(self.plan.fixed, self._held(number), strict=True))
        constant = sum((unary[s, v] for s, v in held.items()), unary.new_zeros(()))
        rows: dict[int, Tensor] = {}
        for e in self._held_edges:
            i, j = self.edges[e]
            if i in held and j in held:
                constant = constant + pairs[e, held[i], held[j]]
            elif i in held:
                rows[j] = rows.get(j, unary[j]) + pairs[e, held[i]]
            else:
                rows[i] = rows.get(i, unary[i]) + pairs[e, :, held[j]]
        if rows:
            unary = torch.stack([rows.get(s, row) for s, row in enumerate(unary.unbind())])
        return _Tables(self, unary, pairs, constant)

    def _draw(self, number: int, n: int, generator: torch.Generator) -> Tensor:
        tables = self._tables(number, self.form.unary, self.form.pairs)
        x = torch.zeros(n, len(self.form.unary), dtype=torch.int64, device=self.form.unary.device)
        for site, value in zip(self.plan.fixed, self._held(number), strict=True):
            x[:, site] = value
        message, starts = tables.one(), []
        for segment in self.segments:
            starts.append(message)
            message, _ = tables.run(segment, message, tables.constant)
        for segment, start in zip(reversed(self.segments), reversed(starts), strict=True):
            kept: list[Tensor] = []
            tables.run(segment, start, tables.constant, kept)
            for (step, _), message in zip(reversed(segment), reversed(kept), strict=True):
                tables.draw(step, message, x, generator)
        return x


Segment = list[tuple[Step, bool]]  # steps, and whether the message is rescaled after each


def _segments(plan: Plan, ranges: list[float], levels: int, *, rescale: bool) -> Iterator[Segment]:
    """Steps in pieces of about the square root of their number: what backward passes and draws keep at a time."""
    budget, tape = 0.0, []
    for step in plan.steps:
        budget += math.log(levels) + (ranges[step.edge] if step.edge >= 0 else 0.0)
        tape.append((step, rescale and budget > _RESCALE))
        budget = 0.0 if budget > _RESCALE else budget
    length = max(32, math.isqrt(len(tape)))
    return (tape[i : i + length] for i in range(0, len(tape), length))


class _Tables:
    """Factors of one slice, in which the steps are taken."""

    def __init__(self, transfer: Transfer, unary: Tensor, pairs: Tensor, constant: Tensor) -> None:
        self.linear, self.levels = transfer.linear, unary.shape[1]
        self.constant = constant
        if self.linear:
            top, tops = unary.detach().amax(1), pairs.detach().amax((1, 2))
            unary, pairs = torch.exp(unary - top[:, None]), torch.exp(pairs - tops[:, None, None])
            self.constant = constant + top[transfer._free_sites].sum() + tops[transfer._free_edges].sum()
        self.unary, self.pairs = unary.unbind(), pairs.unbind()

    def one(self) -> Tensor:
        """The message before the first step."""
        return torch.ones_like(self.constant).reshape(1) if self.linear else torch.zeros_like(self.constant).reshape(1)

    def times(self, a: Tensor, b: Tensor) -> Tensor:
        return a * b if self.linear else a + b

    def plus(self, terms: list[Tensor]) -> Tensor:
        total = terms[0]
        for term in terms[1:]:
            total = total + term if self.linear else torch.logaddexp(total, term)
        return total

    def pair(self, step: Step) -> Tensor:
        """The table of a step's edge, by the axes' order in the message; of a replaced site by new and old level."""
        table = self.pairs[step.edge]
        return table if step.first else table.mT

    def run(
        self, segment: Segment, message: Tensor, log_scale: Tensor, kept: list[Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """The message after some steps; ``kept`` takes the one before each."""
        for step, rescale in segment:
            if kept is not None:
                kept.append(message)
            message = self.take(step, message)
            if rescale:
                top = message.detach().max()
                message, log_scale = message / top, log_scale + top.log()
        return message, log_scale

    def take(self, step: Step, message: Tensor) -> Tensor:
        q, sizes = self.levels, step.sizes
        if step.kind == "append":
            return self.times(self.unary[step.site][:, None], message).flatten()
        if step.kind == "couple":
            low, between, high = sizes
            there = message.view(low, q, between, q, high)
            return self.times(there, self.pair(step)[:, None, :, None]).flatten()
        parts = message.view(sizes[0], q, sizes[1]).unbind(1)
        if step.kind == "drop":
            return self.plus(list(parts)).flatten()
        factor = self.times(self.pair(step), self.unary[step.site][:, None])
        if self.linear and q == 2:
            first = parts[0][:, None] * factor[:, 0, None]
            return torch.addcmul(first, parts[1][:, None], factor[:, 1, None]).flatten()
        return self.plus([self.times(part[:, None], factor[:, o, None]) for o, part in enumerate(parts)]).flatten()

    def draw(self, step: Step, message: Tensor, x: Tensor, generator: torch.Generator) -> None:
        """Of a site that a step summed out its level given the sites that were open then or come later."""
        if step.kind not in ("drop", "replace"):
            return
        site = step.site if step.kind == "drop" else step.other
        q, layout = self.levels, list(step.layout)
        strides = [q ** (len(layout) - 1 - k) for k in range(len(layout))]
        stride = strides.pop(layout.index(site))
        layout.remove(site)
        base = sum((x[:, s] * k for s, k in zip(layout, strides, strict=True)), torch.zeros_like(x[:, 0]))
        weights = message[base[:, None] + stride * torch.arange(q, device=x.device)]
        if step.kind == "replace":
            weights = self.times(weights, self.pair(step)[x[:, step.site]])
        chances = weights / weights.sum(1, keepdim=True) if self.linear else torch.softmax(weights, 1)
        u = torch.rand(len(x), 1, generator=generator, dtype=torch.float64, device=x.device)
        x[:, site] = pick(chances, u).squeeze(1)


def pick(weights: Tensor, u: Tensor) -> Tensor:
    """Numbers of drawn categories by uniforms in [0, 1) ``(..., draws)`` from weights ``(..., categories)``."""
    sums = weights.cumsum(-1)
    total = sums[..., -1:].contiguous()
    last = torch.searchsorted(sums, total)  # the last one that may be drawn
    return torch.minimum(torch.searchsorted(sums, u * total, right=True), last)
