"""ArviZ's table of a run, and below it what should make one distrust it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ebmppl.diagnostics.convergence import arviz_numerics, rhat
from ebmppl.diagnostics.flags import Run, checks
from ebmppl.diagnostics.quantities import group_of, posterior_of, quantities
from ebmppl.interop.arviz import installed_form

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

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
    """

    table: pd.DataFrame
    flags: list[str]
    checked: list[str]
    chains: int
    draws: int

    def __str__(self) -> str:
        scope = f"{self._scope}; checked: {', '.join(self.checked)}"
        lines = [f"! {flag}" for flag in self.flags] + [f"({scope})"] if self.flags else [f"nothing flagged in {scope}"]
        return "\n".join([_text(self.table), *lines])

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


def summarize(data: Any, prob: float = 0.9) -> Summary:
    """Summarise a run and judge it.

    R-hat counts as too high beyond what stationary chains of the same effective length show, see
    ``convergence.r_hat_threshold``; the other thresholds are those of ``flags``. One chain is judged by its halves.

    Args:
        data: ``InferenceData`` or ``DataTree`` with a posterior, or the path of a netCDF file of either.
        prob: probability mass of the intervals, in (0, 1).

    Returns:
        The table and the flags.

    Raises:
        ValueError: for a probability out of range or data without a posterior.
    """
    if not 0 < prob < 1:
        raise ValueError(f"expected prob in (0, 1), got {prob}")
    posterior = posterior_of(data)
    table = _table(posterior, prob)
    run = _run(posterior, group_of(data, "sample_stats"), table)
    found = checks(run)
    flags = [flag for check in found.values() for flag in check(run)]
    return Summary(table, flags, list(found), posterior.sizes["chain"], posterior.sizes["draw"])


def _table(posterior: xr.Dataset, prob: float) -> pd.DataFrame:
    numbers = posterior.map(lambda v: v.astype(np.int8) if v.dtype == bool else v, keep_attrs=True)
    interval = {"hdi_prob": prob} if installed_form() == "inference_data" else {"ci_prob": prob}
    with arviz_numerics() as arviz:
        table = arviz.summary(numbers, round_to="none", **interval)
    if posterior.sizes["chain"] == 1:  # which ArviZ leaves out
        table["r_hat"] = np.concatenate([v.ravel() for v in rhat(numbers).values()])
    return table


def _run(posterior: xr.Dataset, stats: xr.Dataset | None, table: pd.DataFrame) -> Run:
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
    )
