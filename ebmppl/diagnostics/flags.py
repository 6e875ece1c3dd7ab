"""What should make one distrust a run: each check gives lines that name quantities and chains and end with advice."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import ndtri

from ebmppl.diagnostics.convergence import FALSE_ALARM, MIN_DRAWS, R_HAT, compare_chains, normal_ranks
from ebmppl.diagnostics.quantities import Quantity, few
from ebmppl.diagnostics.stuck import MOVES
from ebmppl.score.failures import NOT_FINITE, UNMET, spread

LOW_ESS = 400  # in all, bulk and tail: 100 for each of four chains (Vehtari et al. 2021)
LOW_BFMI = 0.3  # Betancourt 2016
MIN_ESS_PER_CHAIN = 5  # below which the mean of one chain is not near enough to normal to judge it


class Run(NamedTuple):
    """A run with ArviZ's figures, all for the same quantities in the same order.

    Attributes:
        quantities: names and draws.
        r_hat: rank-normalised split R-hat.
        ess_bulk: bulk ESS of all chains.
        ess_tail: tail ESS of all chains.
        stats: ArviZ's sample_stats, each ``(chains, draws)``.
        settings: of the kernel.
        held: flags of discrete variables that keep their values, see ``stuck``.
        discrete: whether there are discrete variables.
    """

    quantities: list[Quantity]
    r_hat: np.ndarray
    ess_bulk: np.ndarray
    ess_tail: np.ndarray
    stats: dict[str, np.ndarray]
    settings: dict[str, Any]
    held: Sequence[str] = ()
    discrete: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """Chains and draws of each."""
        chains, draws = self.quantities[0].draws.shape
        return chains, draws

    def names(self, which: Iterable[int]) -> str:
        """The first few of some quantities, and how many there are."""
        index = list(which)
        return f"{few([self.quantities[i].name for i in index])} ({len(index)} of {len(self.quantities)})"

    def chains(self, which: np.ndarray) -> str:
        """The first few of the chains for which ``(chains,)`` is true, and how many there are."""
        index = np.flatnonzero(which).tolist()
        return f"chain{'s' * (len(index) > 1)} {few(index)} ({len(index)} of {self.shape[0]})"


Check = Callable[[Run], list[str]]


def checks(run: Run) -> dict[str, Check]:
    """The checks that apply to a run, by what they look at."""
    found: dict[str, Check] = {"finite draws": not_finite}
    if run.shape[1] < MIN_DRAWS:
        return {**found, "number of draws": too_short}
    found |= {"stuck chains": stuck, "R-hat": disagreement, "bulk and tail ESS": low_ess}
    if run.shape[0] > 1:
        found["single chains apart"] = apart
    if "failed_at" in run.stats:
        found["failed draws"] = failed_draws
    elif "diverging" in run.stats:
        found["divergences"] = divergences
    if {"energy", "n_steps"} <= set(run.stats):  # the energy of these kernels is a Hamiltonian
        found["E-BFMI"] = low_bfmi
    if _saturated(run) is not None:
        found["tree depth"] = tree_depth
    return found


def not_finite(run: Run) -> list[str]:
    """Draws that are NaN or infinite."""
    counts = np.array([(~np.isfinite(q.draws)).sum(1) for q in run.quantities])  # (quantities, chains)
    if not counts.any():
        return []
    names = run.names(np.flatnonzero(np.any(counts, axis=1)))
    return [
        f"not finite: {counts.sum()} draws of {names} in {run.chains(np.any(counts, axis=0))}; "
        "no figure of these means anything: look for overflow or an invalid transform in the energy"
    ]


def too_short(run: Run) -> list[str]:
    """Fewer draws than any figure needs."""
    return [f"too short: {run.shape[1]} draws per chain, R-hat and ESS need {MIN_DRAWS}; nothing was judged: run on"]


def _constant(run: Run) -> np.ndarray:
    """``(quantities, chains)``: all draws of the chain are the same, and not by their place in a matrix."""
    return np.array([(q.draws == q.draws[:, :1]).all(1) & (not q.fixed) for q in run.quantities])


def stuck(run: Run) -> list[str]:
    """Chains whose draws never change; ArviZ gives these an ESS of all draws, and R-hat is NaN where all are so."""
    real = np.array([q.draws.dtype.kind == "f" for q in run.quantities])
    constant, flags = _constant(run) & real[:, None], list(run.held)
    never = np.all(constant, axis=1)
    if never.any():
        flags.append(
            f"constant: {run.names(np.flatnonzero(never))} never change in any chain and have no R-hat; "
            "right only for constants of the model: else try a smaller step or other initial points"
        )
    alone = constant & ~never[:, None]
    if alone.any():
        names = run.names(np.flatnonzero(np.any(alone, axis=1)))
        flags.append(
            f"stuck: every draw the same in {run.chains(np.any(alone, axis=0))}, for {names}; "
            "try a smaller step or other initial points before trusting the other chains"
        )
    return flags


def disagreement(run: Run) -> list[str]:
    """Quantities whose chains disagree more than stationary ones would, and those without R-hat for no known reason."""
    explained = np.array([q.fixed or not np.isfinite(q.draws).all() for q in run.quantities])
    explained |= np.all(_constant(run), axis=1)
    flags = []
    unknown = np.flatnonzero(np.isnan(run.r_hat) & ~explained)
    if len(unknown):
        flags.append(f"no R-hat: it can't be computed for {run.names(unknown)}; run longer")
    judged = np.flatnonzero((run.r_hat > R_HAT) & ~explained)
    compared = {int(i): compare_chains(run.quantities[i].draws) for i in judged}
    found = [i for i, c in compared.items() if not c.agrees]
    if found:
        found.sort(key=lambda i: -compared[i].r_hat / compared[i].threshold)
        worst = compared[found[0]]
        odd = np.abs(_deviations(worst.values, worst.ess_per_chain)) > _level(run)
        flags.append(
            f"R-hat: too high in {run.names(found)}; worst {worst.r_hat:.3f}, over {worst.threshold:.3f}"
            f"{f', apart: {run.chains(odd)}' if odd.any() else ''}; "
            f"run longer, or {MOVES if run.discrete else 'reparametrise'}: chains see different parts of the density"
        )
    return flags


def _deviations(draws: np.ndarray, ess_per_chain: float) -> np.ndarray:
    """How many standard errors each chain lies from the middle one, ``(chains,)``, by its rank-normalised draws."""
    ranks = normal_ranks(draws)
    spread = np.sqrt(ranks.var(1).mean())
    if not spread > 0:
        return np.zeros(len(draws))
    ess = min(ess_per_chain, draws.shape[1])  # antithetic chains are judged like independent draws
    means = ranks.mean(1)
    return (means - np.median(means)) * np.sqrt(ess) / spread


def _level(run: Run) -> float:
    """Standard errors that one chain of a stationary run passes with the probability of a false alarm (Bonferroni)."""
    return -float(ndtri(FALSE_ALARM / (2 * run.shape[0] * len(run.quantities))))


def apart(run: Run) -> list[str]:
    """Single chains that disagree with all others: among hundreds, one does not show in R-hat."""
    level, ess = _level(run), run.ess_bulk / run.shape[0]
    judged = (run.ess_bulk >= LOW_ESS) & (ess >= MIN_ESS_PER_CHAIN) & ~(run.r_hat > R_HAT)
    away = {int(i): np.abs(_deviations(run.quantities[i].draws, ess[i])) for i in np.flatnonzero(judged)}
    found = sorted((i for i in away if away[i].max() > level), key=lambda i: -away[i].max())
    if not found:
        return []
    most = np.max([away[i] for i in found], axis=0)
    return [
        f"apart: {run.chains(most > level)}, by up to {most.max():.1f} standard errors in {run.names(found)}, "
        "though R-hat passes; look at the trace: warm up longer, or it is a mode that the others miss"
    ]


def low_ess(run: Run) -> list[str]:
    """Quantities whose means or tails are known from too few effective draws."""
    least = np.fmin(run.ess_bulk, run.ess_tail)
    low = np.flatnonzero(least < LOW_ESS)
    if not len(low):
        return []
    low = low[np.argsort(least[low], kind="stable")]
    return [
        f"ESS: under {LOW_ESS} in {run.names(low)}; lowest bulk {np.nanmin(run.ess_bulk[low]):.0f}, "
        f"tail {np.nanmin(run.ess_tail[low]):.0f}; "
        f"take about {LOW_ESS / max(least[low[0]], 1.0):.2g} times as many draws, or more chains"
    ]


def divergences(run: Run) -> list[str]:
    """Transitions whose energy error was large or not finite."""
    if not run.stats["diverging"].any():
        return []
    advice = (
        "raise target_accept_prob or reparametrise: the draws may miss the places where they end"
        if "n_steps" in run.stats
        else "take a smaller step_size: the chain does not move there"
    )
    return [f"divergences: {_placed(run.stats['diverging'])}; {advice}"]


def failed_draws(run: Run) -> list[str]:
    """Draws of a score model on whose way something was not finite, or a tolerance could not be met."""
    failed = run.stats["diverging"].astype(bool)
    by_tolerance = run.stats.get("tolerance_unmet", np.zeros_like(failed)).astype(bool)
    causes = ((NOT_FINITE, failed & ~by_tolerance), (UNMET, failed & by_tolerance))
    return [
        f"failed draws: {_placed(which)}; {cause} at t (or noise level) {spread(at.max(), at.min())}"
        for cause, which in causes
        if len(at := run.stats["failed_at"][which])
    ]


def _placed(which: np.ndarray) -> str:
    """Of ``(chains, draws)``: how many, and the chains with most."""
    by_chain = which.sum(1)
    order = np.argsort(-by_chain, kind="stable")[:3]
    worst = ", ".join(f"{by_chain[c]} in chain {c}" for c in order if by_chain[c])
    share = 100 * by_chain.sum() / which.size
    where = f"in {np.count_nonzero(by_chain)} of {len(which)} chains (most: {worst})"
    return f"{by_chain.sum()}, {share:.2g}% of the draws, {where}"


def low_bfmi(run: Run) -> list[str]:
    """Chains whose energy changes little from draw to draw: the momentum can't carry them into the tails."""
    energy = run.stats["energy"].astype(float)
    with np.errstate(divide="ignore", invalid="ignore"):
        bfmi = np.square(np.diff(energy, axis=1)).mean(1) / energy.var(1)
    if not (bfmi < LOW_BFMI).any():
        return []
    return [
        f"E-BFMI: under {LOW_BFMI} in {run.chains(bfmi < LOW_BFMI)}, lowest {np.nanmin(bfmi):.2f}; "
        "reparametrise: there are heavy tails or a funnel that draws cross slowly"
    ]


def _saturated(run: Run) -> np.ndarray | None:
    """``(chains, draws)``: the tree was cut at its largest depth; None where that is not known."""
    if "reached_max_tree_depth" in run.stats:
        return run.stats["reached_max_tree_depth"].astype(bool)
    if "tree_depth" in run.stats and "max_tree_depth" in run.settings:
        return run.stats["tree_depth"] >= run.settings["max_tree_depth"]
    return None


def tree_depth(run: Run) -> list[str]:
    """Trajectories cut short by the largest tree."""
    cut = _saturated(run)
    if cut is None or not cut.any():
        return []
    return [
        f"tree depth: {100 * cut.mean():.2g}% of the draws end at the largest tree, in {run.chains(np.any(cut, axis=1))}; "
        "raise max_tree_depth or reparametrise: such draws move slowly (or the density has no end: is it proper?)"
    ]
