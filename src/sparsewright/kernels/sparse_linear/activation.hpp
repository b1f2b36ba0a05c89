// Activations on outputs that are still in the first-level cache.
//
// GELU: x Phi(x), with erf by Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26 (absolute error at most
// 1.5e-7); its tanh form as Hendrycks and Gimpel, arXiv:1606.08415. NaN stays NaN.
#pragma once

#include <cstdint>

#include "simd.hpp"

namespace sparsewright {

enum class Activation : int { none = 0, relu = 1, gelu = 2, gelu_tanh = 3 };

}  // namespace sparsewright

namespace {

using sparsewright::Activation;

typedef std::int32_t WideInts __attribute__((vector_size(sizeof(Wide))));

inline Wide magnitude(Wide v) { return (Wide)((WideInts)v & 0x7fffffff); }

// e^x for -87 <= x <= 88: 2^n e^r with |r| <= ln 2 / 2, and the series of e^r as far as a float sees it.
inline Wide exponential(Wide x) {
    // Added to this, a float has its nearest integer in the low bits.
    const float integers = 12582912.0f;
    const Wide shifted = x * 1.44269504f + integers, whole = shifted - integers;
    const Wide r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
    Wide series = splat<Wide>(1.0f / 720);
    series = series * r + 1.0f / 120;
    series = series * r + 1.0f / 24;
    series = series * r + 1.0f / 6;
    series = series * r + 0.5f;
    series = series * r + 1.0f;
    series = series * r + 1.0f;
    return (Wide)((WideInts)series + ((WideInts)shifted << 23));
}

inline Wide between(float low, Wide v, float high) {
    v = v < low ? splat<Wide>(low) : v;
    return v > high ? splat<Wide>(high) : v;
}

template <Activation kind> inline Wide activated(Wide x) {
    if constexpr (kind == Activation::relu) {
        return x < 0.0f ? Wide{} : x;
    } else if constexpr (kind == Activation::gelu) {
        const Wide z = magnitude(x) * 0.707106781f, t = 1.0f / (z * 0.3275911f + 1.0f);
        Wide tail = splat<Wide>(1.061405429f);
        tail = tail * t - 1.453152027f;
        tail = tail * t + 1.421413741f;
        tail = tail * t - 0.284496736f;
        tail = tail * t + 0.254829592f;
        // Half of what erf leaves of 1: Phi(-|x|).
        const Wide below = tail * t * exponential(between(-87.0f, -z * z, 0.0f)) * 0.5f;
        return x * (x < 0.0f ? below : 1.0f - below);
    } else {
        const Wide u = x * (x * x * 0.044715f + 1.0f) * 1.59576912f;  // twice the argument of tanh
        return x / (exponential(between(-87.0f, -u, 88.0f)) + 1.0f);
    }
}

// One copy of it: compilers may fuse products and sums of one copy otherwise than those of another.
template <Activation kind>
__attribute__((noinline, noclone)) void activate_rows(float *y, std::int64_t stride, std::int64_t rows,
                                                      std::int64_t columns) {
    for (std::int64_t r = 0; r < rows; ++r, y += stride) {
        std::int64_t c = 0;
        for (; c + lanes <= columns; c += lanes) store(y + c, activated<kind>(load<Wide>(y + c)));
        if (c == columns) continue;
        // The rest as a whole vector, so that its results do not depend on where it stands.
        float last[lanes] = {};
        for (std::int64_t i = c; i < columns; ++i) last[i - c] = y[i];
        store(last, activated<kind>(load<Wide>(last)));
        for (std::int64_t i = c; i < columns; ++i) y[i] = last[i - c];
    }
}

// Activates a rectangle of y in place.
inline void activate(Activation kind, float *y, std::int64_t stride, std::int64_t rows, std::int64_t columns) {
    switch (kind) {
        case Activation::none: return;
        case Activation::relu: return activate_rows<Activation::relu>(y, stride, rows, columns);
        case Activation::gelu: return activate_rows<Activation::gelu>(y, stride, rows, columns);
        case Activation::gelu_tanh: return activate_rows<Activation::gelu_tanh>(y, stride, rows, columns);
    }
}

}  // namespace
