// Sums and dot products along the lines of a tensor (its rows, its output channels), of terms that are strips. Included
// once per CPU target, inside that target's namespace and region, after reduce.inl.h and products.inl.h.
//
// Numeric rule: that of reduce.h, each line as if it were a tensor of its own.

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

// The sums and products of a stage that are made along lines, strip by strip. Each expression is widened once.
template <class T>
class LineSums {
 public:
    LineSums(const Strips<T>& work, const std::vector<Reducing>& wanted) {
        for (const Reducing& each : wanted) {
            if (!each.into->adds_lines() || Products<T>::has(*each.into)) continue;
            const size_t x = place(work.at(each.reduce->a));
            const size_t y = each.reduce->kind == Reduce::dot ? place(work.at(each.reduce->b)) : 0;
            lines_[static_cast<size_t>(each.into->along)].push_back({each.into, x, y});
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
