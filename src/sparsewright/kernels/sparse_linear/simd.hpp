// The vectors of one instruction set. Everything here has internal linkage, because this text is compiled once per
// instruction set and the linker must never pick a wide copy for the portable path.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__aarch64__) && !defined(SPARSEWRIGHT_PORTABLE)
#include <arm_neon.h>
#define SPARSEWRIGHT_NEON
#endif

namespace {

typedef float f4 __attribute__((vector_size(16)));
typedef float f8 __attribute__((vector_size(32)));
typedef float f16 __attribute__((vector_size(64)));
typedef std::int32_t i4 __attribute__((vector_size(16)));

#if defined(__AVX512F__)
using Wide = f16;
constexpr int registers = 32;
#elif defined(__AVX__)
using Wide = f8;
constexpr int registers = 16;
#elif defined(SPARSEWRIGHT_NEON)
using Wide = f4;
constexpr int registers = 32;
#else
using Wide = f4;  // SSE on x86-64; elsewhere what the compiler makes of it
constexpr int registers = 16;
#endif
constexpr int lanes = sizeof(Wide) / sizeof(float);

template <class V> inline V load(const float *p) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

template <class V> inline void store(float *p, V v) { std::memcpy(p, &v, sizeof v); }

template <class V> inline V splat(float s) {
    if constexpr (sizeof(V) == 64) {
        return V{s, s, s, s, s, s, s, s, s, s, s, s, s, s, s, s};
    } else if constexpr (sizeof(V) == 32) {
        return V{s, s, s, s, s, s, s, s};
    } else {
        return V{s, s, s, s};
    }
}

// Whether one instruction reads an operand, multiplies it and adds the product; elsewhere operands and products take
// registers of their own.
#ifdef __FMA__
constexpr bool multiplies_from_memory = true;
#else
constexpr bool multiplies_from_memory = false;
#endif

// a * b + c. Said outright where the processor can, because compilers split some sums into a product and an addition,
// and results must not depend on which loop a tile went through.
template <class V> inline V multiply_add(V a, V b, V c) {
#if defined(__FMA__)
#if defined(__AVX512F__)
    if constexpr (sizeof(V) == 64) {
        return (V)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
    } else
#endif
        if constexpr (sizeof(V) == 32) {
        return (V)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
    } else {
        return (V)_mm_fmadd_ps((__m128)a, (__m128)b, (__m128)c);
    }
#elif defined(SPARSEWRIGHT_NEON)
    static_assert(sizeof(V) == 16);
    return (V)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

inline float multiply_add(float a, float b, float c) {
#if defined(__FMA__) || defined(SPARSEWRIGHT_NEON)
    return __builtin_fmaf(a, b, c);
#else
    return a * b + c;
#endif
}

// A sum as its row stands for it: times its scale and plus its bias, where there are any.
template <class V> inline V finished(V sum, bool scaled, V scale, bool biased, V bias) {
    if (scaled) return biased ? multiply_add(sum, scale, bias) : sum * scale;
    return biased ? sum + bias : sum;
}

// Weights come from far caches or from memory at one token, and processors alone do not read far enough ahead.
constexpr std::int64_t prefetch_bytes = 4096;

template <int count, class Value> inline void prefetch_weights(const Value *w) {
    constexpr int bytes = count * static_cast<int>(sizeof(Value));
    const char *ahead = reinterpret_cast<const char *>(w) + prefetch_bytes;
#pragma GCC unroll 8
    for (int line = 0; line < (bytes + 63) / 64; ++line) __builtin_prefetch(ahead + 64 * line, 0, 3);
}

struct Half {
    std::uint16_t bits;
};

struct Byte {  // of a row that has a scale
    std::int8_t value;
};
#if !defined(__F16C__)
// Four halves where no instruction converts them; exact, subnormal numbers too, and also when the processor is set to
// take subnormal single-precision numbers for zero.
inline f4 decode_four(const Half *p) {
    typedef std::uint16_t Bits __attribute__((vector_size(8)));
    Bits half;
    std::memcpy(&half, p, sizeof half);
    const i4 bits = __builtin_convertvector(half, i4);
    const i4 magnitude = (bits & 0x7fff) << 13, exponent = magnitude & 0x0f800000;
    i4 single = magnitude + (112 << 23);                         // exponents of halves start 112 lower
    single += i4(exponent == i4{} + 0x0f800000) & (112 << 23);   // infinity, NaN
    const f4 subnormal = f4(magnitude + (113 << 23)) - 0x1p-14f;  // 1.m - 1 at the lowest normal exponent
    single = exponent == i4{} ? i4(subnormal) : single;
    return f4(single | (bits & 0x8000) << 16);
}
#endif

inline float to_float(float value) { return value; }

inline float to_float(Byte byte) { return byte.value; }

inline float to_float(Half half) {
#if defined(__F16C__)
    return _cvtsh_ss(half.bits);
#elif defined(SPARSEWRIGHT_NEON)
    __fp16 value;
    std::memcpy(&value, &half, sizeof value);
    return value;
#else
    const Half four[4] = {half, half, half, half};
    return decode_four(four)[0];
#endif
}

template <class V> inline V load(const Half *p) {
#if defined(__F16C__)
#if defined(__AVX512F__)
    if constexpr (sizeof(V) == 64) {
        return (V)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
    } else
#endif
        if constexpr (sizeof(V) == 32) {
        return (V)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
    } else {
        return (V)_mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(p)));
    }
#elif defined(SPARSEWRIGHT_NEON)
    static_assert(sizeof(V) == 16);
    return (V)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const std::uint16_t *>(p))));
#else
#if defined(__AVX__)
    if constexpr (sizeof(V) == 32)
        return (V)_mm256_insertf128_ps(_mm256_castps128_ps256((__m128)decode_four(p)), (__m128)decode_four(p + 4), 1);
#endif
    V v;
    for (unsigned i = 0; i < sizeof(V) / sizeof(f4); ++i) {
        const f4 four = decode_four(p + 4 * i);
        std::memcpy(reinterpret_cast<char *>(&v) + i * sizeof four, &four, sizeof four);
    }
    return v;
#endif
}

template <class V> inline V load(const Byte *p) {
#if defined(__AVX2__)
#if defined(__AVX512F__)
    if constexpr (sizeof(V) == 64) {
        const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i *>(p));
        return (V)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
    } else
#endif
        if constexpr (sizeof(V) == 32) {
        const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i *>(p));
        return (V)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
    } else {
        return (V)_mm_cvtepi32_ps(_mm_cvtepi8_epi32(_mm_loadu_si32(p)));
    }
#else
    V v;
    for (unsigned i = 0; i < sizeof(V) / sizeof(float); ++i) v[i] = to_float(p[i]);
    return v;
#endif
}

// Values as floats: themselves, or decoded into `stage`, which must have room for `count` rounded up to `lanes`.
inline const float *as_floats(const float *values, std::int64_t, float *) { return values; }

template <class Value> inline const float *as_floats(const Value *values, std::int64_t count, float *stage) {
    std::int64_t i = 0;
    for (; i + lanes <= count; i += lanes) store(stage + i, load<Wide>(values + i));
    for (; i < count; ++i) stage[i] = to_float(values[i]);
    return stage;
}

// Calls `f.operator()<count>()`, for a count from 1 to `most` that is only known at run time.
template <int most, class F> inline void with_count(std::int64_t count, const F &f) {
    if constexpr (most > 1) {
        if (count < most) return with_count<most - 1>(count, f);
    }
    f.template operator()<most>();
}

template <class T> inline T smaller(T a, T b) { return a < b ? a : b; }

inline std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// Share number `part` of `count` things cut into `parts` nearly equal shares: its first and one past its last.
struct Range {
    std::int64_t begin, end;
};
inline Range share(std::int64_t count, std::int64_t parts, std::int64_t part) {
    return {count * part / parts, count * (part + 1) / parts};
}

// Reads a square: column[c][r] = row[r][c]. On AVX parts of vectors are joined while they are read, which spares the one shuffle
// unit the exchange of halves and quarters, the slowest step of a transposition.
inline __attribute__((always_inline)) void read_columns(const float *const (&row)[lanes], std::int64_t at,
                                                        Wide (&column)[lanes]) {
#if defined(__AVX512F__)
#pragma GCC unroll 4
    for (int h = 0; h < 16; h += 4) {
        __m512 r[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
            const float *const *from = row + i;
            r[i] = _mm512_castps128_ps512(_mm_loadu_ps(from[0] + at + h));
            r[i] = _mm512_insertf32x4(r[i], _mm_loadu_ps(from[4] + at + h), 1);
            r[i] = _mm512_insertf32x4(r[i], _mm_loadu_ps(from[8] + at + h), 2);
            r[i] = _mm512_insertf32x4(r[i], _mm_loadu_ps(from[12] + at + h), 3);
        }
        const __m512 a = _mm512_unpacklo_ps(r[0], r[1]), b = _mm512_unpackhi_ps(r[0], r[1]);
        const __m512 c = _mm512_unpacklo_ps(r[2], r[3]), d = _mm512_unpackhi_ps(r[2], r[3]);
        column[h] = (Wide)_mm512_shuffle_ps(a, c, 0x44);
        column[h + 1] = (Wide)_mm512_shuffle_ps(a, c, 0xee);
        column[h + 2] = (Wide)_mm512_shuffle_ps(b, d, 0x44);
        column[h + 3] = (Wide)_mm512_shuffle_ps(b, d, 0xee);
    }
#elif defined(__AVX__)
#pragma GCC unroll 2
    for (int h = 0; h < 8; h += 4) {
        __m256 r[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i)
            r[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(row[i] + at + h)),
                                        _mm_loadu_ps(row[i + 4] + at + h), 1);
        const __m256 a = _mm256_unpacklo_ps(r[0], r[1]), b = _mm256_unpackhi_ps(r[0], r[1]);
        const __m256 c = _mm256_unpacklo_ps(r[2], r[3]), d = _mm256_unpackhi_ps(r[2], r[3]);
        column[h] = (Wide)_mm256_shuffle_ps(a, c, 0x44);
        column[h + 1] = (Wide)_mm256_shuffle_ps(a, c, 0xee);
        column[h + 2] = (Wide)_mm256_shuffle_ps(b, d, 0x44);
        column[h + 3] = (Wide)_mm256_shuffle_ps(b, d, 0xee);
    }
#else
    f4 r[4];
    for (int i = 0; i < 4; ++i) r[i] = load<f4>(row[i] + at);
    const f4 a = __builtin_shufflevector(r[0], r[1], 0, 4, 1, 5), b = __builtin_shufflevector(r[0], r[1], 2, 6, 3, 7);
    const f4 c = __builtin_shufflevector(r[2], r[3], 0, 4, 1, 5), d = __builtin_shufflevector(r[2], r[3], 2, 6, 3, 7);
    column[0] = __builtin_shufflevector(a, c, 0, 1, 4, 5);
    column[1] = __builtin_shufflevector(a, c, 2, 3, 6, 7);
    column[2] = __builtin_shufflevector(b, d, 0, 1, 4, 5);
    column[3] = __builtin_shufflevector(b, d, 2, 3, 6, 7);
#endif
}

}  // namespace
