// Registers full of multiply-adds, compiled once per instruction set like the kernels.
#include "peak.hpp"

#include "../kernels/sparse_linear/simd.hpp"

#define SPARSEWRIGHT_JOIN_(a, b) a##b
#define SPARSEWRIGHT_JOIN(a, b) SPARSEWRIGHT_JOIN_(a, b)

namespace {

// Two units with a latency of four or five rounds want ten sums at least; the rest of the registers hides more.
constexpr int sums = registers == 32 ? 24 : 12;

// Where sums of a loop end, so that no compiler leaves the loop out.
volatile float sink;

}  // namespace

extern "C" double SPARSEWRIGHT_JOIN(sparsewright_fma_peak_, SPARSEWRIGHT_ISA)(std::int64_t iterations) {
    // Sums stay near 1, far from the slow numbers around zero and from infinity.
    const Wide factor = splat<Wide>(0.5f), term = splat<Wide>(0.5f);
    Wide sum[sums];
#pragma GCC unroll 24
    for (int i = 0; i < sums; ++i) sum[i] = splat<Wide>(1.0f + 0.001f * static_cast<float>(i));
    for (std::int64_t n = 0; n < iterations; ++n) {
#pragma GCC unroll 24
        for (int i = 0; i < sums; ++i) sum[i] = multiply_add(sum[i], factor, term);
    }
    float total = 0.0f;
    for (int i = 0; i < sums; ++i)
        for (int lane = 0; lane < lanes; ++lane) total += sum[i][lane];
    sink = total;
    return 2.0 * sums * lanes * static_cast<double>(iterations);
}
