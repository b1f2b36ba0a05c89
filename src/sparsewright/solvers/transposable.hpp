// What one call of the transposable solver gets, and the one entry point that every instruction set provides.
//
// The matrix is cut into tiles of tile_rows x tile_columns from its upper left corner. In every whole tile each row
// keeps row_keep cells and each column column_keep (exactly, or at most), so that the kept sum is the largest there is.
// Tiles cut off by the edge keep at most as many.
#pragma once

#include <cstdint>

namespace sparsewright {

constexpr int largest_tile = 64;

enum class ScoreType { float32 = 0, float64 = 1, bfloat16 = 2, float16 = 3 };

// Why a tile could not be solved; the first such tile in the order of memory is reported.
struct TransposableFault {
    std::int64_t tile;   // -1: none
    std::int32_t kind;   // 1: a score is not finite, 2: no mask obeys keep, drop and the counts
    std::int32_t row;    // of the tile that cannot have its count; -1 - column where it is a column
};

struct TransposableProblem {
    const void *scores;  // (batch, out, in) by strides, in elements
    ScoreType type;
    std::int64_t batch, out, in;
    std::int64_t batch_stride, row_stride, column_stride;
    int tile_rows, tile_columns;  // at most largest_tile
    int row_keep, column_keep;
    bool at_most;
    bool edge_dense;              // keep edge tiles whole
    const std::uint8_t *keep;     // (batch, out, in) cells that stay, or null
    const std::uint8_t *drop;     // (batch, out, in) cells that go, or null
    std::uint8_t *mask;           // (batch, out, in) result, 0 or 1
    // Certificates, null where nobody asked: prices per tile (tiles, tile_rows), (tiles, tile_columns); the gap between
    // what the prices allow and what is kept, and the kept sum, per tile.
    double *row_prices, *column_prices, *gap, *kept;
    const double *first_columns;  // (tiles, tile_columns) prices to start from, or null
    int threads;
    TransposableFault *faults;    // (threads)
};

using TransposableFunction = void (*)(const TransposableProblem &);

}  // namespace sparsewright

extern "C" {
void sparsewright_transposable_portable(const sparsewright::TransposableProblem &problem);
void sparsewright_transposable_sse41(const sparsewright::TransposableProblem &problem);
void sparsewright_transposable_avx(const sparsewright::TransposableProblem &problem);
void sparsewright_transposable_avx2(const sparsewright::TransposableProblem &problem);
void sparsewright_transposable_avx512(const sparsewright::TransposableProblem &problem);
void sparsewright_transposable_neon(const sparsewright::TransposableProblem &problem);
}
