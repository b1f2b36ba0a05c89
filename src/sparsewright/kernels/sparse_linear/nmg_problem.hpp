// What one call of the n:m:g kernels gets, and the one entry point that every instruction set provides.
//
// y[t][o] = bias[o] + sum_k x[t][k] W[o][k], W in the "nmg" layout: output rows lie in blocks of m, input columns in
// chunks of patterns * g. In a tile (chunk, block) every column keeps the n rows of one pattern; columns lie pattern by
// pattern, g slots each, with their n values side by side. Neighbouring patterns differ in one row.
#pragma once

#include <cstdint>

namespace sparsewright {

constexpr std::int64_t most_patterns = 1024;

struct NmgProblem {
    const float *x;               // (tokens, in), rows `x_stride` floats apart
    std::int64_t x_stride;
    std::int64_t tokens;
    std::int64_t in;
    std::int64_t out;
    const void *values;           // (chunks, blocks, patterns, g, n) float or half
    const std::int16_t *index;    // (chunks, blocks, patterns, g) column in its chunk; -1 in the last chunk: unfilled
    const std::uint8_t *rows;     // (patterns, n) rows of the block, ascending
    std::int64_t chunks;
    std::int64_t blocks;
    std::int64_t patterns;
    std::int64_t g;
    std::int64_t n;
    std::int64_t m;
    int half_values;              // 1: values are IEEE half
    const float *bias;            // (out,) or null
    float *y;                     // (tokens, out), contiguous
    int threads;
    int activation;               // of y: an Activation
    std::int64_t level1_bytes;    // data caches of one core
    std::int64_t level2_bytes;
};

using NmgFunction = void (*)(const NmgProblem &);

}  // namespace sparsewright

extern "C" {
void sparsewright_nmg_linear_portable(const sparsewright::NmgProblem &problem);
void sparsewright_nmg_linear_sse41(const sparsewright::NmgProblem &problem);
void sparsewright_nmg_linear_avx(const sparsewright::NmgProblem &problem);
void sparsewright_nmg_linear_avx2(const sparsewright::NmgProblem &problem);
void sparsewright_nmg_linear_avx512(const sparsewright::NmgProblem &problem);
void sparsewright_nmg_linear_neon(const sparsewright::NmgProblem &problem);
}
