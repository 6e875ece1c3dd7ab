"""Neural energies: their formulas, closed-form derivatives, integrability, and bad input."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ebmppl.energies import ClassifierEnergy, ConvEnergy, MLPEnergy, as_energy
from ebmppl.energies.activations import ACTIVATIONS, with_derivatives
from ebmppl.energies.matching import Matching
from ebmppl.losses import DenoisingScoreMatching, ScoreMatching, SlicedScoreMatching

F64 = torch.float64
every_activation = pytest.mark.parametrize("name", ACTIVATIONS)


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=F64, generator=gen(seed))


@every_activation
def test_derivatives_of_activations(name: str) -> None:
    h = (4 * normal(40)).requires_grad_()
    found = ACTIVATIONS[name].derivatives(h, 3)
    wanted = ACTIVATIONS[name].function(h)
    for derivative in found:
        torch.testing.assert_close(derivative, wanted, rtol=1e-10, atol=1e-12)
        if derivative is not found[-1]:
            (wanted,) = torch.autograd.grad(wanted.sum(), h, create_graph=True)
    far = torch.tensor([-100.0, 100.0], dtype=F64)
    assert all(bool(torch.isfinite(part).all()) for part in ACTIVATIONS[name].derivatives(far, 3))


@every_activation
@pytest.mark.parametrize("order", [1, 2])
def test_they_are_differentiable_twice(name: str, order: int) -> None:
    h = normal(5).requires_grad_()
    assert torch.autograd.gradcheck(lambda h: with_derivatives(name, h, order), h)
    assert torch.autograd.gradgradcheck(lambda h: with_derivatives(name, h, order), h)


@every_activation
@pytest.mark.parametrize("hidden", [(5,), (7, 5, 6)])
@pytest.mark.parametrize("shape", [(3,), (2, 2)])
def test_closed_forms_of_an_mlp(name: str, hidden: tuple[int, ...], shape: tuple[int, ...]) -> None:
    """Gradient and slopes, and their gradients in all parameters and in x, are those of autograd through ``forward``."""
    energy = MLPEnergy(shape, hidden, name, confine=0.3, generator=gen(), dtype=F64)
    x, v = normal(4, *shape).requires_grad_(), normal(3, 4, *shape, seed=1)
    (gradient,) = torch.autograd.grad(energy(x).sum(), x, create_graph=True)
    once = (v * gradient).flatten(2).sum(-1)
    pulled = [torch.autograd.grad(row.sum(), x, create_graph=True)[0] for row in once]
    twice = (torch.stack(pulled) * v).flatten(2).sum(-1)
    everything = [*list(energy.parameters())[:-1], x]
    for found, wanted in ((energy.gradient(x), gradient), *zip(energy.slopes(x, v), (once, twice), strict=True)):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-11)
        weights = normal(*found.shape, seed=2)
        grads = [torch.autograd.grad((y * weights).sum(), everything, retain_graph=True) for y in (found, wanted)]
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
    for a, b in zip(energy.value_and_grad(x), (energy(x), gradient), strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=1e-10, atol=1e-11)


class Steeper(MLPEnergy):
    """With a term that no closed form of its parent knows."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x.pow(4).sum(-1)


def doubled(energy: MLPEnergy) -> MLPEnergy:
    energy.net[0].register_forward_hook(lambda layer, inputs, output: 2 * output)
    return energy


def with_sine(energy: MLPEnergy) -> MLPEnergy:
    energy.function = torch.sin
    return energy


def confining(energy: MLPEnergy) -> MLPEnergy:
    del energy.confine
    energy.confine = nn.Parameter(torch.tensor(0.3, dtype=F64))
    return energy


@pytest.mark.parametrize(
    "change", [doubled, with_sine, confining, lambda _: Steeper(2, (5, 4), generator=gen(), dtype=F64)]
)
def test_no_closed_form_is_taken_for_another_function(change: Callable[[MLPEnergy], MLPEnergy]) -> None:
    energy = change(MLPEnergy(2, (5, 4), confine=0.3, generator=gen(), dtype=F64))
    called = as_energy(lambda x: energy(x), (2,))  # by autograd
    x = normal(6, 2)
    torch.testing.assert_close(energy.value_and_grad(x), called.value_and_grad(x))
    for loss in (ScoreMatching(), SlicedScoreMatching(2, seed=0), DenoisingScoreMatching(0.3, seed=0)):
        found, wanted = loss(energy)(x), loss(called)(x)
        torch.testing.assert_close(found, wanted)
        for grads in zip(
            *(torch.autograd.grad(y, list(energy.parameters())[:-1]) for y in (found, wanted)), strict=True
        ):
            torch.testing.assert_close(*grads)


def test_points_that_are_numbers_are_vectors_of_one() -> None:
    numbers, vectors = (MLPEnergy(shape, (5, 4), confine=0.3, generator=gen(), dtype=F64) for shape in ((), 1))
    x = normal(6)
    torch.testing.assert_close(numbers(x), vectors(x.unsqueeze(1)))
    torch.testing.assert_close(numbers.value_and_grad(x)[1], vectors.value_and_grad(x.unsqueeze(1))[1].squeeze(1))
    for loss in (ScoreMatching(), SlicedScoreMatching(2, seed=0), DenoisingScoreMatching(0.3, seed=0)):
        torch.testing.assert_close(loss(numbers)(x), loss(vectors)(x.unsqueeze(1)))


@every_activation
def test_closed_forms_can_be_differentiated_again(name: str) -> None:
    energy = MLPEnergy(2, (3, 4), name, generator=gen(), dtype=F64)
    x, v = normal(2, 2).requires_grad_(), normal(2, 2, 2, seed=1)
    some = list(energy.parameters())[:-1]

    def forms(x: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        (*parts,) = values
        named = dict(zip([n for n, _ in energy.named_parameters()][:-1], parts, strict=True))
        return torch.func.functional_call(Forms(energy, v), {f"energy.{n}": p for n, p in named.items()}, (x,))

    assert torch.autograd.gradcheck(forms, (x, *some))
    assert torch.autograd.gradgradcheck(forms, (x, *some))


class Forms(nn.Module):
    def __init__(self, energy: MLPEnergy, v: Tensor) -> None:
        super().__init__()
        self.energy, self.v = energy, v

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.energy.gradient(x), *self.energy.slopes(x, self.v)


def matchings(*shape: int) -> list[Matching]:
    target, v = normal(*shape, seed=3), normal(3, *shape, seed=4)
    several = [Matching(v=v[:n], along=along) for n in (1, 3) for along in (False, True)]
    return [Matching(), Matching(target=target, scale=1.5), Matching(target=target, v=v), *several]


@every_activation
@pytest.mark.parametrize("hidden", [(5,), (34, 5)])
@pytest.mark.parametrize("shape", [(3,), (2, 2)])
def test_what_score_matching_asks_of_an_mlp(name: str, hidden: tuple[int, ...], shape: tuple[int, ...]) -> None:
    """The fused terms and their gradients are those of autograd through ``forward`` and the formula of ``Matching``."""
    energy = MLPEnergy(shape, hidden, name, confine=0.3, generator=gen(), dtype=F64)
    x = normal(4, *shape).requires_grad_()
    everything = [*list(energy.parameters())[:-1], x]
    (gradient,) = torch.autograd.grad(energy(x).sum(), x, create_graph=True)
    for what in matchings(4, *shape):
        apart = gradient if what.target is None else gradient - what.scale * what.target
        square, change = 0.5 * apart.square().flatten(1).sum(1).mean(), None
        if what.v is not None:
            once = (what.v * gradient).flatten(2).sum(-1)
            pulled = torch.stack([torch.autograd.grad(row.sum(), x, create_graph=True)[0] for row in once])
            change = -(pulled * what.v).flatten(2).sum(-1).mean()
            square = 0.5 * once.square().mean() if what.along else square
        found = energy.matched(x, what)
        assert (found[1] is None) is (what.v is None)
        for a, b in zip((*found, what.square(gradient)), (square, change, square), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)
        grads = [
            torch.autograd.grad(2 * a - (0 if b is None else 3 * b), everything, retain_graph=True)
            for a, b in (found, (square, change))
        ]
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("number", range(7))
def test_what_is_dropped_is_freed(number: int) -> None:
    """At once: a node that kept its own outputs would wait for the garbage collector, and steps get new memory each."""
    energy, x, what = MLPEnergy(2, (3, 2), generator=gen(), dtype=F64), normal(4, 2), matchings(4, 2)[number]
    gc.collect()
    gc.disable()
    try:
        node = weakref.ref(energy.matched(x, what)[0].grad_fn)
        assert node() is None
    finally:
        gc.enable()


def test_it_can_be_differentiated_again() -> None:
    energy = MLPEnergy(2, (3, 2), "tanh", confine=0.2, generator=gen(), dtype=F64)
    x, names = normal(2, 2).requires_grad_(), [name for name, _ in energy.named_parameters()][:-1]
    for what in matchings(2, 2)[1:]:

        def terms(x: Tensor, *values: Tensor, what: Matching = what) -> tuple[Tensor, ...]:
            named = {f"energy.{name}": value for name, value in zip(names, values, strict=True)}
            return torch.func.functional_call(Terms(energy, what), named, (x,))

        assert torch.autograd.gradgradcheck(terms, (x, *list(energy.parameters())[:-1]))


class Terms(nn.Module):
    def __init__(self, energy: MLPEnergy, what: Matching) -> None:
        super().__init__()
        self.energy, self.what = energy, what

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(term for term in self.energy.matched(x, self.what) if term is not None)


def test_mlp_is_the_network_it_says() -> None:
    energy = MLPEnergy(2, (4, 3), "tanh", confine=0.5, generator=gen(), dtype=F64)
    a, b, c = energy.net
    plain = nn.Sequential(a, nn.Tanh(), b, nn.Tanh(), c, nn.Flatten(0))
    x = normal(6, 2)
    torch.testing.assert_close(energy(x), plain(x) + 0.25 * x.square().sum(-1))
    assert [tuple(layer.weight.shape) for layer in energy.net] == [(4, 2), (3, 4), (1, 3)]


def test_weights_are_torch_s_own_law_and_repeat_with_their_generator() -> None:
    before = torch.random.get_rng_state()
    one, two = (MLPEnergy(3, (200,), generator=gen(1)) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    weight = one.net[0].weight.detach()
    assert weight.abs().max() <= 1 / math.sqrt(3)
    # 600 uniform numbers: the mean square has relative error sqrt(0.8 / 600) = 0.037; 4 of these
    assert float(weight.square().mean()) == pytest.approx(1 / 9, rel=0.15)


@every_activation
def test_a_confined_network_is_a_density(name: str) -> None:
    """It grows as c |x|^2 / 2 less a slope that its weights bound; without the term it may fall for ever."""
    energy = MLPEnergy(2, (8, 8), name, confine=0.1, generator=gen(), dtype=F64)
    slope = (
        math.prod(float(torch.linalg.matrix_norm(layer.weight.detach(), 2)) for layer in energy.net) * 1.2**2
    )  # |act'| <= 1.13
    directions = nn.functional.normalize(normal(50, 2), dim=1)
    for radius in (10.0, 1000.0):
        least = energy(torch.zeros(2, dtype=F64)) + 0.05 * radius**2 - slope * radius
        assert bool((energy(radius * directions) >= least).all())


@pytest.mark.parametrize("size", [1, 5, (7, 4), (28, 28)])
def test_images_of_any_size(size: int | tuple[int, int]) -> None:
    energy = ConvEnergy(3, size, (4, 5, 6), generator=gen())
    x = torch.randn(2, *energy.event_shape, generator=gen())
    assert energy(x).shape == (2,)
    assert energy.value_and_grad(x)[1].shape == x.shape
    assert energy(x[None, :, None].expand(2, 2, 3, *energy.event_shape)).shape == (2, 2, 3)


def test_spectral_norm_bounds_every_layer() -> None:
    energy = ConvEnergy(2, 6, (8, 8), spectral_norm=True, generator=gen(), dtype=F64)
    x = normal(3, 2, 6, 6)
    with torch.no_grad():
        for layer in energy.net:
            layer.weight.mul_(7.0)
        for _ in range(200):
            energy(x)  # one power iteration each
    for weight in energy._weights():
        assert float(torch.linalg.matrix_norm(weight.detach().flatten(1), 2)) == pytest.approx(1.0, rel=1e-3)
    energy.eval()
    state = {name: value.clone() for name, value in energy.state_dict().items()}
    first = energy(x)
    assert torch.equal(energy(x), first)
    assert all(torch.equal(value, state[name]) for name, value in energy.state_dict().items())


def test_spectral_norm_in_training_mode_takes_two_calls_before_a_backward() -> None:
    energy = ConvEnergy(1, 4, (4, 4), spectral_norm=True, generator=gen(), dtype=F64)
    (energy(normal(2, 1, 4, 4)).mean() - energy(normal(2, 1, 4, 4, seed=1)).mean()).backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in energy.parameters() if p.grad is not None)


def test_a_classifier_is_a_density_of_inputs_and_classes() -> None:
    classifier = nn.Linear(2, 3).double()
    energy = ClassifierEnergy(classifier, (2,), confine=1.0)
    x, y = normal(4, 2), torch.tensor([0, 2, 1, 1])
    assert energy(x).shape == (4,)
    torch.testing.assert_close(energy(x), 0.5 * x.square().sum(-1) - classifier(x).exp().sum(-1).log())
    every = torch.stack([energy.joint(x, torch.full((4,), k)) for k in range(3)], -1)
    torch.testing.assert_close(-(-every).logsumexp(-1), energy(x))
    torch.testing.assert_close(energy.log_prob_class(x), energy(x).unsqueeze(-1) - every)
    torch.testing.assert_close(energy.joint(x, y), every.gather(1, y[:, None])[:, 0])
    loss = nn.functional.cross_entropy(energy.logits(x), y)
    torch.testing.assert_close(loss, -energy.log_prob_class(x).gather(1, y[:, None]).mean())


def test_a_classifier_of_images() -> None:
    classifier = nn.Sequential(nn.Conv2d(1, 2, 3), nn.SiLU(), nn.Flatten(), nn.Linear(8, 5)).double()
    energy = ClassifierEnergy(classifier, (1, 4, 4))
    x = normal(2, 3, 1, 4, 4)
    assert energy(x).shape == (2, 3)
    assert energy.log_prob_class(x).shape == (2, 3, 5)
    assert len(list(energy.parameters())) == 4


three = ClassifierEnergy(nn.Linear(2, 3), (2,))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MLPEnergy(2, ()), r"expected hidden as one or more positive widths, got \(\)"),
        (lambda: MLPEnergy(2, (4, 0)), "positive widths"),
        (lambda: MLPEnergy(0), "expected positive sizes"),
        (lambda: MLPEnergy((2, 3))(torch.zeros(4, 3, 2)), r"expected points of shape .*got \(4, 3, 2\)"),
        (lambda: MLPEnergy(2, activation="relu"), "expected a smooth activation, one of .*, got 'relu'"),
        (lambda: MLPEnergy(2, confine=-1.0), "expected confine >= 0 and finite, got -1.0"),
        (lambda: MLPEnergy(2, confine=math.nan), "confine >= 0"),
        (lambda: ConvEnergy(1, 0), "expected positive sizes"),
        (lambda: ConvEnergy(0, 3), "expected positive sizes"),
        (lambda: ConvEnergy(1, 3, activation="step"), "smooth activation"),
        (lambda: ConvEnergy(1, 3)(torch.zeros(2, 1, 3, 4)), r"expected points of shape .*got \(2, 1, 3, 4\)"),
        (lambda: ClassifierEnergy(3, (2,)), "expected a callable classifier, got int"),  # type: ignore[arg-type]
        (lambda: ClassifierEnergy(lambda x: x.sum(-1), (2,))(torch.zeros(4, 2)), r"logits of shape \(4, classes\)"),
        (lambda: ClassifierEnergy(nn.Linear(2, 3), (2,), confine=-1), "confine >= 0"),
        (lambda: three.joint(torch.zeros(4, 2), torch.tensor(1)), r"expected classes of shape \(4,\), got \(\)"),
        (lambda: three.joint(torch.zeros(2, 2), torch.tensor([1, 3])), "expected classes from 0 to 2, got 1 to 3"),
    ],
)
def test_bad_input(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
