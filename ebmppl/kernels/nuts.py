"""The No-U-Turn sampler without waiting: every tick is one leapfrog step of every chain, whatever the depth of its tree."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ebmppl.energies.base import Energy
from ebmppl.kernels.accept import DIVERGENCE, select
from ebmppl.kernels.adaptation import HamiltonianAdaptation, Tuning
from ebmppl.kernels.base import GradientKernel, Noise, NoiseSpec, require
from ebmppl.kernels.integrators import Phase, kinetic, leapfrog
from ebmppl.kernels.uturn import Checkpoints, Tables, combinations, keep, products, turning

LARGEST_DEPTH = 20


class NUTSState(NamedTuple):
    """The draw of each chain so far, its tree, and the sub-tree that doubles it."""

    draw: Tensor  # (chains, 2, dimension) position and gradient, drawn from the tree so far
    energy: Tensor  # (chains,) potential energy there
    error: Tensor  # (chains,) Hamiltonian there minus that at the tree's beginning
    # the tree
    hamiltonian: Tensor  # (chains,) at its beginning
    step_size: Tensor  # (chains,) taken at its beginning
    log_weight: Tensor  # (chains,) log sum of exp(H0 - H) of its leaves
    depth: Tensor  # (chains,) int64 doublings so far
    n_steps: Tensor  # (chains,) int64 leapfrog steps so far; 0: the next tick begins a tree
    rate_sum: Tensor  # (chains,) of the leaves' acceptance rates
    momentum_sum: Tensor  # (chains, dimension) of its leaves
    near: Tensor  # (chains, 3, dimension) position, gradient, momentum of the end that moves
    far: Tensor  # (chains, 3, dimension) of the other end
    # the sub-tree
    backward: Tensor  # (chains,) bool, its direction in time
    leaf: Tensor  # (chains,) int64 number of the next leaf; 0: the next tick begins a sub-tree
    joint: Tensor  # (chains, dimension) momentum of the tree's end where it began
    joint_turns: Tensor  # (chains,) bool: the tree and its first leaf make a U-turn
    sub_draw: Tensor  # (chains, 2, dimension) position and gradient, drawn from it so far
    sub_energy: Tensor  # (chains,) potential energy there
    sub_error: Tensor  # (chains,)
    sub_log_weight: Tensor  # (chains,)
    sub_sum: Tensor  # (chains, dimension) sum of its leaves' momenta
    checkpoint_momenta: Tensor  # see Checkpoints
    checkpoint_dots: Tensor

    @property
    def position(self) -> Tensor:
        """The draw's position ``(chains, dimension)``."""
        return self.draw[:, 0]

    @property
    def grad(self) -> Tensor:
        """The gradient there ``(chains, dimension)``."""
        return self.draw[:, 1]


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


class NUTS(GradientKernel):
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
        full_mass: a dense matrix instead of a diagonal one.
        target_accept_prob: acceptance rate to reach, in (0, 1).
        max_tree_depth: most doublings of a trajectory, 1 to 20: a draw takes at most 2^max_tree_depth - 1 steps.

    Raises:
        ValueError: for values out of range or a discrete support.
    """

    synchronous: ClassVar[bool] = False

    def __init__(
        self,
        energy: Energy,
        step_size: float = 1.0,
        adapt_step_size: bool = True,  # noqa: FBT001, FBT002 Pyro's signature
        adapt_mass_matrix: bool = True,  # noqa: FBT001, FBT002
        full_mass: bool = False,  # noqa: FBT001, FBT002
        target_accept_prob: float = 0.8,
        max_tree_depth: int = 10,
    ) -> None:
        super().__init__(energy)
        require(step_size > 0, "step_size > 0", step_size)
        require(0 < target_accept_prob < 1, "target_accept_prob in (0, 1)", target_accept_prob)
        require(1 <= max_tree_depth <= LARGEST_DEPTH, f"max_tree_depth in 1 ... {LARGEST_DEPTH}", max_tree_depth)
        self.step_size = float(step_size)
        self.adapt_step_size, self.adapt_mass_matrix, self.full_mass = adapt_step_size, adapt_mass_matrix, full_mass
        self.target_accept_prob, self.max_tree_depth = target_accept_prob, max_tree_depth

    def init(self, x: Tensor) -> NUTSState:
        """State at points ``(chains, *event)``, with no tree under way."""
        position = self.flat(x)
        energy, grad = self.value_and_grad(position)
        self._tables, self._combine = Tables.build(self.max_tree_depth, x.device), combinations(position)
        number = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        points = Checkpoints.empty(position, self.max_tree_depth)
        draw = torch.stack([position, grad], 1)
        end = torch.stack([position, grad, torch.zeros_like(position)], 1)
        zero, zeros = torch.zeros_like(energy), torch.zeros_like(position)
        return NUTSState(
            draw=draw,
            energy=energy,
            error=zero,
            hamiltonian=energy.clone(),
            step_size=torch.ones_like(energy),
            log_weight=zero.clone(),
            depth=number,
            n_steps=number.clone(),
            rate_sum=zero.clone(),
            momentum_sum=zeros,
            near=end,
            far=end.clone(),
            backward=number.bool(),
            leaf=number.clone(),
            joint=zeros.clone(),
            joint_turns=number.bool(),
            sub_draw=draw.clone(),
            sub_energy=energy.clone(),
            sub_error=zero.clone(),
            sub_log_weight=zero.clone(),
            sub_sum=zeros.clone(),
            checkpoint_momenta=points.momenta,
            checkpoint_dots=points.dots,
        )

    def init_tuning(self, x: Tensor) -> Tuning:
        """The given step size and the identity metric."""
        return Tuning.identity(self.step_size, self.dimension, x, full_mass=self.full_mass)

    def adaptation(self) -> HamiltonianAdaptation | None:
        """Dual averaging and mass matrix, as asked for."""
        return HamiltonianAdaptation.of(self)

    def restart(self, state: NUTSState) -> NUTSState:
        """Drop the trees under way; the next tick begins new ones at what was drawn from them."""
        number, zero = torch.zeros_like(state.n_steps), torch.zeros_like(state.error)
        return state._replace(
            n_steps=number, leaf=number.clone(), depth=number.clone(), error=zero, log_weight=zero.clone()
        )

    def noise(self) -> dict[str, NoiseSpec]:
        """A momentum, and uniforms for the direction, the draw from the sub-tree and the draw from the tree."""
        uniform = NoiseSpec("uniform", ())
        momentum = NoiseSpec("normal", (self.dimension,))
        return {"momentum": momentum, "direction": uniform, "leaf": uniform, "tree": uniform}

    def position(self, state: NUTSState) -> Tensor:
        """The chains' draws so far ``(chains, *event)``."""
        x = state.position
        return x.reshape(len(x), *self.target.event_shape)

    def tick(self, state: NUTSState, tuning: Tuning, noise: Noise) -> tuple[NUTSState, NUTSInfo]:
        """Begin what is to begin, one leapfrog step, and what its leaf completes."""
        new_tree, new_sub = state.n_steps == 0, state.leaf == 0
        begun = self._begin(state, tuning, noise, new_tree, new_sub)
        position, grad, momentum = begun.near.unbind(1)
        step_size = torch.where(begun.backward, -begun.step_size, begun.step_size)
        start = Phase(position, momentum, begun.energy, grad)
        end = leapfrog(self.value_and_grad, start, step_size, tuning.factor)
        error = end.energy + kinetic(end.momentum) - begun.hamiltonian
        grown = self._add_leaf(begun, end, error, noise["leaf"], new_tree, new_sub)
        grown, turns, tree_turns = self._turns(grown, momentum, end.momentum, new_sub)
        diverging = torch.logical_not(error <= DIVERGENCE)  # NaN too
        return self._finish(grown, turns, tree_turns, diverging, noise["tree"])

    def _begin(self, state: NUTSState, tuning: Tuning, noise: Noise, new_tree: Tensor, new_sub: Tensor) -> NUTSState:
        """A new tree where the last one was complete, and a new sub-tree in a random direction where none is under way."""
        momentum = noise["momentum"]
        swap = new_sub & (state.backward ^ (noise["direction"] < 0.5))
        root = torch.cat([state.draw.flatten(1), momentum], 1).view(state.near.shape)
        near = select(new_tree, root, select(swap, state.far, state.near))
        far = select(new_tree, root, select(swap, state.near, state.far))
        return state._replace(
            hamiltonian=torch.where(new_tree, state.energy + kinetic(momentum), state.hamiltonian),
            step_size=torch.where(new_tree, tuning.step_size, state.step_size),
            momentum_sum=select(new_tree, momentum, state.momentum_sum),
            near=near,
            far=far,
            backward=state.backward ^ swap,
            joint=select(new_sub, near[:, 2], state.joint),
        )

    def _add_leaf(
        self, state: NUTSState, end: Phase, error: Tensor, uniform: Tensor, new_tree: Tensor, new_sub: Tensor
    ) -> NUTSState:
        """The sub-tree with one leaf more, drawn with the share of its weight."""
        log_weight = torch.nan_to_num(-error, nan=-torch.inf, posinf=-torch.inf, neginf=-torch.inf)
        total = torch.where(new_sub, log_weight, torch.logaddexp(state.sub_log_weight, log_weight))
        take = uniform < torch.exp(log_weight - total)  # NaN while all weights are 0: nothing is taken
        rate = torch.exp(log_weight.clamp_max(0.0))
        near = torch.cat([end.position, end.grad, end.momentum], 1).view(state.near.shape)
        return state._replace(
            n_steps=state.n_steps + 1,
            rate_sum=torch.where(new_tree, rate, state.rate_sum + rate),
            near=near,
            sub_draw=select(take, near[:, :2], state.sub_draw),
            sub_energy=torch.where(take, end.energy, state.sub_energy),
            sub_error=torch.where(take, error, state.sub_error),
            sub_log_weight=total,
            sub_sum=select(new_sub, end.momentum, state.sub_sum + end.momentum),
        )

    def _turns(
        self, state: NUTSState, before: Tensor, leaf: Tensor, new_sub: Tensor
    ) -> tuple[NUTSState, Tensor, Tensor]:
        """Whether the sub-tree turns with the new leaf, and whether the whole tree would."""
        vectors = torch.cat([leaf, before, state.joint, state.far[:, 2], state.sub_sum, state.momentum_sum], 1)
        dots = products(vectors.view(len(leaf), 6, -1), self._combine)
        points = keep(
            Checkpoints(state.checkpoint_momenta, state.checkpoint_dots),
            self._tables.level.index_select(0, state.leaf),
            torch.cat([leaf, before, state.sub_sum - leaf], 1),
            dots.keep,
        )
        compare = self._tables.compare.index_select(0, state.leaf)
        turns = turning(points, compare, leaf, state.sub_sum, dots.leaf_sum)
        # at the first leaf, the whole tree's criterion is the one across the joint, from the tree's side
        turned = torch.logical_not(dots.straight)
        joint_turns = torch.where(new_sub, turned, state.joint_turns)
        state = state._replace(
            leaf=state.leaf + 1,
            joint_turns=joint_turns,
            checkpoint_momenta=points.momenta,
            checkpoint_dots=points.dots,
        )
        return state, turns, turned.logical_or_(torch.logical_not(dots.across)).logical_or_(joint_turns)

    def _finish(
        self, state: NUTSState, turns: Tensor, tree_turns: Tensor, diverging: Tensor, uniform: Tensor
    ) -> tuple[NUTSState, NUTSInfo]:
        """Join a complete sub-tree to its tree, and end the tree that turns, diverges or is as deep as allowed."""
        stop = turns | diverging
        join = (state.leaf == 1 << state.depth) & ~stop
        take = join & (uniform < torch.exp(state.sub_log_weight - state.log_weight))
        depth = state.depth + join
        full = depth == self.max_tree_depth
        done = stop | (join & (tree_turns | full))
        on, building = ~done, ~(done | join)
        energy = torch.where(take, state.sub_energy, state.energy)
        error = torch.where(take, state.sub_error, state.error)
        weight = torch.where(join, torch.logaddexp(state.log_weight, state.sub_log_weight), state.log_weight)
        new = state._replace(
            draw=select(take, state.sub_draw, state.draw),
            energy=energy,
            error=error * on,
            log_weight=weight * on,
            depth=depth * on,
            n_steps=state.n_steps * on,
            momentum_sum=select(join, state.momentum_sum + state.sub_sum, state.momentum_sum),
            leaf=state.leaf * building,
        )
        return new, NUTSInfo(
            done=done,
            lp=-energy,
            energy=state.hamiltonian + error,
            acceptance_rate=state.rate_sum / state.n_steps,
            energy_error=error,
            diverging=diverging,
            step_size=state.step_size,
            n_steps=state.n_steps,
            tree_depth=depth,
            reached_max_treedepth=full & ~(stop | tree_turns),
        )
