"""Noise that is a Pyro program."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from ebmppl.energies.base import Energy
from ebmppl.energies.supports import is_discrete
from ebmppl.losses.noise_base import Noise, own_stream, support_of


class ProgramNoise(Noise):
    """A Pyro program whose sample sites are the energy's; its parameters are held.

    A program of one point, without arguments, is run for many at once under an outer plate where that gives the same
    log-densities as running it for one after another, and else for one after another. A program with an argument, as
    Pyro's guides have, makes as many points as its argument has rows; it sees zeros in place of the data, since noise
    must not depend on them.
    """

    def __init__(self, program: Callable[..., Any], energy: Energy) -> None:
        self.program, self.energy = program, (energy,)  # in a tuple: no module of ours
        self.takes_rows = _needs_argument(program)
        self._template = torch.zeros(energy.event_shape)
        self._many = self.takes_rows
        with torch.no_grad(), own_stream(0):
            one = self._run(1, {}) if self.takes_rows else self._run(None, {})
            self._require_sites(one)
            self._depth = max((len(node["fn"].batch_shape) for node in one.values()), default=0)
            self.dtype = self._packed(one, 1).dtype
            if not self.takes_rows:
                self._batches = {name: node["fn"].batch_shape for name, node in one.items()}
                self._many = self._rows_agree()

    @torch.no_grad()
    def draw(self, n: int, seed: int) -> Tensor:
        """See ``Noise``."""
        with own_stream(seed):
            if self._many:
                return self._packed(self._run(n, {}), n)
            return torch.cat([self._packed(self._run(None, {}), 1) for _ in range(n)])

    @torch.no_grad()
    def log_prob(self, x: Tensor) -> Tensor:
        """See ``Noise``."""
        return self._at(x.to(self.dtype)) if self._many else self._one_by_one(x.to(self.dtype))

    def _at(self, x: Tensor) -> Tensor:
        (energy,), n = self.energy, len(x)
        values = energy.unpack(x)
        if not self.takes_rows:
            values = {
                name: value.reshape(n, *[1] * (self._depth - len(self._batches[name])), *value.shape[1:])
                for name, value in values.items()
            }
        return self._sum(self._run(n, values), n)

    def _one_by_one(self, x: Tensor) -> Tensor:
        (energy,) = self.energy
        rows = energy.unpack(x)
        found = [self._sum(self._run(None, {k: v[i] for k, v in rows.items()}), 1) for i in range(len(x))]
        return torch.cat(found)

    def _run(self, n: int | None, values: dict[str, Tensor]) -> dict[str, dict[str, Any]]:
        """The sample sites of a run for n points, or for one without an axis of points; no validation, no parameters."""
        program = poutine.condition(self.program, data=values) if values else self.program
        args = (self._template.expand(n or 1, *self._template.shape),) if self.takes_rows else ()
        with pyro.validation_enabled(is_validate=False), poutine.block(), poutine.trace() as tracer:
            if n is None or self.takes_rows:
                program(*args)
            else:
                with pyro.plate("_points_of_noise", n, dim=-1 - self._depth):
                    program()
        nodes = tracer.get_trace().nodes.items()
        return {
            name: node
            for name, node in nodes
            if node["type"] == "sample"
            and not isinstance(node["fn"], _Subsample)
            and not node["infer"].get("_deterministic")
        }

    def _require_sites(self, nodes: dict[str, dict[str, Any]]) -> None:
        (energy,) = self.energy
        observed = sorted(name for name, node in nodes.items() if node["is_observed"])
        if set(nodes) != set(energy.sites) or observed:
            given = f", of them observed: {observed}" if observed else ""
            raise ValueError(
                f"expected a Pyro program that samples the energy's sites {sorted(energy.sites)}, got the sites "
                f"{sorted(nodes)}{given}"
            )
        lead = (1,) if self.takes_rows else ()
        for name, node in nodes.items():
            wanted, got = (*lead, *energy.sites[name]), tuple(node["value"].shape)
            if got != wanted:
                rows = " for one row" if self.takes_rows else ""
                raise ValueError(f"expected noise of shape {wanted} at site {name!r}{rows}, got {got}")
            support = support_of(node["fn"])
            if support is not None and is_discrete(support) != is_discrete(energy.site_support(name)):
                raise ValueError(f"expected noise over {energy.site_support(name)} at site {name!r}, got {support}")

    def _packed(self, nodes: dict[str, dict[str, Any]], n: int) -> Tensor:
        (energy,) = self.energy
        return energy.pack({name: node["value"].reshape(n, *energy.sites[name]) for name, node in nodes.items()})

    def _sum(self, nodes: dict[str, dict[str, Any]], n: int) -> Tensor:
        parts = [_supported(node["fn"], node["value"]).reshape(n, -1).sum(1) for node in nodes.values()]
        return torch.stack(parts).sum(0)

    def _rows_agree(self) -> bool:
        """Whether a run under an outer plate is one of independent points."""
        try:
            x = self._packed(self._run(3, {}), 3)
            return torch.allclose(self._at(x), self._one_by_one(x), rtol=1e-4, atol=1e-4)
        except Exception:  # whatever a program of one point says to several; it ran for one
            return False


def _supported(fn: Any, value: Tensor) -> Tensor:
    """Log-densities with -inf outside the support; validation is off, so a distribution wouldn't say."""
    support = support_of(fn)
    log_prob: Tensor = fn.log_prob(value)
    return log_prob if support is None else log_prob.masked_fill(~support.check(value), -torch.inf)


def _needs_argument(program: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(program).parameters.values()
    except (TypeError, ValueError):
        return False
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [p for p in parameters if p.kind in kinds and p.default is inspect.Parameter.empty]
    if len(needed) > 1:
        raise ValueError(f"expected a Pyro program of no or one argument, got {[p.name for p in needed]}")
    return len(needed) == 1
