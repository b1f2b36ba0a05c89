// Exact balanced assignment of columns to patterns, tile by tile. CMake compiles this file once per instruction set,
// with SPARSEWRIGHT_ISA as the suffix of the one function that leaves it; all of them do the same sums in the same
// order, so the choice is the same.
//
// Method: successive shortest paths on the patterns (Ahuja, Magnanti, Orlin 1993, chapter 9). Every column starts at
// its best pattern. While a pattern holds more than g columns, the cheapest chain of moves leads one column's worth of
// excess to a pattern with room: Dijkstra over the patterns, where moving column c from p to q costs what c loses, and
// prices keep every cost from being negative. A tile has few patterns and little excess, so this takes microseconds.
#include "grouped_nm.hpp"

#include <cstring>
#include <limits>

#include "../_native/parallel.hpp"

#define SPARSEWRIGHT_JOIN_(a, b) a##b
#define SPARSEWRIGHT_JOIN(a, b) SPARSEWRIGHT_JOIN_(a, b)

namespace {

using sparsewright::GroupedProblem;

#if defined(__AVX512F__)
constexpr int lanes = 8;
#elif defined(__AVX2__)
constexpr int lanes = 4;
#else
constexpr int lanes = 2;
#endif
typedef double Lane __attribute__((vector_size(lanes * sizeof(double))));

constexpr double infinity = std::numeric_limits<double>::infinity();

inline Lane load(const double *p) {
    Lane v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

inline void store(double *p, Lane v) { std::memcpy(p, &v, sizeof v); }

inline Lane splat(double s) { return s - Lane{}; }

// One tile at work. Rows of `gain` and all arrays over patterns are filled up to whole vectors; filling patterns gain
// minus infinity and are never reached.
struct Tile {
    std::int64_t columns, patterns, width, g;
    double *gain;            // (columns, width)
    double *price;           // (width)
    double *distance;        // (width) of the open patterns; minus infinity where settled
    double *settled;         // (width) distance of the settled ones
    double *via;             // (width) column that moves into the pattern; a number, so that lanes are alike
    std::int32_t *at;        // (columns) pattern that holds the column
    std::int32_t *next;      // (columns) next column of the same pattern, -1 at the end
    std::int32_t *first;     // (patterns)
    std::int32_t *held;      // (patterns) columns of each pattern
    std::int32_t *order;     // (patterns) in which they were settled

    void put(std::int32_t column, std::int32_t pattern) {
        at[column] = pattern;
        next[column] = first[pattern];
        first[pattern] = column;
        ++held[pattern];
    }

    void take(std::int32_t column) {
        const std::int32_t pattern = at[column];
        std::int32_t *link = &first[pattern];
        while (*link != column) link = &next[*link];
        *link = next[column];
        --held[pattern];
    }

    // Offers every open pattern the columns of a settled one.
    void relax(std::int32_t pattern) {
        for (std::int32_t c = first[pattern]; c >= 0; c = next[c]) {
            const double *row = gain + c * width;
            const Lane base = splat(settled[pattern] + (row[pattern] - price[pattern]));
            const Lane column = splat(c);
            for (std::int64_t q = 0; q < width; q += lanes) {
                const Lane offer = base - (load(row + q) - load(price + q));
                const Lane known = load(distance + q);
                const auto better = offer < known;
                store(distance + q, better ? offer : known);
                store(via + q, better ? column : load(via + q));
            }
        }
    }

    // The nearest open pattern, the lowest of equal ones.
    std::int32_t nearest() const {
        Lane best = splat(infinity);
        for (std::int64_t q = 0; q < width; q += lanes) {
            const Lane known = load(distance + q);
            const Lane open = known > splat(-infinity) ? known : splat(infinity);
            best = open < best ? open : best;
        }
        double least = best[0];
        for (int i = 1; i < lanes; ++i) least = best[i] < least ? best[i] : least;
        for (std::int64_t q = 0; q < patterns; ++q)
            if (distance[q] == least) return static_cast<std::int32_t>(q);
        return -1;
    }

    // Leads one column of excess away; false when no pattern holds too many.
    bool improve() {
        std::int64_t count = 0;
        for (std::int64_t q = 0; q < width; ++q) distance[q] = infinity;
        for (std::int32_t p = 0; p < patterns; ++p)
            if (held[p] > g) {
                settled[p] = 0;
                distance[p] = -infinity;
                via[p] = -1;
                order[count++] = p;
            }
        if (count == 0) return false;
        for (std::int64_t i = 0; i < count; ++i) relax(order[i]);
        std::int32_t target;
        double length;
        while (true) {
            target = nearest();
            if (target < 0) return false;
            length = distance[target];
            if (held[target] < g) break;
            settled[target] = length;
            distance[target] = -infinity;
            order[count++] = target;
            relax(target);
        }
        for (std::int64_t i = 0; i < count; ++i) price[order[i]] += length - settled[order[i]];
        while (via[target] >= 0) {
            const std::int32_t column = static_cast<std::int32_t>(via[target]), from = at[column];
            take(column);
            put(column, target);
            target = from;
        }
        return true;
    }
};

std::int64_t vectors_of(std::int64_t count) { return (count + lanes - 1) / lanes * lanes; }

void solve(const GroupedProblem &p, std::int64_t block, std::int64_t start, Tile &tile) {
    tile.columns = p.in - start < p.patterns * p.g ? p.in - start : p.patterns * p.g;
    for (std::int64_t q = 0; q < tile.width; ++q) tile.price[q] = 0;
    for (std::int64_t q = 0; q < p.patterns; ++q) {
        tile.first[q] = -1;
        tile.held[q] = 0;
    }
    const double *scores = p.scores + block * p.m * p.in + start;
    for (std::int64_t c = 0; c < tile.columns; ++c) {
        double *row = tile.gain + c * tile.width;
        std::int32_t best = 0;
        for (std::int64_t q = 0; q < p.patterns; ++q) {
            const std::uint8_t *rows = p.rows + q * p.n;
            double sum = 0;
            for (std::int64_t j = 0; j < p.n; ++j) sum += scores[rows[j] * p.in + c];
            row[q] = sum;
            if (sum > row[best]) best = static_cast<std::int32_t>(q);
        }
        for (std::int64_t q = p.patterns; q < tile.width; ++q) row[q] = -infinity;
        tile.put(static_cast<std::int32_t>(c), best);
    }
    while (tile.improve()) {
    }
    std::memcpy(p.chosen + block * p.in + start, tile.at, tile.columns * sizeof(std::int32_t));
}

// Threads share out tiles; none depends on another.
void run_part(void *context, int part) {
    const GroupedProblem &p = *static_cast<const GroupedProblem *>(context);
    const std::int64_t chunk = p.patterns * p.g, chunks = (p.in + chunk - 1) / chunk, tiles = p.blocks * chunks;
    const std::int64_t columns = p.in < chunk ? p.in : chunk, width = vectors_of(p.patterns);
    char *memory = static_cast<char *>(sparsewright::scratch(
        (columns + 4) * width * sizeof(double) + (2 * columns + 3 * p.patterns) * sizeof(std::int32_t)));
    Tile tile{};
    tile.patterns = p.patterns;
    tile.width = width;
    tile.g = p.g;
    tile.gain = reinterpret_cast<double *>(memory);
    tile.price = tile.gain + columns * width;
    tile.distance = tile.price + width;
    tile.settled = tile.distance + width;
    tile.via = tile.settled + width;
    tile.at = reinterpret_cast<std::int32_t *>(tile.via + width);
    tile.next = tile.at + columns;
    tile.first = tile.next + columns;
    tile.held = tile.first + p.patterns;
    tile.order = tile.held + p.patterns;
    for (std::int64_t i = tiles * part / p.threads; i < tiles * (part + 1) / p.threads; ++i)
        solve(p, i / chunks, i % chunks * chunk, tile);
}

}  // namespace

extern "C" void SPARSEWRIGHT_JOIN(sparsewright_grouped_nm_, SPARSEWRIGHT_ISA)(const GroupedProblem &p) {
    sparsewright::parallel(p.threads, run_part, const_cast<GroupedProblem *>(&p));
}
