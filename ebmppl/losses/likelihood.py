"""Maximum likelihood: with the log partition function, by chains, or by importance weights."""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import Tensor

from ebmppl.arguments import require, seed_of, whole
from ebmppl.energies.base import Energy
from ebmppl.losses.base import BoundLoss, Loss, at_dtype_of
from ebmppl.losses.gap import EnergyGap, Hidden, require_hidden, require_kernel, require_start
from ebmppl.losses.negative import KernelFactory
from ebmppl.losses.noise import as_noise, energies_inside, require_cover, step_seed
from ebmppl.sampling.initial import Start, Uniform


class HasLogZ(Protocol):
    """What knows log partition functions, such as ``partition.Exact()``."""

    def log_z(self, energy: Energy) -> Tensor:
        """A scalar in nats, differentiable in the energy's parameters."""


class MLE(Loss):
    r"""Maximum likelihood, :math:`\nabla \overline{E(x)} - E_{model}[\nabla E]`, whose second term comes in one of three ways.

    * Exact: the value is the negative log-likelihood :math:`\overline{E(x)} + \log Z` in nats per row. By default log Z is
      the energy's closed form; ``log_z=Exact()`` sums over the states of a discrete one, or takes an RBM's layers.
    * ``kernel``: a run of MCMC at each step, warm-up and all. The value is the energy gap, see ``CD``; its gradient is
      unbiased as far as the warm-up reaches the model's distribution.
    * ``num_samples``: importance weights :math:`w \propto e^{-E(y)} / q(y)` of draws of the guide q: a distribution, a
      Pyro program, or an energy with ``log_z`` and ``sample``. The value is
      :math:`\overline{E(x)} + \log\frac1n\sum_i e^{-E(y_i)} / q(y_i)`, and its gradient has self-normalised weights, a
      bias of order 1/ESS. The guide is not trained.

    References:
        Younes 1989, "Parametric inference for imperfectly observed Gibbsian fields"; by weights: Geyer and Thompson
        1992, "Constrained Monte Carlo maximum likelihood for dependent data".

    Args:
        log_z: gives log Z of the energy.
        kernel: makes the kernel of an energy, as ``Gibbs`` or ``MALA``.
        num_chains: of each run.
        warmup: draws of each chain that adapt the kernel and are dropped.
        draws: of each chain that count.
        start: where chains begin; ``Uniform()`` when None.
        num_samples: of the guide.
        seed: of chains or samples; from the operating system when None.
        hidden: see ``CD``; for chains alone.

    Raises:
        ValueError: for more than one way, or counts out of range; when bound, for an energy without closed form if
            nothing else is given, or for samples without a guide; called, for one that doesn't cover the data.

    Example:
        >>> import torch
        >>> from ebmppl.energies import Gaussian
        >>> MLE()(Gaussian(torch.zeros(2), torch.eye(2)))(torch.zeros(1, 2))  # log 2 pi
        tensor(1.8379)
    """

    def __init__(
        self,
        log_z: HasLogZ | None = None,
        *,
        kernel: KernelFactory | None = None,
        num_chains: int = 100,
        warmup: int = 100,
        draws: int = 10,
        start: Start | None = None,
        num_samples: int | None = None,
        seed: int | None = None,
        hidden: Hidden = "mean",
    ) -> None:
        super().__init__()
        given = {"log_z": log_z, "kernel": kernel, "num_samples": num_samples}
        ways = [name for name, value in given.items() if value is not None]
        require(len(ways) < 2, f"at most one of {', '.join(given)}", " and ".join(ways))
        require(
            log_z is None or hasattr(log_z, "log_z"), "log_z with a method log_z(energy), such as Exact()", repr(log_z)
        )
        if kernel is not None:
            require_kernel(kernel)
        require_hidden(hidden)
        require_start(start)
        self.log_z, self.kernel, self.seed, self.hidden = log_z, kernel, seed, hidden
        self.num_chains, self.warmup = whole("num_chains", num_chains, 1), whole("warmup", warmup, 0)
        self.draws, self.start = whole("draws", draws, 1), start or Uniform()
        self.num_samples = None if num_samples is None else whole("num_samples", num_samples, 1)

    def bind(self, energy: Energy, guide: Any) -> BoundLoss:
        """The loss of one energy (and guide, where there are samples of it)."""
        if self.kernel is not None:
            return MLEByChains(energy, guide, self, self.kernel)
        if self.num_samples is not None:
            return MLEByWeights(energy, guide, self.num_samples, self.seed)
        return ExactMLE(energy, guide, self.log_z)


class ExactMLE(BoundLoss):
    """See ``MLE``."""

    def __init__(self, energy: Energy, guide: Any, source: HasLogZ | None) -> None:
        super().__init__(energy, guide)
        self.source = source
        if source is None:
            self._closed_form()

    def terms(self, x: Tensor) -> dict[str, Tensor]:
        """The mean energy and log Z."""
        log_z = self._closed_form() if self.source is None else self.source.log_z(self.energy)
        data = self.energy(x).mean()
        return {"data": data, "log_z": log_z.to(data.dtype)}

    def _closed_form(self) -> Tensor:
        value = self.energy.log_z
        if value is None:
            instead = "pass log_z=Exact() for a discrete one, a kernel, or num_samples and a guide"
            raise ValueError(f"expected an energy with log_z, got {type(self.energy).__name__} without: {instead}")
        return value


class MLEByChains(EnergyGap):
    """See ``MLE``."""

    def __init__(self, energy: Energy, guide: Any, loss: MLE, kernel: KernelFactory) -> None:
        super().__init__(energy, guide, kernel, loss.seed, loss.hidden)
        self.num_chains, self.warmup, self.draws, self.start = loss.num_chains, loss.warmup, loss.draws, loss.start

    def terms(self, x: Tensor) -> dict[str, Tensor]:
        """Mean energies of the data, and minus those of a run's draws."""
        drawn = self.chains.run(self.start, self.num_chains, self.warmup, self.draws, int(self.step))
        with torch.no_grad():
            model = self.chains.outward(drawn)
        return self.gap(x, model)

    def diagnostics(self) -> dict[str, Any]:
        """Of the last call: ``gap`` in nats, ``gap_error`` by the means of the chains, ``acceptance``."""
        if self._energies is None:
            return {}
        data, model = (energies.double() for energies in self._energies)
        by_chain = model.view(self.draws, self.num_chains).mean(0)  # draws of one chain are not independent
        variance = sum(e.var() / len(e) if len(e) > 1 else e.new_tensor(torch.nan) for e in (data, by_chain))
        gap = float(data.mean() - model.mean())
        return {"gap": gap, "gap_error": math.sqrt(variance), "acceptance": self.chains.acceptance()}


class MLEByWeights(BoundLoss):
    """See ``MLE``."""

    seed: Tensor

    def __init__(self, energy: Energy, guide: Any, num_samples: int, seed: int | None) -> None:
        super().__init__(energy, guide)
        require(guide is not None, "the proposal of MLE(num_samples=...) as guide", guide)
        self.proposal = as_noise(guide, energy)
        self.num_samples = num_samples
        self.register_buffer("seed", torch.tensor(seed_of(seed)))
        self._weights: Tensor | None = None

    def terms(self, x: Tensor) -> dict[str, Tensor]:
        """The mean energy, and the estimate of log Z, which would lack what the proposal doesn't cover."""
        require_cover(self.proposal.log_prob(x), "the data")
        y = at_dtype_of(self.energy, self.proposal.draw(self.num_samples, step_seed(int(self.seed), int(self.step))))
        log_weights = -energies_inside(self.energy, y) - self.proposal.log_prob(y)
        self._weights = log_weights.detach()
        return {"data": self.energy(x).mean(), "log_z": log_weights.logsumexp(0) - math.log(len(y))}

    def diagnostics(self) -> dict[str, Any]:
        """Of the last call: ``ess``, the effective number of samples, and ``log_z_error``, a standard error in nats."""
        if self._weights is None:
            return {}
        weights, n = torch.softmax(self._weights.double(), 0), len(self._weights)
        ess = float(1 / weights.square().sum())
        return {"ess": ess, "log_z_error": math.sqrt(max(n / ess - 1, 0.0) / n)}
