"""Our side of the NUTS benchmark, and the gradient that its ticks should cost no more than."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

import ebmppl as eb
from tests.benchmarks.peers import Effort, Run, Side
from tests.benchmarks.posteriors import POSTERIORS


class Watch:
    """A run's hook: when and at which tick warm-up ended and sampling was looked at."""

    def __init__(self) -> None:
        self.mcmc: eb.MCMC | None = None
        self.warm = 0  # ticks of all chains in warm-up
        self.looks: list[tuple[int, float]] = []  # (tick, seconds) in the sampling phase

    def __call__(self, kernel: Any, params: Any, stage: str, i: int) -> None:
        assert self.mcmc is not None
        now = self.mcmc.now
        if stage == "Warmup":
            self.warm = now.computed
        elif now.own is None:  # all chains tick
            self.looks.append((now.tick, time.perf_counter()))

    def tick(self) -> float:
        """Microseconds of a tick of all chains from the first look of the sampling phase, when all is compiled."""
        if not self.looks:
            return 0.0
        (first, start), (last, end) = self.looks[0], self.looks[-1]
        return 1e6 * (end - start) / (last - first) if last > first else 0.0


def ours(key: str, effort: Effort) -> Side:
    """NUTS at its defaults; the callable (or Pyro model) is kept, all else is new in every run."""
    posterior = POSTERIORS[key]
    if posterior.from_model:
        from tests.benchmarks.pyro_models import MODELS

        model = MODELS[posterior.model]()
        make = lambda: eb.from_pyro(model)
    else:
        assert posterior.energy is not None
        function = posterior.energy()
        make = lambda: eb.as_energy(function, (posterior.dimension,), batched=True)

    def run(seed: int) -> Run:
        watch, start = Watch(), time.perf_counter()
        settings: dict[str, Any] = {"backend": effort.backend, "disable_progbar": True, "hook_fn": watch}
        watch.mcmc = mcmc = eb.MCMC(
            eb.NUTS(make()), effort.draws, effort.warmup, None, effort.chains, seed=seed, **settings
        )
        mcmc.run()
        samples = {name: x.cpu() for name, x in mcmc.get_samples(group_by_chain=True).items()}
        seconds = time.perf_counter() - start
        draws = np.concatenate([x.reshape(*x.shape[:2], -1).numpy() for x in samples.values()], -1)
        gradients = mcmc.gradients - watch.warm * mcmc.kernel.calls_per_tick
        steps = mcmc.stats()["n_steps"].cpu().numpy()
        return Run(seconds, draws, steps, 0, gradients, watch.tick(), f"backend {mcmc.backend}")

    return run


def gradient(key: str, effort: Effort) -> Side:
    """The bare gradient of the callable at as many points, compiled by torch alone, with its best number of threads."""
    posterior = POSTERIORS[key]
    if posterior.energy is None:
        raise LookupError("there is no callable of this posterior")
    energy = posterior.energy()

    def total(x: Tensor) -> tuple[Tensor, Tensor]:
        value = energy(x)
        return value.sum(), value

    compiled = torch.compile(torch.func.grad(total, has_aux=True), fullgraph=True, dynamic=False)

    def run(seed: int) -> Run:
        x = 0.1 * torch.randn(effort.chains, posterior.dimension, generator=torch.Generator().manual_seed(seed))
        threads, found = torch.get_num_threads(), dict[int, float]()
        for count in {1, threads}:
            torch.set_num_threads(count)
            found[count] = _microseconds(compiled, x)
        torch.set_num_threads(threads)
        best = min(found, key=lambda count: found[count])
        told = ", ".join(f"{count} threads {found[count]:.0f} us" for count in sorted(found))
        return Run(0.0, np.zeros((0, 0, 0)), tick=found[best], note=told)

    return run


@torch.no_grad()
def _microseconds(function: Callable[[Tensor], Any], x: Tensor, seconds: float = 1.0) -> float:
    """Of one call; calls for some ``seconds``."""
    for _ in range(3):
        function(x)  # compiled
    calls, start = 0, time.perf_counter()
    while (now := time.perf_counter()) - start < seconds:
        function(x)
        calls += 1
    return 1e6 * (now - start) / calls
