"""Contrastive divergence, and its persistent form."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ebmppl.arguments import require, whole
from ebmppl.energies.base import Energy
from ebmppl.losses.base import BoundLoss, Loss
from ebmppl.losses.gap import EnergyGap, Hidden, require_hidden, require_kernel, require_start
from ebmppl.losses.negative import Held, KernelFactory, mixed
from ebmppl.sampling.initial import Start, Uniform, starting_points
from ebmppl.sampling.scopes import evaluating

_MOVES = 40  # of a chain, twice those that a monitor needs: chains that move are drawn, so some move less often
_MOST = 1 << 24  # energies that are kept unasked: 64 MiB of 32 bits


class CD(Loss):
    r"""Contrastive divergence: :math:`\nabla E(x^+) - \nabla E(x^-)`, where chains of k draws begin at the data.

    The value is the energy gap :math:`\overline{E(x^+)} - \overline{E(x^-)}` in nats, not a bound on anything. For
    finite k the gradient is biased (Carreira-Perpinan and Hinton 2005).

    An energy of several sites takes data that lacks some (hidden) ones: see ``hidden``. An RBM itself, whose energy is
    the free one, has them summed out, which is best; its ``joint`` is for kernels on both layers.

    References:
        Hinton 2002, "Training products of experts by minimizing contrastive divergence".

    Args:
        k: draws of every chain, at least 1.
        kernel: makes the kernel of an energy, as ``Gibbs`` or ``partial(Langevin, step_size=0.01)``.
        seed: of the chains; from the operating system when None.
        hidden: for an RBM's ``joint`` with data of ``v`` alone: gradients in the "mean" over h given v, which are those of
            the free energy and vary least (Rao-Blackwell), or at a "sample". Other energies get hidden sites from the
            guide: ``guide({"v": x})`` returns the others by site.

    Raises:
        ValueError: for k < 1, or a kernel that isn't for the energy.
    """

    def __init__(self, k: int = 1, *, kernel: KernelFactory, seed: int | None = None, hidden: Hidden = "mean") -> None:
        super().__init__()
        require_kernel(kernel)
        require_hidden(hidden)
        self.k, self.kernel, self.seed, self.hidden = whole("k", k, 1), kernel, seed, hidden

    def bind(self, energy: Energy, guide: Any) -> BoundLoss:
        """The loss of one energy."""
        return BoundCD(energy, guide, self)


class BoundCD(EnergyGap):
    """See ``CD``."""

    begins_at_data: ClassVar[bool] = True

    def __init__(self, energy: Energy, guide: Any, loss: CD) -> None:
        super().__init__(energy, guide, loss.kernel, loss.seed, loss.hidden)
        self.k = loss.k

    def terms(self, x: Tensor) -> dict[str, Tensor]:
        """Mean energies of the data, and minus those of the chains' ends."""
        end: Tensor | None = None
        with torch.no_grad():
            start = self.chains.inward(x)
            if not self.summed or not self.chains.look_ahead(start, self.k):
                end = self.chains.outward(self.chains.move((start,), self.k, go_on=False)[0])
        return self.gap(x, end, self.chains.known)

    def keep(self) -> None:
        """The next call has other random numbers."""
        self.chains.keep()


class PCD(Loss):
    r"""Persistent contrastive divergence (stochastic maximum likelihood): chains go on from where they were.

    The chains are buffers of the bound loss. As parameters change slowly the chains stay near the model's distribution,
    and the gradient estimates that of the log-likelihood. With ``kernel=lambda e: ParallelTempering(Gibbs(e), 8)`` all
    replicas go on (Desjardins et al. 2010).

    References:
        Younes 1989, "Parametric inference for imperfectly observed Gibbsian fields"; Tieleman 2008, "Training
        restricted Boltzmann machines using approximations to the likelihood gradient"; replay buffer and
        re-initialisation: Du and Mordatch 2019, "Implicit generation and modeling with energy-based models".

    Args:
        k: draws of every chain for each step, at least 1.
        kernel: makes the kernel of an energy.
        num_chains: how many chains.
        start: how points are drawn where chains begin, and begin again: ``Uniform(...)``, ``FromData(points)``, ...
        reinit: probability in [0, 1) with which a chain begins again at each step.
        buffer: so many points are kept, of which ``num_chains`` are moved at each step (replay buffer); ``num_chains``
            when None.
        warmup: draws of every chain before the first step, in which the kernel's tuning adapts, too.
        recent: steps whose energies of the chains are kept for diagnostics, at least 1. When None 100, or those in which a
            chain of the buffer moves about 40 times, where these are more and take no more than 2^24 numbers.
        seed: of the chains; from the operating system when None.
        hidden: see ``CD``.

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
        warmup: int = 0,
        recent: int | None = None,
        seed: int | None = None,
        hidden: Hidden = "mean",
    ) -> None:
        super().__init__()
        require_kernel(kernel)
        require_hidden(hidden)
        require_start(start)
        self.k, self.kernel, self.num_chains = whole("k", k, 1), kernel, whole("num_chains", num_chains, 1)
        self.size = self.num_chains if buffer is None else whole("buffer", buffer, self.num_chains)
        require(0 <= reinit < 1, "reinit in [0, 1)", reinit)
        self.start: Start = start or Uniform()
        self.warmup = whole("warmup", warmup, 0)
        self.recent = _steps(self.size, self.num_chains) if recent is None else whole("recent", recent, 1)
        self.reinit, self.seed, self.hidden = reinit, seed, hidden

    def bind(self, energy: Energy, guide: Any) -> BoundLoss:
        """The loss of one energy."""
        return BoundPCD(energy, guide, self)


def _steps(size: int, moved: int) -> int:
    """So many that a monitor can judge chains of which only some move in a step, if they aren't too many to keep."""
    enough = -(-_MOVES * size // moved)
    return enough if enough > 100 and enough * size <= _MOST else 100


class BoundPCD(EnergyGap):
    """See ``PCD``.

    Attributes:
        points: the persistent chains ``(buffer, *event)`` in the kernel's coordinates.
        age: by chain, steps since it began ``(buffer,)``.
        energies: of the chains in the last steps, ``(recent, buffer)``, step s in row s % recent; infinite where a chain did
            not move.
    """

    points: Tensor
    age: Tensor
    energies: Tensor

    def __init__(self, energy: Energy, guide: Any, loss: PCD) -> None:
        super().__init__(energy, guide, loss.kernel, loss.seed, loss.hidden)
        self.k, self.num_chains, self.start, self.reinit = loss.k, loss.num_chains, loss.start, loss.reinit
        self.warmup = loss.warmup
        with torch.no_grad(), evaluating(energy):
            begun = starting_points(self.chains.kernel.target, loss.start, loss.size, int(self.chains.seed)).points
            held, energies = self.chains.begin(begun), energy(self.chains.outward(begun[:1]))
        self._names = ["points", *(f"points_{i}" for i in range(1, len(held)))]
        for name, value in zip(self._names, held, strict=True):
            self.register_buffer(name, value)
        self.register_buffer("age", torch.zeros(loss.size, dtype=torch.int64, device=begun.device))
        self.register_buffer("energies", energies.new_full((loss.recent, loss.size), torch.inf))
        self._moved: tuple[Tensor | None, Tensor | None, Held] | None = None

    @property
    def held(self) -> Held:
        """What the chains hold: the points and, of kernels with replicas, more."""
        return tuple(getattr(self, name) for name in self._names)

    def terms(self, x: Tensor) -> dict[str, Tensor]:
        """Mean energies of the data, and minus those of the persistent chains after their draws."""
        if self.training and self.warmup and not int(self.step):
            self.adapt(self.warmup)
        which, again, held = self._chosen()
        end = self.chains.move(held, self.k, go_on=True)
        self._moved = which, again, end
        with torch.no_grad():
            model = self.chains.outward(end[0])
        return self.gap(x, model, self.chains.known)

    def keep(self) -> None:
        """The chains are where the last call left them."""
        assert self._moved is not None  # ``terms`` ran
        assert self._energies is not None
        which, again, end = self._moved
        row = self.energies[int(self.step) % len(self.energies)]
        if which is None:
            for buffer, value in zip(self.held, end, strict=True):
                buffer.copy_(value)
            row.copy_(self._energies[1])
            self.age += 1
        else:
            for buffer, value in zip(self.held, end, strict=True):
                buffer.index_copy_(0, which, value)
            row.fill_(torch.inf).index_copy_(0, which, self._energies[1].to(row.dtype))
            self.age.index_add_(0, which, torch.ones_like(which))
        if again is not None:
            self.age.index_fill_(0, again if which is None else which[again], 1)
        self.chains.keep(self.held if which is None else ())

    def adapt(self, draws: int) -> None:
        """Move all chains by so many draws, in which the kernel's tuning adapts to the energy as it is now."""
        for buffer, value in zip(self.held, self.chains.adapt(self.held, draws), strict=True):
            buffer.copy_(value)

    def begin_again(self, number: int) -> None:
        """All chains begin again at new points; each number gives others."""
        seed = mixed(int(self.chains.seed) + 2, number)
        fresh = self.chains.begin(self._fresh(len(self.points), seed).to(self.points.dtype))
        for buffer, value in zip(self.held, fresh, strict=True):
            buffer.copy_(value)
        self.age.zero_()
        self.energies.fill_(torch.inf)

    def diagnostics(self) -> dict[str, Any]:
        """Of the last call ``gap``, ``gap_error``, ``acceptance``; ``age`` ``(buffer,)`` in steps; ``energies``, oldest first."""
        steps = min(int(self.step), len(self.energies))
        energies = self.energies.roll(-int(self.step) % len(self.energies), 0)[len(self.energies) - steps :]
        return {**super().diagnostics(), "age": self.age.clone(), "energies": energies}

    @torch.no_grad()
    def _chosen(self) -> tuple[Tensor | None, Tensor | None, Held]:
        """Which chains move (None: all), which of these begin again, and what all these hold."""
        held, which = self.held, None
        size, n, device = len(self.points), self.num_chains, self.points.device
        if size == n and not self.reinit:
            return None, None, held
        seed = mixed(int(self.chains.seed), int(self.step))
        generator = torch.Generator(device).manual_seed(seed)
        if size != n:
            which = torch.randperm(size, generator=generator, device=device)[:n]
            held = tuple(value.index_select(0, which) for value in held)
        again = torch.rand(n, generator=generator, device=device) < self.reinit
        if not bool(again.any()):
            return which, None, held
        rows = again.nonzero().squeeze(1)
        fresh = self.chains.begin(self._fresh(len(rows), seed).to(self.points.dtype))
        return which, rows, tuple(old.index_copy(0, rows, new) for old, new in zip(held, fresh, strict=True))

    def _fresh(self, n: int, seed: int) -> Tensor:
        target = self.chains.kernel.target
        with evaluating(target):
            x = self.start.sampler(target, n, seed)(0)
            return x if bool(torch.isfinite(target(x)).all()) else starting_points(target, self.start, n, seed).points

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        for name in [*self._names, "age", "energies"]:
            own, given = getattr(self, name), state_dict.get(prefix + name)
            if given is not None and given.shape != own.shape:
                wanted = f"saved chains {prefix + name} of shape {tuple(own.shape)}"
                raise ValueError(
                    f"expected {wanted}, as this loss has, got {tuple(given.shape)}: bind PCD as it was saved"
                )
        super()._load_from_state_dict(state_dict, prefix, *args)
