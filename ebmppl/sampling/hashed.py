"""Many normal numbers from two words each chain's tick: by operations of torch, or by C++ where a run is compiled."""

from __future__ import annotations

import ctypes
import logging
from concurrent.futures import Executor
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ebmppl.kernels.words import labels, normals
from ebmppl.sampling.compiler import CompileError, load

logger = logging.getLogger(__name__)
LANES = 8


class Hashed:
    """Standard normal numbers by places and keys, the same whatever is asked for before: see ``words.normals``.

    Args:
        size: numbers of a row.
        dtype: of the numbers.
    """

    def __init__(self, size: int, dtype: torch.dtype) -> None:
        self.size, self.dtype = size, dtype
        self._labels = labels(-(-size // LANES) * LANES)

    def draw(self, keys: Tensor) -> Tensor:
        """Numbers ``(rows, size)`` of keys ``(rows, 2)``, eagerly."""
        return normals(self._labels[: self.size], keys, self.dtype)

    def fill(self, keys: Tensor, out: Tensor, pool: Executor | None = None, threads: int = 1) -> None:
        """The same, to rounding, for keys ``(rows, 2)`` in ``out``, contiguous ``(rows, size)``, by C++ if there is a compiler.

        Args:
            keys: of the rows.
            out: where they go.
            pool: of threads that share the rows.
            threads: how many do.
        """
        library = _library() if self.dtype == torch.float32 else None
        if library is None:
            out.copy_(self.draw(keys))
            return

        def share(part: tuple[Tensor, Tensor]) -> None:
            rows, place = part
            library.normals(_at(self._labels), _at(rows), _at(place), len(rows), self.size)

        keys = keys.contiguous()
        if pool is None or threads == 1:
            share((keys, out))
            return
        each = -(-len(keys) // threads)
        list(pool.map(share, zip(keys.split(each), out.split(each), strict=True)))


def _at(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


@cache
def _library() -> Any:
    try:
        library = load(_SOURCE)
    except CompileError as error:
        logger.info("normal numbers are drawn by torch: %s", error)
        return None
    library.normals.argtypes = (*[ctypes.c_void_p] * 3, *[ctypes.c_int64] * 2)
    library.normals.restype = None
    return library


# The logarithm is that of fast_math.py; erfinv is of Giles 2010, "Approximating the erfinv function": within 6 units in the
# last place of torch's.
_SOURCE = """
#include <cmath>
#include <cstdint>
#include <cstring>
#pragma GCC optimize("fp-contract=fast")

typedef float F __attribute__((vector_size(32)));
typedef int32_t I __attribute__((vector_size(32)));
typedef uint32_t U __attribute__((vector_size(32)));
constexpr int LANES = 8;

static inline U scattered(U x) {
    x = (x ^ (x >> 16)) * 2146121005u;
    x = (x ^ (x >> 15)) * 2221713035u;
    return x ^ (x >> 16);
}

static float far(float x, float w) {  // erfinv(x) where w = -log(1 - x^2) >= 5
    const float c[] = {-0.000200214257f, 0.000100950558f, 0.00134934322f, -0.00367342844f, 0.00573950773f,
                       -0.0076224613f, 0.00943887047f, 1.00167406f, 2.83297682f};
    float t = std::sqrt(w) - 3.0f, p = 0;
    for (float next : c) p = p * t + next;
    return p * x;
}

// N vectors at once: one alone would wait for each of its operations
template <int N> static void draw(const int32_t* label, U key, U other, float* out) {
    F x[N], w[N], f[N], n[N], y[N];
    for (int j = 0; j < N; j++) {
        U l;
        std::memcpy(&l, label + j * LANES, sizeof l);
        x[j] = __builtin_convertvector((I)(scattered(l + key) + other) >> 8, F) * 0x1p-23f + 0x1p-24f;
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
    std::memcpy(some, &tail, sizeof some);
    if (__builtin_expect((some[0] | some[1] | some[2] | some[3]) != 0, 0))
        for (int j = 0; j < N; j++)
            for (int k = 0; k < LANES; k++)
                if (w[j][k] >= 5.0f) y[j][k] = far(x[j][k], w[j][k]);
    for (int j = 0; j < N; j++) {
        F z = y[j] * 1.41421356f;
        std::memcpy(out + j * LANES, &z, sizeof z);
    }
}

// out (rows, size) of labels (size rounded up to LANES) and keys (rows, 2)
extern "C" void normals(const int32_t* label, const int32_t* keys, float* out, int64_t rows, int64_t size) {
    constexpr int N = 4;
    for (int64_t row = 0; row < rows; row++, out += size) {
        const U zero = {}, key = zero + uint32_t(keys[2 * row]), other = zero + uint32_t(keys[2 * row + 1]);
        int64_t i = 0;
        for (; i + N * LANES <= size; i += N * LANES) draw<N>(label + i, key, other, out + i);
        for (; i + LANES <= size; i += LANES) draw<1>(label + i, key, other, out + i);
        if (i < size) {
            float rest[LANES];
            draw<1>(label + i, key, other, rest);
            std::memcpy(out + i, rest, (size - i) * sizeof(float));
        }
    }
}
"""
