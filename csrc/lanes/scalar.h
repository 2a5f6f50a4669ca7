// One float at a time: the target every machine has. Included inside a namespace by elementwise.cc.

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

// Eight float64: the lanes of a reduction.
struct Doubles {
    double v[8];
    static Doubles zero() { return {}; }
    void write(double* p) const { memcpy(p, v, sizeof v); }
};
inline Doubles operator+(Doubles a, Doubles b) {
    for (int i = 0; i < 8; ++i) a.v[i] += b.v[i];
    return a;
}
inline Doubles operator-(Doubles a, Doubles b) {
    for (int i = 0; i < 8; ++i) a.v[i] -= b.v[i];
    return a;
}
inline Doubles operator*(Doubles a, Doubles b) {
    for (int i = 0; i < 8; ++i) a.v[i] *= b.v[i];
    return a;
}
inline Doubles larger(Doubles top, Doubles x) {  // max(top, |x|) of finite values
    for (int i = 0; i < 8; ++i) {
        const double magnitude = x.v[i] < 0 ? -x.v[i] : x.v[i];
        top.v[i] = magnitude > top.v[i] ? magnitude : top.v[i];
    }
    return top;
}

constexpr size_t kDoublesStep = 8;  // elements that load_doubles takes at a time
template <class Stored>
inline void load_doubles(const uint8_t* p, Doubles* x) {
    for (size_t i = 0; i < 8; ++i) x[0].v[i] = load<Stored>(p + i * sizeof(typename Stored::Code)).v;
}
template <>
inline void load_doubles<F64>(const uint8_t* p, Doubles* x) {
    memcpy(x[0].v, p, sizeof x[0].v);
}
