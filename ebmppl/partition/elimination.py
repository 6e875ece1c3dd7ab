"""Summing an energy of pairs site by site: a transfer matrix for any order of the sites."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import permutations
from typing import NamedTuple

import torch

from ebmppl.energies.structure import Pairwise

_DEARER = 3  # times the operations that smaller messages may cost
Edge = tuple[int, int, bool]  # at a site: the other end, the edge's number, whether the site is its first end


class Step(NamedTuple):
    """One operation on the message, a tensor with an axis for every open site.

    Attributes:
        kind: "append" a site as the first axis; "replace" an open site, whose last neighbour this is, by it; "couple" it
            with an open site; "drop" a site, that is sum it out.
        site: the site.
        other: the open site that is replaced or coupled.
        edge: between the two.
        first: whether the axis of the table's first index comes first.
        sizes: of the axes before, between and behind the one or two axes.
        layout: open sites before the step.
    """

    kind: str
    site: int
    other: int = -1
    edge: int = -1
    first: bool = True
    sizes: tuple[int, ...] = ()
    layout: tuple[int, ...] = ()


class Plan(NamedTuple):
    """Steps, with the sites held at each of their values in turn.

    Attributes:
        order: of all sites.
        fixed: sites whose values are enumerated.
        steps: for the others.
        peak: numbers in the largest message.
        operations: numbers computed by all steps, for one value of the fixed sites.
        slices: values of the fixed sites.
    """

    order: tuple[int, ...]
    fixed: tuple[int, ...]
    steps: tuple[Step, ...]
    peak: int
    operations: int
    slices: int

    @property
    def states(self) -> int:
        """Numbers in the largest message, over all slices."""
        return self.peak * self.slices

    @property
    def complete(self) -> bool:
        """Whether the limit was kept; else there are no steps, and the peak is the first number beyond it."""
        return bool(self.steps)


def best_plan(form: Pairwise, chunk: int, limit: int) -> Plan:
    """The order with the fewest operations of those tried, sliced so that messages hold about ``chunk`` numbers.

    Without steps where messages of more than ``limit`` numbers would be needed.
    """
    levels, near = form.unary.shape[1], neighbours(form)
    plans = [_plan(order, (), near, levels, limit) for order in _orders(form, near)]
    within = [plan for plan in plans if plan.complete]
    if not within:
        return plans[0]
    return _sliced(min(within, key=lambda plan: plan.operations), near, levels, chunk)


def neighbours(form: Pairwise) -> list[list[Edge]]:
    """By site its edges."""
    near: list[list[Edge]] = [[] for _ in range(len(form.unary))]
    for e, (i, j) in enumerate(form.edges.tolist()):
        near[i].append((j, e, True))
        near[j].append((i, e, False))
    return near


def _orders(form: Pairwise, near: list[list[Edge]]) -> Iterable[tuple[int, ...]]:
    sites = torch.arange(len(near)).reshape(form.shape)
    if sites.dim() > 1:
        for axes in permutations(range(sites.dim())):
            yield tuple(sites.permute(axes).flatten().tolist())
        return
    yield tuple(range(len(near)))
    yield _breadth_first(near)
    by_degree = sorted(range(len(near)), key=lambda s: -len(near[s]))
    independent: set[int] = set()
    for s in reversed(by_degree):  # a large set without edges within goes last: the larger layer of two
        if not any(other in independent for other, _, _ in near[s]):
            independent.add(s)
    yield tuple(sorted(range(len(near)), key=lambda s: s in independent))


def _breadth_first(near: list[list[Edge]]) -> tuple[int, ...]:
    """Cuthill and McKee (1969): from a site of few neighbours on, those with fewer first."""
    found: dict[int, None] = {}
    for root in sorted(range(len(near)), key=lambda s: len(near[s])):
        waiting = [] if root in found else [root]
        found.setdefault(root)
        for site in waiting:
            new = sorted({o for o, _, _ in near[site] if o not in found}, key=lambda s: (len(near[s]), s))
            found.update(dict.fromkeys(new))
            waiting += new
    return tuple(found)


def _sliced(plan: Plan, near: list[list[Edge]], levels: int, chunk: int) -> Plan:
    """Enumerate those sites that stay open longest until messages are small enough."""
    place = {s: t for t, s in enumerate(plan.order)}
    life = {s: max((place[o] for o, _, _ in near[s]), default=place[s]) - place[s] for s in plan.order}
    longest = sorted(plan.order, key=lambda s: -life[s])
    whole, fixed, most = plan.operations, list(plan.fixed), len(longest)
    while most and plan.peak > max(chunk, levels**2) and len(fixed) < len(longest) - 1:
        # never fewer than the excess asks for, so that long lattices are not planned too often
        more = min(most, max(1, math.ceil(math.log(plan.peak / chunk, levels) - 1e-9)))
        sliced = _plan(plan.order, tuple(longest[: len(fixed) + more]), near, levels, plan.peak)
        if sliced.operations * sliced.slices > _DEARER * whole:  # sites that close soon: rather a large message
            most = more // 2
            continue
        plan, fixed = sliced, list(sliced.fixed)
    return plan


def _plan(order: tuple[int, ...], fixed: tuple[int, ...], near: list[list[Edge]], levels: int, limit: int) -> Plan:
    place, held = {s: t for t, s in enumerate(order)}, set(fixed)
    last = [max((place[o] for o, _, _ in edges if o not in held), default=-1) for edges in near]
    frontier: list[int] = []
    steps: list[Step] = []
    peak = operations = 1
    for site in order:
        if site in held:
            continue
        back = [edge for edge in near[site] if edge[0] not in held and place[edge[0]] < place[site]]
        for step in _steps_of(site, back, [b[0] for b in back if last[b[0]] == place[site]], frontier, levels):
            steps.append(step)
            size = levels ** (len(step.layout) + (step.kind == "append"))
            peak, operations = max(peak, size), operations + size
            if size > limit:
                return Plan(order, fixed, (), peak, operations, levels ** len(fixed))
        if last[site] <= place[site]:
            steps.append(_drop(site, frontier, levels))
    return Plan(order, fixed, tuple(steps), peak, operations, levels ** len(fixed))


def _steps_of(site: int, back: list[Edge], ending: list[int], frontier: list[int], q: int) -> Iterable[Step]:
    fused = next((edge for edge in back if ending.count(edge[0]) == 1), None)
    if fused is None:
        yield Step("append", site, layout=tuple(frontier))
        frontier.insert(0, site)
    else:
        other, edge, is_first = fused
        at = frontier.index(other)
        sizes = (q**at, q ** (len(frontier) - 1 - at))
        yield Step("replace", site, other, edge, is_first, sizes, tuple(frontier))
        frontier[at] = site
    for other, edge, is_first in back:
        if fused is not None and edge == fused[1]:
            continue
        here, there = frontier.index(site), frontier.index(other)
        low, high = min(here, there), max(here, there)
        axes = (q**low, q ** (high - low - 1), q ** (len(frontier) - 1 - high))
        yield Step("couple", site, other, edge, is_first is (here < there), axes, tuple(frontier))
    for other in dict.fromkeys(ending):
        if fused is None or other != fused[0]:
            yield _drop(other, frontier, q)


def _drop(site: int, frontier: list[int], q: int) -> Step:
    at, layout = frontier.index(site), tuple(frontier)
    frontier.pop(at)
    return Step("drop", site, sizes=(q**at, q ** (len(layout) - 1 - at)), layout=layout)


def crossing(plan: Plan, edges: Sequence[Sequence[int]], ranges: Sequence[float]) -> float:
    """The most that the sums of ranges of edges between summed and coming sites reach, in nats."""
    place, held = {s: t for t, s in enumerate(plan.order)}, set(plan.fixed)
    change = [0.0] * (len(plan.order) + 1)
    for (i, j), spread in zip(edges, ranges, strict=True):
        if i not in held and j not in held:
            change[min(place[i], place[j])] += spread
            change[max(place[i], place[j])] -= spread
    most = total = 0.0
    for step in change:
        total += step
        most = max(most, total)
    return most
