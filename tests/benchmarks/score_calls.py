"""Network calls a second of the reverse SDE, on a GPU or a CPU, next to the network called alone.

    python -m tests.benchmarks.score_calls [--device cuda] [--steps 1000] [--backends eager cudagraph]

Euler-Maruyama steps with a perceptron 3x256 at 4096 points of the plane and with a small U-Net at 256 images of 28 x 28; float32,
by the clock, medians of 3 draws after one that compiles. Alone, a network is called as often in a loop, uncompiled.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that the script runs from a checkout

import ebmppl as eb
from ebmppl.score import VP, NoisePrediction, TimeMLP, UNet

SDE = VP()
ROUNDS = 3
CASES: dict[str, tuple[Callable[[], torch.nn.Module], tuple[int, ...], int]] = {
    "perceptron 3x256, 4096 x 2": (lambda: TimeMLP((2,)), (2,), 4096),
    "U-Net of width 32, 256 x 1 x 28 x 28": (lambda: UNet((1, 28, 28)), (1, 28, 28), 256),
}


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Median time of a run, after one more."""
    found = []
    for _ in range(ROUNDS + 1):
        began = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
    return statistics.median(found[1:])


@torch.no_grad()
def alone(score: Callable[[Tensor, Tensor], Tensor], x: Tensor, steps: int) -> Tensor:
    t, total = torch.full_like(x.flatten(1)[:, 0], 0.5), x
    for _ in range(steps):
        total = score(x, t)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument(
        "--backends", nargs="+", default=["eager", "cudagraph" if torch.cuda.is_available() else "inductor"]
    )
    options = parser.parse_args()
    device, steps = torch.device(options.device), options.steps
    print(
        f"torch {torch.__version__}, {torch.cuda.get_device_name() if device.type == 'cuda' else 'CPU'}, {steps} steps"
    )
    for name, (make, event, n) in CASES.items():
        torch.manual_seed(0)
        score = NoisePrediction(make(), SDE).to(device)
        x = torch.randn(n, *event, device=device)
        took = {"alone": seconds(partial(alone, score, x, steps), device)}
        for backend in options.backends:
            kernel = eb.ReverseSDE(score, SDE, event, steps)
            run = partial(eb.generate, kernel, n, seed=0, batch_size=n, backend=backend)
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                took[backend] = seconds(run, device)
            for warning in told:
                print(f"  {backend}: {warning.message}")
        for way, spent in took.items():
            print(f"{name:<40} {way:>10}: {steps / spent:8.0f} calls a second, {1e6 * spent / steps:7.0f} us a call")


if __name__ == "__main__":
    main()
