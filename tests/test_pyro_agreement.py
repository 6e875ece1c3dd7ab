"""Pyro's own HMC and NUTS on ``energy.potential_fn`` agree with our HMC on every continuous energy of the registry."""

from __future__ import annotations

import math
import warnings

import arviz as az
import numpy as np
import pytest
import torch
from pyro.infer import HMC as PyroHMC
from pyro.infer import MCMC as PyroMCMC
from pyro.infer import NUTS as PyroNUTS
from torch import Tensor

import ebmppl as eb
from ebmppl.energies import Unconstrained, unconstrained
from tests.registry import ENERGIES

DOUBLE = torch.float64
# about 8 statistics each for 19 energies and 2 kernels: 4.5 is passed once in 500 suites when all is right
LIMIT = 4.5


def _statistics(target: eb.Energy, z: Tensor) -> dict[str, np.ndarray]:
    """Bounded functions, so that every variance exists: tanh and cos of coordinates, and of the energy."""
    flat = z.reshape(*z.shape[:2], -1)
    out = {f"tanh {i}": torch.tanh(flat[..., i]) for i in range(min(flat.shape[-1], 4))}
    out |= {f"cos {i}": torch.cos(flat[..., i]) for i in range(min(flat.shape[-1], 3))}
    out["energy"] = torch.tanh(target(z) / 4)
    return {name: value.detach().numpy() for name, value in out.items()}


def _mean_and_error(x: np.ndarray) -> tuple[float, float]:
    return float(x.mean()), float(az.mcse(x, method="mean"))


def _pyro(target: eb.Energy, kernel: str, seed: int) -> Tensor:
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pyro's own
        torch.manual_seed(seed)
        start = target.unpack(0.1 * torch.randn(target.event_shape, dtype=DOUBLE))
        if kernel == "NUTS":
            sampler = PyroNUTS(potential_fn=target.potential_fn, max_tree_depth=6)
        else:
            # fixed: Pyro's HMC adapts badly with trajectories of one fixed length
            sampler = PyroHMC(potential_fn=target.potential_fn, step_size=0.25, num_steps=7, adapt_step_size=False)
        mcmc = PyroMCMC(sampler, 400, 100, initial_params=start, disable_progbar=True)
        mcmc.run()
    return target.pack(mcmc.get_samples(group_by_chain=True))


@pytest.mark.parametrize("kernel", ["NUTS", pytest.param("HMC", marks=pytest.mark.long)])
@pytest.mark.parametrize("name", ENERGIES)
def test_pyro_agrees_with_us(name: str, kernel: str) -> None:
    target = unconstrained(ENERGIES[name](DOUBLE, torch.device("cpu")))
    run = eb.MCMC(eb.HMC(target), 200, 150, num_chains=64, seed=3, disable_progbar=True)
    run.run()
    values = run.get_samples(group_by_chain=True)
    z = target.unconstrain(values) if isinstance(target, Unconstrained) else target.pack(values)
    ours = _statistics(target, z)
    theirs = _statistics(target, _pyro(target, kernel, seed=4))
    for statistic, draws in ours.items():
        (a, s), (b, t) = _mean_and_error(draws), _mean_and_error(theirs[statistic])
        assert abs(a - b) < LIMIT * math.hypot(s, t), statistic
