// The loop of stages.h: a stage's steps, strip by strip, and their results into accumulators. Included once per CPU
// target, inside that target's namespace and region, after elementwise.inl.h and reduce.inl.h.

// Where a line's next terms are, and the eight lanes that they are added to. A sum is a product with ones.
struct Terms {
    const double *x, *y;
    double* lanes;
};

// Of several reductions side by side, so that none waits for the sum before: `n` terms of each, a multiple of eight.
// `exact`: the products are, as those of two float32, so they may be fused with the sum: one rounding either way.
// `shared`: all have the same x.
template <size_t count, bool exact, bool shared>
void add_side_by_side(const Terms* terms, size_t n) {
    constexpr size_t W = Doubles::width;
    Doubles sums[count][kRegisters];
    for (size_t k = 0; k < count; ++k) {
        for (size_t r = 0; r < kRegisters; ++r) sums[k][r] = widened(terms[k].lanes + r * W);
    }
    for (size_t i = 0; i < n; i += kReduceLanes) {
        for (size_t r = 0; r < kRegisters; ++r) {
            const Doubles first = widened(terms[0].x + i + r * W);
            for (size_t k = 0; k < count; ++k) {
                const Doubles x = shared ? first : widened(terms[k].x + i + r * W);
                const Doubles y = widened(terms[k].y + i + r * W);
                sums[k][r] = exact ? fused(sums[k][r], x, y) : sums[k][r] + x * y;
            }
        }
    }
    for (size_t k = 0; k < count; ++k) {
        for (size_t r = 0; r < kRegisters; ++r) sums[k][r].write(terms[k].lanes + r * W);
    }
}

// `count` of them, at most `most`.
template <size_t most, bool exact>
void add_octets(const Terms* terms, size_t count, bool shared, size_t n) {
    if constexpr (most > 1) {
        if (count < most) return add_octets<most - 1, exact>(terms, count, shared, n);
    }
    shared ? add_side_by_side<most, exact, true>(terms, n) : add_side_by_side<most, exact, false>(terms, n);
}

template <bool exact>
void add_octets(const Terms* terms, size_t count, size_t n) {
    constexpr size_t most = kRegisters < 8 ? 8 / kRegisters : 1;
    for (size_t now; count > 0; count -= now, terms += now) {
        size_t alike = 1;
        while (alike < count && terms[alike].x == terms[0].x) ++alike;
        const bool shared = alike > 2;
        now = shared ? alike : count;
        now = now < most ? now : most;
        add_octets<most, exact>(terms, now, shared, n);
    }
}

// The next `n` terms of lines of which `at` terms have been in this block.
template <bool exact>
void add_terms(Terms* terms, size_t count, size_t n, size_t at) {
    const auto one_by_one = [terms, count](size_t from, size_t to, size_t at) {
        for (size_t k = 0; k < count; ++k) {
            for (size_t i = from; i < to; ++i) terms[k].lanes[(at + i) % kReduceLanes] += terms[k].x[i] * terms[k].y[i];
        }
    };
    const size_t left = (kReduceLanes - at % kReduceLanes) % kReduceLanes, head = left < n ? left : n;
    const size_t body = (n - head) / kReduceLanes * kReduceLanes;
    const auto go_on = [terms, count](size_t by) {
        for (size_t k = 0; k < count; ++k) {
            terms[k].x += by;
            terms[k].y += by;
        }
    };
    one_by_one(0, head, at);
    go_on(head);
    if (body > 0) add_octets<exact>(terms, count, body);
    go_on(body);
    one_by_one(0, n - head - body, at + head + body);
    go_on(n - head - body);
}

// Reductions along the same lines, whose terms are a strip.
template <bool exact>
void accumulate_lines(Accumulator* const* into, Terms* terms, size_t count, size_t n) {
    while (n > 0) {
        const Accumulator& any = *into[0];
        const size_t at = any.position % kReduceBlock;
        size_t now = static_cast<size_t>(any.line - any.position);
        now = now < kReduceBlock - at ? now : kReduceBlock - at;
        now = now < n ? now : n;
        add_terms<exact>(terms, count, now, at);
        for (size_t k = 0; k < count; ++k) into[k]->advance(now);
        n -= now;
    }
}

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

// The sums and products of a stage that are made along lines, strip by strip. Each expression is widened once.
template <class T>
class LineSums {
 public:
    LineSums(const Strips<T>& work, const Reduce* reductions, Accumulator* into, size_t reduction_count, size_t pass) {
        for (size_t k = 0; k < reduction_count && pass == 0; ++k) {
            if (!into[k].adds_lines() || Products<T>::has(into[k])) continue;
            const size_t x = place(work.at(reductions[k].a));
            const size_t y = reductions[k].kind == Reduce::dot ? place(work.at(reductions[k].b)) : 0;
            lines_[static_cast<size_t>(into[k].along)].push_back({&into[k], x, y});
        }
        if (strips_.empty()) return;
        wide_.resize(1 + strips_.size(), wide_ones());
    }

    void add(size_t n) {
        for (size_t s = 0; s < strips_.size(); ++s) {
            double* const to = wide_[1 + s].at;
            const T* const from = strips_[s];
            for (size_t i = 0; i < n; ++i) to[i] = static_cast<double>(from[i]);
        }
        for (const auto& lines : lines_) add_along(lines, n);
    }

 private:
    struct Line {
        Accumulator* into;
        size_t x, y;  // their places in `wide_`
    };

    size_t place(const T* strip) {
        size_t s = 0;
        while (s < strips_.size() && strips_[s] != strip) ++s;
        if (s == strips_.size()) strips_.push_back(strip);
        return 1 + s;
    }

    void add_along(const std::vector<Line>& lines, size_t n) {
        constexpr size_t most = 64;
        Terms terms[most];
        Accumulator* group[most];
        for (size_t first = 0; first < lines.size(); first += most) {
            const size_t count = lines.size() - first < most ? lines.size() - first : most;
            for (size_t k = 0; k < count; ++k) {
                const Line& line = lines[first + k];
                terms[k] = {wide_[line.x].at, wide_[line.y].at, line.into->lanes.data()};
                group[k] = line.into;
            }
            accumulate_lines<sizeof(T) == sizeof(float)>(group, terms, count, n);
        }
    }

    std::vector<const T*> strips_;
    std::vector<WideStrip> wide_;  // ones, then the strips
    std::vector<Line> lines_[static_cast<size_t>(Along::kCount)];
};

// Marks the inputs that neither the steps nor what this pass wants read as strips; false if nothing reads any.
template <class T>
bool leave_out_unused(Strips<T>& work, const Program& program, const Products<T>& products, const Reduce* reductions,
                      const Accumulator* into, size_t reduction_count, size_t pass) {
    for (bool& unused : work.unused) unused = true;
    bool strips = products.reads_strips();
    const auto use = [&work](Ref ref) {
        if (ref.kind == Ref::input) work.unused[ref.index] = false;
    };
    for (size_t k = 0; k < reduction_count; ++k) {
        if (!into[k].wants(pass) || Products<T>::has(into[k])) continue;
        strips = true;
        if (expressions(reductions[k].kind) > 0) use(reductions[k].a);
        if (expressions(reductions[k].kind) > 1) use(reductions[k].b);
        for (size_t a = 0; a < into[k].arrays.size() && reductions[k].kind == Reduce::whole; ++a)
            use(reductions[k].args[a]);
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
                       const Reduce* reductions, Accumulator* into, size_t reduction_count, size_t pass,
                       Scratch& scratch) {
    Strips<T> work(program, constants, scratch);
    Products<T> products(work, operands, reductions, into, reduction_count, pass);
    const bool strips = leave_out_unused(work, program, products, reductions, into, reduction_count, pass);
    LineSums<T> sums(work, reductions, into, reduction_count, pass);
    for (size_t first = 0; first < count; first += kStrip) {
        const size_t n = count - first < kStrip ? count - first : kStrip;
        if (strips) work.run(operands, first, n);
        products.add(first, n);
        sums.add(n);
        decltype(key_of(T())) keys[kStrip];
        const T* keyed = nullptr;  // what they are the keys of
        for (size_t k = 0; k < reduction_count; ++k) {
            if (!into[k].wants(pass) || into[k].adds_lines()) continue;
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
                if (into[k].selection->counted_by_twin()) continue;
                for (size_t i = 0; i < n && keyed != x; ++i) keys[i] = key_of(x[i]);
                keyed = x;
                select_strip(*into[k].selection, keys, n);
            } else if (into[k].along == Along::first) {
                accumulate_columns(into[k], x, y, n);
            } else if (into[k].along == Along::inputs) {
                accumulate_inputs(into[k], x, y, n);
            } else {
                accumulate_extreme(into[k], x, n);
            }
        }
    }
    products.end_block();
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
