// What one call of the sparse convolution gets, and the one entry point that every instruction set provides.
//
// y[n][o][h][w] = bias[o] + sum over c, i, j of W[o][(c, i, j)] x[n][c][h * stride_h + i * dilation_h - top]
// [w * stride_w + j * dilation_w - left], x being zero outside. W is the operand of sparse linear: (out, columns) with
// columns = channels / conv_groups * kernel_h * kernel_w, packed in the "vector" layout.
#pragma once

#include <cstdint>

#include "../sparse_linear/problem.hpp"

namespace sparsewright {

struct ConvProblem {
    LinearProblem weight;     // of it only the weight's own fields, bias, threads and cache sizes are read
    const std::uint8_t *used;  // (columns,) 0 where no row keeps the column
    const float *x;           // (batch, channels, height, width), or (batch, height, width, channels)
    float *y;                 // likewise
    std::int64_t batch, channels, height, width;
    std::int64_t kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w;
    std::int64_t top, left;   // rows and columns of zeros before the image; what lies behind follows from the output
    std::int64_t out_h, out_w;
    std::int64_t conv_groups;  // divides channels and the row groups of W
    int channels_last;
};

using ConvFunction = void (*)(const ConvProblem &);

}  // namespace sparsewright

extern "C" {
void sparsewright_sparse_conv_portable(const sparsewright::ConvProblem &problem);
void sparsewright_sparse_conv_sse41(const sparsewright::ConvProblem &problem);
void sparsewright_sparse_conv_avx(const sparsewright::ConvProblem &problem);
void sparsewright_sparse_conv_avx2(const sparsewright::ConvProblem &problem);
void sparsewright_sparse_conv_avx512(const sparsewright::ConvProblem &problem);
void sparsewright_sparse_conv_neon(const sparsewright::ConvProblem &problem);
}
