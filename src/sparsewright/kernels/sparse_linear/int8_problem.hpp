// What one call of the int8 kernels gets. y[t][o] = bias[o] + scale[o] sum_k x[t][k] q[o][k] with int8 weights q.
//
// Output rows lie in groups that share one choice of columns; the kept columns of a group lie in fours ("quads", the
// last one filled up with zero weights), because one instruction multiplies four bytes. Without `columns` every group
// keeps all of them in order.
//
// From two tokens on x is rounded to 7 bits, one range per token: x ~ step (u - zero), u in 0..127. Seven, so that the
// sum of two products fits 16 bits where the processor adds in 16, and so that every instruction set gives the same sums.
// A token with values beyond about 1e35 may overflow single precision on the way, though the answer would not.
#pragma once

#include <cstdint>

namespace sparsewright {

struct Int8Problem {
    const float *x;                // (tokens, in), rows `x_stride` floats apart
    std::int64_t x_stride;
    std::int64_t tokens;
    std::int64_t in;
    std::int64_t out;
    const std::int8_t *values;     // (quads, group, 4)
    const std::uint16_t *columns;  // (quads, 4), or null
    const std::int32_t *pointers;  // (groups + 1) first quad of each group
    const float *scale;            // (groups * group)
    const std::int32_t *sums;      // (groups * group) sum of each row's weights
    std::int64_t groups;
    int group;                     // 2, 4, 8 or 16; 16 without `columns`
    const float *bias;             // (out,) or null
    float *y;                      // (tokens, out), contiguous
    int threads;
    int activation;                // of y: an Activation
};

using Int8Function = void (*)(const Int8Problem &);

}  // namespace sparsewright

extern "C" {
void sparsewright_int8_linear_portable(const sparsewright::Int8Problem &problem);
void sparsewright_int8_linear_sse41(const sparsewright::Int8Problem &problem);
void sparsewright_int8_linear_avx2(const sparsewright::Int8Problem &problem);
void sparsewright_int8_linear_avx_vnni(const sparsewright::Int8Problem &problem);
void sparsewright_int8_linear_avx512(const sparsewright::Int8Problem &problem);
void sparsewright_int8_linear_avx512_vnni(const sparsewright::Int8Problem &problem);
void sparsewright_int8_linear_neon(const sparsewright::Int8Problem &problem);
void sparsewright_int8_linear_neon_dot(const sparsewright::Int8Problem &problem);
}
