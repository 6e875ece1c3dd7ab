"""Networks of half precision under autocast, points of float32; points of half precision are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ebmppl as eb
from ebmppl.kernels.words import labels, normals
from ebmppl.score import EDM, VP, NoisePrediction, Replacement, ScorePrediction, TimeMLP, UNet

HALF = [torch.bfloat16, torch.float16]
SDE = VP()
REFUSED = (
    r"expected float32 or float64 states, got torch\.b?float16 \(run a network of half precision under torch\.autocast"
)


class Small(nn.Module):
    """A score near that of N(0, I), of a network's own dtype under autocast."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return 0.1 * self.network(x, t) - x


class Casting(Small):
    """A network of half precision that needs no autocast."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        dtype = self.network.last.weight.dtype
        return 0.1 * self.network(x.to(dtype), t.to(dtype)).to(x.dtype) - x


def network() -> TimeMLP:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TimeMLP((3,), (16,))


KERNELS: dict[str, Callable[[Any], eb.kernels.Kernel]] = {
    "reverse": lambda s: eb.ReverseSDE(s, SDE, (3,), 20),
    "flow": lambda s: eb.ProbabilityFlow(s, SDE, (3,), 20),
    "adaptive": lambda s: eb.AdaptiveFlow(s, SDE, (3,), rtol=0.1, atol=0.1),
    "adaptive reverse": lambda s: eb.AdaptiveReverseSDE(s, SDE, (3,), rtol=0.1, atol=0.1),
    "annealed": lambda s: eb.AnnealedLangevin(s, [2.0, 1.0], (3,), 2, 0.01),
}


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("kernel", KERNELS)
def test_points_of_half_precision_are_refused(kernel: str, dtype: torch.dtype, device: torch.device) -> None:
    x = torch.zeros(4, 3, dtype=dtype, device=device)
    with pytest.raises(ValueError, match=REFUSED):
        eb.transport(KERNELS[kernel](lambda x, t: -x), x)


@pytest.mark.parametrize("dtype", HALF)
def test_so_they_are_by_likelihoods_and_distributions(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=REFUSED):
        eb.log_likelihood(lambda x, t: -x, SDE, torch.zeros(4, 3, dtype=dtype))
    with pytest.raises(ValueError, match=REFUSED):
        eb.ScoreDistribution(lambda x, t: -x, SDE, (3,), like=torch.zeros(1, dtype=dtype))


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("kernel", ["reverse", "flow"])
def test_networks_of_half_precision_under_autocast(kernel: str, dtype: torch.dtype, device: torch.device) -> None:
    """With weights of float32 or of half precision; draws are those of float32 to about a network's rounding."""
    exact = eb.generate(KERNELS[kernel](Small(network()).to(device)), 20, seed=0)
    for weights in (torch.float32, dtype):
        with torch.autocast(device.type, dtype):
            x = eb.generate(KERNELS[kernel](Small(network()).to(device, weights)), 20, seed=0)
        assert (x.dtype, x.device.type) == (torch.float32, device.type)
        assert 0 < float((x - exact).abs().max()) < 0.05
    x = eb.generate(KERNELS[kernel](Casting(network()).to(device, dtype)), 20, seed=0)
    assert x.dtype == torch.float32
    assert 0 < float((x - exact).abs().max()) < 0.05


@pytest.mark.parametrize("make", [ScorePrediction, NoisePrediction, EDM])
def test_parameterisations_under_autocast(make: Any, device: torch.device) -> None:
    """With weights of half precision; likelihoods and distributions, too."""
    model = make(network().to(torch.bfloat16), SDE).to(device)
    with torch.autocast(device.type, torch.bfloat16):
        assert eb.generate(KERNELS["reverse"](model), 20, seed=0).dtype == torch.float32
        assert eb.log_likelihood(model, SDE, torch.zeros(4, 3, device=device), 0.1, 0.1).value.dtype == torch.float32
        made = eb.ScoreDistribution(model, SDE, (3,), rtol=0.1, atol=0.1)
        assert made.log_prob(made.sample((2,))).dtype == torch.float32


def test_rows_of_a_u_net_are_not_mixed_by_its_rounding(device: torch.device) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Small(UNet((1, 8, 8), 16, 1)).to(device)
    with torch.autocast(device.type, torch.bfloat16):
        assert eb.generate(eb.ReverseSDE(model, SDE, (1, 8, 8), 2), 64, seed=0).dtype == torch.float32


def test_a_batch_may_round_otherwise_than_a_row_under_autocast_alone() -> None:
    def rounded(x: Tensor, t: Tensor) -> Tensor:
        return -(x.bfloat16().float() if len(x) > 1 else x)

    with torch.autocast("cpu", torch.bfloat16):
        eb.generate(KERNELS["reverse"](rounded), 20, seed=0)
    with pytest.raises(ValueError, match="mixes the rows"):
        eb.generate(KERNELS["reverse"](rounded), 20, seed=0)


def test_without_autocast_it_is_told() -> None:
    with pytest.raises(ValueError, match=r"score's parameters, got torch\.float32 \(run a network of half precision"):
        eb.generate(KERNELS["reverse"](Small(network().to(torch.bfloat16))), 4)


def test_what_is_given_is_not_rounded() -> None:
    """To three digits, as the network's weights are."""
    values = torch.tensor([0.123456, 0.0, 0.0])
    model = Casting(network().to(torch.bfloat16))
    score = Replacement(model, SDE, (3,), torch.tensor([True, False, False]), values)
    x = eb.generate(eb.ReverseSDE(score, SDE, (3,), 20, "ancestral", denoise=True), 4, seed=0)
    torch.testing.assert_close(x[:, 0], values[0].expand(4), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", HALF)
def test_normal_numbers_of_half_precision_are_those_of_float32(dtype: torch.dtype) -> None:
    """Rounded: uniform numbers of half precision are often 1, and normal ones infinite there."""
    keys = torch.tensor([[12345, -678]], dtype=torch.int32)
    of = {kind: normals(labels(100_000), keys, kind) for kind in (torch.float32, dtype)}
    assert torch.equal(of[dtype], of[torch.float32].to(dtype))
    assert bool(of[dtype].isfinite().all())
