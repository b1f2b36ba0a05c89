// What one call of the n:m:g assignment gets, and the one entry point that every instruction set provides.
//
// Rows lie in blocks of m, columns in chunks of patterns * g. In every tile (block, chunk) each column takes one
// pattern and each pattern is taken by at most g columns, so that the summed score of what they keep is the largest.
#pragma once

#include <cstdint>

namespace sparsewright {

struct GroupedProblem {
    const double *scores;      // (blocks * m, in), finite
    std::int64_t blocks;
    std::int64_t in;
    std::int64_t m;
    std::int64_t n;
    std::int64_t g;
    std::int64_t patterns;
    const std::uint8_t *rows;  // (patterns, n) rows of the block that each pattern keeps
    std::int32_t *chosen;      // (blocks, in) out: the pattern of each column
    int threads;
};

using GroupedFunction = void (*)(const GroupedProblem &);

}  // namespace sparsewright

extern "C" {
void sparsewright_grouped_nm_portable(const sparsewright::GroupedProblem &problem);
void sparsewright_grouped_nm_sse41(const sparsewright::GroupedProblem &problem);
void sparsewright_grouped_nm_avx(const sparsewright::GroupedProblem &problem);
void sparsewright_grouped_nm_avx2(const sparsewright::GroupedProblem &problem);
void sparsewright_grouped_nm_avx512(const sparsewright::GroupedProblem &problem);
void sparsewright_grouped_nm_neon(const sparsewright::GroupedProblem &problem);
}
