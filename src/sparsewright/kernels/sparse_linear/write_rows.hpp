// Sums of output rows, token by token in vectors, to y, where tokens are rows.
#pragma once

#include "simd.hpp"

namespace {

// y[t][row] = sums[row - begin][t] * scale[row] + bias[row] (both optional) for rows begin..end and the first `tokens` of NV vectors of tokens.
template <int NV>
__attribute__((noinline)) void write_rows(const float *sums, const float *scale, const float *bias, std::int64_t begin,
                                          std::int64_t end, float *y_of_first, std::int64_t y_stride,
                                          std::int64_t tokens) {
    constexpr int width = NV * lanes;
    for (int v = 0; v < NV && v * lanes < tokens; ++v) {
        const std::int64_t live = smaller<std::int64_t>(tokens - v * lanes, lanes);
        float *y = y_of_first + v * lanes * y_stride;
        const float *from = sums + v * lanes;
        std::int64_t row = begin;
        for (; row + lanes <= end; row += lanes, from += lanes * width) {
            const float *rows[lanes];
#pragma GCC unroll 16
            for (int i = 0; i < lanes; ++i) rows[i] = from + i * width;
            Wide token_of[lanes];
            read_columns(rows, 0, token_of);
            if (scale || bias) {
                const Wide times = scale ? load<Wide>(scale + row) : Wide{};
                const Wide more = bias ? load<Wide>(bias + row) : Wide{};
#pragma GCC unroll 16
                for (int i = 0; i < lanes; ++i)
                    token_of[i] = finished(token_of[i], scale != nullptr, times, bias != nullptr, more);
            }
#pragma GCC unroll 16
            for (int i = 0; i < lanes; ++i)
                if (i < live) store(y + i * y_stride + row, token_of[i]);
        }
        for (; row < end; ++row, from += width)
            for (std::int64_t i = 0; i < live; ++i)
                y[i * y_stride + row] = finished(from[i], scale != nullptr, scale ? scale[row] : 0.0f, bias != nullptr,
                                                 bias ? bias[row] : 0.0f);
    }
}

}  // namespace
