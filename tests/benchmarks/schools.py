"""Eight schools as a Pyro model, and Pyro's own NUTS on it; a module that Pyro's processes can import."""

from __future__ import annotations

import time
import warnings
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS
from torch import Tensor

from tests.benchmarks.problems import SIGMA, Y


def schools() -> None:
    """Non-centred."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", 8):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * z, torch.tensor(SIGMA)), obs=torch.tensor(Y))


def pyro_run(
    warmup: int, draws: int, *, num_chains: int, jit_compile: bool = False, seed: int = 0
) -> tuple[float, Any]:
    """Seconds, and draws ``(chains, draws, 10)``."""
    pyro.set_rng_seed(seed)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # its operations are tiny: more are slower
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the jit
            kernel = NUTS(schools, jit_compile=jit_compile, ignore_jit_warnings=True)
            options = {"mp_context": "fork"} if num_chains > 1 else {}
            mcmc = MCMC(kernel, draws, warmup, num_chains=num_chains, disable_progbar=True, **options)
            start = time.perf_counter()
            mcmc.run()
            seconds = time.perf_counter() - start
    finally:
        torch.set_num_threads(threads)
    samples: dict[str, Tensor] = mcmc.get_samples(group_by_chain=True)
    return seconds, torch.cat([samples["z"], samples["mu"][..., None], samples["tau"][..., None]], -1)
