// The Python side of the transposable solver.
#pragma once

#include <nanobind/nanobind.h>

#include "../solvers/transposable.hpp"

namespace sparsewright {

// `function` tells the solver of the instruction set in use.
void add_transposable(nanobind::module_ &m, TransposableFunction (*function)());

}  // namespace sparsewright
