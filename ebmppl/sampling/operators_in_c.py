"""The library's own operators in C++, for compiled ticks: labels of clusters, sums and values by them, U-turns."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, fx

from ebmppl.kernels import operators
from ebmppl.sampling.compiler import CompileError, load, load_ahead
from ebmppl.sampling.native import Call

logger = logging.getLogger(__name__)
Allocate = Callable[[tuple[int, ...], tuple[int, ...], torch.dtype], Tensor]
_NUMBERS = {torch.float32: "float", torch.float64: "double", torch.int32: "int32_t", torch.int64: "int64_t"}
_NUMBERS |= {torch.int8: "int8_t", torch.bool: "int8_t"}


class NotInC(ValueError):
    """Torch has to do it."""


def get_ready(graph: fx.GraphModule) -> None:
    """Have the C++ of those operators that a graph takes."""
    ours = {getattr(torch.ops.ebmppl, name).default: name for name in operators.NAMES}
    names = [ours[node.target] for node in graph.graph.nodes if node.target in ours]
    if any(_library(_SOURCES[name]) is not None for name in names):
        operators.in_c = _now


def compile_ahead(names: Sequence[str]) -> None:
    """Begin to compile these operators."""
    for source in {_SOURCES[name] for name in names}:
        load_ahead(source)


def call(name: str, allocate: Allocate, args: Sequence[Tensor]) -> tuple[Tensor, partial[Any]]:
    """Memory for what an operator gives, and the call that puts it there.

    Raises:
        NotInC: where there is no C++ for these arguments.
    """
    library = _library(_SOURCES[name])
    if library is None or not all(arg.dtype in _NUMBERS for arg in args):
        raise NotInC("no C++, or another kind of numbers")
    (form, kinds, shape, dtype) = _FORMS.get(name, _of_sites)(*args)
    function = "_".join([name, *(_NUMBERS[kind.dtype] for kind in kinds)])
    if not hasattr(library, function):
        raise NotInC(function)
    out = torch.empty(shape, device="meta")
    if out.numel() > torch.iinfo(torch.int32).max:
        raise NotInC("more than int32 counts")
    out = allocate(tuple(shape), tuple(out.stride()), dtype)
    return out, partial(Call(getattr(library, function)), *args, torch.tensor(form), out)


# of an operator's arguments: numbers for C, those whose dtypes tell which function it is, shape and dtype of what it gives
_Form = tuple[list[int], list[Tensor], Sequence[int], torch.dtype]


def _of_bonds(level: Tensor, uniform: Tensor, closing: Tensor, i: Tensor, j: Tensor) -> _Form:
    _require_contiguous(level, uniform, closing, i, j)
    (chains, sites), edges = level.shape, len(i)
    form = [chains, edges, sites, 0 if closing.dim() == 1 else edges, torch.get_num_threads()]
    return form, [level, uniform], (chains * sites,), torch.int32


def _of_sites(values: Tensor, label: Tensor) -> _Form:
    _require_contiguous(values, label)
    if label.dtype != torch.int32:
        raise NotInC("more sites than int32 counts")
    return [len(label), values.numel() // max(1, len(label))], [values], values.shape, values.dtype


def _of_leaves(points: Tensor, ignore: Tensor, number: Tensor, leaf: Tensor, total: Tensor, leaf_sum: Tensor) -> _Form:
    _require_contiguous(points, ignore, number, leaf_sum)
    same = all(arg.dtype == points.dtype and arg.stride(-1) == 1 for arg in (leaf, total, leaf_sum))
    if not same or number.dtype != torch.int64:
        raise NotInC("numbers of several kinds")
    form = [len(points), ignore.shape[1], leaf.shape[1], leaf.stride(0), total.stride(0)]
    return form, [points], (len(points),), torch.bool


_FORMS: dict[str, Callable[..., _Form]] = {"bonded": _of_bonds, "straight": _of_leaves}


def _require_contiguous(*args: Tensor) -> None:
    if not all(arg.is_contiguous() for arg in args):
        raise NotInC("another layout")


def _now(name: str, args: Sequence[Tensor]) -> Tensor | None:
    try:
        out, filled = call(name, lambda shape, stride, dtype: torch.empty_strided(shape, stride, dtype=dtype), args)
    except NotInC:
        return None
    filled()
    return out


@cache
def _library(source: str) -> Any:
    try:
        return load(source)
    except CompileError as error:
        logger.info("operators are torch's: %s", error)
        return None


# Trees whose roots are their smallest sites (Galler and Fischer 1964, "An improved equivalence algorithm"), with paths
# halved on the way (van Leeuwen and van der Weide 1977); the chains are shared by the threads.
_CLUSTERS = """
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

# Only the checkpoints that a leaf completes are looked at: one of them on average, of up to twice the depth.
_UTURNS = """
#include <stdint.h>

template <typename T> struct Lanes { typedef T V __attribute__((vector_size(32))); };

// a . x over n numbers, in one order wherever they lie
template <typename T> static inline T dot(const T* a, const T* x, int64_t n) {
    constexpr int64_t lanes = 32 / sizeof(T);
    typename Lanes<T>::V sums{}, p, q;
    int64_t i = 0;
    for (; i + lanes <= n; i += lanes) {
        __builtin_memcpy(&p, a + i, sizeof p);
        __builtin_memcpy(&q, x + i, sizeof q);
        sums += p * q;
    }
    T sum = 0;
    for (; i < n; i++) sum += a[i] * x[i];
    for (int64_t k = 0; k < lanes; k++) sum += sums[k];
    return sum;
}

template <typename T> static int straight(void** p) {
    const int64_t* form = static_cast<int64_t*>(p[6]);
    const int64_t chains = form[0], rows = form[1], n = form[2];
    for (int64_t chain = 0; chain < chains; chain++) {
        const T *a = static_cast<T*>(p[0]) + chain * 2 * rows * (n + 1), *z = a + rows * (n + 1);
        const int64_t number = static_cast<int64_t*>(p[2])[chain];
        const int8_t* ignore = static_cast<int8_t*>(p[1]) + number * rows;
        const T *leaf = static_cast<T*>(p[3]) + chain * form[3], *total = static_cast<T*>(p[4]) + chain * form[4];
        const T leaf_sum = static_cast<T*>(p[5])[chain];
        bool on = true;
        for (int64_t first = 0; on && first < rows; first += 8) {
            uint64_t asked = 0x0101010101010101u;  // eight bools
            __builtin_memcpy(&asked, ignore + first, rows - first < 8 ? rows - first : 8);
            for (asked ^= 0x0101010101010101u; on && asked; asked &= asked - 1) {
                const int64_t at = (first + __builtin_ctzll(asked) / 8) * (n + 1);
                on = dot(a + at, total, n) - a[at + n] > 0 && dot(z + at, leaf, n) + z[at + n] * leaf_sum > 0;
            }
        }
        static_cast<bool*>(p[7])[chain] = on;
    }
    return 0;
}

extern "C" int straight_float(void** p) { return straight<float>(p); }
extern "C" int straight_double(void** p) { return straight<double>(p); }
"""
_SOURCES = {"bonded": _CLUSTERS, "summed": _CLUSTERS, "labelled": _CLUSTERS, "straight": _UTURNS}
