// The contract of solvers/transposable.cpp: counts are met, prices prove every tile best (to the last bit, since scores
// span few powers of two), and neither threads nor a warm start change what is kept.
#include <vector>

#include "contract.hpp"

#include "../../src/sparsewright/solvers/transposable.hpp"

namespace {

using namespace contract;
using sparsewright::ScoreType;
using sparsewright::TransposableFault;
using sparsewright::TransposableProblem;

constexpr auto solve = CONTRACT_JOIN(sparsewright_transposable_, SPARSEWRIGHT_ISA);

struct Form {
    int rows, columns, row_keep, column_keep;
};

std::uint16_t brain(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return static_cast<std::uint16_t>(bits >> 16);
}

float from_brain(std::uint16_t value) {
    const std::uint32_t bits = static_cast<std::uint32_t>(value) << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof wide);
    return wide;
}

void run(Random &random, Tally &tally) {
    const Form forms[] = {{4, 4, 2, 2}, {4, 4, 1, 1}, {4, 4, 3, 3},    {8, 8, 4, 4},  {8, 8, 2, 2},    {16, 16, 8, 8},
                          {7, 7, 3, 3}, {4, 8, 4, 2}, {32, 32, 16, 16}, {12, 12, 5, 5}, {64, 64, 32, 32}, {2, 2, 1, 1}};
    const Form f = random.one_of(forms);
    const std::int64_t out = 1 + random.below(2 * f.rows + 3), in = 1 + random.below((f.rows > 16 ? 2 : 20) * f.columns + 3);
    const std::int64_t down = (out + f.rows - 1) / f.rows, across = (in + f.columns - 1) / f.columns, tiles = down * across;
    const bool at_most = random.below(2), turned = random.below(4) == 0;
    const int kind = static_cast<int>(random.below(5)), type = static_cast<int>(random.below(3));
    Exact<float> floats(type == 0 ? out * in : 0, random);
    Exact<double> doubles(type == 1 ? out * in : 0, random);
    Exact<std::uint16_t> brains(type == 2 ? out * in : 0, random);
    std::vector<double> w(out * in);
    for (std::int64_t i = 0; i < out * in; ++i) {
        float v = random.signed_unit();
        if (kind == 1) v = static_cast<float>(random.below(4)) - 1;
        if (kind == 2) v = random.below(3) ? 0.0f : v < 0 ? -v : v;
        if (kind == 3) v = v < 0 ? -v : v;
        if (kind == 4) v = 0;
        // Scores keep to 2^-20 of the largest, so that all sums of a few are exact.
        v = static_cast<float>(static_cast<std::int32_t>(v * 0x1p20f)) * 0x1p-20f;
        const std::int64_t at = turned ? i % in * out + i / in : i;
        if (type == 0) floats[at] = v;
        if (type == 1) doubles[at] = v;
        if (type == 2) brains[at] = brain(v), v = from_brain(brain(v));
        w[i] = v;
    }
    Exact<std::uint8_t> mask(out * in, random), again(out * in, random), keep(out * in, random), drop(out * in, random);
    Exact<double> rows(tiles * f.rows, random), columns(tiles * f.columns, random), gap(tiles, random), kept(tiles, random);
    const bool forced = random.below(4) == 0;
    for (std::int64_t i = 0; i < out * in; ++i) {
        keep[i] = random.below(16) == 0;
        drop[i] = !keep[i] && random.below(16) == 0;
    }
    Exact<TransposableFault> faults(3, random);
    TransposableProblem p{};
    p.scores = type == 0 ? static_cast<const void *>(floats.data()) : type == 1 ? static_cast<const void *>(doubles.data()) : brains.data();
    p.type = static_cast<ScoreType>(type);
    p.batch = 1;
    p.out = out;
    p.in = in;
    p.batch_stride = out * in;
    p.row_stride = turned ? 1 : in;
    p.column_stride = turned ? out : 1;
    p.tile_rows = f.rows;
    p.tile_columns = f.columns;
    p.row_keep = f.row_keep;
    p.column_keep = f.column_keep;
    p.at_most = at_most;
    p.keep = forced ? keep.data() : nullptr;
    p.drop = forced ? drop.data() : nullptr;
    p.mask = mask.data();
    p.row_prices = rows.data();
    p.column_prices = columns.data();
    p.gap = gap.data();
    p.kept = kept.data();
    p.threads = 1 + static_cast<int>(random.below(3));
    p.faults = faults.data();
    solve(p);
    ++tally.calls;
    char name[120];
    std::snprintf(name, sizeof name, "%d x %d, %d and %d, %lld x %lld, scores %d of type %d%s%s%s", f.rows, f.columns, f.row_keep,
                  f.column_keep, static_cast<long long>(out), static_cast<long long>(in), kind, type, at_most ? ", at most" : "",
                  turned ? ", turned" : "", forced ? ", forced" : "");
    bool solved = true;
    for (int t = 0; t < p.threads; ++t) solved = solved && faults[t].tile < 0;
    if (!solved) {  // only forced cells can make it impossible
        tally.expect(forced, "transposable faults", name, 0, 0, 0);
        return;
    }
    for (std::int64_t tile = 0; tile < tiles; ++tile) {
        const std::int64_t top = tile / across * f.rows, left = tile % across * f.columns;
        const std::int64_t bottom = top + f.rows < out ? top + f.rows : out, right = left + f.columns < in ? left + f.columns : in;
        const bool loose = at_most || bottom - top < f.rows || right - left < f.columns;
        double excess = 0, sum = 0;
        std::vector<int> of_row(f.rows, 0), of_column(f.columns, 0);
        for (std::int64_t i = top; i < bottom; ++i)
            for (std::int64_t j = left; j < right; ++j) {
                const std::int64_t at = i * in + j;
                const bool chosen = mask[at] == 1;
                if (!tally.expect(mask[at] < 2, "transposable bytes", name, at, mask[at], 1)) return;
                of_row[i - top] += chosen;
                of_column[j - left] += chosen;
                if (chosen) sum += w[at];
                if (forced && (keep[at] || drop[at])) {
                    if (!tally.expect(chosen == (keep[at] == 1), "transposable forced", name, at, chosen, keep[at])) return;
                    continue;
                }
                const double r = w[at] - rows[tile * f.rows + i - top] - columns[tile * f.columns + j - left];
                excess += chosen ? (r < 0 ? -r : 0) : (r > 0 ? r : 0);
            }
        for (std::int64_t i = 0; i < bottom - top; ++i) {
            const int wanted = f.row_keep;
            if (!tally.expect(loose ? of_row[i] <= wanted : of_row[i] == wanted, "transposable row", name, top + i, of_row[i], wanted)) return;
            if (loose) excess += rows[tile * f.rows + i] * (wanted - of_row[i]) + (rows[tile * f.rows + i] < 0 ? 1 : 0);
        }
        for (std::int64_t j = 0; j < right - left; ++j) {
            const int wanted = f.column_keep;
            if (!tally.expect(loose ? of_column[j] <= wanted : of_column[j] == wanted, "transposable column", name, left + j,
                              of_column[j], wanted))
                return;
            if (loose) excess += columns[tile * f.columns + j] * (wanted - of_column[j]) + (columns[tile * f.columns + j] < 0 ? 1 : 0);
        }
        if (!tally.expect(excess == 0 && gap[tile] == 0, "transposable gap", name, tile, excess, gap[tile])) return;
        const double off = kept[tile] - sum;
        if (!tally.expect(off < 1e-9 && off > -1e-9, "transposable kept", name, tile, kept[tile], sum)) return;
    }
    // Other threads, no certificate: the same mask.
    p.mask = again.data();
    p.row_prices = p.column_prices = p.gap = p.kept = nullptr;
    p.threads = p.threads % 3 + 1;
    solve(p);
    ++tally.calls;
    for (std::int64_t i = 0; i < out * in; ++i)
        if (!tally.expect(mask[i] == again[i], "transposable threads", name, i, again[i], mask[i])) return;
    // From its own prices: as much is kept.
    Exact<double> rows2(tiles * f.rows, random), columns2(tiles * f.columns, random), gap2(tiles, random), kept2(tiles, random);
    p.first_columns = columns.data();
    p.row_prices = rows2.data();
    p.column_prices = columns2.data();
    p.gap = gap2.data();
    p.kept = kept2.data();
    solve(p);
    ++tally.calls;
    for (std::int64_t tile = 0; tile < tiles; ++tile) {
        const double off = kept2[tile] - kept[tile];
        if (!tally.expect(gap2[tile] == 0 && off < 1e-9 && off > -1e-9, "transposable start", name, tile, kept2[tile], kept[tile])) return;
    }
}

Check check("transposable", run);

}  // namespace
