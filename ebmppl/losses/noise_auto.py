"""Noise that is one of Pyro's automatic guides, as trained by ``SVI``."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoContinuous, AutoGuide, AutoNormal
from torch import Tensor
from torch.distributions import biject_to

from ebmppl.energies.base import Energy
from ebmppl.energies.supports import is_discrete
from ebmppl.losses.noise_base import Noise, own_stream


class AutoNoise(Noise):
    r"""An ``AutoNormal`` or ``AutoContinuous`` guide over the energy's sites; its parameters are held.

    Such a guide draws auxiliary latents z and gives :math:`x = T(z)`, so :math:`\log p(x) = \log q(z) - \log|dx/dz|` at
    :math:`z = T^{-1}(x)`.
    """

    def __init__(self, guide: AutoGuide, energy: Energy) -> None:
        if not isinstance(guide, (AutoNormal, AutoContinuous)):
            raise ValueError(
                f"expected a guide of known density, AutoNormal or an AutoContinuous, got {type(guide).__name__}"
            )
        if guide.prototype_trace is None:
            raise ValueError(
                "expected a guide that knows its sites, got one that was not called yet: guide(...) sets it up"
            )
        self.guide, self.energy = guide, (energy,)  # in a tuple: no module of ours
        self.nodes: dict[str, Any] = dict(guide.prototype_trace.iter_stochastic_nodes())
        shapes = {name: tuple(node["value"].shape) for name, node in self.nodes.items()}
        wanted = {name: tuple(shape) for name, shape in energy.sites.items()}
        if shapes != wanted:
            raise ValueError(f"expected a guide over the sites {wanted}, got one over {shapes}")
        discrete = sorted(name for name in energy.sites if is_discrete(energy.site_support(name)))
        if discrete:
            raise ValueError(f"expected noise over {energy.support}, got a continuous guide of the sites {discrete}")
        self._depth = max(len(node["fn"].batch_shape) for node in self.nodes.values())
        self.dtype = self.draw(1, 0).dtype

    @torch.no_grad()
    def draw(self, n: int, seed: int) -> Tensor:
        """See ``Noise``."""
        (energy,) = self.energy
        with own_stream(seed):
            nodes = self._run(n, {})
        return energy.pack({name: nodes[name]["value"].reshape(n, *energy.sites[name]) for name in self.nodes})

    @torch.no_grad()
    def log_prob(self, x: Tensor) -> Tensor:
        """See ``Noise``."""
        (energy,), n, values = self.energy, len(x), {}
        outside = torch.zeros(n, dtype=torch.bool, device=x.device)
        for name, value in energy.unpack(x.to(self.dtype)).items():
            fn = self.nodes[name]["fn"]
            outside |= ~fn.support.check(value).reshape(n, -1).all(1)
            z = biject_to(fn.support).inv(value)
            values[name] = z.reshape(n, *[1] * (self._depth - len(fn.batch_shape)), *z.shape[1:])
        if isinstance(self.guide, AutoContinuous):
            flat = torch.cat([values[name].reshape(n, -1) for name in self.nodes], 1)
            latents = {f"_{self.guide._pyro_name}_latent": flat.reshape(n, *[1] * self._depth, -1)}
        else:
            latents = {f"{name}_unconstrained": value for name, value in values.items()}
        nodes = self._run(n, latents)
        parts = [nodes[name]["fn"].log_prob(z) for name, z in latents.items()]
        parts += [nodes[name]["fn"].log_density.expand(nodes[name]["fn"].batch_shape) for name in self.nodes]
        found = torch.stack([part.reshape(n, -1).sum(1) for part in parts]).sum(0)
        return found.masked_fill(outside | found.isnan(), -torch.inf)  # not a number at the edge of a support

    def _run(self, n: int, latents: dict[str, Tensor]) -> dict[str, dict[str, Any]]:
        guide = poutine.condition(self.guide, data=latents) if latents else self.guide
        with pyro.validation_enabled(is_validate=False), poutine.block(), poutine.trace() as tracer:
            with pyro.plate("_points_of_noise", n, dim=-1 - self._depth):
                guide()
        return dict(tracer.get_trace().nodes)
