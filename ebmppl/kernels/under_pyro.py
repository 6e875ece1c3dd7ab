"""The chains of a kernel that ``pyro.infer.MCMC`` runs."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from ebmppl.kernels.base import Kernel


class UnderPyro:
    """The chains behind ``Kernel.sample``: moved whenever the given params are not their own last answer."""

    def __init__(self, kernel: Kernel, params: Mapping[str, Tensor], warmup_steps: int) -> None:
        from ebmppl.sampling.chains import Chains
        from ebmppl.sampling.schedule import stan_windows

        self.kernel, self.warmup_steps, self.draws = kernel, warmup_steps, 0
        x = self._points(params)
        self.chains = Chains(kernel, x, seed=int(torch.randint(2**31, ())))  # Pyro's users seed the global generator
        self.answer = dict(params)
        windows = stan_windows(warmup_steps, len(x))
        self.window_ends = dict(zip(accumulate(window.length for window in windows), windows, strict=True))
        self.rate_sum, self.finished, self.divergences = 0.0, 0, list[int]()
        if warmup_steps:
            self.chains.begin_adaptation()

    def _points(self, params: Mapping[str, Tensor]) -> Tensor:
        x = self.kernel.target.pack(params)
        self.single = x.dim() == len(self.kernel.target.event_shape)
        return x.unsqueeze(0) if self.single else x

    def move(self, params: Mapping[str, Tensor]) -> None:
        """Go to other params than the last answer."""
        if params.keys() != self.answer.keys() or any(params[k] is not v for k, v in self.answer.items()):
            self.chains.move(self._points(params))

    def sample(self) -> dict[str, Tensor]:
        """One draw of every chain, by site."""
        warm = self.draws < self.warmup_steps
        self.chains.advance(1, adapt=warm, observe=self._observe)
        self.draws += 1
        window = self.window_ends.get(self.draws) if warm else None
        if window is not None:
            self.chains.end_window(metric=window.metric)
        if warm and self.draws == self.warmup_steps:
            self.chains.end_adaptation()
            self.rate_sum, self.finished, self.divergences = 0.0, 0, []
        x = self.chains.position()
        self.answer = self.kernel.target.unpack(x[0] if self.single else x)
        return self.answer

    def _observe(self, info: Any) -> None:
        self.rate_sum += float((info.acceptance_rate * info.done).sum())
        self.finished += int(info.done.sum())
        draw = self.draws - self.warmup_steps if self.draws >= self.warmup_steps else self.draws
        self.divergences += [draw] * int((info.diverging & info.done).sum())

    def logging(self) -> dict[str, str]:
        """For the progress bar."""
        step_size = getattr(self.chains.now.tuning, "step_size", None)
        step = {} if step_size is None else {"step size": f"{float(step_size):.2e}"}
        rate = self.rate_sum / max(self.finished, 1)
        return {**step, "acc. prob": f"{rate:.3f}", "divergences": str(len(self.divergences))}

    def diagnostics(self) -> dict[str, Any]:
        """Divergences and acceptance."""
        return {"divergences": self.divergences, "acceptance rate": self.rate_sum / max(self.finished, 1)}
