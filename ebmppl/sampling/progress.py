"""The progress bar of a run."""

from __future__ import annotations

import time

from tqdm.auto import tqdm

from ebmppl.sampling.chains import Chains
from ebmppl.sampling.draws import Draws


class Progress:
    """A bar over draws per chain, with acceptance, step size and divergences.

    Args:
        total: draws per chain of the phase.
        stage: "Warmup" or "Sample".
        disable: show nothing.
    """

    def __init__(self, total: int, stage: str, *, disable: bool) -> None:
        self.bar = tqdm(total=total, desc=stage, disable=disable, unit="draw", leave=True)
        self._next = 0.0

    def update(self, chains: Chains, draws: Draws, finished: int) -> None:
        """Show that every chain has so many draws (on average, in warm-up)."""
        self.bar.update(min(finished, self.bar.total) - self.bar.n)
        if self.bar.disable or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + 0.2
        shown = {}
        rates = draws.buffers.get("acceptance_rate")
        if rates is not None and finished > 0:
            recent = rates[max(0, finished // draws.thinning - 20) : max(1, finished // draws.thinning)]
            shown["acceptance"] = f"{float(recent.mean()):.2f}"
        step_size = getattr(chains.now.tuning, "step_size", None)
        if step_size is not None:
            shown["step size"] = f"{float(step_size):.2e}"
        if chains.now.counts is not None:
            shown["divergences"] = str(int(chains.now.counts.diverging.sum()))
        self.bar.set_postfix(shown)

    def close(self) -> None:
        """Leave the bar as it is."""
        self.bar.close()
