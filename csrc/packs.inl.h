// Several registers as one value, for formulas with exp, log or pow: each of these is a long chain of operations, and
// what keeps a processor busy are several chains side by side. Included once per CPU target, inside that target's
// namespace and region, after a lanes/*.h.

constexpr size_t kPack = 4;

#if defined(__GNUC__)
#define SDS_UNROLLED _Pragma("GCC unroll kPack")  // or the registers of a pack go through memory
#else
#define SDS_UNROLLED
#endif

template <class T>
struct Pack {
    T of[kPack];
    static Pack read(const float* from) {
        Pack pack;
        for (size_t k = 0; k < kPack; ++k) pack.of[k] = T::read(from + k * T::width);
        return pack;
    }
    void write(float* to) const {
        for (size_t k = 0; k < kPack; ++k) of[k].write(to + k * T::width);
    }
};

template <class F, class First, class... Others>
inline auto each(F f, const Pack<First>& first, const Pack<Others>&... others) {
    Pack<decltype(f(first.of[0], others.of[0]...))> made;
    SDS_UNROLLED
    for (size_t k = 0; k < kPack; ++k) made.of[k] = f(first.of[k], others.of[k]...);
    return made;
}

#define SDS_UNARY(name)                                  \
    inline Pack<Lanes> name(const Pack<Lanes>& a) {      \
        return each([](Lanes x) { return name(x); }, a); \
    }
SDS_UNARY(absolute)
SDS_UNARY(negated)
SDS_UNARY(floor)
#undef SDS_UNARY

#define SDS_BINARY(name, expression)                            \
    template <class A, class B>                                 \
    inline auto name(const Pack<A>& a, const Pack<B>& b) {      \
        return each([](A x, B y) { return expression; }, a, b); \
    }
SDS_BINARY(operator+, x + y)
SDS_BINARY(operator-, x - y)
SDS_BINARY(operator*, x* y)
SDS_BINARY(operator/, x / y)
SDS_BINARY(maximum, maximum(x, y))
SDS_BINARY(copysign, copysign(x, y))
SDS_BINARY(less, less(x, y))
SDS_BINARY(greater, greater(x, y))
SDS_BINARY(not_equal, not_equal(x, y))
#undef SDS_BINARY

inline Pack<Lanes> where(const Pack<Mask>& a, const Pack<Lanes>& yes, const Pack<Lanes>& no) {
    return each([](Mask m, Lanes y, Lanes n) { return where(m, y, n); }, a, yes, no);
}
