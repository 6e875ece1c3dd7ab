"""One sampler in a process of its own: the process (cold at its first run, warm from the second on) and its handle.

The process reads a seed from its standard input, runs, and answers with a line of JSON; it ends with its input.
"""

from __future__ import annotations

import time

if __name__ == "__main__":
    _ENTERED = time.monotonic()

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import warnings
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from tests.benchmarks.peers import SIDES, Effort, Run

ROOT = Path(__file__).resolve().parents[2]
OURS = ("ours", "gradient")


class Failed(RuntimeError):
    """What a process said before it ended."""


class Worker:
    """A process for one side of one cell, to be used as a context.

    Args:
        side: "ours", "gradient" or one of ``SIDES``.
        key: of the posterior.
        effort: size of a run.
        limit: most seconds of one run.
    """

    def __init__(self, side: str, key: str, effort: Effort, limit: float) -> None:
        self.side, self.limit = side, limit
        self._folder = tempfile.TemporaryDirectory(prefix="ebmppl-bench-")
        self._errors = open(Path(self._folder.name) / "errors", "w+")
        arguments = [side, key, *(str(value) for value in effort)]
        self._started: float | None = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.worker", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=self._environment(),
            cwd=ROOT,
            text=True,
            start_new_session=True,
        )

    def _environment(self) -> dict[str, str]:
        """Nothing on disk that was compiled before; two host devices only for whom they are."""
        folder = Path(self._folder.name)
        caches = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton", "TMPDIR": "tmp"}
        paths = {name: folder / part for name, part in caches.items()}
        for path in paths.values():
            path.mkdir()
        environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")}
        if self.side.endswith("-parallel"):
            environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
        return {
            **environment,
            **{name: str(path) for name, path in paths.items()},
            "JAX_ENABLE_COMPILATION_CACHE": "false",
            "JAX_PLATFORMS": "cpu",
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        }

    def run(self, seed: int) -> dict[str, Any]:
        """One run's findings; the first one's ``whole`` are the seconds since the process began."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        timer = threading.Timer(self.limit, self._kill)
        timer.start()
        try:
            with contextlib.suppress(BrokenPipeError):
                stdin.write(f"{seed}\n")
                stdin.flush()
            line = stdout.readline()
        finally:
            timer.cancel()
        if not line.endswith("\n"):
            self._process.wait()
            self._errors.seek(0)
            last = [text for text in self._errors.read().splitlines() if text.strip()][-1:] or ["it said nothing"]
            raise Failed(f"ended with {self._process.returncode}: {last[0].strip()[:200]}")
        found: dict[str, Any] = json.loads(line)
        if self._started is not None:
            found["whole"], self._started = found["ended"] - self._started, None
        return found

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End the process."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()  # type: ignore[union-attr]
        try:
            self._process.wait(5 if kind is None else 0.1)
        except subprocess.TimeoutExpired:
            self._kill()
            self._process.wait()
        self._process.stdout.close()  # type: ignore[union-attr]
        self._errors.close()
        self._folder.cleanup()


def findings(run: Run) -> dict[str, Any]:
    """What the parent needs, in numbers."""
    found: dict[str, Any] = {"seconds": run.seconds, "tick": run.tick, "note": run.note}
    if run.draws.size:
        found["ess"] = smallest_ess(run.draws)
        found["rate"] = found["ess"] / run.seconds
    if run.steps is not None:
        steps = run.steps.astype(float)
        found["per_gradient"] = found["ess"] / steps.sum()
        total = steps.sum(1)
        if run.gradients:
            found["used"], found["bound"] = steps.sum() / run.gradients, total.mean() / total.max()
        elif run.lockstep:
            waiting = steps.reshape(run.lockstep, -1, steps.shape[1]).max(1)
            found["used"] = steps.mean() / waiting.mean()  # at most: doublings wait for one another, too
    return found


def smallest_ess(draws: Any) -> float:
    """ArviZ's bulk ESS of draws ``(chains, draws, dimension)``, the smallest of all coordinates."""
    import numpy as np

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its announcement
        import arviz as az
    draws = np.asarray(draws, dtype=np.float64)
    return min(float(az.ess(draws[..., i])) for i in range(draws.shape[-1]))


def serve(arguments: list[str], out: IO[str]) -> None:
    """Run for every seed that comes."""
    side, key, chains, warmup, draws, backend = arguments
    effort = Effort(int(chains), int(warmup), int(draws), backend)
    if side in OURS:
        from tests.benchmarks import ours

        make = getattr(ours, side)
    else:
        make = SIDES[side]
    run = make(key, effort)
    ready = time.monotonic()
    for line in sys.stdin:
        found = run(int(line))
        ended = time.monotonic()
        found = {**findings(found), "ended": ended, "imports": ready - _ENTERED}
        found["mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(found), file=out, flush=True)


if __name__ == "__main__" and len(sys.argv) > 1:  # `make bench` calls it without arguments
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever else is printed
    serve(sys.argv[1:], answers)
