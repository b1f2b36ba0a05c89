// Token lanes: a vector holds one column of x for 8 tokens, and a weight is broadcast to it. Serves every group size
// from about 4 tokens on.
//
// Every output is one chain of fused multiply-adds in ascending column order, whatever the tile, thread or position in
// the batch: results do not depend on them.
#pragma once

#include "token_tiles.hpp"

namespace {

struct Span {  // the kept values of one row group in one block
    const float *values;
    const std::uint8_t *index;
    std::int64_t count;
};

// Adds `blocks` blocks of M row groups, R rows each, to the sums of NV vectors of tokens.
// values step `group` floats per kept column; M * R * NV sums and what multiplies them must fit 16 registers.
// A function of its own, never inlined: in the midst of others the compiler spills the sums.
template <int M, int R, int NV>
__attribute__((noinline)) void accumulate(const Span *spans, std::int64_t blocks, const float *panel,
                                          std::int64_t block_columns, int group, float *sums, std::int64_t sums_step,
                                          bool first) {
    constexpr int width = NV * lanes;
    Wide sum[M][R][NV];
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
            for (int v = 0; v < NV; ++v)
                sum[m][r][v] = first ? Wide{} : load<Wide>(sums + m * sums_step + r * width + v * lanes);
    auto step = [&](int m, const float *w, const float *x) __attribute__((always_inline)) {
        if constexpr (R > NV || (R == NV && R > 2) || NV <= 3) {
            Wide column[NV];
#pragma GCC unroll 16
            for (int v = 0; v < NV; ++v) column[v] = load<Wide>(x + v * lanes);
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) {
                const Wide weight = splat<Wide>(w[r]);
#pragma GCC unroll 16
                for (int v = 0; v < NV; ++v) sum[m][r][v] = multiply_add(weight, column[v], sum[m][r][v]);
            }
        } else {
            Wide weight[R];
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) weight[r] = splat<Wide>(w[r]);
#pragma GCC unroll 16
            for (int v = 0; v < NV; ++v) {
                const Wide column = load<Wide>(x + v * lanes);
#pragma GCC unroll 16
                for (int r = 0; r < R; ++r) sum[m][r][v] = multiply_add(weight[r], column, sum[m][r][v]);
            }
        }
    };
    for (std::int64_t b = 0; b < blocks; ++b, spans += M, panel += block_columns * width) {
        const float *values[M];
        const std::uint8_t *index[M];
        std::int64_t common = spans[0].count;
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m) {
            values[m] = spans[m].values;
            index[m] = spans[m].index;
            common = smaller(common, spans[m].count);
        }
        std::int64_t j = 0;
        if constexpr (R == 1 && multiplies_from_memory) {
            // Eight indices at a time: the loads they would take belong to x and the weights.
            for (; j + 8 <= common; j += 8) {
                std::uint64_t word[M];
#pragma GCC unroll 16
                for (int m = 0; m < M; ++m) std::memcpy(&word[m], index[m] + j, 8);
#pragma GCC unroll 8
                for (int i = 0; i < 8; ++i)
#pragma GCC unroll 16
                    for (int m = 0; m < M; ++m)
                        step(m, values[m] + i, panel + (word[m] >> (8 * i) & 0xff) * static_cast<std::uint64_t>(width));
#pragma GCC unroll 16
                for (int m = 0; m < M; ++m) values[m] += 8;
            }
        }
        for (; j < common; ++j) {
#pragma GCC unroll 16
            for (int m = 0; m < M; ++m) {
                step(m, values[m], panel + index[m][j] * static_cast<std::int64_t>(width));
                values[m] += group;
            }
        }
        if constexpr (M > 1) {
#pragma GCC unroll 16
            for (int m = 0; m < M; ++m)
                for (std::int64_t j = common; j < spans[m].count; ++j) {
                    step(m, values[m], panel + index[m][j] * static_cast<std::int64_t>(width));
                    values[m] += group;
                }
        }
    }
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
            for (int v = 0; v < NV; ++v) store(sums + m * sums_step + r * width + v * lanes, sum[m][r][v]);
}

template <int G, class Value> struct TokenLane {
    // How many rows of a group, and how many row groups, run side by side for NV vectors of tokens. At least 8
    // independent sums hide the latency of a multiply-add; sums plus operands must fit the registers.
    static constexpr bool many = registers == 32;
    static constexpr int rows_of_group = G;
    static constexpr bool decodes = sizeof(Value) < sizeof(float);
    using Item = Span;
    static constexpr int most_vectors = G == 1   ? (many && lanes < 16 ? 4 : 8)
                                        : G == 2 ? (many ? 4 : 6)
                                                 : (many && G == 4 ? 4 : 3);
    static constexpr int rows(int nv) {
        if (G <= 4) return G;
        return nv == 1 || (many && nv <= 3) ? 8 : 4;
    }
    static constexpr int side_by_side(int nv) {
        if (G == 1) return nv <= 2 ? 4 : lanes == 16 || nv <= 4 ? 2 : 1;
        if (G == 2) return nv == 1 ? 4 : nv <= 3 || (many && nv <= 4) ? 2 : 1;
        return G == 4 && nv == 1 ? 2 : 1;
    }

    // A panel of x lies in the first-level cache, or in the second where every vector of x that is read feeds many sums:
    // rare weights then run over more columns at a time, and sums wait less often. The rest of the caches is for weights.
    static std::int64_t panel_bytes(const LinearProblem &p) {
        const std::int64_t kept = p.pointers[p.blocks * (p.groups + 1) - 1];
        const bool rare = 10 * kept < 3 * p.groups * p.in;
        if (many && G >= 8) return p.level2_bytes / 10;
        if (many && G == 4 && rare) return p.level2_bytes / 20;
        return p.level1_bytes * 13 / 16;
    }

    // The wider a tile of single rows, the fewer weights are read for each vector of x; but its panel of one block must
    // still fit the first-level cache, which takes short blocks.
    static std::int64_t widest(const LinearProblem &p) {
        if (G > 1 || lanes < 16) return most_vectors;
        const std::int64_t fit = panel_bytes(p) / (p.block_columns * static_cast<std::int64_t>(sizeof(Wide)));
        return fit < 4 ? 4 : smaller<std::int64_t>(fit, most_vectors);
    }

    template <int M, int NV>
    static void groups(const LinearProblem &p, std::int64_t g, std::int64_t block, std::int64_t blocks,
                       const float *panel, float *sums, Span *spans, float *stage) {
        constexpr int R = rows(NV), width = NV * lanes;
        const Value *values = static_cast<const Value *>(p.values);
        Span *span = spans;
        for (std::int64_t b = block; b < block + blocks; ++b) {
            const std::int32_t *pointer = p.pointers + b * (p.groups + 1) + g;
            for (int m = 0; m < M; ++m, ++span) {
                const std::int64_t begin = pointer[m], count = pointer[m + 1] - begin;
                *span = {as_floats(values + begin * G, count * G, stage), p.index + begin, count};
                if (sizeof(Value) < sizeof(float)) stage += (count * G + lanes - 1) / lanes * lanes;
            }
        }
        for (int r = 0; r < G; r += R) {
            if (r)
                for (Span *s = spans; s != span; ++s) s->values += R;
            accumulate<M, R, NV>(spans, blocks, panel, p.block_columns, G, sums + r * width, G * width, block == 0);
        }
    }

    static void run(const LinearProblem &p, Range vectors, Range groups_of) {
        TokenTiles<TokenLane>::run(p, vectors, groups_of);
    }
};

}  // namespace
