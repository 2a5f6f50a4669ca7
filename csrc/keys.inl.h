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

 private:
    struct Magnitudes {
        Term term;
        DType dtype;
        std::vector<Selection*> into;

        void add(const Operand* operands, size_t first, size_t n) const {
            const size_t size = size_of(dtype);
            const uint8_t* const a = operands[term.input].data + first * size;
            const uint8_t* const less = term.less < 0 ? nullptr : operands[term.less].data + first * size;
            prefetch(a + kStrip * size, kStrip * size);
            if (less) prefetch(less + kStrip * size, kStrip * size);
            uint32_t keys[kStrip];
            keys_of_magnitudes(dtype, a, less, keys, n);
            for (Selection* selection : into) select_strip(*selection, keys, n);
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
        at->into.push_back(each.into->selection.get());
        return true;
    }

    const Program& program_;
    const Operand* const operands_;
    const bool wide_;
    std::vector<Magnitudes> taken_;
};
