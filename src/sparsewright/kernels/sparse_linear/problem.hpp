// What one call of the sparse linear kernels gets, and the one entry point that every instruction set provides.
//
// y[t][o] = bias[o] + sum_k x[t][k] W[o][k], W in the "vector" layout: input columns are cut into blocks of
// `block_columns` (<= 256); output rows into groups of `group`; the rows of a group share one choice of columns.
// Values lie block-major, then row group, then column ascending, `group` of them per kept column.
#pragma once

#include <cstdint>

namespace sparsewright {

enum class ValueType : int { float32 = 0, float16 = 1, int8 = 2 };

enum class Kernel : int {
    token_lane = 0,
    row_lane = 1,
    single_token = 2,
    // Strips of four rows, for weights that keep two of every four rows and columns.
    strip_lane = 3,
    strip_input_grad = 4,
    // Gradients; see backward.hpp for what the fields of the problem mean to them.
    input_grad_by_rows = 16,
    input_grad_by_columns = 17,
    weight_grad = 18,
};

struct LinearProblem {
    const float *x;           // (tokens, in), rows `x_stride` floats apart
    std::int64_t x_stride;
    std::int64_t tokens;
    std::int64_t in;
    std::int64_t out;
    const void *values;       // (kept, group) of the value type
    const std::uint8_t *index;     // (kept,) column inside its block
    const std::int32_t *pointers;  // (blocks, groups + 1) offsets into index
    std::int64_t blocks;
    std::int64_t block_columns;
    std::int64_t groups;
    int group;                // 1, 2, 4, 8 or 16
    ValueType value_type;
    const float *scale;       // (groups * group) of the rows of int8 values, else null
    int kept_per_8;           // group 1 only: 1, 2 or 4 when every aligned 8 columns keep exactly that many, else 0
    const float *bias;        // (out,) or null
    float *y;                 // (tokens, out), contiguous
    int threads;
    Kernel kernel;
    int activation;           // of y: an Activation
    std::int64_t level1_bytes;  // data caches of one core
    std::int64_t level2_bytes;
    const float *dy;          // weight_grad only: (tokens, out), rows `dy_stride` floats apart
    std::int64_t dy_stride;
    const std::int32_t *places;  // input_grad_by_columns only: (kept,) rows of `values`
    std::int64_t rows;           // input_grad_by_columns only: of the weight itself
    const std::uint32_t *records;  // strips only: see strip_lane.hpp
    const std::uint16_t *counts;
    std::int64_t turned_columns;   // strip_input_grad only: columns of a block of the weight itself
};

using LinearFunction = void (*)(const LinearProblem &);

}  // namespace sparsewright

extern "C" {
void sparsewright_sparse_linear_portable(const sparsewright::LinearProblem &problem);
void sparsewright_sparse_linear_sse41(const sparsewright::LinearProblem &problem);
void sparsewright_sparse_linear_avx(const sparsewright::LinearProblem &problem);
void sparsewright_sparse_linear_avx2(const sparsewright::LinearProblem &problem);
void sparsewright_sparse_linear_avx512(const sparsewright::LinearProblem &problem);
void sparsewright_sparse_linear_neon(const sparsewright::LinearProblem &problem);
}
