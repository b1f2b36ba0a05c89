// n:m:g with vectors of tokens: x is transposed chunk by chunk, a chunk of it stays in the first-level cache while all
// row blocks are multiplied with it. The sums of the n rows that a pattern keeps stay in registers over its g columns;
// at the next pattern one of them changes its row.
//
// Every output is one chain of fused multiply-adds, chunk by chunk in the order of the patterns, whatever the tile,
// thread or position in the batch: results do not depend on them.
#pragma once

#include "activation.hpp"
#include "nmg_problem.hpp"
#include "token_lane.hpp"

namespace {

using sparsewright::NmgProblem;

// Places of a pattern whose sums are kept in registers at a time. Wider patterns are gone through several times.
constexpr int most_places = 4;

// From one pattern to the next: the place that changes, the row it leaves and the row it takes.
struct Move {
    std::int16_t place;
    std::uint8_t from, to;
};

struct NmgPass {
    std::int64_t chunks;       // to go through
    std::int64_t patterns, g, n;
    std::int64_t tile_values;  // floats from one row block to the next
    std::int64_t next_values;  // floats from one chunk to the next
    std::int64_t next_slots;   // slots from one chunk to the next
    std::int64_t columns;      // of a chunk
    std::int64_t m;
    int place;                 // first place, where a pattern has more than fit the registers
    const Move *moves;         // (patterns) how to come to each; the first one is unused
    const std::uint8_t *first, *last;  // rows of the first and the last pattern
};

// Adds J places of M row blocks to their sums for NV vectors of tokens. `gaps`: slots may be unfilled.
// A function of its own, never inlined: in the midst of others the compiler spills the sums.
template <int M, int J, int NV, bool gaps>
__attribute__((noinline)) void accumulate_nmg(const NmgPass &pass, const float *values, const std::int16_t *index,
                                              const float *panel, float *sums) {
    constexpr int width = NV * lanes;
    const std::int64_t block_sums = pass.m * width, slots = pass.patterns * pass.g;
    Wide sum[M][J][NV];
    const auto get = [&](int j, std::int64_t row) __attribute__((always_inline)) {
#pragma GCC unroll 16
        for (int b = 0; b < M; ++b)
#pragma GCC unroll 16
            for (int v = 0; v < NV; ++v) sum[b][j][v] = load<Wide>(sums + b * block_sums + row * width + v * lanes);
    };
    const auto put = [&](int j, std::int64_t row) __attribute__((always_inline)) {
#pragma GCC unroll 16
        for (int b = 0; b < M; ++b)
#pragma GCC unroll 16
            for (int v = 0; v < NV; ++v) store(sums + b * block_sums + row * width + v * lanes, sum[b][j][v]);
    };
    const auto step = [&](int b, const float *w, const float *x) __attribute__((always_inline)) {
        // The fewer of weights and inputs wait in registers.
        if constexpr (J > NV && registers == 16) {
            Wide column[NV];
#pragma GCC unroll 16
            for (int v = 0; v < NV; ++v) column[v] = load<Wide>(x + v * lanes);
#pragma GCC unroll 16
            for (int j = 0; j < J; ++j) {
                const Wide weight = splat<Wide>(w[j]);
#pragma GCC unroll 16
                for (int v = 0; v < NV; ++v) sum[b][j][v] = multiply_add(weight, column[v], sum[b][j][v]);
            }
        } else {
            Wide weight[J];
#pragma GCC unroll 16
            for (int j = 0; j < J; ++j) weight[j] = splat<Wide>(w[j]);
#pragma GCC unroll 16
            for (int v = 0; v < NV; ++v) {
                const Wide column = load<Wide>(x + v * lanes);
#pragma GCC unroll 16
                for (int j = 0; j < J; ++j) sum[b][j][v] = multiply_add(weight[j], column, sum[b][j][v]);
            }
        }
    };
    for (std::int64_t c = 0; c < pass.chunks; ++c) {
        const float *w = values + c * pass.next_values + pass.place;
        const std::int16_t *slot = index + c * pass.next_slots;
#pragma GCC unroll 16
        for (int j = 0; j < J; ++j) get(j, pass.first[j]);
        for (std::int64_t q = 0;;) {
            for (std::int64_t s = 0; s < pass.g; ++s, ++slot, w += pass.n) {
#pragma GCC unroll 16
                for (int b = 0; b < M; ++b) {
                    const std::int64_t column = slot[b * slots];
                    if (gaps && column < 0) continue;
                    step(b, w + b * pass.tile_values, panel + column * width);
                }
            }
            if (++q == pass.patterns) break;
            const Move move = pass.moves[q];
#pragma GCC unroll 16
            for (int j = 0; j < J; ++j)
                if (move.place == j) {
                    put(j, move.from);
                    get(j, move.to);
                }
        }
#pragma GCC unroll 16
        for (int j = 0; j < J; ++j) put(j, pass.last[j]);
        panel += pass.columns * width;
    }
}

template <int J, class Value> struct NmgLane {
    static constexpr int most_sums = registers == 32 ? 24 : 12;
    // More tokens at a time read the weights less often, but their panel must stay near.
    static constexpr int most_vectors = registers == 32 ? (J == 3 ? 8 : 4) : J == 2 ? 6 : J == 4 ? 3 : 4;
    // Row blocks side by side: independent sums hide the latency of a multiply-add.
    static constexpr int side_by_side(int nv) {
        const int fit = most_sums / (J * nv);
        return J == 1 && fit >= 4 ? 4 : fit >= 2 ? 2 : 1;
    }

    // Sizes of one call, and what is the same for all its tiles.
    const NmgProblem &p;
    std::int64_t slots, tile_values, tile_slots;
    Move moves[sparsewright::most_patterns];

    explicit NmgLane(const NmgProblem &problem) : p(problem) {
        slots = p.patterns * p.g;
        tile_values = slots * p.n;
        for (std::int64_t q = 1; q < p.patterns; ++q) {
            const std::uint8_t *from = p.rows + (q - 1) * p.n, *to = p.rows + q * p.n;
            int j = 0;
            while (j + 1 < p.n && from[j] == to[j]) ++j;
            moves[q] = {static_cast<std::int16_t>(j), from[j], to[j]};
        }
    }

    // Row blocks after which y is written: whole vectors of rows, at least 32 rows.
    std::int64_t step_blocks() const {
        std::int64_t blocks = 1;
        while (blocks * p.m % lanes != 0 || blocks * p.m < 32) ++blocks;
        return blocks;
    }

    template <int M, int NV>
    void blocks(std::int64_t block, Range chunks, const float *panel, float *sums, float *stage) const {
        constexpr int width = NV * lanes;
        const std::int64_t tile = chunks.begin * p.blocks + block;
        const Value *values = static_cast<const Value *>(p.values) + tile * tile_values;
        NmgPass pass{chunks.end - chunks.begin, p.patterns, p.g, p.n, tile_values, p.blocks * tile_values,
                     p.blocks * slots, slots, p.m, 0, nullptr, nullptr, nullptr};
        const float *w;
        if constexpr (sizeof(Value) == 2) {
            for (std::int64_t c = 0; c < pass.chunks; ++c)
                as_floats(values + c * pass.next_values, M * tile_values, stage + c * M * tile_values);
            w = stage;
            pass.next_values = M * tile_values;
        } else {
            w = values;
        }
        places<M, NV>(pass, chunks, w, p.index + tile * slots, panel, sums, width);
    }

    // All places of the patterns, J at a time. Chunk by chunk where that takes several turns, so that the order of a
    // row's sums does not depend on how many chunks go together.
    template <int M, int NV>
    void places(NmgPass pass, Range chunks, const float *w, const std::int16_t *index, const float *panel, float *sums,
                int width) const {
        const bool turns = p.n > J;
        const bool gaps = chunks.end * slots > p.in;
        const std::int64_t calls = turns ? pass.chunks : gaps ? 2 : 1;
        for (std::int64_t call = 0; call < calls; ++call) {
            const Range part = turns ? Range{call, call + 1}
                               : calls == 1 ? Range{0, pass.chunks}
                               : call == 0 ? Range{0, pass.chunks - 1} : Range{pass.chunks - 1, pass.chunks};
            if (part.begin == part.end) continue;
            const bool short_chunk = gaps && part.end == pass.chunks;
            NmgPass some = pass;
            some.chunks = part.end - part.begin;
            const float *values = w + part.begin * pass.next_values;
            const std::int16_t *slot = index + part.begin * pass.next_slots;
            const float *x = panel + part.begin * slots * width;
            std::int64_t place = 0;
            for (; place + J <= p.n; place += J) turn<M, J, NV>(some, place, short_chunk, values, slot, x, sums);
            if constexpr (J == most_places) {
                const auto rest = [&]<int R>() { turn<M, R, NV>(some, place, short_chunk, values, slot, x, sums); };
                if (place < p.n) with_count<J - 1>(p.n - place, rest);
            }
        }
    }

    template <int M, int R, int NV>
    void turn(NmgPass &pass, std::int64_t place, bool gaps, const float *values, const std::int16_t *index,
              const float *panel, float *sums) const {
        Move here[sparsewright::most_patterns];
        pass.place = static_cast<int>(place);
        pass.first = p.rows + place;
        pass.last = p.rows + (p.patterns - 1) * p.n + place;
        pass.moves = moves;
        if (place > 0) {
            for (std::int64_t q = 1; q < p.patterns; ++q)
                here[q] = {static_cast<std::int16_t>(moves[q].place - place), moves[q].from, moves[q].to};
            pass.moves = here;
        }
        if (!gaps) return accumulate_nmg<M, R, NV, false>(pass, values, index, panel, sums);
        constexpr int width = NV * lanes;
        for (int b = 0; b < M; ++b)
            accumulate_nmg<1, R, NV, true>(pass, values + b * tile_values, index + b * slots, panel,
                                           sums + b * p.m * width);
    }

    template <int NV>
    void tile(std::int64_t token, std::int64_t tokens, std::int64_t next_tokens, Range blocks_of, std::int64_t passes,
              float *panel, float *sums, float *stage) const {
        constexpr int M = side_by_side(NV), width = NV * lanes;
        const float *x = p.x + token * p.x_stride;
        const std::int64_t step = step_blocks();
        for (std::int64_t pass = 0; pass < passes; ++pass) {
            const Range chunks = share(p.chunks, passes, pass);
            fill_panel<NV>(x, p.x_stride, tokens, chunks.begin * slots, smaller(chunks.end * slots, p.in), panel);
            const bool last = pass + 1 == passes;
            const Range next = share(p.chunks, passes, last ? 0 : pass + 1);
            Ahead x_ahead{x + next.begin * slots + (last ? tokens * p.x_stride : 0), p.x_stride,
                          last ? next_tokens : tokens, smaller(next.end * slots, p.in) - next.begin * slots};
            const std::int64_t x_lines = divide_up(x_ahead.lines() * M, blocks_of.end - blocks_of.begin);
            const auto y_of = [&](std::int64_t begin) -> Ahead {
                const std::int64_t end = smaller(begin + step, blocks_of.end);
                if (!last || begin >= end) return {};
                return {p.y + token * p.out + begin * p.m, p.out, tokens, smaller(end * p.m, p.out) - begin * p.m};
            };
            // y of some rows is fetched while the rows before them are summed up.
            y_of(blocks_of.begin).template fetch<true>(INT64_MAX);
            for (std::int64_t begin = blocks_of.begin; begin < blocks_of.end; begin += step) {
                const std::int64_t end = smaller(begin + step, blocks_of.end);
                Ahead y_ahead = y_of(end);
                const std::int64_t y_lines = divide_up(y_ahead.lines() * M, end - begin);
                float *rows = passes == 1 ? sums : sums + (begin - blocks_of.begin) * p.m * width;
                if (pass == 0) std::memset(rows, 0, (end - begin) * p.m * width * sizeof(float));
                std::int64_t b = begin;
                for (; b + M <= end; b += M) {
                    x_ahead.template fetch<false>(x_lines);
                    y_ahead.template fetch<true>(y_lines);
                    blocks<M, NV>(b, chunks, panel, rows + (b - begin) * p.m * width, stage);
                }
                if constexpr (M > 1)
                    for (; b < end; ++b) blocks<1, NV>(b, chunks, panel, rows + (b - begin) * p.m * width, stage);
                if (!last) continue;
                const std::int64_t row = begin * p.m, end_row = smaller(end * p.m, p.out);
                write_rows<NV>(rows, nullptr, p.bias, row, end_row, p.y + token * p.out, p.out, tokens,
                               static_cast<Activation>(p.activation));
            }
        }
    }

    // Tokens come in vectors of `lanes`; tiles are as equal as possible, since a narrow last tile is a slow one.
    static void run(const NmgProblem &p, Range vectors, Range blocks_of) {
        const NmgLane lane(p);
        const std::int64_t count = vectors.end - vectors.begin, blocks_count = blocks_of.end - blocks_of.begin;
        const std::int64_t tiles = divide_up(count, most_vectors);
        const std::int64_t width = divide_up(count, tiles) * lanes;
        constexpr std::int64_t bytes = sizeof(float);
        const std::int64_t fit = p.level1_bytes * 13 / 16 / (lane.slots * width * bytes);
        const std::int64_t passes = divide_up(p.chunks, fit > 1 ? fit : 1);
        const std::int64_t pass_chunks = divide_up(p.chunks, passes), step = lane.step_blocks();
        // With one pass, sums only live until their rows are written.
        const std::int64_t most = p.level2_bytes * 13 / 32 / (width * p.m * bytes);
        const std::int64_t parts = passes == 1 ? 1 : divide_up(blocks_count, most > step ? most / step * step : step);
        const std::int64_t part_blocks = passes == 1 ? step : divide_up(blocks_count, parts);
        const std::int64_t panel_floats = pass_chunks * lane.slots * width;
        const std::int64_t sums_floats = part_blocks * p.m * width;
        const std::int64_t stage = sizeof(Value) == 2 ? pass_chunks * 4 * (lane.tile_values + lanes) : 0;
        float *panel = static_cast<float *>(
            sparsewright::scratch((panel_floats + sums_floats + stage) * bytes + 256));
        float *sums = panel + panel_floats / 16 * 16 + 16;
        float *staged = sums + sums_floats / 16 * 16 + 16;
        for (std::int64_t part = 0; part < parts; ++part) {
            const Range share_of = share(blocks_count, parts, part);
            const Range some = {blocks_of.begin + share_of.begin, blocks_of.begin + share_of.end};
            for (std::int64_t i = 0; i < tiles; ++i) {
                const Range tile_of = share(count, tiles, i);
                const std::int64_t token = (vectors.begin + tile_of.begin) * lanes;
                const std::int64_t tokens = smaller((vectors.begin + tile_of.end) * lanes, p.tokens) - token;
                const std::int64_t rest = smaller(vectors.end * lanes, p.tokens) - token - tokens;
                const std::int64_t next = smaller(rest, width);
                const auto call = [&]<int NV>() {
                    lane.template tile<NV>(token, tokens, next, some, passes, panel, sums, staged);
                };
                with_count<most_vectors>(tile_of.end - tile_of.begin, call);
            }
        }
    }
};

}  // namespace
