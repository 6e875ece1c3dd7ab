"""Eight schools (Rubin 1981) written three ways, each sampled by 64 chains in one process: the job of `make demo`.

Eight schools coached pupils for a test; y is the estimated effect in each, sigma its standard error. How large are the true
effects theta, if they come from a population of schools with mean mu and spread tau? Written non-centred: theta = mu + tau z.
"""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path

import arviz as az
import matplotlib as mpl
import pyro
import pyro.distributions as dist
import pyro.infer
import torch
from torch import Tensor
from torch.distributions import HalfCauchy, Normal, constraints

import ebmppl as eb
from ebmppl.diagnostics.plots import plot_rank, plot_trace

mpl.use("Agg")
OUT = Path("out")
Y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SIGMA = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
CHAINS, WARMUP, DRAWS = 64, 200, 250


# 1. An energy: minus the log density, in nats, of a batch of points (chains, 10) = (z[1..8], mu, log tau).
def energy(x: Tensor) -> Tensor:
    z, mu, log_tau = x[:, :8], x[:, 8], x[:, 9]
    tau = log_tau.exp()
    theta = mu[:, None] + tau[:, None] * z
    prior = 0.5 * z.square().sum(-1) + 0.5 * (mu / 5).square() + torch.log1p((tau / 5).square())
    jacobian = log_tau  # the density of log tau, not of tau
    return prior + 0.5 * ((Y - theta) / SIGMA).square().sum(-1) - jacobian


# 2. Named sites with supports: tau > 0 stays positive, and ebmppl sees to the Jacobian.
def sites_energy(site: dict[str, Tensor]) -> Tensor:
    theta = site["mu"][:, None] + site["tau"][:, None] * site["z"]
    log_prior = Normal(0.0, 5.0).log_prob(site["mu"]) + HalfCauchy(5.0).log_prob(site["tau"])
    log_prior = log_prior + Normal(0.0, 1.0).log_prob(site["z"]).sum(-1)
    return -log_prior - Normal(theta, SIGMA).log_prob(Y).sum(-1)


# 3. A Pyro model.
def model(y: Tensor, sigma: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", 8):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * z)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def run(target: eb.Energy, seed: int) -> eb.MCMC:
    """64 chains of one kernel; every tick is one batched gradient for all of them."""
    kernel = eb.NUTS(target)
    mcmc = eb.MCMC(kernel, num_samples=DRAWS, warmup_steps=WARMUP, num_chains=CHAINS, seed=seed)
    mcmc.run()
    return mcmc


def seconds_of_pyro(warmup: int = 100, draws: int = 100) -> float:
    """Seconds that Pyro's own NUTS, which runs one chain at a time, would take for all chains, from a short run of one."""
    pyro.set_rng_seed(4)
    chain = pyro.infer.MCMC(pyro.infer.NUTS(model), num_samples=draws, warmup_steps=warmup, disable_progbar=True)
    start = time.perf_counter()
    chain.run(Y, SIGMA)
    return (time.perf_counter() - start) * CHAINS * (WARMUP + DRAWS) / (warmup + draws)


def quantities(samples: dict[str, Tensor]) -> dict[str, Tensor]:
    """mu, tau and theta[1..8] as (chains, draws), however the model was written."""
    if "x" in samples:
        x = samples["x"]
        samples = {"z": x[..., :8], "mu": x[..., 8], "tau": x[..., 9].exp()}
    mu, tau, z = samples["mu"], samples["tau"], samples["z"]
    theta = mu[..., None] + tau[..., None] * z
    return {"mu": mu, "tau": tau, **{f"theta[{i + 1}]": theta[..., i] for i in range(8)}}


def compare(ways: dict[str, eb.MCMC]) -> float:
    """Print the posterior means side by side with their Monte Carlo errors; the largest z-score between two ways."""
    found = {name: quantities(mcmc.get_samples(group_by_chain=True)) for name, mcmc in ways.items()}
    print(f"\n{'posterior mean':>14} " + "".join(f"{name:>20}" for name in found))
    worst = 0.0
    for quantity in next(iter(found.values())):
        cells = []
        for samples in found.values():
            draws = samples[quantity].numpy()
            cells.append((float(draws.mean()), float(az.mcse(draws))))
        print(f"{quantity:>14} " + "".join(f"{mean:12.2f} +- {error:.2f} " for mean, error in cells))
        worst = max(worst, *(abs(a - b) / math.hypot(s, t) for a, s in cells for b, t in cells))
    return worst


def main() -> int:
    ways = {
        "callable": run(eb.as_energy(energy, event_shape=(10,)), seed=1),
        "named sites": run(
            eb.as_energy(sites_energy, {"mu": (), "tau": (), "z": (8,)}, support={"tau": constraints.positive}), seed=2
        ),
    }
    start = time.perf_counter()
    ways["Pyro model"] = run(eb.from_pyro(model, Y, SIGMA), seed=3)
    seconds = time.perf_counter() - start
    worst = compare(ways)
    agree = worst < 4.5  # the largest of 30 z-scores passes 4.5 once in 5,000 runs when all is right
    print(
        f"Largest difference between two ways: {worst:.1f} Monte Carlo errors, {'as it should be' if agree else 'WRONG'}."
    )

    print("\nThe Pyro model in ArviZ (theta is its deterministic site):")
    mcmc = ways["Pyro model"]
    mcmc.summary()
    idata = mcmc.to_arviz(coords={"school": list("ABCDEFGH")}, dims={"z": ["school"], "theta": ["school"]})
    OUT.mkdir(exist_ok=True)
    idata.to_netcdf(str(OUT / "eight_schools.nc"))
    plot_trace(idata, OUT / "eight_schools_trace.png", var_names=["mu", "tau", "theta"])
    plot_rank(idata, OUT / "eight_schools_rank.png", var_names=["mu", "tau"])
    print(f"\nWrote {OUT}/eight_schools.nc, {OUT}/eight_schools_trace.png and {OUT}/eight_schools_rank.png.")
    print("Traces should look like noise around one level, and ranks be spread evenly over the chains.")
    print(f"\nThe Pyro model took {seconds:.1f} s: {CHAINS} chains of {WARMUP} + {DRAWS} draws in one process.")
    theirs = seconds_of_pyro()
    print(
        f"Pyro's own NUTS would take about {theirs:.0f} s for them, one after the other: {theirs / seconds:.0f} times as long"
        " (extrapolated from 200 draws of one chain)."
    )
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
