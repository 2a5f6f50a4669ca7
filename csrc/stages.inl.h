// The loop of stages.h: a stage's steps, strip by strip, and their results into accumulators. Included once per CPU
// target, inside that target's namespace and region, after keys.inl.h.

// A NaN stays, once it is found: no comparison with it is true.
template <class T>
inline void find_extreme(Reduce::Kind kind, const T* x, size_t n, double* found) {
    constexpr size_t width = 64 / sizeof(T);  // the order does not matter
    T top[width];
    for (size_t j = 0; j < width; ++j) top[j] = static_cast<T>(*found);
    size_t i = 0;
    if (kind == Reduce::minimum) {
        for (; i + width <= n; i += width) {
            for (size_t j = 0; j < width; ++j)
                top[j] = (x[i + j] < top[j]) | (x[i + j] != x[i + j]) ? x[i + j] : top[j];
        }
        for (; i < n; ++i) top[0] = x[i] < top[0] || x[i] != x[i] ? x[i] : top[0];
        for (size_t j = 1; j < width; ++j) top[0] = top[j] < top[0] || top[j] != top[j] ? top[j] : top[0];
    } else {
        for (; i + width <= n; i += width) {
            for (size_t j = 0; j < width; ++j)
                top[j] = (x[i + j] > top[j]) | (x[i + j] != x[i + j]) ? x[i + j] : top[j];
        }
        for (; i < n; ++i) top[0] = x[i] > top[0] || x[i] != x[i] ? x[i] : top[0];
        for (size_t j = 1; j < width; ++j) top[0] = top[j] > top[0] || top[j] != top[j] ? top[j] : top[0];
    }
    *found = top[0];
}

template <class T>
void accumulate_extreme(Accumulator& into, const T* x, size_t n) {
    while (n > 0) {
        const size_t left = static_cast<size_t>(into.line - into.position), now = left < n ? left : n;
        find_extreme(into.kind, x, now, into.total.data());
        into.advance(now);
        x += now;
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
        double* const total = into.total.data() + at;
        if (into.kind == Reduce::minimum) {
            for (size_t i = 0; i < now; ++i) total[i] = (x[i] < total[i]) | (x[i] != x[i]) ? x[i] : total[i];
        } else if (into.kind == Reduce::maximum) {
            for (size_t i = 0; i < now; ++i) total[i] = (x[i] > total[i]) | (x[i] != x[i]) ? x[i] : total[i];
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

// Marks the inputs that neither the steps nor what is wanted read as strips; false if nothing reads any.
template <class T>
bool leave_out_unused(Strips<T>& work, const Program& program, const Products<T>& products,
                      const std::vector<Reducing>& wanted) {
    for (bool& unused : work.unused) unused = true;
    bool strips = products.reads_strips();
    const auto use = [&work](Ref ref) {
        if (ref.kind == Ref::input) work.unused[ref.index] = false;
    };
    for (const auto& [reduce, into] : wanted) {
        if (Products<T>::has(*into)) continue;
        strips = true;
        if (expressions(reduce->kind) > 0) use(reduce->a);
        if (expressions(reduce->kind) > 1) use(reduce->b);
        for (size_t a = 0; a < into->arrays.size() && reduce->kind == Reduce::whole; ++a) use(reduce->args[a]);
    }
    if (!strips) return false;
    for (int input = 0; input < program.inputs; ++input) {
        if (products.reads(input)) use({Ref::input, input});
    }
    for (const Step& step : program.steps) {
        const Ref args[] = {step.a, step.b, step.c};
        for (int k = 0; k < arity(step.op); ++k) use(args[k]);
    }
    return true;
}

template <class T>
void accumulate_strips(const Program& program, const T* constants, const Operand* operands, size_t count,
                       const std::vector<Reducing>& wanted, Scratch& scratch) {
    Strips<T> work(program, constants, scratch);
    Products<T> products(work, operands, wanted);
    const bool strips = leave_out_unused(work, program, products, wanted);
    LineSums<T> sums(work, wanted);
    for (size_t first = 0; first < count; first += kStrip) {
        const size_t n = count - first < kStrip ? count - first : kStrip;
        if (strips) work.run(operands, first, n);
        products.add(first, n);
        sums.add(n);
        decltype(key_of(T())) keys[kStrip];
        const T* keyed = nullptr;  // what they are the keys of
        for (const auto& [reduce, into] : wanted) {
            if (into->adds_lines()) continue;
            if (into->is_kept()) {
                for (size_t a = 0; a < into->arrays.size(); ++a)
                    memcpy(into->arrays[a].data() + into->position * sizeof(T),
                           work.at(into->kind == Reduce::mix ? reduce->a : reduce->args[a]), n * sizeof(T));
                into->position += n;
                continue;
            }
            const T* const x = work.at(reduce->a);
            const T* const y = reduce->kind == Reduce::dot ? work.at(reduce->b) : nullptr;
            if (into->selection) {
                if (into->selection->counted_by_twin()) continue;
                for (size_t i = 0; i < n && keyed != x; ++i) keys[i] = key_of(x[i]);
                keyed = x;
                select_strip(*into->selection, keys, n);
            } else if (into->along == Along::first) {
                accumulate_columns(*into, x, y, n);
            } else if (into->along == Along::inputs) {
                accumulate_inputs(*into, x, y, n);
            } else {
                accumulate_extreme(*into, x, n);
            }
        }
    }
    products.end_block();
}

inline void accumulate(const Program& program, const Numbers& numbers, const Operand* operands, size_t count,
                       const Reduce* reductions, Accumulator* into, size_t reduction_count, size_t pass,
                       Scratch& scratch) {
    bool wide = program.wide;
    for (int k = 0; k < program.inputs; ++k) wide |= operands[k].dtype == DType::f64;
    std::vector<Reducing> wanted;
    for (size_t k = 0; k < reduction_count; ++k) {
        if (into[k].wants(pass)) wanted.push_back({&reductions[k], &into[k]});
    }
    if (pass == kSamplePass) return StoredKeys(program, operands, wide, wanted).sample(count);
    StoredDots(program, operands, wide, wanted).add(count);
    StoredKeys(program, operands, wide, wanted).add(count);
    if (wanted.empty()) return;
    if (wide) {
        accumulate_strips(program, numbers.wide.data(), operands, count, wanted, scratch);
    } else {
        accumulate_strips(program, numbers.narrow.data(), operands, count, wanted, scratch);
    }
}
