// Tiles of tokens, for kernels whose vectors hold one column of x for many tokens: x is transposed panel by panel (a panel
// stays in the first-level cache), a body adds up rows of the weight, and y is transposed back at the end.
#pragma once

#include "activation.hpp"
#include "problem.hpp"
#include "simd.hpp"
#include "write_rows.hpp"

#include "../../_native/parallel.hpp"

namespace {

using sparsewright::LinearProblem;

// What sums that wait for the next panel take of the second-level cache. The rest is for weights.
inline std::int64_t sums_bytes(const LinearProblem &p) { return p.level2_bytes * 13 / 32; }

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

// A body has: `rows_of_group` rows that it adds up together; `most_vectors` of tokens in a tile, and the `widest` tile for
// a problem; how many groups run `side_by_side`; `panel_bytes` of x at a time; whether it `decodes` values before use; an
// `Item` for each group and block; and `groups`, which adds blocks of M groups to their sums.
template <class Body> struct TokenTiles {
    static constexpr int G = Body::rows_of_group;
    using Item = typename Body::Item;

    // Row groups after which y is written: whole lines of it, from sums that are still in the first-level cache.
    static constexpr std::int64_t chunk_groups = 32 / G;

    template <int NV>
    static void tile(const LinearProblem &p, std::int64_t token, std::int64_t tokens, std::int64_t next_tokens,
                     Range rows_of, std::int64_t passes, float *panel, float *sums, float *stage, Item *items) {
        constexpr int M = Body::side_by_side(NV), width = NV * lanes;
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
                    Body::template groups<M, NV>(p, g, blocks.begin, count, panel, chunk + (g - begin) * G * width,
                                                 items, stage);
                }
                if constexpr (M > 1)
                    for (; g < end; ++g)
                        Body::template groups<1, NV>(p, g, blocks.begin, count, panel, chunk + (g - begin) * G * width,
                                                     items, stage);
                if (!last) continue;
                const std::int64_t row = begin * G, end_row = smaller(end * G, p.out);
                write_rows<NV>(chunk, p.scale, p.bias, row, end_row, p.y + token * p.out, p.out, tokens,
                               static_cast<Activation>(p.activation));
            }
        }
    }

    // Tokens come in vectors of `lanes`; tiles are as equal as possible, since a narrow last tile is a slow one.
    static void run(const LinearProblem &p, Range vectors, Range groups_of) {
        const std::int64_t tiles = divide_up(vectors.end - vectors.begin, Body::widest(p));
        const std::int64_t width = divide_up(vectors.end - vectors.begin, tiles) * lanes;
        constexpr std::int64_t bytes = sizeof(float);
        const std::int64_t most = Body::panel_bytes(p) / (p.block_columns * width * bytes);
        const std::int64_t passes = divide_up(p.blocks, most > 1 ? most : 1);
        const std::int64_t pass_blocks = divide_up(p.blocks, passes);
        const std::int64_t side = Body::side_by_side(1);
        // With one pass, sums only live until their chunk is emptied.
        const std::int64_t fit = sums_bytes(p) / (width * G * bytes);
        const std::int64_t parts = passes == 1 ? 1 : divide_up(groups_of.end - groups_of.begin, fit > 16 ? fit : 16);
        const std::int64_t part_groups = passes == 1 ? chunk_groups : divide_up(groups_of.end - groups_of.begin, parts);
        const std::int64_t panel_floats = pass_blocks * p.block_columns * width;
        // Decoded values of one pass: at most one kept value per panel column, row and side-by-side group, each span
        // rounded up to whole vectors.
        std::int64_t stage = 0;
        if (Body::decodes) stage = side * pass_blocks * (p.block_columns * G + lanes);
        const std::int64_t sums_floats = (part_groups + 1) * G * width;
        const std::int64_t floats = panel_floats + sums_floats + stage;
        char *memory =
            static_cast<char *>(sparsewright::scratch(floats * bytes + 256 + side * pass_blocks * sizeof(Item)));
        float *panel = reinterpret_cast<float *>(memory);
        float *sums = panel + panel_floats / 16 * 16 + 16;
        float *staged = sums + sums_floats / 16 * 16 + 16;
        Item *items = reinterpret_cast<Item *>(staged + stage / 16 * 16 + 16);
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
                    tile<NV>(p, token, tokens, next, rows_of, passes, panel, sums, staged, items);
                };
                with_count<Body::most_vectors>(tile_of.end - tile_of.begin, call);
            }
        }
    }
};

}  // namespace
