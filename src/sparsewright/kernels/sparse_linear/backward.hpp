// Gradients of y = x W^T. Shared by both: tokens as lanes, and panels of transposed tokens.
#pragma once

#include <type_traits>

#include "problem.hpp"
#include "simd.hpp"
#include "token_lane.hpp"
#include "write_rows.hpp"

namespace {

// Vectors for few tokens: lanes without a token cost as much as those with one.
using Half8 = std::conditional_t<(lanes > 8), f8, Wide>;
using Quarter = std::conditional_t<(lanes > 4), f4, Wide>;

template <class V> constexpr int lanes_of = sizeof(V) / sizeof(float);

// rows[t][begin..end] of up to NV vectors of tokens to panel[row][token]; lanes without a token repeat the last one.
template <class V, int NV>
inline void to_panel(const float *from, std::int64_t stride, std::int64_t tokens, std::int64_t count, float *panel) {
    if constexpr (std::is_same_v<V, Wide>) {
        fill_panel<NV>(from, stride, tokens, 0, count, panel);
    } else {
        constexpr int width = NV * lanes_of<V>;
        for (std::int64_t k = 0; k < count; ++k)
            for (int t = 0; t < width; ++t)
                panel[k * width + t] = from[smaller<std::int64_t>(t, tokens - 1) * stride + k];
    }
}

// panel[row][token] to rows[t][begin..end].
template <class V, int NV>
inline void from_panel(const float *panel, std::int64_t count, float *to, std::int64_t stride, std::int64_t tokens) {
    if constexpr (std::is_same_v<V, Wide>) {
        write_rows<NV>(panel, nullptr, nullptr, 0, count, to, stride, tokens);
    } else {
        constexpr int width = NV * lanes_of<V>;
        for (std::int64_t t = 0; t < tokens; ++t)
            for (std::int64_t k = 0; k < count; ++k) to[t * stride + k] = panel[k * width + t];
    }
}

}  // namespace
