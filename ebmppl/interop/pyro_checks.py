"""What a Pyro model must keep to be an energy: the same sites in every call, each with a support of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import InitMessenger, init_to_uniform
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from torch.distributions import biject_to

from ebmppl.energies.base import require_names

CALLS = 4  # with other values of the latent sites each


def check_model(model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> poutine.Trace:
    """Run a model some times and look at its sites.

    Returns:
        the trace of the first call.

    Raises:
        ValueError: where ``from_pyro`` says so.
    """
    first = poutine.trace(InitMessenger(_initial_value)(model)).get_trace(*args, **kwargs)
    _check_sites(first)
    for _ in range(CALLS - 1):
        _compare(first, poutine.trace(InitMessenger(_initial_value)(model)).get_trace(*args, **kwargs))
    return first


def _initial_value(site: dict[str, Any]) -> Tensor:
    """Any value of a site in its support; improper priors have no draws, discrete sites no uniform ones."""
    fn = site["fn"]
    if fn.support.is_discrete:
        return fn.sample()
    try:
        transform = biject_to(fn.support)
    except NotImplementedError:
        raise ValueError(
            f"expected supports with a bijection from the unconstrained space, got site {site['name']!r} with "
            f"{type(fn).__name__}, whose support {fn.support} has none in torch.distributions"
        ) from None
    try:
        return init_to_uniform(site)
    except NotImplementedError:
        return transform(torch.empty(transform.inverse_shape(fn.shape())).uniform_(-2, 2))


class SameSites(Messenger):
    """Within it a model runs once; sites that a branch adds, whose values would be drawn, or leaves out are refused.

    Raises:
        ValueError: for other sites than those of the trace.
    """

    def __init__(self, first: poutine.Trace) -> None:
        super().__init__()
        self._names = {name for name, node in first.nodes.items() if node["type"] == "sample"}

    def __enter__(self) -> Any:
        self._missing = set(self._names)
        return super().__enter__()

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] not in self._names:
            raise _other_sites(msg["name"], "no such site", "one")
        self._missing.discard(msg["name"])

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        if self._missing and raised[0] is None:
            raise _other_sites(min(self._missing), "one", "no such site")


def _other_sites(name: str, here: str, there: str) -> ValueError:
    return ValueError(
        f"expected a model with the same sites in every call, got at site {name!r}: {here}, then {there}; "
        "an energy has one shape: give the model its structure before the run, not by drawing it"
    )


def _compare(first: poutine.Trace, other: poutine.Trace) -> None:
    """Raise where a call has other sites than the first one."""
    kinds = [_kinds(trace) for trace in (first, other)]
    for name in sorted(kinds[0].keys() | kinds[1].keys()):
        here, there = (kind.get(name, "no such site") for kind in kinds)
        if here != there:
            raise _other_sites(name, here, there)
    for name, node in first.iter_stochastic_nodes():
        if isinstance(node["fn"], _Subsample) and not torch.equal(node["value"], other.nodes[name]["value"]):
            raise ValueError(
                f"expected a model without subsampling, got plate {name!r} with other rows in every call: every call "
                "would be another energy; give the plate the rows it is to have"
            )
        if isinstance(node["fn"], _Subsample) or node["fn"].support.is_discrete:
            continue
        bounds = [_at_zero(trace.nodes[name]["fn"]) for trace in (first, other)]
        if not torch.equal(*bounds):
            raise ValueError(
                f"expected supports that stay as they are, got site {name!r} with {type(node['fn']).__name__}, whose "
                "support depends on another site; draw it from a fixed support and transform it in the model"
            )


def _kinds(trace: poutine.Trace) -> dict[str, str]:
    """By site, what must not change."""
    kinds = {}
    for name, node in trace.nodes.items():
        if node["type"] == "sample" and not isinstance(node["fn"], _Subsample):
            what = "observed" if node["is_observed"] else "latent"
            kinds[name] = f"{what}, {type(node['fn']).__name__} of shape {tuple(node['fn'].shape())}"
    return kinds


def _at_zero(fn: Any) -> Tensor:
    """A point of the support that moves where its bounds move."""
    transform = biject_to(fn.support)
    point: Tensor = transform(torch.zeros(transform.inverse_shape(fn.shape())))
    return point


def plate_nesting(trace: poutine.Trace) -> int:
    """How many axes the model's plates take."""
    dims = [
        f.dim
        for _, node in trace.nodes.items()
        if node["type"] == "sample"
        for f in node["cond_indep_stack"]
        if f.vectorized
    ]
    return -min(dims) if dims else 0


def _check_sites(trace: poutine.Trace) -> None:
    latent = {}
    for name, node in trace.iter_stochastic_nodes():
        fn = node["fn"]
        if not isinstance(fn, _Subsample):
            latent[name] = fn
        elif fn.subsample_size is not None and fn.subsample_size < fn.size:
            raise ValueError(
                f"expected a model without subsampling, got plate {name!r} with {fn.subsample_size} of {fn.size} rows: "
                "every call would be another energy; give the plate no subsample_size"
            )
    require_names(latent)
    sequential = [n for n, node in trace.iter_stochastic_nodes() if node["infer"].get("enumerate") == "sequential"]
    if sequential:
        raise ValueError(f"expected sites to be enumerated in parallel, got sequential enumeration at {sequential}")
    for name, fn in latent.items():
        if fn.support.is_discrete and not fn.has_enumerate_support:
            raise ValueError(
                f"expected continuous latents or discrete ones that can be enumerated, got site {name!r} with "
                f"{type(fn).__name__}, whose values can't be listed; marginalise it by hand or observe it"
            )
    if all(fn.support.is_discrete for fn in latent.values()):
        raise ValueError(f"expected a Pyro model with continuous latent sites, got {list(latent) or 'none'}")
