"""What is asked of an enumeration: log Z, marginals, moments, expectations, draws, a chunk at a time."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ebmppl.errors import EnergyError
from ebmppl.kernels.discrete import draw_level
from ebmppl.partition.split import Pairs, Split, Whole
from ebmppl.partition.states import States
from ebmppl.partition.streaming import NO_MASS, average, leaves, log_sum
from ebmppl.partition.transfer import pick

_NUMBERS = 1 << 21  # of a chunk: 16 MiB in float64, and some times that in what an energy makes of it


class Enumeration:
    """Sums over all values of the enumerated coordinates of a split.

    Args:
        split: what is enumerated, and the law of the rest.
        chunk: values at a time; by default as many as make 2^21 numbers.
    """

    def __init__(self, split: Split, chunk: int | None = None) -> None:
        self.split, self.name = split, split.name
        self.rows = chunk or max(1, _NUMBERS // split.width)

    @property
    def states(self) -> int:
        """Values that are enumerated."""
        return self.split.levels.states

    @property
    def operations(self) -> float:
        """Numbers computed, about."""
        return float(self.states) * self.split.width

    def _states(self) -> States:
        return States(self.split.levels, self.rows, self.split.tail, self.split.device)

    def log_z(self) -> Tensor:
        """Log Z in nats, float64, differentiable in what the energy is computed from."""
        states, split = self._states(), self.split
        if isinstance(split, Pairs):
            outside = (split.unary, split.dense)
            local = (split.unary.detach().requires_grad_(), split.dense.detach().requires_grad_())
            total = log_sum(
                lambda c: torch.logsumexp(split.log_weights(states, c, local), 0), states.chunks, local, outside
            )
        else:
            part = lambda c: torch.logsumexp(split.log_weights(states, c), 0)
            total = log_sum(part, states.chunks, leaves(part(0)) if torch.is_grad_enabled() else ())
        return require_mass(total)

    @torch.no_grad()
    def marginals(self) -> Tensor:
        """Probabilities ``(coordinates, levels)``."""
        states = self._states()

        def accumulate(c: int, weights: Tensor) -> tuple[Tensor, ...]:
            probabilities = self.split.given(self._values(states, c)).probabilities
            if probabilities is None:
                raise ValueError("expected discrete coordinates for marginals over levels, got real ones: take moments")
            return ((weights @ probabilities.flatten(1)).reshape(probabilities.shape[1:]),)

        return self._average(states, accumulate)[0]

    @torch.no_grad()
    def moments(self, *, hot: bool) -> tuple[Tensor, Tensor]:
        """Mean ``(n,)`` and second moments ``(n, n)`` of flat x, or of one-hot vectors of its levels.

        Args:
            hot: of one-hot vectors.
        """
        states = self._states()

        def accumulate(c: int, weights: Tensor) -> tuple[Tensor, ...]:
            given = self.split.given(self._values(states, c))
            if hot:
                mean = given.probabilities.flatten(1)  # type: ignore[union-attr]
                return weights @ mean, mean.mT @ (weights[:, None] * mean), mean.new_zeros(mean.shape[1])
            mean = given.mean
            return weights @ mean, mean.mT @ (weights[:, None] * mean), weights @ given.variance.expand_as(mean)

        mean, second, variance = self._average(states, accumulate)
        if hot:
            levels = self.split.given(self._values(states, 0)[:1]).probabilities.shape[-1]  # type: ignore[union-attr]
            site = torch.arange(len(mean), device=mean.device) // levels
            return mean, torch.where(site == site[:, None], torch.diag(mean), second)
        return mean, second + torch.diag(variance)

    @torch.no_grad()
    def expectation(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Of a function of flat points ``(rows, coordinates)``, all of which are enumerated."""
        states = self._states()

        def accumulate(c: int, weights: Tensor) -> tuple[Tensor, ...]:
            value = function(self._values(states, c)).double()
            if value.shape[:1] != weights.shape:
                raise ValueError(f"expected values of shape ({len(weights)}, ...), got {tuple(value.shape)}")
            flat = value.reshape(len(value), -1)
            # what has no probability has no say, be it infinite
            flat = torch.where(weights[:, None] > 0, flat, torch.zeros_like(flat))
            return ((weights @ flat).reshape(value.shape[1:]),)

        return self._average(states, accumulate)[0]

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Independent flat points ``(n, coordinates)``: the chunk, the value within it, the rest given the value."""
        states = self._states()
        logs = torch.stack([torch.logsumexp(self.split.log_weights(states, c), 0) for c in range(states.chunks)])
        require_mass(torch.logsumexp(logs, 0))
        u = torch.rand(n, generator=generator, dtype=torch.float64, device=logs.device)
        counts = torch.bincount(pick(torch.softmax(logs, 0), u), minlength=states.chunks).tolist()
        draws = []
        for c, number in enumerate(counts):
            if number:
                u = torch.rand(number, generator=generator, dtype=torch.float64, device=logs.device)
                at = pick(torch.softmax(self.split.log_weights(states, c), 0), u)
                draws.append(self._rest(self._values(states, c)[at], generator))
        return torch.cat(draws)[torch.randperm(n, generator=generator, device=logs.device)]

    def _rest(self, z: Tensor, generator: torch.Generator) -> Tensor:
        if isinstance(self.split, Whole):
            return z
        pieces = []
        for rows in z.split(max(1, _NUMBERS // self.split.width)):
            given = self.split.given(rows)
            if given.probabilities is None:
                shape, scale = given.mean.shape, given.variance.sqrt()
                noise = torch.randn(shape, generator=generator, dtype=torch.float64, device=z.device)
                pieces.append((given.mean + scale * noise).to(z.dtype))
                continue
            shape = given.probabilities.shape[:2]
            u = torch.rand(shape, generator=generator, dtype=torch.float64, device=z.device)
            at = draw_level(given.probabilities.log(), u)
            pieces.append(self.split.points.table.to(z).expand(len(rows), -1, -1).gather(2, at[..., None])[..., 0])
        return torch.cat(pieces)

    def _values(self, states: States, chunk: int) -> Tensor:
        return states.values(states.digits(chunk), self.split.dtype)

    def _average(self, states: States, accumulate: Callable[[int, Tensor], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        return average(lambda c: self.split.log_weights(states, c), states.chunks, accumulate)


def require_mass(log_z: Tensor) -> Tensor:
    """The log partition function itself.

    Raises:
        EnergyError: where no point has a finite energy.
    """
    if math.isinf(float(log_z.detach())):
        raise EnergyError(NO_MASS)
    return log_z
