// Prices of whole square tiles by dual midpoint sweeps, in single precision.
//
// The price of a column is put half way between its n-th and (n + 1)-th largest w - a_i, then the price of a row
// likewise (coordinate descent on the dual of the transportation problem). Once every row and every column keeps n cells
// above its price, prices and mask obey complementary slackness. A vector holds columns (rows in the mirrored copy) side
// by side; two sorted halves give both order statistics. Column prices overshoot by `overshoot`, which halves the sweeps.
#pragma once

#include <utility>

#include "transposable_repair.hpp"

namespace {

// Larger tiles take longer to settle and gain from longer steps; from 1.8 on sweeps diverge.
template <int P> constexpr float overshoot = P == 4 ? 1.2f : P == 8 ? 1.4f : 1.5f;

// Comparators of Batcher's odd-even merge sort of n values, each leaving the greater one first.
template <int n> struct Network {
    int count = 0;
    std::uint8_t first[n * 8]{}, second[n * 8]{};
    constexpr Network() {
        for (int p = 1; p < n; p *= 2)
            for (int k = p; k >= 1; k /= 2)
                for (int j = k % p; j + k < n; j += 2 * k)
                    for (int i = 0; i < k && i + j + k < n; ++i)
                        if ((i + j) / (2 * p) == (i + j + k) / (2 * p)) {
                            first[count] = static_cast<std::uint8_t>(i + j);
                            second[count++] = static_cast<std::uint8_t>(i + j + k);
                        }
    }
};
template <int n> constexpr Network<n> network{};

template <int n, std::size_t... step>
__attribute__((always_inline)) inline void sort_steps(F *v, std::index_sequence<step...>) {
    const auto one = [v](int i, int j) __attribute__((always_inline)) {
        const F high = greatest(v[i], v[j]), low = least(v[i], v[j]);
        v[i] = high;
        v[j] = low;
    };
    (one(network<n>.first[step], network<n>.second[step]), ...);
}

template <int n> __attribute__((always_inline)) inline void sort(F *v) { sort_steps<n>(v, std::make_index_sequence<network<n>.count>{}); }

// The n-th and (n + 1)-th largest of P values per lane; `half` where n is P / 2.
template <int P, bool half> __attribute__((always_inline)) inline void order(F *v, int n, F &nth, F &after) {
    constexpr int H = P / 2;
    sort<H>(v);
    sort<H>(v + H);
    if constexpr (half) {
        // The greater of each pair from the ends inwards are the upper half.
#pragma GCC unroll 32
        for (int i = 0; i < H; ++i) {
            const F high = greatest(v[i], v[P - 1 - i]), low = least(v[i], v[P - 1 - i]);
            v[i] = high;
            v[P - 1 - i] = low;
        }
#pragma GCC unroll 5
        for (int step = H / 2; step; step /= 2)
#pragma GCC unroll 16
            for (int i = 0; i < step; ++i) {
                v[i] = least(v[i], v[i + step]);
                v[P - 1 - i] = greatest(v[P - 1 - i], v[P - 1 - i - step]);
            }
        nth = v[0];
        after = v[P - 1];
    } else {
        // The k-th largest of both halves: the best over p + q = k of the lesser of the p-th and the q-th.
        const auto kth = [v](int k) {
            F best = splat(-std::numeric_limits<float>::infinity());
            for (int p = k > H ? k - H : 0; p <= (k < H ? k : H); ++p) {
                const F pair = p == 0 ? v[H + k - 1] : p == k ? v[k - 1] : least(v[p - 1], v[H + k - p - 1]);
                best = greatest(best, pair);
            }
            return best;
        };
        nth = kth(n);
        after = kth(n + 1);
    }
}

// How many vectors of small tiles are swept in turns, so that the steps of one fill the waits of the other.
template <int P> constexpr int vectors_in_flight = P == 8 ? 4 : P == 16 ? 2 : 1;

// Tiles side by side that fill so many vectors.
template <int P> struct Panel {
    static constexpr int tiles = lanes * vectors_in_flight<P> > P ? lanes * vectors_in_flight<P> / P : 1;
    static constexpr int width = P * tiles;
    static constexpr int vectors = width / lanes;
    alignas(64) float w[P][width];  // (row, tile and column)
    alignas(64) float t[P][width];  // (column, tile and row)
    alignas(64) float a[width], b[width];  // prices of rows and columns, tile by tile
    alignas(64) float grid[width];  // adding and taking it away rounds to the tile's grid
    alignas(64) std::int32_t size[width];  // bits of the largest |score| of each column
};

// Price i of the tiles in vector k, in the lanes of each.
template <int P> __attribute__((always_inline)) inline F spread(const float *prices, int i, int k) {
    if constexpr (P >= lanes) {
        return splat(prices[k * lanes / P * P + i]);
    } else {
        return __builtin_shuffle(load<F>(prices + k * lanes), lane_map([i](int lane) { return lane / P * P + i; }));
    }
}

template <int P, bool half>
inline void order_panel(const float (*w)[Panel<P>::width], const float *prices, int n, F *nth, F *after) {
#pragma GCC unroll 1
    for (int k = 0; k < Panel<P>::vectors; ++k) {
        F v[P];
#pragma GCC unroll 64
        for (int i = 0; i < P; ++i) v[i] = load<F>(w[i] + k * lanes) - spread<P>(prices, i, k);
        order<P, half>(v, n, nth[k], after[k]);
    }
}

inline F on_grid(F v, F grid) { return (v + grid) - grid; }

// Fills the panel with tiles_here tiles of m x m; what is left over is as the last tile. Returns false where a score is
// not finite. Sizes of scores are found on the way.
template <int P>
inline bool load_panel(Panel<P> &p, const float *scores, std::int64_t stride, int m, int tiles_here) {
    constexpr int width = Panel<P>::width;
    I largest[Panel<P>::vectors] = {};
    if (m == P && tiles_here == Panel<P>::tiles) {
        for (int i = 0; i < P; ++i)
            for (int k = 0; k < Panel<P>::vectors; ++k) {
                const F v = load<F>(scores + i * stride + k * lanes);
                store(p.w[i] + k * lanes, v);
                largest[k] = greatest(largest[k], (I)v & splat(0x7fffffff));
            }
    } else {
        for (int i = 0; i < P; ++i)
            for (int tile = 0; tile < Panel<P>::tiles; ++tile) {
                const int from = tile < tiles_here ? tile : tiles_here - 1;
                for (int j = 0; j < P; ++j) p.w[i][tile * P + j] = i < m && j < m ? scores[i * stride + from * m + j] : 0;
            }
        for (int i = 0; i < m; ++i)
            for (int k = 0; k < Panel<P>::vectors; ++k)
                largest[k] = greatest(largest[k], (I)load<F>(p.w[i] + k * lanes) & splat(0x7fffffff));
    }
    I worst{};
    for (int k = 0; k < Panel<P>::vectors; ++k) {
        store(p.size + k * lanes, largest[k]);
        worst = greatest(worst, largest[k]);
    }
    for (int tile = 0; tile < Panel<P>::tiles; ++tile)
        for (int i = 0; i < P; i += 8)
            for (int j = 0; j < P; j += 8) mirror8(&p.w[i][tile * P + j], width, &p.t[j][tile * P + i], width);
    return !any(worst >= splat(0x7f800000));
}

// Largest |score| of a tile, as bits.
template <int P> inline std::int32_t size_of(const Panel<P> &p, int tile) {
    std::int32_t size = 0;
    for (int j = 0; j < P; ++j) size = p.size[tile * P + j] > size ? p.size[tile * P + j] : size;
    return size;
}

// Scores from 2^-97 to 2^103: sums of a few stay far from the ends of single precision.
inline bool usual_size(std::int32_t size) { return size >= 30 << 23 && size < 230 << 23; }

// 1.5 times a power of two whose last bit is 2^-20 of the tile's largest score.
inline float grid_of(std::int32_t size) {
    const std::int32_t bits = (size & 0x7f800000) + (4 << 23) + 0x400000;
    float grid;
    std::memcpy(&grid, &bits, sizeof grid);
    return grid;
}

// What is put into rows and columns beyond m: far below every score.
inline float filling_of(std::int32_t size) {
    const std::int32_t bits = (size & 0x7f800000) + (3 << 23);
    float filling;
    std::memcpy(&filling, &bits, sizeof filling);
    return -filling;
}

// Prices lie on the grid and below 8 times the largest score's power of two, so the sum of two is exact in single
// precision, and comparing a score with it has no rounding at all.
inline float most_of(float grid) { return grid * 0x1p-1f / 1.5f; }

// How many sweeps before shortest paths are the cheaper way.
template <int P> constexpr int sweeps_of = P == 8 ? 12 : P == 16 ? 16 : 11;

template <int P, bool half> struct Sweeps {
    static constexpr int vectors = Panel<P>::vectors;
    Panel<P> &p;
    const int n;
    F live[vectors];  // all bits in lanes of rows and columns that exist
    I tied[vectors] = {};  // all bits in tiles with many equal scores

    Sweeps(Panel<P> &panel, int n_, int m) : p(panel), n(n_) {
        for (int k = 0; k < vectors; ++k)
            for (int l = 0; l < lanes; ++l) {
                const std::int32_t bits = (k * lanes + l) % P < m ? -1 : 0;
                float lane;
                std::memcpy(&lane, &bits, sizeof lane);
                live[k][l] = lane;
            }
    }

    F alive(F v, int k) const { return half ? v : (F)((I)v & (I)live[k]); }

    // Starts from the means of the rows; from zero in tiles with many equal scores, whose prices should be equal too.
    // With column prices of earlier, from those.
    void start(int m, const float *first_b) {
        find_ties(m);
        if (first_b) {
            for (int k = 0; k < vectors; ++k) {
                store(p.a + k * lanes, F{});
                store(p.b + k * lanes, load<F>(first_b + k * lanes));
            }
            return;
        }
        for (int k = 0; k < vectors; ++k) {
            F sum{};
            for (int j = 0; j < m; ++j) sum += load<F>(p.t[j] + k * lanes);
            const F mean = alive(sum * splat(1.0f / static_cast<float>(m)), k);
            store(p.a + k * lanes, (F)((I)mean & ~tied[k]));
        }
        F nth[vectors], after[vectors];
        order_panel<P, half>(p.w, p.a, n, nth, after);
        for (int k = 0; k < vectors; ++k)
            store(p.b + k * lanes, alive((nth[k] + after[k]) * splat(0.5f), k));
    }

    // For counts of at most n no price may be negative. Row and column prices may be shifted against each other; where
    // that makes all of them positive, the best mask of exactly n is the best of at most n too. Elsewhere prices are cut
    // off at zero, and sweeps go on in the lanes left in `still`. Tied tiles start there.
    void settle_at_most(int m) {
        I still[vectors];
        I any_tile{};
        for (int tile = 0; tile < Panel<P>::tiles; ++tile) {
            float *a = p.a + tile * P, *b = p.b + tile * P, low_a = a[0], low_b = b[0];
            for (int i = 1; i < m; ++i) low_a = low_a < a[i] ? low_a : a[i], low_b = low_b < b[i] ? low_b : b[i];
            const bool goes_on = low_a + low_b < 0 || tied[tile * P / lanes][tile * P % lanes];
            const float shift = (low_b - low_a) * 0.5f;
            for (int i = 0; i < m; ++i) a[i] += shift, b[i] -= shift;
            if (goes_on)
                for (int j = 0; j < m; ++j) b[j] = b[j] > 0 ? b[j] : 0;
            set_tile(still, tile, goes_on);
        }
        for (int k = 0; k < vectors; ++k) any_tile |= still[k];
        if (any(any_tile)) sweep<true>(sweeps_of<P>, still);
        for (int k = 0; k < vectors; ++k) {
            // Half a step of the grid below zero may be left of the shift.
            store(p.a + k * lanes, greatest(load<F>(p.a + k * lanes), F{}));
            store(p.b + k * lanes, greatest(load<F>(p.b + k * lanes), F{}));
        }
    }

    // Calls `of` with each tile and the bits of its lanes, given as one number per vector.
    template <class Bits, class Of> static void each_tile(Bits bits, Of of) {
        for (int tile = 0; tile < Panel<P>::tiles; ++tile) {
            std::uint64_t found = 0;
            if constexpr (P >= lanes) {
                for (int k = 0; k < P / lanes; ++k)
                    found |= static_cast<std::uint64_t>(bits[tile * (P / lanes) + k]) << (k * lanes);
            } else {
                found = bits[tile * P / lanes] >> (tile * P % lanes) & below(P);
            }
            of(tile, found);
        }
    }

    // All bits in the lanes of a tile, or none.
    static void set_tile(I *v, int tile, bool all) {
        if constexpr (P >= lanes) {
            for (int k = 0; k < P / lanes; ++k) v[tile * (P / lanes) + k] = splat(all ? -1 : 0);
        } else {
            for (int l = 0; l < P; ++l) v[tile * P / lanes][tile * P % lanes + l] = all ? -1 : 0;
        }
    }

    // Whether a few neighbours of a tile are equal.
    void find_ties(int m) {
        int equal[Panel<P>::tiles] = {};
        for (int i = 0; i + 1 < m && i < 8; i += 2) {
            std::uint32_t bits[vectors];
            for (int k = 0; k < vectors; ++k) bits[k] = bits_of(load<F>(p.w[i] + k * lanes) == load<F>(p.w[i + 1] + k * lanes));
            each_tile(bits, [&](int tile, std::uint64_t found) { equal[tile] += count_bits(found & below(m)); });
        }
        for (int tile = 0; tile < Panel<P>::tiles; ++tile) set_tile(tied, tile, equal[tile] * 16 > m);
    }

    // Sweeps to the best prices; at the end row prices fit column prices, and both are put on the grid.
    void run(bool at_most, int m) {
        I still[vectors];
        I any_tile{};
        for (int k = 0; k < vectors; ++k) any_tile |= still[k] = at_most ? ~tied[k] : splat(-1);
        if (any(any_tile)) sweep<false>(sweeps_of<P>, still);
        if (at_most) settle_at_most(m);
        for (int k = 0; k < vectors; ++k) {
            const F grid = load<F>(p.grid + k * lanes);
            store(p.a + k * lanes, on_grid(load<F>(p.a + k * lanes), grid));
            store(p.b + k * lanes, on_grid(load<F>(p.b + k * lanes), grid));
        }
    }

    // Sweeps lanes of tiles in `still` until all have converged, `most` times at most; clamped prices are never negative.
    template <bool clamped> void sweep(int most, I *still) {
        F nth[vectors], after[vectors];
        const F half_of = splat(0.5f), zero_price{};
        for (int sweep = 1;; ++sweep) {
            order_panel<P, half>(p.t, p.b, n, nth, after);
            for (int k = 0; k < vectors; ++k) {
                F price = alive((nth[k] + after[k]) * half_of, k);
                if (clamped) price = greatest(price, zero_price);
                store(p.a + k * lanes, still[k] ? price : load<F>(p.a + k * lanes));
            }
            order_panel<P, half>(p.w, p.a, n, nth, after);
            I going{};
            I off[vectors];
            for (int k = 0; k < vectors; ++k) {
                const F price = load<F>(p.b + k * lanes);
                // Where scores tie with the price, shortest paths choose among them.
                I fits = (after[k] <= price) & (price <= nth[k]);
                if (clamped) fits |= (after[k] <= price) & (price == zero_price);
                off[k] = ~fits & still[k];
                if (!half) off[k] &= (I)live[k];
                going |= off[k];
            }
            if (!any(going)) return;
            if constexpr (Panel<P>::tiles > 1) {
                // A tile that has converged keeps its prices, whatever its neighbours do.
                std::uint32_t bits[vectors];
                for (int k = 0; k < vectors; ++k) bits[k] = bits_of(off[k]);
                each_tile(bits, [&](int tile, std::uint64_t found) { set_tile(still, tile, found != 0); });
            }
            if (sweep == most) return;
            for (int k = 0; k < vectors; ++k) {
                const F step = tied[k] ? splat(1.0f) : splat(sweep + 1 < most ? overshoot<P> : 1.0f);
                const F old = load<F>(p.b + k * lanes), middle = (nth[k] + after[k]) * half_of;
                F price = alive(old + step * (middle - old), k);
                if (clamped) price = greatest(price, zero_price);
                store(p.b + k * lanes, still[k] ? price : old);
            }
        }
    }
};

// Kept cells of one tile as its prices say, bit j of kept[i] for cell (i, j): exact. True where counts are n everywhere,
// or less where clamped prices are zero. With `proves`, the sum of what is kept as well: down the columns, then over them.
template <int P, bool proves>
inline bool follow_prices(const Panel<P> &p, int tile, int n, int m, bool at_most, std::uint64_t *kept, double &sum) {
    constexpr int vectors = P > lanes ? P / lanes : 1, doubles = lanes / wide_lanes;
    const int at = tile * P, offset = P > lanes ? at : at / lanes * lanes, shift = at - offset;
    I counts[vectors] = {};
    D sums[vectors * doubles] = {};
    bool rows_fit = true;
    F b[vectors];
    for (int k = 0; k < vectors; ++k) b[k] = load<F>(p.b + offset + k * lanes);
    for (int i = 0; i < m; ++i) {
        const F price = splat(p.a[at + i]);
        std::uint64_t bits = 0;
#pragma GCC unroll 16
        for (int k = 0; k < vectors; ++k) {
            const F w = load<F>(p.w[i] + offset + k * lanes), both = price + b[k];
            counts[k] += w > both ? splat(1) : I{};
            bits |= static_cast<std::uint64_t>(above(w, both)) << (k * lanes);
            if constexpr (proves) {
                const F chosen = w > both ? w : F{};
#pragma GCC unroll 2
                for (int d = 0; d < doubles; ++d) sums[k * doubles + d] += widened_part(chosen, d);
            }
        }
        bits = bits >> shift & below(m);
        kept[i] = bits;
        const int count = count_bits(bits);
        rows_fit = rows_fit & ((count == n) | (at_most & (count < n) & (p.a[at + i] == 0)));
    }
    std::uint64_t wrong = 0;
    const F most = splat(most_of(p.grid[at]));
    for (int k = 0; k < vectors; ++k) {
        I fits = counts[k] == splat(n);
        if (at_most) fits |= (counts[k] < splat(n)) & (b[k] == F{});
        const F a = load<F>(p.a + offset + k * lanes);
        fits &= (b[k] < most) & (b[k] > -most) & (a < most) & (a > -most);
        wrong |= static_cast<std::uint64_t>(bits_of(~fits)) << (k * lanes);
    }
    if constexpr (proves) {
        sum = 0;
        alignas(64) double of_column[vectors * lanes];
        for (int d = 0; d < vectors * doubles; ++d) store(of_column + d * wide_lanes, sums[d]);
        for (int j = 0; j < m; ++j) sum += of_column[shift + j];
    }
    return rows_fit && !(wrong >> shift & below(m));
}

// The same for columns, and ties of both: what a tile that is not settled goes on from.
template <int P>
inline void follow_ties(const Panel<P> &p, int tile, int m, Transport &to) {
    constexpr int vectors = P > lanes ? P / lanes : 1;
    const int at = tile * P, offset = P > lanes ? at : at / lanes * lanes, shift = at - offset;
    to.has_ties = false;
    const auto side = [&](const float (*w)[Panel<P>::width], const float *mine, const float *others, std::uint64_t *kept,
                          std::uint64_t *tied, int *count) {
        for (int i = 0; i < m; ++i) {
            const F price = splat(mine[at + i]);
            std::uint64_t over = 0, even = 0;
            for (int k = 0; k < vectors; ++k) {
                const F v = load<F>(w[i] + offset + k * lanes), both = price + load<F>(others + offset + k * lanes);
                over |= static_cast<std::uint64_t>(above(v, both)) << (k * lanes);
                even |= static_cast<std::uint64_t>(bits_of(v == both)) << (k * lanes);
            }
            kept[i] = over >> shift & below(m);
            tied[i] = even >> shift & below(m);
            count[i] = count_bits(kept[i]);
            to.has_ties = to.has_ties || tied[i];
        }
    };
    side(p.w, p.a, p.b, to.kept, to.tied, to.row_count);
    side(p.t, p.b, p.a, to.kept_of, to.tied_of, to.column_count);
    for (int i = 0; i < m; ++i) to.a[i] = p.a[at + i], to.b[i] = p.b[at + i];
}

}  // namespace
