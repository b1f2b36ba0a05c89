// int8 weights, int8 activations: vectors of tokens as in token_lane.hpp, four columns to an instruction.
//
// x of a tile of tokens is rounded once. Dense rows multiply it as it lies, four columns of a token side by side; sparse
// rows have single columns joined into fours on the way, once for the rows of a group. Sums are integers, so results
// depend on no order: not on the tile, the thread or the instruction set.
#pragma once

#include "activation.hpp"
#include "int8_problem.hpp"
#include "int8_simd.hpp"
#include "write_rows.hpp"

#include "../../_native/parallel.hpp"

namespace {

using sparsewright::Int8Problem;

constexpr int most_bytes = lanes == 16 ? 64 : lanes == 8 ? 32 : 16;  // of a vector, and tokens of a tile
constexpr int side_rows = registers == 32 ? 4 : 2;                   // rows whose sums fit the registers

// Rounds one token: x[k] ~ low + step u[k]; u beyond `in` is 0. A NaN or infinity in x makes `low`, and so y, NaN.
inline void round_token(const float *x, std::int64_t in, std::int64_t padded, std::uint8_t *u, float &low, float &step) {
    Wide least = splat<Wide>(x[0]), most = least, strange = {};
    std::int64_t k = 0;
    for (; k + lanes <= in; k += lanes) {
        const Wide v = load<Wide>(x + k);
        least = v < least ? v : least;
        most = v > most ? v : most;
        strange += v * 0.0f;
    }
    float bottom = x[0], top = x[0], odd = 0.0f;
    for (int i = 0; i < lanes; ++i) {
        bottom = smaller(bottom, least[i]);
        top = top > most[i] ? top : most[i];
        odd += strange[i];
    }
    for (; k < in; ++k) {
        bottom = smaller(bottom, x[k]);
        top = top > x[k] ? top : x[k];
        odd += x[k] * 0.0f;
    }
    // Halves, because the whole range of finite numbers may overflow; halving changes no digit.
    const float bottom_half = bottom * 0.5f, half = top * 0.5f - bottom_half;
    const bool flat = !(half > 5e-31f);
    const float inverse = flat ? 0.0f : 127.0f / half;
    typedef std::int32_t Ints __attribute__((vector_size(sizeof(Wide))));
    typedef std::uint8_t Few __attribute__((vector_size(lanes)));
    for (k = 0; k + lanes <= in; k += lanes) {
        const Wide v = (load<Wide>(x + k) * 0.5f - bottom_half) * inverse + 0.5f;
        const Few bytes = __builtin_convertvector(__builtin_convertvector(v, Ints), Few);
        std::memcpy(u + k, &bytes, lanes);
    }
    for (; k < in; ++k) u[k] = static_cast<std::uint8_t>(static_cast<std::int32_t>((x[k] * 0.5f - bottom_half) * inverse + 0.5f));
    for (; k < padded; ++k) u[k] = 0;
    low = bottom + odd;
    step = flat ? 0.0f : half / 63.5f;
}

// Few tokens, dense rows: a vector holds four columns of some of 16 output rows, and four rounded inputs of one token are
// broadcast to it. Nothing is transposed, and weights are read once for all tokens.
constexpr int few_tokens = lanes == 16 ? 16 : lanes == 8 ? 4 : 2;

template <int T>
__attribute__((noinline)) void dense_rows(const Int8Problem &p, std::int64_t token, Range groups_of, const std::uint8_t *u,
                                          std::int64_t padded, const float *low, const float *step) {
    constexpr int bytes = most_bytes, vectors = 64 / bytes, words = bytes / 4;
    using V = Words<bytes>;
    for (std::int64_t g = groups_of.begin; g < groups_of.end; ++g) {
        V sum[T][vectors] = {};
        const std::int8_t *w = p.values + p.pointers[g] * std::int64_t{64};
        const std::int64_t count = p.pointers[g + 1] - p.pointers[g];
        for (std::int64_t q = 0; q < count; ++q, w += 64) {
            V weight[vectors];
#pragma GCC unroll 4
            for (int v = 0; v < vectors; ++v) weight[v] = load_words<bytes>(w + v * bytes);
#pragma GCC unroll 16
            for (int t = 0; t < T; ++t) {
                const V x = splat_word<bytes>(u + t * padded + 4 * q);
#pragma GCC unroll 4
                for (int v = 0; v < vectors; ++v) sum[t][v] = add_products<bytes>(sum[t][v], x, weight[v]);
            }
        }
        const std::int64_t live = smaller<std::int64_t>(p.out - 16 * g, 16);
        for (int t = 0; t < T; ++t) {
            float row[16];
            for (int v = 0; v < vectors; ++v) {
                Words<bytes> whole;
                Floats<bytes> scale;
                std::memcpy(&whole, p.sums + 16 * g + v * words, bytes);
                std::memcpy(&scale, p.scale + 16 * g + v * words, bytes);
                const Floats<bytes> product = __builtin_convertvector(sum[t][v], Floats<bytes>);
                const Floats<bytes> all = (step[t] * product + low[t] * __builtin_convertvector(whole, Floats<bytes>)) * scale;
                std::memcpy(row + v * words, &all, bytes);
            }
            float *y = p.y + (token + t) * p.out + 16 * g;
            for (std::int64_t r = 0; r < live; ++r) y[r] = p.bias ? row[r] + p.bias[16 * g + r] : row[r];
        }
    }
}

inline void run_dense_rows(const Int8Problem &p, std::int64_t token, std::int64_t end, Range groups_of) {
    const std::int64_t padded = divide_up(p.in, 4) * 4;
    char *memory = static_cast<char *>(sparsewright::scratch(few_tokens * (padded + 64 + 2 * sizeof(float))));
    float *low = reinterpret_cast<float *>(memory), *step = low + few_tokens;
    std::uint8_t *u = reinterpret_cast<std::uint8_t *>(step + few_tokens);
    while (token < end) {
        const std::int64_t tokens = smaller<std::int64_t>(end - token, few_tokens);
        for (std::int64_t t = 0; t < tokens; ++t)
            round_token(p.x + (token + t) * p.x_stride, p.in, padded, u + t * padded, low[t], step[t]);
        with_count<few_tokens>(tokens, [&]<int T>() { dense_rows<T>(p, token, groups_of, u, padded, low, step); });
        const std::int64_t row = groups_of.begin * 16, end_row = smaller(groups_of.end * 16, p.out);
        activate(static_cast<Activation>(p.activation), p.y + token * p.out + row, p.out, tokens, end_row - row);
        token += tokens;
    }
}

template <int bytes> struct Int8Lane {
    using V = Words<bytes>;
    static constexpr int words = bytes / 4;  // tokens of one vector of sums

    // Four columns of all tokens: vector j, word i holds those of token j * words + i.
    static inline __attribute__((always_inline)) void read_fours(const std::uint8_t *u, std::int64_t stride,
                                                                 std::int64_t at, V (&fours)[4][words]) {
        if constexpr (words == lanes) {
            for (int j = 0; j < 4; ++j) {
                const float *row[lanes];
                for (int i = 0; i < lanes; ++i)
                    row[i] = reinterpret_cast<const float *>(u + (j * words + i) * stride + at);
                Wide column[lanes];
                read_columns(row, 0, column);
                for (int i = 0; i < lanes; ++i) fours[j][i] = (V)column[i];
            }
        } else {
            for (int j = 0; j < 4; ++j)
                for (int c = 0; c < words; ++c)
                    for (int i = 0; i < words; ++i) {
                        std::int32_t word;
                        std::memcpy(&word, u + (j * words + i) * stride + at + 4 * c, 4);
                        fours[j][c][i] = word;
                    }
        }
    }

    // Rounded tokens to a panel: fours of columns for dense rows, else single columns whose tokens lie in the order
    // that joining them four by four undoes.
    template <bool single>
    static __attribute__((noinline)) void fill(const std::uint8_t *u, std::int64_t padded, std::uint8_t *panel) {
        for (std::int64_t k = 0; k < padded; k += bytes) {
            V fours[4][words];
            read_fours(u, padded, k, fours);
            for (int c = 0; c < words; ++c, panel += 4 * bytes) {
                V v[4] = {fours[0][c], fours[1][c], fours[2][c], fours[3][c]};
                if constexpr (single) {
                    for (V &each : v) each = transpose_bytes<bytes>(each);
                    const V a = interleave<bytes, 4, false>(v[0], v[1]), b = interleave<bytes, 4, true>(v[0], v[1]);
                    const V c2 = interleave<bytes, 4, false>(v[2], v[3]), d = interleave<bytes, 4, true>(v[2], v[3]);
                    v[0] = interleave<bytes, 8, false>(a, c2);
                    v[1] = interleave<bytes, 8, true>(a, c2);
                    v[2] = interleave<bytes, 8, false>(b, d);
                    v[3] = interleave<bytes, 8, true>(b, d);
                }
                for (int j = 0; j < 4; ++j) std::memcpy(panel + j * bytes, &v[j], bytes);
            }
        }
    }

    // sums[r][t] += the products of quads begin..end of rows r < R; values step `group` rows per quad.
    template <int R, bool single>
    static __attribute__((noinline)) void multiply(const std::int8_t *values, std::int64_t group,
                                                   const std::uint16_t *columns, std::int64_t count,
                                                   const std::uint8_t *panel, std::int32_t *sums) {
        V sum[R][4] = {};
        for (std::int64_t q = 0; q < count; ++q, values += 4 * group) {
            V x[4];
            if constexpr (single) {
                const std::uint16_t *const column = columns + 4 * q;
                const V a = load_words<bytes>(panel + static_cast<std::int64_t>(column[0]) * bytes);
                const V b = load_words<bytes>(panel + static_cast<std::int64_t>(column[1]) * bytes);
                const V c = load_words<bytes>(panel + static_cast<std::int64_t>(column[2]) * bytes);
                const V d = load_words<bytes>(panel + static_cast<std::int64_t>(column[3]) * bytes);
                const V ab = interleave<bytes, 1, false>(a, b), cd = interleave<bytes, 1, false>(c, d);
                const V ab2 = interleave<bytes, 1, true>(a, b), cd2 = interleave<bytes, 1, true>(c, d);
                x[0] = interleave<bytes, 2, false>(ab, cd);
                x[1] = interleave<bytes, 2, true>(ab, cd);
                x[2] = interleave<bytes, 2, false>(ab2, cd2);
                x[3] = interleave<bytes, 2, true>(ab2, cd2);
            } else {
#pragma GCC unroll 4
                for (int j = 0; j < 4; ++j) x[j] = load_words<bytes>(panel + (4 * q + j) * bytes);
            }
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r) {
                const V weight = splat_word<bytes>(values + 4 * r);
#pragma GCC unroll 4
                for (int j = 0; j < 4; ++j) sum[r][j] = add_products<bytes>(sum[r][j], x[j], weight);
            }
        }
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) std::memcpy(sums + (4 * r + j) * words, &sum[r][j], bytes);
    }

#if defined(__AVX512BW__)
    static constexpr bool joined = bytes == 16;

    // The same for 16 tokens whose columns are joined into fours in one long vector: two shuffles serve all rows.
    template <int R>
    static __attribute__((noinline)) void multiply_joined(const std::int8_t *values, std::int64_t group,
                                                          const std::uint16_t *columns, std::int64_t count,
                                                          const std::uint8_t *panel, std::int32_t *sums) {
        constexpr int chains = R <= 4 ? 2 : 1;
        Words<64> sum[chains][R] = {};
        // Fours of tokens of four columns, side by side; then each four of columns by four of tokens is turned.
        const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        const auto add = [&](std::int64_t q, int chain) __attribute__((always_inline)) {
            std::uint64_t four;
            std::memcpy(&four, columns + 4 * q, 8);
            const auto column = [&](int c) __attribute__((always_inline)) {
                return _mm_loadu_si128(reinterpret_cast<const __m128i *>(panel + (four >> (16 * c) & 0xffff) * 16));
            };
            __m512i x = _mm512_castsi128_si512(column(0));
            x = _mm512_inserti32x4(x, column(1), 1);
            x = _mm512_inserti32x4(x, column(2), 2);
            x = _mm512_inserti32x4(x, column(3), 3);
            const Words<64> fours = transpose_bytes<64>((Words<64>)_mm512_permutexvar_epi32(order, x));
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r)
                sum[chain][r] =
                    add_products<64>(sum[chain][r], fours, splat_word<64>(values + 4 * (q * group + r)));
        };
        std::int64_t q = 0;
        for (; q + chains <= count; q += chains)
#pragma GCC unroll 2
            for (int i = 0; i < chains; ++i) add(q + i, i);
        if constexpr (chains > 1)
            if (q < count) add(q, 0);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            if constexpr (chains > 1) sum[0][r] += sum[1][r];
            std::memcpy(sums + 16 * r, &sum[0][r], 64);
        }
    }
#else
    static constexpr bool joined = false;
#endif

    // Sums of R rows from `row` on to what they stand for, `bytes` tokens each.
    template <int R>
    static void finish(const Int8Problem &p, std::int64_t row, const float *low, const float *step,
                       const std::int32_t *sums, float *to) {
        for (int r = 0; r < R; ++r) {
            const float scale = p.scale[row + r], sum = static_cast<float>(p.sums[row + r]);
            for (int t = 0; t < bytes; t += lanes) {
                Words<4 * lanes> products;
                std::memcpy(&products, sums + r * bytes + t, sizeof products);
                const Wide product = __builtin_convertvector(products, Wide);
                store(to + r * bytes + t, (load<Wide>(step + t) * product + load<Wide>(low + t) * sum) * scale);
            }
        }
    }

    // y of up to `bytes` tokens and some row groups.
    template <bool single>
    static void tile(const Int8Problem &p, std::int64_t token, std::int64_t tokens, Range groups_of,
                     char *memory) {
        const std::int64_t padded = divide_up(p.in, bytes) * bytes;
        std::uint8_t *panel = reinterpret_cast<std::uint8_t *>(memory), *u = panel + padded * bytes;
        float *low = reinterpret_cast<float *>(u + padded * bytes), *step = low + bytes, *rows = step + bytes;
        for (std::int64_t t = 0; t < bytes; ++t) {
            if (t < tokens) {
                round_token(p.x + (token + t) * p.x_stride, p.in, padded, u + t * padded, low[t], step[t]);
            } else {  // repeat the last one: nothing reads these results
                std::memcpy(u + t * padded, u + (tokens - 1) * padded, padded);
                low[t] = step[t] = 0.0f;
            }
        }
        fill<single>(u, padded, panel);
        constexpr int most_rows = 16;
        alignas(64) std::int32_t rounded[8 * bytes];
        const std::int64_t chunk_groups = most_rows / p.group;
        for (std::int64_t begin = groups_of.begin; begin < groups_of.end; begin += chunk_groups) {
            const std::int64_t end = smaller(begin + chunk_groups, groups_of.end);
            const std::int64_t first_row = begin * p.group, end_row = smaller(end * p.group, p.out);
            for (std::int64_t t = 0; t < tokens; ++t) __builtin_prefetch(p.y + (token + t) * p.out + first_row, 1, 2);
            float *to = rows;
            for (std::int64_t g = begin; g < end; ++g) {
                const std::int64_t quad = p.pointers[g], count = p.pointers[g + 1] - quad;
                const std::int8_t *values = p.values + quad * p.group * 4;
                const std::uint16_t *columns = p.columns + 4 * quad;
                if constexpr (single && joined) {
                    const auto some = [&]<int R>(int r) {
                        multiply_joined<R>(values + 4 * r, p.group, columns, count, panel, rounded);
                        finish<R>(p, g * p.group + r, low, step, rounded, to);
                        to += R * bytes;
                    };
                    if (p.group == 2) some.template operator()<2>(0);
                    else if (p.group == 4) some.template operator()<4>(0);
                    else for (int r = 0; r < p.group; r += 8) some.template operator()<8>(r);
                } else {
                    const auto some = [&]<int R>(int r) {
                        multiply<R, single>(values + 4 * r, p.group, columns, count, panel, rounded);
                        finish<R>(p, g * p.group + r, low, step, rounded, to);
                        to += R * bytes;
                    };
                    if (p.group == 2) some.template operator()<2>(0);
                    else for (int r = 0; r < p.group; r += side_rows) some.template operator()<side_rows>(r);
                }
            }
            write_rows<bytes / lanes>(rows, nullptr, p.bias, first_row, end_row, p.y + token * p.out, p.out, tokens,
                                      static_cast<Activation>(p.activation));
        }
    }

    static std::int64_t memory(const Int8Problem &p) {
        return 2 * divide_up(p.in, bytes) * bytes * bytes + 64 + (2 + 16) * bytes * static_cast<int>(sizeof(float));
    }

    // As many tiles of this width as there are tokens for, the next narrower width takes the rest.
    static void run(const Int8Problem &p, std::int64_t token, std::int64_t end, Range groups_of) {
        constexpr int narrower = bytes > 16 ? bytes / 2 : 0;
        if (bytes < most_bytes && !p.columns && p.group == 16) return run_dense_rows(p, token, end, groups_of);
        char *memory_of = static_cast<char *>(sparsewright::scratch(memory(p)));
        while (end - token > narrower) {
            const std::int64_t tokens = smaller<std::int64_t>(end - token, bytes);
            if (p.columns) tile<true>(p, token, tokens, groups_of, memory_of);
            else tile<false>(p, token, tokens, groups_of, memory_of);
            token += tokens;
        }
        if constexpr (narrower > 0)
            if (token < end) Int8Lane<narrower>::run(p, token, end, groups_of);
    }
};

// One token: x stays as it is, and weights are widened while they stream by, since reading them is the cost.
template <int G, bool single>
__attribute__((noinline)) void single_int8_token(const Int8Problem &p, Range groups_of) {
    constexpr int vectors = 16 / lanes;                 // of four rows by four columns
    constexpr int chains = G == 4 ? 4 : G == 8 ? 2 : 1;  // independent sums per vector
    float last[4] = {};  // of x, where its length is no multiple of four
    const std::int64_t whole = p.in / 4;
    for (std::int64_t k = 4 * whole; k < p.in; ++k) last[k - 4 * whole] = p.x[k];
    for (std::int64_t g = groups_of.begin; g < groups_of.end; ++g) {
        const std::int64_t quad = p.pointers[g], count = p.pointers[g + 1] - quad;
        Wide sum[chains][G / 4][vectors] = {};
        const std::int8_t *w = p.values + quad * G * 4;
        const auto add = [&](std::int64_t q, int chain) __attribute__((always_inline)) {
            prefetch_weights<4 * G>(w + q * 4 * G);
            Wide x;
            if constexpr (single) x = repeat_columns(p.x, p.columns + 4 * (quad + q));
            else x = repeat_four(load<f4>(q < whole ? p.x + 4 * q : last));
#pragma GCC unroll 4
            for (int r = 0; r < G / 4; ++r)
#pragma GCC unroll 4
                for (int v = 0; v < vectors; ++v)
                    sum[chain][r][v] =
                        multiply_add(x, widen_weights(w + q * 4 * G + 16 * r + v * lanes), sum[chain][r][v]);
        };
        std::int64_t q = 0;
        for (; q + chains <= count; q += chains)
#pragma GCC unroll 4
            for (int i = 0; i < chains; ++i) add(q + i, i);
        for (; q < count; ++q) add(q, 0);
        for (int r = 0; r < G / 4; ++r) {
            float parts[16];
            for (int v = 0; v < vectors; ++v) {
                Wide all = sum[0][r][v];
                for (int i = 1; i < chains; ++i) all += sum[i][r][v];
                store(parts + v * lanes, all);
            }
            for (int i = 0; i < 4; ++i) {
                const std::int64_t row = g * G + 4 * r + i;
                if (row >= p.out) break;
                const float all = (parts[4 * i] + parts[4 * i + 1]) + (parts[4 * i + 2] + parts[4 * i + 3]);
                p.y[row] = p.bias ? all * p.scale[row] + p.bias[row] : all * p.scale[row];
            }
        }
    }
    const std::int64_t row = groups_of.begin * G, end_row = smaller(groups_of.end * G, p.out);
    activate(static_cast<Activation>(p.activation), p.y + row, p.out, 1, end_row - row);
}

// The same for pairs of rows, whose quads hold eight weights.
inline void single_int8_token_of_pairs(const Int8Problem &p, Range groups_of) {
    constexpr int width = sizeof(Eighth) / sizeof(float), vectors = 8 / width, chains = 4;
    for (std::int64_t g = groups_of.begin; g < groups_of.end; ++g) {
        const std::int64_t quad = p.pointers[g], count = p.pointers[g + 1] - quad;
        const std::int8_t *w = p.values + quad * 8;
        Eighth sum[chains][vectors] = {};
        const auto add = [&](std::int64_t q, int chain) __attribute__((always_inline)) {
            prefetch_weights<8>(w + 8 * q);
            const Eighth x = repeat_columns_twice(p.x, p.columns + 4 * (quad + q));
#pragma GCC unroll 2
            for (int v = 0; v < vectors; ++v)
                sum[chain][v] = multiply_add(x, widen_eighth(w + 8 * q + v * width), sum[chain][v]);
        };
        std::int64_t q = 0;
        for (; q + chains <= count; q += chains)
#pragma GCC unroll 4
            for (int i = 0; i < chains; ++i) add(q + i, i);
        for (; q < count; ++q) add(q, 0);
        float parts[8];
        for (int v = 0; v < vectors; ++v)
            store(parts + v * width, (sum[0][v] + sum[1][v]) + (sum[2][v] + sum[3][v]));
        for (int r = 0; r < 2 && 2 * g + r < p.out; ++r) {
            const std::int64_t row = 2 * g + r;
            const float all = (parts[4 * r] + parts[4 * r + 1]) + (parts[4 * r + 2] + parts[4 * r + 3]);
            p.y[row] = p.bias ? all * p.scale[row] + p.bias[row] : all * p.scale[row];
        }
    }
    const std::int64_t row = groups_of.begin * 2, end_row = smaller(groups_of.end * 2, p.out);
    activate(static_cast<Activation>(p.activation), p.y + row, p.out, 1, end_row - row);
}

template <int G> void single_int8_token(const Int8Problem &p, Range groups_of) {
    if (p.columns) single_int8_token<G, true>(p, groups_of);
    else single_int8_token<G, false>(p, groups_of);
}

}  // namespace
