// x86-64 with AVX-512 (F, BW, VL, DQ).
#include <cmath>
#include <cstring>
#include <utility>

#include "cpu.h"
#include "stages.h"

#ifdef SDS_X86

#include <immintrin.h>

namespace sds {

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,f16c,fma"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,f16c,fma")
#endif
namespace avx512 {
#include "lanes/avx512.h"
#include "loops.inl.h"
}  // namespace avx512
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace avx512 {
extern const Target target = {loops, "avx512", cpu::has_avx512};
}

}  // namespace sds

#endif
