"""Gibbs sampling by other packages, from the parameters of our models: thrml for spins, rbms for a machine of bits."""

from __future__ import annotations

from typing import Any

import torch

import ebmppl as eb
from ebmppl.models import BernoulliRBM, Ising
from tests.benchmarks.timing import Work

SEED = 20250


def thrml(energy: eb.Energy, chains: int) -> Work:
    """Its sampler with our colours as blocks, vectorised over chains and compiled; sweeps alone, nothing observed."""
    import jax
    import jax.numpy as jnp
    from thrml import Block, SamplingSchedule, SpinNode, sample_states
    from thrml.models import IsingEBM, IsingSamplingProgram, hinton_init

    assert isinstance(energy, Ising)
    nodes = [SpinNode() for _ in range(energy.graph.num_sites)]
    edges = [(nodes[i], nodes[j]) for i, j in energy.graph.edges.tolist()]
    coupling = energy.couplings.detach().numpy()
    model = IsingEBM(nodes, edges, jnp.zeros(len(nodes)), jnp.array(coupling), jnp.array(1.0))
    blocks = [Block([nodes[i] for i in members.tolist()]) for members in energy.graph.classes()]
    program = IsingSamplingProgram(model, blocks, clamped_blocks=[])
    state = hinton_init(jax.random.key(SEED), model, blocks, (chains,))
    keys = jax.random.split(jax.random.key(SEED), chains)

    def sweeps(n: int) -> Any:
        schedule = SamplingSchedule(n_warmup=n, n_samples=1, steps_per_sample=0)
        observed = [Block(nodes[:1])]
        return jax.jit(jax.vmap(lambda key, start: sample_states(key, program, schedule, start, [], observed)))

    compiled: dict[int, Any] = {}

    def work(n: int) -> None:
        if n not in compiled:
            compiled[n] = sweeps(n)
            jax.block_until_ready(compiled[n](keys, state))
        jax.block_until_ready(compiled[n](keys, state))

    return work


def rbms(energy: eb.Energy, chains: int) -> Work:
    """Its functions for one step of block Gibbs sampling."""
    from rbms.bernoulli_bernoulli.implement import _sample_hiddens, _sample_visibles

    assert isinstance(energy, BernoulliRBM)
    weights, b, c = energy.W.detach(), energy.b.detach(), energy.c.detach()
    state = [torch.rand(chains, len(b), generator=torch.Generator().manual_seed(SEED)).round()]

    def work(n: int) -> None:
        for _ in range(n):
            h, _ = _sample_hiddens(state[0], weights, c)
            state[0], _ = _sample_visibles(h, weights, b)

    return work
