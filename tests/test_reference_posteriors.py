"""Reference posteriors: 64 chains give the reference's means and standard deviations, and mix."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import arviz as az
import pytest
import torch

import ebmppl as eb
from ebmppl.kernels import Kernel
from tests.posteriors import NAMES, load, reference

CHAINS, Z = 64, 4.0


class Setting(NamedTuple):
    """How a kernel samples a posterior."""

    kernel: Callable[[eb.Energy], Kernel]
    warmup: int
    draws: int


# the regressions with correlations up to 0.99 get a dense metric; before it is known, trajectories of the identity metric would
# take a thousand steps, hence the bound; draws are what R-hat < 1.01 with 64 chains takes
DENSE = Setting(partial(eb.HMC, full_mass=True, trajectory_length=3.0, max_num_steps=100), 500, 500)
HMC_SETTINGS = {name: DENSE for name in NAMES} | {
    "eight_schools_noncentered": Setting(eb.HMC, 300, 500),
    # scales from 0.007 to 14: a hundred steps of the identity metric would not get anywhere
    "kidscore_interaction": DENSE._replace(kernel=partial(DENSE.kernel, max_num_steps=1000)),
    "gp_regr": Setting(partial(eb.HMC, target_accept_prob=0.9), 300, 500),
}
SLOW = ("kidscore_interaction", "logmesquite", "nes1980", "gp_regr")  # minutes of warm-up for HMC from scale 2
SHORT = ("eight_schools_noncentered",)  # of float32, by default
NUTS_SETTINGS = {name: Setting(partial(eb.NUTS, full_mass=True), 300, 300) for name in NAMES} | {
    "eight_schools_noncentered": Setting(eb.NUTS, 300, 400),
    "gp_regr": Setting(eb.NUTS, 300, 400),
}


def check(name: str, setting: Setting, folder: Path, dtype: torch.dtype) -> dict[str, float]:
    """Sample, and compare every reported scalar; the worst figures."""
    posterior = load(name, folder, dtype)
    energy = eb.as_energy(posterior.energy, posterior.sites, posterior.support)
    target = setting.kernel(energy).target
    start = torch.empty(CHAINS, *target.event_shape, dtype=dtype).uniform_(
        -2, 2, generator=torch.Generator().manual_seed(1)
    )
    mcmc = eb.MCMC(setting.kernel(energy), setting.draws, setting.warmup, start, CHAINS, seed=0, disable_progbar=True)
    mcmc.run()
    worst = {"z": 0.0, "r_hat excess": -math.inf, "r_hat": 0.0, "ess per chain": math.inf}
    wanted = reference(name, folder)
    found = posterior.reported(mcmc.get_samples(group_by_chain=True))
    assert set(found) == set(wanted)
    for scalar, draws in found.items():
        x, ref = draws.double().numpy(), wanted[scalar]
        for value, error, of in (
            (x.mean(), az.mcse(x, method="mean"), "mean"),
            (x.std(), az.mcse(x, method="sd"), "sd"),
        ):
            worst["z"] = max(worst["z"], abs(value - ref[of]) / math.hypot(float(error), ref[f"mcse_{of}"]))
        ess, r_hat = float(az.ess(x)) / CHAINS, float(az.rhat(x))
        worst["ess per chain"] = min(worst["ess per chain"], ess)
        worst["r_hat"] = max(worst["r_hat"], r_hat)
        worst["r_hat excess"] = max(worst["r_hat excess"], r_hat - max(1.01, math.sqrt(1 + 2 / ess)))
    return worst


@pytest.mark.data
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.long) if n in SLOW else n for n in NAMES])
def test_hmc_on_reference_posteriors(name: str, shared_data: Path) -> None:
    worst = check(name, HMC_SETTINGS[name], shared_data, torch.float64)
    assert worst["z"] < Z, worst
    assert worst["r_hat excess"] < 0, worst
    assert worst["ess per chain"] > 25, worst  # so that the R-hat threshold says something


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "dtype"),
    [pytest.param(n, torch.float64, marks=[pytest.mark.long] if n == SLOW[0] else []) for n in NAMES]
    + [pytest.param(n, torch.float32, marks=[] if n in SHORT else [pytest.mark.long]) for n in NAMES],
)
def test_nuts_on_reference_posteriors(name: str, dtype: torch.dtype, shared_data: Path) -> None:
    worst = check(name, NUTS_SETTINGS[name], shared_data, dtype)
    assert worst["z"] < Z, worst
    assert worst["r_hat excess"] < 0, worst
    assert worst["ess per chain"] > 25, worst
