// The loop of stages.h: a stage's steps, strip by strip, and their results into accumulators. Included once per CPU
// target, inside that target's namespace and region, after elementwise.inl.h and reduce.inl.h.

// Terms of one line, the first of which is element `at` of a block, into eight lanes.
template <class T>
inline void add_terms(const T* x, const T* y, size_t n, size_t at, double* lanes) {
    size_t i = 0;
    const auto term = [x, y](size_t k) {
        return y ? static_cast<double>(x[k]) * static_cast<double>(y[k]) : static_cast<double>(x[k]);
    };
    for (; i < n && (at + i) % kReduceLanes != 0; ++i) lanes[(at + i) % kReduceLanes] += term(i);
    double l[kReduceLanes];
    memcpy(l, lanes, sizeof l);
    for (; i + kReduceLanes <= n; i += kReduceLanes) {
        for (size_t j = 0; j < kReduceLanes; ++j) l[j] += term(i + j);
    }
    memcpy(lanes, l, sizeof l);
    for (; i < n; ++i) lanes[(at + i) % kReduceLanes] += term(i);
}

// A NaN stays, once it is found: no comparison with it is true.
template <class T>
inline void find_extreme(Reduce::Kind kind, const T* x, size_t n, double* found) {
    double top = *found;
    if (kind == Reduce::minimum) {
        for (size_t i = 0; i < n; ++i) top = x[i] < top || x[i] != x[i] ? static_cast<double>(x[i]) : top;
    } else {
        for (size_t i = 0; i < n; ++i) top = x[i] > top || x[i] != x[i] ? static_cast<double>(x[i]) : top;
    }
    *found = top;
}

template <class T>
void accumulate_line(Accumulator& into, const T* x, const T* y, size_t n) {
    while (n > 0) {
        const size_t at = into.position % kReduceBlock;
        size_t now = static_cast<size_t>(into.line - into.position);
        now = now < kReduceBlock - at ? now : kReduceBlock - at;
        now = now < n ? now : n;
        if (into.is_extreme()) {
            find_extreme(into.kind, x, now, into.total.data());
        } else {
            add_terms(x, y, now, at, into.lanes.data());
        }
        into.advance(now);
        x += now;
        y = y ? y + now : y;
        n -= now;
    }
}

// Rows of a tensor, one after the other: a lane of every column at a time.
template <class T>
void accumulate_columns(Accumulator& into, const T* x, const T* y, size_t n) {
    while (n > 0) {
        const size_t row = static_cast<size_t>(into.position / into.columns), at = into.position % into.columns;
        size_t now = static_cast<size_t>(into.columns - at);
        now = now < n ? now : n;
        if (into.is_extreme()) {
            for (size_t i = 0; i < now; ++i) find_extreme(into.kind, x + i, 1, into.total.data() + at + i);
        } else {
            double* const lane = into.lanes.data() + row % kReduceLanes * into.columns + at;
            if (y) {
                for (size_t i = 0; i < now; ++i) lane[i] += static_cast<double>(x[i]) * static_cast<double>(y[i]);
            } else {
                for (size_t i = 0; i < now; ++i) lane[i] += static_cast<double>(x[i]);
            }
        }
        into.advance(now);
        x += now;
        y = y ? y + now : y;
        n -= now;
    }
}

// Terms of whole rows, in the order of a kernel's places: as rows of a tensor whose columns are the inputs.
template <class T>
void accumulate_inputs(Accumulator& into, const T* x, const T* y, size_t n) {
    const size_t inputs = static_cast<size_t>(into.columns), whole = static_cast<size_t>(into.whole_row),
                 taps = whole / inputs;
    std::vector<double> turned(whole);
    for (size_t i = 0; i < n; ++i) {
        into.row.push_back(y ? static_cast<double>(x[i]) * static_cast<double>(y[i]) : static_cast<double>(x[i]));
        if (into.row.size() < whole) continue;
        for (size_t c = 0; c < inputs; ++c) {
            for (size_t t = 0; t < taps; ++t) turned[t * inputs + c] = into.row[c * taps + t];
        }
        into.row.clear();
        accumulate_columns<double>(into, turned.data(), nullptr, whole);
    }
}

template <class T>
void accumulate_strips(const Program& program, const T* constants, const Operand* operands, size_t count,
                       const Reduce* reductions, Accumulator* into, size_t reduction_count, size_t pass,
                       Scratch& scratch) {
    Strips<T> work(program, constants, scratch);
    for (size_t first = 0; first < count; first += kStrip) {
        const size_t n = count - first < kStrip ? count - first : kStrip;
        work.run(operands, first, n);
        for (size_t k = 0; k < reduction_count; ++k) {
            if (!into[k].wants(pass)) continue;
            if (into[k].is_kept()) {
                for (size_t a = 0; a < into[k].arrays.size(); ++a)
                    memcpy(into[k].arrays[a].data() + into[k].position * sizeof(T),
                           work.at(into[k].kind == Reduce::mix ? reductions[k].a : reductions[k].args[a]),
                           n * sizeof(T));
                into[k].position += n;
                continue;
            }
            const T* const x = work.at(reductions[k].a);
            const T* const y = reductions[k].kind == Reduce::dot ? work.at(reductions[k].b) : nullptr;
            if (into[k].selection) {
                select_strip(*into[k].selection, x, n);
            } else if (into[k].along == Along::first) {
                accumulate_columns(into[k], x, y, n);
            } else if (into[k].along == Along::inputs) {
                accumulate_inputs(into[k], x, y, n);
            } else {
                accumulate_line(into[k], x, y, n);
            }
        }
    }
}

// ---- dot products of at most two inputs of one dtype: what slerp and its like ask for, straight from the stored bytes

template <class Stored>
void add_dots(const uint8_t* a, const uint8_t* b, size_t count, int first_input, const Reduce* reductions,
              Accumulator* into, size_t reduction_count) {
    constexpr size_t size = sizeof(typename Stored::Code);
    for (size_t first = 0; first < count; first += kReduceBlock) {
        const size_t n = count - first < kReduceBlock ? count - first : kReduceBlock;
        Reduction found;
        add_block<Stored, Dots>(a + first * size, b + first * size, n, found);
        for (size_t k = 0; k < reduction_count; ++k) {
            const Reduce& reduce = reductions[k];
            if (expressions(reduce.kind) == 0) continue;
            const bool same = reduce.a.index == reduce.b.index;
            into[k].add_block(!same                           ? found.sums.dot
                              : reduce.a.index == first_input ? found.sums.aa
                                                              : found.sums.bb,
                              n);
        }
    }
}

inline bool accumulate_dots(const Program& program, const Operand* operands, size_t count, const Reduce* reductions,
                            Accumulator* into, size_t reduction_count) {
    int inputs[2] = {-1, -1};
    for (size_t k = 0; k < reduction_count; ++k) {
        const Reduce& reduce = reductions[k];
        if (expressions(reduce.kind) == 0 && reduce.kind != Reduce::whole) continue;
        if (reduce.kind != Reduce::dot || reduce.along != Along::all || into[k].position % kReduceBlock != 0)
            return false;
        for (Ref ref : {reduce.a, reduce.b}) {
            if (ref.kind != Ref::input) return false;
            if (inputs[0] < 0) inputs[0] = ref.index;
            if (ref.index == inputs[0]) continue;
            if (inputs[1] < 0) inputs[1] = ref.index;
            if (ref.index != inputs[1]) return false;
        }
    }
    if (!program.steps.empty() || inputs[0] < 0) return false;
    if (inputs[1] < 0) inputs[1] = inputs[0];
    const Operand &a = operands[inputs[0]], &b = operands[inputs[1]];
    if (a.dtype != b.dtype || a.generated || b.generated) return false;
#define SDS_DOTS(word, Stored) \
    case DType::word: add_dots<Stored>(a.data, b.data, count, inputs[0], reductions, into, reduction_count); break;
    switch (a.dtype) { SDS_DTYPES(SDS_DOTS) }
#undef SDS_DOTS
    return true;
}

inline void accumulate(const Program& program, const Numbers& numbers, const Operand* operands, size_t count,
                       const Reduce* reductions, Accumulator* into, size_t reduction_count, size_t pass,
                       Scratch& scratch) {
    if (accumulate_dots(program, operands, count, reductions, into, reduction_count)) return;
    bool wide = program.wide;
    for (int k = 0; k < program.inputs; ++k) wide |= operands[k].dtype == DType::f64;
    if (wide) {
        accumulate_strips(program, numbers.wide.data(), operands, count, reductions, into, reduction_count, pass,
                          scratch);
    } else {
        accumulate_strips(program, numbers.narrow.data(), operands, count, reductions, into, reduction_count, pass,
                          scratch);
    }
}
