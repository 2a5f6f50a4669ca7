// sqrt, sin, cos, acos, exp, log and pow of one float64: the functions that merge methods apply to reduced scalars
// and to parameters.
//
// Numeric rule: the exact result, rounded once to the nearest float64 (ties to even, subnormals too). The value
// before that rounding has a relative error below 2^-145, so a result can differ from the correctly rounded one only
// where the exact value lies that close to the middle between two float64. The hardest cases of exp and log come no
// closer than about 2^-118 (Lefèvre & Muller, "Worst cases for correct rounding of the elementary functions in double
// precision", 2001). Only pow hits exact middles: a result within 2^-135 of one is taken to be one, which Lauter &
// Lefèvre ("An efficient rounding boundary test for pow(x, y) in double precision", 2009) make safe. Special values
// follow Annex F of C99; a NaN result is the canonical one.
//
// Method: 256-bit fixed point in integers, 32 bits before the point and 224 after. Integers give the same bits with
// every compiler, contraction or rounding mode, where double-double arithmetic (Dekker 1971) depends on all three and
// ends at 2^-104. sqrt is the one of IEEE 754.
//   sin, cos  x·2/π modulo 4 with as many digits of 2/π as x needs (Payne & Hanek, "Radian reduction for
//             trigonometric functions", 1983), then the Taylor series on |r| ≤ π/4. No float64 lies closer to a
//             multiple of π/2 than about 2^-61, so the remainder keeps 160 bits.
//   exp       x = k·ln 2 + r, Taylor series of r/256, eight squarings.
//   log       x = 2^k·m with m near 1, log m = 2·atanh((m − 1)/(m + 1)) by its series.
//   acos      by the series of asin on [0, ½] and acos x = 2·asin √((1 − x)/2).
//   pow       exp(y·log x).
//
// A call takes 1 to 7 µs (one x86-64 core). The reference, by mpmath, is python/sdsurgery/definitions/scalars.py;
// tests/numerics/test_scalars.py compares.
#pragma once

#include <cmath>
#include <cstdint>

#include "dtypes.h"

namespace sds {
namespace scalars {

namespace detail {

constexpr int kWords = 8;
constexpr int kFraction = 224;

struct Fixed {  // Σ word[i]·2^(32·i − 224), never negative: signs are kept beside it
    uint32_t word[kWords];
};

struct Signed {
    bool negative;
    Fixed magnitude;
};

struct Parts {  // of a finite float64 that is not 0: ±mantissa·2^exponent with 2^52 ≤ mantissa < 2^53
    bool negative;
    uint64_t mantissa;
    int exponent;
};

// The constants: floor(value·2^224), and 2/π to 1344 places, were printed by mpmath 1.3 at 2000 bits, e.g.
// int(floor(log(2)*mpf(2)**224)), and cut into words.
SDS_HD inline Fixed ln2() {
    return {{0x8a0d175bu, 0x7298b62du, 0x40f34326u, 0x03f2f6afu, 0xc9e3b398u, 0xd1cf79abu, 0xb17217f7u, 0x00000000u}};
}

SDS_HD inline Fixed pi() {
    return {{0x082efa98u, 0x299f31d0u, 0xa4093822u, 0x03707344u, 0x13198a2eu, 0x85a308d3u, 0x243f6a88u, 0x00000003u}};
}

SDS_HD inline uint32_t two_over_pi(int index) {  // the 32 bits after the first 32·index ones
    constexpr uint32_t words[] = {
        0xa2f9836eu, 0x4e441529u, 0xfc2757d1u, 0xf534ddc0u, 0xdb629599u, 0x3c439041u, 0xfe5163abu,
        0xdebbc561u, 0xb7246e3au, 0x424dd2e0u, 0x06492eeau, 0x09d1921cu, 0xfe1deb1cu, 0xb129a73eu,
        0xe88235f5u, 0x2ebb4484u, 0xe99c7026u, 0xb45f7e41u, 0x3991d639u, 0x835339f4u, 0x9c845f8bu,
        0xbdf9283bu, 0x1ff897ffu, 0xde05980fu, 0xef2f118bu, 0x5a0a6d1fu, 0x6d367ecfu, 0x27cb09b7u,
        0x4f463f66u, 0x9e5fea2du, 0x7527bac7u, 0xebe5f17bu, 0x3d0739f7u, 0x8a5292eau, 0x6bfb5fb1u,
        0x1f8d5d08u, 0x56033046u, 0xfc7b6babu, 0xf0cfbc20u, 0x9af4361du, 0xa9e39161u, 0x5ee61b08u,
    };
    return words[index];
}

// ---- 256-bit arithmetic

SDS_HD inline uint32_t bits_from(const uint32_t* words, int count, int bit) {  // 32 bits; 0 outside of the words
    const int index = (bit + 8192) / 32 - 256;
    const int shift = (bit + 8192) % 32;
    const uint64_t low = index >= 0 && index < count ? words[index] : 0;
    const uint64_t high = index >= -1 && index < count - 1 ? words[index + 1] : 0;
    return static_cast<uint32_t>((high << 32 | low) >> shift);
}

SDS_HD inline Fixed extract(const uint32_t* words, int count, int bit) {  // 256 bits from `bit`, which may be negative
    Fixed out;
    for (int i = 0; i < kWords; ++i) out.word[i] = bits_from(words, count, bit + 32 * i);
    return out;
}

SDS_HD inline Fixed shifted_right(const Fixed& a, int places) { return extract(a.word, kWords, places); }

SDS_HD inline Fixed whole(uint32_t value) { return {{0, 0, 0, 0, 0, 0, 0, value}}; }

SDS_HD inline Fixed from_mantissa(uint64_t mantissa, int exponent) {  // cut below 2^-224
    const uint32_t words[2] = {static_cast<uint32_t>(mantissa), static_cast<uint32_t>(mantissa >> 32)};
    return extract(words, 2, -(exponent + kFraction));
}

SDS_HD inline bool is_zero(const Fixed& a) {
    uint32_t any = 0;
    for (int i = 0; i < kWords; ++i) any |= a.word[i];
    return any == 0;
}

SDS_HD inline int top_bit(const Fixed& a) {  // −1: all are zero
    int i = kWords - 1;
    while (i >= 0 && a.word[i] == 0) --i;
    if (i < 0) return -1;
    int bit = 31;
    while (!(a.word[i] >> bit & 1)) --bit;
    return 32 * i + bit;
}

SDS_HD inline bool less(const Fixed& a, const Fixed& b) {
    for (int i = kWords - 1; i >= 0; --i) {
        if (a.word[i] != b.word[i]) return a.word[i] < b.word[i];
    }
    return false;
}

SDS_HD inline Fixed add(const Fixed& a, const Fixed& b) {
    Fixed out;
    uint64_t carry = 0;
    for (int i = 0; i < kWords; ++i) {
        carry += static_cast<uint64_t>(a.word[i]) + b.word[i];
        out.word[i] = static_cast<uint32_t>(carry);
        carry >>= 32;
    }
    return out;
}

SDS_HD inline Fixed subtract(const Fixed& a, const Fixed& b) {  // a ≥ b
    Fixed out;
    uint64_t borrow = 0;
    for (int i = 0; i < kWords; ++i) {
        const uint64_t difference = static_cast<uint64_t>(a.word[i]) - b.word[i] - borrow;
        out.word[i] = static_cast<uint32_t>(difference);
        borrow = difference >> 63;
    }
    return out;
}

SDS_HD inline Fixed times(const Fixed& a, uint32_t factor) {
    Fixed out;
    uint64_t carry = 0;
    for (int i = 0; i < kWords; ++i) {
        carry += static_cast<uint64_t>(a.word[i]) * factor;
        out.word[i] = static_cast<uint32_t>(carry);
        carry >>= 32;
    }
    return out;
}

SDS_HD inline Fixed over(const Fixed& a, uint32_t divisor) {
    Fixed out;
    uint64_t remainder = 0;
    for (int i = kWords - 1; i >= 0; --i) {
        remainder = remainder << 32 | a.word[i];
        out.word[i] = static_cast<uint32_t>(remainder / divisor);
        remainder %= divisor;
    }
    return out;
}

SDS_HD inline void multiply_words(const uint32_t* a, int a_count, const uint32_t* b, int b_count, uint32_t* out) {
    for (int i = 0; i < a_count + b_count; ++i) out[i] = 0;
    for (int i = 0; i < a_count; ++i) {
        if (a[i] == 0) continue;
        uint64_t carry = 0;
        for (int j = 0; j < b_count; ++j) {
            carry += static_cast<uint64_t>(a[i]) * b[j] + out[i + j];
            out[i + j] = static_cast<uint32_t>(carry);
            carry >>= 32;
        }
        out[i + b_count] = static_cast<uint32_t>(carry);
    }
}

SDS_HD inline Fixed multiply(const Fixed& a, const Fixed& b) {
    uint32_t product[2 * kWords];
    multiply_words(a.word, kWords, b.word, kWords, product);
    return extract(product, 2 * kWords, kFraction);
}

SDS_HD inline Fixed quotient(uint64_t a, uint64_t b) {  // a/b for a < b < 2^55
    Fixed out = whole(0);
    for (int i = kWords - 2; i >= 0; --i) {
        for (int byte = 0; byte < 4; ++byte) {
            a <<= 8;
            out.word[i] = out.word[i] << 8 | static_cast<uint32_t>(a / b);
            a %= b;
        }
    }
    return out;
}

SDS_HD inline Fixed square_root(const Fixed& a) {  // of 0 < a < 1
    // Newton's iteration for 1/√w, from the quotient in float64, with w = a·4^places in [¼, 1).
    const int places = (kFraction - 1 - top_bit(a)) / 2;
    const Fixed w = shifted_right(a, -2 * places);
    const uint64_t leading = static_cast<uint64_t>(w.word[6]) << 32 | w.word[5];
    const double start = 1.0 / std::sqrt(static_cast<double>(leading >> 11) * 0x1p-53);
    Fixed y = from_mantissa(static_cast<uint64_t>(start * 0x1p50), -50);
    const Fixed three = whole(3);
    for (int i = 0; i < 3; ++i) {  // 50 bits, 98, 194, all
        y = shifted_right(multiply(y, subtract(three, multiply(w, multiply(y, y)))), 1);
    }
    return shifted_right(multiply(w, y), places);
}

// ---- between float64 and the above

constexpr uint64_t kCanonicalNan = 0x7ff8000000000000u;
constexpr uint64_t kInfinity = 0x7ff0000000000000u;
constexpr uint64_t kSign = 0x8000000000000000u;

SDS_HD inline double canonical_nan() { return bits_as<double>(kCanonicalNan); }
SDS_HD inline double infinity(bool negative) { return bits_as<double>(kInfinity | (negative ? kSign : 0)); }
SDS_HD inline double zero(bool negative) { return bits_as<double>(negative ? kSign : uint64_t{0}); }
SDS_HD inline bool is_nan(double x) { return (bits_as<uint64_t>(x) & ~kSign) > kInfinity; }
SDS_HD inline bool is_infinite(double x) { return (bits_as<uint64_t>(x) & ~kSign) == kInfinity; }
SDS_HD inline double magnitude(double x) { return bits_as<double>(bits_as<uint64_t>(x) & ~kSign); }

SDS_HD inline Parts split(double x) {
    const uint64_t bits = bits_as<uint64_t>(x);
    const int biased = static_cast<int>(bits >> 52 & 0x7ff);
    Parts parts{(bits & kSign) != 0, bits & 0xfffffffffffffu, biased - 1075};
    if (biased != 0) {
        parts.mantissa |= uint64_t{1} << 52;
        return parts;
    }
    parts.exponent = -1074;
    while (!(parts.mantissa >> 52)) {
        parts.mantissa <<= 1;
        --parts.exponent;
    }
    return parts;
}

// ±a·2^scale, rounded once. With `middles`, what lies within 2^-135 of a middle (or of a float64) is taken to be it.
SDS_HD inline double round_to_float64(bool negative, const Fixed& a, int scale, bool middles = false) {
    const int top = top_bit(a);
    if (top < 0) return zero(negative);
    const int exponent = top - kFraction + scale;
    if (exponent > 1023) return infinity(negative);
    const int precision = exponent >= -1022 ? 53 : 53 - (-1022 - exponent);
    if (precision < 0) return zero(negative);  // below half the least subnormal
    const int half = top - precision;          // the bit that is worth half a last place
    if (middles) {
        Fixed nudge = whole(0);
        nudge.word[(top - 136) / 32] = uint32_t{1} << ((top - 136) % 32);
        Fixed near = add(a, nudge);
        bool snaps = true;
        for (int bit = top - 135; bit < half && snaps; ++bit) snaps = !(near.word[bit / 32] >> (bit % 32) & 1);
        if (snaps) {
            near = shifted_right(shifted_right(near, half), -half);
            return round_to_float64(negative, near, scale);
        }
    }
    uint64_t mantissa = bits_from(a.word, kWords, half + 1);
    mantissa |= static_cast<uint64_t>(bits_from(a.word, kWords, half + 33)) << 32;
    if (bits_from(a.word, kWords, half) & 1) {
        const bool above = !is_zero(shifted_right(a, half - 256));
        mantissa += above || (mantissa & 1);
    }
    if (exponent >= -1022) mantissa += static_cast<uint64_t>(exponent + 1022) << 52;  // a carry steps the exponent
    return bits_as<double>(mantissa | (negative ? kSign : 0));
}

// ---- the functions on fixed point

SDS_HD inline double exp_of(const Signed& z, bool result_negative, bool middles) {
    if (z.magnitude.word[kWords - 1] >= 1000) {
        return z.negative ? zero(result_negative) : infinity(result_negative);
    }
    // z = ±k·ln 2 + r with 0 ≤ r < ln 2. The first guess at k may be one off.
    const uint64_t leading = static_cast<uint64_t>(z.magnitude.word[7]) << 32 | z.magnitude.word[6];
    uint32_t k = static_cast<uint32_t>(static_cast<double>(leading >> 16) * 0x1p-16 * 1.4426950408889634);
    Fixed r;
    if (!z.negative) {
        if (less(z.magnitude, times(ln2(), k))) --k;
        r = subtract(z.magnitude, times(ln2(), k));
        if (!less(r, ln2())) {
            ++k;
            r = subtract(r, ln2());
        }
    } else {
        while (less(times(ln2(), k), z.magnitude)) ++k;
        r = subtract(times(ln2(), k), z.magnitude);
        if (!less(r, ln2())) {
            --k;
            r = subtract(r, ln2());
        }
    }
    r = shifted_right(r, 8);
    Fixed sum = add(whole(1), r);
    Fixed term = r;
    for (uint32_t n = 2; !is_zero(term); ++n) {
        term = over(multiply(term, r), n);
        sum = add(sum, term);
    }
    for (int i = 0; i < 8; ++i) sum = multiply(sum, sum);
    const int scale = static_cast<int>(k);
    return round_to_float64(result_negative, sum, z.negative ? -scale : scale, middles);
}

SDS_HD inline Signed log_of(const Parts& x) {          // of the magnitude of x
    const bool high = x.mantissa > 0x16a09e667f3bcdu;  // √2·2^52: m lies in (√½, √2]
    const uint64_t one = uint64_t{1} << (high ? 53 : 52);
    const int k = x.exponent + (high ? 53 : 52);
    const bool below = x.mantissa < one;
    const Fixed s = quotient(below ? one - x.mantissa : x.mantissa - one, x.mantissa + one);
    const Fixed square = multiply(s, s);
    Fixed sum = s;
    Fixed power = s;
    for (uint32_t n = 3; !is_zero(power); n += 2) {
        power = multiply(power, square);
        sum = add(sum, over(power, n));
    }
    sum = add(sum, sum);
    if (k == 0) return {below, sum};
    const Fixed whole_part = times(ln2(), static_cast<uint32_t>(k < 0 ? -k : k));
    const bool negative = k < 0;
    return {negative, negative == below ? add(whole_part, sum) : subtract(whole_part, sum)};
}

struct Quarter {  // an angle: `turns` quarter turns, and r radians more (or less: `back`), r ≤ π/4
    int turns;
    bool back;
    Fixed r;
};

SDS_HD inline Quarter reduce(const Parts& x) {  // |x| ≥ 2^-27
    constexpr int count = 12;
    // Places of 2/π that make multiples of 4 quarter turns are left out, in whole words.
    const int skipped = x.exponent > 2 ? (x.exponent - 2) / 32 : 0;
    uint32_t window[count];
    for (int i = 0; i < count; ++i) window[i] = two_over_pi(skipped + count - 1 - i);
    const uint32_t mantissa[2] = {static_cast<uint32_t>(x.mantissa), static_cast<uint32_t>(x.mantissa >> 32)};
    uint32_t product[count + 2];
    multiply_words(mantissa, 2, window, count, product);
    const int places = 32 * (count + skipped) - x.exponent;  // after the point of the product
    Fixed fraction = extract(product, count + 2, places - kFraction);
    int turns = static_cast<int>(fraction.word[kWords - 1] & 3);
    fraction.word[kWords - 1] = 0;
    const bool back = fraction.word[kWords - 2] >> 31;
    if (back) {
        fraction = subtract(whole(1), fraction);
        turns = (turns + 1) & 3;
    }
    return {turns, back, multiply(fraction, shifted_right(pi(), 1))};
}

SDS_HD inline Fixed sine(const Fixed& r) {
    const Fixed square = multiply(r, r);
    Fixed term = r, sum = r;
    for (uint32_t n = 2; !is_zero(term); n += 2) {
        term = over(multiply(term, square), n * (n + 1));
        sum = n & 2 ? subtract(sum, term) : add(sum, term);
    }
    return sum;
}

SDS_HD inline Fixed cosine(const Fixed& r) {
    const Fixed square = multiply(r, r);
    Fixed term = whole(1), sum = whole(1);
    for (uint32_t n = 1; !is_zero(term); n += 2) {
        term = over(multiply(term, square), n * (n + 1));
        sum = n & 2 ? add(sum, term) : subtract(sum, term);
    }
    return sum;
}

SDS_HD inline double wave(const Parts& x, int turns_ahead) {  // sin(x + turns_ahead quarter turns), the sign of x left
    const Quarter angle = reduce(x);
    const int turns = (angle.turns + turns_ahead) & 3;
    const bool flipped = (turns & 2) != 0;
    if (turns & 1) return round_to_float64(flipped, cosine(angle.r), 0);
    return round_to_float64(flipped != angle.back, sine(angle.r), 0);
}

SDS_HD inline Fixed arcsine(const Fixed& s, const Fixed& square) {  // s ≤ ½
    Fixed term = s, sum = s;
    for (uint32_t n = 1; !is_zero(term); ++n) {
        term = over(times(multiply(term, square), 2 * n - 1), 2 * n);
        sum = add(sum, over(term, 2 * n + 1));
    }
    return sum;
}

SDS_HD inline bool is_odd_integer(double y) {
    if (magnitude(y) < 1 || magnitude(y) >= 0x1p53) return false;
    const Parts parts = split(y);  // the exponent lies in −52 … 0
    const int places = -parts.exponent;
    return (parts.mantissa & ((uint64_t{1} << places) - 1)) == 0 && (parts.mantissa >> places & 1);
}

SDS_HD inline bool is_integer(double y) {
    if (magnitude(y) >= 0x1p53) return true;
    if (magnitude(y) < 1) return y == 0;
    const Parts parts = split(y);
    return (parts.mantissa & ((uint64_t{1} << -parts.exponent) - 1)) == 0;
}

}  // namespace detail

// ---- the functions

SDS_HD inline double sqrt(double x) {
    return x < 0 || detail::is_nan(x) ? detail::canonical_nan() : std::sqrt(x);  // √−0 = −0
}

SDS_HD inline double sin(double x) {
    if (detail::is_nan(x) || detail::is_infinite(x)) return detail::canonical_nan();
    if (detail::magnitude(x) < 0x1p-27) return x;  // −0 too; x³/6 is less than a quarter of x's last place
    const detail::Parts parts = detail::split(x);
    const double result = detail::wave(parts, 0);
    return parts.negative ? -result : result;
}

SDS_HD inline double cos(double x) {
    if (detail::is_nan(x) || detail::is_infinite(x)) return detail::canonical_nan();
    if (detail::magnitude(x) < 0x1p-27) return 1;
    return detail::wave(detail::split(x), 1);
}

SDS_HD inline double acos(double x) {
    using namespace detail;
    if (!(magnitude(x) <= 1)) return canonical_nan();
    if (x == 1) return 0;
    const Fixed half_pi = shifted_right(pi(), 1);
    if (x == 0) return round_to_float64(false, half_pi, 0);
    const Parts parts = split(x);
    const Fixed distance = from_mantissa(parts.mantissa, parts.exponent);
    if (magnitude(x) < 0.5) {
        const Fixed inner = arcsine(distance, multiply(distance, distance));
        return round_to_float64(false, parts.negative ? add(half_pi, inner) : subtract(half_pi, inner), 0);
    }
    if (x == -1) return round_to_float64(false, pi(), 0);
    const Fixed square = shifted_right(subtract(whole(1), distance), 1);
    Fixed angle = arcsine(square_root(square), square);
    angle = add(angle, angle);
    return round_to_float64(false, parts.negative ? subtract(pi(), angle) : angle, 0);
}

SDS_HD inline double exp(double x) {
    using namespace detail;
    if (is_nan(x)) return canonical_nan();
    if (x == 0) return 1;
    if (magnitude(x) >= 1000) return x < 0 ? 0 : infinity(false);
    const Parts parts = split(x);
    return exp_of({parts.negative, from_mantissa(parts.mantissa, parts.exponent)}, false, false);
}

SDS_HD inline double log(double x) {
    using namespace detail;
    if (is_nan(x) || x < 0) return canonical_nan();
    if (x == 0) return infinity(true);
    if (is_infinite(x)) return x;
    if (x == 1) return 0;
    const Signed result = log_of(split(x));
    return round_to_float64(result.negative, result.magnitude, 0);
}

SDS_HD inline double pow(double x, double y) {
    using namespace detail;
    if (y == 0 || x == 1) return 1;  // whatever the other is, NaN too
    if (is_nan(x) || is_nan(y)) return canonical_nan();
    if (is_infinite(y)) {
        if (magnitude(x) == 1) return 1;
        return (magnitude(x) > 1) == (y > 0) ? infinity(false) : 0;
    }
    const bool negative = (bits_as<uint64_t>(x) & kSign) != 0 && is_odd_integer(y);
    if (x == 0) return y < 0 ? infinity(negative) : zero(negative);
    if (is_infinite(x)) return y > 0 ? infinity(negative) : zero(negative);
    if (x < 0 && !is_integer(y)) return canonical_nan();
    if (x == -1) return negative ? -1 : 1;

    const Signed logarithm = log_of(split(x));
    const Parts factor = split(y);
    Signed z{logarithm.negative != factor.negative, {}};
    const int top = top_bit(logarithm.magnitude) - kFraction + factor.exponent + 52;
    if (top > 10) return z.negative ? zero(negative) : infinity(negative);
    const uint32_t mantissa[2] = {static_cast<uint32_t>(factor.mantissa), static_cast<uint32_t>(factor.mantissa >> 32)};
    uint32_t product[kWords + 2];
    multiply_words(mantissa, 2, logarithm.magnitude.word, kWords, product);
    z.magnitude = extract(product, kWords + 2, -factor.exponent);
    return exp_of(z, negative, true);
}

}  // namespace scalars
}  // namespace sds
