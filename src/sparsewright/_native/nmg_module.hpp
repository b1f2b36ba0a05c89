// The Python side of n:m:g: its assignment and its kernel.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>

#include "../kernels/sparse_linear/nmg_problem.hpp"
#include "../solvers/grouped_nm.hpp"

namespace sparsewright {

// What the processor offers, asked when it is needed.
struct NmgMachine {
    NmgFunction (*linear)();
    GroupedFunction (*assignment)();
    std::int64_t level1_bytes, level2_bytes;
};

void add_nmg(nanobind::module_ &m, const NmgMachine &machine);

}  // namespace sparsewright
