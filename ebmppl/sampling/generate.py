"""Independent draws of a kernel that gives such, in batches that fit the memory."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from ebmppl.arguments import require, seed_of, whole
from ebmppl.errors import SamplingWarning
from ebmppl.kernels.base import Kernel
from ebmppl.sampling.chains import Chains
from ebmppl.sampling.choice import require_backend
from ebmppl.sampling.initial import as_start, given_points, starting_points
from ebmppl.score.conditions import choosing_rows, num_conditions
from ebmppl.score.failures import failures

_NUMBERS = 1 << 20  # of the points of a batch; a network makes some hundred times as many


def generate(
    kernel: Kernel, n: int, *, seed: int | None = None, batch_size: int | None = None, backend: str = "auto"
) -> Tensor:
    """Independent draws of a kernel that gives such: ``ReverseSDE``, ``ProbabilityFlow``, ``AnnealedLangevin`` ...

    Chains, at most ``batch_size`` of them, each make as many draws one after another as are needed.

    Args:
        kernel: the kernel.
        n: how many draws, >= 1; of a score that is given something by row, as many as there are rows, one for each.
        seed: of the random numbers; a fresh one when None.
        batch_size: most chains at a time, >= 1; about a million numbers when None.
        backend: "auto", "eager", "inductor" or "cudagraph".

    Returns:
        Draws ``(n, *event)`` at the dtype and device of the score's parameters (else torch's defaults); at float32 where
            these are of half precision, for which this is called under ``torch.autocast``.

    Raises:
        ValueError: for a kernel whose draws depend on one another or that doesn't begin at T, where draws of the prior are,
            numbers outside these ranges, or other than the score's rows.

    Warns:
        SamplingWarning: where draws failed: which ones, when, and whether the score was not finite or a tolerance not met.
    """
    _require_independent(kernel)
    require_backend(backend)
    n, event = whole("n", n, 1), kernel.target.event_shape
    rows = num_conditions(kernel.target.fn)
    require(rows is None or rows == n, f"n = {rows}, a draw for each row that the score is given", n)
    most = max(1, _NUMBERS // event.numel()) if batch_size is None else whole("batch_size", batch_size, 1)
    rounds = -(-n // most)
    chains = -(-n // rounds)
    seed = seed_of(seed)
    start = starting_points(kernel.target, as_start(kernel, None, chains), chains, seed).points
    if rows is None or rounds == 1:
        return _draw(Chains(kernel, start, seed, backend, record=False), rounds, n)
    with choosing_rows(kernel.target.fn, chains) as choose:
        return _draw(Chains(kernel, start, seed, backend, record=False), rounds, n, choose)


def transport(kernel: Kernel, x: Tensor, *, seed: int | None = None, backend: str = "auto") -> Tensor:
    """Carry given points along: one draw ``(chains, *event)`` of chains that begin at points ``(chains, *event)``.

    With ``ProbabilityFlow(..., forward=True)`` that encodes data, without it decodes noise.

    Raises:
        ValueError: as ``generate``, and for points of another shape.

    Warns:
        SamplingWarning: as ``generate``.
    """
    _require_independent(kernel)
    require_backend(backend)
    shape = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
    batch = isinstance(x, Tensor) and x.dim() == len(kernel.target.event_shape) + 1 and len(x) > 0
    require(batch, f"points of shape (chains, {', '.join(map(str, kernel.target.event_shape))})", shape)
    x = given_points(kernel.target, x, len(x))
    seed = seed_of(seed)
    return _draw(Chains(kernel, x, seed, backend, record=False), 1, len(x))


def _require_independent(kernel: object) -> None:
    got = repr(kernel) if isinstance(kernel, Kernel) else type(kernel).__name__
    require(isinstance(kernel, Kernel) and kernel.independent, "a kernel that gives independent draws", got)


def _draw(chains: Chains, rounds: int, n: int, choose: Callable[[Tensor], None] | None = None) -> Tensor:
    """So many rounds, before each of which the score's rows are chosen."""
    if rounds > 1:
        chains.prepare(rounds - 1, values=False)
    draws, failed_at, unmet = [], [], []
    for k in range(rounds):
        if choose is not None:
            choose(torch.arange(k * chains.num_chains, (k + 1) * chains.num_chains))
        chains.advance(1)
        state = chains.now.state
        draws.append(chains.position().clone())
        failed_at.append(state.failure.clone())
        none = torch.zeros_like(state.failure, dtype=torch.bool)  # of kernels without a tolerance
        unmet.append(getattr(state, "tolerance_unmet", none).clone())
    time = "t" if getattr(chains.kernel.target, "sde", None) is not None else "noise level"
    told = failures(torch.cat(failed_at)[:n], torch.cat(unmet)[:n], "draws", time)
    if told is not None:
        warnings.warn(f"{told}. They are left as they were then", SamplingWarning, stacklevel=3)
    return torch.cat(draws)[:n]
