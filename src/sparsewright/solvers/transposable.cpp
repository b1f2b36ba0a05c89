// Exact transposable masks, tile by tile, with prices that prove them. CMake compiles this file once per instruction
// set, with SPARSEWRIGHT_ISA as the suffix of the one function that leaves it; all of them give the same bits.
//
// Whole square tiles of one count are swept in vectors (transposable_four.hpp, transposable_sweeps.hpp). What sweeps do
// not settle, and every other tile, goes to shortest paths in double (transposable_repair.hpp).
#include "transposable.hpp"

#include <cmath>
#include <algorithm>

#include "../_native/parallel.hpp"
#include "transposable_four.hpp"
#include "transposable_repair.hpp"
#include "transposable_sweeps.hpp"

#define SPARSEWRIGHT_JOIN_(a, b) a##b
#define SPARSEWRIGHT_JOIN(a, b) SPARSEWRIGHT_JOIN_(a, b)

namespace {

using sparsewright::ScoreType;
using sparsewright::TransposableFault;
using sparsewright::TransposableProblem;

constexpr std::int64_t chunk_columns = 1024;  // about so many columns are worked on at a time

// Where the tiles of one chunk lie: floats for sweeps, doubles where the scores are such.
struct Chunk {
    const TransposableProblem *p;
    std::int64_t batch, row, column;     // of its first cell
    std::int64_t first_tile;             // number of its first tile
    int rows;                            // of its tiles: all, or fewer at the edge
    std::int64_t columns;
    const float *scores;
    std::int64_t stride;
    const double *exact;                 // null: the floats are the scores
    std::uint8_t *mask;
    TransposableFault *fault;

    std::int64_t cell() const { return (batch * p->out + row) * p->in + column; }
};

inline float half_to_float(std::uint16_t half) {
    const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000) << 16;
    std::uint32_t exponent = half >> 10 & 31, digits = half & 1023;
    std::uint32_t bits;
    if (exponent == 31) {
        bits = sign | 0x7f800000 | digits << 13;
    } else if (exponent == 0 && digits == 0) {
        bits = sign;
    } else {
        if (exponent == 0) {
            const int shift = __builtin_clz(digits) - 21;
            digits = digits << shift & 1023;
            exponent = static_cast<std::uint32_t>(1 - shift);
        }
        bits = sign | (exponent + 112) << 23 | digits << 13;
    }
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline float brain_to_float(std::uint16_t brain) {
    const std::uint32_t bits = static_cast<std::uint32_t>(brain) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// Copies a chunk by its strides, the closer one innermost.
template <class From, class To, class Convert>
inline void gather(const From *from, std::int64_t row_stride, std::int64_t column_stride, int rows, std::int64_t columns,
                   To *to, std::int64_t stride, Convert convert) {
    if (column_stride == 1) {
        for (int i = 0; i < rows; ++i)
            for (std::int64_t j = 0; j < columns; ++j) to[i * stride + j] = convert(from[i * row_stride + j]);
    } else {
        for (std::int64_t j = 0; j < columns; ++j)
            for (int i = 0; i < rows; ++i) to[i * stride + j] = convert(from[i * row_stride + j * column_stride]);
    }
}

inline void report(const Chunk &c, std::int64_t tile, int kind, int row) {
    if (c.fault->tile < 0 || tile < c.fault->tile) *c.fault = {tile, kind, row};
}

// A price to start from, cut off where no best price can be: larger ones would cost precision.
inline double believable(double price, double most) { return std::isfinite(price) ? std::clamp(price, -most, most) : 0; }

// Prices a tile starts from, in double and for any bounds: the sweeps of transposable_sweeps.hpp, one value at a time.
void start_prices(Transport &t, const double *first_columns, int scaled) {
    double largest = 0;
    for (int i = 0; i < t.rows; ++i)
        for (int j = 0; j < t.columns; ++j)
            if (t.open[i] >> j & 1) largest = std::max(largest, std::fabs(t.w[i * t.columns_up + j]));
    int exponent = 0;
    std::frexp(largest, &exponent);
    const double grid = std::ldexp(1.0, exponent - 20);
    const auto priced = [&](double value) {
        const double rounded = largest > 0 ? std::nearbyint(value / grid) * grid : 0;
        return t.at_most ? std::max(rounded, 0.0) : rounded;
    };
    const auto middle = [&](double *v, int count, int keep) {
        if (count == 0) return 0.0;
        std::sort(v, v + count, [](double x, double y) { return x > y; });
        if (keep >= count) return v[count - 1] - largest;
        if (keep <= 0) return v[0] + largest;
        return 0.5 * (v[keep - 1] + v[keep]);
    };
    double v[largest_tile];
    const auto price_rows = [&] {
        for (int i = 0; i < t.rows; ++i) {
            int count = 0;
            for (std::uint64_t left = t.open[i]; left; left &= left - 1) {
                const int j = lowest_bit(left);
                v[count++] = t.w[i * t.columns_up + j] - t.b[j];
            }
            t.a[i] = priced(middle(v, count, t.row_keep[i]));
        }
    };
    for (int i = 0; i < t.rows; ++i) t.a[i] = 0;
    if (first_columns) {
        for (int j = 0; j < t.columns; ++j) t.b[j] = priced(believable(std::ldexp(first_columns[j], -scaled), 4 * largest));
        price_rows();
        return;
    }
    for (int sweep = 0; sweep < 6; ++sweep) {
        for (int j = 0; j < t.columns; ++j) {
            int count = 0;
            for (int i = 0; i < t.rows; ++i)
                if (t.open[i] >> j & 1) v[count++] = t.w[i * t.columns_up + j] - t.a[i];
            t.b[j] = priced(middle(v, count, t.column_keep[j]));
        }
        price_rows();
    }
}

inline void write_prices(const TransposableProblem &p, std::int64_t tile, const Transport &t, int exponent) {
    if (!p.row_prices) return;
    double *rows = p.row_prices + tile * p.tile_rows, *columns = p.column_prices + tile * p.tile_columns;
    for (int i = 0; i < p.tile_rows; ++i) rows[i] = i < t.rows ? t.a[i] : 0;
    for (int j = 0; j < p.tile_columns; ++j) columns[j] = j < t.columns ? t.b[j] : 0;
    if (exponent == 0) return;
    for (int i = 0; i < t.rows; ++i) rows[i] = std::ldexp(rows[i], exponent);
    for (int j = 0; j < t.columns; ++j) columns[j] = std::ldexp(columns[j], exponent);
}

// A whole tile of finite single-precision scores, as doubles and mirrored.
void load_square(Transport &t, const float *scores, std::int64_t stride) {
    const int m = t.rows, up = t.rows_up;
    if (m == up) {
        alignas(64) float mirrored[largest_tile * largest_tile];
        for (int i = 0; i < m; i += 8)
            for (int j = 0; j < m; j += 8) mirror8(scores + i * stride + j, stride, mirrored + j * m + i, m);
        for (int i = 0; i < m; ++i)
            for (int j = 0; j < m; j += wide_lanes) store(t.w + i * m + j, widened(scores + i * stride + j));
        for (int k = 0; k < m * m; k += wide_lanes) store(t.t + k, widened(mirrored + k));
        return;
    }
    for (int i = 0; i < m; ++i)
        for (int j = 0; j < up; ++j) {
            t.w[i * up + j] = j < m ? scores[i * stride + j] : -infinity;
            t.t[i * up + j] = j < m ? scores[j * stride + i] : -infinity;
        }
}

// Whether the floats of a tile are its scores.
bool floats_are_exact(const Chunk &c, std::int64_t at, int rows, int columns) {
    if (!c.exact) return true;
    for (int i = 0; i < rows; ++i)
        for (int j = 0; j < columns; ++j)
            if (c.scores[i * c.stride + at + j] != c.exact[i * c.stride + at + j]) return false;
    return true;
}

inline Transport &transport() { return *static_cast<Transport *>(sparsewright::scratch(sizeof(Transport) + 64, 1)); }

// Any tile, solved in double; `rows` x `columns` of it exist. With prices, it goes on from those of a and b.
void solve_any(const Chunk &c, std::int64_t at, int columns, const float *a, const float *b) {
    const TransposableProblem &p = *c.p;
    const std::int64_t tile = c.first_tile + at / p.tile_columns;
    Transport &t = transport();
    t.shape(c.rows, columns);
    const bool edge = c.rows < p.tile_rows || columns < p.tile_columns;
    std::uint8_t *mask = c.mask + at;
    const std::int64_t cell = c.cell() + at;
    if (edge && p.edge_dense) {
        double sum = 0;
        for (int i = 0; i < c.rows; ++i)
            for (int j = 0; j < columns; ++j) {
                const double w = c.exact ? c.exact[i * c.stride + at + j] : c.scores[i * c.stride + at + j];
                if (!std::isfinite(w)) return report(c, tile, 1, i);
                const bool drop = p.drop && p.drop[cell + i * p.in + j];
                if (drop && p.keep && p.keep[cell + i * p.in + j]) return report(c, tile, 2, i);
                if (!drop) sum += w;
                mask[i * p.in + j] = !drop;
            }
        t.rows = t.columns = 0;
        write_prices(p, tile, t, 0);
        if (p.gap) p.gap[tile] = 0, p.kept[tile] = sum;
        return;
    }
    t.at_most = p.at_most || edge;
    double largest = 0;
    if (a && !c.exact) {
        load_square(t, c.scores + at, c.stride);
    } else {
        for (int i = 0; i < t.rows; ++i)
            for (int j = 0; j < t.columns_up; ++j) {
                double w = -infinity;
                if (j < columns) {
                    w = c.exact ? c.exact[i * c.stride + at + j] : c.scores[i * c.stride + at + j];
                    if (!std::isfinite(w)) return report(c, tile, 1, i);
                    largest = std::max(largest, std::fabs(w));
                }
                t.w[i * t.columns_up + j] = w;
            }
    }
    for (int i = 0; i < t.rows; ++i) {
        t.open[i] = below(columns);
        t.row_keep[i] = p.row_keep;
    }
    for (int j = 0; j < columns; ++j) t.open_of[j] = below(t.rows);
    for (int j = 0; j < columns; ++j) t.column_keep[j] = p.column_keep;
    // Doubles near the ends of their range are scaled by a power of two.
    int exponent = 0;
    if (largest > 0x1p900 || (largest > 0 && largest < 0x1p-900)) {
        std::frexp(largest, &exponent);
        for (int i = 0; i < t.rows; ++i)
            for (int j = 0; j < columns; ++j) t.w[i * t.columns_up + j] = std::ldexp(t.w[i * t.columns_up + j], -exponent);
    }
    std::uint64_t forced[largest_tile] = {};
    if (p.keep || p.drop) {
        for (int i = 0; i < t.rows; ++i)
            for (int j = 0; j < columns; ++j) {
                const std::uint64_t bit = std::uint64_t{1} << j;
                const bool keep = p.keep && p.keep[cell + i * p.in + j], drop = p.drop && p.drop[cell + i * p.in + j];
                if (keep || drop) t.open[i] &= ~bit, t.open_of[j] &= ~(std::uint64_t{1} << i);
                if (!keep) continue;
                if (drop) return report(c, tile, 2, i);
                forced[i] |= bit;
                if (--t.row_keep[i] < 0) return report(c, tile, 2, i);
                if (--t.column_keep[j] < 0) return report(c, tile, 2, -1 - j);
            }
    }
    if (!a || c.exact)
        for (int j = 0; j < columns; ++j)
            for (int i = 0; i < t.rows_up; ++i) t.t[j * t.rows_up + i] = i < t.rows ? t.w[i * t.columns_up + j] : -infinity;
    if (a) {
        for (int i = 0; i < t.rows; ++i) t.a[i] = a[i];
        for (int j = 0; j < columns; ++j) t.b[j] = b[j];
    } else {
        start_prices(t, p.first_columns ? p.first_columns + tile * p.tile_columns : nullptr, exponent);
    }
    t.narrow = floats_are_exact(c, at, c.rows, columns);
    t.follow_prices();
    int stuck = 0;
    if (!t.solve(stuck)) return report(c, tile, 2, stuck);
    if (t.at_most) t.drop_worthless();
    for (int i = 0; i < t.rows; ++i) {
        forced[i] |= t.kept[i];
        write_bytes(forced[i], mask + i * p.in, columns);
    }
    if (!p.row_prices) return;
    write_prices(p, tile, t, exponent);
    p.gap[tile] = std::ldexp(t.proven_gap(), exponent);
    p.kept[tile] = std::ldexp(t.sum_of(forced), exponent);
}

// Prices, gap and kept sum of a tile whose mask agrees with the prices of sweeps.
template <int P> inline void write_certificate(const TransposableProblem &p, const Panel<P> &panel, int at, std::int64_t tile, int m, double sum) {
    double *rows = p.row_prices + tile * m, *columns = p.column_prices + tile * m;
    if (m == P) {
        for (int i = 0; i < P; i += wide_lanes) {
            store(rows + i, widened(panel.a + at + i));
            store(columns + i, widened(panel.b + at + i));
        }
    } else {
        for (int i = 0; i < m; ++i) rows[i] = panel.a[at + i], columns[i] = panel.b[at + i];
    }
    p.gap[tile] = 0;
    p.kept[tile] = sum;
}

// A tile whose prices leave counts unmet: ties are settled on bits alone, the rest in double.
template <int P>
void finish_tile(const Chunk &c, const Panel<P> &panel, int tile, std::int64_t at, int m, std::uint64_t *kept) {
    const TransposableProblem &p = *c.p;
    const std::int64_t number = c.first_tile + at / m;
    Transport &t = transport();
    t.shape(m, m);
    t.at_most = p.at_most;
    t.narrow = true;
    for (int i = 0; i < m; ++i) {
        t.row_keep[i] = t.column_keep[i] = p.row_keep;
        t.open[i] = t.open_of[i] = below(m);
    }
    follow_ties<P>(panel, tile, m, t);
    const bool settled = t.settle_ties() && !p.at_most;
    if (!settled || p.row_prices) load_square(t, c.scores + at, c.stride);
    if (!settled) {
        t.fill_prices();
        int stuck = 0;
        if (!t.solve(stuck)) return report(c, number, 2, stuck);
        if (t.at_most) t.drop_worthless();
    }
    for (int i = 0; i < m; ++i) {
        kept[i] = t.kept[i];
        write_bytes(kept[i], c.mask + i * p.in + at, m);
    }
    if (!p.row_prices) return;
    if (settled) return write_certificate<P>(p, panel, tile * P, number, m, t.sum_of(kept));
    write_prices(p, number, t, 0);
    p.gap[number] = t.proven_gap();
    p.kept[number] = t.sum_of(kept);
}

template <int P, bool half> void solve_square(const Chunk &c) {
    const TransposableProblem &p = *c.p;
    const int m = p.tile_rows, n = p.row_keep;
    Panel<P> panel;
    Sweeps<P, half> sweeps(panel, n, m);
    std::uint64_t kept[P];
    const std::int64_t whole = c.columns / m;
    for (std::int64_t first = 0; first < whole; first += Panel<P>::tiles) {
        const int here = static_cast<int>(std::min<std::int64_t>(Panel<P>::tiles, whole - first));
        if (!load_panel<P>(panel, c.scores + first * m, c.stride, m, here)) {
            for (int tile = 0; tile < here; ++tile) solve_any(c, (first + tile) * m, m, nullptr, nullptr);
            continue;
        }
        bool usual[Panel<P>::tiles];
        for (int tile = 0; tile < Panel<P>::tiles; ++tile) {
            const std::int32_t size = size_of(panel, tile);
            usual[tile] = usual_size(size);
            const float grid = grid_of(usual[tile] ? size : 127 << 23);
            for (int j = 0; j < P; ++j) panel.grid[tile * P + j] = grid;
            if (m < P) {
                const float filling = filling_of(usual[tile] ? size : 127 << 23);
                for (int i = 0; i < P; ++i)
                    for (int j = 0; j < P; ++j)
                        if (i >= m || j >= m) panel.w[i][tile * P + j] = panel.t[j][tile * P + i] = filling;
            }
        }
        alignas(64) float first_b[Panel<P>::width];
        if (p.first_columns)
            for (int tile = 0; tile < Panel<P>::tiles; ++tile) {
                const double *prices = p.first_columns + (c.first_tile + first + std::min(tile, here - 1)) * m;
                const double most = panel.grid[tile * P] * (0.25 / 1.5);
                for (int j = 0; j < P; ++j) first_b[tile * P + j] = j < m ? static_cast<float>(believable(prices[j], most)) : 0;
            }
        sweeps.start(m, p.first_columns ? first_b : nullptr);
        sweeps.run(p.at_most, m);
        for (int tile = 0; tile < here; ++tile) {
            const std::int64_t at = (first + tile) * m;
            if (!usual[tile]) {
                solve_any(c, at, m, nullptr, nullptr);
            } else if (!floats_are_exact(c, at, m, m)) {
                solve_any(c, at, m, panel.a + tile * P, panel.b + tile * P);
            } else {
                double sum = 0;
                const bool proves = p.row_prices != nullptr;
                if (!(proves ? follow_prices<P, true>(panel, tile, n, m, p.at_most, kept, sum)
                             : follow_prices<P, false>(panel, tile, n, m, p.at_most, kept, sum))) {
                    finish_tile<P>(c, panel, tile, at, m, kept);
                    continue;
                }
                for (int i = 0; i < m; ++i) write_bytes(kept[i], c.mask + i * p.in + at, m);
                if (proves) write_certificate<P>(p, panel, tile * P, c.first_tile + first + tile, m, sum);
            }
        }
    }
}

template <int n, bool at_most> void solve_fours(const Chunk &c) {
    const TransposableProblem &p = *c.p;
    const std::int64_t whole = c.columns / 4;
    alignas(64) float left_over[4][4 * lanes];
    for (std::int64_t first = 0; first < whole; first += lanes) {
        const int here = static_cast<int>(std::min<std::int64_t>(lanes, whole - first));
        const float *from = c.scores + first * 4;
        std::int64_t stride = c.stride;
        if (here < lanes) {
            for (int i = 0; i < 4; ++i)
                for (int j = 0; j < 4 * lanes; ++j) left_over[i][j] = j < 4 * here ? from[i * stride + j] : 1;
            from = left_over[0];
            stride = 4 * lanes;
        }
        F w[4][4];
        I size{};
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
            for (int j = 0; j < 4; ++j) w[i][j] = load<F>(from + i * stride + j * lanes);
            mirror4(w[i][0], w[i][1], w[i][2], w[i][3]);
            for (int j = 0; j < 4; ++j) size = greatest(size, (I)w[i][j] & splat(0x7fffffff));
        }
        F first_b[4];
        if (p.first_columns) {
            for (int l = 0; l < lanes; ++l) {
                const int tile = l % 4 * (lanes / 4) + l / 4;
                const double most = usual_size(size[l]) ? grid_of(size[l]) * (0.25 / 1.5) : 0;
                for (int j = 0; j < 4; ++j)
                    first_b[j][l] = tile < here
                        ? static_cast<float>(believable(p.first_columns[(c.first_tile + first + tile) * 4 + j], most))
                        : 0;
            }
        }
        const I unusual = (size < splat(30 << 23)) | (size >= splat(230 << 23));
        const FourResult found = solve_four<n, at_most>(w, size, p.first_columns ? first_b : nullptr);
        I unsolved = found.unsolved | unusual;
        if (c.exact)
            for (int l = 0; l < lanes; ++l) {
                const int tile = l % 4 * (lanes / 4) + l / 4;
                if (tile < here && !floats_are_exact(c, (first + tile) * 4, 4, 4)) unsolved[l] = -1;
            }
        for (int i = 0; i < 4; ++i) {
            const I row = in_order(found.rows[i]);
            std::uint8_t *to = c.mask + i * p.in + first * 4;
            if (here == lanes) {
                store(to, row);
            } else {
                alignas(64) std::int32_t rest[lanes];
                store(rest, row);
                std::memcpy(to, rest, static_cast<std::size_t>(4 * here));
            }
        }
        if (p.row_prices) {
            const auto write = [&](const F *prices, double *to) {
                F v0 = prices[0], v1 = prices[1], v2 = prices[2], v3 = prices[3];
                mirror4(v0, v1, v2, v3);
                alignas(64) float in_tiles[4 * lanes];
                store(in_tiles, v0);
                store(in_tiles + lanes, v1);
                store(in_tiles + 2 * lanes, v2);
                store(in_tiles + 3 * lanes, v3);
                double *at = to + (c.first_tile + first) * 4;
                if (here == lanes)
                    for (int k = 0; k < 4 * lanes; k += wide_lanes) store(at + k, widened(in_tiles + k));
                else
                    for (int k = 0; k < 4 * here; ++k) at[k] = in_tiles[k];
            };
            write(found.a, p.row_prices);
            write(found.b, p.column_prices);
            alignas(64) float kept_cells[lanes];
            D sums[2] = {};
            for (int j = 0; j < 4; ++j) {
                D column[2] = {};
                for (int i = 0; i < 4; ++i) {
                    const I chosen = (found.rows[i] >> (8 * j) & splat(1)) == splat(1);
                    store(kept_cells, (F)((I)w[i][j] & chosen));
                    column[0] += widened(kept_cells);
                    column[1] += widened(kept_cells + wide_lanes);
                }
                sums[0] += column[0];
                sums[1] += column[1];
            }
            for (int l = 0; l < lanes; ++l) {
                const int tile = l % 4 * (lanes / 4) + l / 4;
                if (tile >= here) continue;
                p.kept[c.first_tile + first + tile] = sums[l / wide_lanes][l % wide_lanes];
                p.gap[c.first_tile + first + tile] = 0;
            }
        }
        if (!any(unsolved)) continue;
        for (std::uint32_t left = bits_of(unsolved); left; left &= left - 1) {
            const int lane = lowest_bit(left), tile = lane % 4 * (lanes / 4) + lane / 4;
            if (tile >= here) continue;
            float a[4], b[4];
            for (int i = 0; i < 4; ++i) a[i] = found.a[i][lane], b[i] = found.b[i][lane];
            const bool odd = unusual[lane];
            solve_any(c, (first + tile) * 4, 4, odd ? nullptr : a, odd ? nullptr : b);
        }
    }
}

using ChunkSolver = void (*)(const Chunk &);

template <int P> ChunkSolver square_solver(const TransposableProblem &p) {
    return p.tile_rows == P && 2 * p.row_keep == P ? &solve_square<P, true> : &solve_square<P, false>;
}

// How the whole tiles of a chunk are solved; null: one by one.
ChunkSolver solver_of(const TransposableProblem &p) {
    const int m = p.tile_rows, n = p.row_keep;
    if (p.keep || p.drop || m != p.tile_columns || n != p.column_keep || n < 1 || n >= m) return nullptr;
    if (m == 4) {
        if (p.at_most) return n == 1 ? &solve_fours<1, true> : n == 2 ? &solve_fours<2, true> : &solve_fours<3, true>;
        return n == 1 ? &solve_fours<1, false> : n == 2 ? &solve_fours<2, false> : &solve_fours<3, false>;
    }
    return m <= 8 ? square_solver<8>(p) : m <= 16 ? square_solver<16>(p) : m <= 32 ? square_solver<32>(p) : square_solver<64>(p);
}

// Subnormal scores count for what they are, whatever the thread's floating-point mode, and rounding is to nearest.
class PlainArithmetic {
  public:
#if defined(__SSE2__)
    PlainArithmetic() : before_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
    ~PlainArithmetic() { _mm_setcsr(before_); }

  private:
    unsigned before_;
#else
    PlainArithmetic() {}
#endif
};

// Threads share out chunks of tiles; none depends on another.
void run_part(void *context, int part) {
    const PlainArithmetic plain;
    const TransposableProblem &p = *static_cast<const TransposableProblem *>(context);
    const std::int64_t strips = (p.out + p.tile_rows - 1) / p.tile_rows;
    const std::int64_t tiles = (p.in + p.tile_columns - 1) / p.tile_columns;
    const std::int64_t chunk_tiles = std::max<std::int64_t>(1, chunk_columns / p.tile_columns);
    const std::int64_t chunks = (tiles + chunk_tiles - 1) / chunk_tiles, work = p.batch * strips * chunks;
    const ChunkSolver solve = solver_of(p);
    const bool copies = p.type != ScoreType::float32 || p.column_stride != 1;
    const std::int64_t widest = chunk_tiles * p.tile_columns, area = widest * p.tile_rows;
    char *memory = nullptr;
    if (copies) memory = static_cast<char *>(sparsewright::scratch(static_cast<std::size_t>(area) * 12 + 64, 0));
    Chunk c{};
    c.p = &p;
    c.fault = p.faults + part;
    *c.fault = {-1, 0, 0};
    for (std::int64_t i = work * part / p.threads; i < work * (part + 1) / p.threads; ++i) {
        const std::int64_t chunk = i % chunks, strip = i / chunks % strips;
        c.batch = i / chunks / strips;
        c.row = strip * p.tile_rows;
        c.column = chunk * widest;
        c.rows = static_cast<int>(std::min<std::int64_t>(p.tile_rows, p.out - c.row));
        c.columns = std::min(widest, p.in - c.column);
        c.first_tile = (c.batch * strips + strip) * tiles + chunk * chunk_tiles;
        c.mask = p.mask + c.cell();
        const std::int64_t start = c.batch * p.batch_stride + c.row * p.row_stride + c.column * p.column_stride;
        if (!copies) {
            c.scores = static_cast<const float *>(p.scores) + start;
            c.stride = p.row_stride;
        } else {
            double *exact = reinterpret_cast<double *>(memory);
            float *scores = reinterpret_cast<float *>(memory + area * 8);
            c.stride = widest;
            c.scores = scores;
            const auto copy = [&](auto *from, auto *to, auto convert) {
                gather(from + start, p.row_stride, p.column_stride, c.rows, c.columns, to, widest, convert);
            };
            switch (p.type) {
            case ScoreType::float32: copy(static_cast<const float *>(p.scores), scores, [](float v) { return v; }); break;
            case ScoreType::bfloat16: copy(static_cast<const std::uint16_t *>(p.scores), scores, brain_to_float); break;
            case ScoreType::float16: copy(static_cast<const std::uint16_t *>(p.scores), scores, half_to_float); break;
            case ScoreType::float64:
                copy(static_cast<const double *>(p.scores), exact, [](double v) { return v; });
                c.exact = exact;
                for (int r = 0; r < c.rows; ++r)
                    for (std::int64_t j = 0; j < c.columns; ++j) scores[r * widest + j] = static_cast<float>(exact[r * widest + j]);
            }
        }
        std::int64_t done = 0;
        if (solve && c.rows == p.tile_rows) {
            solve(c);
            done = c.columns / p.tile_columns * p.tile_columns;
        }
        for (; done < c.columns; done += p.tile_columns)
            solve_any(c, done, static_cast<int>(std::min<std::int64_t>(p.tile_columns, c.columns - done)), nullptr, nullptr);
    }
}

}  // namespace

extern "C" void SPARSEWRIGHT_JOIN(sparsewright_transposable_, SPARSEWRIGHT_ISA)(const TransposableProblem &p) {
    sparsewright::parallel(p.threads, run_part, const_cast<TransposableProblem *>(&p));
}
