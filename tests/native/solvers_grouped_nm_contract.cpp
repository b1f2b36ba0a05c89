// The contract of solvers/grouped_nm.cpp: every column takes a pattern, no pattern more than g columns of a chunk, and on
// small tiles no other assignment keeps more.
#include "contract.hpp"
#include "nmg_patterns.hpp"

#include "../../src/sparsewright/solvers/grouped_nm.hpp"

namespace {

using namespace contract;
using sparsewright::GroupedProblem;

constexpr auto assign = CONTRACT_JOIN(sparsewright_grouped_nm_, SPARSEWRIGHT_ISA);

// Largest summed score of columns first.. of a tile, patterns having so much room left.
double best(const double *score, std::int64_t patterns, std::int64_t columns, std::int64_t column, std::vector<int> &room) {
    if (column == columns) return 0;
    double most = -1e300;
    for (std::int64_t p = 0; p < patterns; ++p) {
        if (!room[p]) continue;
        --room[p];
        const double all = score[column * patterns + p] + best(score, patterns, columns, column + 1, room);
        ++room[p];
        most = all > most ? all : most;
    }
    return most;
}

struct Form {
    int n, m, g;
};

void run(Random &random, Tally &tally) {
    const Form forms[] = {{1, 4, 1}, {1, 3, 2}, {2, 4, 1}, {2, 3, 2}, {3, 3, 4}, {3, 6, 2}, {2, 8, 1}};
    const auto [n, m, g] = random.one_of(forms);
    const auto order = patterns_of(n, m);
    const std::int64_t patterns = static_cast<std::int64_t>(order.size()), chunk = patterns * g;
    const std::int64_t blocks = 1 + random.below(3), in = 1 + random.below(2 * chunk + 3);
    Exact<std::uint8_t> rows(patterns * n, random);
    for (std::int64_t p = 0; p < patterns; ++p)
        for (int j = 0; j < n; ++j) rows[p * n + j] = static_cast<std::uint8_t>(order[p][j]);
    Exact<double> scores(blocks * m * in, random);
    const bool whole = random.below(2);  // whole numbers tie often
    for (std::int64_t i = 0; i < scores.size(); ++i) scores[i] = whole ? static_cast<double>(random.below(4)) : random.unit();
    Exact<std::int32_t> chosen(blocks * in, random), again(blocks * in, random);
    const int threads = static_cast<int>(random.below(3)) + 1;
    assign({scores.data(), blocks, in, m, n, g, patterns, rows.data(), chosen.data(), threads});
    assign({scores.data(), blocks, in, m, n, g, patterns, rows.data(), again.data(), threads % 3 + 1});
    tally.calls += 2;
    char name[100];
    std::snprintf(name, sizeof name, "%d:%d:%d, %lld blocks, %lld columns", n, m, g, static_cast<long long>(blocks),
                  static_cast<long long>(in));
    for (std::int64_t b = 0; b < blocks; ++b)
        for (std::int64_t first = 0; first < in; first += chunk) {
            const std::int64_t columns = in - first < chunk ? in - first : chunk;
            std::vector<int> taken(patterns, 0), room(patterns, g);
            std::vector<double> score(columns * patterns, 0.0);
            double kept = 0;
            for (std::int64_t k = 0; k < columns; ++k) {
                const std::int64_t at = b * in + first + k;
                const std::int32_t p = chosen[at];
                if (!tally.expect(p >= 0 && p < patterns && p == again[at], "grouped_nm", name, at, p, again[at])) return;
                if (!tally.expect(++taken[p] <= g, "grouped_nm room", name, at, taken[p], g)) return;
                for (std::int64_t q = 0; q < patterns; ++q)
                    for (int row : order[q]) score[k * patterns + q] += scores[(b * m + row) * in + first + k];
                kept += score[k * patterns + p];
            }
            if (columns > 6 || patterns > 6) continue;
            const double most = best(score.data(), patterns, columns, 0, room);
            if (!tally.expect(kept >= most - 1e-9, "grouped_nm optimum", name, first, kept, most)) return;
        }
}

Check check("grouped_nm", run);

}  // namespace
