"""Where chains begin, and what is said when they can't."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import constraints

import ebmppl as eb
from ebmppl.energies import Energy
from ebmppl.errors import EnergyError
from ebmppl.sampling import FromData, Uniform
from ebmppl.sampling.initial import RETRIES, Start, starting_points


def half_line(border: float) -> Energy:
    """A normal beyond a border in every coordinate, without energy before it."""

    def fn(x: Tensor) -> Tensor:
        return 0.5 * (x**2).sum(-1) - torch.log((x > border).all(-1).to(x.dtype))

    return eb.as_energy(fn, (2,), batched=True)


def sites() -> Energy:
    support = {"rate": constraints.positive, "x": constraints.real}
    shapes = {"rate": (), "x": (3,)}
    return eb.as_energy(lambda s: s["rate"] + 0.5 * (s["x"] ** 2).sum(-1), shapes, support, batched=True)


def mcmc(energy: Energy, start: Any, chains: int = 6, seed: int = 0) -> eb.MCMC:
    return eb.MCMC(eb.MALA(energy), 2, 0, start, num_chains=chains, seed=seed, disable_progbar=True)


def begin(energy: Energy, start: Start, chains: int = 200, seed: int = 0) -> Tensor:
    return starting_points(eb.MALA(energy).target, start, chains, seed).points


def test_uniform_fills_its_box() -> None:
    x = begin(half_line(-10.0), Uniform(0.5), 2000)
    assert float(x.abs().max()) <= 0.5
    assert float(x.max()) > 0.49  # missed by 4000 numbers with probability (1 - 0.01)^4000
    assert float(begin(half_line(-10.0), Uniform(), 2000).abs().max()) > 1.96


def test_points_without_energy_are_drawn_again_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    run = mcmc(half_line(0.0), Uniform(), 64)
    with caplog.at_level(logging.INFO, "ebmppl"):
        run.run()
    assert bool((begin(half_line(0.0), Uniform()) > 0).all())
    assert int(run.initial_attempts.min()) == 1
    # a point is good with probability 1/4: of 64 first ones 48 are not, within 5 standard deviations
    again = int((run.initial_attempts > 1).sum())
    assert 31 <= again <= 64
    most = int(run.initial_attempts.max()) - 1
    assert f"{again} of 64 chains drew their initial point again, up to {most} times" in caplog.text


def test_chains_that_find_no_point_are_named_with_their_attempts() -> None:
    said = rf"6 of 6 that are not .*chains: 0, 1, 2.*each drew {RETRIES} points: pass initial_params"
    with pytest.raises(EnergyError, match=said):
        mcmc(half_line(3.0), Uniform()).run()


def test_rows_of_data_are_where_chains_begin() -> None:
    data = torch.arange(10.0).view(5, 2).double()
    x = begin(half_line(-10.0), FromData(data))
    assert x.dtype == torch.float64
    assert {tuple(row) for row in x.tolist()} == {tuple(row) for row in data.tolist()}
    assert torch.equal(x[:64], begin(half_line(-10.0), FromData(data), 64))  # whatever chains are beside them
    assert not torch.equal(x, begin(half_line(-10.0), FromData(data), seed=1))


def test_rows_without_energy_are_left_out() -> None:
    data = torch.tensor([[-1.0, 1.0], [2.0, 3.0], [torch.nan, 1.0]])
    assert bool((begin(half_line(0.0), FromData(data)) == data[1]).all())


def test_data_by_site_lie_in_the_support() -> None:
    data = {"rate": torch.tensor([0.1, 5.0]), "x": torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])}
    x = begin(sites(), FromData(data))
    assert torch.allclose(x[:, 0].exp(), torch.where(x[:, 1] == 1.0, 0.1, 5.0))
    assert bool(((x[:, 1:] == data["x"][0]) | (x[:, 1:] == data["x"][1])).all())


def test_data_of_a_pyro_model() -> None:
    def model() -> None:
        pyro.sample("scale", dist.HalfNormal(1.0))
        with pyro.plate("rows", 2):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    energy = eb.from_pyro(model)
    x = begin(energy, FromData({"scale": torch.tensor([2.0]), "z": torch.tensor([[1.0, -1.0]])}), 3)
    found = energy.constrain(x)
    assert torch.allclose(found["scale"], torch.full((3,), 2.0))
    assert torch.equal(found["z"], torch.tensor([[1.0, -1.0]]).expand(3, 2))


def test_jitter_spreads_the_chains() -> None:
    x = begin(half_line(-10.0), FromData(torch.zeros(1, 2), jitter=0.3), 2000)
    # 4000 normals: the standard error of their deviation is 1 / sqrt(8000) of it; five of them
    assert abs(float(x.std()) / 0.3 - 1) < 5 / np.sqrt(8000)


def test_a_run_begins_where_it_says() -> None:
    data = torch.tensor([[3.0, 3.0]])
    kernel = eb.Langevin(half_line(-10.0), step_size=1e-12)
    run = eb.MCMC(kernel, 1, 0, FromData(data), num_chains=3, seed=0, disable_progbar=True)
    run.run()
    assert torch.allclose(run.get_samples()["x"], data.expand(3, 2), atol=1e-4)


BAD: list[tuple[Energy, Any, str]] = [
    (half_line(0.0), Uniform(0.0), "radius > 0, got 0.0"),
    (half_line(0.0), FromData(torch.ones(3, 2), -1.0), "jitter >= 0, got -1.0"),
    (half_line(0.0), FromData(torch.ones(3, 4)), r"site 'x' of shape \(\*, 2\), got \(3, 4\)"),
    (half_line(0.0), FromData(torch.ones(2)), r"at least one row of data to begin at, got \(2,\)"),
    (half_line(0.0), FromData(torch.ones(0, 2)), r"at least one row of data to begin at, got \(0, 2\)"),
    (
        half_line(0.0),
        FromData(torch.ones(3, 2, dtype=torch.int64)),
        "floating point tensors as data .* got torch.int64",
    ),
    (sites(), FromData(torch.ones(3, 4)), r"data by site, \['rate', 'x'\], got one tensor"),
    (sites(), FromData({"rate": torch.ones(3), "y": torch.ones(3, 3)}), "y"),
    (sites(), FromData({"rate": -torch.ones(3), "x": torch.ones(3, 3)}), "finite energy"),
    (half_line(0.0), np.ones((6, 2)), "initial_params as a tensor, a dict of tensors by site, .* got ndarray"),
]


@pytest.mark.parametrize(("energy", "start", "match"), BAD, ids=range(len(BAD)))
def test_bad_starts_are_refused(energy: Energy, start: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        mcmc(energy, start).run()
