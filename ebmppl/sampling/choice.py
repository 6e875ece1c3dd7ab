"""Which back-end a run takes, by counts alone, and why."""

from __future__ import annotations

import logging
import warnings
from typing import NamedTuple

import torch

from ebmppl.arguments import require
from ebmppl.energies.base import dtype_and_device
from ebmppl.errors import SamplingWarning
from ebmppl.kernels.base import Kernel
from ebmppl.sampling import hashed, operators_in_c
from ebmppl.sampling.compiled_ticks import Compiled, Job
from ebmppl.sampling.engines import Refused
from ebmppl.sampling.inductor_import import import_inductor
from ebmppl.sampling.noise import is_hashed
from ebmppl.sampling.parts import Parts, compiled_ticks
from ebmppl.sampling.scopes import without_collections

logger = logging.getLogger(__name__)

BACKENDS = ("auto", "eager", "inductor", "cudagraph")
LEAST_TICKS = 5000  # of a run that is worth some seconds of the compiler, here and in the disk cache for the next one
LEAST_CALLS = 1 << 20  # operations of its eager ticks that the compiled ones would save


class Choice(NamedTuple):
    """A back-end, and why it is that one."""

    backend: str
    reason: str


def require_backend(backend: str) -> None:
    """Raise ``ValueError`` for a back-end that isn't there."""
    require(backend in BACKENDS, f"a backend of {', '.join(map(repr, BACKENDS))}", repr(backend))
    if backend == "cudagraph":
        require(torch.cuda.is_available(), "a CUDA device for the backend 'cudagraph'", "none")


def begin_ahead(backend: str, kernel: Kernel, draws: int) -> None:
    """Have what compiled ticks will need compiled beside what comes before them, where there will be such.

    Args:
        backend: asked for.
        kernel: the kernel.
        draws: that each chain will make.
    """
    planned = draws * kernel.ticks_per_draw
    dtype, device = dtype_and_device(kernel.target)
    if device.type != "cpu" or not (backend == "inductor" or (backend == "auto" and planned >= LEAST_TICKS)):
        return
    operators_in_c.compile_ahead(kernel.operators)
    if dtype == torch.float32 and any(is_hashed(spec, device) for spec in kernel.noise().values()):
        hashed.compile_ahead()


def choose_backend(
    wanted: Choice,
    job: Job,
    *,
    draws: int,
    ticks: int,
    record: bool = True,
) -> tuple[Choice, Compiled | Parts | None]:
    """Decide, and compile where that is the decision.

    Args:
        wanted: the back-end asked for, or the one decided for before.
        job: what is to be ticked.
        draws: that each chain will make.
        ticks: most ticks at a time.
        record: keep what compiled ticks give.

    Raises:
        ValueError: for CUDA graphs of chains on another device.

    Warns:
        SamplingWarning: when what was asked for is not possible; ticks are eager then.
    """
    kernel, noise, device = job.kernel, job.noise, job.noise.device.type
    require(wanted.backend != "cudagraph" or device == "cuda", "chains on a CUDA device for 'cudagraph'", device)
    backend, planned = wanted.backend, draws * kernel.ticks_per_draw
    counts = f"{noise.chains} chains of {kernel.target.event_shape.numel()} numbers, about {planned} ticks"
    if backend == "auto":
        if planned < LEAST_TICKS:
            return Choice("eager", f"{counts}, fewer than {LEAST_TICKS}"), None
        backend = "cudagraph" if device == "cuda" else "inductor"
    least = LEAST_CALLS // planned if wanted.backend == "auto" else 0
    try:
        with without_collections():
            import_inductor()
            capture = backend == "cudagraph"
            compiled = compiled_ticks(job, ticks=ticks, capture=capture, least_nodes=least, record=record)
    except Refused as refusal:
        choice = Choice("eager", f"{refusal} ({counts})")
        if wanted.backend != "auto" or refusal.worth_a_warning:
            warnings.warn(f"ticks run eagerly, slower: {refusal}", SamplingWarning, stacklevel=6)
        logger.info("backend %s: %s", *choice)
        return choice, None
    choice = Choice(backend, f"{counts}, a graph of {compiled.engine.nodes} nodes, {compiled.threads} threads")
    logger.info("backend %s: %s", *choice)
    return choice, compiled
