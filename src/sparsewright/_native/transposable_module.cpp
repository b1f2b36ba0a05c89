#include "transposable_module.hpp"

#include <nanobind/stl/array.h>
#include <nanobind/stl/tuple.h>

#include <array>
#include <stdexcept>
#include <tuple>
#include <vector>

namespace nb = nanobind;

namespace sparsewright {

namespace {

TransposableFunction (*solver_here)();

template <class T> T *at(std::uintptr_t address) { return reinterpret_cast<T *>(address); }

using Numbers = std::array<std::int64_t, 3>;

// Sizes and strides are (batch, out, in), `tile` is (rows, columns), `counts` what a row and a column of it keep;
// `certificate` holds the addresses of row prices, column prices, gaps and kept sums, or zeros. Returns the first tile
// that could not be solved as (tile, kind, row), tile being -1 where all were.
std::tuple<std::int64_t, int, int> solve(std::uintptr_t scores, int type, const Numbers &sizes, const Numbers &strides,
                                         const std::array<int, 2> &tile, const std::array<int, 2> &counts, bool at_most,
                                         bool edge_dense, std::uintptr_t keep, std::uintptr_t drop, std::uintptr_t mask,
                                         const std::array<std::uintptr_t, 4> &certificate, std::uintptr_t first_columns,
                                         int threads) {
    if (tile[0] < 1 || tile[1] < 1 || tile[0] > largest_tile || tile[1] > largest_tile)
        throw std::invalid_argument("tiles have 1 to 64 rows and columns");
    if (type < 0 || type > 3 || threads < 1) throw std::invalid_argument("scores are float32, float64, bfloat16 or float16");
    for (std::int64_t size : sizes)
        if (size < 1) return {-1, 0, 0};
    std::vector<TransposableFault> faults(static_cast<std::size_t>(threads), TransposableFault{-1, 0, 0});
    TransposableProblem p{};
    p.scores = at<void>(scores);
    p.type = static_cast<ScoreType>(type);
    p.batch = sizes[0];
    p.out = sizes[1];
    p.in = sizes[2];
    p.batch_stride = strides[0];
    p.row_stride = strides[1];
    p.column_stride = strides[2];
    p.tile_rows = tile[0];
    p.tile_columns = tile[1];
    p.row_keep = counts[0];
    p.column_keep = counts[1];
    p.at_most = at_most;
    p.edge_dense = edge_dense;
    p.keep = at<std::uint8_t>(keep);
    p.drop = at<std::uint8_t>(drop);
    p.mask = at<std::uint8_t>(mask);
    p.row_prices = at<double>(certificate[0]);
    p.column_prices = at<double>(certificate[1]);
    p.gap = at<double>(certificate[2]);
    p.kept = at<double>(certificate[3]);
    p.first_columns = at<double>(first_columns);
    p.threads = threads;
    p.faults = faults.data();
    solver_here()(p);
    TransposableFault first{-1, 0, 0};
    for (const TransposableFault &fault : faults)
        if (fault.tile >= 0 && (first.tile < 0 || fault.tile < first.tile)) first = fault;
    return {first.tile, first.kind, first.row};
}

}  // namespace

void add_transposable(nb::module_ &m, TransposableFunction (*function)()) {
    solver_here = function;
    m.def("transposable", &solve, nb::arg("scores"), nb::arg("type"), nb::arg("sizes"), nb::arg("strides"),
          nb::arg("tile"), nb::arg("counts"), nb::arg("at_most"), nb::arg("edge_dense"), nb::arg("keep"),
          nb::arg("drop"), nb::arg("mask"), nb::arg("certificate"), nb::arg("first_columns"), nb::arg("threads"),
          nb::call_guard<nb::gil_scoped_release>());
}

}  // namespace sparsewright
