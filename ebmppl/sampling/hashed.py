"""Normal and uniform numbers of ticks as hashes of where they are used: by torch, or by C++ where a run is compiled."""

from __future__ import annotations

import ctypes
import logging
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ebmppl.kernels.pooling import BLOCK
from ebmppl.kernels.words import labels, normals, uniforms
from ebmppl.sampling.compiler import CompileError, load, load_ahead
from ebmppl.sampling.native import Call

logger = logging.getLogger(__name__)
LANES = 8
_ROW = 64  # numbers that are worth a key of their own
_MOST_TICKS, _MOST_NUMBERS = 256, 1 << 14  # of one call of torch's operations; they stay in cache
_PIECE = 1 << 18  # numbers that torch's operations make together, where one tick has more
_TICK, _PLACE = 0x9E3779B97F4A7C15, 0xD1B54A32D192ED03  # odd, far from one another's multiples
_MIX = (30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)
_ALL = 1 << 64


class Hashed:
    """Standard normal numbers, or uniform ones in [0, 1), of the ticks of all chains, the same whatever is asked for before.

    Every row has two keys, the halves of SplitMix64's finalizer (Steele, Lea and Flood 2014, "Fast splittable
    pseudorandom number generators") at a start of the run's plus multiples of the tick and of the row's number; numbers are
    hashes of their places in it and of the keys, see ``words.normals``. A row is what one chain needs, or 64 chains.

    Args:
        kind: "normal" or "uniform".
        size: numbers of a chain's tick.
        chains: how many.
        start: of the run and the name, from 0 to 2^64 - 1.
        dtype: of the numbers.
    """

    def __init__(self, kind: str, size: int, chains: int, start: int, dtype: torch.dtype) -> None:
        self.kind, self.size, self.chains, self.start, self.dtype = kind, size, chains, start, dtype
        self.each = 1 if size >= _ROW else BLOCK  # chains of a row
        self.rows = -(-chains // self.each)
        self._length = size * min(self.each, chains)
        self._labels = labels(self._length + LANES)
        self.at_once = max(1, min(_MOST_TICKS, _MOST_NUMBERS // (chains * size)))  # ticks

    def keys(self, first: int, ticks: int) -> Tensor:
        """Of so many ticks ``(ticks, rows, 2)``."""
        begin = np.uint64((self.start + first * _TICK) % _ALL)
        tick = np.arange(ticks, dtype=np.uint64)[:, None] * np.uint64(_TICK)
        x = begin + tick + np.arange(self.rows, dtype=np.uint64) * np.uint64(_PLACE)
        for shift, factor in _MIX:
            x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
        x ^= x >> np.uint64(31)
        return torch.from_numpy(x.view(np.int32).reshape(ticks, self.rows, 2))

    def draw(self, first: int, ticks: int) -> Tensor:
        """The numbers of so many ticks ``(ticks, chains, size)``, by torch."""
        numbers = normals if self.kind == "normal" else uniforms
        label, keys = self._labels[: self._length], self.keys(first, ticks).view(-1, 2)
        if len(keys) * len(label) <= _PIECE:
            rows = numbers(label, keys, self.dtype)
        else:  # new memory for each operation on all of them would take many times as long
            rows = torch.empty(len(keys), len(label), dtype=self.dtype)
            some = max(1, _PIECE // len(label))
            for key, part in zip(keys.split(some), rows.split(some), strict=True):
                for place, out in zip(label.split(_PIECE), part.split(_PIECE, 1), strict=True):
                    out.copy_(numbers(place, key, self.dtype))
        return rows.view(ticks, -1, self.size)[:, : self.chains]

    def native(self) -> bool:
        """Whether C++ gives them, to rounding."""
        return self.dtype == torch.float32 and _library() is not None

    def before_tick(
        self, out: Tensor, tick: Tensor, which: Tensor | None = None, counter: Tensor | None = None
    ) -> partial[Any]:
        """The call that draws the numbers of one tick, where there is C++ for it.

        Args:
            out: where they go, ``(chains, size)``, contiguous, of as many chains as there are rows.
            tick: its number, read when the call is made.
            which: int64 numbers of these chains, read then, too; all in order when None.
            counter: numbers of chains with another value than 0 there are left as they are; int32 or int64.
        """
        width = 0 if counter is None else counter.element_size()
        uniform, some = self.kind == "uniform", which is not None
        form = torch.tensor([some, len(out), self.size, self.each, width, _signed(self.start), uniform])
        given = [form if tensor is None else tensor for tensor in (which, counter)]
        return partial(Call(_library().draw_tick), self._labels, form, tick, *given, out)


def compile_ahead() -> None:
    """Begin to compile what ``Hashed.native`` asks for."""
    if not _library.cache_info().currsize:
        load_ahead(_SOURCE)


def _signed(x: int) -> int:
    return x - _ALL if x >= _ALL // 2 else x


@cache
def _library() -> Any:
    try:
        library = load(_SOURCE)
    except CompileError as error:
        logger.info("random numbers are drawn by torch: %s", error)
        return None
    library.draw_tick.argtypes, library.draw_tick.restype = [ctypes.c_void_p], ctypes.c_int
    return library


# The logarithm is that of fast_math.py; erfinv is of Giles 2010, "Approximating the erfinv function": within 6 units in the
# last place of torch's.
_SOURCE = """
#include <stdint.h>
#pragma GCC optimize("fp-contract=fast")

typedef float F __attribute__((vector_size(32)));
typedef int32_t I __attribute__((vector_size(32)));
typedef uint32_t U __attribute__((vector_size(32)));
constexpr int LANES = 8, MANY_VECTORS = 4;

static inline U scattered(U x) {
    x = (x ^ (x >> 16)) * 2146121005u;
    x = (x ^ (x >> 15)) * 2221713035u;
    return x ^ (x >> 16);
}

static inline U word(const int32_t* label, U key, U other) {
    U l;
    __builtin_memcpy(&l, label, sizeof l);
    return scattered(l + key) + other;
}

static float far(float x, float w) {  // erfinv(x) where w = -log(1 - x^2) >= 5
    const float c[] = {-0.000200214257f, 0.000100950558f, 0.00134934322f, -0.00367342844f, 0.00573950773f,
                       -0.0076224613f, 0.00943887047f, 1.00167406f, 2.83297682f};
    float t = __builtin_sqrtf(w) - 3.0f, p = 0;
    for (float next : c) p = p * t + next;
    return p * x;
}

// N vectors at once: one alone would wait for each of its operations
template <int N> static void normal(const int32_t* label, U key, U other, float* out) {
    F x[N], w[N], f[N], n[N], y[N];
    for (int j = 0; j < N; j++) {
        x[j] = __builtin_convertvector((I)word(label + j * LANES, key, other) >> 8, F) * 0x1p-23f + 0x1p-24f;
        F q = (1.0f - x[j]) * (1.0f + x[j]);
        I bits = (I)q + (0x3f800000 - 0x3f3504f3);
        n[j] = __builtin_convertvector((bits >> 23) - 127, F);  // q = 2^n (1 + f)
        f[j] = (F)((bits & 0x7fffff) + 0x3f3504f3) - 1.0f;
    }
    for (int j = 0; j < N; j++) {
        F a = f[j], a2 = a * a, a4 = a2 * a2;
        F low = (-2.4999993993e-1f * a + 3.3333331174e-1f) + (-1.6668057665e-1f * a + 2.0000714765e-1f) * a2;
        F high = (-1.2420140846e-1f * a + 1.4249322787e-1f) + (-1.1514610310e-1f * a + 1.1676998740e-1f) * a2;
        F p = low + (high + 7.0376836292e-2f * a4) * a4;
        w[j] = n[j] * -0.693359375f - (a + (a2 * -0.5f + (p * a * a2 + n[j] * -2.12194440e-4f)));
    }
    I tail = w[0] >= 5.0f;
    for (int j = 0; j < N; j++) {
        F c = w[j] - 2.5f, c2 = c * c, c4 = c2 * c2;
        F low = (0.246640727f * c + 1.50140941f) + (-0.00125372503f * c + -0.00417768164f) * c2;
        F high = (-4.39150654e-06f * c + 0.00021858087f) + (3.43273939e-07f * c + -3.5233877e-06f) * c2;
        y[j] = (low + (high + 2.81022636e-08f * c4) * c4) * x[j];
        tail |= w[j] >= 5.0f;
    }
    int64_t some[4];
    __builtin_memcpy(some, &tail, sizeof some);
    if (__builtin_expect((some[0] | some[1] | some[2] | some[3]) != 0, 0))
        for (int j = 0; j < N; j++)
            for (int k = 0; k < LANES; k++)
                if (w[j][k] >= 5.0f) y[j][k] = far(x[j][k], w[j][k]);
    for (int j = 0; j < N; j++) {
        F z = y[j] * 1.41421356f;
        __builtin_memcpy(out + j * LANES, &z, sizeof z);
    }
}

template <int N> static void uniform(const int32_t* label, U key, U other, float* out) {
    for (int j = 0; j < N; j++) {
        F u = __builtin_convertvector((I)(word(label + j * LANES, key, other) >> 8), F) * 0x1p-24f;
        __builtin_memcpy(out + j * LANES, &u, sizeof u);
    }
}

using Draw = void (*)(const int32_t*, U, U, float*);

template <Draw MANY, Draw FEW> static void row(const int32_t* label, uint64_t x, float* out, int64_t size) {
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    x ^= x >> 31;
    const U zero = {}, key = zero + uint32_t(x), other = zero + uint32_t(x >> 32);
    int64_t i = 0;
    for (; i + MANY_VECTORS * LANES <= size; i += MANY_VECTORS * LANES) MANY(label + i, key, other, out + i);
    for (; i + LANES <= size; i += LANES) FEW(label + i, key, other, out + i);
    if (i < size) {
        float rest[LANES];
        FEW(label + i, key, other, rest);
        __builtin_memcpy(out + i, rest, (size - i) * sizeof(float));
    }
}

// See Hashed.before_tick: labels, form, number of the tick, numbers of the chains, counter, out (chains, size).
extern "C" int draw_tick(void** p) {
    const int32_t* label = static_cast<int32_t*>(p[0]);
    const int64_t* form = static_cast<int64_t*>(p[1]);
    const int64_t chains = form[1], size = form[2], each = form[3], width = form[4];
    const uint64_t start = uint64_t(form[5]) + *static_cast<uint64_t*>(p[2]) * 0x9E3779B97F4A7C15u;
    const int64_t* which = form[0] ? static_cast<int64_t*>(p[3]) : nullptr;
    const char* counter = static_cast<char*>(p[4]);
    float* out = static_cast<float*>(p[5]);
    auto numbers = form[6] ? row<uniform<MANY_VECTORS>, uniform<1>> : row<normal<MANY_VECTORS>, normal<1>>;
    for (int64_t i = 0, next; i < chains; i = next) {
        const int64_t chain = which ? which[i] : i, place = chain % each;
        // chains one after another that share a row are drawn together
        for (next = i + 1; !width && next < chains && next - i < each - place; next++)
            if (which && which[next] != chain + next - i) break;
        if (width) {
            int64_t under_way = 0;
            __builtin_memcpy(&under_way, counter + i * width, width);
            if (under_way) continue;
        }
        const uint64_t key = start + uint64_t(chain / each) * 0xD1B54A32D192ED03u;
        numbers(label + place * size, key, out + i * size, (next - i) * size);
    }
    return 0;
}
"""
