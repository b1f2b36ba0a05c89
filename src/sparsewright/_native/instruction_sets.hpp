// Which instruction sets this processor runs. __builtin_cpu_supports also asks the operating system (XGETBV) whether it
// keeps the long registers, so a set that it answers yes to may be used.
#pragma once

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace sparsewright {

// SPARSEWRIGHT_SETS(SET) lists the sets of this kind of processor, best first, as
// SET(name, whether it runs here, object of the float kernels, object of the int8 kernels).
// A new set is one line here and one in instruction_sets.txt.
#if defined(__x86_64__) || defined(_M_X64)

inline bool has_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

inline bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

// AVX without AVX2 has no long integer vectors.
#define SPARSEWRIGHT_SETS(SET)                                                              \
    SET(avx512_vnni, has_avx512() && __builtin_cpu_supports("avx512vnni"), avx512, avx512_vnni) \
    SET(avx512, has_avx512(), avx512, avx512)                                               \
    SET(avx_vnni, has_avx2() && __builtin_cpu_supports("avxvnni"), avx2, avx_vnni)          \
    SET(avx2, has_avx2(), avx2, avx2)                                                       \
    SET(avx, __builtin_cpu_supports("avx"), avx, sse41)                                     \
    SET(sse41, __builtin_cpu_supports("sse4.1"), sse41, sse41)                              \
    SET(scalar, true, portable, portable)

#elif defined(__aarch64__)

inline bool has_dot() {
#if defined(__linux__)
    return getauxval(AT_HWCAP) & (1 << 20);  // HWCAP_ASIMDDP
#elif defined(__ARM_FEATURE_DOTPROD)
    return true;
#else
    return false;
#endif
}

// Every processor of this kind has NEON.
#define SPARSEWRIGHT_SETS(SET)             \
    SET(neon_dot, has_dot(), neon, neon_dot) \
    SET(neon, true, neon, neon)            \
    SET(scalar, true, portable, portable)

#else

#define SPARSEWRIGHT_SETS(SET) SET(scalar, true, portable, portable)

#endif

}  // namespace sparsewright
