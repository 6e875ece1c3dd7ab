"""Noise-contrastive estimation."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn

from ebmppl.arguments import positive, require, seed_of
from ebmppl.energies.base import Energy, dtype_and_device
from ebmppl.losses.asymptotic import LogZInterval, log_z_interval
from ebmppl.losses.base import BoundLoss, Loss, shaped
from ebmppl.losses.noise import as_noise, energies_inside, require_covers, step_seed
from ebmppl.models.rbm_views import log1p_exp


class NCE(Loss):
    r"""Noise-contrastive estimation: logistic regression of data against noise, with log Z as one more parameter.

    .. math:: -\overline{\log \sigma(G(x))} - \nu\, \overline{\log \sigma(-G(y))}, \qquad
              G(u) = -E(u) - c - \log p_n(u) - \log \nu

    of data x and nu times as many points of noise y. At the minimum c estimates log Z, and the energy is normalised
    without an integral. The guide is the noise p_n: a torch or Pyro distribution over one point, an energy with ``log_z``
    and ``sample``, or a Pyro program or automatic guide whose sample sites are the energy's. It is held, not trained. It
    must be positive where the data are, and works best when it is near them. Noise outside the energy's support counts
    with model density 0.

    References:
        Gutmann and Hyvarinen 2012, "Noise-contrastive estimation of unnormalized statistical models, with applications
        to natural image statistics", equation 8; c held at 0: Mnih and Teh 2012.

    Args:
        nu: points of noise for each row of data > 0; nu times the rows is rounded, and the ratio that is used is exact.
        log_z: c in nats, where it starts or is held.
        learnable: whether c is a parameter of the bound loss.
        seed: of the noise, which is a function of the seed and the step; from the operating system when None.

    Raises:
        ValueError: for a ratio that is not positive, a c that isn't finite; bound, for noise of other shapes or sites;
            called, for noise that doesn't cover the data: says how many rows, and which.

    Example:
        >>> import ebmppl as eb
        >>> noise = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
        >>> bound = NCE(nu=2, seed=0)(eb.energies.Quadratic(torch.eye(2), torch.zeros(2)), noise)
        >>> bound(torch.zeros(5, 2)).item() > 0
        True
    """

    def __init__(
        self, nu: float = 1.0, *, log_z: float | Tensor = 0.0, learnable: bool = True, seed: int | None = None
    ) -> None:
        super().__init__()
        self.nu, self.learnable, self.seed = positive("nu", nu), learnable, seed
        self.log_z = float(log_z.detach() if isinstance(log_z, Tensor) else log_z)
        require(abs(self.log_z) < float("inf"), "a finite log_z", log_z)

    def bind(self, energy: Energy, guide: Any) -> BoundNCE:
        """The loss of one energy against the noise ``guide``."""
        return BoundNCE(energy, guide, self)


class BoundNCE(BoundLoss):
    """See ``NCE``.

    Attributes:
        log_z: c, a scalar in nats: a parameter where it is learned, else a buffer.
        seed: of the noise.
    """

    log_z: Tensor
    seed: Tensor

    def __init__(self, energy: Energy, guide: Any, loss: NCE) -> None:
        super().__init__(energy, guide)
        self.nu = loss.nu
        self.noise = as_noise(guide, energy)
        dtype, device = dtype_and_device(energy)
        tensors = itertools.chain(energy.parameters(), energy.buffers())
        if not any(t.is_floating_point() for t in tensors) and self.noise.dtype.is_floating_point:
            dtype = self.noise.dtype  # a function without tensors of its own
        log_z = torch.tensor(loss.log_z, dtype=dtype, device=device)
        if loss.learnable:
            self.log_z = nn.Parameter(log_z)
        else:
            self.register_buffer("log_z", log_z)
        self.register_buffer("seed", torch.tensor(seed_of(loss.seed)))

    def draw(self, rows: int) -> Tensor:
        """The noise ``(round(nu * rows), *event)`` of this step for so many rows of data; at least one point."""
        return self.noise.draw(max(1, round(self.nu * rows)), step_seed(int(self.seed), int(self.step)))

    def terms(self, x: Tensor, noise: Tensor | None = None) -> dict[str, Tensor]:
        """Minus the mean log-probability that data are told from noise, and nu times that of noise from data.

        Args:
            x: data ``(rows, *event)``.
            noise: points of noise ``(n, *event)`` where they are given; nu is then n / rows.
        """
        data, noisy = self._surplus(x, self._noise(x, noise))
        return {"data": log1p_exp(data).mean(), "noise": log1p_exp(-noisy).sum() / len(x)}

    def log_odds(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """G of the data ``(rows,)`` and of the noise ``(n,)``: log-odds that a point is of the data; as ``terms``.

        Raises:
            ValueError: where the noise has no density at the data, or at its own points.
        """
        data, noisy = self._surplus(x, self._noise(x, noise))
        return -data, -noisy

    def _noise(self, x: Tensor, noise: Tensor | None) -> Tensor:
        return (self.draw(len(x)) if noise is None else shaped(self.energy.event_shape, noise)).to(x)

    def _surplus(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Minus G."""
        n, both = len(x), torch.cat([x, y])
        log_noise = require_covers(self.noise.log_prob(both), n)
        energies = energies_inside(self.energy, both)
        surplus = energies + (log_noise + math.log(len(y) / n)).to(energies) + self.log_z
        return surplus[:n], surplus[n:]

    def log_z_interval(self, x: Tensor, noise: Tensor | None = None, level: float = 0.95) -> LogZInterval:
        r"""The estimate of log Z with its asymptotic error, for parameters at the minimum for these data and this noise.

        The error is that of the estimator of all parameters and c together, by the sandwich of the logistic scores:
        :math:`A^{-1} B A^{-1}` with :math:`A = \sum \sigma(G)\sigma(-G) g g^\top`, g the gradient of G, and B the covariance of
        the scores within data and noise. Where the energy can be the data's it tends to theorem 3 of Gutmann and Hyvarinen
        2012, :math:`(\mathcal{I}^{-1} - (1 + 1/\nu) e_c e_c^\top) / rows`. So it covers log Z at the true parameters. Parameters
        that don't require gradients are held.

        Args:
            x: data ``(rows, *event)``, at least two.
            noise: points of noise; those of this step when None.
            level: probability that the interval covers, in (0, 1).

        Raises:
            ValueError: when log Z isn't learned, or isn't identified beside the energy's parameters (a constant of the
                energy's own); for a level out of range, or more than 4096 parameters.

        Warns:
            SamplingWarning: where a Newton step would move log Z by more than its error: this is no minimum.
        """
        if not isinstance(self.log_z, nn.Parameter):
            raise ValueError("expected a learnable log Z, got one that is held: an interval needs an estimate")
        require(0 < level < 1, "level in (0, 1)", level)
        x = self.data(x)
        y = self._noise(x, noise)
        with torch.no_grad():
            odds = self.log_odds(x, y)
        return log_z_interval(self.energy, self.log_z.item(), (x, y), odds, level)
