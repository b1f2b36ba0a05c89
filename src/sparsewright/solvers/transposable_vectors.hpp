// Vectors of one instruction set for the transposable solver. Everything has internal linkage, because this text is
// compiled once per instruction set. Only exact operations and single roundings are used, so all sets agree to the bit.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int vector_bytes = 64;
#elif defined(__AVX__)
constexpr int vector_bytes = 32;
#else
constexpr int vector_bytes = 16;
#endif

typedef float F __attribute__((vector_size(vector_bytes)));
typedef std::int32_t I __attribute__((vector_size(vector_bytes)));
typedef double D __attribute__((vector_size(vector_bytes)));
typedef std::int64_t L __attribute__((vector_size(vector_bytes)));

constexpr int lanes = vector_bytes / 4;  // of F and I
constexpr int wide_lanes = vector_bytes / 8;  // of D and L

template <class V, class T> inline V load(const T *p) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

template <class V, class T> inline void store(T *p, V v) { std::memcpy(p, &v, sizeof v); }

inline F splat(float s) { return s - F{}; }
inline I splat(std::int32_t s) { return s - I{}; }
inline D splat(double s) { return s - D{}; }
inline L splat(std::int64_t s) { return s - L{}; }

template <class V> inline V least(V a, V b) { return a < b ? a : b; }
template <class V> inline V greatest(V a, V b) { return a > b ? a : b; }

// Lane k holds of(k); a constant where `of` is one.
template <class Of, int... k> inline I lane_map(Of of, std::integer_sequence<int, k...>) { return I{of(k)...}; }
template <class Of> inline I lane_map(Of of) { return lane_map(of, std::make_integer_sequence<int, lanes>{}); }

// One bit per lane where v is above u.
inline std::uint32_t above(F v, F u) {
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask((__m512)v, (__m512)u, _CMP_GT_OQ);
#elif defined(__AVX__)
    return static_cast<std::uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps((__m256)v, (__m256)u, _CMP_GT_OQ)));
#elif defined(__SSE2__)
    return static_cast<std::uint32_t>(_mm_movemask_ps(_mm_cmpgt_ps((__m128)v, (__m128)u)));
#else
    std::uint32_t bits = 0;
    for (int i = 0; i < lanes; ++i) bits |= static_cast<std::uint32_t>(v[i] > u[i]) << i;
    return bits;
#endif
}

inline std::uint32_t positive(D v) {
#if defined(__AVX512F__)
    return _mm512_cmp_pd_mask((__m512d)v, _mm512_setzero_pd(), _CMP_GT_OQ);
#elif defined(__AVX__)
    return static_cast<std::uint32_t>(_mm256_movemask_pd(_mm256_cmp_pd((__m256d)v, _mm256_setzero_pd(), _CMP_GT_OQ)));
#elif defined(__SSE2__)
    return static_cast<std::uint32_t>(_mm_movemask_pd(_mm_cmpgt_pd((__m128d)v, _mm_setzero_pd())));
#else
    std::uint32_t bits = 0;
    for (int i = 0; i < wide_lanes; ++i) bits |= static_cast<std::uint32_t>(v[i] > 0) << i;
    return bits;
#endif
}

inline std::uint32_t zero(D v) {
#if defined(__AVX512F__)
    return _mm512_cmp_pd_mask((__m512d)v, _mm512_setzero_pd(), _CMP_EQ_OQ);
#elif defined(__AVX__)
    return static_cast<std::uint32_t>(_mm256_movemask_pd(_mm256_cmp_pd((__m256d)v, _mm256_setzero_pd(), _CMP_EQ_OQ)));
#elif defined(__SSE2__)
    return static_cast<std::uint32_t>(_mm_movemask_pd(_mm_cmpeq_pd((__m128d)v, _mm_setzero_pd())));
#else
    std::uint32_t bits = 0;
    for (int i = 0; i < wide_lanes; ++i) bits |= static_cast<std::uint32_t>(v[i] == 0) << i;
    return bits;
#endif
}

// Whether any lane is set, lanes being all ones or all zeros.
inline bool any(I v) {
#if defined(__AVX512F__)
    return _mm512_movepi32_mask((__m512i)v) != 0;
#elif defined(__AVX__)
    return _mm256_movemask_ps((__m256)v) != 0;
#elif defined(__SSE2__)
    return _mm_movemask_ps((__m128)v) != 0;
#else
    std::int32_t found = 0;
    for (int i = 0; i < lanes; ++i) found |= v[i];
    return found != 0;
#endif
}

inline std::uint32_t bits_of(I v) {
#if defined(__AVX512F__)
    return _mm512_movepi32_mask((__m512i)v);
#elif defined(__AVX__)
    return static_cast<std::uint32_t>(_mm256_movemask_ps((__m256)v));
#elif defined(__SSE2__)
    return static_cast<std::uint32_t>(_mm_movemask_ps((__m128)v));
#else
    std::uint32_t bits = 0;
    for (int i = 0; i < lanes; ++i) bits |= static_cast<std::uint32_t>(v[i] != 0) << i;
    return bits;
#endif
}

// Doubles where their bit is set, `other` where not; bit 0 for lane 0.
inline D choose(std::uint32_t bits, D chosen, D other) {
#if defined(__AVX512F__)
    return (D)_mm512_mask_blend_pd(static_cast<__mmask8>(bits), (__m512d)other, (__m512d)chosen);
#else
    L lane;
    for (int i = 0; i < wide_lanes; ++i) lane[i] = std::int64_t{1} << i;
    const auto set = (splat(static_cast<std::int64_t>(bits)) & lane) != L{};
    return set ? chosen : other;
#endif
}

typedef float Narrow __attribute__((vector_size(vector_bytes / 2)));

// As many floats as there are doubles in a vector, as doubles: exact.
inline D widened(const float *p) { return __builtin_convertvector(load<Narrow>(p), D); }

// One of the two halves.
inline D widened_part(F v, int half) {
    Narrow parts[2];
    std::memcpy(parts, &v, sizeof v);
    return __builtin_convertvector(parts[half], D);
}

#if defined(__AVX__)
typedef float F8 __attribute__((vector_size(32)));
typedef std::int32_t I8 __attribute__((vector_size(32)));

// 8 x 8 floats, mirrored at the diagonal.
inline void mirror8(const float *from, std::int64_t from_stride, float *to, std::int64_t to_stride) {
    F8 r[8], s[8];
    for (int i = 0; i < 8; ++i) r[i] = load<F8>(from + i * from_stride);
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
        s[i] = __builtin_shuffle(r[i], r[i + 1], I8{0, 8, 1, 9, 4, 12, 5, 13});
        s[i + 1] = __builtin_shuffle(r[i], r[i + 1], I8{2, 10, 3, 11, 6, 14, 7, 15});
    }
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4) {
        r[i] = __builtin_shuffle(s[i], s[i + 2], I8{0, 1, 8, 9, 4, 5, 12, 13});
        r[i + 1] = __builtin_shuffle(s[i], s[i + 2], I8{2, 3, 10, 11, 6, 7, 14, 15});
        r[i + 2] = __builtin_shuffle(s[i + 1], s[i + 3], I8{0, 1, 8, 9, 4, 5, 12, 13});
        r[i + 3] = __builtin_shuffle(s[i + 1], s[i + 3], I8{2, 3, 10, 11, 6, 7, 14, 15});
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        store(to + i * to_stride, __builtin_shuffle(r[i], r[i + 4], I8{0, 1, 2, 3, 8, 9, 10, 11}));
        store(to + (i + 4) * to_stride, __builtin_shuffle(r[i], r[i + 4], I8{4, 5, 6, 7, 12, 13, 14, 15}));
    }
}
#else
inline void mirror8(const float *from, std::int64_t from_stride, float *to, std::int64_t to_stride) {
    for (int i = 0; i < 8; ++i)
        for (int j = 0; j < 8; ++j) to[j * to_stride + i] = from[i * from_stride + j];
}
#endif

// Bits 0..7 as eight bytes 0 or 1, the first bit in the first byte.
struct ByteTable {
    std::uint8_t of[256][8];
    constexpr ByteTable() : of{} {
        for (int bits = 0; bits < 256; ++bits)
            for (int i = 0; i < 8; ++i) of[bits][i] = static_cast<std::uint8_t>(bits >> i & 1);
    }
};
constexpr ByteTable bytes{};

inline void write_bytes(std::uint64_t bits, std::uint8_t *to, int count) {
    for (; count >= 8; count -= 8, to += 8, bits >>= 8) std::memcpy(to, bytes.of[bits & 255], 8);
    for (int i = 0; i < count; ++i) to[i] = bytes.of[bits & 255][i];
}

inline int count_bits(std::uint64_t v) { return __builtin_popcountll(v); }
inline int lowest_bit(std::uint64_t v) { return __builtin_ctzll(v); }
inline std::uint64_t below(int n) { return n >= 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << n) - 1; }

}  // namespace
