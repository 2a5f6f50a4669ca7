// exp, log and pow of packs and strips: what functions.h defines, to the bit, in a fraction of the time. Included once
// per CPU target, inside that target's namespace and region, after functions.h and packs.inl.h.
//
// A power needs far fewer digits than its definition finds. So lanes are evaluated by shorter polynomials, in any
// rounding, with an error below 2^-38 of the value. Where all that lies so near rounds to the same float32, the
// definition does too; the other lanes (one in 4096), and what is not an ordinary number, take the definition.
//
// Method. exp2(y·log2 x) while |y·log2 x| ≤ 32, off by 2^-39 with the 2^-44 of the definition; of y = ½, the commonest,
// the square root. log2: x = 2^k·m with m in [√½, √2), by the series of atanh, off by 2^-45. exp2: a polynomial on
// |r| ≤ ½, off by 2^-39.7. Both interpolate at Chebyshev nodes. The quotient starts from one in float32, which a step
// of Newton's makes right to 2^-46.

namespace functions {

constexpr size_t kParts = Lanes::width / Doubles::width;

struct Wide {  // lanes in float64
    Doubles part[kParts];
};
inline Wide widened(Lanes x) {
    Wide wide;
    widen_lanes(x, wide.part);
    return wide;
}

// Rounded; NaN where the definition might round otherwise.
inline Lanes rounded(const Wide& x) {
    Wide less, more;
    for (size_t k = 0; k < kParts; ++k) {
        less.part[k] = x.part[k] * Doubles::all(1 - 0x1p-38);
        more.part[k] = x.part[k] * Doubles::all(1 + 0x1p-38);
    }
    const Lanes found = narrowed(less.part);
    return where(equal(found, narrowed(more.part)), found, Lanes::all(bits_as<float>(F32::nan)));
}

// Of ordinary positive numbers; of others anything.
inline Wide log2(Lanes x) {
    const Lanes one = Lanes::all(1);
    Lanes m;
    const Wide k = widened(split(x, m));
    const Wide below = widened(one - m), inverse = widened(Lanes::all(-1) / (m + one));  // near −1/(m + 1)
    Wide found;
    for (size_t i = 0; i < kParts; ++i) {
        const Doubles two = Doubles::all(2), f = below.part[i], near = inverse.part[i];
        const Doubles s = f * near * fused(two, two - f, near), z = s * s;  // (m − 1)/(m + 1)
        Doubles p = fused(Doubles::all(0x1.4795a63079ddfp-2), Doubles::all(0x1.21ac9c9040d9ep-2), z);
        p = fused(Doubles::all(0x1.a61a2cc1ced3bp-2), p, z);
        p = fused(Doubles::all(0x1.2776c295f01cfp-1), p, z);
        p = fused(Doubles::all(0x1.ec709dc539e76p-1), p, z);
        p = fused(Doubles::all(0x1.71547652b8253p+1), p, z);
        found.part[i] = fused(k.part[i], p, s);
    }
    return found;
}

inline Lanes exp2(const Wide& t) {
    Wide found;
    for (size_t i = 0; i < kParts; ++i) {
        const Doubles shift = Doubles::all(kShift), shifted = t.part[i] + shift, r = t.part[i] - (shifted - shift);
        Doubles p = fused(Doubles::all(0x1.00dc4a532fb8ep-16), Doubles::all(0x1.63d136366db24p-20), r);
        p = fused(Doubles::all(0x1.4308ac85aa947p-13), p, r);
        p = fused(Doubles::all(0x1.5d8745a728441p-10), p, r);
        p = fused(Doubles::all(0x1.3b2ab7181b755p-7), p, r);
        p = fused(Doubles::all(0x1.c6b08dd6fd234p-5), p, r);
        p = fused(Doubles::all(0x1.ebfbdff823cedp-3), p, r);
        p = fused(Doubles::all(0x1.62e42fef84cf0p-1), p, r);
        p = fused(Doubles::all(1), p, r);
        found.part[i] = scaled(p, shifted);
    }
    return rounded(found);
}

// Of numbers from 2^-80 on; NaN where the definition might round otherwise: where x is nearly the square of a middle of
// two float32, which is root² ± root·(a last place of it).
inline Lanes root(Lanes x) {
    const Lanes found = square_root(x), step = found * (binade(found) * Lanes::all(0x1p-23f));
    const Lanes distance = absolute(absolute(square_less(found, x)) - step);
    return where(greater(distance, x * Lanes::all(0x1p-40f)), found, Lanes::all(bits_as<float>(F32::nan)));
}

inline Wide operator*(Wide a, const Wide& b) {
    for (size_t k = 0; k < kParts; ++k) a.part[k] = a.part[k] * b.part[k];
    return a;
}

constexpr float kLargest = 0x1.fffffep127f;

inline Mask within(float least, Lanes x, float most) {
    return at_least(x, Lanes::all(least)) * at_least(Lanes::all(most), x);
}
inline bool all_of(Mask lanes) { return bits_of(lanes) + 1 == uint32_t{1} << Lanes::width; }

// Whether all lanes are ordinary ones of functions.h.
inline bool has_exp(Lanes x) { return all_of(within(-87, x, 87)); }
inline bool has_log(Lanes x) { return all_of(within(0x1p-126f, x, kLargest)); }

// NaN in the lanes that the definition has to settle.
inline Pack<Lanes> quick_pow(const Pack<Lanes>& x, const Pack<Lanes>& y) {
    bool roots = true;
    for (const Lanes& lanes : y.of) roots &= all_of(equal(lanes, Lanes::all(0.5f)));
    const auto root_of = [](Lanes a) {
        return where(within(0x1p-80f, a, kLargest), root(a), Lanes::all(bits_as<float>(F32::nan)));
    };
    const auto power_of = [](Lanes a, Lanes b, const Wide& logarithm) {
        const Lanes found = exp2(logarithm * widened(b));  // which is right while it is not far from 1
        const Mask sure = within(0x1p-126f, a, kLargest) * within(0x1p-32f, found, 0x1p32f) * within(-6, b, 6);
        return where(sure, found, Lanes::all(bits_as<float>(F32::nan)));
    };
    const auto of_zero = [](Lanes found, Lanes a, Lanes b) {  // 0^b = 0; −0 is another
        const Lanes zero = Lanes::all(0);
        const Mask is_zero = equal(a, zero) * greater(copysign(Lanes::all(1), a), zero) * greater(b, zero);
        return where(is_zero, zero, found);
    };
    return each(of_zero, roots ? each(root_of, x) : each(power_of, x, y, each(log2, x)), x, y);
}

// What the quick way left.
[[gnu::cold, gnu::noinline]] inline void settle(Pack<Lanes>& found, const Pack<Lanes>& x, const Pack<Lanes>& y) {
    constexpr size_t n = kPack * Lanes::width;
    float to[n], from[n], by[n];
    found.write(to);
    x.write(from);
    y.write(by);
    size_t left = 0;
    for (size_t i = 0; i < n; ++i) left += to[i] != to[i];
    if (left > n / 8) {  // all of them again takes less time than so many one by one
        float power[n];
        for (size_t i = 0; i < n; ++i) power[i] = power_of_magnitude(from[i], by[i]);
        for (size_t i = 0; i < n; ++i) to[i] = completed_power(power[i], from[i], by[i]);
    } else {
        for (size_t i = 0; i < n; ++i) {
            if (to[i] != to[i]) to[i] = lane_pow(from[i], by[i]);
        }
    }
    found = Pack<Lanes>::read(to);
}

}  // namespace functions

inline Pack<Lanes> exp(const Pack<Lanes>& x) {
    bool ordinary = true;
    for (const Lanes& lanes : x.of) ordinary &= functions::has_exp(lanes);
    if (!ordinary) return each([](Lanes lanes) { return functions::exp_of<false>(lanes); }, x);
    return each([](Lanes lanes) { return functions::exp_of<true>(lanes); }, x);
}

inline Pack<Lanes> log(const Pack<Lanes>& x) {
    bool ordinary = true;
    for (const Lanes& lanes : x.of) ordinary &= functions::has_log(lanes);
    if (!ordinary) return each([](Lanes lanes) { return functions::log_of<false>(lanes); }, x);
    return each([](Lanes lanes) { return functions::log_of<true>(lanes); }, x);
}

inline Pack<Lanes> pow(const Pack<Lanes>& x, const Pack<Lanes>& y) {
    Pack<Lanes> found = functions::quick_pow(x, y);
    uint32_t left = 0;
    for (const Lanes& lanes : found.of) left |= bits_of(not_equal(lanes, lanes));
    if (left != 0) functions::settle(found, x, y);
    return found;
}

namespace functions {

// ---- strips, which have room for whole packs

inline void exp_strip(const float* x, float* to, size_t n) {
    for (size_t i = 0; i < n; i += kPack * Lanes::width) exp(Pack<Lanes>::read(x + i)).write(to + i);
}
inline void log_strip(const float* x, float* to, size_t n) {
    for (size_t i = 0; i < n; i += kPack * Lanes::width) log(Pack<Lanes>::read(x + i)).write(to + i);
}
inline void pow_strip(const float* x, const float* y, float* to, size_t n) {
    for (size_t i = 0; i < n; i += kPack * Lanes::width)
        pow(Pack<Lanes>::read(x + i), Pack<Lanes>::read(y + i)).write(to + i);
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
