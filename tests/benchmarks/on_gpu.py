"""NUTS and Langevin of many chains on a GPU, next to NumPyro's and torchebm's.

    python -m tests.benchmarks.on_gpu [--chains 64 4096 65536] [--sides ours numpyro langevin] [--backend auto]

NUTS of posterior (a) of nuts.py at its defaults, float32: effective draws a second (the smallest bulk ESS of all
coordinates, from the call to draws on the host), first run and second run of a process; the second one is warm. Up to
4096 chains have 500 + 500 draws, more have 100 + 100. ESS is counted over 512 chains and scaled: chains are alike. NumPyro
is vectorized, under ``jit``, in a process of its own. Langevin: steps a second of all chains of a double well, medians of 5.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that the script runs from a checkout

from tests.benchmarks.peers import Effort, numpyro
from tests.benchmarks.posteriors import _logistic_energy

COUNTED = 512
SIZES = ((64, 8), (1024, 128))


def effort(chains: int) -> Effort:
    draws = 500 if chains <= 4096 else 100
    return Effort(chains, draws, draws)


def told(side: str, chains: int, seconds: float, draws: np.ndarray, note: str) -> None:
    import arviz as az

    some = draws[:COUNTED]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "More chains", UserWarning)
        ess = float(az.ess(az.convert_to_dataset(some.astype(np.float64)))["x"].min()) * len(draws) / len(some)
    print(
        f"{side}, {chains} chains, {draws.shape[1]} draws, {note}: {seconds:.1f} s, {ess / seconds:.0f} ESS/s",
        flush=True,
    )


def ours(chains: int, device: str, backend: str) -> None:
    import torch

    import ebmppl as eb

    function, size = _logistic_energy(device), effort(chains)
    for seed, note in enumerate(("first", "second")):
        x = 4 * torch.rand(chains, 25, generator=torch.Generator().manual_seed(seed)).to(device) - 2
        began = time.perf_counter()
        kernel = eb.NUTS(eb.as_energy(function, (25,), batched=True))
        mcmc = eb.MCMC(kernel, size.draws, size.warmup, x, chains, seed=seed, backend=backend, disable_progbar=True)
        mcmc.run()
        (draws,) = (v.cpu() for v in mcmc.get_samples(group_by_chain=True).values())
        seconds = time.perf_counter() - began
        told("ours", chains, seconds, draws.numpy(), f"{note}, {mcmc.backend}, {mcmc.now.tick} ticks")


def theirs(chains: int) -> None:
    run = numpyro("a", effort(chains))
    for seed, note in enumerate(("first", "second")):
        found = run(seed)
        told("NumPyro", chains, found.seconds, found.draws, note)


def langevin(device: str) -> None:
    import torch
    from torchebm.core import DoubleWellModel
    from torchebm.samplers import LangevinDynamics

    import ebmppl as eb
    from ebmppl.sampling.chains import Chains

    def timed(work: Callable[[int], object], steps: int) -> float:
        found = []
        for _ in range(6):
            torch.cuda.synchronize()
            began = time.perf_counter()
            work(steps)
            torch.cuda.synchronize()
            found.append((time.perf_counter() - began) / steps)
        return statistics.median(found[1:])

    for chains, dimension in SIZES:
        energy = eb.energies.DoubleWell(dimension, height=2.0, well=1.0)
        x = energy.sample(chains, torch.Generator().manual_seed(0)).float().to(device)
        ticking = Chains(eb.Langevin(energy, step_size=0.02), x, 0, "cudagraph", record=False)
        peer = LangevinDynamics(DoubleWellModel(barrier_height=2.0, b=1.0), step_size=0.01, device=torch.device(device))
        mine, other = timed(ticking.advance, 2000), timed(lambda n: peer.sample(x=x, n_steps=n), 2000)
        rate = f"{1 / mine:.0f} steps a second, torchebm {1 / other:.0f}: {other / mine:.1f} times"
        print(f"Langevin, {chains} x {dimension}: {rate}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chains", type=int, nargs="+", default=[64, 4096, 65536])
    parser.add_argument("--sides", nargs="+", default=["langevin", "ours", "numpyro"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--backend", default="auto", help="of our NUTS")
    options = parser.parse_args()
    if len(options.sides) == 1 and len(options.chains) == 1:
        (side,), (chains,) = options.sides, options.chains
        {"ours": lambda: ours(chains, options.device, options.backend), "numpyro": lambda: theirs(chains)}.get(
            side, lambda: langevin(options.device)
        )()
        return
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    for side in options.sides:
        for chains in options.chains if side != "langevin" else [1]:
            command = [sys.executable, "-m", "tests.benchmarks.on_gpu", "--sides", side, "--chains", str(chains)]
            subprocess.run(
                [*command, "--device", options.device, "--backend", options.backend], env=environment, check=False
            )


if __name__ == "__main__":
    main()
