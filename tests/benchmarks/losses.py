"""Losses next to torchebm's, and to what their gradients and random numbers cost alone.

    python -m tests.benchmarks.losses [--quick] [--slices 1 5] [--rounds 9] [--processor-time] [--compiled] [--json FILE]

A network dimension-128-128-1 with SiLU, the same weights on both sides, float32, eager, one thread. A unit of work is
one step without the optimiser's: gradients set to none, the loss of a batch, backward. "Plain" is our loss of the same
network as a plain callable, without the closed forms of ``MLPEnergy``. CD-10 runs ten Langevin steps from the data.

The limit of a loss is its own formula alone, written straight on the energy's closed forms with random numbers from one
generator: no checks of the data, no seeds, no step count. ``--compiled`` shows beside it the formula of the plain network
by nested ``torch.func.grad`` and ``torch.compile``, all ten steps of CD-10 in one graph (a minute for each row).

Chains trace their gradient after 1,000 ticks, once in a training run; so some steps go before those that are timed.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, grad_and_value

import ebmppl as eb
from tests.benchmarks.timing import Spread, Work, alternate, machine, ratio, save, table

BATCHES = (64, 256, 1024)
HIDDEN = 128
SIGMA = 0.1
SEED = 20240
DRAWS, STEP_SIZE = 10, 0.01  # of CD
BEFORE = 110  # steps of CD-10 until the gradient is traced
# the targets: torchebm's time over ours at a batch of 64, and ours over the limit at every size
MORE_THAN_TORCHEBM = {"sliced": 2.0, "denoising": 1.25, "CD-10": 1.25}
OF_THE_LIMIT = 1.1


class Effort(NamedTuple):
    """How much to measure."""

    batches: Sequence[int] = BATCHES
    rounds: int = 9
    seconds: float = 0.1  # of one turn of one peer
    processor: bool = False  # its time, not the clock's

    def measure(self, peers: Mapping[str, Work]) -> dict[str, list[float]]:
        """Microseconds per unit of every peer."""
        clock = time.process_time if self.processor else time.perf_counter
        return alternate(peers, rounds=self.rounds, seconds=dict.fromkeys(peers, self.seconds), clock=clock)


def network(dimension: int) -> nn.Module:
    """dimension -> 128 -> 128 -> 1 with SiLU."""
    torch.manual_seed(SEED)
    layers = nn.Linear(dimension, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, 1)
    return nn.Sequential(*layers, nn.Flatten(0))


def energy(dimension: int) -> eb.energies.MLPEnergy:
    """The same network as an energy."""
    made = eb.energies.MLPEnergy(dimension, (HIDDEN, HIDDEN))
    with torch.no_grad():
        for ours, theirs in zip(made.parameters(), network(dimension).parameters(), strict=True):
            ours.copy_(theirs)
    return made


def steps(loss: Callable[[Tensor], Tensor], module: nn.Module, x: Tensor) -> Work:
    """Gradients of a loss."""
    parameters = list(module.parameters())

    def work(n: int) -> None:
        for _ in range(n):
            for parameter in parameters:
                parameter.grad = None
            loss(x).backward()

    return work


def rival(name: str, slices: int, dimension: int) -> tuple[Callable[[Tensor], Tensor], nn.Module]:
    """torchebm's loss of the same objective."""
    from torchebm.core import BaseModel
    from torchebm.losses import ContrastiveDivergence, DenoisingScoreMatching, SlicedScoreMatching
    from torchebm.samplers import LangevinDynamics

    class Model(BaseModel):
        def __init__(self) -> None:
            super().__init__()
            self.network = network(dimension)

        def forward(self, x: Tensor) -> Tensor:
            return self.network(x)

    model = Model()
    if name == "CD-10":
        sampler = LangevinDynamics(model, step_size=STEP_SIZE)
        divergence = ContrastiveDivergence(model, sampler, k_steps=DRAWS, energy_reg_weight=0.0)
        return lambda x: divergence(x)[0], model
    if name == "denoising":
        return DenoisingScoreMatching(model, noise_scale=SIGMA), model
    return SlicedScoreMatching(model, n_projections=slices, projection_type="gaussian"), model


def ours(name: str, slices: int) -> eb.losses.Loss:
    """The loss of a name."""
    if name == "CD-10":
        return eb.losses.CD(DRAWS, kernel=partial(eb.Langevin, step_size=STEP_SIZE), seed=SEED)
    if name == "denoising":
        return eb.losses.DenoisingScoreMatching(SIGMA, seed=SEED)
    return eb.losses.SlicedScoreMatching(slices, reduced_variance=name.endswith("reduced"), seed=SEED)


def limit(name: str, slices: int, of: eb.energies.MLPEnergy) -> Callable[[Tensor], Tensor]:
    """The formula alone."""
    generator = torch.Generator().manual_seed(SEED)

    def denoising(x: Tensor) -> Tensor:
        noise = torch.randn(x.shape, generator=generator)
        return (of.gradient(x + SIGMA * noise) - noise / SIGMA).square().sum() * (0.5 / len(x))

    def sliced(x: Tensor) -> Tensor:
        once, twice = of.slopes(x, torch.randn((slices, *x.shape), generator=generator))
        if name == "sliced":
            return 0.5 * once.square().mean() - twice.mean()
        return of.gradient(x).square().sum() * (0.5 / len(x)) - twice.mean()

    def divergence(x: Tensor) -> Tensor:
        y = x
        for _ in range(DRAWS):
            noise = torch.randn(x.shape, generator=generator)
            y = y - 0.5 * STEP_SIZE * of.value_and_grad(y)[1] + math.sqrt(STEP_SIZE) * noise
        both = of(torch.cat([x, y]))
        return both[: len(x)].mean() - both[len(x) :].mean()

    return {"denoising": denoising, "CD-10": divergence}.get(name, sliced)


def compiled(name: str, slices: int, net: nn.Module, x: Tensor) -> Work:
    """Gradients of the formula alone, of a plain network, in one compiled graph."""
    parameters = {key: value.detach() for key, value in net.named_parameters()}
    generator = torch.Generator().manual_seed(SEED)

    def total(p: dict[str, Tensor], y: Tensor) -> Tensor:
        return functional_call(net, p, (y,)).sum()

    gradient = grad(total, argnums=1)

    def denoising(p: dict[str, Tensor], x: Tensor, noise: Tensor) -> Tensor:
        return (gradient(p, x + SIGMA * noise[0]) - noise[0] / SIGMA).square().sum() * (0.5 / len(x))

    def sliced(p: dict[str, Tensor], x: Tensor, noise: Tensor) -> Tensor:
        loss = x.new_zeros(())
        g = gradient(p, x)
        for v in noise:
            change = grad(lambda y, v=v: (gradient(p, y) * v).sum())(x)
            square = (g * v).sum(-1).square() if name == "sliced" else g.square().sum(-1)
            loss = loss + (0.5 * square - (change * v).sum(-1)).mean() / len(noise)
        return loss

    def divergence(p: dict[str, Tensor], x: Tensor, noise: Tensor) -> Tensor:
        y = x
        for row in noise:
            y = y - 0.5 * STEP_SIZE * gradient(p, y).detach() + math.sqrt(STEP_SIZE) * row
        return (total(p, x) - total(p, y.detach())) / len(x)

    formula = {"denoising": denoising, "CD-10": divergence}.get(name, sliced)
    step = torch.compile(grad_and_value(formula), fullgraph=True)
    rows = {"denoising": 1, "CD-10": DRAWS}.get(name, slices)

    def work(n: int) -> None:
        for _ in range(n):
            step(parameters, x, torch.randn((rows, *x.shape), generator=generator))

    return work


def cell(name: str, slices: int, batch: int, dimension: int, effort: Effort, *, compiling: bool) -> dict[str, Any]:
    """One loss at one size."""
    x = torch.randn(batch, dimension, generator=torch.Generator().manual_seed(SEED))
    own, bare, plain = energy(dimension), energy(dimension), network(dimension)
    works = {
        "ours": steps(ours(name, slices)(own), own, x),
        "limit": steps(limit(name, slices, bare), bare, x),
        "plain": steps(ours(name, slices)(eb.as_energy(plain, (dimension,))), plain, x),
        "torchebm": steps(*rival(name, slices, dimension), x),
    }
    if compiling:
        works["compiled"] = compiled(name, slices, network(dimension), x)
    if name == "CD-10":
        works["ours"](BEFORE)
        works["plain"](BEFORE)
    times = effort.measure(works)
    return {
        "loss": name,
        "slices": slices,
        "batch": batch,
        **times,
        "ratio": ratio(times["torchebm"], times["ours"])._asdict(),
        "plain_ratio": ratio(times["torchebm"], times["plain"])._asdict(),
        "over_limit": ratio(times["ours"], times["limit"])._asdict(),
    }


def cells(row: Mapping[str, Any]) -> list[str]:
    """A row of the table."""
    wanted = MORE_THAN_TORCHEBM.get(row["loss"]) if row["batch"] == BATCHES[0] else None
    met = "" if wanted is None else f" >= {wanted:g} {'yes' if row['ratio']['median'] >= wanted else 'NO'}"
    within = "yes" if row["over_limit"]["median"] <= OF_THE_LIMIT else "NO"
    name = f"{row['loss']}, {row['slices']} slices" if row["loss"].startswith("sliced") else row["loss"]
    sides = ("ours", "limit", "compiled", "plain", "torchebm")
    medians = [f"{Spread.of(row[side]).median:.0f}" if side in row else "" for side in sides]
    return [
        f"{row['batch']}",
        name,
        *medians,
        Spread(**row["ratio"]).text(2) + met,
        Spread(**row["plain_ratio"]).text(2),
        f"{Spread(**row['over_limit']).text(2)} {within}",
    ]


HEAD = (
    "batch", "loss", "ours us", "limit us", "limit compiled us", "plain us", "torchebm us", "torchebm / ours", "torchebm / plain",
    f"ours / limit <= {OF_THE_LIMIT}",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None, effort: Effort | None = None) -> dict[str, Any]:
    """Measure, print, and return what ``--json`` writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="a smoke run of some seconds")
    parser.add_argument("--dimension", type=int, default=2)
    parser.add_argument(
        "--slices", type=int, nargs="+", default=[1, 5], help="of sliced score matching; torchebm's is 5"
    )
    parser.add_argument("--rounds", type=int, default=Effort().rounds)
    parser.add_argument("--processor-time", action="store_true", help="on a machine that is busy")
    parser.add_argument("--compiled", action="store_true", help="show the compiled formula, too")
    parser.add_argument("--json", metavar="FILE", help="write all times to FILE")
    options = parser.parse_args(arguments)
    effort = effort or (Effort(rounds=3, seconds=0.005) if options.quick else Effort(rounds=options.rounds))
    effort = effort._replace(processor=options.processor_time)
    where = machine(["torch", "torchebm", "ebmppl"])
    print("\n".join(f"{name}: {value}" for name, value in where.items()))
    kind = "processor time" if options.processor_time else "by the clock"
    print(f"float32, one thread, eager, {kind}; medians [quartiles] of {effort.rounds} alternating rounds\n")
    names = [("denoising", 1), ("CD-10", 1)]
    names += [(name, n) for n in options.slices for name in ("sliced", "sliced, reduced")]
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = [
            cell(name, n, batch, options.dimension, effort, compiling=options.compiled)
            for batch in effort.batches
            for name, n in names
        ]
    finally:
        torch.set_num_threads(before)
    print(table(HEAD, [cells(row) for row in rows]))
    results = {"machine": where, "effort": effort._asdict(), "losses": rows}
    if options.json:
        save(options.json, results)
    return results


if __name__ == "__main__":
    main()
