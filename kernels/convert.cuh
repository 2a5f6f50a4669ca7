// Codes of a stored dtype to float32 and back, for elements that need no care (finite, and within the dtype's range
// when stored). The same results as csrc/dtypes.h; where the hardware has the conversion, by one instruction.
//
// Numeric rule: widening is exact; a store rounds once, to nearest even, subnormals kept.
#pragma once

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

inline __device__ float widen_half(uint16_t code) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(code));
    return x;
}

template <>
struct Convert<F16> {
    static __device__ void load(uint16_t a, uint16_t b, float& x, float& y) {
        x = widen_half(a);
        y = widen_half(b);
    }
    static __device__ void store(float x, float y, uint16_t& a, uint16_t& b) {
        asm("cvt.rn.f16.f32 %0, %1;" : "=h"(a) : "f"(x));
        asm("cvt.rn.f16.f32 %0, %1;" : "=h"(b) : "f"(y));
    }
};

#if __CUDA_ARCH__ >= 890
#define SDS_HARDWARE_FP8 1
#else
#define SDS_HARDWARE_FP8 0
#endif

template <>
struct Convert<E4M3> {
    static __device__ void load(uint8_t a, uint8_t b, float& x, float& y) {
#if SDS_HARDWARE_FP8
        uint32_t halves;
        asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(static_cast<uint16_t>(a | b << 8)));
        x = widen_half(static_cast<uint16_t>(halves));
        y = widen_half(static_cast<uint16_t>(halves >> 16));
#else
        x = E4M3::load(a);
        y = E4M3::load(b);
#endif
    }
    static __device__ void store(float x, float y, uint8_t& a, uint8_t& b) {
#if SDS_HARDWARE_FP8
        uint16_t pair;
        asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(y), "f"(x));
        a = static_cast<uint8_t>(pair);
        b = static_cast<uint8_t>(pair >> 8);
#else
        a = E4M3::encode(x);
        b = E4M3::encode(y);
#endif
    }
};

template <>
struct Convert<E5M2> {
    static __device__ void load(uint8_t a, uint8_t b, float& x, float& y) {  // the upper half of an F16
        x = widen_half(static_cast<uint16_t>(a << 8));
        y = widen_half(static_cast<uint16_t>(b << 8));
    }
    static __device__ void store(float x, float y, uint8_t& a, uint8_t& b) {
#if SDS_HARDWARE_FP8
        uint16_t pair;
        asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(y), "f"(x));
        a = static_cast<uint8_t>(pair);
        b = static_cast<uint8_t>(pair >> 8);
#else
        a = E5M2::encode(x);
        b = E5M2::encode(y);
#endif
    }
};

#endif  // __CUDA_ARCH__

}  // namespace cuda
}  // namespace sds
