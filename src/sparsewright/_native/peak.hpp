// The most that one core can multiply and add: what a kernel's useful work is compared with.
#pragma once

#include <cstdint>

// Runs `iterations` rounds of fused multiply-adds on registers only, all independent of one another within a round, and
// returns how many floating-point operations that was.
extern "C" {
double sparsewright_fma_peak_portable(std::int64_t iterations);
double sparsewright_fma_peak_sse41(std::int64_t iterations);
double sparsewright_fma_peak_avx(std::int64_t iterations);
double sparsewright_fma_peak_avx2(std::int64_t iterations);
double sparsewright_fma_peak_avx512(std::int64_t iterations);
double sparsewright_fma_peak_neon(std::int64_t iterations);
}

namespace sparsewright {
using PeakFunction = double (*)(std::int64_t iterations);
}
