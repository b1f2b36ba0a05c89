// dW = dy^T x at the kept places only, in the shape of the values.
//
// Tokens are lanes: a tile of J kept columns and R rows of one group holds J * R vectors of sums while tokens come by,
// `chunk_tokens` at a time, then folds each to one number. Chunks and lanes do not depend on threads; nor do bits.
#pragma once

#include "backward.hpp"

#include "../../_native/parallel.hpp"

namespace {

using sparsewright::LinearProblem;

// Adds halves of every quarter of two vectors, or of pairs in them, or whole quarters: steps on the way from `lanes`
// vectors to their sums.
inline f4 add_halves(f4 a, f4 b) {
    return __builtin_shufflevector(a, b, 0, 4, 1, 5) + __builtin_shufflevector(a, b, 2, 6, 3, 7);
}
inline f8 add_halves(f8 a, f8 b) {
    return __builtin_shufflevector(a, b, 0, 8, 1, 9, 4, 12, 5, 13) +
           __builtin_shufflevector(a, b, 2, 10, 3, 11, 6, 14, 7, 15);
}
inline f16 add_halves(f16 a, f16 b) {
    return __builtin_shufflevector(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29) +
           __builtin_shufflevector(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
}
inline f4 add_pairs(f4 a, f4 b) {
    return __builtin_shufflevector(a, b, 0, 1, 4, 5) + __builtin_shufflevector(a, b, 2, 3, 6, 7);
}
inline f8 add_pairs(f8 a, f8 b) {
    return __builtin_shufflevector(a, b, 0, 1, 8, 9, 4, 5, 12, 13) +
           __builtin_shufflevector(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
}
inline f16 add_pairs(f16 a, f16 b) {
    return __builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
           __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
}
inline f4 add_quarters(const f4 *v) { return v[0]; }
inline f8 add_quarters(const f8 *v) {
    return __builtin_shufflevector(v[0], v[1], 0, 1, 2, 3, 8, 9, 10, 11) +
           __builtin_shufflevector(v[0], v[1], 4, 5, 6, 7, 12, 13, 14, 15);
}
inline f16 add_quarters(const f16 *v) {
    const auto two = [](f16 a, f16 b) {
        return __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
               __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    };
    return two(two(v[0], v[1]), two(v[2], v[3]));
}

// Sums of each of `lanes` vectors, as the lanes of one.
inline __attribute__((always_inline)) Wide fold(const Wide *v) {
    Wide quarters[lanes / 4];
#pragma GCC unroll 4
    for (int i = 0; i < lanes / 4; ++i)
        quarters[i] = add_pairs(add_halves(v[4 * i], v[4 * i + 1]), add_halves(v[4 * i + 2], v[4 * i + 3]));
    return add_quarters(quarters);
}

// dW[j][r] (`group` apart) += sum over `vectors` vectors of tokens of dy[r] x[index[j]], J columns and R rows.
// x and dy lie by row, `stride` floats apart. J * R is a multiple of `lanes`.
template <int J, int R, int G>
__attribute__((noinline)) void correlate(const float *x, const std::uint8_t *index, const float *dy,
                                         std::int64_t stride, std::int64_t vectors, float *to, std::int64_t live,
                                         bool first) {
    // Columns whose addresses fit the registers at a time.
    constexpr int some = J < 8 ? J : 8;
    Wide sum[J * R] = {};
    const std::int64_t floats = vectors * lanes;
#pragma GCC unroll 2
    for (int half = 0; half < J; half += some) {
        const float *column[some];
#pragma GCC unroll 16
        for (int j = 0; j < some; ++j) column[j] = x + index[half + j < live ? half + j : 0] * stride;
        for (std::int64_t t = 0; t < floats; t += lanes) {
            Wide row[R];
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) row[r] = load<Wide>(dy + r * stride + t);
#pragma GCC unroll 16
            for (int j = 0; j < some; ++j) {
                const Wide one = load<Wide>(column[j] + t);
#pragma GCC unroll 16
                for (int r = 0; r < R; ++r)
                    sum[(half + j) * R + r] = multiply_add(one, row[r], sum[(half + j) * R + r]);
            }
        }
    }
    if (R == G && live == J) {  // what it adds to is one run of floats
#pragma GCC unroll 4
        for (int i = 0; i < J * R; i += lanes) {
            const Wide folded = fold(sum + i);
            store(to + i, first ? folded : load<Wide>(to + i) + folded);
        }
        return;
    }
    float folded[J * R];
#pragma GCC unroll 4
    for (int i = 0; i < J * R; i += lanes) store(folded + i, fold(sum + i));
    for (int j = 0; j < live; ++j)
        for (int r = 0; r < R; ++r) to[j * G + r] = first ? folded[j * R + r] : to[j * G + r] + folded[j * R + r];
}

template <int G> struct WeightGrad {
    static constexpr int R = G <= 4 ? G : 4;
    static constexpr int J = (lanes > 8 ? lanes : 8) / R;

    // Tokens at a time. Where every vector of x feeds one row or two, x of a block should fit the first-level cache; where
    // it feeds more, or cannot fit, the longer the better: folding costs the same for few tokens and for many.
    static std::int64_t chunk_tokens(const LinearProblem &p) {
        constexpr std::int64_t few = 128, many = 256;
        const std::int64_t bytes = p.block_columns * (few + 16) * static_cast<std::int64_t>(sizeof(float));
        return G <= 2 && bytes <= p.level1_bytes * 13 / 16 ? few : many;
    }

    // rows[t][begin..end] to panel[row][token]; lanes without a token hold zero.
    static void turn(const float *from, std::int64_t from_stride, std::int64_t tokens, std::int64_t count, float *panel,
                     std::int64_t stride) {
        for (std::int64_t t = 0; t < tokens; t += lanes) {
            const float *row[lanes];
            const std::int64_t live = smaller<std::int64_t>(tokens - t, lanes);
            for (int i = 0; i < lanes; ++i) row[i] = from + (t + smaller<std::int64_t>(i, live - 1)) * from_stride;
            std::int64_t k = 0;
            if (live == lanes)
                for (; k + lanes <= count; k += lanes) {
                    Wide column[lanes];
                    read_columns(row, k, column);
#pragma GCC unroll 16
                    for (int i = 0; i < lanes; ++i) store(panel + (k + i) * stride + t, column[i]);
                }
            for (; k < count; ++k)
                for (int i = 0; i < lanes; ++i) panel[k * stride + t + i] = i < live ? row[i][k] : 0.0f;
        }
    }

    static void run(const LinearProblem &p, Range groups) {
        const std::int64_t parts = divide_up(p.tokens, chunk_tokens(p));
        const std::int64_t longest = divide_up(divide_up(p.tokens, lanes), parts) * lanes;
        // Rows a multiple of 4 KB apart fall into the same cache sets.
        const std::int64_t stride = longest + 16;
        const std::int64_t rows = (groups.end - groups.begin) * G;
        float *x = static_cast<float *>(sparsewright::scratch((p.block_columns + rows) * stride * sizeof(float)));
        float *dy = x + p.block_columns * stride;
        for (std::int64_t part = 0; part < parts; ++part) {
            const Range some = share(divide_up(p.tokens, lanes), parts, part);
            const std::int64_t token = some.begin * lanes, tokens = smaller(some.end * lanes, p.tokens) - token;
            const std::int64_t live = smaller(groups.end * G, p.out) - groups.begin * G;
            turn(p.dy + token * p.dy_stride + groups.begin * G, p.dy_stride, tokens, live, dy, stride);
            std::memset(dy + live * stride, 0, (rows - live) * stride * sizeof(float));
            for (std::int64_t b = 0; b < p.blocks; ++b) {
                const std::int64_t begin = smaller(b * p.block_columns, p.in);
                const std::int64_t end = smaller(begin + p.block_columns, p.in);
                turn(p.x + token * p.x_stride + begin, p.x_stride, tokens, end - begin, x, stride);
                const std::int32_t *pointer = p.pointers + b * (p.groups + 1);
                for (std::int64_t g = groups.begin; g < groups.end; ++g)
                    for (std::int64_t j = pointer[g]; j < pointer[g + 1]; j += J)
                        for (int r = 0; r < G; r += R)
                            correlate<J, R, G>(x, p.index + j, dy + ((g - groups.begin) * G + r) * stride, stride,
                                               some.end - some.begin, p.y + j * G + r,
                                               smaller<std::int64_t>(J, pointer[g + 1] - j), part == 0);
            }
        }
    }
};

}  // namespace
