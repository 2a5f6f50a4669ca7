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

namespace scalar {
#include "lanes/scalar.h"
#include "elementwise.inl.h"
#include "reduce.inl.h"
#include "stages.inl.h"
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
#include "reduce.inl.h"
#include "stages.inl.h"
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
#include "reduce.inl.h"
#include "stages.inl.h"
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
#include "elementwise.inl.h"
#include "reduce.inl.h"
#include "stages.inl.h"
inline bool runs_here() { return true; }  // every AArch64 has it
}  // namespace neon
#endif

const std::vector<Target>& targets() {
    static const std::vector<Target> all = {
#ifdef SDS_X86
        {"avx512", cpu::has_avx512, avx512::evaluate, avx512::fill, avx512::reduce, avx512::accumulate},
        {"avx2", cpu::has_avx2_f16c, avx2::evaluate, avx2::fill, avx2::reduce, avx2::accumulate},
#endif
#ifdef SDS_ARM
        {"neon", neon::runs_here, neon::evaluate, neon::fill, neon::reduce, neon::accumulate},
#endif
        {"scalar", scalar::runs_here, scalar::evaluate, scalar::fill, scalar::reduce, scalar::accumulate},
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
