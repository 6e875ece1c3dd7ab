"""The one door: ``MCMC(kernel, num_samples, ...).run()`` with Pyro's signature, all chains in one process."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pyro.infer.mcmc.util import select_samples
from torch import Tensor

from ebmppl.arguments import require, seed_of, whole
from ebmppl.errors import SamplingWarning
from ebmppl.kernels.base import Kernel
from ebmppl.sampling.chains import Chains
from ebmppl.sampling.checkpoint import load_run, save_run
from ebmppl.sampling.choice import begin_ahead, require_backend
from ebmppl.sampling.draws import Draws, Now
from ebmppl.sampling.initial import Start, as_start, starting_points
from ebmppl.sampling.progress import Progress
from ebmppl.sampling.scopes import PASSES, evaluating, threads, using_threads, without_collections

if TYPE_CHECKING:
    from torch.distributions import Transform

    from ebmppl.diagnostics.summary import Summary
    from ebmppl.interop.derived import Statistics

Hook = Callable[[Kernel, dict[str, Tensor], str, int], None]


class MCMC:
    """Run a kernel with many chains in one process.

    Args:
        kernel: any kernel of ``ebmppl.kernels``.
        num_samples: draws kept of each chain.
        warmup_steps: warm-up draws per chain before them; ``num_samples`` when None.
        initial_params: unconstrained points, ``(num_chains, *event)`` or a dict of sites ``(num_chains, *site)``
            (without the chain axis for one chain), which set dtype and device; or ``Uniform(radius)`` or
            ``FromData(values)`` of ``ebmppl.sampling``, which draw until the energy is finite. Uniform(2) when None.
        num_chains: chains, all advanced together.
        hook_fn: called as ``hook_fn(kernel, params, stage, i)`` at every read-back (some ticks apart) with the chains'
            unconstrained positions by site, "Warmup" or "Sample", and the draws so far of every chain (in warm-up the mean).
        transforms: by site, a map whose inverse gives the values of ``get_samples`` (Pyro's convention).
        save_params: names of the sites to keep; all when None.
        thinning: keep every so many-th transition.
        seed: makes the run reproducible; from the operating system when None. torch's global generator is not used.
        backend: "eager"; "inductor", ticks compiled for a CPU or a GPU; "cudagraph", these captured in CUDA graphs; or
            "auto", which decides by counts (chains, dimension, draws, nodes of the graph). After a run it is what was
            taken, and ``backend_reason`` says why.
        save_warmup: keep warm-up draws for ``to_arviz``.
        disable_progbar: no progress bar.

    Raises:
        ValueError: for counts that are not positive, initial points of another shape, or unknown sites.
    """

    def __init__(
        self,
        kernel: Kernel,
        num_samples: int,
        warmup_steps: int | None = None,
        initial_params: Tensor | Mapping[str, Tensor] | Start | None = None,
        num_chains: int = 1,
        *,
        hook_fn: Hook | None = None,
        transforms: Mapping[str, Transform] | None = None,
        save_params: Sequence[str] | None = None,
        thinning: int = 1,
        seed: int | None = None,
        backend: str = "auto",
        save_warmup: bool = False,
        disable_progbar: bool = False,
    ) -> None:
        if not isinstance(kernel, Kernel):
            raise ValueError(f"expected a kernel of ebmppl.kernels, got {type(kernel).__name__}")
        require_backend(backend)
        _require_sites("transforms", transforms, kernel)
        _require_sites("save_params", save_params, kernel)
        self.kernel, self.num_samples = kernel, whole("num_samples", num_samples, 1)
        self.num_chains, self.thinning = whole("num_chains", num_chains, 1), whole("thinning", thinning, 1)
        self.warmup_steps = self.num_samples if warmup_steps is None else whole("warmup_steps", warmup_steps, 0)
        self.hook_fn, self.transforms, self.save_params = hook_fn, transforms, save_params
        self.save_warmup, self.disable_progbar = save_warmup, disable_progbar
        self.seed = seed_of(seed)
        self._wanted_backend = self.backend = backend
        self.backend_reason = "nothing has run yet"
        self.start = as_start(kernel, initial_params, self.num_chains)
        self.initial_attempts = torch.zeros(self.num_chains, dtype=torch.int64)  # points that each chain drew
        self.chains: Chains | None = None
        self.draws, self.warmup_draws = Draws(self.num_chains), Draws(self.num_chains)
        self.kept = self.warmup_kept = 0  # draws of every chain
        self.sampling_time = 0.0  # seconds

    # Running.

    def run(self, num_samples: int | None = None) -> None:
        """Warm up and sample; or add ``num_samples`` draws of each chain to a run that was made or loaded.

        A continued run equals an uninterrupted one on the same back-end, bit for bit. Ctrl-C keeps the draws so far.

        Raises:
            EnergyError: when the energy does not keep its contract at the initial points.
            SamplingError: when warm-up can't go on, or an exception stopped the run within ticks before.
            ValueError: when there is no run to add draws to, or ``num_samples`` is not positive.
        """
        started = time.monotonic()
        if num_samples is None:
            self._begin()
        else:
            num_samples = whole("num_samples", num_samples, 1)
            require(self.chains is not None, "a run to add draws to (call run() first, or load one)", "none")
            self.num_samples = self.kept + num_samples
        self._sample()
        self.sampling_time += time.monotonic() - started

    def _begin(self) -> None:
        target, numbers = self.kernel.target, self.num_chains * self.kernel.target.event_shape.numel()
        begin_ahead(self._wanted_backend, self.kernel, self.warmup_steps + self.num_samples * self.thinning)
        with evaluating(target), using_threads(threads(PASSES * numbers)), without_collections():
            x, self.initial_attempts = starting_points(target, self.start, self.num_chains, self.seed)
        columns = self._columns(x.device)
        self.draws = Draws(self.num_chains, self.thinning, columns)
        self.warmup_draws = Draws(self.num_chains, 1, columns, None if self.save_warmup else ("acceptance_rate",))
        self.kept = self.warmup_kept = 0
        self.sampling_time = 0.0
        chains = self.chains = Chains(self.kernel, x, self.seed, self._wanted_backend)
        if not self.warmup_steps:
            return
        progress = Progress(self.warmup_steps, "Warmup", disable=self.disable_progbar)
        report = partial(self._report, progress, "Warmup")
        try:
            chains.warm_up(self.warmup_steps, self.warmup_draws, report, self.num_samples * self.thinning)
        except BaseException:
            self.chains = None  # half warm: no draws may be added to it
            raise
        finally:
            progress.close()

    def _sample(self) -> None:
        chains = self._chains()
        progress = Progress(self.num_samples * self.thinning, "Sample", disable=self.disable_progbar)
        report = partial(self._report, progress, "Sample")
        try:
            chains.collect(self.num_samples, self.draws, report, self.kept)
            self.kept = self.num_samples
        except BaseException as stopped:
            self.kept = int(self._finished().min()) // self.thinning
            if not self.kept or not isinstance(stopped, KeyboardInterrupt):
                raise
            left = self.num_samples - self.kept
            more = f"run(num_samples={left}) adds the others" if left else "those are all that were asked for"
            told = (
                f"interrupted: kept {self.kept} of {self.num_samples} draws of each of {self.num_chains} chains; {more}"
            )
            warnings.warn(told, SamplingWarning, stacklevel=3)
        finally:
            self.backend, self.backend_reason = chains.choice
            progress.close()

    def _report(self, progress: Progress, stage: str) -> None:
        chains, by_chain, draws = self._chains(), self._finished(), self.draws
        finished = int(by_chain.min())
        if stage == "Warmup":  # in which each chain draws at its own pace
            self.warmup_kept, draws, finished = finished, self.warmup_draws, int(by_chain.float().mean())
        progress.update(chains, draws, finished)
        if self.hook_fn is not None:
            x = chains.position().clone()  # compiled ticks overwrite it
            self.hook_fn(self.kernel, self.kernel.target.unpack(x), stage, finished)

    def _chains(self) -> Chains:
        if self.chains is None:
            raise ValueError("expected a run, got none: call run() first")
        return self.chains

    def _finished(self) -> Tensor:
        return torch.zeros(self.num_chains) if self.now.counts is None else self.now.counts.finished

    # Results.

    @property
    def now(self) -> Now:
        """State, tuning and counts of the chains, in memory that compiled ticks to come will change."""
        return self._chains().now

    @property
    def gradients(self) -> int:
        """Energy (or network) calls of all chains in all ticks so far, with those beside the last chains that nobody needed."""
        return self.now.computed * self.kernel.calls_per_tick

    def get_samples(self, num_samples: int | None = None, group_by_chain: bool = False) -> dict[str, Tensor]:  # noqa: FBT001, FBT002
        """Draws in the user's space by site, ``(chains * draws, *site)``, or ``(chains, draws, *site)`` by chain.

        Args:
            num_samples: resample so many with replacement, as Pyro does; all draws when None.
            group_by_chain: keep the chain axis.
        """
        samples = self._values(self.draws.select(0, self._require_draws()))
        return select_samples(samples, num_samples, group_by_chain)

    def stats(self) -> dict[str, Tensor]:
        """Statistics of the draws under ArviZ's names, each ``(chains, draws)``, of some kernels ``(chains, draws, k)``."""
        fields = self.draws.select(0, self._require_draws())
        return {name: value for name, value in fields.items() if name != "position"}

    def warmup(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Values and statistics of the last warm-up draws that every chain has (chains warm up at their own pace).

        Raises:
            ValueError: unless ``save_warmup=True``.
        """
        require(self.save_warmup, "MCMC(..., save_warmup=True) to have warm-up draws", "save_warmup=False")
        require(self.warmup_kept > 0, "at least one warm-up draw of every chain", self.warmup_kept)
        fields = self.warmup_draws.select(0, self.warmup_kept)
        return self._values(fields), {n: v for n, v in fields.items() if n != "position"}

    def _require_draws(self) -> int:
        self._chains()
        require(self.kept > 0, "at least one draw of every chain", 0)
        return self.kept

    def _values(self, fields: dict[str, Tensor]) -> dict[str, Tensor]:
        target, x = self.kernel.target, fields["position"]
        if self.draws.columns is None:
            values = target.constrain(x.reshape(*x.shape[:2], *target.event_shape))
        else:
            # sites transform one by one, so any finite filling of the others will do
            full = x.new_zeros((*x.shape[:2], target.event_shape.numel()))
            full[..., self.draws.columns] = x
            values = target.constrain(full)
            values = {name: values[name] for name in self.save_params or ()}
        for name, transform in (self.transforms or {}).items():
            if name in values:
                values[name] = transform.inv(values[name])
        return values

    def _columns(self, device: torch.device) -> Tensor | None:
        target = self.kernel.target
        if self.save_params is None or not target.packed:
            return None
        index = target.unpack(torch.arange(target.event_shape.numel(), device=device))
        return torch.cat([index[name].reshape(-1) for name in self.save_params])

    def diagnostics(self, statistics: Statistics | None = None) -> dict[str, Any]:
        """By site ``n_eff`` and ``r_hat`` (ArviZ's bulk ESS and rank-normalised R-hat), divergences and acceptance by chain.

        Args:
            statistics: judged in place of the sites, with the energy beside them; see ``diagnostics.statistics``.
        """
        from ebmppl.diagnostics.convergence import diagnostics

        return diagnostics(self, statistics)

    def to_arviz(self, **options: Any) -> Any:
        """The run as ArviZ's ``InferenceData`` (0.x) or ``DataTree`` (1.x); options as in ``interop.arviz.to_arviz``."""
        from ebmppl.interop.arviz import to_arviz

        return to_arviz(self, **options)

    def summary(
        self, prob: float = 0.9, statistics: Statistics | None = None, var_names: Sequence[str] | None = None
    ) -> Summary:
        """Print ArviZ's table with what should make one distrust it, and return both.

        Args:
            prob: probability mass of the intervals.
            statistics: of points, by name, to judge besides; see ``diagnostics.statistics``.
            var_names: sites, statistics and "energy" to judge; all when None, see ``diagnostics.summarize``.
        """
        from ebmppl.diagnostics.summary import summarize_run

        return summarize_run(self, prob, statistics, var_names)

    # Keeping.

    def save(self, path: str | Path) -> None:
        """Write the run (draws, state, tuning, seed) to a file that ``MCMC.load`` continues from."""
        save_run(self, path)

    @classmethod
    def load(cls, path: str | Path, kernel: Kernel) -> MCMC:
        """A saved run, with a kernel of the same kind and energy; ``run(num_samples=more)`` continues it exactly.

        Raises:
            ValueError: when the kernel differs from the saved one in kind, event shape or sites.
        """
        return load_run(cls, path, kernel)


def _require_sites(what: str, names: Sequence[str] | Mapping[str, Any] | None, kernel: Kernel) -> None:
    require(not isinstance(names, str) and (names is None or len(names) > 0), f"{what} by site, or None", repr(names))
    unknown = sorted(set(names or ()) - set(kernel.target.sites))
    if unknown:
        raise ValueError(f"{what} names unknown sites {unknown}; the sites are {sorted(kernel.target.sites)}")
