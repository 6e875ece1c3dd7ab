"""One row for every energy and kernel; the laws are tested over all rows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ebmppl.energies import (
    AnalyticEnergy,
    Clamped,
    ClassifierEnergy,
    ConvEnergy,
    DoubleWell,
    Energy,
    EnergyAt,
    Funnel,
    Gaussian,
    GaussianMixture,
    GeometricPath,
    Mixture,
    MLPEnergy,
    Quadratic,
    Rosenbrock,
    StudentT,
    Sum,
    Tempered,
    Unconstrained,
    as_energy,
)
from ebmppl.kernels import HMC, MALA, NUTS, Kernel, Langevin
from ebmppl.models import (
    GaussianExperts,
    GaussianRBM,
    LogisticExperts,
    ProductOfExperts,
    SoftplusExperts,
    StudentTExperts,
)

# Energies: name -> (dtype, device) -> energy


def _tensor(*rows: object) -> Callable[[torch.dtype, torch.device], Tensor]:
    return lambda dtype, device: torch.tensor(rows, dtype=dtype, device=device)


_MEAN = _tensor(1.0, -2.0, 0.5)
_COVARIANCE = _tensor((2.0, 0.6, -0.3), (0.6, 1.0, 0.2), (-0.3, 0.2, 0.5))
_B = _tensor(1.0, 0.0, -1.0)
_MEANS = _tensor((2.0, 0.0), (-2.0, 1.0), (0.0, -2.0))
_SMALL = _tensor((1.0, 0.3), (0.3, 0.5))


def _sites(s: dict[str, Tensor]) -> Tensor:
    return s["rate"] - torch.log(s["rate"]) - s["share"].log().sum(-1) + 0.5 * s["mean"].square().sum((-2, -1))


class Network(nn.Module):
    """A small network that a quadratic term makes a density."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(-1) + 0.5 * x.square().sum(-1)


Make = Callable[[torch.dtype, torch.device], Energy]
ANALYTIC: dict[str, Callable[[torch.dtype, torch.device], AnalyticEnergy]] = {
    "quadratic, 1-d": lambda t, d: Quadratic(_tensor((1.5,))(t, d), _tensor(0.7)(t, d), 0.3),
    "quadratic": lambda t, d: Quadratic(_COVARIANCE(t, d), _B(t, d)),
    "gaussian": lambda t, d: Gaussian(_MEAN(t, d), _COVARIANCE(t, d)),
    "mixture of gaussians": lambda t, d: GaussianMixture(_MEANS(t, d), _SMALL(t, d), [1.0, 2.0, 1.0]),
    "student-t": lambda t, d: StudentT(6.0, _MEAN(t, d), _COVARIANCE(t, d)),
    "double well": lambda t, d: DoubleWell(2, height=1.0),
    "funnel": lambda t, d: Funnel(3, scale=1.0),
    "rosenbrock": lambda t, d: Rosenbrock(2, a=0.5, b=1.0),
}
ENERGIES: dict[str, Make] = ANALYTIC | {
    "callable": lambda t, d: as_energy(lambda x: 0.5 * x.square().sum(-1) + torch.cos(x).sum(-1), (3,)),
    "callable, one point": lambda t, d: as_energy(lambda x: 0.5 * (x**2).sum() + torch.cos(x[0, 1]), (2, 2)),
    "callable, scalar": lambda t, d: as_energy(lambda x: 0.5 * x**2 + torch.sin(x), ()),
    "named sites": lambda t, d: as_energy(
        _sites,
        {"rate": (), "share": (3,), "mean": (2, 2)},
        {"rate": constraints.positive, "share": constraints.simplex},
    ),
    "network": lambda t, d: as_energy(Network().to(device=d, dtype=t), (3,)),
    "sum": lambda t, d: Sum([Gaussian(_MEAN(t, d), _COVARIANCE(t, d)), StudentT(3.0, _B(t, d), _COVARIANCE(t, d))]),
    "tempered": lambda t, d: Tempered(DoubleWell(2), 0.5),
    "mixture": lambda t, d: Mixture(
        [Gaussian(_MEAN(t, d), _COVARIANCE(t, d)), Quadratic(_COVARIANCE(t, d), _B(t, d))], [1, 2]
    ),
    "clamped": lambda t, d: Clamped(
        Gaussian(_MEAN(t, d), _COVARIANCE(t, d)), torch.tensor([True, False, False], device=d), _B(t, d)
    ),
    "clamped sites": lambda t, d: Clamped(
        ENERGIES["named sites"](t, d), ["mean"], {"mean": _tensor((0.5, -0.5), (0.25, 0.0))(t, d)}
    ),
    "path": lambda t, d: GeometricPath(
        Gaussian(_MEAN(t, d), _COVARIANCE(t, d)), Quadratic(_COVARIANCE(t, d), _B(t, d)), 0.3
    ),
    "nested": lambda t, d: (
        0.7 * (GaussianMixture(_MEANS(t, d), _SMALL(t, d)) + 2.0 * DoubleWell(2, height=0.25))
        + Mixture([Rosenbrock(2, a=0.5, b=1.0), 0.5 * Quadratic(_SMALL(t, d), _tensor(0.2, 0.0)(t, d))], [0.3, 0.7])
    ),
    "unconstrained gamma": lambda t, d: Unconstrained(
        as_energy(lambda x: x - 2 * torch.log(x), (), constraints.positive)
    ),
}


def _random(*shape: int, seed: int) -> Callable[[torch.dtype, torch.device], Tensor]:
    values = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return lambda dtype, device: values.to(dtype=dtype, device=device)


def _gaussian_rbm(t: torch.dtype, d: torch.device, seed: int = 0) -> GaussianRBM:
    w, b, c, z = (_random(*shape, seed=seed + i)(t, d) for i, shape in enumerate([(3, 4), (3,), (4,), (3,)]))
    return GaussianRBM(3, 4, W=w, b=b, c=c, log_variance=0.3 * z)


ENERGIES |= {
    "gaussian rbm": _gaussian_rbm,
    "gaussian rbm, tempered": lambda t, d: _gaussian_rbm(t, d).tempered(0.4, _gaussian_rbm(t, d, 4)),
    "gaussian experts": lambda t, d: GaussianExperts(4, 3, filters=_random(4, 3, seed=8)(t, d)),
    "student-t experts": lambda t, d: StudentTExperts(
        5, 3, filters=_random(5, 3, seed=9)(t, d), bias=_random(5, seed=10)(t, d), alpha=_random(5, seed=11)(t, d).exp()
    ),
    "logistic experts": lambda t, d: LogisticExperts(
        3,
        3,
        filters=_random(3, 3, seed=12)(t, d),
        bias=_random(3, seed=13)(t, d),
        alpha=_random(3, seed=14)(t, d).exp(),
    ),
    "product of experts": lambda t, d: ProductOfExperts(
        [SoftplusExperts(4, 3, filters=_random(4, 3, seed=15)(t, d)), Gaussian(_MEAN(t, d), _COVARIANCE(t, d))],
        [0.7, 1.2],
    ),
}


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(21)


def _classifier() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 4))


ENERGIES |= {
    "mlp": lambda t, d: MLPEnergy(3, (8, 6), "silu", confine=0.5, generator=_seeded()).to(device=d, dtype=t),
    "mlp, images": lambda t, d: MLPEnergy((2, 2), (8,), "gelu", confine=0.5, generator=_seeded()).to(device=d, dtype=t),
    "conv": lambda t, d: ConvEnergy(1, (3, 2), (3, 4), "tanh", confine=0.5, generator=_seeded()).to(device=d, dtype=t),
    "conv, spectral norm": lambda t, d: (
        ConvEnergy(1, 2, (3, 4), "softplus", spectral_norm=True, confine=0.5, generator=_seeded())
        .to(device=d, dtype=t)
        .eval()
    ),
    "classifier": lambda t, d: ClassifierEnergy(_classifier(), (3,), confine=0.5).to(device=d, dtype=t),
}

ENERGIES |= {"energy at a time": lambda t, d: EnergyAt(lambda x, s: 0.5 * s * x.square().sum(-1), (3,), t=0.8)}

# Kernels


class KernelCase(NamedTuple):
    """A kernel that the laws run over. Steps are large for a target of unit scale, so that rejections matter."""

    factory: Callable[[Energy], Kernel]
    exact: bool = True  # leaves exp(-E) invariant at any step size
    adapts: bool = True
    dense: bool = False  # its metric is a matrix


KERNELS: dict[str, KernelCase] = {
    "langevin": KernelCase(partial(Langevin, step_size=0.5), exact=False, adapts=False),
    "mala": KernelCase(partial(MALA, step_size=0.8)),
    "mala, dense": KernelCase(partial(MALA, step_size=0.8, full_mass=True), dense=True),
    "hmc, steps": KernelCase(partial(HMC, step_size=0.7, num_steps=4)),
    "hmc, steps, no jitter": KernelCase(partial(HMC, step_size=0.7, num_steps=3, jitter=0.0)),
    "hmc, length": KernelCase(partial(HMC, step_size=0.6, trajectory_length=2.0)),
    "hmc, length, no jitter": KernelCase(partial(HMC, step_size=0.6, trajectory_length=1.5, jitter=0.0)),
    "hmc, dense": KernelCase(partial(HMC, step_size=0.7, num_steps=4, jitter=0.5, full_mass=True), dense=True),
    "nuts": KernelCase(partial(NUTS, step_size=0.6, max_tree_depth=3)),
    "nuts, dense": KernelCase(partial(NUTS, step_size=0.8, max_tree_depth=3, full_mass=True), dense=True),
}
