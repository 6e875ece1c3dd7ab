"""Runs as ArviZ sees them, in both forms: shapes, dtypes, attributes, names, round trips, the groups of a Pyro model."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from torch import Tensor

import ebmppl as eb
from ebmppl.energies import Gaussian
from ebmppl.interop import from_pyro, to_arviz
from ebmppl.interop.arviz import import_arviz

FORMS = ["inference_data", "datatree"]
Y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SIGMA = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def eight_schools(y: Tensor, sigma: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        offset = pyro.sample("offset", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * offset)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def _group(data: Any, name: str) -> xr.Dataset:
    group = data[name]
    return group if isinstance(group, xr.Dataset) else group.to_dataset()


def _run(chains: int = 3, draws: int = 5, **options: Any) -> eb.MCMC:
    energy = eb.as_energy(lambda s: 0.5 * (s["a"] ** 2 + (s["b"] ** 2).sum((-2, -1))), {"a": (), "b": (2, 3)})
    options = {"initial_params": torch.zeros(chains, 7, dtype=torch.float64), **options}
    mcmc = eb.MCMC(eb.Langevin(energy, 0.1), draws, 2, num_chains=chains, seed=1, disable_progbar=True, **options)
    mcmc.run()
    return mcmc


@pytest.fixture(scope="module")
def schools() -> eb.MCMC:
    kernel = eb.HMC(from_pyro(eight_schools, Y, SIGMA), num_steps=8)
    mcmc = eb.MCMC(kernel, 250, 150, num_chains=12, seed=3, disable_progbar=True, save_warmup=True)
    mcmc.run()
    return mcmc


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("chains", "draws"), [(1, 5), (3, 5), (64, 2), (1000, 3)])
def test_any_number_of_chains(form: str, chains: int, draws: int) -> None:
    mcmc = _run(chains, draws)
    data = to_arviz(mcmc, form=form)
    posterior, stats = _group(data, "posterior"), _group(data, "sample_stats")
    assert posterior["a"].dims == ("chain", "draw")
    assert posterior["b"].shape == (chains, draws, 2, 3)
    samples = mcmc.get_samples(group_by_chain=True)
    for name in ("a", "b"):  # bit for bit: a conversion computes nothing
        np.testing.assert_array_equal(posterior[name].values, samples[name].numpy())
    assert set(stats.data_vars) == set(mcmc.stats())
    assert all(v.shape == (chains, draws) for v in stats.data_vars.values())


def test_the_form_follows_the_installed_arviz() -> None:
    az = import_arviz()
    wanted = xr.DataTree if int(az.__version__.split(".")[0]) else az.InferenceData
    assert isinstance(to_arviz(_run()), wanted)
    with pytest.raises(ValueError, match="expected form"):
        to_arviz(_run(), form="netcdf")  # type: ignore[arg-type]


@pytest.mark.parametrize("form", FORMS)
def test_more_than_ten_chains_keep_their_order(form: str, schools: eb.MCMC) -> None:
    # chains sorted as strings would be 0, 1, 10, 11, 2, ...
    posterior = _group(to_arviz(schools, form=form), "posterior")
    samples = schools.get_samples(group_by_chain=True)
    assert posterior["chain"].values.tolist() == list(range(12))
    np.testing.assert_array_equal(posterior["offset"].sel(chain=10).values, samples["offset"][10].numpy())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtypes_are_kept(form: str, dtype: torch.dtype) -> None:
    data = to_arviz(_run(initial_params=torch.zeros(3, 7, dtype=dtype)), form=form)
    assert _group(data, "posterior")["a"].dtype == str(dtype).removeprefix("torch.")
    assert _group(data, "sample_stats")["diverging"].dtype == bool


@pytest.mark.parametrize("form", FORMS)
def test_counts_stay_integers(form: str, schools: eb.MCMC) -> None:
    assert _group(to_arviz(schools, form=form), "sample_stats")["n_steps"].dtype == np.int32


class _Integers:
    """A finished run whose states are integers, as those of lattice models are."""

    def __init__(self, states: Tensor) -> None:
        self._run = _run(*states.shape[:2])
        self._states = states

    def __getattr__(self, name: str) -> Any:
        return getattr(self._run, name)

    def get_samples(self, **_: Any) -> dict[str, Tensor]:
        return {"x": self._states}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.bfloat16])
def test_integer_states_and_their_round_trip(form: str, dtype: torch.dtype, tmp_path: Path) -> None:
    states = torch.arange(3 * 5 * 4).reshape(3, 5, 2, 2).remainder(2).to(dtype)
    data = to_arviz(_Integers(states), form=form)  # type: ignore[arg-type]
    wanted = "float32" if dtype == torch.bfloat16 else str(dtype).removeprefix("torch.")  # NumPy has no bfloat16
    assert _group(data, "posterior")["x"].dtype == wanted
    data.to_netcdf(tmp_path / "run.nc")
    with xr.open_datatree(tmp_path / "run.nc") as tree:
        np.testing.assert_array_equal(tree["posterior"]["x"].values, _group(data, "posterior")["x"].values)
        assert tree["posterior"]["x"].dtype == wanted


@pytest.mark.parametrize("form", FORMS)
def test_attributes_of_every_group_survive_netcdf(form: str, schools: eb.MCMC, tmp_path: Path) -> None:
    data = to_arviz(schools, form=form, save_warmup=True)
    data.to_netcdf(tmp_path / "run.nc")
    with xr.open_datatree(tmp_path / "run.nc") as tree:
        groups = list(tree.children)
        assert {"posterior", "sample_stats", "warmup_posterior", "warmup_sample_stats", "observed_data"} < set(groups)
        for name in groups:
            attrs = tree[name].attrs
            assert attrs["kernel"] == "HMC"
            assert json.loads(attrs["kernel_settings"])["num_steps"] == 8
            assert attrs["inference_library"] == "ebmppl"
            assert attrs["inference_library_version"] == eb.__version__
            assert attrs["torch_version"] == str(torch.__version__)
            assert attrs["pyro_version"] == pyro.__version__
            assert (attrs["seed"], attrs["num_chains"], attrs["warmup_steps"], attrs["thinning"]) == (3, 12, 150, 1)
            assert attrs["backend"] == schools.backend
            assert attrs["gradients"] == schools.gradients > 12 * 400  # every draw takes at least one
            assert attrs["sampling_time"] == pytest.approx(schools.sampling_time)
            assert "created_at" in attrs
        for name in ("posterior", "log_likelihood"):
            xr.testing.assert_equal(tree[name].to_dataset(), _group(data, name))


# Names of axes.


@pytest.mark.parametrize("form", FORMS)
def test_dims_and_coords_name_the_axes(form: str) -> None:
    data = to_arviz(_run(), form=form, dims={"b": ["row", "column"]}, coords={"column": ["u", "v", "w"]})
    b = _group(data, "posterior")["b"]
    assert b.dims == ("chain", "draw", "row", "column")
    assert b.sel(column="v").shape == (3, 5, 2)
    assert "column" not in _group(data, "sample_stats").coords


@pytest.mark.parametrize("form", FORMS)
def test_a_site_named_like_a_statistic_keeps_its_dims(form: str) -> None:
    energy = eb.as_energy(lambda s: (s["lp"] ** 2).sum(-1), {"lp": (2,)})
    mcmc = eb.MCMC(eb.Langevin(energy, 0.1), 4, 0, num_chains=2, seed=1, disable_progbar=True)
    mcmc.run()
    data = to_arviz(mcmc, form=form, dims={"lp": ["side"]})
    assert _group(data, "posterior")["lp"].dims == ("chain", "draw", "side")
    assert _group(data, "sample_stats")["lp"].dims == ("chain", "draw")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dims": {"c": ["row"]}}, r"expected dims for the sites \['a', 'b'\], got dims for \['c'\]"),
        ({"dims": {"b": ["row"]}}, r"expected 2 dims for site 'b' of shape \(2, 3\), got \['row'\]"),
        ({"dims": {"b": "rc"}}, "expected 2 dims for site 'b'"),
        ({"dims": {"b": ["row", "row"]}}, "expected different dims of site 'b'"),
        ({"dims": {"b": ["row", "chain"]}}, "expected different dims of site 'b'"),
        ({"coords": {"row": [1, 2]}}, r"expected coords for the dims \[\], got coords for \['row'\]"),
        (
            {"dims": {"b": ["row", "column"]}, "coords": {"row": [1]}},
            "expected 2 coords for dim 'row' of site 'b', got 1",
        ),
        ({"dims": {"b": ["row", "column"]}, "coords": {"row": [1, 1]}}, "without repetitions"),
        ({"prior_draws": -1}, "expected prior_draws >= 0, got -1"),
    ],
)
def test_wrong_names_say_what_was_wanted(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_arviz(_run(), **options)


def test_sites_that_share_a_dim_must_agree() -> None:
    energy = eb.as_energy(lambda s: (s["a"] ** 2).sum(-1) + (s["b"] ** 2).sum(-1), {"a": (2,), "b": (3,)})
    mcmc = eb.MCMC(eb.Langevin(energy, 0.1), 4, 0, seed=1, disable_progbar=True)
    mcmc.run()
    with pytest.raises(ValueError, match="expected dim 'k' of length 2 as in site 'a', got 3 in 'b'"):
        to_arviz(mcmc, dims={"a": ["k"], "b": ["k"]})


def test_reserved_site_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected site names other than .* got \['draw'\]"):
        eb.as_energy(lambda s: s["draw"] ** 2, {"draw": ()})


# Warm-up.


@pytest.mark.parametrize("form", FORMS)
def test_warmup_groups(form: str, schools: eb.MCMC) -> None:
    data = to_arviz(schools, form=form, save_warmup=True)
    draws, stats = schools.warmup()
    warm = _group(data, "warmup_posterior")
    assert warm["offset"].shape == (12, schools.warmup_kept, 8)
    np.testing.assert_array_equal(warm["mu"].values, draws["mu"].numpy())
    assert set(_group(data, "warmup_sample_stats").data_vars) == set(stats)
    assert "warmup_posterior" not in to_arviz(schools, form=form)


def test_warmup_that_was_not_kept_is_an_error_and_none_is_said_so() -> None:
    with pytest.raises(ValueError, match="save_warmup=True"):
        to_arviz(_run(), save_warmup=True)
    mcmc = eb.MCMC(
        eb.Langevin(Gaussian(torch.zeros(2), torch.eye(2)), 0.1), 4, 0, seed=1, save_warmup=True, disable_progbar=True
    )
    mcmc.run()
    posterior = _group(to_arviz(mcmc, save_warmup=True), "posterior")
    assert posterior.attrs["warmup_posterior_skipped"] == "the run had no warm-up draws"


# The groups of a Pyro model.


@pytest.mark.parametrize("form", FORMS)
def test_groups_of_a_pyro_model(form: str, schools: eb.MCMC) -> None:
    names = {"dims": {n: ["school"] for n in ("offset", "theta", "y")}, "coords": {"school": list("ABCDEFGH")}}
    data = to_arviz(schools, form=form, prior_draws=70, **names)
    posterior, prior = _group(data, "posterior"), _group(data, "prior")
    theta = posterior["mu"] + posterior["tau"] * posterior["offset"]
    xr.testing.assert_allclose(posterior["theta"], theta.rename("theta"), rtol=1e-5)  # float32, two roundings
    normal = torch.distributions.Normal(torch.tensor(theta.transpose("chain", "draw", "school").values), SIGMA)
    np.testing.assert_allclose(_group(data, "log_likelihood")["y"].values, normal.log_prob(Y).numpy(), rtol=1e-5)
    np.testing.assert_array_equal(_group(data, "observed_data")["y"].values, Y.numpy())
    assert _group(data, "observed_data")["y"].dims == ("school",)
    assert _group(data, "posterior_predictive")["y"].dims == ("chain", "draw", "school")
    assert _group(data, "posterior_predictive")["y"].shape == (12, 250, 8)
    assert set(prior.data_vars) == {"mu", "tau", "offset", "theta"}
    assert prior["theta"].shape == (1, 70, 8)
    assert _group(data, "prior_predictive")["y"].shape == (1, 70, 8)


def test_what_is_not_asked_for_is_left_out(schools: eb.MCMC) -> None:
    data = to_arviz(schools, log_likelihood=False, prior_draws=0, posterior_predictive=False)
    for name in ("log_likelihood", "prior", "prior_predictive", "posterior_predictive"):
        assert name not in data
    assert "theta" in _group(data, "posterior")  # deterministic sites are part of the posterior


def test_the_global_generator_is_left_alone_and_the_seed_decides(schools: eb.MCMC) -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    first = to_arviz(schools)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(1)
    second = to_arviz(schools, prior_draws=3)
    for group in ("posterior_predictive", "log_likelihood"):
        xr.testing.assert_equal(_group(first, group), _group(second, group))


def test_loo_and_compare_take_the_log_likelihood(schools: eb.MCMC) -> None:
    az = import_arviz()
    pooled = from_pyro(_pooled, Y, SIGMA)
    other = eb.MCMC(eb.HMC(pooled, num_steps=4), 250, 150, num_chains=4, seed=3, disable_progbar=True)
    other.run()
    with warnings.catch_warnings():
        # of the models, not of the groups
        warnings.filterwarnings("ignore", message="Estimated shape parameter of Pareto")
        # ArviZ 0.23 on pandas 3.1
        warnings.filterwarnings("ignore", message="The inplace keyword in DataFrame.sort_values")
        loo = az.loo(to_arviz(schools))
        table = az.compare({"partial": to_arviz(schools), "pooled": to_arviz(other)})
    # ArviZ's own "non_centered_eight" (2000 draws of PyMC) gives -30.72; the Monte Carlo error is about 0.05 in each
    assert float(loo.iloc[0]) == pytest.approx(-30.72, abs=0.2)
    assert set(table.index) == {"partial", "pooled"}


def _pooled(y: Tensor, sigma: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    with pyro.plate("schools", len(y)):
        pyro.sample("y", dist.Normal(mu, sigma), obs=y)


def test_the_users_transforms_are_undone_for_the_model(schools: eb.MCMC) -> None:
    kernel = eb.HMC(from_pyro(_pooled, Y, SIGMA), num_steps=4)
    double = torch.distributions.AffineTransform(0.0, 0.5)  # whose inverse doubles
    options = {"num_chains": 2, "seed": 5, "disable_progbar": True}
    plain, doubled = eb.MCMC(kernel, 20, 10, **options), eb.MCMC(kernel, 20, 10, transforms={"mu": double}, **options)
    plain.run()
    doubled.run()
    a, b = to_arviz(plain), to_arviz(doubled)
    np.testing.assert_allclose(2 * _group(a, "posterior")["mu"].values, _group(b, "posterior")["mu"].values, rtol=1e-6)
    xr.testing.assert_allclose(_group(a, "log_likelihood"), _group(b, "log_likelihood"), rtol=1e-5)


def test_groups_that_need_all_sites_are_missing_with_the_reason(schools: eb.MCMC) -> None:
    kernel = eb.HMC(from_pyro(eight_schools, Y, SIGMA), num_steps=4)
    mcmc = eb.MCMC(kernel, 5, 5, num_chains=2, seed=1, save_params=["mu"], disable_progbar=True)
    mcmc.run()
    posterior = _group(to_arviz(mcmc), "posterior")
    assert list(posterior.data_vars) == ["mu"]
    assert posterior.attrs["log_likelihood_skipped"] == "save_params left out offset, tau"


def test_a_model_of_an_improper_prior_has_no_prior_groups() -> None:
    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    mcmc = eb.MCMC(eb.HMC(from_pyro(model, Y), num_steps=3), 20, 20, seed=1, disable_progbar=True)
    mcmc.run()
    data = to_arviz(mcmc)
    assert "prior" not in data
    assert _group(data, "posterior").attrs["prior_skipped"].endswith("ImproperUniform does not support sampling")
    assert _group(data, "posterior_predictive")["y"].shape == (1, 20, 8)


def test_a_model_that_fails_at_draws_from_its_prior_has_no_prior_group() -> None:
    def model() -> None:
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(m, m), obs=torch.tensor(1.0))

    start = torch.full((4, 1), 0.7)
    mcmc = eb.MCMC(eb.NUTS(eb.from_pyro(model)), 10, 10, start, num_chains=4, seed=0, disable_progbar=True)
    mcmc.run()
    idata = mcmc.to_arviz()
    assert "prior" not in idata.groups()
    assert "the model fails at draws from its prior" in str(idata.posterior.attrs)
