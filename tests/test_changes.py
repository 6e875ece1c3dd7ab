"""What changes between runs is seen by the next one: parameters, buffers, captured values, modes, settings."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import ExpTransform

import ebmppl as eb
from ebmppl.errors import SamplingWarning
from ebmppl.kernels import Kernel
from ebmppl.sampling.chains import Chains
from ebmppl.sampling.draws import Draws

KERNELS: dict[str, Callable[..., Kernel]] = {"MALA": eb.MALA, "HMC": partial(eb.HMC, num_steps=6), "NUTS": eb.NUTS}


class Bowl(nn.Module):
    """A normal with a mean kept out of PyTorch's sight and a precision that is a parameter; an offset that is one, too."""

    def __init__(self) -> None:
        super().__init__()
        self.precision = nn.Parameter(torch.tensor(1.0))
        self.offset = nn.Parameter(torch.tensor(0.0))
        self.mean = [0.0]

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * self.precision * ((x - self.mean[0]) ** 2).sum(-1) + self.offset


def run(kernel: Kernel, draws: int, warmup: int, **options: Any) -> eb.MCMC:
    mcmc = eb.MCMC(kernel, draws, warmup, num_chains=16, seed=0, disable_progbar=True, **options)
    mcmc.run()
    return mcmc


CHANGES: dict[str, tuple[Callable[[Bowl], object], float, float]] = {
    "a captured value": (lambda bowl: bowl.mean.__setitem__(0, 5.0), 5.0, 1.0),
    "in place": (lambda bowl: bowl.precision.data.fill_(100.0), 0.0, 0.1),
    "another parameter": (lambda bowl: setattr(bowl, "precision", nn.Parameter(torch.tensor(0.01))), 0.0, 10.0),
    "assigned": (
        lambda bowl: bowl.load_state_dict({"precision": torch.tensor(100.0), "offset": torch.tensor(0.0)}, assign=True),
        0.0,
        0.1,
    ),
}


# after a run of 1,000 both find a traced gradient
@pytest.mark.parametrize("draws", [pytest.param(300, marks=pytest.mark.long), 1100])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["MALA", pytest.param("HMC", marks=pytest.mark.long), "NUTS"])
def test_a_second_run_samples_the_energy_as_it_is_then(name: str, change: str, draws: int) -> None:
    """16 chains x 300 draws: of MALA some 600 are effective; 6 standard errors of mean and deviation."""
    bowl = Bowl()
    kernel = KERNELS[name](eb.as_energy(bowl, (2,), batched=True))
    run(kernel, 1000, 100)
    alter, mean, deviation = CHANGES[change]
    alter(bowl)
    x = run(kernel, draws, 200).get_samples()["x"]
    assert float((x.mean(0) - mean).abs().max()) < 6 * deviation / np.sqrt(600)
    assert float((x.std(0) / deviation - 1).abs().max()) < 6 / np.sqrt(2 * 600)


@pytest.mark.parametrize("draws", [200, 1000])
@pytest.mark.parametrize("name", KERNELS)
def test_a_continued_run_notices_another_energy_and_goes_on_with_it(name: str, draws: int) -> None:
    """An offset leaves the density as it is; with a stale energy of the last draw nothing would ever be accepted."""
    bowl = Bowl()
    mcmc = run(KERNELS[name](eb.as_energy(bowl, (2,), batched=True)), draws, 100)
    with torch.no_grad():
        bowl.offset.fill_(20.0)
    with pytest.warns(SamplingWarning, match="the energy is another one than at the last draw"):
        mcmc.run(num_samples=200)
    rate = mcmc.stats()["acceptance_rate"][:, -100:]
    assert float(rate.mean()) > 0.4
    x = mcmc.get_samples(group_by_chain=True)["x"][:, -100:]
    assert torch.allclose(
        mcmc.stats()["lp"][:, -100:], -0.5 * x.square().sum(-1) - 20.0, atol=1e-4
    )  # float32 at 20 to 40


def test_hotter_replicas_stay_where_they_are_under_another_energy(monkeypatch: pytest.MonkeyPatch) -> None:
    """They began anew at the chains' own points, and brought nothing from elsewhere until they had spread again."""
    bowl = Bowl()
    kernel = eb.ParallelTempering(eb.MALA(eb.as_energy(bowl, (2,), batched=True)), 4)
    mcmc = run(kernel, 20, 100)
    before = kernel.replicas(mcmc.now.state).clone()
    assert not bool((before[:, 0] == before[:, -1]).any())
    with torch.no_grad():
        bowl.offset.fill_(20.0)
    monkeypatch.setattr(Chains, "_run", lambda *args, **options: None)
    with pytest.warns(SamplingWarning, match="the energy is another one than at the last draw"):
        mcmc.run(num_samples=1)
    assert torch.equal(kernel.replicas(mcmc.now.state), before)
    wanted = 0.5 * before.square().sum(-1) + 20.0
    assert torch.allclose(mcmc.now.state.replica_energy, wanted, rtol=1e-5)


@pytest.mark.parametrize(
    ("thinning", "backend"), [(1, "eager"), (3, "eager"), pytest.param(1, "inductor", marks=pytest.mark.long)]
)
def test_draws_that_chains_had_ahead_are_not_those_of_another_energy(thinning: int, backend: str) -> None:
    """64 chains of NUTS at their own pace: those ahead had some draws of a normal at 0; at 1,000 none is near it."""
    bowl = Bowl()
    kernel = eb.NUTS(eb.as_energy(bowl, (2,), batched=True), 0.5, adapt_step_size=False, adapt_mass_matrix=False)
    start = 3 * torch.randn(64, 2, generator=torch.Generator().manual_seed(1))
    options: dict[str, Any] = {"seed": 3, "thinning": thinning, "backend": backend, "disable_progbar": True}
    mcmc = eb.MCMC(kernel, 20, 0, start, 64, **options)
    mcmc.run()
    assert int(mcmc.now.counts.finished.max()) > 20 * thinning  # some chain is ahead
    before = mcmc.get_samples(group_by_chain=True)["x"]
    bowl.mean[0] = 1000.0
    with pytest.warns(SamplingWarning, match="draws to come are of it"):
        mcmc.run(num_samples=5)
    x = mcmc.get_samples(group_by_chain=True)["x"]
    assert torch.equal(x[:, :20], before)
    # the energy falls from 10^6 to that of some random momentum, or a trajectory diverges and none moves
    assert float(x[:, 20:].mean(-1).amin()) > 100
    assert mcmc.now.own is None or int(mcmc.now.own.max()) == mcmc.now.tick


def test_what_is_cut_does_not_count_as_divergent() -> None:
    kept = Draws(2)
    log = {"done": torch.ones(5, 2, dtype=torch.bool), "position": torch.zeros(5, 2, 1)}
    log["done"][3:, 0] = False
    log["diverging"] = torch.tensor([[1, 0], [0, 1], [1, 0], [1, 0], [1, 1]], dtype=torch.bool)
    counts = kept.extend(kept.counts(torch.device("cpu")), log)
    assert [part.tolist() for part in counts] == [[3, 5], [2, 2]]
    assert [part.tolist() for part in kept.cut(counts, 2)] == [[2, 2], [1, 1]]
    assert [part.tolist() for part in kept.cut(counts, 3)] == [[3, 3], [2, 1]]
    assert [part.tolist() for part in kept.cut(counts, 5)] == [[3, 5], [2, 2]]


@pytest.mark.parametrize("far", [[1000.0], [1000.0, math.inf]])
def test_a_chain_far_out_hides_no_change_of_the_others(far: list[float]) -> None:
    """At its 500,000 nats rounding of 33 is allowed in float32; the others have one or two."""
    bowl = Bowl()
    kernel = eb.MALA(eb.as_energy(bowl, (1,), batched=True))
    state = kernel.init(torch.tensor([0.5, -1.0, 2.0, *far]).unsqueeze(1))
    assert state.energy.dtype == torch.float32
    assert not kernel.outdated(state)
    bowl.offset.data.fill_(1.0)
    assert kernel.outdated(state)


def test_a_continued_run_of_the_same_energy_says_nothing() -> None:
    mcmc = run(eb.HMC(eb.as_energy(Bowl(), (2,), batched=True)), 50, 50)
    mcmc.run(num_samples=50)  # warnings are errors


class Dropped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.dropout = nn.BatchNorm1d(2), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * (self.dropout(self.norm(x)) ** 2).sum(-1)


@pytest.mark.parametrize("draws", [100, 1000])
def test_modules_are_evaluated_in_eval_mode_and_restored(draws: int) -> None:
    module = Dropped().train()
    module.dropout.eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    run(eb.HMC(eb.as_energy(module, (2,)), num_steps=4), draws, 50)
    assert module.training
    assert module.norm.training
    assert not module.dropout.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    module.dropout.train()
    run(eb.HMC(eb.as_energy(module, (2,)), num_steps=4), 20, 20)
    assert module.dropout.training


# Saving and loading.


def test_another_setting_is_refused_at_load(tmp_path: Path) -> None:
    energy = eb.as_energy(Bowl(), (2,), batched=True)
    run(eb.HMC(energy, num_steps=5), 10, 10).save(tmp_path / "run.pt")
    with pytest.raises(
        ValueError, match="expected the settings that were saved, .*'num_steps': 5.*, got .*'trajectory_length'"
    ):
        eb.MCMC.load(tmp_path / "run.pt", eb.HMC(energy))
    eb.MCMC.load(tmp_path / "run.pt", eb.HMC(energy, num_steps=5)).run(num_samples=3)


def test_transforms_have_to_be_given_again_at_load(tmp_path: Path) -> None:
    energy = eb.as_energy(Bowl(), (2,), batched=True)
    mcmc = run(eb.HMC(energy, num_steps=5), 10, 10, transforms={"x": ExpTransform().inv})
    mcmc.save(tmp_path / "run.pt")
    with pytest.warns(SamplingWarning, match=r"the transforms of \['x'\] were not saved: set mcmc.transforms"):
        loaded = eb.MCMC.load(tmp_path / "run.pt", eb.HMC(energy, num_steps=5))
    loaded.transforms = mcmc.transforms
    assert torch.equal(loaded.get_samples()["x"], mcmc.get_samples()["x"])


def test_a_run_of_a_gpus_can_be_read_and_go_on_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    kernel = eb.Langevin(eb.as_energy(lambda x: x.square().sum(-1), (2,)), 0.1)
    mcmc = eb.MCMC(kernel, 10, 0, num_chains=3, seed=0, disable_progbar=True)
    mcmc.run()
    mcmc.backend = "cudagraph"
    mcmc.save(tmp_path / "run.pt")
    with pytest.warns(SamplingWarning, match="the run's back-end 'cudagraph' is not here"):
        loaded = eb.MCMC.load(tmp_path / "run.pt", kernel)
    assert torch.equal(loaded.get_samples()["x"], mcmc.get_samples()["x"])
    loaded.run(num_samples=10)
    assert loaded.backend == "eager"
    assert loaded.get_samples(group_by_chain=True)["x"].shape == (3, 20, 2)


@pytest.mark.parametrize("junk", [b"junk", b"", None])
def test_a_file_that_is_no_run_is_refused(tmp_path: Path, junk: bytes | None) -> None:
    path = tmp_path / "run.pt"
    if junk is None:
        torch.save([1, 2], path)
    else:
        path.write_bytes(junk)
    with pytest.raises(ValueError, match="expected a run saved"):
        eb.MCMC.load(path, eb.HMC(eb.as_energy(Bowl(), (2,), batched=True)))


def test_counts_of_numpy_are_counts(tmp_path: Path) -> None:
    energy = eb.as_energy(Bowl(), (2,), batched=True)
    mcmc = eb.MCMC(
        eb.HMC(energy, num_steps=2),
        np.int64(7),
        np.int32(3),
        num_chains=np.int64(2),
        seed=np.int64(3),
        disable_progbar=True,
    )
    mcmc.run()
    mcmc.save(tmp_path / "run.pt")
    assert eb.MCMC.load(tmp_path / "run.pt", eb.HMC(energy, num_steps=2)).get_samples()["x"].shape == (14, 2)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"num_samples": 10.5}, "a whole num_samples >= 1, got 10.5"),
    ({"num_samples": True}, "a whole num_samples >= 1, got True"),
    ({"num_samples": "10"}, "a whole num_samples >= 1, got '10'"),
    ({"warmup_steps": 5.5}, "a whole warmup_steps >= 0, got 5.5"),
    ({"num_chains": 2.0}, "a whole num_chains >= 1, got 2.0"),
    ({"thinning": 1.5}, "a whole thinning >= 1, got 1.5"),
    ({"seed": 1.5}, "a whole seed >= 0, got 1.5"),
    ({"seed": 1 << 63}, r"a seed < 2\^63, got 9223372036854775808"),
    ({"save_params": []}, r"save_params by site, or None, got \[\]"),
    ({"save_params": "x"}, "save_params by site, or None, got 'x'"),
]


@pytest.mark.parametrize(("options", "match"), BAD)
def test_counts_that_are_no_counts_are_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        eb.MCMC(eb.HMC(eb.energies.Funnel(3)), **({"num_samples": 5} | options))


@pytest.mark.parametrize("step", [0.0, -1.0, np.inf, np.nan, "0.1"])
@pytest.mark.parametrize("kernel", [eb.HMC, eb.NUTS, eb.MALA, eb.Langevin])
def test_step_sizes_that_are_none_are_refused(kernel: Any, step: Any) -> None:
    with pytest.raises(ValueError, match="a finite step_size > 0, got"):
        kernel(eb.energies.Funnel(3), step_size=step)


@pytest.mark.parametrize("warmup", [19, 20, 25, 30, 40, 50, 100])
@pytest.mark.parametrize("name", KERNELS)
def test_a_short_warm_up_ends_at_a_step_size_of_use(name: str, warmup: int) -> None:
    """Of a 20-d normal by 64 chains; a last window of a few draws ended it at ten times the step size, and all diverged."""
    energy = eb.energies.Gaussian(torch.zeros(20), torch.eye(20))
    kernel = KERNELS[name](energy)
    mcmc = eb.MCMC(kernel, 50, warmup, num_chains=64, seed=0, disable_progbar=True)
    mcmc.run()
    found = float(mcmc.stats()["acceptance_rate"].mean())
    assert abs(found - kernel.settings()["target_accept_prob"]) < 0.2  # ten updates leave so much


def test_kernels_travel_after_a_run_and_copies_trace_for_themselves() -> None:
    bowl = Bowl()
    kernel = eb.MALA(eb.as_energy(bowl, (2,), batched=True), 0.5, adapt_step_size=False)
    run(kernel, 1000, 0)
    twin = pickle.loads(pickle.dumps(kernel))
    x = torch.ones(16, 2)
    for other in (twin, copy.deepcopy(kernel)):
        assert kernel._gradient.untraced(x) is None  # traced at the run's shape
        assert other._gradient.untraced(x) == "the gradient was not traced"
    same = [run(k, 20, 0).get_samples()["x"] for k in (kernel, twin)]
    assert torch.equal(*same)
