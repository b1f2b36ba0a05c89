// Convolutions by token lanes, an output pixel being a token: panels of inputs are unfolded tile by tile and stay in the
// first-level cache, where the inner loop of sparse linear multiplies them. Pixels lie side by side in an image, so a
// panel is filled by copying runs of rows, and nothing is transposed unless channels come last.
//
// Every output is one chain of multiply-adds in ascending column order, whatever the tile, thread or place in the batch.
#pragma once

#include "../sparse_linear/token_lane.hpp"
#include "../sparse_linear/write_rows.hpp"
#include "image.hpp"

namespace {

struct Run {  // neighbouring outputs of one row of the image
    std::int64_t from, to, count;
};

// Where outputs begin..end of the image read, for the weight at row 0, column 0 of the kernel.
inline std::int64_t cut_runs(const ConvProblem &p, const Image &image, std::int64_t begin, std::int64_t end, Run *runs) {
    std::int64_t count = 0;
    for (std::int64_t at = begin; at < end; ++count) {
        const std::int64_t h = at / image.out_w, w = at % image.out_w;
        runs[count] = {h * p.stride_h * image.row + w, at - begin, smaller(image.out_w - w, end - at)};
        at += runs[count].count;
    }
    return count;
}

// Inputs of `width` outputs for the columns begin..end. Columns that nobody keeps are left as they are.
inline void unfold(const float *data, bool loose, const std::int64_t *offsets, const std::uint8_t *used, const Run *runs,
                   std::int64_t run_count, std::int64_t begin, std::int64_t end, std::int64_t tokens,
                   std::int64_t width, float *panel) {
    for (std::int64_t k = begin; k < end; ++k, panel += width) {
        if (!used[k]) continue;
        const float *from = data + offsets[k];
        if (loose) {
            // Runs ascend, so what a vector writes too much is written over by the next run or column.
            for (const Run *run = runs; run != runs + run_count; ++run)
                for (std::int64_t i = 0; i < run->count; i += lanes)
                    store(panel + run->to + i, load<Wide>(from + run->from + i));
        } else {
            for (const Run *run = runs; run != runs + run_count; ++run)
                copy_floats(panel + run->to, from + run->from, run->count);
        }
        // Nothing reads the sums of lanes without an output, but what they multiply must not slow the processor down.
        for (std::int64_t i = tokens; i < width; ++i) panel[i] = 0.0f;
    }
}

// y[row][pixel] = sums[row - begin][pixel] + bias[row], channels first.
inline void write_planes(const float *sums, std::int64_t width, const float *bias, std::int64_t begin, std::int64_t end,
                         float *y, std::int64_t y_stride, std::int64_t tokens) {
    for (std::int64_t row = begin; row < end; ++row, sums += width) {
        float *to = y + row * y_stride;
        const Wide more = splat<Wide>(bias ? bias[row] : 0.0f);
        for (std::int64_t i = 0; i < tokens; i += lanes) store_some(to + i, load<Wide>(sums + i) + more, tokens - i);
    }
}

template <int G, class Value> struct Convolution {
    using Lane = TokenLane<G, Value>;
    // Images are seldom so large that wider tiles of single rows would pay for their code.
    static constexpr int most_vectors = Lane::most_vectors < 4 || lanes < 16 ? Lane::most_vectors : 4;

    struct Memory {
        float *panel, *sums, *stage;
        Span *spans;
        std::int64_t *offsets;
        Run *runs;
    };

    struct Work {
        const Image &image;
        float *y;                  // of this image
        Range rows_of;             // row groups, all of one group of channels
        std::int64_t passes;
        Memory memory;
    };

    // Inputs that the next panel reads. Where an image is unfolded it has just been written and is near anyway.
    static Ahead next_panel(const ConvProblem &p, const Work &work, std::int64_t pass, std::int64_t begin,
                            std::int64_t tokens, std::int64_t next_tokens) {
        if (p.kernel_h * p.kernel_w != 1 || work.image.out_h != 1) return {};
        const bool last = pass + 1 == work.passes;
        const Range blocks = share(p.weight.blocks, work.passes, last ? 0 : pass + 1);
        const std::int64_t first = smaller(blocks.begin * p.weight.block_columns, p.weight.in);
        const std::int64_t rows = smaller(blocks.end * p.weight.block_columns, p.weight.in) - first;
        return stretched(work.image.data + work.memory.offsets[first] + begin + (last ? tokens : 0), work.image.channel,
                         last && !next_tokens ? 0 : rows, last ? next_tokens : tokens);
    }

    // Rows seldom begin with a line of the cache, so that they may end in one more.
    static Ahead stretched(const float *row, std::int64_t stride, std::int64_t rows, std::int64_t columns) {
        return {row, stride, rows > 0 ? rows : 0, columns + 15};
    }

    template <int NV>
    static void tile(const ConvProblem &p, const Work &work, std::int64_t begin, std::int64_t tokens,
                     std::int64_t next_tokens) {
        constexpr int M = Lane::side_by_side(NV), width = NV * lanes;
        const LinearProblem &weight = p.weight;
        const Memory &memory = work.memory;
        const std::int64_t pixels = p.out_h * p.out_w;
        const std::int64_t runs = cut_runs(p, work.image, begin, begin + tokens, memory.runs);
        for (std::int64_t pass = 0; pass < work.passes; ++pass) {
            const Range blocks = share(weight.blocks, work.passes, pass);
            unfold(work.image.data, work.image.loose, memory.offsets, p.used, memory.runs, runs,
                   smaller(blocks.begin * weight.block_columns, weight.in),
                   smaller(blocks.end * weight.block_columns, weight.in), tokens, width, memory.panel);
            const bool last = pass + 1 == work.passes;
            Ahead x_ahead = next_panel(p, work, pass, begin, tokens, next_tokens);
            const std::int64_t x_lines = divide_up(x_ahead.lines() * M, work.rows_of.end - work.rows_of.begin);
            // y of a chunk is fetched while the chunk before it is summed up.
            const auto y_of = [&](std::int64_t of) -> Ahead {
                const std::int64_t row = of * G, end = smaller(of + TokenTiles<Lane>::chunk_groups, work.rows_of.end) * G;
                const std::int64_t rows = smaller(end, weight.out) - row;
                if (!last || of >= work.rows_of.end) return {};
                if (p.channels_last) return stretched(work.y + begin * weight.out + row, weight.out, tokens, rows);
                return stretched(work.y + row * pixels + begin, pixels, rows, tokens);
            };
            y_of(work.rows_of.begin).template fetch<true>(INT64_MAX);
            for (std::int64_t chunk = work.rows_of.begin; chunk < work.rows_of.end; chunk += TokenTiles<Lane>::chunk_groups) {
                const std::int64_t end = smaller(chunk + TokenTiles<Lane>::chunk_groups, work.rows_of.end);
                float *sums = memory.sums + (work.passes == 1 ? 0 : (chunk - work.rows_of.begin) * G * width);
                Ahead y_ahead = y_of(end);
                const std::int64_t y_lines = divide_up(y_ahead.lines() * M, end - chunk);
                std::int64_t g = chunk;
                for (; g + M <= end; g += M) {
                    x_ahead.template fetch<false>(x_lines);
                    y_ahead.template fetch<true>(y_lines);
                    Lane::template groups<M, NV>(weight, g, blocks.begin, blocks.end - blocks.begin, memory.panel,
                                                 sums + (g - chunk) * G * width, memory.spans, memory.stage);
                }
                if constexpr (M > 1)
                    for (; g < end; ++g)
                        Lane::template groups<1, NV>(weight, g, blocks.begin, blocks.end - blocks.begin, memory.panel,
                                                     sums + (g - chunk) * G * width, memory.spans, memory.stage);
                if (!last) continue;
                const std::int64_t row_end = smaller(end * G, weight.out);
                if (p.channels_last)
                    write_rows<NV>(sums, nullptr, weight.bias, chunk * G, row_end, work.y + begin * weight.out, weight.out, tokens);
                else
                    write_planes(sums, width, weight.bias, chunk * G, row_end, work.y + begin, pixels, tokens);
            }
        }
    }

    // Offset in the image of every column of one group of channels, for the output at 0, 0.
    static void find_offsets(const ConvProblem &p, const Image &image, std::int64_t conv_group, std::int64_t *offsets) {
        const std::int64_t channels = p.channels / p.conv_groups;
        for (std::int64_t c = conv_group * channels; c < (conv_group + 1) * channels; ++c)
            for (std::int64_t i = 0; i < p.kernel_h; ++i)
                for (std::int64_t j = 0; j < p.kernel_w; ++j) {
                    const std::int64_t across = j * p.dilation_w;
                    *offsets++ = c * image.channel + i * p.dilation_h * image.row +
                                 across % p.stride_w * image.phase + across / p.stride_w;
                }
    }

    // One image: outputs in vectors of `lanes`, cut into tiles as equal as possible, for a share of every group's rows.
    static void run(const ConvProblem &p, const Image &image, float *y, Range vectors, Range share_of_groups,
                    std::int64_t shares) {
        const LinearProblem &weight = p.weight;
        constexpr std::int64_t bytes = sizeof(float);
        const std::int64_t widest = smaller<std::int64_t>(Lane::widest(weight), most_vectors);
        const std::int64_t tiles = divide_up(vectors.end - vectors.begin, widest);
        const std::int64_t width = divide_up(vectors.end - vectors.begin, tiles) * lanes;
        const std::int64_t most = Lane::panel_bytes(weight) / (weight.block_columns * width * bytes);
        const std::int64_t passes = divide_up(weight.blocks, most > 1 ? most : 1);
        const std::int64_t pass_blocks = divide_up(weight.blocks, passes);
        const std::int64_t group_rows = weight.groups / p.conv_groups;
        const std::int64_t fit = sums_bytes(weight) / (width * G * bytes);
        const std::int64_t most_rows = passes == 1 ? group_rows : fit > 16 ? fit : 16;
        const std::int64_t side = Lane::side_by_side(1);
        const std::int64_t panel_floats = pass_blocks * weight.block_columns * width + lanes;
        const std::int64_t sums_floats = ((passes == 1 ? TokenTiles<Lane>::chunk_groups : most_rows) + 1) * G * width;
        const std::int64_t stage =
            sizeof(Value) == 2 ? side * pass_blocks * (weight.block_columns * G + lanes) : 0;
        const auto rounded = [](std::int64_t floats) { return divide_up(floats, 16) * 16; };
        char *base = static_cast<char *>(sparsewright::scratch(
            (rounded(panel_floats) + rounded(sums_floats) + rounded(stage)) * bytes + weight.in * sizeof(std::int64_t) +
            width * sizeof(Run) + side * pass_blocks * sizeof(Span) + 64));
        Memory memory;
        memory.panel = reinterpret_cast<float *>(base);
        memory.sums = memory.panel + rounded(panel_floats);
        memory.stage = memory.sums + rounded(sums_floats);
        memory.spans = reinterpret_cast<Span *>(memory.stage + rounded(stage));
        memory.offsets = reinterpret_cast<std::int64_t *>(memory.spans + side * pass_blocks);
        memory.runs = reinterpret_cast<Run *>(memory.offsets + weight.in);
        const std::int64_t pixels = p.out_h * p.out_w;
        for (std::int64_t conv_group = 0; conv_group < p.conv_groups; ++conv_group) {
            find_offsets(p, image, conv_group, memory.offsets);
            const std::int64_t first = conv_group * group_rows;
            const Range rows = {first + group_rows * share_of_groups.begin / shares,
                                first + group_rows * share_of_groups.end / shares};
            if (rows.begin == rows.end) continue;
            const std::int64_t parts = divide_up(rows.end - rows.begin, most_rows);
            for (std::int64_t part = 0; part < parts; ++part) {
                const Range part_of = share(rows.end - rows.begin, parts, part);
                const Work work{image, y, {rows.begin + part_of.begin, rows.begin + part_of.end}, passes, memory};
                for (std::int64_t i = 0; i < tiles; ++i) {
                    const Range tile_of = share(vectors.end - vectors.begin, tiles, i);
                    const std::int64_t begin = (vectors.begin + tile_of.begin) * lanes;
                    const std::int64_t tokens = smaller((vectors.begin + tile_of.end) * lanes, pixels) - begin;
                    const std::int64_t rest = smaller(vectors.end * lanes, pixels) - begin - tokens;
                    const std::int64_t next = smaller(rest, width);
                    const auto call = [&]<int NV>() { tile<NV>(p, work, begin, tokens, next); };
                    with_count<most_vectors>(tile_of.end - tile_of.begin, call);
                }
            }
        }
    }
};

}  // namespace
