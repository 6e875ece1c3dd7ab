"""A matrix without a factor is NaN in its own row of the batch, where torch raises for all rows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import ebmppl as eb
from ebmppl.energies.linalg import rowwise
from ebmppl.kernels.gradients import Gradient

ONES = torch.ones(3, dtype=torch.float64)


def matrices(kind: str) -> Tensor:
    """Four matrices ``(4, 3, 3)``, the second and third without a factor."""
    a = torch.randn(4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    a = a @ a.mT + torch.eye(3)
    if kind == "cholesky":
        a[1] = -a[1]
    elif kind == "singular":
        a[1] = 0.0
    else:
        a[1, 0, 0] = torch.inf
    a[2] = torch.nan
    return a


FACTORS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "cholesky": (torch.linalg.cholesky, "cholesky"),
    "inv": (torch.linalg.inv, "singular"),
    "inverse": (torch.inverse, "singular"),
    "method": (lambda a: a.inverse(), "singular"),
    "solve": (lambda a: torch.linalg.solve(a, torch.stack([ONES, ONES], 1).expand(*a.shape[:-2], 3, 2)), "singular"),
    "solve for a vector": (lambda a: torch.linalg.solve(a, ONES.expand(*a.shape[:-2], 3)), "singular"),
    "eigenvalues": (lambda a: torch.linalg.eigh(a)[0], "not finite"),
    "eigenvectors": (lambda a: torch.linalg.eigh(a)[1].abs(), "not finite"),
    "eigvalsh": (torch.linalg.eigvalsh, "not finite"),
    "svd": (lambda a: torch.linalg.svd(a).S, "not finite"),
    "svdvals": (torch.linalg.svdvals, "not finite"),
}


@pytest.mark.parametrize("vmapped", [False, True])
@pytest.mark.parametrize("name", FACTORS)
def test_bad_rows_are_nan_and_the_others_are_theirs(name: str, vmapped: bool) -> None:
    factor, kind = FACTORS[name]
    a = matrices(kind)
    with pytest.raises(RuntimeError):
        factor(a)
    function = torch.func.vmap(factor) if vmapped else factor
    found = rowwise(function, a)
    assert bool(found[[1, 2]].isnan().all())
    assert torch.allclose(found[[0, 3]], factor(a[[0, 3]]))


def test_other_errors_come_through() -> None:
    with pytest.raises(RuntimeError, match="must be batches of square matrices"):
        rowwise(torch.linalg.cholesky, torch.ones(3, 2))


def log_det(x: Tensor) -> Tensor:
    """Over correlations x: log det of [[1, x], [x, 1]] by its factor, which there is for |x| < 1 only."""
    eye = torch.eye(2, dtype=x.dtype)
    root = torch.linalg.cholesky(eye + x[..., None] * (1 - eye))
    return 0.5 * x.square().sum(-1) - root.diagonal(dim1=-2, dim2=-1).log().sum(-1)


@pytest.mark.parametrize("batched", [True, False])
def test_an_energy_has_no_finite_value_in_its_bad_rows_eager_and_traced(batched: bool) -> None:
    energy = eb.as_energy(log_det, (1,), batched=batched)
    x = torch.tensor([[0.3], [1.5], [-0.7], [torch.nan]], dtype=torch.float64)
    good, bad = [0, 2], [1, 3]
    wanted, wanted_grad = energy.value_and_grad(x[good])
    gradient = Gradient(energy)
    gradient.prepare(x[good + good])  # in a trace nothing is bad at first
    for value, grad in (energy.value_and_grad(x), gradient(x)):
        assert bool(value[bad].isnan().all())
        assert torch.equal(value[good], wanted)
        assert torch.allclose(grad[good], wanted_grad, rtol=1e-12)
    assert bool(energy(x)[bad].isnan().all())


@pytest.mark.parametrize("draws", [200, 1200])  # eager, traced
def test_chains_go_on_from_a_proposal_without_a_factor(draws: int) -> None:
    """Uniform starts in (-2, 2) and steps over the border: drawn again, and rejected."""
    kernel = eb.HMC(eb.as_energy(log_det, (1,)), step_size=0.9, num_steps=3, adapt_step_size=False)
    mcmc = eb.MCMC(kernel, draws, 0, num_chains=20, seed=0, disable_progbar=True)
    mcmc.run()
    assert bool((mcmc.get_samples()["x"].abs() < 1).all())
    diverging = mcmc.stats()["diverging"].double().mean()
    assert 0.05 < float(diverging) < 0.95
