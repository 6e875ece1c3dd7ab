"""The reference posteriors' energies against their Pyro models, and the form of both."""

from __future__ import annotations

import math
from pathlib import Path

import pyro
import pytest
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import constraints

from tests.posteriors import NAMES, Posterior, load, reference

pytestmark = pytest.mark.data
ROWS = 16
FLAT = ("kidscore_interaction", "logmesquite", "nes1980")  # with improper priors


def typical_points(
    posterior: Posterior,
    folder: Path,
    dtype: torch.dtype = torch.float64,
) -> dict[str, Tensor]:
    """Sites ``(ROWS, *site)``: normal with the reference's means and sds, positive if need be."""
    known, generator = reference(posterior.name, folder), torch.Generator().manual_seed(3)
    points = {}
    for site, shape in posterior.sites.items():
        scalars = [f"{site}[{i + 1}]" for i in range(shape[0])] if shape else [site]
        # theta_trans is not reported: its prior
        moments = [known.get(scalar, {"mean": 0.0, "sd": 1.0}) for scalar in scalars]
        mean = torch.tensor([m["mean"] for m in moments], dtype=torch.float64)
        sd = torch.tensor([m["sd"] for m in moments], dtype=torch.float64)
        noise = torch.randn(ROWS, len(scalars), dtype=torch.float64, generator=generator)
        value = (mean + sd * noise).reshape(ROWS, *shape).to(dtype)
        points[site] = value.abs() if site in posterior.support else value
    return points


def trace_at(posterior: Posterior, points: dict[str, Tensor], row: int) -> poutine.Trace:
    at = {site: value[row] for site, value in points.items()}
    return poutine.trace(pyro.poutine.condition(posterior.model, data=at)).get_trace()


@pytest.mark.parametrize("name", NAMES)
def test_energy_and_gradient_are_finite_at_typical_points(name: str, shared_data: Path) -> None:
    posterior = load(name, shared_data / "posteriors")
    points = {k: v.requires_grad_() for k, v in typical_points(posterior, shared_data).items()}
    energy = posterior.energy(points)
    assert energy.shape == (ROWS,)
    assert energy.isfinite().all()
    grads = torch.autograd.grad(energy.sum(), list(points.values()))
    for site, grad in zip(points, grads, strict=True):
        assert grad.shape == (ROWS, *posterior.sites[site])
        assert grad.isfinite().all(), site
        assert grad.ne(0).all(), site


@pytest.mark.parametrize("name", NAMES)
def test_energy_is_minus_the_log_joint_of_the_model(name: str, shared_data: Path) -> None:
    posterior = load(name, shared_data / "posteriors")
    points = typical_points(posterior, shared_data)
    energy = posterior.energy(points)
    wanted = -torch.stack([trace_at(posterior, points, row).log_prob_sum() for row in range(ROWS)])
    assert wanted.std() > 0.1  # so that the differences, free of constants, say something
    torch.testing.assert_close(energy - energy[0], wanted - wanted[0], rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_model_has_the_sites_supports_and_reported_scalars(name: str, shared_data: Path) -> None:
    posterior = load(name, shared_data / "posteriors")
    points = typical_points(posterior, shared_data)
    trace = trace_at(posterior, points, 0)
    latent = {k: v for k, v in trace.nodes.items() if k in posterior.sites}
    assert {k: tuple(v["value"].shape) for k, v in latent.items()} == posterior.sites
    positive = {k for k, v in latent.items() if not _is_real(v["fn"].support)}
    assert positive == set(posterior.support)
    shaped = {k: v.reshape(2, -1, *posterior.sites[k]) for k, v in points.items()}
    reported = posterior.reported(shaped)
    assert set(reported) == set(reference(name, shared_data))
    assert all(v.shape == (2, ROWS // 2) for v in reported.values())
    for site, node in trace.nodes.items():
        if node["type"] == "sample" and node["infer"].get("_deterministic"):
            values = [reported[f"{site}[{i + 1}]"][0, 0] for i in range(len(node["value"]))]
            torch.testing.assert_close(torch.stack(values), node["value"])


@pytest.mark.parametrize("name", FLAT)
def test_model_takes_starting_values_of_the_default_dtype(name: str, shared_data: Path) -> None:
    """Those that Pyro makes for an improper prior are float32 even where the data are float64."""
    posterior = load(name, shared_data / "posteriors")
    points = typical_points(posterior, shared_data, torch.float32)
    assert trace_at(posterior, points, 0).log_prob_sum().isfinite()


def _is_real(support: constraints.Constraint) -> bool:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support is constraints.real


@pytest.mark.parametrize("name", NAMES)
def test_float32_stays_and_is_close_to_float64(name: str, shared_data: Path) -> None:
    posterior = load(name, shared_data / "posteriors", torch.float32)
    points = typical_points(posterior, shared_data, torch.float32)
    energy = posterior.energy(points)
    assert energy.dtype == torch.float32
    assert all(v.dtype == torch.float32 for v in posterior.reported(points).values())
    wide = {k: v.double() for k, v in points.items()}
    wanted = load(name, shared_data / "posteriors").energy(wide)
    torch.testing.assert_close(energy.double(), wanted, rtol=1e-4, atol=1e-3)


def test_row_whose_covariance_has_no_factor_has_infinite_energy(shared_data: Path) -> None:
    posterior = load("gp_regr", shared_data / "posteriors")
    rows = {"rho": [6.9, 1e6, 6.9], "alpha": [2.4, 1e6, 2.4], "sigma": [1.8, 1e-9, 1.8]}
    energy = posterior.energy({k: torch.tensor(v, dtype=torch.float64) for k, v in rows.items()})
    assert energy[1] == math.inf
    assert energy[0].isfinite()
    assert energy[0] == energy[2]


@pytest.mark.parametrize("name", [*FLAT, "arK", "brownian_motion_missing"])
def test_mode_of_the_coefficients_is_the_reference_mean(name: str, shared_data: Path) -> None:
    """Given sigma these posteriors are Gaussian: one Newton step. Wrong data show only here."""
    posterior, known = load(name, shared_data / "posteriors"), reference(name, shared_data)
    site = "locs" if "locs" in posterior.sites else "beta"
    scalars = [f"{site}[{i + 1}]" for i in range(*posterior.sites[site])]
    mean = torch.tensor([known[k]["mean"] for k in scalars], dtype=torch.float64)
    error = torch.tensor([known[k]["mcse_mean"] for k in scalars], dtype=torch.float64)
    others = [k for k in posterior.sites if k != site]
    point = {k: torch.tensor([known[k]["mean"]], dtype=torch.float64) for k in others}

    def energy(x: Tensor) -> Tensor:
        return posterior.energy({site: x.unsqueeze(0), **point}).sum()

    hessian = torch.autograd.functional.hessian(energy, mean)
    step = torch.linalg.solve(hessian, torch.func.grad(energy)(mean))
    assert (step.abs() <= 4 * error + 1e-10).all()


def test_missing_observations_carry_no_information(shared_data: Path) -> None:
    """The energy's Hessian is that of the walk, plus 1 / r^2 where observed: not at 11 to 20."""
    posterior = load("brownian_motion_missing", shared_data / "posteriors")

    def energy(locs: Tensor) -> Tensor:
        return posterior.energy({"locs": locs.unsqueeze(0)}).sum()

    hessian = torch.autograd.functional.hessian(energy, torch.zeros(30, dtype=torch.float64))
    wanted = torch.full((30,), 2 / 0.1**2, dtype=torch.float64)
    wanted[-1] -= 1 / 0.1**2
    wanted[:10] += 1 / 0.15**2
    wanted[20:] += 1 / 0.15**2
    torch.testing.assert_close(hessian.diagonal(), wanted)
