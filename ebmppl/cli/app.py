"""The commands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any

import pyro
import torch
import typer

from ebmppl.cli import options as o
from ebmppl.cli.errors import INTERRUPTED, UserError, describe, in_one_line, say
from ebmppl.cli.kernels import Wanted
from ebmppl.cli.loading import find, find_statistics, folder_on_path, import_file, split_spec, to_energy
from ebmppl.cli.models import make
from ebmppl.cli.outputs import Outputs
from ebmppl.cli.parsing import parse_betas, parse_kernels
from ebmppl.energies import Energy
from ebmppl.energies.discrete import discrete
from ebmppl.interop.derived import Statistic, Statistics, derived
from ebmppl.kernels import ParallelTempering
from ebmppl.sampling import MCMC
from ebmppl.sampling.choice import require_backend

# a Pyro model's predictive draws are of use on disk only
_NO_PREDICTIONS = {"log_likelihood": False, "prior_draws": 0, "posterior_predictive": False}

app = typer.Typer(
    name="ebmppl",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def main() -> None:
    """The console script ``ebmppl``."""
    app(prog_name="ebmppl")


def _show_version(show: bool) -> None:
    if show:
        from ebmppl import __version__

        typer.echo(f"ebmppl {__version__}")
        raise typer.Exit


@app.callback()
def _ebmppl(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and end.")
    ] = False,
) -> None:
    """Sample energies, functions and Pyro models with many chains at once, and judge the draws."""


@app.command(epilog=o.SAMPLE_EXAMPLES)
def sample(
    spec: o.Spec,
    event_shape: o.EventShape = None,
    support: o.Support = None,
    is_pyro: o.IsPyro = False,
    dtype: o.Dtype = None,
    kernel: o.KernelName = None,
    step_size: o.StepSize = None,
    num_steps: o.NumSteps = None,
    trajectory_length: o.TrajectoryLength = None,
    full_mass: o.FullMass = False,
    target_accept: o.TargetAccept = None,
    max_tree_depth: o.MaxTreeDepth = None,
    betas: o.Betas = None,
    chains: o.Chains = 64,
    draws: o.Draws = 500,
    warmup: o.Warmup = None,
    thinning: o.Thinning = 1,
    seed: o.Seed = None,
    backend: o.Backend = "auto",
    quiet: o.Quiet = False,
    out: o.Out = None,
    save: o.Save = None,
    plot: o.Plot = None,
    rank_plot: o.RankPlot = None,
    lattice_plot: o.LatticePlot = None,
    statistic: o.Statistic = None,
    prob: o.Prob = 0.9,
    debug: o.Debug = False,
) -> None:
    """Sample from exp(-energy) and say how far the draws can be trusted."""
    settings = {
        "step_size": step_size,
        "num_steps": num_steps,
        "trajectory_length": trajectory_length,
        "full_mass": full_mass or None,
        "target_accept_prob": target_accept,
        "max_tree_depth": max_tree_depth,
    }
    settings = {name: value for name, value in settings.items() if value is not None}
    options: dict[str, Any] = {"thinning": thinning, "seed": seed, "backend": backend, "disable_progbar": quiet}
    with in_one_line(debug=debug):
        wanted = Wanted(parse_kernels(kernel), settings, parse_betas(betas))
        wanted.check()
        outputs = Outputs(save, out, plot, rank_plot, lattice_plot)
        outputs.check()
        require_backend(backend)
        _check_prob(prob)
        file, name = split_spec(spec)
    with in_one_line(file, debug=debug), folder_on_path(file), _default_dtype(dtype):
        if seed is not None:
            pyro.set_rng_seed(seed % 2**32)
        energy, statistics = _load(file, name, event_shape, support or (), statistic or (), is_pyro=is_pyro)
        energy = energy if dtype is None else energy.to(getattr(torch, dtype))
        outputs.check_for(energy)
        mcmc = MCMC(wanted.make(energy), draws, warmup, num_chains=chains, **options)
        _run(mcmc)
        _report(mcmc, outputs, prob, statistics, file)
    if mcmc.kept < draws:
        raise typer.Exit(INTERRUPTED)


def _load(
    file: Path | None, name: str, shape: str | None, support: Sequence[str], statistics: Sequence[str], *, is_pyro: bool
) -> tuple[Energy, dict[str, Statistic]]:
    """What to sample, and which statistics of it to judge."""
    if file is not None:
        module = import_file(file)
        return to_energy(find(module, name), name, shape, support, is_pyro=is_pyro), find_statistics(statistics, module)
    if shape is not None or support or is_pyro:
        raise UserError("--event-shape, --support and --pyro are for files; models know their own")
    return make(name), find_statistics(statistics, None)


def _run(mcmc: MCMC) -> None:
    try:
        mcmc.run()
    except KeyboardInterrupt:
        say("Interrupted before every chain had a draw: nothing was written.")
        raise typer.Exit(INTERRUPTED) from None


def _report(mcmc: MCMC, outputs: Outputs, prob: float, statistics: Statistics, file: Path | None) -> None:
    """Write the files, print the summary and what the run took; errors of statistics and of writing come last."""
    from ebmppl.diagnostics.summary import summarize

    lines, failures = list[str](), dict[str, Exception]()
    options = {} if outputs.out else _NO_PREDICTIONS
    idata = cache(partial(_for_arviz, mcmc, statistics, options, file, failures))
    for what, error in outputs.write(mcmc, idata):
        if error is None:
            lines.append(f"Wrote {what}.")
        else:
            failures[f"could not write {what}: {' '.join(str(error).split())}"] = error
    typer.echo(str(summarize(idata(), prob)))
    typer.echo(_facts(mcmc))
    typer.echo("\n".join(lines), nl=bool(lines))
    if mcmc.kept < mcmc.num_samples:
        say(f"Interrupted: every chain has {mcmc.kept} of {mcmc.num_samples} draws; the results are of these.")
    if failures:
        raise UserError("; ".join(failures)) from next(iter(failures.values()))


def _for_arviz(
    mcmc: MCMC, statistics: Statistics, options: dict[str, Any], file: Path | None, failures: dict[str, Exception]
) -> Any:
    """The run as ArviZ sees it, with those statistics that don't fail; a failure must not take the draws along."""
    try:
        return mcmc.to_arviz(statistics=statistics, **options)
    except Exception as error:
        samples, working = mcmc.get_samples(group_by_chain=True), dict(statistics)
        for name, statistic in statistics.items():
            try:
                derived(samples, {name: statistic})
            except Exception as own:  # the user's code may raise anything
                failures[f"without statistic {name!r}: {describe(own, file)}"] = own
                del working[name]
        if len(working) == len(statistics):
            raise error
    return mcmc.to_arviz(statistics=working, **options)


def _facts(mcmc: MCMC) -> str:
    seconds = mcmc.sampling_time
    calls = "energies" if discrete(mcmc.kernel.target) else "gradients"
    facts = (
        f"{type(mcmc.kernel).__name__}: {mcmc.num_chains} chains x {mcmc.kept} draws after {mcmc.warmup_steps} of "
        f"warm-up in {seconds:.1f} s; {mcmc.gradients:,} {calls}, {mcmc.gradients / max(seconds, 1e-9):,.0f} a second; "
        f"seed {mcmc.seed}, backend {mcmc.backend}."
    )
    return f"{facts}\n{_swaps(mcmc)}" if isinstance(mcmc.kernel, ParallelTempering) else facts


def _swaps(mcmc: MCMC) -> str:
    from ebmppl.diagnostics.tempering import tempering

    found = tempering(mcmc)
    return (
        f"{len(found.betas)} replicas from beta {found.betas[0]:.3g}: swap rates {found.swap_rates.min():.2f} to "
        f"{found.swap_rates.max():.2f}, {found.round_trip_rate.mean():.3g} round trips a transition (with ideal kernels "
        f"{found.ideal_rate:.3g})."
    )


@app.command(epilog=o.SUMMARY_EXAMPLES)
def summary(
    path: Annotated[
        Path, typer.Argument(metavar="DRAWS.nc", help="What 'ebmppl sample --out' wrote.", show_default=False)
    ],
    prob: o.Prob = 0.9,
    debug: o.Debug = False,
) -> None:
    """Print the summary of draws on disk: by quantity its mean, interval, effective sample size and R-hat, and flags."""
    with in_one_line(debug=debug):
        _check_prob(prob)
        _check_netcdf(path)
        from ebmppl.diagnostics.summary import summarize

        typer.echo(str(summarize(path, prob)))


def _check_netcdf(path: Path) -> None:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise UserError(f"expected a netCDF file of draws, got {str(path)!r}, which {what}")
    with path.open("rb") as file:
        if not file.read(8).startswith((b"\x89HDF", b"CDF")):
            raise UserError(f"expected a netCDF file of draws, got {str(path)!r}, which is of another format")


def _check_prob(prob: float) -> None:
    if not 0 < prob < 1:
        raise UserError(f"expected --prob in (0, 1), got {prob}")


@contextmanager
def _default_dtype(dtype: str | None) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(before if dtype is None else getattr(torch, dtype))
    try:
        yield
    finally:
        torch.set_default_dtype(before)
