"""The door: runs that continue, are saved, thinned, interrupted and refused."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import ExpTransform, constraints

import ebmppl as eb
from ebmppl.energies import Gaussian, as_energy
from ebmppl.errors import SamplingError, SamplingWarning
from ebmppl.sampling import Uniform
from tests.discrete_registry import DISCRETE_KERNELS
from tests.registry import KERNELS


def gaussian() -> Gaussian:
    return Gaussian(
        torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64), torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    )


def run(kernel: eb.kernels.Kernel, n: int = 20, warmup: int = 25, chains: int = 70, **options: object) -> eb.MCMC:
    """70 chains: one block of noise that is full, and one that is not."""
    mcmc = eb.MCMC(kernel, n, warmup, num_chains=chains, **{"seed": 5, "disable_progbar": True, **options})
    mcmc.run()
    return mcmc


def draws(mcmc: eb.MCMC) -> Tensor:
    return mcmc.get_samples(group_by_chain=True)["x"]


@pytest.mark.parametrize("name", KERNELS)
def test_a_continued_run_equals_an_uninterrupted_one(name: str, tmp_path: Path) -> None:
    make = KERNELS[name].factory
    whole = run(make(gaussian()), 31)
    parts = run(make(gaussian()), 13)
    parts.save(tmp_path / "run.pt")
    parts.run(num_samples=18)
    loaded = eb.MCMC.load(tmp_path / "run.pt", make(gaussian()))
    assert torch.equal(draws(loaded), draws(whole)[:, :13])
    loaded.run(num_samples=18)
    for other in (parts, loaded):  # bit for bit, draws and statistics
        assert torch.equal(draws(other), draws(whole))
        for field, value in whole.stats().items():
            assert torch.equal(
                other.stats()[field],
                value,
            ), field


def flips() -> eb.models.Ising:
    return eb.models.Ising((3, 3), 0.3)


def pieces(_: eb.Energy) -> eb.Blocks:
    named = as_energy(_pieces, {"a": (2,), "b": (1,)}, batched=True)
    return eb.Blocks(named, {"a": partial(eb.HMC, num_steps=3), "b": eb.MALA})


def _pieces(at: dict[str, Tensor]) -> Tensor:
    return at["a"].square().sum(-1) + (at["b"] - at["a"][:, :1]).square().sum(-1)


TRAVEL: dict[str, tuple[Any, Any]] = {
    **{name: (case.factory, gaussian) for name, case in KERNELS.items()},
    **{name: (case.factory, flips) for name, case in DISCRETE_KERNELS.items()},
    "blocks": (pieces, gaussian),
    "tempered mala": (lambda energy: eb.ParallelTempering(eb.MALA(energy), [0.5, 1.0]), gaussian),
}


@pytest.mark.parametrize("name", TRAVEL)
def test_a_pickled_run_goes_on_as_the_run_itself(name: str) -> None:
    make, energy = TRAVEL[name]
    mcmc = run(make(energy()), 13, chains=3)
    twin = pickle.loads(pickle.dumps(mcmc))
    for one in (mcmc, twin):
        one.run(num_samples=5)
    for site, values in mcmc.get_samples(group_by_chain=True).items():
        assert values.shape[1] == 18
        assert torch.equal(twin.get_samples(group_by_chain=True)[site], values)


@pytest.mark.parametrize("name", KERNELS)
def test_thinning_keeps_every_third_draw(name: str) -> None:
    make = KERNELS[name].factory
    assert torch.equal(draws(run(make(gaussian()), 5, thinning=3)), draws(run(make(gaussian()), 15))[:, 2::3])


def test_seeds_and_the_global_generator() -> None:
    kernel = eb.HMC(gaussian())
    state = torch.get_rng_state()
    first, again, other = run(kernel), run(kernel), run(kernel, seed=6)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(draws(first), draws(again))
    assert not torch.equal(draws(first), draws(other))
    fresh = [run(kernel, 2, 0, seed=None) for _ in range(2)]
    assert fresh[0].seed != fresh[1].seed
    assert torch.equal(draws(run(kernel, 2, 0, seed=fresh[0].seed)), draws(fresh[0]))


def test_runs_in_one_process_do_not_disturb_each_other() -> None:
    kernel = eb.NUTS(gaussian())
    alone = draws(run(kernel, 12))
    a, b = run(kernel, 6), run(kernel, 6, chains=3, seed=9)
    b.run(num_samples=4)
    a.run(num_samples=6)
    assert torch.equal(draws(a), alone)


def test_shapes_of_samples() -> None:
    mcmc = run(eb.MALA(gaussian()), 20, chains=4)
    assert mcmc.get_samples()["x"].shape == (80, 3)
    assert draws(mcmc).shape == (4, 20, 3)
    assert torch.equal(mcmc.get_samples()["x"][20:40], draws(mcmc)[1])
    assert mcmc.get_samples(num_samples=7)["x"].shape == (7, 3)
    assert mcmc.gradients == mcmc.now.tick * 4
    found = mcmc.diagnostics()
    assert set(found) == {"x", "divergences", "acceptance rate"}
    assert found["x"]["n_eff"].shape == (3,)
    assert len(found["divergences"]) == 4


def sites() -> eb.Energy:
    return as_energy(
        lambda s: s["rate"] - torch.log(s["rate"]) + 0.5 * s["x"].square().sum(-1),
        {"rate": (), "x": (2,)},
        {"rate": constraints.positive},
    )


def test_save_params_and_transforms() -> None:
    whole, part = run(eb.HMC(sites())), run(eb.HMC(sites()), save_params=["rate"])
    assert set(part.get_samples()) == {"rate"}
    assert torch.equal(part.get_samples()["rate"], whole.get_samples()["rate"])
    mapped = run(eb.HMC(sites()), transforms={"x": ExpTransform().inv})
    assert torch.allclose(mapped.get_samples()["x"], whole.get_samples()["x"].exp())


def test_warm_up_draws_on_request() -> None:
    mcmc = run(eb.HMC(gaussian()), 5, 40, save_warmup=True)
    values, stats = mcmc.warmup()
    assert values["x"].shape[0] == 70
    assert values["x"].shape[1] == stats["lp"].shape[1] == mcmc.warmup_kept > 10
    with pytest.raises(ValueError, match="save_warmup=True"):
        run(eb.HMC(gaussian()), 5, 20).warmup()


def test_the_hook_sees_both_stages() -> None:
    seen = []
    run(eb.HMC(gaussian()), hook_fn=lambda kernel, params, stage, i: seen.append((stage, i, params["x"].shape)))
    assert {stage for stage, *_ in seen} == {"Warmup", "Sample"}
    assert seen[-1][1] >= 20
    assert seen[-1][2] == (70, 3)


def test_the_progress_bar_tells_acceptance_step_size_and_divergences(capsys: pytest.CaptureFixture[str]) -> None:
    run(eb.HMC(gaussian()), 300, 100, disable_progbar=False)
    err = capsys.readouterr().err
    for word in ("Warmup", "Sample", "acceptance=", "step size=", "divergences="):
        assert word in err


@pytest.mark.parametrize("name", ["hmc, steps", "mala", "nuts"])
def test_an_interrupted_run_keeps_its_draws_and_can_go_on(name: str) -> None:
    make = KERNELS[name].factory
    whole = run(make(gaussian()), 400)

    def interrupt(kernel: object, params: object, stage: str, i: int) -> None:
        if stage == "Sample" and i > 20:
            raise KeyboardInterrupt

    mcmc = eb.MCMC(make(gaussian()), 400, 25, num_chains=70, seed=5, disable_progbar=True, hook_fn=interrupt)
    with pytest.warns(SamplingWarning, match=r"interrupted: kept \d+ of 400 draws of each of 70 chains"):
        mcmc.run()
    kept = mcmc.kept
    assert 20 < kept < 400
    assert torch.equal(draws(mcmc), draws(whole)[:, :kept])
    mcmc.hook_fn = None
    mcmc.run(num_samples=400 - kept)
    assert torch.equal(draws(mcmc), draws(whole))


def test_a_run_goes_on_after_an_error_in_an_eager_tick(tmp_path: Path) -> None:
    """Each tick replaces the state as a whole; a saved run has the ticks until then, too."""

    left = [100]

    class Fails(eb.HMC):
        def tick(self, state: Any, tuning: Any, noise: Any) -> Any:
            left[0] -= 1
            if not left[0]:
                raise RuntimeError("out of luck")
            return super().tick(state, tuning, noise)

    make = lambda kernel: eb.MCMC(kernel(gaussian(), 0.3, num_steps=2), 90, 0, num_chains=4, seed=5, backend="eager")
    whole, mcmc = make(eb.HMC), make(Fails)
    whole.run()
    with pytest.raises(RuntimeError, match="out of luck"):
        mcmc.run()
    assert 0 < mcmc.kept < 90
    mcmc.save(tmp_path / "run.pt")
    loaded = eb.MCMC.load(tmp_path / "run.pt", Fails(gaussian(), 0.3, num_steps=2))
    for other in (mcmc, loaded):
        other.run(num_samples=90 - other.kept)
        assert torch.equal(draws(other), draws(whole))


def test_an_interrupt_in_warm_up_is_passed_on() -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    mcmc = eb.MCMC(eb.HMC(gaussian()), 10, 50, num_chains=4, seed=0, disable_progbar=True, hook_fn=interrupt)
    with pytest.raises(KeyboardInterrupt):
        mcmc.run()
    with pytest.raises(ValueError, match="call run"):
        mcmc.get_samples()


SCRIPT = """
import torch, warnings, ebmppl as eb
mcmc = eb.MCMC(eb.HMC(eb.energies.Funnel(4, 1.0)), 10**6, 20, num_chains=8, seed=0, disable_progbar=True,
               hook_fn=lambda k, p, stage, i: print(stage, i, flush=True))
mcmc.run()
print("kept", mcmc.get_samples(group_by_chain=True)["x"].shape[1], flush=True)
"""


def test_ctrl_c_from_outside() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    )
    assert child.stdout is not None
    for line in child.stdout:
        if line.startswith("Sample") and int(line.split()[1]) > 5:
            break
    time.sleep(0.2)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 0, err
    assert int(out.split("kept")[1]) > 5
    assert "interrupted: kept" in err


def _start(**sites_: Tensor) -> dict[str, Tensor]:
    return sites_


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num_samples": 0}, "expected a whole num_samples >= 1, got 0"),
        ({"num_chains": 0}, "expected a whole num_chains >= 1, got 0"),
        ({"warmup_steps": -1}, "expected a whole warmup_steps >= 0, got -1"),
        ({"thinning": 0}, "expected a whole thinning >= 1, got 0"),
        ({"seed": -1}, "expected a whole seed >= 0, got -1"),
        ({"backend": "fast"}, "expected a backend of .* got 'fast'"),
        ({"initial_params": torch.zeros(3, 3)}, r"initial_params of shape \(4, 3\) .*, got \(3, 3\)"),
        ({"initial_params": torch.zeros(4, 2)}, r"initial_params of shape \(4, 3\) .*, got \(4, 2\)"),
        ({"initial_params": _start(x=torch.zeros(3, 2), rate=torch.zeros(3))}, r"of shape \(4, 3\)"),
        (
            {"initial_params": _start(x=torch.zeros(4, 2), tau=torch.zeros(4))},
            r"unknown: \['tau'\], missing: \['rate'\]",
        ),
        ({"initial_params": torch.zeros(4, 3, dtype=torch.int64)}, "floating point .*got torch.int64"),
        ({"save_params": ["tau"]}, r"save_params names unknown sites \['tau'\]; the sites are \['rate', 'x'\]"),
        ({"transforms": {"tau": ExpTransform()}}, "transforms names unknown sites"),
        ({"kernel": "hmc"}, "expected a kernel of ebmppl.kernels, got str"),
    ],
)
def test_bad_options_of_a_run(options: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        eb.MCMC(**{"kernel": eb.HMC(sites()), "num_samples": 10, "num_chains": 4, **options})


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda e: eb.HMC(e, step_size=0.0), "expected a finite step_size > 0, got 0.0"),
        (lambda e: eb.MALA(e, step_size=-1.0), "expected a finite step_size > 0, got -1.0"),
        (lambda e: eb.Langevin(e, 0.0), "expected a finite step_size > 0"),
        (lambda e: eb.NUTS(e, step_size=0.0), "expected a finite step_size > 0"),
        (lambda e: eb.NUTS(e, max_tree_depth=0), "expected a whole max_tree_depth >= 1, got 0"),
        (lambda e: eb.HMC(e, num_steps=3, trajectory_length=1.0), "expected trajectory_length or num_steps, not both"),
        (lambda e: eb.HMC(e, num_steps=0), "num_steps >= 1, got 0"),
        (lambda e: eb.HMC(e, jitter=1.5), r"expected jitter in \[0, 1\], got 1.5"),
        (lambda e: eb.HMC(e, target_accept_prob=1.0), r"expected target_accept_prob in \(0, 1\), got 1.0"),
    ],
)
def test_bad_settings_of_a_kernel(make: object, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make(gaussian())


def test_what_needs_a_run_says_so(tmp_path: Path) -> None:
    mcmc = eb.MCMC(eb.HMC(gaussian()), 10, num_chains=2)
    for use in (mcmc.get_samples, mcmc.stats, lambda: mcmc.save(tmp_path / "x.pt")):
        with pytest.raises(ValueError, match="call run"):
            use()
    with pytest.raises(ValueError, match="a run to add draws to"):
        mcmc.run(num_samples=5)


def test_a_saved_run_needs_its_kind_of_kernel(tmp_path: Path) -> None:
    run(eb.HMC(gaussian()), 5).save(tmp_path / "run.pt")
    with pytest.raises(ValueError, match="expected the kernel that was saved"):
        eb.MCMC.load(tmp_path / "run.pt", eb.MALA(gaussian()))
    with pytest.raises(ValueError, match="expected the kernel that was saved"):
        eb.MCMC.load(tmp_path / "run.pt", eb.HMC(sites()))


def test_a_step_size_that_runs_away_says_so() -> None:
    flat = as_energy(lambda x: 0 * x.sum(-1), (2,))
    with pytest.raises(SamplingError, match="ran away to infinity .*is the density proper"):
        run(eb.HMC(flat), 5)


def barrier(x: Tensor) -> Tensor:
    """A cliff of a thousand nats and more on every side of the start."""
    return 1e7 * (x.abs() > 1e-3).to(x.dtype).sum(-1) + 1e7 * x.square().sum(-1)


@pytest.mark.parametrize("kernel", [eb.NUTS, eb.HMC, eb.MALA])
def test_a_warm_up_in_which_all_chains_diverge_stops_with_advice(kernel: Any) -> None:
    energy = eb.as_energy(barrier, (2,), batched=True)
    mcmc = eb.MCMC(
        kernel(energy, step_size=1.0, adapt_step_size=False), 10, 100, torch.zeros(4, 2), num_chains=4, seed=0,
        disable_progbar=True,
    )  # fmt: skip
    said = r"all \d+ transitions of 4 chains diverged in warm-up at a step size of 1: begin .* smaller step_size"
    with pytest.raises(SamplingError, match=said):
        mcmc.run()
    with pytest.raises(ValueError, match="a run to add draws to"):
        mcmc.run(num_samples=5)


def test_some_divergences_do_not_stop_a_warm_up() -> None:
    mcmc = eb.MCMC(
        eb.NUTS(eb.energies.Funnel(3), 1.5, False, False), 20, 100, num_chains=8, seed=0, disable_progbar=True
    )
    mcmc.run()
    assert int(mcmc.now.counts.diverging.sum()) > 0


def test_an_improper_density_that_spreads_without_end_is_noticed() -> None:
    """exp(-E) = 1 / sqrt(1 + |x|) has no integral; chains run off at an exponential pace."""
    energy = eb.as_energy(lambda x: 0.5 * torch.log1p(x.abs()).sum(-1), (2,), batched=True)
    kernel = eb.HMC(energy, num_steps=20)
    mcmc = eb.MCMC(kernel, 5, 100, Uniform(1e9), num_chains=8, seed=0, disable_progbar=True)  # where it would end up
    with pytest.warns(SamplingWarning, match="standard deviation of .*: is the density proper"):
        mcmc.run()
