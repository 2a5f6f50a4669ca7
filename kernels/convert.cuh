// Codes of a stored dtype to float32 and back, for elements that need no care (finite, and within the dtype's range
// when stored). The same results as csrc/dtypes.h; where the hardware has the conversion, by one instruction, as
// the toolkit's cuda_fp16.h and cuda_fp8.h spell it.
//
// Numeric rule: widening is exact; a store rounds once, to nearest even, subnormals kept.
#pragma once

#ifdef __CUDACC__
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#endif

#include "../csrc/dtypes.h"

namespace sds {
namespace cuda {

// Two neighbouring elements at a time, since the fp8 conversions work on pairs.
template <class Stored>
struct Convert {
    using Code = typename Stored::Code;
    static __device__ void load(Code a, Code b, float& x, float& y) {
        x = Stored::load(a);
        y = Stored::load(b);
    }
    static __device__ void store(float x, float y, Code& a, Code& b) {
        a = Stored::encode(x);
        b = Stored::encode(y);
    }
};

#ifdef __CUDA_ARCH__  // else the lines of dtypes.h serve: for the host's pass, and for tests without a GPU

inline __device__ float widen_half(uint16_t code) { return __half2float(__ushort_as_half(code)); }

// Before 8.9 the header goes by way of float64, and the lines of dtypes.h are faster.
template <class Stored, __nv_fp8_interpretation_t kKind>
__device__ void store_fp8(float x, float y, uint8_t& a, uint8_t& b) {
#if __CUDA_ARCH__ >= 890
    const __nv_fp8x2_storage_t pair = __nv_cvt_float2_to_fp8x2(make_float2(x, y), __NV_SATFINITE, kKind);
    a = static_cast<uint8_t>(pair);
    b = static_cast<uint8_t>(pair >> 8);
#else
    a = Stored::encode(x);
    b = Stored::encode(y);
#endif
}

template <>
struct Convert<F16> {
    static __device__ void load(uint16_t a, uint16_t b, float& x, float& y) {
        x = widen_half(a);
        y = widen_half(b);
    }
    static __device__ void store(float x, float y, uint16_t& a, uint16_t& b) {
        a = __half_as_ushort(__float2half_rn(x));
        b = __half_as_ushort(__float2half_rn(y));
    }
};

template <>
struct Convert<E5M2> {
    static __device__ void load(uint8_t a, uint8_t b, float& x, float& y) {  // the upper half of an F16
        x = widen_half(static_cast<uint16_t>(a << 8));
        y = widen_half(static_cast<uint16_t>(b << 8));
    }
    static __device__ void store(float x, float y, uint8_t& a, uint8_t& b) { store_fp8<E5M2, __NV_E5M2>(x, y, a, b); }
};

template <>
struct Convert<E4M3> {
    static __device__ void load(uint8_t a, uint8_t b, float& x, float& y) {
#if __CUDA_ARCH__ >= 890
        const auto pair = static_cast<__nv_fp8x2_storage_t>(a | b << 8);
        const __half2_raw halves = __nv_cvt_fp8x2_to_halfraw2(pair, __NV_E4M3);
        x = widen_half(halves.x);
        y = widen_half(halves.y);
#else
        x = E4M3::load(a);
        y = E4M3::load(b);
#endif
    }
    static __device__ void store(float x, float y, uint8_t& a, uint8_t& b) { store_fp8<E4M3, __NV_E4M3>(x, y, a, b); }
};

#endif  // __CUDA_ARCH__

}  // namespace cuda
}  // namespace sds
