"""Contrastive divergence, and its persistent form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ebmppl.energies.base import Energy
from ebmppl.kernels.base import require, whole
from ebmppl.losses.base import BoundLoss, Loss
from ebmppl.losses.negative import KernelFactory, ModelChains
from ebmppl.sampling.initial import Start, Uniform, starting_points


class CD(Loss):
    r"""Contrastive divergence: :math:`\nabla E(x^+) - \nabla E(x^-)`, where chains of k draws begin at the data.

    The value is the energy gap :math:`\overline{E(x^+)} - \overline{E(x^-)}` in nats, not a bound on anything. For
    finite k the gradient is biased (Carreira-Perpinan and Hinton 2005).

    References:
        Hinton 2002, "Training products of experts by minimizing contrastive divergence".

    Args:
        k: draws of every chain, at least 1.
        kernel: makes the kernel of an energy, as ``Gibbs`` or ``partial(Langevin, step_size=0.01)``.
        seed: of the chains; from the operating system when None.

    Raises:
        ValueError: for k < 1, or a kernel that isn't for the energy.
    """

    def __init__(self, k: int = 1, *, kernel: KernelFactory, seed: int | None = None) -> None:
        super().__init__()
        self.k, self.kernel, self.seed = whole("k", k, 1), kernel, seed

    def bind(self, energy: Energy, guide: Any) -> BoundLoss:
        """The loss of one energy."""
        return BoundCD(energy, guide, self)


class BoundCD(BoundLoss):
    """See ``CD``."""

    def __init__(self, energy: Energy, guide: Any, loss: CD) -> None:
        super().__init__(energy, guide)
        self.k = loss.k
        self.chains = ModelChains(energy, loss.kernel, loss.seed)

    def terms(self, x: Tensor) -> dict[str, Tensor]:
        """Mean energies of the data, and minus those of the chains' ends."""
        chains = self.chains
        end = chains.outward(chains.move(chains.inward(x), self.k, keep=self.training))
        return gap(self.energy, x, end)


class PCD(Loss):
    r"""Persistent contrastive divergence (stochastic maximum likelihood): chains go on from where they were.

    The chains are buffers of the bound loss. As parameters change slowly the chains stay near the model's distribution,
    and the gradient estimates that of the log-likelihood.

    References:
        Younes 1989; Tieleman 2008, "Training restricted Boltzmann machines using approximations to the likelihood
        gradient"; re-initialisation: Du and Mordatch 2019, "Implicit generation and modeling with energy-based models".

    Args:
        k: draws of every chain for each step, at least 1.
        kernel: makes the kernel of an energy.
        num_chains: how many chains.
        start: where chains begin (as ``initial_params`` of ``MCMC``), and begin again: ``Uniform``, ``FromData``, ...
        reinit: probability in [0, 1) with which a chain begins again at each step.
        buffer: so many points are kept, of which ``num_chains`` are moved at each step (replay buffer); ``num_chains``
            when None.
        seed: of the chains; from the operating system when None.

    Raises:
        ValueError: for counts or a probability out of range, or a kernel that isn't for the energy.
    """

    def __init__(
        self,
        k: int = 1,
        *,
        kernel: KernelFactory,
        num_chains: int = 100,
        start: Start | None = None,
        reinit: float = 0.0,
        buffer: int | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.k, self.kernel, self.num_chains = whole("k", k, 1), kernel, whole("num_chains", num_chains, 1)
        self.size = self.num_chains if buffer is None else whole("buffer", buffer, self.num_chains)
        require(0 <= reinit < 1, "reinit in [0, 1)", reinit)
        self.start: Start = start or Uniform()
        self.reinit, self.seed = reinit, seed

    def bind(self, energy: Energy, guide: Any) -> BoundLoss:
        """The loss of one energy."""
        return BoundPCD(energy, guide, self)


class BoundPCD(BoundLoss):
    """See ``PCD``.

    Attributes:
        points: the persistent chains ``(buffer, *event)`` in the kernel's coordinates.
        age: by chain, steps since it began ``(buffer,)``.
    """

    points: Tensor
    age: Tensor
    moves: Tensor

    def __init__(self, energy: Energy, guide: Any, loss: PCD) -> None:
        super().__init__(energy, guide)
        self.k, self.num_chains, self.start, self.reinit = loss.k, loss.num_chains, loss.start, loss.reinit
        self.chains = ModelChains(energy, loss.kernel, loss.seed)
        with torch.no_grad():
            begun = starting_points(self.chains.kernel.target, loss.start, loss.size, int(self.chains.seed)).points
        self.register_buffer("points", begun)
        self.register_buffer("age", torch.zeros(loss.size, dtype=torch.int64, device=begun.device))
        self.register_buffer("moves", torch.zeros((), dtype=torch.int64))  # that used a seed

    def terms(self, x: Tensor) -> dict[str, Tensor]:
        """Mean energies of the data, and minus those of the persistent chains after their draws."""
        which, z = self._chosen()
        end = self.chains.move(z, self.k, keep=self.training)
        if self.training:
            self.points.index_copy_(0, which, end)
            self.age.index_add_(0, which, torch.ones_like(which))
            self.moves += 1
        return gap(self.energy, x, self.chains.outward(end))

    def _chosen(self) -> tuple[Tensor, Tensor]:
        """Which chains move, and where they are or begin again."""
        generator = torch.Generator(self.points.device).manual_seed(
            int(self.chains.seed) ^ int(self.moves) * 0x9E3779B1 % 2**31
        )
        size, n = len(self.points), self.num_chains
        device = self.points.device
        which = (
            torch.arange(n, device=device)
            if size == n
            else torch.randperm(size, generator=generator, device=device)[:n]
        )
        z = self.points.index_select(0, which)
        if not self.reinit:
            return which, z
        again = torch.rand(n, generator=generator, device=device) < self.reinit
        if bool(again.any()):
            seed = int(torch.randint(2**31, (), generator=generator, device=device))
            with torch.no_grad():
                fresh = starting_points(self.chains.kernel.target, self.start, n, seed).points
            z = torch.where(again.view(-1, *[1] * (z.dim() - 1)), fresh.to(z.dtype), z)
            if self.training:
                self.age.index_fill_(0, which[again], 0)
        return which, z


def gap(energy: Energy, data: Tensor, model: Tensor) -> dict[str, Tensor]:
    """The terms of an energy gap; samples count as constants."""
    return {"data": energy(data).mean(), "model": -energy(model.detach()).mean()}
