"""A running average of weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ebmppl.arguments import require


class EMA:
    r"""Exponential moving average of a module's trained parameters: :math:`a \leftarrow d\,a + (1 - d)\,\theta`.

    It begins at the parameters as they are, and averages over about 1 / (1 - d) updates.

    References:
        Polyak and Juditsky 1992, "Acceleration of stochastic approximation by averaging"; for energies: Du and Mordatch
        2019, "Implicit generation and modeling with energy-based models".

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
        self.decay = decay
        self._parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.average = {name: p.detach().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """After an update of the parameters."""
        averages = list(self.average.values())
        torch._foreach_mul_(averages, self.decay)
        torch._foreach_add_(averages, [p.detach() for p in self._parameters.values()], alpha=1 - self.decay)

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

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by parameter."""
        return dict(self.average)

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take saved averages."""
        for name, value in self.average.items():
            value.copy_(state[name])

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(values[name])
