// dx = dy W for packed W (out, in).
//
// Scatter, for 4 rows or more that share their columns: dy of a row group waits in registers while each of its kept
// columns adds to its sums, which lie in a panel in the first-level cache. Reads the operand of the forward kernels.
//
// Gather, for single rows and pairs: sums of a column stay in registers while the rows that keep it come by. Reads the
// operand of the transposed weight, whose `places` lead into the values of W: nothing is stale when values change.
//
// Either way every dx is one chain of multiply-adds in ascending row order: tile, thread and position do not matter.
#pragma once

#include "backward.hpp"

#include "../../_native/parallel.hpp"

namespace {

using sparsewright::LinearProblem;

template <int R, class V, int NV>
__attribute__((noinline)) void scatter(Span span, std::int64_t group, const float *dy, float *panel) {
    constexpr int width = NV * lanes_of<V>;
    V row[R][NV];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
        for (int v = 0; v < NV; ++v) row[r][v] = load<V>(dy + r * width + v * lanes_of<V>);
    // dy of the next rows, which the loop below has time to bring near.
#pragma GCC unroll 16
    for (int i = 0; i < R * width; i += 16) __builtin_prefetch(dy + R * width + i);
    const float *w = span.values;
    for (std::int64_t j = 0; j < span.count; ++j, w += group) {
        float *to = panel + span.index[j] * static_cast<std::int64_t>(width);
        V sum[NV];
#pragma GCC unroll 16
        for (int v = 0; v < NV; ++v) sum[v] = load<V>(to + v * lanes_of<V>);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const V weight = splat<V>(w[r]);
#pragma GCC unroll 16
            for (int v = 0; v < NV; ++v) sum[v] = multiply_add(weight, row[r][v], sum[v]);
        }
#pragma GCC unroll 16
        for (int v = 0; v < NV; ++v) store(to + v * lanes_of<V>, sum[v]);
    }
}

template <int G, class Value> struct InputGradByRows {
    // dy, sums and a weight must fit the registers.
    static constexpr int R = G == 4 || registers == 16 ? 4 : 8;
    static constexpr int most_vectors = registers == 32 && R == 4 ? 3 : 2;

    template <class V, int NV>
    static void tile(const LinearProblem &p, std::int64_t token, std::int64_t tokens, Range blocks, float *dy,
                     float *panel, float *stage) {
        constexpr int width = NV * lanes_of<V>;
        const Value *values = static_cast<const Value *>(p.values);
        to_panel<V, NV>(p.x + token * p.x_stride, p.x_stride, tokens, p.out, dy);
        std::memset(dy + p.out * width, 0, (p.groups * G - p.out) * width * sizeof(float));
        for (std::int64_t b = blocks.begin; b < blocks.end; ++b) {
            const std::int64_t begin = smaller(b * p.block_columns, p.in), end = smaller(begin + p.block_columns, p.in);
            std::memset(panel, 0, (end - begin) * width * sizeof(float));
            const std::int32_t *pointer = p.pointers + b * (p.groups + 1);
            for (std::int64_t g = 0; g < p.groups; ++g) {
                const std::int64_t from = pointer[g], count = pointer[g + 1] - from;
                Span span = {as_floats(values + from * G, count * G, stage), p.index + from, count};
                for (int r = 0; r < G; r += R, span.values += R)
                    scatter<R, V, NV>(span, G, dy + (g * G + r) * width, panel);
            }
            from_panel<V, NV>(panel, end - begin, p.y + token * p.in + begin, p.in, tokens);
        }
    }

    template <class V, int most> static void tiles(const LinearProblem &p, Range vectors, Range blocks) {
        constexpr int step = lanes_of<V>;
        const std::int64_t count = divide_up(vectors.end - vectors.begin, most);
        const std::int64_t width = divide_up(vectors.end - vectors.begin, count) * step;
        const std::int64_t dy_floats = p.groups * G * width, panel_floats = p.block_columns * width;
        const std::int64_t stage_floats = sizeof(Value) < sizeof(float) ? p.block_columns * G + lanes : 0;
        float *panel = static_cast<float *>(
            sparsewright::scratch((dy_floats + panel_floats + stage_floats) * sizeof(float) + 128));
        float *stage = panel + panel_floats;
        float *dy = stage + (stage_floats + 15) / 16 * 16;
        for (std::int64_t i = 0; i < count; ++i) {
            const Range tile_of = share(vectors.end - vectors.begin, count, i);
            const std::int64_t token = (vectors.begin + tile_of.begin) * step;
            const std::int64_t tokens = smaller((vectors.begin + tile_of.end) * step, p.tokens) - token;
            const auto call = [&]<int NV>() { tile<V, NV>(p, token, tokens, blocks, dy, panel, stage); };
            with_count<most>(tile_of.end - tile_of.begin, call);
        }
    }

    // `vectors` counts vectors of `lanes` tokens.
    static void run(const LinearProblem &p, Range vectors, Range blocks) {
        if (lanes > 4 && p.tokens <= 4) return tiles<Quarter, 1>(p, {0, 1}, blocks);
        if (lanes > 8 && p.tokens <= 8) return tiles<Half8, 1>(p, {0, 1}, blocks);
        tiles<Wide, most_vectors>(p, vectors, blocks);
    }
};

struct Places {  // what one column keeps in one block of row groups
    const std::uint8_t *index;
    const std::int32_t *place;
    std::int64_t count;
};

// Adds what M columns keep in one block to their sums of NV vectors of tokens.
template <int M, int G, class V, int NV, class Value>
__attribute__((noinline)) void gather_rows(const Places *places, const Value *values, const float *panel, float *sums,
                                           bool first) {
    constexpr int width = NV * lanes_of<V>;
    V sum[M][NV];
    std::int64_t common = places[0].count;
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
        common = smaller(common, places[m].count);
#pragma GCC unroll 16
        for (int v = 0; v < NV; ++v) sum[m][v] = first ? V{} : load<V>(sums + m * width + v * lanes_of<V>);
    }
    auto step = [&](int m, std::int64_t j) __attribute__((always_inline)) {
        const Value *w = values + places[m].place[j] * static_cast<std::int64_t>(G);
        const float *row = panel + places[m].index[j] * static_cast<std::int64_t>(G * width);
#pragma GCC unroll 16
        for (int r = 0; r < G; ++r) {
            const V weight = splat<V>(to_float(w[r]));
#pragma GCC unroll 16
            for (int v = 0; v < NV; ++v)
                sum[m][v] = multiply_add(weight, load<V>(row + r * width + v * lanes_of<V>), sum[m][v]);
        }
    };
    for (std::int64_t j = 0; j < common; ++j)
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m) step(m, j);
    if constexpr (M > 1)
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m)
            for (std::int64_t j = common; j < places[m].count; ++j) step(m, j);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 16
        for (int v = 0; v < NV; ++v) store(sums + m * width + v * lanes_of<V>, sum[m][v]);
}

// p describes the transposed operand: its `out` rows are columns of W (the width of dx), its `in` columns are row
// groups of W in blocks; `x` is dy (tokens, rows).
template <int G, class Value> struct InputGradByColumns {
    static constexpr int most_vectors = 8;
    static constexpr int side_by_side(int nv) { return nv <= 2 ? 4 : nv <= 4 ? 2 : 1; }

    // Halves that no instruction decodes would push the sums out of the registers: they become floats beforehand.
#if defined(__F16C__) || defined(__ARM_NEON)
    using Read = Value;
#else
    using Read = std::conditional_t<sizeof(Value) == 2, float, Value>;
#endif

    static const Read *readable(const LinearProblem &p) {
        const Value *values = static_cast<const Value *>(p.values);
        if constexpr (std::is_same_v<Read, Value>) {
            return values;
        } else {
            const std::int64_t count = p.pointers[p.blocks * (p.out + 1) - 1] * static_cast<std::int64_t>(G);
            void *memory = sparsewright::scratch((count + lanes) * sizeof(float), 1);
            return as_floats(values, count, static_cast<float *>(memory));
        }
    }

    template <class V, int NV>
    static void tile(const LinearProblem &p, std::int64_t token, std::int64_t tokens, Range columns, std::int64_t chunk,
                     const Read *values, float *dy, float *sums) {
        constexpr int width = NV * lanes_of<V>, M = side_by_side(NV);
        to_panel<V, NV>(p.x + token * p.x_stride, p.x_stride, tokens, p.rows, dy);
        std::memset(dy + p.rows * width, 0, (p.in * G - p.rows) * width * sizeof(float));
        for (std::int64_t begin = columns.begin; begin < columns.end; begin += chunk) {
            const std::int64_t end = smaller(begin + chunk, columns.end);
            for (std::int64_t b = 0; b < p.blocks; ++b) {
                const float *panel = dy + b * p.block_columns * G * width;
                const std::int32_t *pointer = p.pointers + b * (p.out + 1);
                const auto some = [&]<int N>(std::int64_t k) {
                    Places places[N];
                    for (int m = 0; m < N; ++m) {
                        const std::int64_t from = pointer[k + m];
                        places[m] = {p.index + from, p.places + from, pointer[k + m + 1] - from};
                    }
                    gather_rows<N, G, V, NV>(places, values, panel, sums + (k - begin) * width, b == 0);
                };
                std::int64_t k = begin;
                for (; k + M <= end; k += M) some.template operator()<M>(k);
                if constexpr (M > 1)
                    for (; k < end; ++k) some.template operator()<1>(k);
            }
            from_panel<V, NV>(sums, end - begin, p.y + token * p.out + begin, p.out, tokens);
        }
    }

    template <class V, int most> static void tiles(const LinearProblem &p, Range vectors, Range columns) {
        constexpr int step = lanes_of<V>;
        const std::int64_t count = divide_up(vectors.end - vectors.begin, most);
        const std::int64_t width = divide_up(vectors.end - vectors.begin, count) * step;
        const std::int64_t dy_floats = p.in * G * width;
        const std::int64_t fit = p.level2_bytes / 8 / (width * static_cast<std::int64_t>(sizeof(float)));
        const std::int64_t chunk = smaller(fit > 64 ? fit / 64 * 64 : 64, columns.end - columns.begin);
        const Read *values = readable(p);
        float *dy = static_cast<float *>(sparsewright::scratch((dy_floats + chunk * width) * sizeof(float)));
        for (std::int64_t i = 0; i < count; ++i) {
            const Range tile_of = share(vectors.end - vectors.begin, count, i);
            const std::int64_t token = (vectors.begin + tile_of.begin) * step;
            const std::int64_t tokens = smaller((vectors.begin + tile_of.end) * step, p.tokens) - token;
            const auto call = [&]<int NV>() {
                tile<V, NV>(p, token, tokens, columns, chunk, values, dy, dy + dy_floats);
            };
            with_count<most>(tile_of.end - tile_of.begin, call);
        }
    }

    static void run(const LinearProblem &p, Range vectors, Range columns) {
        if (lanes > 4 && p.tokens <= 4) return tiles<Quarter, 1>(p, {0, 1}, columns);
        if (lanes > 8 && p.tokens <= 8) return tiles<Half8, 1>(p, {0, 1}, columns);
        tiles<Wide, most_vectors>(p, vectors, columns);
    }
};

}  // namespace
