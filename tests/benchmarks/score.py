"""Score models next to torchsde, torchdiffeq and SciPy, and to what their network and random numbers cost alone.

    python -m tests.benchmarks.score [--quick] [--cases network trivial adaptive likelihood] [--threads 1] [--json FILE]

network: a tick of the reverse SDE (Euler-Maruyama) of a perceptron 3x256 at 4096 points of the plane, next to that network and
    the tick's random numbers alone; compiled next to compiled, eager next to eager.
trivial: a tick with the score -x: next to its random numbers, to an Euler step of torchsde and, of the probability flow, to one
    of torchdiffeq, on as many points and in one process.
adaptive: rows that a score is asked for by chains with their own steps and by torchdiffeq's dopri5, whose step is the batch's,
    at the same largest error of a point, on a mixture with a narrow mode (float64, error against a tolerance of 1e-10).
likelihood: ``log_likelihood`` with one probe next to the SciPy RK45 route of score_sde (Song et al. 2021): the same network,
    points, signs and tolerance; and at the loosest tolerance with no larger error of a point. Compiled beforehand.

Times are of the processor, by ``time.process_time``, and by the clock; peers take turns, medians with quartiles.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that the script runs from a checkout

import ebmppl as eb
from ebmppl.kernels.score import SteppedKernel
from ebmppl.sampling.advance import advance_together
from ebmppl.sampling.chains import Chains
from ebmppl.sampling.compiler import compile_graph
from ebmppl.sampling.program import _lift
from ebmppl.sampling.scopes import using_threads
from ebmppl.sampling.stragglers import Block
from ebmppl.score import VP, NoisePrediction, TimeMLP
from tests.benchmarks.discrete import Turn, alternate
from tests.benchmarks.timing import Spread, Work, machine, ratio, save, table
from tests.score_targets import DiffusedMixture

SEED = 20240
SDE = VP()
STEPS = 1000  # of a draw
OVERHEAD, TICK = 0.05, 20.0  # of the network's time; microseconds beyond the random numbers
OVER_TORCHSDE, OVER_TORCHDIFFEQ, FEWER_ROWS, OVER_SCIPY = 20.0, 1.0, 2.0, 3.0
# a tenth of the points ends in a mode of standard deviation 0.003 at t = 1e-3, or a twentieth in one of 0.001 at t = 1e-5
STIFF = {"narrow": (0.1, 1e-5, 1e-3), "stiff": (0.05, 1e-6, 1e-5)}
LOOSER = (
    1,
    2,
    4,
    6,
    8,
    12,
    16,
    24,
    32,
)  # tolerances, of which the loosest with an error no larger than SciPy's is taken
CASES = ("network", "trivial", "adaptive", "likelihood")


def normals(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(SEED))


def network(dimension: int, hidden: Sequence[int]) -> NoisePrediction:
    torch.manual_seed(SEED)
    return NoisePrediction(TimeMLP((dimension,), hidden), SDE).eval()


def trivial(x: Tensor, t: Tensor) -> Tensor:
    return -x


# What is timed. A unit is one network call of all points.


def ticks(kernel: SteppedKernel, x: Tensor, backend: str) -> Work:
    """The engine going on with a long run that records nothing."""
    chains = Chains(kernel, x, SEED, backend, record=False)
    with torch.no_grad(), using_threads(chains.threads):
        chains.prepare(10**6)
    if (chains.compiled is None) == (backend == "inductor"):
        raise RuntimeError(f"expected the backend {backend!r}: {chains.choice.reason}")

    def work(n: int) -> None:
        left = n
        with torch.no_grad(), using_threads(chains.threads):
            while left > 0:
                block = min(left, chains._most_ticks())
                if chains.compiled is not None:
                    chains._run_compiled(chains.compiled, Block(chains.now.tick, block), adapt=False)
                else:  # as ``generate`` does
                    chains.now = advance_together(chains.kernel, chains.noise, chains.now, block, None)
                left -= block

    return work


def random_numbers(x: Tensor) -> Work:
    """Normals of one tick, by one generator, into memory at hand."""
    out, generator = torch.empty_like(x), torch.Generator().manual_seed(SEED)

    def work(n: int) -> None:
        for _ in range(n):
            out.normal_(generator=generator)

    return work


def alone(score: Callable[[Tensor, Tensor], Tensor], x: Tensor, *, compiled: bool) -> Work:
    """The score at the same points, one call for each unit."""
    t = torch.full((len(x),), 0.5)
    call: Callable[[], object] = lambda: score(x, t)
    if compiled:
        from torch._inductor.decomposition import select_decomp_table

        with torch.no_grad():
            graph = make_fx(lambda x, t: [score(x, t)], select_decomp_table())(x, t)
        inputs = [x, t, *_lift(graph)]
        engine = compile_graph(graph, inputs)
        call = lambda: engine(list(inputs))

    @torch.no_grad()
    def work(n: int) -> None:
        for _ in range(n):
            call()

    return work


def torchsde_steps(x: Tensor) -> Work:
    """Whole solves of the same reverse SDE in forward time, by ``torchsde.sdeint`` with its defaults: its Brownian path costs the
    more by step the more steps there are.
    """
    import torchsde

    class Reverse(torch.nn.Module):
        noise_type, sde_type = "diagonal", "ito"

        def f(self, t: Tensor, y: Tensor) -> Tensor:
            beta = SDE.beta(1 - t)
            return 0.5 * beta * y + beta * trivial(y, t)

        def g(self, t: Tensor, y: Tensor) -> Tensor:
            return SDE.beta(1 - t).sqrt().expand_as(y)

    reverse = Reverse()

    def work(n: int) -> None:
        for _ in range(n):
            torchsde.sdeint(reverse, x, torch.tensor([0.0, 1.0]), method="euler", dt=1 / STEPS)

    return work


def torchdiffeq_steps(x: Tensor) -> Work:
    """Euler steps of the probability flow, by ``torchdiffeq.odeint`` on a grid of as many steps."""
    from torchdiffeq import odeint

    def flow(t: Tensor, y: Tensor) -> Tensor:
        half = 0.5 * SDE.beta(t)
        return -half * y - half * trivial(y, t)

    def work(n: int) -> None:
        odeint(flow, x, torch.tensor([1.0, 1.0 - n / STEPS]), method="euler", options={"step_size": 1 / STEPS})

    return work


def scipy_route(score: Callable[[Tensor, Tensor], Tensor], x: Tensor, tol: float) -> Callable[[], Tensor]:
    """``likelihood.py`` of score_sde_pytorch: RK45 on the whole batch in float64, two calls of the score for each velocity."""
    from scipy import integrate

    signs = 2.0 * torch.randint(2, x.shape, generator=torch.Generator().manual_seed(SEED)) - 1
    times = lambda t: torch.full((len(x),), t)

    def flow(y: Tensor, t: Tensor) -> Tensor:
        return SDE.drift(y, t) - 0.5 * SDE.diffusion(t).square()[:, None] * score(y, t)

    def divergence(y: Tensor, t: Tensor) -> Tensor:
        with torch.enable_grad():
            y = y.requires_grad_()
            (grad,) = torch.autograd.grad((flow(y, t) * signs).sum(), y)
        return (grad * signs).sum(1)

    def velocity(t: float, state: np.ndarray) -> np.ndarray:
        y = torch.from_numpy(state[: x.numel()].reshape(x.shape)).float()
        with torch.no_grad():
            drift = flow(y, times(t)).flatten()
        return np.concatenate([drift.numpy(), divergence(y, times(t)).numpy()])

    def run() -> Tensor:
        start = np.concatenate([x.flatten().numpy(), np.zeros(len(x))])
        end = integrate.solve_ivp(velocity, (1e-5, 1.0), start, rtol=tol, atol=tol, method="RK45").y[:, -1]
        at_end = torch.from_numpy(end[: x.numel()].reshape(x.shape)).float()
        return SDE.prior(x.shape[1:]).log_prob(at_end) + torch.from_numpy(end[x.numel() :]).float()

    return run


def times_of(run: Callable[[], object]) -> Work:
    def work(n: int) -> None:
        for _ in range(n):
            run()

    return work


# Cases: each gives lines of a table.

HEAD = ("case", "side", "us, processor", "clock", "found", "wanted")


def _less(times: Mapping[str, Sequence[Turn]], side: str, *others: str) -> list[float]:
    """What is left of a side without others, round by round."""
    return [turn.processor - sum(times[o][i].processor for o in others) for i, turn in enumerate(times[side])]


def _used(turns: Sequence[Turn]) -> list[float]:
    return [turn.processor for turn in turns]


def _line(title: str, side: str, turns: Sequence[Turn], found: str = "", wanted: str = "") -> list[str]:
    clock = Spread.of([turn.clock for turn in turns]).median
    return [title, side, Spread.of(_used(turns)).text(0), f"{clock:.0f}", found, wanted]


def _verdict(spread: Spread, wanted: float, digits: int = 2, *, at_most: bool = False) -> tuple[str, str]:
    met = spread.median <= wanted if at_most else spread.median >= wanted
    return spread.text(digits), f"{'<=' if at_most else '>='} {wanted:g} {'yes' if met else 'NO'}"


def network_case(*, quick: bool, rounds: int, seconds: float) -> tuple[dict[str, Any], list[list[str]]]:
    batch, hidden = (64, (16,)) if quick else (4096, (256, 256, 256))
    score, x = network(2, hidden), normals(batch, 2)
    kernel = lambda: eb.ReverseSDE(score, SDE, (2,), STEPS)
    times = alternate(
        {
            "compiled": ticks(kernel(), x, "inductor"),
            "eager": ticks(kernel(), x, "eager"),
            "network, compiled": alone(score, x, compiled=True),
            "network, eager": alone(score, x, compiled=False),
            "normals": random_numbers(x),
        },
        rounds, seconds,
    )  # fmt: skip
    title, lines = f"MLP {'x'.join(map(str, hidden))}, {batch}x2", []
    for side, turns in times.items():
        found = ("", "")
        if side in ("compiled", "eager"):
            bare = f"network, {side}"
            spread = ratio(_less(times, side, bare, "normals"), _used(times[bare]))
            found = _verdict(spread, OVERHEAD, 3, at_most=True)
        lines.append(_line(title, side, turns, found[0] and f"overhead / network {found[0]}", found[1]))
    return {"times": times}, lines


def trivial_case(*, quick: bool, rounds: int, seconds: float) -> tuple[dict[str, Any], list[list[str]]]:
    sizes = [(16, 2)] if quick else [(256, 2), (4096, 2), (4096, 64)]
    results, lines = {}, []
    for n, d in sizes:
        x, title = normals(n, d), f"score -x, {n}x{d}"
        sde = lambda d=d: eb.ReverseSDE(trivial, SDE, (d,), STEPS)
        ode = lambda d=d: eb.ProbabilityFlow(trivial, SDE, (d,), STEPS, "euler")
        peers = {
            "compiled": ticks(sde(), x, "inductor"),
            "eager": ticks(sde(), x, "eager"),
            "normals": random_numbers(x),
        }
        peers |= {"flow, compiled": ticks(ode(), x, "inductor"), "flow, eager": ticks(ode(), x, "eager")}
        peers |= {"torchsde": torchsde_steps(x), "torchdiffeq": torchdiffeq_steps(x)}
        results[f"{n}x{d}"] = times = alternate(peers, rounds, seconds)
        times["torchsde"] = [Turn(*(part / STEPS for part in turn)) for turn in times["torchsde"]]
        for side, turns in times.items():
            if side in ("compiled", "eager"):
                beyond = _verdict(Spread.of(_less(times, side, "normals")), TICK, 1, at_most=True)
                wanted = beyond[1] if (n, d) == (256, 2) and side == "compiled" else ""
                lines.append(_line(title, side, turns, f"beyond normals {beyond[0]} us", wanted))
                against = _verdict(ratio(_used(times["torchsde"]), _used(turns)), OVER_TORCHSDE, 1)
                lines.append(["", "", "", "", f"torchsde / it {against[0]}", against[1] if side == "compiled" else ""])
            elif side.startswith("flow"):
                against = _verdict(ratio(_used(times["torchdiffeq"]), _used(turns)), OVER_TORCHDIFFEQ)
                wanted = against[1] if side == "flow, compiled" else ""
                lines.append(_line(title, side, turns, f"torchdiffeq / it {against[0]}", wanted))
            else:
                lines.append(_line(title, side, turns))
    return results, lines


class Counted:
    """A score that counts its rows."""

    def __init__(self, score: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.score, self.rows = score, 0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.rows += len(x)
        return self.score(x, t)


def adaptive_case(*, quick: bool, rounds: int, seconds: float) -> tuple[dict[str, Any], list[list[str]]]:
    """Rows a point and largest errors at tolerances; rows at one error by interpolation of their logs."""
    results, lines = {}, []
    for name in STIFF:
        results[name] = found = rows_and_errors(name, quick=quick)
        for error in (1e-2, 1e-3, 1e-4, 1e-5):
            ours, theirs = (_rows_at(error, found[side]) for side in ("ours", "torchdiffeq"))
            share = theirs / ours
            met = _verdict(Spread(share, share, share), FEWER_ROWS)[1] if math.isfinite(share) else ""
            against = f"torchdiffeq {theirs:.0f} rows: {share:.2f}"
            lines.append([f"{name} mode", f"largest error {error:g}", f"{ours:.0f} rows a point", "", against, met])
    return results, lines


def rows_and_errors(name: str, *, quick: bool) -> dict[str, list[tuple[float, float, float]]]:
    """Tolerances, rows a point and largest errors of both."""
    from torchdiffeq import odeint

    share, variance, first = STIFF[name]
    covariances = [[[variance, 0.0], [0.0, variance]], [[0.4, 0.0], [0.0, 0.1]]]
    mixture = DiffusedMixture(SDE, [share, 1 - share], [[-1.0, 0.0], [2.0, 0.5]], covariances)
    n = 32 if quick else 512
    x = normals(n, 2).double()
    flow = lambda score, tol: eb.AdaptiveFlow(score, SDE, (2,), rtol=tol, atol=tol / 10, t_min=first)
    exact = eb.transport(flow(mixture, 1e-10), x, seed=0)

    def batch_wide(score: Counted, tol: float) -> Tensor:
        def velocity(t: Tensor, y: Tensor) -> Tensor:
            t = t.clamp(first, 1.0).expand(len(y))  # it steps over the end and comes back
            return SDE.drift(y, t) - 0.5 * SDE.diffusion(t).square()[:, None] * score(y, t)

        ends = torch.tensor([1.0, first], dtype=torch.float64)
        return odeint(velocity, x, ends, rtol=tol, atol=tol / 10, method="dopri5")[-1]

    found: dict[str, list[tuple[float, float, float]]] = {"ours": [], "torchdiffeq": []}
    for tol in (10.0**-k for k in range(2, 5 if quick else 10)):
        for side, solve in (
            ("ours", lambda s, tol: eb.transport(flow(s, tol), x, seed=0)),
            ("torchdiffeq", batch_wide),
        ):
            score = Counted(mixture)
            error = float((solve(score, tol) - exact).abs().max())
            found[side].append((tol, score.rows / n, error))
    return found


def _rows_at(error: float, found: Sequence[tuple[float, float, float]]) -> float:
    """Fewest rows with which an error is reached, between two tolerances by a line in logs; NaN where none does."""
    best = math.nan
    for (_, rows, above), (_, more, below) in zip(found[:-1], found[1:], strict=True):
        if below <= error <= above and above > below:
            share = math.log(above / error) / math.log(above / below)
            best = min(math.exp(math.log(rows) + share * math.log(more / rows)), best if best == best else math.inf)
    return best


def likelihood_case(*, quick: bool, rounds: int, seconds: float) -> tuple[dict[str, Any], list[list[str]]]:
    cases = [(2, (16,), 8)] if quick else [(2, (64, 64), 64), (2, (256, 256, 256), 256), (16, (256, 256, 256), 256)]
    tol, results, lines = 1e-2 if quick else 1e-5, {}, []
    for d, hidden, n in cases:
        score, x = network(d, hidden), normals(n, d)
        route = scipy_route(score, x, tol)
        exact = eb.log_likelihood(deepcopy(score).double(), SDE, x.double(), 1e-9, 1e-9, probes=1, seed=SEED).value
        error = lambda value, exact=exact: float((value - exact).abs().max())

        def ours(backend: str, loose: float = 1.0, score=score, x=x) -> Callable[[], Tensor]:
            options = {"probes": 1, "seed": SEED, "backend": backend}
            return lambda: eb.log_likelihood(score, SDE, x, loose * tol, loose * tol, **options).value

        wanted = error(route())
        loosest = max(f for f in LOOSER if f == 1 or error(ours("eager", f)()) <= wanted)
        sides = {"compiled": ours("inductor"), "eager": ours("eager")}
        sides[f"compiled, tolerance x {loosest:g}"] = ours("inductor", loosest)
        times = alternate({side: times_of(run) for side, run in {**sides, "SciPy": route}.items()}, rounds, seconds)
        title = f"MLP {'x'.join(map(str, hidden))}, {n}x{d}"
        results[title] = times
        for side, run in sides.items():
            against = _verdict(ratio(_used(times["SciPy"]), _used(times[side])), OVER_SCIPY)
            found = f"SciPy / it {against[0]}; largest error {error(run()):.1e} nats"
            lines.append(_line(title, side, times[side], found, against[1]))
        lines.append(_line(title, "SciPy RK45", times["SciPy"], f"largest error {wanted:.1e} nats"))
    return results, lines


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and return what ``--json`` writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="a smoke run of small cases")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--threads", type=int, default=1, help="intra-op threads of torch")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", metavar="FILE", help="write all times to FILE")
    options = parser.parse_args(arguments)
    where = machine(["torch", "ebmppl", "torchsde", "torchdiffeq", "scipy"])
    print("\n".join(f"{name}: {value}" for name, value in where.items()))
    rounds, seconds = (2, 0.005) if options.quick else (options.rounds, 0.3)
    print(f"float32; medians [quartiles] of {rounds} alternating rounds; torch.set_num_threads({options.threads})\n")
    before = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    results = {}
    try:
        for name in options.cases:
            case = globals()[f"{name}_case"]
            results[name], lines = case(quick=options.quick, rounds=rounds, seconds=seconds)
            print(f"{table(HEAD, lines)}\nload {os.getloadavg()[0]:.1f}\n", flush=True)
    finally:
        torch.set_num_threads(before)
    everything = {"machine": where, "load after": os.getloadavg(), "cases": results}
    if options.json:
        save(options.json, everything)
    return everything


if __name__ == "__main__":
    main()
