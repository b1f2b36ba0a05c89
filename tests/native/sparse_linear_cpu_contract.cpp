// The contract of sparse_linear/cpu.cpp: y = x W^T + bias within the rounding of float sums; the same bits for any number
// of threads and any place in the batch.
#include "contract.hpp"

#include "../../src/sparsewright/kernels/sparse_linear/problem.hpp"

namespace {

using namespace contract;
using sparsewright::Kernel;
using sparsewright::LinearProblem;

constexpr auto linear = CONTRACT_JOIN(sparsewright_sparse_linear_, SPARSEWRIGHT_ISA);

struct Shape {
    std::int64_t out, in;
};

// Half bits of any finite value, subnormal ones and zeros too, small enough to be summed up.
std::uint16_t random_half(Random &random) {
    const auto sign = static_cast<std::uint16_t>(random.below(2) << 15);
    const auto exponent = static_cast<std::uint16_t>(random.below(8) ? 8 + random.below(8) : 0);
    return static_cast<std::uint16_t>(sign | exponent << 10 | random.below(1024));
}

double half_value(std::uint16_t bits) {
    const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
    const double magnitude = exponent ? (1.0 + mantissa / 1024.0) * __builtin_ldexp(1.0, exponent - 15)
                                      : mantissa * 0x1p-24;
    return bits >> 15 ? -magnitude : magnitude;
}

// What a row group keeps: nothing, everything, a share, or exactly `per_8` of every aligned eight columns.
void choose(Random &random, int per_8, int share_percent, std::int64_t in, bool *kept) {
    for (std::int64_t k = 0; k < in; ++k) kept[k] = random.below(100) < share_percent;
    for (std::int64_t k = 0; per_8 && k < in; k += 8) {
        for (std::int64_t i = k; i < k + 8; ++i) kept[i] = false;
        for (int chosen = 0; chosen < per_8;) {
            bool &one = kept[k + random.below(8)];
            chosen += !one;
            one = true;
        }
    }
}

void run(Random &random, Tally &tally) {
    const Shape shapes[] = {{1, 1},   {3, 5},    {50, 160},  {33, 257}, {17, 64}, {96, 72},
                            {5, 770}, {77, 307}, {130, 24}, {16, 1100}, {2, 3072}, {random.below(70) + 1, random.below(300) + 1}};
    auto [out, in] = random.one_of(shapes);
    const int group = random.one_of({1, 2, 4, 8, 16});
    const int per_8 = group == 1 && random.below(2) ? random.one_of({1, 2, 4}) : 0;
    if (per_8) in = (in + 7) / 8 * 8;
    const int share = random.one_of({0, 5, 12, 25, 50, 100});
    const bool half = random.below(2);
    const std::int64_t wanted = random.one_of({8, 24, 96, 128, 192, 256});
    const std::int64_t blocks = (in + wanted - 1) / wanted, even = (in + blocks - 1) / blocks;
    const std::int64_t block_columns = (even + 7) / 8 * 8, groups = (out + group - 1) / group;

    Exact<bool> kept(groups * in, random);
    for (std::int64_t g = 0; g < groups; ++g)
        choose(random, per_8, random.below(6) ? share : 0, in, kept.data() + g * in);
    std::int64_t count = 0;
    for (std::int64_t i = 0; i < groups * in; ++i) count += kept[i];
    Exact<std::uint8_t> index(count, random);
    Exact<std::int32_t> pointers(blocks * (groups + 1), random);
    Exact<float> floats(half ? 0 : count * group, random);
    Exact<std::uint16_t> halves(half ? count * group : 0, random);
    Exact<double> dense(groups * group * in, random);
    for (std::int64_t i = 0; i < dense.size(); ++i) dense[i] = 0;
    std::int64_t at = 0;
    for (std::int64_t b = 0; b < blocks; ++b) {
        for (std::int64_t g = 0; g < groups; ++g) {
            pointers[b * (groups + 1) + g] = static_cast<std::int32_t>(at);
            for (std::int64_t k = b * block_columns; k < (b + 1) * block_columns && k < in; ++k) {
                if (!kept[g * in + k]) continue;
                index[at] = static_cast<std::uint8_t>(k - b * block_columns);
                for (int r = 0; r < group; ++r) {
                    double &value = dense[(g * group + r) * in + k];
                    if (half) {
                        halves[at * group + r] = random_half(random);
                        value = half_value(halves[at * group + r]);
                    } else {
                        value = floats[at * group + r] = random.signed_unit();
                    }
                }
                ++at;
            }
        }
        pointers[b * (groups + 1) + groups] = static_cast<std::int32_t>(at);
    }

    const Kernel kernel = random.one_of({Kernel::single_token, Kernel::token_lane, Kernel::token_lane,
                                         group >= 4 ? Kernel::row_lane : Kernel::token_lane});
    const std::int64_t many = out * in > 20000 ? 40 : 130;
    const std::int64_t tokens = kernel == Kernel::single_token ? 1 : 2 + random.below(random.below(2) ? many - 1 : 20);
    const std::int64_t stride = random.below(4) ? in + random.one_of({0, 0, 1, 7}) : (in + 1023) / 1024 * 1024;
    Exact<float> x((tokens - 1) * stride + in, random), bias(out, random), y(tokens * out, random), again(tokens * out, random);
    for (std::int64_t i = 0; i < x.size(); ++i) x[i] = random.signed_unit();
    for (std::int64_t i = 0; i < out; ++i) bias[i] = random.signed_unit();

    LinearProblem p{};
    p.x = x.data();
    p.x_stride = stride;
    p.tokens = tokens;
    p.in = in;
    p.out = out;
    p.values = half ? static_cast<const void *>(halves.data()) : floats.data();
    p.index = index.data();
    p.pointers = pointers.data();
    p.blocks = blocks;
    p.block_columns = block_columns;
    p.groups = groups;
    p.group = group;
    p.half_values = half;
    p.kept_per_8 = random.below(4) && per_8 ? per_8 : 0;
    // Groups that keep nothing are not regular.
    for (std::int64_t k = 0; p.kept_per_8 && k < count; ++k) p.kept_per_8 = count * 8 == groups * in * per_8 ? per_8 : 0;
    p.bias = random.below(2) ? bias.data() : nullptr;
    p.y = y.data();
    p.threads = static_cast<int>(random.below(3)) + 1;
    p.kernel = kernel;
    p.level1_bytes = random.one_of({4, 32, 48}) * 1024;
    p.level2_bytes = random.one_of({16, 512, 2048}) * 1024;

    char name[160];
    std::snprintf(name, sizeof name, "%lldx%lld, %lld tokens, group %d, %d %%, %d per 8, %lld columns, %s, kernel %d, %d threads",
                  static_cast<long long>(out), static_cast<long long>(in), static_cast<long long>(tokens), group, share,
                  p.kept_per_8, static_cast<long long>(block_columns), half ? "half" : "float", static_cast<int>(kernel),
                  p.threads);
    linear(p);
    ++tally.calls;
    for (std::int64_t t = 0; t < tokens; ++t)
        for (std::int64_t o = 0; o < out; ++o) {
            double sum = p.bias ? bias[o] : 0.0, size = p.bias ? __builtin_fabs(sum) : 0.0;
            for (std::int64_t k = 0; k < in; ++k) {
                const double product = dense[o * in + k] * static_cast<double>(x[t * stride + k]);
                sum += product;
                size += __builtin_fabs(product);
            }
            // Each of the roundings of a sum of floats errs by at most 2^-24 of all that is summed up.
            const double most = static_cast<double>(in + 2) * 0x1p-23 * size, got = y[t * out + o];
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
