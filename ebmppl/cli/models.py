"""Models of the library by the call that makes them, as in ``Ising(lattice=(8, 8), coupling=0.4)``."""

from __future__ import annotations

import ast
import inspect
from typing import Any

import torch

from ebmppl import models
from ebmppl.cli.errors import UserError
from ebmppl.cli.kernels import listed
from ebmppl.energies import Energy

MODELS: dict[str, type[Energy]] = {  # those that plain values make
    kind.__name__: kind
    for kind in (
        models.Ising,
        models.Potts,
        models.BoltzmannMachine,
        models.Hopfield,
        models.BernoulliRBM,
        models.GaussianRBM,
        models.SoftmaxRBM,
    )
}
EXAMPLE = "Ising(lattice=(8, 8), coupling=0.4)"


def is_call(spec: str) -> bool:
    """Whether a spec is a call rather than a file and a name."""
    return spec.rstrip().endswith(")") and spec.partition("(")[0].strip().isidentifier()


def make(spec: str) -> Energy:
    """The model that a call makes; its arguments are numbers, tuples, strings, flags, and lists, which become tensors.

    Raises:
        UserError: for an unknown model, arguments that are no literals, or such as the model does not take.
    """
    name = spec.partition("(")[0].strip()
    if name not in MODELS:
        raise UserError(
            f"expected a model such as {EXAMPLE} or a file, got {name!r}; there are {listed(name, list(MODELS))}"
        )
    try:
        call = ast.parse(spec.strip(), mode="eval").body
        assert isinstance(call, ast.Call)
        if any(k.arg is None for k in call.keywords):
            raise ValueError("**")
        values = [_literal(a) for a in call.args]
        named = {str(k.arg): _literal(k.value) for k in call.keywords}
    except (SyntaxError, ValueError, AssertionError):
        raise UserError(f"expected a call with plain values, as in {EXAMPLE}, got {spec!r}") from None
    try:
        bound = inspect.signature(MODELS[name]).bind(*values, **named)
    except TypeError as error:
        raise UserError(f"{name}{inspect.signature(MODELS[name])}: {error}") from None
    return MODELS[name](*bound.args, **bound.kwargs)


def _literal(node: ast.expr) -> Any:
    value = ast.literal_eval(node)
    return torch.tensor(value, dtype=torch.get_default_dtype()) if isinstance(value, list) else value
