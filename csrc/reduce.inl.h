// The loop of reduce.h: two runs of stored elements in, their sums, maxima and counts out. Included once per CPU
// target, inside that target's namespace and region, after elementwise.inl.h and a lanes/*.h that defines Doubles and
// load_doubles<>.
//
// The fast loop assumes finite values. A block with a NaN or an Inf, which its largest codes show, goes through the
// careful path, which counts them and leaves them out.

// ---- sums, in the eight lanes

using Lanes4 = double[4][kReduceLanes];  // of dot, aa, bb, dd

struct PairSums {  // of as many lanes as a register has
    Doubles dot = Doubles::zero(), aa = Doubles::zero(), bb = Doubles::zero(), dd = Doubles::zero();

    void add(Doubles a, Doubles b, Doubles& difference_max) {  // a maximum needs no lanes of its own
        const Doubles difference = a - b;
        dot = dot + a * b;
        aa = aa + a * a;
        bb = bb + b * b;
        dd = dd + difference * difference;
        difference_max = larger(difference_max, difference);
    }
    void write(Lanes4& l, size_t first) const {
        dot.write(l[0] + first);
        aa.write(l[1] + first);
        bb.write(l[2] + first);
        dd.write(l[3] + first);
    }
};

struct EqualSums {  // of bit-equal operands the same, at a third of the cost: dot = aa = bb, dd = 0
    Doubles aa = Doubles::zero();

    void add(Doubles a, Doubles, Doubles&) { aa = aa + a * a; }
    void write(Lanes4& l, size_t first) const {
        for (int k = 0; k < 3; ++k) aa.write(l[k] + first);
        Doubles::zero().write(l[3] + first);
    }
};

constexpr size_t kRegisters = kReduceLanes / Doubles::width;

// One load of each operand, from element `at` of a step on, into the lanes that it belongs to. As packs, so that every
// array is indexed only by constants and lives in registers.
template <class Stored, size_t at, class Sums, size_t... J>
inline void add_load(const uint8_t* a, const uint8_t* b, Sums* lanes, Doubles& top, std::index_sequence<J...>) {
    Doubles x[sizeof...(J)], y[sizeof...(J)];
    load_doubles<Stored>(a + at * sizeof(typename Stored::Code), x);
    load_doubles<Stored>(b + at * sizeof(typename Stored::Code), y);
    (lanes[(at / Doubles::width + J) % kRegisters].add(x[J], y[J], top), ...);
}

template <class Stored, class Sums, size_t... I>
inline void add_step(const uint8_t* a, const uint8_t* b, Sums* lanes, Doubles& top, std::index_sequence<I...>) {
    constexpr size_t loaded = kDoublesLoaded<Stored>;
    (add_load<Stored, I * loaded>(a, b, lanes, top, std::make_index_sequence<loaded / Doubles::width>()), ...);
}

inline double sum_of(const double* l) { return ((l[0] + l[4]) + (l[2] + l[6])) + ((l[1] + l[5]) + (l[3] + l[7])); }

// At most a block of finite elements.
template <class Stored, class Sums = PairSums>
void add_block(const uint8_t* a, const uint8_t* b, size_t count, Reduction& found) {
    constexpr size_t size = sizeof(typename Stored::Code), loaded = kDoublesLoaded<Stored>;
    constexpr size_t step = loaded > kReduceLanes ? loaded : kReduceLanes;
    constexpr auto loads = std::make_index_sequence<step / loaded>();
    Sums lanes[kRegisters];
    Doubles top = Doubles::zero();
    size_t i = 0;
    for (; i + step <= count; i += step) add_step<Stored>(a + i * size, b + i * size, lanes, top, loads);
    if (i < count) {  // the tail, padded with zeros
        uint8_t padded[2][step * size] = {};
        memcpy(padded[0], a + i * size, (count - i) * size);
        memcpy(padded[1], b + i * size, (count - i) * size);
        add_step<Stored>(padded[0], padded[1], lanes, top, loads);
    }
    Lanes4 l;
    for (size_t k = 0; k < kRegisters; ++k) lanes[k].write(l, k * Doubles::width);
    found.sums = {sum_of(l[0]), sum_of(l[1]), sum_of(l[2]), sum_of(l[3])};
    double peaks[Doubles::width];
    top.write(peaks);
    for (double x : peaks) found.difference_max = x > found.difference_max ? x : found.difference_max;
}

// ---- maxima and equal elements, on the stored codes: a float's magnitude is in the order of its code without the sign

template <class Code>
struct Codes {
    uint64_t equal = 0;
    Code a_top = 0, b_top = 0;  // largest code but for the sign
};

template <class Code>
Codes<Code> look_at_codes(const uint8_t* a, const uint8_t* b, size_t count) {
    constexpr Code magnitude = static_cast<Code>(static_cast<Code>(~Code{0}) >> 1);
    Codes<Code> found;
    for (size_t first = 0; first < count; first += 128) {
        const size_t n = count - first < 128 ? count - first : 128;
        Code equal = 0, a_top = 0, b_top = 0;  // as wide as the elements, so that the loop stays in full registers
        for (size_t i = 0; i < n; ++i) {
            Code x, y;
            memcpy(&x, a + (first + i) * sizeof x, sizeof x);
            memcpy(&y, b + (first + i) * sizeof y, sizeof y);
            equal = static_cast<Code>(equal + (x == y));
            x &= magnitude;
            y &= magnitude;
            a_top = x > a_top ? x : a_top;
            b_top = y > b_top ? y : b_top;
        }
        found.equal += equal;
        found.a_top = a_top > found.a_top ? a_top : found.a_top;
        found.b_top = b_top > found.b_top ? b_top : found.b_top;
    }
    return found;
}

template <class Stored>
double widened(typename Stored::Code code) {
    return Stored::load(code);
}
template <>
inline double widened<F64>(F64::Code code) {
    return bits_as<double>(code);
}

inline Reduction careful_block(Element a, const uint8_t* a_data, Element b, const uint8_t* b_data, size_t count);

template <class Stored>
Reduction float_block(const uint8_t* a, const uint8_t* b, size_t count) {
    const auto codes = look_at_codes<typename Stored::Code>(a, b, count);
    Reduction found;
    if (codes.a_top <= Stored::largest && codes.b_top <= Stored::largest) {
        codes.equal == count ? add_block<Stored, EqualSums>(a, b, count, found) : add_block<Stored>(a, b, count, found);
        found.a_max = widened<Stored>(codes.a_top);
        found.b_max = widened<Stored>(codes.b_top);
    } else {
        constexpr Element element = static_cast<Element>(Stored::dtype);
        found = careful_block(element, a, element, b, count);
    }
    found.equal = codes.equal;
    return found;
}

// ---- by way of float64 in memory: any two dtypes, any values

template <class Integer>
void widen_integers(const uint8_t* from, double* to, size_t count) {
    for (size_t i = 0; i < count; ++i) {
        Integer x;
        memcpy(&x, from + i * sizeof x, sizeof x);
        to[i] = static_cast<double>(x);
    }
}

inline void widen_elements(Element element, const uint8_t* from, double* to, size_t count) {
    switch (element) {
        case Element::i64: return widen_integers<int64_t>(from, to, count);
        case Element::u64: return widen_integers<uint64_t>(from, to, count);
        case Element::i32: return widen_integers<int32_t>(from, to, count);
        case Element::u32: return widen_integers<uint32_t>(from, to, count);
        case Element::i16: return widen_integers<int16_t>(from, to, count);
        case Element::u16: return widen_integers<uint16_t>(from, to, count);
        case Element::i8: return widen_integers<int8_t>(from, to, count);
        case Element::u8: return widen_integers<uint8_t>(from, to, count);
        default: break;
    }
    for (size_t done = 0; done < count; done += kStrip) {
        const size_t n = count - done < kStrip ? count - done : kStrip;
        widen(static_cast<DType>(element), from + done * size_of(element), to + done, n);
    }
}

inline Reduction careful_block(Element a, const uint8_t* a_data, Element b, const uint8_t* b_data, size_t count) {
    double x[kReduceBlock], y[kReduceBlock];
    widen_elements(a, a_data, x, count);
    widen_elements(b, b_data, y, count);
    Reduction found;
    for (size_t i = 0; i < count; ++i) {
        found.equal += x[i] == y[i];
        const bool a_finite = x[i] - x[i] == 0, b_finite = y[i] - y[i] == 0;
        found.a_nonfinite += !a_finite;
        found.b_nonfinite += !b_finite;
        if (!(a_finite && b_finite)) x[i] = y[i] = 0;
        const double a_size = x[i] < 0 ? -x[i] : x[i], b_size = y[i] < 0 ? -y[i] : y[i];
        found.a_max = a_size > found.a_max ? a_size : found.a_max;
        found.b_max = b_size > found.b_max ? b_size : found.b_max;
    }
    add_block<F64>(reinterpret_cast<const uint8_t*>(x), reinterpret_cast<const uint8_t*>(y), count, found);
    return found;
}

// Two floats narrower than float64: by way of float32 in memory, and then the fast loop.
inline Reduction mixed_block(Element a, const uint8_t* a_data, Element b, const uint8_t* b_data, size_t count) {
    float x[kReduceBlock], y[kReduceBlock];
    widen(static_cast<DType>(a), a_data, x, count);
    widen(static_cast<DType>(b), b_data, y, count);
    Reduction found = float_block<F32>(reinterpret_cast<const uint8_t*>(x), reinterpret_cast<const uint8_t*>(y), count);
    uint32_t equal = 0;
    for (size_t i = 0; i < count; ++i) equal += x[i] == y[i];
    found.equal = equal;
    return found;
}

template <class Code>
Reduction integer_block(Element element, const uint8_t* a, const uint8_t* b, size_t count) {
    Reduction found = careful_block(element, a, element, b, count);
    found.equal = look_at_codes<Code>(a, b, count).equal;  // of 64 bits, float64 cannot distinguish all
    return found;
}

// ---- choosing

inline Reduction reduce_block(Element a, const uint8_t* a_data, Element b, const uint8_t* b_data, size_t count) {
    const auto narrow = [](Element e) { return e > Element::f64 && static_cast<int>(e) < kDTypes; };
    if (a != b) return (narrow(a) && narrow(b) ? mixed_block : careful_block)(a, a_data, b, b_data, count);
#define SDS_BLOCK(word, Stored) \
    case Element::word: return float_block<Stored>(a_data, b_data, count);
    switch (a) {
        SDS_DTYPES(SDS_BLOCK)
        case Element::i64:
        case Element::u64: return integer_block<uint64_t>(a, a_data, b_data, count);
        default: return careful_block(a, a_data, b, b_data, count);
    }
#undef SDS_BLOCK
}

// Whole blocks (the last one of a tensor may be shorter), added to what `into` has of the chunk already.
inline void reduce(Element a, const uint8_t* a_data, Element b, const uint8_t* b_data, size_t count, Reduction& into) {
    for (size_t first = 0; first < count; first += kReduceBlock) {
        const size_t n = count - first < kReduceBlock ? count - first : kReduceBlock;
        const Reduction block = reduce_block(a, a_data + first * size_of(a), b, b_data + first * size_of(b), n);
        into.sums.add(block.sums);
        into.merge_unordered(block);
    }
}
