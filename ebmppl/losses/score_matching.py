"""Score matching: explicit, by the trace of the Jacobian, by slices, and by denoising."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor

from ebmppl.energies.base import Energy, dtype_and_device
from ebmppl.energies.supports import elementwise
from ebmppl.kernels.base import require, whole
from ebmppl.losses.base import BoundLoss, Data, Loss, checked_data, require_finite, shaped
from ebmppl.losses.scores import Scored, ScoreNetwork, along, differentiated, dot, require_scored, score_of
from ebmppl.sampling.noise import block_seeds, fresh_seed


class ScoreLoss(Loss):
    """Abstract: a loss of scores s = -dE/dx, so log Z is not needed. Takes an energy or a ``ScoreNetwork``.

    A constrained energy is matched in the unconstrained space of its support, as gradient kernels move there: the data
    are mapped by ``biject_to(support).inv``, and the energy has the log-Jacobian.
    """

    continuous: ClassVar[bool | None] = True

    def __call__(self, energy: Any, guide: Any = None) -> BoundLoss:
        """Bind to an ``Energy`` or a ``ScoreNetwork``.

        Raises:
            ValueError: for something else, or a discrete energy.
        """
        require_scored(energy)
        return self.bind(energy, guide) if isinstance(energy, ScoreNetwork) else super().__call__(energy, guide)


class BoundScoreLoss(BoundLoss):
    """Abstract: final classes implement ``of_points``.

    Attributes:
        seed: of the random numbers, which are a function of the seed and the step.
    """

    seed: Tensor

    def __init__(self, energy: Scored, guide: Any, seed: int | None = None, *, constrained: bool = False) -> None:
        super().__init__(cast(Energy, energy), guide)
        device = dtype_and_device(energy)[1]
        self.register_buffer("seed", torch.tensor(fresh_seed() if seed is None else seed))
        self._target = (energy if constrained else differentiated(energy),)  # not a module of its own
        self._generator = torch.Generator(device)

    @property
    def target(self) -> Scored:
        """What is matched: a score network, or an energy, unconstrained."""
        return self._target[0]

    def data(self, x: Data) -> Tensor:
        """Points ``(rows, *event)`` of the target, at the widest dtype of the energy's parameters and buffers."""
        energy = self.energy
        if isinstance(energy, ScoreNetwork):
            require_finite("x", cast(Tensor, x))
            x = shaped(energy.event_shape, x)
        else:
            x = checked_data(energy, x)
        if not x.is_floating_point():
            raise ValueError(f"expected floating point data, got {x.dtype}")
        if any(True for _ in energy.parameters()):
            x = x.to(dtype_and_device(energy)[0])
        if self.target is energy:
            return x
        with torch.no_grad():
            z = cast(Energy, self.target).unconstrain(energy.unpack(x))
        require_finite("unconstrained x", z)
        return z

    def terms(self, x: Tensor) -> dict[str, Tensor]:
        """See ``of_points``; under ``no_grad`` too, where scores are gradients all the same."""
        graph = torch.is_grad_enabled()
        with torch.enable_grad():
            terms = self.of_points(x.detach(), graph=graph)
        return terms if graph else {name: term.detach() for name, term in terms.items()}

    @abstractmethod
    def of_points(self, x: Tensor, *, graph: bool) -> dict[str, Tensor]:
        """The terms at points of the target; ``graph``: differentiable in the parameters."""

    def normals(self, x: Tensor, *lead: int) -> Tensor:
        """Standard normal numbers ``(*lead, *x.shape)`` of this step."""
        return torch.randn((*lead, *x.shape), dtype=x.dtype, device=x.device, generator=self._seeded(x.device))

    def signs(self, x: Tensor, *lead: int) -> Tensor:
        """Random signs ``(*lead, *x.shape)`` of this step."""
        bits = torch.randint(2, (*lead, *x.shape), dtype=x.dtype, device=x.device, generator=self._seeded(x.device))
        return bits.mul_(2).sub_(1)

    def _seeded(self, device: torch.device) -> torch.Generator:
        if self._generator.device != device:
            self._generator = torch.Generator(device)
        start = block_seeds(int(self.seed), 0, 1)[0]
        return self._generator.manual_seed(block_seeds(start, int(self.step), 1)[0])

    def __getstate__(self) -> dict[str, Any]:
        """Generators don't travel, and this one is seeded anew at each step."""
        return {**self.__dict__, "_generator": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """See ``__getstate__``."""
        super().__setstate__(state)
        self._generator = torch.Generator(self.seed.device)


class ExplicitScoreMatching(ScoreLoss):
    r"""Explicit score matching: :math:`\overline{\tfrac12 |s(x) - \nabla \log p(x)|^2}` with the data's known score.

    The Fisher divergence of the data to the model. It is taken in the coordinates of the data, whatever the support.

    References:
        Hyvarinen 2005, "Estimation of non-normalized statistical models by score matching", equation 2.

    Args:
        score: ``(rows, *event) -> (rows, *event)``, the score of the data's distribution.

    Raises:
        ValueError: when it isn't callable; at binding, for a support whose coordinates depend on one another.
    """

    def __init__(self, score: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        require(callable(score), "score as a callable", type(score).__name__)
        self.score = score

    def bind(self, energy: Energy, guide: Any) -> BoundLoss:
        """The loss of one energy."""
        return BoundExplicit(energy, guide, self)


class BoundExplicit(BoundScoreLoss):
    """See ``ExplicitScoreMatching``."""

    def __init__(self, energy: Scored, guide: Any, loss: ExplicitScoreMatching) -> None:
        for name in energy.sites if isinstance(energy, Energy) else ():
            support = elementwise(cast(Energy, energy).site_support(name))
            if support.event_dim:
                raise ValueError(
                    f"expected coordinates that don't depend on one another, got site {name!r} in {support}"
                )
        super().__init__(energy, guide, 0, constrained=True)
        self.of_data = loss.score

    def of_points(self, x: Tensor, *, graph: bool) -> dict[str, Tensor]:
        """Half the squared distance of the scores."""
        with torch.no_grad():
            wanted = self.of_data(x)
        if wanted.shape != x.shape:
            raise ValueError(f"expected the data's score of shape {tuple(x.shape)}, got {tuple(wanted.shape)}")
        apart = score_of(self.target, x.requires_grad_(), graph=graph) - wanted
        return {"distance": 0.5 * dot(apart, apart).mean()}


class ScoreMatching(ScoreLoss):
    r"""Score matching: :math:`\overline{\mathrm{tr}\, \nabla s(x) + \tfrac12 |s(x)|^2}`.

    Up to a constant of the data the explicit one, where densities vanish at infinity. The exact trace needs one more
    backward pass for each coordinate; for many coordinates take probes, whose estimate (Hutchinson 1990) of the trace
    by random signs is unbiased, or ``SlicedScoreMatching``.

    References:
        Hyvarinen 2005, "Estimation of non-normalized statistical models by score matching", theorem 1.

    Args:
        trace: "exact", or by probes.
        probes: for each point, when the trace is not exact; at least 1.
        seed: of the probes; from the operating system when None.

    Raises:
        ValueError: for an unknown trace or probes without use.
    """

    def __init__(
        self, trace: Literal["exact", "probes"] | None = None, *, probes: int | None = None, seed: int | None = None
    ) -> None:
        super().__init__()
        trace = trace or ("exact" if probes is None else "probes")
        require(trace in ("exact", "probes"), "trace 'exact' or 'probes'", trace)
        require(trace == "probes" or probes is None, "no probes for the exact trace", probes)
        self.probes = None if trace == "exact" else whole("probes", 1 if probes is None else probes, 1)
        self.seed = seed if self.probes else 0  # nothing is random

    def bind(self, energy: Energy, guide: Any) -> BoundLoss:
        """The loss of one energy."""
        return BoundScoreMatching(energy, guide, self)


class BoundScoreMatching(BoundScoreLoss):
    """See ``ScoreMatching``."""

    def __init__(self, energy: Scored, guide: Any, loss: ScoreMatching) -> None:
        super().__init__(energy, guide, loss.seed)
        self.probes = loss.probes

    def of_points(self, x: Tensor, *, graph: bool) -> dict[str, Tensor]:
        """The trace of the score's Jacobian, and half the squared score."""
        score = score_of(self.target, x.requires_grad_(), graph=True)
        if self.probes is None:
            size = self.target.event_shape.numel()
            v = torch.eye(size, dtype=x.dtype, device=x.device).view(size, 1, *x.shape[1:]).expand(size, *x.shape)
            trace = along(score, x, v, graph=graph).sum(0)
        else:
            trace = along(score, x, self.signs(x, self.probes), graph=graph).mean(0)
        return {"trace": trace.mean(), "square": 0.5 * dot(score, score).mean()}


class SlicedScoreMatching(ScoreLoss):
    r"""Sliced score matching: :math:`\overline{v^\top \nabla s(x)\, v + \tfrac12 (v^\top s(x))^2}` for v ~ N(0, I).

    Its expectation over v is ``ScoreMatching``. With variance reduction :math:`\tfrac12 |s(x)|^2` takes the place of its
    unbiased estimate :math:`\tfrac12 (v^\top s(x))^2`.

    References:
        Song, Garg, Shi and Ermon 2019, "Sliced score matching", equations 7 and 8.

    Args:
        num_slices: directions v for each point, at least 1.
        reduced_variance: True for equation 8 (SSM-VR), False for equation 7 (SSM).
        seed: of the directions; from the operating system when None.

    Raises:
        ValueError: for fewer than one slice.
    """

    def __init__(self, num_slices: int = 1, *, reduced_variance: bool = True, seed: int | None = None) -> None:
        super().__init__()
        self.num_slices, self.reduced_variance = whole("num_slices", num_slices, 1), reduced_variance
        self.seed = seed

    def bind(self, energy: Energy, guide: Any) -> BoundLoss:
        """The loss of one energy."""
        return BoundSliced(energy, guide, self)


class BoundSliced(BoundScoreLoss):
    """See ``SlicedScoreMatching``."""

    def __init__(self, energy: Scored, guide: Any, loss: SlicedScoreMatching) -> None:
        super().__init__(energy, guide, loss.seed)
        self.num_slices, self.reduced_variance = loss.num_slices, loss.reduced_variance

    def of_points(self, x: Tensor, *, graph: bool) -> dict[str, Tensor]:
        """The score's change along the slices, and half its square."""
        v = self.normals(x, self.num_slices)
        score = score_of(self.target, x.requires_grad_(), graph=True)
        change = along(score, x, v, graph=graph).mean()
        if self.reduced_variance:
            return {"change": change, "square": 0.5 * dot(score, score).mean()}
        return {"change": change, "square": 0.5 * (v * score).flatten(2).sum(-1).square().mean()}


class DenoisingScoreMatching(ScoreLoss):
    r"""Denoising score matching: :math:`\overline{\tfrac12 |s(x + \sigma\epsilon) + \epsilon / \sigma|^2}`, epsilon ~ N(0, I).

    It matches the score of the data blurred by noise of standard deviation sigma (in the units of x; of the unconstrained
    space for a constrained energy). As sigma goes to 0 it is ``ScoreMatching`` plus :math:`d / 2 \sigma^2`.

    References:
        Vincent 2011, "A connection between score matching and denoising autoencoders".

    Args:
        sigma: standard deviation of the noise, positive.
        seed: of the noise; from the operating system when None.

    Raises:
        ValueError: for a sigma that isn't positive and finite.
    """

    def __init__(self, sigma: float, *, seed: int | None = None) -> None:
        super().__init__()
        require(0 < sigma < math.inf, "sigma positive and finite", sigma)
        self.sigma, self.seed = float(sigma), seed

    def bind(self, energy: Energy, guide: Any) -> BoundLoss:
        """The loss of one energy."""
        return BoundDenoising(energy, guide, self)


class BoundDenoising(BoundScoreLoss):
    """See ``DenoisingScoreMatching``."""

    def __init__(self, energy: Scored, guide: Any, loss: DenoisingScoreMatching) -> None:
        super().__init__(energy, guide, loss.seed)
        self.sigma = loss.sigma

    def of_points(self, x: Tensor, *, graph: bool) -> dict[str, Tensor]:
        """Half the squared distance of the score to that of the noise."""
        noise = self.normals(x)
        y = torch.add(x, noise, alpha=self.sigma).requires_grad_()
        apart = torch.add(score_of(self.target, y, graph=graph), noise, alpha=1 / self.sigma)
        return {"distance": 0.5 * dot(apart, apart).mean()}
