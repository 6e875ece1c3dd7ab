"""Whole runs of NUTS: no gradient is wasted, memory stays small, and a bad posterior is told so."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pyro
import pyro.infer
import pytest
import torch
from torch import Tensor

import ebmppl as eb
from ebmppl.kernels.nuts import NUTSState


def test_every_gradient_is_used_until_the_first_chain_has_its_draws() -> None:
    """Leaves of the chain that ends last, counted over its draws, are all ticks there were: none was spent waiting."""
    funnel = eb.energies.Funnel(3, 1.5)  # trees of very different depths
    start = funnel.sample(16, torch.Generator().manual_seed(0))
    mcmc = eb.MCMC(eb.NUTS(funnel, 0.3, False, False), 100, 0, start, 16, seed=0, disable_progbar=True)
    mcmc.run()
    of_chains = mcmc.stats()["n_steps"].sum(1)
    assert int(of_chains.max()) > 1.1 * int(of_chains.min())  # so that there is something to wait for
    # the engine looks every 64 ticks at most whether all have their draws
    assert int(of_chains.max()) <= mcmc.now.tick < int(of_chains.max()) + 64


class Dropping(eb.NUTS):
    """Counts the leaves that the ends of windows drop."""

    dropped = 0

    def restart(self, state: NUTSState) -> NUTSState:
        self.dropped += int(state.n_steps.sum())
        return super().restart(state)


def test_warm_up_drops_few_gradients() -> None:
    """Trees under way when a window ends are dropped, about half of each.

    The first window for the metric ends among trees of up to 255 leaves, the other three among trees of some 7: together
    some 140 leaves of a chain, and 255 + 3 * 7 at most were its trees all just complete.
    """
    kernel = Dropping(eb.energies.Gaussian(torch.zeros(8), torch.logspace(-2, 2, 8)))
    mcmc = eb.MCMC(kernel, 1, 500, None, 32, seed=0, disable_progbar=True)
    mcmc.run()
    assert 0 < kernel.dropped < 276 * 32


MEMORY = """
import resource, torch, ebmppl as eb
torch.set_num_threads(2)
chains, dimension = 4096, 1000
energy = eb.as_energy(lambda x: 0.5 * x.square().sum(-1), (dimension,), batched=True)
start = torch.zeros(chains, dimension)
mcmc = eb.MCMC(eb.NUTS(energy, 0.5), 1, 1, start, chains, seed=0, disable_progbar=True)
mcmc.run()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's peak of resident memory")
def test_many_chains_of_many_dimensions_fit_in_memory() -> None:
    """4096 chains x 1000 dimensions at the default depth 10: 2 GiB, all of Python and torch included."""
    done = subprocess.run([sys.executable, "-c", MEMORY], check=True, capture_output=True, text=True, timeout=300)
    assert int(done.stdout) < 2 * 2**20  # KiB


def flat(x: Tensor) -> Tensor:
    return 0.5 * x[..., 0].square() + 0 * x[..., 1]


def test_an_improper_coordinate_is_told_by_its_growth() -> None:
    mcmc = eb.MCMC(eb.NUTS(eb.as_energy(flat, (2,)), max_tree_depth=5), 5, 300, None, 4, seed=0, disable_progbar=True)
    with pytest.warns(eb.errors.SamplingWarning, match=r"\(in coordinate 1 .*is the density proper\?"):
        mcmc.run()


@pytest.mark.parametrize("warmup", [1, 2, 3, 10])
def test_short_warm_ups_end_at_a_useful_step_size(warmup: int) -> None:
    """A standard normal is stable to steps of 2; the search alone finds a power of two near one."""
    energy = eb.energies.Gaussian(torch.zeros(3), torch.ones(3))
    mcmc = eb.MCMC(eb.NUTS(energy), 20, warmup, None, 4, seed=0, disable_progbar=True)
    mcmc.run()
    assert 0.2 <= float(mcmc.now.tuning.step_size) <= 2.0
    assert not bool(mcmc.stats()["diverging"].any())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_tree_depth": 2.5}, "a whole max_tree_depth >= 1, got 2.5"),
        ({"max_tree_depth": "5"}, "a whole max_tree_depth >= 1, got '5'"),
        ({"max_tree_depth": True}, "a whole max_tree_depth >= 1, got True"),
        ({"max_tree_depth": 0}, "a whole max_tree_depth >= 1, got 0"),
        ({"max_tree_depth": 21}, r"max_tree_depth in 1 \.\.\. 20, got 21"),
        ({"target_accept_prob": "a"}, "target_accept_prob > 0, got 'a'"),
        ({"target_accept_prob": 1.0}, r"target_accept_prob in \(0, 1\), got 1.0"),
        ({"full_mass": None}, "full_mass as True, False or a list of tuples of site names, got None"),
        ({"full_mass": 1}, "full_mass as True, False or a list .*, got 1"),
        ({"adapt_step_size": "no"}, "adapt_step_size as True or False, got 'no'"),
    ],
)
def test_bad_settings_say_what_was_wanted_and_what_came(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"expected .*{message}"):
        eb.NUTS(eb.energies.Gaussian(torch.zeros(3), torch.ones(3)), **settings)


def test_pyro_counts_our_divergences() -> None:
    """Pyro counts the entries of a list of draws for each chain."""
    for step_size, most in ((0.1, 0), (50.0, 30)):
        kernel = eb.NUTS(eb.energies.Gaussian(torch.zeros(2), torch.ones(2)), step_size, False, False)
        run = pyro.infer.MCMC(kernel, 30, 1, initial_params={"x": torch.ones(2)}, disable_progbar=True)
        run.run()
        assert run.diagnostics()["divergences"] == {"chain 0": list(range(most))}
