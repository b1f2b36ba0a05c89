// One image as the panels read it: [channel][row][phase][line], where a phase holds every stride_w-th pixel of a row.
// In it the inputs of one weight for neighbouring outputs are neighbours, whatever the stride, and zeros stand where the
// convolution pads. Images that are so already are read where they lie.
#pragma once

#include <cstring>

#include "../sparse_linear/simd.hpp"
#include "problem.hpp"

namespace {

using sparsewright::ConvProblem;

struct Image {
    const float *data;
    std::int64_t channel, row, phase;  // steps in floats
    std::int64_t out_h, out_w;         // outputs; one long row where nothing separates the rows
    bool loose;                        // a vector may be read past the last pixel
};

// Copies `count` floats; never touches what lies behind.
inline void copy_floats(float *to, const float *from, std::int64_t count) {
    std::int64_t i = 0;
    for (; i + lanes <= count; i += lanes) store(to + i, load<Wide>(from + i));
    const std::int64_t rest = count - i;
    if (rest == 0) return;
    if (count >= lanes) return store(to + count - lanes, load<Wide>(from + count - lanes));
    if (lanes > 8 && rest >= 8) {
        store(to, load<f8>(from));
        return store(to + rest - 8, load<f8>(from + rest - 8));
    }
    if (lanes > 4 && rest >= 4) {
        store(to, load<f4>(from));
        return store(to + rest - 4, load<f4>(from + rest - 4));
    }
    for (; i < count; ++i) to[i] = from[i];
}

inline void store_some(float *to, Wide value, std::int64_t count) {
    if (count >= lanes) return store(to, value);
    float kept[lanes];
    store(kept, value);
    std::memcpy(to, kept, count * sizeof(float));
}

struct Staging {
    const ConvProblem &p;
    // Padded rows that outputs reach, and pixels of one phase of a row.
    const std::int64_t rows = (p.out_h - 1) * p.stride_h + (p.kernel_h - 1) * p.dilation_h + 1;
    const std::int64_t line = p.out_w + (p.kernel_w - 1) * p.dilation_w / p.stride_w;

    bool needed() const {
        return p.channels_last || p.stride_w != 1 || p.top || p.left || rows > p.height || line > p.width;
    }
    std::int64_t row() const { return p.stride_w * line; }
    std::int64_t floats() const { return needed() ? p.channels * rows * row() + lanes : 0; }

    // The image number `n`, staged at `memory` by `fill`, or in place.
    Image image(std::int64_t n, const float *memory) const {
        Image image;
        if (needed())
            image = {memory, rows * row(), row(), line, p.out_h, p.out_w, true};
        else
            image = {p.x + n * p.channels * p.height * p.width, p.height * p.width, p.width, 0, p.out_h, p.out_w, false};
        if (p.stride_h * image.row == p.out_w) {
            image.out_w *= image.out_h;
            image.out_h = 1;
        }
        return image;
    }

    static bool reads(std::int64_t at, std::int64_t taps, std::int64_t dilation, std::int64_t stride) {
        for (std::int64_t i = 0; i < taps; ++i)
            if (at >= i * dilation && (at - i * dilation) % stride == 0) return true;
        return false;
    }

    // Pixels of a phase that lie in the image: outputs first..end of the line, and the pixel of the first.
    Range inside(std::int64_t phase, std::int64_t &pixel) const {
        const std::int64_t first = p.left > phase ? divide_up(p.left - phase, p.stride_w) : 0;
        const std::int64_t behind = p.width + p.left - phase;
        const std::int64_t end = behind > 0 ? smaller(line, divide_up(behind, p.stride_w)) : 0;
        pixel = first * p.stride_w + phase - p.left;
        return {first, end > first ? end : first};
    }

    // Stage the channels of image `n`.
    void fill(std::int64_t n, Range channels, float *memory) const {
        const float *x = p.x + n * p.channels * p.height * p.width;
        float *const begin = memory + channels.begin * rows * row();
        std::memset(begin, 0, (channels.end - channels.begin) * rows * row() * sizeof(float));
        for (std::int64_t h = 0; h < rows; ++h) {
            const std::int64_t from = h - p.top;
            if (from < 0 || from >= p.height || !reads(h, p.kernel_h, p.dilation_h, p.stride_h)) continue;
            for (std::int64_t phase = 0; phase < p.stride_w; ++phase) {
                if (!reads(phase + p.stride_w * (line - 1), p.kernel_w, p.dilation_w, p.stride_w)) continue;
                std::int64_t pixel;
                const Range of_line = inside(phase, pixel);
                if (of_line.begin == of_line.end) continue;
                float *to = memory + h * row() + phase * line;
                if (p.channels_last)
                    from_last(x + from * p.width * p.channels, channels, of_line, pixel, to);
                else
                    from_first(x + from * p.width, channels, of_line, pixel, to);
            }
        }
    }

    void from_first(const float *x, Range channels, Range of_line, std::int64_t pixel, float *to) const {
        const std::int64_t count = of_line.end - of_line.begin;
        for (std::int64_t c = channels.begin; c < channels.end; ++c) {
            const float *source = x + c * p.height * p.width + pixel;
            float *goal = to + c * rows * row() + of_line.begin;
            if (p.stride_w == 1)
                copy_floats(goal, source, count);
            else
                for (std::int64_t i = 0; i < count; ++i) goal[i] = source[i * p.stride_w];
        }
    }

    // Squares of pixels by channels are turned; the last one of a row reaches back where it can.
    void from_last(const float *x, Range channels, Range of_line, std::int64_t pixel, float *to) const {
        const std::int64_t count = of_line.end - of_line.begin, step = p.stride_w * p.channels;
        for (std::int64_t i = 0; i < count; i += lanes) {
            const std::int64_t live = smaller<std::int64_t>(count - i, lanes);
            const float *source[lanes];
            for (std::int64_t k = 0; k < lanes; ++k)
                source[k] = x + pixel * p.channels + (i + smaller(k, live - 1)) * step;
            float *goal = to + of_line.begin + i;
            std::int64_t c = channels.begin;
            for (; c + lanes <= channels.end; c += lanes) {
                Wide column[lanes];
                read_columns(source, c, column);
#pragma GCC unroll 16
                for (int k = 0; k < lanes; ++k) store_some(goal + (c + k) * rows * row(), column[k], live);
            }
            for (; c < channels.end; ++c)
                for (std::int64_t k = 0; k < live; ++k) goal[c * rows * row() + k] = source[k][c];
        }
    }
};

}  // namespace
