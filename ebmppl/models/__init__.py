"""Models: energies with structure that kernels use (blocks, colourings, conditionals); no sampling code.

To add a model: one final class of ``Energy`` in a file of its own with ``conditionals``, one line here, one row in
``tests/registry.py``.
"""

from ebmppl.models.graph import Graph
from ebmppl.models.ising import Ising

__all__ = ["Graph", "Ising"]
