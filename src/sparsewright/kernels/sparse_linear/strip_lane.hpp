// Strips: four rows of a single-row operand that keep two of every four rows and columns (2:4t). Every column of a strip is
// kept by exactly two of its rows, so that a vector of x, once read, feeds two sums; single rows read it once for each.
//
// The columns of a strip and block are sorted by which two rows keep them: within each of the six runs the rows are known
// to the compiler. `turned`, the strips are four columns of W and the columns its rows: the same loop computes dx.
//
// Every output is one chain of fused multiply-adds, run after run and ascending in each, whatever the tile, thread or
// position in the batch.
#pragma once

#include <type_traits>

#include "token_tiles.hpp"

namespace {

// The two rows of each run.
constexpr int strip_runs = 6;
constexpr int first_row[strip_runs] = {0, 0, 1, 0, 1, 2};
constexpr int second_row[strip_runs] = {1, 2, 2, 3, 3, 3};

// One strip in one block. A record holds the column in its lowest byte; not turned, the places of the two values in their
// rows' runs of values in the bytes above.
struct Strip {
    const std::uint32_t *records;
    const std::uint16_t *counts;
    const float *values[4];  // of each row; turned, of the block's first row only
};

// Adds `blocks` blocks of M strips to the sums of NV vectors of tokens. Turned, the values of a column are a pair, and
// `step` floats lie from one column's to the next one's.
template <int M, int NV, bool turned>
__attribute__((noinline)) void add_strips(const Strip *strips, std::int64_t blocks, const float *panel,
                                          std::int64_t block_columns, std::int64_t step, float *sums, bool first) {
    constexpr int width = NV * lanes;
    Wide sum[M][4][NV];
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 16
        for (int r = 0; r < 4; ++r)
#pragma GCC unroll 16
            for (int v = 0; v < NV; ++v)
                sum[m][r][v] = first ? Wide{} : load<Wide>(sums + (m * 4 + r) * width + v * lanes);
    for (std::int64_t b = 0; b < blocks; ++b, strips += M, panel += block_columns * width) {
        const std::uint32_t *record[M];
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m) record[m] = strips[m].records;
        const auto run = [&]<int K>(std::integral_constant<int, K>) __attribute__((always_inline)) {
            constexpr int one = first_row[K], two = second_row[K];
            const float *row_one[M], *row_two[M];
            int left[M], common = strips[0].counts[K];
#pragma GCC unroll 16
            for (int m = 0; m < M; ++m) {
                row_one[m] = strips[m].values[turned ? 0 : one];
                row_two[m] = turned ? row_one[m] + 1 : strips[m].values[two];
                left[m] = strips[m].counts[K];
                common = left[m] < common ? left[m] : common;
            }
            const auto add = [&](int m) __attribute__((always_inline)) {
                const std::uint32_t bits = *record[m]++;
                const std::uint64_t column = bits & 0xff;
                const std::uint64_t step_of = column * static_cast<std::uint64_t>(step);
                const float *of_one = row_one[m] + (turned ? step_of : bits >> 8 & 0xff);
                const float *of_two = row_two[m] + (turned ? step_of : bits >> 16);
                const float *at = panel + column * static_cast<std::uint64_t>(width);
                Wide x[NV];
#pragma GCC unroll 16
                for (int v = 0; v < NV; ++v) x[v] = load<Wide>(at + v * lanes);
                Wide weight = splat<Wide>(*of_one);
#pragma GCC unroll 16
                for (int v = 0; v < NV; ++v) sum[m][one][v] = multiply_add(weight, x[v], sum[m][one][v]);
                weight = splat<Wide>(*of_two);
#pragma GCC unroll 16
                for (int v = 0; v < NV; ++v) sum[m][two][v] = multiply_add(weight, x[v], sum[m][two][v]);
            };
            for (int j = 0; j < common; ++j)
#pragma GCC unroll 16
                for (int m = 0; m < M; ++m) add(m);
            if constexpr (M > 1)
#pragma GCC unroll 16
                for (int m = 0; m < M; ++m)
                    for (int j = common; j < left[m]; ++j) add(m);
        };
        run(std::integral_constant<int, 0>{});
        run(std::integral_constant<int, 1>{});
        run(std::integral_constant<int, 2>{});
        run(std::integral_constant<int, 3>{});
        run(std::integral_constant<int, 4>{});
        run(std::integral_constant<int, 5>{});
    }
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 16
        for (int r = 0; r < 4; ++r)
#pragma GCC unroll 16
            for (int v = 0; v < NV; ++v) store(sums + (m * 4 + r) * width + v * lanes, sum[m][r][v]);
}

// A problem whose groups are strips. Its records come block by block, strip by strip, one for each column; `counts`, six
// for each strip, alike.
template <class Value, bool turned> struct StripLane {
    static constexpr bool many = registers == 32;
    static constexpr int rows_of_group = 4;
    static constexpr bool decodes = sizeof(Value) < sizeof(float);
    using Item = Strip;
    // On other sets than AVX-512, where single rows are as fast, just enough to be right.
    static constexpr int most_vectors = lanes == 16 ? 6 : 2;
    static constexpr int side_by_side(int nv) { return nv == 1 ? (many ? 4 : 2) : many && nv <= 3 ? 2 : 1; }
    static std::int64_t widest(const LinearProblem &) { return most_vectors; }
    static std::int64_t panel_bytes(const LinearProblem &p) { return p.level1_bytes * 13 / 16; }

    // Where the values of four columns of W begin in row `row` of W, and how many floats lie between rows.
    static const float *pairs(const LinearProblem &p, std::int64_t strip, std::int64_t row, std::int64_t &step) {
        const std::int64_t block = 4 * strip / p.turned_columns;
        const std::int32_t *pointer = p.pointers + block * (p.in + 1);
        step = pointer[1] - pointer[0];
        const std::int64_t inside = 4 * strip - block * p.turned_columns;
        return static_cast<const float *>(p.values) + pointer[0] + row * step + inside / 2;
    }

    template <int M, int NV>
    static void groups(const LinearProblem &p, std::int64_t g, std::int64_t block, std::int64_t blocks,
                       const float *panel, float *sums, Strip *strips, float *stage) {
        // Strips of two blocks of W: their rows lie different steps apart.
        if (turned && M > 1 && 4 * (g + M - 1) / p.turned_columns != 4 * g / p.turned_columns) {
            for (int m = 0; m < M; ++m)
                groups<1, NV>(p, g + m, block, blocks, panel, sums + m * 4 * NV * lanes, strips, stage);
            return;
        }
        std::int64_t step = 0;
        Strip *strip = strips;
        for (std::int64_t b = block; b < block + blocks; ++b) {
            const std::int64_t begin = b * p.block_columns, columns = smaller(p.block_columns, p.in - begin);
            const std::int32_t *pointer = turned ? nullptr : p.pointers + b * (4 * p.groups + 1) + 4 * g;
            for (int m = 0; m < M; ++m, ++strip) {
                strip->records = p.records + begin * p.groups + (g + m) * columns;
                strip->counts = p.counts + (b * p.groups + g + m) * strip_runs;
                if constexpr (turned) {
                    strip->values[0] = pairs(p, g + m, begin, step);
                } else {
                    const std::int32_t *of = pointer + 4 * m, count = of[4] - of[0];
                    const float *values = as_floats(static_cast<const Value *>(p.values) + of[0], count, stage);
                    for (int r = 0; r < 4; ++r) strip->values[r] = values + (of[r] - of[0]);
                    if (decodes) stage += (count + lanes - 1) / lanes * lanes;
                }
            }
        }
        add_strips<M, NV, turned>(strips, blocks, panel, p.block_columns, step, sums, block == 0);
    }

    static void run(const LinearProblem &p, Range vectors, Range strips) {
        TokenTiles<StripLane>::run(p, vectors, strips);
    }
};

}  // namespace
