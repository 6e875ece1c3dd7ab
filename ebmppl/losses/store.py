"""The parameters of losses in Pyro's store: each under one name, and none under another's."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any
from weakref import WeakKeyDictionary, WeakSet, WeakValueDictionary

import pyro
from pyro import poutine
from pyro.nn import PyroModule
from torch import Tensor, nn

from ebmppl.errors import SamplingWarning

_names: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()  # in the store, one for each module
_owners: WeakValueDictionary[str, PyroModule] = WeakValueDictionary()  # of names that ``PyroModule`` gives
_numbers = itertools.count()
_looked: WeakSet[nn.Module] = WeakSet()  # losses of which it was seen what they depend on


def registered(loss: nn.Module, parts: Mapping[str, nn.Module]) -> None:
    """Give Pyro's store all that a loss trains; ``parts`` of it, such as the energy, keep one name in several losses."""
    for path, parameter in loss.named_parameters():
        if parameter.requires_grad:
            part = parts.get(path.split(".")[0])  # several losses of one energy have each its own log Z
            name = f"{_name_of('loss', loss) if part is None else _name_of('energy', part)}$$${path}"
            store = pyro.get_param_store()
            if name in store and store._params[name] is not parameter:  # would be optimised in its place
                warnings.warn(
                    f"Pyro's parameter store has another tensor as {name!r}, of a store that was loaded or of a parameter "
                    "that was replaced: the module's own takes its place. To load weights use load_state_dict",
                    SamplingWarning,
                    stacklevel=5,
                )
                del store[name]
            pyro.param(name, parameter)


def hidden_from_pyro(loss: nn.Module) -> AbstractContextManager[Any]:
    """``PyroModule`` registers its parameters under short names, which may be another's there: ours are known already."""
    own = {id(parameter) for parameter in loss.parameters()}

    def ours(message: dict[str, Any]) -> bool:
        return message["type"] == "param" and any(id(value) in own for value in message["args"])

    return poutine.block(hide_fn=ours)


def _name_of(kind: str, module: nn.Module) -> str:
    name = _names.get(module)
    if name is None:
        name = _names[module] = f"{kind}{next(_numbers)}"
    return name


def shared_names(loss: nn.Module) -> list[tuple[PyroModule, str]]:
    """The modules and names of ``PyroParam``s, which Pyro keeps under names that other modules may have, too."""
    modules = [module for module in loss.modules() if isinstance(module, PyroModule)]
    return [(module, name) for module in modules for name in module._pyro_params]


def require_own_names(parameters: list[tuple[PyroModule, str]]) -> None:
    """Raise ``ValueError`` where another living module has a ``PyroParam`` of the same name: Pyro would make them one."""
    store = pyro.get_param_store()
    for module, name in parameters:
        prefix = vars(module)["_pyro_name"]  # Pyro's own function knows it after the first call only
        full = f"{prefix}.{name}" if prefix else name
        owner = _owners.get(full)
        if full in store and owner is not None and owner is not module:
            raise ValueError(
                f"expected a name of its own for every PyroParam, got {full!r} of two modules, which Pyro's store would "
                "make one: name the modules, as PyroModule[...](..., name=...), or put them in one PyroModule; after "
                "pyro.clear_param_store() the name is free"
            )
        _owners[full] = module


def warn_of_untrained(bound: nn.Module, loss: Tensor, others: Iterable[Tensor]) -> None:
    """At the first loss of a module, warn of parameters that it depends on but that nobody trains.

    Such as those of a module that the function of ``as_energy`` only mentions.

    Args:
        bound: whose parameters are trained.
        loss: its first.
        others: what is trained as well.
    """
    if bound in _looked:
        return
    _looked.add(bound)
    own = {id(value) for value in (*bound.parameters(), *others)}
    found: dict[int, tuple[int, ...]] = {}
    nodes: list[Any] = [loss.grad_fn]
    seen = {None}
    while nodes:
        node = nodes.pop()
        if node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)  # of a node that adds to a leaf's gradient
        if isinstance(leaf, nn.Parameter) and leaf.requires_grad and id(leaf) not in own:
            found[id(leaf)] = tuple(leaf.shape)
        nodes += [after for after, _ in node.next_functions]
    if found:
        warnings.warn(
            f"the loss depends on {len(found)} parameters that are not those of energy or loss, so they are not trained, of "
            f"shapes {list(found.values())[:5]}: modules that a function mentions are not seen; pass the module itself to "
            "as_energy, or one that holds them",
            SamplingWarning,
            stacklevel=4,
        )
