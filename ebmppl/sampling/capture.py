"""A compiled tick in CUDA graphs: one launch for several ticks, and nothing of Python between them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ebmppl.sampling.compiler import Flat

_TICKS = (8, 1)  # of a graph


class Captured:
    """A compiled function called again and again on a CUDA device, its outputs copied over some of its inputs.

    Args:
        compiled: what ``compile_graph`` made.
        inputs: memory that all calls read and write.
        feedback: by output, the number of the input that it becomes.
    """

    def __init__(self, compiled: Flat, inputs: Sequence[Tensor], feedback: Sequence[int]) -> None:
        self.inputs = [tensor.clone() if i in set(feedback) else tensor for i, tensor in enumerate(inputs)]
        moving = [self.inputs[i] for i in feedback]  # of the others some may be expanded, which nothing can write to

        def tick() -> None:
            outputs = compiled(list(self.inputs))
            torch._foreach_copy_(moving, list(outputs))

        kept = [tensor.clone() for tensor in moving]  # capturing needs a warm-up, which computes
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            tick()
        torch.cuda.current_stream().wait_stream(stream)
        self._graphs = {}
        for ticks in _TICKS:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                for _ in range(ticks):
                    tick()
            self._graphs[ticks] = graph
        torch._foreach_copy_(moving, kept)

    def __call__(self, times: int) -> None:
        """So many calls."""
        for ticks, graph in self._graphs.items():
            while times >= ticks:
                graph.replay()
                times -= ticks
