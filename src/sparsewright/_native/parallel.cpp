#include "parallel.hpp"

#include <cstdlib>
#include <cstring>
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
#if defined(__SANITIZE_ADDRESS__)
    // Exactly as long as asked for, and full of NaN: the checker sees each step past its end and each read before a write.
    buffer.size = 0;
    const std::size_t size = bytes;
#else
    const std::size_t size = (bytes + 4095) / 4096 * 4096;
#endif
    if (buffer.size < bytes) {
        void *data = nullptr;
        if (posix_memalign(&data, 64, size)) throw std::bad_alloc();
#if defined(__SANITIZE_ADDRESS__)
        std::memset(data, 0xff, size);
#endif
        std::free(buffer.data);
        buffer.data = data;
        buffer.size = size;
    }
    return buffer.data;
}

}  // namespace sparsewright
