// The sparse convolution of one instruction set. CMake compiles this file once per set, with SPARSEWRIGHT_ISA as the
// suffix of the one function that leaves it.
#include "conv.hpp"
#include "problem.hpp"

#define SPARSEWRIGHT_JOIN_(a, b) a##b
#define SPARSEWRIGHT_JOIN(a, b) SPARSEWRIGHT_JOIN_(a, b)

namespace {

struct Call {
    const ConvProblem &p;
    const Staging staging;
    const std::int64_t pixels = p.out_h * p.out_w;
    const std::int64_t vectors = divide_up(pixels, lanes);
    std::int64_t image = 0;       // the one in hand where threads share images
    float *staged = nullptr;

    float *output(std::int64_t n) const { return p.y + n * p.weight.out * pixels; }
};

// Threads take whole images while there are enough, else pixels of one image, else rows of the weight. None of it
// changes any result.
template <int G, class Value> void own_images(void *context, int part) {
    const Call &call = *static_cast<const Call *>(context);
    float *staged = static_cast<float *>(sparsewright::scratch(call.staging.floats() * sizeof(float) + 64, 1));
    const Range images = share(call.p.batch, call.p.weight.threads, part);
    for (std::int64_t n = images.begin; n < images.end; ++n) {
        if (call.staging.needed()) call.staging.fill(n, {0, call.p.channels}, staged);
        Convolution<G, Value>::run(call.p, call.staging.image(n, staged), call.output(n), {0, call.vectors}, {0, 1}, 1);
    }
}

void stage_channels(void *context, int part) {
    const Call &call = *static_cast<const Call *>(context);
    const Range channels = share(call.p.channels, call.p.weight.threads, part);
    call.staging.fill(call.image, channels, call.staged);
}

template <int G, class Value> void part_of_image(void *context, int part) {
    const Call &call = *static_cast<const Call *>(context);
    const std::int64_t threads = call.p.weight.threads;
    const bool by_pixels = call.vectors >= 4 * threads;
    const Range vectors = by_pixels ? share(call.vectors, threads, part) : Range{0, call.vectors};
    const Range rows = by_pixels ? Range{0, 1} : Range{part, part + 1};
    Convolution<G, Value>::run(call.p, call.staging.image(call.image, call.staged), call.output(call.image), vectors,
                               rows, by_pixels ? 1 : threads);
}

template <int G, class Value> void run(Call &call) {
    const int threads = call.p.weight.threads;
    if (call.p.batch >= threads) return sparsewright::parallel(threads, own_images<G, Value>, &call);
    call.staged = static_cast<float *>(sparsewright::scratch(call.staging.floats() * sizeof(float) + 64, 1));
    for (call.image = 0; call.image < call.p.batch; ++call.image) {
        if (call.staging.needed()) sparsewright::parallel(threads, stage_channels, &call);
        sparsewright::parallel(threads, part_of_image<G, Value>, &call);
    }
}

template <int G> void run_values(Call &call) { 
    call.p.weight.value_type == sparsewright::ValueType::float16 ? run<G, Half>(call) : run<G, float>(call);
}

}  // namespace

extern "C" void SPARSEWRIGHT_JOIN(sparsewright_sparse_conv_, SPARSEWRIGHT_ISA)(const ConvProblem &p) {
    Call call{p, Staging{p}};
    switch (p.weight.group) {
        case 1: run_values<1>(call); break;
        case 2: run_values<2>(call); break;
        case 4: run_values<4>(call); break;
        case 8: run_values<8>(call); break;
        case 16: run_values<16>(call); break;
    }
}
