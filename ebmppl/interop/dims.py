"""Names and labels of the axes of sites."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from ebmppl.energies.base import RESERVED, require_names

Dims = Mapping[str, Sequence[str]]
Coords = Mapping[str, Sequence[Hashable]]


def checked_dims(shapes: Mapping[str, tuple[int, ...]], dims: Dims, coords: Coords) -> dict[str, list[str]]:
    """Dims as lists, once they and the coords are known to fit.

    Args:
        shapes: of one point, by site.
        dims: names of the axes, by site.
        coords: labels, by dim.

    Raises:
        ValueError: for unknown or reserved names, wrong numbers of them, and lengths that differ.
    """
    require_names(shapes)
    unknown = sorted(set(dims) - set(shapes))
    if unknown:
        raise ValueError(f"expected dims for the sites {sorted(shapes)}, got dims for {unknown}")
    sizes: dict[str, tuple[int, str]] = {}
    for site, names in dims.items():
        shape = shapes[site]
        if isinstance(names, str) or len(names) != len(shape):
            raise ValueError(f"expected {len(shape)} dims for site {site!r} of shape {tuple(shape)}, got {names!r}")
        if len({*names, *RESERVED}) < len(names) + len(RESERVED):
            raise ValueError(f"expected different dims of site {site!r}, none of {list(RESERVED)}, got {list(names)}")
        for name, size in zip(names, shape, strict=True):
            known, other = sizes.setdefault(name, (size, site))
            if known != size:
                raise ValueError(
                    f"expected dim {name!r} of length {known} as in site {other!r}, got {size} in {site!r}"
                )
    _check_coords(coords, sizes)
    return {site: list(names) for site, names in dims.items()}


def _check_coords(coords: Coords, sizes: Mapping[str, tuple[int, str]]) -> None:
    unknown = sorted(set(coords) - set(sizes))
    if unknown:
        raise ValueError(f"expected coords for the dims {sorted(sizes)}, got coords for {unknown}")
    for name, labels in coords.items():
        size, site = sizes[name]
        if len(labels) != size:
            raise ValueError(f"expected {size} coords for dim {name!r} of site {site!r}, got {len(labels)}")
        if len(set(np.asarray(labels).tolist())) < size:
            raise ValueError(f"expected coords for dim {name!r} without repetitions, got {list(labels)}")
