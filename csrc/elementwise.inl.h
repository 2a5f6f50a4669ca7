// The loop: load → formula → round → store. Included once per CPU target, inside that target's namespace and region,
// after a lanes/*.h that defines Lanes, Peak, load<> and store<>, and after fused.inl.h.
//
// Numeric rule: every operation is rounded separately to float32 (float64 for wide programs), the result once to the
// output dtype. The fast kernels assume finite values and record the largest magnitude of their results; where that
// shows a NaN, an Inf or an overflow, the stretch is done again by the careful path, which has every case.

// ---- strips: any program, any mixture of dtypes, one operation at a time over a strip in the L1 cache

template <class Stored>
void widen(const uint8_t* from, float* to, size_t count) {
    size_t i = 0;
    for (; i + Lanes::width <= count; i += Lanes::width)
        load<Stored>(from + i * sizeof(typename Stored::Code)).write(to + i);
    for (; i < count; ++i) {
        typename Stored::Code code;
        memcpy(&code, from + i * sizeof code, sizeof code);
        to[i] = Stored::load(code);
    }
}

inline void widen(DType dtype, const uint8_t* from, float* to, size_t count) {
#define SDS_WIDEN(word, Stored) \
    case DType::word: widen<Stored>(from, to, count); break;
    switch (dtype) {
        SDS_NARROW_DTYPES(SDS_WIDEN)
        case DType::f64: break;  // a float64 input makes the whole job wide
    }
#undef SDS_WIDEN
}

inline void widen(DType dtype, const uint8_t* from, double* to, size_t count) {
    if (dtype == DType::f64) {
        memcpy(to, from, count * sizeof(double));
        return;
    }
    float narrow[kStrip];
    widen(dtype, from, narrow, count);
    for (size_t i = 0; i < count; ++i) to[i] = narrow[i];
}

template <class Stored>
void round_strip(const float* from, uint8_t* to, size_t count) {
    size_t i = 0;
    for (; i + Lanes::width <= count; i += Lanes::width)
        store<Stored>(to + i * sizeof(typename Stored::Code), Lanes::read(from + i));
    for (; i < count; ++i) {
        const typename Stored::Code code = Stored::encode(from[i]);
        memcpy(to + i * sizeof code, &code, sizeof code);
    }
}

template <class Stored>
void round_strip(const double* from, uint8_t* to, size_t count) {
    float narrow[kStrip];
    for (size_t i = 0; i < count; ++i) narrow[i] = narrow_to_odd(from[i]);
    round_strip<Stored>(narrow, to, count);
}
template <>
inline void round_strip<F32>(const double* from, uint8_t* to, size_t count) {
    float narrow[kStrip];
    for (size_t i = 0; i < count; ++i) narrow[i] = static_cast<float>(from[i]);
    memcpy(to, narrow, count * sizeof(float));
}
template <>
inline void round_strip<F64>(const double* from, uint8_t* to, size_t count) {
    memcpy(to, from, count * sizeof(double));
}
template <>
inline void round_strip<F64>(const float* from, uint8_t* to, size_t count) {
    double wide[kStrip];
    for (size_t i = 0; i < count; ++i) wide[i] = from[i];
    memcpy(to, wide, count * sizeof(double));
}

template <class T>
void step_strip(Op op, const T* __restrict a, const T* __restrict b, const T* __restrict c, T* __restrict to,
                size_t n) {
    switch (op) {
        case Op::add:
            for (size_t i = 0; i < n; ++i) to[i] = a[i] + b[i];
            break;
        case Op::sub:
            for (size_t i = 0; i < n; ++i) to[i] = a[i] - b[i];
            break;
        case Op::mul:
            for (size_t i = 0; i < n; ++i) to[i] = a[i] * b[i];
            break;
        case Op::div:
            for (size_t i = 0; i < n; ++i) to[i] = a[i] / b[i];
            break;
        case Op::minimum:
            for (size_t i = 0; i < n; ++i) to[i] = a[i] < b[i] || a[i] != a[i] ? a[i] : b[i];
            break;
        case Op::maximum:
            for (size_t i = 0; i < n; ++i) to[i] = a[i] > b[i] || a[i] != a[i] ? a[i] : b[i];
            break;
        case Op::lt:
            for (size_t i = 0; i < n; ++i) to[i] = a[i] < b[i] ? T(1) : T(0);
            break;
        case Op::le:
            for (size_t i = 0; i < n; ++i) to[i] = a[i] <= b[i] ? T(1) : T(0);
            break;
        case Op::gt:
            for (size_t i = 0; i < n; ++i) to[i] = a[i] > b[i] ? T(1) : T(0);
            break;
        case Op::ge:
            for (size_t i = 0; i < n; ++i) to[i] = a[i] >= b[i] ? T(1) : T(0);
            break;
        case Op::eq:
            for (size_t i = 0; i < n; ++i) to[i] = a[i] == b[i] ? T(1) : T(0);
            break;
        case Op::ne:
            for (size_t i = 0; i < n; ++i) to[i] = a[i] != b[i] ? T(1) : T(0);
            break;
        case Op::copysign:
            for (size_t i = 0; i < n; ++i) to[i] = functions::lane_copysign(a[i], b[i]);
            break;
        case Op::pow: functions::pow_strip(a, b, to, n); break;
        case Op::neg:
            for (size_t i = 0; i < n; ++i) to[i] = -a[i];
            break;
        case Op::abs:
            for (size_t i = 0; i < n; ++i) to[i] = a[i] < 0 ? -a[i] : a[i] + T(0);
            break;
        case Op::sqrt:
            for (size_t i = 0; i < n; ++i) to[i] = std::sqrt(a[i]);
            break;
        case Op::sign:
            for (size_t i = 0; i < n; ++i) to[i] = a[i] > 0 ? T(1) : a[i] < 0 ? T(-1) : a[i] == 0 ? T(0) : a[i];
            break;
        case Op::floor:
            for (size_t i = 0; i < n; ++i) to[i] = std::floor(a[i]);
            break;
        case Op::exp: functions::exp_strip(a, to, n); break;
        case Op::log: functions::log_strip(a, to, n); break;
        case Op::where:
            for (size_t i = 0; i < n; ++i) {
                const T yes = b[i], no = c[i];  // read both: one comparison, and no masks for the loads
                to[i] = a[i] != 0 ? yes : no;
            }
            break;
        case Op::fma:
            for (size_t i = 0; i < n; ++i) to[i] = std::fma(a[i], b[i], c[i]);
            break;
        case Op::kCount: break;
    }
}

// Bits of the largest magnitude of a strip (at least those of Inf once a NaN is among them).
inline uint32_t peak_of(const float* x, size_t n) {
    uint32_t top = 0;
    for (size_t i = 0; i < n; ++i) {
        const uint32_t bits = bits_as<uint32_t>(x[i]) & 0x7fffffff;
        top = bits > top ? bits : top;
    }
    return top;
}
inline uint64_t peak_of(const double* x, size_t n) {
    uint64_t top = 0;
    for (size_t i = 0; i < n; ++i) {
        const uint64_t bits = bits_as<uint64_t>(x[i]) & 0x7fffffffffffffff;
        top = bits > top ? bits : top;
    }
    return top;
}
inline bool finite(uint32_t peak) { return peak < 0x7f800000; }
inline bool finite(uint64_t peak) { return peak < 0x7ff0000000000000; }
template <class Stored>
bool fits(uint32_t peak) {
    return finite(peak) && !too_large<Stored>(bits_as<float>(peak));
}
template <class Stored>
bool fits(uint64_t peak) {
    return finite(peak) && !too_large<Stored>(bits_as<double>(peak));
}

// Stores one strip of results; `inputs` holds the widened operands, a strip each.
template <class Stored, class T>
void store_strip(const T* results, const T* inputs, int input_count, uint8_t* out, size_t n, Overflow policy,
                 Tally& tally) {
    bool plain = fits<Stored>(peak_of(results, n));
    for (int k = 0; k < input_count && plain; ++k) plain = finite(peak_of(inputs + k * kStrip, n));
    if (plain) {
        round_strip<Stored>(results, out, n);
        return;
    }
    for (size_t i = 0; i < n; ++i) {
        bool finite = true;
        for (int k = 0; k < input_count; ++k) {
            const T x = inputs[k * kStrip + i];
            finite &= x - x == 0;
        }
        bool overflowed;
        const typename Stored::Code code = store_checked<Stored>(results[i], finite, policy, overflowed);
        memcpy(out + i * sizeof code, &code, sizeof code);
        tally.nonfinite += !finite;
        tally.overflow += overflowed;
    }
}

// The next strip is fetched while this one is worked on: the processor's own prefetching stops at every page. It may
// lie past the end.
inline void prefetch(const uint8_t* from, size_t bytes) {
#if defined(__GNUC__)
    for (size_t i = 0; i < bytes; i += 64) __builtin_prefetch(from + i);
#else
    static_cast<void>(from), static_cast<void>(bytes);
#endif
}

// A program's steps over one strip after the other.
template <class T>
struct Strips {
    Strips(const Program& program, const T* constants, Scratch& scratch) : program(program) {
        const size_t constant_count = static_cast<size_t>(program.constants);
        const size_t need =
            kStrip * (static_cast<size_t>(program.inputs) + constant_count + static_cast<size_t>(program.temps));
        inputs = reinterpret_cast<T*>(scratch.strips(need));
        fixed = inputs + kStrip * static_cast<size_t>(program.inputs);
        temps = fixed + kStrip * constant_count;
        for (size_t k = 0; k < constant_count; ++k) {
            for (size_t i = 0; i < kStrip; ++i) fixed[k * kStrip + i] = constants[k];
        }
    }

    const T* at(Ref ref) const {
        const T* const bases[] = {inputs, fixed, temps};
        return bases[ref.kind] + kStrip * static_cast<size_t>(ref.index);
    }

    void run(const Operand* operands, size_t first, size_t n) {
        for (int k = 0; k < program.inputs; ++k) {
            if (unused[k]) continue;
            const DType dtype = operands[k].dtype;
            if (operands[k].generated) {
                const int bound = for_result_only ? program.bounds[static_cast<size_t>(k)] : -1;
                generate(*operands[k].generated, operands[k].first + first, n, inputs + static_cast<size_t>(k) * kStrip,
                         bound < 0 ? nullptr : at({Ref::constant, bound}));
                continue;
            }
            const uint8_t* const from = operands[k].data + first * size_of(dtype);
            widen(dtype, from, inputs + static_cast<size_t>(k) * kStrip, n);
            prefetch(from + kStrip * size_of(dtype), kStrip * size_of(dtype));
        }
        for (const Step& step : program.steps) {
            step_strip(step.op, at(step.a), at(step.b), at(step.c), temps + static_cast<size_t>(step.to) * kStrip, n);
        }
    }

    const Program& program;
    bool for_result_only = false;           // nothing but the steps reads inputs
    bool unused[Program::kMaxInputs] = {};  // inputs that are left out
    T *inputs, *fixed, *temps;
};

template <class T>
void strips(const Program& program, const T* constants, const Operand* operands, uint8_t* out, DType out_dtype,
            size_t count, Overflow policy, Tally& tally, Scratch& scratch) {
    Strips<T> work(program, constants, scratch);
    work.for_result_only = true;
    const T* const results = work.at(program.result);
    for (size_t first = 0; first < count; first += kStrip) {
        const size_t n = count - first < kStrip ? count - first : kStrip;
        work.run(operands, first, n);
        uint8_t* to = out + first * size_of(out_dtype);
#define SDS_STORE(word, Out) \
    case DType::word: store_strip<Out>(results, work.inputs, program.own, to, n, policy, tally); break;
        switch (out_dtype) { SDS_DTYPES(SDS_STORE) }
#undef SDS_STORE
    }
}

// ---- a formula of formulas.h whose last inputs are generated, a stretch at a time

// Elements of one generated input. Numbers of columns are used where they are, and one that a whole stretch has is
// written once for all stretches that have it.
class MadeStretch {
 public:
    static constexpr size_t kMost = 2 * kDrawn;

    // How many elements from `first` on can be had at a time; of `within`, so many that are one number.
    static size_t run(const Generated& of, uint64_t first) {
        if (is_in_place(of)) return static_cast<size_t>(std::min<uint64_t>(kMost, of.length - first % of.length));
        if (of.kind != Generated::within || of.last < static_cast<double>(first)) return kMost;
        return static_cast<size_t>(std::min<double>(kMost, std::floor(of.last) - static_cast<double>(first) + 1));
    }

    const float* from(const Generated& of, uint64_t first, size_t n, const float* bound) {
        if (is_in_place(of)) return of.narrow + first % of.length;
        float value = 0;
        if (!is_one(of, first, n, value)) {
            generate(of, first, n, elements_, bound);
            filled_ = false;
        } else if (!filled_ || bits_as<uint32_t>(elements_[0]) != bits_as<uint32_t>(value)) {
            std::fill(elements_, elements_ + kMost, value);
            filled_ = true;
        }
        return elements_;
    }

 private:
    static bool is_in_place(const Generated& of) {
        return of.kind == Generated::numbers && of.inner == 1 && of.narrow != nullptr;
    }

    // Whether all `n` elements are one number.
    static bool is_one(const Generated& of, uint64_t first, size_t n, float& value) {
        if (of.kind == Generated::within) {
            value = of.last < static_cast<double>(first) ? 0.0f : 1.0f;
            return true;
        }
        if (of.kind != Generated::numbers || first % of.inner + n > of.inner) return false;
        value = static_cast<float>(of.values[first / of.inner % of.length]);
        return true;
    }

    alignas(64) float elements_[kMost];
    bool filled_ = false;  // all of them are one number
};

inline void fused_beside_generated(FusedKernel kernel, const Program& program, const Numbers& numbers,
                                   const Operand* operands, uint8_t* out, DType out_dtype, size_t count,
                                   Overflow policy, Tally& tally, Scratch& scratch) {
    Operand here[kMostFused], again[kMostFused];
    MadeStretch made[kMostFused];
    for (size_t first = 0, n; first < count; first += n) {
        n = std::min(MadeStretch::kMost, count - first);
        for (int k = program.own; k < program.inputs; ++k)
            n = std::min(n, MadeStretch::run(*operands[k].generated, operands[k].first + first));
        for (int k = 0; k < program.inputs; ++k) {
            if (k < program.own) {
                const size_t size = size_of(operands[k].dtype);
                here[k] = again[k] = {operands[k].data + first * size, operands[k].dtype};
                continue;
            }
            again[k] = operands[k];
            again[k].first += first;
            const int bound = program.bounds[static_cast<size_t>(k)];
            const float* const elements = made[k].from(*again[k].generated, again[k].first, n,
                                                       bound < 0 ? nullptr : numbers.narrow.data() + bound);
            here[k] = {reinterpret_cast<const uint8_t*>(elements), DType::f32};
        }
        uint8_t* const to = out + first * size_of(out_dtype);
        if (kernel(here, to, n, numbers.narrow.data()) >= careful_from(out_dtype))
            strips<float>(program, numbers.narrow.data(), again, to, out_dtype, n, policy, tally, scratch);
    }
}

// ---- choosing

inline void evaluate(const Program& program, const Numbers& numbers, const Operand* operands, uint8_t* out,
                     DType out_dtype, size_t count, Overflow policy, Tally& tally, Scratch& scratch) {
    bool wide = program.wide, same = true, generated = true;
    for (int k = 0; k < program.own; ++k) {
        wide |= operands[k].dtype == DType::f64;
        same &= operands[k].dtype == operands[0].dtype;
    }
    for (int k = program.own; k < program.inputs; ++k) generated &= operands[k].generated != nullptr;
    if (wide) {
        strips<double>(program, numbers.wide.data(), operands, out, out_dtype, count, policy, tally, scratch);
        return;
    }
    static const FusedTable table;
    const bool narrow = out_dtype != DType::f64, fused = program.fused >= 0 && same && narrow && generated;
    const FusedKernel kernel = fused ? table.at(program, operands, operands[0].dtype, out_dtype) : nullptr;
    if (!kernel && (program.weights.empty() || !narrow)) {
        strips<float>(program, numbers.narrow.data(), operands, out, out_dtype, count, policy, tally, scratch);
        return;
    }
    if (program.own < program.inputs) {
        fused_beside_generated(kernel, program, numbers, operands, out, out_dtype, count, policy, tally, scratch);
        return;
    }
    const SumKernel sum = sum_kernel(out_dtype);
    float weights[Program::kMaxInputs];
    for (size_t k = 0; k < program.weights.size(); ++k)
        weights[k] = numbers.narrow[static_cast<size_t>(program.weights[k])];
    const float added =
        program.added < 0 ? -0.0f : numbers.narrow[static_cast<size_t>(program.added)];  // −0 adds nothing
    // In stretches, so that one odd value sends a few thousand elements through the careful path, not a whole tile.
    constexpr size_t kStretch = 16384;
    const uint32_t limit = careful_from(out_dtype);
    Operand here[Program::kMaxInputs];
    for (size_t first = 0; first < count; first += kStretch) {
        const size_t n = count - first < kStretch ? count - first : kStretch;
        for (int k = 0; k < program.inputs; ++k) {
            here[k] = {operands[k].data + first * size_of(operands[k].dtype), operands[k].dtype};
        }
        uint8_t* to = out + first * size_of(out_dtype);
        const uint32_t peak =
            kernel ? kernel(here, to, n, numbers.narrow.data()) : sum(here, program.inputs, to, n, weights, added);
        if (peak >= limit) {
            strips<float>(program, numbers.narrow.data(), here, to, out_dtype, n, policy, tally, scratch);
        }
    }
}

// ---- generated data

inline void generate_into(const Generated& of, uint64_t first, size_t count, uint8_t* out, DType dtype) {
    for (size_t done = 0; done < count; done += kStrip) {
        const size_t n = count - done < kStrip ? count - done : kStrip;
        double strip[kStrip];
        if (dtype == DType::f64) {
            generate(of, first + done, n, strip);
            memcpy(out + done * sizeof(double), strip, n * sizeof(double));
        } else {
            float* const narrow = reinterpret_cast<float*>(strip);
            generate(of, first + done, n, narrow);
            memcpy(out + done * sizeof(float), narrow, n * sizeof(float));
        }
    }
}

// SplitMix64's finaliser over a counter (Steele, Lea and Flood, 2014).
inline uint64_t mix(uint64_t x) {
    x += 0x9e3779b97f4a7c15;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
}

// The sum of four uniform 16-bit numbers is close to normal (Irwin-Hall), with variance 4 * (65536^2 - 1) / 12.
inline void fill(const Fill& rule, uint64_t first, uint8_t* out, DType dtype, size_t count) {
    const float scale = static_cast<float>(rule.deviation / 37837.227);
    const float mean = static_cast<float>(rule.mean);
    float strip[kStrip];
    for (size_t done = 0; done < count; done += kStrip) {
        const size_t n = count - done < kStrip ? count - done : kStrip;
        for (size_t i = 0; i < n; ++i) {
            const uint64_t bits = mix(rule.seed + first + done + i);
            const uint64_t sum = (bits & 0xffff) + (bits >> 16 & 0xffff) + (bits >> 32 & 0xffff) + (bits >> 48);
            strip[i] = mean + scale * static_cast<float>(static_cast<int32_t>(sum) - 131070);
        }
        uint8_t* to = out + done * size_of(dtype);
#define SDS_ROUND(word, Out) \
    case DType::word: round_strip<Out>(strip, to, n); break;
        switch (dtype) { SDS_DTYPES(SDS_ROUND) }
#undef SDS_ROUND
    }
}
