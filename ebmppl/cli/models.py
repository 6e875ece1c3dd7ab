"""Models of the library by the call that makes them, as in ``Ising(lattice=(8, 8), coupling=0.4)``."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from typing import Any

import torch

from ebmppl import energies, models
from ebmppl.cli.errors import UserError
from ebmppl.cli.kernels import listed
from ebmppl.energies import Energy

MODELS: dict[str, type[Energy]] = {  # those that plain values, or other models, make
    kind.__name__: kind
    for kind in (
        models.Ising,
        models.Potts,
        models.BoltzmannMachine,
        models.Hopfield,
        models.BernoulliRBM,
        models.GaussianRBM,
        models.SoftmaxRBM,
        models.ProductOfExperts,
        models.GaussianExperts,
        models.StudentTExperts,
        models.LogisticExperts,
        models.SoftplusExperts,
        energies.Gaussian,
    )
}
PARTS: dict[str, Callable[..., Any]] = {**MODELS, "Graph": models.Graph}  # what may stand inside
EXAMPLE = "Ising(lattice=(8, 8), coupling=0.4)"


def is_call(spec: str) -> bool:
    """Whether a spec is a call rather than a file and a name."""
    return spec.rstrip().endswith(")") and spec.partition("(")[0].strip().isidentifier()


def make(spec: str) -> Energy:
    """The model that a call makes.

    Its arguments are numbers, tuples, strings, flags, lists, which become tensors, and such calls, or lists of them.

    Raises:
        UserError: for an unknown model, arguments that are nothing of this, or such as the model does not take.
    """
    name = spec.partition("(")[0].strip()
    if name not in MODELS:
        raise UserError(
            f"expected a model such as {EXAMPLE} or a file, got {name!r}; there are {listed(name, list(MODELS))}"
        )
    try:
        call = ast.parse(spec.strip(), mode="eval").body
        assert isinstance(call, ast.Call)
        model = _made(call)
    except (SyntaxError, _NotPlainError, AssertionError):
        raise UserError(f"expected a call with plain values, as in {EXAMPLE}, got {spec!r}") from None
    assert isinstance(model, Energy)  # of a kind in the table
    return model


class _NotPlainError(Exception):
    pass


def _made(call: ast.Call) -> Any:
    if not isinstance(call.func, ast.Name) or call.func.id not in PARTS or any(k.arg is None for k in call.keywords):
        raise _NotPlainError
    name, kind = call.func.id, PARTS[call.func.id]
    values = [_value(a) for a in call.args]
    named = {str(k.arg): _value(k.value) for k in call.keywords}
    try:
        bound = inspect.signature(kind).bind(*values, **named)
    except TypeError as error:
        raise UserError(f"{name}{inspect.signature(kind)}: {error}") from None
    return kind(*bound.args, **bound.kwargs)


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Call):
        return _made(node)
    if isinstance(node, ast.List) and any(isinstance(e, ast.Call) for e in node.elts):
        return [_value(e) for e in node.elts]
    try:
        value = ast.literal_eval(node)
    except ValueError:
        raise _NotPlainError from None
    return torch.tensor(value, dtype=torch.get_default_dtype()) if isinstance(value, list) else value
