// Integer vectors of one instruction set: four bytes of each of several tokens, and the products of bytes.
// AVX without AVX2 has long vectors for floats only: int8 kernels of such processors are those of SSE4.1.
#pragma once

#include <cstdint>
#include <cstring>

#include "simd.hpp"

namespace {

// `bytes` bytes. As a column of x: one byte for each of `bytes` tokens. As a sum: one int32 for each of `bytes` / 4.
template <int bytes> struct Bytes {
    typedef std::int32_t Words __attribute__((vector_size(bytes)));
    typedef float Floats __attribute__((vector_size(bytes)));
};
template <int bytes> using Words = typename Bytes<bytes>::Words;
template <int bytes> using Floats = typename Bytes<bytes>::Floats;

template <int bytes> inline Words<bytes> load_words(const void *p) {
    Words<bytes> v;
    std::memcpy(&v, p, bytes);
    return v;
}

template <int bytes> inline Words<bytes> splat_word(const void *four) {
    std::int32_t word;
    std::memcpy(&word, four, 4);
    return word - Words<bytes>{};
}

// sum[i] + x[4 i] w[4 i] + ... + x[4 i + 3] w[4 i + 3], x of 0..127, w of -127..127.
template <int bytes> inline Words<bytes> add_products(Words<bytes> sum, Words<bytes> x, Words<bytes> w) {
#if defined(__AVX512VNNI__)
    if constexpr (bytes == 64) return (Words<64>)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)x, (__m512i)w);
    if constexpr (bytes == 32) return (Words<32>)_mm256_dpbusd_epi32((__m256i)sum, (__m256i)x, (__m256i)w);
    if constexpr (bytes == 16) return (Words<16>)_mm_dpbusd_epi32((__m128i)sum, (__m128i)x, (__m128i)w);
#elif defined(__AVXVNNI__)
    if constexpr (bytes == 32) return (Words<32>)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)x, (__m256i)w);
    if constexpr (bytes == 16) return (Words<16>)_mm_dpbusd_avx_epi32((__m128i)sum, (__m128i)x, (__m128i)w);
#elif defined(__SSSE3__)
#if defined(__AVX512BW__)
    if constexpr (bytes == 64)
        return sum + (Words<64>)_mm512_madd_epi16(_mm512_maddubs_epi16((__m512i)x, (__m512i)w), _mm512_set1_epi16(1));
#endif
#if defined(__AVX2__)
    if constexpr (bytes == 32)
        return sum + (Words<32>)_mm256_madd_epi16(_mm256_maddubs_epi16((__m256i)x, (__m256i)w), _mm256_set1_epi16(1));
#endif
    if constexpr (bytes == 16)
        return sum + (Words<16>)_mm_madd_epi16(_mm_maddubs_epi16((__m128i)x, (__m128i)w), _mm_set1_epi16(1));
#elif defined(SPARSEWRIGHT_NEON)
    static_assert(bytes == 16);
    const int8x16_t a = (int8x16_t)x, b = (int8x16_t)w;  // 0..127 is the same signed
#if defined(__ARM_FEATURE_DOTPROD)
    return (Words<bytes>)vdotq_s32((int32x4_t)sum, a, b);
#else
    // Two products fit 16 bits, four do not.
    const int16x8_t pairs = vpaddq_s16(vmull_s8(vget_low_s8(a), vget_low_s8(b)), vmull_high_s8(a, b));
    return (Words<bytes>)vpadalq_s16((int32x4_t)sum, pairs);
#endif
#else
    // Bytes at even and at odd places apart, 16 bits each: two products fit them, four do not.
    typedef std::int16_t Pairs __attribute__((vector_size(bytes)));
    const Pairs a = (Pairs)x, b = (Pairs)w;
    const Words<bytes> pairs = (Words<bytes>)((a & 0xff) * ((b << 8) >> 8) + (a >> 8) * (b >> 8));
    return sum + ((pairs << 16) >> 16) + (pairs >> 16);
#endif
}

// Lane by lane of 16 bytes: units of `unit` bytes of a and b in turn, from their low or high halves.
template <int bytes, int unit, bool high> inline Words<bytes> interleave(Words<bytes> a, Words<bytes> b) {
#if defined(__AVX512BW__)
    if constexpr (bytes == 64) {
        const __m512i p = (__m512i)a, q = (__m512i)b;
        if constexpr (unit == 1) return (Words<64>)(high ? _mm512_unpackhi_epi8(p, q) : _mm512_unpacklo_epi8(p, q));
        if constexpr (unit == 2) return (Words<64>)(high ? _mm512_unpackhi_epi16(p, q) : _mm512_unpacklo_epi16(p, q));
        if constexpr (unit == 4) return (Words<64>)(high ? _mm512_unpackhi_epi32(p, q) : _mm512_unpacklo_epi32(p, q));
        if constexpr (unit == 8) return (Words<64>)(high ? _mm512_unpackhi_epi64(p, q) : _mm512_unpacklo_epi64(p, q));
    }
#endif
#if defined(__AVX2__)
    if constexpr (bytes == 32) {
        const __m256i p = (__m256i)a, q = (__m256i)b;
        if constexpr (unit == 1) return (Words<32>)(high ? _mm256_unpackhi_epi8(p, q) : _mm256_unpacklo_epi8(p, q));
        if constexpr (unit == 2) return (Words<32>)(high ? _mm256_unpackhi_epi16(p, q) : _mm256_unpacklo_epi16(p, q));
        if constexpr (unit == 4) return (Words<32>)(high ? _mm256_unpackhi_epi32(p, q) : _mm256_unpacklo_epi32(p, q));
        if constexpr (unit == 8) return (Words<32>)(high ? _mm256_unpackhi_epi64(p, q) : _mm256_unpacklo_epi64(p, q));
    }
#endif
#if defined(__SSSE3__)
    if constexpr (bytes == 16) {
        const __m128i p = (__m128i)a, q = (__m128i)b;
        if constexpr (unit == 1) return (Words<16>)(high ? _mm_unpackhi_epi8(p, q) : _mm_unpacklo_epi8(p, q));
        if constexpr (unit == 2) return (Words<16>)(high ? _mm_unpackhi_epi16(p, q) : _mm_unpacklo_epi16(p, q));
        if constexpr (unit == 4) return (Words<16>)(high ? _mm_unpackhi_epi32(p, q) : _mm_unpacklo_epi32(p, q));
        if constexpr (unit == 8) return (Words<16>)(high ? _mm_unpackhi_epi64(p, q) : _mm_unpacklo_epi64(p, q));
    }
#elif defined(SPARSEWRIGHT_NEON)
    static_assert(bytes == 16);
    const uint8x16_t p = (uint8x16_t)a, q = (uint8x16_t)b;
    if constexpr (unit == 1) return (Words<bytes>)(high ? vzip2q_u8(p, q) : vzip1q_u8(p, q));
    const uint16x8_t p2 = (uint16x8_t)a, q2 = (uint16x8_t)b;
    if constexpr (unit == 2) return (Words<bytes>)(high ? vzip2q_u16(p2, q2) : vzip1q_u16(p2, q2));
    const uint32x4_t p4 = (uint32x4_t)a, q4 = (uint32x4_t)b;
    if constexpr (unit == 4) return (Words<bytes>)(high ? vzip2q_u32(p4, q4) : vzip1q_u32(p4, q4));
    const uint64x2_t p8 = (uint64x2_t)a, q8 = (uint64x2_t)b;
    if constexpr (unit == 8) return (Words<bytes>)(high ? vzip2q_u64(p8, q8) : vzip1q_u64(p8, q8));
#endif
#if !defined(__SSSE3__) && !defined(SPARSEWRIGHT_NEON)
    static_assert(bytes == 16);
    typedef std::uint8_t U1 __attribute__((vector_size(16)));
    typedef std::uint16_t U2 __attribute__((vector_size(16)));
    typedef std::uint32_t U4 __attribute__((vector_size(16)));
    typedef std::uint64_t U8 __attribute__((vector_size(16)));
    constexpr int h = high ? 8 / unit : 0, n = 16 / unit;  // first unit of a, and of b
    if constexpr (unit == 1)
        return (Words<bytes>)__builtin_shufflevector((U1)a, (U1)b, h, n + h, h + 1, n + h + 1, h + 2, n + h + 2, h + 3,
                                                     n + h + 3, h + 4, n + h + 4, h + 5, n + h + 5, h + 6, n + h + 6,
                                                     h + 7, n + h + 7);
    if constexpr (unit == 2)
        return (Words<bytes>)__builtin_shufflevector((U2)a, (U2)b, h, n + h, h + 1, n + h + 1, h + 2, n + h + 2, h + 3,
                                                     n + h + 3);
    if constexpr (unit == 4) return (Words<bytes>)__builtin_shufflevector((U4)a, (U4)b, h, n + h, h + 1, n + h + 1);
    if constexpr (unit == 8) return (Words<bytes>)__builtin_shufflevector((U8)a, (U8)b, h, n + h);
#endif
}

// Lane by lane: bytes of four words, so that word c holds byte c of each.
template <int bytes> inline Words<bytes> transpose_bytes(Words<bytes> words) {
#if defined(__SSSE3__)
    const __m128i order = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
#if defined(__AVX512BW__)
    if constexpr (bytes == 64)
        return (Words<64>)_mm512_shuffle_epi8((__m512i)words, _mm512_broadcast_i32x4(order));
#endif
#if defined(__AVX2__)
    if constexpr (bytes == 32)
        return (Words<32>)_mm256_shuffle_epi8((__m256i)words, _mm256_broadcastsi128_si256(order));
#endif
    if constexpr (bytes == 16) return (Words<16>)_mm_shuffle_epi8((__m128i)words, order);
#elif defined(SPARSEWRIGHT_NEON)
    static_assert(bytes == 16);
    const uint8x16_t order = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
    return (Words<bytes>)vqtbl1q_u8((uint8x16_t)words, order);
#else
    // Twice: each byte of the low half beside that of the high half.
    const auto fold = [](Words<bytes> v) {
        return interleave<bytes, 1, false>(v, interleave<bytes, 8, true>(v, v));
    };
    return fold(fold(words));
#endif
}

// As many weights as there are lanes, as floats.
inline Wide widen_weights(const std::int8_t *p) {
#if defined(__AVX512F__)
    return (Wide)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p))));
#elif defined(__AVX2__)
    return (Wide)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(p))));
#elif defined(__SSE4_1__)
    static_assert(lanes == 4);
    std::int32_t four;
    std::memcpy(&four, p, sizeof four);
    return (Wide)_mm_cvtepi32_ps(_mm_cvtepi8_epi32(_mm_cvtsi32_si128(four)));
#elif defined(SPARSEWRIGHT_NEON)
    std::int32_t four;
    std::memcpy(&four, p, sizeof four);
    return (Wide)vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vcreate_s8(static_cast<std::uint32_t>(four))))));
#else
    return Wide{float(p[0]), float(p[1]), float(p[2]), float(p[3])};
#endif
}

// Four floats in every lane of four.
inline Wide repeat_four(f4 four) {
#if defined(__AVX512F__)
    return (Wide)_mm512_broadcast_f32x4((__m128)four);
#elif defined(__AVX2__)
    return (Wide)_mm256_broadcastsi128_si256((__m128i)four);
#else
    return four;
#endif
}

// x of four columns in every lane of four.
inline Wide repeat_columns(const float *x, const std::uint16_t *columns) {
    std::uint64_t four;
    std::memcpy(&four, columns, sizeof four);
    const auto at = [&](int c) { return x + (four >> (16 * c) & 0xffff); };
#if defined(__AVX512F__)
    // Blended while they are read: shuffles would all wait for one port.
    __m512 all = _mm512_set1_ps(*at(0));
    all = _mm512_mask_broadcastss_ps(all, 0x2222, _mm_load_ss(at(1)));
    all = _mm512_mask_broadcastss_ps(all, 0x4444, _mm_load_ss(at(2)));
    all = _mm512_mask_broadcastss_ps(all, 0x8888, _mm_load_ss(at(3)));
    return (Wide)all;
#else
    return repeat_four(f4{*at(0), *at(1), *at(2), *at(3)});
#endif
}

// For rows in pairs: eight floats where vectors are long enough, else four.
#if defined(__AVX512F__)
using Eighth = f8;

inline Eighth widen_eighth(const std::int8_t *p) {
    return (f8)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(p))));
}

inline Eighth repeat_columns_twice(const float *x, const std::uint16_t *columns) {
    std::uint64_t four;
    std::memcpy(&four, columns, sizeof four);
    const auto at = [&](int c) { return _mm256_broadcast_ss(x + (four >> (16 * c) & 0xffff)); };
    const __m256 even = _mm256_blend_ps(at(0), at(2), 0x44), odd = _mm256_blend_ps(at(1), at(3), 0x88);
    return (f8)_mm256_blend_ps(even, odd, 0xaa);
}
#else
using Eighth = Wide;

inline Eighth widen_eighth(const std::int8_t *p) { return widen_weights(p); }

inline Eighth repeat_columns_twice(const float *x, const std::uint16_t *columns) { return repeat_columns(x, columns); }
#endif

}  // namespace
