// Sums of output rows, token by token in vectors, to y, where tokens are rows.
#pragma once

#include "activation.hpp"
#include "simd.hpp"

namespace {

// y[t][row] = activation(sums[row - begin][t] * scale[row] + bias[row]) (all optional) for rows begin..end and the first
// `tokens` of NV vectors of tokens.
template <int NV, Activation kind>
__attribute__((noinline)) void write_activated_rows(const float *sums, const float *scale, const float *bias,
                                                    std::int64_t begin, std::int64_t end, float *y_of_first,
                                                    std::int64_t y_stride, std::int64_t tokens) {
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
            if constexpr (kind == Activation::none || kind == Activation::relu) {
#pragma GCC unroll 16
                for (int i = 0; i < lanes; ++i)
                    if (i < live) store(y + i * y_stride + row, activated<kind>(token_of[i]));
            } else {
                // Not unrolled: its constants take the registers.
#pragma GCC unroll 1
                for (std::int64_t i = 0; i < live; ++i) store(y + i * y_stride + row, activated<kind>(token_of[i]));
            }
        }
        for (; row < end; ++row, from += width) {
            const Wide times = splat<Wide>(scale ? scale[row] : 0.0f), more = splat<Wide>(bias ? bias[row] : 0.0f);
            float of_row[lanes];
            store(of_row, activated<kind>(finished(load<Wide>(from), scale != nullptr, times, bias != nullptr, more)));
            for (std::int64_t i = 0; i < live; ++i) y[i * y_stride + row] = of_row[i];
        }
    }
}

template <int NV>
inline void write_rows(const float *sums, const float *scale, const float *bias, std::int64_t begin, std::int64_t end,
                       float *y_of_first, std::int64_t y_stride, std::int64_t tokens,
                       Activation kind = Activation::none) {
    const auto write = [&]<Activation of>() {
        write_activated_rows<NV, of>(sums, scale, bias, begin, end, y_of_first, y_stride, tokens);
    };
    switch (kind) {
        case Activation::none: return write.template operator()<Activation::none>();
        case Activation::relu: return write.template operator()<Activation::relu>();
        case Activation::gelu: return write.template operator()<Activation::gelu>();
        case Activation::gelu_tanh: return write.template operator()<Activation::gelu_tanh>();
    }
}

}  // namespace
