"""The tutorials' parts against closed forms, and a small version of each run."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from scipy import stats
from scipy.signal import lfilter

from ebmppl.score import linear_betas

TUTORIALS = Path(__file__).parents[1] / "tutorials"


@pytest.fixture(autouse=True)
def _coarse_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """At full size, pictures take a third of the time."""
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **options: save(self, path, **(options | {"dpi": 20})))


@pytest.fixture(scope="module")
def ising() -> ModuleType:
    spec = importlib.util.spec_from_file_location("_ising_tutorial", TUTORIALS / "ising.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_ising_runs_and_writes_its_pictures(
    ising: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ising, "TEMPERATURES", (1.6, 2.3, 3.0))
    # at L = 8 and T = 1.6 the magnetisation is the infinite one up to exp(-L / 0.9), far below its error here
    assert ising.main(size=8, chains=8, draws=60, steps=300, picture=16) == 0
    for name in ("magnetisation", "lattices", "autocorrelation"):
        assert (tmp_path / f"out/ising_{name}.png").read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    assert "as it should be" in out
    assert "Wolff" in out


def test_the_magnetisation_of_the_infinite_lattice(ising: ModuleType) -> None:
    assert math.sinh(2 / ising.CRITICAL) == pytest.approx(1.0)
    below, above = ising.exact_magnetisation(np.array([ising.CRITICAL - 1e-9, ising.CRITICAL + 1e-9]))
    assert 0 < below < 0.1
    assert above == 0.0
    # to the first two orders at low temperatures: 1 - 2 u^4 - 8 u^6, u = exp(-2 / T)
    u = math.exp(-2 / 0.5)
    assert 1 - float(ising.exact_magnetisation(0.5)) == pytest.approx(2 * u**4 + 8 * u**6, rel=1e-4)


def test_the_integrated_time_is_that_of_the_process(ising: ModuleType) -> None:
    r = 0.9
    noise = np.random.default_rng(0).normal(size=(32, 4000))
    x = lfilter([1.0], [1.0, -r], noise, axis=1)[:, 200:]
    rho = ising.correlations(x)
    assert rho[10] == pytest.approx(r**10, abs=0.03)
    assert ising.integrated_time(rho) == pytest.approx((1 + r) / (1 - r), rel=0.06)


def tutorial(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"_{name}_tutorial", TUTORIALS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_training_in_the_plane_fails_and_recovers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    module = tutorial("train_2d")
    assert module.main(steps=60, failing=60, points=1000) in (0, 1)  # too short for a good model
    for name in ("energy", "gap"):
        assert (tmp_path / f"out/train_2d_{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "Held-out log-likelihood" in capsys.readouterr().out
    data = module.eight_gaussians(20000, 0)
    # of eight components that hardly overlap: log 8 + the entropy of one
    assert -module.truth(data) == pytest.approx(math.log(8) + math.log(2 * math.pi * math.e * 0.04), abs=0.03)


def test_an_rbm_of_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    module = tutorial("rbm_digits")
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(SystemExit, match="pip install scikit-learn"):
        module.digits()
    bars = (torch.rand((150, 8, 1), generator=torch.Generator().manual_seed(0)) < 0.4).float().expand(-1, -1, 8)
    fake = ModuleType("sklearn.datasets")
    fake.load_digits = lambda: SimpleNamespace(data=16 * bars.reshape(150, 64).numpy())
    monkeypatch.setitem(sys.modules, "sklearn.datasets", fake)
    monkeypatch.setattr(module, "TRAINED_ON", 100)
    monkeypatch.setattr(module, "BATCH", 10)
    assert module.main(hidden=4, epochs=40, sweeps=20) == 0
    for name in ("likelihood", "filters", "samples"):
        assert (tmp_path / f"out/rbm_digits_{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "Held-out digits" in capsys.readouterr().out


def bars_file(path: Path) -> Path:
    """As MNIST's: packed rows of random bars."""
    x = (
        (torch.rand((300, 28, 1), generator=torch.Generator().manual_seed(0)) < 0.3)
        .expand(-1, -1, 28)
        .reshape(300, 784)
    )
    packed = np.packbits(x.numpy().astype(np.uint8), axis=1)
    np.savez(path / "bars.npz", train=packed[:200], test=packed[200:])
    return path / "bars.npz"


def mnist(path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.chdir(path)
    monkeypatch.syspath_prepend(str(TUTORIALS))
    return tutorial("rbm_mnist")


def wrote_mnist(path: Path) -> bool:
    names = ("curves", "filters", "samples")
    return all((path / f"out/rbm_mnist_{name}.png").read_bytes().startswith(b"\x89PNG") for name in names)


def test_a_large_rbm_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = mnist(tmp_path, monkeypatch)
    assert module.main(bars_file(tmp_path), hidden=8, epochs=10, every=10, sweeps=10) == 0
    assert wrote_mnist(tmp_path)


def test_curves_of_an_rbm_without_weights_are_its_likelihood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixels are independent then, and all three are one number."""
    module = mnist(tmp_path, monkeypatch)
    data, _ = module.images(bars_file(tmp_path))
    rbm = module.eb.models.BernoulliRBM(784, 3).init_from_data(data, scale=0.0)
    wanted = module.eb.log_partition(rbm).log_likelihood(data).mean().item()
    assert module.reconstruction(rbm, data) == pytest.approx(wanted, rel=1e-5)
    monkeypatch.setattr(module, "min", max, raising=False)  # all pixels
    assert module.pseudo_likelihood(rbm, data) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.data
@pytest.mark.long
def test_500_hidden_units_of_mnist(shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One epoch: of independent pixels -190 and -206 nats, then -118 and -127; most of that gain is asked for."""
    module = mnist(tmp_path, monkeypatch)
    data, test = module.images(shared_data / "binarized_mnist.npz")
    rbm, curve = module.train(data, test[::20], hidden=500, epochs=1, every=250)
    assert rbm.num_hidden == 500
    for before, after in zip(curve[0][1:], curve[-1][1:], strict=True):
        assert after > before + 50, curve


def test_annealed_langevin_weighs_modes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    module = tutorial("annealed_langevin")
    x = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(module.energy(x).sum(), x)
    torch.testing.assert_close(module.score(x.detach(), torch.zeros(5)), -grad)
    assert module.main(n=300, steps=40, levels=201) == 0
    for name in ("methods", "levels"):
        assert (tmp_path / f"out/annealed_langevin_{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "plain Langevin" in capsys.readouterr().out


def test_score_sde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    module = tutorial("score_sde")
    x = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(module.log_density(x, 0.3).sum(), x)
    torch.testing.assert_close(module.score(x.detach(), torch.full((5,), 0.3, dtype=torch.float64)), grad)
    assert module.main(n=300, points=5, walkers=3, every=200) == 0
    for name in ("paths", "density"):
        assert (tmp_path / f"out/score_sde_{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "standard errors away" in capsys.readouterr().out


def quietly_written(tmp_path: Path, *names: str) -> bool:
    return all((tmp_path / f"out/{name}.png").read_bytes().startswith(b"\x89PNG") for name in names)


def test_from_denoising_to_ddpm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    module = tutorial("denoising_to_ddpm")
    monkeypatch.setattr(module, "N", 50)
    assert module.main(steps=40, n=200) in (0, 1)  # too short for a good model
    assert quietly_written(tmp_path, "denoising_to_ddpm")
    assert "in the left bump" in capsys.readouterr().out
    # 1: the exact E[eps | x] is minus sigma times the gradient of the blurred log density
    x, kept = torch.linspace(-3, 3, 7).unsqueeze(1).requires_grad_(), torch.linspace(0.1, 0.9, 7)
    variance = kept * module.STD**2 + 1 - kept
    log = module.WEIGHTS.log() - 0.5 * (x - kept.sqrt().unsqueeze(1) * module.MEANS).square() / variance.unsqueeze(1)
    (score,) = torch.autograd.grad(log.logsumexp(1).sum(), x)
    found = module.exact_noise(x.detach(), kept)
    torch.testing.assert_close(found, -(1 - kept).sqrt().unsqueeze(1) * score, rtol=1e-4, atol=1e-5)
    # 3: of the exact noise DDPM's sampler draws the data, up to the weights' Monte Carlo error, 4 of them
    monkeypatch.setattr(module, "N", 200)  # the variance is right with many steps alone
    betas = linear_betas(module.N).float()
    abar = (1 - betas).cumprod(0)
    exact = lambda x, t: module.exact_noise(x, abar[(t * module.N).round().long() - 1])
    draws = module.sample_by_hand(exact, 2000, betas, torch.Generator().manual_seed(0))
    assert abs(float((draws < -0.5).float().mean()) - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 2000)
    assert float(draws[draws > -0.5].std()) == pytest.approx(module.STD, rel=0.1)


def test_score_models_in_the_plane(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(TUTORIALS))
    module = tutorial("score_2d")
    monkeypatch.setattr(module, "SETS", {"moons": module.moons})
    assert module.main(steps=5, points=50) in (0, 1)  # too short for a good model
    assert quietly_written(tmp_path, "score_2d")
    assert "DPM-Solver++(2M), 20 network calls" in capsys.readouterr().out


def unbiased_mmd(x: torch.Tensor, y: torch.Tensor, bandwidth: float) -> float:
    """By loops over pairs i != j."""
    kernel = lambda a, b: math.exp(-0.5 * float((a - b).square().sum()) / bandwidth**2)
    pairs = [(i, j) for i in range(len(x)) for j in range(len(x)) if i != j]
    terms = (kernel(x[i], x[j]) + kernel(y[i], y[j]) - kernel(x[i], y[j]) - kernel(x[j], y[i]) for i, j in pairs)
    return sum(terms) / len(pairs)


def test_which_of_two_samples_is_farther() -> None:
    module = tutorial("relative_distance")
    generator = torch.Generator().manual_seed(0)
    x, z, y = (torch.randn(40, 2, generator=generator) for _ in range(3))
    far = [unbiased_mmd(part.double(), y.double(), 0.3) for part in (x, z)]
    assert module.squared_mmd(x, y, 0.3).value == pytest.approx(far[0], abs=1e-10)
    assert module.farther(x, z, y, 0.3)[0].value == pytest.approx(far[0] - far[1], abs=1e-10)
    x, z, y = (torch.randn(400, 2, generator=generator) for _ in range(3))
    assert module.farther(x + 0.5, z, y, 0.3)[1] < 1e-3
    assert module.farther(z, x + 0.5, y, 0.3)[1] > 1 - 1e-3
    # two equally wrong samples, where p is uniform, and three of one law, where alarms are rarer: a false alarm in 500 each
    for apart in (0.3, 0.0):
        shift, p = torch.tensor([apart, 0.0]), []
        for _ in range(200):
            x, z, y = (torch.randn(100, 2, generator=generator) for _ in range(3))
            p.append(module.farther(x + shift, z - shift, y, 1.0)[1])
        if apart:
            assert stats.kstest(p, "uniform").pvalue > 0.002
        else:
            assert sum(v < 0.05 for v in p) <= stats.binom.isf(0.002, 200, 0.05)


@pytest.mark.long
def test_twenty_calls_of_dpm_solver_are_no_worse_than_five_hundred_of_euler_maruyama(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three sets at a level of 0.01 each, and samples that 2,000 held-out points are not told from. 8 minutes of one core."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(TUTORIALS))
    module = tutorial("score_2d")
    for seed, name in enumerate(module.SETS, 1):
        result = module.learn(name, 4000, 10_000, seed)
        assert result.worse > 0.01
        assert result.p_values["Euler-Maruyama, 500"] > 0.01
        assert result.p_values["DPM-Solver++(2M), 20"] > 0.01


def test_a_score_model_of_digits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(TUTORIALS))
    module = tutorial("score_digits")
    fake_digits(module, monkeypatch)
    generator = torch.Generator().manual_seed(0)
    assert module.main(epochs=3, hidden=8, each=3, scored=2, many=5) in (0, 1)
    assert quietly_written(tmp_path, "score_digits")
    assert "bits per dimension" in capsys.readouterr().out
    levels = torch.arange(17.0)
    assert torch.equal(module.LEVELS.levels_of(module.LEVELS(levels, generator)), levels)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(SystemExit, match="pip install scikit-learn"):
        module.digits()


def fake_digits(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the place of scikit-learn: 60 pictures, each class a grey level."""
    target = torch.arange(60) % 10
    images = (target / 9 * 15).round().view(60, 1, 1).expand(60, 8, 8).reshape(60, 64)
    data, linear = ModuleType("sklearn.datasets"), ModuleType("sklearn.linear_model")
    data.load_digits = lambda: SimpleNamespace(data=images.double().numpy(), target=target.numpy())
    linear.LogisticRegression = Nearest
    for fake in (data, linear):
        monkeypatch.setitem(sys.modules, fake.__name__, fake)
    monkeypatch.setattr(module, "TRAINED_ON", 50)


@pytest.fixture
def inpainting(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(TUTORIALS))
    shared = tutorial("score_digits")
    fake_digits(shared, monkeypatch)
    monkeypatch.setitem(sys.modules, "score_digits", shared)
    return tutorial("inpainting_digits")


def test_in_painting_digits(
    inpainting: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(inpainting, "FEW", (1.0,))
    assert inpainting.main(epochs=2, hidden=8, n=2, chains=2, draws=2, steps=5) in (0, 1)  # too short for a good model
    assert quietly_written(tmp_path, "inpainting_digits")
    assert "hidden pixels" in capsys.readouterr().out


@pytest.mark.long
def test_in_painting_real_digits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The score with a likelihood, and guidance, are nearer to the hidden pixels than the average digit. 80 s of one core.

    They were 3.4 to 3.7 levels away in two runs, the average digit 4.3; the Pyro model, of 25 steps a level, 3.9 and 4.5.
    """
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(TUTORIALS))
    assert tutorial("inpainting_digits").main() == 0
    assert quietly_written(tmp_path, "inpainting_digits")


def half_seen(module: ModuleType) -> Any:
    """Two pictures of one grey level each."""
    seen = (torch.arange(8) < 4).view(1, 8, 1).expand(1, 8, 8)
    return module.Task(torch.zeros(2, 1, 8, 8), seen, torch.tensor([1.0, -0.5]).view(2, 1, 1, 1).expand(2, 1, 8, 8))


def standard(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The score of N(0, I), which a VP SDE keeps."""
    return -x


def test_both_posteriors_of_a_picture_have_one_gradient(inpainting: ModuleType) -> None:
    given, noise = half_seen(inpainting), 0.5
    t = inpainting.time_of(noise)
    mean, std = inpainting.marginal(t)
    assert std / mean == pytest.approx(noise)
    x = torch.randn(3, 2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    apart = (x / mean - given.y) / (inpainting.NOISE_STD**2 + (std / mean) ** 2)
    wanted = x + apart / mean * given.seen
    values, grad = inpainting.by_program(standard, given)(t).value_and_grad(x.flatten(1))
    assert bool(values.isfinite().all())
    torch.testing.assert_close(grad.view_as(x), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        inpainting.by_score(standard, given)(t).value_and_grad(x)[1], wanted, rtol=1e-5, atol=1e-5
    )


def test_langevin_with_a_score_prior_has_the_mean_of_the_gaussian_posterior(inpainting: ModuleType) -> None:
    """Unadjusted Langevin has the exact mean; of 128 z-scores of 64 chains, a false alarm in a thousand."""
    given = half_seen(inpainting)
    x = inpainting.langevin(inpainting.by_score(standard, given), standard, given, inpainting.FEW, 64, 60)
    mean, std = inpainting.marginal(inpainting.time_of(inpainting.FEW[-1]))
    noise = inpainting.NOISE_STD**2 + (std / mean) ** 2
    wanted = given.seen * given.y / mean / noise / (1 + 1 / (mean**2 * noise))  # precisions add
    wanted = wanted * (1 - std**2) / mean  # a denoising step
    assert float(wanted[0, 0, 0, 0]) > 0.8
    assert float(((x.mean(0) - wanted) / (x.var(0) / len(x)).sqrt()).abs().max()) < 4.9


class Nearest:
    """In the place of scikit-learn's classifier: the class of the nearest mean."""

    def __init__(self, **settings: object) -> None: ...

    def fit(self, x: np.ndarray, y: np.ndarray) -> Nearest:
        self.means = np.stack([x[y == k].mean(0) for k in range(10)])
        return self

    def score(self, x: np.ndarray, y: np.ndarray) -> float:
        apart = ((x[:, None] - self.means) ** 2).sum(-1)
        return float((apart.argmin(1) == y).mean())


def bars_by_class(path: Path) -> Path:
    """As MNIST: 60 and 30 images of 10 classes, each with a bright bar at a place of its own."""
    label = torch.arange(90) % 10
    x = torch.randint(60, (90, 28, 28), generator=torch.Generator().manual_seed(0))
    x[torch.arange(90), 2 * label + 4] = 255
    x, y = x.numpy().astype(np.uint8), label.numpy()
    np.savez(path / "bars.npz", x_train=x[:60], y_train=y[:60], x_test=x[60:], y_test=y[60:])
    return path / "bars.npz"


def test_parts_of_a_score_model_of_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TUTORIALS))
    module = tutorial("score_mnist")
    data, test = module.images(bars_by_class(tmp_path))
    assert data.levels.shape == (60, 1, 28, 28)
    network = module.classifier(data, 30, "cpu")
    assert module.accuracy(network, test) > 0.9
    neighbours, apart = module.nearest(data.levels[:5], data)
    assert torch.equal(neighbours, data.levels[:5].float())
    assert float(apart.max()) < 0.1  # rounding of squares in float32
    moved, apart = module.nearest(data.levels[:5].float() + 3, data)
    torch.testing.assert_close(apart, torch.full((5,), 3.0), rtol=1e-3, atol=0)
    model, losses = module.learn(data, 2, 8, 20, "cpu")
    assert all(math.isfinite(loss) for loss in losses)
    x, label = module.sample(model, 1, module.SHOWN, calls=2, weight=1.0)
    assert x.shape == (10, 1, 28, 28)
    assert torch.equal(label, torch.arange(10))
    # of standard normal pixels, in closed form
    normal = torch.randn(20, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    mean, _ = module.bits(lambda x, t: -x, module.SDE, normal, 1 / 128, t_min=module.T_MIN, probes=1)
    wanted = (math.log(2 * math.pi) / 2 + float(normal.square().mean()) / 2 + math.log(128)) / math.log(2)
    assert mean == pytest.approx(wanted, rel=1e-4)


@pytest.mark.data
@pytest.mark.long
def test_a_short_training_on_mnist(shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Far from the best model, but its samples are of their classes (0.64 and 0.91 of 200 when this was written).

    Images cost it less than their 8 bits (2.98). Five minutes of one core.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(TUTORIALS))
    found = tutorial("score_mnist").main(shared_data / "mnist.npz", steps=2000, scored=4, classifier_steps=300, many=20)
    assert quietly_written(tmp_path, "score_mnist")
    assert found["last losses"] < 0.7 * found["first losses"]
    assert found["real"] > 0.9
    for name in ("no guidance", "guidance, weight 1"):
        assert found[name] > 0.5  # chance is 0.1
    for name in ("bits alone", "bits given the class"):
        assert 0 < found[name] < 8
