// Four floats at a time: NEON (AArch64). Included inside a namespace by target_neon.cc.

struct Lanes {
    static constexpr int width = 4;
    float32x4_t v;
    static Lanes all(float x) { return {vdupq_n_f32(x)}; }
    static Lanes read(const float* p) { return {vld1q_f32(p)}; }
    void write(float* p) const { vst1q_f32(p, v); }
};
inline Lanes operator+(Lanes a, Lanes b) { return {vaddq_f32(a.v, b.v)}; }
inline Lanes operator-(Lanes a, Lanes b) { return {vsubq_f32(a.v, b.v)}; }
inline Lanes operator*(Lanes a, Lanes b) { return {vmulq_f32(a.v, b.v)}; }
inline Lanes operator/(Lanes a, Lanes b) { return {vdivq_f32(a.v, b.v)}; }
// As those of program.h.
inline Lanes where(Lanes a, Lanes yes, Lanes no) { return {vbslq_f32(vceqzq_f32(a.v), no.v, yes.v)}; }
inline Lanes minimum(Lanes a, Lanes b) {
    return {vbslq_f32(vorrq_u32(vcltq_f32(a.v, b.v), vmvnq_u32(vceqq_f32(a.v, a.v))), a.v, b.v)};
}
inline Lanes maximum(Lanes a, Lanes b) {
    return {vbslq_f32(vorrq_u32(vcgtq_f32(a.v, b.v), vmvnq_u32(vceqq_f32(a.v, a.v))), a.v, b.v)};
}
inline Lanes absolute(Lanes a) { return {vabsq_f32(a.v)}; }
inline Lanes negated(Lanes a) { return {vnegq_f32(a.v)}; }
inline Lanes copysign(Lanes a, Lanes b) { return {vbslq_f32(vdupq_n_u32(0x80000000), b.v, a.v)}; }
inline Lanes floor(Lanes a) { return {vrndmq_f32(a.v)}; }
inline Lanes square_root(Lanes a) { return {vsqrtq_f32(a.v)}; }
inline Lanes square_less(Lanes a, Lanes b) { return {vnegq_f32(vfmsq_f32(b.v, a.v, a.v))}; }  // a² − b, rounded once
// sum + a·b of a product that a float32 can hold: fused or not, the same bits.
inline Lanes plus_product(Lanes sum, Lanes a, Lanes b) { return {vfmaq_f32(sum.v, a.v, b.v)}; }
inline Lanes binade(Lanes a) {  // 2^⌊log2 a⌋
    return {vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(a.v), vdupq_n_u32(0x7f800000)))};
}

// What a comparison gives: 1 or 0 where a number is asked for.
struct Mask {
    uint32x4_t m;  // all bits of a lane, or none
    operator Lanes() const { return {vreinterpretq_f32_u32(vandq_u32(m, vreinterpretq_u32_f32(vdupq_n_f32(1))))}; }
};
inline Mask equal(Lanes a, Lanes b) { return {vceqq_f32(a.v, b.v)}; }
inline Mask not_equal(Lanes a, Lanes b) { return {vmvnq_u32(vceqq_f32(a.v, b.v))}; }
inline Mask less(Lanes a, Lanes b) { return {vcltq_f32(a.v, b.v)}; }
inline Mask greater(Lanes a, Lanes b) { return {vcgtq_f32(a.v, b.v)}; }
inline Mask at_least(Lanes a, Lanes b) { return {vcgeq_f32(a.v, b.v)}; }
inline Mask operator*(Mask a, Mask b) { return {vandq_u32(a.m, b.m)}; }
inline Lanes where(Mask a, Lanes yes, Lanes no) { return {vbslq_f32(a.m, yes.v, no.v)}; }
inline uint32_t bits_of(Mask a) {
    constexpr uint32_t bits[] = {1, 2, 4, 8};
    return vaddvq_u32(vandq_u32(a.m, vld1q_u32(bits)));
}

// key_of (select.h) of magnitudes.
inline void write_keys(Lanes x, uint32_t* to) {
    const uint32x4_t bits = vreinterpretq_u32_f32(x.v), is_nan = vcgtq_u32(bits, vdupq_n_u32(0x7f800000));
    vst1q_u32(to, vorrq_u32(vorrq_u32(bits, vdupq_n_u32(0x80000000)), is_nan));
}
// Which of the keys have these upper bits: a bit each.
inline uint32_t having_upper(const uint32_t* keys, int above, uint32_t upper) {
    constexpr uint32_t bits[] = {1, 2, 4, 8};
    const uint32x4_t shifted = vshlq_u32(vld1q_u32(keys), vdupq_n_s32(-above));
    return vaddvq_u32(vandq_u32(vceqq_u32(shifted, vdupq_n_u32(upper)), vld1q_u32(bits)));
}

struct Peak {
    uint32x4_t v;
    static Peak none() { return {vdupq_n_u32(0)}; }
    void see(Lanes x) { v = vmaxq_u32(v, vandq_u32(vreinterpretq_u32_f32(x.v), vdupq_n_u32(0x7fffffff))); }
    uint32_t value() const { return vmaxvq_u32(v); }
};

// Data may start at any byte: loads and stores go through bytes, which NEON takes at any address.
inline uint32x4_t four_bytes(const uint8_t* p) {
    uint32_t word;
    memcpy(&word, p, sizeof word);
    return vmovl_u16(vget_low_u16(vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(word)))));
}

template <class Stored>
Lanes load(const uint8_t* p);
template <>
inline Lanes load<F32>(const uint8_t* p) {
    return {vreinterpretq_f32_u8(vld1q_u8(p))};
}
template <>
inline Lanes load<F16>(const uint8_t* p) {
    return {vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p)))};
}
template <>
inline Lanes load<BF16>(const uint8_t* p) {
    return {vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(vld1_u8(p)), 16))};
}
template <>
inline Lanes load<E5M2>(const uint8_t* p) {
    const uint16x4_t half = vshl_n_u16(vmovn_u32(four_bytes(p)), 8);
    return {vcvt_f32_f16(vreinterpret_f16_u16(half))};
}
template <>
inline Lanes load<E4M3>(const uint8_t* p) {
    const uint32x4_t code = four_bytes(p);
    const uint32x4_t magnitude = vandq_u32(code, vdupq_n_u32(0x7f));
    const uint32x4_t sign = vshlq_n_u32(veorq_u32(code, magnitude), 24);
    const float32x4_t scaled = vmulq_f32(vreinterpretq_f32_u32(vshlq_n_u32(magnitude, 20)), vdupq_n_f32(0x1p120f));
    const uint32x4_t is_nan = vceqq_u32(magnitude, vdupq_n_u32(0x7f));
    const uint32x4_t bits = vbslq_u32(is_nan, vdupq_n_u32(0x7fc00000), vreinterpretq_u32_f32(scaled));
    return {vreinterpretq_f32_u32(vorrq_u32(bits, sign))};
}

template <int Exp, int Man>
inline uint32x4_t encode_lanes(uint32x4_t magnitude) {
    constexpr int bias = (1 << (Exp - 1)) - 1;
    constexpr int shift = 23 - Man;
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(magnitude, shift), vdupq_n_u32(1));
    const uint32x4_t rounded = vaddq_u32(vaddq_u32(magnitude, vdupq_n_u32((1u << (shift - 1)) - 1)), odd);
    const uint32x4_t normal = vsubq_u32(vshrq_n_u32(rounded, shift), vdupq_n_u32((127 - bias) << Man));
    const uint32x4_t anchor = vdupq_n_u32((127 + 23 + 1 - bias - Man) << 23);
    const float32x4_t sum = vaddq_f32(vreinterpretq_f32_u32(magnitude), vreinterpretq_f32_u32(anchor));
    const uint32x4_t small = vsubq_u32(vreinterpretq_u32_f32(sum), anchor);
    const uint32x4_t is_small = vcltq_u32(magnitude, vdupq_n_u32((127 - bias + 1) << 23));
    return vbslq_u32(is_small, small, normal);
}

template <class Stored>
void store(uint8_t* p, Lanes x);
template <>
inline void store<F32>(uint8_t* p, Lanes x) {
    vst1q_u8(p, vreinterpretq_u8_f32(x.v));
}
template <>
inline void store<F16>(uint8_t* p, Lanes x) {
    vst1_u8(p, vreinterpret_u8_f16(vcvt_f16_f32(x.v)));
}
template <>
inline void store<BF16>(uint8_t* p, Lanes x) {
    const uint32x4_t bits = vreinterpretq_u32_f32(x.v);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t rounded = vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), odd);
    vst1_u8(p, vreinterpret_u8_u16(vshrn_n_u32(rounded, 16)));
}
template <int Exp, int Man>
inline void store_byte(uint8_t* p, Lanes x) {
    const uint32x4_t bits = vreinterpretq_u32_f32(x.v);
    const uint32x4_t sign = vandq_u32(vshrq_n_u32(bits, 24), vdupq_n_u32(0x80));
    const uint32x4_t code = vorrq_u32(encode_lanes<Exp, Man>(vandq_u32(bits, vdupq_n_u32(0x7fffffff))), sign);
    const uint16x4_t half = vmovn_u32(code);
    const uint32_t word = vget_lane_u32(vreinterpret_u32_u8(vmovn_u16(vcombine_u16(half, half))), 0);
    memcpy(p, &word, sizeof word);
}
template <>
inline void store<E4M3>(uint8_t* p, Lanes x) {
    store_byte<4, 3>(p, x);
}
template <>
inline void store<E5M2>(uint8_t* p, Lanes x) {
    store_byte<5, 2>(p, x);
}

// Two float64: a quarter of a reduction's lanes. load_doubles takes kDoublesLoaded elements at a time.
struct Doubles {
    static constexpr size_t width = 2;
    float64x2_t v;
    static Doubles zero() { return {vdupq_n_f64(0)}; }
    static Doubles all(double x) { return {vdupq_n_f64(x)}; }
    void write(double* p) const { vst1q_f64(p, v); }
};
inline Doubles operator+(Doubles a, Doubles b) { return {vaddq_f64(a.v, b.v)}; }
inline Doubles operator-(Doubles a, Doubles b) { return {vsubq_f64(a.v, b.v)}; }
inline Doubles operator*(Doubles a, Doubles b) { return {vmulq_f64(a.v, b.v)}; }
inline Doubles widened(const double* p) { return {vld1q_f64(p)}; }
inline Doubles fused(Doubles sum, Doubles a, Doubles b) { return {vfmaq_f64(sum.v, a.v, b.v)}; }
inline Doubles larger(Doubles top, Doubles x) {  // max(top, |x|) of finite values
    return {vmaxq_f64(top.v, vabsq_f64(x.v))};
}

inline void widen_lanes(Lanes x, Doubles* to) {
    to[0] = {vcvt_f64_f32(vget_low_f32(x.v))};
    to[1] = {vcvt_high_f64_f32(x.v)};
}
inline Lanes narrowed(const Doubles* x) { return {vcvt_high_f32_f64(vcvt_f32_f64(x[0].v), x[1].v)}; }

// x = 2^k·m with m in [√½, √2), of ordinary positive numbers.
inline Lanes split(Lanes x, Lanes& m) {
    const uint32x4_t root = vdupq_n_u32(0x3f3504f3), above = vsubq_u32(vreinterpretq_u32_f32(x.v), root);
    m = {vreinterpretq_f32_u32(vaddq_u32(vandq_u32(above, vdupq_n_u32(0x7fffff)), root))};
    return {vcvtq_f32_s32(vshrq_n_s32(vreinterpretq_s32_u32(above), 23))};
}
// 2^k, k in the low bits of `shifted`.
inline Lanes power_of_two(Lanes shifted) {
    return {vreinterpretq_f32_u32(vshlq_n_u32(vaddq_u32(vreinterpretq_u32_f32(shifted.v), vdupq_n_u32(127)), 23))};
}
// x·2^k, k in the low bits of `shifted`.
inline Doubles scaled(Doubles x, Doubles shifted) {
    const uint64x2_t k = vshlq_n_u64(vreinterpretq_u64_f64(shifted.v), 52);
    return {vreinterpretq_f64_u64(vaddq_u64(vreinterpretq_u64_f64(x.v), k))};
}

template <class Stored>
constexpr size_t kDoublesLoaded = 4;
template <>
constexpr size_t kDoublesLoaded<F64> = 2;

template <class Stored>
inline void load_doubles(const uint8_t* p, Doubles* x) {
    widen_lanes(load<Stored>(p), x);
}
template <>
inline void load_doubles<F64>(const uint8_t* p, Doubles* x) {
    x[0] = {vreinterpretq_f64_u8(vld1q_u8(p))};
}

// Two lanes of 64 bits, whose lower halves are the words that Philox multiplies (generated.inl.h).
struct Words {
    static constexpr size_t width = 2;
    uint64x2_t v;
    static Words all(uint64_t x) { return {vdupq_n_u64(x)}; }
    static Words read(const uint64_t* p) { return {vld1q_u64(p)}; }
};
inline Words operator+(Words a, Words b) { return {vaddq_u64(a.v, b.v)}; }
inline Words operator*(Words a, Words b) { return {vmull_u32(vmovn_u64(a.v), vmovn_u64(b.v))}; }  // of the lower halves
inline Words exclusive_or(Words a, Words b, Words c) { return {veorq_u64(veorq_u64(a.v, b.v), c.v)}; }
inline Words upper(Words a) { return {vshrq_n_u64(a.v, 32)}; }
// Four words of each lane, one lane after the other in the order that generated.inl.h gives them.
inline void write_blocks(const Words (&w)[4], uint32_t* to) {
    const uint32x4_t first = vreinterpretq_u32_u64(vsliq_n_u64(w[0].v, w[1].v, 32));
    const uint32x4_t second = vreinterpretq_u32_u64(vsliq_n_u64(w[2].v, w[3].v, 32));
    vst1q_u32(to, vcombine_u32(vget_low_u32(first), vget_low_u32(second)));
    vst1q_u32(to + 4, vcombine_u32(vget_high_u32(first), vget_high_u32(second)));
}

// Elements of random numbers (normal.inl.h, generated.inl.h).
inline Lanes of_bytes(const uint8_t* p) { return {vcvtq_f32_u32(four_bytes(p))}; }
inline Lanes of_24_bits(const uint8_t* bytes, const uint8_t* halves) {  // byte·2^16 + half
    const uint32x4_t lower = vmovl_u16(vreinterpret_u16_u8(vld1_u8(halves)));
    return {vcvtq_f32_u32(vorrq_u32(vshlq_n_u32(four_bytes(bytes), 16), lower))};
}
inline Lanes mantissa(Lanes x) {  // in [1, 2)
    const uint32x4_t bits = vandq_u32(vreinterpretq_u32_f32(x.v), vdupq_n_u32(0x7fffff));
    return {vreinterpretq_f32_u32(vorrq_u32(bits, vdupq_n_u32(0x3f800000)))};
}
struct Octave {
    uint8x16_t v;  // of each byte of a number its place among the bytes of eight
};
inline Octave octave_of(Lanes x) {
    const uint32x4_t low = vandq_u32(vshrq_n_u32(vreinterpretq_u32_f32(x.v), 23), vdupq_n_u32(7));
    return {vreinterpretq_u8_u32(vmlaq_u32(vdupq_n_u32(0x03020100), low, vdupq_n_u32(0x04040404)))};
}
inline Lanes chosen(const float* eight, Octave at) {
    const uint8x16x2_t bytes = {{vreinterpretq_u8_f32(vld1q_f32(eight)), vreinterpretq_u8_f32(vld1q_f32(eight + 4))}};
    return {vreinterpretq_f32_u8(vqtbl2q_u8(bytes, at.v))};
}
