// The contract of sparse_conv/cpu.cpp: a convolution with zeros around the image, channels first or last, within the rounding
// of float sums; the same bits for any number of threads.
#include "vector_weight.hpp"

#include "../../src/sparsewright/kernels/sparse_conv/problem.hpp"

namespace {

using sparsewright::ConvProblem;

constexpr auto convolve = CONTRACT_JOIN(sparsewright_sparse_conv_, SPARSEWRIGHT_ISA);

void run(Random &random, Tally &tally) {
    const auto from_1 = [&](std::int64_t most) { return 1 + random.below(most); };
    const std::int64_t channels = from_1(12), height = from_1(14), width = from_1(34), batch = from_1(3), out = from_1(36);
    const std::int64_t kernel_h = from_1(3), kernel_w = from_1(3), stride_h = from_1(3), stride_w = from_1(3);
    const std::int64_t dilation_h = from_1(2), dilation_w = from_1(2), top = random.below(3), left = random.below(3);
    const std::int64_t free_h = height + top + random.below(3) - dilation_h * (kernel_h - 1) - 1;
    const std::int64_t free_w = width + left + random.below(3) - dilation_w * (kernel_w - 1) - 1;
    if (free_h < 0 || free_w < 0) return;
    const std::int64_t out_h = free_h / stride_h + 1, out_w = free_w / stride_w + 1;
    const std::int64_t columns = channels * kernel_h * kernel_w;
    const int group = random.one_of({1, 2, 4, 8, 16}), share = random.one_of({0, 10, 35, 100});
    const std::int64_t groups = (out + group - 1) / group;
    Exact<bool> kept(groups * columns, random);
    for (std::int64_t g = 0; g < groups; ++g) choose(random, 0, random.below(6) ? share : 0, columns, kept.data() + g * columns);
    const ValueType type = random.one_of({ValueType::float32, ValueType::float16});
    const Weight w = packed(random, out, columns, group, type, random.one_of({24, 96, 256}), kept.data());
    Exact<std::uint8_t> used(columns, random);
    for (std::int64_t k = 0; k < columns; ++k) {
        used[k] = 0;
        for (std::int64_t g = 0; g < groups; ++g) used[k] |= kept[g * columns + k];
    }
    Exact<float> x(batch * channels * height * width, random), bias(out, random);
    Exact<float> y(batch * out * out_h * out_w, random), again(y.size(), random);
    for (std::int64_t i = 0; i < x.size(); ++i) x[i] = random.signed_unit();
    for (std::int64_t i = 0; i < out; ++i) bias[i] = random.signed_unit();
    ConvProblem p{};
    w.fill(p.weight);
    p.weight.bias = random.below(2) ? bias.data() : nullptr;
    p.weight.threads = static_cast<int>(from_1(3));
    p.weight.level1_bytes = random.one_of({2, 32, 48}) * 1024;
    p.weight.level2_bytes = random.one_of({8, 512, 2048}) * 1024;
    p.used = used.data();
    p.x = x.data();
    p.y = y.data();
    p.batch = batch;
    p.channels = channels;
    p.height = height;
    p.width = width;
    p.kernel_h = kernel_h;
    p.kernel_w = kernel_w;
    p.stride_h = stride_h;
    p.stride_w = stride_w;
    p.dilation_h = dilation_h;
    p.dilation_w = dilation_w;
    p.top = top;
    p.left = left;
    p.out_h = out_h;
    p.out_w = out_w;
    p.conv_groups = 1;
    p.channels_last = static_cast<int>(random.below(2));
    char name[160];
    std::snprintf(name, sizeof name, "%lld to %lld channels, %lldx%lld, kernel %lldx%lld, group %d, %s, last %d, %d threads",
                  static_cast<long long>(channels), static_cast<long long>(out), static_cast<long long>(height),
                  static_cast<long long>(width), static_cast<long long>(kernel_h), static_cast<long long>(kernel_w), group,
                  w.type_name(), p.channels_last, p.weight.threads);
    convolve(p);
    p.y = again.data();
    p.weight.threads = p.weight.threads % 3 + 1;
    convolve(p);
    tally.calls += 2;
    for (std::int64_t b = 0; b < batch; ++b)
        for (std::int64_t o = 0; o < out; ++o)
            for (std::int64_t i = 0; i < out_h; ++i)
                for (std::int64_t j = 0; j < out_w; ++j) {
                    double sum = p.weight.bias ? bias[o] : 0.0, size = __builtin_fabs(sum);
                    for (std::int64_t k = 0; k < columns; ++k) {
                        const std::int64_t c = k / (kernel_h * kernel_w);
                        const std::int64_t h = i * stride_h + k / kernel_w % kernel_h * dilation_h - top;
                        const std::int64_t v = j * stride_w + k % kernel_w * dilation_w - left;
                        if (h < 0 || v < 0 || h >= height || v >= width) continue;
                        const std::int64_t at = p.channels_last ? ((b * height + h) * width + v) * channels + c
                                                                : ((b * channels + c) * height + h) * width + v;
                        const double product = w.dense[o * columns + k] * static_cast<double>(x[at]);
                        sum += product;
                        size += __builtin_fabs(product);
                    }
                    const std::int64_t at = p.channels_last ? ((b * out_h + i) * out_w + j) * out + o
                                                            : ((b * out + o) * out_h + i) * out_w + j;
                    const double most = static_cast<double>(columns + 2) * 0x1p-23 * size;
                    if (!tally.expect(__builtin_fabs(y[at] - sum) <= most, "sparse_conv", name, at, y[at], sum)) return;
                    if (!tally.expect(!std::memcmp(&again[at], &y[at], 4), "sparse_conv bits", name, at, again[at], y[at]))
                        return;
                }
}

Check check("sparse_conv", run);

}  // namespace
