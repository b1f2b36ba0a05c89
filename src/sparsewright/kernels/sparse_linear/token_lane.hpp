// Token lanes: a vector holds one column of x for 8 tokens, and a weight is broadcast to it. Serves every group size
// from about 4 tokens on. x is transposed panel by panel (a panel stays in the first-level cache), y at the end.
//
// Every output is one chain of fused multiply-adds in ascending column order, whatever the tile, thread or position in
// the batch: results do not depend on them.
#pragma once

#include "activation.hpp"
#include "problem.hpp"
#include "simd.hpp"
#include "write_rows.hpp"

#include "../../_native/parallel.hpp"

namespace {

using sparsewright::LinearProblem;

// Shares of a core's caches: what a panel of x takes, and what sums that wait for the next panel take of the second
// level. The rest is for weights. A panel lies in the first level, or in the second where every vector of x that is read
// feeds many sums: rare weights then run over more columns at a time, and sums wait less often.
inline std::int64_t panel_bytes(const LinearProblem &p) {
    const std::int64_t kept = p.pointers[p.blocks * (p.groups + 1) - 1];
    const bool rare = 10 * kept < 3 * p.groups * p.in;
    if (registers == 32 && p.group >= 8) return p.level2_bytes / 10;
    if (registers == 32 && p.group == 4 && rare) return p.level2_bytes / 20;
    return p.level1_bytes * 13 / 16;
}
inline std::int64_t sums_bytes(const LinearProblem &p) { return p.level2_bytes * 13 / 32; }

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

// x of `tokens` (at most NV * lanes) tokens, columns begin..end, to panel[column - begin][NV * lanes].
// Lanes without a token repeat the last one: nothing reads their results.
template <int NV>
__attribute__((noinline)) void fill_panel(const float *x, std::int64_t x_stride, std::int64_t tokens, std::int64_t begin,
                       std::int64_t end, float *panel) {
    constexpr int width = NV * lanes;
    for (int v = 0; v < NV; ++v) {
        const float *row[lanes];
        for (int i = 0; i < lanes; ++i) row[i] = x + smaller<std::int64_t>(v * lanes + i, tokens - 1) * x_stride;
        float *to = panel + v * lanes;
        std::int64_t k = begin;
        for (; k + lanes <= end; k += lanes) {
            Wide column[lanes];
            read_columns(row, k, column);
#pragma GCC unroll 16
            for (int i = 0; i < lanes; ++i) store(to + i * width, column[i]);
            to += lanes * width;
        }
        for (; k < end; ++k, to += width)
            for (int i = 0; i < lanes; ++i) to[i] = row[i][k];
    }
}

// A rectangle of floats to bring near while the processor multiplies: large batches lie in far caches.
struct Ahead {
    const float *row = nullptr;
    std::int64_t stride = 0, rows = 0, columns = 0, column = 0;

    template <bool to_write> void fetch(std::int64_t lines) {
        for (; lines > 0 && rows > 0; --lines) {
            __builtin_prefetch(row + column, to_write, 2);
            column += 16;
            if (column >= columns) {
                column = 0;
                row += stride;
                --rows;
            }
        }
    }
    std::int64_t lines() const { return rows * divide_up(columns, 16); }
};

template <int G, class Value> struct TokenLane {
    // How many rows of a group, and how many row groups, run side by side for NV vectors of tokens. At least 8
    // independent sums hide the latency of a multiply-add; sums plus operands must fit the registers.
    static constexpr bool many = registers == 32;
    static constexpr int most_vectors = G == 1 ? (many ? 4 : 8) : G == 2 ? (many ? 4 : 6) : many && G == 4 ? 4 : 3;
    static constexpr int rows(int nv) {
        if (G <= 4) return G;
        return nv == 1 || (many && nv <= 3) ? 8 : 4;
    }
    static constexpr int side_by_side(int nv) {
        if (G == 1) return nv <= 2 || (lanes == 16 && nv <= 4) ? 4 : nv <= 4 ? 2 : 1;
        if (G == 2) return nv == 1 ? 4 : nv <= 3 || (many && nv <= 4) ? 2 : 1;
        return G == 4 && nv == 1 ? 2 : 1;
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

    // Row groups after which y is written: whole lines of it, from sums that are still in the first-level cache.
    static constexpr std::int64_t chunk_groups = 32 / G;

    template <int NV>
    static void tile(const LinearProblem &p, std::int64_t token, std::int64_t tokens, std::int64_t next_tokens,
                     Range rows_of, std::int64_t passes, float *panel, float *sums, float *stage, Span *spans) {
        constexpr int M = side_by_side(NV), width = NV * lanes;
        const float *x = p.x + token * p.x_stride;
        for (std::int64_t pass = 0; pass < passes; ++pass) {
            const Range blocks = share(p.blocks, passes, pass);
            const std::int64_t count = blocks.end - blocks.begin;
            fill_panel<NV>(x, p.x_stride, tokens, smaller(blocks.begin * p.block_columns, p.in),
                           smaller(blocks.end * p.block_columns, p.in), panel);
            const bool last = pass + 1 == passes;
            const Range next = share(p.blocks, passes, last ? 0 : pass + 1);
            const std::int64_t next_begin = smaller(next.begin * p.block_columns, p.in);
            Ahead x_ahead{x + next_begin + (last ? tokens * p.x_stride : 0), p.x_stride, last ? next_tokens : tokens,
                          smaller(next.end * p.block_columns, p.in) - next_begin};
            const std::int64_t steps = rows_of.end - rows_of.begin;
            const std::int64_t x_lines = divide_up(x_ahead.lines() * M, steps);
            const auto y_of = [&](std::int64_t begin) -> Ahead {
                const std::int64_t end = smaller(begin + chunk_groups, rows_of.end);
                if (!last || begin >= end) return {};
                return {p.y + token * p.out + begin * G, p.out, tokens, smaller(end * G, p.out) - begin * G};
            };
            // y of a chunk is fetched while the chunk before it is summed up.
            y_of(rows_of.begin).template fetch<true>(INT64_MAX);
            for (std::int64_t begin = rows_of.begin; begin < rows_of.end; begin += chunk_groups) {
                const std::int64_t end = smaller(begin + chunk_groups, rows_of.end);
                Ahead y_ahead = y_of(end);
                const std::int64_t y_lines = divide_up(y_ahead.lines() * M, end - begin);
                float *const chunk = passes == 1 ? sums : sums + (begin - rows_of.begin) * G * width;
                std::int64_t g = begin;
                for (; g + M <= end; g += M) {
                    x_ahead.template fetch<false>(x_lines);
                    y_ahead.template fetch<true>(y_lines);
                    groups<M, NV>(p, g, blocks.begin, count, panel, chunk + (g - begin) * G * width, spans, stage);
                }
                if constexpr (M > 1)
                    for (; g < end; ++g)
                        groups<1, NV>(p, g, blocks.begin, count, panel, chunk + (g - begin) * G * width, spans, stage);
                if (!last) continue;
                const std::int64_t row = begin * G, end_row = smaller(end * G, p.out);
                write_rows<NV>(chunk, p.scale, p.bias, row, end_row, p.y + token * p.out, p.out, tokens,
                               static_cast<Activation>(p.activation));
            }
        }
    }

    // Tokens come in vectors of `lanes`; tiles are as equal as possible, since a narrow last tile is a slow one.
    static void run(const LinearProblem &p, Range vectors, Range groups_of) {
        const std::int64_t tiles = divide_up(vectors.end - vectors.begin, most_vectors);
        const std::int64_t width = divide_up(vectors.end - vectors.begin, tiles) * lanes;
        constexpr std::int64_t bytes = sizeof(float);
        const std::int64_t most = panel_bytes(p) / (p.block_columns * width * bytes);
        const std::int64_t passes = divide_up(p.blocks, most > 1 ? most : 1);
        const std::int64_t pass_blocks = divide_up(p.blocks, passes);
        const std::int64_t side = side_by_side(1);
        // With one pass, sums only live until their chunk is emptied.
        const std::int64_t fit = sums_bytes(p) / (width * G * bytes);
        const std::int64_t parts = passes == 1 ? 1 : divide_up(groups_of.end - groups_of.begin, fit > 16 ? fit : 16);
        const std::int64_t part_groups = passes == 1 ? chunk_groups : divide_up(groups_of.end - groups_of.begin, parts);
        const std::int64_t panel_floats = pass_blocks * p.block_columns * width;
        // Decoded values of one pass: at most one kept value per panel column, row and side-by-side group, each span
        // rounded up to whole vectors.
        std::int64_t stage = 0;
        if (sizeof(Value) < sizeof(float)) stage = side * pass_blocks * (p.block_columns * G + lanes);
        const std::int64_t sums_floats = (part_groups + 1) * G * width;
        const std::int64_t floats = panel_floats + sums_floats + stage;
        char *memory =
            static_cast<char *>(sparsewright::scratch(floats * bytes + 256 + side * pass_blocks * sizeof(Span)));
        float *panel = reinterpret_cast<float *>(memory);
        float *sums = panel + panel_floats / 16 * 16 + 16;
        float *staged = sums + sums_floats / 16 * 16 + 16;
        Span *spans = reinterpret_cast<Span *>(staged + stage / 16 * 16 + 16);
        for (std::int64_t part = 0; part < parts; ++part) {
            const Range share_of = share(groups_of.end - groups_of.begin, parts, part);
            const Range rows_of = {groups_of.begin + share_of.begin, groups_of.begin + share_of.end};
            for (std::int64_t i = 0; i < tiles; ++i) {
                const Range tile_of = share(vectors.end - vectors.begin, tiles, i);
                const std::int64_t token = (vectors.begin + tile_of.begin) * lanes;
                const std::int64_t tokens = smaller((vectors.begin + tile_of.end) * lanes, p.tokens) - token;
                const std::int64_t rest = smaller(vectors.end * lanes, p.tokens) - token - tokens;
                const std::int64_t next = smaller(rest, width);
                const auto call = [&]<int NV>() {
                    tile<NV>(p, token, tokens, next, rows_of, passes, panel, sums, staged, spans);
                };
                with_count<most_vectors>(tile_of.end - tile_of.begin, call);
            }
        }
    }
};

}  // namespace
