// One float at a time: the target every machine has. Included inside a namespace by target_scalar.cc.

struct Lanes {
    static constexpr int width = 1;
    float v;
    static Lanes all(float x) { return {x}; }
    static Lanes read(const float* p) { return {*p}; }
    void write(float* p) const { *p = v; }
};
inline Lanes operator+(Lanes a, Lanes b) { return {a.v + b.v}; }
inline Lanes operator-(Lanes a, Lanes b) { return {a.v - b.v}; }
inline Lanes operator*(Lanes a, Lanes b) { return {a.v * b.v}; }
inline Lanes operator/(Lanes a, Lanes b) { return {a.v / b.v}; }
inline Lanes minimum(Lanes a, Lanes b) { return a.v < b.v || a.v != a.v ? a : b; }
inline Lanes maximum(Lanes a, Lanes b) { return a.v > b.v || a.v != a.v ? a : b; }
inline Lanes absolute(Lanes a) { return {bits_as<float>(bits_as<uint32_t>(a.v) & 0x7fffffff)}; }
inline Lanes negated(Lanes a) { return {-a.v}; }
inline Lanes copysign(Lanes a, Lanes b) { return {std::copysign(a.v, b.v)}; }
inline Lanes floor(Lanes a) { return {std::floor(a.v)}; }
inline Lanes square_root(Lanes a) { return {std::sqrt(a.v)}; }
inline Lanes square_less(Lanes a, Lanes b) {  // a² − b, which a float32 can hold where a is near the root of b
    return {static_cast<float>(static_cast<double>(a.v) * a.v - b.v)};
}
inline Lanes plus_product(Lanes sum, Lanes a, Lanes b) { return sum + a * b; }  // of a product that a float32 can hold
inline Lanes binade(Lanes a) { return {bits_as<float>(bits_as<uint32_t>(a.v) & 0x7f800000)}; }  // 2^⌊log2 a⌋
inline Lanes where(Lanes a, Lanes yes, Lanes no) { return a.v != 0 ? yes : no; }

// What a comparison gives: 1 or 0 where a number is asked for.
struct Mask {
    bool m;
    operator Lanes() const { return {m ? 1.0f : 0.0f}; }
};
inline Mask equal(Lanes a, Lanes b) { return {a.v == b.v}; }
inline Mask not_equal(Lanes a, Lanes b) { return {a.v != b.v}; }
inline Mask less(Lanes a, Lanes b) { return {a.v < b.v}; }
inline Mask greater(Lanes a, Lanes b) { return {a.v > b.v}; }
inline Mask at_least(Lanes a, Lanes b) { return {a.v >= b.v}; }
inline Mask operator*(Mask a, Mask b) { return {a.m && b.m}; }
inline Lanes where(Mask a, Lanes yes, Lanes no) { return a.m ? yes : no; }
inline uint32_t bits_of(Mask a) { return a.m; }  // one each

inline void write_keys(Lanes x, uint32_t* to) { *to = key_of(x.v); }  // of magnitudes
inline uint32_t having_upper(const uint32_t* keys, int above, uint32_t upper) { return *keys >> above == upper; }

// The largest magnitude seen, as bits: at or above 0x7f800000 once an Inf or a NaN has passed.
struct Peak {
    uint32_t v;
    static Peak none() { return {0}; }
    void see(Lanes x) {
        const uint32_t bits = bits_as<uint32_t>(x.v) & 0x7fffffff;
        v = bits > v ? bits : v;
    }
    uint32_t value() const { return v; }
};

template <class Stored>
inline Lanes load(const uint8_t* p) {
    typename Stored::Code code;
    memcpy(&code, p, sizeof code);
    return {Stored::load(code)};
}

template <class Stored>
inline void store(uint8_t* p, Lanes x) {
    const typename Stored::Code code = Stored::encode(x.v);
    memcpy(p, &code, sizeof code);
}

// One float64: one of a reduction's eight lanes. load_doubles takes kDoublesLoaded elements at a time.
struct Doubles {
    static constexpr size_t width = 1;
    double v;
    static Doubles zero() { return {0}; }
    static Doubles all(double x) { return {x}; }
    void write(double* p) const { *p = v; }
};
inline Doubles operator+(Doubles a, Doubles b) { return {a.v + b.v}; }
inline Doubles operator-(Doubles a, Doubles b) { return {a.v - b.v}; }
inline Doubles operator*(Doubles a, Doubles b) { return {a.v * b.v}; }
inline Doubles widened(const double* p) { return {*p}; }
inline Doubles fused(Doubles sum, Doubles a, Doubles b) { return sum + a * b; }  // as good, where the product is exact
inline Doubles larger(Doubles top, Doubles x) {                                  // max(top, |x|) of finite values
    const double magnitude = x.v < 0 ? -x.v : x.v;
    return {magnitude > top.v ? magnitude : top.v};
}

inline void widen_lanes(Lanes x, Doubles* to) { to[0] = {x.v}; }
inline Lanes narrowed(const Doubles* x) { return {static_cast<float>(x->v)}; }

// x = 2^k·m with m in [√½, √2), of ordinary positive numbers.
inline Lanes split(Lanes x, Lanes& m) {
    const uint32_t above = bits_as<uint32_t>(x.v) - 0x3f3504f3;
    m = {bits_as<float>((above & 0x7fffff) + 0x3f3504f3)};
    return {static_cast<float>(static_cast<int32_t>(above) >> 23)};
}
// 2^k, k in the low bits of `shifted`.
inline Lanes power_of_two(Lanes shifted) { return {bits_as<float>((bits_as<uint32_t>(shifted.v) + 127) << 23)}; }
// x·2^k, k in the low bits of `shifted`.
inline Doubles scaled(Doubles x, Doubles shifted) {
    return {bits_as<double>(bits_as<uint64_t>(x.v) + (bits_as<uint64_t>(shifted.v) << 52))};
}

template <class Stored>
constexpr size_t kDoublesLoaded = 1;

template <class Stored>
inline void load_doubles(const uint8_t* p, Doubles* x) {
    x[0] = {load<Stored>(p).v};
}
template <>
inline void load_doubles<F64>(const uint8_t* p, Doubles* x) {
    memcpy(&x[0].v, p, sizeof(double));
}

// A lane of 64 bits, whose lower half is the word that Philox multiplies (generated.inl.h).
struct Words {
    static constexpr size_t width = 1;
    uint64_t v;
    static Words all(uint64_t x) { return {x}; }
    static Words read(const uint64_t* p) { return {*p}; }
};
inline Words operator+(Words a, Words b) { return {a.v + b.v}; }
inline Words operator*(Words a, Words b) { return {(a.v & 0xffffffff) * (b.v & 0xffffffff)}; }
inline Words exclusive_or(Words a, Words b, Words c) { return {a.v ^ b.v ^ c.v}; }
inline Words upper(Words a) { return {a.v >> 32}; }
inline void write_blocks(const Words (&w)[4], uint32_t* to) {
    for (size_t k = 0; k < 4; ++k) to[k] = static_cast<uint32_t>(w[k].v);
}

// Elements of random numbers (normal.inl.h, generated.inl.h).
inline Lanes of_bytes(const uint8_t* p) { return {static_cast<float>(*p)}; }
inline Lanes of_24_bits(const uint8_t* bytes, const uint8_t* halves) {  // byte·2^16 + half
    uint16_t half;
    memcpy(&half, halves, sizeof half);
    return {static_cast<float>(*bytes << 16 | half)};
}
inline Lanes mantissa(Lanes x) {  // in [1, 2)
    return {bits_as<float>((bits_as<uint32_t>(x.v) & 0x7fffff) | 0x3f800000)};
}
struct Octave {
    size_t v;
};
inline Octave octave_of(Lanes x) { return {bits_as<uint32_t>(x.v) >> 23 & 7}; }
inline Lanes chosen(const float* eight, Octave at) { return {eight[at.v]}; }
