// n:m:g with one token: reading the weights is the cost, so every tile is read once, in order. Products are summed place
// by place over the chunks, since all tiles of a row block are built alike, and folded to rows at the end.
#pragma once

#include "nmg_problem.hpp"
#include "simd.hpp"

#include "../../_native/parallel.hpp"

namespace {

using sparsewright::NmgProblem;

template <class Value> struct NmgToken {
    // x of every slot's column, once for each of its values. Reads and writes up to 3 floats past the end.
    static void spread(const NmgProblem &p, const float *x, const std::int16_t *index, bool whole, float *inputs) {
        const std::int64_t slots = p.patterns * p.g;
        for (std::int64_t s = 0; s < slots; ++s, inputs += p.n) {
            // Unfilled slots have zero weights.
            const float input = whole || index[s] >= 0 ? x[index[s]] : 0.0f;
            if (p.n == 1) {
                inputs[0] = input;
            } else {
                for (std::int64_t j = 0; j < p.n; j += 4) store(inputs + j, splat<f4>(input));
            }
        }
    }

    static __attribute__((noinline)) void add_products(const Value *values, const float *inputs, std::int64_t count,
                                                       float *sums) {
        std::int64_t i = 0;
        for (; i + lanes <= count; i += lanes)
            store(sums + i, multiply_add(load<Wide>(values + i), load<Wide>(inputs + i), load<Wide>(sums + i)));
        for (; i < count; ++i) sums[i] += to_float(values[i]) * inputs[i];
    }

    // Sums of all places to the rows of a block.
    static void fold(const NmgProblem &p, const float *sums, float *row) {
        for (std::int64_t r = 0; r < p.m; ++r) row[r] = 0;
        for (std::int64_t q = 0; q < p.patterns; ++q, sums += p.g * p.n) {
            const std::uint8_t *rows = p.rows + q * p.n;
            if (p.n == 1) {
                f4 four = {};
                std::int64_t s = 0;
                for (; s + 4 <= p.g; s += 4) four += load<f4>(sums + s);
                float rest = 0;
                for (; s < p.g; ++s) rest += sums[s];
                row[rows[0]] += ((four[0] + four[1]) + (four[2] + four[3])) + rest;
                continue;
            }
            for (std::int64_t j = 0; j < p.n; j += 4) {
                f4 four = {};
                for (std::int64_t s = 0; s < p.g; ++s) four += load<f4>(sums + s * p.n + j);
                for (std::int64_t i = 0; i < 4 && j + i < p.n; ++i) row[rows[j + i]] += four[i];
            }
        }
    }

    static void run(const NmgProblem &p, Range blocks) {
        const std::int64_t slots = p.patterns * p.g, places = slots * p.n;
        float *sums = static_cast<float *>(sparsewright::scratch((2 * places + 32) * sizeof(float)));
        float *inputs = sums + places / 16 * 16 + 16;
        const Value *values = static_cast<const Value *>(p.values);
        for (std::int64_t b = blocks.begin; b < blocks.end; ++b) {
            std::memset(sums, 0, (places + 4) * sizeof(float));
            for (std::int64_t c = 0; c < p.chunks; ++c) {
                const std::int64_t tile = c * p.blocks + b;
                spread(p, p.x + c * slots, p.index + tile * slots, (c + 1) * slots <= p.in, inputs);
                add_products(values + tile * places, inputs, places, sums);
            }
            float row[256];
            fold(p, sums, row);
            const std::int64_t first = b * p.m, live = smaller(p.m, p.out - first);
            for (std::int64_t r = 0; r < live; ++r) p.y[first + r] = p.bias ? row[r] + p.bias[first + r] : row[r];
        }
    }
};

}  // namespace
