// Which instruction sets the processor has and the operating system enables.
#pragma once

#if defined(__x86_64__) || defined(_M_X64)
#define SDS_X86 1

#if defined(_MSC_VER) && !defined(__clang__)
#include <immintrin.h>
#include <intrin.h>

namespace sds::cpu {

namespace detail {
inline bool bit(int leaf, int subleaf, int which, int number) {  // `which` of eax, ebx, ecx, edx
    int found[4];
    __cpuid(found, 0);
    if (found[0] < leaf) return false;
    __cpuidex(found, leaf, subleaf);
    return found[which] >> number & 1;
}
// Whether the system saves these registers of a thread (bits of XCR0).
inline bool saved(unsigned long long registers) { return bit(1, 0, 2, 27) && (~_xgetbv(0) & registers) == 0; }
}  // namespace detail

inline bool has_avx2() {  // and F16C, FMA
    return detail::saved(0x6) && detail::bit(7, 0, 1, 5) && detail::bit(1, 0, 2, 29) && detail::bit(1, 0, 2, 12);
}
inline bool has_avx512() {  // F, DQ, BW, VL
    return detail::saved(0xe6) && detail::bit(7, 0, 1, 16) && detail::bit(7, 0, 1, 17) && detail::bit(7, 0, 1, 30) &&
           detail::bit(7, 0, 1, 31) && has_avx2();
}
inline bool has_pclmul() { return detail::bit(1, 0, 2, 1) && detail::bit(1, 0, 2, 19); }
inline bool has_vpclmul() { return has_avx2() && detail::bit(7, 0, 2, 10) && has_pclmul(); }
inline bool has_sha() { return detail::bit(7, 0, 1, 29) && detail::bit(1, 0, 2, 9) && detail::bit(1, 0, 2, 19); }

}  // namespace sds::cpu

#else
#include <cpuid.h>

namespace sds::cpu {

inline bool has_avx2() {  // and F16C, FMA
    // Clang up to 16 and GCC up to 10 do not know "f16c" by name, so its bit is read here. "avx2" includes whether the
    // system saves the wide registers.
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    const bool f16c = __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx >> 29 & 1);
    return f16c && __builtin_cpu_supports("fma") && __builtin_cpu_supports("avx2");
}
inline bool has_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && has_avx2();
}
inline bool has_pclmul() { return __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.1"); }
inline bool has_vpclmul() {
    return has_pclmul() && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("vpclmulqdq");
}
inline bool has_sha() {  // GCC has no name for it before version 14
    unsigned a, b, c, d;
    return __builtin_cpu_supports("ssse3") && __builtin_cpu_supports("sse4.1") &&
           __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b >> 29 & 1);
}

}  // namespace sds::cpu

#endif

#elif defined(__aarch64__) || defined(_M_ARM64)
#define SDS_ARM 1

#if defined(__linux__)
#include <sys/auxv.h>
#elif defined(_WIN32)
#include <windows.h>
#endif

namespace sds::cpu {

inline bool has_sha() {
#if defined(__APPLE__) || defined(__ARM_FEATURE_SHA2)
    return true;
#elif defined(__linux__)
    return getauxval(AT_HWCAP) >> 6 & 1;  // HWCAP_SHA2
#elif defined(_WIN32)
    return IsProcessorFeaturePresent(PF_ARM_V8_CRYPTO_INSTRUCTIONS_AVAILABLE) != 0;
#else
    return false;
#endif
}

}  // namespace sds::cpu

#endif
