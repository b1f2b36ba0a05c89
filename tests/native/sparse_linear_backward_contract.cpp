// The contract of sparse_linear/backward.cpp: dx = dy W by rows and by columns, and dW = dy^T x at the kept places, within
// the rounding of float sums; the same bits for any number of threads.
#include "vector_weight.hpp"

extern "C" void CONTRACT_JOIN(sparsewright_backward_, SPARSEWRIGHT_ISA)(const sparsewright::LinearProblem &);

namespace {

using sparsewright::Kernel;

constexpr auto gradient = CONTRACT_JOIN(sparsewright_backward_, SPARSEWRIGHT_ISA);

// By columns: which row groups of a block keep each column, and where their values lie.
struct Turned {
    std::int64_t blocks, block_groups;
    Exact<std::uint8_t> index;
    Exact<std::int32_t> pointers, places;
};

Turned turned(Random &random, const Weight &w) {
    const std::int64_t wanted = random.one_of({3, 48, 200}), blocks = (w.groups + wanted - 1) / wanted;
    const std::int64_t block_groups = (w.groups + blocks - 1) / blocks;
    Exact<std::int32_t> place(w.groups * w.in, random);
    for (std::int64_t i = 0; i < place.size(); ++i) place[i] = -1;
    for (std::int64_t b = 0; b < w.blocks; ++b)
        for (std::int64_t g = 0; g < w.groups; ++g)
            for (std::int64_t j = w.pointers[b * (w.groups + 1) + g]; j < w.pointers[b * (w.groups + 1) + g + 1]; ++j)
                place[g * w.in + b * w.block_columns + w.index[j]] = static_cast<std::int32_t>(j);
    Turned t{blocks, block_groups, {w.count, random}, {blocks * (w.in + 1), random}, {w.count, random}};
    std::int64_t at = 0;
    for (std::int64_t b = 0; b < blocks; ++b) {
        for (std::int64_t k = 0; k < w.in; ++k) {
            t.pointers[b * (w.in + 1) + k] = static_cast<std::int32_t>(at);
            for (std::int64_t g = b * block_groups; g < (b + 1) * block_groups && g < w.groups; ++g) {
                if (place[g * w.in + k] < 0) continue;
                t.index[at] = static_cast<std::uint8_t>(g - b * block_groups);
                t.places[at++] = place[g * w.in + k];
            }
        }
        t.pointers[b * (w.in + 1) + w.in] = static_cast<std::int32_t>(at);
    }
    return t;
}

void run(Random &random, Tally &tally) {
    const Weight w = random_weight(random);
    const std::int64_t tokens = 1 + random.below(random.below(2) ? 80 : 10);
    const std::int64_t dy_stride = w.out + random.one_of({0, 0, 5}), x_stride = w.in + random.one_of({0, 0, 3});
    Exact<float> dy((tokens - 1) * dy_stride + w.out, random), x((tokens - 1) * x_stride + w.in, random);
    for (std::int64_t i = 0; i < dy.size(); ++i) dy[i] = random.signed_unit();
    for (std::int64_t i = 0; i < x.size(); ++i) x[i] = random.signed_unit();
    LinearProblem p{};
    w.fill(p);
    p.scale = nullptr;  // gradients take int8 values as they are
    p.tokens = tokens;
    p.threads = static_cast<int>(random.below(3)) + 1;
    p.level1_bytes = random.one_of({4, 32, 48}) * 1024;
    p.level2_bytes = random.one_of({16, 512, 2048}) * 1024;
    const auto value = [&](std::int64_t row, std::int64_t k) {
        return w.type == ValueType::int8 ? w.dense[row * w.in + k] / w.scale[row] : w.dense[row * w.in + k];
    };

    const int way = static_cast<int>(random.below(3));
    char name[160];
    std::snprintf(name, sizeof name, "%lldx%lld, %lld tokens, group %d, %d %%, %s, way %d, %d threads",
                  static_cast<long long>(w.out), static_cast<long long>(w.in), static_cast<long long>(tokens), w.group,
                  w.share, w.type_name(), way, p.threads);
    if (way == 2) {
        p.values = nullptr;
        p.kernel = Kernel::weight_grad;
        p.dy = dy.data();
        p.dy_stride = dy_stride;
        p.x = x.data();
        p.x_stride = x_stride;
        Exact<float> dw(w.count * w.group, random), again(w.count * w.group, random);
        if (!w.count) return;
        p.y = dw.data();
        gradient(p);
        p.y = again.data();
        p.threads = p.threads % 3 + 1;
        gradient(p);
        tally.calls += 2;
        for (std::int64_t b = 0; b < w.blocks; ++b)
            for (std::int64_t g = 0; g < w.groups; ++g)
                for (std::int64_t j = w.pointers[b * (w.groups + 1) + g]; j < w.pointers[b * (w.groups + 1) + g + 1]; ++j)
                    for (int r = 0; r < w.group && g * w.group + r < w.out; ++r) {
                        const std::int64_t k = b * w.block_columns + w.index[j], row = g * w.group + r;
                        double sum = 0, size = 0;
                        for (std::int64_t t = 0; t < tokens; ++t) {
                            const double product = double{dy[t * dy_stride + row]} * x[t * x_stride + k];
                            sum += product;
                            size += __builtin_fabs(product);
                        }
                        const std::int64_t at = j * w.group + r;
                        const double most = static_cast<double>(tokens + 2) * 0x1p-23 * size;
                        if (!tally.expect(__builtin_fabs(dw[at] - sum) <= most, "weight_grad", name, at, dw[at], sum)) return;
                        if (!tally.expect(!std::memcmp(&dw[at], &again[at], 4), "weight_grad bits", name, at, again[at],
                                          dw[at]))
                            return;
                    }
        return;
    }
    Exact<float> dx(tokens * w.in, random), again(tokens * w.in, random);
    const Turned t = turned(random, w);
    p.x = dy.data();
    p.x_stride = dy_stride;
    p.kernel = Kernel::input_grad_by_rows;
    if (w.group < 4) {
        p.kernel = Kernel::input_grad_by_columns;
        p.rows = w.out;
        p.in = w.groups;
        p.out = w.in;
        p.index = t.index.data();
        p.pointers = t.pointers.data();
        p.places = t.places.data();
        p.blocks = t.blocks;
        p.block_columns = t.block_groups;
    }
    p.y = dx.data();
    gradient(p);
    p.y = again.data();
    p.threads = p.threads % 3 + 1;
    gradient(p);
    tally.calls += 2;
    for (std::int64_t i = 0; i < tokens; ++i)
        for (std::int64_t k = 0; k < w.in; ++k) {
            double sum = 0, size = 0;
            for (std::int64_t row = 0; row < w.out; ++row) {
                const double product = value(row, k) * dy[i * dy_stride + row];
                sum += product;
                size += __builtin_fabs(product);
            }
            const std::int64_t at = i * w.in + k;
            const double most = static_cast<double>(w.out + 2) * 0x1p-23 * size + 1e-30;
            if (!tally.expect(__builtin_fabs(dx[at] - sum) <= most, "input_grad", name, at, dx[at], sum)) return;
            if (!tally.expect(!std::memcmp(&dx[at], &again[at], 4), "input_grad bits", name, at, again[at], dx[at])) return;
        }
}

Check check("backward", run);

}  // namespace
