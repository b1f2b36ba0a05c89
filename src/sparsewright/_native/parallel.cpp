#include "parallel.hpp"

#include <cstdlib>
#include <new>

namespace sparsewright {

namespace {

struct Buffer {
    void *data = nullptr;
    std::size_t size = 0;
    ~Buffer() { std::free(data); }
};

thread_local Buffer buffers[2];

}  // namespace

void parallel(int parts, void (*body)(void *context, int part), void *context) {
    if (parts <= 1) {
        if (parts == 1) body(context, 0);
        return;
    }
#if defined(_OPENMP)
    // `for`, not one part per thread number: inside another parallel region OpenMP may grant fewer threads.
#pragma omp parallel for num_threads(parts) schedule(static, 1)
#endif
    for (int part = 0; part < parts; ++part) body(context, part);
}

void *scratch(std::size_t bytes, int slot) {
    Buffer &buffer = buffers[slot];
    if (buffer.size < bytes) {
        const std::size_t size = (bytes + 4095) / 4096 * 4096;
        void *data = std::aligned_alloc(64, size);
        if (!data) throw std::bad_alloc();
        std::free(buffer.data);
        buffer.data = data;
        buffer.size = size;
    }
    return buffer.data;
}

}  // namespace sparsewright
