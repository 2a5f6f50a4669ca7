// Each target is the same loop, compiled in a region with that
// target's instructions; nothing outside a region may use them, so the binary runs on any machine of its family.
#include "targets.h"

#include <cmath>
#include <cstring>
#include <utility>

#include "cpu.h"
#include "stages.h"

#ifdef SDS_X86
#include <immintrin.h>
#elif defined(__aarch64__) || defined(_M_ARM64)
#define SDS_ARM 1
#include <arm_neon.h>
#endif

namespace sds {

namespace {

// Values of 4-bit codes: NF4 (Dettmers and others, arXiv 2305.14314), the FP4 of bitsandbytes, E2M1 of OCP's MX
// formats, two's complement.
const float* packed_values(Coding kind) {
    static const float nf4[] = {-1.0f,
                                -0.6961928009986877f,
                                -0.5250730514526367f,
                                -0.39491748809814453f,
                                -0.28444138169288635f,
                                -0.18477343022823334f,
                                -0.09105003625154495f,
                                0.0f,
                                0.07958029955625534f,
                                0.16093020141124725f,
                                0.24611230194568634f,
                                0.33791524171829224f,
                                0.44070982933044434f,
                                0.5626170039176941f,
                                0.7229568362236023f,
                                1.0f};
    static const float fp4[] = {0.0f,
                                0.0052083334885537624f,
                                0.6666666865348816f,
                                1.0f,
                                0.3333333432674408f,
                                0.5f,
                                0.1666666716337204f,
                                0.25f,
                                -0.0f,
                                -0.0052083334885537624f,
                                -0.6666666865348816f,
                                -1.0f,
                                -0.3333333432674408f,
                                -0.5f,
                                -0.1666666716337204f,
                                -0.25f};
    static const float e2m1[] = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                                 -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};
    static const float i4[] = {0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1};
    return kind == Coding::nf4 ? nf4 : kind == Coding::fp4 ? fp4 : kind == Coding::e2m1 ? e2m1 : i4;
}

}  // namespace

namespace scalar {
#include "lanes/scalar.h"
#include "functions.h"
#include "generated.inl.h"
#include "elementwise.inl.h"
#include "reduce.inl.h"
#include "select.inl.h"
#include "stages.inl.h"
#include "encoding.inl.h"
#include "low_rank.inl.h"
inline bool runs_here() { return true; }
}  // namespace scalar

#ifdef SDS_X86

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,f16c,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,f16c,fma")
#endif
namespace avx2 {
#include "lanes/avx2.h"
#include "functions.h"
#include "generated.inl.h"
#include "elementwise.inl.h"
#include "reduce.inl.h"
#include "select.inl.h"
#include "stages.inl.h"
#include "encoding.inl.h"
#include "low_rank.inl.h"
}  // namespace avx2
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,f16c,fma"))), \
                             apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,f16c,fma")
#endif
namespace avx512 {
#include "lanes/avx512.h"
#include "functions.h"
#include "generated.inl.h"
#include "elementwise.inl.h"
#include "reduce.inl.h"
#include "select.inl.h"
#include "stages.inl.h"
#include "encoding.inl.h"
#include "low_rank.inl.h"
}  // namespace avx512
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

#ifdef SDS_ARM
namespace neon {
#include "lanes/neon.h"
#include "functions.h"
#include "generated.inl.h"
#include "elementwise.inl.h"
#include "reduce.inl.h"
#include "select.inl.h"
#include "stages.inl.h"
#include "encoding.inl.h"
#include "low_rank.inl.h"
inline bool runs_here() { return true; }  // every AArch64 has it
}  // namespace neon
#endif

const std::vector<Target>& targets() {
    static const std::vector<Target> all = {
#ifdef SDS_X86
        {"avx512", cpu::has_avx512, avx512::evaluate, avx512::fill, avx512::reduce, avx512::generate_into,
         avx512::accumulate, avx512::decode, avx512::product},
        {"avx2", cpu::has_avx2, avx2::evaluate, avx2::fill, avx2::reduce, avx2::generate_into, avx2::accumulate,
         avx2::decode, avx2::product},
#endif
#ifdef SDS_ARM
        {"neon", neon::runs_here, neon::evaluate, neon::fill, neon::reduce, neon::generate_into, neon::accumulate,
         neon::decode, neon::product},
#endif
        {"scalar", scalar::runs_here, scalar::evaluate, scalar::fill, scalar::reduce, scalar::generate_into,
         scalar::accumulate, scalar::decode, scalar::product},
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

}  // namespace sds
