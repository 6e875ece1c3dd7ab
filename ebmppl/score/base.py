"""The contract of a diffusion, and a user's own one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from ebmppl.arguments import form, positive, real, require, size

Marginal = tuple[Tensor, Tensor]
_HALVINGS = 80  # of an interval in float64, to its last bit


def over(t: Tensor, x: Tensor) -> Tensor:
    """A number for each point, ``(*batch)``, with axes for the events of x ``(*batch, *event)``.

    Raises:
        ValueError: for numbers of another shape.
    """
    if not t.dim():
        return t
    if t.shape != x.shape[: t.dim()] and t.shape != (1,):
        raise ValueError(
            f"expected a time (or number) for each point, {tuple(x.shape[:1])} or (), got {tuple(t.shape)}"
        )
    return t.reshape(*t.shape, *[1] * (x.dim() - t.dim()))


def readable(values: Tensor) -> bool:
    """Whether a look at values costs nothing: not in a trace, which it would break, nor on a device, whose queue it waits for."""
    if torch.compiler.is_compiling() or not values.is_cpu or is_in_torch_dispatch_mode() or not values.numel():
        return False
    return not torch._C._functorch.is_functorch_wrapped_tensor(values)


class SDE(nn.Module):
    r"""Abstract diffusion :math:`dx = f(x, t)\,dt + g(t)\,dw` for t from 0 (data) to ``t_max`` (noise).

    Times are tensors, of shape ``(*batch)`` for points ``(*batch, *event)``, or a scalar for all.

    Attributes:
        t_max: T, the last time.
        prior_std: standard deviation of the prior N(0, prior_std^2 I), which p_T is near to.

    References:
        Song, Sohl-Dickstein, Kingma, Kumar, Ermon and Poole 2021, "Score-based generative modeling through stochastic
        differential equations".
    """

    t_max: float = 1.0
    prior_std: float = 1.0

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        """The drift f(x, t), ``(*batch, *event)``."""
        raise NotImplementedError(f"{type(self).__name__} must implement drift(x, t)")

    def diffusion(self, t: Tensor) -> Tensor:
        """The diffusion g(t), of the shape of t."""
        raise NotImplementedError(f"{type(self).__name__} must implement diffusion(t)")

    def marginal(self, t: Tensor) -> Marginal:
        """Mean coefficient a and standard deviation of x(t) given x(0), which is N(a x(0), std^2 I); of the shape of t.

        Raises:
            ValueError: for times outside [0, T], and for an SDE whose marginals aren't known.
        """
        raise ValueError(f"expected an SDE with known marginals, got {type(self).__name__}: pass marginal=")

    def prior(self, event_shape: Sequence[int], like: Tensor | None = None) -> Independent:
        """The distribution N(0, prior_std^2 I) over events, at the dtype and device of ``like``."""
        like = torch.empty(0) if like is None else like
        scale = like.new_full(size("the event shape", event_shape), self.prior_std)
        return Independent(Normal(torch.zeros_like(scale), scale, validate_args=False), len(event_shape))

    def perturb(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Points of time t from data x and standard normal noise: a x + std noise."""
        mean, std = self.marginal(t)
        return over(mean, x) * x + over(std, x) * noise

    def require_times(self, t: Tensor, *, zero: bool = True) -> None:
        """Raise ``ValueError`` for times outside [0, T], or (0, T] where 0 is none, as far as they are ``readable``."""
        require(isinstance(t, Tensor) and t.is_floating_point(), "times as a floating point tensor", form(t))
        if not readable(t):
            return
        rounding = 4 * torch.finfo(t.dtype).eps * self.t_max
        low, high = (float(end) for end in t.detach().aminmax())
        if not ((low >= -rounding if zero else low > 0) and high <= self.t_max + rounding):  # NaN is outside
            inside = ((t >= -rounding) if zero else (t > 0)) & (t <= self.t_max + rounding)
            raise ValueError(
                f"expected times in {'[' if zero else '('}0, {self.t_max:g}], got {float(t[~inside].flatten()[0]):g}"
            )

    def require_start(self, t_min: float) -> float:
        """The time nearest to the data at which something is done; raise ``ValueError`` unless it is a number in (0, T)."""
        start = real(t_min)
        require(0 < start < self.t_max, f"t_min in (0, {self.t_max:g})", repr(t_min))
        return start


class LinearSDE(SDE):
    """Abstract SDE with drift f(t) x and Gaussian marginals, so that each solver's steps are known in closed form.

    Raises:
        ValueError: when a subclass is defined with a drift or diffusion of its own beside marginals of its parent's.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in ("drift", "drift_coefficient", "diffusion"):
            require_beside(cls, name, ("marginal", "log_mean"), unknown=SDE)

    def drift_coefficient(self, t: Tensor) -> Tensor:
        """The rate f(t) of the drift f(t) x, of the shape of t."""
        raise NotImplementedError(f"{type(self).__name__} must implement drift_coefficient(t)")

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        """The drift f(t) x."""
        return over(self.drift_coefficient(t), x) * x

    def ratio(self, t: Tensor) -> Tensor:
        """Noise over signal, std / a: the standard deviation of the noise in x(t) / a. Its log is minus lambda of DPM-Solver."""
        mean, std = self.marginal(t)
        return std / mean

    def time_of(self, ratio: Tensor) -> Tensor:
        """The time at which noise over signal is ``ratio``.

        Raises:
            ValueError: for ratios that no time in [0, T] has.
        """
        require(
            isinstance(ratio, Tensor) and ratio.is_floating_point(), "ratios as a floating point tensor", form(ratio)
        )
        wanted = ratio.double()
        least, most = self.ratio(wanted.new_tensor([0.0, self.t_max]))
        outside = ~((wanted >= least * (1 - 1e-9)) & (wanted <= most * (1 + 1e-9)))
        if bool(outside.any()):
            got = float(wanted[outside].flatten()[0])
            raise ValueError(f"expected ratios in [{float(least):g}, {float(most):g}], got {got:g}")
        found = self.solve(wanted).clamp(0, self.t_max)
        if not torch.allclose(self.ratio(found), wanted, rtol=1e-6, atol=0.0):  # a subclass with marginals of its own
            found = bisect(self.ratio, wanted, self.t_max)
        return found.to(ratio.dtype)

    def solve(self, ratio: Tensor) -> Tensor:
        """The time, in float64, of ratios that were looked at; by bisection where there is no closed form: ratio(t) increases.

        ``time_of`` takes no closed form whose times have other ratios.
        """
        return bisect(self.ratio, ratio, self.t_max)


def require_beside(cls: type, name: str, forms: Sequence[str], unknown: type) -> None:
    """Raise ``ValueError`` where a class defines a rate, and inherits all closed forms that come of it.

    Args:
        cls: the class.
        name: of the rate.
        forms: names of the closed forms, one of which is to be defined no earlier.
        unknown: the class in which they are not there yet.
    """
    defined = {own: next((k for k in cls.__mro__ if own in vars(k)), unknown) for own in (name, *forms)}
    inherited = [form for form in forms if defined[form] is not unknown]
    place = cls.__mro__.index
    if inherited and all(place(defined[name]) < place(defined[form]) for form in inherited):
        form, parent = inherited[-1], defined[inherited[-1]].__name__
        raise ValueError(
            f"expected {' or '.join(forms)} defined beside {name} in {cls.__name__}, as they tell of the same diffusion, got "
            f"{parent}'s ({form} = {parent}.{form} where it is right)"
        )


def bisect(increasing: Callable[[Tensor], Tensor], wanted: Tensor, t_max: float) -> Tensor:
    """The times in [0, t_max] at which a function of the time takes these values, to the last bit."""
    low, high = torch.zeros_like(wanted), torch.full_like(wanted, t_max)
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        below = increasing(middle) < wanted
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return 0.5 * (low + high)


class GenericSDE(SDE):
    """A user's own drift and diffusion; solvers that need closed-form marginals refuse it.

    Args:
        drift: f(x, t), from ``(batch, *event)`` and ``(batch,)`` to ``(batch, *event)``.
        diffusion: g(t), from ``(batch,)`` to ``(batch,)``; or a callable that returns one number for all times, a tensor or not.
        prior_std: standard deviation of the prior at t_max, > 0.
        t_max: the last time, > 0.
        marginal: from t to mean coefficient and standard deviation of x(t) given x(0), where known.

    Raises:
        ValueError: for what isn't callable, or prior_std or t_max not > 0; when called, for results of another shape.

    Example:
        >>> sde = GenericSDE(lambda x, t: -x, lambda t: 1.4, prior_std=1.0, t_max=3.0)
        >>> sde.drift(torch.ones(2, 1), torch.zeros(2))
        tensor([[-1.],
                [-1.]])
    """

    def __init__(
        self,
        drift: Callable[[Tensor, Tensor], Tensor],
        diffusion: Callable[[Tensor], Tensor],
        prior_std: float,
        t_max: float = 1.0,
        marginal: Callable[[Tensor], Marginal] | None = None,
    ) -> None:
        super().__init__()
        for name, fn in (("drift", drift), ("diffusion", diffusion), ("marginal", marginal)):
            require(callable(fn) or (fn is None and name == "marginal"), f"a callable {name}", type(fn).__name__)
        self.fn = drift, diffusion, marginal
        self.prior_std, self.t_max = positive("prior_std", prior_std), positive("t_max", t_max)

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        """The user's f(x, t)."""
        self.require_times(t)
        return self._of_shape("a drift", self.fn[0](x, t), x)

    def diffusion(self, t: Tensor) -> Tensor:
        """The user's g(t)."""
        self.require_times(t)
        found = self.fn[1](t)
        if isinstance(found, (int, float)):
            found = torch.full_like(t, found)
        elif isinstance(found, Tensor) and not found.dim():
            found = found.expand_as(t)
        return self._of_shape("a diffusion", found, t)

    def marginal(self, t: Tensor) -> Marginal:
        """The user's, where given."""
        self.require_times(t)
        if self.fn[2] is None:
            return super().marginal(t)
        found = self.fn[2](t)
        pair = isinstance(found, (tuple, list)) and len(found) == 2
        require(pair, "a marginal of two, mean coefficient and standard deviation", form(found))
        return self._of_shape("a mean coefficient", found[0], t), self._of_shape("a standard deviation", found[1], t)

    @staticmethod
    def _of_shape(what: str, found: Tensor, like: Tensor) -> Tensor:
        require(
            isinstance(found, Tensor) and found.shape == like.shape, f"{what} of shape {tuple(like.shape)}", form(found)
        )
        return found
