// One tile as a transportation problem, solved to the end: from any prices, shortest augmenting paths repair what the
// prices leave unbalanced. Prices and mask then obey complementary slackness, which proves the mask best.
//
// Method: successive shortest paths (Ahuja, Magnanti, Orlin 1993, chapter 9). r = w - a_i - b_j is the reduced score of
// a cell; r > 0 is kept, r < 0 is not, r = 0 may be either. A unit travels from a column that keeps too many (or a row
// that keeps too few) over kept cells to rows and over open cells to columns, each step costing |r|, to a column that
// keeps too few (or a row that keeps too many). With counts of at most n, rows and columns whose price is zero may stay
// short; that is one more node, the ground, with price zero. Where many cells are tied, units first travel at no cost,
// searched breadth first with one bit per cell.
//
// Scores up to 2^24 times the smallest one (in units of its last bit) make every number here exact in double.
#pragma once

#include <limits>

#include "transposable.hpp"
#include "transposable_vectors.hpp"

namespace {

using sparsewright::largest_tile;

constexpr double infinity = std::numeric_limits<double>::infinity();

inline int filled_up(int count) { return (count + 7) / 8 * 8; }

struct Transport {
    int rows, columns;
    bool at_most;
    int columns_up, rows_up;  // filled up to whole vectors of every instruction set
    alignas(64) double w[largest_tile * largest_tile];  // (rows, columns_up), fillings minus infinity
    alignas(64) double t[largest_tile * largest_tile];  // (columns, rows_up), the same
    alignas(64) double a[largest_tile], b[largest_tile];  // prices of rows and columns
    std::uint64_t open[largest_tile];    // cells of a row that may be chosen
    std::uint64_t open_of[largest_tile]; // of a column
    std::uint64_t kept[largest_tile];    // chosen cells of a row
    std::uint64_t kept_of[largest_tile]; // chosen cells of a column
    std::uint64_t tied[largest_tile];    // open cells of a row with r = 0
    std::uint64_t tied_of[largest_tile]; // of a column
    int row_keep[largest_tile], column_keep[largest_tile];
    int row_count[largest_tile], column_count[largest_tile];
    bool has_ties;
    bool narrow;   // scores are single precision
    bool rounded;  // scores are too far apart for exact sums
    // The last search: nodes are rows, then columns from largest_tile on, then the ground.
    alignas(64) double far[2 * largest_tile];   // least cost so far
    alignas(64) double next[2 * largest_tile];  // the same where not settled, infinity elsewhere
    std::uint8_t order[2 * largest_tile];       // when it was settled
    std::uint64_t settled_rows, settled_columns;
    double ground;

    static constexpr int ground_node = 2 * largest_tile;

    void shape(int row_count_, int column_count_) {
        rows = row_count_;
        columns = column_count_;
        rows_up = filled_up(rows);
        columns_up = filled_up(columns);
    }

    // Kept cells and ties as the prices say, and their counts.
    void follow_prices() {
        fill_prices();
        find_ties();
        has_ties = false;
        for (int i = 0; i < rows; ++i) {
            std::uint64_t above = 0;
            for (int j = 0; j < columns_up; j += wide_lanes)
                above |= static_cast<std::uint64_t>(positive(load<D>(w + i * columns_up + j) - splat(a[i]) - load<D>(b + j))) << j;
            kept[i] = above & open[i];
            row_count[i] = count_bits(kept[i]);
            has_ties = has_ties || tied[i];
        }
        for (int j = 0; j < columns; ++j) {
            std::uint64_t above = 0;
            for (int i = 0; i < rows_up; i += wide_lanes)
                above |= static_cast<std::uint64_t>(positive(load<D>(t + j * rows_up + i) - load<D>(a + i) - splat(b[j]))) << i;
            kept_of[j] = above & open_of[j];
            column_count[j] = count_bits(kept_of[j]);
        }
    }

    // Ties as the prices say; what is kept stays.
    void find_ties() {
        for (int i = 0; i < rows; ++i) {
            std::uint64_t equal = 0;
            for (int j = 0; j < columns_up; j += wide_lanes)
                equal |= static_cast<std::uint64_t>(zero(load<D>(w + i * columns_up + j) - splat(a[i]) - load<D>(b + j))) << j;
            tied[i] = equal & open[i];
        }
        for (int j = 0; j < columns; ++j) {
            std::uint64_t equal = 0;
            for (int i = 0; i < rows_up; i += wide_lanes)
                equal |= static_cast<std::uint64_t>(zero(load<D>(t + j * rows_up + i) - load<D>(a + i) - splat(b[j]))) << i;
            tied_of[j] = equal & open_of[j];
        }
    }

    // Whether the counts of a node must be met exactly.
    bool bound_row(int i) const { return !at_most | (a[i] > 0); }
    bool bound_column(int j) const { return !at_most | (b[j] > 0); }

    struct Ends {
        std::uint64_t source_rows, source_columns, target_rows, target_columns;
        bool any_source() const { return source_rows | source_columns; }
        bool any_target() const { return target_rows | target_columns; }
    };

    Ends ends() const {
        Ends e{0, 0, 0, 0};
        for (int i = 0; i < rows; ++i) {
            const std::uint64_t over = row_count[i] > row_keep[i], under = (row_count[i] < row_keep[i]) & bound_row(i);
            e.target_rows |= over << i;
            e.source_rows |= under << i;
        }
        for (int j = 0; j < columns; ++j) {
            const std::uint64_t over = column_count[j] > column_keep[j],
                                under = (column_count[j] < column_keep[j]) & bound_column(j);
            e.source_columns |= over << j;
            e.target_columns |= under << j;
        }
        return e;
    }

    void flip(int i, int j) {
        const std::uint64_t column = std::uint64_t{1} << j, row = std::uint64_t{1} << i;
        const int step = kept[i] & column ? -1 : 1;
        kept[i] ^= column;
        kept_of[j] ^= row;
        row_count[i] += step;
        column_count[j] += step;
    }

    // Tied cells between a row and a column that both want one more, or one less.
    void fill_ties(const Ends &e) {
        std::uint64_t wanting = e.target_columns;
        for (std::uint64_t left = e.source_rows; left; left &= left - 1) {
            const int i = lowest_bit(left);
            // Rows start at different columns, so that the first ones do not use up the same few.
            const std::uint64_t able = tied[i] & ~kept[i] & wanting, later = able & ~below(i);
            const int wants = row_keep[i] - row_count[i], there = count_bits(later);
            std::uint64_t chosen = first_bits(later, wants);
            if (wants > there) chosen |= first_bits(able & below(i), wants - there);
            wanting &= ~flip_all(i, chosen, 1);
        }
        std::uint64_t full = 0;
        for (int j = 0; j < columns; ++j) full |= static_cast<std::uint64_t>(column_count[j] > column_keep[j]) << j;
        for (std::uint64_t left = e.target_rows; left && full; left &= left - 1) {
            const int i = lowest_bit(left);
            full &= ~flip_all(i, first_bits(tied[i] & kept[i] & full, row_count[i] - row_keep[i]), -1);
        }
    }

    static std::uint64_t first_bits(std::uint64_t bits, int count) {
        std::uint64_t rest = bits;
        for (; count > 0 && rest; --count) rest &= rest - 1;
        return bits & ~rest;
    }

    // Flips cells of a row that are all kept or all not; returns the columns whose count is met now.
    std::uint64_t flip_all(int i, std::uint64_t cells, int step) {
        std::uint64_t met = 0;
        kept[i] ^= cells;
        row_count[i] += step * count_bits(cells);
        for (std::uint64_t left = cells; left; left &= left - 1) {
            const int j = lowest_bit(left);
            kept_of[j] ^= std::uint64_t{1} << i;
            column_count[j] += step;
            met |= static_cast<std::uint64_t>(column_count[j] == column_keep[j]) << j;
        }
        return met;
    }

    // One unit along tied cells, breadth first; false where none can go.
    bool move_tied(const Ends &e, bool from_ground) {
        std::uint64_t rows_seen = e.source_rows, columns_seen = e.source_columns;
        if (from_ground) {
            rows_seen = columns_seen = 0;
            for (int i = 0; i < rows; ++i)
                rows_seen |= static_cast<std::uint64_t>(a[i] == 0 && row_count[i] < row_keep[i]) << i;
            for (int j = 0; j < columns; ++j) columns_seen |= static_cast<std::uint64_t>(b[j] == 0) << j;
        }
        std::uint64_t row_front = rows_seen, column_front = columns_seen;
        const std::uint64_t first_rows = rows_seen, first_columns = columns_seen;
        std::uint8_t row_from[largest_tile], column_from[largest_tile];
        while (row_front | column_front) {
            std::uint64_t new_rows = 0, new_columns = 0;
            for (; column_front; column_front &= column_front - 1) {
                const int j = lowest_bit(column_front);
                const bool slack = at_most && b[j] == 0 && column_count[j] < column_keep[j];
                if (!from_ground && slack) return walk(largest_tile + j, first_rows, first_columns, row_from, column_from);
                std::uint64_t found = kept_of[j] & tied_of[j] & ~rows_seen;
                rows_seen |= found;
                new_rows |= found;
                for (; found; found &= found - 1) {
                    const int i = lowest_bit(found);
                    row_from[i] = static_cast<std::uint8_t>(j);
                    if (e.target_rows >> i & 1) return walk(i, first_rows, first_columns, row_from, column_from);
                }
            }
            row_front |= new_rows;
            for (; row_front; row_front &= row_front - 1) {
                const int i = lowest_bit(row_front);
                if (!from_ground && at_most && a[i] == 0) return walk(i, first_rows, first_columns, row_from, column_from);
                std::uint64_t found = tied[i] & ~kept[i] & ~columns_seen;
                columns_seen |= found;
                new_columns |= found;
                for (; found; found &= found - 1) {
                    const int j = lowest_bit(found);
                    column_from[j] = static_cast<std::uint8_t>(i);
                    if (e.target_columns >> j & 1)
                        return walk(largest_tile + j, first_rows, first_columns, row_from, column_from);
                }
            }
            column_front = new_columns;
        }
        return false;
    }

    bool walk(int node, std::uint64_t first_rows, std::uint64_t first_columns, const std::uint8_t *row_from,
              const std::uint8_t *column_from) {
        while (true) {
            if (node < largest_tile) {
                if (first_rows >> node & 1) return true;
                const int j = row_from[node];
                flip(node, j);
                node = largest_tile + j;
            } else {
                const int j = node - largest_tile;
                if (first_columns >> j & 1) return true;
                const int i = column_from[j];
                flip(i, j);
                node = i;
            }
        }
    }

    // What a settled column offers to the rows that it keeps.
    void offer_column(int j, double so_far) {
        const D base = splat(so_far), price = splat(b[j]), none = splat(infinity), nothing = D{};
        const std::uint64_t cells = kept_of[j];
        for (int i = 0; i < rows_up; i += wide_lanes) {
            const D r = load<D>(t + j * rows_up + i) - load<D>(a + i) - price;
            const D cost = base + greatest(r, nothing);
            offer(i, choose(static_cast<std::uint32_t>(cells >> i), cost, none));
        }
        if (at_most && b[j] == 0 && column_count[j] < column_keep[j] && so_far < ground) ground = so_far;
    }

    // What a settled row offers to the columns that it could keep.
    void offer_row(int i, double so_far) {
        const D base = splat(so_far), price = splat(a[i]), none = splat(infinity), nothing = D{};
        const std::uint64_t cells = open[i] & ~kept[i];
        for (int j = 0; j < columns_up; j += wide_lanes) {
            const D r = load<D>(w + i * columns_up + j) - price - load<D>(b + j);
            const D cost = base + greatest(-r, nothing);
            offer(largest_tile + j, choose(static_cast<std::uint32_t>(cells >> j), cost, none));
        }
        if (at_most && so_far + a[i] < ground) ground = so_far + a[i];
    }

    void offer(int node, D cost) {
        const D known = load<D>(far + node);
        const auto better = cost < known;
        store(far + node, better ? cost : known);
        store(next + node, better ? cost : load<D>(next + node));
    }

    int nearest() const {
        D best = splat(infinity);
        for (int i = 0; i < rows_up; i += wide_lanes) best = least(best, load<D>(next + i));
        for (int j = 0; j < columns_up; j += wide_lanes) best = least(best, load<D>(next + largest_tile + j));
        double lowest = best[0];
        for (int i = 1; i < wide_lanes; ++i) lowest = best[i] < lowest ? best[i] : lowest;
        if (lowest == infinity) return -1;
        const D at = splat(lowest);
        for (int i = 0; i < rows_up; i += wide_lanes)
            if (const std::uint32_t bits = zero(load<D>(next + i) - at)) return i + lowest_bit(bits);
        for (int j = 0; j < columns_up; j += wide_lanes)
            if (const std::uint32_t bits = zero(load<D>(next + largest_tile + j) - at))
                return largest_tile + j + lowest_bit(bits);
        return -1;
    }

    // Cheapest way from what is too much to what is too little; prices follow, the unit moves. False: there is none.
    bool move_cheapest(const Ends &e) {
        const bool from_ground = !e.any_source();
        if (from_ground && !at_most) return false;
        for (int i = 0; i < rows_up; ++i) far[i] = next[i] = infinity;
        for (int j = 0; j < columns_up; ++j) far[largest_tile + j] = next[largest_tile + j] = infinity;
        ground = infinity;
        settled_rows = settled_columns = 0;
        if (from_ground) {
            for (int i = 0; i < rows; ++i)
                if (a[i] == 0 && row_count[i] < row_keep[i]) far[i] = next[i] = 0;
            for (int j = 0; j < columns; ++j) far[largest_tile + j] = next[largest_tile + j] = b[j];
        } else {
            for (std::uint64_t left = e.source_rows; left; left &= left - 1) far[lowest_bit(left)] = next[lowest_bit(left)] = 0;
            for (std::uint64_t left = e.source_columns; left; left &= left - 1)
                far[largest_tile + lowest_bit(left)] = next[largest_tile + lowest_bit(left)] = 0;
        }
        int settled = 0, target;
        double length;
        while (true) {
            target = nearest();
            if (!from_ground && (target < 0 || ground <= next[target])) {
                if (ground == infinity) return false;
                length = ground;
                target = ground_node;
                break;
            }
            if (target < 0) return false;
            length = next[target];
            const bool is_row = target < largest_tile;
            if ((is_row ? e.target_rows >> target : e.target_columns >> (target - largest_tile)) & 1) break;
            next[target] = infinity;
            order[target] = static_cast<std::uint8_t>(settled++);
            // Settled nodes are marked by an infinite `next`; `far` holds their cost.
            if (is_row) {
                settled_rows |= std::uint64_t{1} << target;
                offer_row(target, length);
            } else {
                settled_columns |= std::uint64_t{1} << (target - largest_tile);
                offer_column(target - largest_tile, length);
            }
        }
        trace(target, length, settled, from_ground, e);
        const double shift = from_ground ? 0 : length;
        for (int i = 0; i < rows; ++i)
            if (far[i] < length) a[i] += far[i] - shift;
            else if (from_ground) a[i] += length;
        for (int j = 0; j < columns; ++j)
            if (far[largest_tile + j] < length) b[j] -= far[largest_tile + j] - shift;
            else if (from_ground) b[j] -= length;
        return true;
    }

    // Walks back over settled nodes whose cost plus the step is the cost of where it stands, and flips the cells.
    void trace(int node, double length, int before, bool from_ground, const Ends &e) {
        int cells[2 * largest_tile][2], count = 0;
        if (node == ground_node) {
            std::uint64_t at_rest = 0, able = 0;
            for (int j = 0; j < columns; ++j)
                at_rest |= static_cast<std::uint64_t>(b[j] == 0 && column_count[j] < column_keep[j] &&
                                                      far[largest_tile + j] == length) << j;
            for (int i = 0; i < rows; ++i) able |= static_cast<std::uint64_t>(far[i] + a[i] == length) << i;
            node = earlier(at_rest & settled_columns, largest_tile, before);
            if (node < 0) node = earlier(able & settled_rows, 0, before);
            if (node < 0) return;
            before = order[node];
        }
        while (true) {
            const double here = far[node];
            const D cost = splat(here), nothing = D{};
            std::uint64_t able = 0;
            if (node < largest_tile) {
                const int i = node;
                if (from_ground ? here == 0 && a[i] == 0 && row_count[i] < row_keep[i] : (e.source_rows >> i & 1) && here == 0) break;
                for (int j = 0; j < columns_up; j += wide_lanes) {
                    const D r = load<D>(w + i * columns_up + j) - splat(a[i]) - load<D>(b + j);
                    able |= static_cast<std::uint64_t>(zero(load<D>(far + largest_tile + j) + greatest(r, nothing) - cost)) << j;
                }
                node = earlier(able & kept[i] & settled_columns, largest_tile, before);
                if (node < 0) break;
                cells[count][0] = i;
                cells[count++][1] = node - largest_tile;
            } else {
                const int j = node - largest_tile;
                if (from_ground ? here == b[j] : (e.source_columns >> j & 1) && here == 0) break;
                for (int i = 0; i < rows_up; i += wide_lanes) {
                    const D r = load<D>(t + j * rows_up + i) - load<D>(a + i) - splat(b[j]);
                    able |= static_cast<std::uint64_t>(zero(load<D>(far + i) + greatest(-r, nothing) - cost)) << i;
                }
                node = earlier(able & open_of[j] & ~kept_of[j] & settled_rows, 0, before);
                if (node < 0) break;
                cells[count][0] = node;
                cells[count++][1] = j;
            }
            before = order[node];
        }
        for (int k = 0; k < count; ++k) flip(cells[k][0], cells[k][1]);
    }

    // The first of these rows or columns that was settled before; -1: none.
    int earlier(std::uint64_t able, int first, int before) const {
        for (; able; able &= able - 1)
            if (const int node = first + lowest_bit(able); order[node] < before) return node;
        return -1;
    }

    // Lets units move along ties as long as any can; true where counts are met then. Needs no scores.
    bool settle_ties() {
        Ends e = ends();
        if (has_ties && (e.any_source() || e.any_target())) {
            fill_ties(e);
            e = ends();
            while ((e.any_source() || e.any_target()) && move_tied(e, !e.any_source())) e = ends();
        }
        return !e.any_source() && !e.any_target();
    }

    // From balanced or unbalanced to the best mask. False: no mask obeys the counts; `stuck` is then a row, or
    // -1 - column.
    bool repair(int &stuck) {
        while (!settle_ties()) {
            const Ends e = ends();
            if (!move_cheapest(e)) {
                stuck = e.source_rows      ? lowest_bit(e.source_rows)
                        : e.target_rows    ? lowest_bit(e.target_rows)
                        : e.source_columns ? -1 - lowest_bit(e.source_columns)
                                           : -1 - lowest_bit(e.target_columns);
                return false;
            }
            if (has_ties) find_ties();
        }
        return true;
    }

    // Prices of the rows and columns that only fill vectors.
    void fill_prices() {
        for (int j = columns; j < columns_up; ++j) b[j] = 0;
        for (int i = rows; i < rows_up; ++i) a[i] = 0;
    }

    // For counts of at most n: what is worth nothing is not kept; its row and its column have prices of zero.
    void drop_worthless() {
        for (int i = 0; i < rows; ++i)
            for (std::uint64_t left = kept[i]; left; left &= left - 1)
                if (const int j = lowest_bit(left); w[i * columns_up + j] <= 0) flip(i, j);
    }

    // What the prices allow beyond what is kept: zero proves that nothing better exists. Sums run down the columns and
    // then over them, whatever the vectors.
    double gap() const {
        alignas(64) double of_column[largest_tile];
        for (int j = 0; j < columns_up; j += wide_lanes) {
            D sum{};
            for (int i = 0; i < rows; ++i) {
                const D r = load<D>(w + i * columns_up + j) - splat(a[i]) - load<D>(b + j);
                const D wrong = greatest(choose(static_cast<std::uint32_t>(kept[i] >> j), -r, r), D{});
                sum += choose(static_cast<std::uint32_t>(open[i] >> j), wrong, D{});
            }
            store(of_column + j, sum);
        }
        double sum = 0;
        for (int j = 0; j < columns; ++j) sum += of_column[j];
        if (at_most) {
            for (int i = 0; i < rows; ++i) sum += a[i] * (row_keep[i] - row_count[i]);
            for (int j = 0; j < columns; ++j) sum += b[j] * (column_keep[j] - column_count[j]);
        }
        return sum;
    }

    // The same with nothing lost to rounding: w - a - b as an unevaluated sum (Knuth's two-sum).
    double exact_gap() const {
        double sum = 0;
        const auto rest = [](double x, double y, double s) {
            const double back = s - x;
            return (x - (s - back)) + (y - back);
        };
        for (int i = 0; i < rows; ++i)
            for (int j = 0; j < columns; ++j) {
                if (!(open[i] >> j & 1)) continue;
                const double v = w[i * columns_up + j], both = a[i] + b[j], lost = rest(a[i], b[j], both);
                const double r = v - both, more = rest(v, -both, r) - lost;
                const double exact = r + more;
                sum += kept[i] >> j & 1 ? (exact < 0 ? -exact : 0) : (exact > 0 ? exact : 0);
            }
        if (at_most) {
            for (int i = 0; i < rows; ++i) sum += a[i] * (row_keep[i] - row_count[i]);
            for (int j = 0; j < columns; ++j) sum += b[j] * (column_keep[j] - column_count[j]);
        }
        return sum;
    }

    // Whether scores are so far apart that sums of a few of them and of prices may round in double.
    bool may_round() const {
        if (!narrow) return true;
        const D nothing = D{}, none = splat(infinity);
        D most = nothing, least_score = none;
        for (int i = 0; i < rows; ++i) {
            most = greatest(most, splat(size_of(a[i])));
            for (int j = 0; j < columns_up; j += wide_lanes) {
                const D v = load<D>(w + i * columns_up + j);
                const D size = choose(static_cast<std::uint32_t>(open[i] >> j), greatest(v, -v), nothing);
                most = greatest(most, size);
                least_score = least(least_score, size > nothing ? size : none);
            }
        }
        for (int j = 0; j < columns_up; j += wide_lanes) most = greatest(most, greatest(load<D>(b + j), -load<D>(b + j)));
        double largest = 0, smallest = infinity;
        for (int l = 0; l < wide_lanes; ++l) {
            largest = largest > most[l] ? largest : most[l];
            smallest = smallest < least_score[l] ? smallest : least_score[l];
        }
        // Single precision has 24 bits; sums of prices and scores grow by a few more.
        return largest > smallest * 0x1p25;
    }

    static double size_of(double v) { return v < 0 ? -v : v; }

    // repair(), and where it may have rounded, once more from prices of zero, which stay as small as the problem allows.
    bool solve(int &stuck) {
        if (!repair(stuck)) return false;
        rounded = may_round();
        if (!rounded || exact_gap() <= 1e-13 * size_of(sum_of(kept))) return true;
        for (int i = 0; i < rows; ++i) a[i] = 0;
        for (int j = 0; j < columns; ++j) b[j] = 0;
        follow_prices();
        return repair(stuck);
    }

    double proven_gap() const { return rounded ? exact_gap() : gap(); }

    // Sum of the scores of some cells, in the order of gap().
    double sum_of(const std::uint64_t *cells) const {
        alignas(64) double of_column[largest_tile];
        for (int j = 0; j < columns_up; j += wide_lanes) {
            D sum{};
            for (int i = 0; i < rows; ++i) sum += choose(static_cast<std::uint32_t>(cells[i] >> j), load<D>(w + i * columns_up + j), D{});
            store(of_column + j, sum);
        }
        double sum = 0;
        for (int j = 0; j < columns; ++j) sum += of_column[j];
        return sum;
    }
};

}  // namespace
