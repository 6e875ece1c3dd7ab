"""Compiled ticks tried against eager ones of the same states, before a run trusts them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ebmppl.sampling.compiler import Flat
from ebmppl.sampling.program import Carried, Log, Program, Traced, copy, flatten

_TRIED = 3  # ticks
_FEW = 10  # one chain of so many may decide otherwise by rounding
_STEP = (
    0.9437  # of the step size: at 1 a normal's trees turn after exactly half an orbit, where rounding decides for all
)
_ESTIMATED = 0.5  # of an estimated error, or a step by it, may be rounding; such a step is as right, whatever its size


def wrong_fields(
    program: Program, run: Flat, traced: Traced, first: Carried, chunks: Sequence[Tensor], log: Log
) -> str | None:
    """Names of the fields in which compiled ticks differ from eager ones; None where these can be trusted.

    Args:
        program: the tick.
        run: the compiled one.
        traced: its graph's form.
        first: where to begin; left as it is.
        chunks: of the noise.
        log: of the run, not yet in use; rows of it are overwritten.
    """
    bad: set[str] = set()
    number = len(program.kernel.position(first.state))
    times = torch.zeros(number, device=first.state[0].device)
    carried = _off_ties(copy(first))
    for _ in range(_TRIED):
        carried = carried._replace(rows=program.wrapped(carried.rows, log.ticks))
        leaves = flatten(copy(carried))
        traced.advance(run, leaves, [*chunks, *log.buffers, *traced.constants])
        row = carried.rows[0]
        carried, info = program.tick(carried, chunks)
        wanted = log.pack(program.kernel.position(carried.state), info)
        found = [buffer.index_select(0, row).squeeze(0) for buffer in log.buffers]
        names, chains = _different(program, number, carried, leaves, wanted, found)
        times += chains
        bad |= names
        many = int(chains.sum()) > max(1, len(chains) // _FEW)
        # rounding turns a decision of some chain now and then, but hardly of many, or of the same one again
        if many or bool((times > 1).any()):
            return ", ".join(sorted(bad))
    return None


def _off_ties(carried: Carried) -> Carried:
    """With a step size at which no decision hangs on rounding in all chains at once."""
    tuning = carried.tuning
    steps = {n: t * _STEP for n, t in tuning._asdict().items() if n.endswith("step_size")}
    return carried._replace(tuning=tuning._replace(**steps))


def _different(
    program: Program,
    number: int,
    carried: Carried,
    leaves: Sequence[Tensor],
    wanted: Sequence[Tensor],
    found: Sequence[Tensor],
) -> tuple[set[str], Tensor]:
    """Names of the fields that differ between an eager and a compiled tick, and in which chains."""
    state = carried.state
    names = [*state._fields, *(f"tuning {name}" for name in carried.tuning._fields)]
    names += [f"averaging {name}" for name in getattr(carried.averaging, "_fields", ())]
    eager = flatten(carried)
    names += ["row"] * (len(eager) - len(names))
    pairs = [(n, a, b, 0) for n, a, b in zip(names, eager, leaves, strict=True)]
    pairs += [(f"log {i}", a, b, int(i > 0)) for i, (a, b) in enumerate(zip(wanted, found, strict=True))]
    by_chain = [t for t in state if t.dim() == 1 and t.is_floating_point()]  # energies, and differences of such
    chains = torch.zeros(number, dtype=torch.bool, device=state[0].device)
    bad = set()
    for name, a, b, axis in pairs:
        if a.shape != b.shape or a.dtype != b.dtype or not b.is_contiguous():
            return {f"the form of {name}"}, ~torch.zeros_like(chains)
        own = a.dim() > 1 and axis == 0 and name not in program.kernel.scratch  # positions, gradients, momenta
        if name in program.kernel.rounded:
            wrong = ~torch.isclose(b, a, rtol=_ESTIMATED, atol=program.kernel.rounded[name], equal_nan=True)
        else:
            wrong = ~_close(b, a, [a] if own else [a, *by_chain])
        if not bool(wrong.any()):
            continue
        bad.add(name)
        if axis == 0 and a.dim() > 1 and a.shape[0] != number:
            axis = a.dim() - 1  # states that keep their chains innermost
        of_chains = a.dim() > axis and a.shape[axis] == number
        chains |= wrong.movedim(axis, 0).reshape(len(chains), -1).any(1) if of_chains else wrong.any()
    return bad, chains


def _close(found: Tensor, wanted: Tensor, scales: Sequence[Tensor]) -> Tensor:
    """Equal up to rounding, at the scale of numbers of which they may be differences."""
    if not wanted.is_floating_point():
        return found == wanted
    scale = max([1.0, *(float(t[t.isfinite()].abs().max()) for t in scales if t.isfinite().any())])
    return torch.isclose(found, wanted, rtol=0.0, atol=scale * torch.finfo(wanted.dtype).eps ** 0.6, equal_nan=True)
