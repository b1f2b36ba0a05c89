// The contract of sparse_linear/strips.cpp: y and dx of weights that keep two of every four rows and columns, within
// the rounding of float sums; the same bits for any number of threads and any place in the batch.
#include "vector_weight.hpp"

extern "C" void CONTRACT_JOIN(sparsewright_strips_, SPARSEWRIGHT_ISA)(const sparsewright::LinearProblem &);

namespace {

using sparsewright::Kernel;

constexpr auto strips_kernel = CONTRACT_JOIN(sparsewright_strips_, SPARSEWRIGHT_ISA);
constexpr int rows_of_run[6][2] = {{0, 1}, {0, 2}, {1, 2}, {0, 3}, {1, 3}, {2, 3}};

// Two different permutations of every tile of 4 x 4.
void choose_tiles(Random &random, std::int64_t out, std::int64_t in, bool *kept) {
    for (std::int64_t i = 0; i < out * in; ++i) kept[i] = false;
    for (std::int64_t row = 0; row < out; row += 4)
        for (std::int64_t k = 0; k < in; k += 4) {
            const std::int64_t shift = random.below(4), step = 1 + random.below(3);
            for (int r = 0; r < 4; ++r) {
                kept[(row + r) * in + k + (shift + r) % 4] = true;
                kept[(row + r) * in + k + (shift + r + step) % 4] = true;
            }
        }
}

// What the kernels read of `kept` (rows, columns), columns cut into blocks.
struct Sorted {
    Exact<std::uint32_t> records;
    Exact<std::uint16_t> counts;
};

Sorted sorted(Random &random, std::int64_t rows, std::int64_t columns, std::int64_t blocks, std::int64_t wide,
              bool places, const bool *kept, std::int64_t row_step, std::int64_t column_step) {
    Sorted s{{rows / 4 * columns, random}, {blocks * (rows / 4) * 6, random}};
    std::int64_t at = 0;
    for (std::int64_t b = 0; b < blocks; ++b)
        for (std::int64_t strip = 0; strip < rows / 4; ++strip)
            for (int run = 0; run < 6; ++run) {
                const std::int64_t before = at;
                std::uint32_t place[4] = {};
                for (std::int64_t k = b * wide; k < (b + 1) * wide && k < columns; ++k) {
                    bool keeps[4];
                    for (int r = 0; r < 4; ++r) keeps[r] = kept[(4 * strip + r) * row_step + k * column_step];
                    const int one = rows_of_run[run][0], two = rows_of_run[run][1];
                    if (keeps[one] && keeps[two])
                        s.records[at++] = static_cast<std::uint32_t>(k - b * wide) |
                                          (places ? place[one] << 8 | place[two] << 16 : 0);
                    for (int r = 0; r < 4; ++r) place[r] += keeps[r];
                }
                s.counts[(b * (rows / 4) + strip) * 6 + run] = static_cast<std::uint16_t>(at - before);
            }
    return s;
}

void run(Random &random, Tally &tally) {
    const Kernel kernel = random.one_of({Kernel::strip_lane, Kernel::strip_input_grad});
    const bool turned = kernel == Kernel::strip_input_grad;
    const std::int64_t out = 4 * (1 + random.below(40)), in = 4 * (1 + random.below(90));
    Exact<bool> kept(out * in, random);
    choose_tiles(random, out, in, kept.data());
    const ValueType type = kernel == Kernel::strip_lane
                               ? random.one_of({ValueType::float32, ValueType::float16, ValueType::int8})
                               : ValueType::float32;
    const Weight w = packed(random, out, in, 1, type, random.one_of({8, 24, 64, 128, 256}), kept.data());
    const std::int64_t tokens = 1 + random.below(random.below(2) ? 130 : 20);
    const std::int64_t x_stride = in + random.one_of({0, 3}), dy_stride = out + random.one_of({0, 5});
    Exact<float> x((tokens - 1) * x_stride + in, random), dy((tokens - 1) * dy_stride + out, random), bias(out, random);
    for (std::int64_t i = 0; i < x.size(); ++i) x[i] = random.signed_unit();
    for (std::int64_t i = 0; i < dy.size(); ++i) dy[i] = random.signed_unit();
    for (std::int64_t i = 0; i < out; ++i) bias[i] = random.signed_unit();

    LinearProblem p{};
    w.fill(p);
    p.kernel = kernel;
    p.group = 4;
    p.groups = (turned ? in : out) / 4;
    p.tokens = tokens;
    p.threads = static_cast<int>(random.below(3)) + 1;
    p.level1_bytes = random.one_of({4, 32, 48}) * 1024;
    p.level2_bytes = random.one_of({16, 512, 2048}) * 1024;
    p.x = turned ? dy.data() : x.data();
    p.x_stride = turned ? dy_stride : x_stride;
    p.bias = kernel == Kernel::strip_lane && random.below(2) ? bias.data() : nullptr;
    std::int64_t blocks = w.blocks, wide = w.block_columns;
    if (turned) {
        const std::int64_t wanted = random.one_of({8, 64, 96, 256});
        blocks = (out + wanted - 1) / wanted;
        wide = ((out + blocks - 1) / blocks + 7) / 8 * 8;
        p.turned_columns = w.block_columns;
        p.in = out;
        p.out = in;
        p.blocks = blocks;
        p.block_columns = wide;
    }
    const Sorted s = turned ? sorted(random, in, out, blocks, wide, false, kept.data(), 1, in)
                            : sorted(random, out, in, blocks, wide, true, kept.data(), in, 1);
    p.records = s.records.data();
    p.counts = s.counts.data();
    char name[160];
    std::snprintf(name, sizeof name, "%lldx%lld, %lld tokens, %lld columns, %s, kernel %d, %d threads",
                  static_cast<long long>(out), static_cast<long long>(in), static_cast<long long>(tokens),
                  static_cast<long long>(wide), w.type_name(), static_cast<int>(kernel), p.threads);
    const std::int64_t to = turned ? in : out, from = turned ? out : in;
    Exact<float> y(tokens * to, random), again(tokens * to, random);
    p.y = y.data();
    strips_kernel(p);
    ++tally.calls;

    for (std::int64_t t = 0; t < tokens; ++t)
        for (std::int64_t o = 0; o < to; ++o) {
            double sum = p.bias ? bias[o] : 0.0, all = __builtin_fabs(sum);
            for (std::int64_t k = 0; k < from; ++k) {
                const double value = turned ? w.dense[k * in + o] : w.dense[o * in + k];
                const double product = value * p.x[t * p.x_stride + k];
                sum += product;
                all += __builtin_fabs(product);
            }
            const double most = static_cast<double>(from + 3) * 0x1p-23 * all + 1e-30, got = y[t * to + o];
            if (!tally.expect(__builtin_fabs(got - sum) <= most, "strips", name, t * to + o, got, sum)) return;
        }
    // Some of the tokens, on another number of threads.
    LinearProblem some = p;
    const std::int64_t begin = random.below(tokens);
    some.tokens = 1 + random.below(tokens - begin);
    some.x = p.x + begin * p.x_stride;
    some.y = again.data();
    some.threads = p.threads % 3 + 1;
    strips_kernel(some);
    ++tally.calls;
    for (std::int64_t i = 0; i < some.tokens * to; ++i)
        if (!tally.expect(!std::memcmp(&again[i], &y[begin * to + i], sizeof(float)), "strip bits", name, i, again[i],
                          y[begin * to + i]))
            return;
}

Check check("strips", run);

}  // namespace
