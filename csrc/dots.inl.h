// Sums and dot products of stored elements, or of differences of two, straight from the stored bytes: over the whole
// tensor, along its lines or down its columns. Sums live in registers, and an element is loaded once for all products
// of a group. What a stage reduces besides goes through strips (stages.inl.h). Included once per CPU target, inside
// that target's namespace and region, after products.inl.h and lines.inl.h.
//
// Numeric rule: that of reduce.h. Products of two float32 are exact in float64, so they may be fused with the sum.

// Terms of a group at most, all products of which are made: their sums and a load of each fit the registers, of
// AVX2 those of half the lanes if they are more than two.
constexpr size_t kGroup = Doubles::width >= 4 ? 6 : 2;
constexpr bool in_halves(size_t terms) { return Doubles::width == 4 && terms > 2; }
constexpr size_t kColumnGroup = Doubles::width == 8 ? 3 : 2;  // down columns: as many, of a whole load of elements
constexpr size_t kShortLine = 64;  // below it the strips of lines.inl.h, which hold several, take less time
constexpr size_t pairs_of(size_t terms) { return terms * (terms + 1) / 2; }

// Of a group's terms where each is stored, and (of differences) what is subtracted from all.
struct Places {
    const uint8_t* a[kGroup];
    const uint8_t* less;

    Places at(size_t bytes, size_t terms) const {
        Places moved = *this;
        for (size_t t = 0; t < terms; ++t) moved.a[t] += bytes;
        moved.less += less ? bytes : 0;
        return moved;
    }
};

template <class Stored, bool differences>
struct Loaded {                                                 // elements of one term, as float64
    static constexpr bool exact = Stored::dtype != DType::f64;  // products
    static constexpr size_t count = differences && exact ? Lanes::width : kDoublesLoaded<Stored>;
    static constexpr size_t registers = count / Doubles::width;
    static constexpr size_t size = sizeof(typename Stored::Code);

    Loaded(const Places& from, size_t term, size_t element) {
        const size_t offset = element * size;
        const uint8_t* const a = from.a[term] + offset;
        if constexpr (!differences) {
            load_doubles<Stored>(a, x);
        } else if constexpr (exact) {
            widen_lanes(load<Stored>(a) - load<Stored>(from.less + offset), x);
        } else {
            Doubles other[registers];
            load_doubles<Stored>(a, x);
            load_doubles<Stored>(from.less + offset, other);
            for (size_t r = 0; r < registers; ++r) x[r] = x[r] - other[r];
        }
    }
    static Doubles added(Doubles sum, Doubles a, Doubles b) { return exact ? fused(sum, a, b) : sum + a * b; }

    Doubles x[registers];
};

// Of every octet of elements the half that goes to one register.
template <class Load, size_t half>
struct HalfLoaded {
    static constexpr size_t count = kReduceLanes, registers = 1, size = Load::size;

    HalfLoaded(const Places& from, size_t term, size_t element) {
        constexpr size_t skipped = half - half % Load::registers;
        x[0] = Load(from, term, element + skipped * Doubles::width).x[half - skipped];
    }
    static Doubles added(Doubles sum, Doubles a, Doubles b) { return Load::added(sum, a, b); }

    Doubles x[1];
};

inline Doubles ones() {
    constexpr double each[kReduceLanes] = {1, 1, 1, 1, 1, 1, 1, 1};
    return widened(each);
}

// The elements from `first` on, one load of each term, added to the products: (0, 0), (0, 1), …, (1, 1), …
// `sums_too`: the last term is ones. `lane`: of the first element, in registers.
template <size_t terms, class Load, bool sums_too, size_t width>
inline void add_products(const Places& from, size_t first, Doubles (&sums)[pairs_of(terms)][width], size_t lane) {
    Doubles x[terms][Load::registers];
    for (size_t t = 0; t < terms; ++t) {
        if (sums_too && t + 1 == terms) {
            for (Doubles& each : x[t]) each = ones();
        } else {
            const Load loaded(from, t, first);
            for (size_t r = 0; r < Load::registers; ++r) x[t][r] = loaded.x[r];
        }
    }
    for (size_t r = 0; r < Load::registers; ++r) {
        size_t pair = 0;
        for (size_t i = 0; i < terms; ++i) {
            for (size_t j = i; j < terms; ++j, ++pair) {
                Doubles& sum = sums[pair][(lane + r) % width];
                sum = Load::added(sum, x[i][r], x[j][r]);
            }
        }
    }
}

// ---- over a block of the whole tensor, or of a line: each product's sum

// Of each product the lanes that a load has, written from `lane` on.
template <class Load, size_t terms, bool differences, bool sums_too>
void lanes_of_block(const Places& from, size_t count, double (*lanes)[kReduceLanes], size_t lane) {
    constexpr size_t step = Load::count > kReduceLanes ? Load::count : kReduceLanes;
    constexpr size_t width = Load::count == kReduceLanes ? Load::registers : kRegisters;
    Doubles sums[pairs_of(terms)][width];
    for (auto& pair : sums) {
        for (Doubles& each : pair) each = Doubles::zero();
    }
    const auto add = [&sums](const Places& places, size_t first) {
        for (size_t at = 0; at < step; at += Load::count)
            add_products<terms, Load, sums_too>(places, first + at, sums, at / Doubles::width);
    };
    size_t i = 0;
    for (; i + step <= count; i += step) add(from, i);
    if (i < count) {  // the tail, padded with zeros
        uint8_t padded[terms + 1][step * Load::size] = {};
        Places rest{};
        for (size_t t = 0; t < terms - sums_too; ++t) {
            memcpy(padded[t], from.a[t] + i * Load::size, (count - i) * Load::size);
            rest.a[t] = padded[t];
        }
        if (differences) memcpy(padded[terms], from.less + i * Load::size, (count - i) * Load::size);
        rest.less = padded[terms];
        add(rest, 0);
    }
    for (size_t p = 0; p < pairs_of(terms); ++p) {
        for (size_t r = 0; r < width; ++r) sums[p][r].write(lanes[p] + lane + r * Doubles::width);
    }
}

template <class Stored, size_t terms, bool differences, bool sums_too>
void dots_of_block(const Places& from, size_t count, double* found) {
    using Load = Loaded<Stored, differences>;
    double lanes[pairs_of(terms)][kReduceLanes];
    if constexpr (in_halves(terms)) {
        lanes_of_block<HalfLoaded<Load, 0>, terms, differences, sums_too>(from, count, lanes, 0);
        lanes_of_block<HalfLoaded<Load, 1>, terms, differences, sums_too>(from, count, lanes, Doubles::width);
    } else {
        lanes_of_block<Load, terms, differences, sums_too>(from, count, lanes, 0);
    }
    for (size_t p = 0; p < pairs_of(terms); ++p) found[p] = sum_of(lanes[p]);
}

// ---- down the columns of whole rows, the first of which belongs to `first_lane`. lanes[product] is eight rows of as
// many columns, to which is added, or null where the product is not wanted. Takes the columns that make whole loads,
// and returns how many they are.

// Several rows are read side by side, more than processors fetch ahead by themselves.
constexpr size_t kBytesAhead = 256;

// Of `loads` loads from column `c` on. As a pack, so that the sums live in registers.
template <class Load, size_t terms, size_t loads, size_t... I>
void add_rows(const Places& from, size_t columns, size_t c, size_t rows, size_t row, double* const* sums_at,
              std::index_sequence<I...>) {
    constexpr size_t registers = loads * Load::registers;
    const auto at = [&](size_t i) { return sums_at[i / registers] + c + i % registers * Doubles::width; };
    Doubles sums[pairs_of(terms)][registers];
    ((sums[I / registers][I % registers] = sums_at[I / registers] ? widened(at(I)) : Doubles::zero()), ...);
    for (size_t r = row; r < rows; r += kReduceLanes) {
        const Places ahead = from.at((r * columns + c) * Load::size + kBytesAhead, terms);
        for (size_t t = 0; t < terms; ++t) prefetch(ahead.a[t], loads * Load::count * Load::size);
        if (ahead.less) prefetch(ahead.less, loads * Load::count * Load::size);
        for (size_t l = 0; l < loads; ++l)
            add_products<terms, Load, false>(from, r * columns + c + l * Load::count, sums, l * Load::registers);
    }
    ((sums_at[I / registers] ? sums[I / registers][I % registers].write(at(I)) : void()), ...);
}

template <class Stored, size_t terms, bool differences>
size_t dots_of_rows(const Places& from, size_t columns, size_t rows, size_t first_lane, double* const* lanes) {
    using Load = Loaded<Stored, differences>;
    constexpr size_t pairs = pairs_of(terms);
    constexpr size_t together = Doubles::width == 8 && terms < 3 ? 2 : 1;  // a cache line of two bytes an element
    constexpr auto one = std::make_index_sequence<pairs * Load::registers>();
    constexpr auto several = std::make_index_sequence<pairs * Load::registers * together>();
    for (size_t row = 0; row < rows && row < kReduceLanes; ++row) {
        double* sums[pairs];
        for (size_t p = 0; p < pairs; ++p)
            sums[p] = lanes[p] ? lanes[p] + (first_lane + row) % kReduceLanes * columns : nullptr;
        size_t c = 0;
        for (; c + together * Load::count <= columns; c += together * Load::count)
            add_rows<Load, terms, together>(from, columns, c, rows, row, sums, several);
        for (; c + Load::count <= columns; c += Load::count)
            add_rows<Load, terms, 1>(from, columns, c, rows, row, sums, one);
    }
    return columns / Load::count * Load::count;
}

// ---- what is stored of an expression

struct Term {
    int input = -1, less = -1;  // an input, or the difference of two; neither: ones
    bool operator==(const Term& other) const { return input == other.input && less == other.less; }
};

// The last step before `end` that makes a temp; null where `ref` is none.
inline const Step* step_of(const Program& program, Ref ref, const Step* end) {
    const Step* made = nullptr;
    for (const Step* step = program.steps.data(); step != end; ++step) {
        if (ref.kind == Ref::temp && step->to == ref.index) made = step;
    }
    return made;
}

// Whether an expression is, before that step, a stored input or the difference of two; `dtype` is theirs.
inline bool find_term(const Program& program, const Operand* operands, bool wide, Ref ref, const Step* end, Term& term,
                      DType& dtype) {
    const auto is_stored = [operands](Ref of) { return of.kind == Ref::input && !operands[of.index].generated; };
    if (const Step* const made = step_of(program, ref, end)) {
        if (made->op != Op::sub || !is_stored(made->a) || !is_stored(made->b)) return false;
        dtype = operands[made->a.index].dtype;
        term = {made->a.index, made->b.index};
        return dtype == operands[made->b.index].dtype && (!wide || dtype == DType::f64);
    }
    if (!is_stored(ref)) return false;
    dtype = operands[ref.index].dtype;
    term = {ref.index, -1};
    return true;
}

// ---- choosing

struct DotLoops {
    void (*block)(const Places&, size_t count, double* found);
    size_t (*rows)(const Places&, size_t columns, size_t rows, size_t first_lane, double* const* lanes);
};

template <class Stored, bool differences, bool sums_too, size_t terms = kGroup>
DotLoops dot_loops(size_t count) {
    if constexpr (terms > 1) {
        if (count < terms) return dot_loops<Stored, differences, sums_too, terms - 1>(count);
    }
    DotLoops loops{dots_of_block<Stored, terms, differences, sums_too>, nullptr};
    if constexpr (terms <= kColumnGroup && !sums_too) loops.rows = dots_of_rows<Stored, terms, differences>;
    return loops;
}

inline DotLoops dot_loops(DType dtype, bool differences, bool sums_too, size_t terms) {
#define SDS_LOOPS(word, Stored)                                    \
    case DType::word:                                              \
        return differences ? dot_loops<Stored, true, false>(terms) \
               : sums_too  ? dot_loops<Stored, false, true>(terms) \
                           : dot_loops<Stored, false, false>(terms);
    switch (dtype) { SDS_DTYPES(SDS_LOOPS) }
#undef SDS_LOOPS
    return {};
}

// Takes from `work` the reductions that can be computed this way, in groups of terms that are multiplied with each
// other.
class StoredDots {
 public:
    StoredDots(const Program& program, const Operand* operands, bool wide, std::vector<Reducing>& work)
        : program_(program), operands_(operands), wide_(wide) {
        const auto taken = [this](const Reducing& each) { return take(each); };
        work.erase(std::remove_if(work.begin(), work.end(), taken), work.end());
        for (Group& group : groups_) group.number_pairs(operands_);
    }

    void add(size_t count) const {
        for (const Group& group : groups_) {
            if (group.along == Along::all) {
                group.add_blocks(count);
            } else if (group.along == Along::first) {
                group.add_rows(count);
            } else {
                group.add_lines(count);
            }
        }
    }

 private:
    struct Group {
        Along along;
        DType dtype;
        bool differences;
        std::vector<Term> terms;
        struct Wanted {
            Accumulator* into;
            Term x, y;
            size_t pair = 0, row = 0, column = 0;
        };
        std::vector<Wanted> wanted;
        DotLoops loops{};
        Places places{};

        size_t place_of(const Term& term) const {
            return static_cast<size_t>(std::find(terms.begin(), terms.end(), term) - terms.begin());
        }

        bool sums_too() const { return terms.back() == Term{}; }

        void number_pairs(const Operand* operands) {
            std::stable_partition(terms.begin(), terms.end(), [](const Term& term) { return !(term == Term{}); });
            for (Wanted& each : wanted) {
                const size_t x = place_of(each.x), y = place_of(each.y);
                each.row = std::min(x, y);
                each.column = std::max(x, y);
                each.pair = each.row * terms.size() - each.row * (each.row + 1) / 2 + each.column;
            }
            loops = dot_loops(dtype, differences, sums_too(), terms.size());
            for (size_t t = 0; t < terms.size() - sums_too(); ++t) {
                places.a[t] = operands[terms[t].input].data;
            }
            places.less = differences ? operands[terms[0].less].data : nullptr;
        }

        Places from(size_t element) const { return places.at(element * size_of(dtype), terms.size() - sums_too()); }

        void add_block(size_t first, size_t count) const {
            double found[pairs_of(kGroup)];
            loops.block(from(first), count, found);
            for (const Wanted& each : wanted) each.into->add_block(found[each.pair], count);
        }

        // Only whole blocks come, but for the tensor's last.
        void add_blocks(size_t count) const {
            for (size_t first = 0; first < count; first += kReduceBlock)
                add_block(first, std::min(count - first, kReduceBlock));
        }

        void add_lines(size_t count) const {
            for (size_t first = 0, now; first < count; first += now) {
                const Accumulator& any = *wanted[0].into;
                const size_t at = any.position % kReduceBlock;
                const uint64_t left = std::min<uint64_t>(any.line - any.position, kReduceBlock - at);
                now = static_cast<size_t>(std::min<uint64_t>(left, count - first));
                if (at == 0 && now == left) {
                    add_block(first, now);
                } else {
                    add_piece(first, now, at);
                }
            }
        }

        // Of a block that other calls begin or end.
        void add_piece(size_t first, size_t count, size_t at) const {
            std::vector<WideStrip> wide(terms.size() * kReduceBlock / kStrip);
            const auto term = [&wide](size_t t) { return wide[t * kReduceBlock / kStrip].at; };
            widen_places(first, count, term);
            for (const Wanted& each : wanted) {
                Terms one{term(each.row), term(each.column), each.into->lanes.data()};
                dtype == DType::f64 ? add_terms<false>(&one, 1, count, at) : add_terms<true>(&one, 1, count, at);
                each.into->advance(count);
            }
        }

        template <class At>
        void widen_places(size_t first, size_t count, At to) const {
            const Places here = from(first);
            const size_t size = size_of(dtype);
            for (size_t t = 0; t < terms.size(); ++t) {
                for (size_t done = 0; done < count; done += kStrip) {
                    const size_t n = std::min(count - done, kStrip);
                    if (sums_too() && t + 1 == terms.size()) {
                        std::fill(to(t) + done, to(t) + done + n, 1.0);
                    } else if (differences) {
                        widen_differences(dtype, here.a[t] + done * size, here.less + done * size, to(t) + done, n);
                    } else {
                        widen_stored(dtype, here.a[t] + done * size, to(t) + done, n);
                    }
                }
            }
        }

        void add_rows(size_t count) const {
            const Accumulator& any = *wanted[0].into;
            const size_t columns = static_cast<size_t>(any.columns);
            for (size_t first = 0, now; first < count; first += now) {
                const size_t at = any.position % columns, row = static_cast<size_t>(any.position / columns);
                const size_t rows = std::min((count - first) / columns, kReduceBlock - row % kReduceBlock);
                size_t whole = 0;
                if (at == 0 && rows > 0) {
                    now = rows * columns;
                    double* lanes[pairs_of(kGroup)] = {};
                    for (const Wanted& each : wanted) lanes[each.pair] = each.into->lanes.data();
                    whole = loops.rows(from(first), columns, rows, row % kReduceLanes, lanes);
                    for (const Wanted& each : wanted) {  // of dot(a, b) and dot(b, a) one was added to
                        std::vector<double>& own = each.into->lanes;
                        if (own.data() != lanes[each.pair]) std::copy_n(lanes[each.pair], own.size(), own.data());
                    }
                } else {
                    now = std::min(columns - at, count - first);
                }
                for (size_t done = 0; done < now && whole < columns; done += columns - at)
                    add_columns(first + done + whole, std::min(now - done, columns - at) - whole, row + done / columns,
                                at + whole);
                for (const Wanted& each : wanted) each.into->advance(now);
            }
        }

        // Of one row, from column `at` on.
        void add_columns(size_t first, size_t count, size_t row, size_t at) const {
            WideStrip wide[kColumnGroup];
            for (size_t done = 0; done < count; done += kStrip) {
                const size_t n = std::min(count - done, kStrip);
                widen_places(first + done, n, [&wide](size_t t) { return wide[t].at; });
                for (const Wanted& each : wanted) {
                    const double *const x = wide[each.row].at, *const y = wide[each.column].at;
                    double* const lane = each.into->lanes.data() + row % kReduceLanes * each.into->columns + at + done;
                    for (size_t i = 0; i < n; ++i) lane[i] += x[i] * y[i];
                }
            }
        }
    };

    bool find(Ref ref, Term& term, DType& dtype) const {
        return find_term(program_, operands_, wide_, ref, program_.steps.data() + program_.steps.size(), term, dtype);
    }

    bool take(const Reducing& each) {
        const Reduce& reduce = *each.reduce;
        const bool sum = reduce.kind == Reduce::sum;
        if ((!sum && reduce.kind != Reduce::dot) || reduce.along == Along::inputs) return false;
        if (reduce.along == Along::first && (sum || each.into->columns == 1)) return false;
        if (reduce.along != Along::all && reduce.along != Along::first && each.into->line < kShortLine) return false;
        Group found{reduce.along, DType::f32, false, {}, {}};
        Term x, y;
        DType other;
        if (!find(reduce.a, x, found.dtype)) return false;
        if (!sum && (!find(reduce.b, y, other) || other != found.dtype)) return false;
        found.differences = x.less >= 0;
        if (y.less != x.less) return false;
        found.terms = {x};
        if (!(x == y)) found.terms.push_back(y);
        found.wanted = {{each.into, x, y}};
        return join(std::move(found));
    }

    // With the groups that have one of its terms already; false where that would be too many.
    bool join(Group found) {
        const auto related = [&found](const Group& other) {
            return other.along == found.along && other.dtype == found.dtype &&
                   other.terms[0].less == found.terms[0].less &&
                   std::any_of(found.terms.begin(), found.terms.end(),
                               [&other](const Term& term) { return other.place_of(term) < other.terms.size(); });
        };
        std::vector<Group> apart;
        for (const Group& other : groups_) {
            if (!related(other)) {
                apart.push_back(other);
                continue;
            }
            for (const Term& term : other.terms) {
                if (found.place_of(term) == found.terms.size()) found.terms.push_back(term);
            }
            found.wanted.insert(found.wanted.end(), other.wanted.begin(), other.wanted.end());
        }
        if (found.terms.size() > (found.along == Along::first ? kColumnGroup : kGroup)) return false;
        apart.push_back(std::move(found));
        groups_ = std::move(apart);
        return true;
    }

    const Program& program_;
    const Operand* const operands_;
    const bool wide_;
    std::vector<Group> groups_;
};
