// One table of CPU targets behind elementwise.h. Each target is the same loop, compiled in a region with that
// target's instructions; nothing outside a region may use them, so the binary runs on any machine of its family.
#include "elementwise.h"

#include <cmath>
#include <cstring>

#if defined(__x86_64__) || defined(_M_X64)
#define SDS_X86 1
#include <immintrin.h>
#elif defined(__aarch64__) || defined(_M_ARM64)
#define SDS_ARM 1
#include <arm_neon.h>
#endif

namespace sds {

namespace scalar {
#include "lanes/scalar.h"
#include "elementwise.inl.h"
inline bool runs_here() { return true; }
}  // namespace scalar

#ifdef SDS_X86

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,f16c")
#endif
namespace avx2 {
#include "lanes/avx2.h"
#include "elementwise.inl.h"
}  // namespace avx2
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,f16c"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,f16c")
#endif
namespace avx512 {
#include "lanes/avx512.h"
#include "elementwise.inl.h"
}  // namespace avx512
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace {
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c"); }
bool has_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && has_avx2();
}
}  // namespace
#endif

#ifdef SDS_ARM
namespace neon {
#include "lanes/neon.h"
#include "elementwise.inl.h"
inline bool runs_here() { return true; }  // every AArch64 has it
}  // namespace neon
#endif

const std::vector<Target>& targets() {
    static const std::vector<Target> all = {
#ifdef SDS_X86
        {"avx512", has_avx512, avx512::evaluate},
        {"avx2", has_avx2, avx2::evaluate},
#endif
#ifdef SDS_ARM
        {"neon", neon::runs_here, neon::evaluate},
#endif
        {"scalar", scalar::runs_here, scalar::evaluate},
    };
    return all;
}

const Target& target_named(const std::string& name) {
    std::string known;
    for (const Target& target : targets()) {
        if (name.empty() ? target.runs_here() : name == target.name) {
            if (!target.runs_here()) throw Error(Code::invalid, "this machine cannot run the CPU target " + name);
            return target;
        }
        known += std::string(known.empty() ? "" : ", ") + target.name;
    }
    throw Error(Code::invalid, "unknown CPU target '" + name + "' (this build has " + known + ")");
}

namespace {

// SplitMix64's finaliser over a counter (Steele, Lea and Flood, 2014).
inline uint64_t mix(uint64_t x) {
    x += 0x9e3779b97f4a7c15;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
}

template <class Stored>
void fill_as(const Fill& rule, uint64_t first, uint8_t* out, size_t count) {
    // The sum of four uniform 16-bit numbers is close to normal (Irwin–Hall): mean 2·65535, variance 4·(65536² − 1)/12.
    const float scale = static_cast<float>(rule.deviation / std::sqrt(4.0 * (65536.0 * 65536.0 - 1) / 12));
    const float mean = static_cast<float>(rule.mean);
    for (size_t i = 0; i < count; ++i) {
        const uint64_t bits = mix(rule.seed + first + i);
        const int32_t sum = static_cast<int32_t>((bits & 0xffff) + (bits >> 16 & 0xffff) + (bits >> 32 & 0xffff) + (bits >> 48));
        const typename Stored::Code code = encode_from<Stored>(mean + scale * static_cast<float>(sum - 131070));
        std::memcpy(out + i * sizeof code, &code, sizeof code);
    }
}

}  // namespace

void fill(const Fill& rule, uint64_t first, uint8_t* out, DType dtype, size_t count) {
    switch (dtype) {
        case DType::f64: fill_as<F64>(rule, first, out, count); break;
        case DType::f32: fill_as<F32>(rule, first, out, count); break;
        case DType::f16: fill_as<F16>(rule, first, out, count); break;
        case DType::bf16: fill_as<BF16>(rule, first, out, count); break;
        case DType::e4m3: fill_as<E4M3>(rule, first, out, count); break;
        case DType::e5m2: fill_as<E5M2>(rule, first, out, count); break;
    }
}

}  // namespace sds
