"""Elementary functions for compiled ticks: in line, and about twice as fast as the library calls that Inductor makes."""

from __future__ import annotations

import re

_CALL = re.compile(r"\b(tmp\d+)\.(exp|log|log1p)\(\)")


def in_line(kernel: str) -> str:
    """The C++ of a kernel with ``FAST_MATH``'s functions for Inductor's."""
    return _CALL.sub(r"fast::\2(\1)", kernel)


# Cody and Waite's reduction of arguments with the polynomials of Cephes (S. Moshier, expf.c and logf.c): within 1.3 units
# in the last place for exp and 0.9 for log and log1p, whose own polynomial (weighted least maximum, relative 3e-8) on [0, 1]
# is within 1.7. What they don't reach (overflow, infinities, NaN, subnormal numbers, other types than float) goes to the
# library, number by number: which other ones a vector has changes no bit, so that chains don't see one another.
FAST_MATH = """
#if INDUCTOR_USE_VECTOR_TYPES()
namespace fast {
using F = at::vec::Vectorized<float>;
using I = at::vec::Vectorized<int32_t>;

template <typename T> inline T exp(const T& x) { return x.exp(); }
template <typename T> inline T log(const T& x) { return x.log(); }
template <typename T> inline T log1p(const T& x) { return x.log1p(); }

inline bool all(const at::vec::VecMask<float, 1>& mask) { return mask.all_masked(); }

template <size_t N> inline F estrin(const std::array<F, N>& c, const F& x) {  // lowest first; a short chain of operations
    if constexpr (N == 1) return c[0];
    std::array<F, (N + 1) / 2> pairs;
    for (size_t i = 0; i < N / 2; i++) pairs[i] = at::vec::fmadd(c[2 * i + 1], x, c[2 * i]);
    if constexpr (N % 2) pairs[N / 2] = c[N - 1];
    return estrin(pairs, x * x);
}

template <typename... C> inline F polynomial(const F& x, C... c) {
    return estrin(std::array<F, sizeof...(C)>{F(static_cast<float>(c))...}, x);
}

inline F exp(const F& x) {
    const auto near = x.abs() < F(87.0f);
    const F n = (x * F(1.44269504f)).round();  // x = n log 2 + r
    const F r = at::vec::fmadd(n, F(2.12194440e-4f), at::vec::fmadd(n, F(-0.693359375f), x));
    const F p = polynomial(r, 5.0000001201e-1f, 1.6666665459e-1f, 4.1665795894e-2f, 8.3334519073e-3f,
                           1.3981999507e-3f, 1.9875691500e-4f);
    const F one = at::vec::fmadd(p, r * r, r + F(1.0f));
    const F y = at::vec::cast<float>(at::vec::cast<int32_t>(one) + (at::vec::convert<int32_t>(n) << I(23)));
    if (C10_UNLIKELY(!all(near))) return F::blendv(x.exp(), y, near);
    return y;
}

inline F log_of(const F& x, const F& more) {  // log(x) + more, where more is small
    const I bits = at::vec::cast<int32_t>(x) + I(0x3f800000 - 0x3f3504f3);
    const F n = at::vec::convert<float>((bits >> I(23)) - I(127));  // x = 2^n (1 + f)
    const F f = at::vec::cast<float>((bits & I(0x7fffff)) + I(0x3f3504f3)) - F(1.0f);
    const F p = polynomial(f, 3.3333331174e-1f, -2.4999993993e-1f, 2.0000714765e-1f, -1.6668057665e-1f,
                           1.4249322787e-1f, -1.2420140846e-1f, 1.1676998740e-1f, -1.1514610310e-1f, 7.0376836292e-2f);
    const F ff = f * f;
    const F small = at::vec::fmadd(p * f, ff, at::vec::fmadd(n, F(-2.12194440e-4f), more));
    return at::vec::fmadd(n, F(0.693359375f), f + at::vec::fmadd(ff, F(-0.5f), small));
}

inline F log(const F& x) {
    const auto normal = (x >= F(1.17549435e-38f)) & (x < F(INFINITY));
    const F y = log_of(x, F(0.0f));
    if (C10_UNLIKELY(!all(normal))) return F::blendv(x.log(), y, normal);
    return y;
}

__attribute__((noinline)) inline F log1p_anywhere(const F& x) {
    const auto finite = (x > F(-1.0f)) & (x < F(INFINITY));
    const F u = x + F(1.0f), most = u - F(1.0f);
    const F lost = (F(1.0f) - (u - most)) + (x - most);  // u + lost = 1 + x exactly
    const F y = log_of(u, lost / u);
    if (C10_UNLIKELY(!all(finite))) return F::blendv(x.log1p(), y, finite);
    return y;
}

__attribute__((always_inline)) inline F log1p(const F& x) {
    const auto between = (x - F(0.5f)).abs() <= F(0.5f);
    const F p = polynomial(x, -4.999964833e-1f, 3.332132399e-1f, -2.485716343e-1f, 1.915365309e-1f,
                           -1.375379860e-1f, 7.920449227e-2f, -3.006576374e-2f, 5.364816636e-3f);
    const F y = at::vec::fmadd(p, x * x, x);  // as in softplus: no digits are lost in 1 + x
    if (C10_UNLIKELY(!all(between))) return F::blendv(log1p_anywhere(x), y, between);
    return y;
}
}
#endif
"""
