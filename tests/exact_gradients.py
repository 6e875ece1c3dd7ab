"""Exact gradients of mean negative log-likelihoods by enumeration in float64, and tests of stochastic ones against them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from scipy import stats
from torch import Tensor
from torch.nn.functional import one_hot

from ebmppl.energies import Energy
from ebmppl.losses import BoundLoss
from ebmppl.models import BernoulliRBM, BoltzmannMachine, GaussianRBM, Ising, Potts
from tests.discrete import states_of

F64 = torch.float64
FALSE_ALARM = 1e-4  # of one test, over all its coordinates


def random(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    """Normal numbers."""
    return scale * torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def rbm() -> BernoulliRBM:
    """Strong enough for CD-1 to be biased."""
    return BernoulliRBM(4, 3, W=random(4, 3, seed=1, scale=1.5), b=random(4, seed=2, scale=0.5), c=random(3, seed=3))


def ising() -> Ising:
    """On six sites, every coupling its own."""
    return Ising((2, 3), random(7, seed=4, scale=0.7), random(2, 3, seed=5, scale=0.4), periodic=False)


def potts() -> Potts:
    """Three states on a square."""
    return Potts((2, 2), 3, random(4, seed=6, scale=0.7), random(2, 2, 3, seed=7, scale=0.4), periodic=False)


DISCRETE = {"rbm": rbm, "ising": ising, "potts": potts}


def data_of(energy: Energy, rows: int = 12, seed: int = 8) -> Tensor:
    """Uniform states: not from the model, so that the gradient is not 0."""
    states = states_of(energy)
    return states[torch.randint(len(states), (rows,), generator=torch.Generator().manual_seed(seed))].to(F64)


def flat(energy: Energy) -> Tensor:
    """All gradients in one vector."""
    return torch.cat([p.grad.flatten() for p in energy.parameters() if p.grad is not None])


def enumerated(energy: Energy, x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean negative log-likelihood in nats, and its gradient."""
    energy.zero_grad()
    value = energy(x).mean() + torch.logsumexp(-energy(states_of(energy)), 0)
    value.backward()
    found = flat(energy)
    energy.zero_grad()
    return value.detach(), found


def gradients(bound: BoundLoss, x: Tensor, repetitions: int) -> Tensor:
    """Of several calls, nothing updated between them, ``(repetitions, parameters)``."""
    found = []
    for _ in range(repetitions):
        bound.zero_grad()
        bound(x).backward()
        found.append(flat(bound.energy))
    bound.zero_grad()
    return torch.stack(found)


def p_value(found: Tensor, exact: Tensor) -> float:
    """Of the largest of all coordinates' t statistics (Bonferroni), for independent rows."""
    n, error = len(found), found.std(0) / len(found) ** 0.5
    off = (found.mean(0) - exact).abs()
    fixed = error < 1e-12  # a coordinate without randomness must be right
    if bool((off[fixed] > 1e-10).any()):
        return 0.0
    t = (off / error)[~fixed]
    return min(1.0, float(2 * stats.t.sf(float(t.max()), n - 1) * len(t)))


def require_root_rate(errors: Mapping[int, Tensor]) -> None:
    """That estimates of independent data land on the truth, and that their errors shrink as n^(-1/2), each at ``FALSE_ALARM``.

    Args:
        errors: by number of data, of which there are two, estimates minus the truth ``(sets, parameters)``.
    """
    (n, few), (more, many) = sorted(errors.items())
    assert p_value(many, torch.zeros_like(many[0])) > FALSE_ALARM  # a bias of order 1/n is far below its error
    scale = (n * few.square() + more * many.square()).mean(0).sqrt()  # so that all coordinates count alike
    logs = [(found / scale).norm(dim=1).log() for found in (few, many)]
    by_rate = [
        stats.ttest_ind(logs[0], logs[1] + rate * math.log(more / n), equal_var=False).pvalue for rate in (0.0, 0.5)
    ]
    assert by_rate[1] > FALSE_ALARM
    assert by_rate[0] < FALSE_ALARM  # so many sets tell what doesn't shrink


class Reference(NamedTuple):
    """A model of the reference file."""

    energy: Energy
    data: Tensor
    gradient: dict[str, Tensor]  # of the mean negative log-likelihood, in the parameters for which the file tells it

    def error(self, found: Tensor) -> float:
        """The ``p_value`` of gradients ``(rows, parameters)`` as ``gradients`` gives them."""
        parameters = dict(self.energy.named_parameters())
        parts = dict(zip(parameters, found.split([p.numel() for p in parameters.values()], 1), strict=True))
        exact = torch.cat([gradient.flatten() for gradient in self.gradient.values()])
        return p_value(torch.cat([parts[name] for name in self.gradient], 1), exact)


def references(folder: Path) -> dict[str, Reference]:
    """By kind and number."""
    models, found = json.loads((folder / "exact" / "boltzmann.json").read_text())["models"], {}
    for known in models:
        of = {k: torch.tensor(v, dtype=F64) for k, v in known.items() if isinstance(v, list) and k != "top_states"}
        make = {"rbm": _rbm, "ising_glass": _glass, "potts": _potts, "gbrbm": _gaussian_rbm, "dbm": _deep}
        if known["kind"] in make:
            number = sum(name.startswith(known["kind"]) for name in found)
            given = {n: -torch.tensor(g, dtype=F64) for n, g in known.get("log_likelihood_gradient", {}).items()}
            found[f"{known['kind']} {number}"] = make[known["kind"]](of, given)
    return found


def _rbm(of: Mapping[str, Tensor], given: dict[str, Tensor]) -> Reference:
    return Reference(BernoulliRBM(10, 6, W=of["W"], b=of["b"], c=of["c"]), of["data"], given)


def _glass(of: Mapping[str, Tensor], _: object) -> Reference:
    energy = Ising(coupling=of["J"], field=of["h"])
    x = data_of(energy)
    i, j = energy.graph.edges.mT
    return Reference(energy, x, {"coupling": (of["E_ss"] - x.T @ x / len(x))[i, j], "field": of["E_s"] - x.mean(0)})


def _potts(of: Mapping[str, Tensor], _: object) -> Reference:
    energy = Potts(num_states=3, coupling=of["J"], field=of["h"])
    x = data_of(energy)
    return Reference(energy, x, {"field": of["marginals"] - one_hot(x.long(), 3).to(F64).mean(0)})


def _gaussian_rbm(of: Mapping[str, Tensor], _: object) -> Reference:
    energy, x = GaussianRBM(4, 5, W=of["W"], b=of["b"], c=of["c"]), of["points"]
    with torch.no_grad():
        hidden = energy.p_hidden(x).mean(0)
    return Reference(energy, x, {"b": of["E_v"] - x.mean(0), "c": of["E_h"] - hidden})


def _deep(of: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> Reference:
    """Data are of the visible units, so a loss has to be told of the hidden ones."""
    (v, n1), n2 = of["W1"].shape, len(of["c2"])

    def matrix(first: Tensor, second: Tensor) -> Tensor:
        half = torch.zeros(v + n1 + n2, v + n1 + n2, dtype=F64)
        half[:v, v : v + n1], half[v : v + n1, v + n1 :] = first, second
        return half + half.mT

    bias = torch.cat([of["b"], of["c1"], of["c2"]])
    energy = BoltzmannMachine(v, n1 + n2, coupling=matrix(of["W1"], of["W2"]), bias=bias)
    i, j = energy.graph.edges.mT
    wanted = {
        "coupling": matrix(given["W1"], given["W2"])[i, j],
        "bias": torch.cat([given["b"], given["c1"], given["c2"]]),
    }
    return Reference(energy, of["data"], wanted)


def hidden_draws(machine: BoltzmannMachine, seed: int) -> Any:
    """A guide: hidden units of the exact posterior, others at every call."""
    generator, states = (
        torch.Generator().manual_seed(seed),
        states_of(machine.posterior(torch.zeros(machine.num_visible))),
    )

    def guide(site: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with torch.no_grad():
            rows, which = site["v"].unique(dim=0, return_inverse=True)
            law = torch.stack([torch.softmax(-machine.posterior(row)(states.to(F64)), 0) for row in rows])
            drawn = torch.multinomial(law[which], 1, generator=generator).squeeze(1)
        return {"h": states[drawn].to(F64)}

    return guide
