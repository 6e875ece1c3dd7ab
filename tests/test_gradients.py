"""A traced gradient is the eager one, sees every change that the eager one would, or is not used and says why."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import ebmppl as eb
from ebmppl.energies.base import Energy
from ebmppl.energies.fingerprint import fingerprint as form
from ebmppl.errors import SamplingWarning
from ebmppl.kernels.gradients import Gradient, _trace
from ebmppl.sampling.program import make_graph
from tests.targets import TARGETS


def points(chains: int, size: int) -> Tensor:
    return torch.randn(chains, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 1)).double()


class Net(Energy):
    """A module energy with everything that may change: weights, a buffer, a mode, an attribute."""

    def __init__(self) -> None:
        super().__init__((3,))
        self.layers = network()
        self.register_buffer("shift", torch.ones(3, dtype=torch.float64))
        self.power = 2

    def forward(self, x: Tensor) -> Tensor:
        scale = 0.1 if self.training else 0.5
        return self.layers(x).squeeze(-1) + scale * ((x - self.shift).abs() ** self.power).sum(-1)


def traced(gradient: Gradient, x: Tensor) -> bool:
    return gradient.traced[x.shape, x.dtype, x.device].run is not None


def assert_eager(gradient: Gradient, x: Tensor) -> None:
    for found, wanted in zip(gradient(x), gradient.energy.value_and_grad(x), strict=True):
        assert not found.requires_grad
        assert torch.allclose(found, wanted, rtol=1e-12, atol=1e-12, equal_nan=True)  # the same operations


@pytest.mark.parametrize("name", TARGETS)
def test_every_energy_is_traced_and_equals_the_eager_gradient(name: str) -> None:
    """No warning comes: warnings are errors here."""
    target = eb.HMC(TARGETS[name].energy).target  # unconstrained
    z = points(12, target.event_shape.numel()).reshape(12, *target.event_shape)
    gradient = Gradient(target)
    gradient.prepare(z[:6])
    assert traced(gradient, z[:6])
    assert_eager(gradient, z[6:])


def test_a_bad_point_stays_a_row_of_its_own() -> None:
    gradient = Gradient(TARGETS["mixture"].energy)
    x = points(5, 2)
    gradient.prepare(x)
    x[3] = torch.nan
    value, grad = gradient(x)
    assert not bool(value[3].isfinite())
    assert bool(value[[0, 1, 2, 4]].isfinite().all())
    assert bool(grad[[0, 1, 2, 4]].isfinite().all())


@pytest.mark.parametrize("change", ["weight in place", "optimiser", "buffer in place"])
def test_changes_in_place_are_seen_at_once(change: str) -> None:
    energy = Net()
    gradient, x = Gradient(energy), points(6, 3)
    gradient.prepare(x)
    assert traced(gradient, x)
    before, _ = gradient(x)
    with torch.no_grad():
        if change == "weight in place":
            energy.layers[0].weight.mul_(2.0)
        elif change == "buffer in place":
            energy.shift.add_(1.0)
    if change == "optimiser":
        optimiser = torch.optim.SGD(energy.parameters(), lr=0.5)
        energy(x).sum().backward()
        optimiser.step()
    assert not torch.allclose(gradient(x)[0], before)
    assert_eager(gradient, x)


CHANGES: dict[str, Callable[[Net], object]] = {
    "mode": lambda net: net.eval(),
    "attribute": lambda net: setattr(net, "power", 4),
    "another weight": lambda net: setattr(net.layers[0], "weight", nn.Parameter(2 * net.layers[0].weight.detach())),
    "another buffer": lambda net: setattr(net, "shift", torch.zeros(3, dtype=torch.float64)),
    "loaded": lambda net: net.load_state_dict({k: 2 * v for k, v in net.state_dict().items()}, assign=True),
    "another layer": lambda net: net.layers.__setitem__(1, nn.Softplus()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_changes_are_seen_by_the_next_run(change: str) -> None:
    energy = Net()
    gradient, x = Gradient(energy), points(6, 3)
    gradient.prepare(x)
    before, _ = gradient(x)
    CHANGES[change](energy)
    gradient.prepare(x, values=change == "another layer")
    assert traced(gradient, x)
    assert not torch.allclose(gradient(x)[0], before)
    assert_eager(gradient, x)


def test_captured_numbers_that_changed_are_seen_by_their_values() -> None:
    scale = [1.0]
    energy = eb.as_energy(lambda x: scale[0] * (x**2).sum(-1), (2,))
    gradient, x = Gradient(energy), points(6, 2)
    gradient.prepare(x)
    scale[0] = 3.0
    gradient.prepare(x)
    assert_eager(gradient, x)


def test_it_is_traced_once_while_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    energy = Net()
    gradient, x = Gradient(energy), points(6, 3)
    gradient.prepare(x)
    run = gradient.traced[x.shape, x.dtype, x.device].run
    gradient.prepare(x + 1)
    monkeypatch.setattr(Energy, "value_and_grad", None)  # without values nothing is evaluated
    gradient.prepare(x, values=False)
    assert gradient.traced[x.shape, x.dtype, x.device].run is run


def looks_at_values(x: Tensor) -> Tensor:
    return (x**2).sum(-1) if float(x.detach().sum()) > 0 else 2 * (x**2).sum(-1)


def fresh_numbers(x: Tensor) -> Tensor:
    return ((x - torch.randn(2, dtype=x.dtype)) ** 2).sum(-1)


def validated(x: Tensor) -> Tensor:
    return -torch.distributions.Normal(0.0, 1.0, validate_args=True).log_prob(x).sum(-1)


def picks_by_value(x: Tensor) -> Tensor:
    return (x**2).sum(-1) + torch.stack([(row[row > 0] ** 2).sum() for row in x])


def picks_in_place(x: Tensor) -> Tensor:
    mask = torch.zeros_like(x).copy_(x) > 0  # new numbers, written into
    return (x**2).sum(-1) + 0 * x[mask].sum()


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (
            looks_at_values,
            r"code looks at values \(if, float\(\) or \.item\(\) of a tensor\), which a trace can't follow",
        ),
        (validated, r".* can't follow; it is torch.distributions that validates: give them validate_args=False$"),
        (fresh_numbers, "the traced gradient differs"),
        (picks_by_value, "ValueError: a size depends on the points"),
        (picks_in_place, "ValueError: a size depends on the points"),
    ],
)
def test_what_cannot_be_traced_runs_eagerly_and_says_so_once(forward: Callable[[Tensor], Tensor], reason: str) -> None:
    class Odd(Energy):
        def forward(self, x: Tensor) -> Tensor:
            return forward(x)

    torch.manual_seed(0)
    gradient, x = Gradient(Odd((2,))), points(6, 2)
    with pytest.warns(SamplingWarning, match=rf"the gradient of Odd runs untraced, slower: {reason}"):
        gradient.prepare(x)
    assert not traced(gradient, x)
    gradient.prepare(x)  # no second warning
    if forward is not fresh_numbers:
        assert_eager(gradient, x)


def picks_by_data(x: Tensor) -> Tensor:
    return (x[:, torch.tensor([True, False, True])] ** 2).sum(-1)


def picks_by_form(x: Tensor) -> Tensor:
    return (x[torch.ones_like(x) > 0] ** 2).reshape(x.shape).sum(-1)


@pytest.mark.parametrize("forward", [picks_by_data, picks_by_form])
def test_a_size_that_depends_on_data_or_shapes_is_traced(forward: Callable[[Tensor], Tensor]) -> None:
    class Picks(Energy):
        def forward(self, x: Tensor) -> Tensor:
            return forward(x)

    gradient, x = Gradient(Picks((3,))), points(6, 3)
    gradient.prepare(x)
    assert traced(gradient, x)
    assert_eager(gradient, x)


def curvature(x: Tensor) -> Tensor:
    return torch.func.hessian(lambda v: (v**4).sum() + v[0] * v[1])(x).square().sum()


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch's of itself
def test_forward_derivatives_within_an_energy_are_traced() -> None:
    """A Hessian is one of a gradient; torch crashed at its zeros, which have no memory."""
    energy = eb.as_energy(curvature, (3,))
    gradient, x = Gradient(energy), points(6, 3)
    gradient.prepare(x)
    assert traced(gradient, x)
    assert_eager(gradient, x)
    graph = make_graph(lambda x: [energy(x)], [x], lambda: ())  # as kernels and losses without gradients have it
    assert graph.graph is not None
    assert torch.allclose(graph.graph(x, *graph.constants)[0], energy(x))


def test_results_belong_to_the_caller() -> None:
    """Neither a folded constant nor the points themselves come out, and what is written into is not folded."""
    linear = Gradient(eb.as_energy(lambda x: x.sum(-1), (2,)))  # its gradient is a constant

    class Writes(Energy):
        def forward(self, x: Tensor) -> Tensor:
            total = torch.zeros(len(x), dtype=x.dtype)
            total += (x**2).sum(-1)
            return total

    for gradient in (linear, Gradient(Writes((2,)))):
        x = points(6, 2)
        gradient.prepare(x)
        assert traced(gradient, x)
        for result in gradient(x):
            result.zero_()
        assert_eager(gradient, x)
        assert_eager(gradient, x)


def test_runs_of_many_draws_trace_and_short_ones_do_not() -> None:
    calls = 0

    def counted(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return 0.5 * (x**2).sum(-1)

    def calls_of(draws: int) -> int:
        nonlocal calls
        kernel = eb.Langevin(eb.as_energy(counted, (2,)), step_size=0.3)
        calls = 0
        mcmc = eb.MCMC(kernel, draws, 0, num_chains=4, seed=0, disable_progbar=True)
        mcmc.run()
        return calls

    assert calls_of(900) > 900
    assert calls_of(1100) < 50  # the form of fn, the trace and its checks
    draws = {}
    for least in (0, 10**9):  # the same draws either way
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Energy, "traced_from", least)
            kernel = eb.Langevin(eb.as_energy(counted, (2,)), step_size=0.3)
            mcmc = eb.MCMC(kernel, 50, 0, num_chains=4, seed=0, disable_progbar=True)
            mcmc.run()
            draws[least] = mcmc.get_samples()["x"]
    assert torch.equal(*draws.values())


def test_the_form_of_a_module_names_what_a_trace_takes_for_granted() -> None:
    energy = Net()
    before = form(energy)
    assert before == form(energy)
    for change in ("mode", "attribute", "another weight", "another buffer"):
        other = Net()
        before = form(other)
        CHANGES[change](other)
        assert before != form(other), change


def test_constants_are_on_the_device_of_the_points() -> None:
    """Ones that a gradient begins with say no device; numbers of "meta" don't mix with a CPU's, as a GPU's would not."""

    def value_and_grad(x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            value = torch.nn.functional.softplus(x @ torch.ones(3, 5, device=x.device)).sum(-1)
            (grad,) = torch.autograd.grad(value, x, torch.ones_like(value))
        return value.detach(), grad

    x = torch.zeros(4, 3, device="meta")
    value, grad = _trace(value_and_grad, x)[0](x)
    assert (value.device.type, grad.device.type, grad.shape) == ("meta", "meta", x.shape)
