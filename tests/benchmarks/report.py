"""What the NUTS benchmark prints of its findings, and which targets they meet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

from tests.benchmarks.posteriors import POSTERIORS
from tests.benchmarks.timing import Spread, ratio

Findings = Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]  # side -> way -> one for each pair

IN_JAX, IN_PYRO = ("numpyro", "blackjax"), ("pyro",)  # how their sides' names begin
WARM = {"a": {4: 1.0, 64: 4.0, 512: 8.0}, "b": {4: 1.0, 64: 4.0, 512: 8.0}, "c": {512: 10.0}}
COLD = {"a": {4: 1.0, 64: 1.0, 512: 1.0}, "b": {4: 1.0, 64: 1.0, 512: 1.0}}
OVER_PYRO = {"d": {64: 100.0}, "e": {64: 100.0}}
USED, USED_ON = 0.93, "abd"
TICK, TICK_AT = 1.3, {"a": 512}

HEAD = {  # column: width
    "posterior": 22,
    "chains": 6,
    "way": 4,
    "sampler": 17,
    "min ESS/s": 24,
    "ours / it": 22,
    "with imports": 22,
    "ESS/1000 grad": 20,
    "used": 14,
    "seconds": 20,
    "MiB": 6,
}


class Verdict(NamedTuple):
    """A target and what was found."""

    what: str
    found: Spread
    wanted: float | None  # None: nothing is wanted of it
    at_most: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the median is as wanted."""
        if self.wanted is None:
            return None
        return self.found.median <= self.wanted if self.at_most else self.found.median >= self.wanted

    def text(self) -> str:
        """One line."""
        wanted = "" if self.wanted is None else f" {'<=' if self.at_most else '>='} {self.wanted:g}"
        met = {None: "", True: " yes", False: " NO"}[self.met]
        return f"{self.what}: {self.found.text(2)}{wanted}{met}"


def row(cells: Sequence[str]) -> str:
    """One row of the table, as wide as its head."""
    return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, HEAD.values(), strict=True)) + " |"


def head() -> str:
    """The table's first two lines."""
    return row(list(HEAD)) + "\n|" + "|".join("-" * (width + 2) for width in HEAD.values()) + "|"


def rates(runs: Sequence[Mapping[str, Any]], *, imports: bool = False) -> list[float]:
    """Smallest effective draws per second, by pair."""
    return [run["ess"] / run["whole"] if imports else run["rate"] for run in runs]


def rows(key: str, chains: int, findings: Findings) -> list[str]:
    """The table's rows of one cell."""
    lines = []
    for way in ("cold", "warm"):
        mine = findings["ours"].get(way, ())
        for side, ways in findings.items():
            runs = ways.get(way, ())
            if not runs or side == "gradient":
                continue
            start = [POSTERIORS[key].title, str(chains), way, side]
            lines.append(row([*start, *_cells(side, way, mine, runs)]))
    return lines


def _cells(
    side: str, way: str, mine: Sequence[Mapping[str, Any]], runs: Sequence[Mapping[str, Any]]
) -> tuple[str, ...]:
    first = runs[0]
    against = with_imports = "" if side == "ours" else "ours failed"
    if side != "ours" and len(mine) == len(runs):
        against = ratio(rates(mine), rates(runs)).text(2)
        with_imports = ratio(rates(mine, imports=True), rates(runs, imports=True)).text(2) if way == "cold" else ""
    per_gradient = Spread.of([1000 * run["per_gradient"] for run in runs]).text(1) if "per_gradient" in first else ""
    used = ""
    if "used" in first:
        value = median(run["used"] for run in runs)
        bound = f"of {median(run['bound'] for run in runs):.3f}" if "bound" in first else ""
        used = f"{value:.3f} {bound}" if bound else f"<= {value:.3f}"
    seconds = Spread.of([run["seconds"] for run in runs]).text(2)
    memory = f"{max(run['mib'] for run in runs):.0f}"
    return Spread.of(rates(runs)).text(1), against, with_imports, per_gradient, used, seconds, memory


def notes(findings: Findings) -> list[str]:
    """What sides say of themselves."""
    found = []
    for side, ways in findings.items():
        runs = [run for way in ways.values() for run in way]
        found += [f"{side}: {note}" for note in dict.fromkeys(run["note"] for run in runs if run["note"])]
    return found


def verdicts(key: str, chains: int, findings: Findings) -> list[Verdict]:
    """Of one cell."""
    found: list[Verdict] = []
    where = f"({key}) {POSTERIORS[key].title}, {chains} chains"
    for way, wanted in (("cold", COLD), ("warm", WARM)):
        mine = findings["ours"].get(way, ())
        if not mine:
            continue
        for peers, whose, targets in ((IN_JAX, "NumPyro and BlackJAX", wanted), (IN_PYRO, "Pyro's ways", OVER_PYRO)):
            best = _best(peers, way, findings)
            if best is not None and len(findings[best][way]) == len(mine):
                spread = ratio(rates(mine), rates(findings[best][way]))
                target = targets.get(key, {}).get(chains)
                found.append(Verdict(f"{where}, {way}: ours / best of {whose} ({best})", spread, target))
        used = Spread.of([run["used"] for run in mine])
        found.append(Verdict(f"{where}, {way}: used", used, USED if key in USED_ON else None))
        bound = Spread.of([run["bound"] for run in mine])
        if key not in USED_ON:
            found.append(Verdict(f"{where}, {way}: bound of used", bound, None))
    ticks, gradients = findings["ours"].get("warm", ()), findings.get("gradient", {}).get("warm", ())
    if ticks and len(ticks) == len(gradients):
        spread = ratio([run["tick"] for run in ticks], [run["tick"] for run in gradients])
        microseconds = " / ".join(f"{median(run['tick'] for run in runs):.0f}" for runs in (ticks, gradients))
        what = f"{where}: tick / bare compiled gradient, {microseconds} us"
        found.append(Verdict(what, spread, TICK if TICK_AT.get(key) == chains else None, at_most=True))
    return found


def _best(peers: tuple[str, ...], way: str, findings: Findings) -> str | None:
    """The side with the best median rate."""
    known = {side: ways[way] for side, ways in findings.items() if side.startswith(peers) and ways.get(way)}
    return max(known, key=lambda side: median(rates(known[side])), default=None)
