"""What a Pyro model says of posterior draws: log-likelihoods, deterministic sites, prior and predictive draws.

Where ``pyro.infer.Predictive(parallel=True)`` asks that a model be right under one more plate, and answers wrongly or
fails where it is not (``X @ w`` for a vector w), these run it by vmap, which is exact for every model.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from ebmppl.interop.pyro_sites import PyroModel, Sites, Values, forked_rng, log_prob
from ebmppl.interop.vmappable_noise import VmappableNoise

Groups = dict[str, Values]  # ArviZ's group -> site -> (draws, *site)
PointFn = Callable[[Values], Groups]

_NUMBERS = 1 << 22  # values of sites that one batched run of the model may hold


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

    return _run(of_point, draws, _chunk(sites), seed, "draws")


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
    """Run the model with data drawn anew, and give the values of some sites by group."""

    def of_point(point: Values) -> Groups:
        nodes = model.trace(point, observe=False).nodes
        return {group: {name: nodes[name]["value"] for name in names} for group, names in wanted.items()}

    return _run(of_point, draws, _chunk(sites), seed, stream)


def _chunk(sites: Sites) -> int:
    return max(1, _NUMBERS // max(1, sites.numbers))


def _run(of_point: PointFn, draws: Values, size: int, seed: int, stream: str) -> Groups:
    """A function of one draw on all draws: by vmap, else (its own control flow, some samplers) draw by draw."""
    try:
        with forked_rng(seed, stream):
            return _vmapped(of_point, draws, size)
    except (RuntimeError, UserWarning):
        with forked_rng(seed, stream):
            return _one_by_one(of_point, draws)


def _vmapped(of_point: PointFn, draws: Values, size: int) -> Groups:
    with warnings.catch_warnings(), VmappableNoise():
        warnings.filterwarnings("ignore", message="There is a performance drop", category=UserWarning)
        # torch warns where an output has no room for the batch
        warnings.filterwarnings("error", message="An output with one or more elements was resized")
        return _chunks(torch.func.vmap(of_point, randomness="different"), draws, size)


def _chunks(batched: PointFn, draws: Values, size: int) -> Groups:
    rows = len(next(iter(draws.values())))
    parts = [batched({k: v[i : i + size] for k, v in draws.items()}) for i in range(0, rows, size)]
    return _join(parts, torch.cat)


def _one_by_one(of_point: PointFn, draws: Values) -> Groups:
    rows = len(next(iter(draws.values())))
    return _join([of_point({k: v[i] for k, v in draws.items()}) for i in range(rows)], torch.stack)


def _join(parts: list[Groups], how: Callable[[list[Tensor]], Tensor]) -> Groups:
    return {g: {n: how([part[g][n].cpu() for part in parts]) for n in names} for g, names in parts[0].items()}
