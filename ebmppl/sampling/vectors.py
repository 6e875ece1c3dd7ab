"""The few of torch's vector types and functions that most ticks use, in C++ that a compiler reads in no time.

What Inductor writes begins with headers that cost half of all compiling: every number type, every processor. Kernels
that need no more than is here, on a processor with AVX2 or AVX-512, are compiled with this in their place.
"""

from __future__ import annotations

import re
from functools import cache

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


def suits(kernels: str) -> bool:
    """Whether ``vectors`` have all that these kernels call."""
    text = _NUMBER.sub(" ", _COMMENT.sub(" ", _MESSAGE.sub(" ", kernels)))
    return all(word in _known() or _OF_KERNELS.fullmatch(word) for word in set(_WORD.findall(text)))


def in_small(kernels: str) -> str:
    """The same kernels, for ``vectors``."""
    return kernels.replace("std::", "small::")


@cache
def _known() -> frozenset[str]:
    return frozenset({*_WORD.findall(vectors(8)[0]), *_OF_CPP})


# By numbers in a vector, what GCC calls operations that have no sign.
_OPERATIONS = {
    8: (
        "__builtin_ia32_vfmaddps256(a, b, c)",
        "__builtin_ia32_roundps256(v, how)",
        "__builtin_ia32_sqrtps256(v)",
        "__builtin_ia32_movmskps256((F)bits)",
    ),
    16: (
        "__builtin_ia32_vfmaddps512_mask(a, b, c, -1, 4)",
        "__builtin_ia32_rndscaleps_mask(v, how, v, -1, 4)",
        "__builtin_ia32_sqrtps512_mask(v, v, -1, 4)",
        "__builtin_ia32_cvtd2mask512(bits)",
    ),
}

# A vector has eight numbers of 4 or 8 bytes, or sixteen, a mask as many times all bits or none. Minima and maxima are NaN
# where one of two numbers is. Torch has the library's functions (N. Shibata and F. Petrogalli, SLEEF, 2020) in itself.
_VECTORS = r"""
#include <omp.h>
#include <stddef.h>
#include <stdint.h>
#define INDUCTOR_USE_VECTOR_TYPES() 1
#define CHAR_BIT 8
#define INFINITY __builtin_inff()
#define C10_LIKELY(...) (__builtin_expect(static_cast<bool>(__VA_ARGS__), 1))
#define C10_UNLIKELY(...) (__builtin_expect(static_cast<bool>(__VA_ARGS__), 0))
#define TORCH_CHECK(condition, message) do { if (C10_UNLIKELY(!(condition))) throw 1; } while (0)
#define __at_align__ alignas(4 * LANES)

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
typedef float F __attribute__((vector_size(4 * LANES)));
typedef int32_t I __attribute__((vector_size(4 * LANES)));
typedef int64_t L __attribute__((vector_size(8 * LANES)));
typedef int8_t B __attribute__((vector_size(LANES)));
static F (*exp_u10)(F), (*expm1_u10)(F), (*log_u10)(F), (*log1p_u10)(F), (*tanh_u10)(F), (*sin_u35)(F), (*cos_u35)(F);
static F (*pow_u10)(F, F), (*erf_u10)(F);

template <typename T> struct Of;
template <> struct Of<float> { using V = F; using M = I; };
template <> struct Of<int32_t> { using V = I; using M = I; };
template <> struct Of<int64_t> { using V = L; using M = L; };
template <typename T> struct Numbers;
inline F magnitude(F v) { return (F)((I)v & 0x7fffffff); }
inline I magnitude(I v) { return v < 0 ? -v : v; }
inline L magnitude(L v) { return v < 0 ? -v : v; }

struct Mask {
    I bits;
    Mask() : bits{} {}
    Mask(I bits) : bits(bits) {}
    Mask(L bits) : bits(__builtin_convertvector(bits, I)) {}
    template <typename U> static Mask from(U b) { return I{} - int32_t(b != 0); }
    static Mask from(const bool* p, int64_t count = LANES) {
        B b{};
        if (count == LANES) __builtin_memcpy(&b, p, LANES);
        else for (int64_t i = 0; i < count; i++) b[i] = p[i];
        return __builtin_convertvector(b, I) != 0;
    }
    static Mask from(bool* p, int64_t count = LANES) { return from(static_cast<const bool*>(p), count); }
    template <typename U, int L> static Mask from(const Numbers<U>& x) { return x.v != typename Of<U>::V{}; }
    template <typename U, int L> Mask cast() const { return *this; }
    template <typename U, int L> Numbers<U> to() const {
        return __builtin_convertvector(bits & 1, typename Of<U>::V);
    }
    void store(bool* p, int64_t count = LANES) const {
        const B b = __builtin_convertvector(bits & 1, B);
        if (count == LANES) __builtin_memcpy(p, &b, LANES);
        else for (int64_t i = 0; i < count; i++) p[i] = b[i];
    }
    template <typename U, int> Numbers<U> loadu(const U* p) const;
    static Mask blendv(Mask a, Mask b, Mask where) { return (where.bits & b.bits) | (~where.bits & a.bits); }
    int lanes() const { return SIGNS(bits); }
    bool all_zero() const { return lanes() == 0; }
    bool all_masked() const { return lanes() == (1 << LANES) - 1; }
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
    static Numbers loadu(const void* p, int64_t count = LANES) {
        V v{};
        if (count == LANES) __builtin_memcpy(&v, p, sizeof v);
        else for (int64_t i = 0; i < count; i++) v[i] = static_cast<const T*>(p)[i];
        return v;
    }
    void store(void* p, int64_t count = LANES) const {
        if (count == LANES) __builtin_memcpy(p, &v, sizeof v);
        else for (int64_t i = 0; i < count; i++) static_cast<T*>(p)[i] = v[i];
    }
    static Numbers arange(T base, T step) { return base + step * V{COUNTED}; }
    static Numbers blendv(Numbers a, Numbers b, Mask where) {
        return __builtin_convertvector(where.bits, M) ? b.v : a.v;
    }
    Numbers abs() const { return magnitude(v); }
    Numbers neg() const { return -v; }
    Mask isnan() const { return v != v; }
    Numbers round() const { return ROUNDED(v, 8); }
    Numbers floor() const { return ROUNDED(v, 9); }
    Numbers ceil() const { return ROUNDED(v, 10); }
    Numbers sqrt() const { return ROOTS(v); }
    Numbers reciprocal() const { return 1.0f / v; }
    Numbers rsqrt() const { return 1.0f / ROOTS(v); }
    Numbers exp() const { return exp_u10(v); }
    Numbers expm1() const { return expm1_u10(v); }
    Numbers log() const { return log_u10(v); }
    Numbers erf() const { return erf_u10(v); }
    Numbers log1p() const { return log1p_u10(v); }
    Numbers tanh() const { return tanh_u10(v); }
    Numbers sin() const { return sin_u35(v); }
    Numbers cos() const { return cos_u35(v); }
    Numbers pow(Numbers y) const { return pow_u10(v, y.v); }
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
template <typename U, int> Numbers<U> Mask::loadu(const U* p) const {  // 0 elsewhere, where there may be no memory
    if (all_masked()) return Numbers<U>::loadu(p);
    Numbers<U> x;
    for (int k = 0; k < LANES; k++) if (bits[k]) x.v[k] = p[k];
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
    return FMA(a.v, b.v, c.v);
}
template <typename D, typename S> inline Numbers<D> cast(Numbers<S> x) { return (typename Of<D>::V)x.v; }
template <typename D, typename S> inline Numbers<D> convert(Numbers<S> x) {
    return __builtin_convertvector(x.v, typename Of<D>::V);
}
template <typename D, int, typename S, int> inline Numbers<D> convert(Numbers<S> x) { return convert<D>(x); }
template <typename T, int, typename Of2> inline T vec_reduce_all(const Of2& combine, Numbers<T> x) {
    Numbers<T> y;
HALVED    return x.v[0];
}
} }
"""


@cache
def vectors(lanes: int) -> tuple[str, list[str]]:
    """C++ with so many numbers in a vector, and the functions that it is to be given: to link takes a third of compiling."""
    names = "FMA(a, b, c)", "ROUNDED(v, how)", "ROOTS(v)", "SIGNS(bits)"
    macros = [f"LANES {lanes}", f"COUNTED {', '.join(map(str, range(lanes)))}"]
    macros += [f"{name} {made}" for name, made in zip(names, _OPERATIONS[lanes], strict=True)]
    reduced, step = "", lanes // 2
    while step:
        order = ", ".join(str(lane ^ step) for lane in range(lanes))
        reduced += f"    y = __builtin_shufflevector(x.v, x.v, {order});\n    x = combine(x, y);\n"
        step //= 2
    given = re.findall(r"\(\*(\w+)_(u\d+)\)", _VECTORS)
    each = (f"s::{n}_{u} = reinterpret_cast<decltype(s::{n}_{u})>(f[{i}]); " for i, (n, u) in enumerate(given))
    end = f'namespace s = at::vec;\nextern "C" void give_functions(void** f) {{ {"".join(each)}}}\n'
    text = "".join(f"#define {macro}\n" for macro in macros) + _VECTORS.replace("HALVED", reduced) + end
    return text, [f"Sleef_{n}f{lanes}_{u}" for n, u in given]
