"""NUTS next to BlackJAX's, gradient for gradient; its eager tick next to its gradient.

    python -m tests.benchmarks.nuts_equality [--quick] [--rounds 5] [--json FILE]

(A) Effective draws per gradient at one step size and inverse mass for both, on three posteriors.
(B) The same, each as its own warm-up adapts it.
(C) Divergences on Neal's funnel at one step size for both.
(D) A tick, eager with the traced gradient, on one thread: logistic regression 1000x25.
Effective draws are ArviZ's bulk ESS; the smallest of all coordinates counts.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that the script runs from a checkout

import ebmppl as eb
from ebmppl.sampling.chains import Chains
from ebmppl.sampling.scopes import using_threads
from tests.benchmarks.posteriors import POSTERIORS
from tests.benchmarks.timing import Spread, alternate, machine, ratio, save, table
from tests.benchmarks.worker import smallest_ess

EQUAL, FUNNEL, TICKING = ("a", "b", "d"), "c", "a"  # keys of the posteriors
FUNNEL_STEP = 0.5
TICKS = {4: 0.5, 64: 0.9, 512: None}  # chains: most milliseconds, with the first trace of torch 2.13 in mind
WITHIN, AS_ADAPTED = 0.05, 0.95


class Effort(NamedTuple):
    """How much to measure."""

    rounds: int = 5
    chains: int = 64
    warmup: int = 500
    draws: int = 500
    seconds: float = 0.5  # of one turn of ticks


class Found(NamedTuple):
    """What a run found."""

    ess: float  # the smallest of all coordinates
    gradients: int  # of the kept draws' trees
    divergences: Tensor  # (chains,)

    @property
    def per_gradient(self) -> float:
        """Effective draws for one gradient."""
        return self.ess / self.gradients


class Problem(NamedTuple):
    """One target for both sides, over R^dimension."""

    dimension: int
    energy: Callable[[Tensor], Tensor]  # of a batch of points (chains, dimension), nats
    log_density: Callable[[Any], Any]  # of one JAX array (dimension,)

    @classmethod
    def of(cls, key: str) -> Problem:
        """A posterior that both sides have."""
        posterior = POSTERIORS[key]
        assert posterior.energy is not None
        return cls(posterior.dimension, posterior.energy(), posterior.log_density())


class Tuned(NamedTuple):
    """A step size, an inverse mass and points of a chain that has forgotten its beginning."""

    step_size: float
    inverse_mass: Tensor
    points: Tensor


def ours(problem: Problem, effort: Effort, seed: int, tuned: Tuned | None = None) -> tuple[Found, eb.MCMC]:
    """One run: as tuned, or as adapted by its own warm-up."""
    energy = eb.as_energy(problem.energy, (problem.dimension,), batched=True)
    if tuned is None:
        kernel, warmup, start = eb.NUTS(energy), effort.warmup, None
    else:
        mass = tuned.inverse_mass
        kernel = eb.NUTS(energy, tuned.step_size, False, False, inverse_mass_matrix=mass)
        warmup, start = 0, tuned.points
    mcmc = eb.MCMC(kernel, effort.draws, warmup, start, effort.chains, seed=seed, disable_progbar=True)
    mcmc.run()
    stats = mcmc.stats()
    ess = smallest_ess(mcmc.get_samples(group_by_chain=True)["x"])
    return Found(ess, int(stats["n_steps"].sum()), stats["diverging"].sum(1).double()), mcmc


class BlackJAX:
    """BlackJAX's NUTS on one problem, its chains by ``vmap``; compiled once for each way."""

    def __init__(self, problem: Problem, effort: Effort) -> None:
        import jax

        self.problem, self.effort = problem, effort
        self._tuned = jax.jit(jax.vmap(self._sample, (0, 0, None, None)))
        self._adapted = jax.jit(jax.vmap(self._adapt_and_sample))

    def _sample(self, key: Any, x: Any, step_size: Any, inverse_mass: Any) -> Any:
        import blackjax
        import jax

        kernel = blackjax.nuts(self.problem.log_density, step_size, inverse_mass)

        def step(state: Any, key: Any) -> Any:
            state, info = kernel.step(key, state)
            return state, (state.position, info.num_integration_steps, info.is_divergent)

        return jax.lax.scan(step, kernel.init(x), jax.random.split(key, self.effort.draws))[1]

    def _adapt_and_sample(self, key: Any, x: Any) -> Any:
        import blackjax
        import jax

        first, second = jax.random.split(key)
        warmup = blackjax.window_adaptation(blackjax.nuts, self.problem.log_density)
        (state, found), _ = warmup.run(first, x, num_steps=self.effort.warmup)
        return self._sample(second, state.position, found["step_size"], found["inverse_mass_matrix"])

    def __call__(self, seed: int, tuned: Tuned | None = None) -> Found:
        """One run, as ``ours``."""
        import jax
        import jax.numpy as jnp

        first, second = jax.random.split(jax.random.PRNGKey(seed))
        keys = jax.random.split(first, self.effort.chains)
        if tuned is None:
            shape = (self.effort.chains, self.problem.dimension)
            draws = self._adapted(keys, jax.random.uniform(second, shape, minval=-2.0, maxval=2.0))
        else:
            x, mass = jnp.array(tuned.points.numpy()), jnp.array(tuned.inverse_mass.numpy())
            draws = self._tuned(keys, x, tuned.step_size, mass)
        position, steps, diverging = map(np.array, draws)
        return Found(smallest_ess(position), int(steps.sum()), torch.from_numpy(diverging).sum(1).double())


def per_gradient(effort: Effort) -> list[dict[str, Any]]:
    """Parts A and B."""
    rows = []
    for key in EQUAL:
        problem, name = Problem.of(key), POSTERIORS[key].title
        peer, warm = BlackJAX(problem, effort), ours(problem, effort, seed=1000)[1]
        now = warm.now.tuning
        tuned = Tuned(float(now.step_size), now.inverse_mass, warm.chains.position())  # type: ignore[union-attr]
        for way, given in (("equal", tuned), ("adapted", None)):
            pairs = [(ours(problem, effort, seed, given)[0], peer(seed, given)) for seed in range(effort.rounds)]
            mine, theirs = ([found.per_gradient for found in side] for side in zip(*pairs, strict=True))
            rows.append({"problem": name, "tuning": way, "ours": mine, "blackjax": theirs})
    return rows


def table_ab(rows: Sequence[dict[str, Any]]) -> str:
    """Effective draws per 1000 gradients."""
    lines = []
    for row in rows:
        found = ratio(row["ours"], row["blackjax"])
        met = abs(found.median - 1) <= WITHIN if row["tuning"] == "equal" else found.median >= AS_ADAPTED
        wanted = f"1 +- {WITHIN}" if row["tuning"] == "equal" else f">= {AS_ADAPTED}"
        sides = [Spread.of([1000 * value for value in row[side]]).text(1) for side in ("ours", "blackjax")]
        lines.append([row["problem"], row["tuning"], *sides, found.text(3), f"{wanted} {'yes' if met else 'NO'}"])
    return table(["posterior", "tuning", "ours", "BlackJAX", "ratio", "wanted"], lines)


def divergences(effort: Effort) -> dict[str, Any]:
    """Part C: divergences of chains that begin with exact draws, and the difference in its standard errors."""
    effort = effort._replace(chains=4 * effort.chains)
    problem, generator = Problem.of(FUNNEL), torch.Generator().manual_seed(0)
    points = eb.energies.Funnel(problem.dimension).sample(effort.chains, generator).float()
    tuned = Tuned(FUNNEL_STEP, torch.ones(problem.dimension), points)
    found = {"ours": ours(problem, effort, 0, tuned)[0], "blackjax": BlackJAX(problem, effort)(0, tuned)}
    counts = {name: run.divergences for name, run in found.items()}
    error = sum(float(count.var()) / effort.chains for count in counts.values()) ** 0.5
    z = (float(counts["ours"].mean()) - float(counts["blackjax"].mean())) / max(error, 1e-9)
    return {"draws": effort.chains * effort.draws, **{n: int(c.sum()) for n, c in counts.items()}, "z": z}


def ticks(effort: Effort) -> list[dict[str, Any]]:
    """Part D: the engine going on with a long run, next to the gradient it takes."""
    problem, rows = Problem.of(TICKING), []
    for chains in TICKS:
        x = 0.1 * torch.randn(chains, problem.dimension, generator=torch.Generator().manual_seed(0))
        kernel = eb.NUTS(eb.as_energy(problem.energy, (problem.dimension,), batched=True), 0.1)
        run = Chains(kernel, x, 0)
        run.prepare(1000)

        def tick(n: int, run: Chains = run) -> None:
            with torch.no_grad(), using_threads(run.threads):
                for _ in range(n):
                    run._tick(adapt=False)

        def gradient(n: int, f: Callable[[Tensor], Any] = kernel.value_and_grad, x: Tensor = x) -> None:
            with torch.no_grad():
                for _ in range(n):
                    f(x)

        works = {"tick": tick, "gradient": gradient}
        times = alternate(works, rounds=effort.rounds, seconds=dict.fromkeys(works, effort.seconds))
        rows.append({"chains": chains, **times})
    return rows


def table_d(rows: Sequence[dict[str, Any]]) -> str:
    """Microseconds on one thread."""
    lines = []
    for row in rows:
        tick, gradient, most = Spread.of(row["tick"]), Spread.of(row["gradient"]), TICKS[row["chains"]]
        met = "" if most is None else f"{1000 * most:.0f} {'yes' if tick.median <= 1000 * most else 'NO'}"
        share = ratio(row["gradient"], row["tick"])
        lines.append([str(row["chains"]), tick.text(0), met, gradient.text(0), share.text(2)])
    return table(["chains", "us/tick", "at most", "us/gradient", "of a tick"], lines)


def main(arguments: Sequence[str] | None = None, effort: Effort | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="a smoke run")
    parser.add_argument("--rounds", type=int, default=Effort().rounds)
    parser.add_argument("--json", metavar="FILE", help="write all results to FILE")
    options = parser.parse_args(arguments)
    effort = effort or (Effort(2, 8, 60, 60, 0.02) if options.quick else Effort(rounds=options.rounds))
    warnings.simplefilter("ignore", eb.errors.SamplingWarning)
    where = machine(["torch", "blackjax", "jax", "ebmppl"])
    print("\n".join(f"{name}: {value}" for name, value in where.items()))
    print(
        f"float32; medians [quartiles] of {effort.rounds} rounds; {effort.chains} chains, {effort.warmup}+{effort.draws}"
    )
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        timed = ticks(effort)
    finally:
        torch.set_num_threads(before)
    print(f"\n(D) eager tick, one thread, logistic 1000x25\n\n{table_d(timed)}", flush=True)
    count = divergences(effort)
    print(f"\n(C) divergences on the funnel, step {FUNNEL_STEP}, of {count['draws']:,} draws: ", end="")
    print(f"{count['ours']:,} and BlackJAX {count['blackjax']:,}, {count['z']:+.1f} standard errors apart", flush=True)
    rows = per_gradient(effort)
    print(f"\n(A, B) smallest effective draws per 1000 gradients\n\n{table_ab(rows)}")
    if options.json:
        results = {"machine": where, "effort": effort._asdict(), "per_gradient": rows, "divergences": count}
        save(options.json, {**results, "ticks": timed})


if __name__ == "__main__":
    main()
