// Per stored dtype: the widening load and the rounding store, for one element, in plain integer and float32
// arithmetic. Host and device compile the same lines.
//
// Numeric rule: widening is exact; a store rounds once, to nearest even, subnormals kept; a stored NaN is the
// canonical one. The python side has the same codes in dtypes.py (`native`).
#pragma once

#include <cfloat>
#include <cstddef>
#include <cstdint>
#include <cstring>

// x87 keeps intermediate results at a higher precision and rounds them twice. 0 means that every type is computed in
// its own precision; so does 16, which compilers with _Float16 may report.
#if FLT_EVAL_METHOD != 0 && FLT_EVAL_METHOD != 16
#error "sdsurgery needs float arithmetic that rounds to float: on 32-bit x86 compile with -msse2 -mfpmath=sse"
#endif

#ifdef __CUDACC__
#define SDS_HD __host__ __device__
#else
#define SDS_HD
#endif

namespace sds {

// The one list of the dtypes that are computed with: word, struct (below). All but f64 are computed in float32, unless
// an input is f64. `dtypes.py` has the same order.
#define SDS_NARROW_DTYPES(X) X(f32, F32) X(f16, F16) X(bf16, BF16) X(e4m3, E4M3) X(e5m2, E5M2)
#define SDS_DTYPES(X) X(f64, F64) SDS_NARROW_DTYPES(X)
// What a reduction can read besides, to compare it: word, type.
#define SDS_INTEGERS(X) \
    X(i64, int64_t)     \
    X(u64, uint64_t) X(i32, int32_t) X(u32, uint32_t) X(i16, int16_t) X(u16, uint16_t) X(i8, int8_t) X(u8, uint8_t)

#define SDS_WORD(word, type) word,
enum class DType : int { SDS_DTYPES(SDS_WORD) };
enum class Element : int { SDS_DTYPES(SDS_WORD) SDS_INTEGERS(SDS_WORD) };
#undef SDS_WORD
#define SDS_ONE(word, type) +1
constexpr int kDTypes = SDS_DTYPES(SDS_ONE), kElements = kDTypes + SDS_INTEGERS(SDS_ONE);
#undef SDS_ONE

// What happens to a finite result that is too large for the output dtype.
enum class Overflow : int { format = 0, inf = 1, saturate = 2 };  // format: Inf where there is one, fp8 saturates

template <class To, class From>
SDS_HD inline To bits_as(From from) {
    static_assert(sizeof(To) == sizeof(From), "a change of view, not of size");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}

// A float of `Exp` exponent and `Man` mantissa bits, as a magnitude (no sign), from the bits of a finite |x|.
// May return a code past the largest finite one: the caller decides what an overflow becomes.
template <int Exp, int Man>
SDS_HD inline uint32_t encode_magnitude(uint32_t magnitude) {
    constexpr int bias = (1 << (Exp - 1)) - 1;
    constexpr int shift = 23 - Man;
    constexpr uint32_t smallest_normal = static_cast<uint32_t>(127 - bias + 1) << 23;
    if (bias == 127 || magnitude >= smallest_normal) {
        const uint32_t rounded = magnitude + ((1u << (shift - 1)) - 1) + ((magnitude >> shift) & 1);
        return (rounded >> shift) - (static_cast<uint32_t>(127 - bias) << Man);
    }
    // Below the normals the quantum is fixed: adding a number whose last bit has that weight makes the addition
    // itself round to nearest even there.
    constexpr uint32_t anchor = static_cast<uint32_t>(127 + 23 + 1 - bias - Man) << 23;
    return bits_as<uint32_t>(bits_as<float>(magnitude) + bits_as<float>(anchor)) - anchor;
}

template <int Exp, int Man>
SDS_HD inline float decode_magnitude(uint32_t code) {
    constexpr int bias = (1 << (Exp - 1)) - 1;
    const float scaled = bits_as<float>(code << (23 - Man));
    return scaled * bits_as<float>(static_cast<uint32_t>(127 + 127 - bias) << 23);  // a power of two: exact
}

// Stored formats: Code (the stored integer or float), limits, load and store. `overflow_at` is the smallest
// magnitude that rounds past `largest`, `careful` the bits of the smallest float32 that takes the careful store.
struct F64 {
    using Code = uint64_t;
    static constexpr DType dtype = DType::f64;
    static constexpr Code nan = 0x7ff8000000000000, inf = 0x7ff0000000000000, largest = 0x7fefffffffffffff;
    static constexpr bool has_inf = true, saturates = false;
};
struct F32 {
    using Code = uint32_t;
    static constexpr DType dtype = DType::f32;
    static constexpr Code nan = 0x7fc00000, inf = 0x7f800000, largest = 0x7f7fffff;
    static constexpr bool has_inf = true, saturates = false;
    SDS_HD static float load(Code code) { return bits_as<float>(code); }
    static constexpr uint32_t careful = 0x7f800000;
    SDS_HD static Code encode(float x) { return bits_as<uint32_t>(x); }
    SDS_HD static double overflow_at() { return 3.4028235677973366e38; }  // 2^128 − 2^103
};
struct F16 {
    using Code = uint16_t;
    static constexpr DType dtype = DType::f16;
    static constexpr uint32_t careful = 0x477ff000;  // 65520
    static constexpr Code nan = 0x7e00, inf = 0x7c00, largest = 0x7bff;
    static constexpr bool has_inf = true, saturates = false;
    SDS_HD static float load(Code code) {
        const uint32_t sign = static_cast<uint32_t>(code & 0x8000) << 16;
        const uint32_t magnitude = code & 0x7fff;
        const uint32_t bits = magnitude >= 0x7c00 ? 0x7f800000 | ((magnitude & 0x3ff) << 13)
                                                  : bits_as<uint32_t>(decode_magnitude<5, 10>(magnitude));
        return bits_as<float>(sign | bits);
    }
    SDS_HD static Code encode(float x) {
        const uint32_t bits = bits_as<uint32_t>(x);
        return static_cast<Code>((bits >> 16 & 0x8000) | encode_magnitude<5, 10>(bits & 0x7fffffff));
    }
    SDS_HD static double overflow_at() { return 65520.0; }
};
struct BF16 {
    using Code = uint16_t;
    static constexpr DType dtype = DType::bf16;
    static constexpr uint32_t careful = 0x7f7f8000;  // 2^128 − 2^119
    static constexpr Code nan = 0x7fc0, inf = 0x7f80, largest = 0x7f7f;
    static constexpr bool has_inf = true, saturates = false;
    SDS_HD static float load(Code code) { return bits_as<float>(static_cast<uint32_t>(code) << 16); }
    SDS_HD static Code encode(float x) {
        const uint32_t bits = bits_as<uint32_t>(x);
        return static_cast<Code>((bits >> 16 & 0x8000) | encode_magnitude<8, 7>(bits & 0x7fffffff));
    }
    SDS_HD static double overflow_at() { return 3.3961775292304601e38; }  // 2^128 − 2^119
};
struct E4M3 {  // OCP "FN": no infinity, one NaN code a sign
    using Code = uint8_t;
    static constexpr DType dtype = DType::e4m3;
    static constexpr uint32_t careful = 0x43e80001;  // just above 464
    static constexpr Code nan = 0x7f, inf = 0x7f, largest = 0x7e;
    static constexpr bool has_inf = false, saturates = true;
    SDS_HD static float load(Code code) {
        const uint32_t sign = static_cast<uint32_t>(code & 0x80) << 24;
        const uint32_t magnitude = code & 0x7f;
        const uint32_t bits = magnitude == 0x7f ? 0x7fc00000 : bits_as<uint32_t>(decode_magnitude<4, 3>(magnitude));
        return bits_as<float>(sign | bits);
    }
    SDS_HD static Code encode(float x) {
        const uint32_t bits = bits_as<uint32_t>(x);
        return static_cast<Code>((bits >> 24 & 0x80) | encode_magnitude<4, 3>(bits & 0x7fffffff));
    }
    SDS_HD static double overflow_at() { return 464.00000000000006; }  // 464 itself is a tie and rounds down to 448
};
struct E5M2 {
    using Code = uint8_t;
    static constexpr DType dtype = DType::e5m2;
    static constexpr uint32_t careful = 0x47700000;  // 61440
    static constexpr Code nan = 0x7f, inf = 0x7c, largest = 0x7b;
    static constexpr bool has_inf = true, saturates = true;
    SDS_HD static float load(Code code) { return F16::load(static_cast<uint16_t>(code << 8)); }
    SDS_HD static Code encode(float x) {
        const uint32_t bits = bits_as<uint32_t>(x);
        return static_cast<Code>((bits >> 24 & 0x80) | encode_magnitude<5, 2>(bits & 0x7fffffff));
    }
    SDS_HD static double overflow_at() { return 61440.0; }
};

SDS_HD inline size_t size_of(DType dtype) {
#define SDS_SIZE(word, Type) \
    case DType::word: return sizeof(Type::Code);
    switch (dtype) { SDS_DTYPES(SDS_SIZE) }
#undef SDS_SIZE
    return 0;
}

SDS_HD inline size_t size_of(Element element) {
#define SDS_SIZE(word, Type) \
    case Element::word: return sizeof(Type);
    switch (element) {
        SDS_INTEGERS(SDS_SIZE)
        default: return size_of(static_cast<DType>(element));
    }
#undef SDS_SIZE
}

// float64 to float32, rounded to odd: what is lost leaves its trace in the last bit, so that a second rounding, to
// at most 22 bits, gives what one rounding of the float64 would have given (Boldo and Melquiond, 2008).
SDS_HD inline float narrow_to_odd(double x) {
    const float nearest = static_cast<float>(x);
    const double back = nearest;
    uint32_t bits = bits_as<uint32_t>(nearest);
    if (back == x || (bits & 1)) return nearest;
    const double magnitude = x < 0 ? -x : x, returned = back < 0 ? -back : back;
    bits += returned > magnitude ? 0xffffffffu : 1u;
    return bits_as<float>(bits);
}

template <class To>
SDS_HD inline typename To::Code encode_from(float x) {
    return To::encode(x);
}
template <>
SDS_HD inline F64::Code encode_from<F64>(float x) {
    return bits_as<uint64_t>(static_cast<double>(x));
}
template <class To>
SDS_HD inline typename To::Code encode_from(double x) {
    return To::encode(narrow_to_odd(x));
}
template <>
SDS_HD inline F32::Code encode_from<F32>(double x) {
    return bits_as<uint32_t>(static_cast<float>(x));
}
template <>
SDS_HD inline F64::Code encode_from<F64>(double x) {
    return bits_as<uint64_t>(x);
}

// Smallest |x| (of a finite result) that does not fit; infinity where only an infinite result fails to.
template <class To, class T>
SDS_HD inline bool too_large(T magnitude) {
    return static_cast<double>(magnitude) >= To::overflow_at();
}
template <>
SDS_HD inline bool too_large<F64, float>(float magnitude) {
    return magnitude > 3.4028234663852886e38f;
}
template <>
SDS_HD inline bool too_large<F64, double>(double magnitude) {
    return magnitude > 1.7976931348623157e308;
}

// The bits of the smallest magnitude, in float32 or float64 arithmetic, that has to take the careful store.
SDS_HD inline uint32_t careful_from(DType to) {
#define SDS_CAREFUL(word, Type) \
    case DType::word: return Type::careful;
    switch (to) {
        SDS_NARROW_DTYPES(SDS_CAREFUL)
        case DType::f64: break;
    }
#undef SDS_CAREFUL
    return F32::careful;
}
SDS_HD inline uint64_t careful_from_wide(DType to) {
#define SDS_CAREFUL(word, Type) \
    case DType::word: return bits_as<uint64_t>(Type::overflow_at());
    switch (to) {
        SDS_NARROW_DTYPES(SDS_CAREFUL)
        case DType::f64: break;
    }
#undef SDS_CAREFUL
    return F64::inf;
}

// The careful store: NaN canonical, Inf and overflow by policy. `inputs_finite` distinguishes an Inf that was carried
// through from one that the arithmetic made.
template <class To, class T>
SDS_HD inline typename To::Code store_checked(T x, bool inputs_finite, Overflow policy, bool& overflowed) {
    using Code = typename To::Code;
    const Code sign = static_cast<Code>(static_cast<Code>(x < 0 || (x == 0 && 1 / x < 0)) << (8 * sizeof(Code) - 1));
    overflowed = false;
    if (x != x) {
        overflowed = inputs_finite;  // Inf − Inf on the way
        return To::nan;
    }
    const T magnitude = x < 0 ? -x : x;
    if (!too_large<To>(magnitude)) return encode_from<To>(x);
    const bool infinite = magnitude - magnitude != 0;
    if (infinite && !inputs_finite) return To::has_inf ? static_cast<Code>(sign | To::inf) : To::nan;
    overflowed = true;
    const bool saturate = policy == Overflow::saturate || (policy == Overflow::format && To::saturates);
    if (saturate) return static_cast<Code>(sign | To::largest);
    return To::has_inf ? static_cast<Code>(sign | To::inf) : To::nan;
}

}  // namespace sds
