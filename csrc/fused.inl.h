// The formulas that have a kernel of their own: load → formula → round → store, in registers. Included once per CPU
// target, inside that target's namespace and region, after a lanes/*.h that defines Lanes, Peak, load<> and store<>.
//
// They assume finite values and record the largest magnitude of their results; where that shows a NaN, an Inf or an
// overflow, elementwise.inl.h does the stretch again.

#include "formulas.h"
#include "trimmed.inl.h"

// ---- the formulas of formulas.h with inputs of one dtype

// Returns the bits of the largest magnitude among the results, or those of a non-finite input, or all ones for what it
// can't do. (Where a formula `shows` non-finite inputs, its results are enough: a multiple of a NaN or an Inf, even by
// zero, is never finite.)
using FusedKernel = uint32_t (*)(const Operand*, uint8_t*, size_t, const float*);

constexpr int kMostFused = 8;  // inputs of a formula

// The input of that number, from element i on.
template <class Formula, class In, size_t number>
inline Lanes load_input(const uint8_t* from, size_t i) {
    if constexpr (number < Formula::inputs - Formula::generated) {
        return load<In>(from + i * sizeof(typename In::Code));
    } else {
        return load<F32>(from + i * sizeof(float));
    }
}

// The arrays below are indexed only by constants, by way of the index packs, so that all of them live in registers.
template <class Formula, class In, class Out, size_t... K, size_t... C>
inline uint32_t fused_with(const Operand* operands, uint8_t* out, size_t count, const float* constants,
                           std::index_sequence<K...>, std::index_sequence<C...>) {
    static_assert(Formula::inputs <= kMostFused);
    constexpr size_t W = Lanes::width, own = Formula::inputs - Formula::generated;
    constexpr size_t out_size = sizeof(typename Out::Code);
    const uint8_t* const from[] = {operands[K].data...};
    const Lanes c[] = {Lanes::all(constants[C])..., Lanes::all(0)};
    Peak peak = Peak::none(), inputs = Peak::none();
    const auto look_at = [&inputs](const Lanes* x) {
        if constexpr (!Formula::shows) ((K < own ? inputs.see(x[K]) : void()), ...);
    };
    size_t i = 0;
    // Two at a time, where the registers hold them: half the loop, and their conversions overlap.
    for (; Formula::inputs <= 4 && i + 2 * W <= count; i += 2 * W) {
        const Lanes x0[] = {load_input<Formula, In, K>(from[K], i)...};
        const Lanes x1[] = {load_input<Formula, In, K>(from[K], i + W)...};
        const Lanes y0 = Formula::apply(x0, c), y1 = Formula::apply(x1, c);
        look_at(x0);
        look_at(x1);
        peak.see(y0);
        peak.see(y1);
        store<Out>(out + i * out_size, y0);
        store<Out>(out + (i + W) * out_size, y1);
    }
    for (; i + W <= count; i += W) {
        const Lanes x[] = {load_input<Formula, In, K>(from[K], i)...};
        const Lanes y = Formula::apply(x, c);
        look_at(x);
        peak.see(y);
        store<Out>(out + i * out_size, y);
    }
    if (i < count) {  // the tail goes through full registers too, padded with zeros
        const size_t left = count - i;
        uint8_t padded[sizeof...(K)][W * 4] = {};
        constexpr size_t size[] = {(K < own ? sizeof(typename In::Code) : sizeof(float))...};
        (memcpy(padded[K], from[K] + i * size[K], left * size[K]), ...);
        const Lanes x[] = {load_input<Formula, In, K>(padded[K], 0)...};
        const Lanes y = Formula::apply(x, c);
        look_at(x);
        peak.see(y);
        store<Out>(padded[0], y);
        memcpy(out + i * out_size, padded[0], left * out_size);
    }
    const uint32_t of_inputs = inputs.value();
    return of_inputs < 0x7f800000 ? peak.value() : of_inputs;
}

// ---- a pack at a time

template <class In>
void load_pack(const uint8_t* from, Pack<Lanes>& to) {
    for (size_t k = 0; k < kPack; ++k) to.of[k] = load<In>(from + k * Lanes::width * sizeof(typename In::Code));
}
template <class Out>
void store_pack(uint8_t* to, const Pack<Lanes>& from) {
    for (size_t k = 0; k < kPack; ++k) store<Out>(to + k * Lanes::width * sizeof(typename Out::Code), from.of[k]);
}

// How packs are loaded and stored: by calls, so that a formula is compiled once for all pairs of dtypes.
struct PackEnds {
    void (*load)(const uint8_t*, Pack<Lanes>&);
    void (*store)(uint8_t*, const Pack<Lanes>&);
    size_t size, out_size;  // bytes of an element
};
template <class In, class Out>
constexpr PackEnds kPackEnds{load_pack<In>, store_pack<Out>, sizeof(typename In::Code), sizeof(typename Out::Code)};

// Flat, for a pack that is handed to a function goes through memory.
template <class Formula, size_t... K, size_t... C>
[[gnu::flatten, gnu::noinline]] uint32_t packed_with(const Operand* operands, uint8_t* out, size_t count,
                                                     const float* constants, const PackEnds& ends,
                                                     std::index_sequence<K...>, std::index_sequence<C...>) {
    static_assert(Formula::generated == 0);
    constexpr size_t step = kPack * Lanes::width;
    Pack<Lanes> c[sizeof...(C)], x[sizeof...(K)];
    for (size_t k = 0; k < kPack; ++k) ((c[C].of[k] = Lanes::all(constants[C])), ...);
    Peak peak = Peak::none(), inputs = Peak::none();
    uint8_t padded[sizeof...(K)][step * 4] = {};
    for (size_t i = 0; i < count; i += step) {
        const uint8_t* from[] = {operands[K].data + i * ends.size...};
        uint8_t* to = out + i * ends.out_size;
        const size_t n = count - i < step ? count - i : step;
        if (n < step) {  // the tail goes through full registers too, padded with zeros
            (memcpy(padded[K], from[K], n * ends.size), ...);
            ((from[K] = padded[K]), ...);
            to = padded[0];
        }
        (ends.load(from[K], x[K]), ...);
        const Pack<Lanes> y = Formula::apply(x, c);
        for (size_t k = 0; k < kPack; ++k) {
            (inputs.see(x[K].of[k]), ...);
            peak.see(y.of[k]);
        }
        ends.store(to, y);
        if (n < step) memcpy(out + i * ends.out_size, to, n * ends.out_size);
    }
    const uint32_t of_inputs = inputs.value();
    return of_inputs < 0x7f800000 ? peak.value() : of_inputs;
}

template <class Formula, class In, class Out>
uint32_t fused(const Operand* operands, uint8_t* out, size_t count, const float* constants) {
    if constexpr (Formula::packed) {
        return packed_with<Formula>(operands, out, count, constants, kPackEnds<In, Out>,
                                    std::make_index_sequence<Formula::inputs>(),
                                    std::make_index_sequence<Formula::constants>());
    } else if constexpr (Trimmed<Formula>::exists) {
        using Kernel = Trimmed<Formula>;
        float within[Formula::generated], own[Kernel::constants];
        for (int k = 0; k < Formula::generated; ++k)
            memcpy(within + k, operands[Kernel::inputs + k].data, sizeof(float));
        if (!Kernel::constants_of(constants, within, own)) return UINT32_MAX;
        return fused_with<Kernel, In, Out>(operands, out, count, own, std::make_index_sequence<Kernel::inputs>(),
                                           std::make_index_sequence<Kernel::constants>());
    } else {
        return fused_with<Formula, In, Out>(operands, out, count, constants,
                                            std::make_index_sequence<Formula::inputs>(),
                                            std::make_index_sequence<Formula::constants>());
    }
}

constexpr int kNarrow = kDTypes - 1;

struct FusedRow {
    FusedKernel kernel[kNarrow][kNarrow];  // [input dtype][output dtype], both less f64
    bool trimmed;                          // its generated inputs must be `within`, each one number all over
};

// Null for formulas of fp8 that are not sums: few need them, and most pairs of dtypes are a kernel more to compile.
template <class Formula, bool sum, class In, class Out>
constexpr FusedKernel fused_kernel() {
    if constexpr (sum || Formula::packed || (sizeof(typename In::Code) > 1 && sizeof(typename Out::Code) > 1)) {
        return fused<Formula, In, Out>;
    } else {
        return nullptr;
    }
}

template <class Formula, bool sum, class In>
void fill_row(FusedKernel (&row)[kNarrow]) {
#define SDS_FILL(word, Out) row[static_cast<int>(DType::word) - 1] = fused_kernel<Formula, sum, In, Out>();
    SDS_NARROW_DTYPES(SDS_FILL)
#undef SDS_FILL
}

template <bool sum>
struct RowFiller {
    FusedRow* next;
    template <class Formula>
    void operator()(Formula) {
#define SDS_FILL(word, In) fill_row<Formula, sum, In>(next->kernel[static_cast<int>(DType::word) - 1]);
        SDS_NARROW_DTYPES(SDS_FILL)
#undef SDS_FILL
        next->trimmed = Trimmed<Formula>::exists;
        ++next;
    }
};

struct FusedTable {
    FusedRow rows[formulas::kFormulas];
    FusedTable() {
        RowFiller<true> sums{rows};
        formulas::for_each_sum(sums);
        RowFiller<false> others{sums.next};
        formulas::for_each_other(others);
    }
    // Null where there is none for these operands and dtypes, both less f64.
    FusedKernel at(const Program& program, const Operand* operands, DType in, DType out) const {
        const FusedRow& row = rows[program.fused];
        for (int k = program.own; row.trimmed && k < program.inputs; ++k) {
            if (operands[k].generated->kind != Generated::within) return nullptr;
        }
        return row.kernel[static_cast<int>(in) - 1][static_cast<int>(out) - 1];
    }
};

// ---- sums of multiples of any number of inputs, of any dtypes but float64: in registers too, an input after the other

constexpr size_t kSummed = Lanes::width == 16 ? 8 : 4;  // registers of results at a time

template <class In>
inline void add_multiples(Lanes* sums, Lanes weight, const uint8_t* from) {
    for (size_t part = 0; part < kSummed; ++part)
        sums[part] = sums[part] + weight * load<In>(from + part * Lanes::width * sizeof(typename In::Code));
}
template <class In>
inline void set_multiples(Lanes* sums, Lanes weight, const uint8_t* from) {
    for (size_t part = 0; part < kSummed; ++part)
        sums[part] = weight * load<In>(from + part * Lanes::width * sizeof(typename In::Code));
}

// What `operands` have from `at` (of each its bytes) on.
template <class At>
inline void sum_multiples(const Operand* operands, int inputs, const float* weights, At at, Lanes* sums) {
    Lanes y[kSummed];
    for (int k = 0; k < inputs; ++k) {
        const Lanes weight = Lanes::all(weights[k]);
        const uint8_t* const from = at(k);
#define SDS_MULTIPLES(word, In) \
    case DType::word: k == 0 ? set_multiples<In>(y, weight, from) : add_multiples<In>(y, weight, from); break;
        switch (operands[k].dtype) {
            SDS_NARROW_DTYPES(SDS_MULTIPLES)
            case DType::f64: break;  // makes the whole job wide
        }
#undef SDS_MULTIPLES
    }
    for (size_t part = 0; part < kSummed; ++part) sums[part] = y[part];
}

template <class Out>
uint32_t weighted_sum(const Operand* operands, int inputs, uint8_t* out, size_t count, const float* weights,
                      float added) {
    constexpr size_t step = kSummed * Lanes::width, out_size = sizeof(typename Out::Code);
    Peak peak = Peak::none();
    const Lanes last = Lanes::all(added);
    Lanes sums[kSummed];
    size_t i = 0;
    const auto finish = [&](uint8_t* to) {
        for (size_t part = 0; part < kSummed; ++part) {
            sums[part] = sums[part] + last;
            peak.see(sums[part]);
            store<Out>(to + part * Lanes::width * out_size, sums[part]);
        }
    };
    for (; i + step <= count; i += step) {
        sum_multiples(
            operands, inputs, weights, [&](int k) { return operands[k].data + i * size_of(operands[k].dtype); }, sums);
        finish(out + i * out_size);
    }
    if (i < count) {  // the rest goes through full registers too, padded with zeros
        uint8_t padded[step * 4];
        const auto rest = [&](int k) {
            const size_t size = size_of(operands[k].dtype);
            memcpy(padded, operands[k].data + i * size, (count - i) * size);
            memset(padded + (count - i) * size, 0, (step - (count - i)) * size);
            return padded;
        };
        sum_multiples(operands, inputs, weights, rest, sums);
        finish(padded);
        memcpy(out + i * out_size, padded, (count - i) * out_size);
    }
    return peak.value();
}

using SumKernel = uint32_t (*)(const Operand*, int, uint8_t*, size_t, const float*, float);
inline SumKernel sum_kernel(DType out) {
#define SDS_KERNEL(word, Out) weighted_sum<Out>,
    static const SumKernel kernels[] = {SDS_NARROW_DTYPES(SDS_KERNEL)};
#undef SDS_KERNEL
    return kernels[static_cast<int>(out) - 1];
}
