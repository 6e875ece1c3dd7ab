"""What a Pyro model says of posterior draws: log-likelihoods, deterministic sites, prior and predictive draws.

A model is run for many draws at once: by vmap, which is exact for any model, or, where torch can't vmap a sampler,
under a plate of draws as ``pyro.infer.Predictive(parallel=True)`` does, once that was found to give the same; else
draw by draw.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple

import pyro
import torch
from pyro import poutine
from torch import Tensor

from ebmppl.interop.pyro_sites import (
    PyroModel, Sites, Values, forked_rng, is_data, log_prob, sample_nodes, unmasked_log_prob,
)

Groups = dict[str, Values]  # ArviZ's group -> site -> (draws, *site)
PointFn = Callable[[Values], Groups]

_NUMBERS = 1 << 22  # values of sites that one batched run of the model may hold
_PROBES = 3  # draws on which a model under a plate of draws is compared with itself run draw by draw


def pointwise(model: PyroModel, sites: Sites, draws: Values, seed: int, *, log_likelihood: bool) -> Groups:
    """Groups "posterior" (deterministic sites) and "log_likelihood" (in nats, by observed site, ``(draws, *batch)``).

    The terms of the log-likelihood are those of the energy: masks and scales of ``poutine`` count. Where data have
    event dimensions (a multivariate normal), a term is that of a whole event.

    Args:
        model: the model.
        sites: of ``inspect_sites``.
        draws: posterior draws of the continuous latents, ``(draws, *site)``.
        seed: of the run.
        log_likelihood: compute the log-likelihood too.
    """

    def of_point(point: Values) -> Groups:
        nodes = model.trace(point).nodes
        groups = {"posterior": {name: nodes[name]["value"] for name in sites.deterministic}}
        if log_likelihood:
            groups["log_likelihood"] = {name: log_prob(nodes[name]) for name in sites.observed}
        return groups

    with forked_rng(seed, "draws"):
        return _run(of_point, draws, _chunk(sites), "error")


def posterior_predictive(model: PyroModel, sites: Sites, draws: Values, seed: int) -> Groups:
    """Group "posterior_predictive": for every posterior draw a replicate of the data, ``(draws, *site)``.

    Discrete latents are drawn anew given the continuous ones.

    Raises:
        NotImplementedError: when a distribution can't be sampled.
    """
    return _sample(model, sites, draws, {"posterior_predictive": sites.observed}, seed, "posterior_predictive")


def prior_predictive(model: PyroModel, sites: Sites, draws: int, seed: int) -> Groups:
    """Groups "prior" (latents and deterministic sites) and "prior_predictive" (data), ``(draws, *site)`` each.

    Raises:
        NotImplementedError: when a prior can't be sampled.
    """
    wanted = {
        "prior": [*model.point, *sites.discrete, *sites.deterministic],
        "prior_predictive": sites.observed,
    }
    rows = {"": torch.zeros(draws)}  # no site: only says how many
    return _sample(model, sites, rows, wanted, seed, "prior")


def _sample(
    model: PyroModel, sites: Sites, draws: Values, wanted: dict[str, list[str]], seed: int, stream: str
) -> Groups:
    """Run the model with data drawn anew: by vmap, else under a plate of draws, else draw by draw."""

    def of_point(point: Values) -> Groups:
        nodes = model.trace(point, observe=False).nodes
        return {group: {name: nodes[name]["value"] for name in names} for group, names in wanted.items()}

    size = _chunk(sites)
    with forked_rng(seed, stream):
        try:
            return _vmapped(of_point, draws, size, "different")
        except (RuntimeError, UserWarning):
            plated = _Plated.of(model, draws)  # some of torch's samplers can't be vmapped
        with forked_rng(seed, stream):
            if plated is not None:
                return _chunks(lambda part: plated.sample(model, part, wanted), draws, size)
            return _one_by_one(of_point, draws)


def _chunk(sites: Sites) -> int:
    return max(1, _NUMBERS // max(1, sites.numbers))


def _run(of_point: PointFn, draws: Values, size: int, randomness: str) -> Groups:
    """A function of one draw on all draws, batched where the model can be."""
    try:
        return _vmapped(of_point, draws, size, randomness)
    except (RuntimeError, UserWarning):
        return _one_by_one(of_point, draws)


def _vmapped(of_point: PointFn, draws: Values, size: int, randomness: str) -> Groups:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop", category=UserWarning)
        # torch warns, and then writes past the batch, where an in-place operation has no batching rule
        warnings.filterwarnings("error", message="An output with one or more elements was resized")
        return _chunks(torch.func.vmap(of_point, randomness=randomness), draws, size)


def _chunks(batched: PointFn, draws: Values, size: int) -> Groups:
    rows = len(next(iter(draws.values())))
    parts = [batched({k: v[i : i + size] for k, v in draws.items()}) for i in range(0, rows, size)]
    return _join(parts, torch.cat)


def _one_by_one(of_point: PointFn, draws: Values) -> Groups:
    rows = len(next(iter(draws.values())))
    return _join([of_point({k: v[i] for k, v in draws.items()}) for i in range(rows)], torch.stack)


def _join(parts: list[Groups], how: Callable[[list[Tensor]], Tensor]) -> Groups:
    return {g: {n: how([part[g][n].cpu() for part in parts]) for n in names} for g, names in parts[0].items()}


class _Plated(NamedTuple):
    """How to run a model for many draws at once under a plate of draws, as ``pyro.infer.Predictive(parallel=True)``."""

    nesting: int  # plates of the model itself
    event_dims: dict[str, int]
    shapes: dict[str, torch.Size]

    @classmethod
    def of(cls, model: PyroModel, draws: Values) -> _Plated | None:
        """None unless the model gives the same log-probabilities under the plate as draw by draw.

        A model without plates around its batch dimensions broadcasts wrongly there, often without an error.
        """
        rows = min(_PROBES, len(next(iter(draws.values()))))
        traces = [model.trace({k: v[i] for k, v in draws.items()}, observe=False) for i in range(rows)]
        nodes = sample_nodes(traces[0])
        dims = [f.dim for node in nodes.values() for f in node["cond_indep_stack"] if f.vectorized]
        plated = cls(
            nesting=-min(dims, default=0),
            event_dims={name: node["fn"].event_dim for name, node in nodes.items()},
            shapes={name: node["value"].shape for name, node in nodes.items()},
        )
        values = {n: torch.stack([t.nodes[n]["value"] for t in traces]) for n in nodes}
        random = [n for n in nodes if is_data(nodes[n])]
        terms = {n: torch.stack([unmasked_log_prob(t.nodes[n]).sum() for t in traces]) for n in random}
        try:
            run = plated._trace(model, {n: values[n] for n in terms}).nodes
            same = all(
                _close(unmasked_log_prob(run[n]).reshape(rows, -1).sum(-1), terms[n])
                if n in terms
                else _close(plated._rows(n, run[n]["value"], rows), values[n])
                for n in nodes
            )
        except (RuntimeError, ValueError, IndexError):
            return None
        return plated if same else None

    def _trace(self, model: PyroModel, values: Values) -> poutine.Trace:
        rows = len(next(iter(values.values())))
        fixed = {name: self._aligned(name, value) for name, value in values.items() if name in self.shapes}
        plate = pyro.plate("_draws", rows, dim=-self.nesting - 1)
        return model._replace(model=plate(model.model)).trace(fixed, observe=False)

    def _aligned(self, name: str, value: Tensor) -> Tensor:
        """``(draws, *site)`` with axes of length 1 put in, so that draws lie left of all plates."""
        shape = value.shape[1:]
        missing = self.nesting - (len(shape) - self.event_dims[name])
        return value.reshape(len(value), *[1] * missing, *shape)

    def sample(self, model: PyroModel, draws: Values, wanted: dict[str, list[str]]) -> Groups:
        """One replicate for each draw, ``(draws, *site)``."""
        nodes = self._trace(model, draws).nodes
        rows = len(next(iter(draws.values())))
        return {g: {n: self._rows(n, nodes[n]["value"], rows) for n in names} for g, names in wanted.items()}

    def _rows(self, name: str, value: Tensor, rows: int) -> Tensor:
        shape = self.shapes[name]
        # a deterministic site need not depend on the draw
        value = value if value.numel() == rows * shape.numel() else value.expand(rows, *shape)
        return value.reshape(rows, *shape)


def _close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a.to(b.dtype), b, rtol=1e-4, atol=1e-4, equal_nan=True)
