"""A run as ArviZ sees it: ``InferenceData`` for ArviZ 0.x, ``xarray.DataTree`` for ArviZ 1.x."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pyro
import torch
from torch import Tensor

from ebmppl.errors import first_line
from ebmppl.interop import pyro_predictive as predictive
from ebmppl.interop.derived import Statistics, derived
from ebmppl.interop.dims import Coords, Dims, checked_dims
from ebmppl.interop.pyro_sites import PyroModel, Sites, inspect_sites

if TYPE_CHECKING:
    import xarray as xr

    from ebmppl.sampling.mcmc import MCMC

Form = Literal["inference_data", "datatree"]
Arrays = dict[str, dict[str, np.ndarray]]  # group -> variable -> values


@contextmanager
def quiet_arviz() -> Iterator[None]:
    """Silence what ArviZ says of many chains and of its own future, and nothing else."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"\s*ArviZ is undergoing a major refactor", category=FutureWarning)
        warnings.filterwarnings("ignore", message="More chains", category=UserWarning)
        warnings.filterwarnings("ignore", message="Found chain dimension to be longer", category=UserWarning)
        yield


def import_arviz() -> Any:
    """The module ``arviz``, of whichever generation is installed."""
    with quiet_arviz():
        import arviz
    return arviz


def installed_form() -> Form:
    """The form that the installed ArviZ reads."""
    return "inference_data" if int(import_arviz().__version__.split(".")[0]) == 0 else "datatree"


class Options(NamedTuple):
    """What ``to_arviz`` is asked for; see there."""

    statistics: Statistics
    save_warmup: bool
    log_likelihood: bool
    prior_draws: int
    posterior_predictive: bool


def to_arviz(
    mcmc: MCMC,
    *,
    statistics: Statistics | None = None,
    dims: Dims | None = None,
    coords: Coords | None = None,
    save_warmup: bool = False,
    log_likelihood: bool = True,
    prior_draws: int = 500,
    posterior_predictive: bool = True,
    form: Form | None = None,
) -> Any:
    """A run with its draws, statistics and settings for ArviZ; for a Pyro model also all that the model says of them.

    Every group has attributes: kernel and its settings (JSON), versions, seed, backend, number of chains, warm-up
    steps, thinning, sampling time in seconds, gradients spent. The predictive draws of a Pyro model use generators of
    their own, seeded by the run's seed; torch's global one is left as it is. A group that a Pyro model can't have is
    missing, with the reason in the attribute ``<group>_skipped``.

    Args:
        mcmc: a run.
        statistics: by name, functions of a batch of points ``(batch, *site)`` that give ``(batch,)`` or ``(batch, ...)``;
            they become variables of the posterior. See ``diagnostics.statistics``. An ``Energy`` is such a function.
        dims: names for the axes of a site, by site (of one point: without chain and draw).
        coords: labels along the named axes.
        save_warmup: also groups ``warmup_posterior`` and ``warmup_sample_stats``, of a run with ``save_warmup=True``.
        log_likelihood: for a Pyro model, pointwise log-likelihoods in nats, for ``arviz.loo`` and ``arviz.compare``.
        prior_draws: for a Pyro model, draws >= 0 of its prior and prior predictive.
        posterior_predictive: for a Pyro model, a replicate of the data for every draw.
        form: "inference_data" or "datatree"; what the installed ArviZ reads when None.

    Returns:
        ``arviz.InferenceData`` or ``xarray.DataTree`` with groups ``posterior`` (``(chain, draw, *site)``),
        ``sample_stats``, and for a Pyro model ``observed_data``, ``log_likelihood``, ``prior``, ``prior_predictive``
        and ``posterior_predictive``.

    Raises:
        ValueError: without draws, for a statistic of another shape or with the name of a site, for warm-up that was
            not kept, or for dims and coords that don't fit the sites.
    """
    if form not in (None, "inference_data", "datatree"):
        raise ValueError(f"expected form 'inference_data', 'datatree' or None, got {form!r}")
    if prior_draws < 0:
        raise ValueError(f"expected prior_draws >= 0, got {prior_draws}")
    options = Options(statistics or {}, save_warmup, log_likelihood, prior_draws, posterior_predictive)
    arrays, skipped = _arrays(mcmc, options)
    sites = {n: v.shape[2:] for n, v in arrays["posterior"].items()}
    data = {n: v.shape for n, v in arrays.get("observed_data", {}).items()}
    own_dims = checked_dims({**data, **sites}, dims or {}, coords or {})
    return _assemble(arrays, own_dims, coords or {}, _attributes(mcmc, skipped), form or installed_form())


# What goes in.


def _arrays(mcmc: MCMC, options: Options) -> tuple[Arrays, dict[str, str]]:
    """All groups, and by group the reason why it is missing."""
    samples, skipped = mcmc.get_samples(group_by_chain=True), {}
    arrays: Arrays = {"posterior": host_arrays(samples), "sample_stats": host_arrays(mcmc.stats())}
    if options.save_warmup:
        if mcmc.save_warmup and mcmc.warmup_kept == 0:
            skipped["warmup_posterior"] = "the run had no warm-up draws"
        else:
            draws, stats = mcmc.warmup()
            arrays["warmup_posterior"], arrays["warmup_sample_stats"] = host_arrays(draws), host_arrays(stats)
    model = _pyro_model(mcmc, samples)
    if isinstance(model, str):
        skipped.update(dict.fromkeys(("log_likelihood", "prior", "posterior_predictive"), model))
    elif model is not None:
        more, reasons = _pyro_arrays(mcmc, model, samples, options)
        arrays["posterior"].update(more.pop("posterior", {}))
        arrays.update(more)
        skipped.update(reasons)
    arrays["posterior"].update(host_arrays(derived(samples, options.statistics, arrays["posterior"])))
    return arrays, skipped


def host_arrays(values: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """On the host, at their own dtype unless NumPy or netCDF lack it."""
    lacking = (torch.bfloat16, torch.float16)
    host = {name: value.detach().cpu() for name, value in values.items()}
    return {name: (v.float() if v.dtype in lacking else v).numpy() for name, v in host.items()}


def _pyro_model(mcmc: MCMC, samples: dict[str, Tensor]) -> PyroModel | str | None:
    """The Pyro model that is sampled, None for another energy, or why the draws don't suffice to run it."""
    from ebmppl.interop.pyro_model import PyroEnergy

    energy = mcmc.kernel.target
    if not isinstance(energy, PyroEnergy):
        return None
    missing = sorted(set(energy.sites) - set(samples))
    if missing:
        return f"save_params left out {', '.join(missing)}"
    point = {name: value[0, 0] for name, value in _model_values(mcmc, samples).items()}
    return PyroModel(energy.model, energy.args, energy.kwargs, point)


def _model_values(mcmc: MCMC, samples: dict[str, Tensor]) -> dict[str, Tensor]:
    """Draws as the model knows them: the user's own transforms undone."""
    own = mcmc.transforms or {}
    return {name: own[name](value) if name in own else value for name, value in samples.items()}


def _pyro_arrays(
    mcmc: MCMC, model: PyroModel, samples: dict[str, Tensor], options: Options
) -> tuple[Arrays, dict[str, str]]:
    seed, skipped = mcmc.seed, {}
    sites = inspect_sites(model, seed)
    chains, kept = mcmc.num_chains, mcmc.kept
    flat = {name: value.flatten(0, 1) for name, value in _model_values(mcmc, samples).items()}
    groups: dict[str, dict[str, Tensor]] = {}
    summed_out = f"the model sums out the discrete latents {', '.join(sites.discrete)}"
    if sites.discrete:
        skipped.update({"log_likelihood": summed_out} if options.log_likelihood else {})
        skipped.update({"deterministic": summed_out} if sites.deterministic else {})
    elif sites.deterministic or (options.log_likelihood and sites.observed):
        groups |= predictive.pointwise(model, sites, flat, seed, log_likelihood=options.log_likelihood)
    if options.posterior_predictive and sites.observed:
        try:
            groups |= predictive.posterior_predictive(model, sites, flat, seed)
        except NotImplementedError as error:  # a distribution without a sampler
            skipped["posterior_predictive"] = first_line(error)
    arrays = {group: host_arrays(_by_chain(values, chains, kept)) for group, values in groups.items()}
    if options.prior_draws:
        prior, reason = _prior(model, sites, options.prior_draws, seed)
        arrays |= {group: host_arrays(_by_chain(values, 1, options.prior_draws)) for group, values in prior.items()}
        skipped.update({"prior": reason} if reason else {})
    arrays["observed_data"] = host_arrays(sites.observed_data)
    return {group: values for group, values in arrays.items() if values}, skipped


def _prior(model: PyroModel, sites: Sites, draws: int, seed: int) -> tuple[predictive.Groups, str]:
    """The groups of the prior, or the reason why there are none."""
    if sites.why_no_prior:
        return {}, sites.why_no_prior
    try:
        return predictive.prior_predictive(model, sites, draws, seed), ""
    except NotImplementedError as error:  # an improper prior
        return {}, f"no draws from the prior: {first_line(error)}"
    except (RuntimeError, ValueError) as error:  # a draw of the prior at which the model has no data
        return {}, f"the model fails at draws from its prior: {first_line(error)}"


def _by_chain(values: Mapping[str, Tensor], chains: int, draws: int) -> dict[str, Tensor]:
    return {name: value.reshape(chains, draws, *value.shape[1:]) for name, value in values.items()}


def _attributes(mcmc: MCMC, skipped: Mapping[str, str]) -> dict[str, str | int | float]:
    """Facts of the run, in types that netCDF has."""
    from ebmppl import __version__

    return {
        "inference_library": "ebmppl",
        "inference_library_version": __version__,
        "torch_version": str(torch.__version__),
        "pyro_version": str(pyro.__version__),
        "kernel": type(mcmc.kernel).__name__,
        "kernel_settings": json.dumps(mcmc.kernel.settings()),
        "seed": mcmc.seed,
        "backend": mcmc.backend,
        "backend_reason": mcmc.backend_reason,
        "num_chains": mcmc.num_chains,
        "warmup_steps": mcmc.warmup_steps,
        "thinning": mcmc.thinning,
        "sampling_time": float(mcmc.sampling_time),
        "gradients": int(mcmc.gradients),
        **{f"{group}_skipped": reason for group, reason in skipped.items()},
    }


# What comes out.


def _assemble(arrays: Arrays, dims: dict[str, list[str]], coords: Coords, attrs: dict[str, Any], form: Form) -> Any:
    with quiet_arviz():
        datasets = {
            group: _dataset(group, values, {} if group.endswith("stats") else dims, coords, attrs, form)
            for group, values in arrays.items()
        }
        if form == "inference_data":
            return import_arviz().InferenceData(attrs=attrs, **datasets)
        from xarray import DataTree

        tree = DataTree.from_dict(datasets)
        tree.attrs.update(attrs)
        return tree


def _dataset(
    group: str,
    values: dict[str, np.ndarray],
    dims: dict[str, list[str]],
    coords: Coords,
    attrs: dict[str, Any],
    form: Form,
) -> xr.Dataset:
    """One group, by the function with which ``from_dict`` makes each; statistics may share their names with sites."""
    options: dict[str, Any] = {"attrs": attrs, "skip_event_dims": group == "log_likelihood"}
    options["dims"] = {name: dims[name] for name in values if name in dims}
    options["coords"] = {n: np.asarray(v) for n, v in coords.items() if any(n in d for d in options["dims"].values())}
    samples = [] if group == "observed_data" else ["chain", "draw"]
    if form == "inference_data":
        return import_arviz().dict_to_dataset(values, default_dims=samples, **options)
    import arviz_base

    return arviz_base.dict_to_dataset(values, sample_dims=samples, **options)
