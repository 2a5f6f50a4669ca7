// exp, log, pow and normals of a strip: what functions.h defines, to the bit, in a third of the time. Included once per
// CPU target, inside that target's namespace and region, after functions.h.
//
// A float32 result needs far fewer digits than its definition finds. So a strip is evaluated by shorter polynomials, in
// any rounding, with an error below 2^-38 of the value. Where no middle of two float32 lies that near, the definition
// rounds to the same float32; the other elements (one in 4096), and what is not an ordinary number, take the
// definition.
//
// Method. log2: x = 2^k·m with m in [√½, √2), by the series of atanh, off by 2^-45. exp2: a polynomial on |r| ≤ ½, off
// by 2^-39.7. Both interpolate at Chebyshev nodes. pow: exp2(y·log2 x) while |y·log2 x| ≤ 32, off by 2^-39 with the
// 2^-44 of the definition; of y = ½, the commonest, the square root.

namespace functions {

constexpr uint64_t kDoubt = uint64_t{1} << (53 - 38);  // 2^-38 of a float64 is at most so many last places

// x·y + z, fused where the target has an instruction for it: how it is rounded does not matter here.
inline double about(double x, double y, double z) { return Lanes::width == 1 ? x * y + z : std::fma(x, y, z); }

inline double about_log2(double m, double k) {
    const double s = (m - 1) / (m + 1), z = s * s;
    double p = 0x1.21ac9c9040d9ep-2;
    p = about(p, z, 0x1.4795a63079ddfp-2);
    p = about(p, z, 0x1.a61a2cc1ced3bp-2);
    p = about(p, z, 0x1.2776c295f01cfp-1);
    p = about(p, z, 0x1.ec709dc539e76p-1);
    p = about(p, z, 0x1.71547652b8253p+1);
    return about(s, p, k);
}

// Of ordinary positive numbers; of others anything.
inline void quick_log2(const float* __restrict x, double* __restrict to, size_t n) {
    float m[kStrip], k[kStrip];
    for (size_t i = 0; i < n; ++i) {
        const uint32_t above = bits_as<uint32_t>(x[i]) - 0x3f3504f3;  // from √½
        k[i] = static_cast<float>(static_cast<int32_t>(above) >> 23);
        m[i] = bits_as<float>((above & 0x7fffff) + 0x3f3504f3);
    }
    for (size_t i = 0; i < n; ++i) to[i] = about_log2(m[i], k[i]);
}

// Rounded to float32; NaN if the definition might round otherwise.
inline float without_doubt(double found, bool valid) {
    const uint64_t left = (bits_as<uint64_t>(found) + (kDoubt - (uint64_t{1} << 28))) & 0x1fffffff;
    const bool doubtful = (left < 2 * kDoubt) | !valid;
    return static_cast<float>(doubtful ? bits_as<double>(F64::nan) : found);
}

inline float quick_exp2(double t, double most) {  // NaN for |t| above `most`
    const double shifted = t + kShift, r = t - (shifted - kShift);
    double p = 0x1.63d136366db24p-20;
    p = about(p, r, 0x1.00dc4a532fb8ep-16);
    p = about(p, r, 0x1.4308ac85aa947p-13);
    p = about(p, r, 0x1.5d8745a728441p-10);
    p = about(p, r, 0x1.3b2ab7181b755p-7);
    p = about(p, r, 0x1.c6b08dd6fd234p-5);
    p = about(p, r, 0x1.ebfbdff823cedp-3);
    p = about(p, r, 0x1.62e42fef84cf0p-1);
    p = about(p, r, 1);
    return without_doubt(bits_as<double>(bits_as<uint64_t>(p) + (bits_as<uint64_t>(shifted) << 52)),
                         std::fabs(t) <= most);
}

// All ones for a zero, a subnormal, a negative number, Inf or NaN.
inline uint32_t is_special(float x) { return bits_as<uint32_t>(x) - 0x800000 < 0x7f000000 ? 0 : ~uint32_t{0}; }

// The radius from a float32 root by a step of Newton's, off by 2^-45; sine and cosine of the turn from the nearest
// quarter, off by 2^-43. A radius of 0 gives NaN.
inline void quick_normals(const uint32_t* __restrict a, const uint32_t* __restrict b, float* __restrict first,
                          float* __restrict second, size_t n) {
    float near[kStrip], half[kStrip];
    double squared[kStrip];
    for (size_t i = 0; i < n; ++i) {  // −2·ln of (a + 1)/2^32
        const double x = static_cast<double>(static_cast<int32_t>(a[i] ^ 0x80000000)) + 2147483649.0;
        const uint64_t above = bits_as<uint64_t>(x) - 0x3fe6a09e667f3bcd;
        const double k = bits_as<double>(0x4330000000000000 | above >> 52) - (0x1p52 + 32);
        const double m = bits_as<double>((above & 0x000fffffffffffff) + 0x3fe6a09e667f3bcd);
        squared[i] = -2 * 0x1.62e42fefa39efp-1 * about_log2(m, k);
    }
    for (size_t i = 0; i < n; ++i) {
        near[i] = std::sqrt(static_cast<float>(squared[i]));
        half[i] = 0.5f / near[i];
    }
    for (size_t i = 0; i < n; ++i) {
        const double guess = near[i], radius = guess + (squared[i] - guess * guess) * half[i];
        const double turns = static_cast<double>(static_cast<int32_t>(b[i])) * 0x1p-32;  // less a whole one, perhaps
        const double shifted = about(4, turns, kShift), f = about(-0.25, shifted - kShift, turns), z = f * f;
        double s = -0x1.dd54805f3f706p+3, c = -0x1.a0ee132c60c1fp+4;
        s = about(s, z, 0x1.5071ce4b47930p+5);
        c = about(c, z, 0x1.e1e7ccccb387ap+5);
        s = about(s, z, -0x1.32d2c644adc0bp+6);
        c = about(c, z, -0x1.55d3ba300cd50p+6);
        s = about(s, z, 0x1.466bc67123fa1p+6);
        c = about(c, z, 0x1.03c1f074ded21p+6);
        s = about(s, z, -0x1.4abbce6257a2ap+5);
        c = about(c, z, -0x1.3bd3cc9bd2c35p+4);
        s = about(s, z, 0x1.921fb54442cfap+2);
        c = about(c, z, 1);
        const uint64_t quarter = bits_as<uint64_t>(shifted);
        const bool odd = (quarter & 1) != 0;
        const double x = (odd ? f * s : c) * radius, y = (odd ? c : f * s) * radius;
        first[i] = without_doubt(bits_as<double>(bits_as<uint64_t>(x) ^ ((quarter + 1) & 2) << 62), true);
        second[i] = without_doubt(bits_as<double>(bits_as<uint64_t>(y) ^ (quarter & 2) << 62), true);
    }
}

// Whether a NaN is among them.
inline bool any_nan(const float* x, size_t n) {
    uint32_t top = 0;
    for (size_t i = 0; i < n; ++i) {
        const uint32_t size = bits_as<uint32_t>(x[i]) & 0x7fffffff;
        top = size > top ? size : top;
    }
    return top > 0x7f800000;
}

// The elements that are left: one by one, or all of them again where that takes less time.
template <class One, class All>
void settle(float* to, size_t n, One one, All all) {
    size_t left = 0;
    for (size_t i = 0; i < n; ++i) left += to[i] != to[i];
    if (left > n / 8) return all();
    for (size_t i = 0; left > 0; ++i) {
        if (to[i] == to[i]) continue;
        to[i] = one(i);
        --left;
    }
}

inline void exp_strip(const float* __restrict x, float* __restrict to, size_t n) {
    for (size_t i = 0; i < n; ++i) to[i] = quick_exp2(x[i] * 0x1.71547652b82fep+0, 120);
    if (!any_nan(to, n)) return;
    settle(
        to, n, [x](size_t i) { return lane_exp(x[i]); },
        [x, to, n] {
            for (size_t i = 0; i < n; ++i) to[i] = lane_exp(x[i]);
        });
}

inline void log_strip(const float* __restrict x, float* __restrict to, size_t n) {
    double wide[kStrip];
    quick_log2(x, wide, n);
    for (size_t i = 0; i < n; ++i) to[i] = without_doubt(wide[i] * 0x1.62e42fefa39efp-1, true);
    for (size_t i = 0; i < n; ++i) to[i] = bits_as<float>(bits_as<uint32_t>(to[i]) | is_special(x[i]));
    if (!any_nan(to, n)) return;
    settle(
        to, n, [x](size_t i) { return lane_log(x[i]); },
        [x, to, n] {
            for (size_t i = 0; i < n; ++i) to[i] = lane_log(x[i]);
        });
}

inline bool all_are(const float* x, size_t n, float value) {
    uint32_t others = 0;
    for (size_t i = 0; i < n; ++i) others |= bits_as<uint32_t>(x[i]) ^ bits_as<uint32_t>(value);
    return others == 0;
}

inline void pow_strip(const float* __restrict x, const float* __restrict y, float* __restrict to, size_t n) {
    if (all_are(y, n, 0.5f)) {
        for (size_t i = 0; i < n; ++i) to[i] = without_doubt(std::sqrt(static_cast<double>(x[i])), true);
    } else {
        double wide[kStrip];
        quick_log2(x, wide, n);
        for (size_t i = 0; i < n; ++i) to[i] = quick_exp2(y[i] * wide[i], 32);
    }
    for (size_t i = 0; i < n; ++i) {
        const bool zero = bits_as<uint32_t>(x[i]) == 0, positive = bits_as<uint32_t>(y[i]) - 1 < 0x7f800000;
        const uint32_t other = (zero ? 0 : ~uint32_t{0}) | (positive ? 0 : ~uint32_t{0});  // than 0^y = 0
        to[i] = bits_as<float>((bits_as<uint32_t>(to[i]) | is_special(x[i])) & other);
    }
    if (!any_nan(to, n)) return;
    settle(
        to, n, [x, y](size_t i) { return lane_pow(x[i], y[i]); },
        [x, y, to, n] {
            float power[kStrip];
            for (size_t i = 0; i < n; ++i) power[i] = power_of_magnitude(x[i], y[i]);
            for (size_t i = 0; i < n; ++i) to[i] = completed_power(power[i], x[i], y[i]);
        });
}

inline void normals_strip(const uint32_t* a, const uint32_t* b, float* first, float* second, size_t n) {
    quick_normals(a, b, first, second, n);
    if (!any_nan(first, n) && !any_nan(second, n)) return;
    for (size_t i = 0; i < n; ++i) {
        if (first[i] == first[i] && second[i] == second[i]) continue;
        const Normals found = normals(a[i], b[i]);
        first[i] = static_cast<float>(found.first);
        second[i] = static_cast<float>(found.second);
    }
}
inline void normals_strip(const uint32_t* a, const uint32_t* b, double* first, double* second, size_t n) {
    for (size_t i = 0; i < n; ++i) {
        const Normals found = normals(a[i], b[i]);
        first[i] = found.first;
        second[i] = found.second;
    }
}

// float64 is rounded correctly, one by one.
inline void exp_strip(const double* x, double* to, size_t n) {
    for (size_t i = 0; i < n; ++i) to[i] = scalars::exp(x[i]);
}
inline void log_strip(const double* x, double* to, size_t n) {
    for (size_t i = 0; i < n; ++i) to[i] = scalars::log(x[i]);
}
inline void pow_strip(const double* x, const double* y, double* to, size_t n) {
    for (size_t i = 0; i < n; ++i) to[i] = scalars::pow(x[i], y[i]);
}

}  // namespace functions
