"""The few of torch's vector types and functions that most ticks use, in C++ that a compiler reads in no time.

What Inductor writes begins with headers that cost half of all compiling: every number type, every processor. Kernels
that need no more than is here, on a processor with AVX2, are compiled with this in their place. Vectors have eight numbers
on processors with AVX-512, too: what is left over of a row of 10 or 25 numbers is computed one by one.
"""

from __future__ import annotations

import re
from functools import cache

import torch

_WORD = re.compile(r"[A-Za-z_]\w*")
_OF_KERNELS = re.compile(r"(tmp|x|in_ptr|out_ptr|in_out_ptr|ks)\d+\w*|kernel\d+_?|tmp_acc\d+\w*|tmpbuf\w*|tid|p|y")
_MESSAGE = re.compile(r'"[^"\n]*"')
_COMMENT = re.compile(r"//[^\n]*")
_NUMBER = re.compile(r"\b0?[\d.]+(e[+-]?\d+)?[uUlLfF]*\b")
_OF_CPP = """
auto bool break case catch const continue decltype else extern false float for if inline int int32_t int64_t kernel
long namespace return size_t static static_cast template true try void std at vec c10 C pragma GCC ivdep omp parallel
num_threads single nowait omp_get_thread_num fast nullptr unroll inductor_cpu_integer_div_error max_shift
""".split()


def eight_lanes() -> bool:
    """Whether this processor has vectors of eight numbers of 32 bits."""
    return torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def suits(kernels: str) -> bool:
    """Whether ``VECTORS`` has all that these kernels call, on this processor."""
    if not eight_lanes():
        return False
    text = _NUMBER.sub(" ", _COMMENT.sub(" ", _MESSAGE.sub(" ", kernels)))
    return all(word in _known() or _OF_KERNELS.fullmatch(word) for word in set(_WORD.findall(text)))


def in_small(kernels: str) -> str:
    """The same kernels, for ``VECTORS``."""
    return kernels.replace("std::", "small::")


@cache
def _known() -> frozenset[str]:
    return frozenset({*_WORD.findall(VECTORS), *_OF_CPP})


# A vector has eight numbers of 4 or 8 bytes, a mask eight times all bits or none. Minima and maxima are NaN where one of
# two numbers is. Torch has the library's functions (N. Shibata and F. Petrogalli, SLEEF, 2020) in itself.
VECTORS = r"""
#include <omp.h>
#include <stddef.h>
#include <stdint.h>
#define INDUCTOR_USE_VECTOR_TYPES() 1
#define CHAR_BIT 8
#define INFINITY __builtin_inff()
#define C10_LIKELY(...) (__builtin_expect(static_cast<bool>(__VA_ARGS__), 1))
#define C10_UNLIKELY(...) (__builtin_expect(static_cast<bool>(__VA_ARGS__), 0))
#define TORCH_CHECK(condition, message) do { if (C10_UNLIKELY(!(condition))) throw 1; } while (0)
#define __at_align__ alignas(32)

namespace small {
template <typename T> struct numeric_limits;
template <> struct numeric_limits<float> {
    static constexpr float infinity() { return __builtin_inff(); }
    static constexpr float quiet_NaN() { return __builtin_nanf(""); }
};
template <typename T, size_t N> struct array {
    T values[N];
    T* data() { return values; }
    T& operator[](size_t i) { return values[i]; }
    const T& operator[](size_t i) const { return values[i]; }
};
template <typename T> struct atomic { atomic(T) {} };
template <typename T> struct Signs;
template <> struct Signs<int32_t> { using Yes = int32_t; using No = uint32_t; };
template <> struct Signs<int64_t> { using Yes = int64_t; using No = uint64_t; };
template <typename T> using make_signed_t = typename Signs<T>::Yes;
template <typename T> using make_unsigned_t = typename Signs<T>::No;
inline bool isnan(float x) { return x != x; }
inline float exp(float x) { return __builtin_expf(x); }
inline float expm1(float x) { return __builtin_expm1f(x); }
inline float log(float x) { return __builtin_logf(x); }
inline float log1p(float x) { return __builtin_log1pf(x); }
inline float tanh(float x) { return __builtin_tanhf(x); }
inline float sin(float x) { return __builtin_sinf(x); }
inline float cos(float x) { return __builtin_cosf(x); }
inline float erf(float x) { return __builtin_erff(x); }
template <typename T> inline T max(T a, T b) { return a < b ? b : a; }
inline float sqrt(float x) { return __builtin_sqrtf(x); }
inline float floor(float x) { return __builtin_floorf(x); }
inline float ceil(float x) { return __builtin_ceilf(x); }
inline float nearbyint(float x) { return __builtin_nearbyintf(x); }
inline float abs(float x) { return __builtin_fabsf(x); }
inline int64_t abs(int64_t x) { return x < 0 ? -x : x; }
inline float pow(float x, float y) { return __builtin_powf(x, y); }
}

struct Ignored { template <typename T> void operator=(T) const {} };
static constexpr Ignored inductor_cpu_integer_div_error_flag{};  // these kernels divide no integers by variables
template <typename T> inline void inductor_cpu_throw_if_integer_div_error(T&) {}
template <typename T> inline T min_propagate_nan(T a, T b) { return a != a ? a : b < a ? b : b != b ? b : a; }
template <typename T> inline T max_propagate_nan(T a, T b) { return a != a ? a : b > a ? b : b != b ? b : a; }

namespace c10 {
template <typename D, typename S> inline D convert(S x) { return static_cast<D>(x); }
inline int64_t div_floor_integer(int64_t a, int64_t b) {
    const int64_t q = a / b;
    return q * b != a && (a < 0) != (b < 0) ? q - 1 : q;
}
}

namespace at { namespace vec {
typedef float F8 __attribute__((vector_size(32)));
typedef int32_t I8 __attribute__((vector_size(32)));
typedef int64_t L8 __attribute__((vector_size(64)));
typedef int8_t B8 __attribute__((vector_size(8)));
static F8 (*Sleef_expf8_u10)(F8), (*Sleef_expm1f8_u10)(F8), (*Sleef_logf8_u10)(F8), (*Sleef_log1pf8_u10)(F8);
static F8 (*Sleef_tanhf8_u10)(F8), (*Sleef_sinf8_u35)(F8), (*Sleef_cosf8_u35)(F8), (*Sleef_powf8_u10)(F8, F8);
static F8 (*Sleef_erff8_u10)(F8);

template <typename T> struct Of;
template <> struct Of<float> { using V = F8; using M = I8; };
template <> struct Of<int32_t> { using V = I8; using M = I8; };
template <> struct Of<int64_t> { using V = L8; using M = L8; };
template <typename T> struct Numbers;
inline F8 magnitude(F8 v) { return (F8)((I8)v & 0x7fffffff); }
inline I8 magnitude(I8 v) { return v < 0 ? -v : v; }
inline L8 magnitude(L8 v) { return v < 0 ? -v : v; }

struct Mask {
    I8 bits;
    Mask() : bits{} {}
    Mask(I8 bits) : bits(bits) {}
    Mask(L8 bits) : bits(__builtin_convertvector(bits, I8)) {}
    template <typename U> static Mask from(U b) { return I8{} - int32_t(b != 0); }
    static Mask from(const bool* p, int64_t count = 8) {
        B8 b{};
        if (count == 8) __builtin_memcpy(&b, p, 8);
        else for (int64_t i = 0; i < count; i++) b[i] = p[i];
        return __builtin_convertvector(b, I8) != 0;
    }
    static Mask from(bool* p, int64_t count = 8) { return from(static_cast<const bool*>(p), count); }
    template <typename U, int L> static Mask from(const Numbers<U>& x) { return x.v != typename Of<U>::V{}; }
    template <typename U, int L> Mask cast() const { return *this; }
    template <typename U, int L> Numbers<U> to() const {
        return __builtin_convertvector(bits & 1, typename Of<U>::V);
    }
    void store(bool* p, int64_t count = 8) const {
        const B8 b = __builtin_convertvector(bits & 1, B8);
        if (count == 8) __builtin_memcpy(p, &b, 8);
        else for (int64_t i = 0; i < count; i++) p[i] = b[i];
    }
    template <typename U, int L> Numbers<U> loadu(const U* p) const;
    static Mask blendv(Mask a, Mask b, Mask where) { return (where.bits & b.bits) | (~where.bits & a.bits); }
    int lanes() const { return __builtin_ia32_movmskps256((F8)bits); }
    bool all_zero() const { return lanes() == 0; }
    bool all_masked() const { return lanes() == 255; }
    friend Mask operator&(Mask a, Mask b) { return a.bits & b.bits; }
    friend Mask operator|(Mask a, Mask b) { return a.bits | b.bits; }
    friend Mask operator^(Mask a, Mask b) { return a.bits ^ b.bits; }
    friend Mask operator*(Mask a, Mask b) { return a.bits & b.bits; }
    friend Mask operator~(Mask a) { return ~a.bits; }
    friend Mask operator==(Mask a, Mask b) { return ~(a.bits ^ b.bits); }
    friend Mask operator!=(Mask a, Mask b) { return a.bits ^ b.bits; }
    friend Mask operator>(Mask a, Mask b) { return a.bits & ~b.bits; }
    friend Mask operator<(Mask a, Mask b) { return ~a.bits & b.bits; }
    friend Mask operator>=(Mask a, Mask b) { return a.bits | ~b.bits; }
    friend Mask operator<=(Mask a, Mask b) { return ~a.bits | b.bits; }
};

template <typename T> struct Numbers {
    using V = typename Of<T>::V;
    using M = typename Of<T>::M;
    V v;
    Numbers() : v{} {}
    Numbers(V v) : v(v) {}
    Numbers(T x) : v(x - V{}) {}
    static Numbers loadu(const void* p, int64_t count = 8) {
        V v{};
        if (count == 8) __builtin_memcpy(&v, p, sizeof v);
        else for (int64_t i = 0; i < count; i++) v[i] = static_cast<const T*>(p)[i];
        return v;
    }
    void store(void* p, int64_t count = 8) const {
        if (count == 8) __builtin_memcpy(p, &v, sizeof v);
        else for (int64_t i = 0; i < count; i++) static_cast<T*>(p)[i] = v[i];
    }
    static Numbers arange(T base, T step) { return base + step * V{0, 1, 2, 3, 4, 5, 6, 7}; }
    static Numbers blendv(Numbers a, Numbers b, Mask where) {
        return __builtin_convertvector(where.bits, M) ? b.v : a.v;
    }
    Numbers abs() const { return magnitude(v); }
    Numbers neg() const { return -v; }
    Mask isnan() const { return v != v; }
    Numbers round() const { return __builtin_ia32_roundps256(v, 8); }
    Numbers floor() const { return __builtin_ia32_roundps256(v, 9); }
    Numbers ceil() const { return __builtin_ia32_roundps256(v, 10); }
    Numbers sqrt() const { return __builtin_ia32_sqrtps256(v); }
    Numbers reciprocal() const { return 1.0f / v; }
    Numbers rsqrt() const { return 1.0f / __builtin_ia32_sqrtps256(v); }
    Numbers exp() const { return Sleef_expf8_u10(v); }
    Numbers expm1() const { return Sleef_expm1f8_u10(v); }
    Numbers log() const { return Sleef_logf8_u10(v); }
    Numbers log1p() const { return Sleef_log1pf8_u10(v); }
    Numbers tanh() const { return Sleef_tanhf8_u10(v); }
    Numbers sin() const { return Sleef_sinf8_u35(v); }
    Numbers cos() const { return Sleef_cosf8_u35(v); }
    Numbers erf() const { return Sleef_erff8_u10(v); }
    Numbers pow(Numbers y) const { return Sleef_powf8_u10(v, y.v); }
    Numbers operator-() const { return -v; }
    friend Numbers operator+(Numbers a, Numbers b) { return a.v + b.v; }
    friend Numbers operator-(Numbers a, Numbers b) { return a.v - b.v; }
    friend Numbers operator*(Numbers a, Numbers b) { return a.v * b.v; }
    friend Numbers operator/(Numbers a, Numbers b) { return a.v / b.v; }
    friend Numbers operator&(Numbers a, Numbers b) { return a.v & b.v; }
    friend Numbers operator|(Numbers a, Numbers b) { return a.v | b.v; }
    friend Numbers operator^(Numbers a, Numbers b) { return a.v ^ b.v; }
    friend Numbers operator<<(Numbers a, Numbers b) { return a.v << b.v; }
    friend Numbers operator>>(Numbers a, Numbers b) { return a.v >> b.v; }
    friend Mask operator==(Numbers a, Numbers b) { return a.v == b.v; }
    friend Mask operator!=(Numbers a, Numbers b) { return a.v != b.v; }
    friend Mask operator<(Numbers a, Numbers b) { return a.v < b.v; }
    friend Mask operator<=(Numbers a, Numbers b) { return a.v <= b.v; }
    friend Mask operator>(Numbers a, Numbers b) { return a.v > b.v; }
    friend Mask operator>=(Numbers a, Numbers b) { return a.v >= b.v; }
};
template <typename U, int L> Numbers<U> Mask::loadu(const U* p) const {  // 0 elsewhere, where there may be no memory
    if (all_masked()) return Numbers<U>::loadu(p);
    Numbers<U> x;
    for (int k = 0; k < 8; k++) if (bits[k]) x.v[k] = p[k];
    return x;
}

template <typename T> using Vectorized = Numbers<T>;
template <typename T, int N> using VectorizedN = Numbers<T>;
template <typename T, int N> using VecMask = Mask;

template <typename T> inline Numbers<T> minimum(Numbers<T> a, Numbers<T> b) {
    return (a.v < b.v) | (a.v != a.v) ? a.v : b.v;
}
template <typename T> inline Numbers<T> maximum(Numbers<T> a, Numbers<T> b) {
    return (a.v > b.v) | (a.v != a.v) ? a.v : b.v;
}
template <typename T> inline Numbers<T> clamp_min(Numbers<T> x, Numbers<T> least) { return maximum(x, least); }
template <typename T> inline Numbers<T> clamp_max(Numbers<T> x, Numbers<T> most) { return minimum(x, most); }
inline Numbers<float> fmadd(Numbers<float> a, Numbers<float> b, Numbers<float> c) {
    return __builtin_ia32_vfmaddps256(a.v, b.v, c.v);
}
template <typename D, typename S> inline Numbers<D> cast(Numbers<S> x) { return (typename Of<D>::V)x.v; }
template <typename D, typename S> inline Numbers<D> convert(Numbers<S> x) {
    return __builtin_convertvector(x.v, typename Of<D>::V);
}
template <typename D, int, typename S, int> inline Numbers<D> convert(Numbers<S> x) { return convert<D>(x); }
template <typename T, int, typename Of2> inline T vec_reduce_all(const Of2& combine, Numbers<T> x) {
    Numbers<T> y = __builtin_shufflevector(x.v, x.v, 4, 5, 6, 7, 0, 1, 2, 3);
    x = combine(x, y);
    y = __builtin_shufflevector(x.v, x.v, 2, 3, 0, 1, 6, 7, 4, 5);
    x = combine(x, y);
    y = __builtin_shufflevector(x.v, x.v, 1, 0, 3, 2, 5, 4, 7, 6);
    return combine(x, y).v[0];
}
} }
"""

# Given as they are found in torch: to link with it takes a third of the time that all of a unit takes to compile.
FUNCTIONS = re.findall(r"\(\*(Sleef_\w+)\)", VECTORS)
_GIVEN = "".join(f"s::{name} = reinterpret_cast<decltype(s::{name})>(f[{i}]); " for i, name in enumerate(FUNCTIONS))
VECTORS += f'namespace s = at::vec;\nextern "C" void give_functions(void** f) {{ {_GIVEN}}}\n'
