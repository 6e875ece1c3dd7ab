"""Distances of two samples, with permutation tests of whether they are of one distribution."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ebmppl.arguments import positive, require, seed_number, whole

_NUMBERS = 1 << 24  # of a chunk of permutations


class TwoSampleTest(NamedTuple):
    """A distance and its permutation test.

    Attributes:
        distance: the squared MMD (without unit), or the energy distance in units of the data; both >= 0.
        p_value: share of permutations with at least this distance, the given split among them; uniform under the null.
    """

    distance: float
    p_value: float


def two_sample_test(
    x: Tensor,
    y: Tensor,
    distance: Literal["mmd", "energy"] = "mmd",
    *,
    bandwidth: float | None = None,
    permutations: int = 999,
    seed: int = 0,
) -> TwoSampleTest:
    r"""Whether two independent samples are of one distribution.

    The squared maximum mean discrepancy :math:`\overline{k(x, x')} + \overline{k(y, y')} - 2 \overline{k(x, y)}` of the
    kernel :math:`k(a, b) = e^{-|a - b|^2 / 2h^2}`, or the energy distance
    :math:`2 \overline{|x - y|} - \overline{|x - x'|} - \overline{|y - y'|}`; means are over all pairs. Rows must be
    independent: draws of one chain are not.

    References:
        Gretton, Borgwardt, Rasch, Schoelkopf and Smola 2012, "A kernel two-sample test", equation 5; Szekely and Rizzo
        2013, "Energy statistics". Exact levels of permutation tests: Phipson and Smyth 2010.

    Args:
        x: a sample ``(n, *event)``, at least two rows.
        y: another ``(m, *event)``, at least two rows.
        distance: "mmd" or "energy".
        bandwidth: h in units of the data; the median distance of all rows when None. For "mmd".
        permutations: how many, at least 1; the smallest p-value is 1 / (permutations + 1).
        seed: of the permutations.

    Raises:
        ValueError: for other shapes, numbers that are not finite, or settings out of range.

    Example:
        >>> x = torch.linspace(0, 1, 50).unsqueeze(1)
        >>> two_sample_test(x, x + 1).p_value
        0.001
    """
    require(distance in ("mmd", "energy"), "distance 'mmd' or 'energy'", repr(distance))
    require(bandwidth is None or distance == "mmd", "a bandwidth only for 'mmd'", bandwidth)
    both, n = _together(x, y), len(x)
    likeness = _likeness(both, bandwidth) if distance == "mmd" else _apart(both).neg_()
    weights = both.new_full((len(both),), -1 / len(y))
    weights[:n] = 1 / n
    found = float(weights @ likeness @ weights)
    generator, more, left = torch.Generator().manual_seed(seed_number(seed)), 0, whole("permutations", permutations, 1)
    chunk = max(1, _NUMBERS // (len(both) * 8))
    while left:
        some = min(chunk, left)
        drawn = weights[torch.rand(some, len(both), generator=generator).argsort(1).to(both.device)]
        values = ((drawn @ likeness) * drawn).sum(1)
        more, left = more + int((values >= found - 1e-12 * abs(found)).sum()), left - some
    return TwoSampleTest(max(found, 0.0), (more + 1) / (permutations + 1))


def _together(x: Tensor, y: Tensor) -> Tensor:
    """Rows of both, flat, in float64."""
    shapes = tuple(x.shape), tuple(y.shape)
    require(bool(shapes[0] and shapes[1]) and shapes[0][1:] == shapes[1][1:], "two samples of one event shape", shapes)
    require(min(len(x), len(y)) > 1, "at least two rows of each sample", (len(x), len(y)))
    both = torch.cat([x.detach().double(), y.detach().double()]).reshape(len(x) + len(y), -1)
    require(bool(torch.isfinite(both).all()), "finite samples", "NaN or infinite values")
    return both


def _apart(rows: Tensor) -> Tensor:
    return torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")


def _likeness(rows: Tensor, bandwidth: float | None) -> Tensor:
    if bandwidth is None:
        some = torch.pdist(rows)  # every pair once, which has the same median as twice, in half the memory
        some = some if bool(some.all()) else some[some > 0]  # a copy of as much memory only where it is needed
        bandwidth = float(some.median()) if len(some) else 1.0
        del some
    return _apart(rows).div_(positive("bandwidth", bandwidth)).square_().mul_(-0.5).exp_()
