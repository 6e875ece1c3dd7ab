r"""Statistics of spins, of bits and of categories that are judged in place of every single site.

Given by name to ``MCMC.summary``, ``MCMC.diagnostics`` and ``MCMC.to_arviz``, each is a function of a batch of points
``(batch, *site)``, spins or any numbers, that gives ``(batch,)`` or ``(batch, ...)``. An energy is such a function, too.

Example:
    >>> import ebmppl as eb
    >>> from ebmppl.diagnostics.statistics import magnetisation
    >>> kernel = eb.Gibbs(eb.models.Ising(lattice=(4, 4), coupling=0.2))
    >>> mcmc = eb.MCMC(kernel, 100, 10, num_chains=4, seed=0, disable_progbar=True)
    >>> mcmc.run()
    >>> bool(mcmc.diagnostics({"m": magnetisation})["m"]["r_hat"] < 1.1)
    True
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_NUMBERS = 1 << 22  # of the points that are at a floating dtype at once


def magnetisation(x: Tensor) -> Tensor:
    r""":math:`m = \frac1N \sum_i x_i`, the mean over all sites.

    Args:
        x: points ``(batch, *site)``, any dtype.

    Returns:
        ``(batch,)``, in [-1, 1] for spins.
    """
    return _real(x).flatten(1).mean(1)


def absolute_magnetisation(x: Tensor) -> Tensor:
    r""":math:`|m|`, which a flip of all spins leaves as it is.

    Where there is no field both phases are equally probable: ``magnetisation`` tells whether chains go from one to the
    other, and this one whether they agree within a phase.

    Args:
        x: points ``(batch, *site)``.

    Returns:
        ``(batch,)``.
    """
    return magnetisation(x).abs()


def overlap(reference: Tensor) -> Callable[[Tensor], Tensor]:
    r"""The overlap :math:`q = \frac1N \sum_i r_i x_i` with a reference point r: a pattern, a ground state, a first draw.

    Args:
        reference: ``(*site)``, or several ``(k, ..., *site)``.

    Returns:
        A function of points ``(batch, *site)`` that gives ``(batch,)``, or ``(batch, k, ...)``.
    """

    def overlaps(x: Tensor) -> Tensor:
        event = x.dim() - 1
        if reference.dim() < event or reference.shape[reference.dim() - event :] != x.shape[1:]:
            raise ValueError(f"expected a reference of shape (..., {x.shape[1:]}), got {tuple(reference.shape)}")
        values = _real(x).flatten(1)
        patterns = reference.to(values).reshape(*reference.shape[: reference.dim() - event], -1)
        found: Tensor = torch.tensordot(values, patterns, ([1], [-1])) / values.shape[1]
        return found

    return overlaps


def replica_overlap(draws: Tensor) -> Tensor:
    r"""The overlap :math:`q_{ab} = \frac1N \sum_i x^{(a)}_i x^{(b)}_i` of two independent replicas, as of spin glasses.

    The replicas are the chains 2k and 2k + 1 at the same draw. Every chain is in one pair only, so that the overlaps of
    the pairs are independent, as R-hat and ESS take for granted. Their number is not that of the chains, so they can't
    be in the same group of ArviZ's: ``summarize({"overlap": replica_overlap(x)})`` judges them.

    References:
        Parisi 1983, "Order parameter for spin-glasses".

    Args:
        draws: ``(chains, draws, *site)`` of two chains or more; of an odd number the last is left out.

    Returns:
        ``(chains // 2, draws)``, in [-1, 1] for spins.

    Raises:
        ValueError: for a single chain.
    """
    pairs = draws.shape[0] // 2
    if draws.dim() < 2 or not pairs:
        raise ValueError(f"expected draws of two chains or more, (chains, draws, *site), got {tuple(draws.shape)}")
    chunk = max(1, _NUMBERS // max(draws[0, :1].numel(), 1))

    def of_pair(a: Tensor, b: Tensor) -> Tensor:  # a lattice's draws take many times more at a floating dtype
        parts = zip(a.split(chunk), b.split(chunk), strict=True)
        return torch.cat([(_real(u) * _real(v)).flatten(1).mean(1) for u, v in parts])

    return torch.stack([of_pair(draws[2 * k], draws[2 * k + 1]) for k in range(pairs)])


def _real(x: Tensor) -> Tensor:
    """Sums of small integers overflow at their own dtype."""
    return x if x.is_floating_point() else x.to(torch.get_default_dtype())
