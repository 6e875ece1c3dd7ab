"""Matrices that have no factor: NaN in their own rows of the batch, where torch raises for all of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

T = TypeVar("T")


def rowwise(evaluate: Callable[[Tensor], T], x: Tensor) -> T:
    """``evaluate(x)``, again with NaN in the rows whose matrices have no factor when torch raises for these."""
    try:
        return evaluate(x)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        with RowwiseLinalg():
            return evaluate(x)


class RowwiseLinalg(TorchFunctionMode):
    """Within it ``torch.linalg``'s factorisations give NaN for single matrices that they fail for, and never raise."""

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _SAFE.get(func, func)(*args, **(kwargs or {}))


def _told(info: Tensor, results: tuple[Tensor, ...], matrices: int) -> tuple[Tensor, ...]:
    """NaN where ``info`` tells a failure; the first so many results are matrices, the others vectors or indices."""
    bad = info.ne(0)
    masks = [bad[..., None, None] if i < matrices else bad[..., None] for i in range(len(results))]
    return tuple(
        torch.where(mask, torch.nan, result) if result.is_floating_point() or result.is_complex() else result
        for mask, result in zip(masks, results, strict=True)
    )


def _cholesky(A: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    factor, info = torch.linalg.cholesky_ex(A, *args, **kwargs)
    return _told(info, (factor,), 1)[0]


def _inv(A: Tensor) -> Tensor:
    inverse, info = torch.linalg.inv_ex(A)
    return _told(info, (inverse,), 1)[0]


def _solve(A: Tensor, B: Tensor, **kwargs: Any) -> Tensor:
    solution, info = torch.linalg.solve_ex(A, B, **kwargs)
    vector = B.dim() == 1 or (B.dim() == A.dim() - 1 and B.shape == A.shape[:-1])  # torch's own rule
    return _told(info, (solution,), 0 if vector else 1)[0]


def _spectral(function: Callable[..., Any], matrices: int) -> Callable[..., Any]:
    """Eigen and singular values fail for matrices that are not finite, and have no form that tells which."""

    def safe(A: Tensor, *args: Any, **kwargs: Any) -> Any:
        bad = ~torch.isfinite(A).all(-1).all(-1)
        unit = torch.eye(A.shape[-2], A.shape[-1], dtype=A.dtype, device=A.device)
        found = function(torch.where(bad[..., None, None], unit, A), *args, **kwargs)
        if isinstance(found, Tensor):
            return _told(bad, (found,), 0)[0]
        return type(found)([_told(bad, (part,), int(part.dim() == A.dim()))[0] for part in found])

    return safe


_SAFE: dict[Any, Callable[..., Any]] = {
    torch.linalg.cholesky: _cholesky,
    torch.linalg.inv: _inv,
    torch.inverse: _inv,
    Tensor.inverse: _inv,
    torch.linalg.solve: _solve,
    torch.linalg.eigh: _spectral(torch.linalg.eigh, 1),
    torch.linalg.eigvalsh: _spectral(torch.linalg.eigvalsh, 0),
    torch.linalg.svd: _spectral(torch.linalg.svd, 2),
    torch.linalg.svdvals: _spectral(torch.linalg.svdvals, 0),
}
