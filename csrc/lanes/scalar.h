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
inline Mask where(Mask a, Mask yes, Mask no) { return a.m ? yes : no; }
inline uint32_t bits_of(Mask a) { return a.m; }  // one each

inline Mask not_a_number(Lanes) { return {false}; }  // the kernels that ask see to it that there is none

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
