// The contract of sparse_linear/nmg.cpp: y = activation(x W^T + bias) for weights in n:m:g, any shape and number of tokens;
// the same bits for any number of threads.
#include "contract.hpp"
#include "nmg_patterns.hpp"

#include "../../src/sparsewright/kernels/sparse_linear/nmg_problem.hpp"

namespace {

using namespace contract;
using sparsewright::NmgProblem;

constexpr auto linear = CONTRACT_JOIN(sparsewright_nmg_linear_, SPARSEWRIGHT_ISA);

struct Form {
    int n, m, g;
};

void run(Random &random, Tally &tally) {
    const Form forms[] = {{3, 6, 4}, {1, 10, 16}, {2, 4, 1}, {2, 4, 16}, {5, 7, 1}, {8, 10, 1}, {3, 3, 2}, {1, 4, 4}, {2, 8, 4}};
    const auto [n, m, g] = random.one_of(forms);
    const std::int64_t out = 1 + random.below(60), in = 1 + random.below(260);
    const auto order = patterns_of(n, m);
    const std::int64_t patterns = static_cast<std::int64_t>(order.size()), slots = patterns * g;
    const std::int64_t blocks = (out + m - 1) / m, chunks = (in + slots - 1) / slots;
    const bool half = random.below(2);
    Exact<std::uint8_t> rows(patterns * n, random);
    for (std::int64_t p = 0; p < patterns; ++p)
        for (int j = 0; j < n; ++j) rows[p * n + j] = static_cast<std::uint8_t>(order[p][j]);
    Exact<float> floats(half ? 0 : chunks * blocks * slots * n, random);
    Exact<std::uint16_t> halves(half ? chunks * blocks * slots * n : 0, random);
    Exact<std::int16_t> index(chunks * blocks * slots, random);
    Exact<double> dense(blocks * m * in, random);
    for (std::int64_t i = 0; i < floats.size(); ++i) floats[i] = 0;
    for (std::int64_t i = 0; i < halves.size(); ++i) halves[i] = 0;
    for (std::int64_t i = 0; i < dense.size(); ++i) dense[i] = 0;
    std::vector<std::int64_t> free(slots);
    for (std::int64_t c = 0; c < chunks; ++c)
        for (std::int64_t b = 0; b < blocks; ++b) {
            const std::int64_t tile = (c * blocks + b) * slots;
            for (std::int64_t s = 0; s < slots; ++s) {
                index[tile + s] = -1;
                free[s] = s;
            }
            for (std::int64_t s = slots - 1; s > 0; --s) std::swap(free[s], free[random.below(s + 1)]);
            for (std::int64_t k = 0; k < slots && c * slots + k < in; ++k) {
                const std::int64_t slot = free[k];
                index[tile + slot] = static_cast<std::int16_t>(k);
                for (int j = 0; j < n; ++j) {
                    const std::int64_t row = b * m + order[slot / g][j], at = (tile + slot) * n + j;
                    if (row >= out) continue;
                    const int eighth = static_cast<int>(random.below(17)) - 8;
                    if (half) halves[at] = static_cast<std::uint16_t>(eighth ? (eighth < 0 ? 0xbc00 : 0x3c00) : 0);
                    else floats[at] = random.signed_unit();
                    dense[row * in + c * slots + k] = half ? (eighth > 0) - (eighth < 0) : static_cast<double>(floats[at]);
                }
            }
        }
    const std::int64_t tokens = 1 + random.below(random.below(2) ? 140 : 4), stride = in + random.one_of({0, 0, 3});
    Exact<float> x((tokens - 1) * stride + in, random), bias(out, random), y(tokens * out, random), again(tokens * out, random);
    for (std::int64_t i = 0; i < x.size(); ++i) x[i] = random.signed_unit();
    for (std::int64_t i = 0; i < out; ++i) bias[i] = random.signed_unit();
    NmgProblem p{};
    p.x = x.data();
    p.x_stride = stride;
    p.tokens = tokens;
    p.in = in;
    p.out = out;
    p.values = half ? static_cast<const void *>(halves.data()) : floats.data();
    p.index = index.data();
    p.rows = rows.data();
    p.chunks = chunks;
    p.blocks = blocks;
    p.patterns = patterns;
    p.g = g;
    p.n = n;
    p.m = m;
    p.half_values = half;
    p.bias = random.below(2) ? bias.data() : nullptr;
    p.y = y.data();
    p.threads = static_cast<int>(random.below(3)) + 1;
    p.activation = static_cast<int>(random.below(2));
    p.level1_bytes = random.one_of({4, 32, 48}) * 1024;
    p.level2_bytes = random.one_of({16, 512, 2048}) * 1024;
    char name[160];
    std::snprintf(name, sizeof name, "%d:%d:%d, %lldx%lld, %lld tokens, %s, %d threads", n, m, g,
                  static_cast<long long>(out), static_cast<long long>(in), static_cast<long long>(tokens),
                  half ? "half" : "float", p.threads);
    linear(p);
    p.y = again.data();
    p.threads = p.threads % 3 + 1;
    linear(p);
    tally.calls += 2;
    for (std::int64_t t = 0; t < tokens; ++t)
        for (std::int64_t o = 0; o < out; ++o) {
            double sum = p.bias ? bias[o] : 0.0, size = __builtin_fabs(sum);
            for (std::int64_t k = 0; k < in; ++k) {
                const double product = dense[o * in + k] * static_cast<double>(x[t * stride + k]);
                sum += product;
                size += __builtin_fabs(product);
            }
            const std::int64_t at = t * out + o;
            if (p.activation && sum < 0) sum = 0;
            const double most = static_cast<double>(in + 2) * 0x1p-23 * size;
            if (!tally.expect(__builtin_fabs(y[at] - sum) <= most, "nmg_linear", name, at, y[at], sum)) return;
            if (!tally.expect(!std::memcmp(&again[at], &y[at], 4), "nmg_linear bits", name, at, again[at], y[at])) return;
        }
}

Check check("nmg_linear", run);

}  // namespace
