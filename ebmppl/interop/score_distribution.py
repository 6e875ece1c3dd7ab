"""A score model as a Pyro distribution."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar
from weakref import WeakValueDictionary

import pyro
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from ebmppl.arguments import form, positive, require, seed_number, size, whole
from ebmppl.energies.base import dtype_and_device, flatten_batch
from ebmppl.interop.captured import require_no_latents
from ebmppl.kernels import AdaptiveFlow
from ebmppl.kernels.score import Score
from ebmppl.sampling.generate import transport
from ebmppl.sampling.scopes import evaluating
from ebmppl.score.base import SDE, over
from ebmppl.score.conditions import choosing_rows
from ebmppl.score.dtypes import of_its_dtype, require_state, state_dtype
from ebmppl.score.likelihood import log_likelihood
from ebmppl.score.parameterisations import same_shape

_NUMBERS = 1 << 20  # of the points of a batch of draws


class ScoreDistribution(TorchDistribution):
    r"""The distribution that a score model's probability flow carries the SDE's prior to, at t_min.

    .. math:: \log p(x) = \log p_T(x(T)) + \int_{t_{min}}^T \nabla \cdot v(x(t), t)\,dt, \qquad
        \nabla \log p(x) := s(x, t_{min})

    Use it as a prior: ``pyro.sample("x", ScoreDistribution(score, sde, (2,)))``. Draws and log densities are of one flow, to the
    tolerance. The gradient in x is the score, which is what it would be for an exact score and prior; nothing is
    differentiated through the ODE, and no gradient reaches the score's parameters. A score (or log_prior) of another latent would
    leave out that one's, so it is refused where gradients are on: what it reads must be an ``nn.Parameter``, a
    ``pyro.param``, or a tensor that needs no gradient. A latent that is itself an ``nn.Parameter`` isn't told apart.

    **What a call costs.** ``log_prob`` solves the flow of each point, about ten steps of six calls of a smooth score, thirty of a
    rough one, each call with as many gradients as an event has numbers, or with ``probes`` of them; its gradient is one call
    more. NUTS asks for both at every leapfrog step. ``sample`` solves it back, without divergences.

    References:
        Song et al. 2021, section 4.3; the gradient: Anderson 1982 with the score in place of the marginal's.

    Args:
        score: ``(x, t) -> score``, ``(batch, *event)`` from such points and times ``(batch,)``.
        sde: the forward SDE.
        event_shape: of one point.
        batch_shape: independent points.
        t_min: in (0, T).
        rtol: relative tolerance of each step, > 0.
        atol: absolute tolerance, > 0, in units of x and in nats.
        probes: K >= 1 random directions for the divergence, the same for every point, so that the density is a function; its
            error stays. None for the exact divergence.
        log_prior: log density of points at T, ``(batch,)`` in nats; that of the SDE's prior when None. Draws are of the latter.
        seed: of the probes.
        like: a tensor of the dtype (float32 or float64) and device of draws; the score's parameters where None, else torch's
            defaults.
        validate_args: look at values, as Pyro's distributions do.

    Raises:
        ValueError: for arguments outside these ranges; when called, for a score of another shape, or of a latent.

    Warns:
        SamplingWarning: where the flow could not be solved; ``log_prob`` is NaN there.

    Example:
        >>> from ebmppl.score import VP
        >>> prior = ScoreDistribution(lambda x, t: -x, VP(), (2,))  # N(0, I)
        >>> prior.log_prob(torch.zeros(3, 2))
        tensor([-1.8379, -1.8379, -1.8379])
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = False

    def __init__(
        self,
        score: Score,
        sde: SDE,
        event_shape: Sequence[int],
        batch_shape: Sequence[int] = (),
        *,
        t_min: float = 1e-3,
        rtol: float = 1e-4,
        atol: float = 1e-4,
        probes: int | None = None,
        log_prior: Callable[[Tensor], Tensor] | None = None,
        seed: int = 0,
        like: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        probes = None if probes is None else whole("probes", probes, 1)
        require(log_prior is None or callable(log_prior), "a callable log_prior", type(log_prior).__name__)
        require(isinstance(sde, SDE), "an SDE", type(sde).__name__)
        tolerances = positive("rtol", rtol), positive("atol", atol)
        own = (sde.require_start(t_min), *tolerances, probes, log_prior, seed_number(seed))
        self._flow = _Flow.of(score, sde, size("the event shape", event_shape), own)
        dtype, device = dtype_and_device(self._flow.kernel.target)
        good = like is None or (isinstance(like, Tensor) and like.is_floating_point())
        require(good, "like as a floating point tensor", form(like))
        self._like = torch.empty(0, dtype=state_dtype(dtype), device=device) if like is None else like.new_empty(0)
        require_state(self._like)
        super().__init__(size("the batch shape", batch_shape, 0), self._flow.event_shape, validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        """All of the real space."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> ScoreDistribution:
        """The same for another batch shape."""
        new: ScoreDistribution = self._get_checked_instance(ScoreDistribution, _instance)
        new._flow, new._like = self._flow, self._like
        super(ScoreDistribution, new).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def __repr__(self) -> str:
        """Its shapes, and the time."""
        shapes = f"event_shape={tuple(self.event_shape)}, batch_shape={tuple(self.batch_shape)}"
        return (
            f"{type(self).__name__}({type(self._flow.sde).__name__}, {shapes}, t_min={self._flow.options['t_min']:g})"
        )

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws ``(*sample_shape, *batch, *event)``: the flow, to the tolerance, from draws of the SDE's prior."""
        shape = torch.Size(sample_shape) + self.batch_shape
        start = self._flow.sde.prior(self.event_shape, self._like).sample((math.prod(shape),))
        parts = start.split(max(1, _NUMBERS // max(1, self.event_shape.numel())))
        ends = [transport(self._flow.kernel, part, seed=0) for part in parts if len(part)]
        return (torch.cat(ends) if ends else start).reshape(*shape, *self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log densities ``(*sample_shape, *batch)`` in nats of values ``(*sample_shape, *batch, *event)``."""
        if self._validate_args:
            self._validate_sample(value)
        points, batch = flatten_batch(value, self.event_shape)
        if torch.is_grad_enabled() and len(points) and not is_in_torch_dispatch_mode():  # no trace is the first call
            self._flow.refuse_latents(points[:1].detach())
        found = _LogProb.apply(points, self._flow).reshape(batch)
        return found.expand(torch.broadcast_shapes(batch, self.batch_shape))


class _Flow:
    """What distributions of one score and one setting share; an operator knows it by its key."""

    numbers = itertools.count()
    known: ClassVar[WeakValueDictionary[int, _Flow]] = WeakValueDictionary()
    made: ClassVar[WeakValueDictionary[tuple[Any, ...], _Flow]] = WeakValueDictionary()

    def __init__(self, score: Score, sde: SDE, event_shape: torch.Size, settings: tuple[Any, ...]) -> None:
        t_min, rtol, atol, probes, log_prior, seed = settings
        self.kernel = AdaptiveFlow(score, sde, event_shape, rtol=rtol, atol=atol, t_min=t_min)
        self.options = {"t_min": t_min, "rtol": rtol, "atol": atol, "probes": probes, "seed": seed}
        self.score, self.sde, self.event_shape, self.log_prior = score, sde, event_shape, log_prior
        self.key = next(self.numbers)

    @classmethod
    def of(cls, score: Score, sde: SDE, event_shape: torch.Size, settings: tuple[Any, ...]) -> _Flow:
        """The one that is there, for a model that makes its distribution in every call; else a new one."""
        # it holds them, so that their ids are theirs alone; a bound method is new in every call, but equal
        own = (id(score), id(sde), event_shape, *(s if _hashable(s) else id(s) for s in settings))
        found = cls.made.get(own)
        if found is None:
            found = cls.made[own] = cls(score, sde, event_shape, settings)
            cls.known[found.key] = found
        return found

    @classmethod
    def at(cls, key: int) -> _Flow:
        found = cls.known.get(key)
        if found is None:
            raise RuntimeError("expected a ScoreDistribution that is still there, got a trace of one that is not")
        return found

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy, or one that was saved, is another flow: its parameters are its own."""
        vars(self).update(state, key=next(self.numbers))
        self.known[self.key] = self

    def log_prob(self, x: Tensor) -> Tensor:
        options: Any = self.options
        return log_likelihood(self.score, self.sde, x, log_prior=self.log_prior, same_probes=True, **options).value

    def refuse_latents(self, x: Tensor) -> None:
        """Look, at one point, whether a gradient that is asked for would be left out."""
        own = [*self.kernel.target.parameters(), *(p for _, p in pyro.get_param_store().named_parameters())]
        t = x.new_full((1,), self.options["t_min"])
        with evaluating(self.kernel.target), choosing_rows(self.score, 1), of_its_dtype(x):
            require_no_latents(lambda: self.score(x, t), own, "a score")
        if self.log_prior is not None:
            end, log_prior = torch.zeros(x.shape, dtype=x.dtype, device=x.device), self.log_prior
            require_no_latents(lambda: log_prior(end), own, "a log_prior")

    def gradient(self, x: Tensor) -> Tensor:
        with evaluating(self.kernel.target):
            return same_shape(self.score(x, x.new_full((len(x),), self.options["t_min"])), x)


def _hashable(value: object) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


_AUTOGRAD = ("AutogradFunctionality", "AutogradOther", "AutogradCPU", "AutogradCUDA", "ADInplaceOrView")
_LIBRARY = torch.library.Library("ebmppl", "DEF")
_LIBRARY.define("score_log_prob(Tensor x, int key) -> Tensor")


def _solve(x: Tensor, key: int) -> Tensor:
    """An operator, so that a trace holds one call and not the steps of one solution."""
    below = torch._C._dispatch_tls_local_exclude_set()
    for name in _AUTOGRAD:  # operators run without it, but the divergence needs it
        below = below.remove(getattr(torch._C.DispatchKey, name))
    with torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), below):
        return _Flow.at(key).log_prob(x)


_LIBRARY.impl("score_log_prob", _solve, "CompositeExplicitAutograd")
torch.library.register_fake("ebmppl::score_log_prob", lambda x, key: x.new_empty(x.shape[:1]), lib=_LIBRARY)


class _LogProb(torch.autograd.Function):
    """Whose gradient is the score."""

    @staticmethod
    def forward(x: Tensor, flow: _Flow) -> Tensor:
        return torch.ops.ebmppl.score_log_prob(x, flow.key)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, _Flow], output: Tensor) -> None:
        x, ctx.flow = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return over(grad, x) * ctx.flow.gradient(x), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int, None], x: Tensor, flow: _Flow) -> tuple[Tensor, int]:
        x = x.movedim(in_dims[0], 0)
        return _LogProb.apply(x.flatten(0, 1), flow).reshape(x.shape[:2]), 0
