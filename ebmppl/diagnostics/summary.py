"""ArviZ's table of a run, and below it what should make one distrust it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ebmppl.diagnostics.convergence import arviz_numerics, as_dataset, rhat
from ebmppl.diagnostics.flags import Run, checks
from ebmppl.diagnostics.quantities import group_of, judged_of, posterior_of, quantities
from ebmppl.diagnostics.stuck import stuck_flags
from ebmppl.interop.arviz import host_arrays, installed_form

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from ebmppl.interop.derived import Statistics
    from ebmppl.sampling.mcmc import MCMC

_ROWS = 40  # of the table that are printed


@dataclass(frozen=True, repr=False)
class Summary:
    """What ``summarize`` gives. ``print`` shows the table, rounded, and the flags.

    Attributes:
        table: ArviZ's summary, unrounded, one row for each quantity.
        flags: one line for each reason to distrust the run; empty when nothing was found.
        checked: what was looked at.
        chains: number of chains.
        draws: draws of each chain.
        notes: what to know besides, no reason to distrust.
    """

    table: pd.DataFrame
    flags: list[str]
    checked: list[str]
    chains: int
    draws: int
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        scope = f"{self._scope}; checked: {', '.join(self.checked)}"
        lines = [f"! {flag}" for flag in self.flags] + [f"({scope})"] if self.flags else [f"nothing flagged in {scope}"]
        return "\n".join([_text(self.table), *(f"({note})" for note in self.notes), *lines])

    def __repr__(self) -> str:
        return f"Summary({self._scope}, {_count(len(self.flags), 'flag')})"

    @property
    def _scope(self) -> str:
        rows = "1 quantity" if len(self.table) == 1 else f"{len(self.table)} quantities"
        return f"{rows}, {_count(self.chains, 'chain')} x {_count(self.draws, 'draw')}"


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"


def _text(table: pd.DataFrame) -> str:
    formats = {
        name: "{:.0f}".format if name.startswith("ess") else "{:.3f}".format if name == "r_hat" else "{:.4g}".format
        for name in table.columns
    }
    return table.to_string(formatters=formats, max_rows=_ROWS)


def summarize(data: Any, prob: float = 0.9, var_names: Sequence[str] | None = None) -> Summary:
    """Summarise a run and judge it.

    R-hat counts as too high beyond what stationary chains of the same effective length show, see
    ``convergence.r_hat_threshold``; the other thresholds are those of ``flags``. One chain is judged by its halves.

    Runs of discrete variables are judged by their energy, too (minus ``lp``); of a discrete variable of more than 256
    sites the single sites are left out, unless it is named, and only searched for what keeps its value, see ``stuck``.

    Args:
        data: ``InferenceData`` or ``DataTree`` with a posterior, the path of a netCDF file of either, or draws
            ``(chains, draws, ...)`` by name in a dict.
        prob: probability mass of the intervals, in (0, 1).
        var_names: variables to judge, "energy" among them; all when None.

    Returns:
        The table and the flags.

    Raises:
        ValueError: for a probability out of range, data without a posterior, or unknown variables.
    """
    if not 0 < prob < 1:
        raise ValueError(f"expected prob in (0, 1), got {prob}")
    if isinstance(data, dict):
        data = {"posterior": as_dataset(host_arrays({n: torch.as_tensor(v) for n, v in data.items()}))}
    variables, large, discrete = judged_of(data, var_names)
    if not variables.data_vars:
        raise ValueError(f"expected statistics or var_names for a variable of many sites, got only {large[0].name!r}")
    table = _table(variables, prob)
    looked_at = [stuck_flags(v) for v in discrete] if variables.sizes["draw"] > 1 else []
    whole = any(v.dtype.kind != "f" for v in posterior_of(data).data_vars.values())
    held = [flag for flags, _ in looked_at for flag in flags]
    run = _run(variables, group_of(data, "sample_stats"), table, held, discrete=whole)
    found = checks(run)
    return Summary(
        table,
        [flag for check in found.values() for flag in check(run)],
        list(found),
        variables.sizes["chain"],
        variables.sizes["draw"],
        [_left_out(v) for v in large] + [note for _, notes in looked_at for note in notes],
    )


def summarize_run(
    mcmc: MCMC, prob: float, statistics: Statistics | None = None, var_names: Sequence[str] | None = None
) -> Summary:
    """What ``MCMC.summary`` prints and returns."""
    data = mcmc.to_arviz(statistics=statistics, log_likelihood=False, prior_draws=0, posterior_predictive=False)
    summary = summarize(data, prob, var_names)
    print(summary)
    return summary


def _left_out(variable: xr.DataArray) -> str:
    return (
        f"the {variable[0, 0].size} sites of {variable.name} are not judged one by one: "
        "give statistics of them, or var_names"
    )


def _table(posterior: xr.Dataset, prob: float) -> pd.DataFrame:
    # differences of small integers overflow
    numbers = posterior.map(lambda v: v if v.dtype.kind == "f" else v.astype(np.int64), keep_attrs=True)
    interval = {"hdi_prob": prob} if installed_form() == "inference_data" else {"ci_prob": prob}
    with arviz_numerics() as arviz:
        table = arviz.summary(numbers, round_to="none", **interval)
    if posterior.sizes["chain"] == 1:  # which ArviZ leaves out
        table["r_hat"] = np.concatenate([v.ravel() for v in rhat(numbers).values()])
    return table


def _run(
    posterior: xr.Dataset, stats: xr.Dataset | None, table: pd.DataFrame, held: list[str], *, discrete: bool
) -> Run:
    found = quantities(posterior)
    if len(found) != len(table):
        raise ValueError(f"expected a table of {len(found)} rows, got {len(table)}: are labels of a dim repeated?")
    kept = {} if stats is None else stats.transpose("chain", "draw", ...).data_vars
    return Run(
        quantities=found,
        r_hat=table["r_hat"].to_numpy(float),
        ess_bulk=table["ess_bulk"].to_numpy(float),
        ess_tail=table["ess_tail"].to_numpy(float),
        stats={str(name): value.values for name, value in kept.items() if value.ndim == 2},
        settings=json.loads(posterior.attrs.get("kernel_settings", "{}")),
        held=held,
        discrete=discrete,
    )
