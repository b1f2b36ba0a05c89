// The contract of sparse_linear/cpu.cpp: y = activation(x W^T + bias) within the rounding of float sums; the same bits for
// any number of threads and any place in the batch.
#include "vector_weight.hpp"

namespace {

using sparsewright::Kernel;

constexpr auto linear = CONTRACT_JOIN(sparsewright_sparse_linear_, SPARSEWRIGHT_ISA);

void run(Random &random, Tally &tally) {
    const Weight w = random_weight(random);
    const std::int64_t out = w.out, in = w.in;
    const Kernel kernel = random.one_of({Kernel::single_token, Kernel::token_lane, Kernel::token_lane,
                                         w.group >= 4 ? Kernel::row_lane : Kernel::token_lane});
    const std::int64_t many = out * in > 20000 ? 40 : 130;
    const std::int64_t tokens = kernel == Kernel::single_token ? 1 : 2 + random.below(random.below(2) ? many - 1 : 20);
    const std::int64_t stride = random.below(4) ? in + random.one_of({0, 0, 1, 7}) : (in + 1023) / 1024 * 1024;
    Exact<float> x((tokens - 1) * stride + in, random), bias(out, random), y(tokens * out, random), again(tokens * out, random);
    for (std::int64_t i = 0; i < x.size(); ++i) x[i] = random.signed_unit();
    for (std::int64_t i = 0; i < out; ++i) bias[i] = random.signed_unit();

    LinearProblem p{};
    w.fill(p);
    p.x = x.data();
    p.x_stride = stride;
    p.tokens = tokens;
    p.activation = static_cast<int>(random.below(3));
    p.bias = random.below(2) ? bias.data() : nullptr;
    p.y = y.data();
    p.threads = static_cast<int>(random.below(3)) + 1;
    p.kernel = kernel;
    p.level1_bytes = random.one_of({4, 32, 48}) * 1024;
    p.level2_bytes = random.one_of({16, 512, 2048}) * 1024;

    char name[160];
    std::snprintf(name, sizeof name, "%lldx%lld, %lld tokens, group %d, %d %%, %d per 8, %lld columns, %s, kernel %d, "
                  "activation %d, %d threads",
                  static_cast<long long>(out), static_cast<long long>(in), static_cast<long long>(tokens), w.group, w.share,
                  p.kept_per_8, static_cast<long long>(w.block_columns), w.type_name(), static_cast<int>(kernel),
                  p.activation, p.threads);
    linear(p);
    ++tally.calls;
    for (std::int64_t t = 0; t < tokens; ++t)
        for (std::int64_t o = 0; o < out; ++o) {
            double sum = p.bias ? bias[o] : 0.0, size = p.bias ? __builtin_fabs(sum) : 0.0;
            for (std::int64_t k = 0; k < in; ++k) {
                const double product = w.dense[o * in + k] * static_cast<double>(x[t * stride + k]);
                sum += product;
                size += __builtin_fabs(product);
            }
            // Each of the roundings of a sum of floats errs by at most 2^-24 of all that is summed up.
            double most = static_cast<double>(in + 3) * 0x1p-23 * size;
            const double got = y[t * out + o];
            if (p.activation == 1 && sum < 0) sum = 0;
            if (p.activation == 2) {
                sum *= 0.5 * (1.0 + __builtin_erf(sum * 0.7071067811865476));
                most = 1.2 * most + 1e-6 + 4e-7 * __builtin_fabs(sum);
            }
            if (!tally.expect(__builtin_fabs(got - sum) <= most, "sparse_linear", name, t * out + o, got, sum)) return;
        }
    // Some of the tokens, on another number of threads.
    LinearProblem some = p;
    const std::int64_t begin = tokens > 2 ? random.below(tokens - 1) : 0;
    some.tokens = kernel == Kernel::single_token ? 1 : 2 + random.below(tokens - begin - 1);
    some.x = p.x + begin * stride;
    some.y = again.data();
    some.threads = p.threads % 3 + 1;
    linear(some);
    ++tally.calls;
    for (std::int64_t i = 0; i < some.tokens * out; ++i)
        if (!tally.expect(!std::memcmp(&again[i], &y[begin * out + i], sizeof(float)), "sparse_linear bits", name, i,
                          again[i], y[begin * out + i]))
            return;
}

Check check("sparse_linear", run);

}  // namespace
