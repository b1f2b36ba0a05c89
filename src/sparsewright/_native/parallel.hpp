// Threads and scratch memory for the kernels. Not compiled per instruction set.
#pragma once

#include <cstddef>

namespace sparsewright {

// Calls body(context, part) for part = 0 .. parts-1 on the OpenMP pool that torch already runs (one libgomp serves the
// process), or in turn where there is no OpenMP. Returns when all are done.
void parallel(int parts, void (*body)(void *context, int part), void *context);

// At least `bytes` of 64-byte aligned memory that belongs to the calling thread until its next call. Slot 0 or 1.
void *scratch(std::size_t bytes, int slot = 0);

}  // namespace sparsewright
