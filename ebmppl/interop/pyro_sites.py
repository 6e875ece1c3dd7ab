"""A Pyro model that can be run at given values, and the kinds of its sites."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

Values = dict[str, Tensor]

_STREAMS = {"draws": 3, "prior": 4, "posterior_predictive": 5}  # 0 to 2 are those of sampling.noise


class PyroModel(NamedTuple):
    """A Pyro model with its arguments and one point at which it can be run.

    Attributes:
        model: the model, a callable.
        args: its arguments.
        kwargs: its keyword arguments.
        point: a value ``(*site)`` for every continuous latent.
    """

    model: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    point: Values

    def trace(self, values: Mapping[str, Tensor], *, observe: bool = True) -> poutine.Trace:
        """Run with some sites fixed; ``observe=False`` draws observed sites anew."""
        with torch.no_grad(), pyro.validation_enabled(is_validate=False), poutine.block(), poutine.trace() as tracer:
            with _At(values, observe=observe):
                self.model(*self.args, **self.kwargs)
        return tracer.get_trace()


class Sites(NamedTuple):
    """The sites of a model by kind, with one trace of it."""

    observed: list[str]
    deterministic: list[str]
    discrete: list[str]  # latents that the posterior draws do not hold
    factors: list[str]
    unnormalised: list[str]  # latents whose prior is masked out
    trace: poutine.Trace

    @property
    def observed_data(self) -> Values:
        """Data by site, in the shape of one replicate of them."""
        return {name: _replicate_of(self.trace.nodes[name])[1] for name in self.observed}

    @property
    def why_no_prior(self) -> str:
        """Why ancestral draws would not be draws of the prior; empty where they are."""
        if self.unnormalised:
            return f"improper prior: {', '.join(self.unnormalised)} masked out of the density"
        return f"the factors {', '.join(self.factors)} are no part of draws from the prior" if self.factors else ""

    @property
    def numbers(self) -> int:
        """Values of all sites of one run."""
        return sum(n["value"].numel() for _, n in self.trace.nodes.items() if isinstance(n.get("value"), Tensor))


class _At(Messenger):
    """Fix some sites and draw the others; observed sites keep their data, or are drawn in the shape of their data."""

    def __init__(self, values: Mapping[str, Tensor], *, observe: bool) -> None:
        super().__init__()
        self.values, self.observe = values, observe

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values:
            msg["value"], msg["is_observed"], msg["done"] = self.values[msg["name"]], True, True
        elif msg["is_observed"]:
            if not self.observe and is_data(msg):
                msg["fn"], _ = _replicate_of(msg)
                self._draw(msg)
        elif not isinstance(msg["fn"], _Subsample):
            self._draw(msg)

    @staticmethod
    def _draw(msg: Any) -> None:
        # Pyro itself would call rsample where there is one, of which torch.func.vmap can batch fewer
        msg["value"], msg["is_observed"], msg["done"] = msg["fn"].sample(), False, True


def sample_nodes(trace: poutine.Trace) -> dict[str, dict[str, Any]]:
    """The sample sites of a trace, without the index sets of plates."""
    nodes = {name: node for name, node in trace.nodes.items() if node["type"] == "sample"}
    return {name: node for name, node in nodes.items() if not isinstance(node["fn"], _Subsample)}


def is_data(site: Mapping[str, Any]) -> bool:
    """Whether a site has values of its own: it is neither deterministic nor a factor."""
    return not site["infer"].get("_deterministic") and not isinstance(site["fn"], dist.Unit)


def _replicate_of(site: Mapping[str, Any]) -> tuple[Any, Tensor]:
    """The distribution and the data of an observed site in one shape: data may be wider (no plate), or narrower."""
    fn, value = site["fn"], site["value"]
    batch = torch.broadcast_shapes(fn.batch_shape, value.shape[: value.dim() - fn.event_dim])
    return fn if batch == fn.batch_shape else fn.expand(batch), value.expand(batch + fn.event_shape)


def inspect_sites(model: PyroModel, seed: int) -> Sites:
    """Find out the kinds of a model's sites by one run at its point."""
    with forked_rng(seed, "draws"):
        trace = model.trace(model.point)
    sites = Sites([], [], [], [], [], trace)
    for name, node in sample_nodes(trace).items():
        if name in model.point:
            if node["mask"] is False:
                sites.unnormalised.append(name)
        elif not node["is_observed"]:
            sites.discrete.append(name)
        elif node["infer"].get("_deterministic"):
            sites.deterministic.append(name)
        else:
            (sites.observed if is_data(node) else sites.factors).append(name)
    return sites


@contextmanager
def forked_rng(seed: int, stream: str) -> Iterator[None]:
    """Torch's generators at a seed of their own; the user's are put back afterwards."""
    own = int(np.random.SeedSequence([seed, _STREAMS[stream]]).generate_state(1, np.uint32)[0])
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(own)
        yield


def log_prob(node: Mapping[str, Any]) -> Tensor:
    """Terms of a site in the model's log joint, in nats: masks and scales of ``poutine`` count."""
    return scale_and_mask(node["fn"].log_prob(node["value"]), node["scale"], node["mask"])
