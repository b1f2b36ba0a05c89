// Activations on outputs that are still in the first-level cache.
//
// GELU: x Phi(x) with Phi(-|x|) = 2^P(|x|); P is a polynomial fitted to log2 Phi so that Phi is right to 1.1e-7 and P
// keeps falling beyond the fit. No division, which takes as long as all the rest. Its tanh form as Hendrycks and Gimpel,
// arXiv:1606.08415. NaN stays NaN.
//
// Every product that meets a sum is a `multiply_add`, so that all copies of this code give the same bits.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "simd.hpp"

namespace sparsewright {

enum class Activation : int { none = 0, relu = 1, gelu = 2, gelu_tanh = 3 };

}  // namespace sparsewright

namespace {

using sparsewright::Activation;

typedef std::int32_t WideInts __attribute__((vector_size(sizeof(Wide))));

inline Wide magnitude(Wide v) { return (Wide)((WideInts)v & 0x7fffffff); }

inline Wide multiply_add(Wide a, float b, float c) { return multiply_add(a, splat<Wide>(b), splat<Wide>(c)); }

// 2^x for -126 <= x <= 127: 2^n 2^r with |r| <= 1/2, and the series of 2^r as far as a float sees it.
inline Wide exponential2(Wide x) {
    // Added to this, a float has its nearest integer in the low bits.
    const float integers = 12582912.0f;
    const Wide shifted = x + integers, r = x - (shifted - integers);
    Wide series = splat<Wide>(1.54035304e-4f);
    for (const float next : {1.33335581e-3f, 9.61812911e-3f, 5.55041087e-2f, 0.240226507f, 0.693147181f, 1.0f})
        series = multiply_add(series, r, splat<Wide>(next));
    return (Wide)((WideInts)series + ((WideInts)shifted << 23));
}

inline Wide between(float low, Wide v, float high) {
    v = v < low ? splat<Wide>(low) : v;
    return v > high ? splat<Wide>(high) : v;
}

template <Activation kind> inline Wide activated(Wide x) {
    if constexpr (kind == Activation::none) {
        return x;
    } else if constexpr (kind == Activation::relu) {
        return x < 0.0f ? Wide{} : x;
    } else if constexpr (kind == Activation::gelu) {
        const Wide size = magnitude(x);
        Wide power = splat<Wide>(-2.83491204e-06f);
        for (const float next : {3.93776827e-05f, -0.000186180201f, -0.000136936476f, 0.00706342049f,
                                 -0.0524961799f, -0.45920819f, -1.15110517f, -1.0f})
            power = multiply_add(power, size, splat<Wide>(next));
        const Wide below = power < -126.0f ? Wide{} : exponential2(between(-126.0f, power, 0.0f));
        return x * (x < 0.0f ? below : 1.0f - below);
    } else {
        // log2 of e^(twice the argument of tanh)
        const Wide u = x * multiply_add(x * x, 0.044715f, 1.0f) * 2.30220820f;
        return x / (exponential2(between(-125.0f, -u, 126.0f)) + 1.0f);
    }
}

template <Activation kind>
__attribute__((noinline)) void activate_rows(float *y, std::int64_t stride, std::int64_t rows, std::int64_t columns) {
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
