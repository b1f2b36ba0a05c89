// n:m:g with one token: reading the weights is the cost, so every tile is read once, in order. Products are summed
// place by place over the chunks, since all tiles of a row block are built alike, and folded to rows at the end.
#pragma once

#include "activation.hpp"
#include "nmg_problem.hpp"
#include "simd.hpp"

#include "../../_native/parallel.hpp"

namespace {

using sparsewright::NmgProblem;

// N: values of a slot, or 0 where they are more than four.
template <int N, class Value> struct NmgToken {
    // x of every slot's column, once for each of its values. Writes up to 3 floats past the end.
    template <bool gaps>
    static __attribute__((noinline)) void spread(const NmgProblem &p, const float *x, const std::int16_t *index,
                                                 float *inputs) {
        const std::int64_t slots = p.patterns * p.g, n = N > 0 ? N : p.n;
        const auto one = [&](std::int64_t s) __attribute__((always_inline)) {
            // Unfilled slots have zero weights.
            const float input = !gaps || index[s] >= 0 ? x[index[s]] : 0.0f;
            float *to = inputs + s * n;
            if constexpr (N == 1) {
                *to = input;
            } else {
                store(to, splat<f4>(input));
                if constexpr (N == 0)
                    for (std::int64_t j = 4; j < n; j += 4) store(to + j, splat<f4>(input));
            }
        };
        std::int64_t s = 0;
        for (; s + 4 <= slots; s += 4)
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) one(s + i);
        for (; s < slots; ++s) one(s);
    }

    static __attribute__((noinline)) void add_products(const Value *values, const float *inputs, std::int64_t count,
                                                       float *sums) {
        std::int64_t i = 0;
        for (; i + lanes <= count; i += lanes)
            store(sums + i, multiply_add(load<Wide>(values + i), load<Wide>(inputs + i), load<Wide>(sums + i)));
        for (; i < count; ++i) sums[i] += to_float(values[i]) * inputs[i];
    }

    // Sums of all places to the rows of a block. Reads up to 3 floats past the end.
    static __attribute__((noinline)) void fold(const NmgProblem &p, const float *sums, float *row) {
        const std::int64_t n = N > 0 ? N : p.n;
        for (std::int64_t r = 0; r < p.m; ++r) row[r] = 0;
        for (std::int64_t q = 0; q < p.patterns; ++q, sums += p.g * n) {
            const std::uint8_t *rows = p.rows + q * n;
            if constexpr (N == 1) {
                f4 four = {};
                std::int64_t s = 0;
                for (; s + 4 <= p.g; s += 4) four += load<f4>(sums + s);
                float rest = 0;
                for (; s < p.g; ++s) rest += sums[s];
                row[rows[0]] += ((four[0] + four[1]) + (four[2] + four[3])) + rest;
            } else {
                for (std::int64_t j = 0; j < n; j += 4) {
                    f4 four = {};
                    for (std::int64_t s = 0; s < p.g; ++s) four += load<f4>(sums + s * n + j);
                    for (std::int64_t i = 0; i < 4 && j + i < n; ++i) row[rows[j + i]] += four[i];
                }
            }
        }
    }

    static void run(const NmgProblem &p, Range blocks) {
        const std::int64_t slots = p.patterns * p.g, places = slots * p.n, room = places / 16 * 16 + 32;
        float *sums = static_cast<float *>(sparsewright::scratch(3 * room * sizeof(float)));
        // Two of them, because vectors cannot be read from the many small writes of a moment ago.
        float *inputs[2] = {sums + room, sums + 2 * room};
        const Value *values = static_cast<const Value *>(p.values);
        const std::int64_t tiles = (blocks.end - blocks.begin) * p.chunks;
        const auto prepare = [&](std::int64_t i) {
            const std::int64_t c = i % p.chunks, tile = c * p.blocks + blocks.begin + i / p.chunks;
            const auto how = (c + 1) * slots > p.in ? spread<true> : spread<false>;
            how(p, p.x + c * slots, p.index + tile * slots, inputs[i % 2]);
        };
        prepare(0);
        std::int64_t i = 0;
        for (std::int64_t b = blocks.begin; b < blocks.end; ++b) {
            std::memset(sums, 0, room * sizeof(float));
            for (std::int64_t c = 0; c < p.chunks; ++c, ++i) {
                if (i + 1 < tiles) prepare(i + 1);
                add_products(values + (c * p.blocks + b) * places, inputs[i % 2], places, sums);
            }
            float row[256];
            fold(p, sums, row);
            const std::int64_t first = b * p.m, live = smaller(p.m, p.out - first);
            for (std::int64_t r = 0; r < live; ++r) p.y[first + r] = p.bias ? row[r] + p.bias[first + r] : row[r];
        }
        const std::int64_t row = blocks.begin * p.m, end_row = smaller(blocks.end * p.m, p.out);
        activate(static_cast<Activation>(p.activation), p.y + row, p.out, 1, end_row - row);
    }
};

}  // namespace
