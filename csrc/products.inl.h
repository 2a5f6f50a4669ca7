// Sums and dot products over a whole tensor, of the terms of a stage (stages.h): every expression is widened to float64
// once, in strips that stay in the L1 cache, and products are added in tiles whose sums live in registers, so that a
// load serves several of them. Included once per CPU target, inside that target's namespace and region, after
// elementwise.inl.h and reduce.inl.h.
//
// Numeric rule: that of reduce.h. A tile adds whole octets of elements; what is missing of a block's last octet is 0.

// A tile has this many rows and columns at most: their sums and a row or column of terms fit the registers.
constexpr size_t kTile = Doubles::width == 8 || Doubles::width == 2 ? 4 : 3;  // 32 of AVX-512 and NEON, else 16
constexpr size_t kAhead = 2;  // strips of stored elements that are fetched ahead

// Terms of `rows` expressions times those of `columns`, added to eight lanes each. `exact`: products are, as those of
// two float32, so they may be fused with the sum: one rounding either way. `upper`: rows and columns are the same
// expressions, and what is left of the diagonal is not wanted.
template <size_t rows, size_t columns, bool upper, bool exact, size_t... K>
void add_tile(const double* const* x, const double* const* y, double (*lanes)[kReduceLanes], size_t n,
              std::index_sequence<K...>) {
    constexpr auto row = [](size_t k) { return k / columns; };
    constexpr auto column = [](size_t k) { return k % columns; };
    constexpr auto wanted = [](size_t k) { return !upper || k / columns <= k % columns; };
    for (size_t at = 0; at < kReduceLanes; at += Doubles::width) {
        Doubles sums[] = {widened(lanes[row(K) * kTile + column(K)] + at)...};
        const auto add = [](Doubles& sum, Doubles a, Doubles b) { sum = exact ? fused(sum, a, b) : sum + a * b; };
        for (size_t i = at; i < n; i += kReduceLanes) {
            // Loads that are the same are made once.
            ((wanted(K) ? add(sums[K], widened(x[row(K)] + i), widened(y[column(K)] + i)) : void()), ...);
        }
        (sums[K].write(lanes[row(K) * kTile + column(K)] + at), ...);
    }
}

struct ProductTile {
    size_t rows = 0, columns = 0;
    const double *x[kTile] = {}, *y[kTile] = {};
    bool upper = false;
    alignas(64) double lanes[kTile * kTile][kReduceLanes] = {};

    template <bool exact, size_t most_rows = kTile, size_t most_columns = kTile>
    void add(size_t n) {
        if constexpr (most_rows > 1) {
            if (rows < most_rows) return add<exact, most_rows - 1, most_columns>(n);
        }
        if constexpr (most_columns > 1) {
            if (columns < most_columns) return add<exact, most_rows, most_columns - 1>(n);
        }
        constexpr auto all = std::make_index_sequence<most_rows * most_columns>();
        if constexpr (most_rows == most_columns) {
            if (upper) return add_tile<most_rows, most_columns, true, exact>(x, x, lanes, n, all);
        }
        add_tile<most_rows, most_columns, false, exact>(x, y, lanes, n, all);
    }
};

// ---- terms: `count` of them as float64, padded with zeros to whole octets; a strip at most

inline void pad_octet(double* to, size_t count) {
    for (; count % kReduceLanes != 0; ++count) to[count] = 0;
}

inline void write_widened(Lanes x, double* to) {
    Doubles wide[Lanes::width / Doubles::width];
    widen_lanes(x, wide);
    for (size_t r = 0; r < Lanes::width / Doubles::width; ++r) wide[r].write(to + r * Doubles::width);
}

template <class Load>
void widen_terms(Load load_lanes, double* to, size_t count) {
    size_t i = 0;
    for (; i + Lanes::width <= count; i += Lanes::width) write_widened(load_lanes(i, false), to + i);
    if (i < count) write_widened(load_lanes(i, true), to + i);  // within the strip, whose size is whole registers
    pad_octet(to, count);
}

template <class Stored>
Lanes load_some(const uint8_t* from, size_t count) {
    uint8_t padded[Lanes::width * sizeof(typename Stored::Code)] = {};
    memcpy(padded, from, count * sizeof(typename Stored::Code));
    return load<Stored>(padded);
}

template <class Stored>
void widen_stored(const uint8_t* from, double* to, size_t count) {
    constexpr size_t size = sizeof(typename Stored::Code);
    const auto at = [from, count](size_t i, bool last) {
        return last ? load_some<Stored>(from + i * size, count - i) : load<Stored>(from + i * size);
    };
    widen_terms(at, to, count);
}

// Differences of elements of one dtype, rounded to float32 as a step of a program is.
template <class Stored>
void widen_differences(const uint8_t* a, const uint8_t* b, double* to, size_t count) {
    constexpr size_t size = sizeof(typename Stored::Code);
    const auto at = [a, b, count](size_t i, bool last) {
        return last ? load_some<Stored>(a + i * size, count - i) - load_some<Stored>(b + i * size, count - i)
                    : load<Stored>(a + i * size) - load<Stored>(b + i * size);
    };
    widen_terms(at, to, count);
}

inline void widen_strip(const float* from, double* to, size_t count) {
    widen_stored<F32>(reinterpret_cast<const uint8_t*>(from), to, count);
}
inline void widen_strip(const double* from, double* to, size_t count) {
    memcpy(to, from, count * sizeof(double));
    pad_octet(to, count);
}

inline void widen_stored(DType dtype, const uint8_t* from, double* to, size_t count) {
#define SDS_WIDEN(word, Stored) \
    case DType::word: widen_stored<Stored>(from, to, count); break;
    switch (dtype) {
        SDS_NARROW_DTYPES(SDS_WIDEN)
        case DType::f64:
            memcpy(to, from, count * sizeof(double));
            pad_octet(to, count);
            break;
    }
#undef SDS_WIDEN
}

inline void widen_differences(DType dtype, const uint8_t* a, const uint8_t* b, double* to, size_t count) {
#define SDS_WIDEN(word, Stored) \
    case DType::word: widen_differences<Stored>(a, b, to, count); break;
    switch (dtype) {
        SDS_NARROW_DTYPES(SDS_WIDEN)
        case DType::f64: {
            double x[kStrip], y[kStrip];
            memcpy(x, a, count * sizeof(double));
            memcpy(y, b, count * sizeof(double));
            for (size_t i = 0; i < count; ++i) to[i] = x[i] - y[i];
            pad_octet(to, count);
            break;
        }
    }
#undef SDS_WIDEN
}

// From a cache line's start on: registers that lie across two lines take twice as long.
struct alignas(64) WideStrip {
    double at[kStrip];
};

inline WideStrip wide_ones() {
    WideStrip made;
    for (double& each : made.at) each = 1;
    return made;
}

// A reduction of a stage, and what it adds to.
struct Reducing {
    const Reduce* reduce;
    Accumulator* into;
};

// What a stage adds up over the whole tensor. T is what its steps compute in.
template <class T>
class Products {
 public:
    static bool has(const Accumulator& into) {
        return into.along == Along::all && (into.kind == Reduce::sum || into.kind == Reduce::dot);
    }

    // Only whole blocks come, but for the tensor's last.
    Products(const Strips<T>& work, const Operand* operands, const std::vector<Reducing>& wanted)
        : work_(work), operands_(operands) {
        for (const Reducing& each : wanted) {
            if (!has(*each.into)) continue;
            size_t x = place(terms_of(each.reduce->a));
            size_t y = place(each.into->kind == Reduce::dot ? terms_of(each.reduce->b) : Term{});
            if (x > y) std::swap(x, y);
            wanted_.push_back({each.into, x, y});
        }
        wide_.resize(terms_.size(), wide_ones());
        make_tiles();
    }

    // Whether a term of one of the sums is read from a strip, and not from stored elements.
    bool reads_strips() const {
        return std::any_of(terms_.begin(), terms_.end(), [](const Term& each) { return each.strip; });
    }
    bool reads(int input) const {  // as a strip
        return std::any_of(terms_.begin(), terms_.end(),
                           [&](const Term& each) { return each.strip == work_.at({Ref::input, input}); });
    }

    void add(size_t first, size_t n) {
        if (wanted_.empty()) return;
        const auto stored = [&](int input) { return operands_[input].data + first * size_of(operands_[input].dtype); };
        for (size_t s = 0; s < terms_.size(); ++s) {
            const Term& from = terms_[s];
            double* const to = wide_[s].at;
            if (from.input >= 0) {
                const size_t bytes = n * size_of(operands_[from.input].dtype);
                prefetch(stored(from.input) + kAhead * bytes, bytes);
            }
            if (from.strip) {
                widen_strip(from.strip, to, n);
            } else if (from.less >= 0) {
                widen_differences(operands_[from.input].dtype, stored(from.input), stored(from.less), to, n);
            } else if (from.input >= 0) {
                widen_stored(operands_[from.input].dtype, stored(from.input), to, n);
            }
        }
        constexpr bool exact = sizeof(T) == sizeof(float);
        for (ProductTile& tile : tiles_) tile.template add<exact>((n + kReduceLanes - 1) / kReduceLanes * kReduceLanes);
        in_block_ += n;
        if (in_block_ == kReduceBlock) end_block();
    }

    void end_block() {
        if (in_block_ == 0) return;
        for (const Wanted& each : wanted_) each.into->add_block(sum_of(each.lanes), in_block_);
        for (ProductTile& tile : tiles_) memset(tile.lanes, 0, sizeof tile.lanes);
        in_block_ = 0;
    }

 private:
    // Of an expression: its strip, or a stored input, or the difference of two, which are read as they are stored. None
    // of them: ones, a product with which is a sum.
    struct Term {
        const T* strip = nullptr;
        int input = -1, less = -1;
    };
    struct Wanted {
        Accumulator* into;
        size_t x, y;
        const double* lanes = nullptr;
    };

    bool is_stored(Ref ref) const { return ref.kind == Ref::input && !operands_[ref.index].generated; }

    Term terms_of(Ref ref) const {
        if (is_stored(ref)) return {nullptr, ref.index};
        const Step* made = nullptr;
        for (const Step& step : work_.program.steps) {
            if (ref.kind == Ref::temp && step.to == ref.index) made = &step;
        }
        const bool difference = sizeof(T) == sizeof(float) && made && made->op == Op::sub && is_stored(made->a) &&
                                is_stored(made->b) && operands_[made->a.index].dtype == operands_[made->b.index].dtype;
        if (difference) return {nullptr, made->a.index, made->b.index};
        return {work_.at(ref)};
    }

    size_t place(Term terms) {
        for (size_t s = 0; s < terms_.size(); ++s) {
            const Term& each = terms_[s];
            if (each.strip == terms.strip && each.input == terms.input && each.less == terms.less) return s;
        }
        terms_.push_back(terms);
        return terms_.size() - 1;
    }

    // Expressions in groups that have products with each other, and a tile for each pair of groups of which products
    // are wanted.
    void make_tiles() {
        std::vector<std::vector<size_t>> groups;
        for (size_t s = 0; s < terms_.size(); ++s) {
            if (groups.empty() || groups.back().size() == kTile || !is_wanted(groups.back()[0], s))
                groups.emplace_back();
            groups.back().push_back(s);
        }
        tiles_.reserve(groups.size() * groups.size());  // their lanes stay where they are
        for (size_t left = 0; left < groups.size(); ++left) {
            for (size_t right = left; right < groups.size(); ++right) make_tile(groups[left], groups[right]);
        }
    }

    bool is_wanted(size_t x, size_t y) const {
        return std::any_of(wanted_.begin(), wanted_.end(),
                           [=](const Wanted& each) { return each.x == x && each.y == y; });
    }

    void make_tile(const std::vector<size_t>& left, const std::vector<size_t>& right) {
        const auto is_in = [](const std::vector<size_t>& group, size_t s) {
            return group.front() <= s && s <= group.back();
        };
        std::vector<Wanted*> chosen;
        std::vector<size_t> rows, columns;
        const bool upper = left == right;  // x is never behind y
        for (Wanted& each : wanted_) {
            if (!is_in(left, each.x) || !is_in(right, each.y)) continue;
            chosen.push_back(&each);
            rows.push_back(each.x);
            (upper ? rows : columns).push_back(each.y);
        }
        if (chosen.empty()) return;
        ProductTile tile;
        tile.upper = upper;
        tile.rows = gathered(rows, tile.x);
        tile.columns = upper ? tile.rows : gathered(columns, tile.y);
        tiles_.push_back(tile);
        for (Wanted* each : chosen) {
            const size_t row = place_in(rows, each->x), column = place_in(upper ? rows : columns, each->y);
            each->lanes = tiles_.back().lanes[row * kTile + column];
        }
    }

    // The strips of these terms, each once and in their order.
    size_t gathered(std::vector<size_t>& terms, const double** strips) const {
        std::sort(terms.begin(), terms.end());
        terms.erase(std::unique(terms.begin(), terms.end()), terms.end());
        for (size_t k = 0; k < terms.size(); ++k) strips[k] = wide_[terms[k]].at;
        return terms.size();
    }

    static size_t place_in(const std::vector<size_t>& terms, size_t s) {
        return static_cast<size_t>(std::find(terms.begin(), terms.end(), s) - terms.begin());
    }

    const Strips<T>& work_;
    const Operand* const operands_;
    std::vector<Term> terms_;
    std::vector<Wanted> wanted_;
    std::vector<ProductTile> tiles_;
    std::vector<WideStrip> wide_;  // of each of terms_
    size_t in_block_ = 0;
};
