"""The No-U-Turn sampler without waiting: every tick is one leapfrog step of every chain, whatever the depth of its tree."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ebmppl.arguments import require, whole
from ebmppl.energies.base import Energy
from ebmppl.kernels.accept import Rows, but_not, select
from ebmppl.kernels.adaptation import Tuning
from ebmppl.kernels.base import Noise, NoiseSpec
from ebmppl.kernels.hamiltonian import FullMass, HamiltonianKernel
from ebmppl.kernels.integrators import Phase, leapfrog
from ebmppl.kernels.uturn import Products, Tables, empty_checkpoints, keep, products, straight

LARGEST_DEPTH = 20


class NUTSState(NamedTuple):
    """The draw of each chain so far, its tree, and the sub-tree that doubles it."""

    draw: Tensor  # (chains, 2 * dimension) position and gradient, drawn from the tree so far
    energy: Tensor  # (chains,) potential energy there
    error: Tensor  # (chains,) Hamiltonian there minus that at the tree's beginning
    # the tree
    hamiltonian: Tensor  # (chains,) at its beginning
    step: Tensor  # (chains,) step size taken at its beginning, negative where it grows backward in time
    log_weight: Tensor  # (chains,) log sum of exp(H0 - H) of its leaves
    depth: Tensor  # (chains,) int64: it has 2^depth leaves, which are also those of the next sub-tree
    n_steps: Tensor  # (chains,) int64 leapfrog steps so far; 0: the next tick begins a tree
    rate_sum: Tensor  # (chains,) of the leaves' acceptance rates
    momentum_sum: Tensor  # (chains, dimension) of its leaves
    near: Tensor  # (chains, 3 * dimension) position, gradient and momentum of the end that moves
    far: Tensor  # (chains, 3 * dimension) of the other end
    # the sub-tree
    leaf: Tensor  # (chains,) int64 number of the next leaf; 0: the next tick begins a sub-tree
    joint: Tensor  # (chains, dimension) momentum of the tree's end where it began
    joint_straight: Tensor  # (chains,) bool: the tree and its first leaf make no U-turn
    sub_draw: Tensor  # (chains, 2 * dimension) position and gradient, drawn from it so far
    sub_energy: Tensor  # (chains,) potential energy there
    sub_error: Tensor  # (chains,)
    sub_log_weight: Tensor  # (chains,)
    sub_sum: Tensor  # (chains, dimension) sum of its leaves' momenta
    checkpoints: Tensor  # see uturn.py

    @property
    def position(self) -> Tensor:
        """The draw's position ``(chains, dimension)``."""
        return self.draw[:, : self.joint.shape[1]]

    @property
    def grad(self) -> Tensor:
        """The gradient there ``(chains, dimension)``."""
        return self.draw[:, self.joint.shape[1] :]


class NUTSInfo(NamedTuple):
    """What a person looks at, by chain; of use where ``done``."""

    done: Tensor
    lp: Tensor  # minus the potential energy of the draw, nats
    energy: Tensor  # Hamiltonian of the draw, nats
    acceptance_rate: Tensor  # mean over the tree's leaves of min(1, exp(H0 - H))
    energy_error: Tensor  # Hamiltonian of the draw minus that of the beginning, nats
    diverging: Tensor
    step_size: Tensor
    n_steps: Tensor
    tree_depth: Tensor
    reached_max_treedepth: Tensor


class NUTS(HamiltonianKernel):
    r"""No-U-Turn sampler with multinomial sampling along the trajectory, as in Stan, every chain at its own pace.

    Trajectories double in a random direction until they turn back; the draw is taken from all their points with weights
    exp(-H), later doublings preferred (biased progressive sampling). A chain whose tree is complete begins its next draw in
    the next tick, so no chain ever waits for the deepest tree.

    References:
        Hoffman and Gelman 2014, "The No-U-Turn sampler"; Betancourt 2017, "A conceptual introduction to Hamiltonian Monte
        Carlo", appendix A; iterative trees: Phan, Pradhan and Jankowiak 2019; ticks of one gradient for all chains: Dance,
        Glaser, Orbanz and Adams 2025, "Efficiently vectorized MCMC on modern accelerators".

    Args:
        energy: a continuous energy; constrained supports are unconstrained.
        step_size: leapfrog step > 0, in units of x; where adaptation begins if it is adapted.
        adapt_step_size: adapt the step size in warm-up by dual averaging.
        adapt_mass_matrix: adapt the inverse mass matrix over Stan's windows.
        full_mass: a dense matrix instead of a diagonal one, or groups of sites that are dense each, as
            ``[("mu", "tau"), ("beta",)]``.
        target_accept_prob: acceptance rate to reach, in (0, 1).
        max_tree_depth: most doublings of a trajectory, 1 to 20: a draw takes at most 2^max_tree_depth - 1 steps.
        inverse_mass_matrix: ``(dimension,)``, or ``(dimension, dimension)`` with ``full_mass``: where adaptation begins.

    Raises:
        ValueError: for values out of range or a discrete support.
    """

    synchronous: ClassVar[bool] = False
    scratch: ClassVar[tuple[str, ...]] = ("checkpoints",)
    operators: ClassVar[tuple[str, ...]] = ("straight",)

    def __init__(
        self,
        energy: Energy,
        step_size: float = 1.0,
        adapt_step_size: bool = True,  # noqa: FBT001, FBT002 Pyro's signature
        adapt_mass_matrix: bool = True,  # noqa: FBT001, FBT002
        full_mass: FullMass = False,  # noqa: FBT002
        target_accept_prob: float = 0.8,
        max_tree_depth: int = 10,
        inverse_mass_matrix: Tensor | None = None,
    ) -> None:
        super().__init__(
            energy,
            step_size=step_size,
            adapt_step_size=adapt_step_size,
            adapt_mass_matrix=adapt_mass_matrix,
            full_mass=full_mass,
            target_accept_prob=target_accept_prob,
            inverse_mass_matrix=inverse_mass_matrix,
        )
        self.max_tree_depth = whole("max_tree_depth", max_tree_depth, 1)
        require(self.max_tree_depth <= LARGEST_DEPTH, f"max_tree_depth in 1 ... {LARGEST_DEPTH}", max_tree_depth)
        self._constants: dict[tuple[int, torch.dtype, torch.device], Tables] = {}

    def init(self, x: Tensor) -> NUTSState:
        """State at points ``(chains, *event)``, with no tree under way."""
        position = self.flat(x)
        energy, grad = self.value_and_grad(position)
        zero, zeros = torch.zeros_like(energy), torch.zeros_like(position)
        draw, end = torch.cat([position, grad], 1), torch.cat([position, grad, zeros], 1)
        none = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        return NUTSState(
            draw=draw,
            energy=energy,
            error=zero,
            hamiltonian=energy.clone(),
            step=torch.ones_like(energy),
            log_weight=zero.clone(),
            depth=none,
            n_steps=none.clone(),
            rate_sum=zero.clone(),
            momentum_sum=zeros,
            near=end,
            far=end.clone(),
            leaf=none.clone(),
            joint=zeros.clone(),
            joint_straight=none.bool(),
            sub_draw=draw.clone(),
            sub_energy=energy.clone(),
            sub_error=zero.clone(),
            sub_log_weight=zero.clone(),
            sub_sum=zeros.clone(),
            checkpoints=empty_checkpoints(position, self.max_tree_depth),
        )

    def _tables(self, like: Tensor) -> Tables:
        key = (len(like), like.dtype, like.device)
        tables = self._constants.get(key)
        if tables is None:
            tables = self._constants[key] = Tables.build(self.max_tree_depth, like)
        return tables

    def restart(self, state: NUTSState) -> NUTSState:
        """Drop the trees under way; the next tick begins new ones at what was drawn from them."""
        none, zero = torch.zeros_like(state.leaf), torch.zeros_like(state.error)
        return state._replace(error=zero, log_weight=zero.clone(), depth=none, n_steps=none.clone(), leaf=none.clone())

    @property
    def ticks_per_draw(self) -> int:
        """Trees of 7 or 15 steps are what well-scaled posteriors take."""
        return 8

    def noise(self) -> dict[str, NoiseSpec]:
        """A momentum, and uniforms for the direction, the draw from the sub-tree and the draw from the tree."""
        uniform = NoiseSpec("uniform", ())
        momentum = NoiseSpec("normal", (self.dimension,), where_zero="n_steps")
        return {"momentum": momentum, "direction": uniform, "leaf": uniform, "tree": uniform}

    def position(self, state: NUTSState) -> Tensor:
        """The chains' draws so far ``(chains, *event)``."""
        x = state.position
        return x.reshape(len(x), *self.target.event_shape)

    def tick(self, state: NUTSState, tuning: Tuning, noise: Noise) -> tuple[NUTSState, NUTSInfo]:
        """Begin what is to begin, one leapfrog step, and what its leaf completes."""
        tables = self._tables(state.energy)
        new_tree, new_sub = Rows(state.n_steps.logical_not()), Rows(state.leaf.logical_not())
        state = self._begin(state, tuning, noise, new_tree, new_sub)
        position, grad, before = state.near.split(self.dimension, 1)
        far = state.far.narrow(1, 2 * self.dimension, self.dimension)
        joint = new_sub.select(before, state.joint)
        start = Phase(position, before, state.energy, grad)
        end = leapfrog(self.value_and_grad, start, state.step, tuning.factor)
        leaf = end.momentum
        total = new_sub.select(leaf, state.sub_sum + leaf)
        p = products(leaf, before, joint, far, total, state.momentum_sum, tables)
        points = keep(state.checkpoints, tables, state.leaf, leaf, before, leaf - total, p)
        goes_on = straight(points, tables, state.leaf, leaf, total, p)
        # at a sub-tree's first leaf, the criterion over all is the one across the joint, from the tree's side
        joint_straight = torch.where(new_sub.mask, p.straight, state.joint_straight)
        tree_goes_on = p.straight & p.across & joint_straight
        kept = {"sub_sum": total, "joint": joint, "joint_straight": joint_straight, "checkpoints": points}
        state, weight = self._add_leaf(state, end, p, noise["leaf"], new_tree.mask, new_sub.mask, kept)
        return self._finish(state, goes_on, tree_goes_on, weight < tables.unlikely, noise["tree"])

    def _begin(self, state: NUTSState, tuning: Tuning, noise: Noise, new_tree: Rows, new_sub: Rows) -> NUTSState:
        """A new tree where the last one was complete; a sub-tree in a random direction where none is under way."""
        momentum = noise["momentum"]
        flip = Rows(new_sub.mask & (noise["direction"] < self._tables(state.energy).half))
        step = torch.where(new_tree.mask, tuning.step_size, state.step)
        near, far = flip.select(state.far, state.near), flip.select(state.near, state.far)
        root = torch.cat([state.draw, momentum], 1)
        return state._replace(
            step=torch.where(flip.mask, -step, step),
            momentum_sum=new_tree.select(momentum, state.momentum_sum),
            near=new_tree.select(root, near),
            far=new_tree.select(root, far),
        )

    def _add_leaf(
        self,
        state: NUTSState,
        end: Phase,
        p: Products,
        uniform: Tensor,
        new_tree: Tensor,
        new_sub: Tensor,
        kept: dict[str, Tensor],
    ) -> tuple[NUTSState, Tensor]:
        """The sub-tree with one leaf more, drawn with the share of its weight exp(H0 - H); log weight of the leaf."""
        tables = self._tables(state.energy)
        beginning = torch.add(state.energy, p.before_square, alpha=0.5)
        hamiltonian = torch.where(new_tree, beginning, state.hamiltonian)
        error = end.energy + p.kinetic - hamiltonian
        log_weight = torch.nan_to_num(-error, nan=-torch.inf, posinf=-torch.inf, neginf=-torch.inf)
        total = torch.where(new_sub, log_weight, torch.logaddexp(state.sub_log_weight, log_weight))
        take = Rows(uniform < torch.exp(log_weight - total))  # NaN while all weights are 0: nothing is taken
        rate = torch.exp(log_weight.clamp_max(0.0))
        near = torch.cat([end.position, end.grad, end.momentum], 1)
        grown = state._replace(
            hamiltonian=hamiltonian,
            n_steps=state.n_steps + tables.one_step,
            rate_sum=torch.where(new_tree, rate, state.rate_sum + rate),
            near=near,
            leaf=state.leaf + tables.one_step,
            sub_draw=take.select(near.narrow(1, 0, 2 * self.dimension), state.sub_draw),
            sub_energy=take.select(end.energy, state.sub_energy),
            sub_error=take.select(error, state.sub_error),
            sub_log_weight=total,
            **kept,
        )
        return grown, log_weight

    def _finish(
        self, state: NUTSState, goes_on: Tensor, tree_goes_on: Tensor, diverging: Tensor, uniform: Tensor
    ) -> tuple[NUTSState, NUTSInfo]:
        """Join a complete sub-tree to its tree, and end the tree that turns, diverges or is as deep as allowed."""
        tables = self._tables(state.energy)
        goes_on = but_not(goes_on, diverging)
        join = goes_on & (state.leaf == tables.one_step << state.depth)
        take = join & (uniform < torch.exp(state.sub_log_weight - state.log_weight))
        depth = state.depth + join
        full = depth == tables.deepest
        on = but_not(goes_on, but_not(join, but_not(tree_goes_on, full)))
        energy = torch.where(take, state.sub_energy, state.energy)
        error = torch.where(take, state.sub_error, state.error)
        log_weight = torch.where(join, torch.logaddexp(state.log_weight, state.sub_log_weight), state.log_weight)
        new = state._replace(
            draw=select(take, state.sub_draw, state.draw),
            energy=energy,
            error=torch.where(on, error, tables.zero),
            log_weight=torch.where(on, log_weight, tables.zero),
            depth=torch.where(on, depth, tables.no_step),
            n_steps=torch.where(on, state.n_steps, tables.no_step),
            momentum_sum=select(join, state.momentum_sum + state.sub_sum, state.momentum_sum),
            leaf=torch.where(but_not(on, join), state.leaf, tables.no_step),
        )
        return new, NUTSInfo(
            done=~on,
            lp=-energy,
            energy=state.hamiltonian + error,
            acceptance_rate=state.rate_sum / state.n_steps,
            energy_error=error,
            diverging=diverging,
            step_size=state.step.abs(),
            n_steps=state.n_steps,
            tree_depth=depth,
            reached_max_treedepth=full & tree_goes_on,
        )
