"""What a check of the chains found, and what it means."""

from __future__ import annotations

from typing import NamedTuple


class Problem(NamedTuple):
    """A reading beyond its limit.

    Attributes:
        name: of the reading.
        value: found.
        limit: of the monitor.
        text: what is wrong and what to try.
    """

    name: str
    value: float
    limit: float
    text: str


class Health(NamedTuple):
    """What a check found; NaN where there is nothing to read.

    Attributes:
        step: how many steps were made.
        r_hat: of the chains' recent energies (and statistics: the largest).
        ess: effective draws of all chains together in the same steps (the smallest).
        frozen: share of the chains that did not move at all since the last check.
        age: mean number of steps since a chain began.
        gap: mean energy of data minus that of samples, nats.
        gap_error: its standard error.
        gap_ratio: the gap in standard deviations of the samples' energies.
        acceptance: rate of the last move.
        problems: readings beyond their limits.
        done: by the actions.
        known: False where R-hat or ESS is asked for and persistent chains can't be judged (yet).
    """

    step: int
    r_hat: float
    ess: float
    frozen: float
    age: float
    gap: float
    gap_error: float
    gap_ratio: float
    acceptance: float
    problems: tuple[Problem, ...] = ()
    done: tuple[str, ...] = ()
    known: bool = True

    @property
    def good(self) -> bool:
        """Whether all readings are within their limits, and whether the chains mix is known."""
        return self.known and not self.problems

    def __str__(self) -> str:
        lines = [f"step {self.step}: " + ("; ".join(p.text for p in self.problems) or _NONE[self.known])]
        return "\n".join([*lines, *(f"  -> {done}" for done in self.done)])


_NONE = {True: "nothing is wrong", False: "nothing wrong is seen, but whether the chains mix is not known"}


def explain(name: str, value: float, limit: float) -> str:
    """What a reading beyond its limit says, and what to try."""
    return _TEXTS[name, name == "gap" and value < 0].format(value=abs(value), limit=limit)


_TEXTS = {
    (
        "r_hat",
        False,
    ): "R-hat of the chains is {value:.3g} (limit {limit:.3g}): each keeps its own level, so their mean is not "
    "the model's; try more draws a step (k), another step size, a smaller learning rate, or ParallelTempering",
    ("ess", False): "the chains' recent steps are worth {value:.3g} independent draws (limit {limit:.3g}): "
    "try more draws a step (k), more chains, or another step size",
    (
        "frozen",
        False,
    ): "{value:.0%} of the chains have not moved since the last check (limit {limit:.0%}): the model is too "
    "sharp for the kernel; try smaller weights (weight decay), a smaller learning rate, or begin the chains again",
    (
        "age",
        False,
    ): "the chains are {value:.0f} steps old on average (limit {limit:.0f}): begin them again, or set reinit",
    (
        "gap",
        False,
    ): "the energies of the data are {value:.3g} standard deviations above those of the samples (limit {limit:.3g}): "
    "the samples ran to places without data; try a smaller learning rate and go back, clip=..., or an energy that grows "
    "far from the data",
    (
        "gap",
        True,
    ): "the energies of the samples are {value:.3g} standard deviations above those of the data (limit {limit:.3g}): "
    "the chains don't follow the model; try more draws a step (k), larger steps of the kernel, or a smaller learning rate",
    (
        "acceptance",
        False,
    ): "the acceptance rate is {value:.3g} (limit {limit:.3g}): the kernel's steps are too large for the "
    "model as it is now; try a smaller step size, or a smaller learning rate",
}
