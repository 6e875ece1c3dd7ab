"""What an energy must not have inside: random numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

RANDOM = (
    "expected the same energy for the same points, got another at a second call: "
    "an energy must be a function, without random numbers inside (dropout? give the module itself, or call its eval())"
)


class Draws(TorchDispatchMode):
    """Sees operations that draw from a global generator, however little they change."""

    drawn = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: torch would import all of Dynamo to tell it not to look here, a second for who compiles nothing."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.drawn |= torch.Tag.nondeterministic_seeded in func.tags and kwargs.get("generator") is None
        return func(*args, **kwargs)
