// Selections among the magnitudes of stored elements, or of differences of two, straight from the stored bytes: an
// element's key is made in registers, and once for all selections of the same magnitudes. Others go through strips
// (stages.inl.h). Included once per CPU target, inside that target's namespace and region, after dots.inl.h.

// Of |a|, or |a - less|. Reads whole registers only as far as the stored elements go.
template <class Stored>
void keys_of_magnitudes(const uint8_t* a, const uint8_t* less, uint32_t* to, size_t n) {
    constexpr size_t size = sizeof(typename Stored::Code);
    const auto magnitude = [](const uint8_t* of, const uint8_t* less_of) {
        const Lanes x = load<Stored>(of);
        return absolute(less_of ? x - load<Stored>(less_of) : x);
    };
    size_t i = 0;
    for (; i + Lanes::width <= n; i += Lanes::width)
        write_keys(magnitude(a + i * size, less ? less + i * size : nullptr), to + i);
    if (i < n) {
        uint8_t padded[2][Lanes::width * size] = {};
        uint32_t rest[Lanes::width];
        memcpy(padded[0], a + i * size, (n - i) * size);
        if (less) memcpy(padded[1], less + i * size, (n - i) * size);
        write_keys(magnitude(padded[0], less ? padded[1] : nullptr), rest);
        std::copy_n(rest, n - i, to + i);
    }
}

inline void keys_of_magnitudes(DType dtype, const uint8_t* a, const uint8_t* less, uint32_t* to, size_t n) {
#define SDS_KEYS(word, Stored) \
    case DType::word: keys_of_magnitudes<Stored>(a, less, to, n); break;
    switch (dtype) {
        SDS_NARROW_DTYPES(SDS_KEYS)
        case DType::f64: break;  // is not taken
    }
#undef SDS_KEYS
}

// Writes the bits of the chosen lanes, and their numbers from `first` on, one after the other, and returns how many
// they are. Room for a whole register is needed.
template <class Register>
size_t write_chosen(Register x, Mask chosen, uint32_t first, uint32_t* bits, uint32_t* indexes) {
    if constexpr (Register::width >= 8) {
        return write_compressed(x, chosen, first, bits, indexes);
    } else {
        float each[Register::width];
        x.write(each);
        size_t n = 0;
        for (uint64_t left = bits_of(chosen); left != 0; left &= left - 1, ++n) {
            const size_t lane = lowest_bit(left);
            bits[n] = bits_as<uint32_t>(each[lane]);
            indexes[n] = first + static_cast<uint32_t>(lane);
        }
        return n;
    }
}

// The same magnitudes into selections that have brackets: at most a strip.
static_assert(kStrip + Lanes::width <= Bracket::kAdded);
template <class Stored, size_t count>
void add_magnitudes(const uint8_t* a, const uint8_t* less, Selection* const* into, size_t n) {
    constexpr size_t size = sizeof(typename Stored::Code), W = Lanes::width;
    Lanes low[count], high[count];
    uint64_t below[count] = {};
    size_t within[count];
    uint32_t *bits[count], *indexes[count];
    for (size_t s = 0; s < count; ++s) {
        Bracket& bracket = *into[s]->bracket;
        low[s] = Lanes::all(bracket.low);
        high[s] = Lanes::all(bracket.high);
        within[s] = bracket.is_full() ? bracket.room() : bracket.within;
        bits[s] = bracket.bits.get();
        indexes[s] = bracket.indexes.get();
    }
    uint32_t index = static_cast<uint32_t>(into[0]->position);
    const auto add = [&](const uint8_t* of, const uint8_t* less_of, Mask counted) {
        const Lanes loaded = load<Stored>(of), x = absolute(less_of ? loaded - load<Stored>(less_of) : loaded);
        for (size_t s = 0; s < count; ++s) {
            const Mask at_most = at_least(high[s], x) * counted;
            below[s] += count_bits(bits_of(at_most));
            within[s] +=
                write_chosen(x, at_least(x, low[s]) * at_most, index, bits[s] + within[s], indexes[s] + within[s]);
        }
        index += W;
    };
    const Mask all = equal(low[0], low[0]);
    size_t i = 0;
    for (; i + W <= n; i += W) add(a + i * size, less ? less + i * size : nullptr, all);
    if (i < n) {
        uint8_t padded[2][W * size] = {};
        float place[W], left[W];
        for (size_t lane = 0; lane < W; ++lane) {
            place[lane] = static_cast<float>(lane);
            left[lane] = static_cast<float>(n - i);
        }
        memcpy(padded[0], a + i * size, (n - i) * size);
        if (less) memcpy(padded[1], less + i * size, (n - i) * size);
        add(padded[0], less ? padded[1] : nullptr, greater(Lanes::read(left), Lanes::read(place)));
    }
    for (size_t s = 0; s < count; ++s) {
        Bracket& bracket = *into[s]->bracket;
        bracket.within = bracket.is_full() ? bracket.within : within[s];
        bracket.above += n - below[s];
        into[s]->position += n;
    }
}

inline void add_magnitudes(DType dtype, const uint8_t* a, const uint8_t* less, const std::vector<Selection*>& into,
                           size_t n) {
    size_t s = 0;
#define SDS_MAGNITUDES(word, Stored)                                                                 \
    case DType::word:                                                                                \
        for (; s + 2 <= into.size(); s += 2) add_magnitudes<Stored, 2>(a, less, into.data() + s, n); \
        for (; s < into.size(); ++s) add_magnitudes<Stored, 1>(a, less, into.data() + s, n);         \
        break;
    switch (dtype) {
        SDS_NARROW_DTYPES(SDS_MAGNITUDES)
        case DType::f64: break;  // is not taken
    }
#undef SDS_MAGNITUDES
}

// Takes from `work` the selections that can be made this way.
class StoredKeys {
 public:
    StoredKeys(const Program& program, const Operand* operands, bool wide, std::vector<Reducing>& work)
        : program_(program), operands_(operands), wide_(wide) {
        const auto taken = [this](const Reducing& each) { return take(each); };
        work.erase(std::remove_if(work.begin(), work.end(), taken), work.end());
    }

    void add(size_t count) const {
        for (size_t first = 0; first < count && !taken_.empty(); first += kStrip) {
            const size_t n = std::min(count - first, kStrip);
            for (const Magnitudes& each : taken_) each.add(operands_, first, n);
        }
    }

    void sample(size_t count) const {
        for (const Magnitudes& each : taken_) each.sample(operands_, count);
    }

 private:
    struct Magnitudes {
        Term term;
        DType dtype;
        std::vector<Selection*> counted = {}, bracketed = {};  // that have a bracket

        void add(const Operand* operands, size_t first, size_t n) const {
            const size_t size = size_of(dtype);
            const uint8_t* const a = operands[term.input].data + first * size;
            const uint8_t* const less = term.less < 0 ? nullptr : operands[term.less].data + first * size;
            prefetch(a + kStrip * size, kStrip * size);
            if (less) prefetch(less + kStrip * size, kStrip * size);
            add_magnitudes(dtype, a, less, bracketed, n);
            if (counted.empty()) return;
            uint32_t keys[kStrip];
            keys_of_magnitudes(dtype, a, less, keys, n);
            for (Selection* selection : counted) select_strip(*selection, keys, n);
        }

        void sample(const Operand* operands, size_t count) const {
            if (counted[0]->is_small()) {
                counted[0]->sampled += count;
                return;
            }
            const uint64_t step = counted[0]->sample_step(), begin = counted[0]->position, end = begin + count;
            const size_t size = size_of(dtype);
            const auto offset_of = [&](uint64_t at) { return static_cast<size_t>(at - begin) * size; };
            for (uint64_t index = begin / step; index * step < end; ++index) {
                const uint64_t at = Bracket::place(index, step);
                if (at < begin || at + Bracket::kTogether > end) continue;
                uint32_t keys[Bracket::kTogether];
                const uint8_t* const first = operands[term.input].data;
                const uint8_t* const other = term.less < 0 ? nullptr : operands[term.less].data;
                const size_t offset = offset_of(at), ahead = offset_of(Bracket::place(index + 16, step));
                const uint8_t* const a = first + offset;
                const uint8_t* const less = other ? other + offset : nullptr;
                prefetch(first + ahead, Bracket::kTogether * size);  // no processor guesses these places
                if (other) prefetch(other + ahead, Bracket::kTogether * size);
                keys_of_magnitudes(dtype, a, less, keys, Bracket::kTogether);
                count_upper(keys, Bracket::kTogether, counted[0]->counts());
                counted[0]->sampled += Bracket::kTogether;
            }
            counted[0]->position += count;
        }
    };

    bool take(const Reducing& each) {
        if (!each.into->selection || wide_) return false;
        const Step* const end = program_.steps.data() + program_.steps.size();
        const Step* const made = step_of(program_, each.reduce->a, end);
        Magnitudes found;
        if (!made || made->op != Op::abs ||
            !find_term(program_, operands_, wide_, made->a, made, found.term, found.dtype))
            return false;
        if (each.into->selection->counted_by_twin()) return true;
        const auto same = [&found](const Magnitudes& other) { return other.term == found.term; };
        auto at = std::find_if(taken_.begin(), taken_.end(), same);
        if (at == taken_.end()) at = taken_.insert(at, found);
        Selection* const selection = each.into->selection.get();
        (selection->bracket ? at->bracketed : at->counted).push_back(selection);
        return true;
    }

    const Program& program_;
    const Operand* const operands_;
    const bool wide_;
    std::vector<Magnitudes> taken_;
};
