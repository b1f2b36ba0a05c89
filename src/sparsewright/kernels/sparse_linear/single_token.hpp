// One token: reading the weights is the cost, so they are streamed once, in the order in which they lie (block, row
// group, column). Sums stay whole vectors between blocks and are folded once per row group.
#pragma once

#include "problem.hpp"
#include "simd.hpp"

#include "../../_native/parallel.hpp"

namespace {

using sparsewright::LinearProblem;

// x of the kept columns of one vector of weights: lane l belongs to kept column l / G.
template <int G> inline Wide gather(const float *x, const std::uint8_t *i) {
    if constexpr (G >= lanes) {
        return splat<Wide>(x[i[0]]);
#if defined(__AVX2__)
    } else if constexpr (G == 4) {
        return (Wide)_mm256_blend_ps(_mm256_set1_ps(x[i[0]]), _mm256_set1_ps(x[i[1]]), 0xf0);
    } else if constexpr (G == 2) {
        return Wide{x[i[0]], x[i[0]], x[i[1]], x[i[1]], x[i[2]], x[i[2]], x[i[3]], x[i[3]]};
    } else {
        return Wide{x[i[0]], x[i[1]], x[i[2]], x[i[3]], x[i[4]], x[i[5]], x[i[6]], x[i[7]]};
#else
    } else if constexpr (G == 2) {
        return Wide{x[i[0]], x[i[0]], x[i[1]], x[i[1]]};
    } else {
        return Wide{x[i[0]], x[i[1]], x[i[2]], x[i[3]]};
#endif
    }
}

#if defined(__AVX2__)
// x of the next 8 kept columns when every aligned 8 columns keep exactly K: a permutation of 8 / K vectors of x that
// reads three bits of each index.
template <int K> inline Wide permute(const float *x, const std::uint8_t *i) {
    const __m256i lane = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(i)));
    const auto window = [&](int w) {
        __m256 v = _mm256_loadu_ps(x + 8 * w);
        asm("" : "+x"(v));  // in a register: permuting straight from memory is far slower on Zen
        return _mm256_permutevar8x32_ps(v, lane);
    };
    if constexpr (K == 4) {
        return (Wide)_mm256_blend_ps(window(0), window(1), 0xf0);
    } else if constexpr (K == 2) {
        const __m256 low = _mm256_blend_ps(window(0), window(1), 0x0c);
        return (Wide)_mm256_blend_ps(low, _mm256_blend_ps(window(2), window(3), 0xc0), 0xf0);
    } else {
        const __m256 a = _mm256_blend_ps(window(0), window(1), 0x02), b = _mm256_blend_ps(window(2), window(3), 0x08);
        const __m256 c = _mm256_blend_ps(window(4), window(5), 0x20), d = _mm256_blend_ps(window(6), window(7), 0x80);
        return (Wide)_mm256_blend_ps(_mm256_blend_ps(a, b, 0x0c), _mm256_blend_ps(c, d, 0xc0), 0xf0);
    }
}
#endif

template <int G, class Value> struct SingleToken {
    static constexpr int vectors = G > lanes ? G / lanes : 1;       // of one kept column
    static constexpr int columns = G > lanes ? 1 : lanes / G;       // of one vector
    static constexpr int chains = vectors >= 4 ? 2 : 8 / vectors;   // independent sums

    template <int K> static void block(const LinearProblem &p, std::int64_t b, Range groups_of, float *partial) {
        const std::int32_t *pointer = p.pointers + b * (p.groups + 1);
        const float *x = p.x + b * p.block_columns;
        for (std::int64_t g = groups_of.begin; g < groups_of.end; ++g, partial += vectors * lanes) {
            const Value *w = static_cast<const Value *>(p.values) + pointer[g] * static_cast<std::int64_t>(G);
            const std::uint8_t *i = p.index + pointer[g], *end = p.index + pointer[g + 1];
            Wide sum[chains][vectors] = {};
            [[maybe_unused]] const float *window = x;
            const auto some = [&](int c) __attribute__((always_inline)) {
                Wide one;
#if defined(__AVX2__)
                if constexpr (K > 0) {
                    one = permute<K>(window, i + c * columns);
                    window += 64 / K;
                } else
#endif
                    one = gather<G>(x, i + c * columns);
#pragma GCC unroll 16
                for (int v = 0; v < vectors; ++v)
                    sum[c][v] += one * load<Wide>(w + (c * vectors + v) * lanes);
            };
            constexpr int at_once = K > 0 ? 4 : chains;
            for (; end - i >= at_once * columns; i += at_once * columns, w += at_once * columns * G)
#pragma GCC unroll 16
                for (int c = 0; c < at_once; ++c) some(c);
            for (; end - i >= columns; i += columns, w += columns * G) some(0);
            if (columns > 1 && i != end) {
                float rest[lanes] = {};
                for (; i != end; ++i, w += G)
                    for (int r = 0; r < G; ++r) rest[r] += to_float(w[r]) * x[*i];
                sum[1][0] += load<Wide>(rest);
            }
            for (int c = 1; c < chains; ++c)
                for (int v = 0; v < vectors; ++v) sum[0][v] += sum[c][v];
            for (int v = 0; v < vectors; ++v)
                store(partial + v * lanes, b ? load<Wide>(partial + v * lanes) + sum[0][v] : sum[0][v]);
        }
    }

    static void run(const LinearProblem &p, Range groups_of) {
        float *partials = static_cast<float *>(
            sparsewright::scratch((groups_of.end - groups_of.begin) * vectors * lanes * sizeof(float) + 64));
        for (std::int64_t b = 0; b < p.blocks; ++b) {
#if defined(__AVX2__)
            if constexpr (G == 1) {
                if (p.kept_per_8 == 4) block<4>(p, b, groups_of, partials);
                else if (p.kept_per_8 == 2) block<2>(p, b, groups_of, partials);
                else if (p.kept_per_8 == 1) block<1>(p, b, groups_of, partials);
                else block<0>(p, b, groups_of, partials);
                continue;
            }
#endif
            block<0>(p, b, groups_of, partials);
        }
        const float *partial = partials;
        for (std::int64_t g = groups_of.begin; g < groups_of.end; ++g, partial += vectors * lanes)
            for (std::int64_t r = 0; r < G && g * G + r < p.out; ++r) {
                float sum = partial[r];
                if constexpr (G < lanes)
                    for (int c = 1; c < columns; ++c) sum += partial[c * G + r];
                p.y[g * G + r] = p.bias ? sum + p.bias[g * G + r] : sum;
            }
    }
};

}  // namespace
