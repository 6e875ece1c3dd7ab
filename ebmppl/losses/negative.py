"""Model samples inside a loss: chains of an injected kernel that follow the parameters as they are trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ebmppl.energies.base import Energy
from ebmppl.energies.discrete import discrete, levels_of
from ebmppl.kernels.base import Kernel
from ebmppl.sampling.chains import Chains
from ebmppl.sampling.noise import fresh_seed

KernelFactory = Callable[[Energy], Kernel]


class ModelChains(nn.Module):
    """Chains of one kernel that a loss moves by some draws at a time, between updates of the energy's parameters.

    A pure function of (seed, ticks so far, parameters, points): what was saved goes on exactly. The energy's modules
    are in eval mode while chains move, and get their modes back.

    Args:
        energy: the energy that is trained.
        kernel: makes the kernel of an energy, as ``Gibbs`` or ``partial(Langevin, step_size=0.01)``.
        seed: from the operating system when None.
    """

    ticks: Tensor
    seed: Tensor

    def __init__(self, energy: Energy, kernel: KernelFactory, seed: int | None = None) -> None:
        super().__init__()
        made = kernel(energy)
        if not isinstance(made, Kernel):
            raise ValueError(
                f"expected kernel as a factory of kernels, such as eb.Gibbs, got one of {type(made).__name__}"
            )
        self.kernel = made
        self.register_buffer("ticks", torch.zeros((), dtype=torch.int64))
        self.register_buffer("seed", torch.tensor(fresh_seed() if seed is None else seed))
        self._chains: Chains | None = None
        self._dtype: torch.dtype | None = None
        self.infos: list[Any] = []  # of the last move, one for each tick

    def inward(self, x: Tensor) -> Tensor:
        """Points of the energy ``(rows, *event)`` in the kernel's coordinates."""
        target, energy = self.kernel.target, self.kernel.energy
        z = x if target is energy else target.unconstrain(energy.unpack(x))
        return z.to(levels_of(target).dtype) if discrete(target) else z

    def outward(self, z: Tensor) -> Tensor:
        """The inverse of ``inward``, at the dtype of z."""
        target, energy = self.kernel.target, self.kernel.energy
        return z if target is energy else energy.pack(target.constrain(z))

    @torch.no_grad()
    def move(self, z: Tensor, draws: int, *, keep: bool = True) -> Tensor:
        """Points after so many draws of every chain, under the parameters as they are now.

        Args:
            z: where the chains are, in the kernel's coordinates.
            draws: of each.
            keep: count the ticks, so that the next call has other random numbers.
        """
        chains = self._chains
        if chains is None or len(z) != chains.num_chains or z.dtype != self._dtype or z.device != chains.device:
            chains = self._chains = Chains(self.kernel, z, int(self.seed))
            self._dtype = z.dtype
        else:
            chains.move(z)  # energies and gradients of the parameters as they are now
        chains.now = chains.now._replace(tick=int(self.ticks))
        self.infos = []
        chains.advance(draws, observe=self.infos.append)
        if keep:
            self.ticks.fill_(chains.now.tick)
        return chains.position().clone()

    def acceptance(self) -> float:
        """Of the last move, the mean acceptance rate."""
        rates = [info.acceptance_rate.mean() for info in self.infos]
        return float(torch.stack(rates).mean()) if rates else float("nan")
