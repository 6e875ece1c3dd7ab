"""The other samplers, each at its defaults and in its fastest use: what may be compiled is compiled once and kept.

A side is a function (key of a posterior, effort) -> (seed -> ``Run``). Its imports and data come first, all that costs
time of sampling (compiling, starting, warming up, drawing, moving the draws to the host) when it is called with a seed.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from multiprocessing import get_context
from typing import Any, NamedTuple

import numpy as np

from tests.benchmarks.posteriors import POSTERIORS

FEW = 4  # chains of nutpie that are run where more are asked for; its chains are independent


class Effort(NamedTuple):
    """Size of one run."""

    chains: int
    warmup: int
    draws: int
    backend: str = "auto"  # ours


class Run(NamedTuple):
    """What a run gave."""

    seconds: float
    draws: np.ndarray  # (chains, draws, dimension)
    steps: np.ndarray | None = None  # (chains, draws) gradients of the draws' trees; None where the peer doesn't tell
    lockstep: int = 1  # groups of chains of which each draw waits for the deepest tree; 0: no chain waits
    gradients: int = 0  # of all chains, in the sampling phase, where known
    tick: float = 0.0  # microseconds of one gradient of all chains, with all that belongs to it
    note: str = ""


Side = Callable[[int], Run]


def numpyro(key: str, effort: Effort, groups: int = 1) -> Side:
    """``chain_method="vectorized"`` under ``jit``, or on ``groups`` host devices, each with its share, under ``pmap``.

    A second ``MCMC.run`` outside of ``jit`` compiles again; under it, as NumPyro's own example with ``pmap``, it doesn't.
    """
    import jax
    from numpyro.infer import MCMC, NUTS

    log_density, chains = POSTERIORS[key].log_density(), effort.chains // groups

    def sample(key: Any, x: Any) -> Any:
        kernel = NUTS(potential_fn=lambda z: -log_density(z))
        method = {"num_chains": chains, "chain_method": "vectorized"}
        mcmc = MCMC(kernel, num_warmup=effort.warmup, num_samples=effort.draws, progress_bar=False, **method)
        mcmc.run(key, init_params=x if chains > 1 else x[0], extra_fields=("num_steps",))
        return mcmc.get_samples(group_by_chain=True), mcmc.get_extra_fields(group_by_chain=True)["num_steps"]

    compiled = jax.jit(sample) if groups == 1 else jax.pmap(sample)
    return partial(_jax_run, compiled, (groups, chains, POSTERIORS[key].dimension), a_key_each=False)


def blackjax(key: str, effort: Effort, groups: int = 1) -> Side:
    """Its chains by ``vmap``, each with its own window adaptation; on ``groups`` host devices by ``pmap``."""
    import blackjax
    import jax
    from blackjax.adaptation.base import get_filter_adapt_info_fn

    log_density, chains = POSTERIORS[key].log_density(), effort.chains // groups

    def sample(key: Any, x: Any) -> Any:
        first, second = jax.random.split(key)
        keep_nothing = get_filter_adapt_info_fn()
        warmup = blackjax.window_adaptation(blackjax.nuts, log_density, adaptation_info_fn=keep_nothing)
        (state, found), _ = warmup.run(first, x, num_steps=effort.warmup)
        kernel = blackjax.nuts(log_density, **found)

        def step(state: Any, key: Any) -> Any:
            state, info = kernel.step(key, state)
            return state, (state.position, info.num_integration_steps)

        return jax.lax.scan(step, state, jax.random.split(second, effort.draws))[1]

    compiled = jax.jit(jax.vmap(sample)) if groups == 1 else jax.pmap(jax.vmap(sample))
    return partial(_jax_run, compiled, (groups, chains, POSTERIORS[key].dimension), a_key_each=True)


def _jax_run(compiled: Callable[..., Any], shape: tuple[int, int, int], seed: int, *, a_key_each: bool) -> Run:
    import jax

    groups, chains, _ = shape
    start = time.perf_counter()
    first, second = jax.random.split(jax.random.PRNGKey(seed))
    points = jax.random.uniform(second, shape, minval=-2.0, maxval=2.0)
    keys = jax.random.split(first, (groups, chains) if a_key_each else groups)
    if groups == 1:
        points, keys = points[0], keys[0]
    draws, steps = map(np.asarray, compiled(keys, points))
    seconds = time.perf_counter() - start
    return Run(seconds, draws.reshape(-1, *draws.shape[-2:]), steps.reshape(-1, steps.shape[-1]), groups)


def nutpie(key: str, effort: Effort) -> Side:
    """A Python function of one point, its gradient compiled by JAX in float32; chains on threads."""
    import jax
    from nutpie import sample
    from nutpie.compiled_pyfunc import from_pyfunc

    log_density, dimension = POSTERIORS[key].log_density(), POSTERIORS[key].dimension
    chains = min(effort.chains, FEW)

    def make() -> Callable[[np.ndarray], tuple[float, np.ndarray]]:
        value_and_grad = jax.jit(jax.value_and_grad(log_density))

        def evaluate(x: np.ndarray) -> tuple[float, np.ndarray]:
            value, grad = value_and_grad(x.astype(np.float32))
            return float(value), np.asarray(grad, dtype=np.float64)

        return evaluate

    def run(seed: int) -> Run:
        start = time.perf_counter()
        begin = lambda seed: np.random.default_rng(seed).uniform(-2, 2, dimension)
        expand = lambda *_: lambda x: {"x": x}
        model = from_pyfunc(
            dimension, make, expand, [np.dtype("float64")], [(dimension,)], ["x"], make_initial_point_fn=begin
        )
        counts = {"draws": effort.draws, "tune": effort.warmup, "chains": chains}
        found = sample(model, **counts, seed=seed, progress_bar=False, save_warmup=False)
        draws, steps = found.posterior["x"].values, found.sample_stats["n_steps"].values
        return Run(
            time.perf_counter() - start, draws, steps, 0, note=f"rate of {chains} chains, float64 but the gradient"
        )

    return run


def pyro(key: str, effort: Effort, *, jit: bool = False) -> Side:
    """One chain: chains that run one after another have the same rate."""
    _pyro_model(key)

    def run(seed: int) -> Run:
        return _pyro_chain(key, effort, jit, seed)._replace(note="rate of one chain")

    return run


def pyro_processes(key: str, effort: Effort, count: int = 2) -> Side:
    """Chains with the jit in two processes of its own at once; its ``num_chains=2`` uses one process on two cores."""
    pool = ProcessPoolExecutor(count, mp_context=get_context("spawn"))
    for job in [pool.submit(_pyro_ready, key) for _ in range(count)]:
        job.result()

    def run(seed: int) -> Run:
        start = time.perf_counter()
        jobs = [pool.submit(_pyro_chain, key, effort, True, count * seed + i) for i in range(count)]
        runs = [job.result() for job in jobs]
        seconds = time.perf_counter() - start
        draws, steps = (np.concatenate([getattr(run, name) for run in runs]) for name in ("draws", "steps"))
        return Run(seconds, draws, steps, 0, note=f"rate of {count} chains")

    return run


@cache
def _pyro_model(key: str) -> Callable[[], Any] | None:
    import torch

    from tests.benchmarks.pyro_models import MODELS

    torch.set_num_threads(1)  # its operations are tiny: more are slower
    return MODELS[POSTERIORS[key].model]()


def _pyro_ready(key: str) -> None:
    _pyro_model(key)
    time.sleep(0.5)  # so that each process gets one


def _pyro_chain(key: str, effort: Effort, jit: bool, seed: int) -> Run:
    import torch
    from pyro import set_rng_seed
    from pyro.infer import MCMC, NUTS

    evaluated, after = [0], []

    class Counting(NUTS):
        """Counts its gradients."""

        def setup(self, *args: Any, **kwargs: Any) -> None:
            super().setup(*args, **kwargs)
            potential = self.potential_fn

            def counting(z: dict[str, torch.Tensor]) -> torch.Tensor:
                evaluated[0] += 1
                return potential(z)

            self.potential_fn = counting

    def hook(kernel: NUTS, params: Any, stage: str, i: int) -> None:
        after.append(evaluated[0])

    set_rng_seed(seed)
    start = time.perf_counter()
    kernel = Counting(_pyro_model(key), jit_compile=jit, ignore_jit_warnings=True)
    mcmc = MCMC(kernel, effort.draws, effort.warmup, disable_progbar=True, hook_fn=hook)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the jit
        mcmc.run()
    samples = mcmc.get_samples(group_by_chain=True)
    seconds = time.perf_counter() - start
    draws = np.concatenate(
        [x.flatten(2).numpy() if x.dim() > 2 else x[..., None].numpy() for x in samples.values()], -1
    )
    return Run(seconds, draws, np.diff(after)[None, -effort.draws :], 0)


SIDES: dict[str, Callable[[str, Effort], Side]] = {
    "numpyro": numpyro,
    "numpyro-parallel": partial(numpyro, groups=2),
    "blackjax": blackjax,
    "blackjax-parallel": partial(blackjax, groups=2),
    "nutpie": nutpie,
    "pyro": pyro,
    "pyro-jit": partial(pyro, jit=True),
    "pyro-processes": pyro_processes,
}
