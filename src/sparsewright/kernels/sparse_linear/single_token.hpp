// One token: reading the weights is the cost, so they are streamed once, row group by row group. Sums stay whole
// vectors and are folded once per row group.
#pragma once

#include <type_traits>

#include "activation.hpp"
#include "problem.hpp"
#include "simd.hpp"

#include "../../_native/parallel.hpp"

namespace {

using sparsewright::LinearProblem;

// Reading weights is the bound, so vectors of 8 serve as well as longer ones.
using Stream = std::conditional_t<(lanes > 8), f8, Wide>;
constexpr int stream_lanes = sizeof(Stream) / sizeof(float);

// x of the kept columns of one vector of weights: lane l belongs to kept column l / G.
template <int G> inline Stream gather(const float *x, const std::uint8_t *i) {
    if constexpr (G >= stream_lanes) {
        return splat<Stream>(x[i[0]]);
#if defined(__AVX__)
    } else if constexpr (G == 4) {
        return (Stream)_mm256_blend_ps(_mm256_set1_ps(x[i[0]]), _mm256_set1_ps(x[i[1]]), 0xf0);
    } else if constexpr (G == 2) {
        return Stream{x[i[0]], x[i[0]], x[i[1]], x[i[1]], x[i[2]], x[i[2]], x[i[3]], x[i[3]]};
    } else {
        return Stream{x[i[0]], x[i[1]], x[i[2]], x[i[3]], x[i[4]], x[i[5]], x[i[6]], x[i[7]]};
#else
    } else if constexpr (G == 2) {
        return Stream{x[i[0]], x[i[0]], x[i[1]], x[i[1]]};
    } else {
        return Stream{x[i[0]], x[i[1]], x[i[2]], x[i[3]]};
#endif
    }
}

#if defined(__AVX2__)
// x of the next 8 kept columns when every aligned 8 columns keep exactly K: a permutation of 8 / K vectors of x that
// reads three bits of each index.
template <int K> inline Stream permute(const float *x, const std::uint8_t *i) {
    const __m256i lane = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(i)));
    const auto window = [&](int w) {
        __m256 v = _mm256_loadu_ps(x + 8 * w);
        asm("" : "+x"(v));  // in a register: permuting straight from memory is far slower on Zen
        return _mm256_permutevar8x32_ps(v, lane);
    };
    if constexpr (K == 4) {
        return (Stream)_mm256_blend_ps(window(0), window(1), 0xf0);
    } else if constexpr (K == 2) {
        const __m256 low = _mm256_blend_ps(window(0), window(1), 0x0c);
        return (Stream)_mm256_blend_ps(low, _mm256_blend_ps(window(2), window(3), 0xc0), 0xf0);
    } else {
        const __m256 a = _mm256_blend_ps(window(0), window(1), 0x02), b = _mm256_blend_ps(window(2), window(3), 0x08);
        const __m256 c = _mm256_blend_ps(window(4), window(5), 0x20), d = _mm256_blend_ps(window(6), window(7), 0x80);
        return (Stream)_mm256_blend_ps(_mm256_blend_ps(a, b, 0x0c), _mm256_blend_ps(c, d, 0xc0), 0xf0);
    }
}
#endif

#if defined(__AVX512F__)
// The first `count` (at most 16) weights, zeros behind them.
inline __m512 load_first(const float *p, std::int64_t count) {
    return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), p);
}
inline __m512 load_first(const Byte *p, std::int64_t count) {
    const __m128i bytes = _mm_maskz_loadu_epi8(static_cast<__mmask16>((1u << count) - 1), p);
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
}
inline __m512 load_first(const Half *p, std::int64_t count) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << count) - 1), p));
}

// Sum over the single kept columns of a row in one block. K > 0: every aligned 8 columns keep exactly K, so that 16 of
// them lie in 128 / K columns and are permuted out of vectors of x; else they are gathered.
// `far`: the weights do not fit the second-level cache.
template <int K, bool far, class Value>
inline void add_singles(const Value *w, const std::uint8_t *i, std::int64_t count, const float *x, __m512 (&sum)[2]) {
    std::int64_t j = 0;
    int chain = 0;
    if constexpr (K > 0) {
        constexpr int pairs = 4 / K;  // of vectors of x
        const float *window = x;
        for (; j + 16 <= count; j += 16, window += 128 / K, chain ^= 1) {
            const __m512i lane = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(i + j)));
            __m512 input = {};
#pragma GCC unroll 4
            for (int p = 0; p < pairs; ++p) {
                const __m512 both = _mm512_permutex2var_ps(_mm512_loadu_ps(window + 32 * p), lane,
                                                           _mm512_loadu_ps(window + 32 * p + 16));
                constexpr int share = 16 / pairs;
                input = p ? _mm512_mask_mov_ps(input, static_cast<__mmask16>(((1u << share) - 1) << (share * p)), both)
                          : both;
            }
            if constexpr (far) prefetch_weights<16>(w + j);
            sum[chain] = _mm512_fmadd_ps(input, (__m512)load<f16>(w + j), sum[chain]);
        }
    } else {
        for (; j + 16 <= count; j += 16, chain ^= 1) {
            const __m512i lane = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(i + j)));
            if constexpr (far) prefetch_weights<16>(w + j);
            sum[chain] = _mm512_fmadd_ps(_mm512_i32gather_ps(lane, x, 4), (__m512)load<f16>(w + j), sum[chain]);
        }
    }
    if (j < count) {
        const __mmask16 rest = static_cast<__mmask16>((1u << (count - j)) - 1);
        const __m512i lane = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(rest, i + j));
        const __m512 input = _mm512_mask_i32gather_ps(_mm512_setzero_ps(), rest, lane, x, 4);
        sum[chain] = _mm512_fmadd_ps(input, load_first(w + j, count - j), sum[chain]);
    }
}
#endif

// Four floats as the low stream_lanes of a whole vector.
inline Stream widen(f4 low) {
#if defined(__AVX__)
    return (Stream)_mm256_insertf128_ps(_mm256_setzero_ps(), (__m128)low, 0);
#else
    return low;
#endif
}

// x of the kept columns of four weights, G of each.
template <int G> inline f4 gather_four(const float *x, const std::uint8_t *i) {
    if constexpr (G == 4) {
        return splat<f4>(x[i[0]]);
    } else if constexpr (G == 2) {
        return f4{x[i[0]], x[i[0]], x[i[1]], x[i[1]]};
    } else {
        return f4{x[i[0]], x[i[1]], x[i[2]], x[i[3]]};
    }
}

template <int G, class Value> struct SingleToken {
    static constexpr int vectors = G > stream_lanes ? G / stream_lanes : 1;  // of one kept column
    static constexpr int columns = G > stream_lanes ? 1 : stream_lanes / G;  // of one vector
    // Independent sums. Short rows of single weights are bound by what surrounds them, long ones by latency.
    static constexpr int chains = G == 1 ? 2 : vectors >= 4 ? 2 : 8 / vectors;
    // Blocks read side by side for a row group, so that folding sums is paid once: as many as prefetchers follow where
    // rows are short, one where a row group is long enough to stream alone.
    static constexpr std::int64_t most_blocks = G <= 2 ? 8 : 1;

    template <int K>
    static __attribute__((noinline)) void stream(const LinearProblem &p, Range blocks, Range groups_of,
                                                 float *partial) {
        for (std::int64_t g = groups_of.begin; g < groups_of.end; ++g, partial += vectors * stream_lanes) {
            Stream sum[chains][vectors] = {};
            f4 four = {};
            float one[2] = {};
            const float *x = p.x + blocks.begin * p.block_columns;
            const std::int32_t *pointer = p.pointers + blocks.begin * (p.groups + 1) + g;
            for (std::int64_t b = blocks.begin; b < blocks.end; ++b) {
                const Value *w = static_cast<const Value *>(p.values) + pointer[0] * static_cast<std::int64_t>(G);
                const std::uint8_t *i = p.index + pointer[0], *end = p.index + pointer[1];
                [[maybe_unused]] const float *window = x;
                const auto some = [&](int c) __attribute__((always_inline)) {
                    Stream input;
#if defined(__AVX2__)
                    if constexpr (K > 0) {
                        input = permute<K>(window, i + c * columns);
                        window += 64 / K;
                    } else
#endif
                        input = gather<G>(x, i + c * columns);
#pragma GCC unroll 16
                    for (int v = 0; v < vectors; ++v)
                        sum[c][v] = multiply_add(input, load<Stream>(w + (c * vectors + v) * stream_lanes), sum[c][v]);
                };
                for (; end - i >= chains * columns; i += chains * columns, w += chains * columns * G) {
#pragma GCC unroll 16
                    for (int c = 0; c < chains; ++c) some(c);
                    prefetch_weights<chains * columns * G>(w);
                }
                for (; end - i >= columns; i += columns, w += columns * G) some(0);
                if constexpr (columns * G == 8 && G <= 4)
                    if (end - i >= 4 / G) {
                        four = multiply_add(gather_four<G>(x, i), load<f4>(w), four);
                        i += 4 / G;
                        w += 4;
                    }
                if constexpr (G <= 2)
                    for (; i != end; ++i, w += G)
                        for (int r = 0; r < G; ++r) one[r] += to_float(w[r]) * x[*i];
                x += p.block_columns;
                pointer += p.groups + 1;
            }
#pragma GCC unroll 16
            for (int c = 1; c < chains; ++c)
                for (int v = 0; v < vectors; ++v) sum[0][v] += sum[c][v];
            if constexpr (G <= 4) sum[0][0] += widen(four + f4{one[0], one[1], 0, 0});
            for (int v = 0; v < vectors; ++v)
                store(partial + v * stream_lanes, blocks.begin ? load<Stream>(partial + v * stream_lanes) + sum[0][v] : sum[0][v]);
        }
    }

#if defined(__AVX512F__)
    template <int K, bool far>
    static __attribute__((noinline)) void stream_singles(const LinearProblem &p, Range blocks, Range groups_of,
                                                         float *partial) {
        for (std::int64_t g = groups_of.begin; g < groups_of.end; ++g, partial += stream_lanes) {
            __m512 sum[2] = {};
            const float *x = p.x + blocks.begin * p.block_columns;
            const std::int32_t *pointer = p.pointers + blocks.begin * (p.groups + 1) + g;
            for (std::int64_t b = blocks.begin; b < blocks.end; ++b) {
                add_singles<K, far>(static_cast<const Value *>(p.values) + pointer[0], p.index + pointer[0],
                               pointer[1] - pointer[0], x, sum);
                x += p.block_columns;
                pointer += p.groups + 1;
            }
            const __m512 all = _mm512_add_ps(sum[0], sum[1]);
            const Stream half = (Stream)_mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
            store(partial, blocks.begin ? load<Stream>(partial) + half : half);
        }
    }
#endif

#if defined(__AVX512F__)
    static bool is_far(const LinearProblem &p) {
        return p.pointers[p.blocks * (p.groups + 1) - 1] * std::int64_t{G * sizeof(Value)} > p.level2_bytes;
    }

    template <bool far> static auto singles(int kept_per_8) {
        return kept_per_8 == 4   ? &stream_singles<4, far>
               : kept_per_8 == 2 ? &stream_singles<2, far>
               : kept_per_8 == 1 ? &stream_singles<1, far>
                                 : &stream_singles<0, far>;
    }
#endif

    static void run(const LinearProblem &p, Range groups_of) {
        float *partials = static_cast<float *>(
            sparsewright::scratch((groups_of.end - groups_of.begin) * vectors * stream_lanes * sizeof(float) + 64));
        auto *how = &stream<0>;
#if defined(__AVX512F__)
        if constexpr (G == 1)
            how = is_far(p) ? singles<true>(p.kept_per_8) : singles<false>(p.kept_per_8);
#elif defined(__AVX2__)
        if constexpr (G == 1) {
            if (p.kept_per_8 == 4) how = &stream<4>;
            if (p.kept_per_8 == 2) how = &stream<2>;
            if (p.kept_per_8 == 1) how = &stream<1>;
        }
#endif
        const std::int64_t passes = divide_up(p.blocks, most_blocks);
        for (std::int64_t pass = 0; pass < passes; ++pass) how(p, share(p.blocks, passes, pass), groups_of, partials);
        const float *partial = partials;
        for (std::int64_t g = groups_of.begin; g < groups_of.end; ++g, partial += vectors * stream_lanes)
            for (std::int64_t r = 0; r < G && g * G + r < p.out; ++r) {
                float sum = partial[r];
                if constexpr (G < stream_lanes)
                    for (int c = 1; c < columns; ++c) sum += partial[c * G + r];
                const std::int64_t row = g * G + r;
                p.y[row] = finished(sum, p.scale != nullptr, p.scale ? p.scale[row] : 0.0f, p.bias != nullptr,
                                    p.bias ? p.bias[row] : 0.0f);
            }
        const std::int64_t row = groups_of.begin * G, end_row = smaller(groups_of.end * G, p.out);
        activate(static_cast<Activation>(p.activation), p.y + row, p.out, 1, end_row - row);
    }
};

}  // namespace
