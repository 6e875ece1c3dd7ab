"""A running average of weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ebmppl.arguments import require


class EMA:
    r"""Exponential moving average of a module's trained parameters, over about 1 / (1 - d) updates.

    .. math:: a_n = \frac{1 - d}{1 - d^n} \sum_{i=1}^n d^{n-i} \theta_i

    after n updates, and the parameters as they are before the first. The denominator leaves those out that training began
    with: 22 per cent of the average would be theirs after 1,500 updates with d = 0.999.

    References:
        Polyak and Juditsky 1992, "Acceleration of stochastic approximation by averaging"; the denominator: Kingma and Ba 2015,
        "Adam: a method for stochastic optimization", section 3; for energies: Du and Mordatch 2019, "Implicit generation and
        modeling with energy-based models".

    Args:
        module: whose parameters that require gradients are averaged.
        decay: d in [0, 1).

    Raises:
        ValueError: for another decay.

    Example:
        >>> module = nn.Linear(1, 1)
        >>> ema = EMA(module, decay=0.9)
        >>> with torch.no_grad():
        ...     _ = module.bias.add_(1.0)
        >>> ema.update()
        >>> with ema.applied():  # evaluate, sample, save
        ...     _ = module(torch.ones(1, 1))
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        require(0 <= decay < 1, "decay in [0, 1)", decay)
        self.decay, self.updates = decay, 0
        self._parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.average = {name: p.detach().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """After an update of the parameters."""
        self.updates += 1
        share = (1 - self.decay) / (1 - self.decay**self.updates)  # of the new ones: all at first, 1 - d later
        averages = list(self.average.values())
        torch._foreach_mul_(averages, 1 - share)
        torch._foreach_add_(averages, [p.detach() for p in self._parameters.values()], alpha=share)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The module with the averaged parameters, in place, and back."""
        own = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._put(self.average)
        try:
            yield
        finally:
            self._put(own)

    def put(self) -> None:
        """The averages become the module's own parameters, for good: after training."""
        self._put(self.average)

    def state_dict(self) -> dict[str, Any]:
        """The averages by parameter, and of how many updates they are."""
        return {"average": dict(self.average), "updates": self.updates}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take saved averages."""
        self.updates = state["updates"]
        for name, value in self.average.items():
            value.copy_(state["average"][name])

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(values[name])
