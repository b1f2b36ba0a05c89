// Transposable masks of 4 x 4 tiles: one tile per lane, so that sixteen (eight, four) are swept at once.
//
// The method is that of transposable_sweeps.hpp. Tiles whose scores tie take the first of all masks that agrees with
// their prices: kept above, not kept below, free where tied.
#pragma once

#include <type_traits>

#include "transposable_sweeps.hpp"

namespace {

constexpr int four_sweeps = 8;

// All 4 x 4 masks with n cells in each row and column, bit 4 * i + j for cell (i, j).
template <int n> struct Masks {
    int count = 0;
    std::uint16_t of[90]{};
    constexpr Masks() {
        for (int x = 0; x < 65536; ++x) {
            bool fits = true;
            for (int i = 0; i < 4 && fits; ++i) {
                int row = 0, column = 0;
                for (int j = 0; j < 4; ++j) row += x >> (4 * i + j) & 1, column += x >> (4 * j + i) & 1;
                fits = row == n && column == n;
            }
            if (fits) of[count++] = static_cast<std::uint16_t>(x);
        }
    }
};

// Columns of 4 in every 128 bits: (a0 a1 a2 a3), (b0 ...) -> (a0 b0 c0 d0), (a1 ...).
inline void mirror4(F &v0, F &v1, F &v2, F &v3) {
    const auto low = [](int k) { return (k & ~3) + (k & 3) / 2 + (k & 1) * lanes; };
    const auto high = [](int k) { return (k & ~3) + (k & 3) / 2 + 2 + (k & 1) * lanes; };
    const auto even = [](int k) { return (k & ~3) + (k & 1) + (k & 2) / 2 * lanes; };
    const auto odd = [](int k) { return (k & ~3) + (k & 1) + 2 + (k & 2) / 2 * lanes; };
    const F l01 = __builtin_shuffle(v0, v1, lane_map(low)), h01 = __builtin_shuffle(v0, v1, lane_map(high));
    const F l23 = __builtin_shuffle(v2, v3, lane_map(low)), h23 = __builtin_shuffle(v2, v3, lane_map(high));
    v0 = __builtin_shuffle(l01, l23, lane_map(even));
    v1 = __builtin_shuffle(l01, l23, lane_map(odd));
    v2 = __builtin_shuffle(h01, h23, lane_map(even));
    v3 = __builtin_shuffle(h01, h23, lane_map(odd));
}

// Lane 4 g + s holds tile s * (lanes / 4) + g; this brings lanes in the order of tiles.
inline I in_order(I v) {
    return __builtin_shuffle(v, lane_map([](int tile) { return tile % (lanes / 4) * 4 + tile / (lanes / 4); }));
}

// The n-th and the (n + 1)-th largest of four, in any order: their sum is what prices need.
template <int n> inline void order4(F v0, F v1, F v2, F v3, F &nth, F &after) {
    const F high = greatest(v0, v1), low = least(v0, v1), high2 = greatest(v2, v3), low2 = least(v2, v3);
    if constexpr (n == 1) {
        nth = greatest(high, high2);
        after = greatest(least(high, high2), greatest(low, low2));
    } else if constexpr (n == 2) {
        nth = greatest(low, low2);
        after = least(high, high2);
    } else {
        nth = least(least(high, high2), greatest(low, low2));
        after = least(low, low2);
    }
}

// What the tiles of a vector came to.
struct FourResult {
    I rows[4];   // kept cells, one byte per column
    I unsolved;  // lanes that need shortest paths
    F a[4], b[4];
};

template <int n, bool at_most>
inline FourResult solve_four(const F (&w)[4][4], I size, const F *first_b) {
    static constexpr Masks<n> masks{};
    FourResult out;
    F(&a)[4] = out.a;
    F(&b)[4] = out.b;
    const F grid = (F)((size & splat(0x7f800000)) + splat((4 << 23) + 0x400000));
    const F half = splat(0.5f), none{};
    F nth, after;
    I equal{};
    for (int i = 0; i < 4; i += 2)
        for (int j = 0; j < 4; ++j) equal += w[i][j] == w[i + 1][j];
    const I tied = equal < splat(-1);
    if (first_b) {
        for (int j = 0; j < 4; ++j) b[j] = first_b[j];
    } else {
        for (int i = 0; i < 4; ++i)
            a[i] = (F)((I)((w[i][0] + w[i][1] + (w[i][2] + w[i][3])) * splat(0.25f)) & ~tied);
        for (int j = 0; j < 4; ++j) {
            order4<n>(w[0][j] - a[0], w[1][j] - a[1], w[2][j] - a[2], w[3][j] - a[3], nth, after);
            b[j] = (nth + after) * half;
        }
    }
    for (int i = 0; i < 4; ++i) a[i] = none;
    const auto sweep = [&](I still, auto clamped) __attribute__((always_inline)) {
        for (int turn = 1;; ++turn) {
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) {
                order4<n>(w[i][0] - b[0], w[i][1] - b[1], w[i][2] - b[2], w[i][3] - b[3], nth, after);
                F price = (nth + after) * half;
                if (clamped) price = greatest(price, none);
                a[i] = at_most ? (still ? price : a[i]) : price;
            }
            F sum[4];
            I fits = splat(-1);
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) {
                order4<n>(w[0][j] - a[0], w[1][j] - a[1], w[2][j] - a[2], w[3][j] - a[3], nth, after);
                sum[j] = nth + after;
                const F high = n == 2 ? greatest(nth, after) : nth, low = n == 2 ? least(nth, after) : after;
                I here = b[j] <= high;
                if (clamped) here |= b[j] == none;
                here &= low <= b[j];
                fits &= here;
            }
            still &= ~fits;
            if (turn == four_sweeps || !any(still)) return;
            const float reach = turn + 1 < four_sweeps ? overshoot<4> : 1.0f;
            const F new_part = tied ? half : splat(0.5f * reach), old_part = tied ? none : splat(1.0f - reach);
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) {
                F price = old_part * b[j] + new_part * sum[j];
                if (clamped) price = greatest(price, none);
                b[j] = still ? price : b[j];
            }
        }
    };
    sweep(at_most ? ~tied : splat(-1), std::false_type{});
    if constexpr (at_most) {
        // As Sweeps::settle_at_most.
        const F low_a = least(least(a[0], a[1]), least(a[2], a[3])), low_b = least(least(b[0], b[1]), least(b[2], b[3]));
        const I goes_on = (low_a + low_b < none) | tied;
        const F shift = (low_b - low_a) * half;
        for (int i = 0; i < 4; ++i) a[i] = greatest(a[i] + shift, none), b[i] = greatest(b[i] - shift, none);
        if (any(goes_on)) sweep(goes_on, std::true_type{});
    }
    for (int i = 0; i < 4; ++i) a[i] = on_grid(a[i], grid), b[i] = on_grid(b[i], grid);
    I column{}, fits = splat(-1);
    F farthest = none;
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        I row{};
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) row |= w[i][j] > a[i] + b[j] ? splat(1 << (8 * j)) : I{};
        out.rows[i] = row;
        column += row;
        const I both = row + (row >> 16), count = (both + (both >> 8)) & splat(255);
        I meets = count == splat(n);
        if (at_most) meets |= (count < splat(n)) & (a[i] == none);
        fits &= meets;
        farthest = greatest(farthest, greatest((F)((I)a[i] & splat(0x7fffffff)), (F)((I)b[i] & splat(0x7fffffff))));
    }
    if constexpr (at_most) {
        for (int j = 0; j < 4; ++j) {
            const I count = column >> (8 * j) & splat(255);
            fits &= (count == splat(n)) | ((count < splat(n)) & (b[j] == none));
        }
    } else {
        fits &= column == splat(n * 0x01010101);
    }
    const I bounded = farthest < grid * splat(0.5f / 1.5f);
    out.unsolved = ~(fits & bounded);
    if (!at_most && any(out.unsolved)) {
        I mask{}, even{};
        for (int i = 0; i < 4; ++i)
            for (int j = 0; j < 4; ++j) {
                const F both = a[i] + b[j];
                mask |= w[i][j] > both ? splat(1 << (4 * i + j)) : I{};
                even |= w[i][j] == both ? splat(1 << (4 * i + j)) : I{};
            }
        I open = out.unsolved & bounded & (even != I{}), chosen{};
        if (any(open)) {
            const I never = ~(mask | even), asked = open;
            for (int c = 0; c < masks.count; ++c) {
                const I candidate = splat(static_cast<std::int32_t>(masks.of[c]));
                const I agrees = (((mask & ~candidate) | (candidate & never)) == I{}) & open;
                chosen = agrees ? candidate : chosen;
                open &= ~agrees;
            }
            const I settled = asked & ~open;
            out.unsolved &= ~settled;
            for (int i = 0; i < 4; ++i) {
                const I four = chosen >> (4 * i) & splat(15);
                out.rows[i] = settled ? (four | four << 7 | four << 14 | four << 21) & splat(0x01010101) : out.rows[i];
            }
        }
    }
    return out;
}

}  // namespace
