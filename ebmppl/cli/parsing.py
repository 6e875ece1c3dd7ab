"""Event shapes, supports, kernels by site and temperatures from the command line's strings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from pyro.distributions import constraints
from torch.distributions import biject_to
from torch.distributions.constraints import Constraint

from ebmppl.cli.errors import UserError
from ebmppl.cli.kernels import listed
from ebmppl.energies.supports import spin

Shape = tuple[int, ...]


def _has_bijection(constraint: Constraint) -> bool:
    try:
        biject_to(constraint)
    except NotImplementedError:
        return False
    return True


CONSTRAINTS: dict[str, Constraint] = {  # those in which some kernel can move
    name: value
    for name in sorted(constraints.__all__)
    if isinstance(value := getattr(constraints, name), Constraint)
    and _has_bijection(value)
    and name != "corr_cholesky_constraint"  # an old alias
} | {"spin": spin, "boolean": constraints.boolean}


def parse_shape(text: str) -> Shape | Mapping[str, Shape]:
    """The event shape that ``--event-shape`` says.

    Raises:
        UserError: for anything but sizes >= 1, or sites with their sizes.

    Example:
        >>> parse_shape("3,4"), parse_shape(""), parse_shape("mu=,theta=3,4")
        ((3, 4), (), {'mu': (), 'theta': (3, 4)})
    """
    words = [word.strip() for word in text.split(",")]
    if "=" not in text:
        return tuple(_size(word, text) for word in words if word)
    shapes: dict[str, list[int]] = {}
    site = ""
    for word in words:
        name, equals, size = (part.strip() for part in word.rpartition("="))
        if equals:
            site = name
            if not site.isidentifier() or site in shapes:
                raise UserError(_wanted(text, f"the site name {site!r} {'twice' if site in shapes else ''}".strip()))
            shapes[site] = []
        if size:
            if not site:
                raise UserError(_wanted(text, f"{size!r} before the first site"))
            shapes[site].append(_size(size, text))
    return {name: tuple(sizes) for name, sizes in shapes.items()}


def _size(word: str, text: str) -> int:
    if not word.isdecimal() or int(word) < 1:
        raise UserError(_wanted(text, f"the size {word!r}"))
    return int(word)


def _wanted(text: str, got: str) -> str:
    return f"expected --event-shape such as 2 or 3,4 or mu=,theta=8 (empty for a scalar), got {text!r} with {got}"


def parse_support(texts: Sequence[str]) -> Constraint | dict[str, Constraint]:
    """The support that ``--support``, given any number of times, says: one constraint, or constraints by site.

    Raises:
        UserError: for an unknown constraint, bounds out of order, or one constraint for all among some by site.

    Example:
        >>> parse_support(["tau=positive,p=0:5"])
        {'tau': GreaterThan(lower_bound=0.0), 'p': Interval(lower_bound=0.0, upper_bound=5.0)}
    """
    words = [word.strip() for text in texts for word in text.split(",")]
    if not words:
        return constraints.real
    if len(words) == 1 and "=" not in words[0]:
        return _constraint(words[0])
    supports: dict[str, Constraint] = {}
    for word in words:
        site, equals, name = (part.strip() for part in word.partition("="))
        if not equals or not site:
            raise UserError(f"expected --support as SITE=CONSTRAINT for each of several sites, got {word!r}")
        if site in supports:
            raise UserError(f"expected one --support for each site, got two for {site!r}")
        supports[site] = _constraint(name)
    return supports


def _constraint(text: str) -> Constraint:
    if ":" in text:
        return _bounds(text)
    if ".." in text:
        return _integers(text)
    if text not in CONSTRAINTS:
        names = listed(text, list(CONSTRAINTS))
        raise UserError(
            f"expected --support as bounds such as 0:5, 0: or :1, as integers such as 0..3, or as one of {names}, got {text!r}"
        )
    return CONSTRAINTS[text]


def _integers(text: str) -> Constraint:
    low, _, high = text.partition("..")
    try:
        least, most = int(low), int(high)
    except ValueError:
        least = most = 0
    if not least < most:
        raise UserError(f"expected integers LOW..HIGH with LOW < HIGH, got {text!r}")
    return constraints.integer_interval(least, most)


def _bounds(text: str) -> Constraint:
    try:
        low, high = (float(word) if word.strip() else None for word in text.split(":"))
    except ValueError:
        low = high = math.nan
    if any(bound is not None and not math.isfinite(bound) for bound in (low, high)):
        raise UserError(f"expected finite bounds such as 0:5, 0: or :1, got {text!r}")
    if low is None and high is None:
        return constraints.real
    if low is None:
        return constraints.less_than(high)
    if high is None:
        return constraints.greater_than(low)
    if not low < high:
        raise UserError(f"expected bounds LOW:HIGH with LOW < HIGH, got {text!r}")
    return constraints.interval(low, high)


def parse_kernels(text: str | None) -> str | dict[tuple[str, ...], str] | None:
    """The kernel that ``--kernel`` says, or one by site or by several sites.

    Raises:
        UserError: for a kernel without its sites among some by site, or a site that comes twice.

    Example:
        >>> parse_kernels("gibbs"), parse_kernels("s=gibbs,x+y=nuts")
        ('gibbs', {('s',): 'gibbs', ('x', 'y'): 'nuts'})
    """
    if text is None or "=" not in text:
        return text
    kernels: dict[tuple[str, ...], str] = {}
    for word in text.split(","):
        sites, _, name = (part.strip() for part in word.rpartition("="))
        block = tuple(site.strip() for site in sites.split("+"))
        seen = {site for other in kernels for site in other}
        if not all(block) or not name or seen & set(block) or len(set(block)) < len(block):
            raise UserError(f"expected --kernel as SITE=KERNEL for every site once, as s=gibbs,x+y=nuts, got {text!r}")
        kernels[block] = name
    return kernels


def parse_betas(text: str | None) -> int | list[float] | None:
    """The inverse temperatures that ``--betas`` says, or how many.

    Raises:
        UserError: for anything but a whole number or several numbers. Whether they are temperatures is for the kernel to say.

    Example:
        >>> parse_betas("8"), parse_betas("0.2,0.5,1")
        (8, [0.2, 0.5, 1.0])
    """
    if text is None:
        return None
    try:
        return [float(word) for word in text.split(",")] if "," in text else int(text)
    except ValueError:
        raise UserError(f"expected --betas as how many or as numbers such as 0.2,0.5,1, got {text!r}") from None
