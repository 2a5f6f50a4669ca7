// Elements in and out of device memory: one by one with all special cases, or a pack of V as 16 bytes of raw words.
//
// Numeric rule: csrc/dtypes.h. A pack may only be stored when all its results are finite and fit the dtype.
#pragma once

#include "convert.cuh"

namespace sds {
namespace cuda {

template <class T>
struct Bits;
template <>
struct Bits<float> {
    using type = uint32_t;
    static constexpr type magnitude = 0x7fffffff, inf = 0x7f800000;
};
template <>
struct Bits<double> {
    using type = uint64_t;
    static constexpr type magnitude = 0x7fffffffffffffff, inf = 0x7ff0000000000000;
};
template <class T>
__device__ typename Bits<T>::type magnitude_bits(T x) {
    return bits_as<typename Bits<T>::type>(x) & Bits<T>::magnitude;
}

// ---- one element, all cases

template <class T>
__device__ T load_one(const uint8_t* p, DType dtype) {
#define SDS_LOAD(word, Stored) \
    case DType::word: return Stored::load(*reinterpret_cast<const Stored::Code*>(p));
    switch (dtype) {
        SDS_NARROW_DTYPES(SDS_LOAD)
        case DType::f64: break;
    }
#undef SDS_LOAD
    return static_cast<T>(*reinterpret_cast<const double*>(p));  // T is double then
}

template <class Stored, class T>
__device__ bool store_one_as(uint8_t* p, T y, bool finite, Overflow policy) {
    bool overflowed;
    *reinterpret_cast<typename Stored::Code*>(p) = store_checked<Stored>(y, finite, policy, overflowed);
    return overflowed;
}

template <class T>
__device__ void store_one(uint8_t* p, DType dtype, T y, bool finite, Overflow policy, uint64_t* counts) {
    bool overflowed = false;
#define SDS_STORE(word, Stored) \
    case DType::word: overflowed = store_one_as<Stored>(p, y, finite, policy); break;
    switch (dtype) { SDS_DTYPES(SDS_STORE) }
#undef SDS_STORE
    if (counts == nullptr) return;
    if (!finite) atomicAdd(reinterpret_cast<unsigned long long*>(counts), 1ull);
    if (overflowed) atomicAdd(reinterpret_cast<unsigned long long*>(counts) + 1, 1ull);
}

// ---- packs: V elements as raw words

template <int V>
__device__ uint4 load_pack(const uint8_t* p, int size, bool aligned) {
    uint4 raw = {0, 0, 0, 0};
    uint32_t* w = &raw.x;
    if (aligned) {
        switch (V * size) {
            case 16: return *reinterpret_cast<const uint4*>(p);
            case 8: {
                const uint2 half = *reinterpret_cast<const uint2*>(p);
                raw.x = half.x;
                raw.y = half.y;
                return raw;
            }
            case 4: raw.x = *reinterpret_cast<const uint32_t*>(p); return raw;
            default: raw.x = *reinterpret_cast<const uint16_t*>(p); return raw;
        }
    }
    if (size == 1) {
#pragma unroll
        for (int e = 0; e < V; ++e) w[e / 4] |= static_cast<uint32_t>(p[e]) << (8 * (e % 4));
    }
    if constexpr (V <= 8) {
        if (size == 2) {
#pragma unroll
            for (int e = 0; e < V; ++e)
                w[e / 2] |= static_cast<uint32_t>(reinterpret_cast<const uint16_t*>(p)[e]) << (16 * (e % 2));
        }
    }
    if constexpr (V <= 4) {
        if (size == 4) {
#pragma unroll
            for (int e = 0; e < V; ++e) w[e] = reinterpret_cast<const uint32_t*>(p)[e];
        }
    }
    if constexpr (V <= 2) {
        if (size == 8) {
#pragma unroll
            for (int e = 0; e < V; ++e) {
                w[2 * e] = reinterpret_cast<const uint32_t*>(p)[2 * e];
                w[2 * e + 1] = reinterpret_cast<const uint32_t*>(p)[2 * e + 1];
            }
        }
    }
    return raw;
}

template <int V>  // the output's packs are aligned: that is what the head is for
__device__ void store_pack(uint8_t* p, const uint4& raw, int size) {
    switch (V * size) {
        case 16: *reinterpret_cast<uint4*>(p) = raw; return;
        case 8: *reinterpret_cast<uint2*>(p) = make_uint2(raw.x, raw.y); return;
        case 4: *reinterpret_cast<uint32_t*>(p) = raw.x; return;
        default: *reinterpret_cast<uint16_t*>(p) = static_cast<uint16_t>(raw.x); return;
    }
}

template <class Stored, int V>
__device__ void widen_pack(const uint4& raw, float* x) {
    using Code = typename Stored::Code;
    constexpr int bits = 8 * sizeof(Code), a_word = 32 / bits;
    const uint32_t* w = &raw.x;
#pragma unroll
    for (int e = 0; e < V; e += 2) {
        const uint32_t first = w[e / a_word] >> (bits * (e % a_word) % 32);
        const uint32_t second = w[(e + 1) / a_word] >> (bits * ((e + 1) % a_word) % 32);
        Convert<Stored>::load(static_cast<Code>(first), static_cast<Code>(second), x[e], x[e + 1]);
    }
}

template <int V>
__device__ void widen(const uint4& raw, DType dtype, float* x) {
#define SDS_WIDEN(word, Stored)                                                              \
    case DType::word:                                                                        \
        if constexpr (V * sizeof(Stored::Code) <= sizeof raw) widen_pack<Stored, V>(raw, x); \
        break;
    switch (dtype) {  // a dtype that is too wide for packs of V never gets here
        SDS_NARROW_DTYPES(SDS_WIDEN)
        case DType::f64: break;
    }
#undef SDS_WIDEN
}

template <int V>
__device__ void widen(const uint4& raw, DType dtype, double* x) {
    static_assert(V == 2, "packs of float64 arithmetic are pairs");
    if (dtype == DType::f64) {
        x[0] = bits_as<double>(static_cast<uint64_t>(raw.y) << 32 | raw.x);
        x[1] = bits_as<double>(static_cast<uint64_t>(raw.w) << 32 | raw.z);
        return;
    }
    float narrow[V];
    widen<V>(raw, dtype, narrow);
    x[0] = narrow[0];
    x[1] = narrow[1];
}

template <class Stored, int V>
__device__ uint4 round_pack(const float* y) {
    using Code = typename Stored::Code;
    constexpr int bits = 8 * sizeof(Code), a_word = 32 / bits;
    uint4 raw = {0, 0, 0, 0};
    uint32_t* w = &raw.x;
#pragma unroll
    for (int e = 0; e < V; e += 2) {
        Code first, second;
        Convert<Stored>::store(y[e], y[e + 1], first, second);
        w[e / a_word] |= static_cast<uint32_t>(first) << (bits * (e % a_word) % 32);
        w[(e + 1) / a_word] |= static_cast<uint32_t>(second) << (bits * ((e + 1) % a_word) % 32);
    }
    return raw;
}

inline __device__ uint4 pair_of(double a, double b) {
    const uint64_t x = bits_as<uint64_t>(a), y = bits_as<uint64_t>(b);
    return {static_cast<uint32_t>(x), static_cast<uint32_t>(x >> 32), static_cast<uint32_t>(y),
            static_cast<uint32_t>(y >> 32)};
}

template <int V>
__device__ uint4 round_to(const float* y, DType dtype) {
#define SDS_ROUND(word, Stored)                                                                   \
    case DType::word:                                                                             \
        if constexpr (V * sizeof(Stored::Code) <= sizeof(uint4)) return round_pack<Stored, V>(y); \
        break;
    switch (dtype) {
        SDS_NARROW_DTYPES(SDS_ROUND)
        case DType::f64:
            if constexpr (V == 2) return pair_of(y[0], y[1]);
            break;
    }
#undef SDS_ROUND
    return {0, 0, 0, 0};
}

template <int V>
__device__ uint4 round_to(const double* y, DType dtype) {
    static_assert(V == 2, "packs of float64 arithmetic are pairs");
    if (dtype == DType::f64) return pair_of(y[0], y[1]);
    const bool once = dtype == DType::f32;
    const float narrow[V] = {once ? static_cast<float>(y[0]) : narrow_to_odd(y[0]),
                             once ? static_cast<float>(y[1]) : narrow_to_odd(y[1])};
    return round_to<V>(narrow, dtype);
}

}  // namespace cuda
}  // namespace sds
