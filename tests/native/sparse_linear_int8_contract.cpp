// The contract of sparse_linear/int8.cpp: from two tokens on the very bits that the rounding rule of int8_problem.hpp
// gives, on every instruction set; for one token y = scale (x q^T) + bias within the rounding of float sums.
#include "contract.hpp"

#include "../../src/sparsewright/kernels/sparse_linear/int8_problem.hpp"

namespace {

using namespace contract;
using sparsewright::Int8Problem;

constexpr auto linear = CONTRACT_JOIN(sparsewright_int8_linear_, SPARSEWRIGHT_ISA);

struct Shape {
    std::int64_t out, in;
};

void run(Random &random, Tally &tally) {
    const Shape shapes[] = {{1, 1},   {3, 5},    {50, 160}, {33, 257}, {17, 64}, {96, 72},
                            {5, 770}, {77, 307}, {130, 24}, {16, 1100}, {random.below(70) + 1, random.below(300) + 1}};
    const auto [out, in] = random.one_of(shapes);
    const bool all = !random.below(3);
    const int group = all ? 16 : random.one_of({2, 4, 8, 16}), share = random.one_of({0, 5, 25, 50, 100});
    const std::int64_t groups = (out + group - 1) / group;

    // The kept columns of each group in fours; the last four repeat the last column with zero weights.
    Exact<std::int32_t> pointers(groups + 1, random);
    Exact<bool> kept(groups * in, random);
    pointers[0] = 0;
    for (std::int64_t g = 0; g < groups; ++g) {
        std::int64_t count = 0;
        const bool empty = !all && !random.below(6);
        for (std::int64_t k = 0; k < in; ++k) count += kept[g * in + k] = all || (!empty && random.below(100) < share);
        pointers[g + 1] = pointers[g] + static_cast<std::int32_t>((count + 3) / 4);
    }
    const std::int64_t quads = pointers[groups];
    Exact<std::int8_t> values(quads * group * 4, random);
    Exact<std::uint16_t> columns(all ? 0 : quads * 4, random);
    Exact<float> scale(groups * group, random);
    Exact<std::int32_t> sums(groups * group, random);
    Exact<std::int8_t> dense(groups * group * in, random);
    for (std::int64_t i = 0; i < dense.size(); ++i) dense[i] = 0;
    for (std::int64_t i = 0; i < values.size(); ++i) values[i] = 0;
    for (std::int64_t g = 0; g < groups; ++g) {
        std::int64_t slot = 4 * pointers[g], last = 0;
        for (std::int64_t k = 0; k < in; ++k) {
            if (!kept[g * in + k]) continue;
            for (int r = 0; r < group; ++r) {
                // Extremes often, because that is where sums of 16 bits would overflow.
                const std::int8_t q = static_cast<std::int8_t>(random.below(3) ? random.below(255) - 127 : 127);
                dense[(g * group + r) * in + k] = q;
                values[(slot / 4 * group + r) * 4 + slot % 4] = q;
            }
            if (!all) columns[slot] = static_cast<std::uint16_t>(k);
            last = k;
            ++slot;
        }
        for (; !all && slot < 4 * pointers[g + 1]; ++slot) columns[slot] = static_cast<std::uint16_t>(last);
        for (int r = 0; r < group; ++r) {
            const std::int64_t row = g * group + r;
            scale[row] = (random.signed_unit() + 1.5f) / 127.0f;
            sums[row] = 0;
            for (std::int64_t k = 0; k < in; ++k) sums[row] += dense[row * in + k];
        }
    }

    const std::int64_t many = out * in > 20000 ? 70 : 130;
    const std::int64_t tokens = random.below(5) ? 2 + random.below(random.below(2) ? many - 1 : 20) : 1;
    const std::int64_t stride = in + random.one_of({0, 0, 1, 7});
    Exact<float> x((tokens - 1) * stride + in, random), bias(out, random), y(tokens * out, random);
    const float spread = random.one_of({1e-3f, 1.0f, 100.0f}), middle = random.signed_unit() * spread;
    for (std::int64_t i = 0; i < x.size(); ++i) x[i] = random.signed_unit() * spread + middle;
    for (std::int64_t i = 0; i < out; ++i) bias[i] = random.signed_unit();

    Int8Problem p{};
    p.x = x.data();
    p.x_stride = stride;
    p.tokens = tokens;
    p.in = in;
    p.out = out;
    p.values = values.data();
    p.columns = all ? nullptr : columns.data();
    p.pointers = pointers.data();
    p.scale = scale.data();
    p.sums = sums.data();
    p.groups = groups;
    p.group = group;
    p.bias = random.below(2) ? bias.data() : nullptr;
    p.y = y.data();
    p.threads = static_cast<int>(random.below(3)) + 1;

    char name[160];
    std::snprintf(name, sizeof name, "%lldx%lld, %lld tokens, group %d, %d %%%s, %d threads", static_cast<long long>(out),
                  static_cast<long long>(in), static_cast<long long>(tokens), group, share, all ? " (all)" : "", p.threads);
    linear(p);
    ++tally.calls;
    Exact<std::int32_t> u(in, random);
    for (std::int64_t t = 0; t < tokens; ++t) {
        const float *row = x.data() + t * stride;
        float bottom = row[0], top = row[0];
        for (std::int64_t k = 0; k < in; ++k) {
            bottom = row[k] < bottom ? row[k] : bottom;
            top = row[k] > top ? row[k] : top;
        }
        const float bottom_half = bottom * 0.5f, half = top * 0.5f - bottom_half;
        const bool flat = !(half > 5e-31f);
        const float inverse = flat ? 0.0f : 127.0f / half, step = flat ? 0.0f : half / 63.5f;
        for (std::int64_t k = 0; k < in; ++k)
            u[k] = static_cast<std::int32_t>((row[k] * 0.5f - bottom_half) * inverse + 0.5f);
        for (std::int64_t o = 0; o < out; ++o) {
            const float got = y[t * out + o];
            if (tokens == 1) {
                double sum = 0.0, size = 0.0;
                for (std::int64_t k = 0; k < in; ++k) {
                    const double product = static_cast<double>(row[k]) * dense[o * in + k];
                    sum += product;
                    size += __builtin_fabs(product);
                }
                sum = sum * static_cast<double>(scale[o]) + (p.bias ? bias[o] : 0.0);
                size = size * static_cast<double>(scale[o]) + (p.bias ? __builtin_fabs(bias[o]) : 0.0);
                const double most = static_cast<double>(in + 4) * 0x1p-23 * size;
                if (!tally.expect(__builtin_fabs(got - sum) <= most, "int8_linear", name, o, got, sum)) return;
                continue;
            }
            std::int32_t products = 0;
            for (std::int64_t k = 0; k < in; ++k) products += u[k] * dense[o * in + k];
            const float whole = (step * static_cast<float>(products) + bottom * static_cast<float>(sums[o])) * scale[o];
            const float wanted = p.bias ? whole + bias[o] : whole;
            if (!tally.expect(!std::memcmp(&got, &wanted, sizeof got), "int8_linear", name, t * out + o, got, wanted)) return;
        }
    }
}

Check check("int8_linear", run);

}  // namespace
