"""The library's own operators in C++, for compiled ticks: labels of clusters, and sums and values by them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, fx

from ebmppl.kernels import operators
from ebmppl.sampling.compiler import CompileError, load
from ebmppl.sampling.native import Call

logger = logging.getLogger(__name__)
Allocate = Callable[[tuple[int, ...], tuple[int, ...], torch.dtype], Tensor]
_NUMBERS = {torch.float32: "float", torch.float64: "double", torch.int32: "int32_t", torch.int64: "int64_t"}
_NUMBERS |= {torch.int8: "int8_t", torch.bool: "int8_t"}


class NotInC(ValueError):
    """Torch has to do it."""


def get_ready(graph: fx.GraphModule) -> None:
    """Have the C++ of those operators that a graph takes."""
    ours = [getattr(torch.ops.ebmppl, name).default for name in operators.NAMES]
    if any(node.target in ours for node in graph.graph.nodes) and _library() is not None:
        operators.in_c = _now


def call(name: str, allocate: Allocate, args: Sequence[Tensor]) -> tuple[Tensor, partial[Any]]:
    """Memory for what an operator gives, and the call that puts it there.

    Raises:
        NotInC: where there is no C++ for these arguments.
    """
    plain = all(arg.is_contiguous() and arg.dtype in _NUMBERS for arg in args)
    if name not in operators.NAMES or not plain or _library() is None:
        raise NotInC("no C++, or another layout")
    if name == "bonded":
        level, uniform, closing, i, _ = args
        (chains, sites), edges = level.shape, len(i)
        form = [chains, edges, sites, 0 if closing.dim() == 1 else edges, torch.get_num_threads()]
        kinds, out = [level, uniform], allocate((chains * sites,), (1,), torch.int32)
    else:
        values, label = args
        form = [len(label), values.numel() // max(1, len(label))]
        kinds, out = [values], allocate(tuple(values.shape), tuple(values.stride()), values.dtype)
        if label.dtype != torch.int32:
            raise NotInC("more sites than int32 counts")
    function = "_".join([name, *(_NUMBERS[kind.dtype] for kind in kinds)])
    if out.numel() > torch.iinfo(torch.int32).max or not hasattr(_library(), function):
        raise NotInC(function)
    return out, partial(Call(getattr(_library(), function)), *args, torch.tensor(form), out)


def _now(name: str, args: Sequence[Tensor]) -> Tensor | None:
    try:
        out, filled = call(name, lambda shape, stride, dtype: torch.empty_strided(shape, stride, dtype=dtype), args)
    except NotInC:
        return None
    filled()
    return out


@cache
def _library() -> Any:
    try:
        return load(_SOURCE)
    except CompileError as error:
        logger.info("clusters are labelled by torch: %s", error)
        return None


# Trees whose roots are their smallest sites (Galler and Fischer 1964, "An improved equivalence algorithm"), with paths
# halved on the way (van Leeuwen and van der Weide 1977); the chains are shared by the threads.
_SOURCE = """
#include <stdint.h>

static inline int32_t root(int32_t* parent, int32_t x) {
    while (parent[x] != x) x = parent[x] = parent[parent[x]];
    return x;
}

// see ebmppl/kernels/operators.py for the arguments, then the form, then what is to be given
template <typename Level, typename Real> static int bonded(void** p) {
    const int64_t *i = static_cast<int64_t*>(p[3]), *j = static_cast<int64_t*>(p[4]), *form = static_cast<int64_t*>(p[5]);
    const int64_t chains = form[0], edges = form[1], sites = form[2], own = form[3], threads = form[4];
    #pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t chain = 0; chain < chains; chain++) {
        const Level* level = static_cast<Level*>(p[0]) + chain * sites;
        const Real* uniform = static_cast<Real*>(p[1]) + chain * edges;
        const Real* closing = static_cast<Real*>(p[2]) + chain * own;
        int32_t* parent = static_cast<int32_t*>(p[6]) + chain * sites;
        for (int32_t site = 0; site < sites; site++) parent[site] = site;
        for (int64_t edge = 0; edge < edges; edge++) {
            if (!((uniform[edge] < closing[edge]) & (level[i[edge]] == level[j[edge]]))) continue;
            const int32_t a = root(parent, i[edge]), b = root(parent, j[edge]);
            if (a < b) parent[b] = a;
            else parent[a] = b;
        }
        for (int32_t site = 0; site < sites; site++) parent[site] = parent[parent[site]];  // smaller ones' are roots
        for (int32_t site = 0; site < sites; site++) parent[site] += chain * sites;
    }
    return 0;
}

template <typename T> static int summed(void** p) {
    const int64_t *form = static_cast<int64_t*>(p[2]), sites = form[0], width = form[1];
    const T* values = static_cast<T*>(p[0]);
    const int32_t* label = static_cast<int32_t*>(p[1]);
    T* sums = static_cast<T*>(p[3]);
    __builtin_memset(sums, 0, sites * width * sizeof(T));
    for (int64_t site = 0; site < sites; site++)
        for (int64_t k = 0; k < width; k++) sums[label[site] * width + k] += values[site * width + k];
    return 0;
}

template <typename T> static int labelled(void** p) {
    const int64_t *form = static_cast<int64_t*>(p[2]), sites = form[0], width = form[1];
    const T* values = static_cast<T*>(p[0]);
    const int32_t* label = static_cast<int32_t*>(p[1]);
    T* out = static_cast<T*>(p[3]);
    for (int64_t site = 0; site < sites; site++)
        for (int64_t k = 0; k < width; k++) out[site * width + k] = values[label[site] * width + k];
    return 0;
}

#define BONDED(L, R) extern "C" int bonded_##L##_##R(void** p) { return bonded<L, R>(p); }
BONDED(int8_t, float) BONDED(int8_t, double) BONDED(int64_t, float) BONDED(int64_t, double)
#define SUMMED(T) extern "C" int summed_##T(void** p) { return summed<T>(p); }
SUMMED(float) SUMMED(double) SUMMED(int32_t)
#define LABELLED(T) extern "C" int labelled_##T(void** p) { return labelled<T>(p); }
LABELLED(float) LABELLED(double)
"""
