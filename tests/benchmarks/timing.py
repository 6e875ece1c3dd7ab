"""Timing of peers in one process: they alternate, and what is reported are medians with quartiles over the rounds."""

from __future__ import annotations

import gc
import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple

import torch

Work = Callable[[int], object]  # does so many units of work
_MOST_UNITS = 1 << 14


class Spread(NamedTuple):
    """Median and quartiles over the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        if len(values) < 2:
            return cls(values[0], values[0], values[0])
        low, _, high = quantiles(values, n=4, method="inclusive")
        return cls(median(values), low, high)

    def text(self, digits: int) -> str:
        """``median [quartile, quartile]``."""
        return f"{self.median:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


def alternate(
    peers: Mapping[str, Work],
    *,
    rounds: int,
    seconds: Mapping[str, float],
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Microseconds per unit of work of every peer, one value for every round.

    Every peer first does one unit untimed and is then sized so that one turn takes about its ``seconds``. The peers
    take turns, every second round in reverse order, so that a slow spell of the machine meets all of them. The garbage
    collector is off during a turn, as in ``timeit``.

    Args:
        peers: name -> work.
        rounds: turns of every peer.
        seconds: name -> length of one turn.
        clock: ``time.process_time`` on a machine that does other work, too; of one thread, then.
    """
    units = {name: _size(work, seconds[name], clock) for name, work in peers.items()}
    times: dict[str, list[float]] = {name: [] for name in peers}
    order = list(peers)
    for _ in range(rounds):
        gc.collect()
        for name in order:
            times[name].append(1e6 * _turn(peers[name], units[name], clock) / units[name])
        order.reverse()
    return times


def _size(work: Work, seconds: float, clock: Callable[[], float]) -> int:
    work(1)
    units = 1
    while (took := _turn(work, units, clock)) < seconds / 4 and units < _MOST_UNITS:
        units *= 4
    return max(1, min(_MOST_UNITS, round(units * seconds / took)))


def _turn(work: Work, units: int, clock: Callable[[], float]) -> float:
    gc.disable()
    try:
        start = clock()
        work(units)
        return clock() - start
    finally:
        gc.enable()


def ratio(above: Sequence[float], below: Sequence[float]) -> Spread:
    """Spread of ``above / below``, round by round."""
    return Spread.of([a / b for a, b in zip(above, below, strict=True)])


def machine(packages: Iterable[str]) -> dict[str, str]:
    """What a reader needs to place the numbers: processor, cores, versions, date."""
    return {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "python": platform.python_version(),
        **{name: _version(name) for name in packages},
        "load": " ".join(f"{load:.2f}" for load in os.getloadavg()),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    pairs = (line.split(":", 1) for line in lines if ":" in line)
    fields = {key.strip(): value.strip() for key, value in pairs}
    numbers = f" (family {fields['cpu family']}, model {fields['model']})" if "cpu family" in fields else ""
    name = fields.get("model name") or platform.processor() or platform.machine()  # ARM's has no name there
    return f"{name}{numbers}, {torch.backends.cpu.get_cpu_capability()}"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return str(getattr(__import__(name), "__version__", "unknown"))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table with aligned columns."""
    lines = [list(head), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |" for line in lines]
    return "\n".join([text[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *text[1:]])


def save(path: str | Path, results: Mapping[str, Any]) -> None:
    """Write results (numbers, strings, lists and dicts of them) as JSON."""
    Path(path).write_text(json.dumps(results, indent=1) + "\n")
