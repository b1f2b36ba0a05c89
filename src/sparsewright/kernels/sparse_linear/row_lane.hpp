// Row lanes: a vector holds 8 (or 4) output rows of one group, and one input value is broadcast to it. Serves shared
// patterns at small batches (any group of 4 or more) and every batch at groups of 8 and 16. Neither x nor y is
// transposed. Sums are one chain of multiply-adds in ascending column order, so results do not depend on the tile.
#pragma once

#include <type_traits>

#include "activation.hpp"
#include "problem.hpp"
#include "simd.hpp"

#include "../../_native/parallel.hpp"

namespace {

using sparsewright::LinearProblem;

// Weights that stay in the second-level cache over all tokens.
inline std::int64_t weight_bytes(const LinearProblem &p) { return registers == 32 ? p.level2_bytes / 4 : 192 * 1024; }
// Columns of x that stay in the first-level cache: as many as a tile of tokens leaves room for.
constexpr std::int64_t x_columns = registers == 32 ? 512 : 1024;
// Floats between the rows of a copied tile of x: known to the compiler, so that one register addresses all its rows, and
// no multiple of what falls into the same cache sets.
constexpr std::int64_t x_step = x_columns + 16;

template <int G, class Value> struct RowLane {
    using V = std::conditional_t<(G >= lanes), Wide, std::conditional_t<(G == 8 && lanes > 8), f8, f4>>;
    static constexpr int width = sizeof(V) / sizeof(float);
    static constexpr int vectors = G / width;
    // Sums, the weights they share and the input must fit the registers.
    static constexpr int most_tokens = registers == 32 ? (vectors == 1 ? 14 : vectors == 2 ? 8 : 5)
                                                       : vectors == 1 ? 8 : vectors == 2 ? 6 : 3;

    // y of MT tokens and one row group; starts from y unless `first`, adds the bias if `last`.
    template <int MT, bool copied>
    static __attribute__((noinline)) void tile(const LinearProblem &p, std::int64_t g, Range blocks, const float *x,
                            float *y, std::int64_t y_stride, const float *scale, const float *bias,
                            bool first) {
        V sum[MT][vectors];
#pragma GCC unroll 16
        for (int t = 0; t < MT; ++t)
#pragma GCC unroll 16
            for (int v = 0; v < vectors; ++v) sum[t][v] = first ? V{} : load<V>(y + t * y_stride + v * width);
        for (std::int64_t b = blocks.begin; b < blocks.end; ++b) {
            const std::int32_t *pointer = p.pointers + b * (p.groups + 1) + g;
            const Value *values = static_cast<const Value *>(p.values) + pointer[0] * static_cast<std::int64_t>(G);
            const std::uint8_t *index = p.index + pointer[0], *end = p.index + pointer[1];
            const float *const block_x = x + (b - blocks.begin) * p.block_columns;
            const std::int64_t x_stride = copied ? x_step : p.x_stride;
            for (; index != end; ++index, values += G) {
                const float *const at = block_x + *index;
                V weight[vectors];
#pragma GCC unroll 16
                for (int v = 0; v < vectors; ++v) weight[v] = load<V>(values + v * width);
#pragma GCC unroll 16
                for (int t = 0; t < MT; ++t) {
                    const V one = splat<V>(at[t * x_stride]);
#pragma GCC unroll 16
                    for (int v = 0; v < vectors; ++v) sum[t][v] = multiply_add(one, weight[v], sum[t][v]);
                }
            }
        }
#pragma GCC unroll 16
        for (int t = 0; t < MT; ++t)
#pragma GCC unroll 16
            for (int v = 0; v < vectors; ++v) {
                const V times = scale ? load<V>(scale + v * width) : V{}, more = bias ? load<V>(bias + v * width) : V{};
                store(y + t * y_stride + v * width,
                      finished(sum[t][v], scale != nullptr, times, bias != nullptr, more));
            }
    }

    template <int MT, bool copied>
    static void groups(const LinearProblem &p, Range groups_of, Range blocks, const float *x, std::int64_t token) {
        const bool first = blocks.begin == 0, last = blocks.end == p.blocks;
        float *y = p.y + token * p.out;
        for (std::int64_t g = groups_of.begin; g < groups_of.end; ++g) {
            const float *bias = last && p.bias ? p.bias + g * G : nullptr;
            const float *scale = last && p.scale ? p.scale + g * G : nullptr;
            if (g * G + G <= p.out) {
                tile<MT, copied>(p, g, blocks, x, y + g * G, p.out, scale, bias, first);
                continue;
            }
            // The last group is short: work on a copy with room for whole vectors.
            float sums[MT][G] = {}, short_bias[G] = {};
            const int live = static_cast<int>(p.out - g * G);
            for (int t = 0; t < MT && !first; ++t)
                for (int r = 0; r < live; ++r) sums[t][r] = y[t * p.out + g * G + r];
            for (int r = 0; r < live && bias; ++r) short_bias[r] = bias[r];
            tile<MT, copied>(p, g, blocks, x, sums[0], G, scale, bias ? short_bias : nullptr, first);
            for (int t = 0; t < MT; ++t)
                for (int r = 0; r < live; ++r) y[t * p.out + g * G + r] = sums[t][r];
        }
        if (!last) return;
        const std::int64_t row = groups_of.begin * G, end_row = smaller(groups_of.end * G, p.out);
        activate(static_cast<Activation>(p.activation), y + row, p.out, MT, end_row - row);
    }

    static void run(const LinearProblem &p, Range tokens, Range groups_of) {
        const std::int64_t count = tokens.end - tokens.begin;
        const std::int64_t tiles = divide_up(count, most_tokens);
        // Copied where there are more rows than registers to address them, and where rows a multiple of 4 KB apart
        // would fall into the same cache sets.
        const bool copy = count > 1 && (most_tokens > 8 || p.x_stride * sizeof(float) % 4096 == 0);
        const std::int64_t pass_blocks = x_columns / p.block_columns > 1 ? x_columns / p.block_columns : 1;
        const std::int64_t passes = divide_up(p.blocks, pass_blocks);
        float *const copied = static_cast<float *>(sparsewright::scratch(most_tokens * x_step * sizeof(float)));
        for (std::int64_t pass = 0; pass < passes; ++pass) {
            const Range blocks = share(p.blocks, passes, pass);
            const std::int64_t begin = smaller(blocks.begin * p.block_columns, p.in);
            const std::int64_t end = smaller(blocks.end * p.block_columns, p.in);
            const std::int32_t *const first = p.pointers + blocks.begin * (p.groups + 1);
            const std::int64_t kept = p.pointers[blocks.end * (p.groups + 1) - 1] - *first;
            const std::int64_t group_bytes = (kept / p.groups + 1) * G * static_cast<std::int64_t>(sizeof(Value));
            const std::int64_t parts = divide_up(group_bytes * (groups_of.end - groups_of.begin), weight_bytes(p));
            for (std::int64_t part = 0; part < parts; ++part) {
                Range some = share(groups_of.end - groups_of.begin, parts, part);
                some = {some.begin + groups_of.begin, some.end + groups_of.begin};
                for (std::int64_t i = 0; i < tiles; ++i) {
                    const Range tile_of = share(count, tiles, i);
                    const std::int64_t token = tokens.begin + tile_of.begin;
                    const float *x = p.x + token * p.x_stride + begin;
                    for (std::int64_t t = 0; copy && t < tile_of.end - tile_of.begin; ++t)
                        std::memcpy(copied + t * x_step, x + t * p.x_stride, (end - begin) * sizeof(float));
                    const auto call = [&]<int MT>() {
                        if (copy) groups<MT, true>(p, some, blocks, copied, token);
                        else groups<MT, false>(p, some, blocks, x, token);
                    };
                    with_count<most_tokens>(tile_of.end - tile_of.begin, call);
                }
            }
        }
    }
};

}  // namespace
