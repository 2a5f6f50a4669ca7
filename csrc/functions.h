// exp, log and pow of a float32 lane, by the operations written here, each rounded by itself. Nothing but + − × ÷,
// comparisons and integer operations on bits is used, so every compiler, SIMD target and GPU gives the same bits, and
// so does python/sdsurgery/definitions/elementary.py, which is the reference.
//
// Error: exp is off by at most 0.87 of a last place and log by 0.86, which trying all 2^32 inputs found. pow is
// evaluated in float64, off by 2^-44 of itself, and rounded once: 0.50001 of a last place. float64 lanes take
// scalars.h, which rounds correctly.
//
// Method. exp: x = k·ln 2 + r (Cody & Waite, "Software manual for the elementary functions", 1980), a polynomial on
// |r| ≤ ½ ln 2. log: x = 2^k·m with m in [√½, √2), a polynomial of m − 1 in float32, in float64 the series of atanh as
// in fdlibm's e_log.c (Sun Microsystems, 1993). pow: exp(y·log |x|). The polynomials interpolate at Chebyshev nodes;
// those in float64 are off by 2^-55 and 2^-60. Special values follow Annex F of C99.
//
// Included (after dtypes.h and scalars.h) in the namespace and target region of every CPU target, as formulas.h is: no
// include guard.

namespace functions {

constexpr double kShift = 0x1.8p52;  // added to |x| < 2^51 it leaves the nearest integer in the low bits

// ---- of a float32, or of a register of them (lanes/*.h, which have these four too)

SDS_HD inline bool less(float a, float b) { return a < b; }
SDS_HD inline bool equal(float a, float b) { return a == b; }
SDS_HD inline float where(bool a, float yes, float no) { return a ? yes : no; }
SDS_HD inline float split(float x, float& m) {  // x = 2^k·m with m in [√½, √2), of ordinary positive numbers
    const uint32_t above = bits_as<uint32_t>(x) - 0x3f3504f3;
    m = bits_as<float>((above & 0x7fffff) + 0x3f3504f3);
    return static_cast<float>(static_cast<int32_t>(above) >> 23);
}
SDS_HD inline float power_of_two(float shifted) {  // 2^k, k in the low bits
    return bits_as<float>((bits_as<uint32_t>(shifted) + 127) << 23);
}

template <class V>
SDS_HD inline V all(float x) {
    if constexpr (std::is_same<V, float>::value)
        return x;
    else
        return V::all(x);
}

// `ordinary`: of |x| up to 87. The same bits, with none of the cases that others need.
template <bool ordinary, class V>
SDS_HD inline V exp_of(V x) {
    const V shift = all<V>(0x1.8p23f), half = all<V>(0.5f), least = all<V>(-104), most = all<V>(89);
    if constexpr (!ordinary) x = where(less(x, least), least, where(less(most, x), most, x));
    const V shifted = x * all<V>(0x1.715476p+0f) + shift, k = shifted - shift;
    const V high = x - k * all<V>(0x1.62e4p-1f), low = k * all<V>(0x1.7f7d1cp-20f), r = high - low;
    V p = all<V>(0x1.a124f2p-13f);
    p = p * r + all<V>(0x1.6d4324p-10f);
    p = p * r + all<V>(0x1.1110e0p-7f);
    p = p * r + all<V>(0x1.5554eap-5f);
    p = p * r + all<V>(0x1.555556p-3f);
    p = p * r + half;
    const V found = all<V>(1) + (high + (r * r * p - low));
    if constexpr (ordinary) return found * power_of_two(shifted);
    const V part = k * half + shift, rest = (k - (part - shift)) + shift;  // in two steps, to Inf and the subnormals
    return found * power_of_two(part) * power_of_two(rest);
}

// `ordinary`: of positive numbers that are normal and finite. The same bits, with none of the cases that others need.
template <bool ordinary, class V>
SDS_HD inline V log_of(V x) {
    const V zero = all<V>(0), infinity = all<V>(bits_as<float>(uint32_t{0x7f800000}));
    const auto subnormal = less(x, all<V>(0x1p-126f));
    V m, k = split(ordinary ? x : where(subnormal, x * all<V>(0x1p23f), x), m);
    if constexpr (!ordinary) k = k - where(subnormal, all<V>(23), zero);
    const V f = m - all<V>(1), z = f * f;
    V even = all<V>(0x1.1d8ea6p-4f), odd = all<V>(-0x1.d635bcp-4f);
    even = even * z + all<V>(0x1.dea282p-4f);
    odd = odd * z + all<V>(-0x1.fcf4c6p-4f);
    even = even * z + all<V>(0x1.23d21ap-3f);
    odd = odd * z + all<V>(-0x1.555b4ap-3f);
    even = even * z + all<V>(0x1.999d5ap-3f);
    odd = odd * z + all<V>(-0x1.fffffcp-3f);
    even = even * z + all<V>(0x1.555554p-2f);
    const V part = f * z * (even + f * odd) + k * all<V>(0x1.7f7d1cp-20f);
    const V found = k * all<V>(0x1.62e4p-1f) - ((all<V>(0.5f) * z - part) - f);
    if constexpr (ordinary) return found;
    const V nan = all<V>(bits_as<float>(uint32_t{0x7fc00000}));
    return where(less(zero, x), where(less(x, infinity), found, x), where(equal(x, zero), zero - infinity, nan));
}

// ---- in float64, for pow

SDS_HD inline double exp(double x) {          // of any x that a float32 or a product of two logarithms can be
    x = x < -200 ? -200 : x > 200 ? 200 : x;  // a float32 is 0 or Inf there
    const double shifted = x * 0x1.71547652b82fep+0 + kShift, k = shifted - kShift;
    const double r = (x - k * 0x1.62e42feep-1) - k * 0x1.a39ef35793c76p-33;
    double p = 0x1.af38a9b0ec855p-26;
    p = p * r + 0x1.289185613a3d6p-22;
    p = p * r + 0x1.71de0dae63bb3p-19;
    p = p * r + 0x1.a019b90d2ae7ap-16;
    p = p * r + 0x1.a01a01a7c41d5p-13;
    p = p * r + 0x1.6c16c1788bd90p-10;
    p = p * r + 0x1.11111111109b3p-7;
    p = p * r + 0x1.5555555553d63p-5;
    p = p * r + 0x1.5555555555556p-3;
    p = p * r + 0x1.0000000000001p-1;
    const double scale = bits_as<double>((bits_as<uint64_t>(shifted) + 1023) << 52);
    return (1 + (r + r * r * p)) * scale;
}

SDS_HD inline double log(double x) {  // of a float32; the magnitude's, where x is negative
    const uint64_t bits = bits_as<uint64_t>(x) & 0x7fffffffffffffff;
    const uint64_t above = bits - 0x3fe6a09e667f3bcd + (uint64_t{1024} << 52);  // from √½, and 1024 binades
    const double k = bits_as<double>(0x4330000000000000 | above >> 52) - (0x1p52 + 1024);
    const double m = bits_as<double>(bits - ((above & 0xfff0000000000000) - (uint64_t{1024} << 52)));
    const double f = m - 1, half = 0.5 * (f * f), s = f / (2 + f), z = s * s;
    double p = 0x1.0c04595972ab8p-3;
    p = p * z + 0x1.0fbe83c2cbcf3p-3;
    p = p * z + 0x1.3b1c360763b8ap-3;
    p = p * z + 0x1.745cf901605f7p-3;
    p = p * z + 0x1.c71c720160b47p-3;
    p = p * z + 0x1.2492492476c87p-2;
    p = p * z + 0x1.9999999999a38p-2;
    p = p * z + 0x1.5555555555555p-1;
    const double found = k * 0x1.62e42feep-1 - ((half - (s * (half + z * p) + k * 0x1.a39ef35793c76p-33)) - f);
    const double infinity = bits_as<double>(uint64_t{0x7ff0000000000000});
    return bits == 0 ? -infinity : bits >= 0x7ff0000000000000 ? bits_as<double>(bits) : found;
}

// ---- of a lane, as steps take them

SDS_HD inline float lane_exp(float x) { return exp_of<false>(x); }
SDS_HD inline double lane_exp(double x) { return scalars::exp(x); }

SDS_HD inline float lane_log(float x) { return log_of<false>(x); }
SDS_HD inline double lane_log(double x) { return scalars::log(x); }

// In two halves, each of which compilers turn into a loop over SIMD registers (functions.inl.h).
SDS_HD inline float power_of_magnitude(float x, float y) {
    return static_cast<float>(exp(static_cast<double>(y) * log(x)));
}
SDS_HD inline float completed_power(float power, float x, float y) {
    const uint32_t infinity = 0x7f800000, x_bits = bits_as<uint32_t>(x), size = x_bits & 0x7fffffff;
    const uint32_t y_size = bits_as<uint32_t>(y) & 0x7fffffff;
    const bool large = y_size >= 0x4b800000;  // from 2^24 on every float32 is an even integer
    const int32_t integer = static_cast<int32_t>(large ? 0.0f : y);
    const bool whole = large | (static_cast<float>(integer) == y);
    const uint32_t sign = x_bits & static_cast<uint32_t>(integer) << 31;
    const bool root_of_negative = (x < 0) & (size < infinity) & !whole;
    const bool one = (y_size == 0) | (x == 1) | ((size == 0x3f800000) & (y_size == infinity));
    uint32_t found = bits_as<uint32_t>(power) | (whole ? sign : 0);
    found = root_of_negative ? 0x7fc00000 : found;
    return bits_as<float>(one ? uint32_t{0x3f800000} : found);
}
SDS_HD inline float lane_pow(float x, float y) { return completed_power(power_of_magnitude(x, y), x, y); }
SDS_HD inline double lane_pow(double x, double y) { return scalars::pow(x, y); }

// The magnitude of x with the sign of y.
SDS_HD inline float lane_copysign(float x, float y) {
    return bits_as<float>((bits_as<uint32_t>(x) & 0x7fffffff) | (bits_as<uint32_t>(y) & 0x80000000));
}
SDS_HD inline double lane_copysign(double x, double y) {
    constexpr uint64_t sign = 0x8000000000000000;
    return bits_as<double>((bits_as<uint64_t>(x) & ~sign) | (bits_as<uint64_t>(y) & sign));
}

}  // namespace functions
