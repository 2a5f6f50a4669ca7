// x86-64 with AVX2, F16C and FMA.
#include <cmath>
#include <cstring>
#include <utility>

#include "cpu.h"
#include "stages.h"

#ifdef SDS_X86

#include <immintrin.h>

namespace sds {

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,f16c,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,f16c,fma")
#endif
namespace avx2 {
#include "lanes/avx2.h"
#include "loops.inl.h"
}  // namespace avx2
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace avx2 {
extern const Target target = {loops, "avx2", cpu::has_avx2};
}

}  // namespace sds

#endif
