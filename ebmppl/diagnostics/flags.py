"""What should make one distrust a run: each check gives lines that name quantities and chains and end with advice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import ndtri

from ebmppl.diagnostics.convergence import FALSE_ALARM, MIN_DRAWS, R_HAT, compare_chains, normal_ranks

LOW_ESS = 400  # in all, bulk and tail: 100 for each of four chains (Vehtari et al. 2021)
LOW_BFMI = 0.3  # Betancourt 2016
MIN_ESS_PER_CHAIN = 5  # below which the mean of one chain is not near enough to normal to judge it


class Run(NamedTuple):
    """The draws of a run with ArviZ's figures, all quantities (scalar elements of the variables) in the table's order.

    Attributes:
        names: of the quantities, such as ``theta[3]``.
        draws: ``(chains, draws)`` of each.
        discrete: whether a quantity has an integer or boolean dtype.
        fixed: quantities that are constants of their matrix (a Cholesky factor's zeros), of which nothing is asked.
        r_hat: rank-normalised split R-hat.
        ess_bulk: bulk ESS of all chains.
        ess_tail: tail ESS of all chains.
        stats: ArviZ's sample_stats, each ``(chains, draws)``.
        settings: of the kernel.
    """

    names: list[str]
    draws: list[np.ndarray]
    discrete: np.ndarray
    fixed: np.ndarray
    r_hat: np.ndarray
    ess_bulk: np.ndarray
    ess_tail: np.ndarray
    stats: dict[str, np.ndarray]
    settings: dict[str, Any]

    @property
    def shape(self) -> tuple[int, int]:
        """Chains and draws of each."""
        return self.draws[0].shape[0], self.draws[0].shape[1]


Check = Callable[[Run], list[str]]


def checks(run: Run) -> dict[str, Check]:
    """The checks that apply to a run, by what they look at."""
    found: dict[str, Check] = {"finite draws": not_finite}
    if run.shape[1] < MIN_DRAWS:
        return {**found, "number of draws": too_short}
    found |= {"stuck chains": stuck, "R-hat": disagreement, "single chains apart": apart, "bulk and tail ESS": low_ess}
    if "diverging" in run.stats:
        found["divergences"] = divergences
    if {"energy", "n_steps"} <= set(run.stats):  # the energy of these kernels is a Hamiltonian
        found["E-BFMI"] = low_bfmi
    if _saturated(run) is not None:
        found["tree depth"] = tree_depth
    return found


def few(items: Sequence[Any], most: int = 4) -> str:
    """The first few items, then how many more."""
    shown = ", ".join(map(str, items[:most]))
    return f"{shown} and {len(items) - most} more" if len(items) > most else shown


def _chains(index: np.ndarray, chains: int) -> str:
    return f"chain{'s' * (len(index) > 1)} {few(index.tolist())} ({len(index)} of {chains})"


def not_finite(run: Run) -> list[str]:
    """Draws that are NaN or infinite."""
    counts = np.array([(~np.isfinite(x)).sum(1) for x in run.draws])  # (quantities, chains)
    if not counts.any():
        return []
    names = [run.names[i] for i in np.flatnonzero(counts.any(1))]
    where = _chains(np.flatnonzero(counts.any(0)), run.shape[0])
    return [
        f"not finite: {counts.sum()} values of {few(names)} in {where}; no figure of these means anything: "
        "look for overflow or an invalid transform in the energy"
    ]


def too_short(run: Run) -> list[str]:
    """Fewer draws than any figure needs."""
    return [
        f"too short: {run.shape[1]} draws per chain, R-hat and ESS need {MIN_DRAWS}; nothing was judged: run longer"
    ]


def _constant(run: Run) -> np.ndarray:
    """``(quantities, chains)``: all draws of the chain are the same."""
    return np.array([(x == x[:, :1]).all(1) for x in run.draws]) & ~run.fixed[:, None]


def _variable(name: str) -> str:
    return name.split("[", 1)[0]


def stuck(run: Run) -> list[str]:
    """Chains whose draws never change; ArviZ gives these an ESS of all draws, and R-hat is NaN where all are so."""
    constant, flags = _constant(run), []
    never = constant.all(1)
    if never.any():
        names = [run.names[i] for i in np.flatnonzero(never)]
        flags.append(
            f"constant: {few(names)} ({len(names)} of {len(run.names)}) never change in any chain, so they have "
            "no R-hat; right only for constants of the model: else try a smaller step or other initial points"
        )
    alone = constant & ~never[:, None]
    for variable in {_variable(run.names[i]) for i in np.flatnonzero(run.discrete)}:
        # one discrete element may well keep its value; a whole discrete state should not
        rows = np.array([_variable(name) == variable for name in run.names])
        alone[rows] &= constant[rows].all(0)
    if alone.any():
        names = [run.names[i] for i in np.flatnonzero(alone.any(1))]
        where = _chains(np.flatnonzero(alone.any(0)), run.shape[0])
        flags.append(
            f"stuck: {where} never move in {few(names)}; try a smaller step or other initial points "
            "before trusting the other chains"
        )
    return flags


def disagreement(run: Run) -> list[str]:
    """Quantities whose chains disagree more than stationary ones would, and those without R-hat for no known reason."""
    explained = _constant(run).all(1) | run.fixed | np.array([not np.isfinite(x).all() for x in run.draws])
    flags = []
    unknown = np.isnan(run.r_hat) & ~explained
    if unknown.any():
        names = [run.names[i] for i in np.flatnonzero(unknown)]
        flags.append(f"no R-hat: it can't be computed for {few(names)}; run longer")
    compared = {int(i): compare_chains(run.draws[i]) for i in np.flatnonzero(run.r_hat > R_HAT)}
    found = {i: c for i, c in compared.items() if not c.agrees}
    if found:
        worst = max(found, key=lambda i: found[i].r_hat / found[i].threshold)
        r_hat, threshold, ess = found[worst]
        odd = np.flatnonzero(np.abs(_deviations(run.draws[worst], ess)) > _level(run))
        where = f", {_chains(odd, run.shape[0])} lie apart" if 0 < len(odd) < run.shape[0] else ""
        flags.append(
            f"R-hat: too high in {few([run.names[i] for i in found])} ({len(found)} of {len(run.names)}); worst "
            f"{run.names[worst]}, {r_hat:.3f} over {threshold:.3f}{where}; "
            "run longer, or reparametrise: chains see different parts of the density"
        )
    return flags


def _deviations(draws: np.ndarray, ess_per_chain: float) -> np.ndarray:
    """How many standard errors each chain lies from the others, ``(chains,)``, by its rank-normalised draws."""
    ranks = normal_ranks(draws)
    spread = np.sqrt(ranks.var(1).mean())
    ess = min(ess_per_chain, draws.shape[1])  # antithetic chains are judged like independent draws
    return ranks.mean(1) * np.sqrt(ess) / spread if spread > 0 else np.zeros(len(draws))


def _level(run: Run) -> float:
    """Standard errors that one chain of a stationary run passes with the probability of a false alarm (Bonferroni)."""
    return -float(ndtri(FALSE_ALARM / (2 * run.shape[0] * len(run.names))))


def apart(run: Run) -> list[str]:
    """Single chains that disagree with all others: among hundreds, one does not show in R-hat."""
    chains, level = run.shape[0], _level(run)
    ess = run.ess_bulk / chains
    judged = (run.ess_bulk >= LOW_ESS) & (ess >= MIN_ESS_PER_CHAIN) & ~(run.r_hat > R_HAT)
    worst: dict[int, np.ndarray] = {}
    for i in np.flatnonzero(judged):
        z = np.abs(_deviations(run.draws[i], ess[i]))
        if z.max() > level:
            worst[int(i)] = z
    if chains == 1 or not worst:
        return []
    most = np.max(list(worst.values()), axis=0)
    where = _chains(np.flatnonzero(most > level), chains)
    return [
        f"apart: {where} from the others in {few([run.names[i] for i in worst])}, by {most.max():.1f} standard errors, "
        "though R-hat passes; look at the trace: a longer warm-up, or a mode that the others miss"
    ]


def low_ess(run: Run) -> list[str]:
    """Quantities whose means or tails are known from too few effective draws."""
    least = np.fmin(run.ess_bulk, run.ess_tail)
    low = np.flatnonzero(least < LOW_ESS)
    if not len(low):
        return []
    worst = low[np.argmin(least[low])]
    names = [run.names[i] for i in low[np.argsort(least[low])]]
    return [
        f"ESS: under {LOW_ESS} in {few(names)} ({len(low)} of {len(run.names)}); lowest {run.names[worst]}, bulk "
        f"{run.ess_bulk[worst]:.0f}, tail {run.ess_tail[worst]:.0f}; "
        f"take about {LOW_ESS / max(least[worst], 1.0):.2g} times as many draws, or more chains"
    ]


def divergences(run: Run) -> list[str]:
    """Transitions whose energy error was large or not finite."""
    by_chain = run.stats["diverging"].sum(1)
    total = int(by_chain.sum())
    if not total:
        return []
    order = np.argsort(-by_chain, kind="stable")
    worst = ", ".join(f"{c}: {by_chain[c]}" for c in order[:3] if by_chain[c])
    advice = (
        "raise target_accept_prob or reparametrise: the draws may miss where they end"
        if "n_steps" in run.stats
        else "take a smaller step_size: there the chain does not move"
    )
    share = total / run.stats["diverging"].size
    return [
        f"divergences: {total} ({share:.2g} of the draws) in {np.count_nonzero(by_chain)} of {run.shape[0]} chains, "
        f"most in chain {worst}; {advice}"
    ]


def low_bfmi(run: Run) -> list[str]:
    """Chains whose energy changes little from draw to draw: the momentum can't carry them into the tails."""
    energy = run.stats["energy"].astype(float)
    with np.errstate(divide="ignore", invalid="ignore"):
        bfmi = np.square(np.diff(energy, axis=1)).mean(1) / energy.var(1)
    low = np.flatnonzero(bfmi < LOW_BFMI)
    if not len(low):
        return []
    return [
        f"E-BFMI: {np.nanmin(bfmi):.2f} at the lowest, under {LOW_BFMI} in {_chains(low, run.shape[0])}; "
        "reparametrise: heavy tails or a funnel that draws cross slowly"
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
    where = _chains(np.flatnonzero(cut.any(1)), run.shape[0])
    return [
        f"tree depth: {cut.mean():.2g} of the draws end at the largest tree, in {where}; "
        "raise max_tree_depth or reparametrise: draws are right but slow"
    ]
